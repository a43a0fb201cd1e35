// SPDX-License-Identifier: Apache-2.0
// Identities of soft-moe-attention.
#include "identities/moe/experts.hpp"

namespace {

using namespace identities;
constexpr const char* soft = "soft-moe-attention";

// Self-attention with weights of its own and `slots` per expert.
ForwardInputs soft_inputs(Random& random, const Shape& shape, const ExpertSizes& sizes, std::int64_t slots) {
    ForwardInputs inputs = self_inputs(random, shape);
    add_weights(inputs, random, sizes);
    inputs.weights.erase(inputs.weights.begin());  // no hard router
    const std::int64_t width = shape.heads * shape.head_dim;
    inputs.weights.emplace_back("phi", normal(random, {width, sizes.experts, slots}));
    inputs.weights.emplace_back("router_scale", filled({1}, 2.0f));
    return inputs;
}
NamedValues options(const ExpertSizes& sizes, NamedValues more = {}) { return options_of(sizes, std::move(more)); }

// Slots and their weights, step by step in double precision: d[i][slot] over tokens, c[i][slot] over slots.
struct Mixing {
    std::vector<std::vector<double>> dispatch, combine;
};
Mixing mixing(ForwardInputs& inputs, std::int64_t item) {
    const Tensor &x = inputs.query, &phi = weight_of(inputs, "phi");
    const double scale = static_cast<double>(weight_of(inputs, "router_scale").as<float>()[0]);
    const auto tokens = static_cast<std::size_t>(x.shape[2]),
               slots = static_cast<std::size_t>(phi.shape[1] * phi.shape[2]);
    std::vector<std::vector<double>> z(tokens, std::vector<double>(slots, 0.0));
    for (std::size_t s = 0; s < slots; ++s) {
        double phi_length = 1e-6;
        for (std::int64_t m = 0; m < phi.shape[0]; ++m)
            phi_length +=
                std::pow(static_cast<double>(
                             phi.as<float>()[m * static_cast<std::int64_t>(slots) + static_cast<std::int64_t>(s)]),
                         2);
        for (std::size_t i = 0; i < tokens; ++i) {
            double length = 1e-6, dot = 0;
            for (std::int64_t m = 0; m < phi.shape[0]; ++m) {
                const double v =
                    static_cast<double>(at(x, item, m / x.shape[3], static_cast<std::int64_t>(i), m % x.shape[3]));
                length += v * v;
                dot += v * static_cast<double>(
                               phi.as<float>()[m * static_cast<std::int64_t>(slots) + static_cast<std::int64_t>(s)]);
            }
            z[i][s] = scale * dot / std::sqrt(length * phi_length);
        }
    }
    Mixing mix{z, z};
    for (std::size_t i = 0; i < tokens; ++i) {
        double sum = 0;
        for (std::size_t s = 0; s < slots; ++s) sum += std::exp(z[i][s]);
        for (std::size_t s = 0; s < slots; ++s) mix.combine[i][s] = std::exp(z[i][s]) / sum;
    }
    for (std::size_t s = 0; s < slots; ++s) {
        double sum = 0;
        for (std::size_t i = 0; i < tokens; ++i) sum += std::exp(z[i][s]);
        for (std::size_t i = 0; i < tokens; ++i) mix.dispatch[i][s] = std::exp(z[i][s]) / sum;
    }
    return mix;
}

// Experts that return the mixture of the values of their slots: no logits, values and outputs of the identity. With one slot
// per expert that is the slot itself.
ForwardInputs pass_through(Random& random, const Shape& shape, std::int64_t experts) {
    const std::int64_t width = shape.heads * shape.head_dim;
    ExpertSizes sizes{experts, 1, 3, width};
    ForwardInputs inputs = soft_inputs(random, shape, sizes, 1);
    for (const char* name : {"wv", "wo"}) {
        Tensor& w = weight_of(inputs, name);
        w = filled({experts, 1, width, width}, 0.0f);
        for (std::int64_t e = 0; e < experts; ++e)
            for (std::int64_t m = 0; m < width; ++m) at(w, e, 0, m, m) = 1.0f;
    }
    return inputs;
}

}  // namespace

