// SPDX-License-Identifier: Apache-2.0
// Register-tile products of bf16 pairs: micro_kernel.hpp with two products in each step.
//
//   out[row][lane] (=, +=, rescaled +=) sum over t < pairs of a[row, t].low * x[t][lane].low + a[row, t].high * x[t][lane].high
//
// a is read through two strides in bytes, four bytes at a time at any address; x is [pairs][V vectors] of 32-bit pairs and
// out [rows][V vectors] of floats, rows one behind the other. Two uses:
//
//   scores   a = key rows as they lie (pairs along the features), x = queries by load_lane_pairs
//   values   a = value rows interleaved by interleave_rows (one row per two keys), rows = columns, x = weights by
//            round_rows
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/simd/dot.hpp"

namespace attend::ATTEND_ISA {

struct PairProduct {
    const unsigned char* a;
    int64_t row_stride, inner_stride;  // in bytes
    int64_t rows;
    const uint32_t* x;
    int64_t pairs;
    bool half;  // one more step, of which a has only the low half: 2 bytes are read, the high half is zero
    float* out;
    Into into;
    const float* rescale;
    int64_t lanes;  // of a row of x and out, of which V vectors take part
    Ahead* ahead;   // or NULL
};

template <int V, int R, Layout layout, Dots dots>
ATTEND_ALWAYS_INLINE void pair_tile(const PairProduct& product, int64_t first_row) {
    const int64_t lanes = product.lanes;
    constexpr int64_t row_bytes = 4;
    const unsigned char* a = product.a + first_row * product.row_stride;
    const uint32_t* x = product.x;
    const int64_t count = product.pairs;
    Batch sum[size_t{R}][size_t{V}];
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) sum[row][v] = Batch(0.0f);
    }

    if constexpr (layout == Layout::unit_rows) {
        for (int64_t t = 0; t < count; ++t, a += product.inner_stride, x += lanes) {
            Pairs vector[size_t{V}];
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) vector[v] = load_pairs(x + v * batch_lanes);
            if constexpr (R == tile_rows) __builtin_prefetch(a + 64);
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Pairs broadcast = broadcast_pair(a + row * row_bytes);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v) sum[row][v] = dot<dots>(sum[row][v], broadcast, vector[v]);
            }
        }
        if (product.half) {
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Pairs broadcast = broadcast_half(a + row * row_bytes);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v)
                    sum[row][v] = dot<dots>(sum[row][v], broadcast, load_pairs(x + v * batch_lanes));
            }
        }
    } else {
        const unsigned char* rows[size_t{R}];
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) rows[row] = a + row * product.row_stride;
        const int64_t step = layout == Layout::unit_inner ? 4 : product.inner_stride;
        int64_t at = 0;
        for (int64_t t = 0; t < count; ++t, at += step, x += lanes) {
            Pairs vector[size_t{V}];
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) vector[v] = load_pairs(x + v * batch_lanes);
            // The rows of the next register tile, one after the other.
            if constexpr (layout == Layout::unit_inner && R == tile_rows)
                __builtin_prefetch(a + (R + t % R) * product.row_stride + t / R * (4 * R));
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Pairs broadcast = broadcast_pair(rows[row] + at);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v) sum[row][v] = dot<dots>(sum[row][v], broadcast, vector[v]);
            }
        }
        if (product.half) {
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Pairs broadcast = broadcast_half(rows[row] + at);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v)
                    sum[row][v] = dot<dots>(sum[row][v], broadcast, load_pairs(x + v * batch_lanes));
            }
        }
    }

    float* out = product.out + first_row * lanes;
    const float* rescale = product.rescale;
    if (product.into == Into::rescale) {
        Batch factor[size_t{V}];
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) factor[v] = load(rescale + v * batch_lanes);
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) {
                float* to = out + row * lanes + v * batch_lanes;
                store(to, fma(load(to), factor[v], sum[row][v]));
            }
        }
    } else if (product.into == Into::add) {
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) {
                float* to = out + row * lanes + v * batch_lanes;
                store(to, load(to) + sum[row][v]);
            }
        }
    } else {
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) store(out + row * lanes + v * batch_lanes, sum[row][v]);
        }
    }
}

// Any number of rows: full register tiles, then 4, 2, 1.
template <int V, Layout layout, Dots dots>
ATTEND_ALWAYS_INLINE void pair_tiles(const PairProduct& product) {
    int64_t row = 0;
    for (; row + tile_rows <= product.rows; row += tile_rows) {
        if (product.ahead != nullptr) product.ahead->step();
        pair_tile<V, tile_rows, layout, dots>(product, row);
    }
    if constexpr (tile_rows > 4)
        for (; row + 4 <= product.rows; row += 4) pair_tile<V, 4, layout, dots>(product, row);
    for (; row + 2 <= product.rows; row += 2) pair_tile<V, 2, layout, dots>(product, row);
    for (; row < product.rows; ++row) pair_tile<V, 1, layout, dots>(product, row);
}
template <int V, Layout layout>
__attribute__((noinline)) inline void portable_pair_rows(const PairProduct& product) {
    pair_tiles<V, layout, Dots::portable>(product);
}
#if ATTEND_HAS_DOTS
template <int V, Layout layout>
ATTEND_DOT_TARGET __attribute__((noinline)) inline void hardware_pair_rows(const PairProduct& product) {
    pair_tiles<V, layout, Dots::hardware>(product);
}
#endif
template <int V, Layout layout, Dots dots>
inline void pair_rows(const PairProduct& product) {
#if ATTEND_HAS_DOTS
    if constexpr (dots == Dots::hardware) return hardware_pair_rows<V, layout>(product);
#endif
    portable_pair_rows<V, layout>(product);
}

