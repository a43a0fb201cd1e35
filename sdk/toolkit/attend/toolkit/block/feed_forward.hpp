// SPDX-License-Identifier: Apache-2.0
// to = y + gate * (W2 act(W1 LN(y) + b1) + b2), a portion of rows at a time, so that the wide middle never stands in
// memory as a whole.
#pragma once

#include "attend/toolkit.h"
#include "attend/toolkit/block/activation.hpp"
#include "attend/toolkit/block/gated_sum.hpp"
#include "attend/toolkit/block/layer_norm.hpp"
#include "attend/toolkit/block/matrix.hpp"
#include "attend/toolkit/core/workspace.hpp"

namespace attend::ATTEND_ISA {

struct FeedForward {
    const attend_tensor *gamma, *beta;       // of the norm, [E]
    const attend_tensor *w1, *b1, *w2, *b2;  // [F, E], [F] or NULL, [E, F], [E] or NULL
    Activation activation;
    Gate gate;
};

// Rows per portion: the middle takes up to 4 MiB.
inline int64_t feed_forward_rows(int64_t hidden) {
    const int64_t rows = (int64_t{1} << 20) / (hidden > 0 ? hidden : 1);
    return rows > 1024 ? 1024 : rows < 64 ? 64 : rows;
}

inline uint64_t layer_workspace(int64_t items, int64_t rows, int64_t in, int64_t out, uint32_t workers) {
    const Part x(nullptr, items, rows, in), w(nullptr, 1, out, in), y(nullptr, items, rows, out);
    attend_tensor weight = w.tensor;
    weight.ndim = 2, weight.shape = w.shape + 1, weight.strides = w.strides + 1;
    const attend_projection projection{&x.tensor, &weight, nullptr, &y.tensor};
    return ATTEND_KERNEL(attend_projection_workspace)(&projection, workers);
}

// y = x W^T + b on [B, N, .] with the rest of a workspace.
inline attend_status layer(const attend_context* context, const attend_tensor* input, const attend_tensor* weight,
                           const attend_tensor* bias, const attend_tensor* output) {
    const attend_projection projection{input, weight, bias, output};
    return ATTEND_KERNEL(attend_projection_forward)(&projection, context);
}

inline uint64_t feed_forward_workspace(int64_t batch, int64_t length, int64_t width, int64_t hidden, uint32_t workers) {
    const Portions portions(batch, length, feed_forward_rows(hidden));
    const uint64_t first = layer_workspace(portions.items, portions.rows, width, hidden, workers);
    const uint64_t second = layer_workspace(portions.items, portions.rows, hidden, width, workers);
    Workspace space;
    space.take<float>(portions.size() * width);
    space.take<float>(portions.size() * hidden);
    return space.used() + (first > second ? first : second);
}

// y and to are float32 [B, N, E] and may be the same tensor.
inline attend_status feed_forward(const attend_context* context, const FeedForward& block, const attend_tensor* y,
                                  const attend_tensor* to) {
    const int64_t batch = y->shape[0], length = y->shape[1], width = y->shape[2], hidden = block.w1->shape[0];
    if (batch * length == 0) return ATTEND_OK;
    const Portions portions(batch, length, feed_forward_rows(hidden));
    Workspace space(context->workspace);
    float* narrow = space.take<float>(portions.size() * width);
    float* wide = space.take<float>(portions.size() * hidden);
    attend_context rest = *context;
    rest.workspace = static_cast<char*>(context->workspace) + space.used();
    rest.workspace_bytes = context->workspace_bytes > space.used() ? context->workspace_bytes - space.used() : 0;
    for (int64_t item = 0; item < batch; item += portions.items)
        for (int64_t row = 0; row < length; row += portions.rows) {
            const int64_t items = batch - item < portions.items ? batch - item : portions.items;
            const int64_t rows = length - row < portions.rows ? length - row : portions.rows;
            Part from(*y), result(*to);
            from.cut(0, item, items).cut(1, row, rows);
            result.cut(0, item, items).cut(1, row, rows);
            Part small(narrow, items, rows, width), large(wide, items, rows, hidden);
            attend_status status = layer_norm(&rest, &from.tensor, block.gamma, block.beta, &small.tensor);
            if (status == ATTEND_OK) status = layer(&rest, &small.tensor, block.w1, block.b1, &large.tensor);
            if (status == ATTEND_OK) status = activate_all(&rest, block.activation, wide, items * rows * hidden);
            if (status == ATTEND_OK) status = layer(&rest, &large.tensor, block.w2, block.b2, &small.tensor);
            if (status == ATTEND_OK)
                status = gated_sum(&rest, &from.one_head().tensor, &small.one_head().tensor, block.gate,
                                   &result.one_head().tensor);
            if (status != ATTEND_OK) return status;
        }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA
