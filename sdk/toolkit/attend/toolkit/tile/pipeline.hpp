// SPDX-License-Identifier: Apache-2.0
// What happens to a stored score tile between the product and softmax: soft cap, bias, boolean mask, limits of causal,
// window and lengths. Hiding selects minus infinity, never adds it: a NaN from a hidden key is gone.
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// s = c tanh(s / c)
template <int V>
__attribute__((noinline)) inline void cap_scores(float* scores, int64_t keys, float cap) {
    const Batch high(cap), inverse(1.0f / cap);
    for (int64_t at = 0; at < keys * V * batch_lanes; at += batch_lanes)
        store(scores + at, high * tanh(load(scores + at) * inverse));
}

// s += bias, minus infinity hides. Returns whether anything was hidden.
template <int V>
ATTEND_ALWAYS_INLINE bool add_bias_row(float* scores, const Batch* bias) {
    bool hides = false;
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) {
        const Mask hidden = bias[v] == Batch(-infinity);
        store(scores + v * batch_lanes, choose(hidden, Batch(-infinity), load(scores + v * batch_lanes) + bias[v]));
        hides |= any_lane(hidden);
    }
    return hides;
}

// rows: the lanes' bias rows at key index 0; key_index as in the problem, already at the first key, or NULL.
template <int V>
__attribute__((noinline)) inline bool add_bias(float* scores, int64_t first, int64_t keys, const float* const* rows,
                                               int64_t key_stride, bool same_for_all_lanes, const int32_t* key_index,
                                               float* space, const float** moved) {
    constexpr int64_t lanes = V * batch_lanes;
    bool hides = false;
    Batch bias[size_t{V}];
    if (same_for_all_lanes) {
        for (int64_t key = 0; key < keys; ++key) {
            const int64_t j = key_index != nullptr ? key_index[key] : first + key;
            for (int v = 0; v < V; ++v) bias[v] = Batch(rows[0][j * key_stride]);
            hides |= add_bias_row<V>(scores + key * lanes, bias);
        }
        return hides;
    }
    if (key_index == nullptr) {
        for (int64_t lane = 0; lane < lanes; ++lane) moved[lane] = rows[lane] + first * key_stride;
        load_lanes<V>(moved, key_stride, keys, 1.0f, space);
    } else {
        for (int64_t lane = 0; lane < lanes; ++lane)
            for (int64_t key = 0; key < keys; ++key)
                space[key * lanes + lane] = rows[lane][key_index[key] * key_stride];
    }
    for (int64_t key = 0; key < keys; ++key) {
        for (int v = 0; v < V; ++v) bias[v] = load(space + key * lanes + v * batch_lanes);
        hides |= add_bias_row<V>(scores + key * lanes, bias);
    }
    return hides;
}

enum class Visible { none, some, all };

// The mask of a tile, transposed to [key][lane]: 1 = may attend.
template <int V>
__attribute__((noinline)) inline Visible gather_mask(uint8_t* mask, int64_t first, int64_t keys,
                                                     const uint8_t* const* rows, int64_t key_stride,
                                                     bool same_for_all_lanes, const int32_t* key_index) {
    constexpr int64_t lanes = V * batch_lanes;
    int64_t visible = 0;
    if (same_for_all_lanes) {
        for (int64_t key = 0; key < keys; ++key) {
            const int64_t j = key_index != nullptr ? key_index[key] : first + key;
            const uint8_t keep = rows[0][j * key_stride] != 0 ? 1 : 0;
            visible += keep * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) mask[key * lanes + lane] = keep;
        }
    } else {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const uint8_t* row = rows[lane];
            for (int64_t key = 0; key < keys; ++key) {
                const int64_t j = key_index != nullptr ? key_index[key] : first + key;
                const uint8_t keep = row[j * key_stride] != 0 ? 1 : 0;
                visible += keep;
                mask[key * lanes + lane] = keep;
            }
        }
    }
    return visible == 0 ? Visible::none : visible == keys * lanes ? Visible::all : Visible::some;
}

template <int V>
__attribute__((noinline)) inline void apply_mask(float* scores, int64_t keys, const uint8_t* mask) {
    for (int64_t at = 0; at < keys * V * batch_lanes; at += batch_lanes)
        store(scores + at, choose(mask_from_bytes(mask + at), load(scores + at), Batch(-infinity)));
}

// Lane l sees the rows [low[l], high[l]) of the tile; rows in [skip_begin, skip_end) are known to be seen by all.
template <int V>
__attribute__((noinline)) inline void apply_limits(float* scores, int64_t keys, const float* low, const float* high,
                                                   int64_t skip_begin, int64_t skip_end) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t key = 0; key < keys; ++key) {
        if (key >= skip_begin && key < skip_end) {
            key = skip_end - 1;
            continue;
        }
        const Batch row(static_cast<float>(key));
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) {
            float* at = scores + key * lanes + v * batch_lanes;
            const Batch above = choose(row >= load(low + v * batch_lanes), load(at), Batch(-infinity));
            store(at, choose(row < load(high + v * batch_lanes), above, Batch(-infinity)));
        }
    }
}

}  // namespace attend::ATTEND_ISA
