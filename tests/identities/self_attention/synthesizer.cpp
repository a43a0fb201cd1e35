// SPDX-License-Identifier: Apache-2.0
// Identities of synthesizer-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* synthesizer = "synthesizer-attention";
constexpr const char* standard = "standard-mha";

attend::Json words(std::initializer_list<const char*> names) {
    attend::Json list = attend::Json::array();
    for (const char* name : names) list.push(name);
    return list;
}
attend::Json numbers(std::initializer_list<std::int64_t> items) {
    attend::Json list = attend::Json::array();
    for (const std::int64_t item : items) list.push(item);
    return list;
}

Tensor relu(const Tensor& from) {
    return mapped(from, [](float x) { return x > 0.0f ? x : 0.0f; });
}
// [H, N, D] as [B, H, N, D], the same for each item.
Tensor for_items(const Tensor& table, std::int64_t batch) {
    Tensor to = Tensor::allocate(attend::DType::f32, {batch, table.shape[0], table.shape[1], table.shape[2]}).value();
    for (std::int64_t at = 0; at < to.size(); ++at) to.as<float>()[at] = table.as<const float>()[at % table.size()];
    return to;
}
// The heads of a table of one head, repeated.
Tensor for_heads(const Tensor& table, std::int64_t heads) {
    return take(table, 0, std::vector<std::int64_t>(static_cast<std::size_t>(heads), 0));
}

// Square shapes, values of another width.
void on_shapes(const std::function<void(Random&, const Shape&)>& body, std::int64_t group = 1) {
    on_random_shapes({.group = group, .length = 50, .same_width = false}, body);
}

}  // namespace

TEST_CASE("synthesizer-attention: dense is attention to a table") {
    on_shapes(
        [](Random& random, const Shape& s) {
            ForwardInputs inputs = make_inputs(random, s);
            const bool shared = random.below(2) == 0;
            const std::int64_t tables = shared ? 1 : s.heads;
            const Tensor w = normal(random, {tables, s.kv_len, s.head_dim}), b = normal(random, {tables, s.kv_len});
            inputs.weights = {{"dense_w", w}, {"dense_b", b}};
            ForwardInputs plain;
            plain.query = relu(inputs.query);
            const Tensor table = shared ? for_heads(w, s.heads) : w, biases = shared ? for_heads(b, s.heads) : b;
            plain.key = for_items(table, s.batch);
            std::vector<std::int64_t> groups;
            for (std::int64_t h = 0; h < s.heads; ++h) groups.push_back(h * s.kv_heads / s.heads);
            plain.value = take(*inputs.value, 1, groups);
            plain.bias = Tensor::allocate(attend::DType::f32, {1, s.heads, 1, s.kv_len}).value();
            std::copy_n(biases.as<const float>(), biases.size(), plain.bias->as<float>());
            CHECK(agree(forward(inputs, synthesizer, {{"shared_heads", shared}}),
                        forward(plain, standard, {{"scale", 1.0}})));
        },
        3);
}

TEST_CASE("synthesizer-attention: factorised random is attention between tables") {
    on_shapes([](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const std::int64_t rank = 1 + random.below(9);
        const Tensor r1 = normal(random, {s.heads, s.kv_len, rank}), r2 = normal(random, {s.heads, s.kv_len, rank});
        inputs.weights = {{"fact_r1", r1}, {"fact_r2", r2}};
        ForwardInputs plain;
        plain.query = for_items(r1, s.batch);
        plain.key = for_items(r2, s.batch);
        plain.value = inputs.value;
        CHECK(agree(forward(inputs, synthesizer, {{"components", "factorized-random"}, {"rank", rank}}),
                    forward(plain, standard, {{"scale", 1.0}})));
    });
}

TEST_CASE("synthesizer-attention: random is a bias") {
    on_shapes([](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const Tensor r = normal(random, {s.heads, s.kv_len, s.kv_len});
        inputs.weights = {{"random_r", r}};
        ForwardInputs plain = inputs;
        plain.weights.clear();
        plain.query = filled(inputs.query.shape, 0.0f);
        plain.bias = for_items(r, 1);
        CHECK(agree(forward(inputs, synthesizer, {{"components", "random"}}), forward(plain, standard)));
    });
}

