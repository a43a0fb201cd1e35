// SPDX-License-Identifier: Apache-2.0
// The engine run head by head, for mechanisms whose tables are those of a query head: what belongs to the head is made
// once, before its tiles, and hooks need not look at heads.
#pragma once

#include "attend/author/tile.hpp"

namespace attend::ATTEND_ISA {

// The problem of query head `head` alone, of at most two segments. Hooks see head 0; dropout counts as in the whole call.
struct HeadCall {
    OwnTensor query, key, value, output, lse, scores, mask, bias;
    OwnTensor extra_key, extra_value;
    attend_key_segment segments[2];
    attend_tile_problem problem;

    HeadCall(const TileCall& whole, const ForwardArgs& args, int64_t head) : problem(whole.problem) {
        const attend_plan_desc& desc = *args.desc;
        const int64_t kv_head = head * desc.num_kv_heads / desc.num_q_heads;
        problem.query = one(query, whole.problem.query, head);
        segments[0] = whole.segments[0];
        segments[0].key = one(key, segments[0].key, kv_head);
        segments[0].value = one(value, segments[0].value, kv_head);
        if (problem.num_segments > 1) {
            segments[1] = whole.segments[1];
            segments[1].key = one(extra_key, segments[1].key, kv_head);
            segments[1].value = one(extra_value, segments[1].value, kv_head);
        }
        problem.segments = segments;
        problem.output = one(output, problem.output, head);
        problem.lse = one(lse, problem.lse, head);
        problem.scores = one(scores, problem.scores, head);
        problem.mask = one(mask, problem.mask, head);
        problem.bias = one(bias, problem.bias, head);
        problem.dropout_heads = desc.num_q_heads;
        problem.dropout_head = head;
    }
    HeadCall(const HeadCall&) = delete;
    HeadCall& operator=(const HeadCall&) = delete;

private:
    static const attend_tensor* one(OwnTensor& own, const attend_tensor* tensor, int64_t head) {
        if (tensor == nullptr) return nullptr;
        own.tensor = *tensor;
        for (int axis = 0; axis < tensor->ndim; ++axis) {
            own.shape[axis] = axis == 1 ? 1 : tensor->shape[axis];
            own.strides[axis] = tensor->strides[axis];
        }
        own.tensor.shape = own.shape;
        own.tensor.strides = own.strides;
        own.tensor.data = static_cast<char*>(tensor->data) + head * tensor->strides[1] * (tensor->dtype_bits / 8);
        return &own.tensor;
    }
};

// The plan of such a run, for its workspace.
inline attend_plan_desc one_head(const attend_plan_desc& desc) {
    attend_plan_desc head = desc;
    head.num_q_heads = head.num_kv_heads = 1;
    return head;
}

}  // namespace attend::ATTEND_ISA
