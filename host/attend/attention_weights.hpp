// SPDX-License-Identifier: Apache-2.0
// Attention weights without a matrix of all of them: the rows are computed some at a time, and what is asked for is kept of
// each. For mechanisms that have weights (capability SCORES_OUT); the bits are those of `scores` of a forward call.
//
//   auto heads = service->attention_weights(inputs, {.mechanism = "flash-attention-v2"}, {.top_k = 8, .row_entropy = true});
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend {

struct WeightPair {
    std::int64_t batch{0}, head{0}, row{0}, key{0};
};

struct WeightRequest {
    std::int64_t top_k{0};  // largest weights of each row
    bool column_mass{false}, row_entropy{false};
    std::vector<std::int64_t> rows{};  // query rows whose weights are wanted whole
    std::vector<WeightPair> pairs{};
    bool full{false};  // all weights
    std::uint64_t max_full_bytes{std::uint64_t{1}
                                 << 28};                // of each result, and of a matrix where a plugin knows no rows
    std::uint64_t chunk_bytes{std::uint64_t{1} << 25};  // of the weights that exist at a time; at least one row
};

// What was asked for; B, H, Nq, Nk are the extents of the weights: latents are rows or keys where a mechanism has them, and the
// mean over heads has H = 1.
struct WeightSummary {
    std::int64_t batch{0}, heads{0}, q_len{0}, kv_len{0};
    std::optional<Tensor> top_values,
        top_keys;                       // [B,H,Nq,k], F32 and I64: descending, equal ones by key; keys with a weight
                                        // above 0, and behind them value 0, key -1
    std::optional<Tensor> column_mass;  // [B,H,Nk], F64: sum over the rows
    std::optional<Tensor> row_entropy;  // [B,H,Nq], F64: - sum of w ln w, in nats; 0 for a row that sees no key
    std::optional<Tensor> row_weights;  // [B,H,R,Nk], F32, rows in the order of the request
    std::vector<float> pairs;           // in the order of the request
    std::optional<Tensor> full;         // [B,H,Nq,Nk], F32
};

// What the softmax makes (post-softmax, before dropout), or what it gets: scaled, capped, biased, minus infinity where hidden.
enum class ScoreStage { weights, logits };

// Rows [first, first + count) of all items and heads; lives as long as the call of the visitor.
struct WeightRows {
    std::int64_t batch{}, heads{}, q_len{}, kv_len{};
    std::int64_t first{}, count{};
    const float* data{};
    std::int64_t head_stride{}, row_stride{};

    [[nodiscard]] const float* row(std::int64_t b, std::int64_t h, std::int64_t i) const {
        return data + (b * heads + h) * head_stride + (i - first) * row_stride;
    }
};
// Rows come in ascending order; an error ends the call.
using WeightVisitor = std::function<Result<void>(const WeightRows&)>;

struct WeightVisit {
    ScoreStage stage{ScoreStage::weights};
    std::uint64_t chunk_bytes{std::uint64_t{1} << 25}, max_full_bytes{std::uint64_t{1} << 28};
};

}  // namespace attend
