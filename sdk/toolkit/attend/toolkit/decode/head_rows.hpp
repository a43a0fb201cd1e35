// SPDX-License-Identifier: Apache-2.0
// The query rows of one key/value head that are attended together, and the keys that they see: what does not depend on the
// type of the keys or the number of rows in a group, compiled once.
#pragma once

#include <math.h>

#include "attend/toolkit/decode/pipeline.hpp"

namespace attend::ATTEND_ISA::decode {

inline void* address(const attend_tensor& tensor, int64_t bytes, int64_t a, int64_t b, int64_t c) {
    const int64_t item = tensor.shape[0] == 1 ? 0 : a;
    return static_cast<char*>(tensor.data) +
           (item * tensor.strides[0] + b * tensor.strides[1] + c * tensor.strides[2]) * bytes;
}

class HeadRows {
public:
    using Order = const float* (*)(const float*, int64_t, float*);  // of the columns of an output row

    __attribute__((noinline))
    HeadRows(const Run& run, const Scratch& scratch, int64_t batch, int64_t kv_head, bool paired, Order order)
        : run_(run),
          sizes_(run.sizes),
          problem_(*run.problem),
          scratch_(scratch),
          batch_(batch),
          kv_head_(kv_head),
          paired_(paired),
          order_(order) {
        const attend_key_store* kept = problem_.store;
        element_bytes_ = bytes_of(sizes_.key);
        paged_ = kept != nullptr && kept->pages != nullptr;
        // Pages that hold no whole groups of keys: rows come together first.
        copied_ = paged_ && problem_.segments[0].key->shape[2] % page_unit != 0;
        staged_ =
            kept != nullptr && (kept->rounding != ATTEND_STORE_AS_IT_IS ||
                                (is_code(sizes_.key) &&
                                 (copied_ || (kept->scale_keys % page_unit != 0 &&
                                              (!paged_ || kept->scale_keys < problem_.segments[0].key->shape[2])))));
        copied_ = copied_ || staged_;
        const int64_t length =
            problem_.query_lengths != nullptr ? integer_at(problem_.query_lengths, batch) : sizes_.q_len;
        rows_ = lesser(length, sizes_.q_len) * sizes_.pack;
        fill_rows();
        limit_keys();
    }

    int64_t rows() const { return rows_; }
    // The keys of a part.
    int64_t part_begin(int64_t split) const {
        if (sizes_.split_unit == 0) return split * sizes_.split_keys;
        const int64_t units = divide_up(kv_len_, sizes_.split_unit);
        return lesser(split * divide_up(units, sizes_.splits) * sizes_.split_unit, kv_len_);
    }
    // Always-visible keys come with the last part.
    int64_t part_end(int64_t split) const {
        return sizes_.split_unit != 0 && split + 1 == sizes_.splits ? sizes_.all_keys : part_begin(split + 1);
    }

    // Parts of this head, in order: the largest maximum first, then sums of rescaled parts.
    __attribute__((noinline)) void merge_parts(const float* parts) {
        const int64_t group = sizes_.group, floats = sizes_.groups * group * sizes_.acc_stride;
        for (int64_t row = 0; row < rows_; ++row) {
            const int64_t place = floats + row / group * 2 * group + row % group;
            float best = -infinity;
            for (int64_t split = 0; split < sizes_.splits; ++split) {
                const float other = parts[split * sizes_.part_floats() + place];
                best = other > best ? other : best;
            }
            const float base = best == -infinity ? 0.0f : best;
            float* acc = scratch_.acc + row * sizes_.acc_stride;
            float sum = 0.0f;
            for (int64_t split = 0; split < sizes_.splits; ++split) {
                const float* part = parts + split * sizes_.part_floats();
                float scale[batch_lanes];
                store(scale, exp_nonpositive(Batch(part[place] - base)));
                const Batch factor(scale[0]);
                sum = __builtin_fmaf(part[place + group], scale[0], sum);
                const float* from = part + row * sizes_.acc_stride;
                for (int64_t at = 0; at < sizes_.acc_stride; at += batch_lanes) {
                    const Batch old = split == 0 ? Batch(0.0f) : load(acc + at);
                    store(acc + at, fma(load(from + at), factor, old));
                }
            }
            finish_row(row, best, sum);
        }
    }