TEST_CASE("synthesizer-attention: keys do not matter without dot") {
    on_shapes([](Random& random, const Shape& s) {
        const ForwardInputs inputs = make_inputs(random, s);
        ForwardInputs other = inputs, without = inputs;
        other.key = normal(random, inputs.key->shape);
        without.key.reset();
        for (const auto& components :
             {words({"dense"}), words({"random", "dense"}), words({"factorized-dense", "factorized-random"})}) {
            const NamedValues options{{"components", components}};
            const ForwardResult expected = forward(inputs, synthesizer, options);
            CHECK(same_bits(forward(other, synthesizer, options).output, expected.output));
            CHECK(same_bits(forward(without, synthesizer, options).output, expected.output));
        }
    });
}

TEST_CASE("synthesizer-attention: random is linear in the values") {
    on_shapes([](Random& random, const Shape& s) {
        const NamedValues options{{"components", words({"random", "factorized-random"})}};
        ForwardInputs inputs = make_inputs(random, {2, s.heads, s.heads, s.kv_len, s.kv_len, s.head_dim, s.value_dim});
        const Tensor v = *inputs.value, w = normal(random, v.shape);
        const auto with = [&](const Tensor& value) {
            inputs.value = value;
            return values(forward(inputs, synthesizer, options).output);
        };
        Tensor sum = mapped(v, [](float x) { return 2.0f * x; });
        for (std::int64_t at = 0; at < sum.size(); ++at) sum.as<float>()[at] -= w.as<const float>()[at];
        const auto a = with(v), b = with(w), both = with(sum);
        for (std::size_t at = 0; at < a.size(); ++at) CHECK(std::abs(both[at] - (2.0f * a[at] - b[at])) <= 2e-5f);
        // The same weights in both items.
        const Tensor p = *forward(inputs, synthesizer, options, true).scores;
        CHECK(same_bits(take(p, 0, {0}), take(p, 0, {1})));
    });
}

TEST_CASE("synthesizer-attention: one component of a mixture") {
    on_shapes([](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        for (const char* first : {"dense", "random", "factorized-dense", "factorized-random", "dot"})
            for (const char* second : {"random", "dot"}) {
                if (std::string(first) == second) continue;
                ForwardInputs mixed = inputs;
                Tensor logits = filled({2}, 0.0f);
                logits.as<float>()[1] = -40.0f;
                mixed.weights = {{"mix_logits", logits}};
                CHECK(agree(forward(mixed, synthesizer, {{"components", words({first, second})}}),
                            forward(inputs, synthesizer, {{"components", first}})));
            }
    });
}

TEST_CASE("synthesizer-attention: dot alone is standard") {
    on_random_shapes({.group = 3, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        const ForwardInputs inputs = make_inputs(random, s);
        CHECK(agree(forward(inputs, synthesizer, {{"components", "dot"}}), forward(inputs, standard)));
        const NamedValues causal{{"components", words({"dot"})}, {"causal", true}, {"scale", 0.4}};
        CHECK(
            agree(forward(inputs, synthesizer, causal), forward(inputs, standard, {{"causal", true}, {"scale", 0.4}})));
    });
}

