// SPDX-License-Identifier: Apache-2.0
// One worker on one state: keys of a chunk become features, a triangle of weights, and sums; queries read both.
//
// Tokens are lanes everywhere: phi[f][lane]. The four products are then the register tile of gemm/micro_kernel.hpp:
//   triangle[key][query lane] = sum_f phi_k[f][key] phi_q[f][query]      read        acc[c][query lane] = sum_f S[f][c] phi_q[f][query]
//   acc[c][query lane]       += sum_key v[key][c] triangle[key][query]   absorb      S[f][column lane] += sum_key phi_k[f][key] v[key][column]
//
// Keys may carry a logarithmic weight a_j: bias, and what the stabiliser took out of their features. A state holds sums
// of e^{a_j - r}; inside a chunk row i has a reference of its own, the largest a_j that it sees, so that a key can change
// nothing before itself, not even a rounding. Gates add a drift: with D_j the sum of ln g up to key j of the chunk, a_j
// has ln(1 - g_j) - D_j, and row i counts e^{D_i} times what it sums; the state moves on by e^{D} of the whole chunk.
#pragma once

#include "attend/toolkit/linear/features/cosine_reweight.hpp"
#include "attend/toolkit/linear/features/elementwise.hpp"
#include "attend/toolkit/linear/features/favor_plus.hpp"
#include "attend/toolkit/linear/features/random_fourier.hpp"
#include "attend/toolkit/linear/gates.hpp"
#include "attend/toolkit/linear/linear_problem.hpp"
#include "attend/toolkit/linear/plain_rows.hpp"
#include "attend/toolkit/tile/values.hpp"

namespace attend::ATTEND_ISA {

class LinearWorker {
public:
    LinearWorker(const LinearRun& run, const LinearScratch& scratch, const Unit& unit)
        : run_(run),
          sizes_(run.sizes),
          map_(run.problem->features),
          scratch_(scratch),
          unit_(unit),
          shape_(state_shape(run.sizes, map_.kind)),
          key_capacity_(run.sizes.tiles() * key_lanes) {}

    static StateShape state_shape(const LinearSizes& sizes, uint32_t kind) {
        return {kind == ATTEND_FEATURES_TRIG ? 0 : sizes.features, sizes.rows, sizes.values};
    }
    const StateShape& shape() const { return shape_; }

    // Largest u (largest d of trigonometric features) of the visible keys in [begin, end).
    float scan(int64_t begin, int64_t end) {
        see(begin, end);
        float best = -infinity;
        if (visible_ == 0) return best;
        for (int64_t tile = 0; tile * key_lanes < count_; ++tile) raw_keys(tile);
        const float* of = map_.kind == ATTEND_FEATURES_TRIG ? scratch_.norm : scratch_.largest;
        for (int64_t key = 0; key < count_; ++key)
            if (scratch_.visible[key] && of[key] > best) best = of[key];
        return best;
    }

    // Features, weights and values of the keys [begin, end), to be absorbed into a state whose reference is `c`.
    void load_keys(int64_t begin, int64_t end, double c);
    void absorb(PrefixState& to);
    int64_t visible_keys() const { return visible_; }

    // Output of rows [begin, end) of a head from a state, and where `triangle` is set from the chunk's keys up to each
    // row's position.
    void attend_rows(int64_t head, int64_t begin, int64_t end, const PrefixState& state, bool triangle) {
        if (run_.plain && !triangle && state.keys > 0)
            return PlainWorker(run_, scratch_, unit_).attend_rows(head, begin, end, state, false);
        for (int64_t row = begin; row < end; row += max_lanes) {
            const int64_t rows = least(max_lanes, end - row);
            if (state.keys == 0 && (!triangle || visible_ == 0))
                zero_rows(head, row, row + rows);
            else if (rows > 2 * batch_lanes)
                attend_tile<3>(head, row, rows, state, triangle);
            else if (rows > batch_lanes)
                attend_tile<2>(head, row, rows, state, triangle);
            else
                attend_tile<1>(head, row, rows, state, triangle);
        }
    }

