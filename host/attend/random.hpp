// SPDX-License-Identifier: Apache-2.0
// Random numbers without state: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the
// conversions of its words, and what attention draws with it. Every number depends on its key and counter alone, so
// neither threads nor tiles nor the order of calls change it (sdk/docs/utilities.md).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "attend/error.hpp"

namespace attend {

using PhiloxWords = std::array<std::uint32_t, 4>;

// Ten rounds over counter (c0, c1, c2, c3) with the key (low, high half of the seed).
[[nodiscard]] PhiloxWords philox(PhiloxWords counter, std::uint64_t seed);

// What a counter is for: the upper 8 bits of its last word. Uses never share a counter.
enum class RandomDomain : std::uint32_t {
    dropout = 1,
    init = 2,
    feature = 3,
    pattern = 4,
    router = 5,
    hadamard = 6,
    data = 7,
    service = 8,
};

// The words of element group `group` (elements 4 * group ...) of what has this name.
[[nodiscard]] PhiloxWords named_words(std::uint64_t group, std::uint64_t seed, RandomDomain domain, std::uint32_t hash,
                                      std::uint32_t aux = 0);
// FNV-1a, 32 bits, of `mechanism/weight`, `mechanism/projection`, `data/<role>`.
[[nodiscard]] std::uint32_t name_hash(std::string_view name);

// Conversions of a word: [0, 1), (0, 1], [low, high) in float32, [0, n), -1 or 1.
[[nodiscard]] constexpr double uniform01(std::uint32_t word) { return static_cast<double>(word >> 8) * 0x1p-24; }
[[nodiscard]] constexpr double uniform_open(std::uint32_t word) {
    return (static_cast<double>(word >> 8) + 1.0) * 0x1p-24;
}
[[nodiscard]] inline float uniform(std::uint32_t word, float low, float high) {
    return low + (high - low) * static_cast<float>(uniform01(word));
}
[[nodiscard]] constexpr std::uint32_t bounded(std::uint32_t word, std::uint32_t n) {
    return static_cast<std::uint32_t>((std::uint64_t{word} * n) >> 32);
}
[[nodiscard]] constexpr int random_sign(std::uint32_t word) { return (word >> 31) != 0 ? -1 : 1; }
// Four standard normal numbers (Box-Muller, in double); a float holds one of them after one rounding.
[[nodiscard]] std::array<double, 4> normals(const PhiloxWords& words);

// The first k of a random order of 0 .. n - 1 (partial Fisher-Yates); draw d takes word d of `words`, which are at least k.
[[nodiscard]] Result<std::vector<std::int64_t>> sample_without_replacement(std::int64_t n, std::int64_t k,
                                                                           const std::vector<std::uint32_t>& words);

// Dropout of probability p in [0, 1): a word at or above the threshold keeps its weight, times 1 / (1 - p).
struct Dropout {
    std::uint32_t threshold{0};
    float scale{1.0f};
    [[nodiscard]] static Result<Dropout> of(double p);
    [[nodiscard]] bool keeps(std::uint32_t word) const { return word >= threshold; }
};
// The word that decides about query i and key j of head h of batch item b, with H heads: attention's dropout.
[[nodiscard]] std::uint32_t dropout_word(std::uint64_t seed, std::uint32_t rng_offset, std::int64_t b, std::int64_t h,
                                         std::int64_t heads, std::int64_t i, std::int64_t j);

// Columns of a rows x cols normal matrix (rows >= cols) made orthonormal, row-major: Q of G = QR with a positive diagonal.
// Its elements are INIT numbers from `offset` on of the name with this hash.
[[nodiscard]] std::vector<double> orthonormal(std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                                              std::uint32_t hash, std::int64_t offset);

}  // namespace attend
