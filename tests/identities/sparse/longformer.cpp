// SPDX-License-Identifier: Apache-2.0
// longformer-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "longformer-attention";

attend::Json list(const std::vector<std::int64_t>& items) {
    attend::Json array = attend::Json::array();
    for (const std::int64_t item : items) array.push(item);
    return array;
}
ForwardInputs with_projections(ForwardInputs inputs, const Tensor& query, const Tensor& key, const Tensor& value) {
    inputs.extra = {{"global_query", query}, {"global_key", key}, {"global_value", value}};
    return inputs;
}
Tensor identity_matrices(std::int64_t heads, std::int64_t width) {
    Tensor matrix = filled({heads, width, width}, 0.0f);
    for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t d = 0; d < width; ++d) matrix.as<float>()[(h * width + d) * width + d] = 1.0f;
    return matrix;
}
std::vector<std::int64_t> some_positions(Random& random, std::int64_t length) {
    std::vector<std::int64_t> positions = shuffled(random, length);
    positions.resize(static_cast<std::size_t>(1 + random.below(std::min<std::int64_t>(length, 5))));
    return positions;
}

}  // namespace

TEST_CASE("longformer-attention: without globals it is a window") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            const std::int64_t w = random.below(20);
            const ForwardResult got = forward(inputs, mechanism, {{"window_size", w}, {"causal", causal}});
            const ForwardResult local = forward(inputs, "local-attention", {{"window_size", w}, {"causal", causal}});
            CHECK(same_bits(got.output, local.output));
            CHECK(same_bits(*got.lse, *local.lse));
            const std::int64_t all = std::max(shape.q_len, shape.kv_len);
            CHECK(agree(forward(inputs, mechanism, {{"window_size", all}, {"causal", causal}}),
                        forward(inputs, "standard-mha", {{"causal", causal}})));
        }
    });
}

TEST_CASE("longformer-attention: all tokens global") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape), global = make_inputs(random, shape),
                            other = make_inputs(random, shape);
        const NamedValues options{{"window_size", 2}, {"global_tokens", list(range(0, shape.kv_len))}};
        const ForwardResult full = forward(global, "standard-mha");
        for (const ForwardInputs* local : {&inputs, &other})
            CHECK(agree(forward(with_projections(*local, global.query, *global.key, *global.value), mechanism, options),
                        full));
    });
}

TEST_CASE("longformer-attention: projections that change nothing") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues options{{"window_size", 3}, {"global_tokens", list(some_positions(random, shape.kv_len))}};
        const ForwardResult shared = forward(inputs, mechanism, options);
        CHECK(agree(forward(with_projections(inputs, inputs.query, *inputs.key, *inputs.value), mechanism, options),
                    shared));
        ForwardInputs weights = inputs;
        weights.weights = {{"wqg", identity_matrices(shape.heads, shape.head_dim)},
                           {"wkg", identity_matrices(shape.kv_heads, shape.head_dim)},
                           {"wvg", identity_matrices(shape.kv_heads, shape.value_dim)}};
        CHECK(agree(forward(weights, mechanism, options), shared));
        weights.weights.resize(1);
        CHECK(agree(forward(weights, mechanism, options, true), shared));
        // A mask names the same positions.
        ForwardInputs masked = inputs;
        const attend::Json* tokens = &options[1].second;
        masked.extra = {{"global_mask", bools({shape.batch, shape.kv_len}, [&](const std::vector<std::int64_t>& at) {
                             for (const attend::Json& token : tokens->as_array())
                                 if (token.as_int64() == at[1]) return true;
                             return false;
                         })}};
        CHECK(agree(forward(masked, mechanism, {{"window_size", 3}}), shared));
    });
}

TEST_CASE("longformer-attention: dilation is a window per class") {
    on_random_shapes({.group = 2, .length = 120}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t d = 2 + random.below(5), w = 1 + random.below(6);
        const bool causal = random.below(2) == 1;
        const ForwardResult got = forward(inputs, mechanism, {{"window_size", w}, {"dilation", d}, {"causal", causal}});
        for (std::int64_t r = 0; r < std::min(d, shape.kv_len); ++r) {
            ForwardInputs part;
            part.query = every(inputs.query, 2, r, d);
            part.key = every(*inputs.key, 2, r, d);
            part.value = every(*inputs.value, 2, r, d);
            const ForwardResult own = forward(part, "local-attention", {{"window_size", w}, {"causal", causal}});
            CHECK(agree(every(got.output, 2, r, d), own.output));
            CHECK(agree(every(*got.lse, 2, r, d), *own.lse));
        }
    });
}