    // Rows that are no query: zeros, LSE minus infinity.
    __attribute__((noinline)) void write_empty_rows() {
        for (int64_t at = 0; at < sizes_.acc_stride; at += batch_lanes) store(scratch_.ordered + at, Batch(0.0f));
        for (int64_t row = rows_; row < sizes_.rows; ++row) write(row, scratch_.ordered, 0.0f, -infinity);
    }

protected:
    static constexpr int64_t page_unit = most_group_keys;
    static constexpr int64_t far = int64_t{1} << 40;  // a window this wide is unlimited, and sums with it stay in range

    StoredRows keys_of(const attend_key_segment& segment) const {
        return {*segment.key, store_, store_ != nullptr ? store_->key_scale : nullptr, batch_, kv_head_};
    }
    StoredRows values_of(const attend_key_segment& segment) const {
        return {*segment.value, store_, store_ != nullptr ? store_->value_scale : nullptr, batch_, kv_head_};
    }
    int64_t head_of(int64_t row) const { return kv_head_ * sizes_.pack + row % sizes_.pack; }
    float* scores_of(int64_t group) const { return scratch_.scores + group * sizes_.score_floats(); }

    void fill_rows() {
        const bool per_item = (problem_.flags & ATTEND_TILE_OFFSET_PER_ITEM) != 0;
        kv_len_ = problem_.key_lengths != nullptr ? lesser(integer_at(problem_.key_lengths, batch_), sizes_.main_keys)
                                                  : sizes_.main_keys;
        const int64_t queries =
            problem_.query_lengths != nullptr ? integer_at(problem_.query_lengths, batch_) : sizes_.q_len;
        offset_ = per_item ? kv_len_ - queries : problem_.causal_offset;
        if (rows_ == 0) return;
        for (int64_t lane = 0; lane < sizes_.lane_stride; ++lane) {
            const int64_t row = lesser(lane, rows_ - 1), i = row / sizes_.pack;
            scratch_.query[lane] = static_cast<int32_t>(i);
            scratch_.head[lane] = static_cast<int32_t>(head_of(row));
            scratch_.position[lane] = static_cast<int32_t>(clamp(i + offset_, -most_rows, most_rows));
        }
        for (int64_t row = 0; row < rows_; ++row) {
            if (run_.mask.present) scratch_.mask[row] = run_.mask.at(batch_, head_of(row), row / sizes_.pack, 0);
            if (run_.bias.present) scratch_.bias[row] = run_.bias.at(batch_, head_of(row), row / sizes_.pack, 0);
        }
        tile_.batch = batch_;
        tile_.kv_head = kv_head_;
        tile_.num_lanes = rows_;
        tile_.lane_stride = sizes_.lane_stride;
        tile_.first_position = scratch_.position[0];
        tile_.last_position = scratch_.position[rows_ - 1];
        tile_.kv_len = kv_len_;
        tile_.lane_query = tile_.lane_row = scratch_.query;
        tile_.lane_head = scratch_.head;
        tile_.lane_position = scratch_.position;
    }

    // Keys per row from causal, window and length; their hull; the keys that every row sees.
    void limit_keys() {
        const bool causal = (problem_.flags & ATTEND_TILE_CAUSAL) != 0;
        hull_begin_ = sizes_.main_keys;
        full_end_ = kv_len_;
        for (int64_t row = 0; row < rows_; ++row) {
            const int64_t position = row / sizes_.pack + offset_;
            int64_t begin = 0, end = kv_len_;
            if (causal) end = clamp(position + 1, 0, end);
            if (problem_.window_right >= 0) end = clamp(position + lesser(problem_.window_right, far) + 1, 0, end);
            if (problem_.window_left >= 0) begin = greater(position - lesser(problem_.window_left, far), 0);
            if (begin >= end) begin = end = 0;
            scratch_.begin[row] = begin;
            scratch_.end[row] = end;
            full_begin_ = greater(full_begin_, begin);
            full_end_ = lesser(full_end_, end);
            if (begin == end) continue;
            hull_begin_ = lesser(hull_begin_, begin);
            hull_end_ = greater(hull_end_, end);
        }
    }

