// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding inside the tile engine: queries turn when a tile is loaded, keys when a block is taken up,
// both by tables of cosines and sines that were evaluated in double and rounded once.
#pragma once

#include <math.h>

#include "attend/toolkit.h"
#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/position/rotary.hpp"

namespace attend::ATTEND_ISA {

// Frequencies of the pairs of a rotation over `dim` channels, as U2's scalings change them (sdk/docs/utilities.md).
struct RotaryFrequencies {
    enum Scaling : int32_t { none, linear, ntk, dynamic_ntk, yarn, llama3 };
    int64_t dim;
    double base;
    Scaling scaling;
    double factor, original_positions, low, high, beta_fast, beta_slow;
    double positions;  // dynamic_ntk: 1 + the largest position of the call

    double operator()(int64_t t) const {
        const double r = static_cast<double>(dim), place = -2.0 * static_cast<double>(t) / r;
        const double plain = ::pow(base, place);
        switch (scaling) {
            case none: return plain;
            case linear: return plain / factor;
            case ntk: return ::pow(base * ::pow(factor, r / (r - 2.0)), place);
            case dynamic_ntk: {
                const double most = positions > original_positions ? positions : original_positions;
                return ::pow(base * ::pow(factor * most / original_positions - (factor - 1.0), r / (r - 2.0)), place);
            }
            case yarn: {
                double low_pair = ::floor(pair_of(beta_fast)), high_pair = ::ceil(pair_of(beta_slow));
                low_pair = low_pair < 0.0 ? 0.0 : low_pair;
                high_pair = high_pair > r - 1.0 ? r - 1.0 : high_pair;
                if (low_pair == high_pair) high_pair += 0.001;
                double ramp = (static_cast<double>(t) - low_pair) / (high_pair - low_pair);
                ramp = ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
                return (1.0 - ramp) * plain + ramp * plain / factor;
            }
            case llama3: {
                const double wave = 2.0 * pi / plain;
                if (wave < original_positions / high) return plain;
                if (wave > original_positions / low) return plain / factor;
                const double share = (original_positions / wave - low) / (high - low);
                return (1.0 - share) * plain / factor + share * plain;
            }
        }
        return plain;
    }

private:
    static constexpr double pi = 3.14159265358979323846;
    // The pair that turns `rotations` times within the original length.
    double pair_of(double rotations) const {
        return static_cast<double>(dim) * ::log(original_positions / (2.0 * pi * rotations)) / (2.0 * ::log(base));
    }
};

// A row of a table: dim / 2 cosines, then as many sines, each times `size`.
inline void rotary_row(double position, const double* frequencies, int64_t dim, double size, float* row) {
    for (int64_t t = 0; t < dim / 2; ++t) {
        const double angle = position * frequencies[t];
        row[t] = static_cast<float>(size * ::cos(angle));
        row[dim / 2 + t] = static_cast<float>(size * ::sin(angle));
    }
}

// Rows of `dim` floats. Row 0 belongs to index `first`; 0 as the batch stride: one table for all items.
struct RotaryTable {
    const float* rows;
    int64_t batch_stride, first;
    const float* row(int64_t batch, int64_t index, int64_t dim) const {
        return rows + batch * batch_stride + (index - first) * dim;
    }
};

// The user data of the hooks of rotary attention. attend_tile_hooks::tile_floats is memory_floats().
struct RotaryHooks {
    int64_t dim;
    RotaryLayout layout;
    bool queries_by_row;  // the query table's index is the row of the query tensor; otherwise its position i'
    RotaryTable queries, keys;

    static int64_t memory_floats(int64_t dim) { return dim * max_lanes; }

    static void turn_queries(const void* user, const attend_query_tile* tile) {
        const RotaryHooks& self = *static_cast<const RotaryHooks*>(user);
        const int64_t lanes = tile->lane_stride;
        const float* rows[max_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane)
            rows[lane] = self.queries.row(
                tile->batch, self.queries_by_row ? tile->lane_row[lane] : tile->lane_position[lane], self.dim);
        const int vectors = static_cast<int>(lanes / batch_lanes);
        if (vectors == 3)
            load_lanes<3>(rows, 1, self.dim, 1.0f, tile->memory);
        else if (vectors == 2)
            load_lanes<2>(rows, 1, self.dim, 1.0f, tile->memory);
        else
            load_lanes<1>(rows, 1, self.dim, 1.0f, tile->memory);
        const int64_t pairs = self.dim / 2;
        for (int64_t t = 0; t < pairs; ++t) {
            const bool half = self.layout == RotaryLayout::half;
            float* a = tile->queries + (half ? t : 2 * t) * lanes;
            float* b = tile->queries + (half ? t + pairs : 2 * t + 1) * lanes;
            const float *cosine = tile->memory + t * lanes, *sine = tile->memory + (pairs + t) * lanes;
            for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
                const Batch x = load(a + lane), y = load(b + lane), c = load(cosine + lane), s = load(sine + lane);
                store(a + lane, x * c - y * s);
                store(b + lane, y * c + x * s);
            }
        }
    }

    static void turn_keys(const void* user, const attend_key_block* block) {
        const RotaryHooks& self = *static_cast<const RotaryHooks*>(user);
        for (int64_t row = 0; row < block->num_keys; ++row) {
            const float* turn = self.keys.row(block->batch, block->first_key + row, self.dim);
            rotate(block->keys + row * block->row_stride, self.dim, self.layout, turn, turn + self.dim / 2);
        }
    }
};

}  // namespace attend::ATTEND_ISA
