// SPDX-License-Identifier: Apache-2.0
// Rows of length 1, in front of random features of a Gaussian kernel (map_trig of favor_plus.hpp) or an arc-cosine one.
#pragma once

#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

// x / max(|x|, 1e-6), or x / (|x| + 1e-3) where `adds` is set, in place. Squares are taken of x over its largest component,
// so that neither huge nor tiny rows leave the range.
template <int V>
inline void unit_rows(float* x, int64_t head_dim, bool adds) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        float* at = x + v * batch_lanes;
        Batch most(0.0f);
        for (int64_t d = 0; d < head_dim; ++d) most = max(most, xsimd::abs(load(at + d * lanes)));
        const Batch size = choose(most < Batch(1e-30f), Batch(1.0f), most);
        Batch sum(0.0f);
        for (int64_t d = 0; d < head_dim; ++d) {
            const Batch value = load(at + d * lanes) / size;
            store(at + d * lanes, value);
            sum = fma(value, value, sum);
        }
        float roots[batch_lanes];
        store(roots, sum);
        for (float& root : roots) root = __builtin_sqrtf(root);
        const Batch length = load(roots);
        const Batch divisor =
            adds ? length + Batch(1e-3f) / size : choose(length * size > Batch(1e-6f), length, Batch(1e-6f) / size);
        for (int64_t d = 0; d < head_dim; ++d) store(at + d * lanes, load(at + d * lanes) / divisor);
    }
}

}  // namespace attend::ATTEND_ISA
