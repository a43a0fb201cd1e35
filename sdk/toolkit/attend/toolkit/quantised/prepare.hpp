// SPDX-License-Identifier: Apache-2.0
// Before the first tile of a scaled format: means, scales and codes of keys, scales of queries and values. Each step is
// a loop over independent items, so results do not depend on the number of workers.
#pragma once

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/quantised/quantised_run.hpp"

namespace attend::ATTEND_ISA {

// Largest magnitude of a row joined with `amax`; NaN and infinity show in `finite`.
inline float largest_magnitude(const float* row, int64_t count, float amax, bool& finite) {
    float wild = 0.0f;
    for (int64_t d = 0; d < count; ++d) {
        const float size = __builtin_fabsf(row[d]);
        amax = size > amax ? size : amax;
        wild += row[d] * 0.0f;
    }
    finite = finite && wild == 0.0f;
    return amax;
}

inline void report_wild(const QuantisedRun& run, int which, bool finite) {
    if (!finite) __atomic_store_n(run.not_finite + which, 1, __ATOMIC_RELAXED);
}

// fp64 sums over the valid rows in ascending order, 64 columns at a time.
inline void mean_of(const StoredView& from, int64_t item, int64_t head, int64_t rows, int64_t width, float* mean) {
    constexpr int64_t part = 64;
    for (int64_t first = 0; first < width; first += part) {
        const int64_t count = width - first < part ? width - first : part;
        double sums[part] = {};
        float row[part];
        for (int64_t at = 0; at < rows; ++at) {
            widen_row(from.storage, from.at(item, head, at) + first * from.strides[3], from.step(), count, row);
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

// A block of keys: its scale and codes. Rows are turned twice, since the scale is known after the last.
inline void prepare_keys(const QuantisedRun& run, int64_t item, int64_t head, int64_t block) {
    const int64_t begin = block * run.block_k, valid = run.key_length(item);
    const int64_t end = begin + run.block_k < valid ? begin + run.block_k : valid;
    alignas(64) float row[longest_row];
    float amax = 0.0f;
    bool finite = true;
    for (int64_t j = begin; j < end; ++j) {
        run.turn_key(item, head, j, row);
        amax = largest_magnitude(row, run.key_dim, amax, finite);
    }
    const int64_t index = item * run.kv_heads + head;
    const GroupScale group = group_scale(amax, run.largest_code());
    run.key_scales[index * run.k_blocks + block] = group.scale;
    report_wild(run, 1, finite);
    if (!finite) return;
    for (int64_t j = begin; j < end; ++j) {
        int8_t* codes = run.codes + (index * run.kv_len + j) * run.key_dim;
        run.turn_key(item, head, j, row);
        run.encode(row, group.inverse, codes);
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
    float amax = 0.0f;
    bool finite = true;
    for (int64_t i = begin; i < end; ++i) {
        run.turn_query(item, head, i, row);
        amax = largest_magnitude(row, run.key_dim, amax, finite);
    }
    const GroupScale group = group_scale(amax, run.largest_code());
    float* const to = run.query_scales + ((item * run.q_heads + head) * run.q_blocks + block) * 2;
    to[0] = group.scale;
    to[1] = group.inverse;
    report_wild(run, 0, finite);
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
// Blocks of keys, then blocks of queries.
inline attend_status prepare_blocks(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const QuantisedRun& run = *static_cast<const QuantisedRun*>(user);
    const int64_t key_blocks = run.heads() * run.k_blocks;
    for (int64_t at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
        if (at < key_blocks) {
            const int64_t index = at / run.k_blocks;
            prepare_keys(run, index / run.kv_heads, index % run.kv_heads, at % run.k_blocks);
        } else {
            const int64_t other = at - key_blocks, index = other / run.q_blocks;
            prepare_queries(run, index / run.q_heads, index % run.q_heads, other % run.q_blocks);
        }
    }
    return ATTEND_OK;
}

inline attend_status prepare(QuantisedRun& run, uint64_t seed, const attend_context* context) {
    if (run.incoherent) fill_signs(seed, run.rotated, run.signs);
    for (int which = 0; which < 3; ++which) run.not_finite[which] = 0;
    attend_status status = parallel_items(context, static_cast<uint64_t>(run.heads()), prepare_means, &run);
    if (status != ATTEND_OK) return status;
    const int64_t blocks = run.heads() * run.k_blocks + run.batch * run.q_heads * run.q_blocks;
    return parallel_items(context, static_cast<uint64_t>(blocks), prepare_blocks, &run);
}

}  // namespace attend::ATTEND_ISA
