// SPDX-License-Identifier: Apache-2.0
// Linear distance penalty: s -= m[b, h] |i' - j|, or signed m[b, h] (i' - j). Positions may be replaced by the caller's
// own, for queries by row index i and for keys by j; visibility never follows them.
#pragma once

#include <cstdint>

#include "attend/toolkit.h"
#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

struct AlibiSlopes {
    const float* slopes;  // [Hq] or [B, Hq]
    int64_t batch_stride, head_stride;
    int64_t signed_distance;  // not 0: i' - j rather than its size
    // Positions [N] or [B, N] in place of i' and j; NULL = i' and j themselves. The batch stride may be 0.
    const int64_t *query_positions, *key_positions;
    int64_t query_batch_stride, key_batch_stride;
    // Keys from this number on (those behind the main segments) get no penalty; 0 = no limit.
    int64_t num_keys;

    static void apply(const void* user, const attend_score_tile* tile) {
        const AlibiSlopes& alibi = *static_cast<const AlibiSlopes*>(user);
        const attend_query_tile& queries = *tile->queries;
        if (alibi.num_keys > 0 && tile->key_index == nullptr && tile->first_key >= alibi.num_keys) return;
        const int64_t lanes = queries.lane_stride;
        const float* slopes = alibi.slopes + queries.batch * alibi.batch_stride;
        float slope[most_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) slope[lane] = slopes[queries.lane_head[lane] * alibi.head_stride];
        const bool has_sign = alibi.signed_distance != 0;
        if (alibi.query_positions != nullptr || alibi.key_positions != nullptr) {
            alibi.apply_positions(*tile, slope);
            return;
        }
        // Positions and keys of the engine stay below 2^30: their difference fits.
        const int32_t* const position = queries.lane_position;
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const int32_t key =
                tile->key_index != nullptr ? tile->key_index[row] : static_cast<int32_t>(tile->first_key + row);
            float* const scores = tile->scores + row * lanes;
            if (has_sign) {
                for (int64_t lane = 0; lane < lanes; ++lane)
                    scores[lane] -= slope[lane] * static_cast<float>(position[lane] - key);
            } else {
                for (int64_t lane = 0; lane < lanes; ++lane) {
                    const int32_t distance = position[lane] - key;
                    scores[lane] -= slope[lane] * static_cast<float>(distance < 0 ? -distance : distance);
                }
            }
        }
    }

private:
    void apply_positions(const attend_score_tile& tile, const float* slope) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        double position[most_lanes];  // exact for every position that a caller may mean
        for (int64_t lane = 0; lane < lanes; ++lane)
            position[lane] = query_positions == nullptr
                                 ? static_cast<double>(queries.lane_position[lane])
                                 : static_cast<double>(
                                       query_positions[queries.batch * query_batch_stride + queries.lane_query[lane]]);
        for (int64_t row = 0; row < tile.num_keys; ++row) {
            const int64_t j = tile.key_index != nullptr ? tile.key_index[row] : tile.first_key + row;
            const double key =
                static_cast<double>(key_positions == nullptr ? j : key_positions[queries.batch * key_batch_stride + j]);
            float* const scores = tile.scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const double distance = position[lane] - key;
                const double size = distance < 0.0 && signed_distance == 0 ? -distance : distance;
                scores[lane] -= slope[lane] * static_cast<float>(size);
            }
        }
    }
};

}  // namespace attend::ATTEND_ISA
