// SPDX-License-Identifier: Apache-2.0
// Running maximum, sum and rescale factor of the rows in a tile: the online softmax, all of it vertical.
//
// m' = max(m, max s); r = exp(m - m'), 0 from an empty state; w = exp(s - m'); l' = r l + sum w. Rows that have seen no
// key keep m = minus infinity and l = 0: their weights are exact zeros, since the subtrahend is then 0 instead of m.
// A NaN score may or may not reach the maximum; it always reaches its weight, and so l and the output of that row
// alone.
#pragma once

#include <math.h>

#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

template <int V>
ATTEND_ALWAYS_INLINE void start_softmax(float* row_max, float* row_sum) {
    for (int v = 0; v < V; ++v) {
        store(row_max + v * batch_lanes, Batch(-infinity));
        store(row_sum + v * batch_lanes, Batch(0.0f));
    }
}

// Turns `keys` rows of scores into weights relative to the new maximum; rescale is what older sums are multiplied by.
template <int V>
__attribute__((noinline)) inline void update_softmax(float* scores, int64_t keys, float* row_max, float* row_sum,
                                                     float* rescale) {
    constexpr int64_t lanes = V * batch_lanes;
    Batch best[size_t{V}], base[size_t{V}], sum[size_t{V}];
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) best[v] = load(row_max + v * batch_lanes);
    for (int64_t key = 0; key < keys; ++key) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) best[v] = max(best[v], load(scores + key * lanes + v * batch_lanes));
    }
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        base[v] = choose(best[v] == Batch(-infinity), Batch(0.0f), best[v]);
        store(rescale + v * batch_lanes, exp_nonpositive(load(row_max + v * batch_lanes) - base[v]));
        store(row_max + v * batch_lanes, best[v]);
        sum[v] = Batch(0.0f);
    }
    for (int64_t key = 0; key < keys; ++key) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            float* at = scores + key * lanes + v * batch_lanes;
            const Batch weight = exp_nonpositive(load(at) - base[v]);
            store(at, weight);
            sum[v] = sum[v] + weight;
        }
    }
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        float* at = row_sum + v * batch_lanes;
        store(at, fma(load(at), load(rescale + v * batch_lanes), sum[v]));
    }
}

// factor = scale / l, 0 for rows without keys.
ATTEND_ALWAYS_INLINE float finish_factor(float row_sum, float scale) {
    return row_sum == 0.0f ? 0.0f : scale / row_sum;
}

ATTEND_ALWAYS_INLINE float finish_lse(float row_max, float row_sum) {
    if (row_sum == 0.0f) return -infinity;
    return static_cast<float>(static_cast<double>(row_max) + ::log(static_cast<double>(row_sum)));
}

// Scores to normalised weights, for a second pass with the final maximum; factor = 1 / l.
template <int V>
__attribute__((noinline)) inline void normalise_scores(float* scores, int64_t keys, const float* row_max,
                                                       const float* factor) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        const Batch best = load(row_max + v * batch_lanes);
        const Batch base = choose(best == Batch(-infinity), Batch(0.0f), best);
        const Batch scale = load(factor + v * batch_lanes);
        for (int64_t key = 0; key < keys; ++key) {
            float* at = scores + key * lanes + v * batch_lanes;
            const Batch score = load(at);
            // Selected, since a NaN factor must not reach hidden entries.
            store(at, choose(score == Batch(-infinity), Batch(0.0f), exp_nonpositive(score - base) * scale));
        }
    }
}

}  // namespace attend::ATTEND_ISA
