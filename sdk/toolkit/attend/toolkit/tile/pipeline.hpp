// SPDX-License-Identifier: Apache-2.0
// What happens to a stored score tile between the product and softmax: soft cap, bias, boolean mask, limits of causal,
// window and lengths. Hiding selects minus infinity, never adds it: a NaN from a hidden key is gone.
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// `count` is always a whole number of vectors.
__attribute__((noinline)) inline void scale_scores(float* scores, int64_t count, float scale) {
    for (int64_t at = 0; at < count; at += batch_lanes) store(scores + at, load(scores + at) * Batch(scale));
}

// s = c tanh(s / c)
__attribute__((noinline)) inline void cap_scores(float* scores, int64_t count, float cap) {
    const Batch high(cap), inverse(1.0f / cap);
    for (int64_t at = 0; at < count; at += batch_lanes) store(scores + at, high * tanh(load(scores + at) * inverse));
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
        for (int64_t lane = 0; lane < lanes; ++lane) {
            moved[lane] = rows[lane] + first * key_stride;
            // The next block of each row: as many streams as lanes are more than the processor follows by itself.
            if (key_stride == 1)
                for (int64_t at = keys; at < 2 * keys; at += 16) __builtin_prefetch(moved[lane] + at);
        }
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

// 16 x 16 bytes in place: rows[r] byte c becomes rows[c] byte r, in four rounds of zipping row r with row r + 8.
#if defined(__SSE2__)
using Bytes = __m128i;
ATTEND_ALWAYS_INLINE Bytes load_bytes(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
ATTEND_ALWAYS_INLINE void store_bytes(uint8_t* to, Bytes x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x); }
ATTEND_ALWAYS_INLINE Bytes zip_low_bytes(Bytes a, Bytes b) { return _mm_unpacklo_epi8(a, b); }
ATTEND_ALWAYS_INLINE Bytes zip_high_bytes(Bytes a, Bytes b) { return _mm_unpackhi_epi8(a, b); }
ATTEND_ALWAYS_INLINE Bytes any_byte(Bytes a, Bytes b) { return _mm_or_si128(a, b); }
ATTEND_ALWAYS_INLINE Bytes least_byte(Bytes a, Bytes b) { return _mm_min_epu8(a, b); }
ATTEND_ALWAYS_INLINE Bytes equal_bytes(uint8_t x) { return _mm_set1_epi8(static_cast<char>(x)); }
#elif defined(ATTEND_ISA_neon)
using Bytes = uint8x16_t;
ATTEND_ALWAYS_INLINE Bytes load_bytes(const uint8_t* from) { return vld1q_u8(from); }
ATTEND_ALWAYS_INLINE void store_bytes(uint8_t* to, Bytes x) { vst1q_u8(to, x); }
ATTEND_ALWAYS_INLINE Bytes zip_low_bytes(Bytes a, Bytes b) { return vzip1q_u8(a, b); }
ATTEND_ALWAYS_INLINE Bytes zip_high_bytes(Bytes a, Bytes b) { return vzip2q_u8(a, b); }
ATTEND_ALWAYS_INLINE Bytes any_byte(Bytes a, Bytes b) { return vorrq_u8(a, b); }
ATTEND_ALWAYS_INLINE Bytes least_byte(Bytes a, Bytes b) { return vminq_u8(a, b); }
ATTEND_ALWAYS_INLINE Bytes equal_bytes(uint8_t x) { return vdupq_n_u8(x); }
#endif
ATTEND_ALWAYS_INLINE void transpose_bytes(Bytes (&rows)[16]) {
    ATTEND_UNROLL
    for (int stage = 0; stage < 4; ++stage) {
        Bytes zipped[16];
        ATTEND_UNROLL
        for (int row = 0; row < 8; ++row) {
            zipped[2 * row] = zip_low_bytes(rows[row], rows[row + 8]);
            zipped[2 * row + 1] = zip_high_bytes(rows[row], rows[row + 8]);
        }
        ATTEND_UNROLL
        for (int row = 0; row < 16; ++row) rows[row] = zipped[row];
    }
}

struct MaskSummary {
    Bytes any, least;
    bool none() const {
        uint8_t bytes[16];
        store_bytes(bytes, any);
        for (const uint8_t byte : bytes)
            if (byte != 0) return false;
        return true;
    }
    bool all() const {
        uint8_t bytes[16];
        store_bytes(bytes, least);
        for (const uint8_t byte : bytes)
            if (byte == 0) return false;
        return true;
    }
};

// Rows of a mask whose keys follow each other in memory.
__attribute__((noinline)) inline MaskSummary transpose_mask(uint8_t* mask, int64_t lanes, int64_t first, int64_t keys,
                                                            const uint8_t* const* rows) {
    MaskSummary summary{equal_bytes(0), equal_bytes(0xFF)};
    // The next block of each row: as many streams as lanes are more than the processor follows by itself.
    for (int64_t lane = 0; lane < lanes; ++lane)
        for (int64_t at = keys; at < 2 * keys; at += 64) __builtin_prefetch(rows[lane] + first + at);
    for (int64_t key = 0; key < keys; key += 16) {
        const int64_t used = keys - key < 16 ? keys - key : 16;
        for (int64_t lane = 0; lane < lanes; lane += 16) {
            Bytes block[16];
            ATTEND_UNROLL
            for (int row = 0; row < 16; ++row) {
                const uint8_t* from = rows[lane + row < lanes ? lane + row : lanes - 1] + first + key;
                if (used == 16) {
                    block[row] = load_bytes(from);
                } else {
                    uint8_t tail[16];  // repeats the last key, which changes no summary
                    for (int64_t at = 0; at < 16; ++at) tail[at] = from[at < used ? at : used - 1];
                    block[row] = load_bytes(tail);
                }
                summary.any = any_byte(summary.any, block[row]);
                summary.least = least_byte(summary.least, block[row]);
            }
            transpose_bytes(block);
            if (used == 16 && lanes % 16 == 0) {
                ATTEND_UNROLL
                for (int row = 0; row < 16; ++row) store_bytes(mask + (key + row) * lanes + lane, block[row]);
            } else {
                for (int64_t row = 0; row < used; ++row) {
                    uint8_t bytes[16];
                    store_bytes(bytes, block[row]);
                    const int64_t count = lanes - lane < 16 ? lanes - lane : 16;
                    __builtin_memcpy(mask + (key + row) * lanes + lane, bytes, static_cast<size_t>(count));
                }
            }
        }
    }
    return summary;
}

// The mask of a tile, transposed to [key][lane]: non-zero = may attend.
__attribute__((noinline)) inline Visible gather_mask(uint8_t* mask, int64_t lanes, int64_t first, int64_t keys,
                                                     const uint8_t* const* rows, int64_t key_stride,
                                                     bool same_for_all_lanes, const int32_t* key_index) {
    if (!same_for_all_lanes && key_index == nullptr && key_stride == 1) {
        const MaskSummary summary = transpose_mask(mask, lanes, first, keys, rows);
        return summary.none() ? Visible::none : summary.all() ? Visible::all : Visible::some;
    }
    int64_t visible = 0;
    for (int64_t key = 0; key < keys; ++key) {
        const int64_t j = key_index != nullptr ? key_index[key] : first + key;
        uint8_t* to = mask + key * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            to[lane] = rows[same_for_all_lanes ? 0 : lane][j * key_stride] != 0 ? 1 : 0;
            visible += to[lane];
        }
    }
    return visible == 0 ? Visible::none : visible == keys * lanes ? Visible::all : Visible::some;
}

__attribute__((noinline)) inline void apply_mask(float* scores, int64_t count, const uint8_t* mask) {
    for (int64_t at = 0; at < count; at += batch_lanes)
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
