// SPDX-License-Identifier: Apache-2.0
// Identities of expert-choice-attention.
#include "identities/moe/experts.hpp"

namespace {

using namespace identities;
constexpr const char* choice = "expert-choice-attention";

}  // namespace

TEST_CASE("expert-choice-attention: equal shares") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::int64_t capacity = 1 + random.below(shape.q_len + 4), each = std::min(capacity, shape.q_len);
        for (const char* gate : {"softmax", "sigmoid"}) {
            const ForwardResult got =
                call(inputs, choice, options_of(sizes, {{"expert_capacity", capacity}, {"gate", gate}}));
            const Routing routing = routing_of(got), keys = routing_of(got, "key");
            CHECK(static_cast<std::int64_t>(routing.size()) == shape.batch * sizes.experts);
            for (const auto& [where, members] : routing)
                CHECK(static_cast<std::int64_t>(members.tokens.size()) == each);
            for (const float load : values(extra(got, "routing.query.max_load"))) CHECK(load == 1.0f);
            for (const std::int32_t reported : integers(extra(got, "routing.query.capacity"))) CHECK(reported == each);
            const std::vector<std::int32_t> nobody = integers(extra(got, "routing.query.unassigned"));
            for (std::int64_t b = 0; b < shape.batch; ++b) {
                std::set<std::int64_t> chosen;
                for (std::int64_t e = 0; e < sizes.experts; ++e)
                    chosen.insert(routing.at({b, e}).tokens.begin(), routing.at({b, e}).tokens.end());
                CHECK(nobody[static_cast<std::size_t>(b)] + static_cast<std::int64_t>(chosen.size()) == shape.q_len);
            }
            CHECK(agree(got.output, sum_of_experts(inputs, routing, &keys, sizes.experts, false)));
        }
    });
}

TEST_CASE("expert-choice-attention: every token") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        // Sigmoid: every expert attends among all, weighted by the sigmoid of its own logit.
        const ForwardResult got =
            call(inputs, choice, options_of(sizes, {{"expert_capacity", shape.q_len}, {"gate", "sigmoid"}}));
        Routing everything;
        const Tensor wr = weight_of(inputs, "wr");
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t e = 0; e < sizes.experts; ++e) {
                Members& members = everything[{b, e}];
                members.tokens = range(0, shape.q_len);
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    double z = 0;
                    for (std::int64_t m = 0; m < shape.heads * shape.head_dim; ++m)
                        z += static_cast<double>(at(inputs.query, b, m / shape.head_dim, i, m % shape.head_dim)) *
                             static_cast<double>(wr.as<float>()[m * sizes.experts + e]);
                    members.gates.push_back(1.0 / (1.0 + std::exp(-z)));
                }
            }
        CHECK(agree(got.output, sum_of_experts(inputs, everything, nullptr, sizes.experts, false)));
        // Softmax over one expert: plain attention between its projections.
        sizes.experts = 1;
        ForwardInputs single = self_inputs(random, shape);
        add_weights(single, random, sizes);
        Routing all;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            all[{b, 0}] = {range(0, shape.q_len), std::vector<double>(static_cast<std::size_t>(shape.q_len), 1)};
        CHECK(agree(call(single, choice, options_of(sizes, {{"expert_capacity", shape.q_len}})).output,
                    sum_of_experts(single, all, nullptr, 1, false)));
    });
}

