// SPDX-License-Identifier: Apache-2.0
// What one lane of a vector takes in: a float32, a narrower number that is widened on its way into the register, or a pair
// of bfloat16. A unit knows how many bytes that is, and how a vector of them is loaded and multiplied.
#pragma once

#include "attend/toolkit/decode/elements.hpp"

namespace attend::ATTEND_ISA::decode {

using Bytes = const unsigned char*;

constexpr int64_t unit_bytes = 4;

// The first `bytes` bytes of a vector of floats, zeros behind.
ATTEND_ALWAYS_INLINE Batch load_bytes(Bytes from, int64_t bytes) {
    if (bytes % unit_bytes == 0) return load_tail(reinterpret_cast<const float*>(from), bytes / unit_bytes);
    unsigned char whole[size_t{batch_lanes} * unit_bytes] = {};
    for (int64_t byte = 0; byte < bytes; ++byte) whole[byte] = from[byte];
    return load(reinterpret_cast<const float*>(whole));
}

struct FloatUnit {
    static constexpr bool paired = false;
    static constexpr Element element = Element::f32;
    static constexpr int64_t lane_bytes = 4;
    ATTEND_ALWAYS_INLINE static Batch load(Bytes from) {
        return ATTEND_ISA::load(reinterpret_cast<const float*>(from));
    }
    ATTEND_ALWAYS_INLINE static Batch load_some(Bytes from, int64_t bytes) { return load_bytes(from, bytes); }
    ATTEND_ALWAYS_INLINE static Batch dot(const Batch& a, const Batch& b, const Batch& sum) { return fma(a, b, sum); }
};

// Reached only where the processor has the instruction.
#if ATTEND_HAS_DOTS
struct PairUnit {
    static constexpr bool paired = true;
    static constexpr Element element = Element::bf16;
    static constexpr int64_t lane_bytes = 4;
    ATTEND_ALWAYS_INLINE static Batch load(Bytes from) {
        return ATTEND_ISA::load(reinterpret_cast<const float*>(from));
    }
    ATTEND_ALWAYS_INLINE static Batch load_some(Bytes from, int64_t bytes) { return load_bytes(from, bytes); }
    ATTEND_ALWAYS_INLINE static Batch dot(const Batch& a, const Batch& b, const Batch& sum) {
        return ATTEND_ISA::dot<Dots::hardware>(sum, bits_of(a), bits_of(b));
    }
};
#endif

// A vector of codes, as they are: their scale comes to the sums.
ATTEND_ALWAYS_INLINE Batch load_i8(Bytes from) {
#if defined(ATTEND_ISA_avx512)
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return Batch(_mm512_maskz_cvtepi32_ps(every_lane, _mm512_maskz_cvtepi8_epi32(every_lane, codes)));
#elif defined(ATTEND_ISA_avx2)
    const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return Batch(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
#elif defined(ATTEND_ISA_baseline)
    int32_t codes;
    __builtin_memcpy(&codes, from, sizeof codes);
    return Batch(_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(codes))));
#else
    float wide[size_t{batch_lanes}];
    for (int lane = 0; lane < batch_lanes; ++lane) wide[lane] = static_cast<float>(static_cast<int8_t>(from[lane]));
    return ATTEND_ISA::load(wide);
#endif
}
// e4m3 has the exponents of a float16 of 2^-8 of its size, where all ones is no NaN.
ATTEND_ALWAYS_INLINE Batch load_e4m3(Bytes from) {
#if defined(ATTEND_ISA_avx512)
    const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    const __m256i size = _mm256_and_si256(codes, _mm256_set1_epi16(0x7F));
    const __m256i sign = _mm256_slli_epi16(_mm256_xor_si256(codes, size), 8);
    const __m256i half = _mm256_or_si256(_mm256_slli_epi16(size, 7), sign);
    const __m256i wrong = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7F));
    const __m256i bits = _mm256_or_si256(half, _mm256_and_si256(wrong, _mm256_set1_epi16(0x7E00)));
    return Batch(_mm512_maskz_cvtph_ps(every_lane, bits)) * Batch(256.0f);
#elif defined(ATTEND_ISA_avx2)
    const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    const __m128i size = _mm_and_si128(codes, _mm_set1_epi16(0x7F));
    const __m128i sign = _mm_slli_epi16(_mm_xor_si128(codes, size), 8);
    const __m128i half = _mm_or_si128(_mm_slli_epi16(size, 7), sign);
    const __m128i wrong = _mm_cmpeq_epi16(size, _mm_set1_epi16(0x7F));
    const __m128i bits = _mm_or_si128(half, _mm_and_si128(wrong, _mm_set1_epi16(0x7E00)));
    return Batch(_mm256_cvtph_ps(bits)) * Batch(256.0f);
#else
    float wide[size_t{batch_lanes}];
    for (int lane = 0; lane < batch_lanes; ++lane) wide[lane] = e4m3_to_float(from[lane]);
    return ATTEND_ISA::load(wide);
#endif
}

// Numbers that become float32 in the register.
template <Element type>
struct NarrowUnit {
    static constexpr bool paired = false;
    static constexpr Element element = type;
    static constexpr int64_t lane_bytes = bytes_of(type);
    ATTEND_ALWAYS_INLINE static Batch load(Bytes from) {
        if constexpr (type == Element::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(from));
        if constexpr (type == Element::f16) return load_f16(reinterpret_cast<const uint16_t*>(from));
        if constexpr (type == Element::i8) return load_i8(from);
        if constexpr (type == Element::e4m3) return load_e4m3(from);
    }
    ATTEND_ALWAYS_INLINE static Batch load_some(Bytes from, int64_t bytes) {
        alignas(64) unsigned char whole[size_t{batch_lanes} * lane_bytes] = {};
        __builtin_memcpy(whole, from, static_cast<size_t>(bytes));
        return load(whole);
    }
    ATTEND_ALWAYS_INLINE static Batch dot(const Batch& a, const Batch& b, const Batch& sum) { return fma(a, b, sum); }
};

}  // namespace attend::ATTEND_ISA::decode
