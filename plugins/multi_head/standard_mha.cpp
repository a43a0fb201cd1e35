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

#include "attend/author/extra_keys.hpp"
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
    option_maybe_int(ATTEND_FIELD(model_dim), size_range, "model width E; default: the width of query", in_projected),
    option_maybe_int(ATTEND_FIELD(heads), size_range, "heads H, required in the projected form; divides E",
                     in_projected),
    option_bool(ATTEND_FIELD(bias), true, "biases of the four projections", in_projected),
    option_maybe_int(ATTEND_FIELD(kdim), size_range, "width of key; default E", in_projected),
    option_maybe_int(ATTEND_FIELD(vdim), size_range, "width of value; default E", in_projected),
    option_bool(ATTEND_FIELD(batch_first), true, "[B,N,E] tensors; false: [N,B,E]", in_projected),
    option_bool(ATTEND_FIELD(add_bias_kv), false, "append one learned key and value", in_projected),
    option_bool(ATTEND_FIELD(add_zero_attn), false, "append a zero key with a zero value to each head"),
    option_bool(ATTEND_FIELD(output_projection), true, "project the joined heads by Wo", in_projected),
    option_bool(ATTEND_FIELD(average_weights), false, "scores as the mean over heads, [B,Nq,Nk']", in_projected),
    ATTEND_VISIBILITY_OPTIONS(""),
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
                        "B,Hq,Nq,Nk+add_bias_kv+add_zero_attn | B,Hq,Nq,Nk+add_zero_attn"),
};

int64_t extra_keys(const Options& options) {
    return options.add_zero_attn + (is_projected(options.form) ? options.add_bias_kv : 0);
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (!is_projected(options.form)) return ATTEND_OK;
    const int64_t width = desc.num_q_heads * desc.head_dim;
    attend_status status = check_size("standard-mha", "model_dim", options.model_dim, width, error);
    if (status != ATTEND_OK) return status;
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
    return tile_workspace(desc, extra) + ExtraKeys::bytes(desc, extra) +
           (is_projected(options.form) ? projected_workspace(projection(options, desc), desc) : 0);
}

attend_status attend_extra(const Options& options, const ForwardArgs& args, TileCall& call, const Context& context) {
    const bool projected = is_projected(options.form), learned = projected && options.add_bias_kv;
    Carve carve(context);
    ExtraKeys appended;
    if (const int64_t extra = extra_keys(options)) {
        appended.fill(*args.desc, extra, learned ? attend_find_name(args.weights, "bias_k") : nullptr,
                      learned ? attend_find_name(args.weights, "bias_v") : nullptr, carve);
        call.add_segment(&appended.key.tensor, &appended.value.tensor, ATTEND_SEGMENT_ALWAYS_VISIBLE);
    }
    if (projected && options.average_weights) {
        if (args.rows.logits)
            return attend_fail(context.error, ATTEND_UNSUPPORTED,
                               "standard-mha: a mean over heads has no logits; accepted: average_weights false",
                               "average_weights");
        call.problem.flags |= ATTEND_TILE_AVERAGE_SCORES;
    }
    return run_tiles(call, carve.rest(context));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    ForwardArgs view = args;
    int64_t shapes[4][3], strides[4][3];
    attend_tensor turned[4];
    const attend_tensor** tensors[4] = {&view.query, &view.key, &view.value, &view.output};
    for (int at = 0; at < 4 && is_projected(options.form) && !options.batch_first && *tensors[at]; ++at) {
        turned[at] = batch_leading(**tensors[at], shapes[at], strides[at]);
        *tensors[at] = &turned[at];
    }
    return run_form(options.form, projection(options, *args.desc), view, context,
                    [&](TileCall& call, const Context& rest) { return attend_extra(options, args, call, rest); });
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    form_cost(options.form, projection(options, desc), desc, visible_pairs(desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    standard_mha,
    described<check, workspace, forward, cost>(
        {.name = "standard-mha",
         .category = "multi-head",
         .title = "Multi-head attention",
         .summary = "Every query reads every key, in several heads side by side; the "
                    "reference that the others are compared with.",
         .reference = "Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .formula = "q = query wq^T + bq, k = key wk^T + bk, v = value wv^T + bv, split into heads\n"
                    "s_ij = scale q_i.k_j over visible keys j;  o_i = sum_j softmax_j(s_ij) v_j\n"
                    "output = heads side by side, times wo^T + bo",
         .cost = "Every query meets every key, so time grows with the product of the two lengths; the scores are "
                 "never stored, so memory grows with the lengths alone. The projections add four products of the "
                 "width squared per token.",
         .use = "The safe default for up to some thousand tokens, and what a trained transformer layer expects. Take "
                "flash-attention-v2 for ready-made heads, grouped-query-attention for a smaller cache, a sparse or "
                "linear mechanism for much longer texts.",
         .example = "attend compute standard-mha --sequence-length 256 --heads 8 --set add_zero_attn=true"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