TEST_CASE("soft-moe-attention: sums of one") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        // Tokens of one in a channel: every convex combination of convex combinations has a one there.
        const std::int64_t experts = 1 + random.below(5);
        ForwardInputs inputs = pass_through(random, shape, experts);
        inputs.query = take(inputs.query, 0, range(0, shape.batch));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t i = 0; i < shape.q_len; ++i) at(inputs.query, b, 0, i, 0) = 1.0f;
        inputs.key = inputs.query;
        inputs.value = inputs.query;
        const ForwardResult got = call(inputs, soft, options({experts, 1, 3, shape.heads * shape.head_dim}));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t i = 0; i < shape.q_len; ++i) CHECK(std::abs(at(got.output, b, 0, i, 0) - 1.0f) <= 1e-5f);
        const std::vector<float> importance = values(extra(got, "routing.query.importance"));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            CHECK(std::abs(
                      std::accumulate(importance.begin() + b * experts, importance.begin() + (b + 1) * experts, 0.0f) -
                      1.0f) <= 1e-5f);
    });
}

TEST_CASE("soft-moe-attention: order of tokens and slots") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        const std::int64_t slots = 1 + random.below(4);
        ForwardInputs inputs = soft_inputs(random, shape, sizes, slots);
        const Tensor plain = call(inputs, soft, options(sizes)).output;
        const std::vector<std::int64_t> order = shuffled(random, shape.q_len);
        ForwardInputs other = inputs;
        other.query = take(inputs.query, 2, order);
        other.key = other.query;
        other.value = other.query;
        CHECK(agree(call(other, soft, options(sizes)).output, take(plain, 2, order)));
        ForwardInputs moved = inputs;
        weight_of(moved, "phi") = take(weight_of(inputs, "phi"), 2, shuffled(random, slots));
        CHECK(agree(call(moved, soft, options(sizes)).output, plain));
    });
}

TEST_CASE("soft-moe-attention: equal tokens") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = soft_inputs(random, shape, sizes, 1 + random.below(3));
        inputs.query = take(inputs.query, 2, std::vector<std::int64_t>(static_cast<std::size_t>(shape.q_len), 0));
        inputs.key = inputs.query;
        inputs.value = inputs.query;
        const Tensor got = call(inputs, soft, options(sizes)).output;
        Tensor expected = filled(got.shape, 0.0f);
        const std::int64_t slots = weight_of(inputs, "phi").shape[2];
        for (std::int64_t b = 0; b < shape.batch; ++b) {
            const Mixing mix = mixing(inputs, b);
            for (std::int64_t e = 0; e < sizes.experts; ++e) {
                double share = 0;
                for (std::int64_t s = 0; s < slots; ++s)
                    share += mix.combine[0][static_cast<std::size_t>(e * slots + s)];
                Routing one{
                    {{b, e},
                     {range(0, shape.q_len), std::vector<double>(static_cast<std::size_t>(shape.q_len), share)}}};
                const Tensor part = sum_of_experts(inputs, one, &one, sizes.experts, false);
                for (std::int64_t at_ = 0; at_ < expected.size(); ++at_)
                    expected.as<float>()[at_] += part.as<float>()[at_];
            }
        }
        CHECK(agree(got, expected));
    });
}

TEST_CASE("soft-moe-attention: no directions") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const std::int64_t experts = 1 + random.below(5);
        ForwardInputs inputs = pass_through(random, shape, experts);
        Tensor& phi = weight_of(inputs, "phi");
        phi = filled(phi.shape, 0.0f);
        const Tensor got = call(inputs, soft, options({experts, 1, 3, shape.heads * shape.head_dim})).output;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t d = 0; d < shape.head_dim; ++d) {
                    double mean = 0;
                    for (std::int64_t i = 0; i < shape.q_len; ++i)
                        mean += static_cast<double>(at(inputs.query, b, h, i, d)) / static_cast<double>(shape.q_len);
                    for (std::int64_t i = 0; i < shape.q_len; ++i)
                        CHECK(std::abs(static_cast<double>(at(got, b, h, i, d)) - mean) <= 1e-5);
                }
    });
}

TEST_CASE("soft-moe-attention: scaled tokens") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const std::int64_t experts = 2 + random.below(4);
        const NamedValues chosen = options({experts, 1, 3, shape.heads * shape.head_dim});
        ForwardInputs inputs = pass_through(random, shape, experts);
        ForwardInputs larger = inputs;
        larger.query = scaled(inputs.query, 4.0);
        larger.key = larger.query;
        larger.value = larger.query;
        const ForwardResult a = call(inputs, soft, chosen), b = call(larger, soft, chosen);
        CHECK(agree(b.output, scaled(a.output, 4.0), 2e-5));
        CHECK(agree(extra(b, "routing.query.importance"), extra(a, "routing.query.importance")));
        CHECK_FALSE(agree(call(larger, soft, with(chosen, {{"normalize_router", false}})).output,
                          scaled(call(inputs, soft, with(chosen, {{"normalize_router", false}})).output, 4.0)));
    });
}

