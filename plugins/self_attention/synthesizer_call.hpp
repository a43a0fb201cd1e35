// SPDX-License-Identifier: Apache-2.0
// From the options of synthesizer-attention and the tensors of a call to tables, shares and hooks.
#pragma once

#include "synthesizer_options.hpp"
#include "synthesizer_tables.hpp"

namespace attend::ATTEND_ISA::synthesizer {

// Groups of query heads that share values but no tables run one after the other, each with its own head of values.
inline bool splits(const Options& options, const attend_plan_desc& desc) {
    return desc.num_q_heads != desc.num_kv_heads && !options.shared_heads && !only(options, dot_product);
}
inline attend_plan_desc part_of(const Options& options, const attend_plan_desc& desc, bool wide) {
    attend_plan_desc part = desc;
    if (splits(options, desc)) part.num_q_heads = part.num_kv_heads = desc.num_q_heads / desc.num_kv_heads;
    if (!wide) part.head_dim = 1;
    return part;
}

// The engine wants keys of the values' type, so that tables, which are float32, are its keys only where values are, too.
inline BaseScores base_of(const Options& options, bool narrow) {
    if (has(options, dot_product)) return BaseScores::dot;
    return has(options, dense) && options.local_context == 0 && !narrow ? BaseScores::dense : BaseScores::none;
}
inline bool is_narrow(const attend_tensor* query, const attend_tensor* value) {
    return (query != nullptr && !is_f32(query)) || (value != nullptr && !is_f32(value));
}

// Presence, sizes and shares; tables of a call are filled in by `forward`.
inline SynthesizerTables sizes_of(const Options& options, const attend_plan_desc& desc, bool narrow) {
    SynthesizerTables tables{};
    tables.base = base_of(options, narrow);
    tables.local = options.local_context;
    tables.tiled = options.tiling == tile;
    tables.head_dim = desc.head_dim;
    tables.rank = options.rank;
    tables.rows = options.max_length.given ? options.max_length.value : desc.kv_len;
    const Factors factors(options, tables.rows);
    tables.a = factors.a;
    tables.b = factors.b;
    tables.dense_w.present = has(options, dense);
    tables.random_r.present = has(options, random);
    tables.a_w.present = has(options, factorized_dense);
    tables.r1.present = has(options, factorized_random);
    return tables;
}

inline attend_tile_hooks hooks_of(const SynthesizerTables& tables, const attend_plan_desc& part) {
    attend_tile_hooks hooks{};
    hooks.user = &tables;
    hooks.queries = prepare_synthesizer;
    hooks.content = score_synthesizer;
    const int64_t rows = part.q_len * (part.num_q_heads / part.num_kv_heads);
    const int64_t lanes = rows < max_lanes ? (rows + batch_lanes - 1) / batch_lanes * batch_lanes : max_lanes;
    hooks.tile_floats = tables.tile_rows_needed() * lanes;
    hooks.scratch_floats = default_key_tile * lanes;
    // Tiles of a group keep their memory at the same time.
    constexpr int64_t most_floats = 1 << 18;
    const int64_t group = hooks.tile_floats == 0 ? 0 : most_floats / hooks.tile_floats;
    hooks.max_group = tables.random_r.present ? 1 : hooks.tile_floats == 0 ? 0 : group < 1 ? 1 : group;
    return hooks;
}

// Heads [first, first + count) of axis 1; an extent of 1 there (masks) stands for all.
inline void slice_heads(OwnTensor& own, const attend_tensor& from, int64_t first, int64_t count) {
    own.tensor = from;
    own.tensor.shape = own.shape;
    own.tensor.strides = own.strides;
    for (int axis = 0; axis < from.ndim; ++axis) {
        own.shape[axis] = from.shape[axis];
        own.strides[axis] = from.strides[axis];
    }
    if (from.shape[1] == 1) return;
    own.shape[1] = count;
    own.tensor.data = static_cast<char*>(from.data) + first * from.strides[1] * (from.dtype_bits / 8);
}

// The tables of a call and the shares of the components.
inline void bind_tables(const Options& options, const ForwardArgs& args, SynthesizerTables& tables) {
    const auto weight = [&](const char* name) { return attend_find_name(args.weights, name); };
    tables.dense_w = view_of<const float, 3>(weight("dense_w"));
    tables.dense_b = view_of<const float, 2>(weight("dense_b"));
    tables.random_r = view_of<const float, 3>(weight("random_r"));
    tables.r1 = view_of<const float, 3>(weight("fact_r1"));
    tables.r2 = view_of<const float, 3>(weight("fact_r2"));
    tables.a_w = view_of<const float, 3>(weight("fact_a"));
    tables.a_b = view_of<const float, 2>(weight("fact_ab"));
    tables.b_w = view_of<const float, 3>(weight("fact_b"));
    tables.b_b = view_of<const float, 2>(weight("fact_bb"));
    tables.biased = tables.dense_b.present && (weight("dense_b")->flags & ATTEND_TENSOR_INITIALISED) == 0;
    double share[num_components] = {1.0, 1.0, 1.0, 1.0, 1.0};
    if (const attend_tensor* logits = weight("mix_logits")) {
        const IntList& order = options.components;
        const auto logit = [&](uint32_t at) {
            return static_cast<double>(static_cast<const float*>(logits->data)[at * logits->strides[0]]);
        };
        double largest = logit(0), sum = 0.0;
        for (uint32_t at = 1; at < order.count; ++at) largest = logit(at) > largest ? logit(at) : largest;
        for (uint32_t at = 0; at < order.count; ++at) sum += ::exp(logit(at) - largest);
        for (uint32_t at = 0; at < order.count; ++at) share[order.items[at]] = ::exp(logit(at) - largest) / sum;
    }
    tables.dense = static_cast<float>(share[dense]);
    tables.random = static_cast<float>(share[random]);
    tables.factorized_dense = static_cast<float>(share[factorized_dense]);
    tables.factorized_random = static_cast<float>(share[factorized_random]);
    tables.dot = static_cast<float>(share[dot_product] * resolved_scale(*args.desc));
}

}  // namespace attend::ATTEND_ISA::synthesizer
