// SPDX-License-Identifier: Apache-2.0
// Sliding window with global keys: position p sees the keys p - left .. p + right, and with them leading keys and
// listed positions; rows on such a position may see every key. Without listed keys and global rows it is the prefix
// language model: band or j < prefix.
//
//   BandKeys keys{ .left = 128, .right = 128, .globals = { .num_leading = &count } };
//   problem.keys = BandKeys::visit;  problem.keys_user = &keys;
//   problem.keep = BandKeys::keep;   problem.keep_user = &keys;
#pragma once

#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

struct BandKeys {
    int64_t left, right;  // keys on each side of the position; -1 = unlimited
    GlobalKeys globals;

    Band band(int64_t p) const {
        constexpr int64_t far = int64_t{1} << 40;
        return {left < 0 ? -far : p - (left < far ? left : far), right < 0 ? far : p + (right < far ? right : far) + 1};
    }

    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const BandKeys& keys = *static_cast<const BandKeys*>(user);
        visit_band_union(keys.globals, *tile, keys.band(tile->first_position), keys.band(tile->last_position),
                         visit_range, visitor);
    }
    static void keep(const void* user, const attend_score_tile* tile) {
        const BandKeys& keys = *static_cast<const BandKeys*>(user);
        LaneBands bands;
        for (int64_t lane = 0; lane < tile->queries->lane_stride; ++lane)
            bands.set(lane, keys.band(tile->queries->lane_position[lane]));
        keep_band_union(keys.globals, *tile, bands);
    }
};

}  // namespace attend::ATTEND_ISA
