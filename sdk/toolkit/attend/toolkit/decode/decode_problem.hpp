// SPDX-License-Identifier: Apache-2.0
// What the decode engine derives from a problem once: which problems it takes, sizes, split of the keys, scratch.
#pragma once

#include "attend/toolkit/core/key_store.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/decode/decode.hpp"
#include "attend/toolkit/decode/weights.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA::decode {

// Rows per key/value head up to which these kernels beat the tile engine.
constexpr int64_t most_decode_rows = 8;
// Rows in the lanes of one vector; more rows take turns. Wider groups would need more registers than there are.
constexpr int most_group = batch_lanes < 8 ? batch_lanes : 8;

// Keys whose scores are stored before softmax looks at them, and keys whose values pass at a time.
constexpr int64_t score_block = 1024;
constexpr int64_t hook_block = 128;  // where a hook sees them, as many as in the tile engine
constexpr int64_t staged_block = 32;
constexpr int64_t value_block = 64;
// Values pass once for every few columns: what comes from memory in blocks of this size, so that its addresses stay
// nearly in order; what lies in a cache in larger ones.
constexpr int64_t near_bytes = int64_t{16} << 10, far_bytes = int64_t{8} << 10;
constexpr int64_t cached_bytes = int64_t{16} << 20;

// The keys of a head are split so that each part is worth a worker's while, and no finer than this for a whole call.
constexpr int64_t split_bytes = int64_t{768} << 10;
constexpr int64_t most_parts = 64;
constexpr int64_t most_part_bytes = int64_t{1} << 20;  // results of the parts in flight
constexpr int64_t most_width = 4096;                   // features and columns

struct Sizes {
    int64_t batch{0}, q_heads{0}, kv_heads{0}, q_len{0}, head_dim{0}, value_dim{0};
    int64_t main_keys{0}, all_keys{0};
    int64_t pack{0}, rows{0};  // row v is query v / pack, head v % pack of the group
    int group{1};
    int64_t groups{1}, lane_stride{0};
    int64_t block{0}, value_keys{0}, acc_stride{0};
    int64_t splits{1}, split_keys{0};
    int64_t split_unit{0};     // not 0: each item's own keys in `splits` parts of whole units
    int64_t items_at_once{1};  // batch items whose parts are kept together
    Element query{Element::f32}, key{Element::f32};
    bool hook{false};

    // Scratch of one worker must do for a call whose hook and types were not known when it was planned.
    int64_t score_floats() const { return (score_block + most_group_keys) * group + 2 * batch_lanes; }
    int64_t part_floats() const { return groups * group * (acc_stride + 2); }
};

inline Sizes sizes_for(const attend_tile_problem& problem) {
    Sizes sizes;
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
    }
    sizes.query = element_of(*problem.query);
    sizes.key = element_of(*problem.segments[0].key);
    sizes.hook = problem.score != nullptr;
    sizes.pack = sizes.kv_heads > 0 ? sizes.q_heads / sizes.kv_heads : 0;
    sizes.rows = sizes.pack * sizes.q_len;
    while (sizes.group < most_group && sizes.group < sizes.rows) sizes.group *= 2;
    sizes.groups = greater(divide_up(sizes.rows, sizes.group), 1);
    sizes.lane_stride = round_up(most_decode_rows, batch_lanes);
    sizes.block = sizes.hook ? hook_block : score_block;
    if (problem.max_key_tile > 0) sizes.block = lesser(sizes.block, problem.max_key_tile);
    sizes.acc_stride = round_up(greater(sizes.value_dim, 1), 2 * batch_lanes);

    const int64_t head_bytes = sizes.all_keys * (sizes.head_dim + sizes.value_dim) * bytes_of(sizes.key);
    const int64_t value_bytes = head_bytes * sizes.kv_heads > cached_bytes ? far_bytes : near_bytes;
    sizes.value_keys =
        clamp(value_bytes / (greater(sizes.value_dim, 1) * bytes_of(sizes.key)) / 16 * 16, 16, value_block);
    const int64_t most_part = most_decode_rows * (sizes.acc_stride + 2) * 4 * greater(sizes.kv_heads, 1);
    const int64_t finest = lesser(most_parts / greater(sizes.kv_heads, 1), most_part_bytes / most_part);
    sizes.splits = clamp(head_bytes / split_bytes, 1, greater(finest, 1));
    sizes.split_keys = round_up(divide_up(greater(sizes.all_keys, 1), sizes.splits), 16);
    sizes.splits = divide_up(greater(sizes.all_keys, 1), sizes.split_keys);
    if (const attend_key_store* store = problem.store; store != nullptr && store->splits > 0) {
        sizes.splits = store->splits;
        sizes.split_unit = greater(store->split_keys, 1);
    }
    sizes.items_at_once = clamp(most_part_bytes / (most_part * sizes.splits), 1, greater(sizes.batch, 1));
    return sizes;
}

