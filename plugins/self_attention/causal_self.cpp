// SPDX-License-Identifier: Apache-2.0
// causal-self-attention: a token sees itself and the past, optionally a bidirectional prefix (prefix-LM).
//
// Paper    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; Radford et al. 2018 (GPT)
// Formula  softmax attention over { j : (j <= i' and j >= i' - window_left) or j < prefix_length }, i' = i + Nk - Nq
//          projected: rows of Wqkv give q, then k, then v; a cache past_key, past_value stands in front of the new keys
// Cost     about half of the dense product for Nq = Nk; O(Nq * window) with a window
// Differs  the diagonal is bottom-right aligned, so one query against n cached keys sees all of them

#include "attend/author/projected.hpp"
#include "attend/toolkit/tile/keys/band.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, bias, causal;
    OptionalInt heads, kv_heads, window_right;
    IntList prefix_length;
    int64_t window_size, window_left;
};

constexpr double longest = 2147483647.0;
constexpr OptionRow option_table[] = {
    common::form_option(offsetof(Options, form)),
    option_maybe_int(ATTEND_FIELD(heads), {1, 65536}, "query heads, required in the projected form; divides E",
                     in_projected),
    option_maybe_int(ATTEND_FIELD(kv_heads), {1, 65536}, "key heads; default: heads", in_projected),
    option_int_list(ATTEND_FIELD(prefix_length), "0", {0, longest},
                    "keys in front that every query sees; one number, or one for each item of the batch"),
    option_int(ATTEND_FIELD(window_size), "0", {0, longest}, "as window_left; 0: all of the past"),
    option_int(ATTEND_FIELD(window_left), "-1", {-1, longest}, "keys seen to the left; -1: all of the past"),
    option_maybe_int(ATTEND_FIELD(window_right), {-1, longest}, "fixed to 0: nothing lies to the right"),
    option_bool(ATTEND_FIELD(bias), true, "biases of the projections", in_projected),
    option_row(ATTEND_TYPE_INT, 0, "layers", "1", {1, 1048576}, nullptr,
               "scales the default initialiser of Wo by 1/sqrt(2 layers)", Field::none, 0, in_projected),
    option_bool(ATTEND_FIELD(causal), true, "always true; false is refused"),
    common::causal_alignment(),
    common::causal_offset(),
    ATTEND_SCORE_OPTIONS,
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
    weight_port("wqkv", "form=projected: (Hq+2*Hkv)*D,E", "normal(0,0.02) as Wqkv",
                "projection; rows of queries, then keys, then values"),
    weight_port("bqkv", "form=projected & bias: (Hq+2*Hkv)*D", "zeros", "its bias"),
    weight_port("wo", "form=projected: E,Hq*D", "normal(0,0.02/sqrt(2*layers)) as Wo", "output projection"),
    weight_port("bo", "form=projected & bias: E", "zeros", "output bias"),
    common::output_or_tokens_port(),
    common::lse_port(),
    common::scores_port(),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (!options.causal)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"causal\" is false; accepted: true (this mechanism is causal)", "causal");
    if (options.window_right.given && options.window_right.value != 0)
        return (Message() << "causal-self-attention: option \"window_right\" is " << options.window_right.value
                          << "; accepted: 0 (nothing lies to the right)")
            .fail(error, ATTEND_BAD_OPTION, "window_right");
    const IntList& prefix = options.prefix_length;
    if (!prefix.is_scalar && prefix.count != desc.batch && was_given(*args.values, "prefix_length"))
        return (Message() << "causal-self-attention: option \"prefix_length\" lists " << int64_t{prefix.count}
                          << " numbers; accepted: one number, or a list of " << desc.batch << " (one for each item)")
            .fail(error, ATTEND_BAD_OPTION, "prefix_length");
    for (uint32_t item = 0; item < prefix.count; ++item)
        if (prefix.items[item] > desc.kv_len)
            return (Message() << "causal-self-attention: option \"prefix_length\" is " << prefix.items[item]
                              << "; accepted: 0 to " << desc.kv_len << " (the number of keys)")
                .fail(error, ATTEND_BAD_OPTION, "prefix_length");
    return check_past(desc, error);
}

int64_t past_window(const Options& options) {
    return options.window_left >= 0 ? options.window_left : options.window_size > 0 ? options.window_size : -1;
}

ProjectedForm projection(const attend_plan_desc& desc) {
    ProjectedForm form = self_projection(desc);
    form.packed = "wqkv";
    form.packed_bias = "bqkv";
    return form;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return form_workspace(options.form, projection(*args.desc), *args.desc);
}

attend_status attend_past(const Options& options, TileCall& call, const Context& context) {
    attend_tile_problem& problem = call.problem;
    const IntList& prefix = options.prefix_length;
    bool any = false;
    for (uint32_t item = 0; item < prefix.count; ++item) any = any || prefix.items[item] > 0;
    problem.window_left = past_window(options);
    problem.window_right = -1;
    problem.flags |= ATTEND_TILE_CAUSAL;
    if (!any) return run_tiles(call, context);
    // A prefix key ignores diagonal and window, so the band is a key pattern here, not the engine's causal edge.
    BandKeys keys{};
    keys.left = problem.window_left;
    keys.right = 0;
    keys.globals.num_leading = prefix.items;
    keys.globals.leading_stride = prefix.count > 1 ? 1 : 0;
    problem.flags &= ~ATTEND_TILE_CAUSAL;
    problem.window_left = -1;
    use_keys(problem, keys);
    return run_tiles(call, context);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    return run_form(options.form, projection(*args.desc), args, context,
                    [&](TileCall& call, const Context& rest) { return attend_past(options, call, rest); });
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    attend_plan_desc desc = *args.desc;
    desc.flags |= ATTEND_PLAN_CAUSAL;
    desc.window_left = past_window(options);
    desc.window_right = -1;
    form_cost(options.form, projection(desc), desc, visible_pairs(desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    causal_self,
    described<check, workspace, forward, cost>(
        {.name = "causal-self-attention",
         .category = "self-attention",
         .title = "Causal self-attention",
         .summary = "A token sees itself and what came before it, as language models generate text.",
         .reference = "Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
         .time = "O(n^2 d / 2)",
         .space = "O(n d)",
         .formula = "visible keys: j <= p_i, or j < prefix_length\n"
                    "s_ij = scale q_i.k_j;  o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "Half of dense attention: tiles above the diagonal are skipped. A call with past keys costs only the "
                 "new rows.",
         .use = "Generating text, or any model that must not see the future; with past_key and past_value it "
                "continues an earlier call, with prefix_length the prompt sees itself whole. For encoders take "
                "bidirectional-self-attention.",
         .example = "attend compute causal-self-attention --sequence-length 256 --heads 8 --set prefix_length=32"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
