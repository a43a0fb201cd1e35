// SPDX-License-Identifier: Apache-2.0
// Softmax attention over tiles: the loop over batch items, heads and query tiles.
#include <new>

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

void fill_row(float* row, int64_t stride, int64_t count, float value) {
    for (int64_t at = 0; at < count; ++at) row[at * stride] = value;
}

// Rows without keys: zero output, LSE minus infinity. Weights are zeroed for all rows beforehand.
void write_empty_rows(const TileRun& run, const TileRows& rows) {
    for (int64_t v = rows.begin; v < rows.end; ++v) {
        const int64_t row = v / rows.pack, head = rows.first_head + v % rows.pack;
        if (run.output.present) {
            // Zero has the same bits in every type.
            char* to = run.output.at(rows.batch, head, row);
            const int64_t bytes = storage_bytes(run.output.storage);
            for (int64_t c = 0; c < run.sizes.value_dim; ++c)
                __builtin_memset(to + c * run.output.strides[3], 0, static_cast<size_t>(bytes));
        }
        if (run.lse.present) *run.lse.at(rows.batch, head, row) = -infinity;
        if (run.leaves_state) {
            *run.state_max.at(rows.batch, head, row) = -infinity;
            *run.state_sum.at(rows.batch, head, row) = 0.0f;
        }
        for (int64_t map = 0; run.hooks->maps != nullptr && map < run.sizes.maps; ++map)
            if (const TensorView<float, 3> lse = view_of<float, 3>(run.hooks->maps[map].lse); lse.present)
                *lse.at(rows.batch, head, row) = -infinity;
    }
}

// Query tiles that walk together.
class TileGroup {
public:
    TileGroup(const TileRun& run, const TileScratch& scratch)
        : run_(run),
          problem_(*run.problem),
          scratch_(scratch),
          block_(scratch.keys, scratch.values, scratch.gathered, run.sizes.head_dim, run.sizes.value_dim, run.dots,
                 run.quantised, scratch.rounded_rows) {}

    // The tile's rows see at least the chance of a key; at most max_group tiles, of one key head. With softmax maps each
    // has a worker for the same rows, one behind the other.
    void add(TileRows rows) {
        batch_ = rows.batch;
        kv_head_ = rows.kv_head;
        for (rows.map = 0; rows.map < run_.sizes.maps; ++rows.map) {
            new (&worker(count_)) TileWorker(run_, scratch_, scratch_.states[count_], rows);
            ++count_;
        }
    }

    // Rows of the query tile that takes place `at` of the group behind this one.
    void comes_next(int64_t at, const TileRows& rows) {
        for (int64_t map = 0; map < run_.sizes.maps && at + map < count_; ++map) worker(at + map).comes_next(rows);
    }

    void run() {
        if (count_ == 0) return;
        for (int64_t at = 0; at < count_; ++at) {
            if (at + 1 < count_ && !worker(at + 1).idle()) worker(at + 1).fetch_queries();
            if (!worker(at).idle()) worker(at).start();
            first_position_ = lesser(first_position_, worker(at).tile().first_position);
            last_position_ = greater(last_position_, worker(at).tile().last_position);
        }
        if (run_.logits) return walk(Pass::weights);
        walk(Pass::forward);
        if (run_.hooks->finish != nullptr || run_.sizes.maps > 1)
            finish_with_hooks();
        else
            each([](TileWorker& tile) { tile.finish(); });
        if (!run_.scores.present && !run_.average.present) return;
        each([](TileWorker& tile) { tile.start_weights(); });
        walk(run_.scores.present ? Pass::weights : Pass::add_weights);
    }

private:
    TileWorker& worker(int64_t at) { return reinterpret_cast<TileWorker*>(space_)[at]; }
    template <class Visit>
    void each(Visit visit) {
        for (int64_t at = 0; at < count_; ++at)
            if (!worker(at).idle()) visit(worker(at));
    }

    void finish_with_hooks() {
        const attend_tile_hooks& hooks = *run_.hooks;
        // With close hooks every range has been settled.
        if (hooks.close == nullptr) each([](TileWorker& tile) { tile.settle(); });
        if (hooks.finish != nullptr) call(hooks.finish);
        each([](TileWorker& tile) { tile.store_settled(); });
    }

