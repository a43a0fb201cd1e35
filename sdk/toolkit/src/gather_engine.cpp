// SPDX-License-Identifier: Apache-2.0
// The gather engine: rows on lists of keys, one row at a time, or groups of rows through the tile engine on a copy of
// their keys. Heads that share a list get it once.
#include <math.h>

#include "attend/toolkit/gather.h"

#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/gather/gather_rows.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t rows_of_item = 16, fewest_packed_rows = 8;
constexpr int64_t few_keys = 24;  // of a row: so few are scored for a vector of rows at a time

// A tensor with extents and strides of its own.
struct Cut {
    attend_tensor tensor;
    int64_t shape[4], strides[4];

    const attend_tensor* of(const attend_tensor* whole) {
        if (whole == nullptr) return nullptr;
        tensor = *whole;
        for (int axis = 0; axis < whole->ndim; ++axis) {
            shape[axis] = whole->shape[axis];
            strides[axis] = whole->strides[axis];
        }
        tensor.shape = shape;
        tensor.strides = strides;
        return &tensor;
    }
    void cut(int axis, int64_t first, int64_t count) {
        if (shape[axis] == 1 && count >= 1 && first >= 1) first = 0;  // one entry stands for every index
        if (tensor.data != nullptr)
            tensor.data = static_cast<char*>(tensor.data) + first * strides[axis] * (tensor.dtype_bits / 8);
        shape[axis] = count < shape[axis] ? count : shape[axis];
    }
};

struct Sizes {
    int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim, most_keys, group_rows, lists, blocks;
    bool shares, packs;

    int64_t pack() const { return q_heads / greater(kv_heads, 1); }
    int64_t items() const { return batch * lists * blocks; }
};

Sizes gather_sizes(const attend_gather_problem& problem) {
    const attend_tile_problem& call = *problem.call;
    Sizes sizes{};
    sizes.batch = call.query->shape[0];
    sizes.q_heads = call.query->shape[1];
    sizes.q_len = call.query->shape[2];
    sizes.head_dim = call.query->shape[3];
    sizes.kv_heads = call.segments[0].key->shape[1];
    sizes.kv_len = call.segments[0].key->shape[2];
    sizes.value_dim = call.segments[0].value->shape[3];
    sizes.most_keys = clamp(problem.most_keys, 1, greater(sizes.kv_len, 1));
    sizes.group_rows = clamp(problem.group_rows, 1, greater(sizes.q_len, 1));
    sizes.shares = (problem.flags & ATTEND_GATHER_HEADS_SHARE) != 0;
    sizes.packs = sizes.group_rows >= fewest_packed_rows && call.scores == nullptr;
    sizes.lists = sizes.shares ? 1 : sizes.q_heads;
    // Whole groups in an item, so that each list is made once.
    const int64_t rows = round_up(greater(rows_of_item, sizes.group_rows), sizes.group_rows);
    sizes.blocks = divide_up(sizes.q_len, sizes.packs ? sizes.group_rows : rows);
    return sizes;
}
int64_t rows_per_block(const Sizes& sizes) {
    return sizes.packs ? sizes.group_rows : round_up(greater(rows_of_item, sizes.group_rows), sizes.group_rows);
}

// Keys and values of a group as a problem of the tile engine, from shapes alone or with data.
struct Packed {
    Cut query, key, value, output, lse, mask, bias, query_lengths, key_lengths;
    attend_key_segment segment;
    attend_tile_problem problem;

    Packed(const attend_gather_problem& whole, const Sizes& sizes, int64_t keys, int64_t heads, int64_t rows,
           void* key_rows, void* value_rows)
        : problem(*whole.call) {
        problem.flags |= ATTEND_TILE_WIDEN;
        problem.query = query.of(problem.query);
        query.shape[0] = 1, query.shape[1] = heads, query.shape[2] = rows;
        segment = whole.call->segments[0];
        segment.key = key.of(segment.key);
        segment.value = value.of(segment.value);
        row_major(key, key_rows, keys, sizes.head_dim);
        row_major(value, value_rows, keys, sizes.value_dim);
        problem.segments = &segment;
        problem.num_segments = 1;
    }
    static void row_major(Cut& own, void* data, int64_t rows, int64_t width) {
        own.tensor.data = data;
        own.shape[0] = own.shape[1] = 1, own.shape[2] = rows, own.shape[3] = width;
        own.strides[0] = own.strides[1] = rows * width, own.strides[2] = width, own.strides[3] = 1;
    }
};

