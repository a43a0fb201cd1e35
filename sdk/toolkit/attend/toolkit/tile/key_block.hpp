// SPDX-License-Identifier: Apache-2.0
// Keys and values of one score tile in the form that the products read, shared by all query tiles of a group.
//
//   float32                        as they lie in memory, with any strides
//   bf16 with hardware dots        keys as they lie; values interleaved by pairs of keys, once per block
//   bf16 otherwise, f16            widened to float32, once per block
#pragma once

#include "attend/toolkit/gemm/pair_kernel.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"
#include "attend/toolkit/tile/values.hpp"

namespace attend::ATTEND_ISA {

// f(a constant of type int) for a number of vectors from 1 to max_vectors.
template <int value>
struct Vectors {
    static constexpr int count = value;
};
template <class F>
ATTEND_ALWAYS_INLINE void by_vectors(int vectors, F f) {
    if (vectors == 3)
        f(Vectors<3>{});
    else if (vectors == 2)
        f(Vectors<2>{});
    else
        f(Vectors<1>{});
}

class KeyBlock {
public:
    // key_stage: [key_tile][head_dim] floats, needed for types other than float32; value_stage: [key_tile][value_dim].
    // gathered: [key_tile][head_dim + value_dim], needed for segments with a store. dots: products of bf16 pairs. In low
    // precision `quantised` says what products there are; rows: room for two rows.
    KeyBlock(float* key_stage, float* value_stage, float* gathered, int64_t head_dim, int64_t value_dim, bool dots,
             const QuantisedRun* quantised = nullptr, float* rows = nullptr)
        : key_stage_(key_stage),
          value_stage_(value_stage),
          gathered_(gathered),
          rows_(rows),
          head_dim_(quantised != nullptr ? quantised->key_dim : head_dim),
          value_dim_(value_dim),
          dots_(quantised != nullptr ? quantised->pairs : dots),
          pairs_(quantised != nullptr ? quantised->value_pairs : dots),
          quantised_(quantised) {}

    // Values were rounded before the first tile: blocks then begin at an even row.
    bool keeps_values() const { return quantised_ != nullptr && quantised_->value_rows != nullptr; }
    // Whether weights and values are multiplied as pairs of keys.
    bool pairs() const { return pairs_; }
    int64_t first() const { return first_; }
    int64_t count() const { return count_; }
    const attend_key_segment& segment() const { return *segment_; }
    const attend_key_block& described() const { return described_; }

    // Rows [row, row + count) of a segment, whose number on the key axis is `first`: the values; take_keys() is next.
    void take(const attend_key_segment& segment, int64_t batch, int64_t kv_head, int64_t row, int64_t first,
              int64_t count, const attend_key_store* store = nullptr) {
        segment_ = &segment;
        batch_ = batch;
        kv_head_ = kv_head;
        row_ = row;
        first_ = first;
        count_ = count;
        value_ = nullptr;
        searched_ = false;
        wilds_ = 0;
        store_ = store;
        if (store != nullptr) {
            // Rows come together once for all tiles of the group.
            const StoredRows keys(*segment.key, store, store->key_scale, batch, kv_head),
                values(*segment.value, store, store->value_scale, batch, kv_head);
            float* gathered_values = gathered_ + count * head_dim_;
            for (int64_t at = 0; at < count; ++at) {
                keys.widen(row + at, head_dim_, gathered_ + at * head_dim_);
                values.widen(row + at, value_dim_, gathered_values + at * value_dim_);
            }
            value_row_ = reinterpret_cast<const char*>(gathered_values);
            value_bytes_ = value_dim_ * 4;
            value_step_ = 1;
            storage_ = Storage::f32;
            return;
        }
        const StoredView value = stored_view(segment.value);
        value_row_ = value.at(batch, kv_head, row);
        value_bytes_ = value.strides[2];
        value_step_ = value.step();
        storage_ = value.storage;
    }

