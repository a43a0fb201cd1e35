// SPDX-License-Identifier: Apache-2.0
// From a mechanism's call to the tile engine: what the host resolved (scale, windows, lengths, dropout) and the tensors
// with a role, ready for the mechanism to add its hooks.
#pragma once

#include "attend/author/mechanism.hpp"
#include "attend/toolkit.h"

namespace attend::ATTEND_ISA {

// A described tensor with arrays of its own: rank up to 4, row-major unless strides say otherwise.
struct OwnTensor {
    attend_tensor tensor;
    int64_t shape[4], strides[4];
};

inline void describe(OwnTensor& own, float* data, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t extents[4] = {a, b, c, d};
    own.tensor = attend_tensor{};
    own.tensor.struct_size = sizeof(attend_tensor);
    own.tensor.data = data;
    own.tensor.device_type = ATTEND_DEVICE_CPU;
    own.tensor.ndim = 4;
    own.tensor.dtype_code = ATTEND_CODE_FLOAT;
    own.tensor.dtype_bits = 32;
    own.tensor.dtype_lanes = 1;
    own.tensor.align = 4;
    own.tensor.shape = own.shape;
    own.tensor.strides = own.strides;
    int64_t step = 1;
    for (int axis = 3; axis >= 0; --axis) {
        own.shape[axis] = extents[axis];
        own.strides[axis] = step;
        step *= extents[axis];
    }
}

// The same memory with other extents and strides.
inline void describe(OwnTensor& own, const attend_tensor& like, const int64_t (&shape)[4],
                     const int64_t (&strides)[4]) {
    own.tensor = like;
    own.tensor.ndim = 4;
    own.tensor.shape = own.shape;
    own.tensor.strides = own.strides;
    for (int axis = 0; axis < 4; ++axis) {
        own.shape[axis] = shape[axis];
        own.strides[axis] = strides[axis];
    }
}

// [B, N, H*D] as [B, H, N, D]: heads are runs of the last axis.
inline void split_heads(OwnTensor& own, const attend_tensor& packed, int64_t heads) {
    const int64_t width = packed.shape[2] / heads;
    describe(own, packed, {packed.shape[0], heads, packed.shape[1], width},
             {packed.strides[0], width * packed.strides[2], packed.strides[1], packed.strides[2]});
}

// Extents of 1 of a mask or bias become strides of 0.
inline void broadcast(OwnTensor& own, const attend_tensor& given, const attend_plan_desc& desc) {
    const int64_t full[4] = {desc.batch, desc.num_q_heads, desc.q_len, desc.kv_len};
    int64_t strides[4];
    for (int axis = 0; axis < 4; ++axis) strides[axis] = given.shape[axis] == 1 ? 0 : given.strides[axis];
    describe(own, given, full, strides);
}

inline double resolved_scale(const attend_plan_desc& desc) {
    return desc.scale == 0.0 ? 1.0 / __builtin_sqrt(static_cast<double>(desc.head_dim)) : desc.scale;
}

// bf16 dots round the weights, too. That averages out over many keys and pays where there is much to multiply; with fewer
// keys than this, and where dropout scales the weights, narrow tensors are computed in float32 and rounded once.
constexpr int64_t fewest_keys_of_dots = 256;

// A problem and the small structs that it points to. Must not move once filled.
struct TileCall {
    attend_tile_problem problem;
    attend_key_segment segments[3];
    OwnTensor mask, bias;

    TileCall(const ForwardArgs& args) { fill(args, args.query, args.key, args.value, args.output); }
    // The projected forms bring tensors of their own.
    TileCall(const ForwardArgs& args, const attend_tensor* query, const attend_tensor* key, const attend_tensor* value,
             const attend_tensor* output) {
        fill(args, query, key, value, output);
    }
    TileCall(const TileCall&) = delete;
    TileCall& operator=(const TileCall&) = delete;