TEST_CASE("longformer-attention: dilations of heads") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        std::vector<std::int64_t> steps;
        for (std::int64_t h = 0; h < shape.heads; ++h) steps.push_back(1 + random.below(4));
        const NamedValues globals{{"window_size", 2}, {"global_tokens", list(some_positions(random, shape.kv_len))}};
        NamedValues options = globals;
        options.emplace_back("dilation", list(steps));
        const ForwardResult got = forward(inputs, mechanism, options);
        CHECK(agree(forward(inputs, mechanism, options, true), got));
        for (std::int64_t h = 0; h < shape.heads; ++h) {
            NamedValues one = globals;
            one.emplace_back("dilation", steps[static_cast<std::size_t>(h)]);
            CHECK(agree(take(got.output, 1, {h}), take(forward(inputs, mechanism, one).output, 1, {h})));
        }
    });
}

TEST_CASE("longformer-attention: number of pairs") {
    for (const std::int64_t n : {20, 33})
        for (const std::int64_t w : {0, 2, 5}) {
            for (const std::int64_t d : {1, 3}) {
                std::int64_t expected = 0;
                for (std::int64_t t = -w; t <= w; ++t) expected += std::max<std::int64_t>(0, n - std::abs(t) * d);
                CHECK(KeySets(mechanism, {{"window_size", w}, {"dilation", d}}, 1, n, n).pairs() == expected);
            }
            const std::int64_t g = 3;
            CHECK(KeySets(mechanism, {{"window_size", w}, {"global_tokens", list(range(0, g))}}, 1, n, n).pairs() ==
                  (n - g) * (2 * w + 1) - w * (w + 1) + 2 * g * n - g * g);
        }
}

TEST_CASE("longformer-attention: global projections change global rows alone") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape), one = make_inputs(random, shape),
                            other = make_inputs(random, shape);
        const std::vector<std::int64_t> positions = some_positions(random, shape.kv_len);
        const NamedValues options{{"window_size", 4}, {"global_tokens", list(positions)}};
        const ForwardResult a = forward(with_projections(inputs, one.query, *one.key, *one.value), mechanism, options),
                            b = forward(with_projections(inputs, one.query, *other.key, *other.value), mechanism,
                                        options);
        std::vector<std::int64_t> rest;
        for (std::int64_t i = 0; i < shape.q_len; ++i)
            if (std::count(positions.begin(), positions.end(), i) == 0) rest.push_back(i);
        CHECK(same_bits(take(a.output, 2, rest), take(b.output, 2, rest)));
        CHECK_FALSE(agree(take(a.output, 2, positions), take(b.output, 2, positions)));
    });
}

TEST_CASE("longformer-attention: rejects dilations and positions") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 2, 9, 9, 8, 8});
    rejects(inputs, mechanism, {{"dilation", list({1, 2})}},
            {"\"dilation\" has 2 entries", "4 query heads", "accepted"});
    rejects(inputs, mechanism, {{"global_tokens", list({9})}},
            {"\"global_tokens\" lists the position 9", "9 keys", "accepted: 0 to 8"});
    rejects(inputs, mechanism, {{"global_tokens", list({3, 3})}}, {"\"global_tokens\"", "3 twice", "distinct"});
    ForwardInputs masked = inputs;
    masked.extra = {{"global_mask", bools({2, 9}, [](const auto&) { return true; })}};
    rejects(masked, mechanism, {{"global_tokens", list({3})}}, {"\"global_tokens\"", "global_mask", "one of them"});
}

TEST_CASE("longformer-attention: rejects projections") {
    Random random(2);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 2, 9, 9, 8, 8});
    const ForwardInputs all = with_projections(inputs, inputs.query, *inputs.key, *inputs.value);
    ForwardInputs some = all;
    some.extra.pop_back();
    rejects(some, mechanism, {}, {"2 of global_query", "accepted: all three, or none"});
    rejects(some, mechanism, {{"global_projection", "tensors"}},
            {"2 of global_query", "tensors", "accepted: all three"});
    rejects(inputs, mechanism, {{"global_projection", "tensors"}}, {"0 of global_query", "accepted: all three"});
    for (const char* from : {"shared", "weights"})
        rejects(all, mechanism, {{"global_projection", from}},
                {"\"global_projection\" is ", from, "accepted: tensors or auto"});
}
