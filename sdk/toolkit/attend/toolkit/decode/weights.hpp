// SPDX-License-Identifier: Apache-2.0
// Softmax of a few query rows over a block of keys. Scores lie as [key][q], G rows beside each other, so that a vector
// holds some keys of all of its rows and every lane works. The state of a row is kept in each of its lanes: the maximum
// is the same in all of them, the sum is divided among them until the end.
#pragma once

#include "attend/toolkit/decode/scores.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA::decode {

// To every lane the largest among the lanes of its row (lane modulo G).
template <int G>
ATTEND_ALWAYS_INLINE Batch spread_max(Batch x) {
    if constexpr (G == batch_lanes) return x;
#if defined(ATTEND_ISA_avx512)
    if constexpr (G <= 8) x = max(x, Batch(shuffle_parts<0x4E>(x.data, x.data)));
    if constexpr (G <= 4) x = max(x, Batch(shuffle_parts<0xB1>(x.data, x.data)));
    if constexpr (G <= 2) x = max(x, Batch(_mm512_maskz_permute_ps(every_lane, x.data, 0x4E)));
    if constexpr (G == 1) x = max(x, Batch(_mm512_maskz_permute_ps(every_lane, x.data, 0xB1)));
#elif defined(ATTEND_ISA_avx2)
    if constexpr (G <= 4) x = max(x, Batch(_mm256_permute2f128_ps(x.data, x.data, 0x01)));
    if constexpr (G <= 2) x = max(x, Batch(_mm256_permute_ps(x.data, 0x4E)));
    if constexpr (G == 1) x = max(x, Batch(_mm256_permute_ps(x.data, 0xB1)));
#elif defined(ATTEND_ISA_baseline)
    if constexpr (G <= 2) x = max(x, Batch(_mm_shuffle_ps(x.data, x.data, 0x4E)));
    if constexpr (G == 1) x = max(x, Batch(_mm_shuffle_ps(x.data, x.data, 0xB1)));
#else
    if constexpr (G <= 2) x = max(x, Batch(vextq_f32(x.data, x.data, 2)));
    if constexpr (G == 1) x = max(x, Batch(vrev64q_f32(x.data)));
#endif
    return x;
}

// Lane q of the result is the sum over the lanes of row q, in ascending order.
template <int G>
ATTEND_ALWAYS_INLINE void sum_lanes(const float* lanes, float* sums) {
    for (int q = 0; q < G; ++q) {
        sums[q] = lanes[q];
        for (int lane = q + G; lane < batch_lanes; lane += G) sums[q] += lanes[lane];
    }
}

struct SoftmaxState {
    float *row_max, *row_sum, *factor;  // batch_lanes each
};

ATTEND_ALWAYS_INLINE void start_softmax(const SoftmaxState& state) {
    store(state.row_max, Batch(-infinity));
    store(state.row_sum, Batch(0.0f));
}

// exp of a difference to the largest score, in base 2 where the entry is faster there; precise: to float32, otherwise
// for weights that become bf16.
template <bool precise>
ATTEND_ALWAYS_INLINE Batch exp_difference(const Batch& x) {
    const Batch t = x * Batch(softmax_factor(1.0f));
    if constexpr (precise) return softmax_exp(t);
    return softmax_exp_short(t);
}

// Turns `count` scores, a multiple of two vectors, into weights relative to the new maximum; factor is what older sums
// are multiplied by. Meanwhile the memory behind `next`, which is read thereafter, is fetched.
template <int G, bool precise>
__attribute__((noinline)) inline void update_softmax(float* scores, int64_t count, const SoftmaxState& state,
                                                     Bytes next) {
    const Batch before = load(state.row_max);
    Batch best = before, other = before;
    for (int64_t at = 0; at < count; at += 2 * batch_lanes) {
        fetch(next, 0);
        fetch(next, line_bytes);
        next += 2 * line_bytes;
        best = max(best, load(scores + at));
        other = max(other, load(scores + at + batch_lanes));
    }
    best = spread_max<G>(max(best, other));
    const Batch base = choose(best == Batch(-infinity), Batch(0.0f), best);
    const Batch factor = exp_difference<true>(before - base);
    Batch sum(0.0f), second(0.0f);
    for (int64_t at = 0; at < count; at += 2 * batch_lanes) {
        fetch(next, 0);
        fetch(next, line_bytes);
        next += 2 * line_bytes;
        const Batch a = exp_difference<precise>(load(scores + at) - base);
        const Batch b = exp_difference<precise>(load(scores + at + batch_lanes) - base);
        store(scores + at, a);
        store(scores + at + batch_lanes, b);
        sum = sum + a;
        second = second + b;
    }
    store(state.row_max, best);
    store(state.factor, factor);
    store(state.row_sum, fma(load(state.row_sum), factor, sum + second));
}

#if ATTEND_HAS_DOTS
// Weights [key][G], count of them, to bfloat16 words [key pair][G]: the earlier key in the lower half.
template <int G>
__attribute__((noinline)) ATTEND_DOT_TARGET inline void pair_weights(const float* weights, int64_t count,
                                                                     float* pairs) {
    uint16_t order[32];
    for (int to = 0; to < 32; ++to) {
        const int word = to / 2;
        order[to] = static_cast<uint16_t>((word / G * 2 + to % 2) * G + word % G);
    }
    const __m512i index = _mm512_loadu_si512(order);
    for (int64_t at = 0; at < count; at += 2 * batch_lanes) {
        const Batch low = load(weights + at), high = load(weights + at + batch_lanes);
        __m512i halves;
        __asm__("vcvtne2ps2bf16 %2, %1, %0" : "=v"(halves) : "v"(high.data), "v"(low.data));
        _mm512_storeu_si512(pairs + at / 2, _mm512_maskz_permutexvar_epi16(0xFFFFFFFFu, index, halves));
    }
}
#endif

}  // namespace attend::ATTEND_ISA::decode
