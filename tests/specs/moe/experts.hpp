// SPDX-License-Identifier: Apache-2.0
// Attention experts in double precision, given the rule that assigns tokens to them: projections, attention among the
// tokens that an expert holds, gated sum. Weights are the seeded initialiser's, made here once more from its definition.
#pragma once

#include <algorithm>
#include <functional>
#include <numbers>

#include "specs/spec.hpp"

namespace specs::moe {

inline std::uint32_t hash_of(const std::string& name) {
    std::uint32_t hash = 2166136261u;
    for (const char c : name) hash = (hash ^ static_cast<std::uint8_t>(c)) * 16777619u;
    return hash;
}
inline std::uint32_t init_word(std::uint64_t seed, std::uint32_t hash, std::uint64_t element) {
    return oracle::philox_word(seed, static_cast<std::uint32_t>(element / 4),
                               static_cast<std::uint32_t>((element / 4) >> 32), hash, 2u << 24,
                               static_cast<int>(element % 4));
}
inline std::vector<float> uniform_weight(const std::string& name, std::size_t count, double bound, std::uint64_t seed) {
    std::vector<float> w(count);
    const float a = static_cast<float>(-bound), b = static_cast<float>(bound);
    for (std::size_t e = 0; e < count; ++e)
        w[e] = a + (b - a) * static_cast<float>(static_cast<double>(init_word(seed, hash_of(name), e) >> 8) * 0x1p-24);
    return w;
}
inline std::vector<float> normal_weight(const std::string& name, std::size_t count, double sd, std::uint64_t seed) {
    std::vector<float> w(count);
    for (std::size_t e = 0; e < count; ++e) {
        const std::uint64_t pair = e / 2 * 2;
        const double u = (static_cast<double>(init_word(seed, hash_of(name), pair) >> 8) + 1.0) * 0x1p-24;
        const double v = static_cast<double>(init_word(seed, hash_of(name), pair + 1) >> 8) * 0x1p-24;
        const double radius = std::sqrt(-2.0 * std::log(u)), angle = 2.0 * std::numbers::pi * v;
        w[e] = static_cast<float>(sd * static_cast<double>(static_cast<float>(e % 2 == 0 ? radius * std::cos(angle)
                                                                                         : radius * std::sin(angle))));
    }
    return w;
}

// z[i][e] of the tokens of one sequence, as the router rounds them.
using Logits = std::vector<std::vector<float>>;
// gate[e][i], or -1 where expert e does not hold token i.
using Gates = std::vector<std::vector<double>>;
using Rule = std::function<Gates(const Call&, const Logits&, std::size_t experts)>;

inline std::vector<float> logits(const std::vector<double>& token, const std::vector<float>& wr, std::size_t experts) {
    std::vector<float> z(experts);
    for (std::size_t e = 0; e < experts; ++e) {
        double sum = 0.0;
        for (std::size_t m = 0; m < token.size(); ++m) sum += token[m] * static_cast<double>(wr[m * experts + e]);
        z[e] = static_cast<float>(sum);
    }
    return z;
}

// Softmax of a token's logits, or sigmoid.
inline std::vector<double> probabilities(const Call& call, const std::vector<float>& z) {
    const double largest = static_cast<double>(*std::max_element(z.begin(), z.end()));
    double total = 0.0;
    std::vector<double> p(z.size());
    for (std::size_t e = 0; e < z.size(); ++e) total += p[e] = std::exp(static_cast<double>(z[e]) - largest);
    for (std::size_t e = 0; e < z.size(); ++e)
        p[e] = call.word("gate") == "sigmoid" ? 1.0 / (1.0 + std::exp(-static_cast<double>(z[e]))) : p[e] / total;
    return p;
}

// Indices of the largest numbers first, ties to the lower index.
template <class Numbers>
std::vector<std::size_t> ranked(const Numbers& numbers) {
    std::vector<std::size_t> order(numbers.size());
    for (std::size_t at = 0; at < order.size(); ++at) order[at] = at;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return numbers[x] > numbers[y]; });
    return order;
}

inline void rotate(std::vector<double>& row, std::int64_t position, std::size_t dim, double base, bool half) {
    for (std::size_t t = 0; t < dim / 2; ++t) {
        const double angle =
            static_cast<double>(position) * std::pow(base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
        double &a = row[half ? t : 2 * t], &b = row[half ? t + dim / 2 : 2 * t + 1];
        const double x = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = x;
    }
}

inline Expected attend_experts(const std::string& mechanism, const Call& call, const Rule& rule) {
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const specs::ForwardInputs& in = *call.inputs;
    const specs::Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const std::int64_t batch = query.shape[0], hq = query.shape[1], nq = query.shape[2], d = query.shape[3],
                       hkv = key.shape[1], nk = key.shape[2], dv = value.shape[3];
    const std::size_t mq = size(hq * d), mk = size(hkv * d), mv = size(hkv * dv), mo = size(hq * dv);
    const std::size_t experts = size(static_cast<std::int64_t>(call.number("num_experts", 8))),
                      heads = size(static_cast<std::int64_t>(call.number("expert_heads", 1)));
    const std::size_t de = size(static_cast<std::int64_t>(call.number("expert_dim", static_cast<double>(d)))),
                      ve = size(static_cast<std::int64_t>(call.number("expert_value_dim", static_cast<double>(dv))));
    const bool global = call.word("scope") == "global";
    const bool shared = call.optional_given("share_kv") ? call.flag("share_kv") : global;
    const auto seed = static_cast<std::uint64_t>(call.number("weight_seed", 0));
    const auto xavier = [](std::size_t a, std::size_t b, double gain) {
        return gain * std::sqrt(6.0 / static_cast<double>(a + b));
    };
    const auto wr = normal_weight(mechanism + "/Wr", mq * experts, 0.02, seed),
               wrk = mk == mq ? wr : normal_weight(mechanism + "/WrK", mk * experts, 0.02, seed);
    const std::size_t kv_experts = shared ? 1 : experts;
    const auto wq = uniform_weight(mechanism + "/Wq", experts * heads * mq * de, xavier(mq, de, 1.0), seed),
               wk = uniform_weight(mechanism + "/Wk", kv_experts * heads * mk * de, xavier(mk, de, 1.0), seed),
               wv = uniform_weight(mechanism + "/Wv", kv_experts * heads * mv * ve, xavier(mv, ve, 1.0), seed),
               wo = uniform_weight(mechanism + "/Wo", experts * heads * ve * mo,
                                   xavier(ve, mo, 1.0 / std::sqrt(static_cast<double>(heads))), seed);
    const auto token = [&](const specs::Tensor& tensor, std::int64_t b, std::int64_t n) {
        std::vector<double> row;
        for (std::int64_t h = 0; h < tensor.shape[1]; ++h)
            for (std::int64_t c = 0; c < tensor.shape[3]; ++c) row.push_back(oracle::View{&tensor}(b, h, n, c));
        return row;
    };
    const auto project = [](const std::vector<double>& row, const std::vector<float>& w, std::size_t at,
                            std::size_t width) {
        std::vector<double> out(width, 0.0);
        for (std::size_t m = 0; m < row.size(); ++m)
            for (std::size_t c = 0; c < width; ++c) out[c] += row[m] * static_cast<double>(w[at + m * width + c]);
        return out;
    };
    const std::string rope = call.word("rope");
    const double base = call.number("rope_base", 10000);
    std::size_t rope_dim = size(static_cast<std::int64_t>(call.number("rope_dim", 0)));
    if (rope_dim == 0) rope_dim = de;
    Expected expected;
    expected.o.assign(size(batch * hq * nq * dv), 0.0);
    for (std::int64_t b = 0; b < batch; ++b) {
        const std::int64_t lq = specs::length_of(in.query_lengths, b, nq), lk = specs::length_of(in.key_lengths, b, nk),
                           offset = specs::offset_of(call, b);
        Logits query_logits, key_logits;
        for (std::int64_t i = 0; i < lq; ++i) query_logits.push_back(logits(token(query, b, i), wr, experts));
        for (std::int64_t j = 0; j < lk; ++j) key_logits.push_back(logits(token(key, b, j), wrk, experts));
        const Gates query_gates = rule(call, query_logits, experts), key_gates = rule(call, key_logits, experts);
        std::vector<std::vector<double>> y(size(nq), std::vector<double>(mo, 0.0));
        for (std::size_t e = 0; e < experts; ++e) {
            const std::size_t ke = shared ? 0 : e;
            for (std::size_t a = 0; a < heads; ++a) {
                std::vector<std::vector<double>> k(size(nk)), v(size(nk));
                for (std::int64_t j = 0; j < lk; ++j) {
                    if (!global && key_gates[e][size(j)] < 0) continue;
                    k[size(j)] = project(token(key, b, j), wk, (ke * heads + a) * mk * de, de);
                    v[size(j)] = project(token(value, b, j), wv, (ke * heads + a) * mv * ve, ve);
                    if (rope != "none") rotate(k[size(j)], j, rope_dim, base, rope == "half");
                }
                for (std::int64_t i = 0; i < lq; ++i) {
                    const double gate = query_gates[e][size(i)];
                    if (gate < 0) continue;
                    std::vector<double> q = project(token(query, b, i), wq, (e * heads + a) * mq * de, de);
                    if (rope != "none") rotate(q, i + offset, rope_dim, base, rope == "half");
                    // The row through the dense oracle, so that the common rules are written once.
                    oracle::Dense x{1,
                                    1,
                                    1,
                                    1,
                                    nk,
                                    static_cast<std::int64_t>(de),
                                    static_cast<std::int64_t>(ve),
                                    {},
                                    {},
                                    {},
                                    {},
                                    {},
                                    0,
                                    0,
                                    0,
                                    0,
                                    0};
                    x.q = [&](auto, auto, auto, std::int64_t c) { return q[size(c)]; };
                    x.k = [&](auto, auto, std::int64_t j, std::int64_t c) { return k[size(j)][size(c)]; };
                    x.v = [&](auto, auto, std::int64_t j, std::int64_t c) { return v[size(j)][size(c)]; };
                    x.scale = call.number("scale", 0.0) == 0.0 ? 1.0 / std::sqrt(static_cast<double>(de))
                                                               : call.number("scale", 0.0);
                    x.softcap = call.number("softcap", 0.0);
                    const std::int64_t position = i + offset;
                    auto left = static_cast<std::int64_t>(call.number("window_left", -1)),
                         right = static_cast<std::int64_t>(call.number("window_right", -1));
                    if (left < 0 && right < 0 && call.number("window_size", 0) > 0)
                        left = static_cast<std::int64_t>(call.number("window_size", 0)),
                        right = call.flag("causal") ? 0 : left;
                    const auto at = [&](const specs::Tensor& tensor, std::int64_t j) {
                        const std::size_t rank = tensor.shape.size();
                        const std::int64_t index4[4] = {b, 0, i, j}, index3[3] = {b, i, j};
                        std::int64_t where = 0;
                        for (std::size_t axis = 0; axis < rank; ++axis)
                            if (tensor.shape[axis] != 1)
                                where += (rank == 3 ? index3[axis] : index4[4 - rank + axis]) * tensor.strides[axis];
                        return where;
                    };
                    x.visible = [&](auto, auto, auto, std::int64_t j) {
                        if (k[size(j)].empty() || (call.flag("causal") && j > position)) return false;
                        if ((left >= 0 && j < position - left) || (right >= 0 && j > position + right)) return false;
                        return !in.mask || in.mask->as<const std::uint8_t>()[at(*in.mask, j)] != 0;
                    };
                    if (in.bias)
                        x.bias = [&](auto, auto, auto, std::int64_t j) {
                            return static_cast<double>(in.bias->as<const float>()[at(*in.bias, j)]);
                        };
                    const oracle::Result r = oracle::attention(x);
                    const std::vector<double> f = project(r.o, wo, (e * heads + a) * ve * mo, mo);
                    for (std::size_t m = 0; m < mo; ++m) y[size(i)][m] += gate * f[m];
                }
            }
        }
        for (std::int64_t i = 0; i < nq; ++i)
            for (std::size_t m = 0; m < mo; ++m) {
                const auto h = static_cast<std::int64_t>(m) / dv, c = static_cast<std::int64_t>(m) % dv;
                const double residual = call.flag("residual") && i < lq ? token(query, b, i)[m] : 0.0;
                expected.o[size(((b * hq + h) * nq + i) * dv + c)] = y[size(i)][m] + residual;
            }
    }
    return expected;
}

// Properties that no mechanism with a router has.
inline const std::map<std::string, std::string> exempt{
    {"ones", "values pass through projections"},
    {"gqa", "heads are merged into tokens, so repeating key heads changes their width"},
    {"head masks", "mask and bias are head-broadcast"},
    {"hidden keys", "an unmasked router reads every valid key; padding has a test of its own"},
    {"causal future", "keys after the cut are routed, and NaN logits are refused"}};

}  // namespace specs::moe
