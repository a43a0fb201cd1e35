// SPDX-License-Identifier: Apache-2.0
// Everything that can be wrong with a tile problem, told before the first tile.
#include <math.h>

#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t any_extent = -1;
constexpr const char* place = "attend_tile_forward: ";

class Checker {
public:
    explicit Checker(attend_error* error) : error_(error) {}

    bool ok() const { return status_ == ATTEND_OK; }
    attend_status status() const { return status_; }

    void fail(attend_status status, const char* where, Message& text) {
        if (ok()) status_ = text.fail(error_, status, where);
    }

    void tensor(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents, const char* shape,
                bool broadcasts) {
        if (!ok()) return;
        Message text;
        text << place << name;
        if (tensor->ndim != rank) {
            text << " has rank " << int64_t{tensor->ndim} << "; accepted: " << shape;
            return fail(ATTEND_BAD_SHAPE, name, text);
        }
        int64_t elements = 1;
        for (int dim = 0; dim < rank; ++dim) {
            const int64_t extent = tensor->shape[dim];
            elements = extent == 0 ? 0 : elements;
            if (extent < 0 || (extents[dim] != any_extent && extent != extents[dim] && !(broadcasts && extent == 1))) {
                text << " has extent " << extent << " in dimension " << int64_t{dim} << "; accepted: ";
                if (extents[dim] != any_extent) text << extents[dim] << " of ";
                text << shape;
                return fail(ATTEND_BAD_SHAPE, name, text);
            }
        }
        if (elements != 0 && tensor->data == nullptr) {
            text << " has no data; accepted: memory for " << shape;
            fail(ATTEND_INVALID_ARGUMENT, name, text);
        }
    }

    void f32(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents, const char* shape,
             bool broadcasts = false) {
        this->tensor(tensor, name, rank, extents, shape, broadcasts);
        if (ok() && !is_f32(tensor)) type(tensor, name, "float32");
    }

    // One of the three types that rows are stored in.
    void stored(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents, const char* shape) {
        this->tensor(tensor, name, rank, extents, shape, false);
        if (ok() && storage_of(tensor) == Storage::other) type(tensor, name, "float32, bf16 or f16");
    }
    void type(const attend_tensor* tensor, const char* name, const char* accepted) {
        Message text;
        text << place << name << " has type code " << int64_t{tensor->dtype_code} << " of "
             << int64_t{tensor->dtype_bits} << " bits; accepted: " << accepted;
        fail(ATTEND_BAD_DTYPE, name, text);
    }

    void lengths(const attend_tensor* tensor, const char* name, int64_t batch, int64_t most) {
        if (tensor == nullptr) return;
        this->tensor(tensor, name, 1, &batch, "[B]", false);
        if (!ok()) return;
        Message text;
        text << place << name;
        if (!is_integer(tensor)) {
            text << " has type code " << int64_t{tensor->dtype_code} << " of " << int64_t{tensor->dtype_bits}
                 << " bits; accepted: int32 or int64";
            return fail(ATTEND_BAD_DTYPE, name, text);
        }
        for (int64_t item = 0; item < batch; ++item) {
            const int64_t length = integer_at(tensor, item);
            if (length >= 0 && length <= most) continue;
            text << " is " << length << " for batch item " << item << "; accepted: 0 to " << most;
            return fail(ATTEND_BAD_SHAPE, name, text);
        }
    }

    void number(bool accepted, const char* name, const char* what) {
        if (!ok() || accepted) return;
        Message text;
        text << place << name << " is out of range; accepted: " << what;
        fail(ATTEND_INVALID_ARGUMENT, name, text);
    }

private:
    attend_error* error_;
    attend_status status_{ATTEND_OK};
};

constexpr int64_t most_splits = 65536;

