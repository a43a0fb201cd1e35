// SPDX-License-Identifier: Apache-2.0
// Which keys a token sees by what tokens are: padding, and the segments of packed sequences. Ranges of keys come from
// what is known of every token once per call, so other segments and trailing padding are neither read nor multiplied.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

struct TokenKeys {
    int64_t num_keys;              // Nk
    const uint8_t* token;          // [B, Nk]: not 0 = may be seen; NULL = all
    const int32_t* seen;           // [B, 2]: keys before the first hidden one, end of the last visible one; with token
    const int32_t* number;         // [B, N]: number of the token's segment, -1 = outside of all; NULL = no segments
    const int32_t* span;           // [B, N, 2]: where the token's segment begins and ends; with number
    const int32_t* whole;          // [B, N]: not 0 = the segment has no gaps; with number
    const attend_tensor* lengths;  // with hides_queries: keys from the item's length on are padding
    int64_t hides_queries;         // not 0: a query on a padded key is an empty row

    int64_t length(int64_t batch) const {
        if (!lengths) return num_keys;
        const int64_t place = batch * lengths->strides[0];
        return lengths->dtype_bits == 64 ? static_cast<const int64_t*>(lengths->data)[place]
                                         : static_cast<const int32_t*>(lengths->data)[place];
    }
    bool is_padded(int64_t batch, int64_t position) const {
        if (position < 0 || position >= num_keys) return false;
        return position >= length(batch) || (token && token[batch * num_keys + position] == 0);
    }
    // A query that sees nothing whatever the keys are.
    bool is_empty(const attend_query_tile& tile, int64_t lane) const {
        if (number && number[tile.batch * num_keys + tile.lane_query[lane]] < 0) return true;
        return hides_queries && is_padded(tile.batch, tile.lane_position[lane]);
    }

    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const TokenKeys& keys = *static_cast<const TokenKeys*>(user);
        const int64_t first = tile->batch * keys.num_keys;
        int64_t empty = 0;
        for (int64_t lane = 0; lane < tile->num_lanes; ++lane) empty += keys.is_empty(*tile, lane) ? 1 : 0;
        if (empty == tile->num_lanes) return;
        const int64_t end = keys.token ? keys.seen[2 * tile->batch + 1] : keys.num_keys;
        const int64_t sure = empty > 0 ? 0 : keys.token ? keys.seen[2 * tile->batch] : keys.num_keys;
        RangeWriter out(tile->kv_len < end ? tile->kv_len : end, visit_range, visitor);
        const auto add = [&](int64_t from, int64_t to, bool partial) {
            if (!partial && from < sure) out.add(from, to < sure ? to : sure, 0), from = to < sure ? to : sure;
            out.add(from, to, ATTEND_KEYS_PARTIAL);
        };
        if (!keys.number) {
            add(0, keys.num_keys, false);
            return;
        }
        // The segments of the lanes in the order of their beginnings; lanes of one segment mostly lie together.
        const auto at = [&](int64_t lane) { return first + tile->lane_query[lane]; };
        int64_t one = -1, others = 0;
        for (int64_t lane = 0; lane < tile->num_lanes; ++lane) {
            if (keys.number[at(lane)] < 0) continue;
            if (one < 0) one = at(lane);
            others += keys.number[at(lane)] != keys.number[one] ? 1 : 0;
        }
        if (others == 0) {
            add(keys.span[2 * one], keys.span[2 * one + 1], empty > 0 || keys.whole[one] == 0);
            return;
        }
        for (int64_t from = 0;;) {
            int64_t begin = INT64_MAX, stop = 0;
            for (int64_t lane = 0; lane < tile->num_lanes; ++lane) {
                if (keys.number[at(lane)] < 0 || keys.span[2 * at(lane) + 1] <= from) continue;
                const int64_t start = keys.span[2 * at(lane)] < from ? from : keys.span[2 * at(lane)];
                if (start < begin) begin = start, stop = keys.span[2 * at(lane) + 1];
            }
            if (begin == INT64_MAX) return;
            out.add(begin, stop, ATTEND_KEYS_PARTIAL);
            from = stop;
        }
    }

    static void keep(const void* user, const attend_score_tile* tile) {
        const TokenKeys& keys = *static_cast<const TokenKeys*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride, first = queries.batch * keys.num_keys;
        constexpr float hidden = -__builtin_inff();
        int32_t wanted[most_lanes];  // the lane's segment; -2: sees nothing
        for (int64_t lane = 0; lane < lanes; ++lane)
            wanted[lane] = keys.is_empty(queries, lane) ? -2
                           : keys.number                ? keys.number[first + queries.lane_query[lane]]
                                                        : 0;
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const int64_t j = tile->key_index != nullptr ? tile->key_index[row] : tile->first_key + row;
            const int32_t own = keys.token && keys.token[first + j] == 0 ? -3
                                : keys.number                            ? keys.number[first + j]
                                                                         : 0;
            float* const scores = tile->scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] = wanted[lane] == own ? scores[lane] : hidden;
        }
    }
};