    void add_segment(const attend_tensor* key, const attend_tensor* value, uint32_t flags) {
        segments[problem.num_segments++] = attend_key_segment{key, value, flags, 0, nullptr};
    }

private:
    void fill(const ForwardArgs& args, const attend_tensor* query, const attend_tensor* key, const attend_tensor* value,
              const attend_tensor* output) {
        const attend_plan_desc& desc = *args.desc;
        problem = attend_tile_problem{};
        problem.flags = ((desc.flags & ATTEND_PLAN_CAUSAL) ? ATTEND_TILE_CAUSAL : 0u) |
                        ((desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) ? ATTEND_TILE_OFFSET_PER_ITEM : 0u) |
                        (desc.kv_len < fewest_keys_of_dots || desc.dropout > 0.0 ? ATTEND_TILE_WIDEN : 0u);
        problem.query = query;
        problem.segments = segments;
        if (key) add_segment(key, value, 0);
        problem.output = output;
        problem.lse = args.lse;
        problem.scores = args.scores;
        problem.first_row = args.rows.first;
        problem.num_rows = args.rows.count;
        if (args.rows.logits) problem.flags |= ATTEND_TILE_LOGITS;
        if (args.mask) broadcast(mask, *args.mask, desc), problem.mask = &mask.tensor;
        if (args.bias) broadcast(bias, *args.bias, desc), problem.bias = &bias.tensor;
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
    }
};

// f(a tile problem that has the shapes and types of a plan, and no data): what scratch of an engine follows from. With
// up to extra_keys always-visible keys behind the main ones. Of hooks the sizes count, and what is set, not what it
// points to.
template <class F>
uint64_t with_tile_shapes(const attend_plan_desc& desc, int64_t max_query_tile, int64_t max_key_tile, F f,
                          int64_t extra_keys = 0, const attend_tile_hooks* hooks = nullptr) {
    OwnTensor query, key, value, output, extra_key, extra_value;
    describe(query, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.head_dim);
    describe(key, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.head_dim);
    describe(value, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.value_dim);
    describe(output, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.value_dim);
    describe(extra_key, nullptr, desc.batch, desc.num_kv_heads, extra_keys, desc.head_dim);
    describe(extra_value, nullptr, desc.batch, desc.num_kv_heads, extra_keys, desc.value_dim);
    // Scratch depends on the types, too; in the projected forms, whose tensors have other ranks, these are float32.
    const struct {
        OwnTensor* own;
        uint32_t role;
    } stored[] = {{&query, ATTEND_Q}, {&key, ATTEND_K}, {&value, ATTEND_V}, {&output, ATTEND_OUT}};
    for (const auto& entry : stored)
        if (const attend_tensor* bound = attend_find(&desc.bindings, entry.role)) {
            entry.own->tensor.dtype_code = bound->dtype_code;
            entry.own->tensor.dtype_bits = bound->dtype_bits;
        }
    const attend_key_segment segments[2] = {
        {&key.tensor, &value.tensor, 0, 0, nullptr},
        {&extra_key.tensor, &extra_value.tensor, ATTEND_SEGMENT_ALWAYS_VISIBLE, 0, nullptr}};
    attend_tile_problem problem{};
    problem.query = &query.tensor;
    problem.segments = segments;
    problem.num_segments = extra_keys > 0 ? 2 : 1;
    problem.output = &output.tensor;
    problem.dropout = desc.dropout;
    problem.max_query_tile = max_query_tile;
    problem.max_key_tile = max_key_tile;
    problem.hooks = hooks;
    return f(problem);
}
// Scratch of the tile engine for a plan.
inline uint64_t tile_workspace(const attend_plan_desc& desc, int64_t extra_keys = 0, int64_t max_query_tile = 0,
                               int64_t max_key_tile = 0, const attend_tile_hooks* hooks = nullptr) {
    return with_tile_shapes(
        desc, max_query_tile, max_key_tile,
        [&desc](const attend_tile_problem& problem) {
            return ATTEND_KERNEL(attend_tile_workspace)(&problem, desc.max_workers);
        },
        extra_keys, hooks);
}

// Hooks as structs with static functions (toolkit/tile/keys, toolkit/tile/scores). The struct must outlive the call.
template <class Keys>
void use_keys(attend_tile_problem& problem, const Keys& keys) {
    problem.keys = Keys::visit;
    problem.keys_user = &keys;
    problem.keep = Keys::keep;
    problem.keep_user = &keys;
}
template <class Scores>
void use_scores(attend_tile_problem& problem, const Scores& scores) {
    problem.score = Scores::apply;
    problem.score_user = &scores;
}

inline attend_status run_tiles(const TileCall& call, const Context& context) {
    return ATTEND_KERNEL(attend_tile_forward)(&call.problem, &context);
}

// Pairs that a softmax mechanism computes: all, or those under the diagonal and inside the window, in queries x keys.
inline double visible_pairs(const attend_plan_desc& desc) {
    const auto nq = static_cast<double>(desc.q_len), nk = static_cast<double>(desc.kv_len);
    const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    double pairs = 0;
    if (!causal && desc.window_left < 0 && desc.window_right < 0) return nq * nk;
    for (int64_t i = 0; i < desc.q_len; ++i) {
        const double position = static_cast<double>(i + desc.causal_offset);
        double low = desc.window_left < 0 ? 0.0 : position - static_cast<double>(desc.window_left);
        double high = desc.window_right < 0 ? nk - 1 : position + static_cast<double>(desc.window_right);
        if (causal && position < high) high = position;
        if (low < 0) low = 0;
        if (high > nk - 1) high = nk - 1;
        if (high >= low) pairs += high - low + 1;
    }
    return pairs;
}

// Flops and bytes of softmax attention over so many pairs per head: two products, each tensor once.
inline void softmax_cost(const attend_plan_desc& desc, double pairs, attend_cost& cost) {
    const auto b = static_cast<double>(desc.batch), hq = static_cast<double>(desc.num_q_heads),
               hkv = static_cast<double>(desc.num_kv_heads), nq = static_cast<double>(desc.q_len),
               nk = static_cast<double>(desc.kv_len), d = static_cast<double>(desc.head_dim),
               dv = static_cast<double>(desc.value_dim);
    cost.flops = 2.0 * b * hq * pairs * (d + dv);
    const double width = desc.io_dtype == ATTEND_F32 ? 4.0 : 2.0;
    cost.bytes = width * b * (hq * nq * (d + dv) + hkv * nk * (d + dv));
}

// Carves the workspace of a mechanism that runs several engines: aligned pieces, one behind the other.
struct Carve {
    char* at;
    uint64_t left;
    explicit Carve(const Context& context) : at(static_cast<char*>(context.workspace)), left(context.workspace_bytes) {}
    static uint64_t floats(int64_t count) {
        return (static_cast<uint64_t>(count) * sizeof(float) + 63) & ~uint64_t{63};
    }
    float* take(int64_t count) {
        float* piece = reinterpret_cast<float*>(at);
        at += floats(count);
        left -= floats(count);
        return piece;
    }
    Context rest(const Context& context) const {
        Context part = context;
        part.workspace = at;
        part.workspace_bytes = left;
        return part;
    }
};

}  // namespace attend::ATTEND_ISA
