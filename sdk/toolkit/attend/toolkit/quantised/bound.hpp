// SPDX-License-Identifier: Apache-2.0
// The largest error that an element of the output may have, from the data: how far a score may be off, for every query
// and the keys within its length, and what that and the rounding of weights and values does to the output.
//
//   eps_i  int8   |scale| max_j (sk/2 |q'|_1 + sq/2 |khat_j|_1) (1 + 2^-12) + 2^-18 |scale| |q'|_2 max_j |k'_j|_2
//          e4m3   in place of half a scale, for each element y: max(2^-4 |y|, 2^-10 its scale)
//          bf16   |scale| max_j sum_d |q_d| |k_d| (2^-7 + 2^-13)
//   error  tanh(eps / 2) (max V - min V) + (uP + uV + uP uV + 2^-17) max |V|, and for e4m3 weights that underflow
//          2^-18 Nk max |V|, for e4m3 values 2^-10 of the channel's scale
//
// Two softmaxes whose scores differ by at most eps differ by at most tanh(eps / 2) in total variation. Dropout makes V
// 0 or V / (1 - p). Keys are taken as if each query saw all of them.
#pragma once

#include <math.h>

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/quantised/quantised_run.hpp"

namespace attend::ATTEND_ISA {

struct BoundRun {
    const QuantisedRun* run;
    double dropout;
    float* eps;  // [B, Hq, parts]
    char* memory;
    uint64_t slot_bytes;

