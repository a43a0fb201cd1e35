// SPDX-License-Identifier: Apache-2.0
// One query tile from its queries to its outputs. V is the number of vectors that its lanes fill.
//
// The tile walks over ranges of keys in ascending order, cut into score tiles of at most key_tile rows: product,
// modifiers, softmax update, value product. A second walk with the final maximum and sum writes the weights.
#pragma once

#include "attend/toolkit/tile/dropout.hpp"
#include "attend/toolkit/tile/pipeline.hpp"
#include "attend/toolkit/tile/softmax_state.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"
#include "attend/toolkit/tile/values.hpp"

namespace attend::ATTEND_ISA {

// Which rows a tile holds: lane v is row v / pack, head first_head + v % pack.
struct TileRows {
    int64_t batch, kv_head, first_head, pack, begin, end;
};

template <int V>
class TileWorker {
public:
    static constexpr int64_t lanes = V * batch_lanes;

    TileWorker(const TileRun& run, const TileScratch& scratch, const TileRows& rows)
        : run_(run), problem_(*run.problem), scratch_(scratch), rows_(rows) {
        fill_lanes();
        limit_keys();
    }

    void forward() {
        start_softmax<V>(scratch_.row_max, scratch_.row_sum);
        for (int64_t lane = 0; lane < lanes; ++lane)
            scratch_.rows[lane] = run_.query.at(rows_.batch, scratch_.head[lane], row_of(lane), 0);
        load_lanes<V>(scratch_.rows, run_.query.strides[3], run_.sizes.head_dim, run_.scale, scratch_.queries);
        walk(Pass::forward);
        if (run_.lse.present)
            for (int64_t lane = 0; lane < tile_.num_lanes; ++lane)
                *run_.lse.at(rows_.batch, scratch_.head[lane], row_of(lane)) =
                    finish_lse(scratch_.row_max[lane], scratch_.row_sum[lane]);
        if (!run_.output.present) return;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            scratch_.factor[lane] = finish_factor(scratch_.row_sum[lane], 1.0f);
            scratch_.out_rows[lane] = run_.output.at(rows_.batch, scratch_.head[lane], row_of(lane), 0);
        }
        if (!started_)  // no score tile at all
            for (int64_t at = 0; at < run_.sizes.value_dim * lanes; ++at) scratch_.acc[at] = 0.0f;
        store_lanes<V>(scratch_.acc, run_.sizes.value_dim, scratch_.factor, scratch_.out_rows, run_.output.strides[3],
                       tile_.num_lanes);
    }

    // Writes the weights of each head's rows; entries of keys that are not visited must be zero already.
    void weights() {
        for (int64_t lane = 0; lane < lanes; ++lane)
            scratch_.factor[lane] = finish_factor(scratch_.row_sum[lane], 1.0f);
        walk(Pass::weights);
    }

    // Adds the weights to the mean over heads; the lanes hold one head.
    void add_weights() {
        for (int64_t lane = 0; lane < lanes; ++lane)
            scratch_.factor[lane] = finish_factor(scratch_.row_sum[lane], 1.0f);
        walk(Pass::add_weights);
    }

private:
    enum class Pass { forward, weights, add_weights };

    int64_t row_of(int64_t lane) const {
        const int64_t last = rows_.end - 1;
        return lesser(rows_.begin + lane, last) / rows_.pack;
    }

