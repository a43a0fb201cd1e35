// SPDX-License-Identifier: Apache-2.0
// Pieces of the projected forms: linear layers y = x W^T + b on [B, N, E], weights [out, in].
#pragma once

#include "attend/author/tile.hpp"

namespace attend::ATTEND_ISA {

inline attend_status project(const attend_tensor* input, const attend_tensor* weight, const attend_tensor* bias,
                             const attend_tensor* output, const Context& context) {
    const attend_projection projection{input, weight, bias, output};
    return ATTEND_KERNEL(attend_projection_forward)(&projection, &context);
}

// Scratch for a projection of `rows` rows per item from `in` to `out` features.
inline uint64_t projection_workspace(int64_t batch, int64_t rows, int64_t in, int64_t out, uint32_t workers) {
    OwnTensor input, weight, output;
    describe(input, nullptr, 1, batch, rows, in);
    describe(weight, nullptr, 1, 1, out, in);
    describe(output, nullptr, 1, batch, rows, out);
    attend_tensor x = input.tensor, w = weight.tensor, y = output.tensor;
    x.ndim = 3, x.shape = input.shape + 1, x.strides = input.strides + 1;
    w.ndim = 2, w.shape = weight.shape + 2, w.strides = weight.strides + 2;
    y.ndim = 3, y.shape = output.shape + 1, y.strides = output.strides + 1;
    const attend_projection projection{&x, &w, nullptr, &y};
    return ATTEND_KERNEL(attend_projection_workspace)(&projection, workers);
}

// A [B, N, C] tensor in scratch memory.
struct Rows {
    OwnTensor own;
    attend_tensor tensor;
    Rows(float* data, int64_t batch, int64_t rows, int64_t width) {
        describe(own, data, 1, batch, rows, width);
        tensor = own.tensor;
        tensor.ndim = 3;
        tensor.shape = own.shape + 1;
        tensor.strides = own.strides + 1;
    }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;
};

// Rows [first, first + count) of a matrix, or of a vector.
struct RowRange {
    attend_tensor tensor;
    int64_t shape[2];
    RowRange(const attend_tensor& matrix, int64_t first, int64_t count)
        : tensor(matrix), shape{count, matrix.ndim > 1 ? matrix.shape[1] : 0} {
        tensor.data = static_cast<float*>(matrix.data) + first * matrix.strides[0];
        tensor.shape = shape;
    }
    RowRange(const RowRange&) = delete;
    RowRange& operator=(const RowRange&) = delete;
};

inline bool is_projected(int32_t form) { return form == 2; }

}  // namespace attend::ATTEND_ISA