    void zero_rows(int64_t head, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            float* to = run_.output.at(unit_.batch, head, row, 0);
            for (int64_t column = 0; column < sizes_.value_dim; ++column) to[column * run_.output.strides[3]] = 0.0f;
            if (run_.lse.present) *run_.lse.at(unit_.batch, head, row) = -infinity;
        }
    }

private:
    // Which keys of [begin, end) can be seen by any row, and their biases.
    void see(int64_t begin, int64_t end) {
        first_ = begin;
        count_ = end - begin;
        visible_ = 0;
        drift_ = 0.0;
        for (int64_t key = 0; key < key_capacity_; ++key) {
            bool seen = key < count_;
            float bias = 0.0f;
            if (seen && run_.mask.present) seen = *run_.mask.at(unit_.batch, unit_.first_head, 0, begin + key) != 0;
            if (seen && run_.bias.present) {
                bias = *run_.bias.at(unit_.batch, unit_.first_head, 0, begin + key);
                seen = bias != -infinity;
            }
            double weight = static_cast<double>(bias);
            if (seen && sizes_.gated) {
                const LogGate gate = log_gate(*run_.gates.at(unit_.batch, unit_.kv_head, begin + key),
                                              (run_.problem->flags & ATTEND_LINEAR_GATE_LOGITS) != 0);
                drift_ += gate.kept;
                weight += gate.taken - drift_;
                seen = weight != -__builtin_huge_val();  // a gate of 1 takes nothing in
            }
            scratch_.visible[key] = seen ? 1 : 0;
            scratch_.log_weight[key] = seen ? static_cast<float>(weight) : -infinity;
            scratch_.log_rest[key] =
                seen ? static_cast<float>(weight - static_cast<double>(scratch_.log_weight[key])) : 0.0f;
            scratch_.drift[key] = drift_;
            visible_ += seen ? 1 : 0;
        }
    }

    // Products get scratch_.factor where it is not read, too: gcc warns of what happens to a null pointer that never does.
    float* key_features(int64_t tile) const { return scratch_.keys + tile * sizes_.rows * key_lanes; }

    // A row that is read soon: gathering sixteen rows at a time is an order in which processors foresee nothing (10 to 15 %
    // of calls that do not fit their caches).
    static void prefetch_row(const float* row, int64_t stride, int64_t count) {
        if (stride != 1) return;
        for (int64_t at = 0; at < count; at += 16) __builtin_prefetch(row + at);
    }

    void raw_keys(int64_t tile) {
        for (int64_t lane = 0; lane < key_lanes; ++lane) {
            const int64_t next = first_ + tile * key_lanes + lane + sizes_.chunk;
            if (next < unit_.keys)
                prefetch_row(run_.key.at(unit_.batch, unit_.kv_head, next, 0), run_.key.strides[3], sizes_.head_dim);
        }
        for (int64_t lane = 0; lane < key_lanes; ++lane)
            scratch_.token_rows[lane] =
                run_.key.at(unit_.batch, unit_.kv_head, first_ + least(tile * key_lanes + lane, count_ - 1), 0);
        raw_features<max_vectors>(run_.key.strides[3], run_.key_scale, run_.key_angles,
                                  run_.key_angles.at(unit_.batch, first_ + tile * key_lanes), key_features(tile),
                                  scratch_.norm + tile * key_lanes, scratch_.largest + tile * key_lanes);
    }

