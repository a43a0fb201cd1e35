// SPDX-License-Identifier: Apache-2.0
// Options of rotary-mha, and the tables of cosines and sines that follow from them and from the positions of a call.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/position/rotary_table.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr double farthest = 9007199254740992.0;

struct Options {
    int32_t layout, scaling, keys_rotated;
    double base, low_freq_factor, high_freq_factor, beta_fast, beta_slow;
    OptionalReal scaling_factor, attention_factor;
    OptionalInt rotary_dim, original_max_position, position_offset, query_offset;
};

int64_t turned(const Options& options, const attend_plan_desc& desc) {
    return options.rotary_dim.given ? options.rotary_dim.value : desc.head_dim;
}
double factor_of(const Options& options) {
    return options.scaling_factor.given                   ? options.scaling_factor.value
           : options.scaling == RotaryFrequencies::llama3 ? 8.0
                                                          : 1.0;
}

// Tables of one call or of one plan: positions of the keys, then of the queries.
struct Tables {
    int64_t dim, key_rows, query_rows, first_query;  // rows of an item; the queries' first index
    int64_t key_items, query_items;                  // 1: one table for all items
    bool by_row, keys_rotated;                       // queries by row; no table of keys
    int64_t key_start, query_start;                  // position of index 0 (of row 0 where by_row)
    const attend_tensor *query_positions, *key_positions;

    Tables(const Options& options, const attend_plan_desc& desc, const attend_tensor* at_queries,
           const attend_tensor* at_keys)
        : dim(turned(options, desc)), key_rows(desc.kv_len), query_rows(desc.q_len), first_query(0) {
        query_positions = at_queries;
        key_positions = at_keys;
        keys_rotated = options.keys_rotated != 0;
        by_row = at_queries != nullptr || options.query_offset.given;
        key_items = at_keys != nullptr && at_keys->ndim == 2 ? desc.batch : 1;
        query_items = at_queries != nullptr && at_queries->ndim == 2 ? desc.batch : 1;
        key_start = options.position_offset.given ? options.position_offset.value : 0;
        query_start = options.query_offset.given ? options.query_offset.value : key_start;
        if (by_row) return;
        first_query = desc.causal_offset;
        if ((desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) == 0) return;
        first_query = -desc.q_len;
        query_rows = desc.kv_len + 2 * desc.q_len;
    }
    int64_t rows() const { return (keys_rotated ? 0 : key_items * key_rows) + query_items * query_rows; }
    uint64_t bytes() const { return Carve::floats(rows() * dim) + Carve::floats(dim); }
    float* queries_of(float* memory) const { return memory + (keys_rotated ? 0 : key_items * key_rows * dim); }

    double position(int64_t row) const {
        const int64_t keys = keys_rotated ? 0 : key_items * key_rows;
        const bool is_key = row < keys;
        if (!is_key) row -= keys;
        const attend_tensor* given = is_key ? key_positions : query_positions;
        const int64_t length = is_key ? key_rows : query_rows;
        if (given != nullptr) {
            const int64_t at = given->ndim == 2 ? row / length * given->strides[0] + row % length * given->strides[1]
                                                : row * given->strides[0];
            return given->dtype_bits == 64 ? static_cast<double>(static_cast<const int64_t*>(given->data)[at])
                                           : static_cast<double>(static_cast<const int32_t*>(given->data)[at]);
        }
        return static_cast<double>(row + (is_key ? key_start : query_start + first_query));
    }

    // 1 + the largest position of the call, padding included. Of a table for items with offsets of their own only the
    // rows between the items' first and last queries count.
    double positions(const ForwardArgs* args) const {
        double most = -farthest;
        const int64_t keys = keys_rotated ? 0 : key_items * key_rows;
        for (int64_t row = 0; row < keys; ++row) most = most > position(row) ? most : position(row);
        if (args == nullptr || by_row || (args->desc->flags & ATTEND_PLAN_OFFSET_PER_ITEM) == 0) {
            for (int64_t row = keys; row < rows(); ++row) most = most > position(row) ? most : position(row);
            return most + 1.0;
        }
        for (int64_t item = 0; item < args->desc->batch; ++item) {
            const int64_t offset = integer_at(args->key_lengths, item) - integer_at(args->query_lengths, item);
            const double last = static_cast<double>(query_start + offset + args->desc->q_len - 1);
            if (args->desc->q_len > 0) most = most > last ? most : last;
        }
        return most + 1.0;
    }
};

struct Filling {
    const Tables* tables;
    const double* frequencies;
    double size;
    float* rows;
};
attend_status fill_rows(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const Filling& filling = *static_cast<const Filling*>(user);
    const int64_t dim = filling.tables->dim;
    for (int64_t row = static_cast<int64_t>(begin); row < static_cast<int64_t>(end); ++row)
        rotary_row(filling.tables->position(row), filling.frequencies, dim, filling.size, filling.rows + row * dim);
    return ATTEND_OK;
}

// The rows, and behind them the frequencies.
attend_status fill(const Options& options, const Tables& tables, float* rows, double* frequencies, double positions,
                   const Context& context) {
    const bool llama = options.scaling == RotaryFrequencies::llama3;
    const double factor = factor_of(options);
    const RotaryFrequencies frequency{tables.dim,
                                      options.base,
                                      static_cast<RotaryFrequencies::Scaling>(options.scaling),
                                      factor,
                                      options.original_max_position.given
                                          ? static_cast<double>(options.original_max_position.value)
                                      : llama ? 8192.0
                                              : 2048.0,
                                      options.low_freq_factor,
                                      options.high_freq_factor,
                                      options.beta_fast,
                                      options.beta_slow,
                                      positions};
    for (int64_t t = 0; t < tables.dim / 2; ++t) frequencies[t] = frequency(t);
    double size = 1.0;
    if (options.scaling == RotaryFrequencies::yarn && factor > 1.0) size = 0.1 * ::log(factor) + 1.0;
    if (options.attention_factor.given) size = options.attention_factor.value;
    Filling filling{&tables, frequencies, size, rows};
    return parallel_items(&context, static_cast<uint64_t>(tables.rows()), fill_rows, &filling);
}

}  // namespace
}  // namespace attend::ATTEND_ISA
