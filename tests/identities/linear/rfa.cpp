// SPDX-License-Identifier: Apache-2.0
// Identities of rfa-attention.
#include "identities/linear/linear.hpp"

namespace {

using namespace identities;
using specs::linear::Directions;
using specs::linear::omega;
constexpr const char* rfa = "rfa-attention";

// One query and one key for each of so many heads; rows so long that x / (|x| + 1e-3) has length 1.
ForwardInputs one_pair(Random& random, std::int64_t heads, std::int64_t width) {
    ForwardInputs inputs;
    inputs.query = filled({1, heads, 1, width}, 0.0f);
    inputs.key = filled({1, heads, 1, width}, 0.0f);
    inputs.value = filled({1, heads, 1, 1}, 1.0f);
    for (std::int64_t d = 0; d < width; ++d) {
        const float q = 1e5f * random.normal(), k = 1e5f * random.normal();
        for (std::int64_t h = 0; h < heads; ++h) at(inputs.query, 0, h, 0, d) = q, at(*inputs.key, 0, h, 0, d) = k;
    }
    return inputs;
}
double squared_distance(const ForwardInputs& inputs) {
    Row q = row(inputs.query, 0, 0, 0), k = row(*inputs.key, 0, 0, 0);
    const double a = std::sqrt(specs::linear::dot(q, q)), b = std::sqrt(specs::linear::dot(k, k));
    double sum = 0;
    for (std::size_t d = 0; d < q.size(); ++d) sum += std::pow(q[d] / a - k[d] / b, 2);
    return sum;
}
// Estimates of the kernel by heads and redraws: compat = official returns factor^2 sum cos below its bound of 1.
std::vector<double> estimates(const ForwardInputs& inputs, std::int64_t features, double tau, int redraws) {
    std::vector<double> out;
    for (int redraw = 0; redraw < redraws; ++redraw)
        for (const float x :
             values(call(inputs, rfa,
                         {{"compat", "official"}, {"num_features", features}, {"tau", tau}, {"redraw_index", redraw}})
                        .output))
            out.push_back(static_cast<double>(x) / (0.01 * static_cast<double>(features)));
    return out;
}
// Queries lean towards the key, so that no estimate comes near the bound of the denominators.
ForwardInputs equal_keys(Random& random, const Shape& shape) {
    ForwardInputs inputs = make_inputs(random, shape);
    for (std::int64_t b = 0; b < shape.batch; ++b)
        for (std::int64_t h = 0; h < shape.heads; ++h)
            for (std::int64_t i = 0; i < shape.q_len; ++i)
                for (std::int64_t d = 0; d < shape.head_dim; ++d)
                    at(inputs.query, b, h, i, d) += 2 * at(*inputs.key, b, h * shape.kv_heads / shape.heads, 0, d);
    inputs.key = take(*inputs.key, 2, std::vector<std::int64_t>(static_cast<std::size_t>(shape.kv_len), 0));
    return inputs;
}
Tensor gates_of(const Shape& shape, const std::function<float(std::int64_t)>& gate) {
    Tensor gates = filled({shape.batch, shape.kv_heads, shape.kv_len}, 0.0f);
    for (std::int64_t at = 0; at < gates.size(); ++at) gates.as<float>()[at] = gate(at % shape.kv_len);
    return gates;
}
Row unit(Row x) {
    const double length = std::max(std::sqrt(specs::linear::dot(x, x)), 1e-6);
    for (double& value : x) value /= length;
    return x;
}
Row features(const std::vector<Row>& directions, const Row& x) {
    Row phi;
    for (const Row& w : directions) {
        const double u = specs::linear::dot(w, x);
        phi.push_back(std::sin(u) / std::sqrt(static_cast<double>(directions.size())));
        phi.push_back(std::cos(u) / std::sqrt(static_cast<double>(directions.size())));
    }
    return phi;
}

}  // namespace

