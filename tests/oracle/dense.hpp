// SPDX-License-Identifier: Apache-2.0
// Softmax attention in double precision, by loops alone, to be read beside the formula:
//   s = softcap(scale q.k) + bias, visible or not;  p = softmax_j(s);  o = sum_j keep_j p_j v_j / (1 - dropout)
// It shares nothing with the engines.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "attend/tensor.hpp"

namespace oracle {

// Element access to a float32 tensor of any strides, in double.
struct View {
    const attend::Tensor* tensor;
    [[nodiscard]] double operator()(std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) const {
        const auto& s = tensor->strides;
        return static_cast<double>(tensor->as<const float>()[a * s[0] + b * s[1] + c * s[2] + d * s[3]]);
    }
    [[nodiscard]] double operator()(std::int64_t a, std::int64_t b, std::int64_t c) const {
        const auto& s = tensor->strides;
        return static_cast<double>(tensor->as<const float>()[a * s[0] + b * s[1] + c * s[2]]);
    }
};

inline std::uint32_t philox_word(std::uint64_t seed, std::uint32_t c0, std::uint32_t c1, std::uint32_t c2,
                                 std::uint32_t c3, int lane) {
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        if (round > 0) k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        const std::uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
        const std::uint32_t n0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0,
                            n2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
        c1 = static_cast<std::uint32_t>(b);
        c3 = static_cast<std::uint32_t>(a);
        c0 = n0;
        c2 = n2;
    }
    const std::uint32_t words[4] = {c0, c1, c2, c3};
    return words[lane];
}

struct Dense {
    std::int64_t batch{}, q_heads{}, kv_heads{}, q_len{}, kv_len{}, head_dim{}, value_dim{};
    std::function<double(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t d)> q;
    std::function<double(std::int64_t b, std::int64_t h, std::int64_t j, std::int64_t d)> k, v;  // h: a key head
    std::function<bool(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)> visible;
    std::function<double(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)> bias;  // may be empty
    std::function<double(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j)>
        content;  // joins q.k; may be empty
    std::function<double(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, std::int64_t d)>
        value;                                                         // joins v
    std::int64_t dropout_heads{0}, dropout_first{0}, dropout_step{1};  // head of the counter; 0 heads: q_heads
    double scale{}, softcap{}, dropout{};
    std::uint64_t seed{}, rng_offset{};
};

struct Result {
    std::vector<double> o, lse, p;  // [B,H,Nq,Dv], [B,H,Nq], [B,H,Nq,Nk]
};

inline Result attention(const Dense& x) {
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const double minus = -std::numeric_limits<double>::infinity();
    Result r;
    const std::int64_t rows = x.batch * x.q_heads * x.q_len;
    r.o.assign(size(rows * x.value_dim), 0.0);
    r.lse.assign(size(rows), minus);
    r.p.assign(size(rows * x.kv_len), 0.0);
    const double threshold = std::min(std::nearbyint(x.dropout * 4294967296.0), 4294967295.0);
    for (std::int64_t b = 0; b < x.batch; ++b)
        for (std::int64_t h = 0; h < x.q_heads; ++h)
            for (std::int64_t i = 0; i < x.q_len; ++i) {
                const std::int64_t kv = h * x.kv_heads / x.q_heads, row = (b * x.q_heads + h) * x.q_len + i;
                std::vector<double> s(size(x.kv_len), minus);
                double largest = minus;
                for (std::int64_t j = 0; j < x.kv_len; ++j) {
                    const double bias = x.bias ? x.bias(b, h, i, j) : 0.0;
                    if (!x.visible(b, h, i, j) || bias == minus) continue;
                    double dot = 0.0;
                    for (std::int64_t d = 0; d < x.head_dim; ++d) dot += x.q(b, h, i, d) * x.k(b, kv, j, d);
                    if (x.content) dot += x.content(b, h, i, j);
                    double score = x.scale * dot;
                    if (x.softcap > 0) score = x.softcap * std::tanh(score / x.softcap);
                    s[size(j)] = score + bias;
                    largest = std::max(largest, s[size(j)]);
                }
                if (largest == minus) continue;
                double sum = 0.0;
                for (std::int64_t j = 0; j < x.kv_len; ++j)
                    sum += s[size(j)] == minus ? 0.0 : std::exp(s[size(j)] - largest);
                r.lse[size(row)] = largest + std::log(sum);
                for (std::int64_t j = 0; j < x.kv_len; ++j) {
                    if (s[size(j)] == minus) continue;
                    const double p = std::exp(s[size(j)] - largest) / sum;
                    r.p[size(row * x.kv_len + j)] = p;
                    double kept = p;
                    if (x.dropout > 0) {
                        const std::uint32_t word = philox_word(
                            x.seed, static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                            static_cast<std::uint32_t>(b * (x.dropout_heads > 0 ? x.dropout_heads : x.q_heads) +
                                                       x.dropout_first + h * x.dropout_step),
                            (1u << 24) | static_cast<std::uint32_t>(x.rng_offset), static_cast<int>(j % 4));
                        kept = static_cast<double>(word) >= threshold ? p / (1.0 - x.dropout) : 0.0;
                    }
                    for (std::int64_t d = 0; d < x.value_dim; ++d)
                        r.o[size(row * x.value_dim + d)] +=
                            kept * (x.v(b, kv, j, d) + (x.value ? x.value(b, h, i, j, d) : 0.0));
                }
            }
    return r;
}

}  // namespace oracle
