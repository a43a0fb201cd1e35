// SPDX-License-Identifier: Apache-2.0
// One part of the keys of one key/value head for all of its query rows: scores, softmax, weighted values, block by
// block. What comes out is either the finished rows or, where the keys are split, a state to be merged.
#pragma once

#include "attend/toolkit/decode/head_rows.hpp"

namespace attend::ATTEND_ISA::decode {
template <int G, class Unit>
class Worker : public HeadRows {
public:
    Worker(const Run& run, const Scratch& scratch, int64_t batch, int64_t kv_head)
        : HeadRows(run, scratch, batch, kv_head, Unit::paired, ordered_row<Unit>) {}

    // Keys [begin, end) of the numbering through all segments.
    void forward(int64_t begin, int64_t end) {
        for (int64_t group = 0; group < sizes_.groups; ++group) start_softmax(scratch_.softmax(group));
        const int64_t acc_floats = sizes_.groups * G * sizes_.acc_stride;
        for (int64_t at = 0; at < acc_floats; at += batch_lanes) store(scratch_.acc + at, Batch(0.0f));
        if (rows_ == 0) return;
        pack_queries();
        int64_t first = 0;
        for (uint32_t index = 0; index < problem_.num_segments; ++index) {
            const attend_key_segment& segment = problem_.segments[index];
            const int64_t keys = segment_keys(problem_, index);
            const bool main = (segment.flags & ATTEND_SEGMENT_ALWAYS_VISIBLE) == 0;
            const int64_t low = main ? greater(begin, hull_begin_) : begin;
            const int64_t high = main ? lesser(end, hull_end_) : end;
            const int64_t from = greater(low - first, 0), to = lesser(high - first, keys);
            store_ = index == 0 ? problem_.store : nullptr;
            last_row_ = to - 1;
            for (int64_t row = from; row < to;) {
                // Blocks of pages begin with whole groups of keys.
                const int64_t lead = paged_ && row % page_unit != 0 ? page_unit - row % page_unit : sizes_.block;
                const int64_t count = lesser(lesser(sizes_.block, lead), to - row);
                block(segment, first, row, count, main);
                row += count;
            }
            first += keys;
        }
    }

    void write_part(float* to) const {
        const int64_t floats = sizes_.groups * G * sizes_.acc_stride;
        __builtin_memcpy(to, scratch_.acc, static_cast<size_t>(floats) * sizeof(float));
        to += floats;
        for (int64_t group = 0; group < sizes_.groups; ++group, to += 2 * G) {
            const SoftmaxState state = scratch_.softmax(group);
            __builtin_memcpy(to, state.row_max, G * sizeof(float));
            sum_lanes<G>(state.row_sum, to + G);
        }
    }

    void finish() {
        float sums[size_t{G}];
        for (int64_t row = 0; row < rows_; ++row) {
            const SoftmaxState state = scratch_.softmax(row / G);
            if (row % G == 0) sum_lanes<G>(state.row_sum, sums);
            finish_row(row, state.row_max[row % G], sums[row % G]);
        }
    }

private:
    void block(const attend_key_segment& segment, int64_t first_of_segment, int64_t row, int64_t keys, bool main) {
        const int64_t first = first_of_segment + row;
        bool masked = false;
        if (main && run_.mask.present && !mask_shows(first, keys, masked)) return;
        scores_of_keys(segment, row, keys);
        add_keys(segment, row, keys, modify_scores(first, keys, main, masked));
    }

    void scores_of_keys(const attend_key_segment& segment, int64_t row, int64_t keys) {
        const StoredRows stored = keys_of(segment);
        const int64_t bytes = sizes_.head_dim * (staged_ ? unit_bytes : element_bytes_);
        const float scale = static_cast<float>(problem_.scale);
        for (int64_t at = 0; at < keys;) {
            const Rows some = copied_ ? copied(stored, row + at, keys - at, sizes_.head_dim)
                                      : lying(stored, row + at, keys - at, bytes);
            for (int64_t group = 0; group < sizes_.groups; ++group) {
                const float* queries = scratch_.queries + group * query_floats_;
                float* to = scores_of(group) + at * G;
                if (staged_)
                    score_rows<G>(FloatUnit{}, some.row, some.stride, some.keys, queries, bytes, scale, to, some.ahead);
                else
                    score_rows<G>(Unit{}, some.row, some.stride, some.keys, queries, bytes, scale * some.scale, to,
                                  some.ahead);
            }
            at += some.keys;
        }
    }

