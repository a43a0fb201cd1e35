// SPDX-License-Identifier: Apache-2.0
// The toolkit's inner loops, each as one function over fixed sizes: register-tile products, exponential, softmax update,
// transposes, rotary embedding.
#include "attend/toolkit.h"
#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/position/rotary.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/tile/softmax_state.hpp"
#include "micro.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t keys = 128, width = 64, exponentials = 4096;

// Scores of 128 keys: broadcast rows of 64 features, V vectors of queries.
template <int V>
void run_score_block(const MicroData& data) {
    score_block<V>(data.left, width, 1, keys, data.right, width, data.out);
}
// 64 columns of the output from 128 values.
template <int V>
void run_value_block(const MicroData& data) {
    value_block<V>(data.left, width, 1, keys, data.right, width, data.out, Into::rescale, data.rescale);
}
template <int V>
constexpr double product_operations = 2.0 * keys* width* V* batch_lanes;

void run_exp(const MicroData& data) {
    for (int64_t at = 0; at < exponentials; at += batch_lanes)
        store(data.out + at, exp_nonpositive(load(data.left + at)));
}

template <int V>
void run_softmax(const MicroData& data) {
    const TileSoftmax state{data.maximum, data.base, data.sum, data.rescale};
    start_softmax<V>(state);
    // The scores become weights, which are scores as good as any for the next call.
    update_softmax<V>(data.out, keys, 0.1f, state);
}

template <int V>
void run_load_lanes(const MicroData& data) {
    const float* rows[V * batch_lanes];
    for (int64_t lane = 0; lane < V * batch_lanes; ++lane) rows[lane] = data.left + lane * width;
    load_lanes<V>(rows, data.stride, width, 0.125f, data.out);
}
template <int V>
void run_store_lanes(const MicroData& data) {
    float* rows[V * batch_lanes];
    for (int64_t lane = 0; lane < V * batch_lanes; ++lane) rows[lane] = data.out + lane * width;
    store_lanes<V>(data.left, width, data.rescale, rows, data.stride, V * batch_lanes);
}

template <RotaryLayout layout>
void run_rotary(const MicroData& data) {
    for (int64_t row = 0; row < keys; ++row)
        rotate(data.out + row * width, width, layout, data.right, data.right + width);
}

constexpr double lanes_of(int vectors) { return static_cast<double>(vectors) * batch_lanes; }

constexpr MicroCase cases[] = {
    {"score_block 128x64, 1 vector", product_operations<1>, lanes_of(1) * keys, run_score_block<1>},
    {"score_block 128x64, 2 vectors", product_operations<2>, lanes_of(2) * keys, run_score_block<2>},
    {"score_block 128x64, 3 vectors", product_operations<max_vectors>, lanes_of(max_vectors) * keys,
     run_score_block<max_vectors>},
    {"value_block 64x128, 1 vector", product_operations<1>, lanes_of(1) * width, run_value_block<1>},
    {"value_block 64x128, 2 vectors", product_operations<2>, lanes_of(2) * width, run_value_block<2>},
    {"value_block 64x128, 3 vectors", product_operations<max_vectors>, lanes_of(max_vectors) * width,
     run_value_block<max_vectors>},
    {"exp 4096", 0, exponentials, run_exp},
    {"softmax update 128 keys, 3 vectors", 0, lanes_of(max_vectors) * keys, run_softmax<max_vectors>},
    {"load_lanes 64 wide, 3 vectors", 0, lanes_of(max_vectors) * width, run_load_lanes<max_vectors>},
    {"store_lanes 64 wide, 3 vectors", 0, lanes_of(max_vectors) * width, run_store_lanes<max_vectors>},
    {"rotary half 128x64", 3.0 * keys* width, keys* width, run_rotary<RotaryLayout::half>},
    {"rotary interleaved 128x64", 3.0 * keys* width, keys* width, run_rotary<RotaryLayout::interleaved>},
};
constexpr MicroTable table{cases, static_cast<int>(sizeof cases / sizeof cases[0])};

}  // namespace
}  // namespace attend::ATTEND_ISA

extern "C" const MicroTable* ATTEND_KERNEL(attend_micro)();
extern "C" const MicroTable* ATTEND_KERNEL(attend_micro)() { return &attend::ATTEND_ISA::table; }
