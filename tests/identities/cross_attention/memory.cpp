// SPDX-License-Identifier: Apache-2.0
// Identities of memory-attention.
#include <algorithm>

#include "identities/identities.hpp"

namespace {

using namespace identities;
using attend::Json;
constexpr const char* memory = "memory-attention";

const Tensor& extra(const ForwardResult& result, const char* name) {
    for (const auto& [known, tensor] : result.extra)
        if (known == name) return tensor;
    FAIL("no output " << name);
    return result.output;
}

Tensor& input(ForwardInputs& inputs, const char* name) {
    for (auto& [known, tensor] : inputs.extra)
        if (known == name) return tensor;
    FAIL("no input " << name);
    return inputs.query;
}

// Queries, local keys, and M slots with the key's heads.
ForwardInputs make(Random& random, const Shape& shape, std::int64_t slots, bool local = true) {
    ForwardInputs inputs = make_inputs(random, shape);
    inputs.extra.emplace_back("memory_key", normal(random, {shape.batch, shape.kv_heads, slots, shape.head_dim}));
    inputs.extra.emplace_back("memory_value", normal(random, {shape.batch, shape.kv_heads, slots, shape.value_dim}));
    if (!local) inputs.key.reset(), inputs.value.reset();
    return inputs;
}

ForwardResult call(const ForwardInputs& inputs, const char* mode, NamedValues options = {}) {
    options.emplace_back("mode", mode);
    return run(service(), inputs, memory, options, mode[0] != 'g');
}

ForwardResult standard(const Tensor& query, const Tensor& key, const Tensor& value) {
    ForwardInputs inputs;
    inputs.query = query, inputs.key = key, inputs.value = value;
    return forward(inputs, "cross-attention");
}

void on_memories(const std::function<void(Random&, const Shape&, std::int64_t)>& body) {
    on_random_shapes({.group = 2, .square = false, .same_width = false},
                     [&](Random& random, const Shape& shape) { body(random, shape, 2 + random.below(150)); });
}

// Scores of one query with all slots, exact sums rounded to float.
std::vector<float> scores_of(const ForwardInputs& inputs, std::int64_t b, std::int64_t h, std::int64_t i) {
    const Tensor& key = inputs.extra[0].second;
    std::vector<float> scores;
    for (std::int64_t m = 0; m < key.shape[2]; ++m) {
        double dot = 0;
        for (std::int64_t d = 0; d < key.shape[3]; ++d)
            dot += static_cast<double>(at(inputs.query, b, h, i, d)) *
                   static_cast<double>(at(key, b, h * key.shape[1] / inputs.query.shape[1], m, d));
        scores.push_back(static_cast<float>(dot));
    }
    return scores;
}

}  // namespace

TEST_CASE("memory-attention: all slots") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        const ForwardInputs alone = make(random, shape, slots, false);
        const Tensor &mk = alone.extra[0].second, &mv = alone.extra[1].second;
        for (const std::int64_t k : {std::int64_t{0}, slots, slots + 5})
            CHECK(agree(call(alone, "memory", {{"top_k", k}}), standard(alone.query, mk, mv)));
        const ForwardInputs both = make(random, shape, slots);
        CHECK(agree(call(both, "joint", {{"top_k", 0}, {"local_causal", false}}),
                    standard(both.query, joined(both.extra[0].second, *both.key, 2),
                             joined(both.extra[1].second, *both.value, 2))));
    });
}

TEST_CASE("memory-attention: gate extremes") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        ForwardInputs inputs = make(random, shape, slots);
        ForwardInputs alone = inputs, local = inputs;
        alone.key.reset(), alone.value.reset(), local.extra.clear();
        const std::vector<float> of_memory = values(call(alone, "memory", {{"top_k", 5}}).output),
                                 of_local = values(call(local, "gate", {{"local_causal", false}}).output);
        for (const float bias : {-40.0f, 0.0f, 40.0f}) {
            inputs.weights = {{"gate_bias", filled({shape.heads}, bias)}};
            const double g = 1.0 / (1.0 + std::exp(-static_cast<double>(bias)));
            std::vector<float> mean(of_local.size());
            for (std::size_t at = 0; at < mean.size(); ++at)
                mean[at] = static_cast<float>(g * static_cast<double>(of_memory[at]) +
                                              (1.0 - g) * static_cast<double>(of_local[at]));
            CHECK(agree(values(call(inputs, "gate", {{"top_k", 5}, {"local_causal", false}}).output), mean));
        }
    });
}

