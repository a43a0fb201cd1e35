// SPDX-License-Identifier: Apache-2.0
// longformer-attention: a window, possibly dilated, around every token, and a few tokens that see all and are seen by all.
//
// Paper    Beltagy et al. 2020, Longformer, arXiv:2004.05150, section 3.1
// Formula  G: the global positions of the item
//          p_i not in G: S(i) = { p_i + t d : |t| <= window_size } + G, on the local projections Q, K, V
//          p_i in G: S(i) = all keys, on the global projections Qg, Kg, Vg; causal cuts both at j <= p_i
// Cost     O(Nq (2 w + 1 + |G|) D + |G| Nk D)
// Differs  window_size counts one side; global rows are those of the global projections alone, as in the paper

#include "longformer_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

using Options = LongformerOptions;

constexpr const char* name = "longformer-attention";
constexpr double longest = 2147483647.0;
constexpr const char* projections[] = {"auto", "shared", "tensors", "weights", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(window_size), "256", {0, longest}, "keys seen on each side of a query"),
    option_int_list(ATTEND_FIELD(dilation), "1", {1, longest},
                    "distance of neighbouring keys in the window: a number, or a list with one for each query head"),
    option_int_list(ATTEND_FIELD(global_tokens), "[]", {0, longest},
                    "positions that every query sees and that see every key"),
    option_enum(
        ATTEND_FIELD(global_projection), "\"auto\"", projections,
        "where queries at global positions get their projections; auto: tensors if they are given, else weights if "
        "any is given, else shared"),
    common::window_left(),
    common::window_right(),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    stored(input_port(0, "global_query", "B,Hq,Nq,D", "queries of the global projection", ATTEND_OPTIONAL)),
    stored(input_port(0, "global_key", "B,Hkv,Nk,D", "keys of the global projection", ATTEND_OPTIONAL)),
    stored(input_port(0, "global_value", "B,Hkv,Nk,Dv", "values of the global projection", ATTEND_OPTIONAL)),
    input_port(0, "global_mask", "B,Nk", "non-zero: the position is global, in place of global_tokens", ATTEND_OPTIONAL,
               ATTEND_U8),
    ATTEND_MASK_PORTS,
    weight_port("wqg", "global_projection!=shared & global_projection!=tensors: Hq,D,D", nullptr,
                "global queries are the local ones times this [in, out]; absent: identity", ATTEND_OPTIONAL),
    weight_port("wkg", "global_projection!=shared & global_projection!=tensors: Hkv,D,D", nullptr, "the same for keys",
                ATTEND_OPTIONAL),
    weight_port("wvg", "global_projection!=shared & global_projection!=tensors: Hkv,Dv,Dv", nullptr,
                "the same for values", ATTEND_OPTIONAL),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const auto given = [&](const char* input) { return attend_find_name(&desc.bindings, input) != nullptr; };
    Message text;
    text << name << ": ";
    const auto refuse = [&](Message& what, const char* option) { return what.fail(error, ATTEND_BAD_OPTION, option); };
    if (!options.dilation.is_scalar && options.dilation.count > 1 && options.dilation.count != desc.num_q_heads)
        return refuse(text << "option \"dilation\" has " << int64_t{options.dilation.count} << " entries for "
                           << desc.num_q_heads << " query heads; accepted: a number, or one entry for each head",
                      "dilation");
    if (!options.dilation.is_scalar && options.dilation.count == 1 && desc.num_q_heads != 1 &&
        was_given(*args.values, "dilation"))
        return refuse(text << "option \"dilation\" has 1 entry for " << desc.num_q_heads
                           << " query heads; accepted: a number, or one entry for each head",
                      "dilation");
    const IntList& globals = options.global_tokens;
    for (uint32_t at = 0; at < globals.count; ++at) {
        if (globals.items[at] >= desc.kv_len)
            return refuse(text << "option \"global_tokens\" lists the position " << globals.items[at] << " of "
                               << desc.kv_len << " keys; accepted: 0 to " << desc.kv_len - 1,
                          "global_tokens");
        for (uint32_t other = 0; other < at; ++other)
            if (globals.items[other] == globals.items[at])
                return refuse(text << "option \"global_tokens\" lists the position " << globals.items[at]
                                   << " twice; accepted: distinct positions",
                              "global_tokens");
    }
    if (globals.count > 0 && given("global_mask"))
        return refuse(text << "option \"global_tokens\" and the input global_mask both name the global positions; "
                              "accepted: one of them",
                      "global_tokens");
    const int tensors =
        (given("global_query") ? 1 : 0) + (given("global_key") ? 1 : 0) + (given("global_value") ? 1 : 0);
    if (options.global_projection == from_tensors ? tensors != 3 : tensors != 0 && tensors != 3)
        return refuse(text << int64_t{tensors} << " of global_query, global_key and global_value are given"
                           << (options.global_projection == from_tensors ? " with global_projection tensors" : "")
                           << "; accepted: all three" << (options.global_projection == from_tensors ? "" : ", or none"),
                      "global_query");
    if (tensors == 3 && (options.global_projection == shared || options.global_projection == from_weights))
        return refuse(text << "option \"global_projection\" is " << projections[options.global_projection]
                           << " and global_query, global_key and global_value are given; accepted: tensors or auto",
                      "global_projection");
    return ATTEND_OK;
}

uint64_t workspace(const Options& options, const PlanArgs& args) { return LongformerCall::workspace(options, args); }

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    return LongformerCall(options, args).run(context);
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context& context) {
    return LongformerCall::pattern(options, args, asked, context);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    attend_plan_desc desc = *args.desc;
    const double nq = static_cast<double>(desc.q_len), nk = static_cast<double>(desc.kv_len),
                 globals = static_cast<double>(options.global_tokens.count);
    desc.window_left = desc.window_right = options.window_size;
    const double pairs = visible_pairs(desc) + globals * (nq + nk);
    softmax_cost(*args.desc, pairs < nq * nk ? pairs : nq * nk, cost);
}

double error_bound(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t side = desc.q_len > desc.kv_len ? desc.q_len : desc.kv_len;
    return options.window_size >= side - 1 && options.dilation.count == 1 && options.dilation.items[0] == 1 &&
                   options.global_tokens.count == 0
               ? 0.0
               : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    longformer,
    described<check, workspace, forward, cost, error_bound, pattern>(
        {.name = name,
         .category = "sparse",
         .title = "Longformer attention",
         .summary =
             "A sliding window for every token, dilated on request, and a few global tokens that see and are seen by "
             "all.",
         .reference = "Beltagy et al. 2020, Longformer, arXiv:2004.05150, section 3.1",
         .time = "O(n w d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula = "G = global_tokens, or where global_mask is not 0; p the query's position, d the head's dilation\n"
                    "p not in G: S = keys p + t d with |t| <= window_size, and G, on query, key, value\n"
                    "p in G: S = all keys, on the global projections\n"
                    "output = softmax over S of scale * q . k, times V; causal: only keys j <= p",
         .cost = "2 window_size + 1 keys and the global ones per query, all keys per global query. Projected keys of "
                 "the global "
                 "rows exist a piece at a time.",
         .use = "For long documents with marked tokens such as a question or a class token. Without such tokens take "
                "local-attention; for random long-range links bigbird-attention.",
         .example = "attend compute longformer-attention --sequence-length 512 --heads 4 --set window_size=32 --set "
                    "global_tokens=[0]"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
