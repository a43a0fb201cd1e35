// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers: (seed, domain, index) -> bits, no state. Philox4x32-10 with the key and counter layout
// that all random choices of the runtime share, so that a value depends on what it is for and never on who draws it.
#pragma once

#include <math.h>

#include <cstdint>

namespace attend::ATTEND_ISA {

enum class RandomDomain : uint32_t {
    dropout = 1,
    init = 2,
    feature = 3,
    pattern = 4,
    router = 5,
    hadamard = 6,
    data = 7,
    service = 8
};

struct RandomWords {
    uint32_t word[4];
};

// One block of the generator: key (k0, k1), counter (c0..c3).
inline RandomWords philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = static_cast<uint32_t>(seed);
    uint32_t k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53u} * c0;
        const uint64_t b = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
        c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(b);
        c3 = static_cast<uint32_t>(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The last counter word: what the numbers are for, and the domain's own auxiliary value below 2^24.
constexpr uint32_t counter_tail(RandomDomain domain, uint32_t aux) {
    return (static_cast<uint32_t>(domain) << 24) | (aux & 0xFFFFFFu);
}

// FNV-1a of a name such as "moe-attention/Wr": the counter word that separates weights from each other.
constexpr uint32_t name_hash(const char* name) {
    uint32_t hash = 2166136261u;
    for (; *name != '\0'; ++name) hash = (hash ^ static_cast<uint8_t>(*name)) * 16777619u;
    return hash;
}

// Word of element e (row-major index) of a named tensor: domains init, feature, data, service.
inline RandomWords element_words(RandomDomain domain, uint64_t seed, uint32_t name, uint32_t aux, uint64_t block) {
    return philox(seed, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), name,
                  counter_tail(domain, aux));
}
inline uint32_t element_word(RandomDomain domain, uint64_t seed, uint32_t name, uint32_t aux, uint64_t element) {
    return element_words(domain, seed, name, aux, element / 4).word[element % 4];
}

constexpr float uniform01(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }            // [0, 1)
constexpr float uniform_open(uint32_t word) { return static_cast<float>((word >> 8) + 1u) * 0x1p-24f; }  // (0, 1]
constexpr float uniform(float a, float b, uint32_t word) { return a + (b - a) * uniform01(word); }       // fp32
constexpr uint32_t bounded(uint32_t word, uint32_t n) { return static_cast<uint32_t>((uint64_t{word} * n) >> 32); }
constexpr float random_sign(uint32_t word) { return (word & 0x80000000u) != 0 ? -1.0f : 1.0f; }

// Normals come in pairs: the even lane is R cos A, the odd one R sin A. Double precision, to be rounded once.
struct NormalPair {
    double even, odd;
};
inline NormalPair normal_pair(uint32_t first, uint32_t second) {
    const double radius = ::sqrt(-2.0 * ::log((static_cast<double>(first >> 8) + 1.0) * 0x1p-24));
    const double angle = 6.283185307179586476925286766559 * (static_cast<double>(second >> 8) * 0x1p-24);
    return {radius * ::cos(angle), radius * ::sin(angle)};
}
inline double normal(const RandomWords& words, uint32_t lane) {
    const NormalPair pair = normal_pair(words.word[lane & 2u], words.word[(lane & 2u) + 1u]);
    return (lane & 1u) == 0 ? pair.even : pair.odd;
}
// Standard normal of element e of a named tensor, rounded to float.
inline float element_normal(RandomDomain domain, uint64_t seed, uint32_t name, uint32_t aux, uint64_t element) {
    return static_cast<float>(
        normal(element_words(domain, seed, name, aux, element / 4), static_cast<uint32_t>(element % 4)));
}

// Dropout: a weight is kept iff its word is at least the threshold, and is then multiplied by dropout_scale. With
// probability 0 nothing is drawn at all.
inline uint32_t dropout_threshold(double probability) {
    const double scaled = ::nearbyint(probability * 0x1p32);  // to even, in the default rounding mode
    return scaled >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(scaled);
}
inline float dropout_scale(double probability) { return static_cast<float>(1.0 / (1.0 - probability)); }
// Words of keys 4*key_block .. 4*key_block + 3 for query i; row_head = batch index * heads + head.
inline RandomWords dropout_words(uint64_t seed, uint32_t rng_offset, uint32_t row_head, uint32_t i,
                                 uint32_t key_block) {
    return philox(seed, key_block, i, row_head, counter_tail(RandomDomain::dropout, rng_offset));
}

}  // namespace attend::ATTEND_ISA
