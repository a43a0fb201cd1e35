// SPDX-License-Identifier: Apache-2.0
// cross-attention: one sequence reads another of different length and width.
//
// Paper    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; parameters as in Rombach et al. 2022 (latent diffusion)
// Formula  q = x Wq^T + bq, k = context Wk^T + bk, v = value_context Wv^T + bv; softmax attention; joined heads Wo^T + bo
// Cost     O(Nq * Nk * H * D) and the projections; no score matrix
// Differs  queries and keys come from different sequences, so there is no causal edge and no window

#include "attend/author/projected.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, bias;
    int64_t heads;
    OptionalInt query_dim, key_dim, value_dim, kv_heads, head_dim, output_dim;
};

constexpr Range size_range{1, 1048576};
constexpr OptionRow option_table[] = {
    option_enum(offsetof(Options, form), "form", "\"auto\"", common::forms,
                "core: ready-made heads; projected: with projections; auto: projected if a weight is given"),
    option_maybe_int(offsetof(Options, query_dim), "query_dim", size_range, "width of x; default: that of query",
                     "form=projected"),
    option_maybe_int(offsetof(Options, key_dim), "key_dim", size_range, "width of the context; default: query_dim",
                     "form=projected"),
    option_maybe_int(offsetof(Options, value_dim), "value_dim", size_range,
                     "width of the value context; default: key_dim", "form=projected"),
    option_int(offsetof(Options, heads), "heads", "8", {1, 65536}, "heads H", "form=projected"),
    option_maybe_int(offsetof(Options, kv_heads), "kv_heads", {1, 65536},
                     "key heads, a divisor of heads; default: heads", "form=projected"),
    option_maybe_int(offsetof(Options, head_dim), "head_dim", size_range,
                     "head width D; default: query_dim / heads, required if heads does not divide it",
                     "form=projected"),
    option_maybe_int(offsetof(Options, output_dim), "output_dim", size_range, "width of the output; default: query_dim",
                     "form=projected"),
    option_bool(offsetof(Options, bias), "bias", true, "biases of the query, key and value projections",
                "form=projected"),
    option_row(ATTEND_TYPE_BOOL, 0, "out_bias", nullptr, {0, 1}, nullptr,
               "bias of the output projection; default: as bias", Field::none, 0, "form=projected"),
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(),
};