// The first segment where its keys lie in pages or are codes.
void check_store(Checker& check, const attend_tile_problem& problem, const attend_key_store& store) {
    const attend_key_segment& segment = problem.segments[0];
    const int64_t batch = problem.query->shape[0], head_dim = problem.query->shape[3];
    const int64_t items =
        store.pages != nullptr || (segment.key->ndim == 4 && segment.key->shape[0] == 1) ? any_extent : batch;
    const int64_t key[4] = {items, any_extent, any_extent, head_dim};
    check.tensor(segment.key, "key", 4, key, "[B or P, Hkv, Nk or S, D]", false);
    if (!check.ok()) return;
    const int64_t value[4] = {segment.key->shape[0], segment.key->shape[1], segment.key->shape[2], any_extent};
    check.tensor(segment.value, "value", 4, value, "[B or P, Hkv, Nk or S, Dv]", false);
    if (!check.ok()) return;
    const decode::Element element = decode::element_of(*segment.key);
    if (element == decode::Element::other) check.type(segment.key, "key", "float32, bf16, f16, int8 or uint8 (e4m3)");
    if (decode::element_of(*segment.value) != element) check.type(segment.value, "value", "the type of key");
    check.number(problem.hooks == nullptr, "hooks", "no hooks with keys in a store");
    check.number(store.splits >= 0 && store.splits <= most_splits, "splits", "0 to 65536");
    check.number(store.rounding <= ATTEND_STORE_ROUND_F16, "rounding", "as it is, bf16 or f16");
    check.number(store.rounding == ATTEND_STORE_AS_IT_IS || element == decode::Element::f32, "rounding",
                 "rounding of float32 keys and values only");
    const bool codes = decode::is_code(element);
    check.number(codes == (store.key_scale != nullptr) && codes == (store.value_scale != nullptr), "key_scale",
                 "scales of keys and values with codes, and none without");
    if (!check.ok()) return;
    if (store.pages != nullptr) {
        const int64_t table[2] = {batch, any_extent};
        check.tensor(store.pages, "pages", 2, table, "[B, n]", false);
        if (!check.ok()) return;
        if (store.pages->dtype_code != ATTEND_CODE_INT || store.pages->dtype_bits != 32)
            check.type(store.pages, "pages", "int32");
        check.number(segment.key->shape[2] >= 1 || store.pages->shape[1] == 0, "key", "pages of at least one key");
        check.lengths(problem.key_lengths, "key_lengths", batch, store.pages->shape[1] * segment.key->shape[2]);
        for (int64_t item = 0; item < batch && check.ok(); ++item) {
            const int64_t page = segment.key->shape[2], all = store.pages->shape[1] * page;
            const int64_t keys = problem.key_lengths != nullptr ? integer_at(problem.key_lengths, item) : all;
            const int32_t* row = static_cast<const int32_t*>(store.pages->data) + item * store.pages->strides[0];
            for (int64_t at = 0; at * page < keys; ++at) {
                const int64_t entry = row[at * store.pages->strides[1]];
                if (entry >= 0 && entry < segment.key->shape[0]) continue;
                Message text;
                text << place << "pages names page " << entry << " for keys from " << at * page << " of batch item "
                     << item << "; accepted: 0 to " << segment.key->shape[0] - 1;
                return check.fail(ATTEND_BAD_SHAPE, "pages", text);
            }
        }
    }
    if (!codes || !check.ok()) return;
    check.number(store.scale_keys >= 1, "scale_keys", "at least 1");
    if (!check.ok()) return;
    const int64_t per_row = divide_up(segment.key->shape[2], store.scale_keys);
    const int64_t scale[3] = {segment.key->shape[0], segment.key->shape[1], per_row};
    check.f32(store.key_scale, "key_scale", 3, scale, "[B or P, Hkv, ceil(Nk or S / scale_keys)]");
    check.f32(store.value_scale, "value_scale", 3, scale, "[B or P, Hkv, ceil(Nk or S / scale_keys)]");
}

