// SPDX-License-Identifier: Apache-2.0
// The query side of LinearWorker (linear_worker.hpp, which includes this file): a tile of rows of one head.
#pragma once

#include "attend/toolkit/linear/linear_worker.hpp"

namespace attend::ATTEND_ISA {

template <int V>
inline void LinearWorker::attend_tile(int64_t head, int64_t row, int64_t rows, const PrefixState& state,
                                      bool triangle) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        scratch_.token_rows[lane] = run_.query.at(unit_.batch, head, row + least(lane, rows - 1), 0);
        const int64_t next = row + lane + lanes;
        if (next < unit_.rows)
            prefetch_row(run_.query.at(unit_.batch, head, next, 0), run_.query.strides[3], sizes_.head_dim);
    }
    raw_features<V>(run_.query.strides[3], run_.query_scale, run_.query_angles, run_.query_angles.at(unit_.batch, row),
                    scratch_.queries, scratch_.query_norm, scratch_.query_max);
    if (is_exponential(map_.kind)) {
        for (int64_t lane = 0; lane < lanes; ++lane)
            scratch_.factor[lane] = scratch_.query_max[lane] + (run_.official ? scratch_.query_norm[lane] : 0.0f);
        map_exponential<V>(scratch_.queries, sizes_.raw, map_.kind == ATTEND_FEATURES_HYPERBOLIC, scratch_.factor,
                           run_.official ? run_.feature_eps : 0.0f);
    }

    const bool has_state = state.keys > 0;
    if (has_state) {
        sizes_.values.each([&](auto tag, int64_t column, int64_t used) {
            constexpr int64_t step = decltype(tag)::vectors * batch_lanes;
            product<V>(state.sums + sizes_.rows * column, 1, step, used, scratch_.queries, sizes_.features,
                       scratch_.acc + column * lanes, Into::overwrite, scratch_.factor);
        });
        product<V>(state.z, sizes_.features, 1, 1, scratch_.queries, sizes_.features, scratch_.sum, Into::overwrite,
                   scratch_.factor);
    }

    // References of the rows, and what brings the state to them.
    first_position_ = row + unit_.offset - first_;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t position = first_position_ + least(lane, rows - 1);
        double reference = has_state ? state.r : -__builtin_huge_val(), drift = 0.0;
        double weight = has_state ? state.n : -__builtin_huge_val();
        if (triangle) {
            position_[lane] = static_cast<float>(position);
            const double own = visible_ > 0 ? scratch_.prefix_max[position] : -__builtin_huge_val();
            if (own > reference) reference = own;
            drift = scratch_.drift[position];
            if (sizes_.weight_sums && visible_ > 0) weight = log_add(weight, scratch_.prefix_weight[position]);
        }
        const auto high = static_cast<float>(reference);
        scratch_.reference[lane] = high;
        scratch_.reference_rest[lane] = sizes_.gated ? static_cast<float>(reference - static_cast<double>(high)) : 0.0f;
        scratch_.row_reference[lane] = reference + drift;
        scratch_.row_weight[lane] = weight + drift;
        scratch_.factor[lane] = has_state ? moved(state.r, reference) : 0.0f;
    }
    if (triangle && visible_ > 0) add_triangle<V>(least(count_, first_position_ + rows), has_state);
    write_rows<V>(head, row, rows, state, triangle);
}

// Weights of the chunk's first `keys` keys, each cut off below its own position, and what they add.
template <int V>
inline void LinearWorker::add_triangle(int64_t keys, bool has_state) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t tile = 0; tile * key_lanes < keys; ++tile)
        product<V>(key_features(tile), 1, key_lanes, least(key_lanes, keys - tile * key_lanes), scratch_.queries,
                   sizes_.features, scratch_.triangle + tile * key_lanes * lanes, Into::overwrite, scratch_.factor);

    for (int v = 0; v < V; ++v) {
        const Batch position = load(position_ + v * batch_lanes),
                    reference = load(scratch_.reference + v * batch_lanes),
                    rest = load(scratch_.reference_rest + v * batch_lanes);
        Batch sum(0.0f);
        for (int64_t key = 0; key < keys; ++key) {
            float* at = scratch_.triangle + key * lanes + v * batch_lanes;
            Batch weight = load(at);
            if (sizes_.log_weights)
                weight = weight * exp_nonpositive(min(Batch(0.0f), (Batch(scratch_.log_weight[key]) - reference) +
                                                                       (Batch(scratch_.log_rest[key]) - rest)));
            if (!scratch_.visible[key])
                weight = Batch(0.0f);
            else if (key > first_position_)
                weight = choose(position >= Batch(static_cast<float>(key)), weight, Batch(0.0f));
            store(at, weight);
            sum = sum + weight;
        }
        float* to = scratch_.sum + v * batch_lanes;
        if (has_state) sum = fma(load(to), load(scratch_.factor + v * batch_lanes), sum);
        store(to, sum);
    }

    const Into into = !has_state ? Into::overwrite : sizes_.log_weights ? Into::rescale : Into::add;
    sizes_.values.each([&](auto tag, int64_t column, int64_t used) {
        constexpr int64_t step = decltype(tag)::vectors * batch_lanes;
        product<V>(scratch_.values + key_capacity_ * column, 1, step, used, scratch_.triangle, keys,
                   scratch_.acc + column * lanes, into, scratch_.factor);
    });
    for (int64_t at = 0; at < wild_ && scratch_.wild[at] < keys; ++at) {
        const int64_t key = scratch_.wild[at];
        const float* value = value_row(key);
        for (int64_t column = 0; column < sizes_.value_dim; ++column)
            for (int v = 0; v < V; ++v) {
                float* to = scratch_.acc + column * lanes + v * batch_lanes;
                const Batch old = load(to);
                const Batch added = fma(Batch(value[column * run_.value.strides[3]]),
                                        load(scratch_.triangle + key * lanes + v * batch_lanes), old);
                store(to, choose(load(position_ + v * batch_lanes) >= Batch(static_cast<float>(key)), added, old));
            }
    }
}

