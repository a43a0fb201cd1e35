// SPDX-License-Identifier: Apache-2.0
// What the tile engine derives from a problem once, before the first tile: sizes, tiling, views, scratch layout.
#pragma once

#include "attend/toolkit.h"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

// Keys of one score tile. 128 rows of 48 floats are half of the first-level cache; 64 costs 1 to 3 %, 32 much more.
constexpr int64_t default_key_tile = 128;

// Queries, keys and positions stay within 2^30, so that hooks may subtract them as int32.
constexpr int64_t most_rows = int64_t{1} << 30;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

struct TileSizes {
    int64_t batch{0}, q_heads{0}, kv_heads{0}, q_len{0}, head_dim{0}, value_dim{0};
    int64_t main_keys{0}, all_keys{0};
    bool average{false};
    // Lanes hold `pack` heads of one key/value head, query by query: v = row * pack + head in the group. Stacking them
    // fills the lanes when there are few queries, and narrows the diagonal when there are many.
    int64_t pack{1}, groups{0};
    int64_t tile_lanes{1}, tiles{0}, key_tile{default_key_tile};

    int64_t lane_stride() const { return round_up(tile_lanes, batch_lanes); }
    int64_t items() const { return batch * (average ? 1 : groups) * tiles; }
};

inline TileSizes sizes_of(const attend_tile_problem& problem) {
    TileSizes sizes;
    sizes.batch = problem.query->shape[0];
    sizes.q_heads = problem.query->shape[1];
    sizes.q_len = problem.query->shape[2];
    sizes.head_dim = problem.query->shape[3];
    sizes.kv_heads = problem.segments[0].key->shape[1];
    sizes.value_dim = problem.segments[0].value->shape[3];
    for (uint32_t segment = 0; segment < problem.num_segments; ++segment) {
        const int64_t keys = problem.segments[segment].key->shape[2];
        if ((problem.segments[segment].flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) == 0) sizes.main_keys += keys;
        sizes.all_keys += keys;
    }
    sizes.average = problem.scores != nullptr && (problem.flags & ATTEND_TILE_AVERAGE_SCORES) != 0;
    // The mean over heads is summed in one place, head by head, so there each tile holds one head.
    sizes.pack = sizes.average || sizes.kv_heads == 0 ? 1 : sizes.q_heads / sizes.kv_heads;
    sizes.groups = sizes.average ? sizes.q_heads : sizes.kv_heads;

    // Equal tiles, cut at whole vectors: two of 32 lanes rather than one of 48 and one of 16.
    const int64_t rows = sizes.q_len * sizes.pack;
    int64_t most = max_lanes;
    if (problem.max_query_tile > 0) most = lesser(most, problem.max_query_tile);
    if (rows > 0) {
        sizes.tile_lanes = lesser(most, round_up(divide_up(rows, divide_up(rows, most)), batch_lanes));
        sizes.tile_lanes = lesser(sizes.tile_lanes, rows);
        sizes.tiles = divide_up(rows, sizes.tile_lanes);
    }
    if (problem.max_key_tile > 0) sizes.key_tile = lesser(sizes.key_tile, problem.max_key_tile);
    return sizes;
}

// Scratch of one worker. Rows of the tiles are lane_stride() long.
struct TileScratch {
    float* queries;  // [head_dim][lane]
    float* scores;   // [key][lane]: scores, then weights
    float* acc;      // [value_dim][lane]
    float* extra;    // [key][lane]: biases, or scores kept aside for values that are not finite
    float *row_max, *row_sum, *factor, *limit_low, *limit_high;  // [lane]
    int32_t *query, *head, *position, *key_begin, *key_end;      // [lane]
    uint8_t* mask;                                               // [key][lane]
    const float **rows, **bias_rows;
    const uint8_t** mask_rows;
    float** out_rows;

    static TileScratch take(Workspace& space, const TileSizes& sizes) {
        const int64_t lanes = sizes.lane_stride();
        TileScratch scratch;
        scratch.queries = space.take<float>(sizes.head_dim * lanes);
        scratch.scores = space.take<float>(sizes.key_tile * lanes);
        scratch.acc = space.take<float>(sizes.value_dim * lanes);
        scratch.extra = space.take<float>(sizes.key_tile * lanes);
        scratch.row_max = space.take<float>(lanes);
        scratch.row_sum = space.take<float>(lanes);
        scratch.factor = space.take<float>(lanes);
        scratch.limit_low = space.take<float>(lanes);
        scratch.limit_high = space.take<float>(lanes);
        scratch.query = space.take<int32_t>(lanes);
        scratch.head = space.take<int32_t>(lanes);
        scratch.position = space.take<int32_t>(lanes);
        scratch.key_begin = space.take<int32_t>(lanes);
        scratch.key_end = space.take<int32_t>(lanes);
        scratch.mask = space.take<uint8_t>(sizes.key_tile * lanes);
        scratch.rows = space.take<const float*>(lanes);
        scratch.bias_rows = space.take<const float*>(lanes);
        scratch.mask_rows = space.take<const uint8_t*>(lanes);
        scratch.out_rows = space.take<float*>(lanes);
        return scratch;
    }

    static uint64_t bytes(const TileSizes& sizes) {
        Workspace count;
        take(count, sizes);
        return count.used();
    }
};

// One call of the engine, read by all workers.
struct TileRun {
    const attend_tile_problem* problem;
    TileSizes sizes;
    TensorView<const float, 4> query, bias;
    TensorView<const uint8_t, 4> mask;
    TensorView<float, 4> output, scores;
    TensorView<float, 3> lse, average;
    float scale, softcap, kept_scale;
    bool dropout;
    uint32_t dropout_threshold, dropout_heads;
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
};

attend_status check_tile_problem(const attend_tile_problem& problem, attend_error* error);

}  // namespace attend::ATTEND_ISA
