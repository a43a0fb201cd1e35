// SPDX-License-Identifier: Apache-2.0
// Pointer, shape, strides in elements; never owns. Made from an attend_tensor once, before the first tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attend/abi.h"

namespace attend::ATTEND_ISA {

template <class T, int Rank>
struct TensorView {
    T* data{nullptr};
    int64_t shape[size_t{Rank}]{};
    int64_t strides[size_t{Rank}]{};
    bool present{false};

    T* at(int64_t a) const { return data + a * strides[0]; }
    T* at(int64_t a, int64_t b) const { return data + a * strides[0] + b * strides[1]; }
    T* at(int64_t a, int64_t b, int64_t c) const { return data + a * strides[0] + b * strides[1] + c * strides[2]; }
    T* at(int64_t a, int64_t b, int64_t c, int64_t d) const {
        return data + a * strides[0] + b * strides[1] + c * strides[2] + d * strides[3];
    }
};

// An absent tensor (NULL) gives a view that is not present. The caller has checked rank and type.
template <class T, int Rank>
inline TensorView<T, Rank> view_of(const attend_tensor* tensor) {
    TensorView<T, Rank> view;
    if (tensor == nullptr || tensor->ndim != Rank) return view;
    view.data = static_cast<T*>(tensor->data);
    view.present = true;
    for (int dim = 0; dim < Rank; ++dim) {
        view.shape[dim] = tensor->shape[dim];
        view.strides[dim] = tensor->strides[dim];
    }
    return view;
}

// The same, where an extent of 1 stands for every index (masks, biases).
template <class T, int Rank>
inline TensorView<T, Rank> broadcast_view_of(const attend_tensor* tensor) {
    TensorView<T, Rank> view = view_of<T, Rank>(tensor);
    for (int dim = 0; dim < Rank; ++dim)
        if (view.shape[dim] == 1) view.strides[dim] = 0;
    return view;
}

// Element `at` of a rank-1 tensor of int32 or int64.
inline int64_t integer_at(const attend_tensor* tensor, int64_t at) {
    const int64_t offset = at * tensor->strides[0];
    if (tensor->dtype_bits == 64) return static_cast<const int64_t*>(tensor->data)[offset];
    return static_cast<const int32_t*>(tensor->data)[offset];
}

inline bool is_f32(const attend_tensor* tensor) {
    return tensor->dtype_code == ATTEND_CODE_FLOAT && tensor->dtype_bits == 32 && tensor->dtype_lanes <= 1;
}

inline bool is_integer(const attend_tensor* tensor) {
    return tensor->dtype_code == ATTEND_CODE_INT && (tensor->dtype_bits == 32 || tensor->dtype_bits == 64);
}

}  // namespace attend::ATTEND_ISA
