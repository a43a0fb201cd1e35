// SPDX-License-Identifier: Apache-2.0
// Running maximum, sum and rescale factor of the rows in a tile: the online softmax, all of it vertical.
//
// m' = max(m, max s); b' = c m'; r = 2^(b - b'), 0 from an empty state; w = 2^(c s - b'); l' = r l + sum w, where c and
// the base 2 are those of simd/math.hpp. Rows that have seen no key keep m = minus infinity and l = 0: their weights are
// exact zeros, since the subtrahend is then 0 instead of b. A NaN score may or may not reach the maximum; it always
// reaches its weight, and so l and the output of that row alone.
#pragma once

#include <math.h>

#include "attend/toolkit/gemm/pair_kernel.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

// One entry per lane.
struct TileSoftmax {
    float *row_max, *row_base, *row_sum;  // m, b, l
    float* rescale;                       // r of the last update
};

template <int V>
ATTEND_ALWAYS_INLINE void start_softmax(const TileSoftmax& state) {
    for (int v = 0; v < V; ++v) {
        store(state.row_max + v * batch_lanes, Batch(-infinity));
        store(state.row_base + v * batch_lanes, Batch(-infinity));
        store(state.row_sum + v * batch_lanes, Batch(0.0f));
    }
}

// Where |b| is beyond this, its rounding could overflow a weight, so such lanes take differences of scores first. Rows
// of nothing but masks of -1e9 or of the lowest float are of this kind; their weights are to be those of equal scores.
constexpr float far_base = 1048576.0f;
ATTEND_ALWAYS_INLINE Mask is_far(const Batch& largest, const Batch& c) {
    const Batch size = xsimd::abs(largest);
    return (size * c > Batch(far_base)) && (size < Batch(infinity));
}

// What turns scores of one vector of lanes into weights; precise: to float32, otherwise for weights that become bf16.
template <bool far, bool precise>
struct SoftmaxBase {
    Batch base, largest;  // of rows without keys: 0
    Mask is_far;

    ATTEND_ALWAYS_INLINE Batch weight(const Batch& score, const Batch& c) const {
        Batch t = softmax_exponent(score, c, base);
        if constexpr (far) t = choose(is_far, (score - largest) * c, t);
        if constexpr (precise) return softmax_exp(t);
        return softmax_exp_short(t);
    }
};

// Moves the state of V vectors to the maximum `best`.
template <int V, class Base, bool far>
ATTEND_ALWAYS_INLINE void move_base(const float* best, const Batch& c, const TileSoftmax& state,
                                    Base (&rows)[size_t{V}]) {
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        const int64_t at = v * batch_lanes;
        const Batch old_max = load(state.row_max + at), old_base = load(state.row_base + at);
        const Batch largest = load(best + at);
        const Mask empty = largest == Batch(-infinity);
        const Batch base = choose(empty, Batch(-infinity), largest * c);
        rows[v].base = choose(empty, Batch(0.0f), base);
        Batch step = old_base - rows[v].base;
        if constexpr (far) {
            rows[v].largest = choose(empty, Batch(0.0f), largest);
            rows[v].is_far = is_far(largest, c);
            step = choose(rows[v].is_far, (old_max - rows[v].largest) * c, step);
        }
        store(state.rescale + at, softmax_exp(step));
        store(state.row_max + at, largest);
        store(state.row_base + at, base);
    }
}
template <int V>
ATTEND_ALWAYS_INLINE void add_sums(const Batch (&sum)[size_t{V}], const TileSoftmax& state) {
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        float* at = state.row_sum + v * batch_lanes;
        store(at, fma(load(at), load(state.rescale + v * batch_lanes), sum[v]));
    }
}

template <int V, bool far>
__attribute__((noinline)) inline void weigh_scores(float* scores, int64_t keys, float factor, const float* best,
                                                   const TileSoftmax& state) {
    constexpr int64_t lanes = V * batch_lanes;
    const Batch c(factor);
    SoftmaxBase<far, true> rows[size_t{V}];
    Batch sum[size_t{V}];
    move_base<V, SoftmaxBase<far, true>, far>(best, c, state, rows);
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = Batch(0.0f);
    for (int64_t key = 0; key < keys; ++key) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            float* at = scores + key * lanes + v * batch_lanes;
            const Batch weight = rows[v].weight(load(at), c);
            store(at, weight);
            sum[v] = sum[v] + weight;
        }
    }
    add_sums<V>(sum, state);
}

