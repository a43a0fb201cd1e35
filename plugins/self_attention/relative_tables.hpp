// SPDX-License-Identifier: Apache-2.0
// Tables over distances for relative-position-attention: T5's buckets, and Transformer-XL's R = W rho of one head.
#pragma once

#include <math.h>

#include "attend/author/projected.hpp"

namespace attend::ATTEND_ISA {
namespace {

// Distances i' - j that a plan can meet.
struct DistanceRange {
    int64_t least, count;
    DistanceRange(const attend_plan_desc& desc) {
        int64_t first = desc.causal_offset, last = desc.causal_offset + desc.q_len - 1;
        if ((desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) != 0) {
            first = -desc.q_len;
            last = desc.kv_len + desc.q_len;
        }
        least = first - desc.kv_len + 1;
        count = last - least + 1;
        if (count < 0) count = 0;
    }
};

// Raffel et al. 2020: exact buckets for the first half, logarithmic ones behind; delta = j - i'.
inline int64_t t5_bucket(int64_t delta, int64_t num_buckets, int64_t max_distance, bool bidirectional) {
    const int64_t buckets = bidirectional ? num_buckets / 2 : num_buckets,
                  base = bidirectional && delta > 0 ? buckets : 0;
    const int64_t n = bidirectional ? (delta < 0 ? -delta : delta) : (delta < 0 ? -delta : 0), exact = buckets / 2;
    if (n < exact) return base + n;
    const double e = static_cast<double>(exact);
    const double place =
        ::floor(1e-9 + ::log(static_cast<double>(n) / e) / ::log(static_cast<double>(max_distance) / e) *
                           static_cast<double>(buckets - exact));
    const double bucket = e + place;
    return base + (bucket < static_cast<double>(buckets - 1) ? static_cast<int64_t>(bucket) : buckets - 1);
}

// Rows of rho(delta) = [sin(delta w_t)] [cos(delta w_t)], w_t = 10000^(-2t/E), made in portions: each begins with exact
// angles and goes on by rotations in double.
constexpr int64_t rho_rows = 512;
struct RhoState {
    double *sine, *cosine, *step_sine, *step_cosine;  // [E / 2] each
    static int64_t floats(int64_t width) { return 4 * width; }
    RhoState(float* memory, int64_t width) {
        double* at = reinterpret_cast<double*>(memory);
        const int64_t half = width / 2;
        sine = at, cosine = at + half, step_sine = at + 2 * half, step_cosine = at + 3 * half;
        for (int64_t t = 0; t < half; ++t) {
            const double w = frequency(t, width);
            step_sine[t] = ::sin(w);
            step_cosine[t] = ::cos(w);
        }
    }
    static double frequency(int64_t t, int64_t width) {
        return ::pow(10000.0, -2.0 * static_cast<double>(t) / static_cast<double>(width));
    }
    void fill(int64_t first, int64_t rows, int64_t width, float* to) {
        const int64_t half = width / 2;
        for (int64_t t = 0; t < half; ++t) {
            const double angle = static_cast<double>(first) * frequency(t, width);
            sine[t] = ::sin(angle);
            cosine[t] = ::cos(angle);
        }
        for (int64_t row = 0; row < rows; ++row) {
            float* const at = to + row * width;
            for (int64_t t = 0; t < half; ++t) {
                at[t] = static_cast<float>(sine[t]);
                at[half + t] = static_cast<float>(cosine[t]);
                const double s = sine[t], c = cosine[t];
                sine[t] = s * step_cosine[t] + c * step_sine[t];
                cosine[t] = c * step_cosine[t] - s * step_sine[t];
            }
        }
    }
};

// R [count][D] of one head into `to`.
inline attend_status fill_r(const attend_tensor& weight, int64_t head, const DistanceRange& range, RhoState& state,
                            float* rho, float* to, const Context& context) {
    const int64_t dim = weight.shape[1], width = weight.shape[2];
    attend_tensor layer = weight;
    layer.ndim = 2;
    layer.shape = weight.shape + 1;
    layer.strides = weight.strides + 1;
    layer.data = static_cast<float*>(weight.data) + head * weight.strides[0];
    for (int64_t row = 0; row < range.count; row += rho_rows) {
        const int64_t rows = range.count - row < rho_rows ? range.count - row : rho_rows;
        state.fill(range.least + row, rows, width, rho);
        const Rows input(rho, 1, rows, width), output(to + row * dim, 1, rows, dim);
        const attend_status status = project(&input.tensor, &layer, nullptr, &output.tensor, context);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

}  // namespace
}  // namespace attend::ATTEND_ISA
