// SPDX-License-Identifier: Apache-2.0
// float32, bfloat16 and float16 elements: rows widened to float32, and results rounded once, to nearest even.
#pragma once

#include <cstdint>

#include "attend/abi.h"
#include "attend/toolkit/simd/dot.hpp"

namespace attend::ATTEND_ISA::decode {

enum class Element : int { f32, bf16, f16, i8, e4m3, other };

inline Element element_of(const attend_tensor& tensor) {
    if (tensor.dtype_lanes > 1) return Element::other;
    if (tensor.dtype_code == ATTEND_CODE_FLOAT && tensor.dtype_bits == 32) return Element::f32;
    if (tensor.dtype_code == ATTEND_CODE_FLOAT && tensor.dtype_bits == 16) return Element::f16;
    if (tensor.dtype_code == ATTEND_CODE_BFLOAT && tensor.dtype_bits == 16) return Element::bf16;
    if (tensor.dtype_bits == 8 && tensor.dtype_code == ATTEND_CODE_INT) return Element::i8;
    if (tensor.dtype_bits == 8 && tensor.dtype_code == ATTEND_CODE_UINT) return Element::e4m3;
    return Element::other;
}
constexpr bool is_code(Element element) { return element == Element::i8 || element == Element::e4m3; }
constexpr int64_t bytes_of(Element element) { return element == Element::f32 ? 4 : is_code(element) ? 1 : 2; }

// The number behind the bits of fp8 e4m3 (no infinity; all ones is NaN).
inline float e4m3_to_float(uint8_t code) {
    const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, rest = code & 0x7Fu;
    uint32_t bits;
    if (rest == 0x7Fu)
        bits = sign | 0x7FC00000u;
    else if (rest >= 8u)
        bits = sign | ((rest << 20) + (uint32_t{120} << 23));
    else {
        const float small = static_cast<float>(rest) * 0.001953125f;  // 2^-9, the smallest subnormal number
        __builtin_memcpy(&bits, &small, sizeof bits);
        bits |= sign;
    }
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

inline float element_at(const void* from, int64_t at, Element element) {
    if (element == Element::f32) return static_cast<const float*>(from)[at];
    if (element == Element::i8) return static_cast<float>(static_cast<const int8_t*>(from)[at]);
    if (element == Element::e4m3) return e4m3_to_float(static_cast<const uint8_t*>(from)[at]);
    const uint16_t half = static_cast<const uint16_t*>(from)[at];
    return element == Element::bf16 ? bf16_to_float(half) : f16_to_float(half);
}

// to[t] = from[t] as float32, for t < count; exact.
__attribute__((noinline)) inline void widen_row(const void* from, Element element, int64_t count, float* to) {
    const uint16_t* half = static_cast<const uint16_t*>(from);
    int64_t t = 0;
    if (element == Element::f32) {
        __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    } else if (is_code(element)) {
        for (; t < count; ++t) to[t] = element_at(from, t, element);
    } else if (element == Element::bf16) {
        for (; t + batch_lanes <= count; t += batch_lanes) store(to + t, load_bf16(half + t));
        for (; t < count; ++t) to[t] = bf16_to_float(half[t]);
    } else {
        for (; t + batch_lanes <= count; t += batch_lanes) store(to + t, load_f16(half + t));
        for (; t < count; ++t) to[t] = f16_to_float(half[t]);
    }
}

// to[t * stride] = from[t] * factor, rounded to the element type.
__attribute__((noinline)) inline void write_row(const float* from, float factor, int64_t count, void* to,
                                                int64_t stride, Element element) {
    const Batch scale(factor);
    uint16_t* half = static_cast<uint16_t*>(to);
    float* whole = static_cast<float*>(to);
    int64_t t = 0;
    if (stride == 1)
        for (; t + batch_lanes <= count; t += batch_lanes) {
            const Batch x = load(from + t) * scale;
            if (element == Element::f32)
                store(whole + t, x);
            else if (element == Element::bf16)
                store_bf16(half + t, x);
            else
                store_f16(half + t, x);
        }
    for (; t < count; ++t) {
        const float x = from[t] * factor;
        if (element == Element::f32)
            whole[t * stride] = x;
        else
            half[t * stride] = element == Element::bf16 ? float_to_bf16(x) : float_to_f16(x);
    }
}

}  // namespace attend::ATTEND_ISA::decode
