// SPDX-License-Identifier: Apache-2.0
// bidirectional-self-attention: every token sees every token that is no padding, as encoders read a whole text.
//
// Paper    Devlin et al. 2019, "BERT", arXiv:1810.04805
// Formula  softmax attention over the tokens of the same segment that are no padding
//          projected: q = x Wq^T + bq, k = x Wk^T + bk, v = x Wv^T + bv, output = joined heads Wo^T + bo
// Cost     O(N^2 D); packed segments O(sum of their squared lengths); memory O(N)
// Differs  a row that sees nothing is zero; padded queries stay rows like others unless zero_padded_queries asks

#include "attend/author/projected.hpp"
#include "token_keys.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, bias, causal, zero_padded_queries;
    OptionalInt heads;
};
constexpr const char* name = "bidirectional-self-attention";

constexpr OptionRow option_table[] = {
    common::form_option(offsetof(Options, form)),
    option_maybe_int(ATTEND_FIELD(heads), {1, 65536}, "heads, required in the projected form; divides E", in_projected),
    option_bool(ATTEND_FIELD(zero_padded_queries), false, "queries that stand on a padded key become empty rows"),
    option_bool(ATTEND_FIELD(bias), true, "biases of the projections", in_projected),
    option_bool(ATTEND_FIELD(causal), false, "always false; true is refused"),
    common::causal_alignment("!causal_offset & windowed"),
    common::causal_offset("windowed"),
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(),
};

constexpr attend_port port_table[] = {
    common::query_or_tokens_port(),
    stored(common::key_port("form=core: B,Hkv,Nk,D")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv")),
    common::past_key_port(),
    common::past_value_port(),
    ATTEND_MASK_PORTS,
    input_port(0, "padding_mask", "B,Nk", "non-zero: a token, zero: padding", ATTEND_OPTIONAL, ATTEND_U8),
    input_port(0, "segment_ids", "B,Nk", "tokens of one id see one another; below 0: hidden, and an empty row",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "segment_offsets", "ends | B,ends", "segment s is the tokens offsets[s] to offsets[s+1]-1",
               ATTEND_OPTIONAL, length_types),
    weight_port("wq", "form=projected: E,E", "normal(0,0.02) as Wq", "query projection"),
    weight_port("wk", "form=projected: E,E", "normal(0,0.02) as Wk", "key projection"),
    weight_port("wv", "form=projected: E,E", "normal(0,0.02) as Wv", "value projection"),
    weight_port("wo", "form=projected: E,E", "normal(0,0.02) as Wo", "output projection"),
    weight_port("bq", "form=projected & bias: E", "zeros", "query bias"),
    weight_port("bk", "form=projected & bias: E", "zeros", "key bias"),
    weight_port("bv", "form=projected & bias: E", "zeros", "value bias"),
    weight_port("bo", "form=projected & bias: E", "zeros", "output bias"),
    common::output_or_tokens_port(),
    common::lse_port(),
    common::scores_port(),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (options.causal)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"causal\" is true; accepted: false (every token sees both sides)", "causal");
    const attend_tensor* past = attend_find_name(&desc.bindings, "past_key");
    const int64_t keys = desc.q_len + (past ? past->shape[2] : 0);
    if (is_projected(options.form) && desc.kv_len != keys)
        return (Message() << name << ": a padding mask or segments are given for " << desc.kv_len
                          << " keys; accepted: " << keys << " (cached and new tokens)")
            .fail(error, ATTEND_BAD_SHAPE, "padding_mask");
    const attend_tensor* offsets = attend_find_name(&desc.bindings, "segment_offsets");
    const bool ids = attend_find_name(&desc.bindings, "segment_ids") != nullptr;
    if (ids && offsets)
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "inputs \"segment_ids\" and \"segment_offsets\" are both given; accepted: one of them",
                           "segment_offsets");
    if ((ids || offsets) && desc.q_len != desc.kv_len)
        return (Message() << name << ": segments are given with " << desc.q_len << " queries and " << desc.kv_len
                          << " keys; accepted: as many queries as keys")
            .fail(error, ATTEND_BAD_SHAPE, ids ? "segment_ids" : "segment_offsets");
    if (offsets && offsets->shape[offsets->ndim - 1] < 1)
        return attend_fail(error, ATTEND_BAD_SHAPE, "input \"segment_offsets\" is empty; accepted: [S+1] or [B,S+1]",
                           "segment_offsets");
    return check_past(desc, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    return token_tables(desc) + form_workspace(options.form, self_projection(desc), desc);
}

attend_status attend_tokens(const Options& options, const ForwardArgs& args, TileCall& call, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (!has_tokens(args.bindings) && !(options.zero_padded_queries && args.key_lengths))
        return run_tiles(call, context);
    Carve carve(context);
    TokenKeys keys{};
    keys.num_keys = desc.kv_len;
    keys.hides_queries = options.zero_padded_queries;
    keys.lengths = options.zero_padded_queries ? args.key_lengths : nullptr;
    read_tokens(keys, args, carve);
    use_keys(call.problem, keys);
    return run_tiles(call, carve.rest(context));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    if (const attend_status status = check_tokens(name, args, context.error)) return status;
    return run_form(options.form, self_projection(*args.desc), args, context,
                    [&](TileCall& call, const Context& rest) { return attend_tokens(options, args, call, rest); });
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    form_cost(options.form, self_projection(desc), desc, visible_pairs(desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    bidirectional_self,
    described<check, workspace, forward, cost>(
        {.name = name,
         .category = "self-attention",
         .title = "Bidirectional self-attention",
         .summary = "Every token sees the whole text, padding and other packed texts excepted, as encoders read.",
         .reference = "Devlin et al. 2019, BERT, arXiv:1810.04805",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .caps = softmax_caps | ATTEND_CAP_WINDOW | ATTEND_CAP_DECODE,
         .formula = "visible keys: all of the own text (segment_ids), padding excepted\n"
                    "s_ij = scale q_i.k_j;  o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "As dense attention over each text: packed texts cost the sum of their squared lengths, padding "
                 "costs nothing.",
         .use = "Encoders that read a text as a whole (BERT), also several short texts packed into one row. For "
                "generation take causal-self-attention.",
         .example = "attend compute bidirectional-self-attention --sequence-length 256 --heads 8"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
