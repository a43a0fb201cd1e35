// SPDX-License-Identifier: Apache-2.0
// star-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "star-attention";

ForwardInputs with_hubs(Random& random, ForwardInputs inputs, const Shape& shape, std::int64_t hubs) {
    inputs.extra = {{"hub_query", normal(random, {shape.batch, shape.heads, hubs, shape.head_dim})},
                    {"hub_key", normal(random, {shape.batch, shape.kv_heads, hubs, shape.head_dim})},
                    {"hub_value", normal(random, {shape.batch, shape.kv_heads, hubs, shape.value_dim})}};
    return inputs;
}
const Tensor& extra(const ForwardResult& result, const std::string& name) {
    for (const auto& [given, tensor] : result.extra)
        if (given == name) return tensor;
    FAIL("no output " << name);
    return result.output;
}
// Means of rows of [B, H, N, C].
Tensor means(const Tensor& rows) {
    Tensor to = filled({rows.shape[0], rows.shape[1], 1, rows.shape[3]}, 0.0f);
    for (std::int64_t b = 0; b < rows.shape[0]; ++b)
        for (std::int64_t h = 0; h < rows.shape[1]; ++h)
            for (std::int64_t c = 0; c < rows.shape[3]; ++c) {
                double sum = 0;
                for (std::int64_t n = 0; n < rows.shape[2]; ++n) sum += static_cast<double>(at(rows, b, h, n, c));
                at(to, b, h, 0, c) = static_cast<float>(sum / static_cast<double>(rows.shape[2]));
            }
    return to;
}

}  // namespace

TEST_CASE("star-attention: number of pairs") {
    for (const std::int64_t n : {17, 30})
        for (const std::int64_t h : {0, 1, 4})
            for (const std::int64_t radius : {0, 1, 3})
                CHECK(KeySets(mechanism, {{"num_hubs", h}, {"ring_radius", radius}}, 1, n, n).pairs() ==
                      h * n + (n - h) * (2 * radius + 1 + h));
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        CHECK(agree(forward(inputs, mechanism, {{"ring_radius", shape.kv_len / 2}}), forward(inputs, "standard-mha")));
    });
}

TEST_CASE("star-attention: a ring without hubs") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t radius = random.below(6);
        CHECK(agree(forward(inputs, mechanism, {{"num_hubs", 0}, {"cyclic", false}, {"ring_radius", radius}}),
                    forward(inputs, "local-attention", {{"window_size", radius}})));
        if (shape.heads == shape.kv_heads)
            CHECK(agree(forward(inputs, mechanism, {{"num_hubs", 0}, {"ring_radius", 0}}).output, *inputs.value));
    });
}

TEST_CASE("star-attention: rotation of the ring") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = with_hubs(random, make_inputs(random, shape), shape, 1 + random.below(3));
        const std::int64_t n = shape.kv_len, by = random.below(n);
        std::vector<std::int64_t> order;
        for (std::int64_t i = 0; i < n; ++i) order.push_back((i + by) % n);
        ForwardInputs turned = inputs;
        turned.query = take(inputs.query, 2, order);
        turned.key = take(*inputs.key, 2, order);
        turned.value = take(*inputs.value, 2, order);
        const ForwardResult a = forward(inputs, mechanism, {{"ring_radius", 2}}),
                            b = forward(turned, mechanism, {{"ring_radius", 2}});
        CHECK(agree(b.output, take(a.output, 2, order)));
        CHECK(agree(extra(b, "hub_output"), extra(a, "hub_output")));
    });
}

TEST_CASE("star-attention: the mean is an external hub") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        ForwardInputs outside = inputs;
        outside.extra = {
            {"hub_query", means(inputs.query)}, {"hub_key", means(*inputs.key)}, {"hub_value", means(*inputs.value)}};
        const ForwardResult a = forward(inputs, mechanism, {{"hub_source", "mean"}}),
                            b = forward(outside, mechanism, {{"hub_source", "external"}});
        CHECK(agree(a, b));
        CHECK(agree(extra(a, "hub_output"), extra(b, "hub_output")));
        CHECK(agree(extra(a, "hub_lse"), extra(b, "hub_lse")));
    });
}

TEST_CASE("star-attention: hubs see everything") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = with_hubs(random, make_inputs(random, shape), shape, 3);
        ForwardInputs joint;
        joint.query = inputs.extra[0].second;
        joint.key = joined(*inputs.key, inputs.extra[1].second, 2);
        joint.value = joined(*inputs.value, inputs.extra[2].second, 2);
        const ForwardResult got = forward(inputs, mechanism), full = forward(joint, "standard-mha");
        CHECK(agree(extra(got, "hub_output"), full.output));
        CHECK(agree(extra(got, "hub_lse"), *full.lse));
    });
}

TEST_CASE("star-attention: private keys merge") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        ForwardInputs with = inputs;
        with.extra = {{"private_key", normal(random, {shape.batch, shape.kv_heads, shape.q_len, shape.head_dim})},
                      {"private_value", normal(random, {shape.batch, shape.kv_heads, shape.q_len, shape.value_dim})}};
        ForwardInputs alone;
        alone.query = inputs.query, alone.key = with.extra[0].second, alone.value = with.extra[1].second;
        const NamedValues options{{"num_hubs", 0}};
        const Partial both = merged(forward(inputs, mechanism, options),
                                    forward(alone, mechanism, {{"num_hubs", 0}, {"ring_radius", 0}}));
        const ForwardResult got = forward(with, mechanism, options);
        CHECK(agree(values(got.output), both.output));
        CHECK(agree(values(*got.lse), both.lse));
    });
}

