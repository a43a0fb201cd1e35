// SPDX-License-Identifier: Apache-2.0
// Attention with mixing across heads: the loop over batch items and query tiles.
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/head_mix/head_mix_worker.hpp"

namespace attend::ATTEND_ISA {
namespace {

// Queries [begin, end) of an item: zero output, LSE minus infinity.
void write_empty_rows(const HeadMixRun& run, int64_t batch, int64_t begin, int64_t end) {
    const HeadMixSizes& sizes = run.sizes;
    const auto bytes = static_cast<size_t>(storage_bytes(run.output.storage));
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t head = 0; head < sizes.value_heads; ++head)
            for (int64_t c = 0; c < sizes.value_dim; ++c)  // zero has the same bits in every type
                __builtin_memset(run.output.at(batch, head, row) + c * run.output.strides[3], 0, bytes);
        if (run.lse.present)
            for (int64_t head = 0; head < sizes.softmax_heads; ++head) *run.lse.at(batch, head, row) = -infinity;
    }
}

void copy_matrix(const attend_tensor* from, int64_t rows, int64_t columns, float* to) {
    if (from == nullptr) return;
    const float* data = static_cast<const float*>(from->data);
    const int64_t row_step = from->ndim == 2 ? from->strides[0] : 0, step = from->strides[from->ndim - 1];
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column)
            to[row * columns + column] = data[row * row_step + column * step];
}

attend_status run_items(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const HeadMixRun& run = *static_cast<const HeadMixRun*>(user);
    const attend_head_mix_problem& problem = *run.problem;
    const HeadMixSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const HeadMixScratch scratch = HeadMixScratch::take(space, sizes);
    copy_matrix(problem.pre_mix, sizes.score_heads, sizes.softmax_heads, scratch.pre_mix);
    copy_matrix(problem.pre_bias, 1, sizes.softmax_heads, scratch.pre_bias);
    copy_matrix(problem.post_mix, sizes.softmax_heads, sizes.value_heads, scratch.post_mix);
    copy_matrix(problem.post_bias, 1, sizes.value_heads, scratch.post_bias);
    for (uint64_t item = begin; item < end; ++item) {
        // Under the diagonal the last tiles are the longest, and chunks are handed out in ascending order.
        const auto number = static_cast<int64_t>(item);
        const int64_t batch = number / sizes.tiles, tile = sizes.tiles - 1 - number % sizes.tiles;
        const int64_t first = tile * sizes.tile_lanes, last = lesser(first + sizes.tile_lanes, sizes.q_len);
        const int64_t length =
            problem.query_lengths != nullptr ? integer_at(problem.query_lengths, batch) : sizes.q_len;
        const int64_t valid = clamp(length, first, last);
        write_empty_rows(run, batch, valid, last);
        if (first < valid) HeadMixWorker(run, scratch, batch, first, valid).run();
    }
    return ATTEND_OK;
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_head_mix_workspace)(const attend_head_mix_problem* problem,
                                                             uint32_t max_workers) {
    if (problem == nullptr || problem->query == nullptr || problem->key == nullptr || problem->value == nullptr)
        return 0;
    return HeadMixScratch::bytes(sizes_of(*problem)) * (max_workers == 0 ? 1 : max_workers);
}

extern "C" attend_status ATTEND_KERNEL(attend_head_mix_forward)(const attend_head_mix_problem* problem,
                                                                const attend_context* context) {
    const attend_status checked = check_head_mix(*problem, context->error);
    if (checked != ATTEND_OK) return checked;
    HeadMixRun run{};
    run.problem = problem;
    run.sizes = sizes_of(*problem);
    run.slots = worker_count(context);
    run.slot_bytes = HeadMixScratch::bytes(run.sizes);
    run.memory = static_cast<unsigned char*>(context->workspace);
    const uint64_t needed = run.slot_bytes * run.slots;
    if (context->workspace_bytes < needed || (run.memory == nullptr && needed > 0)) {
        Message text;
        text << "attend_head_mix_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed) << " for " << int64_t{run.slots}
             << " workers";
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    run.query = stored_view(problem->query);
    run.key = stored_view(problem->key);
    run.output = stored_view(problem->output);
    run.lse = view_of<float, 3>(problem->lse);
    run.mask = broadcast_view_of<const uint8_t, 4>(problem->mask);
    run.bias = broadcast_view_of<const float, 4>(problem->bias);
    run.scale = static_cast<float>(problem->scale);
    run.softcap = static_cast<float>(problem->softcap);
    run.factor = softmax_factor(1.0f);
    if (problem->dropout > 0.0) {
        run.dropout_problem.seed = problem->seed;
        run.dropout_problem.rng_offset = problem->rng_offset;
        run.dropout.problem = &run.dropout_problem;
        run.dropout.dropout = true;
        run.dropout.dropout_threshold = attend::ATTEND_ISA::dropout_threshold(problem->dropout);
        run.dropout.kept_scale = dropout_scale(problem->dropout);
        run.dropout.dropout_heads = static_cast<uint32_t>(run.sizes.value_heads);
    }
    return parallel_items(context, static_cast<uint64_t>(run.sizes.items()), run_items, &run);
}
