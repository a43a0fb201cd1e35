// SPDX-License-Identifier: Apache-2.0
// A softmax that spans several calls: what a tile leaves to a later call and takes from an earlier one. The largest score
// and the sum of weights of each row lie in tensors of their own, unnormalised values in the output.
#pragma once

#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/tile/key_block.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// The base follows from the maximum, rounded as it was.
inline void take_state(const TileRun& run, const TileScratch& scratch, const TileState& state, int64_t batch,
                       int vectors) {
    for (int64_t lane = 0; lane < vectors * batch_lanes; ++lane) {
        const int64_t head = state.head[lane], row = state.row[lane];
        const float largest = *run.state_max.at(batch, head, row);
        state.softmax.row_max[lane] = largest;
        state.softmax.row_base[lane] = largest == -infinity ? -infinity : largest * run.factor;
        state.softmax.row_sum[lane] = *run.state_sum.at(batch, head, row);
        scratch.rows[lane] = reinterpret_cast<const float*>(run.output.at(batch, head, row));
    }
    by_vectors(vectors, [&](auto v) {
        load_lanes<decltype(v)::count>(scratch.rows, run.output.step(), run.sizes.value_dim, 1.0f, state.acc);
    });
}
inline void leave_state(const TileRun& run, const TileState& state, int64_t batch, int64_t lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t head = state.head[lane], row = state.row[lane];
        *run.state_max.at(batch, head, row) = state.softmax.row_max[lane];
        *run.state_sum.at(batch, head, row) = state.softmax.row_sum[lane];
    }
}

}  // namespace attend::ATTEND_ISA
