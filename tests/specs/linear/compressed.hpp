// SPDX-License-Identifier: Apache-2.0
// What oracles of attention through few keys share: softmax over rows in double precision, segments, seeded normal weights.
#pragma once

#include "specs/linear/quadratic.hpp"

namespace specs::linear {

using Rows = std::vector<Row>;

inline Row softmax(Row scores) {
    double most = minus_infinity, sum = 0;
    for (const double s : scores) most = std::max(most, s);
    for (double& s : scores) sum += s = std::exp(s - most);
    for (double& s : scores) s /= sum;
    return scores;
}
// Softmax of scale <q, k> over all rows of keys.
inline Row weights_of(const Row& q, const Rows& keys, double scale, double softcap = 0) {
    Row scores;
    for (const Row& k : keys) {
        const double s = scale * dot(q, k);
        scores.push_back(softcap > 0 ? softcap * std::tanh(s / softcap) : s);
    }
    return softmax(scores);
}
inline Row mixed(const Row& weights, const Rows& values, std::size_t width) {
    Row out(width, 0.0);
    for (std::size_t j = 0; j < values.size(); ++j)
        for (std::size_t c = 0; c < width; ++c) out[c] += weights[j] * values[j][c];
    return out;
}
// Rows of one head that can be seen, ascending.
inline Rows visible_rows(const Site& site, const Tensor& tensor) {
    Rows rows;
    for (std::int64_t j = 0; j < tensor.shape[2]; ++j)
        if (site.visible[size(j)]) rows.push_back(row_of(tensor, site.b, site.kv, j));
    return rows;
}
// Means or maxima of `count` segments.
inline Rows pooled(const Rows& rows, std::size_t count, bool maxima = false) {
    Rows out;
    for (std::size_t t = 0; t < count; ++t) {
        const std::size_t begin = t * rows.size() / count, end = (t + 1) * rows.size() / count;
        Row sum = rows[begin];
        for (std::size_t r = begin + 1; r < end; ++r)
            for (std::size_t c = 0; c < sum.size(); ++c)
                sum[c] = maxima ? std::max(sum[c], rows[r][c]) : sum[c] + rows[r][c];
        for (double& x : sum) x /= maxima ? 1.0 : static_cast<double>(end - begin);
        out.push_back(sum);
    }
    return out;
}

// Elements of a weight that normal(0, deviation) makes under the name mechanism/weight.
inline std::vector<double> normal_weight(const std::string& name, std::uint64_t seed, std::size_t count,
                                         double deviation) {
    std::uint32_t hash = 2166136261u;
    for (const char c : name) hash = (hash ^ static_cast<std::uint8_t>(c)) * 16777619u;
    const auto word = [&](std::uint64_t e) {
        return oracle::philox_word(seed, static_cast<std::uint32_t>(e / 4), static_cast<std::uint32_t>((e / 4) >> 32),
                                   hash, 2u << 24, static_cast<int>(e % 4));
    };
    std::vector<double> out;
    for (std::uint64_t e = 0; e < count; ++e) {
        const std::uint64_t pair = e / 2 * 2;
        const double radius = std::sqrt(-2 * std::log((static_cast<double>(word(pair) >> 8) + 1) * 0x1p-24)),
                     angle = 2 * std::numbers::pi * static_cast<double>(word(pair + 1) >> 8) * 0x1p-24;
        const double z = e % 2 == 0 ? radius * std::cos(angle) : radius * std::sin(angle);
        out.push_back(static_cast<double>(static_cast<float>(deviation * static_cast<double>(static_cast<float>(z)))));
    }
    return out;
}

}  // namespace specs::linear
