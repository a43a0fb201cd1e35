// SPDX-License-Identifier: Apache-2.0
// Attention to few keys made from many (Linformer's projections, Nystrom's landmarks): which keys can be seen, and the tile
// engine's call on tensors in the workspace.
#pragma once

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "linear_call.hpp"

namespace attend::ATTEND_ISA {

// Keys of an item that a head can see: below the length, and where the mask per key says so.
struct VisibleKeys {
    TensorView<const uint8_t, 4> mask;
    const attend_tensor* lengths;
    int64_t kv_len;
    bool by_head;

    explicit VisibleKeys(const ForwardArgs& args)
        : mask(broadcast_view_of<const uint8_t, 4>(args.mask)),
          lengths(args.key_lengths),
          kv_len(args.desc->kv_len),
          by_head(has_heads(args.mask)) {}
    static bool has_heads(const attend_tensor* mask) {
        return mask != nullptr && mask->ndim == 4 && mask->shape[1] > 1;
    }

    int64_t length(int64_t b) const { return lengths != nullptr ? integer_at(lengths, b) : kv_len; }
    bool see(int64_t b, int64_t head, int64_t j) const { return !mask.present || *mask.at(b, head, 0, j) != 0; }
    int64_t count(int64_t b, int64_t head) const {
        const int64_t keys = length(b);
        if (!mask.present) return keys;
        int64_t seen = 0;
        for (int64_t j = 0; j < keys; ++j) seen += see(b, head, j) ? 1 : 0;
        return seen;
    }
};

// Heads with compressed keys of their own: key heads, or query heads where the mask tells them apart.
inline int64_t compressed_heads(const attend_plan_desc& desc, const attend_tensor* mask) {
    return VisibleKeys::has_heads(mask) ? desc.num_q_heads : desc.num_kv_heads;
}

// What softmax over compressed keys cannot do, whatever compresses them.
inline attend_status refuse_uncompressible(const PlanArgs& args, const char* causal, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (desc.flags & ATTEND_PLAN_CAUSAL) {
        char text[300];
        ::snprintf(text, sizeof text,
                   "option \"causal\" is true, but %s; accepted: false, or a causal mechanism such as %s", causal,
                   "flash-attention-v2 or linear-attention");
        return attend_fail(error, ATTEND_UNSUPPORTED, text, "causal");
    }
    if (attend_find(&desc.bindings, ATTEND_BIAS) != nullptr)
        return refuse(
            error,
            "input \"bias\" is given, but it belongs to single keys, which are not scored here; accepted: a mask "
            "per key, or a mechanism that takes a bias, such as flash-attention-v2",
            "bias");
    return ATTEND_OK;
}

// A call of the tile engine whose keys and values are tensors of our own: no mask, bias or key length of the call counts.
struct CompressedCall {
    TileCall call;
    CompressedCall(const ForwardArgs& args, const attend_tensor* query, const attend_tensor* key,
                   const attend_tensor* value, const attend_tensor* output)
        : call(args, query, key, value, output) {
        attend_tile_problem& problem = call.problem;
        problem.flags = ATTEND_TILE_WIDEN;
        problem.lse = problem.scores = problem.mask = problem.bias = problem.key_lengths = nullptr;
        problem.causal_offset = 0;
        problem.window_left = problem.window_right = -1;
    }
};

// The mask per key as the tile engine wants it for so many rows.
inline void describe_key_mask(OwnTensor& own, const attend_tensor& mask, const attend_plan_desc& desc, int64_t rows) {
    int64_t strides[4];
    for (int axis = 0; axis < 4; ++axis) strides[axis] = mask.shape[axis] == 1 ? 0 : mask.strides[axis];
    strides[2] = 0;
    describe(own, mask, {desc.batch, desc.num_q_heads, rows, desc.kv_len}, strides);
}

// One item and head of a tensor [B, H, n, width].
inline void one_head_of(OwnTensor& own, const attend_tensor& whole, int64_t b, int64_t head) {
    describe(own, whole, {1, 1, whole.shape[2], whole.shape[3]},
             {whole.strides[0], whole.strides[1], whole.strides[2], whole.strides[3]});
    own.tensor.data =
        static_cast<char*>(whole.data) + (b * whole.strides[0] + head * whole.strides[1]) * (whole.dtype_bits / 8);
}

inline uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

}  // namespace attend::ATTEND_ISA
