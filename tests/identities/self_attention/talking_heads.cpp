// SPDX-License-Identifier: Apache-2.0
// Identities of talking-heads-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* talking = "talking-heads-attention";
constexpr const char* standard = "standard-mha";

// Score, softmax and value heads.
struct Heads {
    std::int64_t score, softmax, value;
};
Heads random_heads(Random& random) { return {1 + random.below(5), 1 + random.below(5), 1 + random.below(5)}; }

ForwardInputs inputs_of(Random& random, const Shape& shape, const Heads& heads) {
    ForwardInputs inputs;
    inputs.query = normal(random, {shape.batch, heads.score, shape.q_len, shape.head_dim});
    inputs.key = normal(random, {shape.batch, heads.score, shape.kv_len, shape.head_dim});
    inputs.value = normal(random, {shape.batch, heads.value, shape.kv_len, shape.value_dim});
    return inputs;
}

// 1 at (row, column) where column is the row's entry.
Tensor permutation(const std::vector<std::int64_t>& order) {
    const auto count = static_cast<std::int64_t>(order.size());
    Tensor matrix = filled({count, count}, 0.0f);
    for (std::int64_t row = 0; row < count; ++row)
        matrix.as<float>()[row * count + order[static_cast<std::size_t>(row)]] = 1.0f;
    return matrix;
}
std::vector<std::int64_t> inverse(const std::vector<std::int64_t>& order) {
    std::vector<std::int64_t> to(order.size());
    for (std::size_t at = 0; at < order.size(); ++at)
        to[static_cast<std::size_t>(order[at])] = static_cast<std::int64_t>(at);
    return to;
}

// sum over s of matrix[s][v] part[s], part[s] being the tensors' heads.
Tensor mixed(const Tensor& heads, const Tensor& matrix) {
    const std::int64_t from = matrix.shape[0], to = matrix.shape[1];
    Tensor out = filled({heads.shape[0], to, heads.shape[2], heads.shape[3]}, 0.0f);
    for (std::int64_t b = 0; b < out.shape[0]; ++b)
        for (std::int64_t v = 0; v < to; ++v)
            for (std::int64_t i = 0; i < out.shape[2]; ++i)
                for (std::int64_t d = 0; d < out.shape[3]; ++d)
                    for (std::int64_t s = 0; s < from; ++s)
                        at(out, b, v, i, d) += matrix.as<const float>()[s * to + v] * at(heads, b, s, i, d);
    return out;
}

}  // namespace

TEST_CASE("talking-heads-attention: identity mixes") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const std::int64_t h = shape.heads;
        ForwardInputs inputs = inputs_of(random, shape, {h, h, h});
        if (random.below(2) == 0) {
            inputs.mask = bools({1, h, shape.q_len, shape.kv_len}, [&](const auto&) { return random.below(3) > 0; });
            inputs.bias = normal(random, {1, 1, shape.q_len, shape.kv_len});
        }
        const ForwardResult expected = forward(inputs, standard);
        CHECK(agree(forward(inputs, talking, {{"pre_mixing", false}, {"post_mixing", false}}), expected));
        ForwardInputs with = inputs;
        with.weights = {{"pre_mix", permutation(range(0, h))}, {"post_mix", permutation(range(0, h))}};
        CHECK(agree(forward(with, talking), expected));
        with.weights.pop_back();
        CHECK(agree(forward(with, talking, {{"post_mixing", false}}), expected));
        with.weights = {{"post_mix", permutation(range(0, h))}};
        CHECK(agree(forward(with, talking, {{"pre_mixing", false}}), expected));
    });
}

TEST_CASE("talking-heads-attention: permuted heads") {
    on_random_shapes({.heads = 6, .square = false}, [](Random& random, const Shape& shape) {
        const std::int64_t h = shape.heads;
        ForwardInputs inputs = inputs_of(random, shape, {h, h, h});
        inputs.mask = bools({1, 1, shape.q_len, shape.kv_len}, [&](const auto&) { return random.below(4) > 0; });
        const auto order = shuffled(random, h), back = inverse(order);
        ForwardInputs with = inputs;
        with.weights = {{"pre_mix", permutation(order)}, {"post_mix", permutation(back)}};
        CHECK(agree(forward(with, talking).output, forward(inputs, standard).output));
        // Without the way back, map order[k] of head k reads value head order[k].
        with.weights = {{"pre_mix", permutation(order)}, {"post_mix", permutation(range(0, h))}};
        ForwardInputs moved = inputs;
        moved.query = take(inputs.query, 1, back);
        moved.key = take(*inputs.key, 1, back);
        CHECK(agree(forward(with, talking), forward(moved, standard)));
    });
}

