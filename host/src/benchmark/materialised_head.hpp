// SPDX-License-Identifier: Apache-2.0
// Some query rows of one head, for attention that stores its scores.
#pragma once

#include <cstdint>

namespace attend::benchmark {

// Wide enough for panels of every instruction set.
inline constexpr std::int64_t most_panel = 32;

struct MaterialisedHead {
    const float *query, *key, *value;  // [rows, dim], [kv_len, dim] both
    float *scores, *output;            // [rows, kv_len], [rows, dim]
    float *key_panels, *value_panels;  // scratch: dim * (kv_len + most_panel), kv_len * (dim + most_panel)
    std::int64_t rows, kv_len, dim;
    float scale;
};

}  // namespace attend::benchmark
