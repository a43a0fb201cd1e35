// SPDX-License-Identifier: Apache-2.0
// The sums over keys that queries read: S[f][c] = sum_j phi_k[j][f] v_j[c] and z[f] = sum_j phi_k[j][f], scaled by
// e^{-(c + r)}: c is the reference of the features, r that of the keys' logarithmic weights. The constant feature of the
// official stabiliser stands in one more row, which c does not scale. Columns lie in tiles of one to three vectors.
#pragma once

#include <math.h>

#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/gemm/micro_kernel.hpp"

namespace attend::ATTEND_ISA {

// Dv columns as tiles of at most three vectors, as even as they go: 64 columns are 2 + 2 vectors of 16, not 3 + 1.
struct ValueTiles {
    int64_t columns{0}, count{0}, vectors{0};

    ValueTiles() = default;
    explicit ValueTiles(int64_t value_dim)
        : columns(value_dim),
          count((value_dim + max_lanes - 1) / max_lanes),
          vectors((value_dim + batch_lanes - 1) / batch_lanes) {}
    int64_t width() const { return vectors * batch_lanes; }
    int64_t first_vector(int64_t tile) const {
        return tile * (vectors / count) + (tile < vectors % count ? tile : vectors % count);
    }

    // visit(vectors as a constant, first column, columns in use); memory of tile [rows] starts at rows * first column.
    template <class Visit>
    ATTEND_ALWAYS_INLINE void each(Visit visit) const {
        for (int64_t tile = 0; tile < count; ++tile) {
            const int64_t first = first_vector(tile), end = tile + 1 < count ? first_vector(tile + 1) : vectors;
            const int64_t column = first * batch_lanes,
                          used = (end * batch_lanes < columns ? end * batch_lanes : columns) - column;
            if (end - first == 1)
                visit(Constant<1>{}, column, used);
            else if (end - first == 2)
                visit(Constant<2>{}, column, used);
            else
                visit(Constant<3>{}, column, used);
        }
    }
    template <int value>
    struct Constant {
        static constexpr int vectors = value;
    };
};

struct PrefixState {
    float *sums, *z;  // [value tile][rows][lanes of the tile], [rows]
    double c, r;
    double n;      // logarithm of the sum of the keys' weights, where a guard reads it
    double decay;  // logarithm of what the gates of these keys leave of all before them
    int64_t keys;  // visible keys in the sums; while 0, sums and z hold nothing

