// SPDX-License-Identifier: Apache-2.0
// Identities of linear-attention.
#include "identities/linear/linear.hpp"

namespace {

using namespace identities;
constexpr const char* linear_attention = "linear-attention";

Row elu(Row x) {
    for (double& value : x) value = value > 0 ? value + 1 : std::exp(value);
    return x;
}
// Products of r with itself rolled by 1 to nu, to the right or to the left.
Row dpfp(const Row& x, std::size_t nu, bool left = false) {
    Row r, out;
    for (const double value : x) r.push_back(std::max(value, 0.0));
    for (const double value : x) r.push_back(std::max(-value, 0.0));
    const std::size_t width = r.size();
    for (std::size_t n = 1; n <= nu; ++n)
        for (std::size_t t = 0; t < width; ++t) out.push_back(r[t] * r[(t + (left ? n : width - n)) % width]);
    return out;
}
Tensor scaled(const Tensor& tensor, float factor) {
    return mapped(tensor, [factor](float x) { return factor * x; });
}

}  // namespace

TEST_CASE("linear-attention: quadratic form") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            const Tensor got = call(inputs, linear_attention, {{"causal", causal}}).output;
            for (std::int64_t h = 0; h < shape.heads; ++h) {
                const auto weight = [&](std::int64_t i, std::int64_t j) {
                    return specs::linear::dot(elu(row(inputs.query, 0, h, i)),
                                              elu(row(*inputs.key, 0, h * shape.kv_heads / shape.heads, j)));
                };
                CHECK(distance_to_form(
                          got, *inputs.value, 0, h, weight, [](double den) { return den + 1e-6; },
                          [&](std::int64_t i) { return causal ? i + shape.kv_len - shape.q_len : shape.kv_len; }) <=
                      1e-5 * (1 + largest(values(*inputs.value))));
            }
        }
    });
}

TEST_CASE("linear-attention: small inputs") {
    // elu is 1 + x up to x^2 / 2: the output is a mean of values tilted by what is left of the scores.
    Random random(5);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 20, 20, 6, 6});
    inputs.query = scaled(inputs.query, 1e-3f);
    inputs.key = scaled(*inputs.key, 1e-3f);
    const Tensor got = call(inputs, linear_attention, {{"eps", 0}}).output;
    for (std::int64_t h = 0; h < 2; ++h)
        CHECK(distance_to_form(
                  got, *inputs.value, 0, h,
                  [&](std::int64_t i, std::int64_t j) {
                      Row q = row(inputs.query, 0, h, i), k = row(*inputs.key, 0, h, j);
                      for (double& x : q) x += 1;
                      for (double& x : k) x += 1;
                      return specs::linear::dot(q, k);
                  },
                  [](double den) { return den; }, [](std::int64_t) { return std::int64_t{20}; }) <= 1e-5);
}

TEST_CASE("linear-attention: scale of the queries") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        for (const char* map : {"relu", "dpfp"}) {
            const NamedValues options = {{"feature_map", map}, {"eps", 0}};
            const Tensor before = call(inputs, linear_attention, options).output;
            for (const float t : {0.25f, 3.0f}) {
                ForwardInputs other = inputs;
                other.query = scaled(inputs.query, t);
                CHECK(agree(before, call(other, linear_attention, options).output));
            }
        }
    });
}

TEST_CASE("linear-attention: degree of dpfp") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues options = {{"feature_map", "dpfp"}, {"normalize", false}, {"nu", 2}};
        const Tensor before = call(inputs, linear_attention, options).output;
        inputs.key = scaled(*inputs.key, 1.5f);
        const auto expected = values(scaled(before, 2.25f)),
                   got = values(call(inputs, linear_attention, options).output);
        CHECK(difference(got, {expected.begin(), expected.end()}) <= 1e-6 * (1 + largest(expected)));
    });
}

TEST_CASE("linear-attention: direction of the roll") {
    on_random_shapes({.heads = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor got = call(inputs, linear_attention, {{"feature_map", "dpfp"}, {"nu", 3}, {"eps", 0}}).output;
        for (const bool left : {false, true})
            CHECK(distance_to_form(
                      got, *inputs.value, 0, 0,
                      [&](std::int64_t i, std::int64_t j) {
                          return specs::linear::dot(dpfp(row(inputs.query, 0, 0, i), 3, left),
                                                    dpfp(row(*inputs.key, 0, 0, j), 3, left));
                      },
                      [](double den) { return den; }, [&](std::int64_t) { return shape.kv_len; }) <= 1e-5);
    });
}

TEST_CASE("linear-attention: sums of keys") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues options = {{"normalize", false}};
        const auto part = [&](std::int64_t begin, std::int64_t end) {
            ForwardInputs some = inputs;
            some.key = take(*inputs.key, 2, range(begin, end));
            some.value = take(*inputs.value, 2, range(begin, end));
            return values(call(some, linear_attention, options).output);
        };
        const std::int64_t cut = 1 + random.below(shape.kv_len - 1);
        std::vector<float> sum = part(0, cut);
        const std::vector<float> rest = part(cut, shape.kv_len), whole = part(0, shape.kv_len);
        for (std::size_t at = 0; at < sum.size(); ++at) sum[at] += rest[at];
        double size = 1;
        for (const float x : whole) size = std::max(size, static_cast<double>(std::abs(x)));
        CHECK(difference(sum, {whole.begin(), whole.end()}) <= 1e-5 * size);
    });
}

