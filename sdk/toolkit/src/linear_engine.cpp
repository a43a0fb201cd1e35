// SPDX-License-Identifier: Apache-2.0
// The linear engine: states over segments of keys, and rows that read them. A call runs either state by state, each on one
// worker, or in phases over pieces of states, where there are fewer states than workers. Both do the same additions in the
// same order: sums of a segment start from nothing and join the total of the segments before in one step.
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/linear/linear_worker.hpp"

namespace attend::ATTEND_ISA {
namespace {

// Rows that no chunk holds: before the first key, past the last one (all rows when not causal), past the query length.
void rows_before(LinearWorker& worker, const LinearSizes& sizes, const Unit& unit, int64_t head, int64_t begin,
                 int64_t end, const PrefixState& initial) {
    if (sizes.causal) worker.attend_rows(head, begin, least(end, unit.row_at(0)), initial, false);
}
void rows_after(LinearWorker& worker, const LinearSizes& sizes, const Unit& unit, int64_t head, int64_t begin,
                int64_t end, const PrefixState& total) {
    const int64_t first = sizes.causal ? unit.row_at(unit.keys) : 0;
    worker.attend_rows(head, most(begin, first), least(end, unit.rows), total, false);
    worker.zero_rows(head, most(begin, unit.rows), end);
}

// Whether a key before `end` is read by anything after it.
bool is_read_later(const LinearRun& run, const Unit& unit, int64_t end) {
    return run.problem->final != nullptr || !run.sizes.causal || unit.row_at(end) < unit.rows;
}

// run_segment the short way: absorbing a chunk also leaves the sum of both states, which the next rows read.
void run_plain_segment(const LinearRun& run, const Unit& unit, LinearScratch& scratch, int64_t segment, bool rows,
                       const PrefixState& total, PrefixState& partial) {
    const LinearSizes& sizes = run.sizes;
    const bool causal_rows = rows && sizes.causal;
    PlainWorker plain(run, scratch, unit);
    partial.clear();
    const int64_t end = least((segment + 1) * sizes.segment, unit.keys);
    const int64_t chunk = sizes.causal ? plain_causal_chunk : plain_chunk;
    for (int64_t key = segment * sizes.segment; key < end; key += chunk) {
        const int64_t key_end = least(key + chunk, end);
        const int64_t row = unit.row_at(key), row_end = causal_rows ? unit.row_at(key_end) : row;
        const bool absorbs = is_read_later(run, unit, key_end);
        if (!absorbs && row == row_end) return;
        plain.load_keys(key, key_end, row < row_end);
        const PrefixState& before = partial.keys == 0 ? total : total.keys == 0 ? partial : scratch.reading;
        for (int64_t head = unit.first_head; row < row_end && head < unit.first_head + sizes.group_heads; ++head)
            plain.attend_rows(head, row, row_end, before, true);
        if (!absorbs) continue;
        const bool both = causal_rows && total.keys > 0;
        plain.absorb(partial, both ? &total : nullptr, both ? &scratch.reading : nullptr);
    }
}

// Keys of a segment into `partial`; where `rows` is set, the causal rows among them are written on the way, from `total`,
// the keys before the segment, and what `partial` holds by then.
void run_segment(const LinearRun& run, const Unit& unit, LinearWorker& worker, LinearScratch& scratch, int64_t segment,
                 bool rows, const PrefixState& total, PrefixState& partial) {
    const LinearSizes& sizes = run.sizes;
    if (run.plain) return run_plain_segment(run, unit, scratch, segment, rows, total, partial);
    partial.clear();
    const int64_t end = least((segment + 1) * sizes.segment, unit.keys);
    for (int64_t key = segment * sizes.segment; key < end; key += sizes.chunk) {
        const int64_t key_end = least(key + sizes.chunk, end);
        const int64_t row = unit.row_at(key), row_end = rows && sizes.causal ? unit.row_at(key_end) : row;
        const bool absorbs = is_read_later(run, unit, key_end);
        if (!absorbs && row == row_end) return;
        worker.load_keys(key, key_end, partial.c);
        if (row < row_end) {
            const PrefixState* before = partial.keys == 0 ? &total : &partial;
            if (partial.keys > 0 && total.keys > 0) {
                add_states(worker.shape(), total, partial, scratch.reading);
                before = &scratch.reading;
            }
            for (int64_t head = unit.first_head; head < unit.first_head + sizes.group_heads; ++head)
                worker.attend_rows(head, row, row_end, *before, true);
        }
        if (absorbs) worker.absorb(partial);
    }
}

int64_t state_floats(const LinearSizes& sizes) { return sizes.rows * (sizes.value_dim + 1); }

void load_initial(const LinearRun& run, const LinearWorker& worker, int64_t index, PrefixState& state) {
    state.clear();
    const attend_linear_state* from = run.problem->initial;
    if (from != nullptr)
        import_state(worker.shape(), from->sums + index * state_floats(run.sizes),
                     from->scales + index * ATTEND_LINEAR_STATE_SCALES, state);
}

// The final state leaves before the constant feature is folded in for reading.
void finish_total(const LinearRun& run, const LinearWorker& worker, int64_t index, PrefixState& state) {
    const attend_linear_state* to = run.problem->final;
    if (to != nullptr)
        export_state(worker.shape(), state, to->sums + index * state_floats(run.sizes),
                     to->scales + index * ATTEND_LINEAR_STATE_SCALES);
    if (run.sizes.rows > run.sizes.features) fold_constant(worker.shape(), state, run.feature_eps);
}

float scanned(const LinearRun& run, int64_t index) {
    float best = -infinity;
    for (int64_t segment = 0; run.sizes.scan && segment < run.sizes.segments; ++segment) {
        const float value = run.largest[index * run.sizes.segments + segment];
        best = value > best ? value : best;
    }
    return best;
}

Unit scanned_unit(const LinearRun& run, int64_t index) {
    Unit unit = unit_of(run, index);
    unit.largest = scanned(run, index);
    return unit;
}

// ---- bodies of the parallel loops ----

attend_status scan_segments(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const LinearRun& run = *static_cast<const LinearRun*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    const LinearScratch scratch = run.scratch(slot);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const Unit unit = unit_of(run, item / run.sizes.segments);
        LinearWorker worker(run, scratch, unit);
        const int64_t segment = item % run.sizes.segments, stop = least((segment + 1) * run.sizes.segment, unit.keys);
        float best = -infinity;
        for (int64_t key = segment * run.sizes.segment; key < stop; key += run.sizes.chunk) {
            const float value = worker.scan(key, least(key + run.sizes.chunk, stop));
            best = value > best ? value : best;
        }
        run.largest[item] = best;
    }
    return ATTEND_OK;
}

attend_status run_units(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const LinearRun& run = *static_cast<const LinearRun*>(user);
    const LinearSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    LinearScratch scratch = run.scratch(slot);
    for (int64_t index = static_cast<int64_t>(begin); index < static_cast<int64_t>(end); ++index) {
        const Unit unit = scanned_unit(run, index);
        LinearWorker worker(run, scratch, unit);
        PrefixState& total = scratch.total;
        load_initial(run, worker, index, total);
        for (int64_t head = unit.first_head; head < unit.first_head + sizes.group_heads; ++head)
            rows_before(worker, sizes, unit, head, 0, sizes.q_len, total);
        for (int64_t segment = 0; segment < sizes.segments; ++segment) {
            run_segment(run, unit, worker, scratch, segment, true, total, scratch.partial);
            add_states(worker.shape(), total, scratch.partial, total);
        }
        finish_total(run, worker, index, total);
        for (int64_t head = unit.first_head; head < unit.first_head + sizes.group_heads; ++head)
            rows_after(worker, sizes, unit, head, 0, sizes.q_len, total);
    }
    return ATTEND_OK;
}

// Sines and cosines of the positions of keys and queries, in double: those of far positions are as exact as others.
constexpr int64_t angles_at_once = 1024;
int64_t angle_blocks(const AngleTable& table) {
    return (table.step + angles_at_once - 1) / angles_at_once * table.items;
}

void fill_block(const LinearRun& run, const AngleTable& table, int64_t block, bool queries) {
    const attend_feature_map& map = run.problem->features;
    const int64_t blocks = angle_blocks(table) / table.items, item = block / blocks;
    const int64_t first = block % blocks * angles_at_once, end = least(first + angles_at_once, table.step);
    int64_t offset = map.key_offset;
    if (queries && map.item_positions) offset += unit_of(run, item * run.sizes.groups).offset;
    if (queries && !map.item_positions) offset = map.query_offset;
    for (int64_t at = first; at < end; ++at) {
        const double angle = at < table.count ? static_cast<double>(at + offset) * map.angle : 0.0;
        table.sines[table.at(item, at)] = static_cast<float>(::sin(angle));
        table.cosines[table.at(item, at)] = static_cast<float>(::cos(angle));
    }
}

attend_status fill_angles(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const LinearRun& run = *static_cast<const LinearRun*>(user);
    const int64_t of_keys = angle_blocks(run.key_angles);
    for (int64_t block = static_cast<int64_t>(begin); block < static_cast<int64_t>(end); ++block)
        block < of_keys ? fill_block(run, run.key_angles, block, false)
                        : fill_block(run, run.query_angles, block - of_keys, true);
    return ATTEND_OK;
}

// Phase 1: the sums of each segment on their own.
attend_status sum_segments(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const LinearRun& run = *static_cast<const LinearRun*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    LinearScratch scratch = run.scratch(slot);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t index = item / run.sizes.segments, segment = item % run.sizes.segments;
        const Unit unit = scanned_unit(run, index);
        LinearWorker worker(run, scratch, unit);
        PrefixState& to = run.states[index * (run.sizes.segments + 1) + segment + 1];
        run_segment(run, unit, worker, scratch, segment, false, scratch.total, to);
    }
    return ATTEND_OK;
}

