// SPDX-License-Identifier: Apache-2.0
// Elementary functions on batches. Each states its range and its largest relative error as a constant, which the unit
// test reads. Coefficients are our own minimax fits (relative error, weighted least squares to convergence).
#pragma once

#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

constexpr double exp_max_error = 0x1p-21;   // for results of at least 2^-126; smaller ones may be flushed to zero
constexpr double tanh_max_error = 0x1p-20;  // everywhere

constexpr float log2_e = 1.44269504088896340736f;

// 2^f for f in [-1/2, 1/2], exactly 1 at 0. The polynomial is off by at most 9.2e-8.
ATTEND_ALWAYS_INLINE Batch exp2_fraction(const Batch& f) {
    Batch p = fma(Batch(0.0013264732650479904f), f, Batch(0.009671512580173035f));
    p = fma(p, f, Batch(0.055507337270349975f));
    p = fma(p, f, Batch(0.24022242086530612f));
    p = fma(p, f, Batch(0.6931469776074106f));
    return fma(p, f, Batch(1.0f));
}

// x log2(e) - n for n near it, to full precision.
ATTEND_ALWAYS_INLINE Batch exp2_rest(const Batch& x, const Batch& n) {
#if defined(ATTEND_ISA_baseline)
    // Without a fused product the difference would cancel: subtract n ln 2 in two parts first, the first of them exact.
    return fnma(n, Batch(-2.12194440e-4f), fnma(n, Batch(0.693359375f), x)) * Batch(log2_e);
#else
    // The product in one rounding; the second term is what log2_e lost when it was rounded to float.
    return fma(x, Batch(1.9259629911e-8f), fms(x, Batch(log2_e), n));
#endif
}

// exp(x) for x <= 0, minus infinity included (exactly 0); NaN stays NaN. What softmax needs.
// The constants keep NaN: max(a, b) gives b where one is NaN.
ATTEND_ALWAYS_INLINE Batch exp_nonpositive(const Batch& x) {
    // Below -88.3 the exponent would leave the range of one factor; exp(-88.3) is flushed to zero there.
    const Batch bounded = max(Batch(-88.3f), x);
    const Batch n = round_even(bounded * Batch(log2_e));
    const Batch p = exp2_fraction(exp2_rest(bounded, n));
#if defined(ATTEND_ISA_avx512)
    // n = -127 would leave a subnormal: the mask makes the result equal on all entries.
    const __mmask16 normal = _mm512_cmp_ps_mask(n.data, _mm512_set1_ps(-127.0f), _CMP_NEQ_UQ);
    return Batch(_mm512_maskz_scalef_ps(normal, p.data, n.data));
#else
    return p * power_of_two(n);
#endif
}

// 2^x everywhere: 0 below -126.5 or so, infinity from 128 on, NaN stays NaN.
ATTEND_ALWAYS_INLINE Batch exp2(const Batch& x) {
    const Batch bounded = min(Batch(129.0f), max(Batch(-151.0f), x));
    const Batch n = round_even(bounded);
    return scale_by_power(exp2_fraction(bounded - n), n);
}

// exp(x) everywhere: 0 at minus infinity, infinity from 88.8 on, NaN stays NaN.
ATTEND_ALWAYS_INLINE Batch exp(const Batch& x) {
    const Batch bounded = min(Batch(89.0f), max(Batch(-104.0f), x));
    const Batch n = round_even(bounded * Batch(log2_e));
    return scale_by_power(exp2_fraction(exp2_rest(bounded, n)), n);
}

// tanh(x) everywhere, odd, NaN stays NaN.
ATTEND_ALWAYS_INLINE Batch tanh(const Batch& x) {
    const Batch size = xsimd::abs(x);
    // |x| < 0.625: x (1 + x^2 P(x^2)), where the quotient below would cancel.
    const Batch square = x * x;
    Batch p = fma(Batch(-0.005705036253108727f), square, Batch(0.02063913133629042f));
    p = fma(p, square, Batch(-0.053739728596642514f));
    p = fma(p, square, Batch(0.13331442361014445f));
    p = fma(p, square, Batch(-0.3333328194808034f));
    const Batch small = x * fma(p, square, Batch(1.0f));
    // Elsewhere 1 - 2 / (exp(2|x|) + 1), with the sign of x.
    const Batch large = Batch(1.0f) - Batch(2.0f) / (exp(size + size) + Batch(1.0f));
    const Batch with_sign = choose(x < Batch(0.0f), Batch(0.0f) - large, large);
    return choose(size < Batch(0.625f), small, with_sign);
}

}  // namespace attend::ATTEND_ISA
