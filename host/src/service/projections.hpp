// SPDX-License-Identifier: Apache-2.0
// Learned tensors as callers bring them: packed matrices taken apart, copies that outlive the call.
#pragma once

#include <optional>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

// The packed in-projection of PyTorch's MultiheadAttention, in_proj_weight [3E, E] and in_proj_bias [3E], as wq, wk, wv and
// bq, bk, bv for a mechanism that has these: rows of queries first, then keys, then values. Views, not copies; nothing
// where there is no such weight.
Result<std::optional<NamedTensors>> unpack_projections(const MechanismRecord& mechanism, const NamedTensors& weights);

// The same tensors in memory of their own.
Result<NamedTensors> copied(const NamedTensors& tensors);

}  // namespace attend
