// SPDX-License-Identifier: Apache-2.0
// Identities of moe-attention.
#include "identities/moe/experts.hpp"

namespace {

using namespace identities;
constexpr const char* moe = "moe-attention";

// All of an axis's entries in another order.
Tensor reordered(const Tensor& tensor, std::size_t axis, const std::vector<std::int64_t>& order) {
    return take(tensor, axis, order);
}

}  // namespace

TEST_CASE("moe-attention: one expert") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        ExpertSizes sizes = some_sizes(random);
        sizes.experts = 1;
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        Routing everything;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            everything[{b, 0}] = {range(0, shape.q_len), std::vector<double>(static_cast<std::size_t>(shape.q_len), 1)};
        const Tensor expected = sum_of_experts(inputs, everything, nullptr, 1, false);
        for (const char* norm : {"topk", "none"})
            CHECK(agree(call(inputs, moe, options_of(sizes, {{"top_k", 1}, {"gate_norm", norm}})).output, expected));
    });
}

TEST_CASE("moe-attention: equal experts") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        ExpertSizes one = some_sizes(random);
        one.experts = 1;
        ForwardInputs single = self_inputs(random, shape);
        add_weights(single, random, one);
        ExpertSizes many = one;
        many.experts = 5;
        ForwardInputs inputs = single;
        for (const char* name : {"wq", "wk", "wv", "wo"})
            weight_of(inputs, name) = take(weight_of(single, name), 0, {0, 0, 0, 0, 0});
        weight_of(inputs, "wr") = normal(random, {shape.heads * shape.head_dim, 5});
        const Tensor expected = call(single, moe, options_of(one, {{"scope", "global"}, {"share_kv", false}})).output;
        for (const std::int64_t k : {1, 3, 5})
            CHECK(agree(
                call(inputs, moe, options_of(many, {{"scope", "global"}, {"share_kv", false}, {"top_k", k}})).output,
                expected));
    });
}

TEST_CASE("moe-attention: shared expert as a mask") {
    on_random_shapes(
        {.batch = 2, .heads = 3, .length = 40, .width = 10, .square = false, .same_width = false},
        [](Random& random, const Shape& shape) {
            const ExpertSizes sizes = some_sizes(random);
            ForwardInputs inputs = make_inputs(random, shape);
            add_weights(inputs, random, sizes);
            for (const char* gate : {"softmax", "sigmoid"}) {
                const ForwardResult got = call(inputs, moe, options_of(sizes, {{"top_k", 2}, {"gate", gate}}));
                const Routing queries = routing_of(got), keys = routing_of(got, "key");
                CHECK(agree(got.output, sum_of_experts(inputs, queries, &keys, sizes.experts, false)));
            }
        });
}

TEST_CASE("moe-attention: all experts") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const Tensor routed = call(inputs, moe, options_of(sizes, {{"top_k", sizes.experts}})).output;
        CHECK(agree(
            routed,
            call(inputs, moe, options_of(sizes, {{"top_k", sizes.experts}, {"scope", "global"}, {"share_kv", false}}))
                .output));
    });
}

TEST_CASE("moe-attention: names of experts") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::vector<std::int64_t> order = shuffled(random, sizes.experts);
        ForwardInputs other = inputs;
        for (const char* name : {"wq", "wk", "wv", "wo"})
            weight_of(other, name) = reordered(weight_of(inputs, name), 0, order);
        weight_of(other, "wr") = reordered(weight_of(inputs, "wr"), 1, order);
        CHECK(agree(call(inputs, moe, options_of(sizes)).output, call(other, moe, options_of(sizes)).output));
    });
}

TEST_CASE("moe-attention: shifted logits") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const NamedValues options = options_of(sizes, {{"router_bias", true}});
        const ForwardResult plain = call(inputs, moe, options);
        inputs.weights.emplace_back("br", filled({sizes.experts}, 3.0f));
        const ForwardResult shifted = call(inputs, moe, options);
        CHECK(agree(values(extra(plain, "routing.query.gates")), values(extra(shifted, "routing.query.gates"))));
        CHECK(agree(plain.output, shifted.output));
    });
}