void check_segments(Checker& check, const attend_tile_problem& problem) {
    const int64_t batch = problem.query->shape[0], head_dim = problem.query->shape[3];
    int64_t kv_heads = any_extent, value_dim = any_extent;
    bool extra = false;
    for (uint32_t index = 0; index < problem.num_segments && check.ok(); ++index) {
        const attend_key_segment& segment = problem.segments[index];
        check.number(segment.key != nullptr && segment.value != nullptr, "segments",
                     "a key and a value tensor in each segment");
        if (!check.ok()) return;
        // An extent of 1 in the batch stands for every item; the other extents are exact.
        const bool shared_key = segment.key->ndim == 4 && segment.key->shape[0] == 1;
        const bool shared_value = segment.value->ndim == 4 && segment.value->shape[0] == 1;
        const attend_key_store* store = index == 0 ? problem.store : nullptr;
        if (store != nullptr) {
            check_store(check, problem, *store);
            if (!check.ok()) return;
            kv_heads = segment.key->shape[1];
            value_dim = segment.value->shape[3];
            continue;
        }
        const int64_t key[4] = {shared_key ? 1 : batch, kv_heads, any_extent, head_dim};
        check.stored(segment.key, "key", 4, key, "[B, Hkv, Nk, D]");
        if (!check.ok()) return;
        kv_heads = segment.key->shape[1];
        const int64_t value[4] = {shared_value ? 1 : batch, kv_heads, segment.key->shape[2], value_dim};
        check.stored(segment.value, "value", 4, value, "[B, Hkv, Nk, Dv]");
        if (!check.ok()) return;
        value_dim = segment.value->shape[3];
        const bool always = (segment.flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) != 0;
        const Storage stored = storage_of(segment.key), query = storage_of(problem.query);
        if (storage_of(segment.value) != stored) check.type(segment.value, "value", "the type of key");
        // A cache may be narrower than the queries; learned keys may be what their weights are.
        if (!always && stored != query && query != Storage::f32) check.type(segment.key, "key", "the type of query");
        check.number(always || !extra, "segments", "main segments before always-visible ones");
        extra = extra || always;
    }
    if (!check.ok()) return;
    const int64_t q_heads = problem.query->shape[1];
    if (kv_heads < 1 ? q_heads != 0 : q_heads % kv_heads != 0) {
        Message text;
        text << place << "query has " << q_heads << " heads, which is not a multiple of " << kv_heads
             << " key heads; accepted: Hq = n Hkv";
        return check.fail(ATTEND_BAD_SHAPE, "query", text);
    }
    check.number(head_dim >= 1, "query", "a head width D of at least 1");
    check.number(value_dim >= 1, "value", "a value width Dv of at least 1");
}

// Masks and biases run over the logical indices: over the rows, or as far as the last entry of an index map.
void check_broadcast(Checker& check, const attend_tile_problem& problem, const TileSizes& sizes,
                     const attend_tensor* tensor, const char* name, bool f32) {
    if (tensor == nullptr || !check.ok()) return;
    const int64_t heads =
        problem.hooks != nullptr && problem.hooks->mask_heads > 0 ? problem.hooks->mask_heads : sizes.q_heads;
    int64_t extents[4] = {sizes.batch, heads, sizes.q_len, sizes.main_keys};
    if (problem.query_index != nullptr) extents[2] = any_extent;
    if (problem.key_index != nullptr) extents[3] = any_extent;
    constexpr const char* shape = "[B, Hq, Nq, Nk], each 1 or whole";
    if (f32)
        check.f32(tensor, name, 4, extents, shape, true);
    else
        check.tensor(tensor, name, 4, extents, shape, true);
    if (!check.ok()) return;
    if (!f32 && tensor->dtype_bits != 8) {
        Message text;
        text << place << name << " has elements of " << int64_t{tensor->dtype_bits} << " bits; accepted: uint8";
        return check.fail(ATTEND_BAD_DTYPE, name, text);
    }
    for (int dim = 2; dim < 4; ++dim) {
        const int32_t* map = dim == 2 ? problem.query_index : problem.key_index;
        const int64_t rows = dim == 2 ? sizes.q_len : sizes.main_keys;
        if (map == nullptr || rows == 0 || tensor->shape[dim] == 1 || map[rows - 1] < tensor->shape[dim]) continue;
        Message text;
        text << place << name << " has extent " << tensor->shape[dim] << " in dimension " << int64_t{dim}
             << "; accepted: more than the largest index, " << int64_t{map[rows - 1]};
        return check.fail(ATTEND_BAD_SHAPE, name, text);
    }
}

