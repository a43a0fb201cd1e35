// SPDX-License-Identifier: Apache-2.0
// Identities of causal-self-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* causal = "causal-self-attention";

ForwardInputs slice(const ForwardInputs& all, std::int64_t first, std::int64_t end) {
    ForwardInputs part;
    part.query = take(all.query, 2, range(first, end));
    part.key = take(*all.key, 2, range(0, end));
    part.value = take(*all.value, 2, range(0, end));
    return part;
}

}  // namespace

TEST_CASE("causal-self-attention: causality") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, causal);
        const std::int64_t row = random.below(shape.q_len), position = row + shape.kv_len - shape.q_len;
        ForwardInputs changed = inputs;
        changed.key = attend::contiguous_copy(mapped(*inputs.key, [](float x) { return x; })).value();
        changed.value = mapped(*inputs.value, [](float x) { return x; });
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.kv_heads; ++h)
                for (std::int64_t j = std::max<std::int64_t>(0, position + 1); j < shape.kv_len; ++j) {
                    for (std::int64_t d = 0; d < shape.head_dim; ++d) at(*changed.key, b, h, j, d) = random.normal();
                    for (std::int64_t d = 0; d < shape.value_dim; ++d) at(*changed.value, b, h, j, d) = random.normal();
                }
        const ForwardResult after = forward(changed, causal);
        CHECK(same_bits(take(before.output, 2, range(0, row + 1)), take(after.output, 2, range(0, row + 1))));
        CHECK(same_bits(take(*before.lse, 2, range(0, row + 1)), take(*after.lse, 2, range(0, row + 1))));
    });
}

TEST_CASE("causal-self-attention: first row") {
    on_random_shapes({.same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult result = forward(inputs, causal);
        CHECK(agree(take(result.output, 2, {0}), take(*inputs.value, 2, {0})));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h) {
                double dot = 0;
                for (std::int64_t d = 0; d < shape.head_dim; ++d)
                    dot += static_cast<double>(at(inputs.query, b, h, 0, d)) *
                           static_cast<double>(at(*inputs.key, b, h, 0, d));
                CHECK(static_cast<double>(at(*result.lse, b, h, 0)) ==
                      Approx(dot / std::sqrt(static_cast<double>(shape.head_dim))).epsilon(1e-5).margin(1e-5));
            }
    });
}

TEST_CASE("causal-self-attention: zero queries") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.query = filled(inputs.query.shape, 0.0f);
        for (const std::int64_t window : {std::int64_t{-1}, std::int64_t{5}}) {
            const ForwardResult result =
                forward(inputs, causal, window < 0 ? NamedValues{} : NamedValues{{"window_left", window}});
            Tensor mean = filled(result.output.shape, 0.0f), lse = filled(result.lse->shape, 0.0f);
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t h = 0; h < shape.heads; ++h)
                    for (std::int64_t i = 0; i < shape.q_len; ++i) {
                        const std::int64_t seen = window < 0 ? i + 1 : std::min(window + 1, i + 1);
                        at(lse, b, h, i) = static_cast<float>(std::log(static_cast<double>(seen)));
                        for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                            double sum = 0;
                            for (std::int64_t j = i + 1 - seen; j <= i; ++j)
                                sum += static_cast<double>(at(*inputs.value, b, h, j, d));
                            at(mean, b, h, i, d) = static_cast<float>(sum / static_cast<double>(seen));
                        }
                    }
            CHECK(agree(result.output, mean));
            CHECK(agree(*result.lse, lse));
        }
    });
}

TEST_CASE("causal-self-attention: decode and chunked prefill") {
    on_random_shapes({.group = 3}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult whole = forward(inputs, causal);
        for (std::int64_t first = 0; first < shape.q_len;) {
            const std::int64_t size = first % 2 == 0 ? 1 : 1 + random.below(9);
            const std::int64_t end = std::min(first + size, shape.q_len);
            const ForwardResult part = forward(slice(inputs, first, end), causal);
            CHECK(agree(part.output, take(whole.output, 2, range(first, end))));
            CHECK(agree(*part.lse, take(*whole.lse, 2, range(first, end))));
            first = end;
        }
    });
}

TEST_CASE("causal-self-attention: past and future") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult past = forward(inputs, causal), all = forward(inputs, "standard-mha");
        inputs.mask = bools({1, 1, shape.q_len, shape.kv_len}, [](const auto& at) { return at[3] > at[2]; });
        const Partial both = merged(past, forward(inputs, "standard-mha"));
        CHECK(agree(both.output, values(all.output)));
        CHECK(agree(both.lse, values(*all.lse)));
    });
}

TEST_CASE("causal-self-attention: widest prefix and window") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        CHECK(agree(forward(inputs, causal, {{"prefix_length", shape.kv_len}}), forward(inputs, "standard-mha")));
        const ForwardResult plain = forward(inputs, causal);
        CHECK(agree(forward(inputs, causal, {{"window_left", shape.kv_len - 1}}), plain));
        CHECK(agree(forward(inputs, causal, {{"window_size", shape.kv_len + 7}}), plain));
    });
}

TEST_CASE("causal-self-attention: reversal") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        std::vector<std::int64_t> back = range(0, shape.q_len);
        std::reverse(back.begin(), back.end());
        ForwardInputs turned;
        turned.query = take(inputs.query, 2, back);
        turned.key = take(*inputs.key, 2, back);
        turned.value = take(*inputs.value, 2, back);
        turned.mask = bools({1, 1, shape.q_len, shape.kv_len}, [](const auto& at) { return at[3] >= at[2]; });
        const ForwardResult forwards = forward(inputs, causal), backwards = forward(turned, "standard-mha");
        CHECK(agree(take(backwards.output, 2, back), forwards.output));
        CHECK(agree(take(*backwards.lse, 2, back), *forwards.lse));
    });
}

TEST_CASE("causal-self-attention: rejects a right window, false and prefixes that do not fit") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {2, 2, 2, 9, 9, 8, 8});
    rejects(inputs, causal, {{"window_right", 1}}, {"window_right", "1", "0"});
    rejects(inputs, causal, {{"causal", false}}, {"causal", "false", "true"});
    rejects(inputs, causal, {{"prefix_length", 10}}, {"prefix_length", "10", "9"});
    rejects(inputs, causal, {{"prefix_length", -1}}, {"prefix_length", "-1", "0"});
    rejects(inputs, causal, {{"prefix_length", attend::Json(attend::Json::Array{1, 2, 3})}},
            {"prefix_length", "3", "2"});
}
