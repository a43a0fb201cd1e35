// SPDX-License-Identifier: Apache-2.0
// LayerNorm of rows: (x - mean) / sqrt(variance + eps) * gamma + beta, the variance biased. Sums and the normalised
// number are double, the result is rounded once before gamma and beta.
#pragma once

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

constexpr double layer_norm_eps = 1e-5;

struct NormRun {
    TensorView<const float, 3> from;
    TensorView<float, 3> to;
    TensorView<const float, 1> gamma, beta;
    double eps;

    // Eight sums, whatever the vector width: the same bits on every instruction set.
    __attribute__((noinline)) static double sum(const float* x, int64_t step, int64_t count) {
        double part[8] = {};
        int64_t at = 0;
        if (step == 1) {
            for (; at + 8 <= count; at += 8) {
                ATTEND_UNROLL
                for (int lane = 0; lane < 8; ++lane) part[lane] += static_cast<double>(x[at + lane]);
            }
        }
        for (; at < count; ++at) part[at % 8] += static_cast<double>(x[at * step]);
        return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
    }
    __attribute__((noinline)) static double squares(const float* x, int64_t step, int64_t count, double mean) {
        double part[8] = {};
        int64_t at = 0;
        if (step == 1) {
            for (; at + 8 <= count; at += 8) {
                ATTEND_UNROLL
                for (int lane = 0; lane < 8; ++lane) {
                    const double d = static_cast<double>(x[at + lane]) - mean;
                    part[lane] += d * d;
                }
            }
        }
        for (; at < count; ++at) {
            const double d = static_cast<double>(x[at * step]) - mean;
            part[at % 8] += d * d;
        }
        return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
    }

    void row(int64_t item, int64_t index) const {
        const int64_t count = from.shape[2];
        const float* x = from.at(item, index);
        float* y = to.at(item, index);
        const double width = static_cast<double>(count);
        const double mean = sum(x, from.strides[2], count) / width;
        const double factor = 1.0 / __builtin_sqrt(squares(x, from.strides[2], count, mean) / width + eps);
        const bool plain = from.strides[2] == 1 && to.strides[2] == 1 && gamma.strides[0] == 1 && beta.strides[0] == 1;
        if (plain) {
            const float *g = gamma.data, *b = beta.data;
            for (int64_t c = 0; c < count; ++c)
                y[c] = static_cast<float>((static_cast<double>(x[c]) - mean) * factor) * g[c] + b[c];
            return;
        }
        for (int64_t c = 0; c < count; ++c)
            y[c * to.strides[2]] =
                static_cast<float>((static_cast<double>(x[c * from.strides[2]]) - mean) * factor) * *gamma.at(c) +
                *beta.at(c);
    }

    static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const NormRun& self = *static_cast<const NormRun*>(user);
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at)
            self.row(at / self.from.shape[1], at % self.from.shape[1]);
        return ATTEND_OK;
    }
};

// Rows of float32 [B, N, C], gamma and beta [C]. `to` may be `from`.
inline attend_status layer_norm(const attend_context* context, const attend_tensor* from, const attend_tensor* gamma,
                                const attend_tensor* beta, const attend_tensor* to, double eps = layer_norm_eps) {
    NormRun run{view_of<const float, 3>(from), view_of<float, 3>(to), view_of<const float, 1>(gamma),
                view_of<const float, 1>(beta), eps};
    return parallel_items(context, static_cast<uint64_t>(from->shape[0] * from->shape[1]), NormRun::run, &run);
}

}  // namespace attend::ATTEND_ISA
