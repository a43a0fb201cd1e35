// SPDX-License-Identifier: Apache-2.0
// Feature maps without random directions, on a tile of tokens: x[d][lane] becomes phi[f][lane].
#pragma once

#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

// max(0, x) with x in second place: NaN stays.
ATTEND_ALWAYS_INLINE Batch relu(const Batch& x) { return max(Batch(0.0f), x); }

// elu(x) + 1: positive everywhere, e^x below 0.
inline void map_elu(float* x, int64_t floats) {
    for (int64_t i = 0; i < floats; i += batch_lanes) {
        const Batch value = load(x + i);
        store(x + i, choose(value > Batch(0.0f), value + Batch(1.0f), exp_nonpositive(min(Batch(0.0f), value))));
    }
}

// relu(x) + offset.
inline void map_relu(float* x, int64_t floats, float factor, float offset) {
    for (int64_t i = 0; i < floats; i += batch_lanes)
        store(x + i, fma(relu(load(x + i)), Batch(factor), Batch(offset)));
}

// Products of r = [relu(x), relu(-x)] with itself rolled by 1 to nu: phi[(n - 1) 2D + t] = r[t] r[(t - n) mod 2D].
// x has room for 2D rows and holds r afterwards.
template <int V>
inline void map_dpfp(float* x, int64_t head_dim, int64_t nu, float* phi) {
    constexpr int64_t lanes = V * batch_lanes;
    const int64_t width = 2 * head_dim;
    for (int64_t i = 0; i < head_dim * lanes; i += batch_lanes) {
        const Batch value = load(x + i);
        store(x + head_dim * lanes + i, relu(Batch(0.0f) - value));
        store(x + i, relu(value));
    }
    for (int64_t n = 1; n <= nu; ++n)
        for (int64_t t = 0; t < width; ++t) {
            const float* a = x + t * lanes;
            const float* b = x + (t >= n ? t - n : t - n + width) * lanes;
            for (int v = 0; v < V; ++v)
                store(phi + v * batch_lanes, load(a + v * batch_lanes) * load(b + v * batch_lanes));
            phi += lanes;
        }
}

// Each token's features divided by their sum; all zero where the sum is.
template <int V>
inline void normalize_sum(float* phi, int64_t features) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        float* at = phi + v * batch_lanes;
        Batch sum(0.0f);
        for (int64_t f = 0; f < features; ++f) sum = sum + load(at + f * lanes);
        const Mask none = sum == Batch(0.0f);
        const Batch divisor = choose(none, Batch(1.0f), sum);
        for (int64_t f = 0; f < features; ++f)
            store(at + f * lanes, choose(none, Batch(0.0f), load(at + f * lanes) / divisor));
    }
}

}  // namespace attend::ATTEND_ISA
