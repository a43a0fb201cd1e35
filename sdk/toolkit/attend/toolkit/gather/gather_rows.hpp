// SPDX-License-Identifier: Apache-2.0
// Products of one query with gathered rows: scores of listed keys, and sums of listed values. Rows are float32 with
// neighbouring features; others are widened before they come here.
#pragma once

#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/simd/transpose.hpp"

namespace attend::ATTEND_ISA {

inline void fetch_row(const float* row, int64_t count) {
    for (int64_t at = 0; at < count; at += 16) __builtin_prefetch(row + at);
}

// scores[n] = query . rows[n] for one vector of rows; each row's sum is split over the lanes, then over a transpose, so it
// does not depend on its neighbours.
inline void dot_rows(const float* query, const float* const* rows, int64_t width, float* scores) {
    Batch sums[batch_lanes];
    ATTEND_UNROLL
    for (int n = 0; n < batch_lanes; ++n) sums[n] = Batch(0.0f);
    int64_t d = 0;
    for (; d + batch_lanes <= width; d += batch_lanes) {
        const Batch x = load(query + d);
        ATTEND_UNROLL
        for (int n = 0; n < batch_lanes; ++n) sums[n] = fma(x, load(rows[n] + d), sums[n]);
    }
    if (d < width) {
        const Batch x = load_tail(query + d, width - d);
        ATTEND_UNROLL
        for (int n = 0; n < batch_lanes; ++n) sums[n] = fma(x, load_tail(rows[n] + d, width - d), sums[n]);
    }
    transpose(sums);
    Batch total = sums[0];
    ATTEND_UNROLL
    for (int n = 1; n < batch_lanes; ++n) total = total + sums[n];
    store(scores, total);
}

// The product of a query of its own with each row, in the same order.
inline Batch dot_pairs(const float* const* queries, const float* const* rows, int64_t width) {
    Batch sums[batch_lanes];
    ATTEND_UNROLL
    for (int n = 0; n < batch_lanes; ++n) sums[n] = Batch(0.0f);
    int64_t d = 0;
    for (; d + batch_lanes <= width; d += batch_lanes) {
        ATTEND_UNROLL
        for (int n = 0; n < batch_lanes; ++n) sums[n] = fma(load(queries[n] + d), load(rows[n] + d), sums[n]);
    }
    if (d < width) {
        ATTEND_UNROLL
        for (int n = 0; n < batch_lanes; ++n)
            sums[n] = fma(load_tail(queries[n] + d, width - d), load_tail(rows[n] + d, width - d), sums[n]);
    }
    transpose(sums);
    Batch total = sums[0];
    ATTEND_UNROLL
    for (int n = 1; n < batch_lanes; ++n) total = total + sums[n];
    return total;
}

// to[c] = sum of weights[n] * rows[n][c] over n ascending, V vectors of columns from `first` on.
template <int V>
inline void add_columns(const float* weights, const float* const* rows, int64_t count, int64_t first, float* to) {
    Batch sums[size_t{V}];
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) sums[v] = Batch(0.0f);
    for (int64_t n = 0; n < count; ++n) {
        const Batch weight(weights[n]);
        const float* row = rows[n] + first;
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) sums[v] = fma(weight, load(row + v * batch_lanes), sums[v]);
    }
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) store(to + first + v * batch_lanes, sums[v]);
}
inline void add_rows(const float* weights, const float* const* rows, int64_t count, int64_t width, float* to) {
    int64_t c = 0;
    for (; c + 8 * batch_lanes <= width; c += 8 * batch_lanes) add_columns<8>(weights, rows, count, c, to);
    if (c + 4 * batch_lanes <= width) add_columns<4>(weights, rows, count, c, to), c += 4 * batch_lanes;
    for (; c + batch_lanes <= width; c += batch_lanes) add_columns<1>(weights, rows, count, c, to);
    for (; c < width; ++c) {
        float sum = 0.0f;
        for (int64_t n = 0; n < count; ++n) sum += weights[n] * rows[n][c];
        to[c] = sum;
    }
}

// Scores to exp(score - largest); returns the sum of those, `most` the largest score. There is at least one.
inline double exponentials(float* scores, int64_t count, float& most) {
    most = -infinity;
    for (int64_t n = 0; n < count; ++n) most = scores[n] > most || scores[n] != scores[n] ? scores[n] : most;
    double sum = 0.0;
    for (int64_t n = 0; n < count; n += batch_lanes) {
        const int64_t lanes = count - n < batch_lanes ? count - n : batch_lanes;
        const Batch shifted = (lanes == batch_lanes ? load(scores + n) : load_tail(scores + n, lanes)) - Batch(most);
        float part[batch_lanes];
        store(part, exp_nonpositive(shifted));
        for (int64_t lane = 0; lane < lanes; ++lane) {
            scores[n + lane] = part[lane];
            sum += static_cast<double>(part[lane]);
        }
    }
    return sum;
}

}  // namespace attend::ATTEND_ISA
