// SPDX-License-Identifier: Apache-2.0
// Position terms of Transformer-XL (Dai et al. 2019, arXiv:1901.02860) and XLNet: s = scale ((q + u) . k + (q + v) . R(i' - j)
// + (q + seg_u) . seg_emb[same segment or not]). The product with R is made for the distances of a tile, then skewed.
#pragma once

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/tile/scores/distance.hpp"

namespace attend::ATTEND_ISA {

// One head. R is [count][D] for the distances from `least`; distances are clipped to [least, least + count) where
// `clips`, and lie inside otherwise.
struct TransformerXlHooks {
    int64_t head_dim, least, count;
    bool clips;
    const float* table;
    float scale;
    const float *u, *v, *seg_u, *seg_emb[2];  // [D]; seg_u NULL: no segments
    int64_t u_stride, v_stride, seg_u_stride, seg_emb_stride;
    const attend_tensor *query_segments, *key_segments;

    // A tile's memory: (q + v) scale [D][lane], and the two segment terms [lane].
    static int64_t memory_floats(int64_t head_dim) { return (head_dim + 2) * max_lanes; }
    static int64_t scratch_floats(int64_t key_tile) { return (key_tile + max_lanes) * max_lanes; }

    static void prepare(const void* user, const attend_query_tile* tile) {
        const TransformerXlHooks& self = *static_cast<const TransformerXlHooks*>(user);
        const int64_t lanes = tile->lane_stride;
        float* const segment = tile->memory + self.head_dim * lanes;
        for (int64_t at = 0; at < 2 * lanes; ++at) segment[at] = 0.0f;
        for (int64_t d = 0; d < self.head_dim; ++d) {
            const float u = self.scale * self.u[d * self.u_stride], v = self.scale * self.v[d * self.v_stride];
            float *const queries = tile->queries + d * lanes, *const moved = tile->memory + d * lanes;
            if (self.seg_u != nullptr) {
                const float add = self.scale * self.seg_u[d * self.seg_u_stride];
                for (int which = 0; which < 2; ++which) {
                    const float factor = self.seg_emb[which][d * self.seg_emb_stride];
                    for (int64_t lane = 0; lane < lanes; ++lane)
                        segment[which * lanes + lane] += (queries[lane] + add) * factor;
                }
            }
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const float query = queries[lane];
                moved[lane] = query + v;
                queries[lane] = query + u;
            }
        }
    }

    static void add_content(const void* user, const attend_score_tile* tile) {
        const TransformerXlHooks& self = *static_cast<const TransformerXlHooks*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride, last_key = tile->first_key + tile->num_keys - 1;
        const int64_t low = self.cut(queries.first_position - last_key),
                      high = self.cut(queries.last_position - tile->first_key);
        tile_product(self.table + (low - self.least) * self.head_dim, self.head_dim, 1, high - low + 1, queries.memory,
                     self.head_dim, lanes, tile->scratch);
        if (self.clips)
            self.add_cut(*tile, low);
        else
            add_diagonals(*tile, tile->scratch, low);
        if (self.seg_u != nullptr) self.add_segments(*tile);
    }

private:
    int64_t cut(int64_t distance) const {
        if (!clips) return distance;
        const int64_t most = least + count - 1;
        return distance < least ? least : distance > most ? most : distance;
    }
    void add_cut(const attend_score_tile& tile, int64_t low) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        const auto first = static_cast<int32_t>(least), last = static_cast<int32_t>(least + count - 1),
                   from = static_cast<int32_t>(low), width = static_cast<int32_t>(lanes);
        for (int64_t row = 0; row < tile.num_keys; ++row) {
            float* const scores = tile.scores + row * lanes;
            const auto j = static_cast<int32_t>(tile.first_key + row);
            for (int32_t lane = 0; lane < width; ++lane) {
                const int32_t distance = queries.lane_position[lane] - j;
                const int32_t kept = distance < first ? first : distance > last ? last : distance;
                scores[lane] += tile.scratch[(kept - from) * width + lane];
            }
        }
    }
    void add_segments(const attend_score_tile& tile) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        const float* const terms = queries.memory + head_dim * lanes;
        int64_t own[max_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane)
            own[lane] = id_of(query_segments, queries.batch, queries.lane_row[lane]);
        for (int64_t row = 0; row < tile.num_keys; ++row) {
            const int64_t id = id_of(key_segments, queries.batch, tile.first_key + row);
            float* const scores = tile.scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] += terms[own[lane] == id ? lane : lanes + lane];
        }
    }
    static int64_t id_of(const attend_tensor* ids, int64_t batch, int64_t at) {
        const int64_t place = batch * ids->strides[0] + at * ids->strides[1];
        return ids->dtype_bits == 64 ? static_cast<const int64_t*>(ids->data)[place]
                                     : static_cast<const int32_t*>(ids->data)[place];
    }
};

}  // namespace attend::ATTEND_ISA
