// SPDX-License-Identifier: Apache-2.0
// All keys, or those of one block for each block of queries and head.
#include "specs/spec.hpp"

namespace {

std::int64_t block_of(std::int64_t p, std::int64_t keys, std::int64_t blocks) {
    std::int64_t block = 0;
    while ((block + 1) * keys / blocks <= p) ++block;
    return block;
}

bool visible(const specs::Call& call, const specs::Place& at) {
    const std::string pattern = call.word("pattern");
    if (pattern == "full") return true;
    const attend::Tensor& key = call.inputs->key ? *call.inputs->key : call.inputs->query;
    const std::int64_t keys = key.shape[2];
    const auto n = static_cast<std::int64_t>(call.number("num_blocks", 1));
    const std::int64_t row = block_of(at.position, keys, n);
    std::int64_t wanted = row;
    const attend::Json* permutations = call.options.find("permutations");
    const attend::Json* shifts = call.options.find("block_shifts");
    const auto head = static_cast<std::size_t>(at.h);
    if (pattern == "permutation") {
        if (permutations != nullptr && permutations->is_array()) {
            wanted = permutations->as_array()[head].as_array()[static_cast<std::size_t>(row)].as_int64();
        } else {
            const std::int64_t shift =
                shifts != nullptr && shifts->is_array() ? shifts->as_array()[head].as_int64() : at.h;
            wanted = (row + shift) % n;
            if (wanted < 0) wanted += n;
        }
    }
    return block_of(at.j, keys, n) == wanted;
}

attend::NamedValues blocks(const char* pattern, int count) { return {{"pattern", pattern}, {"num_blocks", count}}; }
attend::NamedValues with(attend::NamedValues options, const char* name, attend::Json value) {
    options.emplace_back(name, std::move(value));
    return options;
}

const specs::Registration spec({.mechanism = "blockwise-attention",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [&](const specs::Place& at) { return visible(call, at); }, true,
                                            true);
                                    },
                                .variants = {{{"query_chunk", 1}, {"key_chunk", 1}},
                                             {{"query_chunk", 7}, {"key_chunk", 13}},
                                             {{"query_chunk", 100000}, {"key_chunk", 3}},
                                             blocks("diagonal", 1),
                                             blocks("diagonal", 3),
                                             blocks("permutation", 2),
                                             blocks("permutation", 4),
                                             with(blocks("permutation", 5), "key_chunk", 2),
                                             with(blocks("diagonal", 6), "query_chunk", 5),
                                             with(blocks("permutation", 3), "causal", true),
                                             with(blocks("permutation", 3), "window_left", 8)},
                                .rows_on_axis = true,
                                .fits =
                                    [](const attend::NamedValues& options, std::int64_t, std::int64_t keys) {
                                        for (const auto& [name, value] : options)
                                            if (name == "num_blocks" && value.as_int64() > keys) return false;
                                        return true;
                                    }});

}  // namespace
