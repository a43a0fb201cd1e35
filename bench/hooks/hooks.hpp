// SPDX-License-Identifier: Apache-2.0
// One measurement of the tile engine, as every entry offers it.
#pragma once

#include <cstdint>

enum class Hook : int { none, modifier, keys };

// Seconds of one call: B = 1, 8 heads, `length` queries and keys, float32, one thread; `visited` receives the keys that
// each query tile visits. Memory is the caller's: query, key, value, output of 8 * length * head_dim floats.
using HookRun = double (*)(Hook hook, int64_t length, int64_t head_dim, float* const (&tensors)[4], void* workspace,
                           uint64_t workspace_bytes);
