// SPDX-License-Identifier: Apache-2.0
// Blocks of the key axis with global keys: a position in block c = floor(p / width) sees the blocks c - back ..
// c + forward, and with them leading keys and listed positions; rows on such a position may see every key.
// Used as BandKeys.
#pragma once

#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

struct BlockKeys {
    int64_t width;          // at least 1
    int64_t back, forward;  // blocks before and behind the position's own, at least 0
    GlobalKeys globals;

    Band band(int64_t p) const {
        constexpr int64_t far = int64_t{1} << 31;  // blocks; the key axis is shorter
        const int64_t block = p >= 0 ? p / width : -((-p + width - 1) / width);
        const int64_t first = block - (back < far ? back : far);
        const int64_t last = block + (forward < far ? forward : far) + 1;
        return {times_width(first), times_width(last)};
    }

    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const BlockKeys& keys = *static_cast<const BlockKeys*>(user);
        visit_band_union(keys.globals, *tile, keys.band(tile->first_position), keys.band(tile->last_position),
                         visit_range, visitor);
    }
    static void keep(const void* user, const attend_score_tile* tile) {
        const BlockKeys& keys = *static_cast<const BlockKeys*>(user);
        LaneBands bands;
        for (int64_t lane = 0; lane < tile->queries->lane_stride; ++lane)
            bands.set(lane, keys.band(tile->queries->lane_position[lane]));
        keep_band_union(keys.globals, *tile, bands);
    }

private:
    // Saturating: a product outside the axis need not be exact.
    int64_t times_width(int64_t block) const {
        constexpr int64_t far = int64_t{1} << 40;
        if (block != 0 && width > far / (block < 0 ? -block : block)) return block < 0 ? -far : far;
        return block * width;
    }
};

}  // namespace attend::ATTEND_ISA