    // Features of the tokens in token_rows; those of exponential maps are still u, with |x|^2 / 2 and the largest u.
    template <int V>
    void raw_features(int64_t stride, float scale, const AngleTable& angles, int64_t angle, float* phi, float* norm,
                      float* largest) const {
        constexpr int64_t lanes = V * batch_lanes;
        const int64_t head_dim = sizes_.head_dim;
        const bool direct =
            !run_.projection.present && map_.kind != ATTEND_FEATURES_DPFP && map_.kind != ATTEND_FEATURES_COSINE;
        float* x = direct ? phi : scratch_.input;
        load_lanes<V>(scratch_.token_rows, stride, head_dim, scale, x);
        if (map_.kind == ATTEND_FEATURES_COSINE)
            return map_cosine<V>(x, head_dim, map_.variant != 0, angles.sines + angle, angles.cosines + angle, phi);
        if (map_.kind == ATTEND_FEATURES_SINCOS || map_.kind == ATTEND_FEATURES_ARCCOS)
            unit_rows<V>(x, head_dim, map_.variant != 0);
        if (run_.projection.present) {
            const TensorView<const float, 3>& omega = run_.projection;
            if (is_stabilised(map_.kind)) half_square_norm<V>(x, head_dim, norm);
            product<V>(omega.at(omega.shape[0] > 1 ? unit_.kv_head : 0), omega.strides[1], omega.strides[2], sizes_.raw,
                       x, head_dim, phi, Into::overwrite, scratch_.factor);
            if (is_exponential(map_.kind))
                largest_direction<V>(phi, sizes_.raw, map_.kind == ATTEND_FEATURES_HYPERBOLIC, largest);
        }
        if (map_.kind == ATTEND_FEATURES_ELU)
            map_elu(phi, head_dim * lanes);
        else if (map_.kind == ATTEND_FEATURES_RELU)
            map_relu(phi, head_dim * lanes, 1.0f, 0.0f);
        else if (map_.kind == ATTEND_FEATURES_DPFP)
            map_dpfp<V>(x, head_dim, map_.nu, phi);
        else if (map_.kind == ATTEND_FEATURES_TRIG || map_.kind == ATTEND_FEATURES_SINCOS)
            map_trig(phi, sizes_.raw * lanes);
        else if (map_.kind == ATTEND_FEATURES_ARCCOS)
            map_relu(phi, sizes_.raw * lanes, 1.0f, 0.0f);
        else if (map_.kind == ATTEND_FEATURES_PROJECTED_RELU)
            map_relu(phi, sizes_.raw * lanes, relu_factor(), run_.kernel_eps);
        if (map_.sum_normalize && map_.kind <= ATTEND_FEATURES_DPFP) normalize_sum<V>(phi, sizes_.features);
    }
    float relu_factor() const {
        return run_.projection.present ? static_cast<float>(1.0 / ::sqrt(static_cast<double>(sizes_.raw))) : 1.0f;
    }

    // Lanes of keys that nobody sees: their features must not meet a product.
    void hide_lanes(int64_t tile) const {
        const uint8_t* visible = scratch_.visible + tile * key_lanes;
        for (int v = 0; v < max_vectors; ++v) {
            uint32_t bits = 0;
            for (int lane = 0; lane < batch_lanes; ++lane)
                bits |= static_cast<uint32_t>(visible[v * batch_lanes + lane]) << lane;
            if (bits == all_lane_bits) continue;
            const Mask seen = mask_from_bits(bits);
            float* at = key_features(tile) + v * batch_lanes;
            for (int64_t f = 0; f < sizes_.features; ++f)
                store(at + f * key_lanes, choose(seen, load(at + f * key_lanes), Batch(0.0f)));
        }
    }

    void pack_values();
    void add_feature_sums(int64_t tile, float* z, bool first) const;
    template <int V>
    void attend_tile(int64_t head, int64_t row, int64_t rows, const PrefixState& state, bool triangle);
    template <int V>
    void add_triangle(int64_t keys, bool has_state);
    template <int V>
    void write_rows(int64_t head, int64_t row, int64_t rows, const PrefixState& state, bool triangle);

    const float* value_row(int64_t key) const { return run_.value.at(unit_.batch, unit_.kv_head, first_ + key, 0); }

    const LinearRun& run_;
    const LinearSizes& sizes_;
    const attend_feature_map& map_;
    LinearScratch scratch_;
    Unit unit_;
    StateShape shape_;
    int64_t key_capacity_;
    // The chunk at hand.
    int64_t first_{0}, count_{0}, visible_{0}, wild_{0};
    double c_{0.0}, heaviest_{0.0};
    double drift_{0.0}, weight_{0.0};  // of the whole chunk
    int64_t first_position_{0};        // of the query tile, counted from the chunk
    float position_[max_lanes];
};

