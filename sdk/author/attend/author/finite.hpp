// SPDX-License-Identifier: Apache-2.0
// Looks for NaN and infinity in tensors of a call, for mechanisms that refuse them.
#pragma once

#include "attend/author/mechanism.hpp"
#include "attend/toolkit/tile/storage.hpp"

namespace attend::ATTEND_ISA {

// Whether all elements of a float tensor up to rank 4 are finite; minus infinity may be allowed.
inline bool all_finite(const attend_tensor* tensor, bool minus_infinity_ok) {
    if (!tensor) return true;
    int64_t shape[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
    for (int axis = 0; axis < tensor->ndim; ++axis)
        shape[4 - tensor->ndim + axis] = tensor->shape[axis], strides[4 - tensor->ndim + axis] = tensor->strides[axis];
    const Storage storage = storage_of(tensor);
    const char* data = static_cast<const char*>(tensor->data);
    for (int64_t a = 0; a < shape[0]; ++a)
        for (int64_t b = 0; b < shape[1]; ++b)
            for (int64_t c = 0; c < shape[2]; ++c)
                for (int64_t d = 0; d < shape[3]; ++d) {
                    const int64_t at = a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
                    float x;
                    widen_row(storage, data + at * storage_bytes(storage), 1, 1, &x);
                    if (x - x != 0.0f && !(minus_infinity_ok && x < 0.0f)) return false;
                }
    return true;
}

}  // namespace attend::ATTEND_ISA