    // A hook on finished tiles, for the rows of each.
    void call(attend_finish_fn hook) {
        float *values[most_maps], *lse[most_maps];
        for (int64_t at = 0; at < count_; at += run_.sizes.maps) {
            if (worker(at).idle()) continue;
            for (int64_t map = 0; map < run_.sizes.maps; ++map) {
                values[map] = worker(at + map).values();
                lse[map] = worker(at + map).lse();
            }
            const bool with_lse = run_.needs_lse;
            const attend_finished_tile tile{&worker(at).tile(),          values[0], worker(at).sums(),
                                            with_lse ? lse[0] : nullptr, values,    with_lse ? lse : nullptr};
            hook(run_.hooks->user, &tile);
        }
    }

    void close_range() {
        each([](TileWorker& tile) { tile.settle(); });
        call(run_.hooks->close);
        each([](TileWorker& tile) { tile.restart(); });
    }

    void walk(Pass pass) {
        pass_ = pass;
        first_ = 0;
        last_ = count_;
        if (run_.hooks->close != nullptr) {
            problem_.keys(
                problem_.keys_user, &worker(0).tile(),
                [](void* group, int64_t begin, int64_t end, uint32_t flags) {
                    TileGroup& self = *static_cast<TileGroup*>(group);
                    self.main_range(begin, end, (flags & ATTEND_KEYS_PARTIAL) != 0);
                    if (self.pass_ == Pass::forward) self.close_range();
                },
                this);
        } else if (problem_.keys != nullptr) {
            // Each tile has ranges of its own.
            for (first_ = 0; first_ < count_; first_ = last_) {
                last_ = first_ + run_.sizes.maps;
                if (worker(first_).idle()) continue;
                problem_.keys(
                    problem_.keys_user, &worker(first_).tile(),
                    [](void* group, int64_t begin, int64_t end, uint32_t flags) {
                        static_cast<TileGroup*>(group)->main_range(begin, end, (flags & ATTEND_KEYS_PARTIAL) != 0);
                    },
                    this);
            }
            first_ = 0;
            last_ = count_;
        } else {
            main_range(0, run_.sizes.main_keys, false);
        }
        int64_t first = run_.sizes.main_keys;
        for (uint32_t index = 0; index < problem_.num_segments; ++index) {
            const attend_key_segment& segment = problem_.segments[index];
            if ((segment.flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) == 0) continue;
            segment_range(segment, first, 0, segment_keys(problem_, index), false, false);
            first += segment_keys(problem_, index);
        }
    }

    // Cut to what any tile at hand sees, and to the segments that hold it.
    void main_range(int64_t begin, int64_t end, bool partial) {
        int64_t hull_begin = run_.sizes.main_keys, hull_end = 0;
        for (int64_t at = first_; at < last_; ++at) {
            hull_begin = lesser(hull_begin, worker(at).hull_begin());
            hull_end = greater(hull_end, worker(at).hull_end());
        }
        begin = greater(begin, hull_begin);
        end = lesser(end, hull_end);
        int64_t first = 0;
        for (uint32_t index = 0; index < problem_.num_segments && first < end; ++index) {
            const attend_key_segment& segment = problem_.segments[index];
            if ((segment.flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) != 0) continue;
            const int64_t keys = segment_keys(problem_, index);
            segment_range(segment, first, greater(begin - first, 0), lesser(end - first, keys), true, partial);
            first += keys;
        }
    }

    // Rows [begin, end) of a segment whose first row has number `first`, in blocks of equal size.
    void segment_range(const attend_key_segment& segment, int64_t first, int64_t begin, int64_t end, bool main,
                       bool partial) {
        if (begin >= end) return;
        if (block_.keeps_values()) begin -= begin % 2;
        const int64_t most = run_.sizes.key_tile, parts = divide_up(end - begin, most);
        const int64_t step = lesser(most, round_up(divide_up(end - begin, parts), 16));
        for (; begin < end; begin += step) {
            block_.take(segment, batch_, kv_head_, begin, first + begin, lesser(step, end - begin),
                        run_.sizes.gathered && &segment == problem_.segments ? problem_.store : nullptr);
            if (run_.sizes.maps > 1) {
                visit_maps(main, partial);
                continue;
            }
            take_keys(0, main);
            for (int64_t at = first_; at < last_; ++at) worker(at).visit(block_, pass_, main, partial);
        }
    }