    // The keys of a softmax map for the same rows; copied: into memory of the block's own, for hooks that change them.
    void take_keys(int64_t map, bool copied) {
        if (quantised_ != nullptr) return take_quantised_keys();
        const int64_t count = count_;
        if (store_ != nullptr) {
            key_row_ = reinterpret_cast<const char*>(gathered_);
            key_bytes_ = head_dim_ * 4;
            key_ = gathered_;
            key_stride_ = head_dim_;
            feature_stride_ = 1;
            return;
        }
        const StoredView key = stored_view(segment_->map_key != nullptr ? segment_->map_key[map] : segment_->key);
        key_row_ = key.at(batch_, kv_head_, row_);
        key_bytes_ = key.strides[2];
        if (storage_ == Storage::f32 && !copied) {
            key_ = reinterpret_cast<const float*>(key_row_);
            key_stride_ = key.strides[2] / 4;
            feature_stride_ = key.step();
        } else if (!dots_) {
            for (int64_t at = 0; at < count; ++at)
                widen_row(storage_, key_row_ + at * key_bytes_, key.step(), head_dim_, key_stage_ + at * head_dim_);
            key_ = key_stage_;
            key_stride_ = head_dim_;
            feature_stride_ = 1;
        }
    }

    // What hooks see of the keys that were taken; positions are those of the tiles of the group.
    const attend_key_block& describe(int64_t map, int64_t first_position, int64_t last_position, float* memory) {
        described_ = attend_key_block{};
        described_.segment = segment_;
        described_.batch = batch_;
        described_.kv_head = kv_head_;
        described_.map = map;
        described_.first_key = first_;
        described_.num_keys = count_;
        described_.first_position = first_position;
        described_.last_position = last_position;
        described_.keys = dots_ ? nullptr : const_cast<float*>(key_);
        described_.row_stride = key_stride_;
        described_.feature_stride = feature_stride_;
        described_.memory = memory;
        return described_;
    }

    // scores[key][lane] of keys [begin, begin + keys) of the block: V vectors of lanes in rows of `lanes` floats.
    // lane_scale: of the queries, in the scaled formats.
    template <int V>
    void scores(int64_t begin, int64_t keys, const float* queries, const float* lane_scale, int64_t lanes, float* to,
                Ahead* ahead = nullptr) const {
        if (quantised_ != nullptr && quantised_->scores == Format::int8) {
            const uint32_t* x = reinterpret_cast<const uint32_t*>(queries);
            const int64_t element = quantised_->integers == Integers::bytes ? 1 : 2;
            const int32_t* const sums = code_sums_ != nullptr ? code_sums_ + begin : nullptr;
            return integer_product<V>(quantised_->integers,
                                      {key_row_ + begin * key_bytes_, key_bytes_, keys, key_scale_ + begin, sums, x,
                                       lane_scale, head_dim_ * element / 4, to, lanes, ahead});
        }
        plain_scores<V>(begin, keys, queries, lanes, to, ahead);
        if (quantised_ != nullptr && quantised_->scaled()) {
            for (int64_t row = 0; row < keys; ++row) {
                const Batch scale(key_scale_[begin + row]);
                ATTEND_UNROLL
                for (int v = 0; v < V; ++v) {
                    float* at = to + row * lanes + v * batch_lanes;
                    store(at, (load(lane_scale + v * batch_lanes) * scale) * load(at));
                }
            }
        }
    }
    template <int V>
    void plain_scores(int64_t begin, int64_t keys, const float* queries, int64_t lanes, float* to, Ahead* ahead) const {
        if (dots_)
            pair_product<V, block_dots>(key_row_ + begin * key_bytes_, key_bytes_, 4, keys,
                                        reinterpret_cast<const uint32_t*>(queries), head_dim_, to, Into::overwrite,
                                        nullptr, lanes, ahead);
        else
            product<V>(key_ + begin * key_stride_, key_stride_, feature_stride_, keys, queries, head_dim_, to,
                       Into::overwrite, nullptr, lanes, ahead);
    }

    // acc[c][lane] from weights[key][lane] of keys [begin, begin + keys) of the block; with dots the weights are pairs of
    // keys and begin is even.
    template <int V>
    void values(int64_t begin, int64_t keys, const float* weights, int64_t lanes, float* acc, Into into,
                const float* rescale, Ahead* ahead = nullptr) {
        load_values();
        if (pairs_)
            pair_values<V>(begin, keys, weights, lanes, acc, into, rescale, ahead);
        else
            product<V>(value_ + begin * value_stride_, column_stride_, value_stride_, value_dim_, weights, keys, acc,
                       into, rescale, lanes, ahead);
    }