TEST_CASE("synthesizer-attention: periods of the factors") {
    on_shapes([](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const std::int64_t a = 1 + random.below(s.kv_len), b = (s.kv_len + a - 1) / a, d = s.head_dim, h = s.heads;
        const NamedValues options{{"components", "factorized-dense"}, {"factors", numbers({a, b})}};
        const auto rows_of = [&](bool periodic) {
            inputs.weights = {{periodic ? "fact_b" : "fact_a", filled({h, periodic ? b : a, d}, 0.0f)},
                              {periodic ? "fact_bb" : "fact_ab", filled({h, periodic ? b : a}, 1.0f)}};
            return *forward(inputs, synthesizer, options, true).scores;
        };
        const Tensor repeated = rows_of(true), blocks = rows_of(false);
        bool periodic = true, constant = true;
        for (std::int64_t item = 0; item < s.batch; ++item)
            for (std::int64_t head = 0; head < h; ++head)
                for (std::int64_t i = 0; i < s.q_len; ++i)
                    for (std::int64_t j = 0; j < s.kv_len; ++j) {
                        periodic = periodic && at(repeated, item, head, i, j) == at(repeated, item, head, i, j % a);
                        constant = constant && at(blocks, item, head, i, j) == at(blocks, item, head, i, j / a * a);
                    }
        CHECK(periodic);
        CHECK(constant);
    });
}

TEST_CASE("synthesizer-attention: gauge of the factors") {
    on_shapes([](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const std::int64_t a = 1 + random.below(s.kv_len), b = (s.kv_len + a - 1) / a, d = s.head_dim, h = s.heads;
        const Tensor wa = normal(random, {h, a, d}), ba = normal(random, {h, a}), wb = normal(random, {h, b, d}),
                     bb = normal(random, {h, b});
        for (const char* tiling : {"outer", "tile"}) {
            const NamedValues options{
                {"components", "factorized-dense"}, {"factors", numbers({a, b})}, {"tiling", tiling}};
            inputs.weights = {{"fact_a", wa}, {"fact_ab", ba}, {"fact_b", wb}, {"fact_bb", bb}};
            const ForwardResult expected = forward(inputs, synthesizer, options);
            const auto times = [](float factor) { return [factor](float x) { return factor * x; }; };
            inputs.weights = {{"fact_a", mapped(wa, times(-4.0f))},
                              {"fact_ab", mapped(ba, times(-4.0f))},
                              {"fact_b", mapped(wb, times(-0.25f))},
                              {"fact_bb", mapped(bb, times(-0.25f))}};
            CHECK(agree(forward(inputs, synthesizer, options), expected));
        }
    });
}

TEST_CASE("synthesizer-attention: tilings are permutations of each other") {
    on_shapes([](Random& random, const Shape& s) {
        const std::int64_t a = random.below(2) == 0 ? 3 : 5, b = random.below(2) == 0 ? 4 : 7, n = a * b;
        ForwardInputs inputs = make_inputs(random, {s.batch, s.heads, s.heads, n, n, s.head_dim, s.value_dim});
        NamedValues options{{"components", "factorized-dense"}, {"factors", numbers({a, b})}};
        const ForwardResult outer = forward(inputs, synthesizer, options, true);
        options.emplace_back("tiling", "tile");
        const ForwardResult tile = forward(inputs, synthesizer, options, true);
        // Key j of tile has the factors (j mod a, j mod b), which is key j mod a + a (j mod b) of outer.
        std::vector<std::int64_t> order;
        for (std::int64_t j = 0; j < n; ++j) order.push_back(j % a + a * (j % b));
        CHECK(agree(*tile.scores, take(*outer.scores, 3, order)));
        CHECK(agree(*tile.lse, *outer.lse));
    });
}

TEST_CASE("synthesizer-attention: a wide local context is dense") {
    on_random_shapes({.length = 40, .same_width = false}, [](Random& random, const Shape& s) {
        const std::int64_t n = s.kv_len, c = 2 * n - 1 + 2 * random.below(4), middle = (c - 1) / 2;
        ForwardInputs inputs = make_inputs(random, {s.batch, s.heads, s.heads, 1, n, s.head_dim, s.value_dim});
        const Tensor w = normal(random, {s.heads, c, s.head_dim}), b = normal(random, {s.heads, c});
        // The query stands at position n - 1, so key j has logit j - (n - 1) + (c - 1) / 2.
        const auto part = range(middle - (n - 1), middle + 1);
        ForwardInputs dense = inputs;
        inputs.weights = {{"dense_w", w}, {"dense_b", b}};
        dense.weights = {{"dense_w", take(w, 1, part)}, {"dense_b", take(b, 1, part)}};
        CHECK(agree(forward(inputs, synthesizer, {{"local_context", c}}), forward(dense, synthesizer)));
    });
}

