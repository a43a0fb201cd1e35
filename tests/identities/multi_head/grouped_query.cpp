// SPDX-License-Identifier: Apache-2.0
// Identities of grouped-query-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* grouped = "grouped-query-attention";

std::vector<std::int64_t> key_heads(const Shape& shape, bool tiled) {
    std::vector<std::int64_t> which;
    for (std::int64_t h = 0; h < shape.heads; ++h)
        which.push_back(tiled ? h % shape.kv_heads : h * shape.kv_heads / shape.heads);
    return which;
}
ForwardInputs expanded(ForwardInputs inputs, const std::vector<std::int64_t>& which) {
    inputs.key = take(*inputs.key, 1, which);
    inputs.value = take(*inputs.value, 1, which);
    return inputs;
}

}  // namespace

TEST_CASE("grouped-query-attention: repeated key heads") {
    on_random_shapes(
        {.group = 4, .square = false, .same_width = false},
        [](Random& random, const Shape& shape) {
            const ForwardInputs inputs = make_inputs(random, shape);
            for (const bool causal : {false, true}) {
                const NamedValues options = {{"causal", causal}};
                const ForwardResult got = forward(inputs, grouped, options);
                CHECK(agree(got, forward(expanded(inputs, key_heads(shape, false)), "standard-mha", options)));
                if (!causal && shape.kv_heads > 1 && shape.kv_heads < shape.heads)
                    CHECK_FALSE(agree(got, forward(expanded(inputs, key_heads(shape, true)), "standard-mha", options)));
            }
        },
        6);
}

TEST_CASE("grouped-query-attention: as many key heads as query heads or one") {
    on_random_shapes({.square = false}, [](Random& random, Shape shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        CHECK(agree(forward(inputs, grouped), forward(inputs, "standard-mha")));
        shape.heads *= 2;
        shape.kv_heads = 1;
        const ForwardInputs shared = make_inputs(random, shape);
        CHECK(agree(forward(shared, grouped), forward(shared, "multi-query-attention")));
    });
}

TEST_CASE("grouped-query-attention: permuted query heads") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t group = 2 + random.below(3), groups = 2 + random.below(2);
        const Shape shape{1 + random.below(2), group * groups, groups, 20 + random.below(40), 30, 12, 12};
        INFO(shape.text());
        ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, grouped);
        std::vector<std::int64_t> order, across = range(0, shape.heads);
        for (std::int64_t g = 0; g < groups; ++g)
            for (const std::int64_t h : shuffled(random, group)) order.push_back(g * group + h);
        std::swap(across[0], across[static_cast<std::size_t>(group)]);
        const Tensor query = inputs.query;
        inputs.query = take(query, 1, order);
        const ForwardResult inside = forward(inputs, grouped);
        CHECK(same_bits(inside.output, take(before.output, 1, order)));
        CHECK(same_bits(*inside.lse, take(*before.lse, 1, order)));
        inputs.query = take(query, 1, across);
        CHECK_FALSE(agree(forward(inputs, grouped).output, take(before.output, 1, across)));
    }
}

TEST_CASE("grouped-query-attention: mean-pooled conversion") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t group = 2 + random.below(2), groups = 1 + random.below(3), width = 3 + random.below(9);
        const std::int64_t heads = group * groups, model = heads * width;
        ForwardInputs inputs;
        inputs.query = normal(random, {2, 11 + random.below(20), model});
        const Tensor wq = layer(random, model, model), wo = layer(random, model, model);
        const Tensor key = layer(random, groups * width, model), value = layer(random, groups * width, model);
        std::vector<std::int64_t> rows;  // the heads of a group have one projection in the full attention
        for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t d = 0; d < width; ++d) rows.push_back(h / group * width + d);
        inputs.weights = {{"wq", wq}, {"wk", take(key, 0, rows)}, {"wv", take(value, 0, rows)}, {"wo", wo}};
        const NamedValues options = {{"heads", heads}, {"bias", false}};
        const ForwardResult full = forward(inputs, "standard-mha", options);
        inputs.weights = {{"wq", wq}, {"wk", key}, {"wv", value}, {"wo", wo}};
        CHECK(agree(forward(inputs, grouped, {{"heads", heads}, {"kv_heads", groups}}), full));
    }
}

TEST_CASE("grouped-query-attention: one changed key head") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t group = 1 + random.below(3), groups = 2 + random.below(3), changed = random.below(groups);
        const Shape shape{2, group * groups, groups, 5 + random.below(30), 40, 16, 16};
        INFO(shape.text());
        ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, grouped);
        Tensor key = take(*inputs.key, 1, range(0, groups)), value = take(*inputs.value, 1, range(0, groups));
        for (std::int64_t b = 0; b < 2; ++b)
            for (std::int64_t j = 0; j < 40; ++j)
                for (std::int64_t d = 0; d < 16; ++d)
                    at(key, b, changed, j, d) = random.normal(), at(value, b, changed, j, d) = random.normal();
        inputs.key = key;
        inputs.value = value;
        const ForwardResult after = forward(inputs, grouped);
        for (std::int64_t h = 0; h < shape.heads; ++h) {
            const bool own = h / group == changed;
            CHECK(same_bits(take(before.output, 1, {h}), take(after.output, 1, {h})) != own);
            CHECK(same_bits(take(*before.lse, 1, {h}), take(*after.lse, 1, {h})) != own);
        }
    }
}

TEST_CASE("grouped-query-attention: rejects head counts that do not fit") {
    Random random(1);
    rejects(make_inputs(random, {1, 4, 3, 5, 5, 8, 8}), grouped, {}, {"4", "3"});
    rejects(make_inputs(random, {1, 2, 4, 5, 5, 8, 8}), grouped, {}, {"2", "4"});
    ForwardInputs inputs = make_inputs(random, {1, 4, 2, 5, 5, 8, 8});
    inputs.value = normal(random, {1, 4, 5, 8});
    rejects(inputs, grouped, {}, {"value", "4", "2"});
    inputs = make_inputs(random, {1, 4, 2, 5, 5, 8, 8});
    rejects(inputs, grouped, {{"heads", 8}}, {"heads", "8", "4"});
    rejects(inputs, grouped, {{"kv_heads", 4}}, {"kv_heads", "4", "2"});
    ForwardInputs tokens;
    tokens.query = normal(random, {1, 5, 24});
    rejects(tokens, grouped, {{"form", "projected"}, {"heads", 4}, {"kv_heads", 3}}, {"4", "3"});
    rejects(tokens, grouped, {{"form", "projected"}, {"heads", 5}}, {"24", "5"});
    rejects(tokens, grouped, {{"form", "projected"}}, {"heads"});
    tokens.extra = {{"past_key", normal(random, {1, 4, 3, 6})}};
    rejects(tokens, grouped, {{"form", "projected"}, {"heads", 4}}, {"past_key", "past_value"});
}
