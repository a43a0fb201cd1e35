// SPDX-License-Identifier: Apache-2.0
// Options, ports and refusals of synthesizer-attention.
#pragma once

#include <math.h>

#include "attend/author/mechanism.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA::synthesizer {

enum Component : int32_t { dense, random, factorized_dense, factorized_random, dot_product, num_components };
enum Tiling : int32_t { outer, tile };

struct Options {
    IntList components, factors;
    int64_t local_context, rank;
    OptionalInt max_length;
    int32_t shared_heads, tiling;
};

constexpr double longest = 2147483647.0;
constexpr const char* component_words[] = {"dense", "random", "factorized-dense", "factorized-random", "dot", nullptr};
constexpr const char* tilings[] = {"outer", "tile", nullptr};
constexpr const char* with_tables =
    "components=dense | components=random | components=factorized-dense | components=factorized-random";
constexpr OptionRow option_table[] = {
    option_word_list(offsetof(Options, components), "components", "\"dense\"", component_words, num_components - 1,
                     "what makes the scores, each at most once; several are mixed by mix_logits in this order"),
    option_int(offsetof(Options, local_context), "local_context", "0", {0, longest},
               "0: off; odd: so many keys around a query, which makes so many dense logits"),
    option_maybe_int(offsetof(Options, max_length), "max_length", {1, longest},
                     "positions that the tables have; default: the keys",
                     "components=dense & !local_context | components=random | components=factorized-dense | "
                     "components=factorized-random"),
    option_bool(offsetof(Options, shared_heads), "shared_heads", false, "one table for all heads", with_tables),
    option_row(ATTEND_TYPE_INT_LIST, 0, "factors", "[]", {1, longest}, nullptr,
               "a and b, with a b at least the keys; default: ceil(sqrt(max_length)), ceil(max_length / a)",
               Field::integer_list, offsetof(Options, factors), "components=factorized-dense"),
    option_int(offsetof(Options, rank), "rank", "8", {1, 65536}, "width of the random factors",
               "components=factorized-random"),
    option_enum(offsetof(Options, tiling), "tiling", "\"outer\"", tilings,
                "factor B of key j by j div a (outer) or j mod b (tile)", "components=factorized-dense"),
    ATTEND_VISIBILITY_OPTIONS(" | components=random | components=factorized-random"),
    ATTEND_WINDOW_OPTIONS,
    common::resolved(ATTEND_TYPE_FLOAT, "scale", nullptr, {-no_limit, no_limit},
                     "factor of dot; left out or 0: 1/sqrt(head width)", nullptr, "components=dot"),
    common::softcap(),
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(with_tables),
};

// Ht, L, a and b in the grammar of ports.
#define ATTEND_SYNTHESIZER_HEADS "max(1,Hq*(1-shared_heads))"
#define ATTEND_SYNTHESIZER_LENGTH "or(max_length,Nk)"
#define ATTEND_SYNTHESIZER_FACTOR_A "or(item(factors,0),max(1,ceil(sqrt(" ATTEND_SYNTHESIZER_LENGTH "))))"
#define ATTEND_SYNTHESIZER_FACTOR_B \
    "or(item(factors,1),max(1,ceil(" ATTEND_SYNTHESIZER_LENGTH "/" ATTEND_SYNTHESIZER_FACTOR_A ")))"