    static constexpr int64_t part = 32;  // queries that meet the keys together
    static int64_t parts(const QuantisedRun& run) { return (run.q_len + part - 1) / part; }
    static uint64_t bytes_of_slot(const QuantisedRun& run) {
        return Workspace::rounded(static_cast<uint64_t>(2 * part * row_floats(run)) * sizeof(float));
    }
    static int64_t row_floats(const QuantisedRun& run) {
        return ((run.scaled() ? run.key_dim : run.head_dim) + batch_lanes - 1) / batch_lanes * batch_lanes;
    }
};

// Sizes of a row's elements, what an element may be off by (e4m3), and norms.
struct BoundRow {
    float one, two, scale;
};
inline float dot_of(const float* a, const float* b, int64_t count) {
    Batch sums[2] = {Batch(0.0f), Batch(0.0f)};
    int64_t d = 0;
    for (; d + 2 * batch_lanes <= count; d += 2 * batch_lanes) {
        sums[0] = fma(load(a + d), load(b + d), sums[0]);
        sums[1] = fma(load(a + d + batch_lanes), load(b + d + batch_lanes), sums[1]);
    }
    if (d < count) sums[0] = fma(load(a + d), load(b + d), sums[0]);
    return reduce_add(sums[0] + sums[1]);
}
inline BoundRow measure(float* row, int64_t count, int64_t padded, float scale, bool floating, float* slack) {
    double one = 0.0, two = 0.0;
    for (int64_t d = 0; d < count; ++d) {
        row[d] = __builtin_fabsf(row[d]);
        one += static_cast<double>(row[d]);
        two += static_cast<double>(row[d]) * static_cast<double>(row[d]);
        if (floating) slack[d] = row[d] * 0x1p-4f > scale * 0x1p-10f ? row[d] * 0x1p-4f : scale * 0x1p-10f;
    }
    for (int64_t d = count; d < padded; ++d) row[d] = slack[d] = 0.0f;
    return {static_cast<float>(one), static_cast<float>(__builtin_sqrt(two)), scale};
}

// The largest eps of the queries [first, end) of a head.
inline float largest_eps(const QuantisedRun& run, int64_t item, int64_t head, int64_t first, int64_t end,
                         float* memory) {
    const int64_t count = run.scaled() ? run.key_dim : run.head_dim, padded = BoundRun::row_floats(run);
    const int64_t key_head = run.kv_head_of(head), keys = run.key_length(item);
    const bool floating = run.scores == Format::e4m3;
    float* const slacks = memory + BoundRun::part * padded;
    BoundRow queries[BoundRun::part];
    for (int64_t i = first; i < end; ++i) {
        float* const row = memory + (i - first) * padded;
        float scale = 1.0f;
        if (run.scaled()) {
            run.turn_query(item, head, i, row);
            scale = run.query_scale(item, head, i);
        } else {
            widen_row(run.query.storage, run.query.at(item, head, i), run.query.step(), count, row);
        }
        queries[i - first] = measure(row, count, padded, scale, floating, slacks + (i - first) * padded);
    }
    alignas(64) float key[longest_row + batch_lanes], slack[longest_row + batch_lanes],
        decoded[longest_row + batch_lanes];
    float worst[BoundRun::part] = {}, longest = 0.0f;
    for (int64_t j = 0; j < keys; ++j) {
        float scale = 1.0f, decoded_one = 0.0f;
        if (run.scaled()) {
            run.turn_key(item, key_head, j, key);
            scale = run.key_scale(item, key_head, j);
            const int8_t* codes = run.codes + ((item * run.kv_heads + key_head) * run.kv_len + j) * run.key_dim;
            for (int64_t d = 0; d < count; ++d) {
                const float code = floating ? e4m3_value(static_cast<uint8_t>(codes[d])) : static_cast<float>(codes[d]);
                decoded[d] = __builtin_fabsf(code) * scale;
                decoded_one += decoded[d];
            }
            for (int64_t d = count; d < padded; ++d) decoded[d] = 0.0f;
        } else {
            widen_row(run.key.storage, run.key.at(item, key_head, j), run.key.step(), count, key);
        }
        const BoundRow measured = measure(key, count, padded, scale, floating, slack);
        longest = measured.two > longest ? measured.two : longest;
        for (int64_t i = 0; i < end - first; ++i) {
            const float *row = memory + i * padded, *row_slack = slacks + i * padded;
            const float off = !run.scaled() ? dot_of(row, key, padded)
                              : floating    ? dot_of(row, slack, padded) + dot_of(row_slack, decoded, padded)
                                            : 0.5f * (measured.scale * queries[i].one + queries[i].scale * decoded_one);
            // NaN makes the bound NaN, which no max_error is above.
            worst[i] = off > worst[i] || off != off ? off : worst[i];
        }
    }
    float eps = 0.0f;
    for (int64_t i = 0; i < end - first; ++i) {
        const float now = run.scaled() ? worst[i] * (1.0f + 0x1p-12f) + 0x1p-18f * queries[i].two * longest
                                       : worst[i] * (0x1p-7f + 0x1p-13f);
        eps = now > eps || now != now ? now : eps;
    }
    return __builtin_fabsf(run.scale) * eps;
}

inline attend_status find_eps(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const BoundRun& bound = *static_cast<const BoundRun*>(user);
    const QuantisedRun& run = *bound.run;
    const int64_t parts = BoundRun::parts(run);
    for (int64_t at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
        const int64_t head = at / parts, item = head / run.q_heads, valid = run.query_length(item);
        const int64_t first = at % parts * BoundRun::part;
        const int64_t last = first + BoundRun::part < valid ? first + BoundRun::part : valid;
        bound.eps[at] = first < last ? largest_eps(run, item, head % run.q_heads, first, last,
                                                   reinterpret_cast<float*>(bound.memory + slot * bound.slot_bytes))
                                     : 0.0f;
    }
    return ATTEND_OK;
}

// The largest error of the outputs of a key head's queries, whose scores are off by eps at most.
inline double output_bound(const QuantisedRun& run, int64_t item, int64_t head, double eps, double dropout) {
    const auto unit = [](Format format) {
        return format == Format::bf16 ? 0x1p-8 : format == Format::e4m3 ? 0x1p-4 : 0.0;
    };
    const double weight = unit(run.weights), value = unit(run.values), kept = 1.0 / (1.0 - dropout);
    const double rounding = weight + value + weight * value + 0x1p-17;
    const int64_t keys = run.key_length(item), first = (item * run.kv_heads + head) * run.value_dim;
    double worst = 0.0;
    for (int64_t c = 0; c < run.value_dim && keys > 0; ++c) {
        double low = INFINITY, high = -INFINITY, size = 0.0;
        const double mean = run.smooth_values ? static_cast<double>(run.value_mean[first + c]) : 0.0;
        for (int64_t j = 0; j < keys; ++j) {
            float element;
            widen_row(run.value.storage, run.value.at(item, head, j) + c * run.value.strides[3], 1, 1, &element);
            const double v = static_cast<double>(element), turned = ::fabs(v - mean);
            low = v < low || v != v ? v : low;
            high = v > high || v != v ? v : high;
            size = turned > size || turned != turned ? turned : size;
        }
        if (dropout > 0.0) {
            low = low < 0.0 ? low : 0.0;
            high = high > 0.0 ? high : 0.0;
        }
        double error = ::tanh(0.5 * eps) * (high - low) + rounding * size;
        if (run.weights == Format::e4m3) error += 0x1p-18 * static_cast<double>(keys) * size;
        if (run.value_scales != nullptr) error += 0x1p-10 * static_cast<double>(run.value_scales[first + c]);
        error *= kept;
        worst = error > worst || error != error ? error : worst;
    }
    return worst;
}

inline attend_status find_bound(BoundRun& bound, const attend_context* context, double& worst) {
    const QuantisedRun& run = *bound.run;
    const int64_t parts = BoundRun::parts(run), heads = run.batch * run.q_heads;
    worst = 0.0;
    const attend_status status = parallel_items(context, static_cast<uint64_t>(heads * parts), find_eps, &bound);
    if (status != ATTEND_OK) return status;
    for (int64_t head = 0; head < heads; ++head) {
        float eps = 0.0f;
        for (int64_t at = 0; at < parts; ++at) {
            const float now = bound.eps[head * parts + at];
            eps = now > eps || now != now ? now : eps;
        }
        const double now = output_bound(run, head / run.q_heads, run.kv_head_of(head % run.q_heads),
                                        static_cast<double>(eps), bound.dropout);
        worst = now > worst || now != now ? now : worst;
    }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA
