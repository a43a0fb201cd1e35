// SPDX-License-Identifier: Apache-2.0
// What happens to a block of scores [key][q] between the product and softmax, and values that are not finite behind
// hidden keys. Hiding selects minus infinity, never adds it: a NaN from a hidden key is gone.
#pragma once

#include "attend/toolkit/decode/decode_problem.hpp"
#include "attend/toolkit/decode/values.hpp"

namespace attend::ATTEND_ISA::decode {

// s = c tanh(s / c), in whole vectors.
__attribute__((noinline)) inline void cap_scores(float* scores, int64_t count, float cap) {
    const Batch high(cap), inverse(1.0f / cap);
    for (int64_t at = 0; at < count; at += batch_lanes) store(scores + at, high * tanh(load(scores + at) * inverse));
}

// Which of `keys` bytes, `stride` apart, are not zero.
enum class Visible { none, some, all };
inline Visible visible_keys(const uint8_t* mask, int64_t stride, int64_t keys) {
    int64_t key = 0, seen = 0;
    if (stride == 0) return keys == 0 || *mask == 0 ? Visible::none : Visible::all;
    if (stride == 1)
        for (; key < keys; ++key) seen += mask[key] != 0 ? 1 : 0;
    for (; key < keys; ++key) seen += mask[key * stride] != 0 ? 1 : 0;
    return seen == 0 ? Visible::none : seen == keys ? Visible::all : Visible::some;
}

// One row q of the block; scores points to its first entry, entries are `step` apart.
inline void apply_mask(float* scores, int64_t step, const uint8_t* mask, int64_t stride, int64_t keys) {
    for (int64_t key = 0; key < keys; ++key)
        scores[key * step] = mask[key * stride] != 0 ? scores[key * step] : -infinity;
}

// Returns whether anything was hidden.
inline bool add_bias(float* scores, int64_t step, const float* bias, int64_t stride, int64_t keys) {
    uint32_t hidden = 0;
    for (int64_t key = 0; key < keys; ++key) {
        const float x = bias[key * stride];
        const bool hides = x == -infinity;
        scores[key * step] = hides ? -infinity : scores[key * step] + x;
        hidden |= hides ? 1u : 0u;
    }
    return hidden != 0;
}

inline void apply_limits(float* scores, int64_t step, int64_t begin, int64_t end, int64_t keys) {
    for (int64_t key = 0; key < lesser(begin, keys); ++key) scores[key * step] = -infinity;
    for (int64_t key = greater(end, 0); key < keys; ++key) scores[key * step] = -infinity;
}

// Whether a row of `columns` values holds NaN or infinity.
template <class Unit>
inline bool is_wild(Bytes row, int64_t columns) {
    if constexpr (Unit::paired) {
        const uint16_t* value = reinterpret_cast<const uint16_t*>(row);
        uint32_t wild = 0;
        for (int64_t c = 0; c < columns; ++c) wild |= (value[c] & 0x7F80u) == 0x7F80u ? 1u : 0u;
        return wild != 0;
    } else if constexpr (Unit::element == Element::i8) {
        return false;
    } else if constexpr (Unit::element != Element::f32) {
        Batch sum(0.0f);
        int64_t c = 0;
        for (; c + batch_lanes <= columns; c += batch_lanes)
            sum = fma(Unit::load(row + c * Unit::lane_bytes), Batch(0.0f), sum);
        if (c < columns)
            sum = fma(Unit::load_some(row + c * Unit::lane_bytes, (columns - c) * Unit::lane_bytes), Batch(0.0f), sum);
        return !all_lanes(sum == Batch(0.0f));
    } else {
        const float* value = reinterpret_cast<const float*>(row);
        // x * 0 is 0 for finite x and NaN for the others, and NaN stays in the sum.
        Batch sum(0.0f);
        int64_t c = 0;
        for (; c + batch_lanes <= columns; c += batch_lanes) sum = fma(load(value + c), Batch(0.0f), sum);
        if (c < columns) sum = fma(load_tail(value + c, columns - c), Batch(0.0f), sum);
        return !all_lanes(sum == Batch(0.0f));
    }
}

template <class Unit>
ATTEND_ALWAYS_INLINE float value_of(Bytes row, int64_t c) {
    if constexpr (Unit::paired) return bf16_to_float(reinterpret_cast<const uint16_t*>(row)[c]);
    return reinterpret_cast<const float*>(row)[c];
}

// Copies rows with zeros in place of what is not finite; the rest of the arithmetic is then as if it had been finite.
template <class Unit>
__attribute__((noinline)) inline void tame_rows(Bytes value, int64_t stride, int64_t keys, int64_t columns, float* to) {
    for (int64_t key = 0; key < keys; ++key)
        for (int64_t c = 0; c < columns; ++c) {
            const float x = value_of<Unit>(value + key * stride, c);
            const float tame = x - x == 0.0f ? x : 0.0f;
            if constexpr (Unit::paired)
                reinterpret_cast<uint16_t*>(to)[key * columns + c] = float_to_bf16(tame);
            else
                to[key * columns + c] = tame;
        }
}

// Adds what tame_rows took out to the rows that see it. kept holds the scores before softmax.
template <int G, class Unit>
__attribute__((noinline)) inline void add_wild(Bytes value, int64_t stride, int64_t keys, int64_t columns,
                                               const float* weights, const float* kept, float* acc,
                                               int64_t acc_stride) {
    for (int64_t key = 0; key < keys; ++key) {
        if (!is_wild<Unit>(value + key * stride, columns)) continue;
        for (int64_t c = 0; c < columns; ++c) {
            const float x = value_of<Unit>(value + key * stride, c);
            if (x - x == 0.0f) continue;
            for (int q = 0; q < G; ++q)
                if (kept[key * G + q] != -infinity)
                    acc[q * acc_stride + acc_place<Unit>(c)] += weights[key * G + q] * x;
        }
    }
}

}  // namespace attend::ATTEND_ISA::decode
