// SPDX-License-Identifier: Apache-2.0
// What the tile engine derives from a problem once, before the first tile: sizes, tiling, views, scratch layout.
#pragma once

#include "attend/toolkit.h"
#include "attend/toolkit/core/key_store.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/quantised/quantised_run.hpp"
#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/tile/softmax_state.hpp"
#include "attend/toolkit/tile/storage.hpp"

namespace attend::ATTEND_ISA {

// Keys of one score tile. 128 rows of 48 floats are half of the first-level cache; 64 costs 1 to 3 %, 32 much more.
constexpr int64_t default_key_tile = 128;

// Queries, keys and positions stay within 2^30, so that hooks may subtract them as int32.
constexpr int64_t most_rows = int64_t{1} << 30;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Query tiles that walk over the keys together, so that the conversion or interleaving of a block of keys is paid once
// for all of them, and its way into the cache. Fewer where there is not enough work to share out.
constexpr int64_t max_group = 8;
constexpr int64_t enough_groups = 16;
// Softmax maps of one call, and with them the tiles of a group: those of max_group rows, or of one row in every map.
constexpr int64_t most_maps = 16;

struct TileSizes {
    int64_t batch{0}, q_heads{0}, kv_heads{0}, q_len{0}, head_dim{0}, value_dim{0};
    int64_t main_keys{0}, all_keys{0};
    bool average{false};
    // Lanes hold `pack` heads of one key/value head, query by query: v = row * pack + head in the group. Stacking them
    // fills the lanes when there are few queries, and narrows the diagonal when there are many.
    int64_t pack{1}, outer{0};
    int64_t tile_lanes{1}, tiles{0}, key_tile{default_key_tile};
    int64_t group{1}, groups{0};                                 // tiles of a group, groups of a head
    int64_t maps{1}, sums{0};                                    // softmax maps, sums of weights beside the values
    int64_t tile_floats{0}, block_floats{0}, scratch_floats{0};  // of the hooks
    bool few_keys{false};
    bool gathered{false};               // keys and values lie in pages or are codes
    bool staged{false}, narrow{false};  // keys and values, queries and output are not float32
    int64_t key_dim{0};  // elements of a key as products see it: head_dim, or what low precision makes of it
    bool quantised{false};

