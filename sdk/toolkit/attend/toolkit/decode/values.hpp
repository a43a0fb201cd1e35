// SPDX-License-Identifier: Apache-2.0
// Weighted sums of value rows for a few query rows: lanes along the columns, weights broadcast. Value rows are read as
// they lie; bfloat16 rows go two at a time, interleaved in registers.
//
// acc[q] is a row of acc_stride floats. With float units its columns are in order. With pairs every 32 columns are two
// vectors, as interleaving leaves them: columns 8 p + r, r < 4, in lane 4 p + r of the first, the others in the second.
#pragma once

#include "attend/toolkit/decode/scores.hpp"

namespace attend::ATTEND_ISA::decode {

struct ValueRows {
    Bytes value;
    int64_t stride, ahead;  // bytes; what lies `ahead` is fetched
    int64_t keys, columns;
    const float* weights;  // float units: [key][G] floats; pairs: [key pair][G] words of two bfloat16
    float* acc;
    int64_t acc_stride;
    const float* factor;  // [G]: old sums are multiplied by it; NULL = added to as they are
    float scale{1.0f};    // of codes
};

constexpr int64_t pair_columns = 2 * batch_lanes;

// Where a pass over `width` bytes of every row, `before` bytes from its begin, fetches ahead. Rows without gaps are
// fetched in the order of their addresses: the passes over one block share out the memory behind it.
struct ValueFetch {
    Bytes next;
    int64_t step;
};
template <class Unit>
ATTEND_ALWAYS_INLINE ValueFetch value_fetch(const ValueRows& rows, int64_t before, int64_t width) {
    const int64_t bytes = rows.columns * (Unit::paired ? 2 : Unit::lane_bytes);
    if (rows.stride == bytes) return {moved(rows.value, rows.ahead + before * rows.keys), width};
    return {moved(rows.value, rows.ahead + before), rows.stride};
}

template <int G, int C, class Unit>
ATTEND_ALWAYS_INLINE void join_values(const ValueRows& rows, int64_t column, const Batch (&sum)[size_t{G}][size_t{C}]) {
    ATTEND_UNROLL
    for (int q = 0; q < G; ++q) {
        float* to = rows.acc + q * rows.acc_stride + column;
        const Batch factor(rows.factor != nullptr ? rows.factor[q] : 1.0f);
        ATTEND_UNROLL
        for (int c = 0; c < C; ++c) {
            const Batch part = is_code(Unit::element) ? sum[q][c] * Batch(rows.scale) : sum[q][c];
            store(to + c * batch_lanes, fma(load(to + c * batch_lanes), factor, part));
        }
    }
}

// C vectors of columns from `column` on; with `tail` one vector, of which the first `width` columns exist.
template <int G, int C, bool tail, class Unit>
__attribute__((noinline)) inline void float_columns(const ValueRows& rows, int64_t column, int64_t width) {
    constexpr int64_t vector_bytes = batch_lanes * Unit::lane_bytes;
    ValueFetch ahead = value_fetch<Unit>(rows, column * Unit::lane_bytes, C * vector_bytes);
    Batch sum[size_t{G}][size_t{C}];
    ATTEND_UNROLL
    for (int q = 0; q < G; ++q) {
        ATTEND_UNROLL
        for (int c = 0; c < C; ++c) sum[q][c] = Batch(0.0f);
    }
    Bytes value = rows.value + column * Unit::lane_bytes;
    const float* weight = rows.weights;
    for (int64_t key = 0; key < rows.keys; ++key, value += rows.stride, weight += G) {
        Batch x[size_t{C}];
        ATTEND_UNROLL
        for (int c = 0; c < C; ++c) {
            const Bytes from = value + c * vector_bytes;
            x[c] = tail ? Unit::load_some(from, width * Unit::lane_bytes) : Unit::load(from);
            if (c * vector_bytes % line_bytes == 0) fetch(ahead.next, c * vector_bytes);
        }
        ahead.next = moved(ahead.next, ahead.step);
        ATTEND_UNROLL
        for (int q = 0; q < G; ++q) {
            const Batch w(weight[q]);
            ATTEND_UNROLL
            for (int c = 0; c < C; ++c) sum[q][c] = fma(w, x[c], sum[q][c]);
        }
    }
    join_values<G, C, Unit>(rows, column, sum);
}

// Accumulators of one pass: half of the registers.
#if defined(ATTEND_ISA_avx512) || defined(ATTEND_ISA_neon)
constexpr int value_registers = 16;
#else
constexpr int value_registers = 8;
#endif

template <int G, int C, class Unit>
ATTEND_ALWAYS_INLINE void float_values(const ValueRows& rows, int64_t column) {
    for (; column + C * batch_lanes <= rows.columns; column += C * batch_lanes)
        float_columns<G, C, false, Unit>(rows, column, 0);
    if constexpr (C > 1)
        float_values<G, C / 2, Unit>(rows, column);
    else if (column < rows.columns)
        float_columns<G, 1, true, Unit>(rows, column, rows.columns - column);
}

#if ATTEND_HAS_DOTS
ATTEND_ALWAYS_INLINE __m512i pair_load(Bytes from, __mmask32 exists, bool tail) {
    return tail ? _mm512_maskz_loadu_epi16(exists, from) : _mm512_loadu_si512(from);
}

// H times 32 columns; with `tail` 32, of which those of the mask exist.
template <int G, int H, bool tail>
__attribute__((noinline)) ATTEND_DOT_TARGET inline void pair_blocks(const ValueRows& rows, int64_t column,
                                                                    __mmask32 exists) {
    ValueFetch ahead = value_fetch<PairUnit>(rows, column * 2, H * 64);
    Batch sum[size_t{G}][size_t{2 * H}];
    ATTEND_UNROLL
    for (int q = 0; q < G; ++q) {
        ATTEND_UNROLL
        for (int c = 0; c < 2 * H; ++c) sum[q][c] = Batch(0.0f);
    }
    Bytes value = rows.value + column * 2;
    const float* weight = rows.weights;
    const int64_t pairs = rows.keys / 2;
    for (int64_t pair = 0; pair <= pairs; ++pair, value += 2 * rows.stride, weight += G) {
        const bool lone = pair == pairs;
        if (lone && rows.keys % 2 == 0) break;
        Batch x[size_t{2 * H}];
        ATTEND_UNROLL
        for (int h = 0; h < H; ++h) {
            const __m512i a = pair_load(value + h * 64, exists, tail);
            // Behind the last key there are zeros: its own row would make 0 * infinity.
            const __m512i b = lone ? _mm512_setzero_si512() : pair_load(value + rows.stride + h * 64, exists, tail);
            x[2 * h] = Batch(_mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b)));
            x[2 * h + 1] = Batch(_mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b)));
            fetch(ahead.next, h * 64);
            fetch(ahead.next, ahead.step + h * 64);
        }
        ahead.next = moved(ahead.next, 2 * ahead.step);
        ATTEND_UNROLL
        for (int q = 0; q < G; ++q) {
            const Batch w(weight[q]);
            ATTEND_UNROLL
            for (int c = 0; c < 2 * H; ++c) sum[q][c] = PairUnit::dot(x[c], w, sum[q][c]);
        }
    }
    join_values<G, 2 * H, PairUnit>(rows, column, sum);
}

