// SPDX-License-Identifier: Apache-2.0
// Identities of differential-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* differential = "differential-attention";
constexpr const char* standard = "standard-mha";

NamedValues plus(NamedValues a, const NamedValues& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
NamedValues fixed(double lambda, bool norm) { return {{"lambda_mode", "fixed"}, {"lambda", lambda}, {"norm", norm}}; }
constexpr Limits limits{.group = 2, .length = 50, .square = false, .same_width = false};

// Shape::heads is that of the output: queries and keys have a head for each map.
ForwardInputs pairs(Random& random, const Shape& s) {
    ForwardInputs inputs;
    inputs.query = normal(random, {s.batch, 2 * s.heads, s.q_len, s.head_dim});
    inputs.key = normal(random, {s.batch, 2 * s.kv_heads, s.kv_len, s.head_dim});
    inputs.value = normal(random, {s.batch, s.kv_heads, s.kv_len, s.value_dim});
    return inputs;
}
// The heads of a map among `heads` pairs.
std::vector<std::int64_t> heads_of_map(std::int64_t heads, std::int64_t map, bool split) {
    std::vector<std::int64_t> which;
    for (std::int64_t h = 0; h < heads; ++h) which.push_back(split ? h + map * heads : 2 * h + map);
    return which;
}
ForwardInputs map_of(const ForwardInputs& inputs, std::int64_t map, bool split) {
    ForwardInputs one = inputs;
    one.weights.clear();
    one.query = take(inputs.query, 1, heads_of_map(inputs.query.shape[1] / 2, map, split));
    one.key = take(*inputs.key, 1, heads_of_map(inputs.key->shape[1] / 2, map, split));
    return one;
}
Tensor combined(const Tensor& a, double x, const Tensor& b, double y) {
    Tensor sum = mapped(a, [](float value) { return value; });
    const std::vector<float> other = values(b);
    for (std::int64_t at = 0; at < sum.size(); ++at)
        sum.as<float>()[at] = static_cast<float>(x * static_cast<double>(sum.as<float>()[at]) +
                                                 y * static_cast<double>(other[static_cast<std::size_t>(at)]));
    return sum;
}
Tensor scaled(const Tensor& from, double factor) { return combined(from, factor, from, 0.0); }

// lambda as values of one show it: every row is 1 - lambda.
double lambda_of(const ForwardInputs& inputs, const NamedValues& options) {
    ForwardInputs ones = inputs;
    ones.value = filled(inputs.value->shape, 1.0f);
    const Tensor output = forward(ones, differential, plus(options, {{"norm", false}, {"causal", false}})).output;
    CHECK(agree(values(output), std::vector<float>(static_cast<std::size_t>(output.size()), *output.as<float>())));
    return 1.0 - static_cast<double>(*output.as<float>());
}
void set_lambda_weights(ForwardInputs& inputs, const Tensor& q1, const Tensor& k1, const Tensor& q2, const Tensor& k2) {
    inputs.weights = {{"lambda_q1", q1}, {"lambda_k1", k1}, {"lambda_q2", q2}, {"lambda_k2", k2}};
}

}  // namespace

TEST_CASE("differential-attention: one map and equal pairs") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = pairs(random, s);
        for (const bool split : {false, true})
            for (const bool causal : {true, false}) {
                const NamedValues options = {{"pairing", split ? "split" : "interleaved"}, {"causal", causal}};
                const ForwardResult got = forward(inputs, differential, plus(options, fixed(0, false)));
                for (const std::int64_t map : {0, 1}) {
                    const ForwardResult alone = forward(map_of(inputs, map, split), standard, {{"causal", causal}});
                    if (map == 0) CHECK(agree(got.output, alone.output));
                    CHECK(agree(take(*got.lse, 1, heads_of_map(s.heads, map, split)), *alone.lse));
                }
                ForwardInputs equal = inputs;
                const auto twice = [&](const Tensor& tensor) {
                    const std::int64_t heads = tensor.shape[1] / 2;
                    std::vector<std::int64_t> which;
                    for (std::int64_t u = 0; u < 2 * heads; ++u) which.push_back(split ? u % heads : u - u % 2);
                    return take(tensor, 1, which);
                };
                equal.query = twice(inputs.query);
                equal.key = twice(*inputs.key);
                const ForwardResult map = forward(map_of(equal, 0, split), standard, {{"causal", causal}});
                for (const double lambda : {0.3, 1.0, -2.0})
                    CHECK(agree(forward(equal, differential, plus(options, fixed(lambda, false))).output,
                                scaled(map.output, 1.0 - lambda)));
            }
    });
}

