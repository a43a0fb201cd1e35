// SPDX-License-Identifier: Apache-2.0
// linear-attention in its quadratic form, double precision: a_ij = e^{beta_j} phi(q_i) . phi(k_j) over visible keys,
// o_i = sum_j a_ij v_j / guard(sum_j a_ij). Random features are made here once more from their definition.
#include <numbers>

#include "specs/spec.hpp"

namespace {

using specs::Call;
using specs::Expected;
using Row = std::vector<double>;

Row elementwise(const Row& x, const std::string& map, std::size_t nu) {
    Row out;
    if (map == "elu")
        for (const double value : x) out.push_back(value > 0 ? value + 1 : std::exp(value));
    else if (map == "relu")
        for (const double value : x) out.push_back(std::max(value, 0.0));
    else {
        Row r;
        for (const double value : x) r.push_back(std::max(value, 0.0));
        for (const double value : x) r.push_back(std::max(-value, 0.0));
        for (std::size_t shift = 1; shift <= nu; ++shift)
            for (std::size_t t = 0; t < r.size(); ++t) out.push_back(r[t] * r[(t + r.size() - shift) % r.size()]);
    }
    return out;
}

std::uint32_t hash_of(const std::string& name) {
    std::uint32_t hash = 2166136261u;
    for (const char c : name) hash = (hash ^ static_cast<std::uint8_t>(c)) * 16777619u;
    return hash;
}
double feature_normal(const std::string& name, std::uint64_t seed, std::uint64_t element) {
    const auto word = [&](std::uint64_t e) {
        return oracle::philox_word(seed, static_cast<std::uint32_t>(e / 4), static_cast<std::uint32_t>((e / 4) >> 32),
                                   hash_of(name), 3u << 24, static_cast<int>(e % 4));
    };
    const std::uint64_t pair = element / 2 * 2;
    const double radius = std::sqrt(-2 * std::log((static_cast<double>(word(pair) >> 8) + 1) * 0x1p-24)),
                 angle = 2 * std::numbers::pi * static_cast<double>(word(pair + 1) >> 8) * 0x1p-24;
    return element % 2 == 0 ? radius * std::cos(angle) : radius * std::sin(angle);
}
// Omega of M rows: blocks of D orthonormal directions (columns of Q, made by Gram-Schmidt), rows of chi length.
std::vector<Row> omega(std::size_t m, std::size_t d, std::uint64_t seed) {
    std::vector<Row> rows;
    for (std::size_t block = 0; rows.size() < m; ++block) {
        std::vector<Row> columns(d, Row(d));
        for (std::size_t r = 0; r < d; ++r)
            for (std::size_t c = 0; c < d; ++c)
                columns[c][r] = feature_normal("performer-attention/projection", seed, (block * d + r) * d + c);
        for (std::size_t c = 0; c < d; ++c) {
            for (int pass = 0; pass < 2; ++pass)
                for (std::size_t before = 0; before < c; ++before) {
                    double dot = 0;
                    for (std::size_t r = 0; r < d; ++r) dot += columns[c][r] * columns[before][r];
                    for (std::size_t r = 0; r < d; ++r) columns[c][r] -= dot * columns[before][r];
                }
            double norm = 0;
            for (const double x : columns[c]) norm += x * x;
            for (double& x : columns[c]) x /= std::sqrt(norm);
        }
        for (std::size_t c = 0; c < d && rows.size() < m; ++c) {
            double length = 0;
            for (std::size_t at = 0; at < d; ++at)
                length += std::pow(feature_normal("performer-attention/norms", seed, rows.size() * d + at), 2);
            Row row;
            for (const double x : columns[c])
                row.push_back(static_cast<double>(static_cast<float>(std::sqrt(length) * x)));
            rows.push_back(row);
        }
    }
    return rows;
}

Expected linear(const Call& call) {
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const specs::ForwardInputs& in = *call.inputs;
    const specs::Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const std::int64_t batch = query.shape[0], hq = query.shape[1], nq = query.shape[2], d = query.shape[3],
                       hkv = key.shape[1], nk = key.shape[2], dv = value.shape[3];
    const std::string alias = call.word("kernel_type");
    const std::string map = alias == "unset" ? call.word("feature_map") : alias == "softmax" ? "favor+" : alias;
    const bool favor = map == "favor+";
    const double minus = -std::numeric_limits<double>::infinity(), eps = call.number("eps", 1e-6);
    const double scale = call.number("scale", favor ? 1 / std::sqrt(static_cast<double>(d)) : 1);
    const bool causal = call.flag("causal"),
               exact = call.word("stabilizer") == "exact" || (call.word("stabilizer") == "auto" && causal);
    const auto features = std::max<std::size_t>(
        1, size(static_cast<std::int64_t>(
               call.number("num_features", std::floor(static_cast<double>(d) * std::log(static_cast<double>(d)))))));
    const std::vector<Row> projection =
        favor ? omega(features, size(d), static_cast<std::uint64_t>(call.number("seed", 0))) : std::vector<Row>{};
    const auto row_of = [&](const specs::Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t n,
                            double factor) {
        Row row;
        for (std::int64_t c = 0; c < tensor.shape[3]; ++c) row.push_back(factor * oracle::View{&tensor}(b, h, n, c));
        return row;
    };
    const auto phi = [&](const Row& x) {
        Row out = elementwise(x, map, size(static_cast<std::int64_t>(call.number("nu", 1))));
        double sum = 0;
        for (const double f : out) sum += f;
        if (call.flag("sum_normalize"))
            for (double& f : out) f = sum == 0 ? 0 : f / sum;
        return out;
    };
    // Exponents u of the random features and d = |x|^2 / 2.
    const auto exponents = [&](const Row& x, double& half) {
        Row u;
        half = 0;
        for (const double c : x) half += c * c / 2;
        for (const Row& w : projection) {
            double dot = 0;
            for (std::size_t c = 0; c < x.size(); ++c) dot += w[c] * x[c];
            u.push_back(dot);
        }
        return u;
    };
    const auto at = [&](const specs::Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t j) {
        const std::size_t rank = tensor.shape.size();
        const std::int64_t index4[4] = {b, h, 0, j}, index3[3] = {b, 0, j};
        std::int64_t where = 0;
        for (std::size_t axis = 0; axis < rank; ++axis)
            if (tensor.shape[axis] != 1)
                where += (rank == 3 ? index3[axis] : index4[4 - rank + axis]) * tensor.strides[axis];
        return where;
    };
    Expected expected;
    expected.o.assign(size(batch * hq * nq * dv), 0.0);
    expected.lse.assign(size(batch * hq * nq), minus);
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < hq; ++h) {
            const std::int64_t kv = h * hkv / hq, lk = specs::length_of(in.key_lengths, b, nk),
                               lq = specs::length_of(in.query_lengths, b, nq), offset = specs::offset_of(call, b);
            const auto beta = [&](std::int64_t j) {
                return in.bias ? static_cast<double>(in.bias->as<const float>()[at(*in.bias, b, h, j)]) : 0.0;
            };
            const auto visible = [&](std::int64_t j) {
                return j < lk && (!in.mask || in.mask->as<const std::uint8_t>()[at(*in.mask, b, h, j)] != 0) &&
                       beta(j) != minus;
            };
            std::vector<Row> keys(size(nk));
            double top = minus;  // official: the largest exponent of any visible key
            if (favor)
                for (std::int64_t j = 0; j < nk; ++j) {
                    double half = 0;
                    if (visible(j))
                        for (const double u : exponents(row_of(key, b, kv, j, std::sqrt(scale)), half))
                            top = std::max(top, u);
                }
            for (std::int64_t j = 0; j < nk; ++j) {
                if (!visible(j)) continue;
                if (!favor) {
                    keys[size(j)] = phi(row_of(key, b, kv, j, 1.0));
                    continue;
                }
                double half = 0;
                for (const double u : exponents(row_of(key, b, kv, j, std::sqrt(scale)), half))
                    keys[size(j)].push_back(
                        (exact ? std::exp(u - half) : std::exp(u - half - top) + call.number("feature_eps", 1e-6)) /
                        std::sqrt(static_cast<double>(features)));
            }
            for (std::int64_t i = 0; i < lq; ++i) {
                Row q;
                double removed = 0;
                if (!favor) {
                    q = phi(row_of(query, b, h, i, scale));
                } else {
                    double half = 0, most = minus;
                    const Row u = exponents(row_of(query, b, h, i, std::sqrt(scale)), half);
                    for (const double x : u) most = std::max(most, x);
                    for (const double x : u)
                        q.push_back((exact ? std::exp(x - half)
                                           : std::exp(x - half - most) + call.number("feature_eps", 1e-6)) /
                                    std::sqrt(static_cast<double>(features)));
                    removed = exact ? 0 : most + top;
                }
                double den = 0;
                Row num(size(dv), 0.0);
                for (std::int64_t j = 0; j < nk; ++j) {
                    if (!visible(j) || (causal && j > i + offset)) continue;
                    double a = 0;
                    for (std::size_t f = 0; f < q.size(); ++f) a += q[f] * keys[size(j)][f];
                    a *= std::exp(beta(j));
                    den += a;
                    for (std::int64_t c = 0; c < dv; ++c) num[size(c)] += a * oracle::View{&value}(b, kv, j, c);
                }
                const std::int64_t row = (b * hq + h) * nq + i;
                expected.lse[size(row)] = den > 0 ? std::log(den) + removed : minus;
                const double nu = call.number("denom_eps", 1e-6);
                const double guarded = !favor ? den + eps : exact ? den : std::abs(den) <= nu ? den + 2 * nu : den;
                for (std::int64_t c = 0; c < dv; ++c)
                    expected.o[size(row * dv + c)] = guarded == 0 ? 0.0 : num[size(c)] / guarded;
            }
        }
    return expected;
}

const specs::Registration spec({.mechanism = "linear-attention",
                                .oracle = linear,
                                .variants = {{{"causal", true}},
                                             {{"feature_map", "relu"}},
                                             {{"feature_map", "dpfp"}, {"nu", 2}},
                                             {{"feature_map", "dpfp"}, {"causal", true}},
                                             {{"sum_normalize", true}},
                                             {{"scale", 0.3}},
                                             {{"eps", 0.01}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}},
                                             {{"causal", true}, {"causal_offset", 2}},
                                             {{"feature_map", "favor+"}},
                                             {{"feature_map", "favor+"}, {"num_features", 11}, {"seed", 5}},
                                             {{"feature_map", "favor+"}, {"causal", true}},
                                             {{"kernel_type", "relu"}},
                                             {{"kernel_type", "softmax"}, {"stabilizer", "exact"}}},
                                .masks = false,
                                .tolerance = 1e-5});

}  // namespace