template <int G, int H>
ATTEND_ALWAYS_INLINE void pair_values(const ValueRows& rows, int64_t column) {
    for (; column + H * pair_columns <= rows.columns; column += H * pair_columns)
        pair_blocks<G, H, false>(rows, column, 0);
    if constexpr (H > 1)
        pair_values<G, H / 2>(rows, column);
    else if (column < rows.columns)
        pair_blocks<G, 1, true>(rows, column, static_cast<__mmask32>((1u << (rows.columns - column)) - 1u));
}
#endif

template <int G, class Unit>
inline void add_values(const ValueRows& rows) {
#if ATTEND_HAS_DOTS
    if constexpr (Unit::paired) {
        pair_values<G, (G <= 2 ? 4 : 8 / G)>(rows, 0);
        return;
    }
#endif
    int64_t column = 0;
#if defined(ATTEND_ISA_avx512)
    // A single row has registers for whole rows of values, which are then read from end to end.
    if constexpr (G == 1 && Unit::element == Element::f32)
        for (; column + 24 * batch_lanes <= rows.columns; column += 24 * batch_lanes)
            float_columns<1, 24, false, Unit>(rows, column, 0);
#endif
    float_values<G, (G == 1 ? 8 : value_registers / G), Unit>(rows, column);
}

// Where column c lies in a row of acc.
template <class Unit>
ATTEND_ALWAYS_INLINE int64_t acc_place(int64_t c) {
    if (!Unit::paired) return c;
    const int64_t in = c % 32;
    return c - in + (in % 8 / 4) * 16 + in / 8 * 4 + in % 4;
}

// A row of acc with its columns in order.
template <class Unit>
inline const float* ordered_row(const float* acc, int64_t columns, float* space) {
#if ATTEND_HAS_DOTS
    if constexpr (Unit::paired) {
        const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        for (int64_t c = 0; c < columns; c += pair_columns) {
            const Batch a = load(acc + c), b = load(acc + c + batch_lanes);
            store(space + c, Batch(_mm512_permutex2var_ps(a.data, low, b.data)));
            store(space + c + batch_lanes, Batch(_mm512_permutex2var_ps(a.data, high, b.data)));
        }
        return space;
    }
#endif
    (void)columns;
    (void)space;
    return acc;
}

}  // namespace attend::ATTEND_ISA::decode
