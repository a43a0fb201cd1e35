// SPDX-License-Identifier: Apache-2.0
// Sine and cosine of a batch. Own minimax fits (relative error, weighted least squares to convergence); pi/2 is cut into
// parts so short that the product of the first three with a whole number below 2^13 is exact.
#pragma once

#include <math.h>

#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

constexpr double sincos_max_error = 0x1p-22;  // absolute, for every finite argument

struct SinCos {
    Batch sin, cos;
};

// Up to 12000; beyond, the whole numbers of quarter turns are too long.
ATTEND_ALWAYS_INLINE SinCos sincos_of_small(const Batch& x) {
    const Batch turns = round_even(x * Batch(0.63661977236758134f));
    Batch r = fnma(turns, Batch(1.5703125f), x);
    r = fnma(turns, Batch(0.0004837512969970703f), r);
    r = fnma(turns, Batch(7.5495336204767227e-8f), r);
    r = fnma(turns, Batch(2.5633440682570896e-12f), r);
    const Batch square = r * r;
    Batch p = fma(Batch(-0.00019514957966748625f), square, Batch(0.00833215843886137f));
    p = fma(p, square, Batch(-0.16666655242443085f));
    const Batch sine = fma(p * square, r, r);
    Batch q = fma(Batch(2.4432785721728578e-05f), square, Batch(-0.0013887312961742282f));
    q = fma(q, square, Batch(0.04166664555668831f));
    const Batch cosine = fma(q * square, square, fma(Batch(-0.5f), square, Batch(1.0f)));
    // turns mod 4 without integers: odd is 0, or +1 (turns mod 4 = 1), or -1 (3); half is not 0 where turns mod 4 = 2.
    const Batch halves = round_even(turns * Batch(0.5f));
    const Batch odd = turns - (halves + halves);
    const Batch pairs = round_even(turns * Batch(0.25f)) * Batch(4.0f);
    const Mask is_odd = odd != Batch(0.0f);
    const Mask is_half = xsimd::abs(turns - pairs) == Batch(2.0f);
    const Batch sign = choose(is_half, Batch(-1.0f), Batch(1.0f));
    return {choose(is_odd, odd * cosine, sign * sine), choose(is_odd, (Batch(0.0f) - odd) * sine, sign * cosine)};
}

ATTEND_ALWAYS_INLINE SinCos sincos(const Batch& x) {
    const SinCos small = sincos_of_small(x);
    const Mask is_large = xsimd::abs(x) > Batch(12000.0f);
    if (!any_lane(is_large)) return small;
    // In double, and only those lanes: a token must not change the roundings of its neighbours.
    float from[batch_lanes], sines[batch_lanes], cosines[batch_lanes];
    store(from, x);
    for (int lane = 0; lane < batch_lanes; ++lane) {
        sines[lane] = static_cast<float>(::sin(static_cast<double>(from[lane])));
        cosines[lane] = static_cast<float>(::cos(static_cast<double>(from[lane])));
    }
    return {choose(is_large, load(sines), small.sin), choose(is_large, load(cosines), small.cos)};
}

}  // namespace attend::ATTEND_ISA
