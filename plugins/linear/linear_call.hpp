// SPDX-License-Identifier: Apache-2.0
// What the mechanisms on the linear engine share: refusing what acts on single scores, and the way from a call to the
// engine's problem.
#pragma once

#include "attend/author/mechanism.hpp"
#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/linear.h"

namespace attend::ATTEND_ISA {

inline attend_status refuse(attend_error* error, const char* text, const char* where) {
    return attend_fail(error, ATTEND_UNSUPPORTED, text, where);
}
inline attend_status bad_option(attend_error* error, const char* text, const char* where) {
    return attend_fail(error, ATTEND_BAD_OPTION, text, where);
}

// Options of softmax attention that are listed only to be refused with a reason.
#define ATTEND_REFUSED_OPTIONS common::softcap(), common::window_size(), common::window_left(), common::window_right(), common::dropout()

// Nothing that depends on a query and a key together factorises over features.
inline attend_status refuse_pairwise(const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (desc.softcap > 0.0)
        return refuse(error, "option \"softcap\" is above 0, but it bends single scores, and scores are never formed here; accepted: 0, or a softmax "
                             "mechanism such as flash-attention-v2", "softcap");
    if (desc.window_left >= 0 || desc.window_right >= 0)
        return refuse(error, "a window (window_size, window_left, window_right) is set, but it depends on query and key together, which does not "
                             "factorise; accepted: no window, or local-attention", "window_size");
    if (desc.dropout > 0.0)
        return refuse(error, "option \"dropout\" is above 0, but there is no matrix of weights to drop from; accepted: 0, or a softmax mechanism such "
                             "as flash-attention-v2", "dropout");
    for (const uint32_t role : {ATTEND_MASK, ATTEND_BIAS}) {
        const attend_tensor* tensor = attend_find(&desc.bindings, role);
        if (tensor == nullptr || tensor->ndim != 4 || tensor->shape[2] == 1) continue;
        const char* name = role == ATTEND_MASK ? "mask" : "bias";
        Message text;
        text << name << " has " << tensor->shape[2] << " rows of queries, but only what belongs to keys alone factorises; accepted: 1 row ([Nk] or "
             << "[B,1,1,Nk]), or a mechanism that takes it, such as flash-attention-v2";
        return text.fail(error, ATTEND_UNSUPPORTED, name);
    }
    return ATTEND_OK;
}

// A problem and the tensors that it points to. Must not move once filled.
struct LinearCall {
    attend_linear_problem problem{};

    // Of a plan: shapes alone, for the workspace.
    explicit LinearCall(const PlanArgs& args) {
        const attend_plan_desc& desc = *args.desc;
        describe(query_, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.head_dim);
        describe(key_, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.head_dim);
        describe(value_, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.value_dim);
        problem.query = &query_.tensor;
        problem.key = &key_.tensor;
        problem.value = &value_.tensor;
        problem.mask = attend_find(&desc.bindings, ATTEND_MASK);
        problem.bias = attend_find(&desc.bindings, ATTEND_BIAS);
        set(desc);
    }
    explicit LinearCall(const ForwardArgs& args) {
        problem.query = args.query;
        problem.key = args.key;
        problem.value = args.value;
        problem.output = args.output;
        problem.lse = args.lse;
        problem.mask = args.mask;
        problem.bias = args.bias;
        problem.query_lengths = args.query_lengths;
        problem.key_lengths = args.key_lengths;
        set(*args.desc);
    }
    LinearCall(const LinearCall&) = delete;
    LinearCall& operator=(const LinearCall&) = delete;

    // A matrix of directions: [M, D] or [slots, M, D] of the caller, or one that prepare drew.
    void use_projection(const attend_tensor& given) {
        const int lead = given.ndim == 3 ? 1 : 0;
        set_projection(given.data, {lead ? given.shape[0] : 1, given.shape[lead], given.shape[lead + 1]},
                       {lead ? given.strides[0] : 0, given.strides[lead], given.strides[lead + 1]});
    }
    void use_projection(const void* drawn, int64_t slots, int64_t rows, int64_t width) {
        set_projection(const_cast<void*>(drawn), {slots, rows, width}, {rows * width, width, 1});
    }

    uint64_t workspace(uint32_t max_workers) const { return ATTEND_KERNEL(attend_linear_workspace)(&problem, max_workers); }
    attend_status run(const Context& context) const { return ATTEND_KERNEL(attend_linear_forward)(&problem, &context); }

private:
    void set(const attend_plan_desc& desc) {
        problem.flags = ((desc.flags & ATTEND_PLAN_CAUSAL) ? ATTEND_LINEAR_CAUSAL : 0u) |
                        ((desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) ? ATTEND_LINEAR_OFFSET_PER_ITEM : 0u);
        problem.causal_offset = desc.causal_offset;
        problem.features.query_scale = problem.features.key_scale = 1.0;
        problem.guard = ATTEND_GUARD_NONE;
    }
    void set_projection(void* data, const int64_t (&shape)[3], const int64_t (&strides)[3]) {
        describe(projection_, static_cast<float*>(data), shape[0], shape[1], shape[2], 1);
        for (int axis = 0; axis < 3; ++axis) projection_.strides[axis] = strides[axis];
        projection_.tensor.ndim = 3;
        problem.features.projection = &projection_.tensor;
    }
    OwnTensor query_, key_, value_, projection_;
};

}  // namespace attend::ATTEND_ISA
