// SPDX-License-Identifier: Apache-2.0
// Attention over segments of keys, and over the segments: each range of keys closes with a summary of its own, and the
// summaries meet in a second online softmax. Hooks of the tile engine for mechanisms that read in two levels.
//
//   c_s = attention over segment s, L_s its LSE;  e_s the segment's logit;  beta = softmax_s(e);  o = sum_s beta_s c_s
#pragma once

#include <math.h>

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/tile/scores/distance.hpp"

namespace attend::ATTEND_ISA {

enum class SegmentScore : int32_t { contextual, mean_key, lse, uniform };

// Segments [offsets[s], offsets[s + 1]) of keys, of one list or one for each item; or runs of `size` keys.
struct KeySegments {
    const attend_tensor* offsets;  // int32 or int64 [S + 1] or [B, S + 1], NULL: runs
    int64_t size, count, num_keys;

    int64_t begin(int64_t batch, int64_t s) const {
        if (offsets == nullptr) return s * size < num_keys ? s * size : num_keys;
        const int64_t at =
            offsets->ndim == 2 ? batch * offsets->strides[0] + s * offsets->strides[1] : s * offsets->strides[0];
        return offsets->dtype_bits == 64 ? static_cast<const int64_t*>(offsets->data)[at]
                                         : static_cast<const int32_t*>(offsets->data)[at];
    }
    // The segment of a key, -1 outside of all.
    int64_t of(int64_t batch, int64_t key) const {
        int64_t low = -1, high = count;  // begin(low) <= key < begin(high)
        while (high - low > 1) {
            const int64_t middle = (low + high) / 2;
            (begin(batch, middle) <= key ? low : high) = middle;
        }
        return low >= 0 && key < begin(batch, low + 1) ? low : -1;
    }
};

struct SegmentSoftmax {
    KeySegments segments;
    SegmentScore score;
    bool norm;
    int64_t head_dim, value_dim, width, first_head;  // width: Ds
    float scale, segment_scale;                      // scale: of the loaded queries
    TensorView<const float, 3> wq, wk;               // [H, Ds, D], [H, Ds, Dv]
    TensorView<const float, 4> query;                // [B, H, Nq, Ds] in place of wq q
    TensorView<const float, 1> gamma, beta;
    TensorView<float, 4> weights, logs;  // [B, H, Nq, S], or absent

    // A tile's memory, rows of lanes: m, l, number of segments closed, sum and count of raw scores, sum of w gamma, w . beta,
    // then acc [Dv], w gamma [Dv], and room for the query [Ds].
    static constexpr int64_t rows_ahead = 7;
    static int64_t memory_floats(int64_t value_dim, int64_t width) {
        return (rows_ahead + 2 * value_dim + width) * max_lanes;
    }
    static int64_t scratch_floats(SegmentScore score) { return score == SegmentScore::mean_key ? 128 * max_lanes : 0; }

    // Ranges are the segments, each closed; pairs count one by one where means of keys are wanted.
    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const SegmentSoftmax& self = *static_cast<const SegmentSoftmax*>(user);
        const uint32_t flags = self.score == SegmentScore::mean_key ? ATTEND_KEYS_PARTIAL : 0;
        for (int64_t s = 0; s < self.segments.count; ++s)
            visit_range(visitor, self.segments.begin(tile->batch, s), self.segments.begin(tile->batch, s + 1), flags);
    }

    static void prepare(const void* user, const attend_query_tile* tile) {
        static_cast<const SegmentSoftmax*>(user)->prepare_tile(*tile);
    }

