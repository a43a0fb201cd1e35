// SPDX-License-Identifier: Apache-2.0
// The steps of soft-moe-attention on one sequence: tokens as rows, slots as their convex combinations, experts that attend
// among their slots, tokens that read the slots back. Each softmax runs as attention on the tile engine, so neither the
// dispatch nor the combine matrix is ever stored.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/routing.h"

namespace attend::ATTEND_ISA {

// Rows of tokens without gaps, and what their products with the router are multiplied by. The first `valid` of them are
// the sequence; the engine is told so by lengths, since its workspace does not only grow with the number of rows.
struct TokenRows {
    const float* data;
    int64_t count, width;
    const float* factor;  // [valid]
    int64_t valid;
};

// The router's directions, one row per slot: phi[:, e, s], of unit length where the router is normalised.
struct SlotRows {
    const float* data;
    int64_t count;
};

constexpr double router_epsilon = 1e-6;  // under the root, added to the sum of squares

inline int64_t row_width(const attend_tensor& tokens) { return tokens.shape[1] * tokens.shape[3]; }

// Heads of each token of an item side by side.
inline void gather_rows(const attend_tensor& tokens, int64_t item, int64_t count, float* to) {
    for (int64_t row = 0; row < count; ++row) {
        const float* from = static_cast<const float*>(tokens.data) + item * tokens.strides[0] + row * tokens.strides[2];
        for (int64_t head = 0; head < tokens.shape[1]; ++head)
            for (int64_t d = 0; d < tokens.shape[3]; ++d)
                *to++ = from[head * tokens.strides[1] + d * tokens.strides[3]];
    }
}

inline void length_factors(const float* rows, int64_t count, int64_t width, bool normalise, float* factor) {
    for (int64_t row = 0; row < count; ++row) {
        double sum = router_epsilon;
        for (int64_t m = 0; m < width; ++m)
            sum += static_cast<double>(rows[row * width + m]) * static_cast<double>(rows[row * width + m]);
        factor[row] = normalise ? static_cast<float>(1.0 / __builtin_sqrt(sum)) : 1.0f;
    }
}

// phi is [width, experts, slots].
inline void slot_directions(const attend_tensor& phi, bool normalise, double scale, float* to) {
    const int64_t width = phi.shape[0], slots = phi.shape[2];
    const auto* data = static_cast<const float*>(phi.data);
    for (int64_t e = 0; e < phi.shape[1]; ++e)
        for (int64_t s = 0; s < slots; ++s) {
            const float* from = data + e * phi.strides[1] + s * phi.strides[2];
            double sum = router_epsilon;
            for (int64_t m = 0; m < width; ++m) {
                const double x = static_cast<double>(from[m * phi.strides[0]]);
                sum += x * x;
            }
            const double factor = normalise ? scale / __builtin_sqrt(sum) : scale;
            for (int64_t m = 0; m < width; ++m)
                *to++ = static_cast<float>(factor * static_cast<double>(from[m * phi.strides[0]]));
        }
}

// Scores times a factor of the token, which is the key of a dispatch and the query of a combine.
struct TokenFactor {
    const float* factor;
    bool of_keys;
    static void apply(const void* user, const attend_score_tile* tile) {
        const auto& self = *static_cast<const TokenFactor*>(user);
        const int64_t lanes = tile->queries->lane_stride;
        for (int64_t key = 0; key < tile->num_keys; ++key) {
            float* row = tile->scores + key * lanes;
            if (self.of_keys) {
                const float by = self.factor[tile->first_key + key];
                for (int64_t lane = 0; lane < lanes; ++lane) row[lane] *= by;
            } else {
                for (int64_t lane = 0; lane < tile->queries->num_lanes; ++lane)
                    row[lane] *= self.factor[tile->queries->lane_row[lane]];
            }
        }
    }
};

// One softmax over rows of matrices: out[q] = sum_k softmax_k(query_q . key_k * token factor) value_k.
struct RowAttention {
    OwnTensor query, key, value, output, lse, length;
    int64_t valid;
    attend_key_segment segment;
    attend_tile_problem problem;
    TokenFactor scores;

