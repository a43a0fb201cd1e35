// SPDX-License-Identifier: Apache-2.0
// Key patterns in a mechanism: hooks of the engine, the answer of attend.pattern/1, the pairs that cost() counts.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/pattern.h"

namespace attend::ATTEND_ISA {

// A pattern and room for its terms. Must not move once it is in use.
struct Pattern {
    attend_pattern_term terms[ATTEND_PATTERN_MOST_TERMS];
    attend_pattern pattern;

    explicit Pattern(const attend_plan_desc& desc) {
        pattern = attend_pattern{};
        pattern.flags = (desc.flags & ATTEND_PLAN_CAUSAL) != 0 ? ATTEND_PATTERN_CAUSAL : 0u;
        pattern.terms = terms;
        pattern.num_keys = desc.kv_len;
        pattern.key_step = 1;
    }
    Pattern(const Pattern&) = delete;
    Pattern& operator=(const Pattern&) = delete;

    attend_pattern_term& add(const attend_pattern_term& term) { return terms[pattern.num_terms++] = term; }
};

inline void use_pattern(attend_tile_problem& problem, const Pattern& pattern) {
    problem.keys = ATTEND_KERNEL(attend_pattern_keys);
    problem.keep = ATTEND_KERNEL(attend_pattern_keep);
    problem.keys_user = problem.keep_user = &pattern.pattern;
}

// All rows of a head. `own_window`: the call's window options are the mechanism's own and cut nothing further.
inline attend_pattern_rows pattern_rows(const attend_plan_desc& desc, int64_t head, bool own_window) {
    attend_pattern_rows rows{};
    rows.head = head;
    rows.num_rows = desc.q_len;
    rows.offset = desc.causal_offset;
    rows.window_left = own_window ? -1 : desc.window_left;
    rows.window_right = own_window ? -1 : desc.window_right;
    return rows;
}

// The answer to `asked`; tile_rows: rows of a query tile (0: the engine chooses).
inline attend_status answer_pattern(const Pattern& pattern, const attend_plan_desc& desc, const PatternArgs& asked,
                                    bool own_window, int64_t tile_rows = 0) {
    attend_pattern_rows rows = pattern_rows(desc, asked.head, own_window);
    rows.first_row = asked.first_row;
    rows.num_rows = asked.num_rows;
    rows.rows_at_once = asked.rows_at_once;
    rows.tile_rows = tile_rows;
    ATTEND_KERNEL(attend_pattern_visit)(&pattern.pattern, &rows, asked.visit, asked.visitor);
    return ATTEND_OK;
}

// Pairs of one head, for cost().
inline double pattern_pairs(const Pattern& pattern, const attend_plan_desc& desc, int64_t head, bool own_window) {
    const attend_pattern_rows rows = pattern_rows(desc, head, own_window);
    return ATTEND_KERNEL(attend_pattern_pairs)(&pattern.pattern, &rows);
}

// For patterns that are defined where every row i < query length stands on the key axis. `where` names the mechanism. In
// check() rows cannot be counted if there are lengths; forward() looks again.
inline attend_status check_positions(const char* where, int64_t offset, int64_t count, int64_t keys,
                                     attend_error* error) {
    if (count <= 0 || keys == 0 || (offset >= 0 && offset + count <= keys)) return ATTEND_OK;
    return (Message() << where << ": " << count << " queries stand at the positions " << offset << " to "
                      << offset + count - 1 << " of " << keys << " keys; accepted: positions from 0 to " << keys - 1
                      << ", so no more queries than keys")
        .fail(error, ATTEND_BAD_SHAPE, "query");
}
inline attend_status check_plan_positions(const char* where, const attend_plan_desc& desc, attend_error* error) {
    if (attend_find(&desc.bindings, ATTEND_Q_LENGTHS) != nullptr) return ATTEND_OK;
    return check_positions(where, desc.causal_offset, desc.q_len, desc.kv_len, error);
}
inline attend_status check_call_positions(const char* where, const ForwardArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (args.query_lengths == nullptr) return ATTEND_OK;
    for (int64_t b = 0; b < desc.batch; ++b) {
        const int64_t rows = integer_at(args.query_lengths, b);
        const bool per_item = (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) != 0;
        const int64_t offset = per_item ? integer_at(args.key_lengths, b) - rows : desc.causal_offset;
        if (const attend_status status = check_positions(where, offset, rows, desc.kv_len, error)) return status;
    }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA
