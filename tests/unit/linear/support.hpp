// SPDX-License-Identifier: Apache-2.0
// One linear problem as dense data, an oracle of its quadratic form in double precision (loops only), and a runner that
// lays the problem out for the engine of any instruction set.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"

#ifndef ATTEND_ISA
#define ATTEND_ISA baseline  // for the structs of linear.h; its own declarations are those of this entry
#endif
#include "attend/toolkit/linear.h"
#include "unit/instruction_sets.hpp"
#include "unit/memory.hpp"

#define ATTEND_TEST_DECLARE(entry)                                                                               \
    extern "C" int64_t attend_linear_features_##entry(const attend_linear_problem*);                             \
    extern "C" int64_t attend_linear_state_rows_##entry(const attend_linear_problem*);                           \
    extern "C" uint64_t attend_linear_workspace_##entry(const attend_linear_problem*, uint32_t);                 \
    extern "C" attend_status attend_linear_forward_##entry(const attend_linear_problem*, const attend_context*); \
    extern "C" uint64_t attend_draw_scratch_##entry(const attend_random_features*);                              \
    extern "C" void attend_draw_features_##entry(const attend_random_features*, double*, float*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE)

namespace attend::linear_test {

using test::LoopHost;
using test::nan_value;
using test::Random;
using test::same_bits;

struct Entry {
    const char* name;
    bool runs_here;
    int64_t (*features)(const attend_linear_problem*);
    int64_t (*state_rows)(const attend_linear_problem*);
    uint64_t (*workspace)(const attend_linear_problem*, uint32_t);
    attend_status (*forward)(const attend_linear_problem*, const attend_context*);
    uint64_t (*draw_scratch)(const attend_random_features*);
    void (*draw)(const attend_random_features*, double*, float*);
};

#define ATTEND_TEST_ENTRY(entry)            \
    Entry{#entry,                           \
          test::cpu_runs_##entry(),         \
          attend_linear_features_##entry,   \
          attend_linear_state_rows_##entry, \
          attend_linear_workspace_##entry,  \
          attend_linear_forward_##entry,    \
          attend_draw_scratch_##entry,      \
          attend_draw_features_##entry},
inline const Entry entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_ENTRY)};

template <class Body>
void for_each_entry(Body body) {
    test::for_each_entry(entries, body);
}

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

// The problem keeps pointers to its tensors.
template <class T>
struct Laid : test::Strided<T> {
    attend_tensor described{};
    Laid(std::vector<int64_t> shape, int layout, const std::vector<T>& dense)
        : test::Strided<T>(std::move(shape), static_cast<test::Strides>(layout), dense) {}
    attend_tensor* tensor() {
        described = test::Strided<T>::tensor();
        return &described;
    }
};

struct LinearCase {
    int64_t batch{1}, q_heads{2}, kv_heads{2}, q_len{17}, kv_len{33}, head_dim{8}, value_dim{8};
    uint32_t kind{ATTEND_FEATURES_ELU};
    bool sum_normalize{false}, official{false}, causal{false}, per_item{false}, want_lse{true};
    int64_t nu{1}, num_features{12}, slots{1}, offset{0}, chunk{0};
    double query_scale{1.0}, key_scale{1.0}, feature_eps{0.0}, kernel_eps{0.0}, guard_eps{0.0};
    uint32_t guard{ATTEND_GUARD_NONE};
    float spread{0.5f};  // of queries and keys
    // Kinds 8 to 10: what the map leaves open, gates (logits where gate_logits is set), a bound for each key head.
    bool variant{false}, item_positions{false}, gated{false}, gate_logits{false};
    double angle{0.0}, feature_factor{1.0};
    int64_t query_offset{0};
    std::vector<double> guard_heads;
    int mask{0}, bias{0};  // 0 none, 1 shared by heads, 2 per head
    bool bias_hides{false};
    int layout{0};     // 0 packed, 1 heads innermost, 2 backwards, 3 inner stride 3
    double wild{0.0};  // share of keys and values that hold NaN or infinity
    std::vector<int64_t> query_lengths, key_lengths;

