// SPDX-License-Identifier: Apache-2.0
// Values that are not finite behind hidden keys. A weight of zero does not protect a product: 0 * NaN is NaN. Where a
// tile hides pairs, its value rows are looked at first, and those that hold NaN or infinity are added lane by lane.
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"

namespace attend::ATTEND_ISA {

inline bool row_is_finite(const float* value, int64_t column_stride, int64_t value_dim) {
    // x * 0 is 0 for finite x and NaN for the others, and NaN stays in the sum.
    if (column_stride == 1) {
        Batch sum(0.0f);
        int64_t c = 0;
        for (; c + batch_lanes <= value_dim; c += batch_lanes) sum = fma(load(value + c), Batch(0.0f), sum);
        if (c < value_dim) sum = fma(load_tail(value + c, value_dim - c), Batch(0.0f), sum);
        return all_lanes(sum == Batch(0.0f));
    }
    float sum = 0.0f;
    for (int64_t c = 0; c < value_dim; ++c) sum += value[c * column_stride] * 0.0f;
    return sum == 0.0f;
}

// First row at or after `key` that is not finite, or `keys`.
inline int64_t next_wild_row(const float* value, int64_t key_stride, int64_t column_stride, int64_t key, int64_t keys,
                             int64_t value_dim) {
    while (key < keys && row_is_finite(value + key * key_stride, column_stride, value_dim)) ++key;
    return key;
}

// value_block for a tile whose row `wild` is the first that is not finite. hidden[key][lane] holds the scores of the
// tile before softmax: minus infinity where the lane must not see the key.
template <int V>
__attribute__((noinline)) inline void wild_value_block(const float* value, int64_t key_stride, int64_t column_stride,
                                                       int64_t keys, const float* weights, const float* hidden,
                                                       int64_t value_dim, float* acc, Into into, const float* rescale,
                                                       int64_t wild) {
    constexpr int64_t lanes = V * batch_lanes;
    int64_t key = 0;
    while (true) {
        value_block<V>(value + key * key_stride, key_stride, column_stride, wild - key, weights + key * lanes,
                       value_dim, acc, into, rescale);
        into = Into::add;
        if (wild == keys) return;
        for (int64_t c = 0; c < value_dim; ++c) {
            const Batch x(value[wild * key_stride + c * column_stride]);
            for (int v = 0; v < V; ++v) {
                const int64_t at = wild * lanes + v * batch_lanes;
                float* sum = acc + c * lanes + v * batch_lanes;
                const Batch old = load(sum);
                store(sum, choose(load(hidden + at) == Batch(-infinity), old, fma(x, load(weights + at), old)));
            }
        }
        key = wild + 1;
        wild = next_wild_row(value, key_stride, column_stride, key, keys, value_dim);
    }
}

}  // namespace attend::ATTEND_ISA
