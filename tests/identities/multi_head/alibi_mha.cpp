// SPDX-License-Identifier: Apache-2.0
// Identities of alibi-mha.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* alibi = "alibi-mha";

// Slopes of 2^n heads, as the paper has them.
std::vector<double> paper_slopes(std::int64_t heads, double most = 8.0) {
    std::vector<double> slopes;
    for (std::int64_t h = 0; h < heads; ++h)
        slopes.push_back(std::pow(2.0, -most * static_cast<double>(h + 1) / static_cast<double>(heads)));
    return slopes;
}
Tensor tensor_of(const std::vector<double>& numbers) {
    Tensor tensor = filled({static_cast<std::int64_t>(numbers.size())}, 0.0f);
    for (std::size_t at = 0; at < numbers.size(); ++at) tensor.as<float>()[at] = static_cast<float>(numbers[at]);
    return tensor;
}

}  // namespace

TEST_CASE("alibi-mha: zero and squared slopes") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const ForwardInputs plain = inputs;
        inputs.weights = {{"slopes", filled({shape.heads}, 0.0f)}};
        CHECK(agree(forward(inputs, alibi), forward(plain, "standard-mha", {{"causal", true}})));
    });
    for (const std::int64_t heads : {1, 2, 4, 8}) {
        Random random(static_cast<std::uint64_t>(heads));
        ForwardInputs inputs = make_inputs(random, {1, heads, heads, 25, 25, 8, 8});
        const ForwardResult sixteen = forward(inputs, alibi, {{"max_bias", 16}});
        std::vector<double> squares = paper_slopes(heads);
        for (double& slope : squares) slope *= slope;
        inputs.weights = {{"slopes", tensor_of(squares)}};
        CHECK(agree(sixteen, forward(inputs, alibi)));
    }
}

TEST_CASE("alibi-mha: closed form for zero queries") {
    for (const std::int64_t length : {1, 7, 40, 300}) {
        Random random(static_cast<std::uint64_t>(length));
        ForwardInputs inputs = make_inputs(random, {1, 4, 4, length, length, 8, 8});
        inputs.query = filled(inputs.query.shape, 0.0f);
        const ForwardResult result = forward(inputs, alibi, {}, true);
        const std::vector<double> slopes = paper_slopes(4);
        Tensor weights = filled(result.scores->shape, 0.0f), lse = filled(result.lse->shape, 0.0f);
        for (std::int64_t h = 0; h < 4; ++h)
            for (std::int64_t i = 0; i < length; ++i) {
                const double m = slopes[static_cast<std::size_t>(h)];
                const double all = (1 - std::exp(-m * static_cast<double>(i + 1))) / (1 - std::exp(-m));
                at(lse, 0, h, i) = static_cast<float>(std::log(all));
                for (std::int64_t j = 0; j <= i; ++j)
                    at(weights, 0, h, i, j) = static_cast<float>(std::exp(-m * static_cast<double>(i - j)) / all);
            }
        CHECK(agree(*result.scores, weights));
        CHECK(agree(*result.lse, lse));
    }
}

TEST_CASE("alibi-mha: signed distance") {
    on_random_shapes({}, [](Random& random, Shape shape) {
        shape.heads = shape.kv_heads = 4;
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::vector<double> slopes = paper_slopes(4);
        ForwardInputs biased = inputs;
        biased.bias = filled({1, 4, 1, shape.kv_len}, 0.0f);
        for (std::int64_t h = 0; h < 4; ++h)
            for (std::int64_t j = 0; j < shape.kv_len; ++j)
                at(*biased.bias, 0, h, 0, j) =
                    static_cast<float>(slopes[static_cast<std::size_t>(h)] * static_cast<double>(j));
        const ForwardResult got = forward(inputs, alibi, {{"distance", "signed"}, {"causal", false}});
        const ForwardResult other = forward(biased, "standard-mha");
        CHECK(agree(got.output, other.output));
        Tensor lse = take(*other.lse, 1, range(0, 4));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < 4; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    at(lse, b, h, i) -=
                        static_cast<float>(slopes[static_cast<std::size_t>(h)] * static_cast<double>(i));
        CHECK(agree(*got.lse, lse));
        CHECK(agree(forward(inputs, alibi, {{"distance", "signed"}}), forward(inputs, alibi)));
    });
}