inline void LinearWorker::load_keys(int64_t begin, int64_t end, double c) {
    see(begin, end);
    if (visible_ == 0) return;
    const int64_t tiles = (count_ + key_lanes - 1) / key_lanes;
    for (int64_t tile = 0; tile < tiles; ++tile) raw_keys(tile);

    // The reference of the features: what is known of all keys, or the largest so far.
    const bool trig = map_.kind == ATTEND_FEATURES_TRIG;
    c_ = 0.0;
    if (run_.official) {
        const float* of = trig ? scratch_.norm : scratch_.largest;
        c_ = sizes_.scan ? static_cast<double>(unit_.largest) : c;
        for (int64_t key = 0; key < count_; ++key)
            if (scratch_.visible[key] && static_cast<double>(of[key]) > c_) c_ = static_cast<double>(of[key]);
    }
    for (int64_t key = 0; key < count_; ++key) {
        float& shift = scratch_.largest[key];
        if (trig)
            scratch_.log_weight[key] += scratch_.norm[key];
        else if (run_.official)
            shift = scratch_.norm[key] + static_cast<float>(c_);
        else if (is_exponential(map_.kind))
            scratch_.log_weight[key] += shift - scratch_.norm[key];
    }
    for (int64_t tile = 0; tile < tiles; ++tile) {
        if (is_exponential(map_.kind))
            map_exponential<max_vectors>(key_features(tile), sizes_.raw, map_.kind == ATTEND_FEATURES_HYPERBOLIC,
                                         scratch_.largest + tile * key_lanes, sizes_.scan ? run_.feature_eps : 0.0f);
        hide_lanes(tile);
        if (sizes_.rows > sizes_.features)
            for (int64_t lane = 0; lane < key_lanes; ++lane)
                key_features(tile)[sizes_.features * key_lanes + lane] =
                    scratch_.visible[tile * key_lanes + lane] ? 1.0f : 0.0f;
    }

    heaviest_ = weight_ = -__builtin_huge_val();
    int32_t seen = 0;
    const bool weigh = sizes_.weight_sums && sizes_.log_weights;
    for (int64_t key = 0; key < count_; ++key) {
        if (scratch_.visible[key]) {
            ++seen;
            const double weight =
                static_cast<double>(scratch_.log_weight[key]) + static_cast<double>(scratch_.log_rest[key]);
            if (weight > heaviest_) heaviest_ = weight;
            if (weigh) weight_ = log_add(weight_, weight);
        }
        scratch_.prefix_max[key] = heaviest_;
        scratch_.prefix_weight[key] = weight_;
        scratch_.prefix_count[key] = seen;
    }
    pack_values();
}

// Values of the chunk as lanes, hidden rows as zeros. Where a row must not see a later one, rows that are not finite are
// zeros too and listed, to be added lane by lane.
inline void LinearWorker::pack_values() {
    wild_ = 0;
    const int64_t stride = run_.value.strides[3];
    for (int64_t key = 0; key < count_; ++key) {
        bool copied = scratch_.visible[key] != 0;
        const float* from = value_row(key);
        if (first_ + key + sizes_.chunk < unit_.keys)
            prefetch_row(value_row(key + sizes_.chunk), stride, sizes_.value_dim);
        if (copied && sizes_.causal && !row_is_finite(from, stride, sizes_.value_dim)) {
            scratch_.wild[wild_++] = static_cast<int32_t>(key);
            copied = false;
        }
        sizes_.values.each([&](auto tile, int64_t column, int64_t used) {
            constexpr int64_t lanes = decltype(tile)::vectors * batch_lanes;
            float* to = scratch_.values + key_capacity_ * column + key * lanes;
            int64_t lane = 0;
            if (copied && stride == 1) {
                for (; lane + batch_lanes <= used; lane += batch_lanes) store(to + lane, load(from + column + lane));
                if (lane < used) {
                    store(to + lane, load_tail(from + column + lane, used - lane));
                    lane += batch_lanes;
                }
            } else if (copied) {
                for (; lane < used; ++lane) to[lane] = from[(column + lane) * stride];
            }
            for (; lane < lanes; ++lane) to[lane] = 0.0f;
        });
    }
}

