// SPDX-License-Identifier: Apache-2.0
// The best of many scored slots: entries that compare as numbers, a bounded heap, and both orders of sorting.
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

// Heap with the worst entry in front.
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
inline void push(uint64_t* heap, int64_t count, uint64_t entry) {
    int64_t at = count;
    for (; at > 0 && heap[(at - 1) / 2] > entry; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = entry;
}
// Best first.
inline void sort_heap(uint64_t* heap, int64_t count) {
    for (int64_t rest = count - 1; rest > 0; --rest) {
        const uint64_t worst = heap[0];
        sink(heap, rest, 0, heap[rest]);
        heap[rest] = worst;
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
