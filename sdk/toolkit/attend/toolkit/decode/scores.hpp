// SPDX-License-Identifier: Apache-2.0
// Scores of a few query rows. Lanes run along the features: a vector of a key is loaded once and multiplied with the
// same features of all G query rows; sixteen partial sums are then folded into one vector of scores by a tree. Nothing
// is packed but the queries.
//
// What one lane takes in is said by the unit.
#pragma once

#include "attend/toolkit/decode/units.hpp"
#include "attend/toolkit/simd/transpose.hpp"

namespace attend::ATTEND_ISA::decode {

constexpr int64_t line_bytes = 64;

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

// Lane l of the result is the sum over the lanes of sums[l]. Always the same tree: halves, then quarters, then neighbours.
ATTEND_ALWAYS_INLINE Batch fold(const Batch (&sums)[size_t{batch_lanes}]) {
    Batch quads[4];  // element e stands for the sums e, e + 4, ...: first the 128-bit parts are folded
    ATTEND_UNROLL
    for (int e = 0; e < 4; ++e) {
#if defined(ATTEND_ISA_avx512)
        const Batch a = Batch(shuffle_parts<0x44>(sums[e].data, sums[e + 4].data)) +
                        Batch(shuffle_parts<0xEE>(sums[e].data, sums[e + 4].data));
        const Batch b = Batch(shuffle_parts<0x44>(sums[e + 8].data, sums[e + 12].data)) +
                        Batch(shuffle_parts<0xEE>(sums[e + 8].data, sums[e + 12].data));
        quads[e] = Batch(shuffle_parts<0x88>(a.data, b.data)) + Batch(shuffle_parts<0xDD>(a.data, b.data));
#elif defined(ATTEND_ISA_avx2)
        quads[e] = Batch(_mm256_permute2f128_ps(sums[e].data, sums[e + 4].data, 0x20)) +
                   Batch(_mm256_permute2f128_ps(sums[e].data, sums[e + 4].data, 0x31));
#else
        quads[e] = sums[e];
#endif
    }
    return fold_neighbours(fold_neighbours(quads[0], quads[1]), fold_neighbours(quads[2], quads[3]));
}

// Bytes fetched ahead of the row that is multiplied, into the first cache: fetching into the second alone lost a
// quarter, from the third cache and from memory.
constexpr int64_t ahead_bytes = 8192;

ATTEND_ALWAYS_INLINE void fetch(Bytes from, int64_t offset) {
    __builtin_prefetch(
        reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(offset)));
}
ATTEND_ALWAYS_INLINE Bytes moved(Bytes from, int64_t offset) {
    return reinterpret_cast<Bytes>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(offset));
}

// Vectors of a row of units; score_rows reads queries as [step][q][lane], with zeros behind the last feature and row.
constexpr int64_t packed_steps(int64_t units) { return (units + batch_lanes - 1) / batch_lanes; }

// Scores are written for whole groups of keys, at most this many more than asked for.
constexpr int64_t most_group_keys = 16;

// Sums of a group of keys: half of the registers.
#if defined(ATTEND_ISA_avx512) || defined(ATTEND_ISA_neon)
constexpr int score_sums = 16;
#else
constexpr int score_sums = 8;
#endif