    // Scores before soft cap, kept aside until it is known which pairs are hidden.
    static void keep_raw(const void*, const attend_score_tile* tile) {
        const int64_t count = tile->num_keys * tile->queries->lane_stride;
        for (int64_t at = 0; at < count; at += batch_lanes) store(tile->scratch + at, load(tile->scores + at));
    }
    static void add_visible(const void*, const attend_score_tile* tile) {
        const int64_t lanes = tile->queries->lane_stride;
        float *const sum = tile->queries->memory + 3 * lanes, *const count = sum + lanes;
        for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
            Batch total = load(sum + lane), number = load(count + lane);
            for (int64_t row = 0; row < tile->num_keys; ++row) {
                const Mask hidden = load(tile->scores + row * lanes + lane) == Batch(-infinity);
                total = total + choose(hidden, Batch(0.0f), load(tile->scratch + row * lanes + lane));
                number = number + choose(hidden, Batch(0.0f), Batch(1.0f));
            }
            store(sum + lane, total);
            store(count + lane, number);
        }
    }

    static void close(const void* user, const attend_finished_tile* tile) {
        static_cast<const SegmentSoftmax*>(user)->close_tile(*tile);
    }
    static void finish(const void* user, const attend_finished_tile* tile) {
        static_cast<const SegmentSoftmax*>(user)->finish_tile(*tile);
    }