TEST_CASE("talking-heads-attention: second mixing alone") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const std::int64_t h = shape.heads, hv = 1 + random.below(5);
        ForwardInputs inputs = inputs_of(random, shape, {h, h, hv});
        const Tensor post = normal(random, {h, hv});
        inputs.weights = {{"post_mix", post}};
        const ForwardResult got = forward(inputs, talking, {{"pre_mixing", false}});
        for (std::int64_t v = 0; v < hv; ++v) {
            ForwardInputs one = inputs;
            one.weights.clear();
            one.value = take(*inputs.value, 1, std::vector<std::int64_t>(static_cast<std::size_t>(h), v));
            const ForwardResult maps = forward(one, standard);
            Tensor column = filled({h, 1}, 0.0f);
            for (std::int64_t s = 0; s < h; ++s) column.as<float>()[s] = post.as<const float>()[s * hv + v];
            CHECK(agree(take(got.output, 1, {v}), mixed(maps.output, column)));
            CHECK(agree(*got.lse, *maps.lse));
        }
    });
}

TEST_CASE("talking-heads-attention: first mixing folds into the queries") {
    on_random_shapes({.square = false}, [](Random& random, const Shape& shape) {
        Heads heads = random_heads(random);
        heads.value = heads.softmax;
        const std::int64_t d = shape.head_dim;
        ForwardInputs inputs = inputs_of(random, shape, heads);
        const Tensor shared = normal(random, {shape.batch, 1, shape.kv_len, shape.value_dim}),
                     pre = normal(random, {heads.score, heads.softmax});
        inputs.value = take(shared, 1, std::vector<std::int64_t>(static_cast<std::size_t>(heads.value), 0));
        inputs.weights = {{"pre_mix", pre}};
        ForwardInputs folded;
        folded.query = filled({shape.batch, heads.softmax, shape.q_len, heads.score * d}, 0.0f);
        folded.key = filled({shape.batch, 1, shape.kv_len, heads.score * d}, 0.0f);
        folded.value = shared;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t k = 0; k < heads.score; ++k)
                for (std::int64_t c = 0; c < d; ++c) {
                    for (std::int64_t j = 0; j < shape.kv_len; ++j)
                        at(*folded.key, b, 0, j, k * d + c) = at(*inputs.key, b, k, j, c);
                    for (std::int64_t s = 0; s < heads.softmax; ++s)
                        for (std::int64_t i = 0; i < shape.q_len; ++i)
                            at(folded.query, b, s, i, k * d + c) =
                                pre.as<const float>()[k * heads.softmax + s] * at(inputs.query, b, k, i, c);
                }
        const double scale = 0.7 / std::sqrt(static_cast<double>(heads.score * d));
        const NamedValues options{{"softmax_heads", heads.softmax}, {"post_mixing", false}, {"scale", scale}};
        CHECK(agree(forward(inputs, talking, options), forward(folded, standard, {{"scale", scale}})));
    });
}

TEST_CASE("talking-heads-attention: values of one") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const Heads heads = random_heads(random);
        ForwardInputs inputs = inputs_of(random, shape, heads);
        inputs.value = filled(inputs.value->shape, 1.0f);
        const Tensor post = normal(random, {heads.softmax, heads.value}), bias = normal(random, {heads.value});
        inputs.weights = {{"post_mix", post}};
        const auto expected = [&](std::int64_t v, double count) {
            double sum = count * static_cast<double>(bias.as<const float>()[v]);
            for (std::int64_t s = 0; s < heads.softmax; ++s)
                sum += static_cast<double>(post.as<const float>()[s * heads.value + v]);
            return sum;
        };
        const auto check = [&](const Tensor& output, const auto& count) {
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t v = 0; v < heads.value; ++v)
                    for (std::int64_t i = 0; i < shape.q_len; ++i)
                        for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                            const double wanted = expected(v, count(i));
                            CHECK(std::abs(static_cast<double>(at(output, b, v, i, d)) - wanted) <=
                                  1e-5 * (1.0 + std::abs(wanted) + count(i)));
                        }
        };
        check(forward(inputs, talking, {{"softmax_heads", heads.softmax}}).output, [](std::int64_t) { return 0.0; });
        inputs.weights.emplace_back("post_bias", bias);
        const NamedValues biased{{"softmax_heads", heads.softmax}, {"mix_bias", true}};
        check(forward(inputs, talking, biased).output, [&](std::int64_t) { return static_cast<double>(shape.kv_len); });
        NamedValues causal = biased;
        causal.emplace_back("causal", true);
        causal.emplace_back("causal_alignment", "top-left");
        check(forward(inputs, talking, causal).output,
              [&](std::int64_t i) { return static_cast<double>(std::min(i + 1, shape.kv_len)); });
    });
}

TEST_CASE("talking-heads-attention: key permutation") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const Heads heads = random_heads(random);
        const ForwardInputs inputs = inputs_of(random, shape, heads);
        ForwardInputs moved = inputs;
        const auto order = shuffled(random, shape.kv_len);
        moved.key = take(*inputs.key, 2, order);
        moved.value = take(*inputs.value, 2, order);
        const NamedValues options{{"softmax_heads", heads.softmax}};
        CHECK(agree(forward(inputs, talking, options), forward(moved, talking, options)));
    });
}