struct Scratch {
    int32_t *list, *visible, *memory, *rows_index;
    float *query, *scores, *biases, *out, *wide_keys, *wide_values;
    int32_t* lists;  // of a vector of rows with few keys each, and their scores, key by key
    float* columns;
    const float** rows;
    char *packed_keys, *packed_values;
    unsigned char* tiles;
    uint64_t tile_bytes;
    bool plain_keys, plain_values;  // rows can be read where they are

    static bool is_plain(const attend_tensor* rows) {
        return storage_of(rows) == Storage::f32 && rows->strides[3] == 1;
    }
    static Scratch take(Workspace& space, const attend_gather_problem& problem, const Sizes& sizes) {
        const int64_t keys = round_up(sizes.most_keys, batch_lanes);
        const attend_tile_problem& call = *problem.call;
        Scratch scratch{};
        scratch.list = space.take<int32_t>(keys);
        scratch.visible = space.take<int32_t>(keys);
        scratch.memory = space.take<int32_t>(problem.list_ints);
        scratch.rows_index = space.take<int32_t>(sizes.group_rows);
        scratch.query = space.take<float>(sizes.head_dim);
        scratch.scores = space.take<float>(keys);
        scratch.biases = space.take<float>(keys);
        scratch.out = space.take<float>(sizes.value_dim);
        scratch.rows = space.take<const float*>(keys);
        // Taken in any case: strides are not known when the workspace is sized.
        scratch.wide_keys = space.take<float>(batch_lanes * sizes.head_dim);
        scratch.wide_values = space.take<float>(sizes.value_dim);
        if (sizes.most_keys <= few_keys) {
            scratch.lists = space.take<int32_t>(keys * batch_lanes);
            scratch.columns = space.take<float>(keys * batch_lanes);
        }
        scratch.plain_keys = is_plain(call.segments[0].key);
        scratch.plain_values = is_plain(call.segments[0].value);
        if (sizes.packs) {
            const int64_t bytes = storage_bytes(storage_of(call.segments[0].key));
            scratch.packed_keys = space.take<char>(sizes.most_keys * sizes.head_dim * bytes);
            scratch.packed_values = space.take<char>(sizes.most_keys * sizes.value_dim * bytes);
            // The last group may be shorter, and its tiles wider.
            for (const int64_t rows : {sizes.group_rows, sizes.q_len % sizes.group_rows}) {
                if (rows == 0) continue;
                const Packed packed(problem, sizes, sizes.most_keys, sizes.shares ? sizes.pack() : 1, rows, nullptr,
                                    nullptr);
                const uint64_t bytes_of_tiles = ATTEND_KERNEL(attend_tile_workspace)(&packed.problem, 1);
                if (bytes_of_tiles > scratch.tile_bytes) scratch.tile_bytes = bytes_of_tiles;
            }
            scratch.tiles = space.take<unsigned char>(static_cast<int64_t>(scratch.tile_bytes));
        }
        return scratch;
    }
    static uint64_t bytes(const attend_gather_problem& problem, const Sizes& sizes) {
        Workspace count;
        take(count, problem, sizes);
        return count.used();
    }
};

struct Run {
    const attend_gather_problem* problem;
    const attend_tile_problem* call;
    const attend_context* context;
    Sizes sizes;
    StoredView query, key, value, output;
    TensorView<const float, 4> bias;
    TensorView<const uint8_t, 4> mask;
    TensorView<float, 4> scores;
    TensorView<float, 3> lse;
    attend_host serial;  // the host without workers, for engines inside one
    unsigned char* memory;
    uint64_t slot_bytes;
};