    // Looks for value rows that hold NaN or infinity, once per block; from then on values() takes them as zeros, and
    // every tile adds them by itself where they are seen. Returns whether there are any in [begin, end).
    bool find_wild(int64_t begin, int64_t end) {
        if (!searched_ && keeps_values()) {
            searched_ = true;
            const QuantisedRun& run = *quantised_;
            const uint8_t* wild = run.wild_values + (batch_ * run.kv_heads + kv_head_) * run.kv_len + row_;
            for (int64_t at = 0; at < count_ && run.not_finite[2] != 0; ++at)
                if (wild[at] != 0) wild_[wilds_++] = static_cast<int16_t>(at);
        } else if (!searched_) {
            searched_ = true;
            if (!all_finite())
                for (int64_t at = 0; at < count_; ++at)
                    if (!stored_row_is_finite(at)) wild_[wilds_++] = static_cast<int16_t>(at);
            if (wilds_ > 0) value_ = nullptr;  // zeros in their place when they are loaded again
        }
        return wild_in(begin, end);
    }
    bool wild_in(int64_t begin, int64_t end) const {
        bool found = false;
        for (int64_t at = 0; at < wilds_; ++at) found |= wild_[at] >= begin && wild_[at] < end;
        return found;
    }

    // acc[c][lane] += v[c] weights[lane] of the wild rows in [begin, end), for the lanes that see them. weights and hidden
    // (the scores before softmax, minus infinity where a lane sees nothing) start at `begin`.
    void add_wild(int64_t begin, int64_t end, const float* weights, const float* hidden, int64_t lanes,
                  float* acc) const {
        for (int64_t at = 0; at < wilds_; ++at) {
            const int64_t row = wild_[at] - begin;
            if (row < 0 || row >= end - begin) continue;
            for (int64_t c = 0; c < value_dim_; ++c) {
                const Batch value(value_at(wild_[at], c));
                for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
                    float* sum = acc + c * lanes + lane;
                    const Batch weight =
                        pairs_ ? pair_weight(weights, row, lanes, lane) : load(weights + row * lanes + lane);
                    const Batch old = load(sum);
                    store(sum,
                          choose(load(hidden + row * lanes + lane) == Batch(-infinity), old, fma(value, weight, old)));
                }
            }
        }
    }

private:
    static Batch pair_weight(const float* weights, int64_t row, int64_t lanes, int64_t lane) {
        const Pairs pairs = load_pairs(weights + row / 2 * lanes + lane);
        return row % 2 == 0 ? low_halves(pairs) : high_halves(pairs);
    }

    float value_at(int64_t row, int64_t column) const {
        float value;
        widen_row(storage_, value_row_ + row * value_bytes_ + column * value_step_ * storage_bytes(storage_), 1, 1,
                  &value);
        const bool rounds = quantised_ != nullptr && quantised_->values == Format::bf16;
        return rounds ? bf16_to_float(float_to_bf16(value)) : value;
    }

    uint32_t* value_pairs() const { return reinterpret_cast<uint32_t*>(value_stage_); }
    // Pairs of the first keys: kept ones, which are not to be written, or those of the stage.
    const uint32_t* first_pairs() const {
        if (!keeps_values()) return value_pairs();
        const QuantisedRun& run = *quantised_;
        return run.value_rows + ((batch_ * run.kv_heads + kv_head_) * run.value_pair_rows() + row_ / 2) * value_dim_;
    }

    template <int V>
    void pair_values(int64_t begin, int64_t keys, const float* weights, int64_t lanes, float* acc, Into into,
                     const float* rescale, Ahead* ahead) const {
        const uint32_t* x = reinterpret_cast<const uint32_t*>(weights);
        const int64_t row_bytes = 4 * value_dim_;
        const uint32_t* pairs = first_pairs() + begin / 2 * value_dim_;
        // A range may end between the keys of a pair. The other one is hidden: it is not multiplied, not even by zero.
        const bool cut = keys % 2 != 0 && begin + keys < count_;
        const int64_t whole = cut ? keys - 1 : keys + keys % 2;
        if (whole > 0)
            pair_product<V, block_dots>(pairs, 4, row_bytes, value_dim_, x, whole, acc, into, rescale, lanes, ahead);
        if (!cut) return;
        uint32_t* last = value_pairs() + (count_ + 1) / 2 * value_dim_;
        for (int64_t c = 0; c < value_dim_; ++c) last[c] = pairs[whole / 2 * value_dim_ + c] & 0x0000FFFFu;
        pair_product<V, block_dots>(last, 4, row_bytes, value_dim_, x + whole / 2 * lanes, 2, acc,
                                    whole > 0 ? Into::add : into, rescale, lanes);
    }

