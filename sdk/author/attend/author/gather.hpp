// SPDX-License-Identifier: Apache-2.0
// From a mechanism's call to the gather engine: rows on lists of keys.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/gather.h"

namespace attend::ATTEND_ISA {

// Scratch of the gather engine for a plan; of `lists` the sizes count.
inline uint64_t gather_workspace(const attend_plan_desc& desc, const attend_gather_problem& lists) {
    OwnTensor query, key, value;
    describe(query, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.head_dim);
    describe(key, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.head_dim);
    describe(value, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.value_dim);
    const struct {
        OwnTensor* own;
        uint32_t role;
    } stored[] = {{&query, ATTEND_Q}, {&key, ATTEND_K}, {&value, ATTEND_V}};
    for (const auto& entry : stored)
        if (const attend_tensor* bound = attend_find(&desc.bindings, entry.role)) {
            entry.own->tensor.dtype_code = bound->dtype_code;
            entry.own->tensor.dtype_bits = bound->dtype_bits;
        }
    const attend_key_segment segment{&key.tensor, &value.tensor, 0, 0, nullptr};
    attend_tile_problem call{};
    call.query = &query.tensor;
    call.segments = &segment;
    call.num_segments = 1;
    call.output = &query.tensor;
    call.dropout = desc.dropout;
    attend_gather_problem problem = lists;
    problem.call = &call;
    return ATTEND_KERNEL(attend_gather_workspace)(&problem, desc.max_workers);
}

}  // namespace attend::ATTEND_ISA