class Worker {
public:
    Worker(const Run& run, Scratch& scratch) : run_(run), scratch_(scratch) {}

    attend_status item(int64_t number) {
        const Sizes& sizes = run_.sizes;
        const int64_t block = number % sizes.blocks, list = number / sizes.blocks % sizes.lists;
        batch_ = number / sizes.blocks / sizes.lists;
        const int64_t per_block = rows_per_block(sizes), first = block * per_block;
        const int64_t end = lesser(first + per_block, sizes.q_len);
        first_head_ = sizes.shares ? 0 : list;
        end_head_ = sizes.shares ? sizes.q_heads : list + 1;
        const attend_tile_problem& call = *run_.call;
        kv_len_ = call.key_lengths != nullptr ? integer_at(call.key_lengths, batch_) : sizes.kv_len;
        q_len_ = call.query_lengths != nullptr ? integer_at(call.query_lengths, batch_) : sizes.q_len;
        offset_ = (call.flags & ATTEND_TILE_OFFSET_PER_ITEM) != 0 ? kv_len_ - q_len_ : call.causal_offset;
        if (takes_few()) {
            for (int64_t head = first_head_; head < end_head_; ++head)
                for (int64_t row = first; row < end; row += batch_lanes)
                    few_rows(head, row, lesser(batch_lanes, end - row));
            return ATTEND_OK;
        }
        const int64_t wanted = call.num_rows > 0 ? call.first_row : 0;
        const int64_t wanted_end = call.num_rows > 0 ? call.first_row + call.num_rows : sizes.q_len;
        for (int64_t row = first; row < end; row += sizes.group_rows) {
            const int64_t group_end = lesser(row + sizes.group_rows, end);
            if (group_end <= wanted || row >= wanted_end) continue;
            make_list(first_head_, row);
            if (sizes.packs && count_ > 0) {
                const attend_status status = packed(row, group_end);
                if (status != ATTEND_OK) return status;
                continue;
            }
            for (int64_t i = greater(row, wanted); i < lesser(group_end, wanted_end); ++i)
                for (int64_t head = first_head_; head < end_head_; ++head) one_row(head, i);
        }
        return ATTEND_OK;
    }

private:
    void make_list(int64_t head, int64_t row) {
        count_ = row < q_len_ ? run_.problem->keys(run_.problem->keys_user, batch_, head, row, row + offset_, kv_len_,
                                                   scratch_.list, scratch_.memory)
                              : 0;
    }

    bool takes_few() const {
        return run_.sizes.most_keys <= few_keys && run_.sizes.group_rows == 1 && scratch_.plain_keys &&
               scratch_.plain_values && run_.query.storage == Storage::f32 && run_.query.step() == 1 &&
               !run_.scores.present && !run_.bias.present && run_.call->dropout == 0.0;
    }

