// SPDX-License-Identifier: Apache-2.0
// A boolean pattern over blocks: query i and key j see each other iff pattern[b, h, i div block_q, j div block_k].
// Blocks that no lane of a tile sees are not visited, blocks that all lanes see need no test.
#pragma once

#include <cstdint>

#include "attend/toolkit.h"
#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

struct BlockPattern {
    const uint8_t* data;       // [1 or B, 1 or Hq, query blocks, key blocks]; not 0 = visible
    int64_t strides[4];        // in elements; 0 where an extent of 1 stands for every index
    int64_t block_q, block_k;  // at least 1

    // A rank-4 tensor of bytes, as checked by the caller.
    static BlockPattern of(const attend_tensor& tensor, int64_t block_q, int64_t block_k) {
        BlockPattern pattern{static_cast<const uint8_t*>(tensor.data), {}, block_q, block_k};
        for (int dim = 0; dim < 4; ++dim)
            pattern.strides[dim] = tensor.shape[dim] == 1 && dim < 2 ? 0 : tensor.strides[dim];
        return pattern;
    }

    const uint8_t* row(const attend_query_tile& tile, int64_t lane) const {
        return data + tile.batch * strides[0] + tile.lane_head[lane] * strides[1] +
               tile.lane_query[lane] / block_q * strides[2];
    }

    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const BlockPattern& pattern = *static_cast<const BlockPattern*>(user);
        // Most lanes share a row of the pattern.
        const uint8_t* rows[most_lanes];
        int64_t count = 0;
        for (int64_t lane = 0; lane < tile->num_lanes; ++lane) {
            const uint8_t* row = pattern.row(*tile, lane);
            int64_t at = count;
            while (at > 0 && rows[at - 1] != row) --at;
            if (at == 0) rows[count++] = row;
        }
        RangeWriter out(tile->kv_len, visit_range, visitor);
        const int64_t blocks = (tile->kv_len + pattern.block_k - 1) / pattern.block_k;
        for (int64_t block = 0; block < blocks; ++block) {
            int64_t seeing = 0;
            for (int64_t at = 0; at < count; ++at) seeing += rows[at][block * pattern.strides[3]] != 0 ? 1 : 0;
            const int64_t begin = block * pattern.block_k;
            if (seeing > 0) out.add(begin, begin + pattern.block_k, seeing == count ? 0 : ATTEND_KEYS_PARTIAL);
        }
    }

    static void keep(const void* user, const attend_score_tile* tile) {
        const BlockPattern& pattern = *static_cast<const BlockPattern*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        const uint8_t* rows[most_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) rows[lane] = pattern.row(queries, lane);
        int32_t visible[most_lanes];
        int64_t known = -1;
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const int64_t j = tile->key_index != nullptr ? tile->key_index[row] : tile->first_key + row;
            const int64_t block = j / pattern.block_k;
            if (block != known) {
                known = block;
                for (int64_t lane = 0; lane < lanes; ++lane)
                    visible[lane] = rows[lane][block * pattern.strides[3]] != 0;
            }
            float* const scores = tile->scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane)
                scores[lane] = visible[lane] != 0 ? scores[lane] : -__builtin_inff();
        }
    }
};

}  // namespace attend::ATTEND_ISA