// num / guard(den) and LSE. Sums are short of feature_norm e^{reference}, which cancels in the ratio and counts in guard,
// LSE and the bare numerator.
template <int V>
inline void LinearWorker::write_rows(int64_t head, int64_t row, int64_t rows, const PrefixState& state, bool triangle) {
    constexpr int64_t lanes = V * batch_lanes;
    const attend_linear_problem& problem = *run_.problem;
    const double c = sizes_.scan ? static_cast<double>(unit_.largest) : state.c;
    const bool trig = map_.kind == ATTEND_FEATURES_TRIG;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t used = least(lane, rows - 1);
        scratch_.out_rows[lane] = run_.output.at(unit_.batch, head, row + used, 0);
        const int64_t seen =
            state.keys + (triangle && visible_ > 0 ? scratch_.prefix_count[first_position_ + used] : 0);
        const auto den = static_cast<double>(scratch_.sum[lane]);
        const double reference = sizes_.log_weights ? scratch_.row_reference[lane] : 0.0;
        const double share = run_.feature_norm * ::exp(reference - (run_.official && trig ? c : 0.0));
        double factor = den == 0.0 ? 0.0 : 1.0 / den;
        if (problem.guard == ATTEND_GUARD_ADD) {
            const double guarded = problem.guard_eps == 0.0 ? den : den + problem.guard_eps * ::exp(-reference);
            factor = guarded == 0.0 ? 0.0 : 1.0 / guarded;
        } else if (problem.guard == ATTEND_GUARD_SHIFT) {
            const double full = den * share;
            const double guarded = full + 2.0 * problem.guard_eps;
            if (::fabs(full) <= problem.guard_eps) factor = guarded == 0.0 ? 0.0 : share / guarded;
        } else if (problem.guard == ATTEND_GUARD_NUMERATOR) {
            factor = share;
        } else if (problem.guard == ATTEND_GUARD_MAX || problem.guard == ATTEND_GUARD_MAX_SIZE) {
            const double size = problem.guard == ATTEND_GUARD_MAX ? den : ::fabs(den);
            factor = size * share > problem.guard_eps ? 1.0 / size
                     : problem.guard_eps > 0.0        ? share / problem.guard_eps
                                                      : 0.0;
        } else if (problem.guard == ATTEND_GUARD_WEIGHT) {
            const double weight =
                sizes_.log_weights ? ::exp(scratch_.row_weight[lane] - reference) : static_cast<double>(seen);
            const double bound = weight * problem.guard_heads[unit_.kv_head] / run_.feature_norm;
            const double guarded = den < bound ? bound : den;
            factor = guarded > 0.0 ? 1.0 / guarded : guarded != guarded ? guarded : 0.0;
        }
        const double size = ::fabs(factor);
        if (seen == 0 || factor == 0.0) {
            // Exactly zero, whatever the sums hold.
            for (int64_t column = 0; column < sizes_.value_dim; ++column) scratch_.acc[column * lanes + lane] = 0.0f;
            scratch_.factor[lane] = 1.0f;
        } else if (size > 1e30 || size < 1e-30) {
            for (int64_t column = 0; column < sizes_.value_dim; ++column) {
                float& at = scratch_.acc[column * lanes + lane];
                at = static_cast<float>(static_cast<double>(at) * factor);
            }
            scratch_.factor[lane] = 1.0f;
        } else {
            scratch_.factor[lane] = static_cast<float>(factor);
        }
        if (run_.lse.present && lane < rows) {
            double removed = reference;
            if (is_exponential(map_.kind)) {
                const auto largest = static_cast<double>(scratch_.query_max[lane]);
                removed += run_.official ? largest + c : largest - static_cast<double>(scratch_.query_norm[lane]);
            }
            *run_.lse.at(unit_.batch, head, row + lane) =
                seen == 0 || den <= 0.0 ? -infinity
                                        : static_cast<float>(::log(den) + ::log(run_.feature_norm) + removed);
        }
    }
    store_lanes<V>(scratch_.acc, sizes_.value_dim, scratch_.factor, scratch_.out_rows, run_.output.strides[3], rows);
}

}  // namespace attend::ATTEND_ISA
