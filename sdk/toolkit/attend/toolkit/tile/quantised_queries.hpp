// SPDX-License-Identifier: Apache-2.0
// Queries of a tile in low precision: rows are turned, rounded or encoded one by one then transposed into lanes, four
// bytes at a time where products read codes or pairs.
#pragma once

#include "attend/toolkit/tile/key_block.hpp"
#include "attend/toolkit/tile/tile_lanes.hpp"

namespace attend::ATTEND_ISA {

// Bytes of an element of a row as products read it.
inline int64_t query_element_bytes(const QuantisedRun& run) {
    if (run.scores == Format::int8) return run.integers == Integers::bytes ? 1 : 2;
    return run.pairs ? 2 : 4;
}

// The row that `codes` and `row` (their values) stand for, in that form.
inline void write_query(const QuantisedRun& run, const float* row, const int8_t* codes, void* to) {
    const int64_t width = run.key_dim;
    if (run.scores == Format::int8) {
        uint8_t* const bytes = static_cast<uint8_t*>(to);
        int16_t* const words = static_cast<int16_t*>(to);
        if (run.integers == Integers::bytes)
            for (int64_t d = 0; d < width; ++d) bytes[d] = static_cast<uint8_t>(codes[d] + 128);
        else
            for (int64_t d = 0; d < width; ++d) words[d] = codes[d];
    } else if (run.pairs) {
        round_to_bf16<block_dots>(row, width, static_cast<uint16_t*>(to));
    } else {
        round_to_floats(row, width, static_cast<float*>(to));
    }
}

inline void load_quantised_queries(const TileRun& tile_run, const TileScratch& scratch, const TileState& state,
                                   const TileRows& rows, int vectors) {
    const QuantisedRun& run = *tile_run.quantised;
    const int64_t width = run.key_dim, lanes = vectors * batch_lanes;
    const int64_t row_bytes = width * query_element_bytes(run), count = rows.end - rows.begin;
    alignas(64) float room[longest_row];
    int8_t codes[longest_row];
    char* const stage = reinterpret_cast<char*>(scratch.stage);
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t source = lesser(lane, count - 1);  // lanes past the last repeat it
        scratch.rows[lane] = reinterpret_cast<const float*>(stage + source * row_bytes);
        state.lane_scale[lane] = state.lane_scale[source];
        state.lane_shift[lane] = state.lane_shift[source];
        if (lane != source) continue;
        const int64_t head = state.head[lane], i = state.row[lane];
        const char* const from = run.query.at(rows.batch, head, i);
        const float* row = room;
        if (run.scaled()) {
            if (run.smooth_keys && (run.adds_shift || tile_run.needs_lse)) {
                widen_row(run.query.storage, from, run.query.step(), run.head_dim, room);
                const int64_t key_head = rows.batch * run.kv_heads + rows.kv_head;
                state.lane_shift[lane] = run.shift_of(room, run.key_mean + key_head * run.head_dim);
            }
            run.turn_query(rows.batch, head, i, room);
            run.encode(room, run.query_inverse(rows.batch, head, i), run.scores == Format::int8 ? codes : nullptr);
            state.lane_scale[lane] = run.scale * run.query_scale(rows.batch, head, i);
        } else {
            row = as_floats(run.query.storage, from, run.query.step(), width, room);
        }
        write_query(run, row, codes, stage + lane * row_bytes);
    }
    by_vectors(vectors, [&](auto v) {
        constexpr int number = decltype(v)::count;
        if (row_bytes == 4 * width && run.scores != Format::int8)
            load_lanes<number>(scratch.rows, 1, width, 1.0f, state.queries);
        else
            load_lane_pairs<number>(reinterpret_cast<const uint16_t* const*>(scratch.rows), 1, row_bytes / 2,
                                    reinterpret_cast<uint32_t*>(state.queries));
    });
}

}  // namespace attend::ATTEND_ISA