TEST_CASE("memory-attention: best slot") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        const ForwardInputs inputs = make(random, shape, slots, false);
        const ForwardResult got = call(inputs, "memory", {{"top_k", 1}});
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    const std::vector<float> scores = scores_of(inputs, b, h, i);
                    const std::int64_t best = std::max_element(scores.begin(), scores.end()) - scores.begin();
                    for (std::int64_t d = 0; d < shape.value_dim; ++d)
                        CHECK(at(got.output, b, h, i, d) ==
                              at(inputs.extra[1].second, b, h * shape.kv_heads / shape.heads, best, d));
                }
    });
}

TEST_CASE("memory-attention: exact selection") {
    // Large parts that cancel: float sums would order these slots otherwise. Many scores tie, too.
    for (const std::int64_t dim : {8, 24, 64, 67}) {
        Random random(static_cast<std::uint64_t>(dim));
        ForwardInputs inputs = make(random, {1, 2, 2, 60, 1, dim, 3}, 400, false);
        Tensor& key = input(inputs, "memory_key");
        for (std::int64_t h = 0; h < 2; ++h) {
            for (std::int64_t i = 0; i < 60; ++i)
                at(inputs.query, 0, h, i, 0) = at(inputs.query, 0, h, i, dim - 1) = 1000.0f;
            for (std::int64_t m = 0; m < 400; ++m) {
                at(key, 0, h, m, 0) = static_cast<float>(3000 + m);
                at(key, 0, h, m, dim - 1) = -at(key, 0, h, m, 0);
                if (m % 3 == 0)
                    for (std::int64_t d = 0; d < dim; ++d) at(key, 0, h, m, d) = at(key, 0, h, m / 2, d);
            }
        }
        for (const std::int64_t k : {1, 7, 32, 400}) {
            const ForwardResult got = call(inputs, "memory", {{"top_k", k}});
            const Tensor& indices = extra(got, "indices");
            bool same = true;
            for (std::int64_t h = 0; h < 2; ++h)
                for (std::int64_t i = 0; i < 60; ++i) {
                    const std::vector<float> scores = scores_of(inputs, 0, h, i);
                    std::vector<std::int64_t> order = range(0, 400);
                    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
                        return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
                    });
                    for (std::int64_t n = 0; n < k; ++n)
                        same = same && indices.as<const std::int32_t>()[(h * 60 + i) * k + n] ==
                                           order[static_cast<std::size_t>(n)];
                }
            INFO("D " << dim << ", k " << k);
            CHECK(same);
        }
    }
}

TEST_CASE("memory-attention: weak slots") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        ForwardInputs inputs = make(random, shape, slots, false);
        // One query direction that all share makes a slot against it weaker than all others.
        for (std::int64_t at = 0; at < inputs.query.size(); ++at)
            inputs.query.as<float>()[at] = std::abs(inputs.query.as<float>()[at]) + 0.1f;
        const std::int64_t k = 1 + random.below(slots);
        const ForwardResult before = call(inputs, "memory", {{"top_k", k}});
        ForwardInputs more = inputs;
        more.extra[0].second =
            joined(inputs.extra[0].second, filled({shape.batch, shape.kv_heads, 1, shape.head_dim}, -1e3f), 2);
        more.extra[1].second =
            joined(inputs.extra[1].second, filled({shape.batch, shape.kv_heads, 1, shape.value_dim}, 7.0f), 2);
        const ForwardResult after = call(more, "memory", {{"top_k", k}});
        CHECK(same_bits(before.output, after.output));
        CHECK(same_bits(extra(before, "weights"), extra(after, "weights")));
    });
}

TEST_CASE("memory-attention: order of slots") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        const ForwardInputs inputs = make(random, shape, slots, false);
        const std::vector<std::int64_t> order = shuffled(random, slots);
        ForwardInputs other = inputs;
        for (auto& [name, tensor] : other.extra) tensor = take(tensor, 2, order);
        const std::int64_t k = 1 + random.below(slots);
        const ForwardResult a = call(inputs, "memory", {{"top_k", k}}), b = call(other, "memory", {{"top_k", k}});
        CHECK(same_bits(a.output, b.output));
        CHECK(same_bits(extra(a, "weights"), extra(b, "weights")));
        const Tensor &ia = extra(a, "indices"), &ib = extra(b, "indices");
        for (std::int64_t at = 0; at < ia.size(); ++at)
            CHECK(ia.as<const std::int32_t>()[at] == order[static_cast<std::size_t>(ib.as<const std::int32_t>()[at])]);
    });
}