    RowAttention(const float* q, int64_t rows, const float* k, int64_t keys, int64_t width, const float* v,
                 int64_t value_width, float* out, const TokenFactor& factor, int64_t valid_tokens)
        : valid(valid_tokens), scores(factor) {
        describe(query, const_cast<float*>(q), 1, 1, rows, width);
        describe(key, const_cast<float*>(k), 1, 1, keys, width);
        describe(value, const_cast<float*>(v), 1, 1, keys, value_width);
        describe(output, out, 1, 1, rows, value_width);
        segment = attend_key_segment{&key.tensor, &value.tensor, 0, 0, nullptr};
        problem = attend_tile_problem{};
        problem.query = &query.tensor;
        problem.segments = &segment;
        problem.num_segments = 1;
        problem.output = &output.tensor;
        problem.window_left = problem.window_right = -1;
        problem.scale = 1.0;
        describe(length, nullptr, 1, 1, 1, 1);
        length.tensor.data = &valid;
        length.tensor.ndim = 1;
        length.tensor.dtype_code = ATTEND_CODE_INT;
        length.tensor.dtype_bits = 64;
        (factor.of_keys ? problem.key_lengths : problem.query_lengths) = &length.tensor;
        use_scores(problem, scores);
    }
    RowAttention(const RowAttention&) = delete;
    RowAttention& operator=(const RowAttention&) = delete;

    // [1, 1, rows, 1] as [1, 1, rows].
    void with_lse(float* to) {
        describe(lse, to, 1, 1, query.shape[2], 1);
        lse.tensor.ndim = 3;
        problem.lse = &lse.tensor;
    }
    attend_status run(const Context& context) const { return ATTEND_KERNEL(attend_tile_forward)(&problem, &context); }
    uint64_t workspace(uint32_t workers) const { return ATTEND_KERNEL(attend_tile_workspace)(&problem, workers); }
};

// Convex combinations of `values` (rows as tokens), one for each slot.
inline RowAttention dispatch(const SlotRows& slots, const TokenRows& tokens, const float* values, int64_t width,
                             float* to) {
    return RowAttention(slots.data, slots.count, tokens.data, tokens.count, tokens.width, values, width, to,
                        TokenFactor{tokens.factor, true}, tokens.valid);
}
// Convex combinations of `values` (rows as slots), one for each token.
inline RowAttention combine(const SlotRows& slots, const TokenRows& tokens, const float* values, int64_t width,
                            float* to) {
    return RowAttention(tokens.data, tokens.count, slots.data, slots.count, tokens.width, values, width, to,
                        TokenFactor{tokens.factor, false}, tokens.valid);
}

// rows [count, in] times a matrix [in, out] with any strides, into rows `step` floats apart.
struct RowProduct {
    OwnTensor input, weight, output;
    attend_projection projection;

    RowProduct(const float* rows, int64_t count, int64_t in, const float* w, int64_t in_step, int64_t out_step,
               int64_t out, float* to, int64_t step) {
        describe(input, const_cast<float*>(rows), 1, count, in, 1);
        describe(output, to, 1, count, out, 1);
        describe(weight, const_cast<float*>(w), out, in, 1, 1);
        input.tensor.ndim = output.tensor.ndim = 3;
        weight.tensor.ndim = 2;
        weight.strides[0] = out_step;
        weight.strides[1] = in_step;
        output.strides[0] = count * step;
        output.strides[1] = step;
        projection = attend_projection{&input.tensor, &weight.tensor, nullptr, &output.tensor};
    }
    RowProduct(const RowProduct&) = delete;
    RowProduct& operator=(const RowProduct&) = delete;
    attend_status run(const Context& context) const {
        return ATTEND_KERNEL(attend_projection_forward)(&projection, &context);
    }
    uint64_t workspace(uint32_t workers) const {
        return ATTEND_KERNEL(attend_projection_workspace)(&projection, workers);
    }
};

}  // namespace attend::ATTEND_ISA