    void fill_lanes() {
        const int64_t last = rows_.end - 1;
        const bool per_item = (problem_.flags & ATTEND_TILE_OFFSET_PER_ITEM) != 0;
        offset_ = per_item
                      ? integer_at(problem_.key_lengths, rows_.batch) - integer_at(problem_.query_lengths, rows_.batch)
                      : problem_.causal_offset;
        int32_t first_position = INT32_MAX, last_position = INT32_MIN;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t v = lesser(rows_.begin + lane, last);
            const int64_t row = v / rows_.pack;
            const int64_t i = problem_.query_index != nullptr ? problem_.query_index[row] : row;
            const int32_t position = static_cast<int32_t>(clamp(i + offset_, -most_rows, most_rows));
            scratch_.query[lane] = static_cast<int32_t>(i);
            scratch_.head[lane] = static_cast<int32_t>(rows_.first_head + v % rows_.pack);
            scratch_.position[lane] = position;
            first_position = position < first_position ? position : first_position;
            last_position = position > last_position ? position : last_position;
            if (run_.mask.present) scratch_.mask_rows[lane] = run_.mask.at(rows_.batch, scratch_.head[lane], i, 0);
            if (run_.bias.present) scratch_.bias_rows[lane] = run_.bias.at(rows_.batch, scratch_.head[lane], i, 0);
        }
        tile_.batch = rows_.batch;
        tile_.kv_head = rows_.kv_head;
        tile_.num_lanes = rows_.end - rows_.begin;
        tile_.lane_stride = lanes;
        tile_.first_position = first_position;
        tile_.last_position = last_position;
        tile_.kv_len = problem_.key_lengths != nullptr ? key_row(integer_at(problem_.key_lengths, rows_.batch))
                                                       : run_.sizes.main_keys;
        tile_.lane_query = scratch_.query;
        tile_.lane_head = scratch_.head;
        tile_.lane_position = scratch_.position;
    }

    // Number of main rows whose key index is below j.
    int64_t key_row(int64_t j) const {
        if (problem_.key_index == nullptr) return clamp(j, 0, run_.sizes.main_keys);
        int64_t low = 0, high = run_.sizes.main_keys;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (problem_.key_index[middle] < j)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }

    // Rows [key_begin, key_end) per lane from causal, window and length; their hull; the rows that every lane sees.
    void limit_keys() {
        const bool causal = (problem_.flags & ATTEND_TILE_CAUSAL) != 0;
        const bool bounded = causal || problem_.window_left >= 0 || problem_.window_right >= 0;
        hull_begin_ = bounded ? run_.sizes.main_keys : 0;
        hull_end_ = bounded ? 0 : tile_.kv_len;
        full_begin_ = 0;
        full_end_ = tile_.kv_len;
        if (!bounded) return;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t position = scratch_.query[lane] + offset_;
            int64_t begin = 0, end = tile_.kv_len;
            if (causal) end = lesser(end, key_row(position + 1));
            if (problem_.window_right >= 0)
                end = lesser(end, key_row(position + lesser(problem_.window_right, far) + 1));
            if (problem_.window_left >= 0) begin = key_row(position - lesser(problem_.window_left, far));
            if (begin >= end) begin = end = 0;
            scratch_.key_begin[lane] = static_cast<int32_t>(begin);
            scratch_.key_end[lane] = static_cast<int32_t>(end);
            full_begin_ = greater(full_begin_, begin);
            full_end_ = lesser(full_end_, end);
            if (begin == end) continue;
            hull_begin_ = lesser(hull_begin_, begin);
            hull_end_ = greater(hull_end_, end);
        }
    }

    void walk(Pass pass) {
        pass_ = pass;
        if (problem_.keys != nullptr)
            problem_.keys(
                problem_.keys_user, &tile_,
                [](void* worker, int64_t begin, int64_t end, uint32_t flags) {
                    static_cast<TileWorker*>(worker)->main_range(begin, end, (flags & ATTEND_KEYS_PARTIAL) != 0);
                },
                this);
        else
            main_range(0, tile_.kv_len, false);
        int64_t first = run_.sizes.main_keys;
        for (uint32_t index = 0; index < problem_.num_segments; ++index) {
            const attend_key_segment& segment = problem_.segments[index];
            if ((segment.flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) == 0) continue;
            segment_range(segment, first, 0, segment.key->shape[2], false, false);
            first += segment.key->shape[2];
        }
    }

    void main_range(int64_t begin, int64_t end, bool partial) {
        begin = greater(begin, hull_begin_);
        end = lesser(end, hull_end_);
        int64_t first = 0;
        for (uint32_t index = 0; index < problem_.num_segments && first < end; ++index) {
            const attend_key_segment& segment = problem_.segments[index];
            if ((segment.flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) != 0) continue;
            const int64_t keys = segment.key->shape[2];
            segment_range(segment, first, greater(begin - first, 0), lesser(end - first, keys), true, partial);
            first += keys;
        }
    }

    // Rows [begin, end) of a segment whose first row has number `first`, in score tiles of equal size.
    void segment_range(const attend_key_segment& segment, int64_t first, int64_t begin, int64_t end, bool main,
                       bool partial) {
        if (begin >= end) return;
        const int64_t parts = divide_up(end - begin, run_.sizes.key_tile);
        const int64_t step = lesser(run_.sizes.key_tile, round_up(divide_up(end - begin, parts), tile_rows));
        for (; begin < end; begin += step) score_tile(segment, first, begin, lesser(step, end - begin), main, partial);
    }

    static const float* data_at(const attend_tensor* tensor, int64_t batch, int64_t head, int64_t row) {
        const int64_t item = tensor->shape[0] == 1 ? 0 : batch;
        return static_cast<const float*>(tensor->data) + item * tensor->strides[0] + head * tensor->strides[1] +
               row * tensor->strides[2];
    }

    void score_tile(const attend_key_segment& segment, int64_t first_of_segment, int64_t row, int64_t keys, bool main,
                    bool partial) {
        const int64_t first = first_of_segment + row;
        float* scores = scratch_.scores;
        const int32_t* key_index = main && problem_.key_index != nullptr ? problem_.key_index + first : nullptr;

        bool masked = false;
        if (main && run_.mask.present) {
            const Visible visible = gather_mask<V>(scratch_.mask, first, keys, scratch_.mask_rows, run_.mask.strides[3],
                                                   same_for_all_lanes(run_.mask), key_index);
            if (visible == Visible::none) return;
            masked = visible == Visible::some;
        }

        score_block<V>(data_at(segment.key, rows_.batch, rows_.kv_head, row), segment.key->strides[2],
                       segment.key->strides[3], keys, scratch_.queries, run_.sizes.head_dim, scores);
        if (run_.softcap > 0.0f) cap_scores<V>(scores, keys, run_.softcap);
        const attend_score_tile stored{&tile_, scores, first, keys, key_index};
        if (problem_.score != nullptr) problem_.score(problem_.score_user, &stored);

        bool hides = masked || (problem_.score != nullptr && (problem_.flags & ATTEND_TILE_SCORE_HIDES) != 0);
        if (main && run_.bias.present)
            hides |= add_bias<V>(scores, first, keys, scratch_.bias_rows, run_.bias.strides[3],
                                 same_for_all_lanes(run_.bias), key_index, scratch_.extra, scratch_.rows);
        if (masked) apply_mask<V>(scores, keys, scratch_.mask);
        if (main && (first < full_begin_ || first + keys > full_end_)) {
            hides = true;
            limit_scores(first, keys);
        }
        if (partial && problem_.keep != nullptr) {
            hides = true;
            problem_.keep(problem_.keep_user, &stored);
        }

        if (pass_ == Pass::forward)
            accumulate(segment, row, first, keys, key_index, hides);
        else
            write_weights(first, keys);
    }

    template <class T>
    bool same_for_all_lanes(const TensorView<T, 4>& view) const {
        return view.strides[2] == 0 && (view.strides[1] == 0 || rows_.pack == 1);
    }

    void limit_scores(int64_t first, int64_t keys) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            scratch_.limit_low[lane] = static_cast<float>(clamp(scratch_.key_begin[lane] - first, 0, keys));
            scratch_.limit_high[lane] = static_cast<float>(clamp(scratch_.key_end[lane] - first, 0, keys));
        }
        apply_limits<V>(scratch_.scores, keys, scratch_.limit_low, scratch_.limit_high, full_begin_ - first,
                        full_end_ - first);
    }

    void accumulate(const attend_key_segment& segment, int64_t row, int64_t first, int64_t keys,
                    const int32_t* key_index, bool hides) {
        const float* value = nullptr;
        const int64_t key_stride = segment.value->strides[2], column_stride = segment.value->strides[3];
        const int64_t value_dim = run_.sizes.value_dim;
        int64_t wild = keys;
        if (run_.output.present) {
            value = data_at(segment.value, rows_.batch, rows_.kv_head, row);
            if (hides) wild = next_wild_row(value, key_stride, column_stride, 0, keys, value_dim);
            if (wild < keys)
                __builtin_memcpy(scratch_.extra, scratch_.scores, static_cast<size_t>(keys * lanes) * sizeof(float));
        }
        update_softmax<V>(scratch_.scores, keys, scratch_.row_max, scratch_.row_sum, scratch_.factor);
        if (!run_.output.present) return;
        if (run_.dropout && (segment.flags & ATTEND_SEGMENT_NO_DROPOUT) == 0) {
            TileDropout dropout(run_, tile_, lanes);
            for (int64_t key = 0; key < keys; ++key)
                dropout.apply(scratch_.scores + key * lanes, key_index != nullptr ? key_index[key] : first + key);
        }
        const Into into = started_ ? Into::rescale : Into::overwrite;
        started_ = true;
        if (wild == keys)
            value_block<V>(value, key_stride, column_stride, keys, scratch_.scores, value_dim, scratch_.acc, into,
                           scratch_.factor);
        else
            wild_value_block<V>(value, key_stride, column_stride, keys, scratch_.scores, scratch_.extra, value_dim,
                                scratch_.acc, into, scratch_.factor, wild);
    }

    void write_weights(int64_t first, int64_t keys) {
        normalise_scores<V>(scratch_.scores, keys, scratch_.row_max, scratch_.factor);
        if (pass_ == Pass::weights) {
            for (int64_t lane = 0; lane < lanes; ++lane) {
                scratch_.out_rows[lane] = run_.scores.at(rows_.batch, scratch_.head[lane], row_of(lane), first);
                scratch_.limit_low[lane] = 1.0f;
            }
            store_lanes<V>(scratch_.scores, keys, scratch_.limit_low, scratch_.out_rows, run_.scores.strides[3],
                           tile_.num_lanes);
            return;
        }
        for (int64_t lane = 0; lane < tile_.num_lanes; ++lane) {
            float* sum = run_.average.at(rows_.batch, row_of(lane), first);
            for (int64_t key = 0; key < keys; ++key)
                sum[key * run_.average.strides[2]] += scratch_.scores[key * lanes + lane];
        }
    }

    static constexpr int64_t far = int64_t{1} << 40;  // a window this wide is unlimited, and sums with it stay in range

    const TileRun& run_;
    const attend_tile_problem& problem_;
    const TileScratch& scratch_;
    const TileRows rows_;
    attend_query_tile tile_{};
    int64_t offset_{0};
    int64_t hull_begin_{0}, hull_end_{0}, full_begin_{0}, full_end_{0};
    Pass pass_{Pass::forward};
    bool started_{false};
};

}  // namespace attend::ATTEND_ISA
