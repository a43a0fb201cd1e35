// SPDX-License-Identifier: Apache-2.0
// The linear engine's short way: features of single components (elu, relu), every key visible with weight one, rows without
// gaps. Rows then stay rows, in and out: no transpose, no copy of values, no scratch for results.
//
//   absorb   S[f][column lane] += sum_key phi_k[key][f] v[key][column]             z[f] += sum_key phi_k[key][f]
//   read     o[row][column]     = factor[row] (sum_f phi_q[row][f] S[f][column] + sum_key A[row][key] v[key][column])
//   triangle A[row][key lane]   = sum_f phi_q[row][f] phi_k[key][f], zero where the key comes after the row
//
// Only the triangle needs keys as lanes. The other way (linear_worker.hpp) computes the same for every problem.
#pragma once

#include "attend/toolkit/linear/features/elementwise.hpp"
#include "attend/toolkit/linear/linear_problem.hpp"
#include "attend/toolkit/tile/values.hpp"

namespace attend::ATTEND_ISA {

// Keys of a chunk. The triangle costs a row as much as half its keys, the state of a chunk is updated once: without
// triangle one wants long chunks that stay in the first cache, with it short ones.
constexpr int64_t plain_chunk = key_lanes;
#if defined(ATTEND_ISA_avx512)
constexpr int64_t plain_causal_chunk = batch_lanes;
#elif defined(ATTEND_ISA_avx2)
constexpr int64_t plain_causal_chunk = 2 * batch_lanes;
#else
constexpr int64_t plain_causal_chunk = key_lanes;
#endif
static_assert(plain_chunk <= default_chunk && plain_causal_chunk <= key_lanes);

// Whether a problem is one of these: decided by types of features, absent tensors and strides, never by contents.
inline bool is_plain(const attend_linear_problem& problem, const LinearSizes& sizes) {
    const attend_feature_map& map = problem.features;
    const bool elementwise = map.kind == ATTEND_FEATURES_ELU || map.kind == ATTEND_FEATURES_RELU ||
                             (map.kind == ATTEND_FEATURES_PROJECTED_RELU && map.projection == nullptr);
    if (!elementwise || problem.guard > ATTEND_GUARD_NUMERATOR || map.sum_normalize != 0 || problem.mask != nullptr ||
        sizes.log_weights || problem.chunk > 0)
        return false;
    for (const attend_tensor* tensor : {problem.query, problem.key, problem.value, problem.output})
        if (tensor->strides[3] != 1 || tensor->shape[3] % batch_lanes != 0) return false;
    return sizes.head_dim > 0 && sizes.value_dim > 0;
}

// out[row][lane] = factor[row] (sum over s < count of a[row * a_stride + s] x[s * x_stride + lane], then the same over a
// second pair), for the first `used` of R rows; the others are computed from what lies there and dropped.
struct RowProduct {
    const float *a, *x;
    int64_t a_stride, x_stride, count;
};
template <int V, int R>
ATTEND_ALWAYS_INLINE void add_row_product(const RowProduct& product, Batch (&sum)[size_t{R}][size_t{V}]) {
    const float* rows[size_t{R}];
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) rows[row] = product.a + row * product.a_stride;
    const float* x = product.x;
    for (int64_t s = 0; s < product.count; ++s, x += product.x_stride) {
        Batch vector[size_t{V}];
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) vector[v] = load(x + v * batch_lanes);
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            const Batch broadcast(rows[row][s]);
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) sum[row][v] = fma(broadcast, vector[v], sum[row][v]);
        }
    }
}
template <int V, int R>
__attribute__((noinline)) inline void write_row_product(const RowProduct& first, const RowProduct& second,
                                                        const float* factor, float* out, int64_t out_stride,
                                                        int64_t used) {
    Batch sum[size_t{R}][size_t{V}];
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) sum[row][v] = Batch(0.0f);
    }
    add_row_product<V, R>(first, sum);
    add_row_product<V, R>(second, sum);
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        if (row >= used) return;
        const Batch scale(factor[row]);
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) store(out + row * out_stride + v * batch_lanes, sum[row][v] * scale);
    }
}

