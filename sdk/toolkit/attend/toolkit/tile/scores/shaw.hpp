// SPDX-License-Identifier: Apache-2.0
// Relative embeddings of keys and values within k positions (Shaw et al. 2018, arXiv:1803.02155): r = clip(j - i', -k, k) + k,
// s = scale q_i . (k_j + a_r), o_i = sum_j p_ij (v_j + b_r). Products with the tables are made once for a tile; pairs look
// them up. Tables are those of one head.
#pragma once

#include "attend/toolkit/tile/scores/distance.hpp"

namespace attend::ATTEND_ISA {

// Rows of a table of 2k + 1 vectors for each head; head_stride 0: one table for all.
struct RelativeTable {
    const float* data;
    int64_t head_stride, row_stride, inner_stride;
    const float* of(const attend_query_tile& tile, int64_t first_head) const {
        return data + (first_head + tile.lane_head[0]) * head_stride;
    }
};

struct ShawHooks {
    int64_t k, head_dim, value_dim, first_head;
    RelativeTable keys, values;  // values.data NULL: no values

    int64_t rows() const { return 2 * k + 1; }

    // scale q . a_r of every r into the tile's memory [2k + 1][lane].
    static void prepare(const void* user, const attend_query_tile* tile) {
        const ShawHooks& self = *static_cast<const ShawHooks*>(user);
        tile_product(self.keys.of(*tile, self.first_head), self.keys.row_stride, self.keys.inner_stride, self.rows(),
                     tile->queries, self.head_dim, tile->lane_stride, tile->memory);
    }

    static void add_content(const void* user, const attend_score_tile* tile) {
        const ShawHooks& self = *static_cast<const ShawHooks*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        if (const int64_t end = self.one_end(*tile); end >= 0) {
            const float* const term = queries.memory + end * lanes;
            for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
                const Batch add = load(term + lane);
                for (int64_t row = 0; row < tile->num_keys; ++row) {
                    float* const at = tile->scores + row * lanes + lane;
                    store(at, load(at) + add);
                }
            }
            return;
        }
        self.each_row(*tile, [&](float* scores, const int32_t* place) {
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] += queries.memory[place[lane]];
        });
    }

    static void add_weights(const void* user, const attend_score_tile* tile, float* sums) {
        const ShawHooks& self = *static_cast<const ShawHooks*>(user);
        const int64_t lanes = tile->queries->lane_stride;
        if (const int64_t end = self.one_end(*tile); end >= 0) {
            for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
                Batch even(0.0f), odd(0.0f);
                const float* at = tile->scores + lane;
                int64_t row = 0;
                for (; row + 2 <= tile->num_keys; row += 2, at += 2 * lanes) {
                    even = even + load(at);
                    odd = odd + load(at + lanes);
                }
                if (row < tile->num_keys) even = even + load(at);
                float* const to = sums + end * lanes + lane;
                store(to, load(to) + (even + odd));
            }
            return;
        }
        self.each_row(*tile, [&](const float* weights, const int32_t* place) {
            for (int64_t lane = 0; lane < lanes; ++lane) sums[place[lane]] += weights[lane];
        });
    }

    static void finish(const void* user, const attend_finished_tile* tile) {
        const ShawHooks& self = *static_cast<const ShawHooks*>(user);
        tile_product(self.values.of(*tile->queries, self.first_head), self.values.inner_stride, self.values.row_stride,
                     self.value_dim, tile->sums, self.rows(), tile->queries->lane_stride, tile->values, Into::add);
    }

private:
    // The row of the table that all pairs of a tile share, beyond k on one side; -1: there is none.
    int64_t one_end(const attend_score_tile& tile) const {
        const attend_query_tile& queries = *tile.queries;
        if (tile.first_key + tile.num_keys - 1 - queries.first_position <= -k) return 0;
        return tile.first_key - queries.last_position >= k ? 2 * k : -1;
    }

    // visit(row of the tile, place of each lane in a table [2k + 1][lane]).
    template <class Visit>
    void each_row(const attend_score_tile& tile, Visit visit) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        int32_t place[max_lanes];
        const auto last = static_cast<int32_t>(2 * k), width = static_cast<int32_t>(lanes);
        for (int64_t row = 0; row < tile.num_keys; ++row) {
            const auto first = static_cast<int32_t>(tile.first_key + row + k);
            for (int32_t lane = 0; lane < width; ++lane) {
                const int32_t r = first - queries.lane_position[lane];
                place[lane] = (r < 0 ? 0 : r > last ? last : r) * width + lane;
            }
            visit(tile.scores + row * lanes, place);
        }
    }
};

}  // namespace attend::ATTEND_ISA