    std::vector<float> q, k, v, omega, bias_data, gate_data;
    std::vector<uint8_t> mask_data;

    bool projected() const {
        return kind >= ATTEND_FEATURES_SOFTMAX && kind != ATTEND_FEATURES_COSINE && num_features > 0;
    }
    bool unit_rows() const { return kind == ATTEND_FEATURES_SINCOS || kind == ATTEND_FEATURES_ARCCOS; }
    bool stabilised() const { return kind >= ATTEND_FEATURES_SOFTMAX && kind <= ATTEND_FEATURES_TRIG; }
    int64_t mask_heads(int which) const { return which == 2 ? q_heads : 1; }

    void fill(uint64_t seed) {
        Random random(seed);
        q = random.normals(batch * q_heads * q_len * head_dim, spread);
        k = random.normals(batch * kv_heads * kv_len * head_dim, spread);
        v = random.normals(batch * kv_heads * kv_len * value_dim, 1.0f);
        if (projected()) omega = random.normals(slots * num_features * head_dim, 1.0f);
        for (int64_t row = 0; wild > 0.0 && row < batch * kv_heads * kv_len; ++row) {
            const float bad = random.chance(0.5) ? nan_value : std::numeric_limits<float>::infinity();
            if (random.chance(wild)) k[static_cast<size_t>(row * head_dim + random.whole(0, head_dim - 1))] = bad;
            if (random.chance(wild)) v[static_cast<size_t>(row * value_dim + random.whole(0, value_dim - 1))] = bad;
        }
        if (gated) gate_data = random.normals(batch * kv_heads * kv_len, 2.0f);
        for (float& gate : gate_data) {
            if (!gate_logits) gate = 1.0f / (1.0f + std::exp(-gate));
            if (random.chance(0.05)) gate = gate_logits ? 90.0f : random.pick({0.0f, 1.0f});
        }
        mask_data.assign(mask ? static_cast<size_t>(batch * mask_heads(mask) * kv_len) : 0, 1);
        for (uint8_t& one : mask_data) one = random.chance(0.3) ? 0 : 255;
        bias_data.assign(bias ? static_cast<size_t>(batch * mask_heads(bias) * kv_len) : 0, 0.0f);
        for (float& one : bias_data)
            one = bias_hides && random.chance(0.3) ? -std::numeric_limits<float>::infinity() : random.normal();
    }

    std::string text() const {
        std::ostringstream out;
        out << "B " << batch << " Hq " << q_heads << " Hkv " << kv_heads << " Nq " << q_len << " Nk " << kv_len << " D "
            << head_dim << " Dv " << value_dim << " kind " << kind << " official " << official << " M " << num_features
            << "/" << slots << " nu " << nu << " normalise " << sum_normalize << " causal " << causal << " offset "
            << offset << " per_item " << per_item << " chunk " << chunk << " guard " << guard << " eps " << guard_eps
            << " feature_eps " << feature_eps << " kernel_eps " << kernel_eps << " mask " << mask << " bias " << bias
            << bias_hides << " lengths " << query_lengths.size() << key_lengths.size() << " layout " << layout
            << " wild " << wild << " spread " << spread << " variant " << variant << " gated " << gated << gate_logits
            << " query_offset " << query_offset << item_positions;
        return out.str();
    }
};

// ---- the oracle ----

struct Expected {
    std::vector<double> output, lse,
        tolerance;  // tolerance per output element: rounding of the sums, by their condition
};

struct OracleFeatures {
    std::vector<double> phi;  // without the log scale
    double largest{0.0}, norm{0.0};
};

inline std::vector<double> oracle_map(const LinearCase& c, const float* x, double scale, int64_t kv_head,
                                      double& norm) {
    std::vector<double> row(static_cast<size_t>(c.head_dim)), u;
    norm = 0.0;
    for (size_t d = 0; d < row.size(); ++d) {
        row[d] = scale * static_cast<double>(x[d]);
        norm += row[d] * row[d] / 2.0;
    }
    const auto relu = [](double value) { return value > 0.0 || std::isnan(value) ? value : 0.0; };
    std::vector<double> phi;
    if (c.kind == ATTEND_FEATURES_ELU || (c.kind == ATTEND_FEATURES_COSINE && c.variant))
        for (const double value : row) phi.push_back(value > 0.0 ? value + 1.0 : std::exp(value));
    if (c.kind == ATTEND_FEATURES_RELU || (c.kind == ATTEND_FEATURES_COSINE && !c.variant))
        for (const double value : row) phi.push_back(relu(value));
    if (c.kind == ATTEND_FEATURES_DPFP) {
        std::vector<double> r;
        for (const double value : row) r.push_back(relu(value));
        for (const double value : row) r.push_back(relu(-value));
        const int64_t width = 2 * c.head_dim;
        for (int64_t n = 1; n <= c.nu; ++n)
            for (int64_t t = 0; t < width; ++t)
                phi.push_back(r[static_cast<size_t>(t)] * r[static_cast<size_t>((t - n + width) % width)]);
    }
    if (!phi.empty() && c.sum_normalize) {
        double sum = 0.0;
        for (const double value : phi) sum += value;
        for (double& value : phi) value = sum == 0.0 ? 0.0 : value / sum;
    }
    if (!phi.empty()) return phi;
    if (!c.projected()) {
        for (const double value : row) phi.push_back(relu(value) + c.kernel_eps);
        return phi;
    }
    if (c.unit_rows()) {
        const double length = std::sqrt(2.0 * norm), divisor = c.variant ? length + 1e-3 : std::max(length, 1e-6);
        for (double& value : row) value /= divisor;
    }
    const float* omega = c.omega.data() + (c.slots > 1 ? kv_head : 0) * c.num_features * c.head_dim;
    for (int64_t m = 0; m < c.num_features; ++m) {
        double sum = 0.0;
        for (int64_t d = 0; d < c.head_dim; ++d)
            sum += static_cast<double>(omega[m * c.head_dim + d]) * row[static_cast<size_t>(d)];
        u.push_back(sum);
    }
    if (c.kind == ATTEND_FEATURES_ARCCOS)
        for (const double value : u) phi.push_back(c.feature_factor * relu(value));
    if (c.kind == ATTEND_FEATURES_SINCOS)
        for (const double value : u) {
            phi.push_back(c.feature_factor * std::sin(value));
            phi.push_back(c.feature_factor * std::cos(value));
        }
    if (c.kind != ATTEND_FEATURES_PROJECTED_RELU) return c.unit_rows() ? phi : u;
    for (const double value : u)
        phi.push_back(relu(value) / std::sqrt(static_cast<double>(c.num_features)) + c.kernel_eps);
    return phi;
}

// From u to features with a reference taken out: e^{u - d - c} and so on.
inline std::vector<double> oracle_features(const LinearCase& c, const std::vector<double>& u, double norm,
                                           double reference) {
    if (!c.stabilised()) return u;
    const auto m = static_cast<double>(c.num_features);
    const double eps = c.official ? c.feature_eps : 0.0;
    std::vector<double> phi;
    if (c.kind == ATTEND_FEATURES_TRIG) {
        for (const double value : u) phi.push_back(std::cos(value) * std::exp(norm - reference) / std::sqrt(m));
        for (const double value : u) phi.push_back(std::sin(value) * std::exp(norm - reference) / std::sqrt(m));
        return phi;
    }
    const double size = c.kind == ATTEND_FEATURES_HYPERBOLIC ? 1.0 / std::sqrt(2.0 * m) : 1.0 / std::sqrt(m);
    for (const double value : u) phi.push_back(size * (std::exp(value - norm - reference) + eps));
    if (c.kind == ATTEND_FEATURES_HYPERBOLIC)
        for (const double value : u) phi.push_back(size * (std::exp(-value - norm - reference) + eps));
    return phi;
}

inline double oracle_largest(const LinearCase& c, const std::vector<double>& u) {
    double best = minus_infinity;
    for (const double value : u) best = std::max(best, c.kind == ATTEND_FEATURES_HYPERBOLIC ? std::fabs(value) : value);
    return best;
}

inline Expected oracle(const LinearCase& c) {
    Expected result;
    const auto at = [](int64_t a, int64_t b, int64_t n_b, int64_t i, int64_t n_i) {
        return static_cast<size_t>((a * n_b + b) * n_i + i);
    };
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t h = 0; h < c.q_heads; ++h) {
            const int64_t hk = h * c.kv_heads / c.q_heads;
            const int64_t keys = c.key_lengths.empty() ? c.kv_len : c.key_lengths[static_cast<size_t>(b)];
            const int64_t rows = c.query_lengths.empty() ? c.q_len : c.query_lengths[static_cast<size_t>(b)];
            std::vector<std::vector<double>> u(static_cast<size_t>(c.kv_len));
            std::vector<double> norm(u.size()), beta(u.size(), 0.0);
            std::vector<bool> visible(u.size(), false);
            double c_k = minus_infinity;
            for (int64_t j = 0; j < c.kv_len; ++j) {
                const auto key = static_cast<size_t>(j);
                bool seen = j < keys;
                if (c.mask && c.mask_data[at(b, c.mask == 2 ? h : 0, c.mask_heads(c.mask), j, c.kv_len)] == 0)
                    seen = false;
                if (c.bias)
                    beta[key] =
                        static_cast<double>(c.bias_data[at(b, c.bias == 2 ? h : 0, c.mask_heads(c.bias), j, c.kv_len)]);
                if (beta[key] == minus_infinity) seen = false;
                visible[key] = seen;
                if (!seen) continue;
                u[key] =
                    oracle_map(c, c.k.data() + at(b, hk, c.kv_heads, j, c.kv_len) * static_cast<size_t>(c.head_dim),
                               c.key_scale, hk, norm[key]);
                c_k = std::max(c_k, c.kind == ATTEND_FEATURES_TRIG ? norm[key] : oracle_largest(c, u[key]));
            }
            // Gates of the keys and their complements; hidden keys leave everything as it is.
            std::vector<double> kept(u.size(), 1.0), taken(u.size(), 1.0);
            for (size_t key = 0; c.gated && key < u.size(); ++key) {
                if (!visible[key]) continue;
                const double g =
                    static_cast<double>(c.gate_data[at(b, hk, c.kv_heads, static_cast<int64_t>(key), c.kv_len)]);
                kept[key] = std::max(c.gate_logits ? 1.0 / (1.0 + std::exp(-g)) : g, std::exp(-87.0));
                taken[key] = c.gate_logits ? 1.0 / (1.0 + std::exp(g)) : 1.0 - g;
            }
            // The references drop out of everything but guard and epsilons, where only the official ones count.
            const double key_reference = c.stabilised() && c.official ? c_k : 0.0;
            for (int64_t i = 0; i < c.q_len; ++i) {
                double q_norm = 0.0;
                const std::vector<double> q_u =
                    oracle_map(c, c.q.data() + at(b, h, c.q_heads, i, c.q_len) * static_cast<size_t>(c.head_dim),
                               c.query_scale, hk, q_norm);
                double q_reference = 0.0;
                if (c.stabilised())
                    q_reference =
                        c.kind == ATTEND_FEATURES_TRIG ? q_norm : oracle_largest(c, q_u) - (c.official ? 0.0 : q_norm);
                const std::vector<double> phi_q = oracle_features(c, q_u, q_norm, q_reference);
                const int64_t position = i + (c.per_item ? keys - rows : c.offset);
                std::vector<double> num(static_cast<size_t>(c.value_dim), 0.0), size(num.size(), 0.0);
                double den = 0.0, den_size = 0.0, sum_of_weights = 0.0;
                bool any = false;
                std::vector<double> outer(u.size(), 1.0);  // of each key, without its features
                double left = 1.0;
                for (int64_t j = std::min(position, c.kv_len - 1); j >= 0 && c.gated; --j) {
                    outer[static_cast<size_t>(j)] = left * taken[static_cast<size_t>(j)];
                    left *= kept[static_cast<size_t>(j)];
                }
                const int64_t place = c.item_positions ? position : i + c.query_offset;
                for (int64_t j = 0; j < c.kv_len; ++j) {
                    const auto key = static_cast<size_t>(j);
                    if (!visible[key] || i >= rows || (c.causal && j > position)) continue;
                    any = true;
                    const std::vector<double> phi_k = oracle_features(c, u[key], norm[key], key_reference);
                    double weight = 0.0, weight_size = 0.0;
                    for (size_t f = 0; f < phi_q.size(); ++f) {
                        weight += phi_q[f] * phi_k[f];
                        // relu(u) near 0 is as wrong as the sum u, whose terms are not small.
                        const double terms = c.kind == ATTEND_FEATURES_ARCCOS ? c.feature_factor : 0.0;
                        weight_size += (std::fabs(phi_q[f]) + terms) * (std::fabs(phi_k[f]) + terms);
                    }
                    const double share = std::exp(beta[key]) * outer[key];
                    const double turn =
                        c.kind == ATTEND_FEATURES_COSINE ? std::cos(c.angle * static_cast<double>(place - j)) : 1.0;
                    weight *= share * turn;
                    weight_size *= share;
                    sum_of_weights += share;
                    den += weight;
                    den_size += weight_size;
                    for (size_t column = 0; column < num.size(); ++column) {
                        const auto value =
                            static_cast<double>(c.v[at(b, hk, c.kv_heads, j, c.kv_len) * num.size() + column]);
                        num[column] += weight * value;
                        size[column] += weight_size * std::fabs(value);
                    }
                }
                double guarded = den;
                if (c.guard == ATTEND_GUARD_ADD) guarded = den + c.guard_eps;
                if (c.guard == ATTEND_GUARD_SHIFT)
                    guarded = std::fabs(den) <= c.guard_eps ? den + 2.0 * c.guard_eps : den;
                if (c.guard == ATTEND_GUARD_NUMERATOR) guarded = 1.0;
                if (c.guard == ATTEND_GUARD_MAX) guarded = std::max(den, c.guard_eps);
                if (c.guard == ATTEND_GUARD_MAX_SIZE) guarded = std::max(std::fabs(den), c.guard_eps);
                if (c.guard == ATTEND_GUARD_WEIGHT)
                    guarded = std::max(den, sum_of_weights * c.guard_heads[static_cast<size_t>(hk)]);
                for (size_t column = 0; column < num.size(); ++column) {
                    const double o = !any || guarded == 0.0 ? 0.0 : num[column] / guarded;
                    result.output.push_back(o);
                    const double den_share =
                        c.guard == ATTEND_GUARD_NUMERATOR ? 0.0 : std::fabs(o) * den_size / std::fabs(guarded);
                    result.tolerance.push_back(
                        !any || guarded == 0.0 ? 0.0 : 4e-6 * (size[column] / std::fabs(guarded) + den_share) + 1e-12);
                }
                result.lse.push_back(!any || den <= 0.0 ? minus_infinity : std::log(den) + q_reference + key_reference);
            }
        }
    return result;
}

// ---- the engine ----

struct State {
    std::vector<float> sums;
    std::vector<double> scales;
};

struct EngineResult {
    attend_status status{ATTEND_OK};
    std::string text;
    bool clean{true};
    std::vector<float> output, lse;
    State state;
};

// Runs keys [key_begin, key_end) and rows [row_begin, row_end) of a case, all by default.
struct Piece {
    int64_t row_begin{0}, row_end{-1}, key_begin{0}, key_end{-1};
    const State* initial{nullptr};
    bool want_state{false};
};

template <class T>
std::vector<T> slice(const std::vector<T>& dense, int64_t outer, int64_t rows, int64_t width, int64_t begin,
                     int64_t end) {
    std::vector<T> part;
    for (int64_t at = 0; at < outer && !dense.empty(); ++at)
        part.insert(part.end(), dense.begin() + (at * rows + begin) * width, dense.begin() + (at * rows + end) * width);
    return part;
}

inline EngineResult run_engine(const Entry& entry, const LinearCase& c, uint32_t workers, Piece piece = {}) {
    if (piece.row_end < 0) piece.row_end = c.q_len;
    if (piece.key_end < 0) piece.key_end = c.kv_len;
    const int64_t rows = piece.row_end - piece.row_begin, keys = piece.key_end - piece.key_begin;
    const auto cut_q = [&](const auto& dense, int64_t width) {
        return slice(dense, c.batch * c.q_heads, c.q_len, width, piece.row_begin, piece.row_end);
    };
    const auto cut_k = [&](const auto& dense, int64_t width) {
        return slice(dense, c.batch * c.kv_heads, c.kv_len, width, piece.key_begin, piece.key_end);
    };
    const auto cut_mask = [&](const auto& dense, int which) {
        return slice(dense, c.batch * c.mask_heads(which), c.kv_len, 1, piece.key_begin, piece.key_end);
    };
    Laid<float> query({c.batch, c.q_heads, rows, c.head_dim}, c.layout, cut_q(c.q, c.head_dim));
    Laid<float> key({c.batch, c.kv_heads, keys, c.head_dim}, c.layout, cut_k(c.k, c.head_dim));
    Laid<float> value({c.batch, c.kv_heads, keys, c.value_dim}, c.layout, cut_k(c.v, c.value_dim));
    Laid<float> output({c.batch, c.q_heads, rows, c.value_dim}, c.layout, {}),
        lse({c.batch, c.q_heads, rows}, c.layout, {});
    Laid<float> omega({c.slots, c.num_features, c.head_dim}, c.layout, c.omega);
    Laid<uint8_t> mask({c.batch, c.mask_heads(c.mask), 1, keys}, c.layout, cut_mask(c.mask_data, c.mask));
    Laid<float> bias({c.batch, c.mask_heads(c.bias), 1, keys}, c.layout, cut_mask(c.bias_data, c.bias));
    Laid<float> gates({c.batch, c.kv_heads, keys}, c.layout, cut_k(c.gate_data, 1));
    std::vector<int32_t> short_lengths(c.query_lengths.begin(), c.query_lengths.end());
    Laid<int32_t> query_lengths({c.batch}, c.layout, short_lengths);
    Laid<int64_t> key_lengths({c.batch}, c.layout, c.key_lengths);

    attend_linear_problem problem{};
    problem.flags = (c.causal ? ATTEND_LINEAR_CAUSAL : 0u) | (c.per_item ? ATTEND_LINEAR_OFFSET_PER_ITEM : 0u);
    if (c.gated && c.gate_logits) problem.flags |= ATTEND_LINEAR_GATE_LOGITS;
    problem.gates = c.gated ? gates.tensor() : nullptr;
    problem.guard_heads = c.guard_heads.data();
    problem.features.variant = c.variant;
    problem.features.feature_factor = c.feature_factor;
    problem.features.angle = c.angle;
    problem.features.key_offset = piece.key_begin;
    problem.features.query_offset = c.query_offset + piece.row_begin;
    problem.features.item_positions = c.item_positions;
    problem.guard = c.guard;
    problem.guard_eps = c.guard_eps;
    problem.features.kind = c.kind;
    problem.features.sum_normalize = c.sum_normalize;
    problem.features.official = c.official;
    problem.features.nu = c.nu;
    problem.features.projection = c.projected() ? omega.tensor() : nullptr;
    problem.features.query_scale = c.query_scale;
    problem.features.key_scale = c.key_scale;
    problem.features.feature_eps = c.feature_eps;
    problem.features.kernel_eps = c.kernel_eps;
    problem.query = query.tensor();
    problem.key = key.tensor();
    problem.value = value.tensor();
    problem.output = output.tensor();
    problem.lse = c.want_lse ? lse.tensor() : nullptr;
    problem.mask = c.mask ? mask.tensor() : nullptr;
    problem.bias = c.bias ? bias.tensor() : nullptr;
    problem.query_lengths = c.query_lengths.empty() ? nullptr : query_lengths.tensor();
    problem.key_lengths = c.key_lengths.empty() ? nullptr : key_lengths.tensor();
    problem.causal_offset = c.offset;
    problem.chunk = c.chunk;
    EngineResult result;
    attend_linear_state initial{}, final{};
    const int64_t groups = c.mask == 2 || c.bias == 2 ? c.q_heads : c.kv_heads;
    if (piece.initial != nullptr) {
        initial.sums = const_cast<float*>(piece.initial->sums.data());
        initial.scales = const_cast<double*>(piece.initial->scales.data());
        problem.initial = &initial;
    }
    if (piece.want_state) {
        result.state.sums.assign(static_cast<size_t>(c.batch * groups * entry.state_rows(&problem) * (c.value_dim + 1)),
                                 nan_value);
        result.state.scales.assign(static_cast<size_t>(c.batch * groups * ATTEND_LINEAR_STATE_SCALES), 0.0);
        final.sums = result.state.sums.data();
        final.scales = result.state.scales.data();
        problem.final = &final;
    }

    const uint64_t bytes = entry.workspace(&problem, workers);
    std::vector<unsigned char> memory(static_cast<size_t>(bytes) + 192, 0xFF);
    const size_t shift = (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    char text[512] = "";
    attend_error error{sizeof error, sizeof text, ATTEND_OK, 0, text, nullptr};
    const LoopHost host(workers);
    const attend_context context{host.get(), nullptr, memory.data() + shift, bytes, &error, workers, 0};
    result.status = entry.forward(&problem, &context);
    result.text = text;
    for (size_t at = shift + static_cast<size_t>(bytes); at < memory.size(); ++at)
        result.clean = result.clean && memory[at] == 0xFF;
    result.clean = result.clean && output.gaps_untouched() && lse.gaps_untouched();
    result.output = output.values();
    result.lse = c.want_lse ? lse.values() : std::vector<float>{};
    return result;
}

inline bool agrees(float got, double expected, double limit) {
    const auto g = static_cast<double>(got);
    if (std::isnan(expected) || std::isnan(g)) return std::isnan(expected) && std::isnan(g);
    if (std::isinf(expected)) return g == expected;
    return std::fabs(g - expected) <= limit;
}

// relu(u) near 0 is a difference of larger numbers: with few directions the logarithm of a denominator shows it.
inline void compare(const LinearCase& c, const EngineResult& got, const Expected& expected) {
    const double lse_limit = c.kind == ATTEND_FEATURES_PROJECTED_RELU || c.kind == ATTEND_FEATURES_ARCCOS ? 2e-4 : 1e-5;
    REQUIRE(got.output.size() == expected.output.size());
    for (size_t at = 0; at < got.output.size(); ++at)
        if (!agrees(got.output[at], expected.output[at], expected.tolerance[at])) {
            INFO("output[" << at << "] is " << got.output[at] << ", expected " << expected.output[at] << " within "
                           << expected.tolerance[at]);
            CHECK(false);
            break;
        }
    // What a gate of 0 leaves is under the range of a float.
    const auto vanished = [&](size_t at) { return c.gated && expected.lse[at] < -80.0 && got.lse[at] < -80.0f; };
    for (size_t at = 0; c.want_lse && at < got.lse.size(); ++at)
        if (!vanished(at) &&
            !agrees(got.lse[at], expected.lse[at], lse_limit * std::max(1.0, std::fabs(expected.lse[at])))) {
            INFO("lse[" << at << "] is " << got.lse[at] << ", expected " << expected.lse[at]);
            CHECK(false);
            break;
        }
}

// Against the oracle, and the same bits for other numbers of workers.
inline void check_case(const Entry& entry, const LinearCase& c, const Expected& expected) {
    INFO(c.text());
    const EngineResult got = run_engine(entry, c, 1);
    INFO(got.text);
    REQUIRE(got.status == ATTEND_OK);
    CHECK(got.clean);
    compare(c, got, expected);
    for (const uint32_t workers : {2u, 7u}) {
        const EngineResult other = run_engine(entry, c, workers);
        CHECK(other.status == ATTEND_OK);
        CHECK(other.clean);
        CHECK(same_bits(got.output, other.output));
        CHECK(same_bits(got.lse, other.lse));
    }
}

inline void check_everywhere(LinearCase c, uint64_t seed) {
    c.fill(seed);
    const Expected expected = oracle(c);
    for_each_entry([&](const Entry& entry) { check_case(entry, c, expected); });
}

}  // namespace attend::linear_test