// Scratch of one worker.
struct Scratch {
    float* queries;                    // [group][step][lane]
    float* scores;                     // [group]: [key][q], then weights
    float* kept;                       // [group]: scores as they were before softmax, where pairs are hidden
    float* pairs;                      // [group]: weights as pairs
    float* acc;                        // [group][q][acc_stride]
    float* state;                      // [group]: row_max, row_sum, factor
    float* stage;                      // rows widened to float32, or values with what is not finite taken out
    float* ordered;                    // one row of the output
    float* tile;                       // [key][lane] for the hook
    int32_t *query, *head, *position;  // [lane]
    int64_t *begin, *end;              // [row]: keys that the row sees
    const uint8_t** mask;
    const float** bias;

    static Scratch take(Workspace& space, const Sizes& sizes) {
        Scratch scratch;
        const int64_t group = sizes.group, width = greater(sizes.head_dim, sizes.value_dim);
        scratch.queries = space.take<float>(sizes.groups * sizes.group * packed_steps(sizes.head_dim) * batch_lanes);
        scratch.scores = space.take<float>(sizes.groups * sizes.score_floats());
        scratch.kept = space.take<float>(sizes.groups * sizes.score_floats());
        scratch.pairs = space.take<float>(sizes.groups * sizes.score_floats());
        scratch.acc = space.take<float>(sizes.groups * group * sizes.acc_stride);
        scratch.state = space.take<float>(sizes.groups * 3 * batch_lanes);
        scratch.stage = space.take<float>((value_block + 1) * width);
        scratch.ordered = space.take<float>(sizes.acc_stride);
        scratch.tile = space.take<float>(hook_block * sizes.lane_stride);
        scratch.query = space.take<int32_t>(sizes.lane_stride);
        scratch.head = space.take<int32_t>(sizes.lane_stride);
        scratch.position = space.take<int32_t>(sizes.lane_stride);
        scratch.begin = space.take<int64_t>(most_decode_rows);
        scratch.end = space.take<int64_t>(most_decode_rows);
        scratch.mask = space.take<const uint8_t*>(most_decode_rows);
        scratch.bias = space.take<const float*>(most_decode_rows);
        return scratch;
    }
    static uint64_t bytes(const Sizes& sizes) {
        Workspace count;
        take(count, sizes);
        return count.used();
    }
    SoftmaxState softmax(int64_t group) const {
        float* at = state + group * 3 * batch_lanes;
        return {at, at + batch_lanes, at + 2 * batch_lanes};
    }
};

// One call, read by all workers.
struct Run {
    const attend_tile_problem* problem;
    Sizes sizes;
    TensorView<const uint8_t, 4> mask;
    TensorView<const float, 4> bias;
    bool hardware;       // bfloat16 pairs by the processor's own dot
    int64_t first_item;  // batch item that the loop begins with
    float* parts;        // [item][head][split]: acc, then maximum and sum of every row
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
};

}  // namespace attend::ATTEND_ISA::decode