    // Up to a vector of rows of few keys each: the n-th keys of all rows at once, so that softmax has a row in each lane.
    void few_rows(int64_t head, int64_t first, int64_t rows) {
        const Sizes& sizes = run_.sizes;
        const int64_t kv_head = head / sizes.pack(), keys = round_up(sizes.most_keys, batch_lanes);
        const float *query[batch_lanes], *row[batch_lanes];
        float seen[batch_lanes] = {};
        int64_t most = 0;
        for (int64_t r = 0; r < batch_lanes; ++r) {
            const int64_t i = first + (r < rows ? r : 0);
            query[r] = reinterpret_cast<const float*>(run_.query.at(batch_, head, i));
            if (r >= rows) continue;
            make_list(sizes.shares ? 0 : head, i);
            const int64_t count = filter(head, i);
            seen[r] = static_cast<float>(count);
            most = greater(most, count);
            for (int64_t n = 0; n < count; ++n) scratch_.lists[r * keys + n] = scratch_.visible[n];
        }
        const Batch counts = load(seen), scale(static_cast<float>(run_.call->scale));
        const auto cap = static_cast<float>(run_.call->softcap);
        Batch largest(-infinity);
        for (int64_t n = 0; n < most; ++n) {
            for (int64_t r = 0; r < batch_lanes; ++r) {
                // Rows without an n-th key get numbers that are not used.
                const bool has = static_cast<float>(n) < seen[r];
                row[r] =
                    has ? reinterpret_cast<const float*>(run_.key.at(batch_, kv_head, scratch_.lists[r * keys + n]))
                        : query[r];
            }
            Batch score = dot_pairs(query, row, sizes.head_dim) * scale;
            if (cap > 0.0f) score = Batch(cap) * tanh(score * Batch(1.0f / cap));
            score = choose(counts > Batch(static_cast<float>(n)), score, Batch(-infinity));
            largest = max(largest, score);
            store(scratch_.columns + n * batch_lanes, score);
        }
        const Mask empty = largest == Batch(-infinity);
        Batch sum(0.0f);
        for (int64_t n = 0; n < most; ++n) {
            float* const at = scratch_.columns + n * batch_lanes;
            const Batch score = load(at), weight = exp_nonpositive(score - largest);
            const Batch kept = choose(score == Batch(-infinity), Batch(0.0f), weight);
            store(at, kept);
            sum = sum + kept;
        }
        float factor[batch_lanes], top[batch_lanes], sums[batch_lanes];
        store(factor, choose(empty, Batch(0.0f), Batch(1.0f) / sum));
        store(top, largest);
        store(sums, sum);
        const bool direct = run_.output.storage == Storage::f32 && run_.output.step() == 1;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t i = first + r;
            const bool nothing = top[r] == -infinity;
            if (run_.lse.present)
                *run_.lse.at(batch_, head, i) =
                    nothing ? -infinity
                            : static_cast<float>(static_cast<double>(top[r]) + ::log(static_cast<double>(sums[r])));
            if (!run_.output.present) continue;
            const int64_t count = nothing ? 0 : static_cast<int64_t>(seen[r]);
            for (int64_t n = 0; n < count; ++n) {
                scratch_.scores[n] = scratch_.columns[n * batch_lanes + r] * factor[r];
                scratch_.rows[n] =
                    reinterpret_cast<const float*>(run_.value.at(batch_, kv_head, scratch_.lists[r * keys + n]));
            }
            char* const to = run_.output.at(batch_, head, i);
            float* const out = direct ? reinterpret_cast<float*>(to) : scratch_.out;
            add_rows(scratch_.scores, scratch_.rows, count, sizes.value_dim, out);
            if (!direct) narrow_row(run_.output.storage, out, sizes.value_dim, to, run_.output.step());
        }
    }

    // What the row sees of the list, with the biases of those keys.
    int64_t filter(int64_t head, int64_t i) {
        const attend_tile_problem& call = *run_.call;
        if (i >= q_len_) return 0;
        const int64_t position = i + offset_;
        int64_t low = 0, high = kv_len_;
        if ((call.flags & ATTEND_TILE_CAUSAL) != 0) high = lesser(high, position + 1);
        if (call.window_right >= 0) high = lesser(high, position + lesser(call.window_right, most_rows) + 1);
        if (call.window_left >= 0) low = greater(low, position - lesser(call.window_left, most_rows));
        const uint8_t* mask = run_.mask.present ? run_.mask.at(batch_, head, i, 0) : nullptr;
        const float* bias = run_.bias.present ? run_.bias.at(batch_, head, i, 0) : nullptr;
        int64_t seen = 0;
        for (int64_t n = 0; n < count_; ++n) {
            const int64_t j = scratch_.list[n];
            if (j < low || j >= high) continue;
            if (mask != nullptr && mask[j * run_.mask.strides[3]] == 0) continue;
            if (bias != nullptr) {
                const float add = bias[j * run_.bias.strides[3]];
                if (add == -infinity) continue;
                scratch_.biases[seen] = add;
            }
            scratch_.visible[seen++] = static_cast<int32_t>(j);
        }
        return seen;
    }

    // Addresses of the rows of up to one vector of keys, widened where they must be.
    void point_at(const StoredView& view, int64_t kv_head, const int32_t* keys, int64_t count, int64_t width,
                  float* wide, const float** rows) const {
        for (int64_t n = 0; n < count; ++n) {
            const char* row = view.at(batch_, kv_head, keys[n]);
            if (wide == nullptr) {
                rows[n] = reinterpret_cast<const float*>(row);
                continue;
            }
            widen_row(view.storage, row, view.step(), width, wide + n * width);
            rows[n] = wide + n * width;
        }
    }

    void one_row(int64_t head, int64_t i) {
        const Sizes& sizes = run_.sizes;
        const int64_t kv_head = head / sizes.pack();
        const bool logits = (run_.call->flags & ATTEND_TILE_LOGITS) != 0;
        float* const shown = run_.scores.present ? run_.scores.at(batch_, head, i, 0) : nullptr;
        if (shown != nullptr)
            for (int64_t j = 0; j < sizes.kv_len; ++j) shown[j * run_.scores.strides[3]] = logits ? -infinity : 0.0f;
        const int64_t seen = filter(head, i);
        float lse = -infinity, most = -infinity;
        double sum = 0.0;
        if (seen > 0) {
            score(head, kv_head, i, seen);
            for (int64_t n = 0; n < seen && logits; ++n)
                shown[scratch_.visible[n] * run_.scores.strides[3]] = scratch_.scores[n];
            if (logits) return;
            sum = exponentials(scratch_.scores, seen, most);
        }
        if (most == -infinity) {  // nothing is seen, or with a score of minus infinity alone
            for (int64_t c = 0; c < sizes.value_dim; ++c) scratch_.out[c] = 0.0f;
        } else {
            if (run_.lse.present) lse = static_cast<float>(static_cast<double>(most) + ::log(sum));
            const auto factor = static_cast<float>(1.0 / sum);
            for (int64_t n = 0; n < seen; ++n) scratch_.scores[n] *= factor;
            if (shown != nullptr)
                for (int64_t n = 0; n < seen; ++n)
                    shown[scratch_.visible[n] * run_.scores.strides[3]] = scratch_.scores[n];
            if (run_.call->dropout > 0.0) drop(head, i, seen);
            add_values(kv_head, seen);
        }
        if (run_.lse.present) *run_.lse.at(batch_, head, i) = lse;
        if (run_.output.present)
            narrow_row(run_.output.storage, scratch_.out, sizes.value_dim, run_.output.at(batch_, head, i),
                       run_.output.step());
    }

    void score(int64_t head, int64_t kv_head, int64_t i, int64_t seen) {
        const Sizes& sizes = run_.sizes;
        const attend_tile_problem& call = *run_.call;
        widen_row(run_.query.storage, run_.query.at(batch_, head, i), run_.query.step(), sizes.head_dim,
                  scratch_.query);
        const auto scale = static_cast<float>(call.scale);
        for (int64_t d = 0; d < sizes.head_dim; ++d) scratch_.query[d] *= scale;
        const float** rows = scratch_.rows;
        for (int64_t n = 0; n < seen; n += batch_lanes) {
            const int64_t count = lesser(batch_lanes, seen - n);
            if (scratch_.plain_values)
                for (int64_t at = n; at < n + count; ++at)
                    fetch_row(reinterpret_cast<const float*>(run_.value.at(batch_, kv_head, scratch_.visible[at])),
                              sizes.value_dim);
            point_at(run_.key, kv_head, scratch_.visible + n, count, sizes.head_dim,
                     scratch_.plain_keys ? nullptr : scratch_.wide_keys, rows);
            for (int64_t at = count; at < batch_lanes; ++at) rows[at] = rows[0];
            dot_rows(scratch_.query, rows, sizes.head_dim, scratch_.scores + n);
        }
        if (call.softcap > 0.0) {
            const Batch cap(static_cast<float>(call.softcap)), inverse(static_cast<float>(1.0 / call.softcap));
            for (int64_t n = 0; n < seen; n += batch_lanes)
                store(scratch_.scores + n, cap * tanh(load(scratch_.scores + n) * inverse));
        }
        if (run_.bias.present)
            for (int64_t n = 0; n < seen; ++n) scratch_.scores[n] += scratch_.biases[n];
    }

    void drop(int64_t head, int64_t i, int64_t seen) {
        const attend_tile_problem& call = *run_.call;
        const int64_t heads = call.dropout_heads > 0 ? call.dropout_heads : run_.sizes.q_heads;
        const auto row_head = static_cast<uint32_t>(batch_ * heads + call.dropout_head + head);
        const uint32_t threshold = dropout_threshold(call.dropout);
        const float scale = dropout_scale(call.dropout);
        RandomWords words{};
        int64_t block = -1;
        for (int64_t n = 0; n < seen; ++n) {
            const int64_t j = scratch_.visible[n];
            if (j / 4 != block) {
                block = j / 4;
                words = dropout_words(call.seed, static_cast<uint32_t>(call.rng_offset), row_head,
                                      static_cast<uint32_t>(i), static_cast<uint32_t>(block));
            }
            scratch_.scores[n] = words.word[j % 4] >= threshold ? scratch_.scores[n] * scale : 0.0f;
        }
    }

    void add_values(int64_t kv_head, int64_t seen) {
        const int64_t width = run_.sizes.value_dim;
        if (scratch_.plain_values) {
            point_at(run_.value, kv_head, scratch_.visible, seen, width, nullptr, scratch_.rows);
            add_rows(scratch_.scores, scratch_.rows, seen, width, scratch_.out);
            return;
        }
        for (int64_t c = 0; c < width; ++c) scratch_.out[c] = 0.0f;
        for (int64_t n = 0; n < seen; ++n) {
            point_at(run_.value, kv_head, scratch_.visible + n, 1, width, scratch_.wide_values, scratch_.rows);
            const float *row = scratch_.rows[0], weight = scratch_.scores[n];
            for (int64_t c = 0; c < width; ++c) scratch_.out[c] += weight * row[c];
        }
    }

    void pack_rows(const StoredView& view, int64_t kv_head, int64_t width, char* to) const {
        const int64_t bytes = storage_bytes(view.storage);
        for (int64_t n = 0; n < count_; ++n, to += width * bytes) {
            const char* row = view.at(batch_, kv_head, scratch_.list[n]);
            if (view.step() == 1) {
                __builtin_memcpy(to, row, static_cast<size_t>(width * bytes));
                continue;
            }
            for (int64_t c = 0; c < width; ++c)
                __builtin_memcpy(to + c * bytes, row + c * view.strides[3], static_cast<size_t>(bytes));
        }
    }

    // Rows [first, end) and the heads that share their list, key head by key head.
    attend_status packed(int64_t first, int64_t end) {
        const Sizes& sizes = run_.sizes;
        for (int64_t i = first; i < end; ++i) scratch_.rows_index[i - first] = static_cast<int32_t>(i);
        for (int64_t head = first_head_; head < end_head_;) {
            const int64_t kv_head = head / sizes.pack();
            const int64_t heads = lesser(end_head_, (kv_head + 1) * sizes.pack()) - head;
            pack_rows(run_.key, kv_head, sizes.head_dim, scratch_.packed_keys);
            pack_rows(run_.value, kv_head, sizes.value_dim, scratch_.packed_values);
            Packed part(*run_.problem, sizes, count_, heads, end - first, scratch_.packed_keys, scratch_.packed_values);
            const attend_tile_problem& call = *run_.call;
            attend_tile_problem& problem = part.problem;
            part.query.of(call.query);
            problem.output = part.output.of(call.output);
            problem.lse = part.lse.of(call.lse);
            for (Cut* cut : {&part.query, &part.output, &part.lse}) {
                if (cut == &part.output ? call.output == nullptr : cut == &part.lse && call.lse == nullptr) continue;
                cut->cut(0, batch_, 1);
                cut->cut(1, head, heads);
                cut->cut(2, first, end - first);
            }
            problem.mask = part.mask.of(call.mask);
            problem.bias = part.bias.of(call.bias);
            for (Cut* cut : {&part.mask, &part.bias}) {
                if (cut == &part.mask ? call.mask == nullptr : call.bias == nullptr) continue;
                cut->cut(0, batch_, 1);
                cut->cut(1, head, heads);
            }
            problem.query_lengths = part.query_lengths.of(call.query_lengths);
            problem.key_lengths = part.key_lengths.of(call.key_lengths);
            if (call.query_lengths != nullptr) part.query_lengths.cut(0, batch_, 1);
            if (call.key_lengths != nullptr) part.key_lengths.cut(0, batch_, 1);
            const int64_t all = call.dropout_heads > 0 ? call.dropout_heads : sizes.q_heads;
            problem.dropout_heads = all;
            problem.dropout_head = call.dropout_head + batch_ * all + head;
            problem.query_index = scratch_.rows_index;
            problem.key_index = scratch_.list;
            attend_context inner = *run_.context;
            inner.host = run_.context->host != nullptr ? &run_.serial : nullptr;
            inner.max_workers = 1;
            inner.workspace = scratch_.tiles;
            inner.workspace_bytes = scratch_.tile_bytes;
            const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&problem, &inner);
            if (status != ATTEND_OK) return status;
            head += heads;
        }
        return ATTEND_OK;
    }

    const Run& run_;
    Scratch& scratch_;
    int64_t batch_{0}, first_head_{0}, end_head_{0}, kv_len_{0}, q_len_{0}, offset_{0}, count_{0};
};

