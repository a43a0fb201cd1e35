// SPDX-License-Identifier: Apache-2.0
// Attention by hyperbolic distance, a block of queries against tiles of keys: distances in float32 from differences of
// directions, weights with a running maximum, sums of the values' points in double precision.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/tile/storage.hpp"
#include "hyperbolic_space.hpp"

namespace attend::ATTEND_ISA {

constexpr int64_t queries_of_a_task = 32, keys_of_a_tile = 64;
constexpr int rows_of_distances = 4, vectors_of_distances = 2, rows_of_sums = 8;

// Numbers in double precision, as wide as a Batch; sums have one more channel than the space and begin at whole vectors.
using Wide = xsimd::batch<double, Arch>;
constexpr int64_t wide_lanes = batch_lanes / 2;
inline int64_t channels_of(int64_t dimension) { return (dimension + wide_lanes) / wide_lanes * wide_lanes; }

// What of a point enters a distance. With e = exp(rho / 2): shift = e - 1, which keeps its digits near the origin;
// inverse = 1 / (sqrt(2) e); reach = sinh(rho) / 2. Then for two points
//   sinh((rho_i - rho_j) / 2) = (shift_i - shift_j) (2 + shift_i + shift_j) inverse_i inverse_j
//   d = 2 / sqrt(c) asinh(sqrt(that^2 + reach_i reach_j |u_i - u_j|^2))
struct SidePoints {
    float *shift, *inverse, *reach;
    double* factor;
};
struct ValuePoints {
    double *factor, *cosh;  // sinh(rho) u = factor x
};

struct HyperbolicRun {
    int64_t batch, heads, kv_heads, q_len, kv_len;
    PointReader side, values;  // of queries and keys; of values
    PointWriter result;
    bool sigmoid, causal, offset_per_item;
    int64_t offset, window_left, window_right;
    double dropout;
    uint64_t seed, rng_offset;
    const attend_tensor *query_lengths, *key_lengths;
    StoredView query, key, value, output;
    TensorView<float, 3> lse;
    TensorView<float, 4> scores;
    int64_t row_begin, row_end;  // rows that the call is for
    bool logits;                 // scores stay as they are
    bool shows(int64_t row) const { return scores.present && row >= row_begin && row < row_end; }
    TensorView<const uint8_t, 4> mask;
    TensorView<const float, 4> bias;
    int64_t first_bad[3];  // row of query, key, value that is no point
    // Workspace.
    float *factor, *offsets;  // of each head: beta 2 / sqrt(c), offset
    SidePoints queries, keys;
    ValuePoints messages;
    char* rooms;
    int64_t room_bytes;

    int64_t kv_head(int64_t h) const { return h * kv_heads / heads; }
    int64_t queries_of(int64_t b) const { return query_lengths ? integer_at(query_lengths, b) : q_len; }
    int64_t keys_of(int64_t b) const { return key_lengths ? integer_at(key_lengths, b) : kv_len; }
};

struct HyperbolicRoom {
    float *row, *directions, *panel, *shift, *inverse, *reach, *x, *out;
    double *weights, *points, *sums, *total;  // weights [queries][keys]
    float* most;
    HyperbolicRoom(const HyperbolicRun& run, Workspace& memory) {
        const int64_t side = run.side.width, value = run.values.width, channels = channels_of(run.values.dimension());
        row = memory.take<float>((side > value ? side : value) + 1);
        directions = memory.take<float>(queries_of_a_task * side);
        panel = memory.take<float>(keys_of_a_tile * side);
        shift = memory.take<float>(keys_of_a_tile);
        inverse = memory.take<float>(keys_of_a_tile);
        reach = memory.take<float>(keys_of_a_tile);
        x = memory.take<float>(queries_of_a_task * keys_of_a_tile);
        weights = memory.take<double>(queries_of_a_task * keys_of_a_tile);
        out = memory.take<float>(value + 1);
        points = memory.take<double>(keys_of_a_tile * channels);
        sums = memory.take<double>(queries_of_a_task * channels);
        total = memory.take<double>(queries_of_a_task);
        most = memory.take<float>(queries_of_a_task);
    }
};

// asinh(sqrt(y)) for y >= 0.
ATTEND_ALWAYS_INLINE Batch asinh_of_root(const Batch& y) {
    const Batch z = xsimd::sqrt(y);
    // Below y = 1/4 the odd series, our own least-squares fit, off by at most 1.6e-9 of the result: a logarithm would
    // lose what is small.
    Batch p = fma(Batch(-0.01299617f), y, Batch(0.02803536f));
    p = fma(p, y, Batch(-0.04435934f));
    p = fma(p, y, Batch(0.07498469f));
    p = fma(p, y, Batch(-0.1666664f));
    const Batch small = fma(z * y, p, z);
    return choose(y < Batch(0.25f), small, log(z + xsimd::sqrt(y + Batch(1.0f))));
}

class HyperbolicWorker {
public:
    HyperbolicWorker(HyperbolicRun& run, uint32_t slot)
        : run_(run), memory_(run.rooms + slot * run.room_bytes), room_(run, memory_) {}