// Phase 2: what lies before each segment.
attend_status join_segments(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const LinearRun& run = *static_cast<const LinearRun*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    const LinearScratch scratch = run.scratch(slot);
    for (int64_t index = static_cast<int64_t>(begin); index < static_cast<int64_t>(end); ++index) {
        const LinearWorker worker(run, scratch, unit_of(run, index));
        PrefixState* states = run.states + index * (run.sizes.segments + 1);
        load_initial(run, worker, index, states[0]);
        for (int64_t segment = 0; segment < run.sizes.segments; ++segment)
            add_states(worker.shape(), states[segment], states[segment + 1], states[segment + 1]);
        finish_total(run, worker, index, states[run.sizes.segments]);
    }
    return ATTEND_OK;
}

// Phase 3: the rows, by segments where they lie under keys, by blocks elsewhere.
attend_status run_rows(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const LinearRun& run = *static_cast<const LinearRun*>(user);
    const LinearSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    LinearScratch scratch = run.scratch(slot);
    const int64_t inner = sizes.causal ? sizes.units() * sizes.segments : 0;
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t block = item - inner, line = block < 0 ? 0 : block / sizes.tail_blocks;
        const int64_t head = line % sizes.q_heads;
        const int64_t index =
            block < 0 ? item / sizes.segments : line / sizes.q_heads * sizes.groups + head / sizes.group_heads;
        const Unit unit = scanned_unit(run, index);
        LinearWorker worker(run, scratch, unit);
        const PrefixState* states = run.states + index * (sizes.segments + 1);
        if (block < 0) {
            run_segment(run, unit, worker, scratch, item % sizes.segments, true, states[item % sizes.segments],
                        scratch.partial);
        } else {
            const int64_t row = block % sizes.tail_blocks * tail_rows, row_end = least(row + tail_rows, sizes.q_len);
            rows_before(worker, sizes, unit, head, row, row_end, states[0]);
            rows_after(worker, sizes, unit, head, row, row_end, states[sizes.segments]);
        }
    }
    return ATTEND_OK;
}

