// SPDX-License-Identifier: Apache-2.0
// Keys drawn by a whole Fisher-Yates shuffle, one row after the other.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

// The first k of a shuffle of 0 .. n - 1, with an array of n entries.
std::vector<std::int64_t> drawn(std::uint64_t seed, std::int64_t row, std::int64_t head, std::int64_t n,
                                std::int64_t k) {
    std::vector<std::int64_t> x(static_cast<std::size_t>(std::max<std::int64_t>(n, 0)));
    for (std::size_t t = 0; t < x.size(); ++t) x[t] = static_cast<std::int64_t>(t);
    if (k >= n) return x;
    for (std::int64_t d = 0; d < k; ++d) {
        const std::uint64_t word =
            oracle::philox_word(seed, static_cast<std::uint32_t>(d / 4), static_cast<std::uint32_t>(row),
                                static_cast<std::uint32_t>(head), 4u << 24, static_cast<int>(d % 4));
        std::swap(x[static_cast<std::size_t>(d)],
                  x[static_cast<std::size_t>(
                      d + static_cast<std::int64_t>((word * static_cast<std::uint64_t>(n - d)) >> 32))]);
    }
    x.resize(static_cast<std::size_t>(k));
    return x;
}

specs::Expected oracle_of(const specs::Call& call) {
    const auto k = static_cast<std::int64_t>(call.number("num_keys", 64)),
               g = static_cast<std::int64_t>(call.number("query_block", 1));
    const auto seed = static_cast<std::uint64_t>(call.number("seed", 0));
    std::map<std::vector<std::int64_t>, std::vector<bool>> sets;
    const auto set_of = [&](const specs::Place& at) -> const std::vector<bool>& {
        const std::int64_t first = at.i / g * g, head = call.flag("per_head") ? at.h : 0;
        const attend::Tensor& key = call.inputs->key ? *call.inputs->key : call.inputs->query;
        const std::int64_t length = specs::length_of(call.inputs->key_lengths, at.b, key.shape[2]);
        std::vector<bool>& seen = sets[{at.b, head, first}];
        if (!seen.empty()) return seen;
        seen.resize(static_cast<std::size_t>(key.shape[2]) + 1);
        const std::int64_t position = at.position - at.i + first;
        const std::int64_t m = call.flag("causal") ? std::min(length, position + 1) : length;
        if (m <= 0) return seen;
        if (call.flag("include_self") && position >= 0 && position < m) {
            seen[static_cast<std::size_t>(position)] = true;
            for (const std::int64_t x : drawn(seed, first, head, m - 1, std::min(k, m) - 1))
                seen[static_cast<std::size_t>(x + (x >= position ? 1 : 0))] = true;
        } else {
            for (const std::int64_t x : drawn(seed, first, head, m, std::min(k, m)))
                seen[static_cast<std::size_t>(x)] = true;
        }
        return seen;
    };
    return specs::dense(
        call, [&](const specs::Place& at) { return bool{set_of(at)[static_cast<std::size_t>(at.j)]}; }, true, true);
}

const specs::Registration spec({.mechanism = "random-attention",
                                .oracle = oracle_of,
                                .variants = {
                                    {{"num_keys", 1}},
                                    {{"num_keys", 5}},
                                    {{"num_keys", 7}, {"causal", true}, {"seed", 12345}},
                                    {{"num_keys", 6}, {"include_self", true}},
                                    {{"num_keys", 3}, {"include_self", true}, {"causal", true}, {"per_head", false}},
                                    {{"num_keys", 9}, {"per_head", false}},
                                    {{"num_keys", 20}, {"query_block", 3}, {"dropout", 0.3}},
                                    {{"num_keys", 11}, {"query_block", 8}, {"causal", true}},
                                    {{"num_keys", 17}, {"query_block", 16}, {"per_head", false}, {"dropout", 0.25}},
                                    {{"num_keys", 40}, {"query_block", 9}, {"window_size", 12}, {"softcap", 2.0}}}});
}  // namespace
