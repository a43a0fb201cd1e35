// SPDX-License-Identifier: Apache-2.0
// The best of many scored slots: entries that compare as numbers, their selection and sorting.
#pragma once

#include <cstdint>

namespace attend::ATTEND_ISA {

// A score and a slot as one number: the larger, the better; equal scores: the smaller slot is better. NaN is worst, and
// the two zeros are equal.
inline uint64_t slot_entry(float score, int64_t slot) {
    const float plain = score + 0.0f;
    const uint32_t bits = __builtin_bit_cast(uint32_t, plain);
    const uint32_t order = score != score ? 0u : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return uint64_t{order} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(slot));
}
inline int64_t slot_of(uint64_t entry) { return int64_t{0xFFFFFFFFu - static_cast<uint32_t>(entry)}; }
inline float score_of(uint64_t entry) {
    const auto order = static_cast<uint32_t>(entry >> 32);
    if (order == 0) return __builtin_nanf("");
    return __builtin_bit_cast(float, (order & 0x80000000u) != 0 ? order & 0x7FFFFFFFu : ~order);
}

inline void sink(uint64_t* heap, int64_t count, int64_t at, uint64_t entry) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) break;
        if (child + 1 < count && heap[child + 1] < heap[child]) ++child;
        if (heap[child] >= entry) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
}

// Best first.
inline void sort_best(uint64_t* entries, int64_t count) {
    if (count <= 48) {
        for (int64_t at = 1; at < count; ++at) {
            const uint64_t entry = entries[at];
            int64_t place = at;
            for (; place > 0 && entries[place - 1] < entry; --place) entries[place] = entries[place - 1];
            entries[place] = entry;
        }
        return;
    }
    for (int64_t at = count / 2; at-- > 0;) sink(entries, count, at, entries[at]);  // the worst in front
    for (int64_t rest = count - 1; rest > 0; --rest) {
        const uint64_t worst = entries[0];
        sink(entries, rest, 0, entries[rest]);
        entries[rest] = worst;
    }
}

// The `wanted` best in front (1 <= wanted <= count), the worst of them last; otherwise in any order. Entries differ.
inline void select_best(uint64_t* entries, int64_t count, int64_t wanted) {
    int64_t low = 0, high = count - 1;
    const int64_t place = wanted - 1;
    while (low < high) {
        const uint64_t a = entries[low], b = entries[(low + high) / 2], c = entries[high];
        const uint64_t pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        int64_t left = low, right = high;
        while (left <= right) {
            while (entries[left] > pivot) ++left;
            while (entries[right] < pivot) --right;
            if (left > right) break;
            const uint64_t swapped = entries[left];
            entries[left++] = entries[right];
            entries[right--] = swapped;
        }
        if (place <= right)
            high = right;
        else if (place >= left)
            low = left;
        else
            return;
    }
}

// Entries of ascending slots, best first: three stable passes over the bits of the score. `other` has as much room.
inline void sort_all(uint64_t* entries, uint64_t* other, int64_t count) {
    constexpr int bits = 11, buckets = 1 << bits;
    uint64_t *from = entries, *to = other;
    for (int pass = 0; pass < 3; ++pass) {
        int64_t start[buckets] = {};
        const int shift = 32 + pass * bits;
        const auto bucket = [shift](uint64_t entry) {
            return (buckets - 1) - static_cast<int>(entry >> shift & (buckets - 1));
        };
        for (int64_t at = 0; at < count; ++at) ++start[bucket(from[at])];
        int64_t sum = 0;
        for (int at = 0; at < buckets; ++at) {
            const int64_t here = start[at];
            start[at] = sum;
            sum += here;
        }
        for (int64_t at = 0; at < count; ++at) to[start[bucket(from[at])]++] = from[at];
        uint64_t* swapped = from;
        from = to, to = swapped;
    }
    for (int64_t at = 0; at < count; ++at) entries[at] = from[at];
}

}  // namespace attend::ATTEND_ISA