// z[f] += sum over the lanes of a tile of phi_k[f][lane] weight[lane]: vectors of row sums by transposing 16 at a time.
inline void LinearWorker::add_feature_sums(int64_t tile, float* z, bool first) const {
    const float* phi = key_features(tile);
    const float* weight = scratch_.weight + tile * key_lanes;
    Batch factor[size_t{max_vectors}];
    for (int v = 0; v < max_vectors; ++v) factor[v] = load(weight + v * batch_lanes);
    const auto row_sum = [&](int64_t row) {
        Batch sum = load(phi + row * key_lanes) * factor[0];
        for (int v = 1; v < max_vectors; ++v) sum = fma(load(phi + row * key_lanes + v * batch_lanes), factor[v], sum);
        return sum;
    };
    for (int64_t row = 0; row < sizes_.rows; row += batch_lanes) {
        Batch block[batch_lanes];
        for (int64_t at = 0; at < batch_lanes; ++at)
            block[at] = row + at < sizes_.rows ? row_sum(row + at) : Batch(0.0f);
        transpose(block);
        Batch sums = block[0];
        for (int at = 1; at < batch_lanes; ++at) sums = sums + block[at];
        store(z + row, first ? sums : load(z + row) + sums);
    }
}

// Adds the chunk to a state. The packed values are weighted in place: nothing reads the chunk afterwards.
inline void LinearWorker::absorb(PrefixState& to) {
    if (visible_ == 0) return;
    const bool fresh = to.keys == 0;
    double r = 0.0;
    if (sizes_.log_weights) r = !fresh && to.r > heaviest_ ? to.r : heaviest_;
    const double c = !fresh && to.c > c_ ? to.c : c_;
    if (!fresh) raise(shape_, to, c, r);
    to.c = c;
    to.r = r;

    const auto high = static_cast<float>(r);
    const Batch r_high(high), r_rest(sizes_.gated ? static_cast<float>(r - static_cast<double>(high)) : 0.0f);
    for (int64_t key = 0; key < key_capacity_; key += batch_lanes) {
        Batch weight(1.0f);
        if (sizes_.log_weights)
            weight = exp_nonpositive(min(
                Batch(0.0f), (load(scratch_.log_weight + key) - r_high) + (load(scratch_.log_rest + key) - r_rest)));
        store(scratch_.weight + key, weight);
    }
    for (int64_t key = 0; key < key_capacity_; ++key)
        if (!scratch_.visible[key]) scratch_.weight[key] = 0.0f;

    sizes_.values.each([&](auto tag, int64_t column, int64_t) {
        constexpr int vectors = decltype(tag)::vectors;
        constexpr int64_t lanes = vectors * batch_lanes;
        float* values = scratch_.values + key_capacity_ * column;
        if (sizes_.log_weights)
            for (int64_t key = 0; key < count_; ++key)
                for (int v = 0; v < vectors; ++v) {
                    float* at = values + key * lanes + v * batch_lanes;
                    store(at, load(at) * Batch(scratch_.weight[key]));
                }
        for (int64_t tile = 0; tile * key_lanes < count_; ++tile)
            product<vectors>(key_features(tile), key_lanes, 1, sizes_.rows, values + tile * key_lanes * lanes,
                             least(key_lanes, count_ - tile * key_lanes), to.sums + sizes_.rows * column,
                             fresh && tile == 0 ? Into::overwrite : Into::add, scratch_.factor);
        for (int64_t at = 0; at < wild_; ++at) {
            const int64_t key = scratch_.wild[at], lane = key % key_lanes;
            const float* from = value_row(key);
            const float* phi = key_features(key / key_lanes) + lane;
            for (int64_t row = 0; row < sizes_.rows; ++row)
                for (int64_t c_lane = 0; c_lane < lanes && column + c_lane < sizes_.value_dim; ++c_lane)
                    to.sums[sizes_.rows * column + row * lanes + c_lane] +=
                        phi[row * key_lanes] * (scratch_.weight[key] * from[(column + c_lane) * run_.value.strides[3]]);
        }
    });
    for (int64_t tile = 0; tile * key_lanes < count_; ++tile) add_feature_sums(tile, to.z, fresh && tile == 0);
    to.keys += visible_;
    to.n = log_add(fresh ? -__builtin_huge_val() : to.n, weight_) + drift_;
    to.r += drift_;
    to.decay += drift_;
}

}  // namespace attend::ATTEND_ISA

#include "attend/toolkit/linear/linear_rows.hpp"
