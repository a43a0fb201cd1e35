// SPDX-License-Identifier: Apache-2.0
// Register-tile products of int8 codes: pair_kernel.hpp with integers, exact in int32.
//
//   out[row][lane] = (lane_scale[lane] row_scale[row]) sum over t of a[row, t] x[t][lane]
//
// Bytes: VPDPBUSD of AVX512-VNNI, four products in a step. It wants one unsigned operand: x holds code + 128, and sums
// begin at -128 times the sum of the row's codes. Words: codes widened to int16 and multiplied in pairs, everywhere.
// No step saturates, so both give the same bits.
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/simd/dot.hpp"

namespace attend::ATTEND_ISA {

enum class Integers : int { bytes, words };

// Whether this entry may use Integers::bytes on the processor that the host describes (cpu may be null).
inline bool has_byte_dots(const attend_cpu* cpu) {
    return ATTEND_HAS_DOTS != 0 && cpu != nullptr && (cpu->isa & ATTEND_ISA_AVX512_VNNI) != 0;
}

#if ATTEND_HAS_DOTS
#define ATTEND_BYTE_TARGET __attribute__((target("avx512vnni")))
#else
#define ATTEND_BYTE_TARGET
#endif

// acc + the products of the elements of each lane: x unsigned bytes and a signed ones, or both int16.
template <Integers kind>
ATTEND_ALWAYS_INLINE Pairs integer_dot(const Pairs& acc, const Pairs& a, const Pairs& x) {
#if defined(ATTEND_ISA_avx512)
    if constexpr (kind == Integers::bytes) {
        __m512i result = acc.data;
        __asm__("vpdpbusd %2, %1, %0" : "+v"(result) : "v"(x.data), "v"(a.data));
        return {result};
    }
    return sum(acc, {_mm512_maskz_madd_epi16(every_lane, a.data, x.data)});
#elif defined(ATTEND_ISA_avx2)
    return sum(acc, {_mm256_madd_epi16(a.data, x.data)});
#elif defined(ATTEND_ISA_baseline)
    return sum(acc, {_mm_madd_epi16(a.data, x.data)});
#else
    const int16x8_t left = vreinterpretq_s16_u32(a.data), right = vreinterpretq_s16_u32(x.data);
    const int32x4_t low = vmull_s16(vget_low_s16(left), vget_low_s16(right)), high = vmull_high_s16(left, right);
    return sum(acc, {vreinterpretq_u32_s32(vpaddq_s32(low, high))});
#endif
}
ATTEND_ALWAYS_INLINE Batch integers_as_floats(const Pairs& x) {
#if defined(ATTEND_ISA_avx512)
    return Batch(_mm512_maskz_cvtepi32_ps(every_lane, x.data));
#elif defined(ATTEND_ISA_avx2)
    return Batch(_mm256_cvtepi32_ps(x.data));
#elif defined(ATTEND_ISA_baseline)
    return Batch(_mm_cvtepi32_ps(x.data));
#else
    return Batch(vcvtq_f32_s32(vreinterpretq_s32_u32(x.data)));
#endif
}

struct IntegerProduct {
    const char* a;
    int64_t row_bytes, rows;
    const float* row_scale;
    const int32_t* row_sum;  // of the codes of each row; bytes alone read it
    const uint32_t* x;
    const float* lane_scale;
    int64_t steps;  // of 4 bytes
    float* out;
    int64_t lanes;  // of a row of x and out, of which V vectors take part
    Ahead* ahead;   // or NULL
};

template <int V, int R, Integers kind>
ATTEND_ALWAYS_INLINE void integer_tile(const IntegerProduct& product, int64_t first) {
    const int64_t lanes = product.lanes, steps = product.steps;
    const uint32_t* x = product.x;
    const char* rows[size_t{R}];
    Pairs acc[size_t{R}][size_t{V}];
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        rows[row] = product.a + (first + row) * product.row_bytes;
        const Pairs start =
            all_pairs(kind == Integers::bytes ? static_cast<uint32_t>(-128 * product.row_sum[first + row]) : 0u);
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) acc[row][v] = start;
    }
    for (int64_t t = 0; t < steps; ++t, x += lanes) {
        Pairs vector[size_t{V}];
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) vector[v] = load_pairs(x + v * batch_lanes);
        // The rows of the next register tile, one after the other.
        if constexpr (R == tile_rows) __builtin_prefetch(rows[0] + (R + t % R) * product.row_bytes + t / R * (4 * R));
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            const Pairs codes = broadcast_pair(rows[row] + 4 * t);
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) acc[row][v] = integer_dot<kind>(acc[row][v], codes, vector[v]);
        }
    }
    // Copies, since the stores might change what the struct points to for all that the compiler knows.
    float* const out = product.out + first * lanes;
    const float* const row_scale = product.row_scale + first;
    Batch lane_scale[size_t{V}];
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) lane_scale[v] = load(product.lane_scale + v * batch_lanes);
    // Rows of one block of keys share a scale: lane_scale then becomes the product.
    bool same = true;
    ATTEND_UNROLL
    for (int row = 1; row < R; ++row) same &= row_scale[row] == row_scale[0];
    if (same) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) lane_scale[v] = lane_scale[v] * Batch(row_scale[0]);
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v)
                store(out + row * lanes + v * batch_lanes, lane_scale[v] * integers_as_floats(acc[row][v]));
        }
        return;
    }
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        const Batch scale(row_scale[row]);
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v)
            store(out + row * lanes + v * batch_lanes, (lane_scale[v] * scale) * integers_as_floats(acc[row][v]));
    }
}
template <int V, Integers kind>
ATTEND_ALWAYS_INLINE void integer_tiles(const IntegerProduct& product) {
    int64_t row = 0;
    for (; row + tile_rows <= product.rows; row += tile_rows) {
        if (product.ahead != nullptr) product.ahead->step();
        integer_tile<V, tile_rows, kind>(product, row);
    }
    if constexpr (tile_rows > 4)
        for (; row + 4 <= product.rows; row += 4) integer_tile<V, 4, kind>(product, row);
    for (; row < product.rows; ++row) integer_tile<V, 1, kind>(product, row);
}
template <int V>
__attribute__((noinline)) inline void word_rows(const IntegerProduct& product) {
    integer_tiles<V, Integers::words>(product);
}
#if ATTEND_HAS_DOTS
template <int V>
ATTEND_BYTE_TARGET __attribute__((noinline)) inline void byte_rows(const IntegerProduct& product) {
    integer_tiles<V, Integers::bytes>(product);
}
#endif
template <int V>
inline void integer_product(Integers kind, const IntegerProduct& product) {
#if ATTEND_HAS_DOTS
    if (kind == Integers::bytes) return byte_rows<V>(product);
#endif
    (void)kind;
    word_rows<V>(product);
}

}  // namespace attend::ATTEND_ISA
