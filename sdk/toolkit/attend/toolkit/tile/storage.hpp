// SPDX-License-Identifier: Apache-2.0
// Element types that tensors are stored in: arithmetic is float32, so narrower rows are widened on the way in and rounded
// once on the way out.
#pragma once

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/simd/dot.hpp"
#include "attend/toolkit/simd/transpose.hpp"

namespace attend::ATTEND_ISA {

enum class Storage : int { f32, bf16, f16, other };

inline Storage storage_of(const attend_tensor* tensor) {
    if (tensor->dtype_lanes > 1) return Storage::other;
    if (tensor->dtype_code == ATTEND_CODE_BFLOAT && tensor->dtype_bits == 16) return Storage::bf16;
    if (tensor->dtype_code != ATTEND_CODE_FLOAT) return Storage::other;
    return tensor->dtype_bits == 32 ? Storage::f32 : tensor->dtype_bits == 16 ? Storage::f16 : Storage::other;
}
constexpr int64_t storage_bytes(Storage storage) { return storage == Storage::f32 ? 4 : 2; }

// Rows of a tensor of any of the three types: address and strides in bytes.
struct StoredView {
    char* data{nullptr};
    int64_t strides[4]{};  // bytes
    Storage storage{Storage::f32};
    bool present{false};

    char* at(int64_t a, int64_t b, int64_t c) const { return data + a * strides[0] + b * strides[1] + c * strides[2]; }
    int64_t step() const { return strides[3] / storage_bytes(storage); }  // elements between neighbours of a row
};

// An absent tensor gives a view that is not present; an extent of 1 in the first dimension stands for every item.
inline StoredView stored_view(const attend_tensor* tensor) {
    StoredView view;
    if (tensor == nullptr || tensor->ndim != 4) return view;
    view.data = static_cast<char*>(tensor->data);
    view.storage = storage_of(tensor);
    view.present = true;
    for (int dim = 0; dim < 4; ++dim) view.strides[dim] = tensor->strides[dim] * storage_bytes(view.storage);
    if (tensor->shape[0] == 1) view.strides[0] = 0;
    return view;
}

// `count` elements of a row, `step` elements apart, as floats next to each other.
inline void widen_row(Storage storage, const void* from, int64_t step, int64_t count, float* to) {
    const uint16_t* half = static_cast<const uint16_t*>(from);
    int64_t at = 0;
    if (storage == Storage::f32) {
        const float* whole = static_cast<const float*>(from);
        if (step == 1)
            for (; at + batch_lanes <= count; at += batch_lanes) store(to + at, load(whole + at));
        for (; at < count; ++at) to[at] = whole[at * step];
    } else if (storage == Storage::bf16) {
        if (step == 1)
            for (; at + batch_lanes <= count; at += batch_lanes) store(to + at, load_bf16(half + at));
        for (; at < count; ++at) to[at] = bf16_to_float(half[at * step]);
    } else {
        if (step == 1)
            for (; at + batch_lanes <= count; at += batch_lanes) store(to + at, load_f16(half + at));
        for (; at < count; ++at) to[at] = f16_to_float(half[at * step]);
    }
}

// A row as floats: where it lies, or widened into `room`.
inline const float* as_floats(Storage storage, const char* from, int64_t step, int64_t count, float* room) {
    if (storage == Storage::f32 && step == 1) return reinterpret_cast<const float*>(from);
    widen_row(storage, from, step, count, room);
    return room;
}

// The way back, each element rounded to the nearest.
inline void narrow_row(Storage storage, const float* from, int64_t count, void* to, int64_t step) {
    uint16_t* half = static_cast<uint16_t*>(to);
    int64_t at = 0;
    if (storage == Storage::f32) {
        float* whole = static_cast<float*>(to);
        for (; at < count; ++at) whole[at * step] = from[at];
    } else if (storage == Storage::bf16) {
        if (step == 1)
            for (; at + batch_lanes <= count; at += batch_lanes) store_bf16(half + at, load(from + at));
        for (; at < count; ++at) half[at * step] = float_to_bf16(from[at]);
    } else {
        if (step == 1)
            for (; at + batch_lanes <= count; at += batch_lanes) store_f16(half + at, load(from + at));
        for (; at < count; ++at) half[at * step] = float_to_f16(from[at]);
    }
}

// Lanes of a tile to rows in memory, as store_lanes of gemm/micro_kernel.hpp, rounded on the way: the rows are next to
// each other in registers, so nothing wide is stored in between.
template <int V, Storage storage>
__attribute__((noinline)) inline void narrow_lanes(const float* from, int64_t count, const float* factor,
                                                   uint16_t* const* rows, int64_t num_lanes) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        const int64_t first = v * batch_lanes;
        const int64_t used = num_lanes - first < batch_lanes ? num_lanes - first : batch_lanes;
        if (used <= 0) return;
        const Batch scale = load(factor + first);
        for (int64_t c = 0; c < count; c += batch_lanes) {
            const int64_t columns = count - c < batch_lanes ? count - c : batch_lanes;
            Batch block[batch_lanes];
            ATTEND_UNROLL
            for (int row = 0; row < batch_lanes; ++row)
                block[row] = load(from + (c + (row < columns ? row : 0)) * lanes + first) * scale;
            transpose(block);
            for (int64_t lane = 0; lane < used; ++lane) {
                uint16_t* to = rows[first + lane] + c;
                if constexpr (storage == Storage::bf16)
                    columns == batch_lanes ? store_bf16(to, block[lane]) : store_bf16_tail(to, block[lane], columns);
                else
                    columns == batch_lanes ? store_f16(to, block[lane]) : store_f16_tail(to, block[lane], columns);
            }
        }
    }
}

}  // namespace attend::ATTEND_ISA