// The module as published, step by step: sigmoid of the logits of each head's router, top tokens, rotary positions on half of
// the width, causal attention among them, outputs weighted and added at their places.
TEST_CASE("expert-choice-attention: published module") {
    on_random_shapes({.batch = 2, .heads = 1, .length = 40, .width = 1}, [](Random& random, Shape shape) {
        shape.head_dim = shape.value_dim = 12;
        const ExpertSizes sizes{3, 1, 8, 8};
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::int64_t capacity = std::max<std::int64_t>(2, shape.q_len / 4);
        const Tensor got = call(inputs, choice,
                                options_of(sizes, {{"gate", "sigmoid"},
                                                   {"expert_capacity", capacity},
                                                   {"causal", true},
                                                   {"allow_non_causal_routing", true},
                                                   {"rope", "half"},
                                                   {"rope_dim", 4}}))
                               .output;
        Tensor expected = filled({shape.batch, 1, shape.q_len, 12}, 0.0f);
        const Tensor &wr = weight_of(inputs, "wr"), &wq = weight_of(inputs, "wq"), &wk = weight_of(inputs, "wk"),
                     &wv = weight_of(inputs, "wv"), &wo = weight_of(inputs, "wo");
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t e = 0; e < sizes.experts; ++e) {
                std::vector<std::pair<float, std::int64_t>> logits;
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    double z = 0;
                    for (std::int64_t m = 0; m < 12; ++m)
                        z += static_cast<double>(at(inputs.query, b, 0, i, m)) *
                             static_cast<double>(wr.as<float>()[m * sizes.experts + e]);
                    logits.emplace_back(-static_cast<float>(z), i);
                }
                std::sort(logits.begin(), logits.end());
                logits.resize(static_cast<std::size_t>(std::min(capacity, shape.q_len)));
                std::vector<std::int64_t> tokens;
                for (const auto& [z, token] : logits) tokens.push_back(token);
                std::sort(tokens.begin(), tokens.end());
                Tensor q = projected_rows(inputs.query, b, tokens, wq, e),
                       k = projected_rows(*inputs.key, b, tokens, wk, e);
                const Tensor v = projected_rows(*inputs.value, b, tokens, wv, e);
                for (Tensor* rows : {&q, &k})
                    for (std::size_t row = 0; row < tokens.size(); ++row)
                        for (std::int64_t t = 0; t < 2; ++t) {
                            const double angle =
                                static_cast<double>(tokens[row]) * std::pow(10000.0, -static_cast<double>(t) / 2.0);
                            float &x = at(*rows, 0, 0, static_cast<std::int64_t>(row), t),
                                  &y = at(*rows, 0, 0, static_cast<std::int64_t>(row), t + 2);
                            const double a = static_cast<double>(x), c = static_cast<double>(y);
                            x = static_cast<float>(a * std::cos(angle) - c * std::sin(angle));
                            y = static_cast<float>(c * std::cos(angle) + a * std::sin(angle));
                        }
                ForwardInputs plain;
                plain.query = q;
                plain.key = k;
                plain.value = v;
                const Tensor attended = call(plain, "flash-attention-v2", {{"causal", true}}).output;
                for (std::size_t row = 0; row < tokens.size(); ++row) {
                    double gate = 0;
                    for (const auto& [z, token] : logits)
                        if (token == tokens[row]) gate = 1.0 / (1.0 + std::exp(static_cast<double>(z)));
                    for (std::int64_t m = 0; m < 12; ++m) {
                        double sum = 0;
                        for (std::int64_t c = 0; c < 8; ++c)
                            sum += static_cast<double>(at(attended, 0, 0, static_cast<std::int64_t>(row), c)) *
                                   static_cast<double>(at(wo, e, 0, c, m));
                        at(expected, b, 0, tokens[row], m) += static_cast<float>(gate * sum);
                    }
                }
            }
        CHECK(agree(got, expected));
    });
}

