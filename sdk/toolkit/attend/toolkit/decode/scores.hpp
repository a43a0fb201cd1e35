// SPDX-License-Identifier: Apache-2.0
// Scores of a few query rows. G query rows share the lanes of a vector, each with U = lanes / G of them along the
// feature axis; a step multiplies U features of a key, repeated G times by the load, with U features of every row.
// Partial sums of U keys are then folded into one vector. Nothing is packed but the queries, and a key is loaded once
// for all of its rows.
//
// A unit is what one lane takes in: a float, or a pair of bfloat16.
#pragma once

#include "attend/toolkit/decode/elements.hpp"
#include "attend/toolkit/simd/transpose.hpp"

namespace attend::ATTEND_ISA::decode {

using Bytes = const unsigned char*;

constexpr int64_t unit_bytes = 4;
constexpr int64_t line_bytes = 64;

struct FloatUnit {
    static constexpr bool paired = false;
    ATTEND_ALWAYS_INLINE static Batch dot(const Batch& a, const Batch& b, const Batch& sum) { return fma(a, b, sum); }
};

// Reached only where the processor has the instruction.
#if ATTEND_HAS_DOTS
struct PairUnit {
    static constexpr bool paired = true;
    ATTEND_ALWAYS_INLINE static Batch dot(const Batch& a, const Batch& b, const Batch& sum) {
        return ATTEND_ISA::dot<Dots::hardware>(sum, bits_of(a), bits_of(b));
    }
};
#endif

// Units 0 .. U-1 at `from`, G times over. Any alignment.
template <int G>
ATTEND_ALWAYS_INLINE Batch load_repeated(Bytes from) {
    if constexpr (G == 1) {
        return load(reinterpret_cast<const float*>(from));
    } else if constexpr (G == batch_lanes) {
        float x;
        __builtin_memcpy(&x, from, sizeof x);
        return Batch(x);
    } else {
#if defined(ATTEND_ISA_avx512)
        if constexpr (G == 2)
            return Batch(
                _mm512_maskz_broadcast_f32x8(every_lane, _mm256_loadu_ps(reinterpret_cast<const float*>(from))));
        else if constexpr (G == 4)
            return Batch(_mm512_maskz_broadcast_f32x4(every_lane, _mm_loadu_ps(reinterpret_cast<const float*>(from))));
        else {
            double pair;
            __builtin_memcpy(&pair, from, sizeof pair);
            return Batch(_mm512_castpd_ps(_mm512_set1_pd(pair)));
        }
#elif defined(ATTEND_ISA_avx2)
        if constexpr (G == 2) {
            const __m128 half = _mm_loadu_ps(reinterpret_cast<const float*>(from));
            return Batch(_mm256_set_m128(half, half));
        } else {
            double pair;
            __builtin_memcpy(&pair, from, sizeof pair);
            return Batch(_mm256_castpd_ps(_mm256_set1_pd(pair)));
        }
#elif defined(ATTEND_ISA_baseline)
        double pair;
        __builtin_memcpy(&pair, from, sizeof pair);
        return Batch(_mm_castpd_ps(_mm_set1_pd(pair)));
#else
        double pair;
        __builtin_memcpy(&pair, from, sizeof pair);
        return Batch(vreinterpretq_f32_f64(vdupq_n_f64(pair)));
#endif
    }
}

// Sums of neighbouring lanes: within every 128 bits (a0+a1, a2+a3, b0+b1, b2+b3).
ATTEND_ALWAYS_INLINE Batch fold_neighbours(const Batch& a, const Batch& b) {
#if defined(ATTEND_ISA_avx512)
    return Batch(_mm512_maskz_shuffle_ps(every_lane, a.data, b.data, 0x88)) +
           Batch(_mm512_maskz_shuffle_ps(every_lane, a.data, b.data, 0xDD));
#elif defined(ATTEND_ISA_avx2)
    return Batch(_mm256_shuffle_ps(a.data, b.data, 0x88)) + Batch(_mm256_shuffle_ps(a.data, b.data, 0xDD));
#elif defined(ATTEND_ISA_baseline)
    return Batch(_mm_shuffle_ps(a.data, b.data, 0x88)) + Batch(_mm_shuffle_ps(a.data, b.data, 0xDD));
#else
    return Batch(vuzp1q_f32(a.data, b.data)) + Batch(vuzp2q_f32(a.data, b.data));
#endif
}

// sums[key] lane q * U + u, for U keys, to lane key * G + q: the sum over u. Always the same tree.
template <int G>
ATTEND_ALWAYS_INLINE Batch fold(const Batch (&sums)[size_t{batch_lanes / G}]) {
    constexpr int U = batch_lanes / G;
    if constexpr (U == 1) {
        return sums[0];
    } else if constexpr (U == 2) {
        const Batch folded = fold_neighbours(sums[0], sums[1]);  // in each 128 bits: [key][q of two]
#if defined(ATTEND_ISA_avx512)
        const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        return Batch(_mm512_maskz_permutexvar_ps(every_lane, order, folded.data));
#elif defined(ATTEND_ISA_avx2)
        return Batch(_mm256_permutevar8x32_ps(folded.data, _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7)));
#else
        return folded;
#endif
    } else {
        // Four vectors, element e of which stands for the keys e, e + 4, ...: first the 128-bit parts are folded.
        Batch quads[4];
        ATTEND_UNROLL
        for (int e = 0; e < 4; ++e) {
#if defined(ATTEND_ISA_avx512)
            if constexpr (U == 16) {
                const Batch a = Batch(shuffle_parts<0x44>(sums[e].data, sums[e + 4].data)) +
                                Batch(shuffle_parts<0xEE>(sums[e].data, sums[e + 4].data));
                const Batch b = Batch(shuffle_parts<0x44>(sums[e + 8].data, sums[e + 12].data)) +
                                Batch(shuffle_parts<0xEE>(sums[e + 8].data, sums[e + 12].data));
                quads[e] =
                    Batch(shuffle_parts<0x88>(a.data, b.data)) + Batch(shuffle_parts<0xDD>(a.data, b.data));
            } else if constexpr (U == 8) {
                quads[e] = Batch(shuffle_parts<0x88>(sums[e].data, sums[e + 4].data)) +
                           Batch(shuffle_parts<0xDD>(sums[e].data, sums[e + 4].data));
            } else {
                quads[e] = sums[e];
            }
#elif defined(ATTEND_ISA_avx2)
            if constexpr (U == 8)
                quads[e] = Batch(_mm256_permute2f128_ps(sums[e].data, sums[e + 4].data, 0x20)) +
                           Batch(_mm256_permute2f128_ps(sums[e].data, sums[e + 4].data, 0x31));
            else
                quads[e] = sums[e];
#else
            quads[e] = sums[e];
#endif
        }
        const Batch folded =
            fold_neighbours(fold_neighbours(quads[0], quads[1]), fold_neighbours(quads[2], quads[3]));
#if defined(ATTEND_ISA_avx512)
        if constexpr (U == 8) {  // from [key / 4][q][key % 4]
            const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
            return Batch(_mm512_maskz_permutexvar_ps(every_lane, order, folded.data));
        } else if constexpr (U == 4) {  // from [q][key]
            const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            return Batch(_mm512_maskz_permutexvar_ps(every_lane, order, folded.data));
        }
#elif defined(ATTEND_ISA_avx2)
        if constexpr (U == 4)
            return Batch(_mm256_permutevar8x32_ps(folded.data, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#endif
        return folded;
    }
}

// Bytes fetched ahead of the row that is multiplied. Further than the prefetchers of the processor go across pages.
constexpr int64_t ahead_bytes = 8192;

ATTEND_ALWAYS_INLINE void fetch(Bytes from, int64_t offset) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(offset)));
}