TEST_CASE("alibi-mha: slopes of 8 and 12 heads") {
    for (const std::int64_t heads : {8, 12}) {
        std::vector<double> slopes;
        for (int h = 1; h <= 8; ++h) slopes.push_back(std::pow(2.0, -h));
        for (double power = 0.5; slopes.size() < static_cast<std::size_t>(heads); power += 1.0)
            slopes.push_back(std::pow(2.0, -power));
        Random random(static_cast<std::uint64_t>(heads));
        ForwardInputs inputs = make_inputs(random, {2, heads, heads / 4, 33, 33, 8, 8});
        const ForwardResult usual = forward(inputs, alibi, {{"causal", false}});
        inputs.weights = {{"slopes", tensor_of(slopes)}};
        const ForwardResult given = forward(inputs, alibi, {{"causal", false}});
        CHECK(same_bits(usual.output, given.output));
        CHECK(same_bits(*usual.lse, *given.lse));
        Tensor per_item = joined(inputs.weights[0].second, inputs.weights[0].second, 0);
        per_item.shape = {2, heads};
        per_item.strides = {heads, 1};
        inputs.weights = {{"slopes", per_item}};
        CHECK(same_bits(usual.output, forward(inputs, alibi, {{"causal", false}}).output));
    }
}

TEST_CASE("alibi-mha: length independence") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult whole = forward(inputs, alibi);
        for (const std::int64_t row : {std::int64_t{0}, random.below(shape.q_len), shape.q_len - 1}) {
            ForwardInputs one;
            one.query = take(inputs.query, 2, {row});
            one.key = take(*inputs.key, 2, range(0, row + 1));
            one.value = take(*inputs.value, 2, range(0, row + 1));
            const ForwardResult result = forward(one, alibi);
            CHECK(agree(result.output, take(whole.output, 2, {row})));
            CHECK(agree(*result.lse, take(*whole.lse, 2, {row})));
        }
    });
}

TEST_CASE("alibi-mha: shifted positions") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {true, false}) {
            const NamedValues options = {{"causal", causal}};
            inputs.extra.clear();
            const ForwardResult plain = forward(inputs, alibi, options);
            for (const std::int64_t shift : {std::int64_t{0}, std::int64_t{-1000}, std::int64_t{123456}}) {
                std::vector<std::int64_t> q = range(shape.kv_len - shape.q_len, shape.kv_len),
                                          k = range(0, shape.kv_len);
                for (std::int64_t& position : q) position += shift;
                for (std::int64_t& position : k) position += shift;
                inputs.extra = {{"positions_q", ints({shape.q_len}, q)}, {"positions_k", ints({shape.kv_len}, k)}};
                CHECK(agree(forward(inputs, alibi, options), plain));
            }
        }
    });
}

TEST_CASE("alibi-mha: rejects slopes and max_bias that do not fit") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {2, 4, 4, 5, 5, 8, 8});
    rejects(inputs, alibi, {{"max_bias", 0}}, {"max_bias", "0", "accepted"});
    rejects(inputs, alibi, {{"max_bias", -1}}, {"max_bias", "-1", "accepted"});
    inputs.weights = {{"slopes", filled({3}, 0.5f)}};
    rejects(inputs, alibi, {}, {"slopes", "3", "4"});
    inputs.weights = {{"slopes", filled({4}, std::numeric_limits<float>::infinity())}};
    rejects(inputs, alibi, {}, {"slopes", "not finite"});
    inputs.weights = {{"slopes", filled({4}, -0.5f)}};
    CHECK(forward(inputs, alibi).output.size() > 0);  // negative slopes are legal
    rejects(inputs, alibi, {{"max_bias", 8}}, {"max_bias", "slopes"});
    inputs.weights.clear();
    inputs.extra = {{"positions_q", ints({4}, {0, 1, 2, 3})}};
    rejects(inputs, alibi, {}, {"positions_q", "4", "5"});
}
