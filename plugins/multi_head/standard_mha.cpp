// SPDX-License-Identifier: Apache-2.0
// standard-mha: dense attention by several heads, on ready-made heads (core) or with learned projections.
//
// Paper    Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.2.2
// Formula  head_h = softmax(q_h k_h^T / sqrt(D)) v_h ;  y = concat(head_0 .. head_H-1) Wo^T + bo
//          projected: q = x Wq^T + bq, k = key Wk^T + bk, v = value Wv^T + bv, E = H * D
//          add_bias_kv appends the learned key bias_k with value bias_v, add_zero_attn a zero key with a zero value;
//          both are visible to every query whatever masks say
// Cost     O(Nq * Nk * E) and O((Nq + Nk) * E^2) for the projections; memory O((Nq + Nk) * E)
// Differs  the causal diagonal is bottom-right aligned; returned weights are those before dropout

#include "attend/author/projected.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, bias, batch_first, add_bias_kv, add_zero_attn, output_projection, average_weights;
    OptionalInt model_dim, heads, kdim, vdim;
};

constexpr Range size_range{1, 1048576};
constexpr OptionRow option_table[] = {
    common::form_option(offsetof(Options, form)),
    option_maybe_int(offsetof(Options, model_dim), "model_dim", size_range,
                     "model width E; default: the width of query", "form=projected"),
    option_maybe_int(offsetof(Options, heads), "heads", size_range,
                     "heads H, required in the projected form; divides E", "form=projected"),
    option_bool(offsetof(Options, bias), "bias", true, "biases of the four projections", "form=projected"),
    option_maybe_int(offsetof(Options, kdim), "kdim", size_range, "width of key; default E", "form=projected"),
    option_maybe_int(offsetof(Options, vdim), "vdim", size_range, "width of value; default E", "form=projected"),
    option_bool(offsetof(Options, batch_first), "batch_first", true, "[B,N,E] tensors; false: [N,B,E]",
                "form=projected"),
    option_bool(offsetof(Options, add_bias_kv), "add_bias_kv", false, "append one learned key and value",
                "form=projected"),
    option_bool(offsetof(Options, add_zero_attn), "add_zero_attn", false,
                "append a zero key with a zero value to each head"),
    option_bool(offsetof(Options, output_projection), "output_projection", true, "project the joined heads by Wo",
                "form=projected"),
    option_bool(offsetof(Options, average_weights), "average_weights", false,
                "scores as the mean over heads, [B,Nq,Nk']", "form=projected"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(),
};

constexpr attend_port port_table[] = {
    stored(input_port(ATTEND_Q, "query", "form=projected & batch_first: B,Nq,E | form=projected: Nq,B,E | B,Hq,Nq,D",
                      "queries")),
    stored(common::key_port(
        "form=projected & batch_first: B,Nk,or(kdim,E) | form=projected: Nk,B,or(kdim,E) | B,Hkv,Nk,D")),
    stored(common::value_port(
        "form=projected & batch_first: B,Nk,or(vdim,E) | form=projected: Nk,B,or(vdim,E) | B,Hkv,Nk,Dv")),
    ATTEND_MASK_PORTS,
    weight_port("wq", "form=projected: E,E",
                "or(kdim,E)=E & or(vdim,E)=E: uniform(sqrt(6/(4*E))) as Wq | xavierUniform as Wq",
                "query projection [out, in by rows]"),
    weight_port("wk", "form=projected: E,or(kdim,E)",
                "or(kdim,E)=E & or(vdim,E)=E: uniform(sqrt(6/(4*E))) as Wk | xavierUniform as Wk", "key projection"),
    weight_port("wv", "form=projected: E,or(vdim,E)",
                "or(kdim,E)=E & or(vdim,E)=E: uniform(sqrt(6/(4*E))) as Wv | xavierUniform as Wv", "value projection"),
    weight_port("bq", "form=projected & bias: E", "zeros", "query bias"),
    weight_port("bk", "form=projected & bias: E", "zeros", "key bias"),
    weight_port("bv", "form=projected & bias: E", "zeros", "value bias"),
    weight_port("wo", "form=projected & output_projection: E,E", "kaimingUniform as Wo", "output projection"),
    weight_port("bo", "form=projected & output_projection & bias: E", "zeros", "output bias"),
    weight_port("bias_k", "form=projected & add_bias_kv: E", "normal(0,1/sqrt(E)) as biasK", "the learned key"),
    weight_port("bias_v", "form=projected & add_bias_kv: E", "normal(0,1/sqrt(E)) as biasV", "the learned value"),
    stored(output_port(ATTEND_OUT, "output",
                       "form=projected & batch_first: B,Nq,E | form=projected: Nq,B,E | B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port("form=projected & average_weights: B,Nq,Nk+add_bias_kv+add_zero_attn | form=projected: "
                        "B,Hq,Nq,Nk+add_bias_kv+add_zero_attn | "
                        "B,Hq,Nq,Nk+add_zero_attn"),
};

int64_t extra_keys(const Options& options) {
    return options.add_zero_attn + (is_projected(options.form) ? options.add_bias_kv : 0);
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (!is_projected(options.form)) return ATTEND_OK;
    const int64_t width = desc.num_q_heads * desc.head_dim;
    if (const attend_status status = check_size("standard-mha", "model_dim", options.model_dim, width, error))
        return status;
    if (desc.num_kv_heads != desc.num_q_heads)
        return attend_fail(error, ATTEND_BAD_SHAPE, "the projected form has as many key heads as query heads", "heads");
    const attend_tensor* key = attend_find_name(&desc.bindings, "bias_k");
    const attend_tensor* value = attend_find_name(&desc.bindings, "bias_v");
    if (key && value && ((key->flags ^ value->flags) & ATTEND_TENSOR_INITIALISED))
        return attend_fail(error, ATTEND_NOT_FOUND,
                           "weights \"bias_k\" and \"bias_v\" belong together; accepted: both or none", "bias_k");
    return ATTEND_OK;
}

ProjectedForm projection(const Options& options, const attend_plan_desc& desc) {
    ProjectedForm form = cross_projection(desc);
    form.joins = options.output_projection;
    return form;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t extra = extra_keys(options);
    return tile_workspace(desc, extra) +
           2 * Carve::floats(desc.num_kv_heads * extra * (desc.head_dim + desc.value_dim)) +
           (is_projected(options.form) ? projected_workspace(projection(options, desc), desc) : 0);
}

// The appended keys of every head, [H, extra, D]: the learned one first, the zero key last.
void fill_extra(float* to, const attend_tensor* learned, int64_t heads, int64_t extra, int64_t width) {
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t row = 0; row < extra; ++row)
            for (int64_t d = 0; d < width; ++d) {
                const float* from = learned && row == 0 ? static_cast<const float*>(learned->data) +
                                                              (head * width + d) * learned->strides[0]
                                                        : nullptr;
                to[(head * extra + row) * width + d] = from ? *from : 0.0f;
            }
}

// [N, B, E] seen as [B, N, E].
attend_tensor batch_leading(const attend_tensor& tensor, int64_t (&shape)[3], int64_t (&strides)[3]) {
    attend_tensor view = tensor;
    const int order[3] = {1, 0, 2};
    for (int axis = 0; axis < 3; ++axis)
        shape[axis] = tensor.shape[order[axis]], strides[axis] = tensor.strides[order[axis]];
    view.shape = shape;
    view.strides = strides;
    return view;
}

attend_status attend_with(const Options& options, const ForwardArgs& args, const attend_tensor* q,
                          const attend_tensor* k, const attend_tensor* v, const attend_tensor* o, Carve& carve,
                          const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t extra = extra_keys(options), heads = desc.num_kv_heads;
    TileCall call(args, q, k, v, o);
    OwnTensor key, value;
    if (extra > 0) {
        float* keys = carve.take(heads * extra * desc.head_dim);
        float* values = carve.take(heads * extra * desc.value_dim);
        const bool learned = is_projected(options.form) && options.add_bias_kv;
        fill_extra(keys, learned ? attend_find_name(args.weights, "bias_k") : nullptr, heads, extra, desc.head_dim);
        fill_extra(values, learned ? attend_find_name(args.weights, "bias_v") : nullptr, heads, extra, desc.value_dim);
        describe(key, keys, desc.batch, heads, extra, desc.head_dim);
        describe(value, values, desc.batch, heads, extra, desc.value_dim);
        key.strides[0] = value.strides[0] = 0;
        call.add_segment(&key.tensor, &value.tensor, ATTEND_SEGMENT_ALWAYS_VISIBLE);
    }
    if (is_projected(options.form) && options.average_weights) call.problem.flags |= ATTEND_TILE_AVERAGE_SCORES;
    return run_tiles(call, carve.rest(context));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    Carve carve(context);
    if (!is_projected(options.form))
        return attend_with(options, args, args.query, args.key, args.value, args.output, carve, context);
    int64_t shapes[4][3], strides[4][3];
    attend_tensor x[4] = {*args.query, *args.key, *args.value, *args.output};
    if (!options.batch_first)
        for (int at = 0; at < 4; ++at) x[at] = batch_leading(x[at], shapes[at], strides[at]);
    ProjectedHeads heads;
    attend_status status =
        heads.project_inputs(projection(options, *args.desc), args, &x[0], &x[1], &x[2], &x[3], carve, context);
    if (status == ATTEND_OK)
        status = attend_with(options, args, &heads.q.tensor, &heads.k.tensor, &heads.v.tensor, &heads.o.tensor, carve,
                             context);
    if (status == ATTEND_OK && options.output_projection) status = heads.project_output(args, &x[3], carve, context);
    return status;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    softmax_cost(desc, visible_pairs(desc), cost);
    if (is_projected(options.form)) projected_cost(projection(options, desc), desc, cost);
}

}  // namespace

ATTEND_MECHANISM(standard_mha, described<check, workspace, forward, cost>(
                                   {.name = "standard-mha",
                                    .category = "multi-head",
                                    .title = "Multi-head attention",
                                    .summary = "Every query reads every key, in several heads side by side; the "
                                               "reference that the others are compared with.",
                                    .reference = "Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762",
                                    .time = "O(n^2 d)",
                                    .space = "O(n d)"},
                                   option_table, port_table))

}  // namespace attend::ATTEND_ISA
