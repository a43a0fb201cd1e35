// SPDX-License-Identifier: Apache-2.0
// What the hubs of star-attention need beside a pattern: a private key of each query, joined to its row when the row is
// finished, and the mean of a sequence as a hub.
#pragma once

#include <math.h>

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/tile/storage.hpp"

namespace attend::ATTEND_ISA {

// One more key and value for every query from position `first_position` on; hook `finish` of the engine, with the row's
// log-sum-exp. Weights of other keys shrink by `shares`, if there is room for them.
struct PrivateKeys {
    TensorView<const float, 4> key, value;  // [B, Hkv, Nq, *]
    StoredView query;
    int64_t head_dim, value_dim, q_heads, q_len, first_position;
    double scale, softcap;
    float* shares;  // [B, Hq, Nq]

    float score(int64_t b, int64_t h, int64_t kv_head, int64_t i, int64_t row) const {
        float sums[8] = {};
        const float* k = key.at(b, kv_head, i, 0);
        const char* q = query.at(b, h, row);
        for (int64_t d = 0; d < head_dim; d += 8) {
            float part[8] = {};
            const int64_t count = head_dim - d < 8 ? head_dim - d : 8;
            widen_row(query.storage, q + d * query.strides[3], query.step(), count, part);
            for (int64_t at = 0; at < count; ++at) sums[at] += part[at] * k[(d + at) * key.strides[3]];
        }
        double sum = 0.0;
        for (const float part : sums) sum += static_cast<double>(part);
        sum *= scale;
        return static_cast<float>(softcap > 0.0 ? softcap * ::tanh(sum / softcap) : sum);
    }

    static void finish(const void* user, const attend_finished_tile* tile) {
        const PrivateKeys& self = *static_cast<const PrivateKeys*>(user);
        const attend_query_tile& queries = *tile->queries;
        for (int64_t lane = 0; lane < queries.num_lanes; ++lane) {
            const int64_t i = queries.lane_query[lane], h = queries.lane_head[lane], b = queries.batch;
            float share = 1.0f;
            if (queries.lane_position[lane] >= self.first_position) {
                const double own = static_cast<double>(self.score(b, h, queries.kv_head, i, queries.lane_row[lane])),
                             rest = static_cast<double>(tile->lse[lane]);
                const double most = own > rest ? own : rest;
                const double total = most + ::log(::exp(own - most) + ::exp(rest - most));
                const auto of_own = static_cast<float>(::exp(own - total));
                share = static_cast<float>(::exp(rest - total));
                tile->lse[lane] = static_cast<float>(total);
                const float* value = self.value.at(b, queries.kv_head, i, 0);
                for (int64_t c = 0; c < self.value_dim; ++c) {
                    float& x = tile->values[c * queries.lane_stride + lane];
                    x = share * x + of_own * value[c * self.value.strides[3]];
                }
            }
            if (self.shares != nullptr) self.shares[(b * self.q_heads + h) * self.q_len + i] = share;
        }
    }
};

// Mean of the first `count` rows of [b, h], in double; nothing gives zeros.
inline void mean_rows(const attend_tensor& rows, int64_t b, int64_t h, int64_t count, float* to) {
    const StoredView view = stored_view(&rows);
    for (int64_t c = 0; c < rows.shape[3]; ++c) {
        double sum = 0.0;
        for (int64_t n = 0; n < count; ++n) {
            float x;
            widen_row(view.storage, view.at(b, h, n) + c * view.strides[3], 1, 1, &x);
            sum += static_cast<double>(x);
        }
        to[c] = count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
    }
}

// The means of an item do not exist where it has no keys: their key is hidden there.
struct HideHubs {
    const attend_tensor* key_lengths;
    int64_t kv_len;

    static void apply(const void* user, const attend_score_tile* tile) {
        const HideHubs& self = *static_cast<const HideHubs*>(user);
        if (tile->first_key < self.kv_len ||
            (self.kv_len > 0 && integer_at(self.key_lengths, tile->queries->batch) > 0))
            return;
        for (int64_t at = 0; at < tile->num_keys * tile->queries->lane_stride; ++at)
            tile->scores[at] = -__builtin_inff();
    }
};

}  // namespace attend::ATTEND_ISA
