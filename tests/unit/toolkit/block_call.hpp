// SPDX-License-Identifier: Apache-2.0
// One call of a residual block, as the test hands it to kernels/block_probe.cpp.
#pragma once

#include <cstdint>

#include "attend/abi.h"

namespace attend::test {

struct BlockCall {
    const attend_tensor *z, *x, *lengths, *to;
    const attend_tensor* weights[18];       // in the order of BlockWeights
    int64_t heads, items, q_rows, kv_rows;  // items 0: the portions that the block chooses
    bool residual;
};

}  // namespace attend::test
