// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of channels turn by position * base^(-2t/dim).
// Angles, sines and cosines are evaluated in double and rounded once: a float angle is off by 4e-3 at position 65536.
#pragma once

#include <math.h>

#include <cstdint>

namespace attend::ATTEND_ISA {

enum class RotaryLayout : int { half, interleaved };

// cosines and sines of one position: dim / 2 of each.
inline void rotary_angles(double position, int64_t dim, double base, float* cosines, float* sines) {
    for (int64_t t = 0; t < dim / 2; ++t) {
        const double angle = position * ::pow(base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
        cosines[t] = static_cast<float>(::cos(angle));
        sines[t] = static_cast<float>(::sin(angle));
    }
}

// Rotates the first dim channels of a contiguous row in place; half: pairs (t, t + dim/2), interleaved: (2t, 2t + 1).
inline void rotate(float* row, int64_t dim, RotaryLayout layout, const float* cosines, const float* sines) {
    const int64_t pairs = dim / 2;
    if (layout == RotaryLayout::half) {
        float *first = row, *second = row + pairs;
        for (int64_t t = 0; t < pairs; ++t) {
            const float a = first[t], b = second[t];
            first[t] = a * cosines[t] - b * sines[t];
            second[t] = b * cosines[t] + a * sines[t];
        }
        return;
    }
    for (int64_t t = 0; t < pairs; ++t) {
        const float a = row[2 * t], b = row[2 * t + 1];
        row[2 * t] = a * cosines[t] - b * sines[t];
        row[2 * t + 1] = b * cosines[t] + a * sines[t];
    }
}

}  // namespace attend::ATTEND_ISA
