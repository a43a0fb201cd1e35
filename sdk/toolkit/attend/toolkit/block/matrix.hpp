// SPDX-License-Identifier: Apache-2.0
// Described tensors of rank 1 to 4 with extents and strides of their own: scratch memory, and parts of other tensors.
#pragma once

#include <cstdint>

#include "attend/abi.h"

namespace attend::ATTEND_ISA {

constexpr int64_t element_bytes(const attend_tensor& tensor) { return tensor.dtype_bits / 8; }

// Must not be copied: the description points into it.
struct Part {
    attend_tensor tensor{};
    int64_t shape[4]{}, strides[4]{};

    Part() = default;
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    // The whole of another tensor.
    explicit Part(const attend_tensor& whole) { view(whole); }
    // Row-major float32 [a, b, c] in scratch memory.
    Part(float* data, int64_t a, int64_t b, int64_t c) { scratch(data, a, b, c); }

    void view(const attend_tensor& whole) {
        tensor = whole;
        for (int axis = 0; axis < whole.ndim; ++axis) {
            shape[axis] = whole.shape[axis];
            strides[axis] = whole.strides[axis];
        }
        tensor.shape = shape;
        tensor.strides = strides;
    }
    void scratch(float* data, int64_t a, int64_t b, int64_t c) {
        tensor = attend_tensor{};
        tensor.struct_size = sizeof(attend_tensor);
        tensor.data = data;
        tensor.device_type = ATTEND_DEVICE_CPU;
        tensor.ndim = 3;
        tensor.dtype_code = ATTEND_CODE_FLOAT;
        tensor.dtype_bits = 32;
        tensor.dtype_lanes = 1;
        tensor.align = 4;
        tensor.shape = shape;
        tensor.strides = strides;
        shape[0] = a, shape[1] = b, shape[2] = c;
        strides[0] = b * c, strides[1] = c, strides[2] = 1;
    }
    // Only entries [first, first + count) of an axis remain.
    Part& cut(int axis, int64_t first, int64_t count) {
        if (tensor.data != nullptr)
            tensor.data = static_cast<char*>(tensor.data) + first * strides[axis] * element_bytes(tensor);
        shape[axis] = count;
        return *this;
    }
    // [B, N, H*D] as [B, H, N, D]: heads are runs of the last axis.
    Part& split_heads(int64_t heads) {
        const int64_t width = shape[2] / heads;
        tensor.ndim = 4;
        shape[3] = width, strides[3] = strides[2];
        shape[2] = shape[1], strides[2] = strides[1];
        shape[1] = heads, strides[1] = width * strides[3];
        return *this;
    }
    // [B, N, C] as [B, 1, N, C].
    Part& one_head() { return split_heads(1); }
};

// How rows of [B, N] are taken in portions of at most `most` rows: several whole items, or a run of rows of one item.
struct Portions {
    int64_t items, rows;  // of a portion
    Portions(int64_t batch, int64_t length, int64_t most)
        : items(length >= most || length == 0 ? 1 : most / length), rows(length < most ? length : most) {
        if (items > batch) items = batch > 0 ? batch : 1;
        if (rows < 1) rows = 1;
    }
    int64_t size() const { return items * rows; }
};

}  // namespace attend::ATTEND_ISA
