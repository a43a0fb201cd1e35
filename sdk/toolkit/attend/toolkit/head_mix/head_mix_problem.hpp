// SPDX-License-Identifier: Apache-2.0
// What the head-mixing engine derives from a problem once, before the first tile: sizes, tiling, views, scratch layout.
#pragma once

#include "attend/toolkit/head_mix.h"
#include "attend/toolkit/tile/pipeline.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// What a worker keeps beside K and V should fit a second-level cache of a megabyte: queries and outputs of all heads of a
// tile, and the two sets of score tiles between which mixing goes to and fro.
constexpr int64_t most_lane_bytes = int64_t{1} << 20;
constexpr int64_t score_tiles_bytes = int64_t{192} << 10;
constexpr int64_t head_mix_key_tile = 48;

struct HeadMixSizes {
    int64_t batch{0}, score_heads{0}, softmax_heads{0}, value_heads{0}, most_heads{0};
    int64_t q_len{0}, kv_len{0}, head_dim{0}, value_dim{0};
    int64_t tile_lanes{1}, tiles{0}, key_tile{head_mix_key_tile};
    bool staged{false}, narrow{false};  // keys and values, queries and output are not float32

    int64_t lane_stride() const { return round_up(tile_lanes, batch_lanes); }
    // Tiles of heads are a cache line further apart than they are long, or all of them would share few sets of a cache.
    int64_t head_stride() const { return key_tile * lane_stride() + 16; }
    int64_t items() const { return batch * tiles; }
};

inline HeadMixSizes sizes_of(const attend_head_mix_problem& problem) {
    HeadMixSizes sizes;
    sizes.batch = problem.query->shape[0];
    sizes.score_heads = problem.query->shape[1];
    sizes.q_len = problem.query->shape[2];
    sizes.head_dim = problem.query->shape[3];
    sizes.value_heads = problem.value->shape[1];
    sizes.kv_len = problem.value->shape[2];
    sizes.value_dim = problem.value->shape[3];
    sizes.softmax_heads = problem.pre_mix != nullptr ? problem.pre_mix->shape[1] : sizes.score_heads;
    sizes.most_heads = greater(sizes.score_heads, greater(sizes.softmax_heads, sizes.value_heads));
    sizes.staged = storage_of(problem.key) != Storage::f32;
    sizes.narrow = storage_of(problem.query) != Storage::f32;
    if (sizes.q_len == 0 || sizes.most_heads == 0) return sizes;

    const int64_t lane_bytes = 4 * (sizes.score_heads * sizes.head_dim + sizes.value_heads * sizes.value_dim);
    int64_t most = clamp(most_lane_bytes / lane_bytes / batch_lanes * batch_lanes, batch_lanes, max_lanes);
    if (problem.max_query_tile > 0) most = lesser(most, problem.max_query_tile);
    // Equal tiles, cut at whole vectors.
    sizes.tile_lanes = lesser(most, round_up(divide_up(sizes.q_len, divide_up(sizes.q_len, most)), batch_lanes));
    sizes.tile_lanes = lesser(sizes.tile_lanes, sizes.q_len);
    sizes.tiles = divide_up(sizes.q_len, sizes.tile_lanes);
    const int64_t row_bytes = 8 * sizes.most_heads * sizes.lane_stride();
    sizes.key_tile = clamp(score_tiles_bytes / row_bytes / 8 * 8, 8, head_mix_key_tile);
    if (problem.max_key_tile > 0) sizes.key_tile = lesser(sizes.key_tile, problem.max_key_tile);
    return sizes;
}

// Scratch of one worker. Tiles have rows of lane_stride() floats.
struct HeadMixScratch {
    float* queries;         // [Hk][D][lane]
    float* acc;             // [Hv][Dv][lane]
    float *scores, *mixed;  // [heads][key][lane]
    float *extra,
        *seen;         // [key][lane]: biases or scores kept aside; 0 where any softmax head sees, else minus infinity
    uint8_t* mask;     // [Hs][key][lane]
    uint8_t* visible;  // [Hs]: what of a mask is set, as enum Visible
    float *row_max, *row_base, *row_sum, *rescale, *share;  // [Hs][lane]
    int32_t *query, *lane_head, *key_begin, *key_end;       // [lane]
    float *factor, *limit_low, *limit_high;                 // [lane]
    const float** rows;
    const uint8_t** mask_rows;
    float** out_rows;
    float *keys, *values;                              // [key_tile][D], [key_tile][Dv]
    float* stage;                                      // [lane][D or Dv] where queries and output are not float32
    float *pre_mix, *pre_bias, *post_mix, *post_bias;  // without gaps

    static HeadMixScratch take(Workspace& space, const HeadMixSizes& sizes) {
        const int64_t lanes = sizes.lane_stride(), tile = sizes.key_tile * lanes, s = sizes.softmax_heads;
        HeadMixScratch scratch{};
        scratch.queries = space.take<float>(sizes.score_heads * sizes.head_dim * lanes);
        scratch.acc = space.take<float>(sizes.value_heads * sizes.value_dim * lanes);
        scratch.scores = space.take<float>(sizes.most_heads * sizes.head_stride());
        scratch.mixed = space.take<float>(sizes.most_heads * sizes.head_stride());
        scratch.extra = space.take<float>(tile);
        scratch.seen = space.take<float>(tile);
        scratch.mask = space.take<uint8_t>(s * tile);
        scratch.visible = space.take<uint8_t>(s);
        for (float** state : {&scratch.row_max, &scratch.row_base, &scratch.row_sum, &scratch.rescale, &scratch.share})
            *state = space.take<float>(s * lanes);
        for (int32_t** list : {&scratch.query, &scratch.lane_head, &scratch.key_begin, &scratch.key_end})
            *list = space.take<int32_t>(lanes);
        for (float** list : {&scratch.factor, &scratch.limit_low, &scratch.limit_high})
            *list = space.take<float>(lanes);
        scratch.rows = space.take<const float*>(lanes);
        scratch.mask_rows = space.take<const uint8_t*>(lanes);
        scratch.out_rows = space.take<float*>(lanes);
        if (sizes.staged) scratch.keys = space.take<float>(sizes.key_tile * sizes.head_dim);
        scratch.values = space.take<float>(sizes.key_tile * sizes.value_dim);
        if (sizes.narrow) scratch.stage = space.take<float>(lanes * greater(sizes.head_dim, sizes.value_dim));
        scratch.pre_mix = space.take<float>(sizes.score_heads * s);
        scratch.pre_bias = space.take<float>(s);
        scratch.post_mix = space.take<float>(s * sizes.value_heads);
        scratch.post_bias = space.take<float>(sizes.value_heads);
        return scratch;
    }

    static uint64_t bytes(const HeadMixSizes& sizes) {
        Workspace count;
        take(count, sizes);
        return count.used();
    }

    TileSoftmax softmax(int64_t head, int64_t lanes) const {
        const int64_t at = head * lanes;
        return {row_max + at, row_base + at, row_sum + at, rescale + at};
    }
};

// One call of the engine, read by all workers.
struct HeadMixRun {
    const attend_head_mix_problem* problem;
    HeadMixSizes sizes;
    StoredView query, key, output;
    TensorView<const float, 4> bias;
    TensorView<const uint8_t, 4> mask;
    TensorView<float, 3> lse;
    float scale, softcap, factor;
    // Dropout reads these of a tile problem.
    attend_tile_problem dropout_problem;
    TileRun dropout;
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
};

attend_status check_head_mix(const attend_head_mix_problem& problem, attend_error* error);

}  // namespace attend::ATTEND_ISA