TEST_CASE("memory-attention: returned weights") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        ForwardInputs inputs = make(random, shape, slots);
        inputs.extra.emplace_back("memory_lengths",
                                  lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), slots / 2)));
        const std::int64_t k = 1 + random.below(slots), used = std::min(k, slots / 2);
        for (const char* mode : {"gate", "joint"}) {
            const ForwardResult got = call(inputs, mode, {{"top_k", k}});
            const std::vector<float> weights = values(extra(got, "weights"));
            const Tensor& indices = extra(got, "indices");
            CHECK(indices.shape == std::vector<std::int64_t>{shape.batch, shape.heads, shape.q_len, k});
            for (std::size_t row = 0; row < weights.size() / static_cast<std::size_t>(k); ++row) {
                double sum = 0;
                for (std::int64_t n = 0; n < k; ++n) {
                    const std::size_t at = row * static_cast<std::size_t>(k) + static_cast<std::size_t>(n);
                    const std::int32_t slot = indices.as<const std::int32_t>()[at];
                    CHECK((n < used ? slot >= 0 && slot < slots / 2 : slot == -1 && weights[at] == 0.0f));
                    if (n > 0) CHECK(weights[at] <= weights[at - 1]);
                    sum += static_cast<double>(weights[at]);
                }
                if (mode[0] == 'g' && used > 0) CHECK(sum == Approx(1.0).epsilon(1e-5));
                CHECK(sum <= 1.00001);
            }
        }
    });
}

TEST_CASE("memory-attention: lengths of vectors") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        ForwardInputs inputs = make(random, shape, slots);
        // Long enough for the epsilon not to count.
        const auto lengthened = [](const Tensor& tensor) {
            return mapped(tensor, [](float x) { return 10.0f * x + 5.0f; });
        };
        inputs.query = lengthened(inputs.query), inputs.key = lengthened(*inputs.key);
        inputs.extra[0].second = lengthened(inputs.extra[0].second);
        ForwardInputs other = inputs;
        const auto stretched = [](const Tensor& tensor) {
            Tensor to = mapped(tensor, [](float x) { return x; });
            for (std::int64_t at = 0; at < to.size(); ++at)
                to.as<float>()[at] *= static_cast<float>(1 << (at / to.shape[3] % 4));
            return to;
        };
        other.query = stretched(inputs.query), other.key = stretched(*inputs.key);
        other.extra[0].second = stretched(inputs.extra[0].second);
        const NamedValues options{{"normalize", true}, {"top_k", 6}};
        CHECK(agree(call(inputs, "joint", options), call(other, "joint", options), 2e-5));
    });
}

TEST_CASE("memory-attention: reranking") {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
        Random random(seed + 7);
        const std::int64_t count = 3 + random.below(60), dim = 4 + random.below(60), twin = random.below(count - 1);
        ForwardInputs inputs;
        inputs.query = normal(random, {1, 1, 1, dim});
        Tensor candidates = normal(random, {1, 1, count, dim});
        for (std::int64_t d = 0; d < dim; ++d) at(candidates, 0, 0, count - 1, d) = at(candidates, 0, 0, twin, d);
        inputs.extra = {{"memory_key", candidates}, {"memory_value", normal(random, {1, 1, count, 2})}};
        const ForwardResult got = call(inputs, "memory", {{"top_k", 0}, {"normalize", true}});
        const std::vector<float> weights = values(extra(got, "weights"));
        const auto* order = extra(got, "indices").as<const std::int32_t>();
        std::vector<double> cosine;
        for (std::int64_t m = 0; m < count; ++m) {
            double dot = 0, squares = 0;
            for (std::int64_t d = 0; d < dim; ++d) {
                const auto x = static_cast<double>(at(candidates, 0, 0, m, d));
                dot += x * static_cast<double>(at(inputs.query, 0, 0, 0, d)), squares += x * x;
            }
            cosine.push_back(dot / std::sqrt(squares));
        }
        double sum = 0;
        for (std::int64_t n = 0; n < count; ++n) {
            CHECK(weights[static_cast<std::size_t>(n)] >= 0.0f);
            sum += static_cast<double>(weights[static_cast<std::size_t>(n)]);
            if (n == 0) continue;
            CHECK(cosine[static_cast<std::size_t>(order[n - 1])] >= cosine[static_cast<std::size_t>(order[n])] - 1e-6);
            if (order[n] == count - 1) {
                CHECK(order[n - 1] == twin);
                CHECK(weights[static_cast<std::size_t>(n)] == weights[static_cast<std::size_t>(n - 1)]);
            }
        }
        CHECK(sum == Approx(1.0).epsilon(1e-5));
    }
}

