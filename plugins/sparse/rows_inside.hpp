// SPDX-License-Identifier: Apache-2.0
// Patterns that are only defined where queries stand on keys: the refusal of others.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/tensor_view.hpp"

namespace attend::ATTEND_ISA {

inline attend_status refuse_outside(const char* mechanism, int64_t offset, int64_t rows, int64_t keys,
                                    attend_error* error) {
    if (rows <= 0 || keys == 0 || (offset >= 0 && offset + rows <= keys)) return ATTEND_OK;
    return (Message() << mechanism << ": " << rows << " queries stand at the positions " << offset << " to "
                      << offset + rows - 1 << " of " << keys << " keys; accepted: positions from 0 to " << keys - 1)
        .fail(error, ATTEND_BAD_SHAPE, "query");
}
// With query lengths fewer rows may count; they are known when the call runs.
inline attend_status refuse_outside(const char* mechanism, const attend_plan_desc& desc, attend_error* error) {
    if (attend_find(&desc.bindings, ATTEND_Q_LENGTHS) != nullptr) return ATTEND_OK;
    return refuse_outside(mechanism, desc.causal_offset, desc.q_len, desc.kv_len, error);
}
inline attend_status refuse_outside(const char* mechanism, const ForwardArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    for (int64_t b = 0; b < desc.batch && args.query_lengths != nullptr; ++b) {
        const int64_t rows = integer_at(args.query_lengths, b);
        const bool per_item = (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) != 0;
        const int64_t offset = per_item ? integer_at(args.key_lengths, b) - rows : desc.causal_offset;
        const attend_status status = refuse_outside(mechanism, offset, rows, desc.kv_len, error);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA
