/* SPDX-License-Identifier: Apache-2.0 */
/* A score modifier as a third party writes it: distance penalties, one loop over rows, one over lanes. */
#include "attend/toolkit.h"

void ATTEND_KERNEL(bench_modifier)(const void *user, const attend_score_tile *tile);

void ATTEND_KERNEL(bench_modifier)(const void *user, const attend_score_tile *tile) {
    const attend_query_tile *queries = tile->queries;
    const int64_t lanes = queries->lane_stride, rows = tile->num_keys;
    const float penalty = *(const float *)user;
    float slope[64], position[64];
    for (int64_t lane = 0; lane < lanes; ++lane) {
        slope[lane] = -penalty / (float)(1 + queries->lane_head[lane]);
        position[lane] = (float)queries->lane_position[lane];
    }
    for (int64_t row = 0; row < rows; ++row) {
        float *scores = tile->scores + row * lanes;
        const float key = (float)(tile->first_key + row);
        for (int64_t lane = 0; lane < lanes; ++lane)
            scores[lane] += slope[lane] * __builtin_fabsf(position[lane] - key);
    }
}
