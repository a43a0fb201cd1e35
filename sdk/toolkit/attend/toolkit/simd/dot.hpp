// SPDX-License-Identifier: Apache-2.0
// Half-width floats: bf16 and f16 to float and back, and the dot of bf16 pairs that the widest processors have an
// instruction for. A pair is a 32-bit lane: element 2t in its low half, element 2t + 1 in its high half.
//
// Dots::hardware is the instruction of AVX512-BF16, which only the avx512 entry has and only some of its processors
// do: ask has_hardware_dots() first. Dots::portable is the same computation everywhere. The two differ in subnormal
// numbers alone: the instructions read them as zero and write zero for them.
//
// The hardware forms are spelled in assembly, so they may stand in templates that are inlined into anything; but the
// noinline function that holds the loop carries ATTEND_DOT_TARGET, without which clang refuses them.
#pragma once

#include "attend/abi.h"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

enum class Dots : int { portable, hardware };

#if defined(ATTEND_ISA_avx512)
#define ATTEND_HAS_DOTS 1
#define ATTEND_DOT_TARGET __attribute__((target("avx512bf16")))
#else
#define ATTEND_HAS_DOTS 0
#define ATTEND_DOT_TARGET
#endif

// Whether this entry may use Dots::hardware on the processor that the host describes (cpu may be null).
inline bool has_hardware_dots(const attend_cpu* cpu) {
    return ATTEND_HAS_DOTS != 0 && cpu != nullptr && (cpu->isa & ATTEND_ISA_AVX512_BF16) != 0;
}

// A vector of 32-bit lanes: bf16 pairs, or the bits of floats.
#if defined(ATTEND_ISA_avx512)
using PairRegister = __m512i;
#elif defined(ATTEND_ISA_avx2)
using PairRegister = __m256i;
#elif defined(ATTEND_ISA_baseline)
using PairRegister = __m128i;
#elif defined(ATTEND_ISA_neon)
using PairRegister = uint32x4_t;
#endif
struct Pairs {
    PairRegister data;
};

