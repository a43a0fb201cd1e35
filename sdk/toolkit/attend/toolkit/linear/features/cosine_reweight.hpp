// SPDX-License-Identifier: Apache-2.0
// Features whose products carry the cosine of a distance: <[a sin s, a cos s], [b sin t, b cos t]> = <a, b> cos(s - t).
#pragma once

#include "attend/toolkit/linear/features/elementwise.hpp"

namespace attend::ATTEND_ISA {

// phi = [a sin, a cos] with a = relu(x), or elu(x) + 1; sines and cosines have one number per lane.
template <int V>
inline void map_cosine(const float* x, int64_t head_dim, bool elu, const float* sines, const float* cosines,
                       float* phi) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        const Batch sine = load(sines + v * batch_lanes), cosine = load(cosines + v * batch_lanes);
        for (int64_t d = 0; d < head_dim; ++d) {
            const Batch value = load(x + d * lanes + v * batch_lanes);
            const Batch a =
                elu ? choose(value > Batch(0.0f), value + Batch(1.0f), exp_nonpositive(min(Batch(0.0f), value)))
                    : relu(value);
            store(phi + d * lanes + v * batch_lanes, a * sine);
            store(phi + (head_dim + d) * lanes + v * batch_lanes, a * cosine);
        }
    }
}

}  // namespace attend::ATTEND_ISA
