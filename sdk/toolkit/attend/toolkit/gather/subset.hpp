// SPDX-License-Identifier: Apache-2.0
// k of the numbers 0 to n-1 without replacement, uniform over subsets, in ascending order: a partial Fisher-Yates shuffle
// that keeps displaced entries alone, so that the cost is that of k and not of n. The draw depends on seed, aux, row and
// head alone.
#pragma once

#include "attend/toolkit/core/rng.hpp"

namespace attend::ATTEND_ISA {

// Ints of scratch that draw_subset wants for subsets of at most k numbers.
inline int64_t subset_slots(int64_t k) {
    int64_t slots = 8;
    while (slots < 2 * k) slots *= 2;
    return slots;
}
inline int64_t subset_ints(int64_t k) { return 2 * subset_slots(k); }

// Ascending, by merging runs; from and to have `count` entries, and the result is in `list`.
inline void sort_ints(int32_t* list, int32_t* spare, int64_t count) {
    constexpr int64_t run = 8;
    for (int64_t begin = 0; begin < count; begin += run) {
        const int64_t end = begin + run < count ? begin + run : count;
        for (int64_t at = begin + 1; at < end; ++at) {
            const int32_t x = list[at];
            int64_t place = at;
            for (; place > begin && list[place - 1] > x; --place) list[place] = list[place - 1];
            list[place] = x;
        }
    }
    int32_t *from = list, *to = spare;
    for (int64_t width = run; width < count; width *= 2) {
        for (int64_t begin = 0; begin < count; begin += 2 * width) {
            const int64_t middle = begin + width < count ? begin + width : count;
            const int64_t end = middle + width < count ? middle + width : count;
            int64_t a = begin, b = middle;
            for (int64_t at = begin; at < end; ++at) {
                const bool first = b >= end || (a < middle && from[a] <= from[b]);
                to[at] = first ? from[a] : from[b];
                (first ? a : b) += 1;
            }
        }
        int32_t* const swap = from;
        from = to;
        to = swap;
    }
    if (from != list)
        for (int64_t at = 0; at < count; ++at) list[at] = from[at];
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
    RandomWords words{};
    for (int64_t d = 0; d < k; ++d) {
        if (d % 4 == 0)
            words = philox(seed, static_cast<uint32_t>(d / 4), row, head, counter_tail(RandomDomain::pattern, aux));
        const int64_t other = d + bounded(words.word[d % 4], static_cast<uint32_t>(n - d));
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
    sort_ints(list, memory, k);
    return k;
}

}  // namespace attend::ATTEND_ISA