TEST_CASE("differential-attention: ones as values") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = pairs(random, s);
        inputs.value = filled(inputs.value->shape, 1.0f);
        std::vector<std::int64_t> visible(static_cast<std::size_t>(s.batch), 0);  // a second item is empty
        visible[0] = s.kv_len;
        inputs.key_lengths = lengths(visible);
        for (const double lambda : {0.0, 0.7, -1.5}) {
            Tensor expected = filled({s.batch, s.heads, s.q_len, s.value_dim}, 0.0f);
            for (std::int64_t h = 0; h < s.heads; ++h)
                for (std::int64_t i = 0; i < s.q_len; ++i)
                    for (std::int64_t d = 0; d < s.value_dim; ++d)
                        if (i + s.kv_len - s.q_len >= 0) at(expected, 0, h, i, d) = static_cast<float>(1.0 - lambda);
            CHECK(agree(forward(inputs, differential, fixed(lambda, false)).output, expected));
        }
        // Rows without keys stay zero through the norm, also without an epsilon.
        const Tensor normed = forward(inputs, differential, plus(fixed(0.5, true), {{"norm_eps", 0.0}})).output;
        for (const float x : values(take(normed, 0, range(1, s.batch)))) CHECK(x == 0.0f);
        for (const float x : values(normed)) CHECK(std::isfinite(x));
    });
}

TEST_CASE("differential-attention: swapped maps") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = pairs(random, s);
        inputs.weights = {{"norm_weight", normal(random, {s.value_dim})}};
        for (const bool split : {false, true}) {
            ForwardInputs swapped = inputs;
            const auto exchanged = [&](const Tensor& tensor) {
                const std::int64_t heads = tensor.shape[1] / 2;
                std::vector<std::int64_t> which;
                for (std::int64_t u = 0; u < 2 * heads; ++u)
                    which.push_back(split ? (u + heads) % (2 * heads) : u + 1 - 2 * (u % 2));
                return take(tensor, 1, which);
            };
            swapped.query = exchanged(inputs.query);
            swapped.key = exchanged(*inputs.key);
            for (const double lambda : {0.4, 2.5}) {
                const NamedValues options = {{"pairing", split ? "split" : "interleaved"}, {"norm_eps", 0.0}};
                const ForwardResult one = forward(inputs, differential, plus(options, fixed(lambda, true))),
                                    other = forward(swapped, differential, plus(options, fixed(1.0 / lambda, true)));
                CHECK(agree(other.output, scaled(one.output, -1.0)));
            }
        }
    });
}

TEST_CASE("differential-attention: scaled values") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        const ForwardInputs inputs = pairs(random, s);
        const NamedValues normed = plus(fixed(0.4, true), {{"norm_eps", 0.0}});
        const ForwardResult plain = forward(inputs, differential, normed);
        for (const double factor : {1e-25, 1e-3, 7.0, 1e4, 1e22}) {
            ForwardInputs other = inputs;
            other.value = scaled(*inputs.value, factor);
            CHECK(agree(forward(other, differential, normed).output, plain.output));
        }
        ForwardInputs second = inputs, sum = inputs;
        second.value = normal(random, inputs.value->shape);
        sum.value = combined(*inputs.value, 0.7, *second.value, -1.3);
        const auto linear = [&](const ForwardInputs& of) {
            return forward(of, differential, {{"norm", false}}).output;
        };
        CHECK(agree(linear(sum), combined(linear(inputs), 0.7, linear(second), -1.3)));
    });
}

