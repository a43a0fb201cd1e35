// SPDX-License-Identifier: Apache-2.0
// Random features of the softmax kernel, on a tile of tokens: from u = Omega x and d = |x|^2 / 2 to phi[f][lane].
// Exponentials are taken relative to a number per lane, so that they never exceed 1.
#pragma once

#include "attend/toolkit/linear/features/sincos.hpp"
#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

// norm[lane] = |x|^2 / 2.
template <int V>
inline void half_square_norm(const float* x, int64_t head_dim, float* norm) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        Batch sum(0.0f);
        for (int64_t d = 0; d < head_dim; ++d) {
            const Batch value = load(x + d * lanes + v * batch_lanes);
            sum = fma(value, value, sum);
        }
        store(norm + v * batch_lanes, sum * Batch(0.5f));
    }
}

// largest[lane] = max over m of u, or of |u| where both signs become features.
template <int V>
inline void largest_direction(const float* u, int64_t directions, bool both_signs, float* largest) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        Batch best(-infinity);
        for (int64_t m = 0; m < directions; ++m) {
            const Batch value = load(u + m * lanes + v * batch_lanes);
            best = max(best, both_signs ? xsimd::abs(value) : value);
        }
        store(largest + v * batch_lanes, best);
    }
}

// phi = e^{u - shift} + eps, and behind it e^{-u - shift} + eps. `shift` is at least the largest of the exponents' first
// terms; roundings may leave a tiny positive exponent, which is cut.
template <int V>
inline void map_exponential(float* phi, int64_t directions, bool both_signs, const float* shift, float eps) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t m = 0; m < directions; ++m)
        for (int v = 0; v < V; ++v) {
            float* at = phi + m * lanes + v * batch_lanes;
            const Batch u = load(at), down = load(shift + v * batch_lanes);
            store(at, exp_nonpositive(min(Batch(0.0f), u - down)) + Batch(eps));
            if (both_signs)
                store(at + directions * lanes, exp_nonpositive(min(Batch(0.0f), Batch(0.0f) - u - down)) + Batch(eps));
        }
}

// phi = [cos u, sin u].
inline void map_trig(float* phi, int64_t floats) {
    for (int64_t i = 0; i < floats; i += batch_lanes) {
        const SinCos both = sincos(load(phi + i));
        store(phi + i, both.cos);
        store(phi + floats + i, both.sin);
    }
}

}  // namespace attend::ATTEND_ISA
