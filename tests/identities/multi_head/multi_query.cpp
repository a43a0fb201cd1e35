// SPDX-License-Identifier: Apache-2.0
// Identities of multi-query-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* shared = "multi-query-attention";

void on_shapes(const std::function<void(Random&, const Shape&)>& body, bool square = false) {
    on_random_shapes({.square = square, .same_width = false}, [&](Random& random, Shape shape) {
        shape.heads = 1 + random.below(7);
        shape.kv_heads = 1;
        INFO("heads " << shape.heads);
        body(random, shape);
    });
}

}  // namespace

TEST_CASE("multi-query-attention: one long head") {
    on_shapes([](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        ForwardInputs flat = inputs;
        const std::int64_t rows = shape.heads * shape.q_len;
        flat.query = inputs.query.view({shape.batch, 1, rows, shape.head_dim},
                                       {rows * shape.head_dim, rows * shape.head_dim, shape.head_dim, 1});
        const ForwardResult one = forward(inputs, shared), other = forward(flat, "standard-mha");
        CHECK(agree(values(one.output), values(other.output)));
        CHECK(agree(values(*one.lse), values(*other.lse)));
    });
}

TEST_CASE("multi-query-attention: grouped and standard attention") {
    on_shapes([](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues options = {{"causal", true}};
        const ForwardResult one = forward(inputs, shared, options);
        CHECK(agree(one, forward(inputs, "grouped-query-attention", options)));
        ForwardInputs wide = inputs;
        const std::vector<std::int64_t> copies(static_cast<std::size_t>(shape.heads), 0);
        wide.key = take(*inputs.key, 1, copies);
        wide.value = take(*inputs.value, 1, copies);
        CHECK(agree(one, forward(wide, "standard-mha", options)));
        // Keys and values without an axis of heads, under queries with one and packed ones.
        const auto plain = [&](const Tensor& from) {
            return from.view({from.shape[0], from.shape[2], from.shape[3]},
                             {from.strides[0], from.strides[2], from.strides[3]});
        };
        inputs.key = plain(*inputs.key);
        inputs.value = plain(*inputs.value);
        const ForwardResult three = forward(inputs, shared, options);
        CHECK(same_bits(three.output, one.output));
        CHECK(same_bits(*three.lse, *one.lse));
        inputs.query = packed_heads(inputs.query);
        attend::ForwardOptions call{shared, options};
        call.heads = shape.heads;
        const auto packed = service().forward(inputs, call);
        REQUIRE(packed);
        CHECK(agree(packed->output, packed_heads(one.output)));
    });
}

TEST_CASE("multi-query-attention: mean over heads") {
    on_shapes([](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult result = forward(inputs, shared, {}, true);
        Tensor mean = filled({shape.batch, 1, shape.q_len, shape.value_dim}, 0.0f), expected = filled(mean.shape, 0.0f);
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t i = 0; i < shape.q_len; ++i)
                for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                    double left = 0, right = 0;
                    for (std::int64_t h = 0; h < shape.heads; ++h)
                        left += static_cast<double>(at(result.output, b, h, i, d));
                    for (std::int64_t j = 0; j < shape.kv_len; ++j) {
                        double weight = 0;
                        for (std::int64_t h = 0; h < shape.heads; ++h)
                            weight += static_cast<double>(at(*result.scores, b, h, i, j));
                        right += weight * static_cast<double>(at(*inputs.value, b, 0, j, d));
                    }
                    at(mean, b, 0, i, d) = static_cast<float>(left / static_cast<double>(shape.heads));
                    at(expected, b, 0, i, d) = static_cast<float>(right / static_cast<double>(shape.heads));
                }
        CHECK(agree(mean, expected));
    });
}

TEST_CASE("multi-query-attention: shifted keys") {
    on_shapes([](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, shared);
        const Tensor u = normal(random, {shape.head_dim});
        Tensor key = take(*inputs.key, 1, {0});
        for (std::int64_t at_b = 0; at_b < shape.batch; ++at_b)
            for (std::int64_t j = 0; j < shape.kv_len; ++j)
                for (std::int64_t d = 0; d < shape.head_dim; ++d) at(key, at_b, 0, j, d) += u.as<float>()[d];
        inputs.key = key;
        const ForwardResult after = forward(inputs, shared);
        CHECK(agree(after.output, before.output));
        Tensor lse = take(*before.lse, 1, range(0, shape.heads));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    double dot = 0;
                    for (std::int64_t d = 0; d < shape.head_dim; ++d)
                        dot +=
                            static_cast<double>(at(inputs.query, b, h, i, d)) * static_cast<double>(u.as<float>()[d]);
                    at(lse, b, h, i) += static_cast<float>(dot / std::sqrt(static_cast<double>(shape.head_dim)));
                }
        CHECK(agree(*after.lse, lse));
        inputs.query = take(inputs.query, 1, {0, 0, 0});
        const ForwardResult same = forward(inputs, shared);
        CHECK(same_bits(take(same.output, 1, {0}), take(same.output, 1, {1})));
        CHECK(same_bits(take(same.output, 1, {0}), take(same.output, 1, {2})));
    });
}

TEST_CASE("multi-query-attention: decode and chunked prefill") {
    on_shapes(
        [](Random& random, const Shape& shape) {
            const ForwardInputs inputs = make_inputs(random, shape);
            const NamedValues options = {{"causal", true}};
            const ForwardResult whole = forward(inputs, shared, options);
            for (std::int64_t first = 0; first < shape.q_len;) {
                const std::int64_t end =
                    first < shape.q_len / 2 ? std::min(first + 1 + random.below(20), shape.q_len) : first + 1;
                ForwardInputs part;
                part.query = take(inputs.query, 2, range(first, end));
                part.key = take(*inputs.key, 2, range(0, end));
                part.value = take(*inputs.value, 2, range(0, end));
                const ForwardResult rows = forward(part, shared, options);
                CHECK(agree(rows.output, take(whole.output, 2, range(first, end))));
                CHECK(agree(*rows.lse, take(*whole.lse, 2, range(first, end))));
                first = end;
            }
        },
        true);
}

TEST_CASE("multi-query-attention: rejects several key heads and mixed ranks") {
    Random random(1);
    rejects(make_inputs(random, {1, 4, 2, 5, 5, 8, 8}), shared, {}, {"2", "1"});
    ForwardInputs inputs = make_inputs(random, {1, 4, 1, 5, 5, 8, 8});
    rejects(inputs, shared, {{"kv_heads", 2}}, {"kv_heads", "2", "1"});
    inputs.key = normal(random, {1, 5, 8});
    rejects(inputs, shared, {}, {"rank 3", "rank 4"});
}
