// SPDX-License-Identifier: Apache-2.0
// What the linear engine derives from a problem once: sizes, tiling, how the work is cut, scratch layout.
#pragma once

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/linear.h"
#include "attend/toolkit/linear/prefix_state.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

// Keys of a chunk. The triangle inside a chunk costs chunk / 2 * (F + Dv) per query, the state 2 F Dv whatever the chunk
// is, and a pass over the state is paid once per chunk. One full tile of the widest entry is best from F = 32 to 266: twice
// as many keys cost 6 to 18 %.
constexpr int64_t default_chunk = 48;
constexpr int64_t key_lanes = max_lanes;
constexpr int64_t segment_keys = 8192;  // sums are chains of chunks in a segment, then chains of segments
constexpr int64_t least_segment = 512;
constexpr int64_t wanted_units = 64;  // pieces of work that a call should have for machines with many cores
// Causal rows of a segment read the sum of two states, which costs a pass over both per chunk (5 to 8 %): cut less there.
constexpr int64_t causal_segment_keys = 16384, causal_wanted_units = 8;
constexpr int64_t tail_rows = 4 * max_lanes;

constexpr int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

struct LinearSizes {
    int64_t batch{0}, q_heads{0}, kv_heads{0}, q_len{0}, kv_len{0}, head_dim{0}, value_dim{0};
    int64_t groups{0};  // heads with a state of their own: key heads, or query heads if mask or bias tell them apart
    int64_t group_heads{1};  // query heads that read one state
    int64_t raw{0};          // rows of Omega, or D
    int64_t features{0};     // F
    int64_t rows{0};         // of a state: F, and one more for the constant feature of the official stabiliser
    int64_t chunk{default_chunk}, segment{segment_keys}, segments{0};
    int64_t tail_blocks{0};
    ValueTiles values;
    bool causal{false};
    bool gated{false};        // keys lessen those before them
    bool weight_sums{false};  // rows need the sum of their weights
    bool log_weights{false};  // keys carry a logarithmic weight, so state and rows carry a reference
    bool scan{false};         // causal and official: the largest u of all keys must be known before the first row

    int64_t tiles() const { return up(chunk, key_lanes) / key_lanes; }
    int64_t units() const { return batch * groups; }
};

inline bool is_exponential(uint32_t kind) {
    return kind == ATTEND_FEATURES_SOFTMAX || kind == ATTEND_FEATURES_HYPERBOLIC;
}
inline bool is_stabilised(uint32_t kind) { return is_exponential(kind) || kind == ATTEND_FEATURES_TRIG; }
inline bool has_head_axis(const attend_tensor* tensor) {
    return tensor != nullptr && tensor->ndim == 4 && tensor->shape[1] > 1;
}

