// SPDX-License-Identifier: Apache-2.0
// Values that are not finite behind hidden keys. A weight of zero does not protect a product: 0 * NaN is NaN. So where
// pairs are hidden, engines look at the value rows first and add those that hold NaN or infinity lane by lane.
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"

namespace attend::ATTEND_ISA {

inline bool row_is_finite(const float* value, int64_t column_stride, int64_t value_dim) {
    // x * 0 is 0 for finite x and NaN for the others, and NaN stays in the sum.
    if (column_stride == 1) {
        Batch sum(0.0f);
        int64_t c = 0;
        for (; c + batch_lanes <= value_dim; c += batch_lanes) sum = fma(load(value + c), Batch(0.0f), sum);
        if (c < value_dim) sum = fma(load_tail(value + c, value_dim - c), Batch(0.0f), sum);
        return all_lanes(sum == Batch(0.0f));
    }
    float sum = 0.0f;
    for (int64_t c = 0; c < value_dim; ++c) sum += value[c * column_stride] * 0.0f;
    return sum == 0.0f;
}

}  // namespace attend::ATTEND_ISA
