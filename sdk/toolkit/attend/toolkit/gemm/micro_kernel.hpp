// SPDX-License-Identifier: Apache-2.0
// Register-tile products. One shape serves every engine: lanes run along the vector, rows are broadcast as they lie.
//
//   out[row][lane] = sum over t of a[row, t] * x[t][lane]
//
// a is read through two strides, one float at a time: neither keys, nor values, nor weights are ever packed. x and out
// are tiles: rows of `lanes` floats, one behind the other, of which V vectors take part (all of them unless a caller
// works on some vectors of a wider tile). A register tile is tile_rows x V vectors: with 8 x 3 there are 24 accumulators,
// and 3 loads and 8 broadcasts feed 24 multiply-adds.
//
//   score_block   S[key][lane]    = K rows x query lanes       (rows = keys,    t = feature)
//   value_block   acc[c][lane]   += V columns x weight lanes   (rows = columns, t = key)
//   load_lanes    gathers rows of memory into lanes: x[d][lane] = row of lane [d]
//   store_lanes   the way back
#pragma once

#include "attend/toolkit/core/ahead.hpp"
#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/simd/transpose.hpp"

namespace attend::ATTEND_ISA {

// What becomes of the product in `out`.
enum class Into : int {
    overwrite,  // out = product
    add,        // out = out + product
    rescale     // out = out * rescale[lane] + product
};

// How a is read: along t without gaps, along the rows without gaps, or by strides. The first two save registers and
// address arithmetic; the arithmetic on values is the same.
enum class Layout : int { unit_inner, unit_rows, strided };

template <int V, int R, Layout layout>
ATTEND_ALWAYS_INLINE void register_tile(const float* a, int64_t row_stride, int64_t inner_stride, const float* x,
                                        int64_t count, float* out, Into into, const float* rescale, int64_t lanes) {
    Batch sum[size_t{R}][size_t{V}];
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) sum[row][v] = Batch(0.0f);
    }

    if constexpr (layout == Layout::unit_rows) {
        for (int64_t t = 0; t < count; ++t, a += inner_stride, x += lanes) {
            Batch vector[size_t{V}];
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) vector[v] = load(x + v * batch_lanes);
            // The next line of each row, for the next register tiles: the stride hides it from the processor.
            if constexpr (R >= tile_rows) __builtin_prefetch(a + 16);
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Batch broadcast(a[row]);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v) sum[row][v] = fma(broadcast, vector[v], sum[row][v]);
            }
        }
    } else {
        const float* rows[size_t{R}];
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) rows[row] = a + row * row_stride;
        const int64_t step = layout == Layout::unit_inner ? 1 : inner_stride;
        for (int64_t t = 0, at = 0; t < count; ++t, at += step, x += lanes) {
            Batch vector[size_t{V}];
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) vector[v] = load(x + v * batch_lanes);
            // The rows of the next register tile, one after the other.
            if constexpr (layout == Layout::unit_inner && R >= tile_rows)
                __builtin_prefetch(a + (R + t % R) * row_stride + t / R * R);
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Batch broadcast(rows[row][at]);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v) sum[row][v] = fma(broadcast, vector[v], sum[row][v]);
            }
        }
    }

    // The product was summed from zero and joins what was there in one step: shorter chains of roundings than going on
    // from the old value, at the same cost.
    if (into == Into::rescale) {
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
    } else if (into == Into::add) {
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

// With one vector tile_rows sums are as many as two pipes of latency 4 need, and no more: twice the rows fill them.
template <int V>
constexpr int full_rows = V == 1 ? 2 * tile_rows : tile_rows;

// Any number of rows: full register tiles, then 8 (of one vector), 4, 2, 1.
template <int V, Layout layout>
__attribute__((noinline)) inline void product_rows(const float* a, int64_t row_stride, int64_t inner_stride,
                                                   int64_t rows, const float* x, int64_t count, float* out, Into into,
                                                   const float* rescale, int64_t lanes, Ahead* ahead) {
    int64_t row = 0;
    for (; row + full_rows<V> <= rows; row += full_rows<V>) {
        if (ahead != nullptr) ahead->step();
        register_tile<V, full_rows<V>, layout>(a + row * row_stride, row_stride, inner_stride, x, count,
                                               out + row * lanes, into, rescale, lanes);
    }
    if constexpr (full_rows < V >> 8)
        for (; row + 8 <= rows; row += 8)
            register_tile<V, 8, layout>(a + row * row_stride, row_stride, inner_stride, x, count, out + row * lanes,
                                        into, rescale, lanes);
    if constexpr (full_rows < V >> 4)
        for (; row + 4 <= rows; row += 4)
            register_tile<V, 4, layout>(a + row * row_stride, row_stride, inner_stride, x, count, out + row * lanes,
                                        into, rescale, lanes);
    for (; row + 2 <= rows; row += 2)
        register_tile<V, 2, layout>(a + row * row_stride, row_stride, inner_stride, x, count, out + row * lanes, into,
                                    rescale, lanes);
    for (; row < rows; ++row)
        register_tile<V, 1, layout>(a + row * row_stride, row_stride, inner_stride, x, count, out + row * lanes, into,
                                    rescale, lanes);
}

// out[row][lane] (=, +=, rescaled +=) sum over t < count of a[row * row_stride + t * inner_stride] * x[t][lane].
template <int V>
inline void product(const float* a, int64_t row_stride, int64_t inner_stride, int64_t rows, const float* x,
                    int64_t count, float* out, Into into = Into::overwrite, const float* rescale = nullptr,
                    int64_t lanes = V * batch_lanes, Ahead* ahead = nullptr) {
    if (inner_stride == 1)
        product_rows<V, Layout::unit_inner>(a, row_stride, 1, rows, x, count, out, into, rescale, lanes, ahead);
    else if (row_stride == 1)
        product_rows<V, Layout::unit_rows>(a, 1, inner_stride, rows, x, count, out, into, rescale, lanes, ahead);
    else
        product_rows<V, Layout::strided>(a, row_stride, inner_stride, rows, x, count, out, into, rescale, lanes, ahead);
}

// S[key][lane] of `keys` keys of head_dim features; queries is [head_dim][V vectors].
template <int V>
inline void score_block(const float* key, int64_t key_stride, int64_t feature_stride, int64_t keys,
                        const float* queries, int64_t head_dim, float* scores) {
    product<V>(key, key_stride, feature_stride, keys, queries, head_dim, scores);
}

// acc[c][lane] of value_dim columns from `keys` values; weights is [keys][V vectors].
template <int V>
inline void value_block(const float* value, int64_t key_stride, int64_t column_stride, int64_t keys,
                        const float* weights, int64_t value_dim, float* acc, Into into, const float* rescale) {
    product<V>(value, column_stride, key_stride, value_dim, weights, keys, acc, into, rescale);
}

// to[d][lane] = scale * rows[lane][d * stride] for d < count; rows has V * batch_lanes pointers, repeats allowed.
template <int V>
__attribute__((noinline)) inline void load_lanes(const float* const* rows, int64_t stride, int64_t count, float scale,
                                                 float* to) {
    constexpr int64_t lanes = V * batch_lanes;
    const Batch factor(scale);
    for (int v = 0; v < V; ++v) {
        const float* const* from = rows + v * batch_lanes;
        float* target = to + v * batch_lanes;
        int64_t d = 0;
        if (stride == 1) {
            for (; d + batch_lanes <= count; d += batch_lanes) {
                Batch block[batch_lanes];
                ATTEND_UNROLL
                for (int lane = 0; lane < batch_lanes; ++lane) block[lane] = load(from[lane] + d);
                transpose(block);
                ATTEND_UNROLL
                for (int lane = 0; lane < batch_lanes; ++lane) store(target + (d + lane) * lanes, factor * block[lane]);
            }
        }
        for (; d < count; ++d)
            for (int lane = 0; lane < batch_lanes; ++lane) target[d * lanes + lane] = scale * from[lane][d * stride];
    }
}

// rows[lane][c * stride] = from[c][lane] * factor[lane] for c < count and lane < num_lanes.
template <int V>
__attribute__((noinline)) inline void store_lanes(const float* from, int64_t count, const float* factor,
                                                  float* const* rows, int64_t stride, int64_t num_lanes) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        const int64_t first = v * batch_lanes;
        const int64_t used = num_lanes - first < batch_lanes ? num_lanes - first : batch_lanes;
        if (used <= 0) return;
        const Batch scale = load(factor + first);
        int64_t c = 0;
        if (stride == 1) {
            for (; c + batch_lanes <= count; c += batch_lanes) {
                Batch block[batch_lanes];
                ATTEND_UNROLL
                for (int row = 0; row < batch_lanes; ++row) block[row] = load(from + (c + row) * lanes + first) * scale;
                transpose(block);
                if (used == batch_lanes) {
                    ATTEND_UNROLL
                    for (int lane = 0; lane < batch_lanes; ++lane) store(rows[first + lane] + c, block[lane]);
                } else {
                    for (int64_t lane = 0; lane < used; ++lane) store(rows[first + lane] + c, block[lane]);
                }
            }
        }
        for (; c < count; ++c)
            for (int64_t lane = 0; lane < used; ++lane)
                rows[first + lane][c * stride] = from[c * lanes + first + lane] * factor[first + lane];
    }
}

}  // namespace attend::ATTEND_ISA