inline LinearSizes linear_sizes(const attend_linear_problem& problem) {
    const attend_feature_map& map = problem.features;
    LinearSizes sizes;
    sizes.batch = problem.query->shape[0];
    sizes.q_heads = problem.query->shape[1];
    sizes.q_len = problem.query->shape[2];
    sizes.head_dim = problem.query->shape[3];
    sizes.kv_heads = problem.key->shape[1];
    sizes.kv_len = problem.key->shape[2];
    sizes.value_dim = problem.value->shape[3];
    sizes.causal = (problem.flags & ATTEND_LINEAR_CAUSAL) != 0;
    const bool per_head = has_head_axis(problem.mask) || has_head_axis(problem.bias);
    sizes.groups = per_head ? sizes.q_heads : sizes.kv_heads;
    sizes.group_heads = sizes.groups > 0 ? sizes.q_heads / sizes.groups : 1;

    sizes.raw = map.projection != nullptr ? map.projection->shape[1] : sizes.head_dim;
    const bool twice = map.kind == ATTEND_FEATURES_HYPERBOLIC || map.kind == ATTEND_FEATURES_TRIG ||
                       map.kind == ATTEND_FEATURES_COSINE || map.kind == ATTEND_FEATURES_SINCOS;
    sizes.features = map.kind == ATTEND_FEATURES_DPFP ? 2 * sizes.head_dim * map.nu : (twice ? 2 : 1) * sizes.raw;
    const bool official = is_stabilised(map.kind) && map.official != 0;
    const bool constant = official && !sizes.causal && is_exponential(map.kind);
    sizes.rows = sizes.features + (constant ? 1 : 0);
    sizes.gated = problem.gates != nullptr;
    sizes.weight_sums = problem.guard == ATTEND_GUARD_WEIGHT;
    sizes.log_weights = problem.bias != nullptr || sizes.gated || map.kind == ATTEND_FEATURES_TRIG ||
                        (is_exponential(map.kind) && !official) || problem.initial != nullptr;
    sizes.scan = official && sizes.causal;
    sizes.values = ValueTiles(sizes.value_dim);

    sizes.chunk = problem.chunk > 0 ? problem.chunk : default_chunk;
    sizes.chunk = most(1, least(sizes.chunk, up(sizes.kv_len, key_lanes)));
    // Segments follow from shapes alone, so that sums are the same for any number of workers.
    const int64_t units = sizes.causal ? causal_wanted_units : wanted_units;
    const int64_t longest = sizes.causal ? causal_segment_keys : segment_keys;
    const int64_t spare = sizes.units() > 0 ? units / sizes.units() : 1;
    int64_t wanted = least(most(spare, 1), sizes.kv_len / least_segment);
    wanted = most(most(wanted, 1), (sizes.kv_len + longest - 1) / longest);
    sizes.segment = up(most((sizes.kv_len + wanted - 1) / wanted, 1), sizes.chunk);
    sizes.segments = (sizes.kv_len + sizes.segment - 1) / sizes.segment;
    sizes.tail_blocks = (sizes.q_len + tail_rows - 1) / tail_rows;
    return sizes;
}

// Scratch of one worker.
struct LinearScratch {
    // The keys of a chunk, in tiles of key_lanes: features [tile][rows][lane], and per key.
    float *keys, *largest, *norm, *log_weight, *weight;
    float* log_rest;  // what rounding took from log_weight, of gated keys
    double *prefix_max, *prefix_weight, *drift;
    uint8_t* visible;
    int32_t *prefix_count, *wild;
    float* values;       // [value tile][key][lanes of the tile]
    float* weight_sums;  // [F], of the chunk
    // Tokens of one tile: rows on their way to features, and features of queries.
    float *input, *queries;
    const float** token_rows;
    // A tile of queries.
    float* triangle;  // [key][lane]
    float* acc;       // [Dv][lane]
    float *sum, *query_max, *query_norm, *reference, *reference_rest, *factor;
    double *row_reference, *row_weight;  // logarithms of what sums must be multiplied by, and of the sum of weights
    float** out_rows;
    PrefixState total, partial, reading;

    static LinearScratch take(Workspace& space, const LinearSizes& sizes, bool dpfp) {
        const int64_t keys = sizes.tiles() * key_lanes;
        LinearScratch scratch;
        scratch.keys = space.take<float>(sizes.rows * keys);
        scratch.largest = space.take<float>(keys);
        scratch.norm = space.take<float>(keys);
        scratch.log_weight = space.take<float>(keys);
        scratch.weight = space.take<float>(keys);
        scratch.log_rest = space.take<float>(keys);
        scratch.prefix_max = space.take<double>(keys);
        scratch.prefix_weight = space.take<double>(keys);
        scratch.drift = space.take<double>(keys);
        scratch.visible = space.take<uint8_t>(keys);
        scratch.prefix_count = space.take<int32_t>(keys);
        scratch.wild = space.take<int32_t>(keys);
        scratch.values = space.take<float>(keys * sizes.values.width());
        scratch.weight_sums = space.take<float>(up(sizes.features, batch_lanes));
        scratch.input = space.take<float>((dpfp ? 2 : 1) * sizes.head_dim * max_lanes);
        scratch.queries = space.take<float>(sizes.features * max_lanes);
        scratch.token_rows = space.take<const float*>(max_lanes);
        scratch.triangle = sizes.causal ? space.take<float>(keys * max_lanes) : nullptr;
        scratch.acc = space.take<float>(sizes.value_dim * max_lanes);
        scratch.sum = space.take<float>(max_lanes);
        scratch.query_max = space.take<float>(max_lanes);
        scratch.query_norm = space.take<float>(max_lanes);
        scratch.reference = space.take<float>(max_lanes);
        scratch.reference_rest = space.take<float>(max_lanes);
        scratch.row_reference = space.take<double>(max_lanes);
        scratch.row_weight = space.take<double>(max_lanes);
        scratch.factor = space.take<float>(max_lanes);
        scratch.out_rows = space.take<float*>(max_lanes);
        scratch.total = PrefixState::take(space, sizes.rows, sizes.values);
        scratch.partial = PrefixState::take(space, sizes.rows, sizes.values);
        scratch.reading = PrefixState::take(space, sizes.rows, sizes.values);
        return scratch;
    }
};

