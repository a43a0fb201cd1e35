// SPDX-License-Identifier: Apache-2.0
// Elementary functions on batches. Each states its range and its largest error as a constant, which the unit test
// reads. Coefficients are our own minimax fits (relative error, weighted least squares to convergence).
#pragma once

#include "attend/toolkit/simd/dot.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

// What a function keeps to: for low <= x <= high the result is at most max_ulp units in the last place from the exact
// one. A unit is that of the exact result's binade, 2^-149 where it is subnormal.
struct Contract {
    float low, high;
    double max_ulp;
};
constexpr float smallest_normal = 0x1p-126f;

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

// exp(x) for x <= 0, minus infinity included (exactly 0); NaN stays NaN. Below the contract's range, where results
// would be subnormal, they are from 0 to 2^-126. What softmax needs. The constants keep NaN: max(a, b) gives b where
// one is NaN.
constexpr Contract exp_nonpositive_contract{-87.33654f, 0.0f, 3.0};
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
// 2^t for t <= 0, minus infinity included (exactly 0); NaN stays NaN. Below the contract's range results are from 0 to
// 2^-126.
constexpr Contract exp2_nonpositive_contract{-126.0f, 0.0f, 3.5};
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
// The same with fewer bits, for results that lose more when they are rounded to bf16. 2^f for f in [0, 1) is a cubic
// that is exact at 0 and at 1, where one binade follows the other: so a t of nearly 0 gives nearly 1. Off by at most
// 1.04e-4.
#if defined(ATTEND_ISA_avx512)
constexpr Contract exp2_nonpositive_short_contract{-126.0f, 0.0f, 1700.0};
ATTEND_ALWAYS_INLINE Batch exp2_nonpositive_short(const Batch& t) {
    const Batch f(_mm512_maskz_reduce_ps(every_lane, t.data, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    Batch p = fma(Batch(0.07826796919107437f), f, Batch(0.2263076901435852f));
    p = fma(p, f, Batch(0.6954243183135986f));
    p = fma(p, f, Batch(1.0f));
    return Batch(_mm512_maskz_scalef_ps(every_lane, p.data, t.data));
}
#else
constexpr Contract exp2_nonpositive_short_contract = exp2_nonpositive_contract;
ATTEND_ALWAYS_INLINE Batch exp2_nonpositive_short(const Batch& t) { return exp2_nonpositive(t); }
#endif
#endif

// Softmax in base 2. A score s, still to be multiplied by `scale`, becomes the weight 2^(s c - b), c = scale log2(e),
// with b the largest s c of the row, rounded: one fused product replaces a subtraction and two products. The rounding
// of b is common to the row and cancels where weights are divided by their sum; the logarithm of the sum is
// b ln 2 + ln(sum). Without fused products s c - b would lose that, so baseline stays with base e and c = scale.
// Relative error of a weight: that of the exponential and 2^-24 |s c|.
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

// 2^x everywhere: subnormal results too, 0 below -150, infinity from 128 on, NaN stays NaN.
constexpr Contract exp2_contract{-infinity, infinity, 3.0};
ATTEND_ALWAYS_INLINE Batch exp2(const Batch& x) {
    const Batch bounded = min(Batch(129.0f), max(Batch(-151.0f), x));
    const Batch n = round_even(bounded);
    return scale_by_power(exp2_fraction(bounded - n), n);
}

// exp(x) everywhere: subnormal results too, 0 at minus infinity, infinity from 88.8 on, NaN stays NaN.
constexpr Contract exp_contract{-infinity, infinity, 3.0};
ATTEND_ALWAYS_INLINE Batch exp(const Batch& x) {
    const Batch bounded = min(Batch(89.0f), max(Batch(-104.0f), x));
    const Batch n = round_even(bounded * Batch(log2_e));
    return scale_by_power(exp2_fraction(exp2_rest(bounded, n)), n);
}

// tanh(x) everywhere, odd, NaN stays NaN.
constexpr Contract tanh_contract{-infinity, infinity, 2.0};
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

// Natural logarithm of x >= 0: minus infinity at 0, subnormal x too, infinity at infinity; NaN where x < 0 or NaN.
constexpr Contract log_contract{0.0f, infinity, 1.0};
ATTEND_ALWAYS_INLINE Batch log(const Batch& x) {
    const Mask tiny = x < Batch(smallest_normal);
    const Batch normal = choose(tiny, x * Batch(0x1p23f), x);
    // x = 2^k (1 + f) with 1 + f from sqrt(1/2) to sqrt(2): the bits are moved so that the exponent changes at sqrt(2).
    constexpr uint32_t root_half = 0x3F3504F3u, one = 0x3F800000u;
    const Pairs moved = sum(bits_of(normal), all_pairs(one - root_half));
    const Batch f = float_of(sum(both(moved, all_pairs(0x007FFFFFu)), all_pairs(root_half))) - Batch(1.0f);
    // An integer below 2^23 in the lowest bits of 2^23 is a float that much larger.
    const Batch exponent = float_of(either(shift_right<23>(moved), all_pairs(0x4B000000u))) - Batch(0x1p23f + 127.0f);
    const Batch k = exponent - choose(tiny, Batch(23.0f), Batch(0.0f));
    // log(1 + f) = f - f^2 / 2 + f^3 P(f), off by at most 6.4e-9. ln 2 in two parts, k times the first of them is
    // exact.
    Batch p = fma(Batch(-0.07634499669075012f), f, Batch(0.1276157796382904f));
    p = fma(p, f, Batch(-0.13160182535648346f));
    p = fma(p, f, Batch(0.14201757311820984f));
    p = fma(p, f, Batch(-0.16623356938362122f));
    p = fma(p, f, Batch(0.20001226663589478f));
    p = fma(p, f, Batch(-0.2500081956386566f));
    p = fma(p, f, Batch(0.3333333134651184f));
    const Batch square = f * f;
    const Batch low = fma(k, Batch(1.428606765330187e-6f), square * f * p);
    const Batch y = fma(k, Batch(0x1.62E4p-1f), fnma(square, Batch(0.5f), low) + f);
    const Batch ordinary = choose(x == Batch(infinity), x, y);
    return choose(x > Batch(0.0f), ordinary, choose(x == Batch(0.0f), Batch(-infinity), Batch(__builtin_nanf(""))));
}

}  // namespace attend::ATTEND_ISA
