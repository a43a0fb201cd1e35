// SPDX-License-Identifier: Apache-2.0
// cosformer-attention: a_ij = <act(q_i), act(k_j)> cos(pi (s_i - j) / (2 M)), denominators of at least eps.
#include "specs/linear/quadratic.hpp"

namespace {

using namespace specs::linear;

specs::Expected oracle(const specs::Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const bool causal = call.flag("causal"),
               given = call.optional_given("query_offset") && call.options.find("query_offset")->is_number();
    const std::int64_t nq = in.query.shape[2], nk = (in.key ? *in.key : in.query).shape[2];
    const auto place = [&](std::int64_t otherwise) {
        return given ? static_cast<std::int64_t>(call.number("query_offset", 0)) : causal ? otherwise : 0;
    };
    // The longest of the call goes by extents, whatever the lengths of its items.
    const bool stated = call.optional_given("causal_offset") && call.options.find("causal_offset")->is_number();
    const std::int64_t extents = stated ? static_cast<std::int64_t>(call.number("causal_offset", 0))
                                 : call.word("causal_alignment") == "top-left" ? 0
                                                                               : nk - nq;
    const auto asked = static_cast<std::int64_t>(call.number("max_len", 0));
    const double m = static_cast<double>(asked > 0 ? asked : std::max(nk, nq + place(extents)));
    const bool elu = call.word("activation") == "elu";
    const double eps = call.number("eps", 1e-6);
    const auto act = [&](Row x) {
        for (double& value : x) value = elu ? (value > 0 ? value + 1 : std::exp(value)) : std::max(value, 0.0);
        return x;
    };
    return quadratic(call, [&](const Site& site) {
        return Head{[&, site](std::int64_t i, std::int64_t j) {
                        const double distance = static_cast<double>(i + place(site.offset) - j);
                        return dot(act(row_of(*site.query, site.b, site.h, i)),
                                   act(row_of(*site.key, site.b, site.kv, j))) *
                               std::cos(std::numbers::pi * distance / (2 * m));
                    },
                    [eps](std::int64_t, double den) { return std::max(den, eps); }};
    });
}

// Causal queries without a place of their own must not start before the first key.
bool has_places(const attend::NamedValues& options, std::int64_t nq, std::int64_t nk) {
    bool causal = false, placed = nq <= nk;
    for (const auto& [name, value] : options) {
        causal = causal || (name == "causal" && value.is_bool() && value.as_bool());
        placed = placed || name == "query_offset" || name == "causal_offset" || name == "causal_alignment";
    }
    return !causal || placed;
}

const specs::Registration spec({.mechanism = "cosformer-attention",
                                .oracle = oracle,
                                .variants = {{{"causal", true}, {"query_offset", 0}},
                                             {{"causal", true}, {"query_offset", 3}, {"max_len", 400}},
                                             {{"activation", "elu"}},
                                             {{"activation", "elu"}, {"causal", true}, {"causal_offset", 1}},
                                             {{"max_len", 1000}, {"eps", 0.5}},
                                             {{"query_offset", 7}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}}},
                                .masks = false,
                                .tolerance = 1e-5,
                                .fits = has_places});

}  // namespace