    static PrefixState take(Workspace& space, int64_t rows, const ValueTiles& values) {
        PrefixState state;
        state.sums = space.take<float>(rows * values.width());
        state.z = space.take<float>(up_to_vector(rows));
        state.clear();
        return state;
    }
    void clear() {
        c = r = n = -__builtin_huge_val();
        decay = 0.0;
        keys = 0;
    }
    static int64_t up_to_vector(int64_t rows) { return (rows + batch_lanes - 1) / batch_lanes * batch_lanes; }
};

// ln(e^a + e^b).
inline double log_add(double a, double b) {
    const double most = a < b ? b : a, least = a < b ? a : b;
    return least == -__builtin_huge_val() ? most : most + ::log1p(::exp(least - most));
}

// What a state must be multiplied by to move to the references c and r: a finite number, 0 for an empty state.
inline float moved(double from, double to) { return from == to ? 1.0f : static_cast<float>(::exp(from - to)); }

// c scales the rows before `scaled`; behind them are the constant feature, or all rows of a map whose c only goes into
// the guard.
struct StateShape {
    int64_t scaled, rows;
    ValueTiles values;
};

inline void scale_rows(const StateShape& shape, PrefixState& state, int64_t begin, int64_t end, float factor) {
    if (factor == 1.0f || begin >= end) return;
    shape.values.each([&](auto tile, int64_t column, int64_t) {
        constexpr int64_t lanes = decltype(tile)::vectors * batch_lanes;
        float* at = state.sums + shape.rows * column + begin * lanes;
        for (int64_t i = 0; i < (end - begin) * lanes; i += batch_lanes) store(at + i, load(at + i) * Batch(factor));
    });
    for (int64_t row = begin; row < end; ++row) state.z[row] *= factor;
}

// Moves a state that is not empty to references at least as high.
inline void raise(const StateShape& shape, PrefixState& state, double c, double r) {
    scale_rows(shape, state, 0, shape.scaled,
               static_cast<float>(static_cast<double>(moved(state.c, c)) * static_cast<double>(moved(state.r, r))));
    scale_rows(shape, state, shape.scaled, shape.rows, moved(state.r, r));
    state.c = c;
    state.r = r;
}

// to = a + b, in this order; `to` may be either. The keys of b come after those of a and their gates lessen a. Nothing is
// computed with an empty state.
inline void add_states(const StateShape& shape, const PrefixState& a, const PrefixState& b, PrefixState& to) {
    const PrefixState* only = b.keys == 0 ? &a : a.keys == 0 ? &b : nullptr;
    const int64_t floats = shape.rows * shape.values.width();
    if (only != nullptr) {
        if (only->keys > 0 && only->sums != to.sums) {
            __builtin_memcpy(to.sums, only->sums, static_cast<size_t>(floats) * sizeof(float));
            __builtin_memcpy(to.z, only->z, static_cast<size_t>(shape.rows) * sizeof(float));
        }
        to.c = only->c;
        to.r = only->r;
        to.n = only->n;
        to.decay = only->decay;
        to.keys = only->keys;
        return;
    }
    const double before = a.r + b.decay, n = log_add(a.n + b.decay, b.n), decay = a.decay + b.decay;
    const double c = a.c > b.c ? a.c : b.c, r = before > b.r ? before : b.r;
    const float a_r = moved(before, r), b_r = moved(b.r, r);
    const float a_all = moved(a.c, c) * a_r, b_all = moved(b.c, c) * b_r;
    const auto combine = [](const float* x, const float* y, float* out, int64_t count, float fx, float fy) {
        int64_t i = 0;
        for (; i + batch_lanes <= count; i += batch_lanes)
            store(out + i, fma(load(y + i), Batch(fy), load(x + i) * Batch(fx)));
        for (; i < count; ++i) out[i] = x[i] * fx + y[i] * fy;
    };
    shape.values.each([&](auto tile, int64_t column, int64_t) {
        constexpr int64_t lanes = decltype(tile)::vectors * batch_lanes;
        const int64_t at = shape.rows * column, behind = at + shape.scaled * lanes;
        combine(a.sums + at, b.sums + at, to.sums + at, shape.scaled * lanes, a_all, b_all);
        combine(a.sums + behind, b.sums + behind, to.sums + behind, (shape.rows - shape.scaled) * lanes, a_r, b_r);
    });
    combine(a.z, b.z, to.z, shape.scaled, a_all, b_all);
    combine(a.z + shape.scaled, b.z + shape.scaled, to.z + shape.scaled, shape.rows - shape.scaled, a_r, b_r);
    to.c = c;
    to.r = r;
    to.n = n;
    to.decay = decay;
    to.keys = a.keys + b.keys;
}

// Features relative to c = max u become e^{..} + eps: the constant feature is folded in, once, before reading.
inline void fold_constant(const StateShape& shape, PrefixState& state, float eps) {
    const int64_t features = shape.rows - 1;
    if (state.keys == 0 || eps == 0.0f) return;
    shape.values.each([&](auto tile, int64_t column, int64_t) {
        constexpr int vectors = decltype(tile)::vectors;
        float* at = state.sums + shape.rows * column;
        for (int v = 0; v < vectors; ++v) {
            const Batch added = load(at + (features * vectors + v) * batch_lanes) * Batch(eps);
            for (int64_t row = 0; row < features; ++row) {
                float* to = at + (row * vectors + v) * batch_lanes;
                store(to, load(to) + added);
            }
        }
    });
    const float added = state.z[features] * eps;
    for (int64_t row = 0; row < features; ++row) state.z[row] += added;
}

// The exchange form: rows of Dv columns and the sum of features, without tiles.
inline void import_state(const StateShape& shape, const float* sums, const double* scales, PrefixState& state) {
    state.clear();
    if (!(scales[2] > 0.0)) return;
    const int64_t step = shape.values.columns + 1;
    shape.values.each([&](auto tile, int64_t column, int64_t used) {
        constexpr int64_t lanes = decltype(tile)::vectors * batch_lanes;
        for (int64_t row = 0; row < shape.rows; ++row)
            for (int64_t lane = 0; lane < lanes; ++lane)
                state.sums[shape.rows * column + row * lanes + lane] =
                    lane < used ? sums[row * step + column + lane] : 0.0f;
    });
    for (int64_t row = 0; row < shape.rows; ++row) state.z[row] = sums[row * step + shape.values.columns];
    state.c = scales[0];
    state.r = scales[1];
    state.keys = static_cast<int64_t>(scales[2]);
    state.n = scales[3];
}

inline void export_state(const StateShape& shape, const PrefixState& state, float* sums, double* scales) {
    const int64_t step = shape.values.columns + 1;
    const bool empty = state.keys == 0;
    shape.values.each([&](auto tile, int64_t column, int64_t used) {
        constexpr int64_t lanes = decltype(tile)::vectors * batch_lanes;
        for (int64_t row = 0; row < shape.rows; ++row)
            for (int64_t lane = 0; lane < used; ++lane)
                sums[row * step + column + lane] = empty ? 0.0f : state.sums[shape.rows * column + row * lanes + lane];
    });
    for (int64_t row = 0; row < shape.rows; ++row)
        sums[row * step + shape.values.columns] = empty ? 0.0f : state.z[row];
    scales[0] = state.c;
    scales[1] = state.r;
    scales[2] = static_cast<double>(state.keys);
    scales[3] = state.n;
}

}  // namespace attend::ATTEND_ISA
