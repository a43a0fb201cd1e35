// SPDX-License-Identifier: Apache-2.0
// Sweeps over the score tiles of all heads: mixing across heads, sums of exponentials without storing weights, weights
// that are normalised at once.
//
// Mixing is a small product with tile positions as the long axis:  to[h][at] = bias[h] + sum over t of mix[t][h] from[t][at].
// A register tile holds R heads of V vectors; a row of the tile (one key, all lanes) is one step.
#pragma once

#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/tile/softmax_state.hpp"

namespace attend::ATTEND_ISA {

template <int V, int R>
__attribute__((noinline)) inline void mix_some(const float* from, int64_t head_stride, int64_t count, const float* mix,
                                               int64_t mix_stride, const float* bias, int64_t keys, float* to) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t key = 0; key < keys; ++key, from += lanes, to += lanes) {
        Batch sum[size_t{R}][size_t{V}];
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) sum[row][v] = bias != nullptr ? Batch(bias[row]) : Batch(0.0f);
        }
        const float *x = from, *a = mix;
        for (int64_t t = 0; t < count; ++t, x += head_stride, a += mix_stride) {
            Batch vector[size_t{V}];
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) vector[v] = load(x + v * batch_lanes);
            ATTEND_UNROLL
            for (int row = 0; row < R; ++row) {
                const Batch broadcast(a[row]);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v) sum[row][v] = fma(broadcast, vector[v], sum[row][v]);
            }
        }
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) store(to + row * head_stride + v * batch_lanes, sum[row][v]);
        }
    }
}

// `count` heads of `keys` rows in `from` to `heads` heads in `to`, tiles head_stride floats apart; mix is [count][heads],
// bias [heads] or NULL.
template <int V>
inline void mix_heads(const float* from, int64_t head_stride, int64_t count, const float* mix, const float* bias,
                      int64_t heads, int64_t keys, float* to) {
    const auto bias_at = [&](int64_t head) { return bias != nullptr ? bias + head : nullptr; };
    int64_t head = 0;
    for (; head + tile_rows <= heads; head += tile_rows)
        mix_some<V, tile_rows>(from, head_stride, count, mix + head, heads, bias_at(head), keys,
                               to + head * head_stride);
    if constexpr (tile_rows > 4)
        for (; head + 4 <= heads; head += 4)
            mix_some<V, 4>(from, head_stride, count, mix + head, heads, bias_at(head), keys, to + head * head_stride);
    for (; head + 2 <= heads; head += 2)
        mix_some<V, 2>(from, head_stride, count, mix + head, heads, bias_at(head), keys, to + head * head_stride);
    for (; head < heads; ++head)
        mix_some<V, 1>(from, head_stride, count, mix + head, heads, bias_at(head), keys, to + head * head_stride);
}

// The sums of update_softmax without its weights: the scores stay.
template <int V, bool far>
__attribute__((noinline)) inline void add_weight_sums(const float* scores, int64_t keys, float factor,
                                                      const float* best, const TileSoftmax& state) {
    constexpr int64_t lanes = V * batch_lanes;
    const Batch c(factor);
    SoftmaxBase<far, true> rows[size_t{V}];
    Batch sum[size_t{V}];
    move_base<V, SoftmaxBase<far, true>, far>(best, c, state, rows);
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = Batch(0.0f);
    for (int64_t key = 0; key < keys; ++key) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) sum[v] = sum[v] + rows[v].weight(load(scores + key * lanes + v * batch_lanes), c);
    }
    add_sums<V>(sum, state);
}
template <int V>
inline void sum_softmax(const float* scores, int64_t keys, float factor, const TileSoftmax& state) {
    float best[size_t{V * batch_lanes}];
    if (__builtin_expect(largest_scores<V>(scores, keys, factor, state, best), 0))
        add_weight_sums<V, true>(scores, keys, factor, best, state);
    else
        add_weight_sums<V, false>(scores, keys, factor, best, state);
}

// Scores to weights with the final state; share = 1 / l. As normalise_scores, whose lanes are all taken for far ones.
template <int V, bool far>
__attribute__((noinline)) inline void share_weights(float* scores, int64_t keys, float factor, const TileSoftmax& state,
                                                    const float* share) {
    constexpr int64_t lanes = V * batch_lanes;
    const Batch c(factor);
    SoftmaxBase<far, true> rows[size_t{V}];
    Batch scale[size_t{V}];
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        const Batch largest = load(state.row_max + v * batch_lanes);
        const Mask empty = largest == Batch(-infinity);
        rows[v].base = choose(empty, Batch(0.0f), load(state.row_base + v * batch_lanes));
        rows[v].largest = choose(empty, Batch(0.0f), largest);
        rows[v].is_far = is_far(largest, c);
        scale[v] = load(share + v * batch_lanes);
    }
    for (int64_t key = 0; key < keys; ++key) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            float* at = scores + key * lanes + v * batch_lanes;
            const Batch score = load(at);
            // Selected, since a NaN share must not reach hidden entries.
            store(at, choose(score == Batch(-infinity), Batch(0.0f), rows[v].weight(score, c) * scale[v]));
        }
    }
}
template <int V>
inline void finish_weights(float* scores, int64_t keys, float factor, const TileSoftmax& state, const float* share) {
    bool far = false;
    for (int v = 0; v < V; ++v) far |= any_lane(is_far(load(state.row_max + v * batch_lanes), Batch(factor)));
    if (__builtin_expect(far, 0))
        share_weights<V, true>(scores, keys, factor, state, share);
    else
        share_weights<V, false>(scores, keys, factor, state, share);
}

// seen becomes 0 where a score is not minus infinity. `count` is a whole number of vectors, as below.
__attribute__((noinline)) inline void mark_seen(const float* scores, int64_t count, float* seen) {
    for (int64_t at = 0; at < count; at += batch_lanes)
        store(seen + at, choose(load(scores + at) == Batch(-infinity), load(seen + at), Batch(0.0f)));
}
// Zeroes what is not seen.
__attribute__((noinline)) inline void keep_seen(float* weights, int64_t count, const float* seen) {
    for (int64_t at = 0; at < count; at += batch_lanes)
        store(weights + at, choose(load(seen + at) == Batch(-infinity), Batch(0.0f), load(weights + at)));
}

// scores += bias; minus infinity hides. Returns whether anything was hidden.
__attribute__((noinline)) inline bool add_bias_tile(float* scores, int64_t count, const float* bias) {
    bool hides = false;
    for (int64_t at = 0; at < count; at += batch_lanes) {
        const Batch b = load(bias + at);
        const Mask hidden = b == Batch(-infinity);
        store(scores + at, choose(hidden, Batch(-infinity), load(scores + at) + b));
        hides |= any_lane(hidden);
    }
    return hides;
}

}  // namespace attend::ATTEND_ISA