TEST_CASE("linear-attention: eps") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        std::fill_n(inputs.value->as<float>(), inputs.value->size(), 1.0f);
        const ForwardResult with_eps = forward(inputs, linear_attention, {{"eps", 0.5}}),
                            without = forward(inputs, linear_attention, {{"eps", 0}});
        const auto lse = values(*with_eps.lse), ones = values(with_eps.output);
        for (std::size_t at = 0; at < ones.size(); ++at) {
            const double den = std::exp(static_cast<double>(lse[at / static_cast<std::size_t>(shape.value_dim)]));
            CHECK(std::abs(static_cast<double>(ones[at]) - den / (den + 0.5)) <= 1e-5);
        }
        for (const float x : values(without.output)) CHECK(std::abs(x - 1.0f) <= 1e-5f);
        CHECK(agree(*with_eps.lse, *without.lse));
        // The default eps moves the output by eps / den of its size at most.
        CHECK(agree(call(inputs, linear_attention).output, without.output));
    });
}

TEST_CASE("linear-attention: merged halves") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* map : {"elu", "relu", "dpfp"}) {
            const NamedValues options = {{"feature_map", map}, {"eps", 0}};
            const std::int64_t cut = 1 + random.below(shape.kv_len - 1);
            ForwardInputs a = inputs, b = inputs;
            a.key = take(*inputs.key, 2, range(0, cut)), a.value = take(*inputs.value, 2, range(0, cut));
            b.key = take(*inputs.key, 2, range(cut, shape.kv_len));
            b.value = take(*inputs.value, 2, range(cut, shape.kv_len));
            const Partial both = merged(forward(a, linear_attention, options), forward(b, linear_attention, options));
            const ForwardResult whole = forward(inputs, linear_attention, options);
            CHECK(agree(both.output, values(whole.output)));
            CHECK(agree(both.lse, values(*whole.lse)));
        }
    });
}

TEST_CASE("linear-attention: favor+") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const NamedValues& options :
             {NamedValues{}, NamedValues{{"causal", true}}, NamedValues{{"kernel", "hyperbolic"}, {"num_features", 9}},
              NamedValues{{"seed", 4}, {"redraw_index", 2}, {"per_head_features", true}},
              NamedValues{{"kernel", "relu"}, {"scale", 0.3}}}) {
            const ForwardResult performer = forward(inputs, "performer-attention", options);
            for (const NamedValues& name :
                 {NamedValues{{"feature_map", "favor+"}}, NamedValues{{"kernel_type", "softmax"}}}) {
                const ForwardResult same = forward(inputs, linear_attention, with(name, options));
                CHECK(same_bits(performer.output, same.output));
                CHECK(same_bits(*performer.lse, *same.lse));
            }
        }
    });
}

TEST_CASE("linear-attention: key order") {
    for (const char* map : {"elu", "dpfp"}) check_key_order(linear_attention, {{"feature_map", map}});
}
TEST_CASE("linear-attention: last causal row") { check_last_row(linear_attention); }
TEST_CASE("linear-attention: future keys") {
    for (const char* map : {"elu", "dpfp"}) check_future(linear_attention, {{"feature_map", map}});
}
TEST_CASE("linear-attention: decoding") {
    for (const char* map : {"elu", "relu"}) check_decoding(linear_attention, {{"feature_map", map}});
}
TEST_CASE("linear-attention: threads") {
    for (const bool causal : {false, true}) check_threads(linear_attention, {{"causal", causal}});
}

TEST_CASE("linear-attention: rejects what acts on single scores") { check_refuses_pairs(linear_attention); }
TEST_CASE("linear-attention: rejects options of other maps") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 5, 5, 8, 8});
    rejects(inputs, linear_attention, {{"feature_map", "dpfp"}, {"nu", 16}}, {"nu", "16", "15"});
    rejects(inputs, linear_attention, {{"nu", 2}}, {"nu", "dpfp"});
    rejects(inputs, linear_attention, {{"feature_map", "favor+"}, {"sum_normalize", true}}, {"sum_normalize"});
    rejects(inputs, linear_attention, {{"num_features", 8}}, {"num_features", "favor+"});
    rejects(inputs, linear_attention, {{"stabilizer", "exact"}}, {"stabilizer", "favor+"});
    rejects(inputs, linear_attention, {{"eps", -1}}, {"eps", "-1"});
    rejects(inputs, linear_attention, {{"feature_map", "relu"}, {"kernel_type", "elu"}},
            {"kernel_type", "feature_map"});
    rejects(inputs, linear_attention, {{"kernel_type", "exp"}}, {"kernel_type", "exp", "elu"});
}
TEST_CASE("linear-attention: rejects numerators where a denominator is asked for") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 5, 5, 8, 8});
    rejects(inputs, linear_attention, {{"feature_map", "favor+"}, {"normalize", false}}, {"normalize", "favor+"});
    attend::ForwardOptions asked;
    asked.mechanism = linear_attention;
    asked.options = {{"normalize", false}};
    asked.lse = true;
    const auto result = service().forward(inputs, asked);
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("normalize") != std::string::npos);
}