    void take_keys(int64_t map, bool main) {
        const attend_tile_hooks& hooks = *run_.hooks;
        block_.take_keys(map, main && (hooks.flags & ATTEND_HOOKS_CHANGE_KEYS) != 0);
        if (problem_.hooks == nullptr) return;
        const attend_key_block& block = block_.describe(map, first_position_, last_position_, scratch_.block_memory);
        if (hooks.keys != nullptr && main) hooks.keys(hooks.user, &block);
    }

    // Maps with keys of their own go one after the other; those that share scores, row by row.
    void visit_maps(bool main, bool partial) {
        const int64_t maps = run_.sizes.maps;
        if (run_.shares_scores) {
            take_keys(0, main);
            for (int64_t at = first_; at < last_; ++at) {
                if (at % maps == 0) scratch_.shared->computed = false;
                worker(at).visit(block_, pass_, main, partial);
            }
            return;
        }
        for (int64_t map = 0; map < maps; ++map) {
            take_keys(map, main);
            for (int64_t at = first_ + map; at < last_; at += maps) worker(at).visit(block_, pass_, main, partial);
        }
    }

    const TileRun& run_;
    const attend_tile_problem& problem_;
    const TileScratch& scratch_;
    KeyBlock block_;
    int64_t batch_{0}, kv_head_{0}, count_{0}, first_{0}, last_{0};
    int64_t first_position_{most_rows}, last_position_{-most_rows};
    Pass pass_{Pass::forward};
    alignas(TileWorker) unsigned char space_[size_t{most_maps} * sizeof(TileWorker)];
};

// Tiles [first, end) of the head in `rows`, a group; of which one alone may be wanted.
struct Tiles {
    TileRows rows;
    int64_t first, end;
    int64_t only = -1;
};

TileRows rows_of_tile(const TileSizes& sizes, TileRows rows, int64_t tile) {
    rows.begin = tile * sizes.tile_lanes;
    rows.end = lesser(rows.begin + sizes.tile_lanes, sizes.q_len * rows.pack);
    return rows;
}

// next: the tiles behind these.
void attend_tiles(const TileRun& run, const TileScratch& scratch, const Tiles& tiles, const Tiles& next) {
    const TileSizes& sizes = run.sizes;
    TileGroup group(run, scratch);
    const int64_t valid = valid_rows(run, tiles.rows.batch) * tiles.rows.pack;
    for (int64_t tile = tiles.first; tile < tiles.end; ++tile) {
        TileRows rows = rows_of_tile(sizes, tiles.rows, tile);
        rows.idle = tiles.only >= 0 && tile != tiles.only;
        if (run.scores.present && !rows.idle)
            for (int64_t v = greater(rows.begin, run.row_begin * rows.pack),
                         end = lesser(rows.end, run.row_end * rows.pack);
                 v < end; ++v)
                fill_row(run.scores.at(rows.batch, rows.first_head + v % rows.pack, v / rows.pack, 0),
                         run.scores.strides[3], sizes.all_keys, run.logits ? -infinity : 0.0f);
        TileRows empty = rows;
        empty.begin = clamp(valid, rows.begin, rows.end);
        if (!rows.idle) write_empty_rows(run, empty);
        rows.end = empty.begin;
        if (rows.begin < rows.end) group.add(rows);
    }
    for (int64_t at = 0; at < next.end - next.first; ++at)
        group.comes_next(at * sizes.maps, rows_of_tile(sizes, next.rows, next.first + at));
    group.run();
}

// The mean over heads of the weights of a tile's rows, head by head.
void attend_average(const TileRun& run, const TileScratch& scratch, TileRows rows, int64_t tile) {
    const TileSizes& sizes = run.sizes;
    const TensorView<float, 3>& average = run.average;
    const int64_t begin = greater(tile * sizes.tile_lanes, run.row_begin),
                  end = lesser((tile + 1) * sizes.tile_lanes, run.row_end);
    for (int64_t row = begin; row < end; ++row)
        fill_row(average.at(rows.batch, row, 0), average.strides[2], sizes.all_keys, 0.0f);
    for (int64_t head = 0; head < sizes.q_heads; ++head) {
        rows.first_head = head;
        rows.kv_head = head * sizes.kv_heads / sizes.q_heads;
        attend_tiles(run, scratch, {rows, tile, tile + 1}, {});
    }
    const float share = static_cast<float>(1.0 / static_cast<double>(sizes.q_heads));
    for (int64_t row = begin; row < end; ++row) {
        float* to = average.at(rows.batch, row, 0);
        for (int64_t key = 0; key < sizes.all_keys; ++key) to[key * average.strides[2]] *= share;
    }
}