TEST_CASE("rfa-attention: features of length 1") {
    // A key equal to the query has the weight factor^2 M, whatever the directions: 0.64 with M = 64 in the authors' code.
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
        Random random(seed);
        ForwardInputs inputs = one_pair(random, 4, 3 + random.below(20));
        inputs.key = inputs.query;
        for (const double estimate : estimates(inputs, 64, 1.0, 2)) CHECK(estimate == Approx(1.0).epsilon(1e-5));
    }
}

TEST_CASE("rfa-attention: length of the rows") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        for (const char* kind : {"sincos", "arccos"}) {
            const NamedValues options = {{"features", kind}, {"num_features", 64}};
            const Tensor before = call(inputs, rfa, options).output;
            ForwardInputs other = inputs;
            other.query = mapped(inputs.query, [](float x) { return 40.0f * x; });
            other.key = mapped(*inputs.key, [](float x) { return 0.25f * x; });
            CHECK(agree(before, call(other, rfa, options).output));
        }
    });
}

TEST_CASE("rfa-attention: mean over redraws") {
    Random random(3);
    for (const double tau : {1.0, 0.7}) {
        const ForwardInputs inputs = one_pair(random, 64, 6);
        const double kernel = std::exp(-squared_distance(inputs) / (2 * tau * tau));
        double errors[2];
        for (const int round : {0, 1}) {
            const std::int64_t m = round == 0 ? 16 : 64;
            const auto got = estimates(inputs, m, tau, 30);
            double sum = 0, squares = 0;
            for (const double x : got) sum += x, squares += (x - kernel) * (x - kernel);
            const auto count = static_cast<double>(got.size());
            errors[round] = std::sqrt(squares / count);
            CHECK(std::abs(sum / count - kernel) <= 5 * errors[round] / std::sqrt(count));
            CHECK(errors[round] <= 1.1 / std::sqrt(static_cast<double>(m)));
        }
        CHECK((errors[0] / errors[1] > 1.8 && errors[0] / errors[1] < 2.2));
    }
}

TEST_CASE("rfa-attention: equal keys") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = equal_keys(random, shape);
        const Tensor got = call(inputs, rfa, {{"num_features", 512}}).output;
        CHECK(distance_to_form(
                  got, *inputs.value, 0, 0, [](std::int64_t, std::int64_t) { return 1.0; }, [](double n) { return n; },
                  [&](std::int64_t) { return shape.kv_len; }) <= 1e-5);
    });
    // Constant gates: weights fall by the gate from key to key.
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = equal_keys(random, shape);
        inputs.extra = {{"gates", gates_of(shape, [](std::int64_t) { return 0.8f; })}};
        const Tensor got = call(inputs, rfa, {{"num_features", 512}, {"causal", true}, {"gating", "tensor"}}).output;
        CHECK(distance_to_form(
                  got, *inputs.value, 0, 0,
                  [](std::int64_t i, std::int64_t j) { return std::pow(0.8f, static_cast<double>(i - j)); },
                  [](double n) { return n; }, [](std::int64_t i) { return i; }) <= 1e-5);
    });
}

TEST_CASE("rfa-attention: gates") {
    on_random_shapes({.group = 2, .length = 150}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues options = {{"num_features", 512}, {"causal", true}};
        const Tensor ungated = call(inputs, rfa, options).output;
        // (t - 1) / t for t = 1, 2, ... weighs all keys alike.
        inputs.extra = {{"gates", gates_of(shape, [](std::int64_t j) {
                             return static_cast<float>(j) / static_cast<float>(j + 1);
                         })}};
        CHECK(agree(ungated, call(inputs, rfa, with(options, {{"gating", "tensor"}})).output, 3e-5));
        // Gates of 0 forget everything before the key.
        inputs.extra = {{"gates", gates_of(shape, [](std::int64_t) { return 0.0f; })}};
        const Tensor last = call(inputs, rfa, with(options, {{"gating", "tensor"}})).output;
        for (std::int64_t h = 0; h < shape.heads; ++h)
            for (std::int64_t i = 0; i < shape.q_len; ++i)
                for (std::int64_t c = 0; c < shape.value_dim; ++c)
                    CHECK(at(last, 0, h, i, c) == Approx(at(*inputs.value, 0, h * shape.kv_heads / shape.heads, i, c))
                                                      .epsilon(1e-5)
                                                      .margin(1e-6));
        // The gate of a key from weights: 1 / (1 + e^-4) without any.
        inputs.extra = {{"gates", gates_of(shape, [](std::int64_t) { return 1.0f / (1.0f + std::exp(-4.0f)); })}};
        const Tensor given = call(inputs, rfa, with(options, {{"gating", "tensor"}})).output;
        inputs.extra.clear();
        CHECK(agree(given, call(inputs, rfa, with(options, {{"gating", "weights"}})).output, 2e-5));
    });
}

