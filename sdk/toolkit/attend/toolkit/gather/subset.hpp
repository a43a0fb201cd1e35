// SPDX-License-Identifier: Apache-2.0
// k of the numbers 0 to n-1 without replacement, uniform over subsets, in ascending order: a partial Fisher-Yates shuffle
// that keeps displaced entries alone, so that the cost is that of k and not of n. The draw depends on seed, aux, row and
// head alone.
#pragma once

#include <cstddef>

#include "attend/toolkit/core/rng.hpp"

namespace attend::ATTEND_ISA {

// Ints of scratch that draw_subset wants for subsets of at most k numbers.
inline int64_t subset_slots(int64_t k) {
    int64_t slots = 8;
    while (slots < 2 * k) slots *= 2;
    return slots;
}
inline int64_t subset_ints(int64_t k) { return 2 * subset_slots(k); }

// Numbers below n in ascending order. They are spread evenly, so buckets of equal width hold about one each, and what
// remains is a pass of insertions. memory has subset_ints(count) entries.
inline void sort_spread(int32_t* list, int32_t* memory, int64_t count, int64_t n) {
    const int64_t buckets = subset_slots(count) / 2;
    int shift = 0;
    while ((n - 1) >> shift >= buckets) ++shift;
    int32_t *const begin = memory, *const spare = memory + 2 * buckets;
    for (int64_t at = 0; at < buckets; ++at) begin[at] = 0;
    for (int64_t at = 0; at < count; ++at) ++begin[list[at] >> shift];
    int32_t sum = 0;
    for (int64_t at = 0; at < buckets; ++at) {
        const int32_t own = begin[at];
        begin[at] = sum;
        sum += own;
    }
    for (int64_t at = 0; at < count; ++at) spare[begin[list[at] >> shift]++] = list[at];
    for (int64_t at = 0; at < count; ++at) {
        const int32_t x = spare[at];
        int64_t place = at;
        for (; place > 0 && list[place - 1] > x; --place) list[place] = list[place - 1];
        list[place] = x;
    }
}

// Words 64 b to 64 b + 63 of a row: a block of the generator in each lane, so that compilers turn the rounds into vectors.
constexpr int64_t words_at_once = 64;
inline void pattern_words(uint64_t seed, uint32_t aux, uint32_t row, uint32_t head, int64_t b, uint32_t* words) {
    constexpr int64_t lanes = words_at_once / 4;
    uint32_t c[4][lanes];
    for (int64_t lane = 0; lane < lanes; ++lane) {
        c[0][lane] = static_cast<uint32_t>(b * lanes + lane);
        c[1][lane] = row;
        c[2][lane] = head;
        c[3][lane] = counter_tail(RandomDomain::pattern, aux);
    }
    auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const uint64_t a = uint64_t{0xD2511F53u} * c[0][lane], d = uint64_t{0xCD9E8D57u} * c[2][lane];
            c[0][lane] = static_cast<uint32_t>(d >> 32) ^ c[1][lane] ^ k0;
            c[2][lane] = static_cast<uint32_t>(a >> 32) ^ c[3][lane] ^ k1;
            c[1][lane] = static_cast<uint32_t>(d);
            c[3][lane] = static_cast<uint32_t>(a);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int64_t lane = 0; lane < lanes; ++lane)
        for (int64_t word = 0; word < 4; ++word) words[4 * lane + word] = c[word][lane];
}

// Returns the number of entries, the lesser of k and n. memory has subset_ints(k) entries.
inline int64_t draw_subset(uint64_t seed, uint32_t aux, uint32_t row, uint32_t head, int64_t n, int64_t k,
                           int32_t* list, int32_t* memory) {
    if (n <= 0 || k <= 0) return 0;
    if (k >= n) {
        for (int64_t at = 0; at < n; ++at) list[at] = static_cast<int32_t>(at);
        return n;
    }
    // Displaced entries: position -> number. A position below d is never looked up again.
    const int64_t slots = subset_slots(k);
    int32_t *const place = memory, *const number = memory + slots;
    for (int64_t at = 0; at < slots; ++at) place[at] = -1;
    const auto slot_of = [&](int32_t position) {
        auto at = static_cast<int64_t>((static_cast<uint32_t>(position) * 0x9E3779B1u) >> 8) & (slots - 1);
        while (place[at] >= 0 && place[at] != position) at = (at + 1) & (slots - 1);
        return at;
    };
    uint32_t words[size_t{words_at_once}];
    for (int64_t d = 0; d < k; ++d) {
        if (d % words_at_once == 0) pattern_words(seed, aux, row, head, d / words_at_once, words);
        const int64_t other = d + bounded(words[d % words_at_once], static_cast<uint32_t>(n - d));
        const int64_t own_slot = slot_of(static_cast<int32_t>(d));
        const int32_t own = place[own_slot] < 0 ? static_cast<int32_t>(d) : number[own_slot];
        if (other == d) {
            list[d] = own;
            continue;
        }
        const int64_t slot = slot_of(static_cast<int32_t>(other));
        list[d] = place[slot] < 0 ? static_cast<int32_t>(other) : number[slot];
        place[slot] = static_cast<int32_t>(other);
        number[slot] = own;
    }
    sort_spread(list, memory, k, n);
    return k;
}

}  // namespace attend::ATTEND_ISA