    // [group][step][q][lane], as score_rows reads it.
    __attribute__((noinline)) void pack_queries() {
        const int64_t units = paired_ ? divide_up(sizes_.head_dim, 2) : sizes_.head_dim;
        const int64_t group_floats = packed_steps(units) * sizes_.group * batch_lanes;
        for (int64_t at = 0; at < sizes_.groups * group_floats; at += batch_lanes)
            store(scratch_.queries + at, Batch(0.0f));
        const int64_t bytes = bytes_of(sizes_.query), stride = problem_.query->strides[3];
        for (int64_t row = 0; row < rows_; ++row) {
            const char* from =
                static_cast<const char*>(address(*problem_.query, bytes, batch_, head_of(row), row / sizes_.pack));
            float* to = scratch_.queries + row / sizes_.group * group_floats + row % sizes_.group * batch_lanes;
            int64_t done = 0;  // features
            if (stride == 1 && (paired_ || sizes_.query == Element::f32)) {
                const int64_t features = batch_lanes * unit_bytes / (paired_ ? 2 : 4);
                for (; done + features <= sizes_.head_dim; done += features, to += sizes_.group * batch_lanes)
                    store(to, load(reinterpret_cast<const float*>(from + done * bytes)));
            }
            for (int64_t lane = 0; done < sizes_.head_dim; ++lane) {
                float* unit = to + lane / batch_lanes * sizes_.group * batch_lanes + lane % batch_lanes;
                if (paired_) {
                    const uint16_t* x = reinterpret_cast<const uint16_t*>(from);
                    uint16_t pair[2] = {x[done * stride], 0};
                    if (done + 1 < sizes_.head_dim) pair[1] = x[(done + 1) * stride];
                    __builtin_memcpy(unit, pair, sizeof pair);
                    done += 2;
                } else {
                    *unit = element_at(from, done * stride, sizes_.query);
                    ++done;
                }
            }
        }
        query_floats_ = group_floats;
    }

    // Whether some row sees some key of the block, by the mask; `masked`: whether one is hidden.
    __attribute__((noinline)) bool mask_shows(int64_t first, int64_t keys, bool& masked) const {
        int64_t seen = 0;
        for (int64_t r = 0; r < rows_; ++r) {
            const Visible visible =
                visible_keys(scratch_.mask[r] + first * run_.mask.strides[3], run_.mask.strides[3], keys);
            seen += visible == Visible::none ? 0 : 1;
            masked |= visible != Visible::all;
            if (seen > 0 && masked) break;
        }
        return seen > 0;
    }

    // From products to what softmax reads. Returns whether pairs may be hidden.
    __attribute__((noinline)) bool modify_scores(int64_t first, int64_t keys, bool main, bool masked) {
        const int64_t group = sizes_.group;
        if (problem_.softcap > 0.0)
            for (int64_t at = 0; at < sizes_.groups; ++at)
                cap_scores(scores_of(at), keys * group, static_cast<float>(problem_.softcap));
        if (problem_.score != nullptr) call_hook(first, keys);
        bool hides = masked || (problem_.score != nullptr && (problem_.flags & ATTEND_TILE_SCORE_HIDES) != 0);
        const bool limited = main && (first < full_begin_ || first + keys > full_end_);
        for (int64_t r = 0; r < rows_; ++r) {
            float* scores = scores_of(r / group) + r % group;
            if (main && run_.bias.present)
                hides |= add_bias(scores, group, scratch_.bias[r] + first * run_.bias.strides[3], run_.bias.strides[3],
                                  keys);
            if (masked)
                apply_mask(scores, group, scratch_.mask[r] + first * run_.mask.strides[3], run_.mask.strides[3], keys);
            if (limited) apply_limits(scores, group, scratch_.begin[r] - first, scratch_.end[r] - first, keys);
        }
        return hides || limited;
    }

