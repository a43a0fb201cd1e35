// SPDX-License-Identifier: Apache-2.0
// The lanes of a query tile: which row and head each holds, where it stands on the key axis, and which keys causal, window
// and length leave it. Loops over one array at a time, which compilers turn into vectors.
#pragma once

#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// Which rows a tile holds: lane v is row v / pack, head first_head + v % pack.
struct TileRows {
    int64_t batch, kv_head, first_head, pack, begin, end;
    int64_t map;
    bool idle;
};

// Place of query 0 on the key axis.
inline int64_t offset_of(const TileRun& run, int64_t batch) {
    const attend_tile_problem& problem = *run.problem;
    if ((problem.flags & ATTEND_TILE_OFFSET_PER_ITEM) == 0) return problem.causal_offset;
    const int64_t keys = problem.key_lengths != nullptr ? integer_at(problem.key_lengths, batch) : run.sizes.main_keys;
    return keys -
           (problem.query_lengths != nullptr ? integer_at(problem.query_lengths, batch) : problem.query->shape[2]);
}

// Number of main rows whose key index is below j.
inline int64_t key_row(const TileRun& run, int64_t j) {
    const int32_t* const index = run.problem->key_index;
    if (index == nullptr) return clamp(j, 0, run.sizes.main_keys);
    int64_t low = 0, high = run.sizes.main_keys;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (index[middle] < j)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

inline void fill_lanes(const TileRun& run, const TileRows& rows, const TileState& state, int64_t lanes, int64_t offset,
                       attend_query_tile& tile) {
    const attend_tile_problem& problem = *run.problem;
    // Counted, not divided: 48 lanes of divisions are 7 % of a tile that sees 128 keys.
    int64_t row = rows.begin / rows.pack, member = rows.begin % rows.pack;
    const int64_t last = rows.end - rows.begin - 1;  // lanes past the last repeat it
    if (rows.pack == 1) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            state.row[lane] = static_cast<int32_t>(row + lesser(lane, last));
            state.head[lane] = static_cast<int32_t>(rows.first_head);
        }
    } else {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            state.row[lane] = static_cast<int32_t>(row);
            state.head[lane] = static_cast<int32_t>(rows.first_head + member);
            if (lane >= last) continue;
            if (++member == rows.pack) {
                member = 0;
                ++row;
            }
        }
    }
    if (problem.query_index != nullptr)
        for (int64_t lane = 0; lane < lanes; ++lane) state.query[lane] = problem.query_index[state.row[lane]];
    else
        for (int64_t lane = 0; lane < lanes; ++lane) state.query[lane] = state.row[lane];
    int32_t first_position = INT32_MAX, last_position = INT32_MIN;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const auto position = static_cast<int32_t>(clamp(state.query[lane] + offset, -most_rows, most_rows));
        state.position[lane] = position;
        first_position = position < first_position ? position : first_position;
        last_position = position > last_position ? position : last_position;
    }
    int32_t* counted = state.head;
    if (const attend_softmax_map* map = run.hooks->maps) {
        map += rows.map;
        if (state.map_head != nullptr) counted = state.map_head;
        for (int64_t lane = 0; lane < lanes; ++lane)
            counted[lane] = static_cast<int32_t>(map->first_head + state.head[lane] * map->head_step);
    }
    if (run.mask.present)
        for (int64_t lane = 0; lane < lanes; ++lane)
            state.mask_rows[lane] = run.mask.at(rows.batch, counted[lane], state.query[lane], 0);
    if (run.bias.present)
        for (int64_t lane = 0; lane < lanes; ++lane)
            state.bias_rows[lane] = run.bias.at(rows.batch, counted[lane], state.query[lane], 0);
    tile.batch = rows.batch;
    tile.kv_head = rows.kv_head;
    tile.num_lanes = rows.end - rows.begin;
    tile.lane_stride = lanes;
    tile.first_position = first_position;
    tile.last_position = last_position;
    tile.kv_len = problem.key_lengths != nullptr ? key_row(run, integer_at(problem.key_lengths, rows.batch))
                                                 : run.sizes.main_keys;
    tile.lane_query = state.query;
    tile.lane_head = counted;
    tile.lane_position = state.position;
    tile.lane_row = state.row;
    tile.map = rows.map;
}

// Keys that the lanes see: any of them, all of them, any of each vector.
struct KeyLimits {
    int64_t hull_begin, hull_end, full_begin, full_end;
    int64_t vector_begin[size_t{max_vectors}], vector_end[size_t{max_vectors}];
};

// Rows [key_begin, key_end) per lane from causal, window and length, and what follows from them.
inline void limit_keys(const TileRun& run, const TileState& state, const attend_query_tile& tile, int vectors,
                       int64_t offset, KeyLimits& limits) {
    constexpr int64_t far = int64_t{1} << 40;  // a window this wide is unlimited, and sums with it stay in range
    const attend_tile_problem& problem = *run.problem;
    const bool causal = (problem.flags & ATTEND_TILE_CAUSAL) != 0;
    const bool bounded = causal || problem.window_left >= 0 || problem.window_right >= 0;
    limits.hull_begin = bounded ? run.sizes.main_keys : 0;
    limits.hull_end = bounded ? 0 : tile.kv_len;
    limits.full_begin = 0;
    limits.full_end = tile.kv_len;
    for (int v = 0; v < vectors; ++v) {
        limits.vector_begin[v] = limits.hull_begin;
        limits.vector_end[v] = limits.hull_end;
    }
    if (!bounded) return;
    const int64_t after = lesser(causal ? 0 : far, problem.window_right >= 0 ? problem.window_right : far) + 1,
                  before = problem.window_left >= 0 ? lesser(problem.window_left, far) : far;
    const int64_t lanes = vectors * batch_lanes, main_keys = run.sizes.main_keys, kv_len = tile.kv_len;
    if (problem.key_index != nullptr) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t position = state.query[lane] + offset;
            state.key_begin[lane] = static_cast<int32_t>(key_row(run, position - before));
            state.key_end[lane] = static_cast<int32_t>(lesser(key_row(run, position + after), kv_len));
        }
    } else {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t position = state.query[lane] + offset;
            state.key_begin[lane] = static_cast<int32_t>(clamp(position - before, 0, main_keys));
            state.key_end[lane] = static_cast<int32_t>(clamp(position + after, 0, kv_len));
        }
    }
    // Lanes without keys have no say but in what all see.
    for (int v = 0; v < vectors; ++v) {
        auto begin = static_cast<int32_t>(main_keys);
        int32_t end = 0, full_begin = 0, full_end = INT32_MAX;
        for (int64_t lane = v * batch_lanes; lane < (v + 1) * batch_lanes; ++lane) {
            const int32_t from = state.key_begin[lane], to = state.key_end[lane];
            const bool any = from < to;
            const int32_t low = any ? from : INT32_MAX, least = any ? from : 0, high = any ? to : 0;
            state.key_begin[lane] = least;
            state.key_end[lane] = high;
            begin = low < begin ? low : begin;
            end = high > end ? high : end;
            full_begin = least > full_begin ? least : full_begin;
            full_end = high < full_end ? high : full_end;
        }
        limits.vector_begin[v] = begin;
        limits.vector_end[v] = end;
        limits.full_begin = greater(limits.full_begin, full_begin);
        limits.full_end = lesser(limits.full_end, full_end);
        if (begin >= end) continue;
        limits.hull_begin = lesser(limits.hull_begin, begin);
        limits.hull_end = greater(limits.hull_end, end);
    }
}

}  // namespace attend::ATTEND_ISA