TEST_CASE("rfa-attention: recurrence") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const Shape shape{1, 2, 2, 90 + random.below(80), 0, 4, 5};
        Shape full = shape;
        full.kv_len = shape.q_len;
        ForwardInputs inputs = make_inputs(random, full);
        std::vector<float> gates;
        for (std::int64_t j = 0; j < 2 * full.kv_len; ++j)
            gates.push_back(1.0f / (1.0f + std::exp(-1.0f - random.normal())));
        Tensor gate = filled({1, 2, full.kv_len}, 0.0f);
        std::copy(gates.begin(), gates.end(), gate.as<float>());
        inputs.extra = {{"gates", gate}};
        const Tensor got =
            call(inputs, rfa, {{"num_features", 8}, {"seed", 6}, {"causal", true}, {"gating", "tensor"}}).output;
        double worst = 0;
        for (std::int64_t h = 0; h < 2; ++h) {
            const auto directions = omega({"rfa-attention", 8, 4, 6, 0, false}, static_cast<std::size_t>(h));
            std::vector<Row> state(16, Row(5, 0.0));
            Row sums(16, 0.0);
            double n = 0;
            for (std::int64_t t = 0; t < full.kv_len; ++t) {
                const double g = static_cast<double>(at(gate, 0, h, t));
                const Row k = features(directions, unit(row(*inputs.key, 0, h, t))),
                          q = features(directions, unit(row(inputs.query, 0, h, t)));
                n = g * n + (1 - g);
                double den = 0;
                Row num(5, 0.0);
                for (std::size_t f = 0; f < 16; ++f) {
                    sums[f] = g * sums[f] + (1 - g) * k[f];
                    den += q[f] * sums[f];
                    for (std::size_t c = 0; c < 5; ++c) {
                        state[f][c] = g * state[f][c] +
                                      (1 - g) * k[f] *
                                          static_cast<double>(at(*inputs.value, 0, h, t, static_cast<std::int64_t>(c)));
                        num[c] += q[f] * state[f][c];
                    }
                }
                for (std::size_t c = 0; c < 5; ++c)
                    worst =
                        std::max(worst, std::abs(num[c] / std::max(den, n * std::exp(-2.0)) -
                                                 static_cast<double>(at(got, 0, h, t, static_cast<std::int64_t>(c)))));
            }
        }
        CHECK(worst <= 2e-5);
    }
}

TEST_CASE("rfa-attention: large tau") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor got = call(inputs, rfa, {{"tau", 1e4}, {"num_features", 64}}).output;
        CHECK(distance_to_form(
                  got, *inputs.value, 0, 0, [](std::int64_t, std::int64_t) { return 1.0; }, [](double n) { return n; },
                  [&](std::int64_t) { return shape.kv_len; }) <= 1e-3);
    });
}