TEST_CASE("soft-moe-attention: one slot") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        ExpertSizes sizes = some_sizes(random);
        sizes.experts = 1;
        const ForwardInputs inputs = soft_inputs(random, shape, sizes, 1);
        const Tensor got = call(inputs, soft, options(sizes)).output;
        for (std::int64_t i = 1; i < shape.q_len; ++i) CHECK(agree(take(got, 2, {i}), take(got, 2, {0}), 1e-6));
    });
}

TEST_CASE("soft-moe-attention: router alone") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const std::int64_t experts = 1 + random.below(5);
        ForwardInputs inputs = pass_through(random, shape, experts);
        const ForwardResult got = call(inputs, soft, options({experts, 1, 3, shape.heads * shape.head_dim}));
        const std::vector<float> importance = values(extra(got, "routing.query.importance")),
                                 entropy = values(extra(got, "routing.query.entropy"));
        for (std::int64_t b = 0; b < shape.batch; ++b) {
            const Mixing mix = mixing(inputs, b);
            double bits = 0;
            std::vector<double> shares(static_cast<std::size_t>(experts), 0.0);
            for (std::int64_t i = 0; i < shape.q_len; ++i) {
                const auto& c = mix.combine[static_cast<std::size_t>(i)];
                for (std::size_t s = 0; s < c.size(); ++s) {
                    bits -= c[s] * std::log(c[s]) / static_cast<double>(shape.q_len);
                    shares[s] += c[s] / static_cast<double>(shape.q_len);
                }
                for (std::int64_t m = 0; m < shape.heads * shape.head_dim; ++m) {
                    double y = 0;
                    for (std::size_t s = 0; s < c.size(); ++s)
                        for (std::int64_t j = 0; j < shape.q_len; ++j)
                            y += c[s] * mix.dispatch[static_cast<std::size_t>(j)][s] *
                                 static_cast<double>(at(inputs.query, b, m / shape.head_dim, j, m % shape.head_dim));
                    CHECK(std::abs(y - static_cast<double>(
                                           at(got.output, b, m / shape.head_dim, i, m % shape.head_dim))) <= 1e-5);
                }
            }
            CHECK(std::abs(bits - static_cast<double>(entropy[static_cast<std::size_t>(b)])) <= 1e-5);
            for (std::size_t e = 0; e < shares.size(); ++e)
                CHECK(std::abs(shares[e] -
                               static_cast<double>(importance[static_cast<std::size_t>(b * experts) + e])) <= 1e-5);
        }
    });
}

TEST_CASE("soft-moe-attention: padding") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        Shape one = shape;
        one.batch = 1;
        ForwardInputs alone = soft_inputs(random, one, sizes, 2);
        ForwardInputs padded = alone;
        padded.query = joined(alone.query,
                              filled({1, shape.heads, 4, shape.head_dim}, std::numeric_limits<float>::quiet_NaN()), 2);
        padded.key = padded.query;
        padded.value = padded.query;
        padded.query_lengths = lengths({shape.q_len});
        padded.key_lengths = padded.query_lengths;
        const Tensor got = call(padded, soft, options(sizes)).output;
        CHECK(agree(take(got, 2, range(0, shape.q_len)), call(alone, soft, options(sizes)).output));
        for (const float x : values(take(got, 2, range(shape.q_len, shape.q_len + 4)))) CHECK(x == 0.0f);
    });
}

TEST_CASE("soft-moe-attention: rejects causal calls, masks, too many slots and what belongs to hard routers") {
    Random random(9);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 4, 4});
    rejects(inputs, soft, {{"causal", true}}, {"causal"});
    rejects(inputs, soft, {{"window_size", 4}}, {"window_size"});
    rejects(inputs, soft, {{"slots_per_expert", -1}}, {"slots_per_expert", "-1"});
    rejects(inputs, soft, {{"slots_per_expert", 262144}}, {"8 experts of 262144 slots", "1048576"});
    rejects(inputs, soft, {{"gate", "sigmoid"}}, {"gate", "sigmoid"});
    rejects(inputs, soft, {{"rope", "half"}}, {"rope", "half"});
    rejects(inputs, soft, {{"router_bias", true}}, {"router_bias"});
    rejects(inputs, soft, {{"router_noise", 0.5}}, {"router_noise", "0.5"});
    ForwardInputs masked = inputs;
    masked.mask = bools({6, 6}, [](const auto&) { return true; });
    rejects(masked, soft, {}, {"mask"});
    ForwardInputs given = inputs;
    given.weights = {{"phi", normal(random, {8, 8, 3})}};
    rejects(given, soft, {{"slots_per_expert", 2}}, {"phi", "3", "2"});
}