// The product of the file's head over elements = 2 * pairs, or 2 * pairs + 1 (the last pair of x then has a zero in its
// high half, and of a only 2 bytes are read). Strides in bytes, of any sign. rescale: V vectors, for Into::rescale.
template <int V, Dots dots>
inline void pair_product(const void* a, int64_t row_stride, int64_t inner_stride, int64_t rows, const uint32_t* x,
                         int64_t elements, float* out, Into into = Into::overwrite, const float* rescale = nullptr,
                         int64_t lanes = V * batch_lanes, Ahead* ahead = nullptr) {
    const PairProduct product{static_cast<const unsigned char*>(a),
                              row_stride,
                              inner_stride,
                              rows,
                              x,
                              elements / 2,
                              elements % 2 != 0,
                              out,
                              into,
                              rescale,
                              lanes,
                              ahead};
    if (inner_stride == 4)
        pair_rows<V, Layout::unit_inner, dots>(product);
    else if (row_stride == 4)
        pair_rows<V, Layout::unit_rows, dots>(product);
    else
        pair_rows<V, Layout::strided, dots>(product);
}

// to[t][lane] = {rows[lane][2t * stride], rows[lane][(2t + 1) * stride]} for 2t < count; the high half behind an odd count
// is zero. rows has V * batch_lanes pointers to bf16, repeats allowed; nothing past element count - 1 is read.
template <int V>
__attribute__((noinline)) inline void load_lane_pairs(const uint16_t* const* rows, int64_t stride, int64_t count,
                                                      uint32_t* to) {
    constexpr int64_t lanes = V * batch_lanes;
    const int64_t pairs = count / 2;
    for (int v = 0; v < V; ++v) {
        const uint16_t* const* from = rows + v * batch_lanes;
        uint32_t* target = to + v * batch_lanes;
        int64_t t = 0;
        if (stride == 1) {
            for (; t + batch_lanes <= pairs; t += batch_lanes) {
                Batch block[batch_lanes];
                ATTEND_UNROLL
                for (int lane = 0; lane < batch_lanes; ++lane) block[lane] = float_of(load_pairs(from[lane] + 2 * t));
                transpose(block);
                ATTEND_UNROLL
                for (int lane = 0; lane < batch_lanes; ++lane)
                    store_pairs(target + (t + lane) * lanes, bits_of(block[lane]));
            }
        }
        for (; t < pairs; ++t)
            for (int lane = 0; lane < batch_lanes; ++lane) {
                const uint16_t* pair = from[lane] + 2 * t * stride;
                target[t * lanes + lane] = uint32_t{pair[0]} | uint32_t{pair[stride]} << 16;
            }
        if (count % 2 != 0)
            for (int lane = 0; lane < batch_lanes; ++lane) target[t * lanes + lane] = from[lane][2 * t * stride];
    }
}

// to[t][lane] = {from[2t][lane], from[2t + 1][lane]} rounded to bf16, for 2t < rows; the high half behind an odd number of
// rows is zero. from is [rows][V vectors].
template <int V, Dots dots>
ATTEND_ALWAYS_INLINE void round_row_pairs(const float* from, int64_t rows, uint32_t* to) {
    constexpr int64_t lanes = V * batch_lanes;
    int64_t row = 0;
    for (; row + 2 <= rows; row += 2, from += 2 * lanes, to += lanes) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v)
            store_pairs(to + v * batch_lanes,
                        round_pairs<dots>(load(from + v * batch_lanes), load(from + lanes + v * batch_lanes)));
    }
    if (row < rows) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v)
            store_pairs(to + v * batch_lanes, round_pairs<dots>(load(from + v * batch_lanes), Batch(0.0f)));
    }
}
template <int V>
__attribute__((noinline)) inline void portable_round_rows(const float* from, int64_t rows, uint32_t* to) {
    round_row_pairs<V, Dots::portable>(from, rows, to);
}
#if ATTEND_HAS_DOTS
template <int V>
ATTEND_DOT_TARGET __attribute__((noinline)) inline void hardware_round_rows(const float* from, int64_t rows,
                                                                            uint32_t* to) {
    round_row_pairs<V, Dots::hardware>(from, rows, to);
}
#endif
template <int V, Dots dots>
inline void round_rows(const float* from, int64_t rows, uint32_t* to) {
#if ATTEND_HAS_DOTS
    if constexpr (dots == Dots::hardware) return hardware_round_rows<V>(from, rows, to);
#endif
    portable_round_rows<V>(from, rows, to);
}

// to[c] = {even[c * stride], odd[c * stride]} for c < columns, in natural order; odd = nullptr stands for a row of zeros.
__attribute__((noinline)) inline void interleave_rows(const uint16_t* even, const uint16_t* odd, int64_t stride,
                                                      int64_t columns, uint32_t* to) {
    int64_t c = 0;
    if (stride == 1 && odd != nullptr) {
#if defined(ATTEND_ISA_avx512)
        alignas(64) static constexpr uint16_t first[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                           37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                           11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
        const __m512i low = _mm512_load_si512(first), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        for (; c + 32 <= columns; c += 32) {
            const __m512i a = _mm512_loadu_si512(even + c), b = _mm512_loadu_si512(odd + c);
            _mm512_storeu_si512(to + c, _mm512_permutex2var_epi16(a, low, b));
            _mm512_storeu_si512(to + c + 16, _mm512_permutex2var_epi16(a, high, b));
        }
#endif
        for (; c + batch_lanes <= columns; c += batch_lanes)
            store_pairs(to + c, either(widen(even + c), shift_left<16>(widen(odd + c))));
    }
    for (; c < columns; ++c)
        to[c] = uint32_t{even[c * stride]} | (odd == nullptr ? 0u : uint32_t{odd[c * stride]} << 16);
}

}  // namespace attend::ATTEND_ISA
