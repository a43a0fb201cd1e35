// SPDX-License-Identifier: Apache-2.0
// Blocks: window, global ends, and draws by a whole Fisher-Yates shuffle; mode etc as keys in front of the sequence.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

using specs::Call;
using specs::Place;
using Blocks = std::vector<std::int64_t>;

Blocks drawn(std::uint64_t seed, std::int64_t row, std::int64_t head, Blocks from, std::int64_t k) {
    const auto n = static_cast<std::int64_t>(from.size());
    if (k >= n) return from;
    for (std::int64_t d = 0; d < k; ++d) {
        const std::uint64_t word =
            oracle::philox_word(seed, static_cast<std::uint32_t>(d / 4), static_cast<std::uint32_t>(row),
                                static_cast<std::uint32_t>(head), (4u << 24) | 1u, static_cast<int>(d % 4));
        const auto jump = static_cast<std::int64_t>((word * static_cast<std::uint64_t>(n - d)) >> 32);
        std::swap(from[static_cast<std::size_t>(d)], from[static_cast<std::size_t>(d + jump)]);
    }
    from.resize(static_cast<std::size_t>(k));
    return from;
}

struct Rule {
    std::int64_t width, blocks, reach, left, right, random;
    bool causal, shared;
    std::uint64_t seed;
    std::map<std::pair<std::int64_t, std::int64_t>, Blocks> draws{};

    explicit Rule(const Call& call) {
        const attend::Tensor& key = call.inputs->key ? *call.inputs->key : call.inputs->query;
        const auto whole = [&](const char* name, std::int64_t otherwise) {
            return static_cast<std::int64_t>(call.number(name, static_cast<double>(otherwise)));
        };
        width = whole("block_size", 64);
        blocks = (key.shape[2] + width - 1) / width;
        std::int64_t window = whole("num_window_blocks", 3);
        if (call.optional_given("window_size"))
            window = 2 * ((whole("window_size", 0) + 2 * width - 1) / (2 * width)) + 1;
        reach = (window - 1) / 2;
        left = whole("global_left", call.word("mode") == "etc" ? 0 : 1);
        right = whole("global_right", call.word("mode") == "etc" ? 0 : 1);
        if (call.optional_given("num_global_tokens")) {
            left = (whole("num_global_tokens", 0) + width - 1) / width;
            right = 0;
        }
        random = whole("num_random_blocks", 3);
        causal = call.flag("causal");
        shared = call.flag("head_shared");
        seed = static_cast<std::uint64_t>(call.number("seed", 0));
    }
    bool global(std::int64_t block) const { return block < left || block >= blocks - right; }
    bool sees(const Place& at) {
        const std::int64_t row = at.position / width, block = at.j / width;
        if (global(row) || global(block) || std::abs(row - block) <= reach) return true;
        const auto [entry, fresh] = draws.try_emplace({row, shared ? 0 : at.h});
        if (fresh) {
            Blocks eligible;
            for (std::int64_t t = 0; t < blocks; ++t)
                if (!global(t) && (causal ? t < row - reach : std::abs(t - row) > reach)) eligible.push_back(t);
            entry->second = drawn(seed, row, shared ? 0 : at.h, eligible, random);
        }
        return std::find(entry->second.begin(), entry->second.end(), block) != entry->second.end();
    }
};

bool in_common_window(const Call& call, const Place& at) {
    const double left = call.number("window_left", -1), right = call.number("window_right", -1);
    const auto distance = static_cast<double>(at.position - at.j);
    return (left < 0 || distance <= left) && (right < 0 || -distance <= right);
}

specs::Expected oracle_of(const Call& call) {
    Rule rule(call);
    return specs::dense(
        call, [&](const Place& at) { return in_common_window(call, at) && rule.sees(at); }, true, false);
}

const specs::Registration spec(
    {.mechanism = "bigbird-attention",
     .oracle = oracle_of,
     .variants = {{{"block_size", 4}},
                  {{"block_size", 3}, {"seed", 5}},
                  {{"block_size", 1}, {"num_random_blocks", 2}, {"head_shared", true}},
                  {{"block_size", 5}, {"num_window_blocks", 1}, {"global_left", 0}, {"global_right", 2}},
                  {{"block_size", 2}, {"num_window_blocks", 5}, {"global_left", 3}, {"num_random_blocks", 0}},
                  {{"block_size", 4}, {"window_size", 9}, {"num_global_tokens", 5}, {"num_random_blocks", 1}},
                  {{"block_size", 4}, {"causal", true}, {"num_random_blocks", 2}, {"seed", 11}},
                  {{"block_size", 2}, {"window_left", 9}, {"window_right", 4}},
                  {{"block_size", 7}, {"num_random_blocks", 100}, {"causal", true}},
                  {{"block_size", 16}, {"num_window_blocks", 1}, {"num_random_blocks", 1}}},
     .rows_on_axis = true,
     .own_window = true});

}  // namespace