private:
    void prepare_tile(const attend_query_tile& tile) const {
        const int64_t lanes = tile.lane_stride;
        float* const memory = tile.memory;
        for (int64_t at = 0; at < (rows_ahead + value_dim) * lanes; ++at) memory[at] = 0.0f;
        for (int64_t lane = 0; lane < lanes; ++lane) memory[lane] = -infinity;
        if (score != SegmentScore::contextual) return;
        float *const projected = memory + (rows_ahead + value_dim) * lanes, *const from = projected + value_dim * lanes;
        const int64_t head = first_head + tile.lane_head[0];
        if (query.present) {
            for (int64_t e = 0; e < width; ++e)
                for (int64_t lane = 0; lane < lanes; ++lane)
                    from[e * lanes + lane] =
                        *query.at(tile.batch, first_head + tile.lane_head[lane], tile.lane_row[lane], e);
        } else {
            tile_product(wq.at(head, 0, 0), wq.strides[1], wq.strides[2], width, tile.queries, head_dim, lanes, from);
        }
        tile_product(wk.at(head, 0, 0), wk.strides[2], wk.strides[1], value_dim, from, width, lanes, projected);
        // Queries were loaded times scale; gamma and beta of the norm go into the vector that summaries meet.
        const float share = segment_scale / (query.present ? 1.0f : scale);
        float *const sum = memory + 5 * lanes, *const shift = memory + 6 * lanes;
        for (int64_t c = 0; c < value_dim; ++c) {
            const float g = norm ? *gamma.at(c) : 1.0f, b = norm ? *beta.at(c) : 0.0f;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                float& at = projected[c * lanes + lane];
                shift[lane] += at * share * b;
                at *= share * g;
                sum[lane] += at;
            }
        }
    }

    // The logit of a closed segment for a vector of lanes.
    Batch logit(const attend_finished_tile& tile, int64_t lane) const {
        const int64_t lanes = tile.queries->lane_stride;
        const float* const memory = tile.queries->memory + lane;
        if (score == SegmentScore::lse) return load(tile.lse + lane);
        if (score == SegmentScore::uniform) return Batch(0.0f);
        if (score == SegmentScore::mean_key) return load(memory + 3 * lanes) / load(memory + 4 * lanes);
        const float *const summary = tile.values + lane, *const vector = memory + (rows_ahead + value_dim) * lanes;
        Batch mean(0.0f), dot(0.0f), square(0.0f);
        if (!norm) {
            for (int64_t c = 0; c < value_dim; ++c) dot = fma(load(summary + c * lanes), load(vector + c * lanes), dot);
            return dot;
        }
        for (int64_t c = 0; c < value_dim; ++c) mean = mean + load(summary + c * lanes);
        mean = mean * Batch(1.0f / static_cast<float>(value_dim));
        for (int64_t c = 0; c < value_dim; ++c) {
            const Batch off = load(summary + c * lanes) - mean;
            dot = fma(off, load(vector + c * lanes), dot);
            square = fma(off, off, square);
        }
        float deviation[batch_lanes];
        store(deviation, square * Batch(1.0f / static_cast<float>(value_dim)) + Batch(1e-5f));
        for (float& x : deviation) x = __builtin_sqrtf(x);
        return dot / load(deviation) + load(memory + 6 * lanes);
    }

    void close_tile(const attend_finished_tile& tile) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        float* const memory = queries.memory;
        const auto s = static_cast<int64_t>(memory[2 * lanes]);
        float logits[max_lanes];
        for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
            const Mask empty = load(tile.lse + lane) == Batch(-infinity);
            const Batch e = choose(empty, Batch(-infinity), logit(tile, lane));
            store(logits + lane, e);
            const Batch old = load(memory + lane), best = max(old, e);
            // Differences of minus infinity and itself are not asked for.
            const Mask nothing = best == Batch(-infinity);
            const Batch base = choose(nothing, Batch(0.0f), best);
            const Batch decay = exp(old - base), weight = exp(e - base);
            store(memory + lane, best);
            store(memory + lanes + lane, fma(load(memory + lanes + lane), decay, weight));
            float* const acc = memory + rows_ahead * lanes + lane;
            for (int64_t c = 0; c < value_dim; ++c) {
                const Batch part = choose(empty, Batch(0.0f), load(tile.values + c * lanes + lane));
                store(acc + c * lanes, fma(load(acc + c * lanes), decay, part * weight));
            }
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            memory[2 * lanes + lane] = static_cast<float>(s + 1);
            memory[3 * lanes + lane] = memory[4 * lanes + lane] = 0.0f;
            if (lane >= queries.num_lanes) continue;
            const int64_t head = first_head + queries.lane_head[lane], row = queries.lane_row[lane];
            if (weights.present) *weights.at(queries.batch, head, row, s) = logits[lane];
            if (logs.present) *logs.at(queries.batch, head, row, s) = tile.lse[lane];
        }
    }

    void finish_tile(const attend_finished_tile& tile) const {
        const attend_query_tile& queries = *tile.queries;
        const int64_t lanes = queries.lane_stride;
        const float* const memory = queries.memory;
        for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
            const Batch sum = load(memory + lanes + lane);
            const Mask empty = sum == Batch(0.0f);
            const Batch share = choose(empty, Batch(0.0f), Batch(1.0f) / sum);
            for (int64_t c = 0; c < value_dim; ++c)
                store(tile.values + c * lanes + lane, load(memory + (rows_ahead + c) * lanes + lane) * share);
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const float best = memory[lane], sum = memory[lanes + lane];
            tile.lse[lane] = sum == 0.0f ? -infinity : best + static_cast<float>(::log(static_cast<double>(sum)));
            if (!weights.present || lane >= queries.num_lanes) continue;
            for (int64_t s = 0; s < segments.count; ++s) {
                float& weight =
                    *weights.at(queries.batch, first_head + queries.lane_head[lane], queries.lane_row[lane], s);
                weight = weight == -infinity
                             ? 0.0f
                             : static_cast<float>(::exp(static_cast<double>(weight) - static_cast<double>(best)) /
                                                  static_cast<double>(sum));
            }
        }
    }
};

// Weights of tokens in a second run without ends of ranges: s + ln beta - L, whose softmax over all keys is beta alpha.
struct SegmentTokens {
    KeySegments segments;
    int64_t first_head;
    TensorView<const float, 4> weights, logs;

    static void apply(const void* user, const attend_score_tile* tile) {
        const SegmentTokens& self = *static_cast<const SegmentTokens*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        float add[max_lanes];
        int64_t known = -2;
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const int64_t s = self.segments.of(queries.batch, tile->first_key + row);
            if (s != known) {
                known = s;
                for (int64_t lane = 0; lane < lanes; ++lane) {
                    const int64_t head = self.first_head + queries.lane_head[lane], i = queries.lane_row[lane];
                    const float weight = s < 0 ? 0.0f : *self.weights.at(queries.batch, head, i, s);
                    add[lane] = weight > 0.0f
                                    ? static_cast<float>(::log(static_cast<double>(weight)) -
                                                         static_cast<double>(*self.logs.at(queries.batch, head, i, s)))
                                    : -infinity;
                }
            }
            float* const scores = tile->scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane)
                scores[lane] = add[lane] == -infinity ? -infinity : scores[lane] + add[lane];
        }
    }
};

}  // namespace attend::ATTEND_ISA