TEST_CASE("moe-attention: token order") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::vector<std::int64_t> order = shuffled(random, shape.q_len);
        ForwardInputs other = inputs;
        other.query = take(inputs.query, 2, order);
        other.key = other.query;
        other.value = other.query;
        CHECK(agree(take(call(inputs, moe, options_of(sizes)).output, 2, order),
                    call(other, moe, options_of(sizes)).output));
        // Causal: what comes later does not count.
        const std::int64_t t = 1 + random.below(shape.q_len - 1);
        ForwardInputs changed = inputs;
        changed.query = joined(take(inputs.query, 2, range(0, t)),
                               normal(random, {shape.batch, shape.heads, shape.q_len - t, shape.head_dim}), 2);
        changed.key = changed.query;
        changed.value = changed.query;
        const NamedValues causal = options_of(sizes, {{"causal", true}});
        CHECK(agree(take(call(inputs, moe, causal).output, 2, range(0, t)),
                    take(call(changed, moe, causal).output, 2, range(0, t))));
    });
}

TEST_CASE("moe-attention: counts") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::int64_t k = 1 + random.below(sizes.experts);
        const ForwardResult got = call(inputs, moe, options_of(sizes, {{"top_k", k}}));
        const std::vector<std::int32_t> counts = integers(extra(got, "routing.query.counts"));
        const std::vector<float> load = values(extra(got, "routing.query.load"));
        for (std::int64_t b = 0; b < shape.batch; ++b) {
            std::int64_t sum = 0;
            double shares = 0;
            for (std::int64_t e = 0; e < sizes.experts; ++e) {
                sum += counts[static_cast<std::size_t>(b * sizes.experts + e)];
                shares += static_cast<double>(load[static_cast<std::size_t>(b * sizes.experts + e)]);
            }
            CHECK(sum == k * shape.q_len);
            CHECK(std::abs(shares - 1.0) <= 1e-6);
        }
        // A router of zeros: every probability is the same, ties go to the first experts.
        weight_of(inputs, "wr") = filled({shape.heads * shape.head_dim, sizes.experts}, 0.0f);
        const ForwardResult even = call(inputs, moe, options_of(sizes, {{"top_k", k}}));
        for (const float loss : values(extra(even, "routing.query.balance_loss")))
            CHECK(std::abs(loss - 1.0f) <= 1e-6f);
        for (const auto& [where, members] : routing_of(even)) CHECK(where.second < k);
    });
}

TEST_CASE(
    "moe-attention: rejects experts out of range, a token that does not fit, masks per head, logits that are no "
    "number") {
    Random random(9);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 4, 4});
    rejects(inputs, moe, {{"num_experts", 0}}, {"num_experts", "0"});
    rejects(inputs, moe, {{"num_experts", 2}, {"top_k", 3}}, {"top_k", "3", "2"});
    rejects(inputs, moe, {{"rope", "half"}, {"rope_dim", 3}}, {"rope_dim", "3"});
    ForwardInputs narrow = make_inputs(random, {1, 2, 2, 6, 6, 4, 3});
    rejects(narrow, moe, {{"residual", true}}, {"residual", "8", "6"});
    ForwardInputs masked = inputs;
    masked.mask = bools({1, 2, 6, 6}, [](const auto&) { return true; });
    rejects(masked, moe, {}, {"heads", "2"});
    ForwardInputs broken = inputs;
    add_weights(broken, random, {3, 1, 4, 4});
    rejects(broken, moe, {}, {"wr", "8"});
    broken.query = take(inputs.query, 0, {0});
    at(broken.query, 0, 1, 3, 2) = std::numeric_limits<float>::quiet_NaN();
    broken.weights.clear();
    rejects(broken, moe, {}, {"not finite"});
}