// Rows of queries as score_rows reads them: [step][q][u], zeros behind the last feature and the last row.
constexpr int64_t packed_steps(int64_t units, int G) { return (units + batch_lanes / G - 1) / (batch_lanes / G); }

// Keys that score_rows takes at a time; scores are written for a multiple of it.
template <int G>
constexpr int key_step = batch_lanes / G > 8 ? batch_lanes / G : 8;

// scores[key][q] = scale * q . key for `keys` rows of `bytes` bytes each; the last row is repeated up to key_step.
template <int G, class Unit>
ATTEND_ALWAYS_INLINE void score_rows_inline(Bytes key, int64_t stride, int64_t keys, const float* queries,
                                                 int64_t bytes, float scale, float* scores) {
    constexpr int U = batch_lanes / G, N = key_step<G>;
    constexpr int64_t step_bytes = U * unit_bytes;
    const Batch factor(scale);
    const int64_t whole = bytes / step_bytes, rest = bytes % step_bytes;
    const int64_t ahead = stride == bytes ? ahead_bytes : (ahead_bytes / bytes + 1) * stride;
    for (int64_t first = 0; first < keys; first += N) {
        Bytes rows[size_t{N}];
        ATTEND_UNROLL
        for (int n = 0; n < N; ++n) rows[n] = key + (first + n < keys ? first + n : keys - 1) * stride;
        Batch sums[size_t{N}];
        ATTEND_UNROLL
        for (int n = 0; n < N; ++n) sums[n] = Batch(0.0f);
        const float* query = queries;
        int64_t at = 0;
        for (; at + line_bytes <= bytes; at += line_bytes) {
            ATTEND_UNROLL
            for (int n = 0; n < N; ++n) fetch(rows[n], at + ahead);
            ATTEND_UNROLL
            for (int step = 0; step < line_bytes / step_bytes; ++step) {
                const Batch x = load(query);
                query += batch_lanes;
                ATTEND_UNROLL
                for (int n = 0; n < N; ++n)
                    sums[n] = Unit::dot(load_repeated<G>(rows[n] + at + step * step_bytes), x, sums[n]);
            }
        }
        for (; at < whole * step_bytes; at += step_bytes) {
            const Batch x = load(query);
            query += batch_lanes;
            ATTEND_UNROLL
            for (int n = 0; n < N; ++n) sums[n] = Unit::dot(load_repeated<G>(rows[n] + at), x, sums[n]);
        }
        if (rest != 0) {
            const Batch x = load(query);
            ATTEND_UNROLL
            for (int n = 0; n < N; ++n) {
                unsigned char end[size_t{batch_lanes} * 4] = {};
                for (int64_t byte = 0; byte < rest; byte += 2) __builtin_memcpy(end + byte, rows[n] + at + byte, 2);
                sums[n] = Unit::dot(load_repeated<G>(end), x, sums[n]);
            }
        }
        ATTEND_UNROLL
        for (int part = 0; part < N / U; ++part) {
            Batch some[size_t{U}];
            ATTEND_UNROLL
            for (int n = 0; n < U; ++n) some[n] = sums[part * U + n];
            store(scores + first * G + part * batch_lanes, fold<G>(some) * factor);
        }
    }
}

template <int G>
__attribute__((noinline)) inline void score_rows(FloatUnit, Bytes key, int64_t stride, int64_t keys,
                                                 const float* queries, int64_t bytes, float scale, float* scores) {
    score_rows_inline<G, FloatUnit>(key, stride, keys, queries, bytes, scale, scores);
}
#if ATTEND_HAS_DOTS
template <int G>
__attribute__((noinline)) ATTEND_DOT_TARGET inline void score_rows(PairUnit, Bytes key, int64_t stride, int64_t keys,
                                                                   const float* queries, int64_t bytes, float scale,
                                                                   float* scores) {
    score_rows_inline<G, PairUnit>(key, stride, keys, queries, bytes, scale, scores);
}
#endif

}  // namespace attend::ATTEND_ISA::decode
