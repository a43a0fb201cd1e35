// SPDX-License-Identifier: Apache-2.0
// Softmax attention as textbooks write it: a matrix product for all scores of all heads, which are stored, a softmax over
// their rows, a second product. What mechanisms that never store them are compared with; float32, with the same
// instruction set and number of threads, register tiles and vectors like any library's.
#pragma once

#include "benchmark/bench.hpp"

namespace attend::benchmark {

// Row-major; scores [B,H,Nq,Nk] and output [B,H,Nq,D] are written.
struct MaterialisedCall {
    const float *query, *key, *value;
    float *scores, *output;
    std::int64_t batch, heads, kv_heads, q_len, kv_len, dim;
};
// Error: no memory for the packed keys and values.
[[nodiscard]] Result<void> materialised_attention(const MaterialisedCall& call, std::uint64_t isa,
                                                  std::uint32_t threads);

[[nodiscard]] BenchmarkRow measure_materialised(Bench& bench, const CallSpec& spec);

}  // namespace attend::benchmark
