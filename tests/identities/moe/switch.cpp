// SPDX-License-Identifier: Apache-2.0
// Identities of switch-attention.
#include "identities/moe/experts.hpp"

namespace {

using namespace identities;
constexpr const char* switched = "switch-attention";

std::int64_t held(const Routing& routing, std::int64_t item, std::int64_t experts) {
    std::int64_t tokens = 0;
    for (std::int64_t e = 0; e < experts; ++e)
        if (const auto members = routing.find({item, e}); members != routing.end())
            tokens += static_cast<std::int64_t>(members->second.tokens.size());
    return tokens;
}

}  // namespace

TEST_CASE("switch-attention: room for all") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        for (const bool residual : {false, true}) {
            const ForwardResult got = call(
                inputs, switched,
                options_of(sizes, {{"capacity_factor", static_cast<double>(sizes.experts)}, {"residual", residual}}));
            for (const std::int32_t dropped : integers(extra(got, "routing.query.dropped"))) CHECK(dropped == 0);
            CHECK(
                agree(got.output, call(inputs, "moe-attention",
                                       options_of(sizes, {{"top_k", 1}, {"gate_norm", "none"}, {"residual", residual}}))
                                      .output));
        }
    });
}

TEST_CASE("switch-attention: capacity") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::int64_t capacity = 1 + random.below(3);
        for (const char* priority : {"position", "probability"}) {
            const NamedValues options = options_of(sizes, {{"expert_capacity", capacity}, {"priority", priority}});
            const ForwardResult got = call(inputs, switched, options),
                                bare = call(inputs, switched, with(options, {{"residual", false}}));
            const Routing routing = routing_of(got), keys = routing_of(got, "key");
            CHECK(agree(got.output, sum_of_experts(inputs, routing, &keys, sizes.experts, true)));
            const std::vector<std::int32_t> dropped = integers(extra(got, "routing.query.dropped"));
            for (std::int64_t b = 0; b < shape.batch; ++b) {
                std::set<std::int64_t> kept;
                for (std::int64_t e = 0; e < sizes.experts; ++e)
                    if (const auto members = routing.find({b, e}); members != routing.end()) {
                        CHECK(static_cast<std::int64_t>(members->second.tokens.size()) <= capacity);
                        kept.insert(members->second.tokens.begin(), members->second.tokens.end());
                    }
                CHECK(held(routing, b, sizes.experts) + dropped[static_cast<std::size_t>(b)] == shape.q_len);
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    for (std::int64_t h = 0; h < shape.heads && kept.count(i) == 0; ++h)
                        for (std::int64_t d = 0; d < shape.head_dim; ++d) {
                            CHECK(at(got.output, b, h, i, d) == at(inputs.query, b, h, i, d));
                            CHECK(at(bare.output, b, h, i, d) == 0.0f);
                        }
            }
        }
    });
}

TEST_CASE("switch-attention: prefix") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::int64_t t = 1 + random.below(shape.q_len - 1);
        ForwardInputs changed = inputs;
        changed.query = joined(take(inputs.query, 2, range(0, t)),
                               normal(random, {shape.batch, shape.heads, shape.q_len - t, shape.head_dim}), 2);
        changed.key = changed.query;
        changed.value = changed.query;
        const NamedValues options = options_of(sizes, {{"expert_capacity", 3}, {"causal", true}});
        const ForwardResult a = call(inputs, switched, options), b = call(changed, switched, options);
        const auto early = [&](const ForwardResult& result) {
            std::set<std::vector<std::int64_t>> kept;
            for (const auto& [where, members] : routing_of(result))
                for (const std::int64_t token : members.tokens)
                    if (token < t) kept.insert({where.first, where.second, token});
            return kept;
        };
        CHECK(early(a) == early(b));
        CHECK(agree(take(a.output, 2, range(0, t)), take(b.output, 2, range(0, t))));
    });
}