// ---- memory ----

// Phases cost a causal call the sums of its keys twice, and memory for the states.
bool runs_in_phases(const LinearSizes& sizes, uint32_t workers) {
    const int64_t units = sizes.units(), count = int64_t{workers};
    if (count < 2 || units == 0) return false;
    if (sizes.causal) return units < count && sizes.segments > 1;
    return units % count != 0 && units < 4 * count && (sizes.segments > 1 || sizes.tail_blocks > 1);
}

uint64_t slot_bytes_of(const LinearSizes& sizes, uint32_t kind) {
    Workspace count;
    LinearScratch::take(count, sizes, kind == ATTEND_FEATURES_DPFP);
    return count.used();
}

void take_shared(Workspace& space, LinearRun& run, bool phases) {
    const LinearSizes& sizes = run.sizes;
    run.largest = sizes.scan ? space.take<float>(sizes.units() * sizes.segments) : nullptr;
    run.states = nullptr;
    if (run.problem->features.kind == ATTEND_FEATURES_COSINE) {
        const bool by_item =
            run.problem->features.item_positions != 0 && (run.problem->flags & ATTEND_LINEAR_OFFSET_PER_ITEM) != 0;
        run.key_angles = AngleTable::take(space, sizes.kv_len, 1);
        run.query_angles = AngleTable::take(space, sizes.q_len, by_item ? sizes.batch : 1);
    }
    if (!phases) return;
    const int64_t states = sizes.units() * (sizes.segments + 1);
    run.states = space.take<PrefixState>(states);
    for (int64_t at = 0; at < states; ++at) {
        const PrefixState state = PrefixState::take(space, sizes.rows, sizes.values);
        if (run.states != nullptr) run.states[at] = state;
    }
}

