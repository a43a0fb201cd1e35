// SPDX-License-Identifier: Apache-2.0
// strided-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "strided-attention";

// Queries, keys and values of the residue class r.
ForwardInputs class_inputs(const ForwardInputs& inputs, std::int64_t r, std::int64_t stride) {
    ForwardInputs part;
    part.query = every(inputs.query, 2, r, stride);
    part.key = every(*inputs.key, 2, r, stride);
    part.value = every(*inputs.value, 2, r, stride);
    return part;
}

}  // namespace

TEST_CASE("strided-attention: classes are attention of their own") {
    on_random_shapes({.group = 2, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            CHECK(agree(forward(inputs, mechanism, {{"stride", 1}, {"causal", causal}}),
                        forward(inputs, "standard-mha", {{"causal", causal}})));
            const std::int64_t stride = 2 + random.below(9);
            const ForwardResult got = forward(inputs, mechanism, {{"stride", stride}, {"causal", causal}});
            for (std::int64_t r = 0; r < std::min(stride, shape.kv_len); ++r) {
                const ForwardResult own =
                    forward(class_inputs(inputs, r, stride), "standard-mha", {{"causal", causal}});
                CHECK(agree(every(got.output, 2, r, stride), own.output));
                CHECK(agree(every(*got.lse, 2, r, stride), *own.lse));
            }
        }
    });
}

TEST_CASE("strided-attention: absolute phases join to full attention") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t stride = 1 + random.below(5);
        ForwardResult sum = forward(inputs, mechanism, {{"stride", stride}, {"phase", "absolute"}});
        for (std::int64_t offset = 1; offset < stride; ++offset) {
            const Partial both = merged(
                sum, forward(inputs, mechanism, {{"stride", stride}, {"phase", "absolute"}, {"offset", offset}}));
            std::copy(both.output.begin(), both.output.end(), sum.output.as<float>());
            std::copy(both.lse.begin(), both.lse.end(), sum.lse->as<float>());
        }
        CHECK(agree(sum, forward(inputs, "standard-mha")));
    });
}

TEST_CASE("strided-attention: number of pairs") {
    for (const std::int64_t n : {17, 24, 50})
        for (const std::int64_t stride : {1, 3, 5, 8}) {
            const std::int64_t a = n / stride, rest = n % stride;
            CHECK(KeySets(mechanism, {{"stride", stride}}, 1, n, n).pairs() ==
                  rest * (a + 1) * (a + 1) + (stride - rest) * a * a);
            std::int64_t causal = 0;
            for (std::int64_t i = 0; i < n; ++i) causal += i / stride + 1;
            CHECK(KeySets(mechanism, {{"stride", stride}, {"causal", true}}, 1, n, n).pairs() == causal);
        }
}

TEST_CASE("strided-attention: taps are a dilated window") {
    on_random_shapes({.group = 2, .length = 90}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t stride = 1 + random.below(6), taps = 1 + random.below(5);
        const bool causal = random.below(2) == 1;
        CHECK(agree(forward(inputs, mechanism, {{"stride", stride}, {"max_taps", taps}, {"causal", causal}}),
                    forward(inputs, "longformer-attention",
                            {{"window_size", taps}, {"dilation", stride}, {"causal", causal}})));
    });
}

TEST_CASE("strided-attention: permutations inside classes") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t n = shape.kv_len, stride = 2 + random.below(4);
        std::vector<std::int64_t> order(static_cast<std::size_t>(n));
        for (std::int64_t r = 0; r < std::min(stride, n); ++r) {
            const std::vector<std::int64_t> members = shuffled(random, (n - r + stride - 1) / stride);
            for (std::size_t at = 0; at < members.size(); ++at)
                order[static_cast<std::size_t>(r) + at * static_cast<std::size_t>(stride)] = r + members[at] * stride;
        }
        ForwardInputs moved;
        moved.query = take(inputs.query, 2, order);
        moved.key = take(*inputs.key, 2, order);
        moved.value = take(*inputs.value, 2, order);
        CHECK(agree(forward(moved, mechanism, {{"stride", stride}}).output,
                    take(forward(inputs, mechanism, {{"stride", stride}}).output, 2, order)));
    });
}

TEST_CASE("strided-attention: weights and rows agree") {
    // With weights the pattern is one run over all keys, without them stages.
    on_random_shapes({.group = 3, .length = 150, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* phase : {"relative", "absolute"})
            for (const std::int64_t local : {0, 4})
                for (const std::int64_t taps : {0, 2}) {
                    const NamedValues options{
                        {"stride", 4}, {"phase", phase}, {"local_window", local}, {"max_taps", taps}};
                    CHECK(agree(forward(inputs, mechanism, options), forward(inputs, mechanism, options, true)));
                }
    });
}

TEST_CASE("strided-attention: rejects strides and offsets") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    rejects(inputs, mechanism, {{"stride", -1}}, {"\"stride\"", "-1", "accepted"});
    rejects(inputs, mechanism, {{"stride", 4}, {"phase", "absolute"}, {"offset", 4}},
            {"\"offset\" is 4", "stride is 4", "accepted: 0 to 3"});
    rejects(inputs, mechanism, {{"phase", "absolute"}, {"offset", 3}}, {"\"offset\" is 3", "stride is 3"});
    rejects(inputs, mechanism, {{"stride", 4}, {"offset", 1}}, {"\"offset\" is 1", "relative", "accepted: 0"});
}