    int64_t lane_stride() const { return round_up(tile_lanes, batch_lanes); }
    int64_t items() const { return batch * outer * groups; }
    // Groups of a head differ by one tile at most: workers that share them end together.
    int64_t first_tile(int64_t at) const { return at * tiles / groups; }
    int64_t group_of(int64_t tile) const {
        int64_t at = tile * groups / tiles;
        while (first_tile(at) > tile) --at;
        while (first_tile(at + 1) <= tile) ++at;
        return at;
    }
};

// Windows that leave a row few keys.
constexpr int64_t narrow_window = 4 * default_key_tile;
inline bool is_narrow(const attend_tile_problem& problem) {
    if (problem.window_left < 0 || problem.window_left > narrow_window) return false;
    if ((problem.flags & ATTEND_TILE_CAUSAL) != 0) return true;
    return problem.window_right >= 0 && problem.window_left + problem.window_right <= narrow_window;
}

// key_dim: of a call in low precision (toolkit/quantised.h), else 0.
inline TileSizes sizes_of(const attend_tile_problem& problem, int64_t key_dim = 0) {
    TileSizes sizes;
    sizes.batch = problem.query->shape[0];
    sizes.q_heads = problem.query->shape[1];
    sizes.q_len = problem.query->shape[2];
    sizes.head_dim = problem.query->shape[3];
    sizes.kv_heads = problem.segments[0].key->shape[1];
    sizes.value_dim = problem.segments[0].value->shape[3];
    for (uint32_t segment = 0; segment < problem.num_segments; ++segment) {
        const int64_t keys = segment_keys(problem, segment);
        if ((problem.segments[segment].flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) == 0) sizes.main_keys += keys;
        sizes.all_keys += keys;
        if (is_gathered(problem, segment))
            sizes.gathered = true;
        else
            sizes.staged = sizes.staged || storage_of(problem.segments[segment].key) != Storage::f32;
    }
    sizes.narrow = storage_of(problem.query) != Storage::f32;
    sizes.quantised = key_dim > 0;
    sizes.key_dim = sizes.quantised ? key_dim : sizes.head_dim;
    sizes.staged = sizes.staged || sizes.quantised;
    sizes.narrow = sizes.narrow || sizes.quantised;
    int64_t most_group = max_group;
    if (const attend_tile_hooks* hooks = problem.hooks) {
        sizes.maps = clamp(hooks->num_maps, 1, most_maps);
        sizes.sums = hooks->num_sums;
        sizes.tile_floats = hooks->tile_floats;
        sizes.block_floats = hooks->block_floats;
        sizes.scratch_floats = hooks->scratch_floats;
        sizes.staged = sizes.staged || (hooks->flags & ATTEND_HOOKS_CHANGE_KEYS) != 0;
        most_group = greater(1, lesser(most_group, max_group / sizes.maps));
        if (hooks->max_group > 0) most_group = lesser(most_group, hooks->max_group);
    }
    // Tiles that see few keys share few of them. Alone they see theirs in one block or two instead of parts of more, and
    // what the next tile wants is asked for in time. Converted keys are worth sharing even so.
    sizes.few_keys = !sizes.staged && is_narrow(problem);
    if (sizes.few_keys) most_group = 1;
    sizes.average = problem.scores != nullptr && (problem.flags & ATTEND_TILE_AVERAGE_SCORES) != 0;
    // The mean over heads is summed in one place, head by head, so there each tile holds one head.
    sizes.pack = sizes.average || sizes.kv_heads == 0 ? 1 : sizes.q_heads / sizes.kv_heads;
    sizes.outer = sizes.average ? 1 : sizes.kv_heads;

    // Equal tiles, cut at whole vectors: two of 32 lanes rather than one of 48 and one of 16.
    const int64_t rows = sizes.q_len * sizes.pack;
    int64_t most = max_lanes;
    if (problem.max_query_tile > 0) most = lesser(most, problem.max_query_tile);
    if (rows > 0) {
        sizes.tile_lanes = lesser(most, round_up(divide_up(rows, divide_up(rows, most)), batch_lanes));
        sizes.tile_lanes = lesser(sizes.tile_lanes, rows);
        sizes.tiles = divide_up(rows, sizes.tile_lanes);
        const int64_t heads = sizes.batch * sizes.outer;
        if (!sizes.average && heads > 0)
            sizes.group = clamp(divide_up(sizes.tiles * heads, enough_groups), 1, lesser(most_group, sizes.tiles));
        sizes.groups = divide_up(sizes.tiles, sizes.group);
    }
    if (problem.max_key_tile > 0) sizes.key_tile = lesser(sizes.key_tile, problem.max_key_tile);
    return sizes;
}

// What a query tile keeps while it walks over the keys. Rows of the tiles are lane_stride() long.
struct TileState {
    float* queries;                  // [head_dim][lane], or pairs of bf16
    float* acc;                      // [value_dim][lane]
    float *sums, *memory, *lse;      // of the hooks: [sums][lane], tile_floats, [lane]
    float *lane_scale, *lane_shift;  // of low precision: scale of a query, and what its scores lack
    int32_t* map_head;               // [lane], where there are maps
    TileSoftmax softmax;
    int32_t *row, *query, *head, *position, *key_begin, *key_end;  // [lane]
    const float** bias_rows;
    const uint8_t** mask_rows;
};

// Scores that several maps share: how far they are, in this block of keys and for this tile.
struct SharedScores {
    bool computed, nothing, hides;
};

// Scratch of one worker.
struct TileScratch {
    float* scores;                           // [key][lane]: scores, then weights
    float* extra;                            // [key][lane]: biases, or scores kept aside for values that are not finite
    float *factor, *limit_low, *limit_high;  // [lane]
    uint8_t* mask;                           // [key][lane]
    const float** rows;
    float** out_rows;
    const char** fetch_rows;  // [2][lane]
    float* gathered;          // [key_tile][head_dim + value_dim], where rows lie apart or are codes
    float *keys, *values;     // [key_tile][head_dim] of other types than float32; [key_tile][value_dim]
    float* stage;             // [lane][head_dim or value_dim] where queries and output are not
    float *shared_scores, *block_memory, *scratch;  // of the hooks
    float* rounded_rows;                            // two rows of values or keys, of low precision
    SharedScores* shared;
    TileState states[most_maps];