    // Keys from `row` on whose rows are a stride apart, and so are those that are fetched for them, `ahead` bytes behind.
    struct Rows {
        Bytes row;
        int64_t keys, stride, ahead;
        float scale;  // of codes
    };
    Rows lying(const StoredRows& stored, int64_t row, int64_t keys, int64_t bytes) const {
        Rows run{reinterpret_cast<Bytes>(stored.at(row)), keys, stored.stride(), 0, 1.0f};
        if (is_code(sizes_.key)) {
            run.scale = stored.scale_of(row);
            run.keys = lesser(run.keys, stored.scaled_alike(row));
        }
        run.ahead = run.stride == bytes ? ahead_bytes : (ahead_bytes / bytes + 1) * run.stride;
        if (!paged_ || !stored.paged()) return run;
        const int64_t next = row + round_up(divide_up(ahead_bytes, bytes), page_unit);
        run.keys = lesser(run.keys, stored.together(row));
        run.ahead = 0;
        if (next > last_row_) return run;
        run.keys = lesser(run.keys, stored.together(next));
        run.ahead = stored.at(next) - stored.at(row);
        return run;
    }
    // Their elements as they are, or as float32.
    Rows copied(const StoredRows& stored, int64_t row, int64_t keys, int64_t width) const {
        const int64_t bytes = width * (staged_ ? unit_bytes : element_bytes_), some = lesser(keys, staged_block);
        unsigned char* stage = reinterpret_cast<unsigned char*>(scratch_.stage);
        for (int64_t key = 0; key < some; ++key)
            if (staged_)
                stored.widen(row + key, width, scratch_.stage + key * width);
            else
                __builtin_memcpy(stage + key * bytes, stored.at(row + key), static_cast<size_t>(bytes));
        return {stage, some, bytes, ahead_bytes, 1.0f};
    }

    // The hook sees all rows side by side, as in a tile.
    void call_hook(int64_t first, int64_t keys) {
        const int64_t lanes = sizes_.lane_stride, group = sizes_.group;
        for (int64_t key = 0; key < keys; ++key)
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t r = lesser(lane, rows_ - 1);
                scratch_.tile[key * lanes + lane] = scores_of(r / group)[key * group + r % group];
            }
        const attend_score_tile stored{&tile_, scratch_.tile, first, keys, nullptr, nullptr, nullptr};
        problem_.score(problem_.score_user, &stored);
        for (int64_t r = 0; r < rows_; ++r)
            for (int64_t key = 0; key < keys; ++key)
                scores_of(r / group)[key * group + r % group] = scratch_.tile[key * lanes + r];
    }

    void finish_row(int64_t row, float row_max, float row_sum) {
        const float* acc = order_(scratch_.acc + row * sizes_.acc_stride, sizes_.value_dim, scratch_.ordered);
        if (row_sum == 0.0f)
            write(row, acc, 0.0f, -infinity);  // no key
        else
            write(row, acc, 1.0f / row_sum,
                  static_cast<float>(static_cast<double>(row_max) + ::log(static_cast<double>(row_sum))));
    }

    void write(int64_t row, const float* values, float factor, float lse) const {
        const int64_t head = head_of(row), i = row / sizes_.pack;
        if (problem_.output != nullptr)
            write_row(values, factor, sizes_.value_dim,
                      address(*problem_.output, bytes_of(sizes_.query), batch_, head, i), problem_.output->strides[3],
                      sizes_.query);
        if (problem_.lse != nullptr) *static_cast<float*>(address(*problem_.lse, 4, batch_, head, i)) = lse;
    }

    const Run& run_;
    const Sizes& sizes_;
    const attend_tile_problem& problem_;
    const Scratch& scratch_;
    const int64_t batch_, kv_head_;
    const bool paired_;
    const Order order_;
    const attend_key_store* store_{nullptr};
    bool staged_{false}, copied_{false}, paged_{false};
    int64_t last_row_{0};  // of the keys at hand
    int64_t element_bytes_{4}, rows_{0}, offset_{0}, kv_len_{0}, query_floats_{0};
    int64_t hull_begin_{0}, hull_end_{0}, full_begin_{0}, full_end_{0};
    attend_query_tile tile_{};
};

}  // namespace attend::ATTEND_ISA::decode
