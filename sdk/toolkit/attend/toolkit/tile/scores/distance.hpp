// SPDX-License-Identifier: Apache-2.0
// Score terms that depend on the distance i' - j of a pair: what hooks of relative positions share.
#pragma once

#include <cstdint>

#include "attend/toolkit.h"
#include "attend/toolkit/gemm/micro_kernel.hpp"

namespace attend::ATTEND_ISA {

// to[row][lane] (= or +=) sum over t of a[row * row_stride + t * inner_stride] * x[t][lane], for tiles of any number of vectors.
inline void tile_product(const float* a, int64_t row_stride, int64_t inner_stride, int64_t rows, const float* x,
                         int64_t count, int64_t lanes, float* to, Into into = Into::overwrite) {
    const int vectors = static_cast<int>(lanes / batch_lanes);
    if (vectors == 3)
        product<3>(a, row_stride, inner_stride, rows, x, count, to, into);
    else if (vectors == 2)
        product<2>(a, row_stride, inner_stride, rows, x, count, to, into);
    else
        product<1>(a, row_stride, inner_stride, rows, x, count, to, into);
}

// Whether lane l stands at first_position + l (lanes behind the last repeat it): then terms of neighbours are neighbours.
inline bool consecutive(const attend_query_tile& tile) {
    return tile.last_position - tile.first_position == tile.num_lanes - 1 &&
           tile.lane_position[0] == tile.first_position;
}

// scores[row][lane] += terms[i' - j], `terms` pointing at distance 0 and readable up to max_lanes behind its last entry.
inline void add_distance_terms(const attend_score_tile& tile, const float* terms) {
    const attend_query_tile& queries = *tile.queries;
    const int64_t lanes = queries.lane_stride;
    const bool neighbours = consecutive(queries) && tile.key_index == nullptr;
    for (int64_t row = 0; row < tile.num_keys; ++row) {
        const int64_t j = tile.key_index != nullptr ? tile.key_index[row] : tile.first_key + row;
        float* const scores = tile.scores + row * lanes;
        const float* const from = terms - j;
        if (neighbours) {
            const float* const first = from + queries.first_position;
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] += first[lane];
        } else {
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] += from[queries.lane_position[lane]];
        }
    }
}

// scores[row][lane] += terms[index][lane] with index = i' - j - least, of a table of rows as long as the tile's.
inline void add_diagonals(const attend_score_tile& tile, const float* terms, int64_t least) {
    const attend_query_tile& queries = *tile.queries;
    const int64_t lanes = queries.lane_stride;
    int32_t place[max_lanes];
    for (int64_t lane = 0; lane < lanes; ++lane)
        place[lane] = static_cast<int32_t>((queries.lane_position[lane] - tile.first_key - least) * lanes + lane);
    for (int64_t row = 0; row < tile.num_keys; ++row) {
        float* const scores = tile.scores + row * lanes;
        const float* const from = terms - row * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] += from[place[lane]];
    }
}

// The same where `index_of`, pointing at distance 0, says which row a distance has.
inline void add_indexed_rows(const attend_score_tile& tile, const float* terms, const int32_t* index_of) {
    const attend_query_tile& queries = *tile.queries;
    const int64_t lanes = queries.lane_stride;
    const auto width = static_cast<int32_t>(lanes);
    for (int64_t row = 0; row < tile.num_keys; ++row) {
        float* const scores = tile.scores + row * lanes;
        const int32_t* const index = index_of - (tile.first_key + row);
        for (int64_t lane = 0; lane < lanes; ++lane)
            scores[lane] += terms[index[queries.lane_position[lane]] * width + static_cast<int32_t>(lane)];
    }
}

}  // namespace attend::ATTEND_ISA
