// SPDX-License-Identifier: Apache-2.0
// Key iterator of interleaved text and media: key j belongs to medium m(j), counted from 1, and query i comes after
// text_time[i] media, which does not decrease with i.
//
//   immediate  visible where m(j) = text_time[i];  previous  visible where m(j) <= text_time[i]
//   m(j) = j / tokens_per_medium + 1, or media_index[j]
#pragma once

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

// Element (a, b) of a rank-2 tensor of int32 or int64, cut to what an int32 holds.
inline int32_t small_integer_at(const attend_tensor* tensor, int64_t a, int64_t b) {
    const int64_t offset = a * tensor->strides[0] + b * tensor->strides[1];
    if (tensor->dtype_bits == 32) return static_cast<const int32_t*>(tensor->data)[offset];
    const int64_t number = static_cast<const int64_t*>(tensor->data)[offset];
    return static_cast<int32_t>(number > INT32_MAX ? INT32_MAX : number < INT32_MIN ? INT32_MIN : number);
}

struct MediaKeys {
    const attend_tensor *text_time, *media_index;  // int [B, Nq]; int [B, Nk] or NULL
    int64_t tokens_per_medium, first_item;         // first_item: batch index of the problem's item 0
    bool previous;

    int32_t time(int64_t batch, int64_t i) const { return small_integer_at(text_time, first_item + batch, i); }
    int64_t medium(int64_t batch, int64_t j) const {
        return media_index != nullptr ? small_integer_at(media_index, first_item + batch, j)
                                      : j / tokens_per_medium + 1;
    }

    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const MediaKeys& self = *static_cast<const MediaKeys*>(user);
        int64_t least = INT32_MAX, most = 0;
        int32_t times[most_lanes];
        for (int64_t lane = 0; lane < tile->num_lanes; ++lane) {
            const int32_t t = self.time(tile->batch, tile->lane_query[lane]);
            times[lane] = t;
            least = t < least ? t : least;
            most = t > most ? t : most;
        }
        if (most < 1) return;
        RangeWriter out(tile->kv_len, visit_range, visitor);
        const uint32_t mixed = least == most ? 0u : ATTEND_KEYS_PARTIAL;
        if (self.media_index != nullptr) {
            for (int64_t j = 0; j < tile->kv_len; ++j) {
                const int64_t m = self.medium(tile->batch, j);
                if (m > most || (!self.previous && m < least)) continue;
                out.add(j, j + 1, self.previous && m <= least ? 0u : mixed);
            }
            return;
        }
        const int64_t n = self.tokens_per_medium;
        if (self.previous) {
            out.add(0, (least > 0 ? least : 0) * n, 0);
            out.add((least > 0 ? least : 0) * n, most * n, ATTEND_KEYS_PARTIAL);
            return;
        }
        // The distinct times of the lanes, ascending.
        for (int64_t now = 0; now < most;) {
            int64_t next = most;
            for (int64_t lane = 0; lane < tile->num_lanes; ++lane)
                if (times[lane] > now && times[lane] < next) next = times[lane];
            out.add((next - 1) * n, next * n, mixed);
            now = next;
        }
    }

    static void keep(const void* user, const attend_score_tile* tile) {
        const MediaKeys& self = *static_cast<const MediaKeys*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        int32_t times[most_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) times[lane] = self.time(queries.batch, queries.lane_query[lane]);
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const int64_t key = tile->key_index != nullptr ? tile->key_index[row] : tile->first_key + row;
            const int64_t number = self.medium(queries.batch, key);
            const auto m = static_cast<int32_t>(number > INT32_MAX ? INT32_MAX : number);
            float* scores = tile->scores + row * lanes;
            if (self.previous)
                for (int64_t lane = 0; lane < lanes; ++lane)
                    scores[lane] = times[lane] >= m ? scores[lane] : -__builtin_inff();
            else
                for (int64_t lane = 0; lane < lanes; ++lane)
                    scores[lane] = times[lane] == m ? scores[lane] : -__builtin_inff();
        }
    }
};

}  // namespace attend::ATTEND_ISA
