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

#if !defined(ATTEND_ISA_baseline)
// 2^t for t <= 0, minus infinity included (exactly 0); results below 2^-126 may be flushed to zero; NaN stays NaN.
ATTEND_ALWAYS_INLINE Batch exp2_nonpositive(const Batch& t) {
#if defined(ATTEND_ISA_avx512)
    // t - floor(t), 0 for an infinite t; the last instruction scales by 2^floor(t) by itself.
    const Batch f(_mm512_maskz_reduce_ps(every_lane, t.data, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    // 2^f for f in [0, 1), exactly 1 at 0; off by at most 8.3e-8.
    Batch p = fma(Batch(0.0018671301659196615f), f, Batch(0.009017029777169228f));
    p = fma(p, f, Batch(0.05579991266131401f));
    p = fma(p, f, Batch(0.24016444385051727f));
    p = fma(p, f, Batch(0.6931512951850891f));
    p = fma(p, f, Batch(1.0f));
    return Batch(_mm512_maskz_scalef_ps(every_lane, p.data, t.data));
#else
    const Batch bounded = max(Batch(-127.0f), t);
    const Batch n = round_even(bounded);
    return exp2_fraction(bounded - n) * power_of_two(n);
#endif
}
// The same to a relative error of short_exp_max_error, for results that lose more when they are rounded.
constexpr double short_exp_max_error = 0x1p-18;
ATTEND_ALWAYS_INLINE Batch exp2_nonpositive_short(const Batch& t) {
#if defined(ATTEND_ISA_avx512)
    const Batch f(_mm512_maskz_reduce_ps(every_lane, t.data, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    Batch p = fma(Batch(0.0770670548081398f), f, Batch(0.22764497995376587f));
    p = fma(p, f, Batch(0.6951168179512024f));
    p = fma(p, f, Batch(1.0f));
    return Batch(_mm512_maskz_scalef_ps(every_lane, p.data, t.data));
#else
    return exp2_nonpositive(t);
#endif
}
#endif

// Softmax in base 2. A score s, still to be multiplied by `scale`, becomes the weight 2^(s c - b), c = scale log2(e),
// with b the largest s c of the row, rounded: one fused product replaces a subtraction and two products. The rounding
// of b is common to the row and cancels where weights are divided by their sum; the logarithm of the sum is
// b ln 2 + ln(sum). Without fused products s c - b would lose that, so baseline stays with base e and c = scale.
// Relative error of a weight: exp_max_error + 2^-24 |s c|.
#if defined(ATTEND_ISA_baseline)
constexpr double softmax_unit = 1.0;  // natural logarithm of the base
ATTEND_ALWAYS_INLINE Batch softmax_exp(const Batch& t) { return exp_nonpositive(t); }
ATTEND_ALWAYS_INLINE Batch softmax_exp_short(const Batch& t) { return exp_nonpositive(t); }
ATTEND_ALWAYS_INLINE Batch softmax_exponent(const Batch& score, const Batch& c, const Batch& base) {
    return score * c - base;
}
#else
constexpr double softmax_unit = 0.69314718055994530942;
ATTEND_ALWAYS_INLINE Batch softmax_exp(const Batch& t) { return exp2_nonpositive(t); }
ATTEND_ALWAYS_INLINE Batch softmax_exp_short(const Batch& t) { return exp2_nonpositive_short(t); }
ATTEND_ALWAYS_INLINE Batch softmax_exponent(const Batch& score, const Batch& c, const Batch& base) {
    return fms(score, c, base);
}
#endif
ATTEND_ALWAYS_INLINE float softmax_factor(float scale) {
    return static_cast<float>(static_cast<double>(scale) / softmax_unit);
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
