// SPDX-License-Identifier: Apache-2.0
// Softmax attention over tiles: the loop over batch items, heads and query tiles.
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/decode/decode.hpp"
#include "attend/toolkit/tile/tile_worker.hpp"

namespace attend::ATTEND_ISA {
namespace {

// Rows below the query length; the others see nothing.
int64_t valid_rows(const TileRun& run, int64_t batch) {
    const attend_tile_problem& problem = *run.problem;
    if (problem.query_lengths == nullptr) return run.sizes.q_len;
    const int64_t length = integer_at(problem.query_lengths, batch);
    if (problem.query_index == nullptr) return lesser(length, run.sizes.q_len);
    int64_t rows = 0;
    while (rows < run.sizes.q_len && problem.query_index[rows] < length) ++rows;
    return rows;
}

void fill_zero(float* row, int64_t stride, int64_t count) {
    for (int64_t at = 0; at < count; ++at) row[at * stride] = 0.0f;
}

// Rows without keys: zero output, LSE minus infinity. Weights are zeroed for all rows beforehand.
void write_empty_rows(const TileRun& run, const TileRows& rows) {
    for (int64_t v = rows.begin; v < rows.end; ++v) {
        const int64_t row = v / rows.pack, head = rows.first_head + v % rows.pack;
        if (run.output.present)
            fill_zero(run.output.at(rows.batch, head, row, 0), run.output.strides[3], run.sizes.value_dim);
        if (run.lse.present) *run.lse.at(rows.batch, head, row) = -infinity;
    }
}

template <int V>
void run_tile(const TileRun& run, const TileScratch& scratch, const TileRows& rows) {
    TileWorker<V> worker(run, scratch, rows);
    worker.forward();
    if (run.scores.present) worker.weights();
    if (run.average.present) worker.add_weights();
}

void attend_rows(const TileRun& run, const TileScratch& scratch, TileRows rows) {
    const int64_t end = rows.end;
    if (run.scores.present)
        for (int64_t v = rows.begin; v < end; ++v)
            fill_zero(run.scores.at(rows.batch, rows.first_head + v % rows.pack, v / rows.pack, 0),
                      run.scores.strides[3], run.sizes.all_keys);
    rows.end = clamp(valid_rows(run, rows.batch) * rows.pack, rows.begin, end);
    const int64_t count = rows.end - rows.begin;
    if (count > 2 * batch_lanes)
        run_tile<3>(run, scratch, rows);
    else if (count > batch_lanes)
        run_tile<2>(run, scratch, rows);
    else if (count > 0)
        run_tile<1>(run, scratch, rows);
    rows.begin = rows.end;
    rows.end = end;
    write_empty_rows(run, rows);
}

attend_status run_items(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const TileRun& run = *static_cast<const TileRun*>(user);
    const TileSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const TileScratch scratch = TileScratch::take(space, sizes);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        // Last tile first: where causal, it is the longest, and the loop ends with short ones.
        const int64_t tile = sizes.tiles - 1 - item % sizes.tiles;
        const int64_t outer = item / sizes.tiles;
        TileRows rows{};
        rows.begin = tile * sizes.tile_lanes;
        rows.end = lesser(rows.begin + sizes.tile_lanes, sizes.q_len * sizes.pack);
        rows.pack = sizes.pack;
        if (!sizes.average) {
            rows.batch = outer / sizes.groups;
            rows.kv_head = outer % sizes.groups;
            rows.first_head = rows.kv_head * sizes.pack;
            attend_rows(run, scratch, rows);
            continue;
        }
        rows.batch = outer;
        const TensorView<float, 3>& average = run.average;
        for (int64_t row = rows.begin; row < rows.end; ++row)
            fill_zero(average.at(rows.batch, row, 0), average.strides[2], sizes.all_keys);
        for (int64_t head = 0; head < sizes.q_heads; ++head) {
            rows.first_head = head;
            rows.kv_head = head * sizes.kv_heads / sizes.q_heads;
            attend_rows(run, scratch, rows);
        }
        const float share = static_cast<float>(1.0 / static_cast<double>(sizes.q_heads));
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            float* to = average.at(rows.batch, row, 0);
            for (int64_t key = 0; key < sizes.all_keys; ++key) to[key * average.strides[2]] *= share;
        }
    }
    return ATTEND_OK;
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_tile_workspace)(const attend_tile_problem* problem, uint32_t max_workers) {
    if (problem == nullptr || problem->query == nullptr || problem->num_segments == 0) return 0;
    const uint64_t tiles = TileScratch::bytes(sizes_of(*problem)) * (max_workers == 0 ? 1 : max_workers);
    const uint64_t rows = decode_workspace(*problem, max_workers);  // whether few rows go that way is known later
    return tiles > rows ? tiles : rows;
}

extern "C" attend_status ATTEND_KERNEL(attend_tile_forward)(const attend_tile_problem* problem,
                                                            const attend_context* context) {
    const attend_status checked = check_tile_problem(*problem, context->error);
    if (checked != ATTEND_OK) return checked;
    if (decode_applies(*problem)) return decode_forward(*problem, context);
    TileRun run{};
    run.problem = problem;
    run.sizes = sizes_of(*problem);
    run.slots = worker_count(context);
    run.slot_bytes = TileScratch::bytes(run.sizes);
    run.memory = static_cast<unsigned char*>(context->workspace);
    const uint64_t needed = run.slot_bytes * run.slots;
    if (context->workspace_bytes < needed || (run.memory == nullptr && needed > 0)) {
        Message text;
        text << "attend_tile_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed) << " for " << int64_t{run.slots}
             << " workers";
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    run.query = view_of<const float, 4>(problem->query);
    run.output = view_of<float, 4>(problem->output);
    run.lse = view_of<float, 3>(problem->lse);
    run.mask = broadcast_view_of<const uint8_t, 4>(problem->mask);
    run.bias = broadcast_view_of<const float, 4>(problem->bias);
    if (run.sizes.average)
        run.average = view_of<float, 3>(problem->scores);
    else
        run.scores = view_of<float, 4>(problem->scores);
    run.scale = static_cast<float>(problem->scale);
    run.softcap = static_cast<float>(problem->softcap);
    run.dropout = problem->dropout > 0.0;
    if (run.dropout) {
        run.dropout_threshold = attend::ATTEND_ISA::dropout_threshold(problem->dropout);
        run.kept_scale = dropout_scale(problem->dropout);
        run.dropout_heads =
            static_cast<uint32_t>(problem->dropout_heads > 0 ? problem->dropout_heads : run.sizes.q_heads);
    }
    if (run.sizes.tiles == 0) return ATTEND_OK;
    return parallel_items(context, static_cast<uint64_t>(run.sizes.items()), run_items, &run);
}
