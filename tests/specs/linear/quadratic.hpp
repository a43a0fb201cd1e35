// SPDX-License-Identifier: Apache-2.0
// The quadratic form that linear mechanisms stand for, in double precision: o_i = sum_j a_ij v_j / guard(sum_j a_ij) over the
// visible keys j, with masks and biases per key. A spec says what a_ij and the guard are. Random directions are made here
// once more from their definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "specs/spec.hpp"

namespace specs::linear {

using Row = std::vector<double>;
constexpr double minus_infinity = -std::numeric_limits<double>::infinity();
inline std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

inline Row row_of(const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t n, double factor = 1.0) {
    Row row;
    for (std::int64_t c = 0; c < tensor.shape[3]; ++c) row.push_back(factor * oracle::View{&tensor}(b, h, n, c));
    return row;
}
inline double dot(const Row& a, const Row& b) {
    double sum = 0;
    for (std::size_t at = 0; at < a.size(); ++at) sum += a[at] * b[at];
    return sum;
}
// Where a mask or bias keeps what belongs to key j.
inline std::int64_t key_place(const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t j) {
    const std::size_t rank = tensor.shape.size();
    const std::int64_t index4[4] = {b, h, 0, j}, index3[3] = {b, 0, j};
    std::int64_t where = 0;
    for (std::size_t axis = 0; axis < rank; ++axis)
        if (tensor.shape[axis] != 1)
            where += (rank == 3 ? index3[axis] : index4[4 - rank + axis]) * tensor.strides[axis];
    return where;
}

// One head of one item of a call.
struct Site {
    const Tensor *query, *key, *value;
    std::int64_t b, h, kv, keys, rows, offset;
    std::vector<char> visible;  // of each key, apart from causality
    Row beta;
};
inline Site site_of(const Call& call, std::int64_t b, std::int64_t h) {
    const ForwardInputs& in = *call.inputs;
    Site site{};
    site.query = &in.query;
    site.key = in.key ? &*in.key : site.query;
    site.value = in.value ? &*in.value : site.key;
    site.b = b;
    site.h = h;
    site.kv = h * site.key->shape[1] / site.query->shape[1];
    site.keys = length_of(in.key_lengths, b, site.key->shape[2]);
    site.rows = length_of(in.query_lengths, b, site.query->shape[2]);
    site.offset = offset_of(call, b);
    for (std::int64_t j = 0; j < site.key->shape[2]; ++j) {
        const double beta =
            in.bias ? static_cast<double>(in.bias->as<const float>()[key_place(*in.bias, b, h, j)]) : 0.0;
        site.beta.push_back(beta);
        site.visible.push_back(j < site.keys && beta != minus_infinity &&
                               (!in.mask || in.mask->as<const std::uint8_t>()[key_place(*in.mask, b, h, j)] != 0));
    }
    return site;
}

struct Head {
    std::function<double(std::int64_t i, std::int64_t j)> weight;                      // without e^beta
    std::function<double(std::int64_t i, double den)> guard;                           // 0: a row of zeros
    std::function<double(std::int64_t i)> removed = [](std::int64_t) { return 0.0; };  // from den; part of the LSE
};

inline Expected quadratic(const Call& call, const std::function<Head(const Site&)>& make) {
    const Tensor& query = call.inputs->query;
    const bool causal = call.flag("causal");
    const std::int64_t batch = query.shape[0], heads = query.shape[1], nq = query.shape[2];
    const Tensor& value = call.inputs->value ? *call.inputs->value : call.inputs->key ? *call.inputs->key : query;
    const std::int64_t nk = value.shape[2], dv = value.shape[3];
    Expected expected;
    expected.o.assign(size(batch * heads * nq * dv), 0.0);
    expected.lse.assign(size(batch * heads * nq), minus_infinity);
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
            const Site site = site_of(call, b, h);
            const Head head = make(site);
            for (std::int64_t i = 0; i < site.rows; ++i) {
                double den = 0;
                Row num(size(dv), 0.0);
                bool any = false;
                for (std::int64_t j = 0; j < nk; ++j) {
                    if (!site.visible[size(j)] || (causal && j > i + site.offset)) continue;
                    any = true;
                    const double a = head.weight(i, j) * std::exp(site.beta[size(j)]);
                    den += a;
                    for (std::int64_t c = 0; c < dv; ++c) num[size(c)] += a * oracle::View{&value}(b, site.kv, j, c);
                }
                if (!any) continue;
                const std::int64_t row = (b * heads + h) * nq + i;
                expected.lse[size(row)] = den > 0 ? std::log(den) + head.removed(i) : minus_infinity;
                const double guarded = head.guard(i, den);
                for (std::int64_t c = 0; c < dv; ++c)
                    expected.o[size(row * dv + c)] = guarded == 0 ? 0.0 : num[size(c)] / guarded;
            }
        }
    return expected;
}

// ---- random directions ----

inline double feature_normal(const std::string& name, std::uint64_t seed, std::uint32_t redraw, std::uint64_t element) {
    std::uint32_t hash = 2166136261u;
    for (const char c : name) hash = (hash ^ static_cast<std::uint8_t>(c)) * 16777619u;
    const auto word = [&](std::uint64_t e) {
        return oracle::philox_word(seed, static_cast<std::uint32_t>(e / 4), static_cast<std::uint32_t>((e / 4) >> 32),
                                   hash, (3u << 24) | redraw, static_cast<int>(e % 4));
    };
    const std::uint64_t pair = element / 2 * 2;
    const double radius = std::sqrt(-2 * std::log((static_cast<double>(word(pair) >> 8) + 1) * 0x1p-24)),
                 angle = 2 * std::numbers::pi * static_cast<double>(word(pair + 1) >> 8) * 0x1p-24;
    return element % 2 == 0 ? radius * std::cos(angle) : radius * std::sin(angle);
}

struct Directions {
    std::string mechanism;
    std::size_t m, d;
    std::uint64_t seed{0};
    std::uint32_t redraw{0};
    bool orthogonal{true}, sqrt_norms{false};
    bool operator==(const Directions&) const = default;
};
// Omega of one slot: blocks of D orthonormal directions (columns of Q, made by Gram-Schmidt) with lengths, or normal rows.
// Heads and items of a call ask for the same ones: the last are kept.
inline std::vector<Row> drawn_omega(const Directions& of, std::size_t slot);
inline std::vector<Row> omega(const Directions& of, std::size_t slot = 0) {
    struct Kept {
        Directions of;
        std::size_t slot;
        std::vector<Row> rows;
    };
    thread_local std::vector<Kept> kept;
    for (const Kept& one : kept)
        if (one.of == of && one.slot == slot) return one.rows;
    if (kept.size() == 64) kept.erase(kept.begin());
    kept.push_back({of, slot, drawn_omega(of, slot)});
    return kept.back().rows;
}
inline std::vector<Row> drawn_omega(const Directions& of, std::size_t slot) {
    const std::size_t d = of.d, blocks = (of.m + d - 1) / d;
    std::vector<Row> rows;
    for (std::size_t block = 0; rows.size() < of.m; ++block) {
        std::vector<Row> columns(d, Row(d));
        for (std::size_t r = 0; r < d; ++r)
            for (std::size_t c = 0; c < d; ++c)
                (of.orthogonal ? columns[c][r] : columns[r][c]) = feature_normal(
                    of.mechanism + "/projection", of.seed, of.redraw, ((slot * blocks + block) * d + r) * d + c);
        for (std::size_t c = 0; c < d && of.orthogonal; ++c) {
            for (int pass = 0; pass < 2; ++pass)
                for (std::size_t before = 0; before < c; ++before) {
                    const double share = dot(columns[c], columns[before]);
                    for (std::size_t r = 0; r < d; ++r) columns[c][r] -= share * columns[before][r];
                }
            const double norm = std::sqrt(dot(columns[c], columns[c]));
            for (double& x : columns[c]) x /= norm;
        }
        for (std::size_t c = 0; c < d && rows.size() < of.m; ++c) {
            double length = of.orthogonal ? 0 : 1;
            for (std::size_t at = 0; at < d && of.orthogonal; ++at)
                length += of.sqrt_norms ? 1.0
                                        : std::pow(feature_normal(of.mechanism + "/norms", of.seed, of.redraw,
                                                                  (slot * of.m + rows.size()) * d + at),
                                                   2);
            Row row;
            for (const double x : columns[c])
                row.push_back(static_cast<double>(static_cast<float>(std::sqrt(length) * x)));
            rows.push_back(row);
        }
    }
    return rows;
}
// A projection of the caller, [M,D] or [slots,M,D].
inline std::vector<Row> given_rows(const Tensor& tensor, std::int64_t slot) {
    const bool per_head = tensor.shape.size() == 3;
    const std::int64_t lead = per_head ? slot * tensor.strides[0] : 0;
    const std::size_t axis = per_head ? 1 : 0;
    std::vector<Row> rows;
    for (std::int64_t m = 0; m < tensor.shape[axis]; ++m) {
        Row row;
        for (std::int64_t c = 0; c < tensor.shape[axis + 1]; ++c)
            row.push_back(static_cast<double>(
                tensor.as<const float>()[lead + m * tensor.strides[axis] + c * tensor.strides[axis + 1]]));
        rows.push_back(row);
    }
    return rows;
}
inline const Tensor* weight_named(const Call& call, const std::string& name) {
    for (const auto& [known, tensor] : call.inputs->weights)
        if (known == name) return &tensor;
    return nullptr;
}
inline const Tensor* input_named(const Call& call, const std::string& name) {
    for (const auto& [known, tensor] : call.inputs->extra)
        if (known == name) return &tensor;
    return nullptr;
}

// performer-attention with the options of a call, and linear-attention with feature_map = favor+.
Expected performer(const Call& call);

}  // namespace specs::linear