// load_pairs, store_pairs: batch_lanes pairs, any address. bits_of, float_of: the same bits as another type.
// all_pairs: one pair in every lane. both, either, sum: bitwise and, or, integer addition. shift_left, shift_right:
// by bits, zeros move in. narrow: the low halves, stored as batch_lanes 16-bit elements; no high half is set.
#if defined(ATTEND_ISA_avx512)
ATTEND_ALWAYS_INLINE Pairs load_pairs(const void* from) { return {_mm512_loadu_si512(from)}; }
ATTEND_ALWAYS_INLINE void store_pairs(void* to, const Pairs& x) { _mm512_storeu_si512(to, x.data); }
ATTEND_ALWAYS_INLINE Pairs all_pairs(uint32_t pair) { return {_mm512_set1_epi32(static_cast<int>(pair))}; }
ATTEND_ALWAYS_INLINE Pairs bits_of(const Batch& x) { return {_mm512_castps_si512(x.data)}; }
ATTEND_ALWAYS_INLINE Batch float_of(const Pairs& x) { return Batch(_mm512_castsi512_ps(x.data)); }
ATTEND_ALWAYS_INLINE Pairs both(const Pairs& a, const Pairs& b) { return {_mm512_and_si512(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs either(const Pairs& a, const Pairs& b) { return {_mm512_or_si512(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs sum(const Pairs& a, const Pairs& b) { return {_mm512_add_epi32(a.data, b.data)}; }
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_left(const Pairs& x) {
    return {_mm512_maskz_slli_epi32(every_lane, x.data, bits)};
}
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_right(const Pairs& x) {
    return {_mm512_maskz_srli_epi32(every_lane, x.data, bits)};
}
ATTEND_ALWAYS_INLINE void narrow(uint16_t* to, const Pairs& x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(every_lane, x.data));
}
ATTEND_ALWAYS_INLINE Pairs widen(const uint16_t* from) {
    return {_mm512_maskz_cvtepu16_epi32(every_lane, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
#elif defined(ATTEND_ISA_avx2)
ATTEND_ALWAYS_INLINE Pairs load_pairs(const void* from) {
    return {_mm256_loadu_si256(static_cast<const __m256i*>(from))};
}
ATTEND_ALWAYS_INLINE void store_pairs(void* to, const Pairs& x) {
    _mm256_storeu_si256(static_cast<__m256i*>(to), x.data);
}
ATTEND_ALWAYS_INLINE Pairs all_pairs(uint32_t pair) { return {_mm256_set1_epi32(static_cast<int>(pair))}; }
ATTEND_ALWAYS_INLINE Pairs bits_of(const Batch& x) { return {_mm256_castps_si256(x.data)}; }
ATTEND_ALWAYS_INLINE Batch float_of(const Pairs& x) { return Batch(_mm256_castsi256_ps(x.data)); }
ATTEND_ALWAYS_INLINE Pairs both(const Pairs& a, const Pairs& b) { return {_mm256_and_si256(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs either(const Pairs& a, const Pairs& b) { return {_mm256_or_si256(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs sum(const Pairs& a, const Pairs& b) { return {_mm256_add_epi32(a.data, b.data)}; }
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_left(const Pairs& x) {
    return {_mm256_slli_epi32(x.data, bits)};
}
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_right(const Pairs& x) {
    return {_mm256_srli_epi32(x.data, bits)};
}
ATTEND_ALWAYS_INLINE void narrow(uint16_t* to, const Pairs& x) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.data, x.data), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
ATTEND_ALWAYS_INLINE Pairs widen(const uint16_t* from) {
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
}
#elif defined(ATTEND_ISA_baseline)
ATTEND_ALWAYS_INLINE Pairs load_pairs(const void* from) { return {_mm_loadu_si128(static_cast<const __m128i*>(from))}; }
ATTEND_ALWAYS_INLINE void store_pairs(void* to, const Pairs& x) { _mm_storeu_si128(static_cast<__m128i*>(to), x.data); }
ATTEND_ALWAYS_INLINE Pairs all_pairs(uint32_t pair) { return {_mm_set1_epi32(static_cast<int>(pair))}; }
ATTEND_ALWAYS_INLINE Pairs bits_of(const Batch& x) { return {_mm_castps_si128(x.data)}; }
ATTEND_ALWAYS_INLINE Batch float_of(const Pairs& x) { return Batch(_mm_castsi128_ps(x.data)); }
ATTEND_ALWAYS_INLINE Pairs both(const Pairs& a, const Pairs& b) { return {_mm_and_si128(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs either(const Pairs& a, const Pairs& b) { return {_mm_or_si128(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs sum(const Pairs& a, const Pairs& b) { return {_mm_add_epi32(a.data, b.data)}; }
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_left(const Pairs& x) {
    return {_mm_slli_epi32(x.data, bits)};
}
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_right(const Pairs& x) {
    return {_mm_srli_epi32(x.data, bits)};
}
ATTEND_ALWAYS_INLINE void narrow(uint16_t* to, const Pairs& x) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi32(x.data, x.data));
}
ATTEND_ALWAYS_INLINE Pairs widen(const uint16_t* from) {
    return {_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))};
}
#elif defined(ATTEND_ISA_neon)
ATTEND_ALWAYS_INLINE Pairs load_pairs(const void* from) {
    return {vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(from)))};
}
ATTEND_ALWAYS_INLINE void store_pairs(void* to, const Pairs& x) {
    vst1q_u8(static_cast<uint8_t*>(to), vreinterpretq_u8_u32(x.data));
}
ATTEND_ALWAYS_INLINE Pairs all_pairs(uint32_t pair) { return {vdupq_n_u32(pair)}; }
ATTEND_ALWAYS_INLINE Pairs bits_of(const Batch& x) { return {vreinterpretq_u32_f32(x.data)}; }
ATTEND_ALWAYS_INLINE Batch float_of(const Pairs& x) { return Batch(vreinterpretq_f32_u32(x.data)); }
ATTEND_ALWAYS_INLINE Pairs both(const Pairs& a, const Pairs& b) { return {vandq_u32(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs either(const Pairs& a, const Pairs& b) { return {vorrq_u32(a.data, b.data)}; }
ATTEND_ALWAYS_INLINE Pairs sum(const Pairs& a, const Pairs& b) { return {vaddq_u32(a.data, b.data)}; }
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_left(const Pairs& x) {
    return {vshlq_n_u32(x.data, bits)};
}
template <unsigned bits>
ATTEND_ALWAYS_INLINE Pairs shift_right(const Pairs& x) {
    return {vshrq_n_u32(x.data, bits)};
}
ATTEND_ALWAYS_INLINE void narrow(uint16_t* to, const Pairs& x) { vst1_u16(to, vmovn_u32(x.data)); }
ATTEND_ALWAYS_INLINE Pairs widen(const uint16_t* from) { return {vmovl_u16(vld1_u16(from))}; }
#endif

// One pair from any address into every lane; of the last element of an odd row, with zero in the high half. Neither
// reads more than 4 or 2 bytes.
ATTEND_ALWAYS_INLINE Pairs broadcast_pair(const void* from) {
    uint32_t pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return all_pairs(pair);
}
ATTEND_ALWAYS_INLINE Pairs broadcast_half(const void* from) {
    uint16_t half;
    __builtin_memcpy(&half, from, sizeof half);
    return all_pairs(half);
}

// The elements of pairs as floats; exact.
ATTEND_ALWAYS_INLINE Batch low_halves(const Pairs& x) { return float_of(shift_left<16>(x)); }
ATTEND_ALWAYS_INLINE Batch high_halves(const Pairs& x) { return float_of(both(x, all_pairs(0xFFFF0000u))); }

// acc + a.high * b.high, then + a.low * b.low, each product added in one rounding where the entry has fused
// multiply-add.
template <Dots dots>
ATTEND_ALWAYS_INLINE Batch dot(const Batch& acc, const Pairs& a, const Pairs& b) {
#if ATTEND_HAS_DOTS
    if constexpr (dots == Dots::hardware) {
        __m512 result = acc.data;
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(result) : "v"(a.data), "v"(b.data));
        return Batch(result);
    }
#endif
    return fma(low_halves(a), low_halves(b), fma(high_halves(a), high_halves(b), acc));
}

// Rounded to nearest even in the high half of each lane; the low half holds rubbish. Infinities stay, what is beyond
// the largest finite number becomes infinite, NaN becomes the quiet NaN of the same upper bits.
ATTEND_ALWAYS_INLINE Pairs round_to_high(const Batch& x) {
    const Pairs bits = bits_of(x);
    const Pairs rounded = sum(bits, sum(all_pairs(0x7FFFu), both(shift_right<16>(bits), all_pairs(1u))));
    return bits_of(choose(x == x, float_of(rounded), float_of(either(bits, all_pairs(0x00400000u)))));
}

// The pairs {low, high} of two vectors of floats, rounded as by round_to_high.
template <Dots dots>
ATTEND_ALWAYS_INLINE Pairs round_pairs(const Batch& low, const Batch& high) {
#if ATTEND_HAS_DOTS
    if constexpr (dots == Dots::hardware) {
        // The instruction writes the rounded low in front of the rounded high; the permutation interleaves them.
        alignas(64) static constexpr uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        __m512i halves;
        __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(halves) : "v"(high.data), "v"(low.data));
        return {_mm512_maskz_permutexvar_epi16(0xFFFFFFFFu, _mm512_load_si512(order), halves)};
    }
#endif
    return either(shift_right<16>(round_to_high(low)), both(round_to_high(high), all_pairs(0xFFFF0000u)));
}

// ---- bf16 in memory ----

ATTEND_ALWAYS_INLINE float bf16_to_float(uint16_t x) { return __builtin_bit_cast(float, uint32_t{x} << 16); }
ATTEND_ALWAYS_INLINE uint16_t float_to_bf16(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    if (x != x) return static_cast<uint16_t>((bits | 0x00400000u) >> 16);
    return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
// batch_lanes elements; exact, and to nearest even as by round_to_high.
ATTEND_ALWAYS_INLINE Batch load_bf16(const uint16_t* from) { return float_of(shift_left<16>(widen(from))); }
ATTEND_ALWAYS_INLINE void store_bf16(uint16_t* to, const Batch& x) { narrow(to, shift_right<16>(round_to_high(x))); }

// ---- f16 in memory ----

// One element; exact. A NaN becomes quiet.
inline float f16_to_float(uint16_t x) {
    const uint32_t size = x & 0x7FFFu, sign = uint32_t{x & 0x8000u} << 16;
    uint32_t bits = (size << 13) + (112u << 23);
    if (size >= 0x7C00u) bits = 0x7F800000u | (size << 13) | (size > 0x7C00u ? 0x00400000u : 0u);
    if (size < 0x0400u) bits = __builtin_bit_cast(uint32_t, static_cast<float>(size) * 0x1p-24f);
    return __builtin_bit_cast(float, bits | sign);
}
// To nearest even, subnormal results too; 65520 and more become infinite, a NaN stays one and becomes quiet.
inline uint16_t float_to_f16(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    const uint32_t sign = (bits >> 16) & 0x8000u, size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((size >> 13) & 0x3FFu));
    if (size >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
    if (size < 0x38800000u) {
        // Multiples of 2^-24: adding 2^23 of them leaves their number, rounded to even, in the lowest bits.
        const float number = __builtin_bit_cast(float, size) * 0x1p24f + 0x1p23f;
        return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, number) - 0x4B000000u));
    }
    return static_cast<uint16_t>(sign | ((size - (112u << 23) + 0xFFFu + ((size >> 13) & 1u)) >> 13));
}

// batch_lanes elements, with the meaning of the functions above.
#if defined(ATTEND_ISA_avx512)
ATTEND_ALWAYS_INLINE Batch load_f16(const uint16_t* from) {
    return Batch(_mm512_maskz_cvtph_ps(every_lane, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
ATTEND_ALWAYS_INLINE void store_f16(uint16_t* to, const Batch& x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(every_lane, x.data, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(ATTEND_ISA_avx2)
ATTEND_ALWAYS_INLINE Batch load_f16(const uint16_t* from) {
    return Batch(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
ATTEND_ALWAYS_INLINE void store_f16(uint16_t* to, const Batch& x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x.data, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(ATTEND_ISA_neon)
ATTEND_ALWAYS_INLINE Batch load_f16(const uint16_t* from) {
    return Batch(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
ATTEND_ALWAYS_INLINE void store_f16(uint16_t* to, const Batch& x) {
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x.data)));
}
#else
ATTEND_ALWAYS_INLINE Batch load_f16(const uint16_t* from) {
    const __m128i code = widen(from).data;
    const __m128i size = _mm_and_si128(code, _mm_set1_epi32(0x7FFF));
    const __m128i sign = _mm_slli_epi32(_mm_xor_si128(code, size), 16);
    const __m128i shifted = _mm_slli_epi32(size, 13);
    const __m128i quiet = _mm_and_si128(_mm_cmpgt_epi32(size, _mm_set1_epi32(0x7C00)), _mm_set1_epi32(0x00400000));
    const __m128i special = _mm_or_si128(_mm_or_si128(shifted, _mm_set1_epi32(0x7F800000)), quiet);
    __m128i bits = _mm_add_epi32(shifted, _mm_set1_epi32(112 << 23));
    bits = _mm_blendv_epi8(bits, special, _mm_cmpgt_epi32(size, _mm_set1_epi32(0x7BFF)));
    const __m128 tiny = _mm_mul_ps(_mm_cvtepi32_ps(size), _mm_set1_ps(0x1p-24f));
    bits = _mm_blendv_epi8(bits, _mm_castps_si128(tiny), _mm_cmpgt_epi32(_mm_set1_epi32(0x0400), size));
    return Batch(_mm_castsi128_ps(_mm_or_si128(bits, sign)));
}
ATTEND_ALWAYS_INLINE void store_f16(uint16_t* to, const Batch& x) {
    const __m128i bits = _mm_castps_si128(x.data);
    const __m128i size = _mm_and_si128(bits, _mm_set1_epi32(0x7FFFFFFF));
    const __m128i sign = _mm_srli_epi32(_mm_xor_si128(bits, size), 16);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(size, 13), _mm_set1_epi32(1));
    __m128i code = _mm_srli_epi32(_mm_add_epi32(_mm_sub_epi32(size, _mm_set1_epi32((112 << 23) - 0xFFF)), odd), 13);
    const __m128 scaled = _mm_mul_ps(_mm_castsi128_ps(size), _mm_set1_ps(0x1p24f));
    const __m128i tiny =
        _mm_sub_epi32(_mm_castps_si128(_mm_add_ps(scaled, _mm_set1_ps(0x1p23f))), _mm_set1_epi32(0x4B000000));
    code = _mm_blendv_epi8(code, tiny, _mm_cmpgt_epi32(_mm_set1_epi32(0x38800000), size));
    code = _mm_blendv_epi8(code, _mm_set1_epi32(0x7C00), _mm_cmpgt_epi32(size, _mm_set1_epi32(0x477FEFFF)));
    const __m128i payload = _mm_and_si128(_mm_srli_epi32(size, 13), _mm_set1_epi32(0x3FF));
    code = _mm_blendv_epi8(code, _mm_or_si128(payload, _mm_set1_epi32(0x7E00)),
                           _mm_cmpgt_epi32(size, _mm_set1_epi32(0x7F800000)));
    narrow(to, {_mm_or_si128(code, sign)});
}
#endif

// The first n < batch_lanes elements of 16 bits through `whole`; other lanes read as zero and are not touched.
ATTEND_ALWAYS_INLINE void copy_halves(uint16_t* to, const uint16_t* from, int64_t n) {
    for (int64_t lane = 0; lane < n; ++lane) to[lane] = from[lane];
}
ATTEND_ALWAYS_INLINE Batch load_bf16_tail(const uint16_t* from, int64_t n) {
    uint16_t whole[batch_lanes] = {};
    copy_halves(whole, from, n);
    return load_bf16(whole);
}
ATTEND_ALWAYS_INLINE void store_bf16_tail(uint16_t* to, const Batch& x, int64_t n) {
    uint16_t whole[batch_lanes];
    store_bf16(whole, x);
    copy_halves(to, whole, n);
}
ATTEND_ALWAYS_INLINE Batch load_f16_tail(const uint16_t* from, int64_t n) {
    uint16_t whole[batch_lanes] = {};
    copy_halves(whole, from, n);
    return load_f16(whole);
}
ATTEND_ALWAYS_INLINE void store_f16_tail(uint16_t* to, const Batch& x, int64_t n) {
    uint16_t whole[batch_lanes];
    store_f16(whole, x);
    copy_halves(to, whole, n);
}

}  // namespace attend::ATTEND_ISA
