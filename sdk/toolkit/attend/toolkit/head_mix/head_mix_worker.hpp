// SPDX-License-Identifier: Apache-2.0
// One query tile with all its heads, from its queries to its outputs.
//
// Without post-mixing each softmax head has a value head of its own, and one sweep over the keys does, as in the tile
// engine. With it the weights of all softmax heads enter every value head, each with its own final sum, so the first sweep
// finds the sums and the second computes the scores again.
#pragma once

#include "attend/toolkit/head_mix/head_mix_problem.hpp"
#include "attend/toolkit/head_mix/mix_kernel.hpp"
#include "attend/toolkit/tile/dropout.hpp"
#include "attend/toolkit/tile/key_block.hpp"

namespace attend::ATTEND_ISA {

class HeadMixWorker {
public:
    // Queries [begin, end) of an item; none of them lies at or past the query length.
    HeadMixWorker(const HeadMixRun& run, const HeadMixScratch& scratch, int64_t batch, int64_t begin, int64_t end)
        : run_(run),
          problem_(*run.problem),
          sizes_(run.sizes),
          scratch_(scratch),
          values_(nullptr, scratch.values, nullptr, 0, run.sizes.value_dim, false),
          segment_{},
          batch_(batch),
          begin_(begin),
          num_lanes_(end - begin) {
        vectors_ = static_cast<int>(divide_up(num_lanes_, batch_lanes));
        lanes_ = vectors_ * batch_lanes;
        segment_.key = segment_.value = problem_.value;  // the block below reads values alone
        limit_keys();
    }

    void run() {
        load_queries();
        for (int64_t head = 0; head < sizes_.softmax_heads; ++head)
            by_vectors(vectors_, [&](auto v) { start_softmax<decltype(v)::count>(softmax(head)); });
        started_ = false;
        if (problem_.post_mix != nullptr) {
            walk(&HeadMixWorker::add_sums_of);
            for (int64_t at = 0; at < sizes_.softmax_heads * lanes_; ++at)
                scratch_.share[at] = finish_factor(scratch_.row_sum[at], 1.0f);
            walk(&HeadMixWorker::add_mixed);
        } else {
            walk(&HeadMixWorker::add_online);
        }
        finish();
    }

private:
    using Visit = void (HeadMixWorker::*)(int64_t first, int64_t keys);

    TileSoftmax softmax(int64_t head) const { return scratch_.softmax(head, lanes_); }
    float* tile(float* tiles, int64_t head) const { return tiles + head * sizes_.head_stride(); }

    // Keys [key_begin, key_end) per lane from causal, window and length; their hull; the keys that every lane sees.
    void limit_keys() {
        const bool causal = (problem_.flags & ATTEND_TILE_CAUSAL) != 0;
        const bool bounded = causal || problem_.window_left >= 0 || problem_.window_right >= 0;
        const bool per_item = (problem_.flags & ATTEND_TILE_OFFSET_PER_ITEM) != 0;
        const int64_t offset =
            per_item ? integer_at(problem_.key_lengths, batch_) - integer_at(problem_.query_lengths, batch_)
                     : problem_.causal_offset;
        const int64_t length =
            problem_.key_lengths != nullptr ? integer_at(problem_.key_lengths, batch_) : sizes_.kv_len;
        hull_begin_ = bounded ? length : 0;
        hull_end_ = bounded ? 0 : length;
        full_begin_ = 0;
        full_end_ = length;
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            const int64_t query = begin_ + lesser(lane, num_lanes_ - 1), position = query + offset;
            int64_t low = 0, high = length;
            if (causal) high = lesser(high, position + 1);
            if (problem_.window_right >= 0) high = lesser(high, position + lesser(problem_.window_right, far) + 1);
            if (problem_.window_left >= 0) low = greater(low, position - lesser(problem_.window_left, far));
            if (low >= high) low = high = 0;
            scratch_.query[lane] = static_cast<int32_t>(query);
            scratch_.key_begin[lane] = static_cast<int32_t>(low);
            scratch_.key_end[lane] = static_cast<int32_t>(high);
            full_begin_ = greater(full_begin_, low);
            full_end_ = lesser(full_end_, high);
            if (low == high) continue;
            hull_begin_ = lesser(hull_begin_, low);
            hull_end_ = greater(hull_end_, high);
        }
    }

