// SPDX-License-Identifier: Apache-2.0
// From a mechanism's call to the head-mixing engine: what the host resolved and the tensors with a role, ready for the
// mechanism to add its mixing matrices.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/head_mix.h"

namespace attend::ATTEND_ISA {

inline attend_head_mix_problem head_mix_call(const ForwardArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    attend_head_mix_problem problem{};
    problem.flags = ((desc.flags & ATTEND_PLAN_CAUSAL) ? ATTEND_TILE_CAUSAL : 0u) |
                    ((desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) ? ATTEND_TILE_OFFSET_PER_ITEM : 0u);
    problem.query = args.query;
    problem.key = args.key;
    problem.value = args.value;
    problem.output = args.output;
    problem.lse = args.lse;
    problem.mask = args.mask;
    problem.bias = args.bias;
    problem.query_lengths = args.query_lengths;
    problem.key_lengths = args.key_lengths;
    problem.causal_offset = desc.causal_offset;
    problem.window_left = desc.window_left;
    problem.window_right = desc.window_right;
    problem.scale = resolved_scale(desc);
    problem.softcap = desc.softcap;
    problem.dropout = desc.dropout;
    problem.seed = args.exec ? args.exec->seed : 0;
    problem.rng_offset = args.exec ? args.exec->rng_offset : 0;
    return problem;
}

// Scratch of the engine for a plan: types count too, those of tensors that are bound.
inline uint64_t head_mix_workspace(const attend_plan_desc& desc, int64_t softmax_heads, int64_t value_heads) {
    OwnTensor query, key, value, pre_mix;
    describe(query, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.head_dim);
    describe(key, nullptr, desc.batch, desc.num_q_heads, desc.kv_len, desc.head_dim);
    describe(value, nullptr, desc.batch, value_heads, desc.kv_len, desc.value_dim);
    describe(pre_mix, nullptr, 1, 1, desc.num_q_heads, softmax_heads);
    pre_mix.tensor.ndim = 2;
    pre_mix.tensor.shape = pre_mix.shape + 2;
    const struct {
        OwnTensor* own;
        uint32_t role;
    } stored[] = {{&query, ATTEND_Q}, {&key, ATTEND_K}};
    for (const auto& entry : stored)
        if (const attend_tensor* bound = attend_find(&desc.bindings, entry.role)) {
            entry.own->tensor.dtype_code = bound->dtype_code;
            entry.own->tensor.dtype_bits = bound->dtype_bits;
        }
    attend_head_mix_problem problem{};
    problem.query = &query.tensor;
    problem.key = &key.tensor;
    problem.value = &value.tensor;
    problem.pre_mix = &pre_mix.tensor;
    return ATTEND_KERNEL(attend_head_mix_workspace)(&problem, desc.max_workers);
}

}  // namespace attend::ATTEND_ISA
