// SPDX-License-Identifier: Apache-2.0
// Position terms of DeBERTa (He et al. 2021, arXiv:2006.03654): s = scale (q_i . k_j + q_i . Kr[c(d)] + k_j . Qr[c'(d)]), d = i' - j.
// Both products are made for the rows of the tables that a tile of queries or a block of keys can reach; pairs look them up.
#pragma once

#include "attend/toolkit/tile/scores/distance.hpp"

namespace attend::ATTEND_ISA {

// Tables of one head or of several. Columns of Qr lie in panels [D][panel_lanes], so that products put them in the lanes.
struct DisentangledHooks {
    static constexpr int64_t panel_lanes = max_lanes;
    static constexpr int64_t key_rows = 128;  // of a block at most
    static constexpr int64_t most_tiles = 4;  // of a group: their products with Qr are to stay in the second cache

    int64_t head_dim, first_head;
    const float* key_table;  // Kr, NULL: no content-to-position term
    int64_t key_head_stride, key_row_stride, key_inner_stride;
    const float* query_panels;  // scale Qr, NULL: no position-to-content term
    int64_t query_head_stride;
    // Row of Kr, and place of Qr's column in the products of a block, for each distance; pointing at distance 0.
    const int32_t *key_row_of, *query_place_of;

    static int64_t panels(int64_t rows) { return (rows + panel_lanes - 1) / panel_lanes; }
    static int32_t place_of(int64_t column) {
        return static_cast<int32_t>(column / panel_lanes * (key_rows * panel_lanes) + column % panel_lanes);
    }
    static int64_t column_of(int32_t place) {
        return place / (key_rows * panel_lanes) * panel_lanes + place % panel_lanes;
    }
    static int64_t scratch_floats() { return (key_rows + max_lanes) * max_lanes; }
    static int64_t block_floats() {
        return ((most_tiles * max_lanes + key_rows) / panel_lanes + 2) * key_rows * panel_lanes;
    }

    // Products of a block's keys with the panels of Qr that the group's distances reach.
    static void prepare_keys(const void* user, const attend_key_block* block) {
        const DisentangledHooks& self = *static_cast<const DisentangledHooks*>(user);
        const int64_t first = self.first_panel(*block), last = self.last_panel(*block);
        const float* panels = self.query_panels + (self.first_head + block->kv_head) * self.query_head_stride;
        for (int64_t panel = first; panel <= last; ++panel)
            product<max_vectors>(block->keys, block->row_stride, block->feature_stride, block->num_keys,
                                 panels + panel * self.head_dim * panel_lanes, self.head_dim,
                                 block->memory + (panel - first) * key_rows * panel_lanes);
    }

    static void add_content(const void* user, const attend_score_tile* tile) {
        const DisentangledHooks& self = *static_cast<const DisentangledHooks*>(user);
        if (self.key_table != nullptr) self.add_content_to_position(*tile);
        if (self.query_panels != nullptr) self.add_position_to_content(*tile);
    }

private:
    int64_t first_panel(const attend_key_block& block) const { return panel_at(block, false); }
    int64_t last_panel(const attend_key_block& block) const { return panel_at(block, true); }
    // Columns rise or fall with the distance, so the panels of a range are those of its ends.
    int64_t panel_at(const attend_key_block& block, bool largest) const {
        const int64_t a = panel_of(block.first_position - (block.first_key + block.num_keys - 1)),
                      b = panel_of(block.last_position - block.first_key);
        return (a > b) == largest ? a : b;
    }
    int64_t panel_of(int64_t distance) const { return column_of(query_place_of[distance]) / panel_lanes; }

    void add_content_to_position(const attend_score_tile& tile) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        const int32_t low = key_row_of[queries.first_position - (tile.first_key + tile.num_keys - 1)],
                      high = key_row_of[queries.last_position - tile.first_key];
        const float* table = key_table + (first_head + queries.lane_head[0]) * key_head_stride + low * key_row_stride;
        tile_product(table, key_row_stride, key_inner_stride, high - low + 1, queries.queries, head_dim, lanes,
                     tile.scratch);
        if (low < high) {
            add_indexed_rows(tile, tile.scratch - low * lanes, key_row_of);
            return;
        }
        for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
            const Batch add = load(tile.scratch + lane);
            for (int64_t row = 0; row < tile.num_keys; ++row) {
                float* const at = tile.scores + row * lanes + lane;
                store(at, load(at) + add);
            }
        }
    }

    void add_position_to_content(const attend_score_tile& tile) const {
        const attend_query_tile& queries = *tile.queries;
        const attend_key_block& block = *tile.block;
        const int64_t lanes = queries.lane_stride;
        const float* const products = block.memory - first_panel(block) * key_rows * panel_lanes +
                                      (tile.first_key - block.first_key) * panel_lanes;
        const int32_t low = query_place_of[queries.first_position - (tile.first_key + tile.num_keys - 1)],
                      high = query_place_of[queries.last_position - tile.first_key];
        for (int64_t row = 0; row < tile.num_keys; ++row) {
            float* const scores = tile.scores + row * lanes;
            const float* const from = products + row * panel_lanes;
            if (low == high) {
                const Batch add(from[low]);
                for (int64_t lane = 0; lane < lanes; lane += batch_lanes)
                    store(scores + lane, load(scores + lane) + add);
                continue;
            }
            const int32_t* const place = query_place_of - (tile.first_key + row);
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] += from[place[queries.lane_position[lane]]];
        }
    }
};

}  // namespace attend::ATTEND_ISA