    void load_queries() {
        const StoredView& query = run_.query;
        const int64_t head_dim = sizes_.head_dim;
        const bool narrow = query.storage != Storage::f32;
        for (int64_t head = 0; head < sizes_.score_heads; ++head) {
            for (int64_t lane = 0; lane < lanes_; ++lane) {
                const char* row = query.at(batch_, head, scratch_.query[lane]);
                float* wide = narrow ? scratch_.stage + lane * head_dim : nullptr;
                if (narrow) widen_row(query.storage, row, query.step(), head_dim, wide);
                scratch_.rows[lane] = narrow ? wide : reinterpret_cast<const float*>(row);
            }
            by_vectors(vectors_, [&](auto v) {
                load_lanes<decltype(v)::count>(scratch_.rows, narrow ? 1 : query.step(), head_dim, run_.scale,
                                               scratch_.queries + head * head_dim * lanes_);
            });
        }
    }

    // The hull in blocks of equal size.
    void walk(Visit visit) {
        if (hull_begin_ >= hull_end_) return;
        const int64_t keys = hull_end_ - hull_begin_, parts = divide_up(keys, sizes_.key_tile);
        const int64_t step = lesser(sizes_.key_tile, round_up(divide_up(keys, parts), 8));
        kept_ = keys <= step;
        for (int64_t first = hull_begin_; first < hull_end_; first += step)
            (this->*visit)(first, lesser(step, hull_end_ - first));
    }

    // Whether any softmax head sees any pair; what the masks say is kept for hide().
    bool gather_masks(int64_t first, int64_t keys) {
        const TensorView<const uint8_t, 4>& mask = run_.mask;
        bool any = false;
        for (int64_t head = 0; head < sizes_.softmax_heads; ++head) {
            if (head > 0 && mask.strides[1] == 0) {
                scratch_.visible[head] = scratch_.visible[0];
                continue;
            }
            for (int64_t lane = 0; lane < lanes_; ++lane)
                scratch_.mask_rows[lane] = mask.at(batch_, head, scratch_.query[lane], 0);
            const Visible visible = gather_mask(scratch_.mask + head * sizes_.key_tile * lanes_, lanes_, first, keys,
                                                scratch_.mask_rows, mask.strides[3], mask.strides[2] == 0, nullptr);
            scratch_.visible[head] = static_cast<uint8_t>(visible);
            any |= visible != Visible::none;
        }
        return any;
    }

    // The biases of a softmax head, transposed to [key][lane].
    void gather_bias(int64_t head, int64_t first, int64_t keys) {
        const TensorView<const float, 4>& bias = run_.bias;
        if (bias.strides[2] == 0) {
            for (int64_t key = 0; key < keys; ++key) {
                const Batch b(*bias.at(batch_, head, 0, first + key));
                for (int64_t lane = 0; lane < lanes_; lane += batch_lanes)
                    store(scratch_.extra + key * lanes_ + lane, b);
            }
            return;
        }
        for (int64_t lane = 0; lane < lanes_; ++lane)
            scratch_.rows[lane] = bias.at(batch_, head, scratch_.query[lane], first);
        by_vectors(vectors_, [&](auto v) {
            load_lanes<decltype(v)::count>(scratch_.rows, bias.strides[3], keys, 1.0f, scratch_.extra);
        });
    }