    // The usual answer at the price of one sweep: no sum waits for another, and rows are not looked at one by one.
    bool all_finite() const {
        if (value_step_ != 1) return false;
        if (storage_ == Storage::f32) {
            Batch sums[4] = {Batch(0.0f), Batch(0.0f), Batch(0.0f), Batch(0.0f)};
            for (int64_t at = 0; at < count_; ++at) {
                const float* row = reinterpret_cast<const float*>(value_row_ + at * value_bytes_);
                int64_t c = 0;
                for (; c + 4 * batch_lanes <= value_dim_; c += 4 * batch_lanes) {
                    ATTEND_UNROLL
                    for (int k = 0; k < 4; ++k) sums[k] = fma(load(row + c + k * batch_lanes), Batch(0.0f), sums[k]);
                }
                for (; c + batch_lanes <= value_dim_; c += batch_lanes)
                    sums[0] = fma(load(row + c), Batch(0.0f), sums[0]);
                if (c < value_dim_) sums[1] = fma(load_tail(row + c, value_dim_ - c), Batch(0.0f), sums[1]);
            }
            return all_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]) == Batch(0.0f));
        }
        const uint16_t exponent = storage_ == Storage::bf16 ? 0x7F80 : 0x7C00;
        bool wild = false;
        if (value_bytes_ == 2 * value_dim_) {
            const uint16_t* half = reinterpret_cast<const uint16_t*>(value_row_);
            for (int64_t at = 0; at < count_ * value_dim_; ++at) wild |= (half[at] & exponent) == exponent;
            return !wild;
        }
        for (int64_t at = 0; at < count_ && !wild; ++at) wild = !stored_row_is_finite(at);
        return !wild;
    }

    bool stored_row_is_finite(int64_t at) const {
        const char* row = value_row_ + at * value_bytes_;
        if (storage_ == Storage::f32)
            return row_is_finite(reinterpret_cast<const float*>(row), value_step_, value_dim_);
        // Largest exponent: infinity or NaN.
        const uint16_t exponent = storage_ == Storage::bf16 ? 0x7F80 : 0x7C00;
        const uint16_t* half = reinterpret_cast<const uint16_t*>(row);
        bool wild = false;
        if (value_step_ == 1)
            for (int64_t c = 0; c < value_dim_; ++c) wild |= (half[c] & exponent) == exponent;
        else
            for (int64_t c = 0; c < value_dim_; ++c) wild |= (half[c * value_step_] & exponent) == exponent;
        return !wild;
    }

    // Keys of the block as products want them: codes as they lie or widened, or rows of bf16 or floats in the stage.
    void take_quantised_keys() {
        const QuantisedRun& run = *quantised_;
        const int64_t width = head_dim_, head = batch_ * run.kv_heads + kv_head_;
        if (run.scaled()) {
            const int8_t* codes = run.codes + (head * run.kv_len + row_) * width;
            for (int64_t at = 0; at < count_;) {
                const float scale = run.key_scale(batch_, kv_head_, row_ + at);
                const int64_t next = lesser(count_, (row_ + at) / run.block_k * run.block_k + run.block_k - row_);
                for (; at < next; ++at) key_scale_[at] = scale;
            }
            code_sums_ = run.code_sums != nullptr ? run.code_sums + head * run.kv_len + row_ : nullptr;
            if (run.scores == Format::int8 && run.integers == Integers::bytes) {
                key_row_ = reinterpret_cast<const char*>(codes);
                key_bytes_ = width;
            } else if (run.scores == Format::int8) {
                int16_t* words = reinterpret_cast<int16_t*>(key_stage_);
                for (int64_t at = 0; at < count_ * width; ++at) words[at] = codes[at];
                stage_rows(2 * width);
            } else if (dots_) {
                decode_bf16(codes, count_ * width, reinterpret_cast<uint16_t*>(key_stage_));
                stage_rows(2 * width);
            } else {
                decode_floats(codes, count_ * width, key_stage_);
                stage_floats();
            }
            return;
        }
        if (run.key_rows != nullptr) {
            key_row_ = reinterpret_cast<const char*>(run.key_rows + (head * run.kv_len + row_) * width);
            key_bytes_ = 2 * width;
            return;
        }
        const StoredView key = stored_view(segment_->key);
        key_row_ = key.at(batch_, kv_head_, row_);
        key_bytes_ = key.strides[2];
        if (dots_ && key.storage == Storage::bf16 && key.step() == 1) return;
        for (int64_t at = 0; at < count_; ++at) {
            const char* from = key_row_ + at * key_bytes_;
            const float* row = as_floats(key.storage, from, key.step(), width, rows_);
            if (dots_)
                round_to_bf16<block_dots>(row, width, reinterpret_cast<uint16_t*>(key_stage_) + at * width);
            else
                round_to_floats(row, width, key_stage_ + at * width);
        }
        dots_ ? stage_rows(2 * width) : stage_floats();
    }
    void stage_rows(int64_t bytes) {
        key_row_ = reinterpret_cast<const char*>(key_stage_);
        key_bytes_ = bytes;
    }
    void stage_floats() {
        key_ = key_stage_;
        key_stride_ = head_dim_;
        feature_stride_ = 1;
    }

    void load_values() {
        if (value_ != nullptr || keeps_values()) return;
        if (quantised_ != nullptr) return load_quantised_values();
        if (storage_ == Storage::f32 && wilds_ == 0) {
            value_ = reinterpret_cast<const float*>(value_row_);
            value_stride_ = value_bytes_ / 4;
            column_stride_ = value_step_;
            return;
        }
        value_ = value_stage_;
        value_stride_ = value_dim_;
        column_stride_ = 1;
        for (int64_t at = 0; at < count_; at += dots_ ? 2 : 1) {
            const char* row = value_row_ + at * value_bytes_;
            if (dots_)
                interleave_rows(reinterpret_cast<const uint16_t*>(row),
                                at + 1 < count_ ? reinterpret_cast<const uint16_t*>(row + value_bytes_) : nullptr,
                                value_step_, value_dim_, value_pairs() + at / 2 * value_dim_);
            else
                widen_row(storage_, row, value_step_, value_dim_, value_stage_ + at * value_dim_);
        }
        clear_wild();
    }
    // Values less their mean, on the grid of their format; those of e4m3 without their scales, which outputs get back.
    void load_quantised_values() {
        const QuantisedRun& run = *quantised_;
        const int64_t width = value_dim_, first = (batch_ * run.kv_heads + kv_head_) * width;
        const float* const mean = run.smooth_values ? run.value_mean + first : nullptr;
        const float* const inverse = run.values == Format::e4m3 ? run.value_inverse + first : nullptr;
        value_ = value_stage_;
        value_stride_ = width;
        column_stride_ = 1;
        for (int64_t at = 0; at < count_; at += pairs_ ? 2 : 1) {
            const float* rows[2] = {nullptr, nullptr};
            for (int64_t next = 0; next < (pairs_ ? 2 : 1) && at + next < count_; ++next) {
                float* const room = rows_ + next * width;
                const char* const from = value_row_ + (at + next) * value_bytes_;
                rows[next] = as_floats(storage_, from, value_step_, width, room);
                if (mean == nullptr && inverse == nullptr) continue;
                turn_values(rows[next], width, mean, inverse, room);
                rows[next] = room;
            }
            if (pairs_)
                pair_rows_of_values<block_dots>(rows[0], rows[1], width, value_pairs() + at / 2 * width);
            else if (run.values == Format::bf16)
                round_to_floats(rows[0], width, value_stage_ + at * width);
            else
                __builtin_memcpy(value_stage_ + at * width, rows[0], static_cast<size_t>(width) * sizeof(float));
        }
        clear_wild();
    }

    void clear_wild() {
        for (int64_t at = 0; at < wilds_; ++at) {
            const int64_t row = wild_[at];
            for (int64_t c = 0; c < value_dim_; ++c)
                if (pairs_)
                    value_pairs()[row / 2 * value_dim_ + c] &= row % 2 == 0 ? 0xFFFF0000u : 0x0000FFFFu;
                else
                    value_stage_[row * value_dim_ + c] = 0.0f;
        }
    }

    float *key_stage_, *value_stage_, *gathered_, *rows_;
    int64_t head_dim_, value_dim_;
    bool dots_, pairs_;
    const QuantisedRun* quantised_;
    const int32_t* code_sums_{nullptr};
    float key_scale_[size_t{default_key_tile}];
    const attend_key_segment* segment_{nullptr};
    const attend_key_store* store_{nullptr};
    attend_key_block described_{};
    int64_t batch_{0}, kv_head_{0}, row_{0}, first_{0}, count_{0};
    bool searched_{false};
    int64_t wilds_{0};
    int16_t wild_[size_t{default_key_tile}];
    const char *key_row_{nullptr}, *value_row_{nullptr};
    int64_t key_bytes_{0}, value_bytes_{0}, value_step_{1};
    Storage storage_{Storage::f32};
    const float *key_{nullptr}, *value_{nullptr};  // value_: NULL until it is needed
    int64_t key_stride_{0}, feature_stride_{1}, value_stride_{0}, column_stride_{1};
};

}  // namespace attend::ATTEND_ISA
