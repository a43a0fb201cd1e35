// SPDX-License-Identifier: Apache-2.0
// Rounding to bf16 and to e4m3 (4 bits of significand, largest 448, no infinity), to nearest even, and codes of
// e4m3 and int8. A value "on the grid" is a float that the format holds exactly.
#pragma once

#include "attend/toolkit/simd/dot.hpp"

namespace attend::ATTEND_ISA {

// What runs where products of bf16 pairs are wanted and the processor has them; other entries never get there.
constexpr Dots block_dots = ATTEND_HAS_DOTS ? Dots::hardware : Dots::portable;

ATTEND_ALWAYS_INLINE Batch on_bf16_grid(const Batch& x) {
    return float_of(both(round_to_high(x), all_pairs(0xFFFF0000u)));
}

// Beyond 448, infinity included: 448. NaN stays NaN.
constexpr float e4m3_largest = 448.0f, e4m3_smallest_normal = 0x1p-6f;
ATTEND_ALWAYS_INLINE Batch on_e4m3_grid(const Batch& x) {
    const Pairs bits = bits_of(x), sign = both(bits, all_pairs(0x80000000u)),
                size_bits = both(bits, all_pairs(0x7FFFFFFFu));
    const Batch size = float_of(size_bits);
    const Pairs rounded = sum(size_bits, sum(all_pairs(0x7FFFFu), both(shift_right<20>(size_bits), all_pairs(1u))));
    const Batch normal = float_of(both(rounded, all_pairs(0xFFF00000u)));
    // Multiples of 2^-9: the unit in the last place of 2^14.
    const Batch tiny = (size + Batch(0x1p14f)) - Batch(0x1p14f);
    const Batch bounded = min(Batch(e4m3_largest), choose(size < Batch(e4m3_smallest_normal), tiny, normal));
    return choose(x == x, float_of(either(bits_of(bounded), sign)), x);
}

// Codes of finite values on the grid, in the low byte of each lane, and back; both exact.
ATTEND_ALWAYS_INLINE Pairs e4m3_codes(const Batch& x) {
    const Pairs bits = bits_of(x), size_bits = both(bits, all_pairs(0x7FFFFFFFu));
    const Batch size = float_of(size_bits);
    const Pairs normal = sum(shift_right<20>(size_bits), all_pairs(0u - (120u << 3)));
    // Beside 2^14 the unit in the last place is that of the subnormal codes.
    const Pairs tiny = both(bits_of(size + Batch(0x1p14f)), all_pairs(0xFu));
    const Batch code = choose(size < Batch(e4m3_smallest_normal), float_of(tiny), float_of(normal));
    return either(bits_of(code), both(shift_right<24>(bits), all_pairs(0x80u)));
}
inline float e4m3_value(uint8_t code) {
    // The bits of a float whose exponent is 120 too small, subnormal codes included.
    const float size = __builtin_bit_cast(float, (code & 0x7Fu) << 20) * 0x1p120f;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, size) | (code & 0x80u) << 24);
}

// `count` floats to bf16 in memory, and to floats on its grid.
template <Dots dots>
ATTEND_DOT_TARGET __attribute__((noinline)) inline void round_to_bf16(const float* from, int64_t count, uint16_t* to) {
    int64_t at = 0;
#if ATTEND_HAS_DOTS
    if constexpr (dots == Dots::hardware) {
        for (; at + 2 * batch_lanes <= count; at += 2 * batch_lanes) {
            __m512i halves;
            __asm__("vcvtne2ps2bf16 %2, %1, %0"
                    : "=v"(halves)
                    : "v"(load(from + at + batch_lanes).data), "v"(load(from + at).data));
            _mm512_storeu_si512(to + at, halves);
        }
    }
#endif
    for (; at + batch_lanes <= count; at += batch_lanes) store_bf16(to + at, load(from + at));
    for (; at < count; ++at) to[at] = float_to_bf16(from[at]);
}
inline void round_to_floats(const float* from, int64_t count, float* to) {
    int64_t at = 0;
    for (; at + batch_lanes <= count; at += batch_lanes) store(to + at, on_bf16_grid(load(from + at)));
    if (at < count) store_tail(to + at, on_bf16_grid(load_tail(from + at, count - at)), count - at);
}

// Rows of two keys as bf16 pairs; odd = NULL stands for zeros.
template <Dots dots>
ATTEND_DOT_TARGET __attribute__((noinline)) inline void pair_rows_of_values(const float* even, const float* odd,
                                                                            int64_t count, uint32_t* to) {
    int64_t at = 0;
    for (; at + batch_lanes <= count; at += batch_lanes)
        store_pairs(to + at, round_pairs<dots>(load(even + at), odd != nullptr ? load(odd + at) : Batch(0.0f)));
    for (; at < count; ++at)
        to[at] = uint32_t{float_to_bf16(even[at])} | (odd != nullptr ? uint32_t{float_to_bf16(odd[at])} << 16 : 0u);
}

// Values less their mean, and the grid of e4m3 after multiplication; either may be absent. In place if to is from.
inline void turn_values(const float* from, int64_t count, const float* mean, const float* inverse, float* to) {
    for (int64_t at = 0; at < count; at += batch_lanes) {
        const int64_t left = count - at;
        const bool whole = left >= batch_lanes;
        const auto part = [&](const float* x) { return whole ? load(x + at) : load_tail(x + at, left); };
        Batch x = part(from);
        if (mean != nullptr) x = x - part(mean);
        if (inverse != nullptr) x = on_e4m3_grid(x * part(inverse));
        if (whole)
            store(to + at, x);
        else
            store_tail(to + at, x, left);
    }
}

// Weights of a tile on the grid of their format; e4m3 holds 2^8 times the weight.
inline void round_weights_bf16(float* weights, int64_t count) {
    for (int64_t at = 0; at < count; at += batch_lanes) store(weights + at, on_bf16_grid(load(weights + at)));
}
constexpr float e4m3_weight_factor = 256.0f;
inline void round_weights_e4m3(float* weights, int64_t count) {
    for (int64_t at = 0; at < count; at += batch_lanes)
        store(weights + at, on_e4m3_grid(load(weights + at) * Batch(e4m3_weight_factor)));
}

// Scale and its inverse for a group whose largest magnitude is `amax`; next to nothing gives codes of 0.
struct GroupScale {
    float scale, inverse;
};
inline GroupScale group_scale(float amax, float largest_code) {
    if (amax < 0x1p-100f) return {1.0f, 0.0f};
    return {amax / largest_code, largest_code / amax};
}

}  // namespace attend::ATTEND_ISA