// Whether a call says anything about its tokens: `padding_mask`, `segment_ids` or `segment_offsets`.
inline bool has_tokens(const attend_array* bindings) {
    return attend_find_name(bindings, "padding_mask") || attend_find_name(bindings, "segment_ids") ||
           attend_find_name(bindings, "segment_offsets");
}

// Memory of the tables.
inline uint64_t token_tables(const attend_plan_desc& desc) {
    const int64_t tokens = desc.batch * desc.kv_len;
    const bool padding = attend_find_name(&desc.bindings, "padding_mask") != nullptr;
    const bool segments = attend_find_name(&desc.bindings, "segment_ids") != nullptr ||
                          attend_find_name(&desc.bindings, "segment_offsets") != nullptr;
    return (padding ? Carve::floats(tokens / 4 + 16) + Carve::floats(2 * desc.batch + 16) : 0) +
           (segments ? 2 * Carve::floats(tokens) + Carve::floats(2 * tokens) + Carve::floats(2 * desc.kv_len) +
                           Carve::floats(desc.kv_len)
                     : 0);
}

inline int64_t integer_at(const attend_tensor& tensor, int64_t place) {
    return tensor.dtype_bits == 64 ? static_cast<const int64_t*>(tensor.data)[place]
                                   : static_cast<const int32_t*>(tensor.data)[place];
}

inline void read_padding(TokenKeys& keys, const attend_tensor& mask, const attend_plan_desc& desc, Carve& carve) {
    auto* token = reinterpret_cast<uint8_t*>(carve.take(desc.batch * desc.kv_len / 4 + 16));
    auto* seen = reinterpret_cast<int32_t*>(carve.take(2 * desc.batch + 16));
    for (int64_t item = 0; item < desc.batch; ++item) {
        int64_t before = desc.kv_len, end = 0;
        for (int64_t j = 0; j < desc.kv_len; ++j) {
            const bool is_token =
                static_cast<const uint8_t*>(mask.data)[item * mask.strides[0] + j * mask.strides[1]] != 0;
            token[item * desc.kv_len + j] = is_token;
            if (is_token)
                end = j + 1;
            else if (before == desc.kv_len)
                before = j;
        }
        seen[2 * item] = static_cast<int32_t>(before);
        seen[2 * item + 1] = static_cast<int32_t>(end);
    }
    keys.token = token;
    keys.seen = seen;
}

// Sorts runs of equal ids by (id, place): places of run starts, a heap in place.
inline void sort_runs(int32_t* runs, int64_t count, const int64_t* ids) {
    const auto before = [&](int32_t a, int32_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; };
    const auto sink = [&](int64_t at, int64_t size) {
        for (int64_t child = 2 * at + 1; child < size; at = child, child = 2 * at + 1) {
            if (child + 1 < size && before(runs[child], runs[child + 1])) ++child;
            if (!before(runs[at], runs[child])) return;
            const int32_t kept = runs[at];
            runs[at] = runs[child];
            runs[child] = kept;
        }
    };
    for (int64_t at = count / 2; at-- > 0;) sink(at, count);
    for (int64_t size = count; size-- > 1;) {
        const int32_t most = runs[0];
        runs[0] = runs[size];
        runs[size] = most;
        sink(0, size);
    }
}

