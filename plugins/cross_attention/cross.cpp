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
    common::form_option(offsetof(Options, form)),
    option_maybe_int(ATTEND_FIELD(query_dim), size_range, "width of x; default: that of query", in_projected),
    option_maybe_int(ATTEND_FIELD(key_dim), size_range, "width of the context; default: query_dim", in_projected),
    option_maybe_int(ATTEND_FIELD(value_dim), size_range, "width of the value context; default: key_dim", in_projected),
    option_int(ATTEND_FIELD(heads), "8", {1, 65536}, "heads H", in_projected),
    option_maybe_int(ATTEND_FIELD(kv_heads), {1, 65536}, "key heads, a divisor of heads; default: heads", in_projected),
    option_maybe_int(ATTEND_FIELD(head_dim), size_range,
                     "head width D; default: query_dim / heads, required if heads does not divide it", in_projected),
    option_maybe_int(ATTEND_FIELD(output_dim), size_range, "width of the output; default: query_dim", in_projected),
    option_bool(ATTEND_FIELD(bias), true, "biases of the query, key and value projections", in_projected),
    option_row(ATTEND_TYPE_BOOL, 0, "out_bias", nullptr, {0, 1}, nullptr,
               "bias of the output projection; default: as bias", Field::none, 0, in_projected),
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

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    if (!is_projected(options.form) || !attend_find(&args.desc->bindings, ATTEND_Q)) return ATTEND_OK;
    return check_size("cross-attention", "query_dim", options.query_dim, ProjectedWidths(*args.desc).query, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return form_workspace(options.form, cross_projection(*args.desc), *args.desc);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    return run_form(options.form, cross_projection(*args.desc), args, context, run_tiles);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const double pairs = static_cast<double>(desc.q_len) * static_cast<double>(desc.kv_len);
    form_cost(options.form, cross_projection(desc), desc, pairs, cost);
}

}  // namespace

ATTEND_MECHANISM(
    cross,
    described<check, workspace, forward, cost>(
        {.name = "cross-attention",
         .category = "cross-attention",
         .title = "Cross-attention",
         .summary = "One sequence reads another: a decoder its encoder, an image its caption.",
         .reference = "Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
         .time = "O(n m d)",
         .space = "O((n + m) d)",
         .caps = softmax_caps,
         .formula = "q from one sequence, k and v from another\n"
                    "s_ij = scale q_i.k_j;  o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "Every query meets every key of the other sequence: time grows with the product of the two lengths, "
                 "memory with their sum.",
         .use = "A decoder reading its encoder, an image reading its caption, questions reading a document. For very "
                "long contexts take hierarchical-cross-attention or perceiver-attention.",
         .example = "attend compute cross-attention --sequence-length 64 --sequence-length-k 256 --heads 8"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