    // Points of the rows of a head; the first row that is none is remembered.
    void read_side(const StoredView& from, int64_t b, int64_t h, int64_t count, int64_t at, SidePoints& to, int which) {
        for (int64_t n = 0; n < count; ++n) {
            const Point point = read(run_.side, from, b, h, n, which, at + n);
            const double shift = ::expm1(0.5 * point.rho);
            to.shift[at + n] = static_cast<float>(shift);
            to.inverse[at + n] = static_cast<float>(0.70710678118654752440 / (1.0 + shift));
            to.reach[at + n] = static_cast<float>(0.5 * ::sinh(point.rho));
            to.factor[at + n] = point.factor;
        }
    }
    void read_values(int64_t b, int64_t h, int64_t count, int64_t at) {
        for (int64_t n = 0; n < count; ++n) {
            const Point point = read(run_.values, run_.value, b, h, n, 2, at + n);
            run_.messages.factor[at + n] = point.factor * ::sinh(point.rho);
            run_.messages.cosh[at + n] = ::cosh(point.rho);
        }
    }

    void block(int64_t b, int64_t h, int64_t first_row) {
        const int64_t rows = run_.q_len - first_row < queries_of_a_task ? run_.q_len - first_row : queries_of_a_task;
        if (first_row >= run_.row_end || first_row + rows <= run_.row_begin) return;
        const int64_t channels = channels_of(run_.values.dimension());
        int64_t low[queries_of_a_task], high[queries_of_a_task], begin = run_.kv_len, end = 0;
        for (int64_t r = 0; r < rows; ++r) {
            visible(b, first_row + r, low[r], high[r]);
            if (low[r] < high[r]) {
                begin = low[r] < begin ? low[r] : begin;
                end = high[r] > end ? high[r] : end;
            }
            room_.most[r] = -infinity;
            room_.total[r] = 0.0;
            if (run_.shows(first_row + r))
                for (int64_t j = 0; j < run_.kv_len; ++j)
                    run_.scores.at(b, h, first_row + r)[j * run_.scores.strides[3]] = -infinity;
        }
        for (int64_t at = 0; at < queries_of_a_task * channels; ++at) room_.sums[at] = 0.0;
        for (int64_t at = 0; at < queries_of_a_task * keys_of_a_tile; ++at) room_.weights[at] = 0.0;
        load_queries(b, h, first_row, rows);
        for (int64_t first = begin; first < end; first += keys_of_a_tile) {
            const int64_t keys = end - first < keys_of_a_tile ? end - first : keys_of_a_tile;
            load_keys(b, run_.kv_head(h), first, keys);
            load_values(b, run_.kv_head(h), first, keys);
            for (int64_t r = 0; r < rows; r += rows_of_distances) distances(b, h, first_row, r, rows);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t from = low[r] > first ? low[r] - first : 0,
                              to = high[r] < first + keys ? high[r] - first : keys;
                if (!(from < to && weigh(b, h, first_row + r, r, first, from, to, keys)))
                    for (int64_t j = 0; j < keys; ++j) room_.weights[r * keys_of_a_tile + j] = 0.0;
            }
            for (int64_t r = 0; r < rows; r += rows_of_sums) add_points(r, keys);
        }
        for (int64_t r = 0; r < rows; ++r) finish(b, h, first_row + r, r);
    }

private:
    Point read(const PointReader& reader, const StoredView& from, int64_t b, int64_t h, int64_t n, int which,
               int64_t place) {
        widen_row(from.storage, from.at(b, h, n), from.step(), reader.width, room_.row);
        const Point point = reader.read(room_.row);
        if (point.fault == PointFault::none) return point;
        int64_t before = __atomic_load_n(&run_.first_bad[which], __ATOMIC_RELAXED);
        while (place < before && !__atomic_compare_exchange_n(&run_.first_bad[which], &before, place, true,
                                                              __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        }
        return point;
    }

    // Keys [low, high) that lengths, causal and window leave to query i.
    void visible(int64_t b, int64_t i, int64_t& low, int64_t& high) const {
        const int64_t queries = run_.queries_of(b), keys = run_.keys_of(b);
        const int64_t position = i + (run_.offset_per_item ? keys - queries : run_.offset);
        low = 0, high = i < queries ? keys : 0;
        if (run_.causal && position + 1 < high) high = position + 1;
        if (run_.window_left >= 0 && position - run_.window_left > low) low = position - run_.window_left;
        if (run_.window_right >= 0 && position < high - run_.window_right) high = position + run_.window_right + 1;
    }

    // Directions [rows][n], rows filled up to a multiple of what distances() takes at once.
    void load_queries(int64_t b, int64_t h, int64_t first, int64_t rows) {
        const int64_t n = run_.side.dimension(), at = (b * run_.heads + h) * run_.q_len + first;
        for (int64_t r = 0; r < queries_of_a_task; ++r) {
            float* to = room_.directions + r * n;
            // Rows behind the item's length may hold anything.
            if (r < rows && first + r < run_.queries_of(b)) {
                widen_row(run_.query.storage, run_.query.at(b, h, first + r), run_.query.step(), run_.side.width,
                          room_.row);
                direct(room_.row, run_.queries.factor[at + r], n, to, 1);
            } else {
                for (int64_t d = 0; d < n; ++d) to[d] = 0.0f;
            }
        }
    }
    void direct(const float* x, double factor, int64_t n, float* to, int64_t step) const {
        x += run_.side.first();
        for (int64_t d = 0; d < n; ++d)
            to[d * step] = factor == 0.0 ? 0.0f : static_cast<float>(factor * static_cast<double>(x[d]));
    }
    // Directions of keys as the columns of a panel [n][keys_of_a_tile].
    void load_keys(int64_t b, int64_t kv_head, int64_t first, int64_t keys) {
        const int64_t n = run_.side.dimension(), at = (b * run_.kv_heads + kv_head) * run_.kv_len + first;
        for (int64_t j = 0; j < keys_of_a_tile; ++j) {
            const bool there = j < keys;
            room_.shift[j] = there ? run_.keys.shift[at + j] : 0.0f;
            room_.inverse[j] = there ? run_.keys.inverse[at + j] : 0.0f;
            room_.reach[j] = there ? run_.keys.reach[at + j] : 0.0f;
            if (there) {
                widen_row(run_.key.storage, run_.key.at(b, kv_head, first + j), run_.key.step(), run_.side.width,
                          room_.row);
                direct(room_.row, run_.keys.factor[at + j], n, room_.panel + j, keys_of_a_tile);
            } else {
                for (int64_t d = 0; d < n; ++d) room_.panel[d * keys_of_a_tile + j] = 0.0f;
            }
        }
    }
    // sinh(rho) u, and cosh(rho) as one more channel.
    void load_values(int64_t b, int64_t kv_head, int64_t first, int64_t keys) {
        const int64_t n = run_.values.dimension(), at = (b * run_.kv_heads + kv_head) * run_.kv_len + first;
        for (int64_t j = 0; j < keys; ++j) {
            widen_row(run_.value.storage, run_.value.at(b, kv_head, first + j), run_.value.step(), run_.values.width,
                      room_.row);
            const float* x = room_.row + run_.values.first();
            double* to = room_.points + j * channels_of(n);
            const double factor = run_.messages.factor[at + j];
            for (int64_t d = 0; d < n; ++d) to[d] = factor == 0.0 ? 0.0 : factor * static_cast<double>(x[d]);
            to[n] = run_.messages.cosh[at + j];
            for (int64_t d = n + 1; d < channels_of(n); ++d) to[d] = 0.0;
        }
    }

    // Scores of rows_of_distances queries from r on and all keys of the tile.
    void distances(int64_t b, int64_t h, int64_t first_row, int64_t r, int64_t rows) {
        const int64_t n = run_.side.dimension();
        const float* queries = room_.directions + r * n;
        const Batch factor(run_.factor[h]), offset(run_.offsets[h]);
        constexpr int64_t step = vectors_of_distances * batch_lanes;
        for (int64_t j = 0; j < keys_of_a_tile; j += step) {
            Batch squares[rows_of_distances][vectors_of_distances];
            ATTEND_UNROLL
            for (int row = 0; row < rows_of_distances; ++row) {
                ATTEND_UNROLL
                for (int v = 0; v < vectors_of_distances; ++v) squares[row][v] = Batch(0.0f);
            }
            for (int64_t d = 0; d < n; ++d) {
                const float* panel = room_.panel + d * keys_of_a_tile + j;
                const Batch first = load(panel), second = load(panel + batch_lanes);
                ATTEND_UNROLL
                for (int row = 0; row < rows_of_distances; ++row) {
                    const Batch query(queries[row * n + d]), a = query - first, other = query - second;
                    squares[row][0] = fma(a, a, squares[row][0]);
                    squares[row][1] = fma(other, other, squares[row][1]);
                }
            }
            for (int row = 0; row < rows_of_distances && r + row < rows; ++row) {
                const int64_t at = (b * run_.heads + h) * run_.q_len + first_row + r + row;
                const Batch shift(run_.queries.shift[at]), inverse(run_.queries.inverse[at]),
                    reach(run_.queries.reach[at]);
                for (int v = 0; v < vectors_of_distances; ++v) {
                    const int64_t key = j + v * batch_lanes;
                    const Batch other = load(room_.shift + key);
                    const Batch radial =
                        (shift - other) * (Batch(2.0f) + shift + other) * (inverse * load(room_.inverse + key));
                    const Batch y = fma(radial, radial, reach * load(room_.reach + key) * squares[row][v]);
                    store(room_.x + (r + row) * keys_of_a_tile + key,
                          Batch(0.0f) - fma(factor, asinh_of_root(y), offset));
                }
            }
        }
    }

    // Weights of row r for keys [from, to) of the tile, relative to a maximum that its sums are brought to; false: there
    // are none.
    bool weigh(int64_t b, int64_t h, int64_t i, int64_t r, int64_t first, int64_t from, int64_t to, int64_t keys) {
        float* x = room_.x + r * keys_of_a_tile;
        for (int64_t j = 0; j < keys_of_a_tile; ++j)
            if (j < from || j >= to) x[j] = -infinity;
        if (run_.bias.present)
            for (int64_t j = from; j < to; ++j) x[j] += *run_.bias.at(b, h, i, first + j);
        if (run_.mask.present)
            for (int64_t j = from; j < to; ++j)
                if (*run_.mask.at(b, h, i, first + j) == 0) x[j] = -infinity;
        if (run_.shows(i))
            for (int64_t j = from; j < to; ++j) run_.scores.at(b, h, i)[(first + j) * run_.scores.strides[3]] = x[j];
        // A sigmoid 1 / (1 + exp(-x)) is exp(min(x, 0)) / (1 + exp(-|x|)); its normaliser cancels, so that the first
        // factor may be relative to its largest, too, and far points do not vanish.
        float most = room_.most[r];
        for (int64_t j = 0; j < keys_of_a_tile; ++j) {
            const float exponent = run_.sigmoid && x[j] > 0.0f ? 0.0f : x[j];
            most = exponent > most ? exponent : most;
        }
        if (most == -infinity) return false;
        const int64_t channels = channels_of(run_.values.dimension());
        double* sums = room_.sums + r * channels;
        if (most > room_.most[r]) {
            const double rest = room_.most[r] == -infinity
                                    ? 0.0
                                    : ::exp(static_cast<double>(room_.most[r]) - static_cast<double>(most));
            room_.total[r] *= rest;
            for (int64_t d = 0; d < channels; ++d) sums[d] *= rest;
            room_.most[r] = most;
        }
        Batch total(0.0f);
        double* weights = room_.weights + r * keys_of_a_tile;
        for (int64_t j = 0; j < keys_of_a_tile; j += batch_lanes) {
            const Batch score = load(x + j);
            Batch weight = exp_nonpositive((run_.sigmoid ? min(score, Batch(0.0f)) : score) - Batch(most));
            if (run_.sigmoid) weight = weight / (Batch(1.0f) + exp_nonpositive(Batch(0.0f) - xsimd::abs(score)));
            store(x + j, weight);
            for (int64_t lane = j; lane < j + batch_lanes; ++lane) weights[lane] = static_cast<double>(x[lane]);
            total = total + weight;
        }
        room_.total[r] += static_cast<double>(reduce_add(total));
        if (run_.dropout > 0.0) drop(b, h, i, first, keys, weights);
        return true;
    }
    void drop(int64_t b, int64_t h, int64_t i, int64_t first, int64_t keys, double* weights) {
        const uint32_t threshold = dropout_threshold(run_.dropout);
        const auto row_head = static_cast<uint32_t>(b * run_.heads + h);
        RandomWords random{};
        for (int64_t j = first; j < first + keys; ++j) {
            if (j == first || j % 4 == 0)
                random = dropout_words(run_.seed, static_cast<uint32_t>(run_.rng_offset), row_head,
                                       static_cast<uint32_t>(i), static_cast<uint32_t>(j / 4));
            if (random.word[j % 4] < threshold) weights[j - first] = 0.0;
        }
    }
    // Weighted points of the tile enter the sums of rows_of_sums rows from r on.
    void add_points(int64_t r, int64_t keys) {
        const int64_t channels = channels_of(run_.values.dimension());
        const double* weights = room_.weights + r * keys_of_a_tile;
        for (int64_t d = 0; d < channels; d += wide_lanes) {
            double* to = room_.sums + r * channels + d;
            Wide sums[rows_of_sums];
            ATTEND_UNROLL
            for (int row = 0; row < rows_of_sums; ++row) sums[row] = Wide::load_unaligned(to + row * channels);
            for (int64_t j = 0; j < keys; ++j) {
                const Wide point = Wide::load_unaligned(room_.points + j * channels + d);
                ATTEND_UNROLL
                for (int row = 0; row < rows_of_sums; ++row)
                    sums[row] = xsimd::fma(Wide(weights[row * keys_of_a_tile + j]), point, sums[row]);
            }
            ATTEND_UNROLL
            for (int row = 0; row < rows_of_sums; ++row) sums[row].store_unaligned(to + row * channels);
        }
    }

    // The midpoint S / T of the Klein model as a point again: rho from (T - |S|)(T + |S|), which cancels least.
    void finish(int64_t b, int64_t h, int64_t i, int64_t r) {
        const int64_t n = run_.values.dimension();
        const double *sums = room_.sums + r * channels_of(n), time = sums[n];
        double squares = 0.0;
        for (int64_t d = 0; d < n; ++d) squares += sums[d] * sums[d];
        const double length = ::sqrt(squares), below = (time - length) * (time + length);
        const double rho = length > 0.0 && below > 0.0 ? ::asinh(length / ::sqrt(below)) : 0.0;
        run_.result.write(rho, sums, length, n, room_.out);
        if (run_.output.present)
            narrow_row(run_.output.storage, room_.out, run_.result.width(n), run_.output.at(b, h, i),
                       run_.output.step());
        const double total = room_.total[r];
        if (run_.lse.present)
            *run_.lse.at(b, h, i) =
                total == 0.0 ? -infinity : static_cast<float>(static_cast<double>(room_.most[r]) + ::log(total));
        if (!run_.shows(i) || run_.logits) return;
        float* scores = run_.scores.at(b, h, i);
        for (int64_t j = 0; j < run_.kv_len; ++j) {
            float& x = scores[j * run_.scores.strides[3]];
            x = x == -infinity ? 0.0f
                : run_.sigmoid
                    ? 1.0f / (1.0f + ::expf(-x))
                    : static_cast<float>(::exp(static_cast<double>(x) - static_cast<double>(room_.most[r])) / total);
        }
    }

    HyperbolicRun& run_;
    Workspace memory_;
    HyperbolicRoom room_;
};

}  // namespace attend::ATTEND_ISA