// Tables of segments. `id_of(item, token)` is the token's segment, below 0 outside of all.
template <class IdOf>
void read_segments(TokenKeys& keys, const attend_plan_desc& desc, Carve& carve, IdOf id_of) {
    const int64_t n = desc.kv_len, tokens = desc.batch * n;
    auto* number = reinterpret_cast<int32_t*>(carve.take(tokens));
    auto* span = reinterpret_cast<int32_t*>(carve.take(2 * tokens));
    auto* whole = reinterpret_cast<int32_t*>(carve.take(tokens));
    auto* ids = reinterpret_cast<int64_t*>(carve.take(2 * n));
    auto* runs = reinterpret_cast<int32_t*>(carve.take(n));
    for (int64_t item = 0; item < desc.batch; ++item) {
        int64_t count = 0;
        for (int64_t j = 0; j < n; ++j) {
            ids[j] = id_of(item, j);
            if (j == 0 || ids[j] != ids[j - 1]) runs[count++] = static_cast<int32_t>(j);
        }
        sort_runs(runs, count, ids);
        const auto end_of = [&](int64_t start) {
            int64_t end = start + 1;
            while (end < n && ids[end] == ids[start]) ++end;
            return end;
        };
        int32_t next = 0;
        for (int64_t at = 0; at < count;) {
            int64_t last = at + 1;
            while (last < count && ids[runs[last]] == ids[runs[at]]) ++last;
            const int64_t begin = runs[at], end = end_of(runs[last - 1]);
            const bool outside = ids[begin] < 0;
            for (int64_t run = at; run < last; ++run)
                for (int64_t j = runs[run]; j < n && ids[j] == ids[begin]; ++j) {
                    const int64_t place = item * n + j;
                    number[place] = outside ? -1 : next;
                    span[2 * place] = static_cast<int32_t>(begin);
                    span[2 * place + 1] = static_cast<int32_t>(end);
                    whole[place] = last == at + 1;
                }
            next += outside ? 0 : 1;
            at = last;
        }
    }
    keys.number = number;
    keys.span = span;
    keys.whole = whole;
}

// What can be wrong with numbers that the call brings.
inline attend_status check_tokens(const char* name, const ForwardArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* padding = attend_find_name(args.bindings, "padding_mask");
    for (int64_t item = 0; padding && args.key_lengths && item < desc.batch; ++item) {
        const int64_t length = integer_at(*args.key_lengths, item * args.key_lengths->strides[0]);
        for (int64_t j = 0; j < desc.kv_len; ++j) {
            const bool token =
                static_cast<const uint8_t*>(padding->data)[item * padding->strides[0] + j * padding->strides[1]] != 0;
            if (token != (j < length))
                return (Message() << name << ": padding_mask and key_lengths differ at item " << item << ", key " << j
                                  << "; accepted: one of them, or the same padding in both")
                    .fail(error, ATTEND_BAD_SHAPE, "padding_mask");
        }
    }
    const attend_tensor* offsets = attend_find_name(args.bindings, "segment_offsets");
    if (!offsets) return ATTEND_OK;
    const int64_t axis = offsets->ndim - 1, rows = offsets->ndim == 2 ? offsets->shape[0] : 1;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t at = 0, before = 0; at < offsets->shape[axis]; ++at) {
            const int64_t now =
                integer_at(*offsets, (axis ? row * offsets->strides[0] : 0) + at * offsets->strides[axis]);
            if (now < before || now > desc.kv_len)
                return (Message() << name << ": segment_offsets has " << now << " at " << at << ", behind " << before
                                  << "; accepted: numbers from 0 to " << desc.kv_len << " that do not decrease")
                    .fail(error, ATTEND_BAD_SHAPE, "segment_offsets");
            before = now;
        }
    return ATTEND_OK;
}

// Tables of whatever the call brings.
inline void read_tokens(TokenKeys& keys, const ForwardArgs& args, Carve& carve) {
    const attend_plan_desc& desc = *args.desc;
    if (const attend_tensor* padding = attend_find_name(args.bindings, "padding_mask"))
        read_padding(keys, *padding, desc, carve);
    if (const attend_tensor* ids = attend_find_name(args.bindings, "segment_ids"))
        read_segments(keys, desc, carve, [&](int64_t item, int64_t j) {
            return integer_at(*ids, item * ids->strides[0] + j * ids->strides[1]);
        });
    if (const attend_tensor* offsets = attend_find_name(args.bindings, "segment_offsets"))
        read_segments(keys, desc, carve, [&](int64_t item, int64_t j) {
            const int64_t axis = offsets->ndim - 1, row = axis ? item * offsets->strides[0] : 0;
            int64_t low = 0, high = offsets->shape[axis];  // finds the number of offsets at or below j
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (integer_at(*offsets, row + middle * offsets->strides[axis]) <= j)
                    low = middle + 1;
                else
                    high = middle;
            }
            return low == 0 || low == offsets->shape[axis] ? int64_t{-1} : low - 1;
        });
}

}  // namespace attend::ATTEND_ISA