TEST_CASE("differential-attention: lambda") {
    Random random(1);
    for (int round = 0; round < 4; ++round) {
        const std::int64_t width = 2 + random.below(20);
        ForwardInputs inputs = pairs(random, {2, 2, 1, 9, 14, width, 5});
        const Tensor same = scaled(normal(random, {width}), 0.3);
        set_lambda_weights(inputs, same, same, same, same);
        CHECK(std::abs(lambda_of(inputs, {}) - 0.2) < 1e-6);
        CHECK(std::abs(lambda_of(inputs, {{"depth", 1}}) - 0.35550907) < 1e-6);
        double last = 0.0;
        for (std::int64_t depth = 0; depth < 30; ++depth) {
            const double lambda = lambda_of(inputs, {{"depth", depth}});
            CHECK(lambda > last);
            CHECK(lambda < 0.8);
            last = lambda;
        }
        CHECK(std::abs(lambda_of(inputs, {{"depth", 1000}}) - 0.8) < 1e-6);
        CHECK(std::abs(lambda_of(inputs, {{"depth", 3}, {"lambda_init", 0.45}}) - 0.45) < 1e-6);

        Tensor weights[4];
        for (Tensor& weight : weights) weight = scaled(normal(random, {width}), 0.3);
        set_lambda_weights(inputs, weights[0], weights[1], weights[2], weights[3]);
        double first = 0, second = 0;
        for (std::int64_t d = 0; d < width; ++d) {
            first += static_cast<double>(weights[0].as<float>()[d]) * static_cast<double>(weights[1].as<float>()[d]);
            second += static_cast<double>(weights[2].as<float>()[d]) * static_cast<double>(weights[3].as<float>()[d]);
        }
        const double expected = std::exp(first) - std::exp(second) + 0.2;
        CHECK(std::abs(lambda_of(inputs, {}) - expected) < 1e-5 * (1 + std::abs(expected)));
    }
}

TEST_CASE("differential-attention: equal exponents") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = pairs(random, s);
        const Tensor q = normal(random, {s.head_dim}), k = normal(random, {s.head_dim});
        for (const bool norm : {true, false}) {
            inputs.weights.clear();
            const ForwardResult expected =
                forward(inputs, differential, plus(fixed(0.3, norm), {{"lambda_init", 0.3}}));
            set_lambda_weights(inputs, q, k, q, k);
            const ForwardResult got = forward(inputs, differential, {{"norm", norm}, {"lambda_init", 0.3}});
            CHECK(same_bits(got.output, expected.output));
        }
    });
}

TEST_CASE("differential-attention: norm") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = pairs(random, s);
        const Tensor plain = forward(inputs, differential, fixed(0.4, false)).output;
        const Tensor weight = normal(random, {s.value_dim});
        inputs.weights = {{"norm_weight", weight}};
        Tensor expected = filled(plain.shape, 0.0f);
        for (std::int64_t row = 0; row < plain.size() / s.value_dim; ++row) {
            const float* from = plain.as<float>() + row * s.value_dim;
            double square = 0;
            for (std::int64_t c = 0; c < s.value_dim; ++c) square += std::pow(static_cast<double>(from[c]), 2);
            const double size = 0.75 / std::sqrt(square / static_cast<double>(s.value_dim) + 0.01);
            for (std::int64_t c = 0; c < s.value_dim; ++c)
                expected.as<float>()[row * s.value_dim + c] = static_cast<float>(
                    size * static_cast<double>(from[c]) * static_cast<double>(weight.as<float>()[c]));
        }
        CHECK(agree(
            forward(inputs, differential, plus(fixed(0.4, true), {{"norm_eps", 0.01}, {"lambda_init", 0.25}})).output,
            expected));
    });
}

