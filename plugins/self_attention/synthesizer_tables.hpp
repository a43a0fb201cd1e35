// SPDX-License-Identifier: Apache-2.0
// Scores of synthesizer-attention that do not compare queries with keys, as hooks of the tile engine. A tile's rows share
// the table of one head: tiles hold one query head each, or all heads share the tables.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {

// What runs beneath the components: the engine's product, if one of them is such a product.
enum class BaseScores : int32_t { none, dot, dense };

struct SynthesizerTables {
    TensorView<const float, 3> dense_w, random_r, r1, r2, a_w, b_w;  // [Ht, rows, columns]; absent: not a component
    TensorView<const float, 2> dense_b, a_b, b_b;                    // [Ht, rows]
    StoredView query;
    // Shares of the components; that of dot includes the scale.
    float dense, random, factorized_random, factorized_dense, dot;
    BaseScores base;
    bool biased, tiled;                  // dense_b is not all zero; factor B by j mod b
    int64_t local;                       // 0 or the odd number of dense logits around a query
    int64_t first_head;                  // query head of the engine's head 0
    int64_t head_dim, rank, a, b, rows;  // rows: of tables with rows i'

    // Rows of a tile's memory: relu(q), the factors A and B or R1, local logits by diagonals.
    bool copies_z() const {
        const bool read = a_w.present || (dense_w.present && base != BaseScores::dense);
        return read && base != BaseScores::dense;
    }
    int64_t z_rows() const { return copies_z() ? head_dim : 0; }
    int64_t factor_rows() const { return a_w.present ? a + b : 0; }
    int64_t r1_rows() const { return r1.present ? rank : 0; }
    int64_t diagonal_rows() const { return local > 0 ? local + max_lanes : 0; }
    int64_t tile_rows_needed() const { return z_rows() + factor_rows() + r1_rows() + diagonal_rows(); }
};

template <int V>
struct SynthesizerTile {
    static constexpr int64_t lanes = V * batch_lanes;
    const SynthesizerTables& tables;
    const attend_query_tile& tile;
    float *z, *factors, *r1, *diagonals;
    int64_t head;

    SynthesizerTile(const SynthesizerTables& all, const attend_query_tile& queries) : tables(all), tile(queries) {
        z = queries.memory;
        factors = z + all.z_rows() * lanes;
        r1 = factors + all.factor_rows() * lanes;
        diagonals = r1 + all.r1_rows() * lanes;
        if (!all.copies_z()) z = queries.queries;
        head = all.first_head + queries.lane_head[0];
    }

    // A table's head is 0 where all heads share it.
    template <int Rank>
    const float* of_head(const TensorView<const float, Rank>& table) const {
        return table.data + (table.shape[0] == 1 ? 0 : head * table.strides[0]);
    }