void set_scales(LinearRun& run) {
    const attend_feature_map& map = run.problem->features;
    run.query_scale = static_cast<float>(map.query_scale);
    run.key_scale = static_cast<float>(map.key_scale);
    run.feature_eps = static_cast<float>(map.feature_eps);
    run.kernel_eps = static_cast<float>(map.kernel_eps);
    run.official = is_stabilised(map.kind) && map.official != 0;
    run.feature_norm = 1.0;
    if (map.kind == ATTEND_FEATURES_SINCOS || map.kind == ATTEND_FEATURES_ARCCOS)
        run.feature_norm = map.feature_factor * map.feature_factor;
    if (is_stabilised(map.kind))
        run.feature_norm =
            1.0 / static_cast<double>(map.kind == ATTEND_FEATURES_HYPERBOLIC ? 2 * run.sizes.raw : run.sizes.raw);
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" int64_t ATTEND_KERNEL(attend_linear_features)(const attend_linear_problem* problem) {
    return linear_sizes(*problem).features;
}

extern "C" int64_t ATTEND_KERNEL(attend_linear_state_rows)(const attend_linear_problem* problem) {
    return linear_sizes(*problem).rows;
}

extern "C" uint64_t ATTEND_KERNEL(attend_linear_workspace)(const attend_linear_problem* problem, uint32_t max_workers) {
    if (problem == nullptr || problem->query == nullptr || problem->key == nullptr || problem->value == nullptr)
        return 0;
    const uint32_t workers = max_workers == 0 ? 1 : max_workers;
    LinearRun run{};
    run.problem = problem;
    run.sizes = linear_sizes(*problem);
    if (run.sizes.units() == 0) return 0;
    Workspace shared;
    take_shared(shared, run, runs_in_phases(run.sizes, workers));
    return shared.used() + slot_bytes_of(run.sizes, problem->features.kind) * workers;
}

extern "C" attend_status ATTEND_KERNEL(attend_linear_forward)(const attend_linear_problem* problem,
                                                              const attend_context* context) {
    const attend_status checked = check_linear_problem(*problem, context->error);
    if (checked != ATTEND_OK) return checked;
    LinearRun run{};
    run.problem = problem;
    run.sizes = linear_sizes(*problem);
    const LinearSizes& sizes = run.sizes;
    if (sizes.units() == 0) return ATTEND_OK;
    run.slots = worker_count(context);
    run.slot_bytes = slot_bytes_of(sizes, problem->features.kind);
    const bool phases = runs_in_phases(sizes, run.slots);
    const uint64_t needed = ATTEND_KERNEL(attend_linear_workspace)(problem, run.slots);
    if (context->workspace_bytes < needed || context->workspace == nullptr) {
        Message text;
        text << "attend_linear_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed) << " for " << int64_t{run.slots}
             << " workers";
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    Workspace shared(context->workspace);
    take_shared(shared, run, phases);
    run.memory = static_cast<unsigned char*>(context->workspace) + shared.used();
    run.query = view_of<const float, 4>(problem->query);
    run.key = view_of<const float, 4>(problem->key);
    run.value = view_of<const float, 4>(problem->value);
    run.output = view_of<float, 4>(problem->output);
    run.lse = view_of<float, 3>(problem->lse);
    run.mask = broadcast_view_of<const uint8_t, 4>(problem->mask);
    run.bias = broadcast_view_of<const float, 4>(problem->bias);
    run.projection = view_of<const float, 3>(problem->features.projection);
    run.gates = view_of<const float, 3>(problem->gates);
    set_scales(run);
    run.plain = is_plain(*problem, sizes);

    const auto units = static_cast<uint64_t>(sizes.units()), segments = static_cast<uint64_t>(sizes.segments);
    attend_status status = ATTEND_OK;
    if (problem->features.kind == ATTEND_FEATURES_COSINE) {
        const int64_t blocks = angle_blocks(run.key_angles) + angle_blocks(run.query_angles);
        status = parallel_items(context, static_cast<uint64_t>(blocks), fill_angles, &run);
        if (status != ATTEND_OK) return status;
    }
    status = sizes.scan ? parallel_items(context, units * segments, scan_segments, &run) : ATTEND_OK;
    if (status != ATTEND_OK) return status;
    if (!phases) return parallel_items(context, units, run_units, &run);
    status = parallel_items(context, units * segments, sum_segments, &run);
    if (status == ATTEND_OK) status = parallel_items(context, units, join_segments, &run);
    if (status != ATTEND_OK) return status;
    const auto blocks = static_cast<uint64_t>(sizes.batch * sizes.q_heads * sizes.tail_blocks);
    return parallel_items(context, (sizes.causal ? units * segments : 0) + blocks, run_rows, &run);
}
