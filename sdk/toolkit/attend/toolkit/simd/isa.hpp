// SPDX-License-Identifier: Apache-2.0
// The one file that includes xsimd. It maps the entry that a file is compiled for (ATTEND_ISA) to one explicit xsimd
// architecture, gives the batch type of that entry, and supplies what xsimd 8.1 lacks or does slowly.
//
// Before the include the namespace xsimd is renamed to xsimd_<entry>: the linker may keep any copy of an inline
// function, so a symbol must never be shared by two entries. Code goes on writing `xsimd::`.
//
// Kernels use the functions below, and of xsimd itself only what means the same in every version: arithmetic,
// comparison, select, load_unaligned, store_unaligned.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef ATTEND_ISA
#error "isa.hpp is for kernels: list the file under KERNELS of attend_add_plugin()"
#endif
#ifndef ATTEND_JOIN
#define ATTEND_JOIN_(a, b) a##_##b
#define ATTEND_JOIN(a, b) ATTEND_JOIN_(a, b)
#endif

#define xsimd ATTEND_JOIN(xsimd, ATTEND_ISA)
#include <xsimd/xsimd.hpp>

#if XSIMD_VERSION_MAJOR < 8
#error "xsimd 8.1 or later is needed"
#endif

#if defined(ATTEND_ISA_avx512)
#if !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "entry avx512 is compiled with -march=x86-64-v4"
#endif
#include <immintrin.h>
#define ATTEND_XSIMD_ARCH xsimd::avx512bw
#elif defined(ATTEND_ISA_avx2)
#if !defined(__AVX2__) || !defined(__FMA__)
#error "entry avx2 is compiled with -march=x86-64-v3"
#endif
#include <immintrin.h>
#define ATTEND_XSIMD_ARCH xsimd::fma3<xsimd::avx2>
#elif defined(ATTEND_ISA_baseline)
#if !defined(__SSE4_2__)
#error "entry baseline is compiled with -march=x86-64-v2"
#endif
#include <nmmintrin.h>
#define ATTEND_XSIMD_ARCH xsimd::sse4_2
#elif defined(ATTEND_ISA_neon)
#include <arm_neon.h>
#define ATTEND_XSIMD_ARCH xsimd::neon64
#else
#error "ATTEND_ISA must be baseline, avx2, avx512 or neon, and ATTEND_ISA_<entry> must be defined with it"
#endif

#define ATTEND_ALWAYS_INLINE inline __attribute__((always_inline))
// Loops over the registers of a tile must disappear completely, or the accumulators live in memory.
#if defined(__clang__)
#define ATTEND_UNROLL _Pragma("unroll")
#else
#define ATTEND_UNROLL _Pragma("GCC unroll 32")
#endif