TEST_CASE("expert-choice-attention: raised logit") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        // A router that reads one channel per expert, so that a token's logit for one of them is raised alone.
        const std::int64_t width = shape.heads * shape.head_dim;
        if (width < sizes.experts) return;
        add_weights(inputs, random, sizes);
        Tensor wr = filled({width, sizes.experts}, 0.0f);
        for (std::int64_t e = 0; e < sizes.experts; ++e) wr.as<float>()[e * sizes.experts + e] = 1.0f;
        weight_of(inputs, "wr") = wr;
        const std::int64_t token = random.below(shape.q_len), e = random.below(sizes.experts);
        const NamedValues options = options_of(sizes, {{"gate", "sigmoid"}, {"expert_capacity", 1 + shape.q_len / 3}});
        const Routing before = routing_of(call(inputs, choice, options));
        ForwardInputs raised = inputs;
        raised.query = take(inputs.query, 0, range(0, shape.batch));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            at(raised.query, b, e / shape.head_dim, token, e % shape.head_dim) +=
                0.25f + random.normal() * random.normal();
        for (std::int64_t b = 0; b < shape.batch; ++b) {
            float& x = at(raised.query, b, e / shape.head_dim, token, e % shape.head_dim);
            x = std::max(x, at(inputs.query, b, e / shape.head_dim, token, e % shape.head_dim));
        }
        raised.key = raised.query;
        raised.value = raised.query;
        const Routing after = routing_of(call(raised, choice, options));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t other = 0; other < sizes.experts; ++other) {
                const auto holds = [&](const Routing& routing) {
                    const auto& tokens = routing.at({b, other}).tokens;
                    return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
                };
                if (other == e)
                    CHECK((!holds(before) || holds(after)));
                else
                    CHECK(before.at({b, other}).tokens == after.at({b, other}).tokens);
            }
    });
}

TEST_CASE("expert-choice-attention: token order") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const std::vector<std::int64_t> order = shuffled(random, shape.q_len);
        ForwardInputs other = inputs;
        other.query = take(inputs.query, 2, order);
        other.key = other.query;
        other.value = other.query;
        CHECK(agree(take(call(inputs, choice, options_of(sizes)).output, 2, order),
                    call(other, choice, options_of(sizes)).output));
    });
}

TEST_CASE("expert-choice-attention: causal among the chosen") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        ExpertSizes sizes = some_sizes(random);
        sizes.experts = 1 + random.below(2);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const NamedValues options = options_of(sizes, {{"expert_capacity", 1 + shape.q_len / 2}, {"gate", "sigmoid"}});
        const NamedValues causal = with(options, {{"causal", true}, {"allow_non_causal_routing", true}});
        const Routing routing = routing_of(call(inputs, choice, causal));
        CHECK(routing.size() == routing_of(call(inputs, choice, options)).size());
        // Causal: the first chosen token of an expert sees itself alone, and gets its own value path.
        if (sizes.experts > 1) return;
        const Tensor got = call(inputs, choice, causal).output;
        for (const auto& [where, members] : routing) {
            const Routing first{{where, {{members.tokens[0]}, {members.gates[0]}}}};
            const Tensor alone = sum_of_experts(inputs, first, &first, 1, false);
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t d = 0; d < shape.head_dim; ++d)
                    CHECK(std::abs(at(alone, where.first, h, members.tokens[0], d) -
                                   at(got, where.first, h, members.tokens[0], d)) <= 1e-5f);
        }
    });
}

TEST_CASE("expert-choice-attention: first token") {
    on_random_shapes(expert_shapes, [](Random& random, const Shape& shape) {
        const ExpertSizes sizes = some_sizes(random);
        ForwardInputs inputs = self_inputs(random, shape);
        add_weights(inputs, random, sizes);
        const NamedValues options = options_of(sizes, {{"expert_capacity", 1 + random.below(3)}});
        const Routing free = routing_of(call(inputs, choice, options));
        for (const auto& [where, members] :
             routing_of(call(inputs, choice, with(options, {{"include_first", true}})))) {
            CHECK(members.tokens.front() == 0);
            CHECK(members.tokens.size() == free.at(where).tokens.size());
        }
    });
}

TEST_CASE("expert-choice-attention: rejects causal calls without leave, factors of zero, masks per head") {
    Random random(9);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 4, 4});
    rejects(inputs, choice, {{"causal", true}}, {"causal", "true", "allow_non_causal_routing"});
    rejects(inputs, choice, {{"capacity_factor", 0.0}}, {"capacity_factor", "0"});
    rejects(inputs, choice, {{"min_tokens", 0}}, {"min_tokens", "0"});
    inputs.mask = bools({1, 2, 6, 6}, [](const auto&) { return true; });
    rejects(inputs, choice, {}, {"heads", "2"});
}