// Sines and cosines of positions 0 .. count - 1 of one item or of all; readable for a whole tile behind any of them.
struct AngleTable {
    float *sines, *cosines;
    int64_t count, items, step;

    static AngleTable take(Workspace& space, int64_t count, int64_t items) {
        AngleTable table{nullptr, nullptr, count, items, count + max_lanes};
        table.sines = space.take<float>(table.step * items);
        table.cosines = space.take<float>(table.step * items);
        return table;
    }
    int64_t at(int64_t item, int64_t position) const { return (items > 1 ? item : 0) * step + position; }
};

// One call of the engine, read by all workers.
struct LinearRun {
    const attend_linear_problem* problem;
    LinearSizes sizes;
    TensorView<const float, 4> query, key, value, bias;
    TensorView<const uint8_t, 4> mask;
    TensorView<const float, 3> projection, gates;
    TensorView<float, 4> output;
    TensorView<float, 3> lse;
    float query_scale, key_scale, feature_eps, kernel_eps;
    double feature_norm;  // 1/M or 1/(2M): the factor that phi(q) phi(k) is short of
    bool official;
    bool plain;  // the short way of plain_rows.hpp
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
    PrefixState* states;  // [unit][segments + 1], when the phases are run apart
    float* largest;       // [unit][segment], for the scan
    AngleTable key_angles, query_angles;

    LinearScratch scratch(uint32_t slot) const {
        Workspace space(memory + slot * slot_bytes);
        return LinearScratch::take(space, sizes, problem->features.kind == ATTEND_FEATURES_DPFP);
    }
};

// The part of a call that belongs to one batch item and one state.
struct Unit {
    int64_t batch, group, first_head, kv_head;
    int64_t keys, rows;  // lengths of the item
    int64_t offset;      // position of query 0
    float largest;       // of all visible keys, after a scan

    // First row with a position of at least `position`, within the item's rows.
    int64_t row_at(int64_t position) const { return most(0, least(rows, position - offset)); }
};

inline Unit unit_of(const LinearRun& run, int64_t index) {
    const attend_linear_problem& problem = *run.problem;
    const LinearSizes& sizes = run.sizes;
    Unit unit;
    unit.batch = index / sizes.groups;
    unit.group = index % sizes.groups;
    unit.first_head = unit.group * sizes.group_heads;
    unit.kv_head = unit.first_head * sizes.kv_heads / sizes.q_heads;
    unit.keys = problem.key_lengths != nullptr ? integer_at(problem.key_lengths, unit.batch) : sizes.kv_len;
    unit.rows = problem.query_lengths != nullptr ? integer_at(problem.query_lengths, unit.batch) : sizes.q_len;
    unit.offset = (problem.flags & ATTEND_LINEAR_OFFSET_PER_ITEM) != 0 ? unit.keys - unit.rows : problem.causal_offset;
    unit.largest = -infinity;
    return unit;
}

attend_status check_linear_problem(const attend_linear_problem& problem, attend_error* error);

}  // namespace attend::ATTEND_ISA
