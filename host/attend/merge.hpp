// SPDX-License-Identifier: Apache-2.0
// Attention over disjoint sets of keys, put together: what parts, pages or machines computed by themselves.
#pragma once

#include <vector>

#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend {

struct PartialResult {
    Tensor output;  // [..., N, Dv], F32, normalised over the keys of the part
    Tensor lse;  // [..., N], F32, natural logarithm; -inf: the part has no key for that row, and its output is not read
};

// The attention over all keys. In ascending order up to 16 parts, by a balanced binary tree beyond: the same bits
// whoever finished first. Errors: no part, shapes that differ (shape), NaN or +inf in an lse (nonfinite).
[[nodiscard]] Result<PartialResult> merge(const std::vector<PartialResult>& parts);

}  // namespace attend