TEST_CASE("memory-attention: empty memory") {
    on_memories([](Random& random, const Shape& shape, std::int64_t slots) {
        ForwardInputs inputs = make(random, shape, slots), local = inputs, none = inputs, hidden = inputs;
        local.extra.clear();
        for (auto& [name, tensor] : none.extra) tensor = take(tensor, 2, {});
        hidden.extra.emplace_back("memory_valid", bools({shape.batch, slots}, [](const auto&) { return false; }));
        for (std::int64_t at = 0; at < hidden.extra[0].second.size(); at += 2)
            hidden.extra[0].second.as<float>()[at] = std::numeric_limits<float>::quiet_NaN();
        for (const char* mode : {"gate", "joint"}) {
            const ForwardResult expected = call(local, mode);
            for (const ForwardInputs* empty : {&none, &hidden}) {
                const ForwardResult got = call(*empty, mode);
                CHECK(same_bits(got.output, expected.output));
                if (mode[0] == 'j') CHECK(same_bits(*got.lse, *expected.lse));
                const Tensor& indices = extra(got, "indices");
                CHECK(indices.shape[3] == 32);
                for (std::int64_t at = 0; at < indices.size(); ++at) CHECK(indices.as<const std::int32_t>()[at] == -1);
            }
        }
        const ForwardResult causal = forward(local, "causal-self-attention");
        CHECK(agree(call(local, "joint").output, causal.output));
        const ForwardResult normalized = call(local, "joint", {{"normalize", true}});
        ForwardInputs empty = none;
        CHECK(same_bits(call(empty, "joint", {{"normalize", true}}).output, normalized.output));
    });
}

TEST_CASE("memory-attention: rejects parts that the mode does not have") {
    Random random(1);
    ForwardInputs inputs = make(random, {1, 2, 2, 5, 6, 4, 4}, 9);
    rejects(inputs, memory, {{"mode", "memory"}}, {"\"mode\" is memory", "accepted: no key"});
    ForwardInputs alone = make(random, {1, 2, 2, 5, 6, 4, 4}, 9, false);
    for (const char* mode : {"gate", "joint"})
        rejects(alone, memory, {{"mode", mode}}, {"\"mode\" is ", mode, "accepted: key and value"});
    attend::ForwardOptions options;
    options.mechanism = memory, options.lse = true;
    const auto refused = service().forward(inputs, options);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == attend::ErrorCode::unsupported);
    CHECK(refused.error().message.find("lse") != std::string::npos);
}

TEST_CASE("memory-attention: rejects memories") {
    Random random(2);
    const ForwardInputs good = make(random, {2, 4, 2, 5, 6, 4, 4}, 9);
    ForwardInputs bad = good;
    bad.extra[0].second = normal(random, {2, 2, 9, 5});
    rejects(bad, memory, {}, {"memory_key", "has 5 at axis 3", "accepted: 4"});
    bad = good;
    bad.extra[1].second = normal(random, {2, 2, 9, 3});
    rejects(bad, memory, {}, {"memory_value", "has 3 at axis 3", "accepted: 4"});
    bad = good;
    for (auto& [name, tensor] : bad.extra) tensor = normal(random, {3, 2, 9, 4});
    rejects(bad, memory, {}, {"memory_key has 3 items", "accepted: 1 or 2"});
    for (auto& [name, tensor] : bad.extra) tensor = normal(random, {2, 3, 9, 4});
    rejects(bad, memory, {}, {"memory_key has 3 heads", "accepted"});
    bad = good;
    bad.extra.emplace_back("memory_lengths", lengths({3, 10}));
    rejects(bad, memory, {}, {"memory_lengths[1] is 10", "accepted: 0 to 9"});
    bad.extra.emplace_back("memory_valid", bools({2, 9}, [](const auto&) { return true; }));
    rejects(bad, memory, {}, {"memory_valid and memory_lengths"});
    bad = good;
    bad.extra.pop_back();
    rejects(bad, memory, {}, {"memory_value is missing"});
    rejects(good, memory, {{"top_k", -1}}, {"\"top_k\"", "accepted"});
    rejects(good, memory, {{"rerank_heads", 3}}, {"\"rerank_heads\" is 3", "divisor"});
    rejects(good, memory, {{"causal", true}, {"local_causal", false}}, {"\"causal\" and \"local_causal\""});
}

TEST_CASE("memory-attention: rejects NaN in memory keys") {
    Random random(3);
    ForwardInputs inputs = make(random, {1, 2, 2, 5, 6, 4, 4}, 9);
    at(input(inputs, "memory_key"), 0, 1, 4, 2) = std::numeric_limits<float>::quiet_NaN();
    rejects(inputs, memory, {}, {"memory_key: slot 4 of head 1", "NaN"});
    inputs.extra.emplace_back("memory_lengths", lengths({4}));
    const ForwardResult fine = call(inputs, "gate");
    for (const float x : values(fine.output)) CHECK(std::isfinite(x));
}