    // Soft cap, bias, mask and limits of a softmax head. Hiding selects: a NaN from a hidden key is gone.
    void hide(float* scores, int64_t head, int64_t first, int64_t keys) {
        const int64_t count = keys * lanes_;
        if (run_.softcap > 0.0f) cap_scores(scores, count, run_.softcap);
        if (run_.bias.present) {
            if (head == 0 || run_.bias.strides[1] != 0) gather_bias(head, first, keys);
            hides_ |= add_bias_tile(scores, count, scratch_.extra);
        }
        if (run_.mask.present && scratch_.visible[head] != static_cast<uint8_t>(Visible::all)) {
            hides_ = true;
            const int64_t at = run_.mask.strides[1] == 0 ? 0 : head * sizes_.key_tile * lanes_;
            apply_mask(scores, count, scratch_.mask + at);
        }
        if (first >= full_begin_ && first + keys <= full_end_) return;
        hides_ = true;
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            scratch_.limit_low[lane] = static_cast<float>(clamp(scratch_.key_begin[lane] - first, 0, keys));
            scratch_.limit_high[lane] = static_cast<float>(clamp(scratch_.key_end[lane] - first, 0, keys));
        }
        by_vectors(vectors_, [&](auto v) {
            apply_limits<decltype(v)::count>(scores, keys, scratch_.limit_low, scratch_.limit_high, full_begin_ - first,
                                             full_end_ - first);
        });
    }

    // The product of a score head: float32 keys as they lie, others widened.
    void score_keys(int64_t head, int64_t first, int64_t keys) {
        const StoredView& key = run_.key;
        const int64_t head_dim = sizes_.head_dim;
        const bool narrow = key.storage != Storage::f32;
        if (narrow)
            for (int64_t row = 0; row < keys; ++row)
                widen_row(key.storage, key.at(batch_, head, first + row), key.step(), head_dim,
                          scratch_.keys + row * head_dim);
        const float* rows = narrow ? scratch_.keys : reinterpret_cast<const float*>(key.at(batch_, head, first));
        const int64_t row_stride = narrow ? head_dim : key.strides[2] / storage_bytes(Storage::f32);
        by_vectors(vectors_, [&](auto v) {
            product<decltype(v)::count>(rows, row_stride, narrow ? 1 : key.step(), keys,
                                        scratch_.queries + head * head_dim * lanes_, head_dim, tile(current_, head));
        });
    }

    // Scores of all softmax heads as softmax meets them, in current_; false where nothing is visible.
    bool make_scores(int64_t first, int64_t keys) {
        hides_ = false;
        current_ = scratch_.scores;
        other_ = scratch_.mixed;
        if (run_.mask.present && !gather_masks(first, keys)) return false;
        for (int64_t head = 0; head < sizes_.score_heads; ++head) score_keys(head, first, keys);
        if (problem_.pre_mix != nullptr)
            mix(sizes_.score_heads, scratch_.pre_mix, problem_.pre_bias != nullptr ? scratch_.pre_bias : nullptr,
                sizes_.softmax_heads, keys);
        for (int64_t head = 0; head < sizes_.softmax_heads; ++head) hide(tile(current_, head), head, first, keys);
        return true;
    }

    void mix(int64_t count, const float* matrix, const float* bias, int64_t heads, int64_t keys) {
        by_vectors(vectors_, [&](auto v) {
            mix_heads<decltype(v)::count>(current_, sizes_.head_stride(), count, matrix, bias, heads, keys, other_);
        });
        float* const from = current_;
        current_ = other_;
        other_ = from;
    }

    void add_sums_of(int64_t first, int64_t keys) {
        visible_ = make_scores(first, keys);
        if (!visible_) return;
        for (int64_t head = 0; head < sizes_.softmax_heads; ++head)
            by_vectors(vectors_, [&](auto v) {
                sum_softmax<decltype(v)::count>(tile(current_, head), keys, run_.factor, softmax(head));
            });
    }

    void add_mixed(int64_t first, int64_t keys) {
        // The scores of a single block are still there.
        if (!kept_) visible_ = make_scores(first, keys);
        if (!visible_) return;
        const int64_t count = keys * lanes_;
        if (hides_)
            for (int64_t at = 0; at < count; at += batch_lanes) store(scratch_.seen + at, Batch(-infinity));
        for (int64_t head = 0; head < sizes_.softmax_heads; ++head) {
            float* const scores = tile(current_, head);
            if (hides_) mark_seen(scores, count, scratch_.seen);
            by_vectors(vectors_, [&](auto v) {
                finish_weights<decltype(v)::count>(scores, keys, run_.factor, softmax(head),
                                                   scratch_.share + head * lanes_);
            });
        }
        const bool biased = problem_.post_bias != nullptr;
        mix(sizes_.softmax_heads, scratch_.post_mix, biased ? scratch_.post_bias : nullptr, sizes_.value_heads, keys);
        for (int64_t head = 0; head < sizes_.value_heads; ++head) {
            if (biased && hides_) keep_seen(tile(current_, head), count, scratch_.seen);
            add_values(head, first, keys, scratch_.seen, started_ ? Into::add : Into::overwrite, nullptr);
        }
        started_ = true;
    }

    void add_online(int64_t first, int64_t keys) {
        if (!make_scores(first, keys)) return;
        for (int64_t head = 0; head < sizes_.value_heads; ++head) {
            float* const scores = tile(current_, head);
            const TileSoftmax state = softmax(head);
            if (hides_) __builtin_memcpy(scratch_.seen, scores, static_cast<size_t>(keys * lanes_) * sizeof(float));
            by_vectors(vectors_, [&](auto v) { update_softmax<decltype(v)::count>(scores, keys, run_.factor, state); });
            add_values(head, first, keys, scratch_.seen, started_ ? Into::rescale : Into::overwrite, state.rescale);
        }
        started_ = true;
    }

    // The value product of a head. hidden: minus infinity where values must not be touched, read if anything is hidden.
    void add_values(int64_t head, int64_t first, int64_t keys, const float* hidden, Into into, const float* rescale) {
        float* const weights = tile(current_, head);
        float* const acc = scratch_.acc + head * sizes_.value_dim * lanes_;
        if (run_.dropout.dropout) {
            for (int64_t lane = 0; lane < lanes_; ++lane) scratch_.lane_head[lane] = static_cast<int32_t>(head);
            attend_query_tile drawn{};
            drawn.batch = batch_;
            drawn.lane_query = scratch_.query;
            drawn.lane_head = scratch_.lane_head;
            TileDropout drop(run_.dropout, drawn, lanes_);
            for (int64_t key = 0; key < keys; ++key) drop.apply(weights + key * lanes_, first + key);
        }
        values_.take(segment_, batch_, head, first, first, keys);
        const bool wild = hides_ && values_.find_wild(0, keys);
        by_vectors(vectors_,
                   [&](auto v) { values_.values<decltype(v)::count>(0, keys, weights, lanes_, acc, into, rescale); });
        if (wild) values_.add_wild(0, keys, weights, hidden, lanes_, acc);
    }

    void finish() {
        if (run_.lse.present)
            for (int64_t head = 0; head < sizes_.softmax_heads; ++head)
                for (int64_t lane = 0; lane < num_lanes_; ++lane)
                    *run_.lse.at(batch_, head, scratch_.query[lane]) = finish_lse(softmax(head), lane, run_.factor);
        const bool mixed = problem_.post_mix != nullptr;
        const StoredView& output = run_.output;
        const bool narrow = output.storage != Storage::f32;
        for (int64_t head = 0; head < sizes_.value_heads; ++head) {
            float* const acc = scratch_.acc + head * sizes_.value_dim * lanes_;
            if (!started_)  // no visible block at all
                for (int64_t at = 0; at < sizes_.value_dim * lanes_; ++at) acc[at] = 0.0f;
            for (int64_t lane = 0; lane < lanes_; ++lane) {
                char* row = output.at(batch_, head, scratch_.query[lane]);
                scratch_.factor[lane] = mixed ? 1.0f : finish_factor(scratch_.row_sum[head * lanes_ + lane], 1.0f);
                scratch_.out_rows[lane] =
                    narrow ? scratch_.stage + lane * sizes_.value_dim : reinterpret_cast<float*>(row);
            }
            by_vectors(vectors_, [&](auto v) {
                store_lanes<decltype(v)::count>(acc, sizes_.value_dim, scratch_.factor, scratch_.out_rows,
                                                narrow ? 1 : output.step(), num_lanes_);
            });
            if (!narrow) continue;
            for (int64_t lane = 0; lane < num_lanes_; ++lane)
                narrow_row(output.storage, scratch_.out_rows[lane], sizes_.value_dim,
                           output.at(batch_, head, scratch_.query[lane]), output.step());
        }
    }

    static constexpr int64_t far = int64_t{1} << 40;  // a window this wide is unlimited, and sums with it stay in range

    const HeadMixRun& run_;
    const attend_head_mix_problem& problem_;
    const HeadMixSizes& sizes_;
    const HeadMixScratch& scratch_;
    KeyBlock values_;
    attend_key_segment segment_;
    int64_t batch_, begin_, num_lanes_;
    int vectors_{1};
    int64_t lanes_{0};
    int64_t hull_begin_{0}, hull_end_{0}, full_begin_{0}, full_end_{0};
    float *current_{nullptr}, *other_{nullptr};
    bool hides_{false}, visible_{false}, kept_{false}, started_{false};
};

}  // namespace attend::ATTEND_ISA