TEST_CASE("switch-attention: one expert") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        ExpertSizes sizes = some_sizes(random);
        sizes.experts = 1;
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        Routing everything;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            everything[{b, 0}] = {range(0, shape.q_len), std::vector<double>(static_cast<std::size_t>(shape.q_len), 1)};
        CHECK(agree(call(inputs, switched, options_of(sizes)).output,
                    sum_of_experts(inputs, everything, nullptr, 1, true)));
    });
}

TEST_CASE("switch-attention: copies of one token") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        inputs.query = take(inputs.query, 2, std::vector<std::int64_t>(static_cast<std::size_t>(shape.q_len), 1));
        inputs.key = inputs.query;
        inputs.value = inputs.query;
        add_weights(inputs, random, sizes);
        const std::int64_t capacity = 1 + random.below(shape.q_len);
        const ForwardResult got = call(inputs, switched, options_of(sizes, {{"expert_capacity", capacity}}));
        const Routing routing = routing_of(got);
        for (const auto& [where, members] : routing) CHECK(members.tokens == range(0, capacity));
        CHECK(static_cast<std::int64_t>(routing.size()) == shape.batch);
        for (const float load : values(extra(got, "routing.query.max_load")))
            CHECK(load == static_cast<float>(sizes.experts));
    });
}

TEST_CASE("switch-attention: largest gates") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::int64_t capacity = 1 + random.below(4);
        const Routing chosen =
            routing_of(call(inputs, switched, options_of(sizes, {{"expert_capacity", shape.q_len}})));
        const Routing kept = routing_of(
            call(inputs, switched, options_of(sizes, {{"expert_capacity", capacity}, {"priority", "probability"}})));
        for (const auto& [where, all] : chosen) {
            std::vector<double> gates = all.gates, best = kept.at(where).gates;
            std::sort(gates.begin(), gates.end(), std::greater<>());
            std::sort(best.begin(), best.end(), std::greater<>());
            gates.resize(std::min(gates.size(), static_cast<std::size_t>(capacity)));
            CHECK(best == gates);
        }
    });
}

TEST_CASE("switch-attention: batch invariance") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs alone = self_inputs(
            random, {1, shape.heads, shape.heads, shape.q_len, shape.q_len, shape.head_dim, shape.head_dim});
        add_weights(alone, random, sizes);
        const float nan = std::numeric_limits<float>::quiet_NaN();
        const Tensor padding = filled({1, shape.heads, 5, shape.head_dim}, nan);
        const Tensor other = normal(random, {1, shape.heads, shape.q_len + 5, shape.head_dim});
        ForwardInputs batch = alone;
        batch.query = joined(joined(alone.query, padding, 2), other, 0);
        batch.key = batch.query;
        batch.value = batch.query;
        batch.query_lengths = lengths({shape.q_len, shape.q_len + 5});
        batch.key_lengths = batch.query_lengths;
        const Tensor got = call(batch, switched, options_of(sizes)).output;
        CHECK(same_bits(take(take(got, 0, {0}), 2, range(0, shape.q_len)),
                        call(alone, switched, options_of(sizes)).output));
        for (const float x : values(take(take(got, 0, {0}), 2, range(shape.q_len, shape.q_len + 5)))) CHECK(x == 0.0f);
    });
}

TEST_CASE("switch-attention: rejects a factor of zero, other gates, more than one expert, a token that does not fit") {
    Random random(9);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 4, 4});
    rejects(inputs, switched, {{"capacity_factor", 0.0}}, {"capacity_factor", "0"});
    rejects(inputs, switched, {{"capacity_factor", -1.5}}, {"capacity_factor", "-1.5"});
    rejects(inputs, switched, {{"gate", "sigmoid"}}, {"gate", "sigmoid", "softmax"});
    rejects(inputs, switched, {{"top_k", 2}}, {"top_k", "2", "1"});
    rejects(make_inputs(random, {1, 2, 2, 6, 6, 4, 3}), switched, {}, {"residual", "8", "6"});
}
