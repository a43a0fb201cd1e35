// SPDX-License-Identifier: Apache-2.0
// What a call in low precision knows beside the tile problem: formats, codes and scales, and how a row becomes them.
//
// Keys of the scaled formats are stored as codes, one byte each; queries are quantised again whenever a tile loads them.
// Where products are those of bf16 pairs and many queries share the keys, values (and keys of bf16) are rounded once and
// kept in 16 bits; elsewhere whenever a group of tiles takes up a block.
#pragma once

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/quantised.h"
#include "attend/toolkit/quantised/formats.hpp"
#include "attend/toolkit/quantised/integer_kernel.hpp"
#include "attend/toolkit/quantised/rotation.hpp"
#include "attend/toolkit/tile/storage.hpp"

namespace attend::ATTEND_ISA {

enum class Format : uint32_t {
    none = ATTEND_ROUND_NONE,
    bf16 = ATTEND_ROUND_BF16,
    int8 = ATTEND_ROUND_INT8,
    e4m3 = ATTEND_ROUND_E4M3
};

struct QuantisedRun {
    Format scores, weights, values;
    bool smooth_keys, incoherent, smooth_values;
    bool pairs;  // hardware products of bf16 pairs: scores of bf16 and e4m3, and values unless something is float32
    bool value_pairs;
    Integers integers;  // how int8 codes are multiplied
    bool adds_shift;    // to scores, before the soft cap; else to lse
    int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim;
    int64_t rotated;  // elements of a row that take part in the rotation
    int64_t key_dim;  // elements of a row as products see it: the head's, padded with zeros
    int64_t block_q, block_k, q_blocks, k_blocks;
    float scale;
    float value_factor;  // what takes scales of weights and of dropout out of the outputs
    StoredView query, key, value;
    const attend_tensor *query_lengths, *key_lengths;
    // Filled before the first tile; NULL where a format has no need of it.
    int8_t* codes;        // [B, Hkv, Nk, key_dim]
    int32_t* code_sums;   // [B, Hkv, Nk]
    float* key_scales;    // [B, Hkv, k_blocks]
    float* query_scales;  // [B, Hq, q_blocks]; the inverse behind each: [.., 2]
    float* key_mean;      // [B, Hkv, D]
    float* value_mean;    // [B, Hkv, Dv]
    float* value_scales;  // [B, Hkv, Dv]
    float* value_inverse;
    float* signs;          // [rotated]
    uint16_t* key_rows;    // [B, Hkv, Nk, D], of bf16
    uint32_t* value_rows;  // [B, Hkv, pairs of keys, Dv] as products read them; rows that are not finite are zero
    uint8_t* wild_values;  // [B, Hkv, Nk]: the row is not finite; of bf16
    float* room;           // [workers][room_floats]: rows of a block that wait for its scale
    int32_t* not_finite;   // [3]: query, key, value

    bool scaled() const { return scores == Format::int8 || scores == Format::e4m3; }
    int64_t heads() const { return batch * kv_heads; }
    int64_t query_length(int64_t item) const {
        return query_lengths != nullptr ? integer_at(query_lengths, item) : q_len;
    }
    int64_t key_length(int64_t item) const { return key_lengths != nullptr ? integer_at(key_lengths, item) : kv_len; }
    int64_t kv_head_of(int64_t q_head) const { return q_head * kv_heads / q_heads; }
    int64_t value_pair_rows() const { return (kv_len + 1) / 2; }
    int64_t room_floats() const { return block_k * key_dim; }
    float largest_code() const { return scores == Format::int8 ? 127.0f : e4m3_largest; }

    // Whether rounded rows are kept. With few queries they are read as often as the tensors themselves.
    static constexpr int64_t many_queries = 512;
    bool keeps_rows() const { return pairs && value_dim <= most_rotated && q_len * q_heads >= many_queries * kv_heads; }

    static void take(Workspace& space, QuantisedRun& run, int64_t workers) {
        const int64_t heads = run.heads();
        if (run.keeps_rows()) {
            if (!run.scaled() && (run.key.storage != Storage::bf16 || run.key.step() != 1))
                run.key_rows = space.take<uint16_t>(heads * run.kv_len * run.head_dim);
            if (run.value_pairs) run.value_rows = space.take<uint32_t>(heads * run.value_pair_rows() * run.value_dim);
            if (!run.scaled() && run.value_pairs) run.wild_values = space.take<uint8_t>(heads * run.kv_len);
        }
        run.not_finite = space.take<int32_t>(3);
        if (!run.scaled()) return;
        run.room = space.take<float>(workers * run.room_floats());
        run.codes = space.take<int8_t>(heads * run.kv_len * run.key_dim);
        if (run.scores == Format::int8) run.code_sums = space.take<int32_t>(heads * run.kv_len);
        run.key_scales = space.take<float>(heads * run.k_blocks);
        run.query_scales = space.take<float>(run.batch * run.q_heads * run.q_blocks * 2);
        if (run.smooth_keys) run.key_mean = space.take<float>(heads * run.head_dim);
        if (run.smooth_values) run.value_mean = space.take<float>(heads * run.value_dim);
        if (run.values == Format::e4m3) run.value_scales = space.take<float>(heads * run.value_dim);
        if (run.values == Format::e4m3) run.value_inverse = space.take<float>(heads * run.value_dim);
        if (run.incoherent) run.signs = space.take<float>(run.rotated);
    }

