// SPDX-License-Identifier: Apache-2.0
// Softmax attention for few query rows: the loop over batch items, key/value heads and parts of the keys.
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/decode/decode_worker.hpp"

namespace attend::ATTEND_ISA {
namespace decode {
namespace {

enum class Phase { parts, merge };

template <int G, class Unit>
void run_item(const Run& run, const Scratch& scratch, Phase phase, int64_t batch, int64_t head, int64_t split) {
    const Sizes& sizes = run.sizes;
    Worker<G, Unit> worker(run, scratch, batch, head);
    const int64_t place = ((batch - run.first_item) * sizes.kv_heads + head) * sizes.splits;
    if (phase == Phase::merge) {
        worker.merge_parts(run.parts + place * sizes.part_floats());
        worker.write_empty_rows();
        return;
    }
    worker.forward(worker.part_begin(split), worker.part_end(split));
    if (sizes.splits > 1) {
        worker.write_part(run.parts + (place + split) * sizes.part_floats());
        return;
    }
    worker.finish();
    worker.write_empty_rows();
}

template <class Unit>
void run_group(const Run& run, const Scratch& scratch, Phase phase, int64_t batch, int64_t head, int64_t split) {
    if (run.sizes.group == 1) run_item<1, Unit>(run, scratch, phase, batch, head, split);
    if (run.sizes.group == 2) run_item<2, Unit>(run, scratch, phase, batch, head, split);
    if (run.sizes.group == 4) run_item<4, Unit>(run, scratch, phase, batch, head, split);
    if constexpr (most_group >= 8)
        if (run.sizes.group == 8) run_item<8, Unit>(run, scratch, phase, batch, head, split);
}

attend_status run_range(const Run& run, Phase phase, uint64_t begin, uint64_t end, uint32_t slot) {
    const Sizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const Scratch scratch = Scratch::take(space, sizes);
    const int64_t splits = phase == Phase::merge ? 1 : sizes.splits;
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t outer = item / splits;
        const int64_t batch = run.first_item + outer / sizes.kv_heads, head = outer % sizes.kv_heads;
#if ATTEND_HAS_DOTS
        if (run.hardware) {
            run_group<PairUnit>(run, scratch, phase, batch, head, item % splits);
            continue;
        }
#endif
        const int64_t split = item % splits;
        if (sizes.key == Element::f32) run_group<FloatUnit>(run, scratch, phase, batch, head, split);
        if (sizes.key == Element::bf16) run_group<NarrowUnit<Element::bf16>>(run, scratch, phase, batch, head, split);
        if (sizes.key == Element::f16) run_group<NarrowUnit<Element::f16>>(run, scratch, phase, batch, head, split);
        if (sizes.key == Element::i8) run_group<NarrowUnit<Element::i8>>(run, scratch, phase, batch, head, split);
        if (sizes.key == Element::e4m3) run_group<NarrowUnit<Element::e4m3>>(run, scratch, phase, batch, head, split);
    }
    return ATTEND_OK;
}

attend_status run_parts(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    return run_range(*static_cast<const Run*>(user), Phase::parts, begin, end, slot);
}
attend_status run_merge(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    return run_range(*static_cast<const Run*>(user), Phase::merge, begin, end, slot);
}

// Rows of the last dimension lie without gaps.
bool has_plain_rows(const attend_tensor& tensor) { return tensor.strides[3] == 1 || tensor.shape[3] == 1; }

uint64_t parts_bytes(const Sizes& sizes) {
    const int64_t widest = sizes.all_keys * (sizes.head_dim + sizes.value_dim) * 4;
    const int64_t asked =
        sizes.split_unit > 0 ? sizes.items_at_once * sizes.kv_heads * sizes.splits * sizes.part_floats() * 4 : 0;
    return static_cast<uint64_t>(greater(asked, widest >= 2 * split_bytes ? most_part_bytes : 0));
}

}  // namespace
}  // namespace decode

using namespace decode;