// sums[n * G + q] = units of key n times those of query row q, lane by lane along the features.
template <int N, int G, class Unit>
ATTEND_ALWAYS_INLINE void sum_keys(Bytes key, const int64_t* offset, int64_t hop, const float* queries, int64_t bytes,
                                   int64_t ahead, Batch* sums) {
    constexpr int64_t step_bytes = batch_lanes * Unit::lane_bytes;
    // What is fetched ahead. Rows without gaps are fetched in the order of their addresses, not in that of their use:
    // only then do the prefetchers of the processor join in.
    Bytes next = moved(key + offset[0], ahead);
    const int64_t next_step = hop == step_bytes ? N * step_bytes : step_bytes;
    Bytes rows[size_t{N}];
    Batch sum[size_t{N * G}];
    ATTEND_UNROLL
    for (int n = 0; n < N; ++n) {
        rows[n] = key + offset[n];
        ATTEND_UNROLL
        for (int q = 0; q < G; ++q) sum[n * G + q] = Batch(0.0f);
    }
    for (; bytes >= step_bytes; bytes -= step_bytes, queries += G * batch_lanes) {
        Batch x[size_t{N}];
        ATTEND_UNROLL
        for (int n = 0; n < N; ++n) {
            x[n] = Unit::load(rows[n]);
            // In the order of addresses a vector may be less than a line.
            if (step_bytes >= line_bytes || n * step_bytes % line_bytes == 0 || hop != step_bytes) fetch(next, n * hop);
            rows[n] += step_bytes;
        }
        next = moved(next, next_step);
        ATTEND_UNROLL
        for (int q = 0; q < G; ++q) {
            const Batch y = load(queries + q * batch_lanes);
            ATTEND_UNROLL
            for (int n = 0; n < N; ++n) sum[n * G + q] = Unit::dot(x[n], y, sum[n * G + q]);
        }
    }
    if (bytes > 0) {
        ATTEND_UNROLL
        for (int n = 0; n < N; ++n) {
            const Batch x = Unit::load_some(rows[n], bytes);
            ATTEND_UNROLL
            for (int q = 0; q < G; ++q) sum[n * G + q] = Unit::dot(x, load(queries + q * batch_lanes), sum[n * G + q]);
        }
    }
    ATTEND_UNROLL
    for (int at = 0; at < N * G; ++at) sums[at] = sum[at];
}

// scores[key][q] = scale * q . key for `keys` rows of `bytes` bytes each; the last row is repeated to fill a group. What
// lies `ahead` bytes behind is fetched.
// A group of keys times G query rows is summed in lanes along the features, then whole vectors of sums are folded.
template <int G, class Unit>
ATTEND_ALWAYS_INLINE void score_rows_inline(Bytes key, int64_t stride, int64_t keys, const float* queries,
                                            int64_t bytes, float scale, float* scores, int64_t ahead) {
    constexpr int group = score_sums / G, pass = group < 8 ? group : 8;
    const Batch factor(scale);
    // From one row that is fetched to the next, or from one vector to the next.
    const int64_t hop = stride == bytes ? batch_lanes * Unit::lane_bytes : stride;
    int64_t offset[size_t{group}];
    for (int n = 0; n < group; ++n) offset[n] = n * stride;
    for (int64_t first = 0; first < keys; first += group, key += group * stride) {
        if (first + group > keys)
            for (int n = 0; n < group; ++n) offset[n] = (first + n < keys ? n : keys - 1 - first) * stride;
        Batch sums[size_t{score_sums}];
        ATTEND_UNROLL
        for (int part = 0; part < group / pass; ++part)
            sum_keys<pass, G, Unit>(key, offset + part * pass, hop, queries, bytes, ahead, sums + part * pass * G);
        ATTEND_UNROLL
        for (int part = 0; part < score_sums / batch_lanes; ++part) {
            Batch some[size_t{batch_lanes}];
            ATTEND_UNROLL
            for (int at = 0; at < batch_lanes; ++at) some[at] = sums[part * batch_lanes + at];
            store(scores + first * G + part * batch_lanes, fold(some) * factor);
        }
    }
}

template <int G, class Unit>
__attribute__((noinline)) inline void score_rows(Unit, Bytes key, int64_t stride, int64_t keys, const float* queries,
                                                 int64_t bytes, float scale, float* scores, int64_t ahead) {
    score_rows_inline<G, Unit>(key, stride, keys, queries, bytes, scale, scores, ahead);
}
#if ATTEND_HAS_DOTS
template <int G>
__attribute__((noinline)) ATTEND_DOT_TARGET inline void score_rows(PairUnit, Bytes key, int64_t stride, int64_t keys,
                                                                   const float* queries, int64_t bytes, float scale,
                                                                   float* scores, int64_t ahead) {
    score_rows_inline<G, PairUnit>(key, stride, keys, queries, bytes, scale, scores, ahead);
}
#endif

}  // namespace attend::ATTEND_ISA::decode