    // What a mean takes from the scores of a query: scale q . mean, one rounding.
    float shift_of(const float* query_row, const float* mean) const {
        double sums[4] = {0.0, 0.0, 0.0, 0.0};
        for (int64_t d = 0; d < head_dim; ++d)
            sums[d % 4] += static_cast<double>(query_row[d]) * static_cast<double>(mean[d]);
        return static_cast<float>(static_cast<double>(scale) * ((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }

    // A key row ready for quantisation: less the mean, rotated, padded. Queries have no mean.
    void turn(const StoredView& from, int64_t item, int64_t head, int64_t row, const float* mean, float* to) const {
        widen_row(from.storage, from.at(item, head, row), from.step(), head_dim, to);
        if (mean != nullptr)
            for (int64_t d = 0; d < head_dim; ++d) to[d] -= mean[d];
        for (int64_t d = head_dim; d < key_dim; ++d) to[d] = 0.0f;
        if (incoherent) rotate_row(to, rotated, signs);
    }
    void turn_key(int64_t item, int64_t head, int64_t row, float* to) const {
        turn(key, item, head, row, smooth_keys ? key_mean + (item * kv_heads + head) * head_dim : nullptr, to);
    }
    void turn_query(int64_t item, int64_t head, int64_t row, float* to) const {
        turn(query, item, head, row, nullptr, to);
    }

    // Codes of a row: integers for int8, bytes of e4m3. The row becomes their values, without the scale; but where codes of
    // e4m3 are wanted it is lost.
    void encode(float* row, float inverse, int8_t* codes_of_row) const {
        const int64_t count = key_dim;
        if (scores == Format::int8) {
            int64_t d = 0;
            for (; d + batch_lanes <= count; d += batch_lanes) {
                const Batch code = round_even(load(row + d) * Batch(inverse));
                store(row + d, min(Batch(127.0f), max(Batch(-127.0f), code)));
            }
            for (; d < count; ++d) {
                const float code = __builtin_nearbyintf(row[d] * inverse);
                row[d] = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
            }
            for (d = 0; d < count; ++d) codes_of_row[d] = static_cast<int8_t>(static_cast<int32_t>(row[d]));
            return;
        }
        const auto encoded = [&](const Batch& x) {
            const Batch rounded = on_e4m3_grid(x * Batch(inverse));
            return codes_of_row != nullptr ? float_of(e4m3_codes(rounded)) : rounded;
        };
        int64_t d = 0;
        for (; d + batch_lanes <= count; d += batch_lanes) store(row + d, encoded(load(row + d)));
        if (d < count) store_tail(row + d, encoded(load_tail(row + d, count - d)), count - d);
        for (d = 0; d < count && codes_of_row != nullptr; ++d)
            codes_of_row[d] = static_cast<int8_t>(__builtin_bit_cast(uint32_t, row[d]));
    }

    float query_scale(int64_t item, int64_t head, int64_t row) const { return scale_pair(item, head, row)[0]; }
    float query_inverse(int64_t item, int64_t head, int64_t row) const { return scale_pair(item, head, row)[1]; }
    const float* scale_pair(int64_t item, int64_t head, int64_t row) const {
        return query_scales + ((item * q_heads + head) * q_blocks + row / block_q) * 2;
    }
    float key_scale(int64_t item, int64_t head, int64_t row) const {
        return key_scales[(item * kv_heads + head) * k_blocks + row / block_k];
    }
};

// Room for a row that is being turned.
constexpr int64_t longest_row = most_rotated;

// Decoded rows: bf16 in 16 bits, or floats. count elements.
inline void decode_bf16(const int8_t* codes, int64_t count, uint16_t* to) {
    for (int64_t d = 0; d < count; ++d)
        to[d] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, e4m3_value(static_cast<uint8_t>(codes[d]))) >> 16);
}
inline void decode_floats(const int8_t* codes, int64_t count, float* to) {
    for (int64_t d = 0; d < count; ++d) to[d] = e4m3_value(static_cast<uint8_t>(codes[d]));
}
}  // namespace attend::ATTEND_ISA