TEST_CASE("star-attention: anchored blocks") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t n = shape.kv_len;
        const ForwardResult full = forward(inputs, "standard-mha", {{"causal", true}});
        const auto anchored = [&](NamedValues options) {
            options.emplace_back("mode", "anchor");
            options.emplace_back("causal", true);
            return forward(inputs, mechanism, options);
        };
        CHECK(agree(anchored({{"block_size", n}}), full));
        const std::int64_t context = random.below(n), block = 1 + random.below(6);
        const ForwardResult some =
            anchored({{"context_length", context}, {"block_size", block}, {"anchor_size", 1 + random.below(block)}});
        CHECK(agree(take(some.output, 2, range(context, n)), take(full.output, 2, range(context, n))));
        // Without an anchor every block of the context is alone.
        const ForwardResult blocks =
            anchored({{"context_length", n / block * block}, {"block_size", block}, {"anchor_size", -1}});
        for (std::int64_t first = 0; first + block <= n; first += block) {
            ForwardInputs part;
            part.query = take(inputs.query, 2, range(first, first + block));
            part.key = take(*inputs.key, 2, range(first, first + block));
            part.value = take(*inputs.value, 2, range(first, first + block));
            CHECK(agree(take(blocks.output, 2, range(first, first + block)),
                        forward(part, "standard-mha", {{"causal", true}}).output));
        }
    });
}

TEST_CASE("star-attention: rows of anchored blocks and hosts") {
    const std::int64_t n = 37;
    for (const std::int64_t b : {3, 8})
        for (const std::int64_t a : {1, 3}) {
            const KeySets sets(mechanism, {{"mode", "anchor"}, {"causal", true}, {"block_size", b}, {"anchor_size", a}},
                               1, n, n);
            for (std::int64_t p = 0; p < n; ++p)
                CHECK(static_cast<std::int64_t>(sets.row(0, p).size()) == p % b + 1 + (p >= b ? a : 0));
        }
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues options{
            {"mode", "anchor"}, {"causal", true}, {"context_length", random.below(shape.kv_len)}, {"block_size", 3}};
        const ForwardResult one = forward(inputs, mechanism, options);
        for (const std::int64_t hosts : {2, 3, 50}) {
            NamedValues split = options;
            split.emplace_back("num_hosts", hosts);
            CHECK(agree(forward(inputs, mechanism, split), one));
        }
    });
}

TEST_CASE("star-attention: rejects hubs") {
    Random random(1);
    const Shape shape{1, 2, 2, 9, 9, 8, 8};
    const ForwardInputs inputs = make_inputs(random, shape), outside = with_hubs(random, inputs, shape, 3);
    rejects(inputs, mechanism, {{"hub_source", "mean"}, {"num_hubs", 2}}, {"\"num_hubs\" is 2", "mean", "accepted: 1"});
    rejects(outside, mechanism, {{"num_hubs", 2}}, {"\"num_hubs\" is 2", "3 rows", "accepted: 3"});
    rejects(inputs, mechanism, {{"hub_source", "external"}}, {"0 of hub_query", "accepted: all three"});
    ForwardInputs some = outside;
    some.extra.erase(some.extra.begin());
    rejects(some, mechanism, {}, {"2 of hub_query", "accepted: all three"});
    for (const char* source : {"tokens", "mean"})
        rejects(outside, mechanism, {{"hub_source", source}}, {"\"hub_source\" is ", source, "accepted: external"});
    rejects(inputs, mechanism, {{"hub_source", "mean"}, {"causal", true}}, {"\"causal\" is true", "mean", "tokens"});
    rejects(outside, mechanism, {{"causal", true}}, {"\"causal\" is true", "external", "tokens"});
}

TEST_CASE("star-attention: rejects anchors") {
    Random random(2);
    const Shape shape{1, 2, 2, 9, 9, 8, 8};
    const ForwardInputs inputs = make_inputs(random, shape);
    const NamedValues anchor{{"mode", "anchor"}, {"causal", true}};
    const auto with = [&](const char* option, int value) {
        NamedValues options = anchor;
        options.emplace_back(option, value);
        return options;
    };
    rejects(inputs, mechanism, {{"mode", "anchor"}},
            {"\"mode\" is anchor", "\"causal\" is false", "accepted: causal true"});
    NamedValues wide = with("block_size", 4);
    wide.emplace_back("anchor_size", 5);
    rejects(inputs, mechanism, wide, {"\"anchor_size\" is 5", "4 keys", "accepted: -1 to 4"});
    rejects(inputs, mechanism, with("context_length", 10), {"\"context_length\" is 10", "9 keys", "accepted: 0 to 9"});
    rejects(with_hubs(random, inputs, shape, 2), mechanism, anchor, {"\"mode\" is anchor", "hub tensors"});
    rejects(make_inputs(random, {1, 2, 2, 9, 6, 8, 8}), mechanism, {}, {"9 queries", "-3 to 5", "6 keys", "accepted"});
}

TEST_CASE("star-attention: rejects private keys without values") {
    Random random(3);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    inputs.extra = {{"private_key", normal(random, {1, 2, 9, 8})}};
    rejects(inputs, mechanism, {}, {"private_key is given without private_value", "both or neither"});
    inputs.extra.emplace_back("private_value", normal(random, {1, 2, 9, 8}));
    rejects(inputs, mechanism, {{"mode", "anchor"}, {"causal", true}},
            {"\"mode\" is anchor", "private_key", "accepted"});
}