TEST_CASE("synthesizer-attention: decode") {
    on_random_shapes({.group = 2, .length = 40, .same_width = false}, [](Random& random, const Shape& s) {
        const ForwardInputs all = make_inputs(random, s);
        const std::int64_t row = random.below(s.kv_len);
        ForwardInputs step;
        step.query = take(all.query, 2, {row});
        step.key = take(*all.key, 2, range(0, row + 1));
        step.value = take(*all.value, 2, range(0, row + 1));
        for (const auto& components : {words({"dense"}), words({"random"}), words({"factorized-random"}),
                                       words({"factorized-dense"}), words({"dense", "random", "dot"})}) {
            const NamedValues options{{"components", components}, {"causal", true}, {"max_length", s.kv_len + 3}};
            const ForwardResult whole = forward(all, synthesizer, options), one = forward(step, synthesizer, options);
            CHECK(agree(one.output, take(whole.output, 2, {row})));
            CHECK(agree(*one.lse, take(*whole.lse, 2, {row})));
        }
    });
}

TEST_CASE("synthesizer-attention: rejects tables that are too short") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 4, 6, 8, 8});
    rejects(inputs, synthesizer, {{"max_length", 5}}, {"maxLength too small", "5", "6"});
    rejects(inputs, synthesizer, {{"max_length", 7}, {"causal_offset", 4}}, {"maxLength too small", "7", "8"});
    rejects(inputs, synthesizer, {{"components", "random"}, {"causal_offset", 3}}, {"maxLength too small", "6", "7"});
}

TEST_CASE("synthesizer-attention: rejects positions without a random row") {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {2, 2, 2, 7, 6, 8, 8});
    for (const char* component : {"random", "factorized-random"})
        rejects(inputs, synthesizer, {{"components", component}}, {"query", "-1", "no row"});
    inputs = make_inputs(random, {2, 2, 2, 6, 6, 8, 8});
    inputs.query_lengths = lengths({3, 5});
    inputs.key_lengths = lengths({3, 4});
    rejects(inputs, synthesizer, {{"components", "random"}}, {"query_lengths[1]", "5", "4"});
}

TEST_CASE("synthesizer-attention: rejects local contexts that are even or mixed") {
    Random random(3);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 8, 8});
    rejects(inputs, synthesizer, {{"local_context", 4}}, {"local_context", "4", "odd"});
    rejects(inputs, synthesizer, {{"local_context", 3}, {"components", "random"}}, {"local_context", "dense"});
    rejects(inputs, synthesizer, {{"local_context", 3}, {"components", words({"dense", "dot"})}},
            {"local_context", "dense"});
}

TEST_CASE("synthesizer-attention: rejects factors that do not cover the keys") {
    Random random(4);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 8, 8});
    const NamedValues options{{"components", "factorized-dense"}};
    NamedValues small = options, single = options;
    small.emplace_back("factors", numbers({5, 1}));
    rejects(inputs, synthesizer, small, {"factors", "[5,1]", "6"});
    single.emplace_back("factors", numbers({6}));
    rejects(inputs, synthesizer, single, {"factors", "1", "two integers"});
}

TEST_CASE("synthesizer-attention: rejects dot without keys, duplicates and nothing at all") {
    Random random(5);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 8, 8});
    rejects(inputs, synthesizer, {{"components", words({"dense", "dot", "dense"})}}, {"components", "dense", "twice"});
    rejects(inputs, synthesizer, {{"components", attend::Json::array()}}, {"components", "empty"});
    rejects(inputs, synthesizer, {{"components", "sparse"}}, {"components", "sparse", "factorized-random"});
    inputs.key.reset();
    rejects(inputs, synthesizer, {{"components", words({"dense", "dot"})}}, {"key", "dot"});
}