bool longest_first(const TileRun& run) {
    return (run.problem->flags & ATTEND_TILE_CAUSAL) != 0 && run.sizes.groups <= max_group;
}

attend_status run_items(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const TileRun& run = *static_cast<const TileRun*>(user);
    const TileSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const TileScratch scratch = TileScratch::take(space, sizes);
    // Head by head, since a head's keys then stay in the cache. Where causal, the last rows are the longest: they go first,
    // and with few groups those of all heads, so that workers end with short ones.
    const int64_t heads = sizes.batch * sizes.outer;
    const bool by_length = longest_first(run);
    const bool some = run.tile_end - run.tile_begin < sizes.tiles;
    const auto tiles_of = [&](int64_t item) {
        Tiles tiles{};
        if (some) {
            const int64_t count = run.tile_end - run.tile_begin;
            tiles.only = run.tile_begin + item % count;
            item = item / count * sizes.groups + sizes.groups - 1 - sizes.group_of(tiles.only);
        }
        const bool long_first = by_length && !some;
        const int64_t outer = long_first ? item % heads : item / sizes.groups;
        const int64_t group = sizes.groups - 1 - (long_first ? item / heads : item % sizes.groups);
        tiles.rows.pack = sizes.pack;
        tiles.rows.batch = outer / sizes.outer;
        tiles.rows.kv_head = outer % sizes.outer;
        tiles.rows.first_head = tiles.rows.kv_head * sizes.pack;
        tiles.first = sizes.first_tile(group);
        tiles.end = sizes.first_tile(group + 1);
        return tiles;
    };
    const int64_t last = static_cast<int64_t>(end);
    for (int64_t item = static_cast<int64_t>(begin); item < last; ++item) {
        const Tiles tiles = tiles_of(item);
        if (sizes.average)
            attend_average(run, scratch, tiles.rows, tiles.first);
        else
            attend_tiles(run, scratch, tiles, item + 1 < last ? tiles_of(item + 1) : Tiles{});
    }
    return ATTEND_OK;
}

// Products of bf16 pairs need everything as bf16, features next to each other, and the instruction.
bool takes_dots(const attend_tile_problem& problem, const attend_cpu* cpu) {
    if (!has_hardware_dots(cpu) || (problem.flags & ATTEND_TILE_WIDEN) != 0) return false;
    if (const attend_tile_hooks* hooks = problem.hooks)
        if (hooks->queries != nullptr || hooks->keys != nullptr || hooks->content != nullptr ||
            hooks->weights != nullptr || hooks->num_maps > 1)
            return false;
    if (storage_of(problem.query) != Storage::bf16 || is_gathered(problem, 0)) return false;
    for (uint32_t index = 0; index < problem.num_segments; ++index) {
        const attend_tensor* key = problem.segments[index].key;
        if (storage_of(key) != Storage::bf16 || key->strides[3] != 1) return false;
    }
    return true;
}

}  // namespace

uint64_t tiles_workspace(const attend_tile_problem& problem, int64_t key_dim, uint32_t max_workers) {
    attend_tile_problem shapes = problem;
    shapes.window_left = shapes.window_right = -1;  // groups of tiles are smaller with windows
    return TileScratch::bytes(sizes_of(shapes, key_dim)) * (max_workers == 0 ? 1 : max_workers);
}

