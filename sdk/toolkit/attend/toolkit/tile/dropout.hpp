// SPDX-License-Identifier: Apache-2.0
// Dropout of a tile of weights by counter: the decision for (b, h, i, j) depends on the seed and these numbers alone.
#pragma once

#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// Philox over the lanes of a tile, four keys at a time; plain loops over lanes, which compilers turn into vectors.
class TileDropout {
public:
    TileDropout(const TileRun& run, const attend_query_tile& tile, int64_t lanes)
        : seed_(run.problem->seed),
          threshold_(run.dropout_threshold),
          lanes_(lanes),
          scale_(run.kept_scale),
          query_(tile.lane_query) {
        tail_ = counter_tail(RandomDomain::dropout, static_cast<uint32_t>(run.problem->rng_offset));
        const uint32_t base =
            static_cast<uint32_t>(tile.batch) * run.dropout_heads + static_cast<uint32_t>(run.problem->dropout_head);
        for (int64_t lane = 0; lane < lanes; ++lane)
            row_head_[lane] = base + static_cast<uint32_t>(tile.lane_head[lane]);
    }

    // Zeroes the dropped weights of key j and scales the kept ones.
    void apply(float* weights, int64_t j) {
        if (j / 4 != block_) draw(j / 4);
        const uint32_t* word = words_[j % 4];
        const uint32_t threshold = threshold_;
        const float scale = scale_;
        for (int64_t lane = 0; lane < lanes_; ++lane)
            weights[lane] = word[lane] >= threshold ? weights[lane] * scale : 0.0f;
    }

private:
    void draw(int64_t block) {
        block_ = block;
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            words_[0][lane] = static_cast<uint32_t>(block);
            words_[1][lane] = static_cast<uint32_t>(query_[lane]);
            words_[2][lane] = row_head_[lane];
            words_[3][lane] = tail_;
        }
        uint32_t k0 = static_cast<uint32_t>(seed_);
        uint32_t k1 = static_cast<uint32_t>(seed_ >> 32);
        for (int round = 0; round < 10; ++round) {
            for (int64_t lane = 0; lane < lanes_; ++lane) {
                const uint64_t a = uint64_t{0xD2511F53u} * words_[0][lane];
                const uint64_t b = uint64_t{0xCD9E8D57u} * words_[2][lane];
                words_[0][lane] = static_cast<uint32_t>(b >> 32) ^ words_[1][lane] ^ k0;
                words_[2][lane] = static_cast<uint32_t>(a >> 32) ^ words_[3][lane] ^ k1;
                words_[1][lane] = static_cast<uint32_t>(b);
                words_[3][lane] = static_cast<uint32_t>(a);
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
    }

    uint64_t seed_;
    uint32_t threshold_, tail_;
    int64_t lanes_, block_{-1};
    float scale_;
    const int32_t* query_;
    uint32_t row_head_[max_lanes];
    uint32_t words_[4][max_lanes];
};

}  // namespace attend::ATTEND_ISA