    void add_keys(const attend_key_segment& segment, int64_t row, int64_t keys, bool hides) {
        const int64_t count = round_up(keys * G, 2 * batch_lanes);
        const StoredRows stored = values_of(segment);
        const Bytes value = reinterpret_cast<Bytes>(stored.at(row));
        for (int64_t group = 0; group < sizes_.groups; ++group) {
            float* scores = scores_of(group);
            for (int64_t at = keys * G; at < count; ++at) scores[at] = -infinity;
            if (hides)
                __builtin_memcpy(scratch_.kept + group * sizes_.score_floats(), scores,
                                 static_cast<size_t>(count) * sizeof(float));
            // Weights that are rounded to bf16 hide a shorter exponential; the logarithm of their sum would not.
            if (Unit::paired && problem_.lse == nullptr)
                update_softmax<G, false>(scores, count, scratch_.softmax(group), value);
            else
                update_softmax<G, true>(scores, count, scratch_.softmax(group), value);
#if ATTEND_HAS_DOTS
            if constexpr (Unit::paired) pair_weights<G>(scores, count, scratch_.pairs + group * sizes_.score_floats());
#endif
        }
        if (problem_.output == nullptr) return;
        const int64_t bytes = sizes_.value_dim * (staged_ ? unit_bytes : element_bytes_);
        for (int64_t at = 0; at < keys;) {
            const Rows some = copied_ ? copied(stored, row + at, keys - at, sizes_.value_dim)
                                      : lying(stored, row + at, lesser(sizes_.value_keys, keys - at), bytes);
            if constexpr (is_code(Unit::element) || (!Unit::paired && Unit::element != Element::f32)) {
                // What is not finite behind hidden keys is taken out of floats.
                bool wild = staged_;
                if (!staged_ && hides) {
                    wild = !(some.scale - some.scale == 0.0f);
                    for (int64_t key = 0; key < some.keys && !wild; ++key)
                        wild = is_wild<Unit>(some.row + key * some.stride, sizes_.value_dim);
                }
                if (wild) {
                    staged_values(stored, row + at, at, some.keys, hides);
                    at += some.keys;
                    continue;
                }
                values<Unit>(some, at, false);
            } else if (staged_) {
                values<FloatUnit>(some, at, hides);
            } else {
                values<Unit>(some, at, hides);
            }
            at += some.keys;
        }
    }

    // Keys [at, at + keys) of the block, widened first.
    void staged_values(const StoredRows& stored, int64_t row, int64_t at, int64_t keys, bool hides) {
        const bool before = staged_;
        staged_ = true;
        for (const int64_t end = at + keys; at < end;) {
            const Rows some = copied(stored, row, end - at, sizes_.value_dim);
            values<FloatUnit>(some, at, hides);
            at += some.keys;
            row += some.keys;
        }
        staged_ = before;
    }

    template <class Taken>
    void values(const Rows& some, int64_t at, bool hides) {
        const int64_t columns = sizes_.value_dim, keys = some.keys;
        Bytes value = some.row;
        int64_t stride = some.stride;
        bool wild = false;
        if (hides)
            for (int64_t key = 0; key < keys && !wild; ++key) wild = is_wild<Taken>(value + key * stride, columns);
        const Bytes given = value;
        const int64_t given_stride = stride;
        if (wild) {
            // Staged rows make room first: what was taken out is looked up again below.
            float* tame = copied_ || staged_ ? scratch_.stage + staged_block * columns : scratch_.stage;
            tame_rows<Taken>(value, stride, keys, columns, tame);
            value = reinterpret_cast<Bytes>(tame);
            stride = columns * (Taken::paired ? 2 : unit_bytes);
        }
        for (int64_t group = 0; group < sizes_.groups; ++group) {
            const float* weights = scores_of(group) + at * G;
            float* acc = scratch_.acc + group * G * sizes_.acc_stride;
            const float* pairs = scratch_.pairs + group * sizes_.score_floats() + at / 2 * G;
            const ValueRows rows{value,
                                 stride,
                                 some.ahead,
                                 keys,
                                 columns,
                                 Taken::paired ? pairs : weights,
                                 acc,
                                 sizes_.acc_stride,
                                 at == 0 ? scratch_.softmax(group).factor : nullptr,
                                 some.scale};
            add_values<G, Taken>(rows);
            if (wild)
                add_wild<G, Taken>(given, given_stride, keys, columns, weights,
                                   scratch_.kept + group * sizes_.score_floats() + at * G, acc, sizes_.acc_stride);
        }
    }
};

}  // namespace attend::ATTEND_ISA::decode