void check_numbers(Checker& check, const attend_tile_problem& problem, const TileSizes& sizes) {
    check.number(isfinite(problem.scale), "scale", "a finite number");
    check.number(isfinite(problem.softcap) && problem.softcap >= 0.0, "softcap", "a finite number of at least 0");
    check.number(problem.dropout >= 0.0 && problem.dropout < 1.0, "dropout", "at least 0 and below 1");
    check.number(problem.rng_offset < (uint64_t{1} << 24), "rng_offset", "below 2^24");
    check.number(problem.window_left >= -1, "window_left", "-1 (unlimited) or more");
    check.number(problem.window_right >= -1, "window_right", "-1 (unlimited) or more");
    check.number(problem.max_query_tile >= 0 && problem.max_key_tile >= 0, "max_query_tile", "0 (any) or more");
    check.number(problem.num_rows >= 0 && problem.first_row >= 0 && problem.first_row <= sizes.q_len &&
                     problem.num_rows <= sizes.q_len - problem.first_row,
                 "num_rows", "rows of the query");
    check.number((problem.flags & ATTEND_TILE_LOGITS) == 0 ||
                     (problem.num_rows > 0 && problem.scores != nullptr && sizes.maps == 1 && !sizes.average),
                 "flags", "logits of rows of scores, of one map and each head");
    check.number(problem.num_rows == 0 || (problem.output == nullptr && problem.lse == nullptr), "num_rows",
                 "some rows of scores without output and lse");
    constexpr int64_t farthest = int64_t{1} << 40;
    check.number(problem.causal_offset >= -farthest && problem.causal_offset <= farthest, "causal_offset",
                 "-2^40 to 2^40");
    check.number((problem.flags & ATTEND_TILE_OFFSET_PER_ITEM) == 0 || problem.query_lengths != nullptr ||
                     problem.key_lengths != nullptr,
                 "flags", "an offset per item together with query or key lengths");
    const int64_t heads = problem.dropout_heads > 0 ? problem.dropout_heads : sizes.q_heads;
    if (!check.ok()) return;
    if (sizes.q_len > most_rows || sizes.all_keys > most_rows ||
        (problem.dropout > 0.0 && sizes.batch > 0 && heads > int64_t{UINT32_MAX} / sizes.batch)) {
        Message text;
        text << place
             << "query, key or head count is too large; accepted: at most 2^30 queries and keys, B H below 2^32";
        check.fail(ATTEND_LIMIT, "query", text);
    }
}

void check_hooks(Checker& check, const attend_tile_problem& problem, const TileSizes& sizes) {
    if (problem.hooks == nullptr || !check.ok()) return;
    const attend_tile_hooks& hooks = *problem.hooks;
    check.number(int64_t{hooks.num_maps} <= most_maps, "hooks", "at most 16 maps");
    check.number(hooks.num_sums >= 0 && hooks.tile_floats >= 0 && hooks.block_floats >= 0 &&
                     hooks.scratch_floats >= 0 && hooks.max_group >= 0 && hooks.mask_heads >= 0,
                 "hooks", "sizes of 0 or more");
    check.number(sizes.maps == 1 || hooks.maps != nullptr || (hooks.flags & ATTEND_HOOKS_SHARED_SCORES) != 0, "hooks",
                 "a description of each map, or shared scores");
    check.number(hooks.close == nullptr || (hooks.finish != nullptr && problem.keys != nullptr), "hooks",
                 "close together with finish and ranges of keys");
    check.number(hooks.close == nullptr || problem.scores == nullptr, "scores", "no scores where ranges are closed");
    check.number(sizes.maps == 1 || !sizes.average, "scores", "no mean over heads of several maps");
    for (int64_t map = 0; hooks.maps != nullptr && map < sizes.maps && check.ok(); ++map) {
        const int64_t rows[4] = {sizes.batch, sizes.q_heads, sizes.q_len, sizes.head_dim};
        check.number(hooks.maps[map].query != nullptr, "hooks", "queries of each map");
        if (!check.ok()) return;
        check.stored(hooks.maps[map].query, "query", 4, rows, "[B, Hq, Nq, D] for each map");
        if (check.ok() && storage_of(hooks.maps[map].query) != storage_of(problem.query))
            check.type(hooks.maps[map].query, "query", "one type for all maps");
        if (hooks.maps[map].lse != nullptr) check.f32(hooks.maps[map].lse, "lse", 3, rows, "[B, Hq, Nq]");
    }
    for (uint32_t index = 0; index < problem.num_segments && check.ok(); ++index) {
        const attend_key_segment& segment = problem.segments[index];
        if (segment.map_key == nullptr) continue;
        for (int64_t map = 0; map < sizes.maps && check.ok(); ++map) {
            const attend_tensor* key = segment.map_key[map];
            check.number(key != nullptr, "segments", "keys of each map");
            if (!check.ok()) return;
            check.stored(key, "key", 4, segment.key->shape, "[B, Hkv, Nk, D] for each map");
            if (check.ok() && storage_of(key) != storage_of(segment.key))
                check.type(key, "key", "one type for all maps");
        }
    }
}