// What absorb writes: sums += product (= where `fresh`), and where `reading` is given, reading = before + sums.
struct AbsorbTarget {
    float* sums;
    const float* before;
    float* reading;
    bool fresh;
};
template <int V, int R>
ATTEND_ALWAYS_INLINE void absorb_rows(const float* phi, int64_t phi_stride, const float* x, int64_t x_stride,
                                      int64_t keys, const AbsorbTarget& target, int64_t first) {
    constexpr int64_t lanes = V * batch_lanes;
    Batch sum[size_t{R}][size_t{V}];
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) sum[row][v] = Batch(0.0f);
    }
    phi += first;
    for (int64_t key = 0; key < keys; ++key, phi += phi_stride, x += x_stride) {
        Batch vector[size_t{V}];
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) vector[v] = load(x + v * batch_lanes);
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            const Batch broadcast(phi[row]);
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) sum[row][v] = fma(broadcast, vector[v], sum[row][v]);
        }
    }
    float* sums = target.sums + first * lanes;
    if (!target.fresh) {
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) sum[row][v] = load(sums + row * lanes + v * batch_lanes) + sum[row][v];
        }
    }
    ATTEND_UNROLL
    for (int row = 0; row < R; ++row) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) store(sums + row * lanes + v * batch_lanes, sum[row][v]);
    }
    if (target.reading != nullptr) {
        const float* before = target.before + first * lanes;
        float* reading = target.reading + first * lanes;
        ATTEND_UNROLL
        for (int row = 0; row < R; ++row) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v)
                store(reading + row * lanes + v * batch_lanes,
                      load(before + row * lanes + v * batch_lanes) + sum[row][v]);
        }
    }
}
// `rows` is a multiple of batch_lanes, so of tile_rows.
template <int V>
__attribute__((noinline)) inline void absorb_product(const float* phi, int64_t rows, const float* x, int64_t x_stride,
                                                     int64_t keys, const AbsorbTarget& target) {
    for (int64_t row = 0; row < rows; row += tile_rows)
        absorb_rows<V, tile_rows>(phi, rows, x, x_stride, keys, target, row);
}

class PlainWorker {
public:
    PlainWorker(const LinearRun& run, const LinearScratch& scratch, const Unit& unit)
        : run_(run),
          sizes_(run.sizes),
          scratch_(scratch),
          unit_(unit),
          elu_(run.problem->features.kind == ATTEND_FEATURES_ELU),
          offset_(run.problem->features.kind == ATTEND_FEATURES_PROJECTED_RELU ? run.kernel_eps : 0.0f) {}

    // Features of the keys [begin, end), as rows, and with `lanes` as lanes for the triangle.
    void load_keys(int64_t begin, int64_t end, bool lanes) {
        first_ = begin;
        count_ = end - begin;
        if (lanes) find_wild_values();
        if (elu_)
            run_.key_scale == 1.0f ? key_features<true, false>() : key_features<true, true>();
        else
            key_features<false, true>();
        if (!lanes) return;
        // Lanes behind the last key hold what an earlier chunk left: the triangle selects them away.
        for (int64_t key = 0; key < count_; key += batch_lanes)
            for (int64_t f = 0; f < sizes_.features; f += batch_lanes) {
                Batch block[batch_lanes];
                ATTEND_UNROLL
                for (int at = 0; at < batch_lanes; ++at)
                    block[at] = load(scratch_.keys + least(key + at, count_ - 1) * sizes_.features + f);
                transpose(block);
                ATTEND_UNROLL
                for (int at = 0; at < batch_lanes; ++at)
                    store(scratch_.input + (f + at) * plain_causal_chunk + key, block[at]);
            }
    }