TEST_CASE("differential-attention: second version") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = pairs(random, s);
        inputs.key = normal(random, {s.batch, s.kv_heads, s.kv_len, s.head_dim});
        const Tensor logits = normal(random, {s.batch, s.heads, s.q_len});
        ForwardInputs maps[2] = {inputs, inputs};
        ForwardResult alone[2];
        for (const std::int64_t map : {0, 1}) {
            maps[map].query = take(inputs.query, 1, heads_of_map(s.heads, map, false));
            alone[map] = forward(maps[map], standard, {{"causal", true}});
        }
        inputs.extra = {{"lambda_logits", logits}};
        const ForwardResult got = forward(inputs, differential, {{"variant", "v2"}});
        Tensor expected = mapped(alone[0].output, [](float x) { return x; });
        for (std::int64_t at = 0; at < expected.size(); ++at) {
            const double logit = static_cast<double>(logits.as<float>()[at / s.value_dim]);
            expected.as<float>()[at] -=
                static_cast<float>(static_cast<double>(alone[1].output.as<float>()[at]) / (1.0 + std::exp(-logit)));
        }
        CHECK(agree(got.output, expected));
        for (const std::int64_t map : {0, 1})
            CHECK(agree(take(*got.lse, 1, heads_of_map(s.heads, map, false)), *alone[map].lse));

        const std::int64_t width = 1 + random.below(12);
        const Tensor x = normal(random, {s.batch, s.q_len, width}), proj = layer(random, s.heads, width);
        const Tensor rows = linear(x, proj);
        Tensor made = filled(logits.shape, 0.0f);
        for (std::int64_t b = 0; b < s.batch; ++b)
            for (std::int64_t h = 0; h < s.heads; ++h)
                for (std::int64_t i = 0; i < s.q_len; ++i) at(made, b, h, i) = at(rows, b, i, h);
        inputs.extra = {{"lambda_logits", made}};
        const ForwardResult by_logits = forward(inputs, differential, {{"variant", "v2"}});
        inputs.extra = {{"x", x}};
        inputs.weights = {{"lambda_proj", proj}};
        CHECK(agree(forward(inputs, differential, {{"variant", "v2"}}), by_logits));
    });
}

TEST_CASE("differential-attention: rejects heads that do not pair") {
    Random random(1);
    const auto with = [&](std::int64_t query, std::int64_t key, std::int64_t value) {
        ForwardInputs inputs = make_inputs(random, {2, query, key, 5, 6, 8, 8});
        inputs.value = normal(random, {2, value, 6, 8});
        return inputs;
    };
    rejects(with(3, 3, 3), differential, {}, {"query", "3", "even"});
    rejects(with(6, 3, 3), differential, {}, {"key", "3", "even"});
    rejects(with(6, 4, 2), differential, {}, {"6", "4"});
    rejects(with(8, 4, 4), differential, {}, {"value", "4", "2"});
    const NamedValues second = {{"variant", "v2"}};
    const auto logits = [&](ForwardInputs inputs) {
        inputs.extra = {{"lambda_logits", normal(random, {2, inputs.query.shape[1] / 2, 5})}};
        return inputs;
    };
    rejects(logits(with(8, 3, 3)), differential, second, {"8", "3"});
    rejects(logits(with(6, 2, 2)), differential, second, {"6", "2"});  // groups of three
    rejects(logits(with(5, 1, 1)), differential, second, {"query", "5", "even"});
    CHECK(forward(logits(with(6, 3, 3)), differential, second).output.shape[1] == 3);
}