attend_status run_gather(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    Workspace space(run.memory + slot * run.slot_bytes);
    Scratch scratch = Scratch::take(space, *run.problem, run.sizes);
    Worker worker(run, scratch);
    for (auto item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const attend_status status = worker.item(item);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_gather_workspace)(const attend_gather_problem* problem, uint32_t max_workers) {
    const uint64_t slots = max_workers == 0 ? 1 : max_workers;
    // Scores that are asked for later send packed groups row by row, which takes less.
    return Scratch::bytes(*problem, gather_sizes(*problem)) * slots;
}

extern "C" attend_status ATTEND_KERNEL(attend_gather_forward)(const attend_gather_problem* problem,
                                                              const attend_context* context) {
    const attend_tile_problem& call = *problem->call;
    const attend_status checked = check_tile_problem(call, context->error);
    if (checked != ATTEND_OK) return checked;
    if (call.num_segments != 1 || call.keys != nullptr || call.score != nullptr || call.hooks != nullptr ||
        call.query_index != nullptr || call.key_index != nullptr || (call.flags & ATTEND_TILE_AVERAGE_SCORES) != 0)
        return attend_fail(context->error, ATTEND_UNSUPPORTED,
                           "attend_gather_forward: a call with hooks, index maps or several segments; accepted: one "
                           "segment and none of them",
                           "call");
    Run run{};
    run.problem = problem;
    run.call = &call;
    run.context = context;
    run.sizes = gather_sizes(*problem);
    run.slot_bytes = Scratch::bytes(*problem, run.sizes);
    run.memory = static_cast<unsigned char*>(context->workspace);
    const uint64_t needed = run.slot_bytes * worker_count(context);
    if (context->workspace_bytes < needed || (run.memory == nullptr && needed > 0)) {
        Message text;
        text << "attend_gather_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed);
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    run.query = stored_view(call.query);
    run.key = stored_view(call.segments[0].key);
    run.value = stored_view(call.segments[0].value);
    run.output = stored_view(call.output);
    run.lse = view_of<float, 3>(call.lse);
    run.scores = view_of<float, 4>(call.scores);
    run.mask = broadcast_view_of<const uint8_t, 4>(call.mask);
    run.bias = broadcast_view_of<const float, 4>(call.bias);
    if (context->host != nullptr) {
        run.serial = *context->host;
        run.serial.parallel_for = nullptr;
    }
    return parallel_items(context, static_cast<uint64_t>(run.sizes.items()), run_gather, &run);
}