    // Adds the chunk to a state; with `before` and `reading`, reading = before + to afterwards.
    void absorb(PrefixState& to, const PrefixState* before, PrefixState* reading) const {
        const bool fresh = to.keys == 0;
        const float* values = run_.value.at(unit_.batch, unit_.kv_head, first_, 0);
        sizes_.values.each([&](auto tag, int64_t column, int64_t) {
            const int64_t at = sizes_.rows * column;
            const AbsorbTarget target{to.sums + at, before == nullptr ? nullptr : before->sums + at,
                                      reading == nullptr ? nullptr : reading->sums + at, fresh};
            absorb_product<decltype(tag)::vectors>(scratch_.keys, sizes_.features, values + column,
                                                   run_.value.strides[2], count_, target);
        });
        for (int64_t f = 0; f < sizes_.features; f += batch_lanes) {
            Batch sum = load(scratch_.weight_sums + f);
            if (!fresh) sum = load(to.z + f) + sum;
            store(to.z + f, sum);
            if (reading != nullptr) store(reading->z + f, load(before->z + f) + sum);
        }
        to.c = to.r = 0.0;
        to.keys += count_;
        if (reading == nullptr) return;
        reading->c = reading->r = 0.0;
        reading->keys = before->keys + to.keys;
    }

    // Output of rows [begin, end) of a head from a state, and with `triangle` from the chunk up to each row's position.
    // Every row sees a key.
    void attend_rows(int64_t head, int64_t begin, int64_t end, const PrefixState& state, bool triangle) {
        for (int64_t row = begin; row < end; row += batch_lanes) {
            const int64_t rows = least(batch_lanes, end - row);
            if (elu_)
                run_.query_scale == 1.0f ? query_features<true, false>(head, row, rows, state)
                                         : query_features<true, true>(head, row, rows, state);
            else
                query_features<false, true>(head, row, rows, state);
            attend_block(head, row, rows, state, triangle);
        }
    }

private:
    // Whether the chunk's values may meet a weight of zero.
    bool values_are_finite(const float* value, int64_t stride) const {
        // Rows in turn to four sums: one chain of additions would be bound by its latency.
        Batch sums[4] = {Batch(0.0f), Batch(0.0f), Batch(0.0f), Batch(0.0f)};
        int64_t key = 0;
        for (; key + 4 <= count_; key += 4, value += 4 * stride)
            for (int64_t c = 0; c < sizes_.value_dim; c += batch_lanes) {
                ATTEND_UNROLL
                for (int at = 0; at < 4; ++at) sums[at] = fma(load(value + at * stride + c), Batch(0.0f), sums[at]);
            }
        for (; key < count_; ++key, value += stride)
            for (int64_t c = 0; c < sizes_.value_dim; c += batch_lanes)
                sums[0] = fma(load(value + c), Batch(0.0f), sums[0]);
        return all_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]) == Batch(0.0f));
    }

    // What the triangle reads as values: the chunk as it lies, or where a row is not finite a copy with zeros in its place,
    // and the row is added apart to those that see it. The others get the bits that any finite value would give them.
    void find_wild_values() {
        values_ = run_.value.at(unit_.batch, unit_.kv_head, first_, 0);
        value_stride_ = run_.value.strides[2];
        wild_ = 0;
        if (values_are_finite(values_, value_stride_)) return;
        for (int64_t key = 0; key < count_; ++key) {
            const float* from = values_ + key * value_stride_;
            const bool finite = row_is_finite(from, 1, sizes_.value_dim);
            if (!finite) scratch_.wild[wild_++] = static_cast<int32_t>(key);
            for (int64_t c = 0; c < sizes_.value_dim; ++c)
                scratch_.values[key * sizes_.value_dim + c] = finite ? from[c] : 0.0f;
        }
        values_ = scratch_.values;
        value_stride_ = sizes_.value_dim;
    }
    void add_wild_values(float* out, int64_t stride, int64_t rows, int64_t position) const {
        for (int64_t at = 0; at < wild_; ++at) {
            const int64_t key = scratch_.wild[at];
            const float* value = run_.value.at(unit_.batch, unit_.kv_head, first_ + key, 0);
            for (int64_t row = most(0, key - position); row < rows; ++row) {
                const float weight = factors_[row] * scratch_.triangle[row * plain_causal_chunk + key];
                for (int64_t c = 0; c < sizes_.value_dim; ++c) out[row * stride + c] += weight * value[c];
            }
        }
    }

    template <bool elu, bool scaled>
    ATTEND_ALWAYS_INLINE Batch feature(const float* from, const Batch& scale) const {
        Batch x = load(from);
        if constexpr (scaled) x = x * scale;
        // Above zero the exponential may be anything: it is not taken.
        if constexpr (elu)
            return choose(x > Batch(0.0f), x + Batch(1.0f), exp_nonpositive(x));
        else
            return relu(x) + Batch(offset_);
    }

    // Four keys at a time: four exponentials on their way, one addition to z.
    template <bool elu, bool scaled>
    __attribute__((noinline)) void key_features() const {
        const int64_t features = sizes_.features, stride = run_.key.strides[2], value_stride = run_.value.strides[2];
        const float* key = run_.key.at(unit_.batch, unit_.kv_head, first_, 0);
        const float* value = run_.value.at(unit_.batch, unit_.kv_head, first_, 0);
        const int64_t ahead = 2 * count_;
        const Batch scale(run_.key_scale);
        float* phi = scratch_.keys;
        float* z = scratch_.weight_sums;
        for (int64_t f = 0; f < features; f += batch_lanes) store(z + f, Batch(0.0f));
        int64_t at = 0;
        for (; at + 4 <= count_; at += 4, key += 4 * stride, value += 4 * value_stride, phi += 4 * features) {
            if (first_ + at + 4 + ahead <= unit_.keys)
                for (int64_t row = 0; row < 4; ++row) {
                    for (int64_t c = 0; c < sizes_.value_dim; c += 16)
                        __builtin_prefetch(value + (row + ahead) * value_stride + c);
                    for (int64_t f = 0; f < features; f += 16) __builtin_prefetch(key + (row + ahead) * stride + f);
                }
            for (int64_t f = 0; f < features; f += batch_lanes) {
                const Batch a = feature<elu, scaled>(key + f, scale), b = feature<elu, scaled>(key + stride + f, scale);
                const Batch c = feature<elu, scaled>(key + 2 * stride + f, scale),
                            d = feature<elu, scaled>(key + 3 * stride + f, scale);
                store(phi + f, a);
                store(phi + features + f, b);
                store(phi + 2 * features + f, c);
                store(phi + 3 * features + f, d);
                store(z + f, load(z + f) + ((a + b) + (c + d)));
            }
        }
        for (; at < count_; ++at, key += stride, phi += features)
            for (int64_t f = 0; f < features; f += batch_lanes) {
                const Batch a = feature<elu, scaled>(key + f, scale);
                store(phi + f, a);
                store(z + f, load(z + f) + a);
            }
    }

    // phi_q of the block, and parts_[row], whose lanes add up to phi_q z. Rows past the last repeat it.
    template <bool elu, bool scaled>
    __attribute__((noinline)) void query_features(int64_t head, int64_t first, int64_t rows, const PrefixState& state) {
        const int64_t features = sizes_.features, stride = run_.query.strides[2];
        const Batch scale(run_.query_scale);
        const float* query = run_.query.at(unit_.batch, head, first, 0);
        const bool has_state = state.keys > 0;
        for (int64_t row = 0; row < batch_lanes; row += 4) {
            const float* from[4];
            for (int64_t at = 0; at < 4; ++at) from[at] = query + least(row + at, rows - 1) * stride;
            if (first + row + 4 + 2 * batch_lanes <= unit_.rows)
                for (int64_t at = 0; at < 4; ++at)
                    for (int64_t f = 0; f < features; f += 16)
                        __builtin_prefetch(from[at] + 2 * batch_lanes * stride + f);
            float* phi = scratch_.queries + row * features;
            Batch a_sum(0.0f), b_sum(0.0f), c_sum(0.0f), d_sum(0.0f);
            for (int64_t f = 0; f < features; f += batch_lanes) {
                const Batch a = feature<elu, scaled>(from[0] + f, scale), b = feature<elu, scaled>(from[1] + f, scale);
                const Batch c = feature<elu, scaled>(from[2] + f, scale), d = feature<elu, scaled>(from[3] + f, scale);
                store(phi + f, a);
                store(phi + features + f, b);
                store(phi + 2 * features + f, c);
                store(phi + 3 * features + f, d);
                if (!has_state) continue;
                const Batch z = load(state.z + f);
                a_sum = fma(a, z, a_sum);
                b_sum = fma(b, z, b_sum);
                c_sum = fma(c, z, c_sum);
                d_sum = fma(d, z, d_sum);
            }
            store(parts_ + row * batch_lanes, a_sum);
            store(parts_ + (row + 1) * batch_lanes, b_sum);
            store(parts_ + (row + 2) * batch_lanes, c_sum);
            store(parts_ + (row + 3) * batch_lanes, d_sum);
        }
    }

    // A of tile_rows rows of the block from `row` on, the first at `position` of the chunk.
    template <int V>
    ATTEND_ALWAYS_INLINE void triangle_tile(int64_t row, int64_t position) {
        Batch sum[size_t{tile_rows}][size_t{V}];
        ATTEND_UNROLL
        for (int at = 0; at < tile_rows; ++at) {
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) sum[at][v] = Batch(0.0f);
        }
        add_row_product<V, tile_rows>({scratch_.queries + row * sizes_.features, scratch_.input, sizes_.features,
                                       plain_causal_chunk, sizes_.features},
                                      sum);
        float ascending[batch_lanes];
        for (int lane = 0; lane < batch_lanes; ++lane) ascending[lane] = static_cast<float>(lane);
        const Batch lanes = load(ascending);
        float* to = scratch_.triangle + row * plain_causal_chunk;
        ATTEND_UNROLL
        for (int at = 0; at < tile_rows; ++at) {
            float* part = parts_ + (row + at) * batch_lanes;
            Batch total = load(part);
            ATTEND_UNROLL
            for (int v = 0; v < V; ++v) {
                const Batch last(static_cast<float>(position + at - v * batch_lanes));
                const Batch weight = choose(lanes <= last, sum[at][v], Batch(0.0f));
                store(to + at * plain_causal_chunk + v * batch_lanes, weight);
                total = total + weight;
            }
            store(part, total);
        }
    }
    __attribute__((noinline)) void triangle_rows(int64_t row, int64_t position, int64_t keys) {
        if (keys > 2 * batch_lanes)
            triangle_tile<3>(row, position);
        else if (keys > batch_lanes)
            triangle_tile<2>(row, position);
        else
            triangle_tile<1>(row, position);
    }

    void attend_block(int64_t head, int64_t first, int64_t rows, const PrefixState& state, bool triangle) {
        const int64_t position = first + unit_.offset - first_;  // of the first row, in the chunk
        const auto keys_of = [&](int64_t row) {
            return triangle ? least(count_, position + least(row + tile_rows, rows)) : int64_t{0};
        };
        if (triangle)
            for (int64_t row = 0; row < rows; row += tile_rows) triangle_rows(row, position + row, keys_of(row));
        denominators(head, first, rows);

        // Without a triangle its product has no steps; any address will do.
        const float* weights = triangle ? scratch_.triangle : scratch_.queries;
        const float* values = triangle ? values_ : state.sums;
        float* out = run_.output.at(unit_.batch, head, first, 0);
        const int64_t out_stride = run_.output.strides[2];
        for (int64_t row = 0; row < rows; row += tile_rows)
            sizes_.values.each([&](auto tag, int64_t column, int64_t) {
                constexpr int vectors = decltype(tag)::vectors;
                const RowProduct read{scratch_.queries + row * sizes_.features, state.sums + sizes_.rows * column,
                                      sizes_.features, vectors * batch_lanes, state.keys > 0 ? sizes_.features : 0};
                const RowProduct near{weights + row * plain_causal_chunk, values + column, plain_causal_chunk,
                                      value_stride_, keys_of(row)};
                write_row_product<vectors, tile_rows>(read, near, factors_ + row, out + row * out_stride + column,
                                                      out_stride, rows - row);
            });
        if (triangle) add_wild_values(out, out_stride, rows, position);
        if (special_) finish_special(out, out_stride, rows);
    }

    // factors_ = 1 / guard(den) of the rows; rows whose factor is zero or far from one are finished apart.
    void denominators(int64_t head, int64_t first, int64_t rows) {
        Batch block[batch_lanes];
        ATTEND_UNROLL
        for (int row = 0; row < batch_lanes; ++row) block[row] = load(parts_ + row * batch_lanes);
        transpose(block);
        Batch sums = block[0];
        ATTEND_UNROLL
        for (int at = 1; at < batch_lanes; ++at) sums = sums + block[at];
        float dens[batch_lanes];
        store(dens, sums);
        const attend_linear_problem& problem = *run_.problem;
        const double eps = problem.guard_eps;
        special_ = false;
        for (int row = 0; row < batch_lanes; ++row) {
            const auto den = static_cast<double>(dens[row]);
            double guarded = den;
            if (problem.guard == ATTEND_GUARD_ADD) guarded = den + eps;
            if (problem.guard == ATTEND_GUARD_SHIFT && ::fabs(den) <= eps) guarded = den + 2.0 * eps;
            exact_[row] = guarded == 0.0 ? 0.0 : 1.0 / guarded;
            if (problem.guard == ATTEND_GUARD_NUMERATOR) exact_[row] = 1.0;
        }
        for (int row = 0; row < batch_lanes; ++row) {
            const double size = ::fabs(exact_[row]);
            const bool odd = row < rows && (size > 1e30 || size < 1e-30);
            special_ = special_ || odd;
            factors_[row] = odd ? 1.0f : static_cast<float>(exact_[row]);
        }
        if (!run_.lse.present) return;
        for (int64_t row = 0; row < rows; ++row)
            *run_.lse.at(unit_.batch, head, first + row) =
                dens[row] == 0.0f ? -infinity : static_cast<float>(::log(static_cast<double>(dens[row])));
    }

    void finish_special(float* out, int64_t stride, int64_t rows) const {
        for (int64_t row = 0; row < rows; ++row) {
            const double size = ::fabs(exact_[row]);
            if (!(size > 1e30 || size < 1e-30)) continue;
            for (int64_t c = 0; c < sizes_.value_dim; ++c) {
                float& at = out[row * stride + c];
                // Exactly zero, whatever the sums hold.
                at = size == 0.0 ? 0.0f : static_cast<float>(static_cast<double>(at) * exact_[row]);
            }
        }
    }

    const LinearRun& run_;
    const LinearSizes& sizes_;
    LinearScratch scratch_;
    Unit unit_;
    bool elu_;
    float offset_;
    int64_t first_{0}, count_{0}, wild_{0};
    const float* values_{nullptr};  // of the triangle
    int64_t value_stride_{0};
    bool special_{false};
    float parts_[batch_lanes * batch_lanes];
    float factors_[batch_lanes];
    double exact_[batch_lanes];
};

}  // namespace attend::ATTEND_ISA
