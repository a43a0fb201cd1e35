// SPDX-License-Identifier: Apache-2.0
// Incoherent processing: R(x) = blockdiag(Had_m) (sigma x) / sqrt(m), which spreads a large element over m others and
// leaves products as they are: R(x).R(y) = x.y. Had_m[r, c] = (-1)^popcount(r AND c), sigma random signs of the call.
//
// A row of D elements is padded with zeros to a multiple of 16, m is the largest power of two that divides that.
#pragma once

#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

constexpr int64_t most_rotated = 1024;  // elements of a row, padding included

constexpr int64_t rotated_width(int64_t width) { return (width + 15) / 16 * 16; }
constexpr int64_t rotation_order(int64_t rotated) { return rotated & -rotated; }

inline void fill_signs(uint64_t seed, int64_t rotated, float* signs) {
    for (int64_t d = 0; d < rotated; d += 4) {
        const RandomWords words =
            philox(seed, static_cast<uint32_t>(d / 4), 0, 0, counter_tail(RandomDomain::hadamard, 0));
        for (int64_t lane = 0; lane < 4; ++lane) signs[d + lane] = random_sign(words.word[lane]);
    }
}

// Lanes whose number differs in the bit `step` change places.
template <int step>
ATTEND_ALWAYS_INLINE Batch swap_lanes(const Batch& x) {
#if defined(ATTEND_ISA_avx512)
    if constexpr (step == 8)
        return Batch(__builtin_shufflevector(x.data, x.data, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    if constexpr (step == 4)
        return Batch(__builtin_shufflevector(x.data, x.data, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    if constexpr (step == 2)
        return Batch(__builtin_shufflevector(x.data, x.data, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return Batch(__builtin_shufflevector(x.data, x.data, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif defined(ATTEND_ISA_avx2)
    if constexpr (step == 4) return Batch(__builtin_shufflevector(x.data, x.data, 4, 5, 6, 7, 0, 1, 2, 3));
    if constexpr (step == 2) return Batch(__builtin_shufflevector(x.data, x.data, 2, 3, 0, 1, 6, 7, 4, 5));
    return Batch(__builtin_shufflevector(x.data, x.data, 1, 0, 3, 2, 5, 4, 7, 6));
#else
    if constexpr (step == 2) return Batch(__builtin_shufflevector(x.data, x.data, 2, 3, 0, 1));
    return Batch(__builtin_shufflevector(x.data, x.data, 1, 0, 3, 2));
#endif
}

// Sums in lanes whose bit `step` is not set, differences in the others; the sign is exact, so is its product.
template <int step>
ATTEND_ALWAYS_INLINE Batch lane_butterfly(const Batch& x, const float* signs) {
    return fma(x, load(signs), swap_lanes<step>(x));
}

// The same for elements that lie in different vectors; the last factor is scaled as well.
ATTEND_ALWAYS_INLINE void row_butterfly(float* a, float* b) {
    const Batch x = load(a), y = load(b);
    store(a, x + y);
    store(b, x - y);
}
ATTEND_ALWAYS_INLINE void row_butterfly(float* a, float* b, const Batch& unit) {
    const Batch x = load(a), y = load(b);
    store(a, (x + y) * unit);
    store(b, (x - y) * unit);
}

// In place; what lies behind the row's width must be zero. Steps ascend: all instruction sets give the same bits.
__attribute__((noinline)) inline void rotate_row(float* x, int64_t rotated, const float* signs) {
    // +1 where the bit of the step is not set, for steps 1, 2, 4, 8.
    alignas(64) static constexpr float sides[4][16] = {{1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1},
                                                       {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1},
                                                       {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1},
                                                       {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1}};
    const int64_t order = rotation_order(rotated);
    const Batch unit(static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(order))));
    for (int64_t at = 0; at < rotated; at += batch_lanes) {
        Batch part = load(x + at) * load(signs + at);
        part = lane_butterfly<1>(part, sides[0]);
        part = lane_butterfly<2>(part, sides[1]);
        if constexpr (batch_lanes > 4) part = lane_butterfly<4>(part, sides[2]);
        if constexpr (batch_lanes > 8) part = lane_butterfly<8>(part, sides[3]);
        store(x + at, part);
    }
    int64_t step = batch_lanes;
    for (; 2 * step < order; step *= 2)
        for (int64_t base = 0; base < rotated; base += 2 * step)
            for (int64_t at = base; at < base + step; at += batch_lanes) row_butterfly(x + at, x + at + step);
    if (step < order) {
        for (int64_t base = 0; base < rotated; base += 2 * step)
            for (int64_t at = base; at < base + step; at += batch_lanes) row_butterfly(x + at, x + at + step, unit);
    } else {
        for (int64_t at = 0; at < rotated; at += batch_lanes) store(x + at, load(x + at) * unit);
    }
}

}  // namespace attend::ATTEND_ISA