namespace attend::ATTEND_ISA {

using Arch = ATTEND_XSIMD_ARCH;
using Batch = xsimd::batch<float, Arch>;
using Mask = xsimd::batch_bool<float, Arch>;

constexpr int batch_lanes = static_cast<int>(Batch::size);
constexpr float infinity = __builtin_inff();

// Vectors in the lane direction of a tile, and rows of the register tile below them: accumulators, one vector of
// lanes each and one broadcast must fit the registers (32 on AVX-512 and NEON, 16 elsewhere).
constexpr int max_vectors = 3;
#if defined(ATTEND_ISA_avx512) || defined(ATTEND_ISA_neon)
constexpr int tile_rows = 8;
#else
constexpr int tile_rows = 4;
#endif
constexpr int max_lanes = max_vectors * batch_lanes;

ATTEND_ALWAYS_INLINE Batch load(const float* from) { return Batch::load_unaligned(from); }
ATTEND_ALWAYS_INLINE void store(float* to, const Batch& x) { x.store_unaligned(to); }

// fma a*b + c, fms a*b - c, fnma c - a*b, each rounded once where the entry has the instruction.
// max(a, b) and min(a, b): b where either is NaN (x86), NaN where either is NaN (NEON); so a NaN in b always survives.
// round_even: to the nearest integer. power_of_two(n): 2^n for integers -127 <= n <= 128, where -127 gives 0 and 128
// infinity. mask_bits: bit l is lane l. transpose: batch_lanes x batch_lanes in place.
#if defined(ATTEND_ISA_avx512)
// Zero-masked forms with a full mask: the same instructions, but without the undefined operand that gcc 12 warns of.
constexpr __mmask16 every_lane = 0xFFFF;
ATTEND_ALWAYS_INLINE Batch fma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm512_fmadd_ps(a.data, b.data, c.data));
}
ATTEND_ALWAYS_INLINE Batch fms(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm512_fmsub_ps(a.data, b.data, c.data));
}
ATTEND_ALWAYS_INLINE Batch fnma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm512_fnmadd_ps(a.data, b.data, c.data));
}
ATTEND_ALWAYS_INLINE Batch max(const Batch& a, const Batch& b) {
    return Batch(_mm512_maskz_max_ps(every_lane, a.data, b.data));
}
ATTEND_ALWAYS_INLINE Batch min(const Batch& a, const Batch& b) {
    return Batch(_mm512_maskz_min_ps(every_lane, a.data, b.data));
}
ATTEND_ALWAYS_INLINE Batch round_even(const Batch& a) {
    return Batch(_mm512_maskz_roundscale_ps(every_lane, a.data, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ATTEND_ALWAYS_INLINE Batch scale_by_power(const Batch& x, const Batch& n) {
    return Batch(_mm512_maskz_scalef_ps(every_lane, x.data, n.data));
}
ATTEND_ALWAYS_INLINE uint32_t mask_bits(const Mask& mask) { return static_cast<uint32_t>(mask.data); }
ATTEND_ALWAYS_INLINE Mask mask_from_bits(uint32_t bits) { return Mask(static_cast<__mmask16>(bits)); }
// The first n < batch_lanes elements; the other lanes read as zero and are not touched in memory.
ATTEND_ALWAYS_INLINE Batch load_tail(const float* from, int64_t n) {
    return Batch(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from));
}
ATTEND_ALWAYS_INLINE void store_tail(float* to, const Batch& x, int64_t n) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1u), x.data);
}
// A vector of bytes to a mask of those that are not zero.
ATTEND_ALWAYS_INLINE Mask mask_from_bytes(const uint8_t* from) {
    return Mask(_mm_test_epi8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), _mm_set1_epi8(-1)));
}
#elif defined(ATTEND_ISA_avx2)
ATTEND_ALWAYS_INLINE Batch fma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm256_fmadd_ps(a.data, b.data, c.data));
}
ATTEND_ALWAYS_INLINE Batch fms(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm256_fmsub_ps(a.data, b.data, c.data));
}
ATTEND_ALWAYS_INLINE Batch fnma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm256_fnmadd_ps(a.data, b.data, c.data));
}
ATTEND_ALWAYS_INLINE Batch max(const Batch& a, const Batch& b) { return Batch(_mm256_max_ps(a.data, b.data)); }
ATTEND_ALWAYS_INLINE Batch min(const Batch& a, const Batch& b) { return Batch(_mm256_min_ps(a.data, b.data)); }
ATTEND_ALWAYS_INLINE Batch round_even(const Batch& a) {
    return Batch(_mm256_round_ps(a.data, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ATTEND_ALWAYS_INLINE Batch power_of_two(const Batch& n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.data), _mm256_set1_epi32(127));
    return Batch(_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
ATTEND_ALWAYS_INLINE uint32_t mask_bits(const Mask& mask) {
    return static_cast<uint32_t>(_mm256_movemask_ps(mask.data));
}
ATTEND_ALWAYS_INLINE __m256i tail_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ATTEND_ALWAYS_INLINE Mask mask_from_bits(uint32_t bits) {
    const __m256i select = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), select);
    return Mask(_mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, select)));
}
ATTEND_ALWAYS_INLINE Batch load_tail(const float* from, int64_t n) {
    return Batch(_mm256_maskload_ps(from, tail_lanes(n)));
}
ATTEND_ALWAYS_INLINE void store_tail(float* to, const Batch& x, int64_t n) {
    _mm256_maskstore_ps(to, tail_lanes(n), x.data);
}
ATTEND_ALWAYS_INLINE Mask mask_from_bytes(const uint8_t* from) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return Mask(_mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256())));
}
#elif defined(ATTEND_ISA_baseline)
ATTEND_ALWAYS_INLINE Batch fma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm_add_ps(_mm_mul_ps(a.data, b.data), c.data));
}
ATTEND_ALWAYS_INLINE Batch fms(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm_sub_ps(_mm_mul_ps(a.data, b.data), c.data));
}
ATTEND_ALWAYS_INLINE Batch fnma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(_mm_sub_ps(c.data, _mm_mul_ps(a.data, b.data)));
}
ATTEND_ALWAYS_INLINE Batch max(const Batch& a, const Batch& b) { return Batch(_mm_max_ps(a.data, b.data)); }
ATTEND_ALWAYS_INLINE Batch min(const Batch& a, const Batch& b) { return Batch(_mm_min_ps(a.data, b.data)); }
ATTEND_ALWAYS_INLINE Batch round_even(const Batch& a) {
    return Batch(_mm_round_ps(a.data, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ATTEND_ALWAYS_INLINE Batch power_of_two(const Batch& n) {
    return Batch(_mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(_mm_cvtps_epi32(n.data), _mm_set1_epi32(127)), 23)));
}
ATTEND_ALWAYS_INLINE uint32_t mask_bits(const Mask& mask) { return static_cast<uint32_t>(_mm_movemask_ps(mask.data)); }
ATTEND_ALWAYS_INLINE Mask mask_from_bits(uint32_t bits) {
    const __m128i select = _mm_setr_epi32(1, 2, 4, 8);
    const __m128i chosen = _mm_and_si128(_mm_set1_epi32(static_cast<int>(bits)), select);
    return Mask(_mm_castsi128_ps(_mm_cmpeq_epi32(chosen, select)));
}
ATTEND_ALWAYS_INLINE Mask mask_from_bytes(const uint8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return Mask(_mm_castsi128_ps(_mm_cmpgt_epi32(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)), _mm_setzero_si128())));
}
#elif defined(ATTEND_ISA_neon)
ATTEND_ALWAYS_INLINE Batch fma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(vfmaq_f32(c.data, a.data, b.data));
}
ATTEND_ALWAYS_INLINE Batch fms(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(vfmaq_f32(vnegq_f32(c.data), a.data, b.data));
}
ATTEND_ALWAYS_INLINE Batch fnma(const Batch& a, const Batch& b, const Batch& c) {
    return Batch(vfmsq_f32(c.data, a.data, b.data));
}
ATTEND_ALWAYS_INLINE Batch max(const Batch& a, const Batch& b) { return Batch(vmaxq_f32(a.data, b.data)); }
ATTEND_ALWAYS_INLINE Batch min(const Batch& a, const Batch& b) { return Batch(vminq_f32(a.data, b.data)); }
ATTEND_ALWAYS_INLINE Batch round_even(const Batch& a) { return Batch(vrndnq_f32(a.data)); }
ATTEND_ALWAYS_INLINE Batch power_of_two(const Batch& n) {
    return Batch(vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.data), vdupq_n_s32(127)), 23)));
}
ATTEND_ALWAYS_INLINE uint32_t mask_bits(const Mask& mask) {
    const uint32_t weights[4] = {1u, 2u, 4u, 8u};
    return vaddvq_u32(vandq_u32(mask.data, vld1q_u32(weights)));
}
ATTEND_ALWAYS_INLINE Mask mask_from_bits(uint32_t bits) {
    const uint32_t weights[4] = {1u, 2u, 4u, 8u};
    return Mask(vtstq_u32(vdupq_n_u32(bits), vld1q_u32(weights)));
}
ATTEND_ALWAYS_INLINE Mask mask_from_bytes(const uint8_t* from) {
    const uint32_t wide[4] = {from[0], from[1], from[2], from[3]};
    return Mask(vcgtq_u32(vld1q_u32(wide), vdupq_n_u32(0)));
}
#endif