TEST_CASE("talking-heads-attention: zero first mixing") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const Heads heads = random_heads(random);
        ForwardInputs inputs = inputs_of(random, shape, heads);
        const Tensor post = normal(random, {heads.softmax, heads.value});
        inputs.weights = {{"pre_mix", filled({heads.score, heads.softmax}, 0.0f)}, {"post_mix", post}};
        const ForwardResult got = forward(inputs, talking, {{"softmax_heads", heads.softmax}});
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t v = 0; v < heads.value; ++v) {
                double sum = 0.0;
                for (std::int64_t s = 0; s < heads.softmax; ++s)
                    sum += static_cast<double>(post.as<const float>()[s * heads.value + v]);
                for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                    double mean = 0.0;
                    for (std::int64_t j = 0; j < shape.kv_len; ++j)
                        mean += static_cast<double>(at(*inputs.value, b, v, j, d)) / static_cast<double>(shape.kv_len);
                    for (std::int64_t i = 0; i < shape.q_len; ++i)
                        CHECK(std::abs(static_cast<double>(at(got.output, b, v, i, d)) - sum * mean) <=
                              1e-5 * (1.0 + std::abs(sum * mean)));
                }
            }
    });
}

TEST_CASE("talking-heads-attention: first bias is inert") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const Heads heads = random_heads(random);
        ForwardInputs inputs = inputs_of(random, shape, heads);
        const Tensor bias = normal(random, {heads.softmax});
        const NamedValues options{{"softmax_heads", heads.softmax}, {"mix_bias", true}};
        const ForwardResult without = forward(inputs, talking, options);
        inputs.weights = {{"pre_bias", bias}};
        const ForwardResult with = forward(inputs, talking, options);
        CHECK(agree(with.output, without.output));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t s = 0; s < heads.softmax; ++s)
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    CHECK(static_cast<double>(at(*with.lse, b, s, i)) ==
                          Approx(static_cast<double>(at(*without.lse, b, s, i)) +
                                 static_cast<double>(bias.as<const float>()[s]))
                              .epsilon(1e-5)
                              .margin(1e-5));
    });
}

TEST_CASE("talking-heads-attention: rejects softmax heads that a missing mixing cannot serve") {
    Random random(1);
    const ForwardInputs inputs = inputs_of(random, {1, 4, 4, 5, 6, 8, 8}, {4, 4, 4});
    rejects(inputs, talking, {{"pre_mixing", false}, {"softmax_heads", 3}}, {"softmax_heads", "3", "4"});
    rejects(inputs, talking, {{"post_mixing", false}, {"softmax_heads", 3}}, {"post_mixing", "4", "3"});
    rejects(inputs_of(random, {1, 4, 4, 5, 6, 8, 8}, {4, 4, 2}), talking, {{"post_mixing", false}},
            {"post_mixing", "2", "4"});
}

TEST_CASE("talking-heads-attention: rejects masks of other heads") {
    Random random(2);
    ForwardInputs inputs = inputs_of(random, {1, 4, 4, 5, 6, 8, 8}, {4, 4, 4});
    inputs.mask = bools({1, 4, 5, 6}, [](const auto&) { return true; });
    rejects(inputs, talking, {{"softmax_heads", 3}}, {"mask", "4", "3"});
    inputs.mask.reset();
    inputs.bias = normal(random, {1, 2, 5, 6});
    rejects(inputs, talking, {}, {"bias", "2", "4"});
}

TEST_CASE("talking-heads-attention: rejects groups of key heads") {
    Random random(3);
    ForwardInputs inputs = inputs_of(random, {1, 4, 4, 5, 6, 8, 8}, {4, 4, 4});
    inputs.key = normal(random, {1, 2, 6, 8});
    rejects(inputs, talking, {}, {"key", "2", "4"});
}

TEST_CASE("talking-heads-attention: rejects weights that options switch off, and scores") {
    Random random(4);
    ForwardInputs inputs = inputs_of(random, {1, 2, 2, 5, 6, 8, 8}, {2, 2, 2});
    inputs.weights = {{"pre_mix", filled({2, 2}, 1.0f)}};
    rejects(inputs, talking, {{"pre_mixing", false}}, {"pre_mix", "switched off"});
    inputs.weights = {{"post_bias", filled({2}, 1.0f)}};
    rejects(inputs, talking, {}, {"post_bias", "switched off"});
    inputs.weights = {{"post_mix", filled({3, 2}, 1.0f)}};
    rejects(inputs, talking, {}, {"post_mix", "3", "2"});
    inputs.weights.clear();
    attend::ForwardOptions call;
    call.mechanism = talking;
    call.scores = true;
    const auto result = service().forward(inputs, call);
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("scores") != std::string::npos);
}
