// SPDX-License-Identifier: Apache-2.0
// Identities of cosformer-attention.
#include "identities/linear/linear.hpp"

namespace {

using namespace identities;
constexpr const char* cosformer = "cosformer-attention";

Row relu(Row x) {
    for (double& value : x) value = std::max(value, 0.0);
    return x;
}
double quarter(double positions, double longest) { return std::numbers::pi * positions / (2 * longest); }

}  // namespace

TEST_CASE("cosformer-attention: quadratic form") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            if (causal && shape.q_len > shape.kv_len) continue;
            const std::int64_t offset = causal ? shape.kv_len - shape.q_len : 0;
            const Tensor got = call(inputs, cosformer, {{"causal", causal}}).output;
            for (std::int64_t h = 0; h < shape.heads; ++h)
                CHECK(distance_to_form(
                          got, *inputs.value, 0, h,
                          [&](std::int64_t i, std::int64_t j) {
                              return specs::linear::dot(
                                         relu(row(inputs.query, 0, h, i)),
                                         relu(row(*inputs.key, 0, h * shape.kv_heads / shape.heads, j))) *
                                     std::cos(quarter(static_cast<double>(i + offset - j),
                                                      static_cast<double>(std::max(shape.q_len, shape.kv_len))));
                          },
                          [](double den) { return std::max(den, 1e-6); },
                          [&](std::int64_t i) { return causal ? i + offset : shape.kv_len; }) <=
                      1e-5 * (1 + largest(values(*inputs.value))));
        }
    });
}

TEST_CASE("cosformer-attention: moved positions") {
    // Hidden keys in front move all others; the queries move with them.
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t t = 1 + random.below(30);
        ForwardInputs moved = inputs;
        moved.key = joined(normal(random, {shape.batch, shape.kv_heads, t, shape.head_dim}), *inputs.key, 2);
        moved.value = joined(normal(random, {shape.batch, shape.kv_heads, t, shape.value_dim}), *inputs.value, 2);
        moved.mask = bools({1, 1, 1, t + shape.kv_len}, [t](const auto& index) { return index[3] >= t; });
        CHECK(agree(forward(inputs, cosformer, {{"max_len", 300}}),
                    forward(moved, cosformer, {{"max_len", 300}, {"query_offset", t}})));
    });
}

TEST_CASE("cosformer-attention: large max_len") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const auto plain = values(call(inputs, "linear-attention", {{"feature_map", "relu"}, {"eps", 0}}).output);
        const auto apart = [&](std::int64_t longest) {
            const auto got = values(call(inputs, cosformer, {{"max_len", longest}, {"eps", 0}}).output);
            return difference(got, {plain.begin(), plain.end()});
        };
        const std::int64_t n = shape.kv_len;
        if (apart(16 * n) > 1e-4) {
            const double ratio = apart(8 * n) / apart(16 * n);
            CHECK((ratio > 3.5 && ratio < 4.5));
        }
        CHECK(apart(4000 * n) <= 1e-5);
    });
}

TEST_CASE("cosformer-attention: farthest key") {
    for (const std::int64_t n : {5, 64, 200}) {
        ForwardInputs inputs;
        inputs.query = filled({1, 1, 1, 4}, 0.5f);
        inputs.key = filled({1, 1, n, 4}, 0.5f);
        inputs.value = filled({1, 1, n, 4}, 1.0f);
        const auto only = [&](std::int64_t j) {
            inputs.mask = bools({1, 1, 1, n}, [j](const auto& index) { return index[3] == j; });
            return static_cast<double>(
                values(*forward(inputs, cosformer, {{"query_offset", n - 1}, {"max_len", n}}).lse)[0]);
        };
        CHECK(only(n - 1) == Approx(0.0).margin(1e-6));  // <a, b> = 4 * 0.25
        CHECK(std::exp(only(0)) == Approx(std::sin(quarter(1, static_cast<double>(n)))).epsilon(1e-5));
    }
}

TEST_CASE("cosformer-attention: scale of the keys") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const Tensor before = call(inputs, cosformer, {{"eps", 0}}).output;
        inputs.key = mapped(*inputs.key, [](float x) { return 7.0f * x; });
        CHECK(agree(before, call(inputs, cosformer, {{"eps", 0}}).output));
    });
}

TEST_CASE("cosformer-attention: queries without a positive component") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.query = mapped(inputs.query, [](float x) { return -std::abs(x); });
        for (const double eps : {0.0, 1e-6}) {
            const ForwardResult got = forward(inputs, cosformer, {{"eps", eps}});
            for (const float x : values(got.output)) CHECK(x == 0.0f);
            for (const float x : values(*got.lse)) CHECK(x == -std::numeric_limits<float>::infinity());
        }
    });
}

TEST_CASE("cosformer-attention: denominators") {
    // Never below zero, and at least eps: a large one shrinks the output.
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        std::fill_n(inputs.value->as<float>(), inputs.value->size(), 1.0f);
        const ForwardResult got = forward(inputs, cosformer, {{"eps", 1e6}});
        const auto lse = values(*got.lse), ones = values(got.output);
        for (std::size_t at = 0; at < ones.size(); ++at) {
            const double log_den = static_cast<double>(lse[at / static_cast<std::size_t>(shape.value_dim)]);
            CHECK_FALSE(std::isnan(log_den));
            CHECK(static_cast<double>(ones[at]) * 1e6 == Approx(std::exp(log_den)).epsilon(1e-4).margin(1e-6));
        }
    });
}

TEST_CASE("cosformer-attention: decoding") {
    for (const char* activation : {"relu", "elu"})
        check_decoding(cosformer, {{"max_len", 200}, {"activation", activation}});
}
TEST_CASE("cosformer-attention: last causal row") { check_last_row(cosformer); }
TEST_CASE("cosformer-attention: future keys") { check_future(cosformer); }
TEST_CASE("cosformer-attention: threads") {
    for (const bool causal : {false, true}) check_threads(cosformer, {{"causal", causal}});
}

TEST_CASE("cosformer-attention: rejects what acts on single scores") { check_refuses_pairs(cosformer); }
TEST_CASE("cosformer-attention: rejects positions that do not fit") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 9, 8, 8});
    rejects(inputs, cosformer, {{"max_len", 8}}, {"max_len", "8", "9"});
    rejects(inputs, cosformer, {{"max_len", 9}, {"query_offset", 4}}, {"max_len", "9", "10"});
    rejects(inputs, cosformer, {{"query_offset", -1}}, {"query_offset", "-1"});
    rejects(inputs, cosformer, {{"eps", -0.5}}, {"eps", "-0.5"});
    const ForwardInputs tall = make_inputs(random, {1, 2, 2, 9, 6, 8, 8});
    rejects(tall, cosformer, {{"causal", true}}, {"query_offset", "-3"});
    CHECK(call(tall, cosformer, {{"causal", true}, {"query_offset", 0}}).output.shape[2] == 9);
    rejects(inputs, cosformer, {{"scale", 0.5}}, {"scale", "0.5"});
}