#if !defined(ATTEND_ISA_avx512)
// x * 2^n for integers -252 <= n <= 254; the factor is cut in two, since one float cannot hold 2^128 or 2^-127. What
// falls below 2^-126 is rounded to the nearest subnormal as usual.
ATTEND_ALWAYS_INLINE Batch scale_by_power(const Batch& x, const Batch& n) {
    const Batch half = round_even(n * Batch(0.5f));
    return (x * power_of_two(half)) * power_of_two(n - half);
}
#endif
#if defined(ATTEND_ISA_baseline) || defined(ATTEND_ISA_neon)
ATTEND_ALWAYS_INLINE Batch load_tail(const float* from, int64_t n) {
    float whole[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t lane = 0; lane < n; ++lane) whole[lane] = from[lane];
    return load(whole);
}
ATTEND_ALWAYS_INLINE void store_tail(float* to, const Batch& x, int64_t n) {
    float whole[4];
    store(whole, x);
    for (int64_t lane = 0; lane < n; ++lane) to[lane] = whole[lane];
}
#endif

constexpr uint32_t all_lane_bits = static_cast<uint32_t>((uint64_t{1} << batch_lanes) - 1u);
ATTEND_ALWAYS_INLINE bool any_lane(const Mask& mask) { return mask_bits(mask) != 0; }
ATTEND_ALWAYS_INLINE bool all_lanes(const Mask& mask) { return mask_bits(mask) == all_lane_bits; }
ATTEND_ALWAYS_INLINE Batch choose(const Mask& mask, const Batch& yes, const Batch& no) {
    return xsimd::select(mask, yes, no);
}

// Horizontal sums and extremes: for the ends of rows, never inside a product. Lanes are taken in ascending order, so
// the result is the same as a loop over the stored lanes.
ATTEND_ALWAYS_INLINE float reduce_add(const Batch& x) {
    float lanes[batch_lanes];
    store(lanes, x);
    float sum = lanes[0];
    for (int lane = 1; lane < batch_lanes; ++lane) sum += lanes[lane];
    return sum;
}
ATTEND_ALWAYS_INLINE float reduce_max(const Batch& x) {
    float lanes[batch_lanes];
    store(lanes, x);
    float best = lanes[0];
    for (int lane = 1; lane < batch_lanes; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
    return best;
}
ATTEND_ALWAYS_INLINE float reduce_min(const Batch& x) {
    float lanes[batch_lanes];
    store(lanes, x);
    float best = lanes[0];
    for (int lane = 1; lane < batch_lanes; ++lane) best = lanes[lane] < best ? lanes[lane] : best;
    return best;
}

}  // namespace attend::ATTEND_ISA