TEST_CASE("differential-attention: rejects a second version without logits or in halves") {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {2, 4, 2, 5, 6, 8, 8});
    const NamedValues second = {{"variant", "v2"}};
    rejects(inputs, differential, second, {"lambda_logits", "x"});
    const Tensor logits = normal(random, {2, 2, 5}), x = normal(random, {2, 5, 3});
    inputs.extra = {{"lambda_logits", logits}};
    rejects(inputs, differential, plus(second, {{"pairing", "split"}}), {"pairing", "split", "v2"});
    inputs.weights = {{"lambda_proj", normal(random, {2, 3})}};
    rejects(inputs, differential, second, {"lambda_proj", "switched off"});
    inputs.weights.clear();
    inputs.extra = {{"lambda_logits", logits}, {"x", x}};
    rejects(inputs, differential, second, {"lambda_logits", "x"});
    inputs.extra = {{"lambda_logits", normal(random, {2, 4, 5})}};
    rejects(inputs, differential, second, {"lambda_logits", "4", "2"});
    inputs.extra = {{"x", x}};
    inputs.weights = {{"lambda_proj", normal(random, {2, 4})}};
    rejects(inputs, differential, second, {"lambda_proj", "4", "3"});
    inputs.weights = {{"norm_weight", filled({8}, 1.0f)}};
    rejects(inputs, differential, second, {"norm_weight", "switched off"});
}

TEST_CASE("differential-attention: rejects lambdas out of range and weights of other shapes") {
    Random random(3);
    ForwardInputs inputs = make_inputs(random, {2, 4, 4, 5, 6, 8, 7});
    inputs.value = normal(random, {2, 2, 6, 7});
    rejects(inputs, differential, {{"lambda_mode", "fixed"}}, {"lambda", "missing", "fixed"});
    for (const double init : {-0.1, 1.0, 1.5})
        rejects(inputs, differential, {{"lambda_init", init}}, {"lambda_init", "accepted"});
    rejects(inputs, differential, {{"lambda_init", 1.5}}, {"lambda_init", "1.5", "accepted"});
    rejects(inputs, differential, {{"depth", -1}}, {"depth", "-1", "accepted"});
    rejects(inputs, differential, {{"norm_eps", -0.5}}, {"norm_eps", "-0.5", "accepted"});
    rejects(inputs, differential, {{"variant", "v3"}}, {"variant", "v3", "v1"});
    inputs.weights = {{"lambda_q1", normal(random, {7})}};
    rejects(inputs, differential, {}, {"lambda_q1", "7", "8"});
    inputs.weights = {{"lambda_q1", normal(random, {8})}};
    rejects(inputs, differential, fixed(0.5, true), {"lambda_q1", "switched off"});
    inputs.weights = {{"norm_weight", normal(random, {8})}};
    rejects(inputs, differential, {}, {"norm_weight", "8", "7"});
    inputs.weights = {{"norm_weight", normal(random, {7})}};
    rejects(inputs, differential, {{"norm", false}}, {"norm_weight", "switched off"});
    inputs.weights.clear();
    inputs.extra = {{"lambda_logits", normal(random, {2, 2, 5})}};
    rejects(inputs, differential, {}, {"lambda_logits"});
}

TEST_CASE("differential-attention: rejects scores and masks of single maps") {
    Random random(4);
    ForwardInputs inputs = make_inputs(random, {1, 4, 4, 5, 6, 8, 8});
    inputs.value = normal(random, {1, 2, 6, 8});
    attend::ForwardOptions call;
    call.mechanism = differential;
    call.scores = true;
    CHECK_FALSE(service().forward(inputs, call));
    inputs.mask = bools({1, 2, 5, 6}, [](const std::vector<std::int64_t>&) { return true; });
    rejects(inputs, differential, {}, {"mask", "2", "4"});
    inputs.mask = bools({1, 4, 5, 6}, [](const std::vector<std::int64_t>& at) { return at[3] < 5 || at[1] % 2 == 0; });
    CHECK(forward(inputs, differential, {}).output.size() > 0);
}
