// SPDX-License-Identifier: Apache-2.0
// The tile engine of one entry with and without hooks. The key iterator visits every second block of 256 keys.
#include "hooks.hpp"

#include <time.h>

#include "attend/toolkit.h"

extern "C" void ATTEND_KERNEL(bench_modifier)(const void* user, const attend_score_tile* tile);
extern "C" double ATTEND_KERNEL(bench_hook_run)(Hook hook, int64_t length, int64_t head_dim, float* const (&tensors)[4],
                                                void* workspace, uint64_t workspace_bytes);

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t block = 256;

void visit_even_blocks(const void*, const attend_query_tile* tile, attend_key_visit_fn visit, void* visitor) {
    for (int64_t begin = 0; begin < tile->kv_len; begin += 2 * block)
        visit(visitor, begin, begin + block < tile->kv_len ? begin + block : tile->kv_len, 0);
}

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace
}  // namespace attend::ATTEND_ISA

extern "C" double ATTEND_KERNEL(bench_hook_run)(Hook hook, int64_t length, int64_t head_dim, float* const (&tensors)[4],
                                                void* workspace, uint64_t workspace_bytes) {
    using namespace attend::ATTEND_ISA;
    const int64_t shape[4] = {1, 8, length, head_dim};
    const int64_t strides[4] = {8 * length * head_dim, length * head_dim, head_dim, 1};
    attend_tensor described[4];
    for (int at = 0; at < 4; ++at) {
        described[at] = attend_tensor{};
        described[at].struct_size = sizeof(attend_tensor);
        described[at].data = tensors[at];
        described[at].device_type = ATTEND_DEVICE_CPU;
        described[at].ndim = 4;
        described[at].dtype_code = ATTEND_CODE_FLOAT;
        described[at].dtype_bits = 32;
        described[at].dtype_lanes = 1;
        described[at].shape = shape;
        described[at].strides = strides;
        described[at].align = 4;
    }
    const attend_key_segment segment{&described[1], &described[2], 0, 0, nullptr};
    attend_tile_problem problem{};
    problem.query = &described[0];
    problem.segments = &segment;
    problem.num_segments = 1;
    problem.output = &described[3];
    problem.window_left = problem.window_right = -1;
    problem.scale = 0.125;
    const float penalty = 0.01f;
    if (hook == Hook::modifier) {
        problem.score = ATTEND_KERNEL(bench_modifier);
        problem.score_user = &penalty;
    }
    if (hook == Hook::keys) problem.keys = visit_even_blocks;
    if (ATTEND_KERNEL(attend_tile_workspace)(&problem, 1) > workspace_bytes) return -1.0;
    attend_context context{};
    context.workspace = workspace;
    context.workspace_bytes = workspace_bytes;
    context.max_workers = 1;
    const double begin = now();
    if (ATTEND_KERNEL(attend_tile_forward)(&problem, &context) != ATTEND_OK) return -1.0;
    return now() - begin;
}