bool decode_applies(const attend_tile_problem& problem) {
    if (problem.scores != nullptr || problem.num_rows > 0 || problem.dropout > 0.0 || problem.keys != nullptr)
        return false;
    if (problem.hooks != nullptr) return false;
    if ((problem.flags & (ATTEND_TILE_LEAVES_STATE | ATTEND_TILE_TAKES_STATE)) != 0) return false;
    if (problem.query_index != nullptr || problem.key_index != nullptr) return false;
    const attend_tensor& query = *problem.query;
    const int64_t kv_heads = problem.segments[0].key->shape[1];
    if (kv_heads < 1) return false;
    const int64_t rows = query.shape[1] / kv_heads * query.shape[2];
    if (rows < 1 || rows > most_decode_rows) return false;
    if (problem.max_query_tile > 0 && problem.max_query_tile < rows) return false;
    if (query.shape[3] > most_width || problem.segments[0].value->shape[3] > most_width) return false;
    const Element element = element_of(*problem.segments[0].key);
    if (element_of(query) == Element::other || is_code(element_of(query)) || element == Element::other) return false;
    if (is_code(element) && problem.num_segments > 1) return false;
    for (uint32_t index = 0; index < problem.num_segments; ++index) {
        const attend_key_segment& segment = problem.segments[index];
        if (!has_plain_rows(*segment.key) || !has_plain_rows(*segment.value)) return false;
        if (element_of(*segment.key) != element || element_of(*segment.value) != element) return false;
    }
    return problem.output == nullptr || element_of(*problem.output) == element_of(query);
}

uint64_t decode_workspace(const attend_tile_problem& problem, uint32_t max_workers) {
    const int64_t kv_heads = problem.segments[0].key->shape[1];
    if (kv_heads < 1) return 0;
    const int64_t rows = problem.query->shape[1] / kv_heads * problem.query->shape[2];
    if (rows < 1 || rows > most_decode_rows) return 0;
    if (problem.query->shape[3] > most_width || problem.segments[0].value->shape[3] > most_width) return 0;
    const Sizes sizes = sizes_for(problem);
    return decode::Scratch::bytes(sizes) * (max_workers == 0 ? 1 : max_workers) + parts_bytes(sizes);
}

attend_status decode_forward(const attend_tile_problem& problem, const attend_context* context) {
    Run run{};
    run.problem = &problem;
    run.sizes = sizes_for(problem);
    const Sizes& sizes = run.sizes;
    run.slots = worker_count(context);
    run.slot_bytes = decode::Scratch::bytes(sizes);
    run.memory = static_cast<unsigned char*>(context->workspace);
    const uint64_t needed = run.slots * run.slot_bytes + parts_bytes(sizes);
    if (context->workspace_bytes < needed || run.memory == nullptr) {
        Message text;
        text << "attend_tile_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed) << " for " << int64_t{run.slots}
             << " workers";
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    run.parts = reinterpret_cast<float*>(run.memory + run.slots * run.slot_bytes);
    run.mask = broadcast_view_of<const uint8_t, 4>(problem.mask);
    run.bias = broadcast_view_of<const float, 4>(problem.bias);
    run.hardware = sizes.key == Element::bf16 && sizes.query == Element::bf16 && context->host != nullptr &&
                   has_hardware_dots(context->host->cpu) && (problem.flags & ATTEND_TILE_WIDEN) == 0;
    const int64_t together = sizes.splits > 1 ? sizes.items_at_once : sizes.batch;
    for (; run.first_item < sizes.batch; run.first_item += together) {
        const int64_t heads = lesser(together, sizes.batch - run.first_item) * sizes.kv_heads;
        attend_status status =
            parallel_items(context, static_cast<uint64_t>(heads * sizes.splits), run_parts, &run, ATTEND_PARALLEL_NEAR);
        if (status == ATTEND_OK && sizes.splits > 1)
            status = parallel_items(context, static_cast<uint64_t>(heads), run_merge, &run, ATTEND_PARALLEL_NEAR);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA
