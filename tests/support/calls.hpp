// SPDX-License-Identifier: Apache-2.0
// Services over the built plugins, seeded inputs, comparisons: what tests of whole calls share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "support/catch.hpp"

namespace support {

// A service over the build tree's plugins, that of sdk/examples/geometric too, limited to a back end, with so many threads.
attend::AttentionService& service(const std::string& backend = "auto", int threads = 2);

// Back ends that this machine can run, narrowest first.
const std::vector<std::string>& backends();

struct Random {
    std::mt19937_64 engine;
    explicit Random(std::uint64_t seed) : engine(seed) {}
    float normal() { return std::normal_distribution<float>(0.0f, 1.0f)(engine); }
    std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(n)); }
};

attend::Tensor normal(Random& random, std::vector<std::int64_t> shape);

attend::Tensor lengths(std::vector<std::int64_t> values);

struct Shape {
    std::int64_t batch{1}, heads{1}, kv_heads{1}, q_len{1}, kv_len{1}, head_dim{8}, value_dim{8};
    [[nodiscard]] std::string text() const {
        std::string out;
        for (const std::int64_t n : {batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim})
            out += (out.empty() ? "" : "x") + std::to_string(n);
        return "B x Hq x Hkv x Nq x Nk x D x Dv = " + out;
    }
};

attend::ForwardInputs make_inputs(Random& random, const Shape& s);

// Runs a call that must succeed.
attend::ForwardResult run(attend::AttentionService& service, const attend::ForwardInputs& inputs,
                          const std::string& mechanism, attend::NamedValues options = {}, bool lse = false,
                          bool scores = false);

std::vector<float> values(const attend::Tensor& tensor);

bool same_bits(const attend::Tensor& a, const attend::Tensor& b);

// Largest absolute difference; infinities of one sign agree, NaN never does. `where` gets the worst index.
double difference(const std::vector<float>& got, const std::vector<double>& expected, std::size_t* where = nullptr);

double largest(const std::vector<float>& data);

}  // namespace support