void check_state(Checker& check, const attend_tile_problem& problem, const TileSizes& sizes) {
    const bool leaves = (problem.flags & ATTEND_TILE_LEAVES_STATE) != 0;
    if ((!leaves && (problem.flags & ATTEND_TILE_TAKES_STATE) == 0) || !check.ok()) return;
    check.number(problem.state_max != nullptr && problem.state_sum != nullptr, "state_max",
                 "state_max and state_sum where the flags name a state");
    check.number(problem.hooks == nullptr, "hooks", "no hooks where the flags name a state");
    check.number(problem.scores == nullptr, "scores", "no scores where the flags name a state");
    check.number(!leaves || problem.lse == nullptr, "lse", "no lse where the state is left");
    check.number(problem.output != nullptr, "output", "an output where the flags name a state");
    if (!check.ok()) return;
    if (!is_f32(problem.output)) check.type(problem.output, "output", "float32 where the flags name a state");
    const int64_t rows[3] = {sizes.batch, sizes.q_heads, sizes.q_len};
    check.f32(problem.state_max, "state_max", 3, rows, "[B, Hq, Nq]");
    check.f32(problem.state_sum, "state_sum", 3, rows, "[B, Hq, Nq]");
}

}  // namespace

attend_status check_tile_problem(const attend_tile_problem& problem, attend_error* error) {
    Checker check(error);
    check.number(problem.query != nullptr, "query", "a tensor");
    check.number(problem.num_segments >= 1 && problem.segments != nullptr, "segments", "at least one");
    const bool finishes = problem.num_rows > 0 && problem.hooks != nullptr && problem.hooks->finish != nullptr;
    check.number(problem.output != nullptr || problem.lse != nullptr || problem.scores != nullptr || finishes, "output",
                 "at least one of output, lse and scores");
    if (!check.ok()) return check.status();
    const int64_t any[4] = {any_extent, any_extent, any_extent, any_extent};
    check.stored(problem.query, "query", 4, any, "[B, Hq, Nq, D]");
    if (check.ok()) check_segments(check, problem);
    if (!check.ok()) return check.status();

    const TileSizes sizes = sizes_of(problem);
    const int64_t output[4] = {sizes.batch, sizes.q_heads, sizes.q_len, sizes.value_dim};
    const int64_t scores[4] = {sizes.batch, sizes.q_heads, sizes.q_len, sizes.all_keys};
    const int64_t average[3] = {sizes.batch, sizes.q_len, sizes.all_keys};
    if (problem.output != nullptr) {
        check.stored(problem.output, "output", 4, output, "[B, Hq, Nq, Dv]");
        const Storage storage = storage_of(problem.output);
        if (check.ok() && storage != Storage::f32 && storage != storage_of(problem.query))
            check.type(problem.output, "output", "float32 or the type of query");
    }
    if (problem.lse != nullptr) check.f32(problem.lse, "lse", 3, output, "[B, Hq, Nq]");
    if (problem.scores != nullptr && sizes.average) check.f32(problem.scores, "scores", 3, average, "[B, Nq, Nk]");
    if (problem.scores != nullptr && !sizes.average) check.f32(problem.scores, "scores", 4, scores, "[B, Hq, Nq, Nk]");
    check_broadcast(check, problem, sizes, problem.mask, "mask", false);
    check_broadcast(check, problem, sizes, problem.bias, "bias", true);
    check.lengths(problem.query_lengths, "query_lengths", sizes.batch,
                  problem.query_index != nullptr ? INT32_MAX : sizes.q_len);
    check.lengths(problem.key_lengths, "key_lengths", sizes.batch,
                  problem.key_index != nullptr ? INT32_MAX : sizes.main_keys);
    if (check.ok()) check_numbers(check, problem, sizes);
    check_hooks(check, problem, sizes);
    check_state(check, problem, sizes);
    return check.status();
}

}  // namespace attend::ATTEND_ISA