    static TileScratch take(Workspace& space, const TileSizes& sizes) {
        const int64_t lanes = sizes.lane_stride();
        TileScratch scratch{};
        scratch.scores = space.take<float>(sizes.key_tile * lanes);
        scratch.extra = space.take<float>(sizes.key_tile * lanes);
        scratch.factor = space.take<float>(lanes);
        scratch.limit_low = space.take<float>(lanes);
        scratch.limit_high = space.take<float>(lanes);
        scratch.mask = space.take<uint8_t>(sizes.key_tile * lanes);
        scratch.rows = space.take<const float*>(lanes);
        scratch.out_rows = space.take<float*>(lanes);
        scratch.fetch_rows = space.take<const char*>(2 * lanes);
        if (sizes.gathered) scratch.gathered = space.take<float>(sizes.key_tile * (sizes.head_dim + sizes.value_dim));
        if (sizes.staged) scratch.keys = space.take<float>(sizes.key_tile * sizes.key_dim);
        if (sizes.quantised) scratch.rounded_rows = space.take<float>(2 * greater(sizes.value_dim, sizes.key_dim));
        scratch.values = space.take<float>(sizes.key_tile * sizes.value_dim);
        if (sizes.narrow) scratch.stage = space.take<float>(lanes * greater(sizes.key_dim, sizes.value_dim));
        if (sizes.maps > 1) scratch.shared_scores = space.take<float>(sizes.key_tile * lanes);
        if (sizes.maps > 1) scratch.shared = space.take<SharedScores>(1);
        if (sizes.block_floats > 0) scratch.block_memory = space.take<float>(sizes.block_floats);
        if (sizes.scratch_floats > 0) scratch.scratch = space.take<float>(sizes.scratch_floats);
        for (int64_t tile = 0; tile < sizes.group * sizes.maps; ++tile) {
            TileState& state = scratch.states[tile];
            state.queries = space.take<float>(sizes.key_dim * lanes);
            if (sizes.quantised) state.lane_scale = space.take<float>(lanes);
            if (sizes.quantised) state.lane_shift = space.take<float>(lanes);
            state.acc = space.take<float>(sizes.value_dim * lanes);
            if (sizes.sums > 0) state.sums = space.take<float>(sizes.sums * lanes);
            if (sizes.tile_floats > 0) state.memory = space.take<float>(sizes.tile_floats);
            if (sizes.maps > 1) state.map_head = space.take<int32_t>(lanes);
            state.lse = space.take<float>(lanes);
            state.softmax.row_max = space.take<float>(lanes);
            state.softmax.row_base = space.take<float>(lanes);
            state.softmax.row_sum = space.take<float>(lanes);
            state.softmax.rescale = space.take<float>(lanes);
            state.row = space.take<int32_t>(lanes);
            state.query = space.take<int32_t>(lanes);
            state.head = space.take<int32_t>(lanes);
            state.position = space.take<int32_t>(lanes);
            state.key_begin = space.take<int32_t>(lanes);
            state.key_end = space.take<int32_t>(lanes);
            state.bias_rows = space.take<const float*>(lanes);
            state.mask_rows = space.take<const uint8_t*>(lanes);
        }
        return scratch;
    }

    static uint64_t bytes(const TileSizes& sizes) {
        Workspace count;
        take(count, sizes);
        return count.used();
    }
};

// One call of the engine, read by all workers.
struct TileRun {
    const attend_tile_problem* problem;
    const attend_tile_hooks* hooks;  // never NULL
    TileSizes sizes;
    StoredView query, output;
    TensorView<const float, 4> bias;
    TensorView<const uint8_t, 4> mask;
    TensorView<float, 4> scores;
    TensorView<float, 3> lse, average;
    TensorView<float, 3> state_max, state_sum;
    float scale, softcap, kept_scale;
    float load_scale;               // what queries are multiplied by when they are loaded
    float factor;                   // turns scores, as softmax meets them, into exponents (simd/math.hpp)
    bool rescores;                  // scores are multiplied by `scale` before the hooks
    bool dots;                      // products of bf16 pairs in hardware
    bool pairs;                     // of weights and values, at least
    const QuantisedRun* quantised;  // NULL: not in low precision
    bool needs_lse, shares_scores;  // as the hooks say
    bool precise;                   // weights as float32 would have them, since their sums are shown
    bool leaves_state, takes_state;
    bool logits, lacks_scale;      // scores are wanted before the softmax; they come without the scale
    bool values;                   // sums of values are wanted, not weights alone
    int64_t row_begin, row_end;    // rows whose weights are written
    int64_t tile_begin, tile_end;  // tiles that hold them, if they are not all
    bool dropout;
    uint32_t dropout_threshold, dropout_heads;
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
};

attend_status check_tile_problem(const attend_tile_problem& problem, attend_error* error);

// The engine behind attend_tile_forward, for a problem that has been checked.
uint64_t tiles_workspace(const attend_tile_problem& problem, int64_t key_dim, uint32_t max_workers);
attend_status tiles_forward(const attend_tile_problem& problem, const QuantisedRun* quantised,
                            const attend_context* context);

}  // namespace attend::ATTEND_ISA
