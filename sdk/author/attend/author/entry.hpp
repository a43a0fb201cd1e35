// SPDX-License-Identifier: Apache-2.0
// The data that a mechanism file hands to its plugin: plain structs, shared by kernels (compiled once per instruction
// set) and plugin.cpp (compiled once). No functions here, so nothing is emitted twice.
#pragma once

#include "attend/plugin.h"

namespace attend::author {

// Options without a default value: `given` is 0 when the caller left them out.
struct OptionalInt {
    int64_t value;
    int64_t given;
};
struct OptionalReal {
    double value;
    int64_t given;
};
// A list option; is_scalar when it was written as one bare number. The items live as long as the plan.
struct IntList {
    const int64_t* items;
    uint32_t count;
    uint32_t is_scalar;
};

enum class Field : uint32_t {
    none,              // resolved by the host into the plan description: causal, scale, windows, dropout, seed ...
    boolean,           // int32_t, 0 or 1
    integer,           // int64_t
    optional_integer,  // OptionalInt
    real,              // double
    optional_real,     // OptionalReal
    enumeration,       // int32_t, index in the choices
    integer_list,      // IntList
};

// One row of an option table: the ABI's row, and behind it where the value goes in the Options struct. `reads` is a
// guard (below) that says when the option is read; given otherwise and not at its default, it is reported as a warning.
struct OptionRow {
    attend_option row;
    Field field;
    uint32_t offset;
    const char* reads;
};

// A prepared call description as functions of a mechanism see it before any tensor exists.
struct PlanArgs {
    const attend_plan_desc* desc;  // bindings hold shapes of inputs and outputs, and weights with data
    const attend_array* values;    // attend_value of every option
};

// Rows of `scores` that a call is for (attend_scores_extension); count 0: an ordinary call.
struct ScoreRows {
    int64_t first, count;
    bool logits;  // what the softmax makes weights of, minus infinity where a key is not seen
};
// What a mechanism can say of rows of its scores.
enum class ScoreStages : uint32_t { none, weights, weights_and_logits };

// One call. Tensors that were not bound are NULL. Lengths have been checked against the extents. A call for rows of scores has
// no other output with a role, and need not write those without one; its scores look as if all rows were there, but only
// those asked for may be touched.
struct ForwardArgs {
    const attend_plan_desc* desc;  // bindings and options are empty here
    const attend_tensor *query, *key, *value, *output, *lse, *scores, *mask, *bias, *query_lengths, *key_lengths;
    const attend_array* bindings;  // of the call: inputs and outputs without a role, by name
    const attend_array* weights;   // of the plan
    const attend_array* values;    // options, for attend_find_option
    const void* prepared;          // what prepare filled, or NULL
    const attend_exec* exec;       // seed, rng_offset, per-call blocks
    ScoreRows rows;
};

// Query rows whose keys a mechanism is asked for (attend_pattern_extension).
struct PatternArgs {
    int64_t head, first_row, num_rows, rows_at_once;
    attend_pattern_visit_fn visit;
    void* visitor;
};

// Rows [first, first + count) of one item and head of a tensor [n, heads, rows, width], for a cache that keeps them as `dtype`
// (one bit, ATTEND_F32 ...), next to each other; scales where they become codes.
struct CacheRows {
    const attend_tensor* from;
    int64_t item, head, first, count;
    uint32_t dtype;
    void* to;
    float* scales;
};

// Everything plugin.cpp needs of one mechanism in one instruction set.
struct MechanismEntry {
    const char *name, *category, *title, *summary, *reference, *time_complexity, *space_complexity;
    uint64_t caps;
    uint64_t dtypes{ATTEND_F32};  // of query, key, value and output; their ports say the same (common::stored)
    uint32_t numerics, revision;
    const OptionRow* options;
    uint32_t option_count, options_size;
    const attend_port* ports;
    uint32_t port_count, reserved{0};
    // Rejections beyond ranges and shapes. Optional. No allocation.
    attend_status (*check)(const void* options, const PlanArgs& args, attend_error* error) = nullptr;
    // Bytes of memory that prepare fills once per plan. Optional, together.
    uint64_t (*prepared_bytes)(const void* options, const PlanArgs& args) = nullptr;
    attend_status (*prepare)(const void* options, const PlanArgs& args, void* memory,
                             const attend_context& context) = nullptr;
    // Workspace of one call, from shapes alone.
    uint64_t (*workspace)(const void* options, const PlanArgs& args) = nullptr;
    attend_status (*forward)(const void* options, const ForwardArgs& args, const attend_context& context);
    void (*cost)(const void* options, const PlanArgs& args, attend_cost& cost) = nullptr;
    double (*error_bound)(const void* options, const PlanArgs& args) = nullptr;  // NULL: exact
    // The context has the workspace of a call on one worker.
    attend_status (*pattern)(const void* options, const PlanArgs& args, const PatternArgs& asked,
                             const attend_context& context) = nullptr;
    attend_guide_extension guide{};
    // Writes rows of a cache; false: they hold NaN or infinity, and codes cannot. With it the mechanism, which must have the
    // inputs of author/key_cache.hpp, offers attend.kv-cache/1.
    bool (*write_rows)(const CacheRows& rows) = nullptr;
    // forward understands ForwardArgs::rows: with an output of role SCORES the mechanism offers attend.scores/1.
    ScoreStages score_rows = ScoreStages::none;
};

}  // namespace attend::author