    // out[row][lane] = share (table[row] . z + bias[row]).
    void linear(const TensorView<const float, 3>& table, const TensorView<const float, 2>& bias, int64_t first,
                int64_t rows, float share, float* out) const {
        product<V>(of_head(table) + first * table.strides[1], table.strides[1], table.strides[2], rows, z,
                   tables.head_dim, out);
        for (int64_t row = 0; row < rows; ++row) {
            const Batch b(of_head(bias)[(first + row) * bias.strides[1]]), factor(share);
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) {
                float* at = out + row * lanes + v * batch_lanes;
                store(at, (load(at) + b) * factor);
            }
        }
    }

    // Rows i' of a table, one for each lane; lanes without one see nothing.
    void rows_of(const TensorView<const float, 3>& table, int64_t column, const float** rows) const {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t position = tile.lane_position[lane];
            const int64_t row = position < 0 ? 0 : position < tables.rows ? position : tables.rows - 1;
            rows[lane] = of_head(table) + row * table.strides[1] + column * table.strides[2];
        }
    }

    void prepare() const {
        const Batch zero(0.0f);
        if (tables.copies_z() && tables.base == BaseScores::none) {
            load_z();
        } else if (tables.copies_z()) {
            for (int64_t at = 0; at < tables.head_dim * lanes; at += batch_lanes)
                store(z + at, load(tile.queries + at));
        }
        if (tables.copies_z() || tables.base == BaseScores::dense)
            for (int64_t at = 0; at < tables.head_dim * lanes; at += batch_lanes)
                store(z + at, max(zero, load(z + at)));
        if (tables.a_w.present) {
            linear(tables.a_w, tables.a_b, 0, tables.a, tables.factorized_dense, factors);
            linear(tables.b_w, tables.b_b, 0, tables.b, 1.0f, factors + tables.a * lanes);
        }
        if (tables.r1.present) {
            const float* rows[size_t{lanes}];
            rows_of(tables.r1, 0, rows);
            load_lanes<V>(rows, tables.r1.strides[2], tables.rank, tables.factorized_random, r1);
        }
        if (tables.local > 0) prepare_diagonals();
    }

    void load_z() const {
        const StoredView& query = tables.query;
        if (query.storage == Storage::f32) {
            const float* rows[size_t{lanes}];
            for (int64_t lane = 0; lane < lanes; ++lane)
                rows[lane] =
                    reinterpret_cast<const float*>(query.at(tile.batch, tile.lane_head[lane], tile.lane_row[lane]));
            load_lanes<V>(rows, query.step(), tables.head_dim, 1.0f, z);
            return;
        }
        constexpr int64_t step = 64;
        float wide[size_t{step}];
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const char* row = query.at(tile.batch, tile.lane_head[lane], tile.lane_row[lane]);
            for (int64_t first = 0; first < tables.head_dim; first += step) {
                const int64_t count = lesser(step, tables.head_dim - first);
                widen_row(query.storage, row + first * query.strides[3], query.step(), count, wide);
                for (int64_t d = 0; d < count; ++d) z[(first + d) * lanes + lane] = wide[d];
            }
        }
    }

    // Logit t of a lane belongs to key i' + t - (c - 1) / 2: stored in row t + i' - first i', so that a key's row lies
    // as the scores do.
    void prepare_diagonals() const {
        for (int64_t at = 0; at < tables.diagonal_rows() * lanes; ++at) diagonals[at] = 0.0f;
        constexpr int64_t step = 16;
        float logits[size_t{step * lanes}];
        for (int64_t first = 0; first < tables.local; first += step) {
            const int64_t rows = tables.local - first < step ? tables.local - first : step;
            linear(tables.dense_w, tables.dense_b, first, rows, tables.dense, logits);
            for (int64_t lane = 0; lane < lanes; ++lane) {
                float* to = diagonals + (first + tile.lane_position[lane] - tile.lane_position[0]) * lanes + lane;
                for (int64_t row = 0; row < rows; ++row) to[row * lanes] = logits[row * lanes + lane];
            }
        }
    }

    // to[lane] = to[lane] * keep + from[lane] * factor for a tile of rows.
    static void blend(float* to, float keep, const float* from, float factor, int64_t count) {
        for (int64_t at = 0; at < count; at += batch_lanes)
            store(to + at, fma(load(to + at), Batch(keep), load(from + at) * Batch(factor)));
    }

    void score(const attend_score_tile& scores) const {
        float* const s = scores.scores;
        const int64_t first = scores.first_key, keys = scores.num_keys, count = keys * lanes;
        const bool based = tables.base == BaseScores::dot;
        bool empty = tables.base == BaseScores::none;  // nothing but the engine's product of zeros
        if (tables.base == BaseScores::dense) {
            if (tables.biased || tables.dense != 1.0f) add_key_bias(s, first, keys);
        } else if (tables.local > 0) {
            write_diagonals(s, first, keys);
            empty = false;
        } else if (tables.dense_w.present) {
            linear(tables.dense_w, tables.dense_b, first, keys, tables.dense, empty ? s : scores.scratch);
            if (!empty) blend(s, tables.dot, scores.scratch, 1.0f, count);
            empty = false;
        } else if (based) {
            for (int64_t at = 0; at < count; at += batch_lanes) store(s + at, load(s + at) * Batch(tables.dot));
        }
        if (tables.random_r.present) {
            const float* rows[size_t{lanes}];
            rows_of(tables.random_r, first, rows);
            load_lanes<V>(rows, tables.random_r.strides[2], keys, tables.random, empty ? s : scores.scratch);
            if (!empty) blend(s, 1.0f, scores.scratch, 1.0f, count);
            empty = false;
        }
        if (tables.r1.present) {
            product<V>(of_head(tables.r2) + first * tables.r2.strides[1], tables.r2.strides[1], tables.r2.strides[2],
                       keys, r1, tables.rank, s, empty ? Into::overwrite : Into::add);
            empty = false;
        }
        if (tables.a_w.present) add_factors(s, first, keys, empty);
    }

    // The engine's product becomes share (product + bias of the key).
    void add_key_bias(float* s, int64_t first, int64_t keys) const {
        const float* bias = of_head(tables.dense_b) + first * tables.dense_b.strides[1];
        const Batch share(tables.dense);
        for (int64_t key = 0; key < keys; ++key) {
            const Batch b(bias[key * tables.dense_b.strides[1]]);
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) {
                float* at = s + key * lanes + v * batch_lanes;
                store(at, (load(at) + b) * share);
            }
        }
    }

    // Keys beyond every lane's context are hidden, whatever stands there.
    void write_diagonals(float* s, int64_t first, int64_t keys) const {
        const int64_t shift = first - tile.lane_position[0] + (tables.local - 1) / 2;
        for (int64_t key = 0; key < keys; ++key) {
            const int64_t row = shift + key;
            if (row < 0 || row >= tables.diagonal_rows()) continue;
            for (int v = 0; v < V; ++v)
                store(s + key * lanes + v * batch_lanes, load(diagonals + row * lanes + v * batch_lanes));
        }
    }

    void add_factors(float* s, int64_t first, int64_t keys, bool over) const {
        const float* const b_rows = factors + tables.a * lanes;
        const Batch zero(0.0f);
        for (int64_t key = 0; key < keys; ++key) {
            const int64_t j = first + key;
            const float *a = factors + j % tables.a * lanes,
                        *b = b_rows + (tables.tiled ? j % tables.b : j / tables.a) * lanes;
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) {
                float* at = s + key * lanes + v * batch_lanes;
                store(at, fma(load(a + v * batch_lanes), load(b + v * batch_lanes), over ? zero : load(at)));
            }
        }
    }
};

inline void prepare_synthesizer(const void* user, const attend_query_tile* tile) {
    const auto& tables = *static_cast<const SynthesizerTables*>(user);
    const int64_t vectors = tile->lane_stride / batch_lanes;
    if (vectors == 3)
        SynthesizerTile<3>(tables, *tile).prepare();
    else if (vectors == 2)
        SynthesizerTile<2>(tables, *tile).prepare();
    else
        SynthesizerTile<1>(tables, *tile).prepare();
}

inline void score_synthesizer(const void* user, const attend_score_tile* scores) {
    const auto& tables = *static_cast<const SynthesizerTables*>(user);
    const int64_t vectors = scores->queries->lane_stride / batch_lanes;
    if (vectors == 3)
        SynthesizerTile<3>(tables, *scores->queries).score(*scores);
    else if (vectors == 2)
        SynthesizerTile<2>(tables, *scores->queries).score(*scores);
    else
        SynthesizerTile<1>(tables, *scores->queries).score(*scores);
}

}  // namespace attend::ATTEND_ISA