// The same, and the weights become pairs of bf16, row t of them from rows 2t and 2t + 1, in the same memory. The sums
// are those of the weights before rounding. Rounding hides the shorter exponential; where the logarithm of the sums is
// wanted, weights are precise.
template <int V, bool far, bool precise>
ATTEND_DOT_TARGET __attribute__((noinline)) inline void weigh_pairs(float* scores, int64_t keys, float factor,
                                                                    const float* best, const TileSoftmax& state) {
    constexpr int64_t lanes = V * batch_lanes;
    constexpr Dots dots = ATTEND_HAS_DOTS ? Dots::hardware : Dots::portable;
    const Batch c(factor);
    SoftmaxBase<far, precise> rows[size_t{V}];
    Batch sum[size_t{V}];
    move_base<V, SoftmaxBase<far, precise>, far>(best, c, state, rows);
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = Batch(0.0f);
    float* to = scores;
    int64_t key = 0;
    for (; key + 2 <= keys; key += 2, to += lanes) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            const float* at = scores + key * lanes + v * batch_lanes;
            const Batch even = rows[v].weight(load(at), c), odd = rows[v].weight(load(at + lanes), c);
            store_pairs(to + v * batch_lanes, round_pairs<dots>(even, odd));
            sum[v] = sum[v] + (even + odd);
        }
    }
    if (key < keys) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            const Batch even = rows[v].weight(load(scores + key * lanes + v * batch_lanes), c);
            store_pairs(to + v * batch_lanes, round_pairs<dots>(even, Batch(0.0f)));
            sum[v] = sum[v] + even;
        }
    }
    add_sums<V>(sum, state);
}

// The largest score of each lane, older ones included; returns whether any is far.
template <int V>
__attribute__((noinline)) inline bool largest_scores(const float* scores, int64_t keys, float factor,
                                                     const TileSoftmax& state, float* best) {
    constexpr int64_t lanes = V * batch_lanes;
    // Two chains per lane: one would wait for itself.
    Batch first[size_t{V}], second[size_t{V}];
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        first[v] = load(state.row_max + v * batch_lanes);
        second[v] = Batch(-infinity);
    }
    int64_t key = 0;
    for (; key + 2 <= keys; key += 2) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            first[v] = max(first[v], load(scores + key * lanes + v * batch_lanes));
            second[v] = max(second[v], load(scores + (key + 1) * lanes + v * batch_lanes));
        }
    }
    bool far = false;
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        if (key < keys) first[v] = max(first[v], load(scores + key * lanes + v * batch_lanes));
        first[v] = max(first[v], second[v]);
        far |= any_lane(is_far(first[v], Batch(factor)));
        store(best + v * batch_lanes, first[v]);
    }
    return far;
}

// Turns `keys` rows of scores into weights relative to the new base; older sums are to be multiplied by state.rescale.
template <int V>
inline void update_softmax(float* scores, int64_t keys, float factor, const TileSoftmax& state) {
    float best[size_t{V * batch_lanes}];
    if (__builtin_expect(largest_scores<V>(scores, keys, factor, state, best), 0))
        weigh_scores<V, true>(scores, keys, factor, best, state);
    else
        weigh_scores<V, false>(scores, keys, factor, best, state);
}
template <int V>
inline void update_softmax_pairs(float* scores, int64_t keys, float factor, const TileSoftmax& state, bool precise) {
    float best[size_t{V * batch_lanes}];
    if (__builtin_expect(largest_scores<V>(scores, keys, factor, state, best), 0))
        weigh_pairs<V, true, true>(scores, keys, factor, best, state);
    else if (precise)
        weigh_pairs<V, false, true>(scores, keys, factor, best, state);
    else
        weigh_pairs<V, false, false>(scores, keys, factor, best, state);
}

// factor = scale / l, 0 for rows without keys.
ATTEND_ALWAYS_INLINE float finish_factor(float row_sum, float scale) {
    return row_sum == 0.0f ? 0.0f : scale / row_sum;
}

// Natural logarithm of the sum of a lane.
inline float finish_lse(const TileSoftmax& state, int64_t lane, float factor) {
    const float sum = state.row_sum[lane], base = state.row_base[lane];
    if (sum == 0.0f) return -infinity;
    const bool far = base > far_base || base < -far_base;
    const double exact = static_cast<double>(state.row_max[lane]) * static_cast<double>(factor);
    return static_cast<float>((far ? exact : static_cast<double>(base)) * softmax_unit +
                              ::log(static_cast<double>(sum)));
}

// Scores to normalised weights, for a second pass with the final state; share = 1 / l.
template <int V>
__attribute__((noinline)) inline void normalise_scores(float* scores, int64_t keys, float factor,
                                                       const TileSoftmax& state, const float* share) {
    constexpr int64_t lanes = V * batch_lanes;
    const Batch c(factor);
    for (int v = 0; v < V; ++v) {
        const Batch largest = load(state.row_max + v * batch_lanes);
        const Mask empty = largest == Batch(-infinity);
        const SoftmaxBase<true, true> row{choose(empty, Batch(0.0f), load(state.row_base + v * batch_lanes)),
                                          choose(empty, Batch(0.0f), largest), is_far(largest, c)};
        const Batch scale = load(share + v * batch_lanes);
        for (int64_t key = 0; key < keys; ++key) {
            float* at = scores + key * lanes + v * batch_lanes;
            const Batch score = load(at);
            // Selected, since a NaN share must not reach hidden entries.
            store(at, choose(score == Batch(-infinity), Batch(0.0f), row.weight(score, c) * scale));
        }
    }
}

}  // namespace attend::ATTEND_ISA