TEST_CASE("rfa-attention: many features") {
    // Against exact softmax of the cosine over tau^2: the error halves as the features become four times as many.
    Random random(12);
    const double tau = 1.0;
    ForwardInputs inputs = make_inputs(random, {1, 8, 8, 24, 24, 6, 6});
    ForwardInputs directions = inputs;
    for (auto* tensor : {&directions.query, &*directions.key}) {
        Tensor to = filled(tensor->shape, 0.0f);
        for (std::int64_t h = 0; h < 8; ++h)
            for (std::int64_t n = 0; n < 24; ++n) {
                const Row x = unit(row(*tensor, 0, h, n));
                for (std::int64_t d = 0; d < 6; ++d)
                    at(to, 0, h, n, d) = static_cast<float>(x[static_cast<std::size_t>(d)]);
            }
        *tensor = to;
    }
    const auto exact = values(call(directions, "standard-mha", {{"scale", 1 / (tau * tau)}}).output);
    const auto error = [&](std::int64_t m) {
        double sum = 0;
        for (int redraw = 0; redraw < 8; ++redraw) {
            const auto got = values(call(inputs, rfa, {{"num_features", m}, {"redraw_index", redraw}}).output);
            for (std::size_t at = 0; at < got.size(); ++at)
                sum += std::pow(static_cast<double>(got[at]) - static_cast<double>(exact[at]), 2);
        }
        return std::sqrt(sum / 8 / static_cast<double>(exact.size()));
    };
    const double few = error(256), many = error(1024);
    CHECK((few / many > 1.6 && few / many < 2.5));
    CHECK(many < 0.05);
}

TEST_CASE("rfa-attention: key order") { check_key_order(rfa, {{"num_features", 64}}, 3e-5); }
TEST_CASE("rfa-attention: last causal row") { check_last_row(rfa, {{"num_features", 64}}); }
TEST_CASE("rfa-attention: future keys") {
    for (const char* gating : {"none", "weights"}) check_future(rfa, {{"gating", gating}});
}
TEST_CASE("rfa-attention: decoding") {
    for (const char* gating : {"none", "weights"}) check_decoding(rfa, {{"num_features", 64}, {"gating", gating}});
}
TEST_CASE("rfa-attention: threads") {
    check_threads(rfa);
    check_threads(rfa, {{"causal", true}, {"gating", "weights"}});
}

TEST_CASE("rfa-attention: rejects what acts on single scores") { check_refuses_pairs(rfa); }
TEST_CASE("rfa-attention: rejects gates that do not fit") {
    Random random(1);
    const Shape shape{1, 2, 2, 5, 5, 8, 8};
    ForwardInputs inputs = make_inputs(random, shape);
    rejects(inputs, rfa, {{"gating", "weights"}}, {"gating", "weights", "causal"});
    rejects(inputs, rfa, {{"gating", "tensor"}, {"causal", true}}, {"gates", "tensor"});
    inputs.extra = {{"gates", gates_of(shape, [](std::int64_t j) { return j == 3 ? 1.5f : 0.5f; })}};
    rejects(inputs, rfa, {{"gating", "tensor"}, {"causal", true}}, {"gates", "1.5", "0 to 1"});
    rejects(inputs, rfa, {{"causal", true}}, {"gates", "none"});
    rejects(inputs, rfa, {{"causal", true}, {"gating", "weights"}}, {"gates", "weights"});
    inputs.weights = {{"gate_weight", normal(random, {2, 8})}};
    rejects(inputs, rfa, {{"gating", "tensor"}, {"causal", true}}, {"gate_weight"});
    inputs.weights.clear();
    inputs.extra = {{"gates", filled({1, 2, 4}, 0.5f)}};
    rejects(inputs, rfa, {{"gating", "tensor"}, {"causal", true}}, {"gates", "4", "5"});
}
TEST_CASE("rfa-attention: rejects options out of place") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 5, 5, 8, 8});
    rejects(inputs, rfa, {{"tau", 0}}, {"tau", "0"});
    rejects(inputs, rfa, {{"scale", 0.5}}, {"scale", "0.5", "tau"});
    attend::ForwardOptions asked;
    asked.mechanism = rfa;
    asked.lse = true;
    const auto result = service().forward(inputs, asked);
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("sincos") != std::string::npos);
}
