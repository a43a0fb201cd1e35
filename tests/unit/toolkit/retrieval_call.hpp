// SPDX-License-Identifier: Apache-2.0
// One call of the retrieval from a memory, as the test hands it to kernels/retrieval_probe.cpp.
#pragma once

#include <cstdint>

#include "attend/abi.h"

namespace attend::test {

// Mode memory: no local part.
struct RetrievalCall {
    const attend_tensor *query, *key, *value, *lengths, *valid, *output, *lse, *indices, *weights;
    const double* scale;
    bool normalize;
    int64_t top_k;
};

}  // namespace attend::test