constexpr attend_port port_table[] = {
    stored(input_port(ATTEND_Q, "query", "form=projected: B,Nq,E | B,Hq,Nq,D", "queries; in the projected form x")),
    stored(input_port(ATTEND_K, "key", "form=projected: B,Nk,or(key_dim,E) | B,Hkv,Nk,D",
                      "keys; in the projected form the context")),
    stored(common::value_port("form=projected: B,Nk,or(value_dim,or(key_dim,E)) | B,Hkv,Nk,Dv")),
    ATTEND_MASK_PORTS,
    weight_port("wq", "form=projected: Hq*D,E", "kaimingUniform as Wq", "query projection"),
    weight_port("wk", "form=projected: Hkv*D,or(key_dim,E)", "kaimingUniform as Wk", "key projection"),
    weight_port("wv", "form=projected: Hkv*D,or(value_dim,or(key_dim,E))", "kaimingUniform as Wv", "value projection"),
    weight_port("bq", "form=projected & bias: Hq*D", "zeros", "query bias"),
    weight_port("bk", "form=projected & bias: Hkv*D", "zeros", "key bias"),
    weight_port("bv", "form=projected & bias: Hkv*D", "zeros", "value bias"),
    weight_port("wo", "form=projected: or(output_dim,E),Hq*D", "kaimingUniform as Wo", "output projection"),
    weight_port("bo", "form=projected & or(out_bias,bias): or(output_dim,E)", "zeros", "output bias"),
    stored(output_port(ATTEND_OUT, "output", "form=projected: B,Nq,or(output_dim,E) | B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

int64_t width_of(const attend_plan_desc& desc, uint32_t role, int64_t otherwise) {
    const attend_tensor* tensor = attend_find(&desc.bindings, role);
    return tensor && tensor->ndim == 3 ? tensor->shape[2] : otherwise;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    if (is_projected(options.form) && options.query_dim.given &&
        options.query_dim.value != width_of(*args.desc, ATTEND_Q, options.query_dim.value))
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"query_dim\" differs from the width of query; accepted: that width", "query_dim");
    return ATTEND_OK;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    uint64_t bytes = tile_workspace(desc);
    if (!is_projected(options.form)) return bytes;
    const int64_t inner = desc.num_q_heads * desc.head_dim, kv = desc.num_kv_heads * desc.head_dim;
    bytes += 2 * Carve::floats(desc.batch * desc.q_len * inner) + 2 * Carve::floats(desc.batch * desc.kv_len * kv);
    int64_t widest = inner;
    for (const uint32_t role : {ATTEND_Q, ATTEND_K, ATTEND_V, ATTEND_OUT})
        if (const int64_t width = width_of(desc, role, inner); width > widest) widest = width;
    return bytes + projection_workspace(desc.batch, desc.q_len > desc.kv_len ? desc.q_len : desc.kv_len, widest, widest,
                                        desc.max_workers);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    if (!is_projected(options.form)) {
        TileCall call(args);
        return run_tiles(call, context);
    }
    const attend_plan_desc& desc = *args.desc;
    const int64_t inner = desc.num_q_heads * desc.head_dim, kv = desc.num_kv_heads * desc.head_dim;
    Carve carve(context);
    Rows q(carve.take(desc.batch * desc.q_len * inner), desc.batch, desc.q_len, inner);
    Rows k(carve.take(desc.batch * desc.kv_len * kv), desc.batch, desc.kv_len, kv);
    Rows v(carve.take(desc.batch * desc.kv_len * kv), desc.batch, desc.kv_len, kv);
    Rows joined(carve.take(desc.batch * desc.q_len * inner), desc.batch, desc.q_len, inner);
    const struct {
        const attend_tensor* from;
        const char *weight, *bias;
        const Rows* to;
    } layers[] = {{args.query, "wq", "bq", &q}, {args.key, "wk", "bk", &k}, {args.value, "wv", "bv", &v}};
    for (const auto& layer : layers) {
        const attend_status status =
            project(layer.from, attend_find_name(args.weights, layer.weight),
                    attend_find_name(args.weights, layer.bias), &layer.to->tensor, carve.rest(context));
        if (status != ATTEND_OK) return status;
    }
    OwnTensor qh, kh, vh, oh;
    split_heads(qh, q.tensor, desc.num_q_heads);
    split_heads(kh, k.tensor, desc.num_kv_heads);
    split_heads(vh, v.tensor, desc.num_kv_heads);
    split_heads(oh, joined.tensor, desc.num_q_heads);
    TileCall call(args, &qh.tensor, &kh.tensor, &vh.tensor, &oh.tensor);
    const attend_status status = run_tiles(call, carve.rest(context));
    if (status != ATTEND_OK) return status;
    return project(&joined.tensor, attend_find_name(args.weights, "wo"), attend_find_name(args.weights, "bo"),
                   args.output, carve.rest(context));
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    softmax_cost(desc, static_cast<double>(desc.q_len) * static_cast<double>(desc.kv_len), cost);
    if (!is_projected(options.form)) return;
    const auto inner = static_cast<double>(desc.num_q_heads * desc.head_dim),
               kv = static_cast<double>(desc.num_kv_heads * desc.head_dim);
    const auto rows = [&](int64_t n) { return static_cast<double>(desc.batch * n); };
    cost.flops +=
        2.0 * inner * rows(desc.q_len) *
            static_cast<double>(width_of(desc, ATTEND_Q, 0) + width_of(desc, ATTEND_OUT, 0)) +
        2.0 * kv * rows(desc.kv_len) * static_cast<double>(width_of(desc, ATTEND_K, 0) + width_of(desc, ATTEND_V, 0));
}

}  // namespace

ATTEND_MECHANISM(cross, {.name = "cross-attention",
                         .category = "cross-attention",
                         .title = "Cross-attention",
                         .summary = "One sequence reads another: a decoder its encoder, an image its caption.",
                         .reference = "Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
                         .time_complexity = "O(n m d)",
                         .space_complexity = "O((n + m) d)",
                         .caps = softmax_caps,
                         .dtypes = stored_floats,
                         .numerics = ATTEND_EXACT,
                         .revision = 1,
                         ATTEND_OPTION_TABLE(Options, option_table),
                         ATTEND_PORT_TABLE(port_table),
                         .check = erased<check>,
                         .workspace = erased<workspace>,
                         .forward = erased<forward>,
                         .cost = erased<cost>})

}  // namespace attend::ATTEND_ISA