constexpr attend_port port_table[] = {
    stored(common::query_port("features of the queries")),
    stored(input_port(ATTEND_K, "key", "B,Hkv,Nk,D", "keys, read by the component dot alone", ATTEND_OPTIONAL)),
    stored(common::value_port("B,Hkv,Nk,Dv", "values; absent: key")),
    ATTEND_MASK_PORTS,
    weight_port("dense_w",
                "components=dense & local_context: " ATTEND_SYNTHESIZER_HEADS
                ",local_context,D | components=dense: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_LENGTH ",D",
                "uniform(-1/sqrt(D),1/sqrt(D)) as denseW", "a row for each key, or for each place of the context"),
    weight_port("dense_b",
                "components=dense & local_context: " ATTEND_SYNTHESIZER_HEADS
                ",local_context | components=dense: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_LENGTH,
                "zeros as denseB", "their biases"),
    weight_port("random_r",
                "components=random: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_LENGTH
                "," ATTEND_SYNTHESIZER_LENGTH,
                "xavierUniform as randomR", "scores of position i' and key j"),
    weight_port("fact_r1",
                "components=factorized-random: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_LENGTH ",rank",
                "xavierUniform as factR1", "a row for each position i'"),
    weight_port("fact_r2",
                "components=factorized-random: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_LENGTH ",rank",
                "xavierUniform as factR2", "a row for each key"),
    weight_port("fact_a", "components=factorized-dense: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_FACTOR_A ",D",
                "kaimingUniform as factA", "factor A"),
    weight_port("fact_ab", "components=factorized-dense: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_FACTOR_A,
                "zeros as factAb", "its bias"),
    weight_port("fact_b", "components=factorized-dense: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_FACTOR_B ",D",
                "kaimingUniform as factB", "factor B"),
    weight_port("fact_bb", "components=factorized-dense: " ATTEND_SYNTHESIZER_HEADS "," ATTEND_SYNTHESIZER_FACTOR_B,
                "zeros as factBb", "its bias"),
    weight_port("mix_logits", "count(components)!=1: count(components)", "zeros as mixLogits",
                "logits of the components' shares, in their order"),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

inline bool has(const Options& options, Component component) {
    bool found = false;
    for (uint32_t at = 0; at < options.components.count; ++at) found |= options.components.items[at] == component;
    return found;
}
inline bool only(const Options& options, Component component) {
    return options.components.count == 1 && has(options, component);
}
inline bool has_rows(const Options& options) { return has(options, random) || has(options, factorized_random); }

struct Factors {
    int64_t a, b;
    Factors(const Options& options, int64_t length) {
        a = static_cast<int64_t>(::ceil(::sqrt(static_cast<double>(length))));
        a = options.factors.count > 0 ? options.factors.items[0] : a < 1 ? 1 : a;
        b = (length + a - 1) / a;
        b = options.factors.count > 1 ? options.factors.items[1] : b < 1 ? 1 : b;
    }
};

inline attend_status refuse(attend_error* error, const char* option, int64_t value, const char* accepted) {
    return (Message() << "synthesizer-attention: option \"" << option << "\" is " << value
                      << "; accepted: " << accepted)
        .fail(error, ATTEND_BAD_OPTION, option);
}
inline attend_status refuse_length(attend_error* error, int64_t length, int64_t needed) {
    return (Message() << "synthesizer-attention: option \"max_length\" is " << length
                      << " (maxLength too small); accepted: at least " << needed
                      << " (every key and the position of every query)")
        .fail(error, ATTEND_BAD_OPTION, "max_length");
}

inline attend_status check_components(const Options& options, const attend_plan_desc& desc, attend_error* error) {
    const IntList& components = options.components;
    if (components.count == 0)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "synthesizer-attention: option \"components\" is empty; accepted: 1 to 5 components",
                           "components");
    for (uint32_t at = 0; at < components.count; ++at)
        for (uint32_t other = 0; other < at; ++other)
            if (components.items[at] == components.items[other])
                return (Message() << "synthesizer-attention: option \"components\" lists \""
                                  << component_words[components.items[at]] << "\" twice; accepted: each at most once")
                    .fail(error, ATTEND_BAD_OPTION, "components");
    if (has(options, dot_product) && attend_find(&desc.bindings, ATTEND_Q) && !attend_find(&desc.bindings, ATTEND_K))
        return attend_fail(
            error, ATTEND_BAD_SHAPE,
            "synthesizer-attention: key is missing; accepted: a tensor [B,Hkv,Nk,D], which the component "
            "\"dot\" reads",
            "key");
    if (options.local_context == 0) return ATTEND_OK;
    if (options.local_context % 2 == 0)
        return refuse(error, "local_context", options.local_context, "0 or an odd number");
    if (!only(options, dense))
        return refuse(error, "local_context", options.local_context, "0 with components other than dense");
    return ATTEND_OK;
}

inline attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (attend_status status = check_components(options, desc, error)) return status;
    const int64_t length = options.max_length.given ? options.max_length.value : desc.kv_len;
    if (was_given(*args.values, "factors") && options.factors.count != 2)
        return (Message() << "synthesizer-attention: option \"factors\" lists " << int64_t{options.factors.count}
                          << " numbers; accepted: two integers (a and b)")
            .fail(error, ATTEND_BAD_OPTION, "factors");
    const Factors factors(options, length);
    if (has(options, factorized_dense) && factors.a < desc.kv_len && factors.b < desc.kv_len &&
        factors.a * factors.b < desc.kv_len)
        return (Message() << "synthesizer-attention: option \"factors\" is [" << factors.a << "," << factors.b
                          << "]; accepted: a product of at least " << desc.kv_len << " (the keys)")
            .fail(error, ATTEND_BAD_OPTION, "factors");
    if (options.local_context > 0 || only(options, dot_product)) return ATTEND_OK;
    if (length < desc.kv_len) return refuse_length(error, length, desc.kv_len);
    if (desc.q_len == 0 || (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM)) return ATTEND_OK;
    const int64_t last = desc.q_len - 1 + desc.causal_offset;
    if (last >= length) return refuse_length(error, length, last + 1);
    if (has_rows(options) && desc.causal_offset < 0)
        return (Message() << "synthesizer-attention: query 0 stands at position " << desc.causal_offset
                          << ", for which random tables have no row; accepted: no more queries than keys")
            .fail(error, ATTEND_BAD_SHAPE, "query");
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA::synthesizer
