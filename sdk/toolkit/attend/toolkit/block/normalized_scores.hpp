// SPDX-License-Identifier: Apache-2.0
// Attention on normalised queries and keys without copies of them: the products are those of the stored rows, and a score
// modifier multiplies each by a number of its query and one of its key, then caps it.
#pragma once

#include "attend/toolkit.h"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/gemm/operand.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

// scale_h / sqrt(sum of squares + eps) of every row of [B, H, N, D], computed in double. scale NULL: one.
struct NormFactors {
    const attend_tensor* rows;
    const double* scale;
    double eps;
    float* factors;  // [B, H, N]
    Element type;

    template <Element element>
    double squares(int64_t b, int64_t h, int64_t i) const {
        const auto* row = static_cast<const typename Stored<element>::Type*>(rows->data) + b * rows->strides[0] +
                          h * rows->strides[1] + i * rows->strides[2];
        double part[4] = {};
        for (int64_t d = 0; d < rows->shape[3]; ++d) {
            const auto x = static_cast<double>(Stored<element>::read_one(row[d * rows->strides[3]]));
            part[d % 4] += x * x;
        }
        return (part[0] + part[2]) + (part[1] + part[3]);
    }
    static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const NormFactors& self = *static_cast<const NormFactors*>(user);
        const int64_t heads = self.rows->shape[1], count = self.rows->shape[2];
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
            const int64_t i = at % count, h = at / count % heads, b = at / count / heads;
            const double sum = self.type == Element::f32    ? self.squares<Element::f32>(b, h, i)
                               : self.type == Element::bf16 ? self.squares<Element::bf16>(b, h, i)
                                                            : self.squares<Element::f16>(b, h, i);
            self.factors[at] =
                static_cast<float>((self.scale != nullptr ? self.scale[h] : 1.0) / __builtin_sqrt(sum + self.eps));
        }
        return ATTEND_OK;
    }
};

inline attend_status norm_factors(const attend_context* context, const attend_tensor* rows, const double* scale,
                                  double eps, float* factors) {
    NormFactors run{rows, scale, eps, factors, Element::f32};
    element_of(rows, run.type);
    return parallel_items(context, static_cast<uint64_t>(rows->shape[0] * rows->shape[1] * rows->shape[2]),
                          NormFactors::run, &run);
}

struct NormalizedScores {
    const float *query, *key;  // factors [B, Hq, Nq] and [B, Hkv, Nk]
    int64_t q_heads, q_len, kv_heads, kv_len;
    double softcap;  // 0: none

    static void apply(const void* user, const attend_score_tile* tile) {
        const NormalizedScores& self = *static_cast<const NormalizedScores*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        constexpr int64_t most = 64;
        float of_lane[most];
        for (int64_t lane = 0; lane < lanes; ++lane)
            of_lane[lane] = self.query[(queries.batch * self.q_heads + queries.lane_head[lane]) * self.q_len +
                                       queries.lane_query[lane]];
        const float* of_key = self.key + (queries.batch * self.kv_heads + queries.kv_head) * self.kv_len;
        const Batch cap(static_cast<float>(self.softcap)), inverse(static_cast<float>(1.0 / self.softcap));
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const float factor = of_key[tile->key_index != nullptr ? tile->key_index[row] : tile->first_key + row];
            float* scores = tile->scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] *= of_lane[lane] * factor;
            if (!(self.softcap > 0.0)) continue;
            int64_t lane = 0;
            for (; lane + batch_lanes <= lanes; lane += batch_lanes)
                store(scores + lane, cap * tanh(load(scores + lane) * inverse));
            if (lane < lanes)
                store_tail(scores + lane, cap * tanh(load_tail(scores + lane, lanes - lane) * inverse), lanes - lane);
        }
    }
};

}  // namespace attend::ATTEND_ISA
