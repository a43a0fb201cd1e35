// SPDX-License-Identifier: Apache-2.0
// Before the first tile: means, scales and codes of keys, scales of queries and values, rounded rows. Each step is a
// loop over independent items, so results do not depend on the number of workers.
#pragma once

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/quantised/quantised_run.hpp"

namespace attend::ATTEND_ISA {

// The largest magnitude of rows, and whether all of their elements are finite.
struct Magnitude {
    Batch largest = Batch(0.0f), wild = Batch(0.0f);

    ATTEND_ALWAYS_INLINE void add(const Batch& x) {
        largest = max(largest, xsimd::abs(x));
        wild = fma(x, Batch(0.0f), wild);  // NaN where x is not finite
    }
    ATTEND_ALWAYS_INLINE void add_row(const float* row, int64_t count) {
        int64_t d = 0;
        for (; d + batch_lanes <= count; d += batch_lanes) add(load(row + d));
        if (d < count) add(load_tail(row + d, count - d));
    }
    bool finite() const { return all_lanes(wild == Batch(0.0f)); }
    float amax() const {
        float lanes[size_t{batch_lanes}], most = 0.0f;
        store(lanes, largest);
        for (const float lane : lanes) most = lane > most ? lane : most;
        return most;
    }
};

inline void report_wild(const QuantisedRun& run, int which, bool finite) {
    if (!finite) __atomic_store_n(run.not_finite + which, 1, __ATOMIC_RELAXED);
}

// fp64 sums over the valid rows in ascending order, some columns at a time.
inline void mean_of(const StoredView& from, int64_t item, int64_t head, int64_t rows, int64_t width, float* mean) {
    constexpr int64_t part = 256;
    for (int64_t first = 0; first < width; first += part) {
        const int64_t count = width - first < part ? width - first : part;
        double sums[part] = {};
        float room[part];
        for (int64_t at = 0; at < rows; ++at) {
            const char* const data = from.at(item, head, at) + first * from.strides[3];
            const float* const row = as_floats(from.storage, data, from.step(), count, room);
            for (int64_t d = 0; d < count; ++d) sums[d] += static_cast<double>(row[d]);
        }
        for (int64_t d = 0; d < count; ++d)
            mean[first + d] = rows == 0 ? 0.0f : static_cast<float>(sums[d] / static_cast<double>(rows));
    }
}

// Values of a key head: whether they are finite, their mean, their scales.
inline void prepare_values(const QuantisedRun& run, int64_t item, int64_t head) {
    const int64_t rows = run.key_length(item), width = run.value_dim, at = (item * run.kv_heads + head) * width;
    const StoredView& from = run.value;
    if (run.value_rows != nullptr && !run.smooth_values && run.values != Format::e4m3) return;
    float* const mean = run.smooth_values ? run.value_mean + at : nullptr;
    if (mean != nullptr) mean_of(from, item, head, rows, width, mean);
    constexpr int64_t part = 64;
    bool finite = true;
    for (int64_t first = 0; first < width; first += part) {
        const int64_t count = width - first < part ? width - first : part;
        float row[part], amax[part] = {}, wild[part] = {};
        for (int64_t j = 0; j < rows; ++j) {
            widen_row(from.storage, from.at(item, head, j) + first * from.strides[3], from.step(), count, row);
            for (int64_t c = 0; c < count; ++c) {
                wild[c] += row[c] * 0.0f;
                const float size = __builtin_fabsf(mean != nullptr ? row[c] - mean[first + c] : row[c]);
                amax[c] = size > amax[c] ? size : amax[c];
            }
        }
        for (int64_t c = 0; c < count; ++c) {
            finite = finite && wild[c] == 0.0f && amax[c] - amax[c] == 0.0f;
            if (run.values != Format::e4m3) continue;
            const GroupScale group = group_scale(amax[c], e4m3_largest);
            run.value_scales[at + first + c] = group.scale;
            run.value_inverse[at + first + c] = group.inverse;
        }
    }
    report_wild(run, 2, finite);
}

// A block of keys: its scale and codes. The scale is known after the last row.
inline void prepare_keys(const QuantisedRun& run, int64_t item, int64_t head, int64_t block, float* room) {
    const int64_t begin = block * run.block_k, valid = run.key_length(item);
    const int64_t end = begin + run.block_k < valid ? begin + run.block_k : valid;
    Magnitude magnitude;
    for (int64_t j = begin; j < end; ++j) {
        float* const row = room + (j - begin) * run.key_dim;
        run.turn_key(item, head, j, row);
        magnitude.add_row(row, run.key_dim);
    }
    const int64_t index = item * run.kv_heads + head;
    const GroupScale group = group_scale(magnitude.amax(), run.largest_code());
    run.key_scales[index * run.k_blocks + block] = group.scale;
    report_wild(run, 1, magnitude.finite());
    if (!magnitude.finite()) return;
    for (int64_t j = begin; j < end; ++j) {
        int8_t* codes = run.codes + (index * run.kv_len + j) * run.key_dim;
        run.encode(room + (j - begin) * run.key_dim, group.inverse, codes);
        if (run.code_sums == nullptr) continue;
        int32_t sum = 0;
        for (int64_t d = 0; d < run.key_dim; ++d) sum += codes[d];
        run.code_sums[index * run.kv_len + j] = sum;
    }
}

inline void prepare_queries(const QuantisedRun& run, int64_t item, int64_t head, int64_t block) {
    const int64_t begin = block * run.block_q, valid = run.query_length(item);
    const int64_t end = begin + run.block_q < valid ? begin + run.block_q : valid;
    alignas(64) float row[longest_row];
    Magnitude magnitude;
    for (int64_t i = begin; i < end; ++i) {
        run.turn_query(item, head, i, row);
        magnitude.add_row(row, run.key_dim);
    }
    const GroupScale group = group_scale(magnitude.amax(), run.largest_code());
    float* const to = run.query_scales + ((item * run.q_heads + head) * run.q_blocks + block) * 2;
    to[0] = group.scale;
    to[1] = group.inverse;
    report_wild(run, 0, magnitude.finite());
}

// Rounded rows of bf16: keys as they are, values by pairs of keys, zeros where they are not finite or past the length.
constexpr int64_t kept_block = 64;
inline void keep_rows(const QuantisedRun& run, int64_t item, int64_t head, int64_t block) {
    const int64_t index = item * run.kv_heads + head, valid = run.key_length(item), begin = block * kept_block;
    const int64_t end = begin + kept_block < run.kv_len ? begin + kept_block : run.kv_len;
    const int64_t last = end < valid ? end : valid;
    alignas(64) float rooms[2][longest_row + batch_lanes], zeros[longest_row + batch_lanes] = {};
    if (run.key_rows != nullptr)
        for (int64_t j = begin; j < last; ++j)
            round_to_bf16<block_dots>(
                as_floats(run.key.storage, run.key.at(item, head, j), run.key.step(), run.head_dim, rooms[0]),
                run.head_dim, run.key_rows + (index * run.kv_len + j) * run.head_dim);
    if (run.value_rows == nullptr) return;
    const int64_t first = index * run.value_dim;
    const float* const mean = run.smooth_values ? run.value_mean + first : nullptr;
    const float* const inverse = run.values == Format::e4m3 ? run.value_inverse + first : nullptr;
    uint32_t* const pairs = run.value_rows + (index * run.value_pair_rows() + begin / 2) * run.value_dim;
    bool all = true;
    for (int64_t j = begin; j < end; j += 2) {
        const float* rows[2] = {zeros, nullptr};
        for (int64_t at = 0; at < 2 && j + at < last; ++at) {
            const float* row = as_floats(run.value.storage, run.value.at(item, head, j + at), run.value.step(),
                                         run.value_dim, rooms[at]);
            Magnitude magnitude;
            magnitude.add_row(row, run.value_dim);
            const bool finite = magnitude.finite();
            if (run.wild_values != nullptr) run.wild_values[index * run.kv_len + j + at] = finite ? 0 : 1;
            all = all && finite;
            if (!finite) continue;
            if (mean != nullptr || inverse != nullptr) turn_values(row, run.value_dim, mean, inverse, rooms[at]);
            rows[at] = mean != nullptr || inverse != nullptr ? rooms[at] : row;
        }
        pair_rows_of_values<block_dots>(rows[0], rows[1], run.value_dim, pairs + (j - begin) / 2 * run.value_dim);
    }
    report_wild(run, 2, all);
}

inline attend_status prepare_means(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const QuantisedRun& run = *static_cast<const QuantisedRun*>(user);
    for (int64_t at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
        const int64_t item = at / run.kv_heads, head = at % run.kv_heads;
        if (run.smooth_keys)
            mean_of(run.key, item, head, run.key_length(item), run.head_dim, run.key_mean + at * run.head_dim);
        prepare_values(run, item, head);
    }
    return ATTEND_OK;
}
// Blocks of keys, of queries, of kept rows.
inline attend_status prepare_blocks(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const QuantisedRun& run = *static_cast<const QuantisedRun*>(user);
    const int64_t key_blocks = run.heads() * run.k_blocks;
    const int64_t query_blocks = run.batch * run.q_heads * run.q_blocks;
    for (int64_t at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
        if (at < key_blocks) {
            const int64_t index = at / run.k_blocks;
            prepare_keys(run, index / run.kv_heads, index % run.kv_heads, at % run.k_blocks,
                         run.room + slot * run.room_floats());
        } else if (at < key_blocks + query_blocks) {
            const int64_t other = at - key_blocks, index = other / run.q_blocks;
            prepare_queries(run, index / run.q_heads, index % run.q_heads, other % run.q_blocks);
        } else {
            const int64_t blocks = (run.kv_len + kept_block - 1) / kept_block;
            const int64_t other = at - key_blocks - query_blocks, index = other / blocks;
            keep_rows(run, index / run.kv_heads, index % run.kv_heads, other % blocks);
        }
    }
    return ATTEND_OK;
}

inline attend_status prepare(QuantisedRun& run, uint64_t seed, const attend_context* context) {
    for (int which = 0; which < 3; ++which) run.not_finite[which] = 0;
    int64_t blocks = 0;
    if (run.scaled()) {
        if (run.incoherent) fill_signs(seed, run.rotated, run.signs);
        const attend_status status = parallel_items(context, static_cast<uint64_t>(run.heads()), prepare_means, &run);
        if (status != ATTEND_OK) return status;
        blocks = run.heads() * run.k_blocks + run.batch * run.q_heads * run.q_blocks;
    }
    if (run.key_rows != nullptr || run.value_rows != nullptr)
        blocks += run.heads() * ((run.kv_len + kept_block - 1) / kept_block);
    return blocks == 0 ? ATTEND_OK : parallel_items(context, static_cast<uint64_t>(blocks), prepare_blocks, &run);
}

}  // namespace attend::ATTEND_ISA
