// SPDX-License-Identifier: Apache-2.0
// Candidates ordered by the attention that a query pays them: what AttentionService::rerank takes and gives.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"

namespace attend {

struct RerankOptions {
    enum class Normalize { automatic, off, on };

    std::string mechanism{"memory-attention"};
    std::int64_t heads{1};        // divides the width; head h has the h-th part of every row
    std::int64_t top_k{0};        // how many are returned; 0: all. Scores are over all candidates either way.
    std::optional<double> scale;  // default (and 0): 1/sqrt(D/heads); memory-attention with normalize: 1
    // Every head's part of every row divided by sqrt(its sum of squares + 1e-6). automatic: on for memory-attention.
    Normalize normalize{Normalize::automatic};
    std::vector<std::string> ids;  // one for each candidate, or none
    NamedValues options{};         // of the mechanism
    NamedTensors weights{};        // of the mechanism: attn_scale of memory-attention, tables of positions, ...
};

struct RankedCandidate {
    std::int64_t index{};
    double score{};  // the mean of the heads' weights; 0 where the mechanism drops the candidate
    double logit{};  // the mean of the heads' scores before softmax; -infinity where it is dropped
    std::int64_t rank{};
    std::string id;  // empty without ids
};

struct Reranking {
    std::string mechanism;
    std::vector<RankedCandidate> results;  // by score, then logit, descending, then by index
    std::vector<std::string> warnings;     // options that were given and are not read
};

}  // namespace attend