attend_status tiles_forward(const attend_tile_problem& given, const QuantisedRun* quantised,
                            const attend_context* context) {
    const attend_tile_problem* const problem = &given;
    static constexpr attend_tile_hooks no_hooks{};
    TileRun run{};
    run.problem = problem;
    run.hooks = problem->hooks != nullptr ? problem->hooks : &no_hooks;
    run.quantised = quantised;
    run.sizes = sizes_of(*problem, quantised != nullptr ? quantised->key_dim : 0);
    run.shares_scores = run.sizes.maps > 1 && (run.hooks->flags & ATTEND_HOOKS_SHARED_SCORES) != 0;
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
    run.query = stored_view(problem->query);
    run.output = stored_view(problem->output);
    run.lse = view_of<float, 3>(problem->lse);
    run.mask = broadcast_view_of<const uint8_t, 4>(problem->mask);
    run.bias = broadcast_view_of<const float, 4>(problem->bias);
    if (run.sizes.average)
        run.average = view_of<float, 3>(problem->scores);
    else
        run.scores = view_of<float, 4>(problem->scores);
    run.scale = static_cast<float>(problem->scale);
    run.softcap = static_cast<float>(problem->softcap);
    run.needs_lse = run.lse.present || (run.hooks->flags & ATTEND_HOOKS_LSE) != 0;
    for (int64_t map = 0; run.hooks->maps != nullptr && map < run.sizes.maps; ++map)
        run.needs_lse = run.needs_lse || run.hooks->maps[map].lse != nullptr;
    run.leaves_state = (problem->flags & ATTEND_TILE_LEAVES_STATE) != 0;
    run.takes_state = (problem->flags & ATTEND_TILE_TAKES_STATE) != 0;
    run.state_max = view_of<float, 3>(problem->state_max);
    run.state_sum = view_of<float, 3>(problem->state_sum);
    run.logits = (problem->flags & ATTEND_TILE_LOGITS) != 0;
    run.values = run.output.present || (problem->scores == nullptr && run.hooks->finish != nullptr);
    run.row_end = run.sizes.q_len;
    run.tile_end = run.sizes.tiles;
    if (problem->num_rows > 0) {
        run.row_begin = problem->first_row;
        run.row_end = problem->first_row + problem->num_rows;
        run.tile_begin = run.row_begin * run.sizes.pack / run.sizes.tile_lanes;
        run.tile_end = divide_up(run.row_end * run.sizes.pack, run.sizes.tile_lanes);
    }
    run.precise =
        run.needs_lse || problem->scores != nullptr || run.leaves_state || run.takes_state || quantised != nullptr;
    run.dots = quantised == nullptr && takes_dots(*problem, context->host != nullptr ? context->host->cpu : nullptr);
    run.pairs = quantised != nullptr ? quantised->value_pairs : run.dots;
    // Scores of bf16 still lack the scale. bf16 queries stay as they are; the scale goes into the exponent where nothing looks at the scores before.
    const bool plain = problem->score == nullptr && problem->bias == nullptr && run.softcap == 0.0f && run.scale > 0.0f;
    run.load_scale = run.scale;
    const bool unscaled = run.dots || (quantised != nullptr && !quantised->scaled());
    run.rescores = unscaled && !plain;
    run.lacks_scale = unscaled && plain;
    run.factor = softmax_factor(unscaled && plain ? run.scale : 1.0f);
    run.dropout = problem->dropout > 0.0;
    if (run.dropout) {
        run.dropout_threshold = attend::ATTEND_ISA::dropout_threshold(problem->dropout);
        // Weights are rounded as they are, and the outputs scaled.
        run.kept_scale = quantised != nullptr ? 1.0f : dropout_scale(problem->dropout);
        run.dropout_heads =
            static_cast<uint32_t>(problem->dropout_heads > 0 ? problem->dropout_heads : run.sizes.q_heads);
    }
    if (run.sizes.tiles == 0) return ATTEND_OK;
    const int64_t wanted = run.tile_end - run.tile_begin;
    const int64_t items = wanted < run.sizes.tiles ? run.sizes.batch * run.sizes.outer * wanted : run.sizes.items();
    return parallel_items(context, static_cast<uint64_t>(items), run_items, &run,
                          longest_first(run) ? 0 : ATTEND_PARALLEL_NEAR);
}

}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_tile_workspace)(const attend_tile_problem* problem, uint32_t max_workers) {
    if (problem == nullptr || problem->query == nullptr || problem->num_segments == 0) return 0;
    const uint64_t tiles = tiles_workspace(*problem, 0, max_workers);
    const uint64_t rows = decode_workspace(*problem, max_workers);  // whether few rows go that way is known later
    return tiles > rows ? tiles : rows;
}

extern "C" attend_status ATTEND_KERNEL(attend_tile_forward)(const attend_tile_problem* problem,
                                                            const attend_context* context) {
    const attend_status checked = check_tile_problem(*problem, context->error);
    if (checked != ATTEND_OK) return checked;
    if (decode_applies(*problem)) return decode_forward(*problem, context);
    return tiles_forward(*problem, nullptr, context);
}
