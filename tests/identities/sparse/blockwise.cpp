// SPDX-License-Identifier: Apache-2.0
// blockwise-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "blockwise-attention";
using Rows = std::vector<std::vector<std::int64_t>>;

attend::Json json(const Rows& rows) {
    attend::Json list = attend::Json::array();
    for (const auto& row : rows) {
        attend::Json entries = attend::Json::array();
        for (const std::int64_t entry : row) entries.push(entry);
        list.push(std::move(entries));
    }
    return list;
}
attend::Json json(const std::vector<std::int64_t>& row) { return json(Rows{row}).as_array()[0]; }

// Softmax by two passes in double precision, over all keys.
void check_two_passes(const ForwardInputs& inputs, const ForwardResult& got, double scale, double tolerance) {
    const auto& q = inputs.query.shape;
    const std::int64_t group = q[1] / inputs.key->shape[1], keys = inputs.key->shape[2], width = inputs.value->shape[3];
    const double size = largest(values(*inputs.value));
    double worst = 0.0;
    for (std::int64_t b = 0; b < q[0]; ++b)
        for (std::int64_t h = 0; h < q[1]; ++h)
            for (std::int64_t i = 0; i < q[2]; ++i) {
                std::vector<double> weight(static_cast<std::size_t>(keys));
                double most = -std::numeric_limits<double>::infinity(), sum = 0.0;
                for (std::int64_t j = 0; j < keys; ++j) {
                    double& score = weight[static_cast<std::size_t>(j)] = 0.0;
                    for (std::int64_t d = 0; d < q[3]; ++d)
                        score += scale * static_cast<double>(at(inputs.query, b, h, i, d)) *
                                 static_cast<double>(at(*inputs.key, b, h / group, j, d));
                    most = std::max(most, score);
                }
                for (double& x : weight) sum += x = std::exp(x - most);
                for (std::int64_t d = 0; d < width; ++d) {
                    double wanted = 0.0;
                    for (std::int64_t j = 0; j < keys; ++j)
                        wanted += weight[static_cast<std::size_t>(j)] / sum *
                                  static_cast<double>(at(*inputs.value, b, h / group, j, d));
                    const double now = std::abs(wanted - static_cast<double>(at(got.output, b, h, i, d))) / size;
                    worst = std::isfinite(now) ? std::max(worst, now) : 1.0;
                }
                const double lse = most + std::log(sum);
                CHECK(std::abs(lse - static_cast<double>(at(*got.lse, b, h, i))) <= 1e-5 * (1.0 + std::abs(lse)));
            }
    CHECK(worst <= tolerance);
}

}  // namespace

TEST_CASE("blockwise-attention: two passes") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
        const ForwardResult usual = forward(inputs, mechanism);
        check_two_passes(inputs, usual, scale, 2e-6);
        for (const auto& [queries, keys] :
             std::initializer_list<std::pair<int, int>>{{1, 1}, {2, 3}, {7, 13}, {31, 1}, {1, 127}, {1000, 1000}}) {
            const ForwardResult chunked = forward(inputs, mechanism, {{"query_chunk", queries}, {"key_chunk", keys}});
            check_two_passes(inputs, chunked, scale, 2e-6);
            CHECK(agree(chunked, usual, 1e-6));
        }
    });
}

TEST_CASE("blockwise-attention: shifted scores") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, mechanism, {{"key_chunk", 16}});
        inputs.bias = normal(random, {1, 1, shape.q_len, 1});
        const ForwardResult after = forward(inputs, mechanism, {{"key_chunk", 16}});
        CHECK(agree(after.output, before.output));
        for (std::int64_t h = 0; h < shape.heads; ++h)
            for (std::int64_t i = 0; i < shape.q_len; ++i) {
                const float wanted = at(*before.lse, 0, h, i) + at(*inputs.bias, 0, 0, i, 0);
                CHECK(std::abs(at(*after.lse, 0, h, i) - wanted) <= 1e-5f * (1.0f + std::abs(wanted)));
            }
    });
}

TEST_CASE("blockwise-attention: large scores") {
    on_random_shapes({.width = 6}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        // Whole numbers: scores of some ten thousands without rounding.
        const auto whole = [&](float) { return static_cast<float>(random.below(101) - 50); };
        inputs.query = mapped(inputs.query, whole);
        inputs.key = mapped(*inputs.key, whole);
        for (const int chunk : {1, 5, 0})
            check_two_passes(inputs, forward(inputs, mechanism, {{"scale", 1.0}, {"key_chunk", chunk}}), 1.0, 2e-6);
    });
}

TEST_CASE("blockwise-attention: one block") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            const ForwardResult full = forward(inputs, mechanism, {{"causal", causal}});
            for (const char* pattern : {"diagonal", "permutation"})
                CHECK(agree(forward(inputs, mechanism, {{"pattern", pattern}, {"causal", causal}}), full));
        }
    });
}

TEST_CASE("blockwise-attention: blocks are attention of their own") {
    on_random_shapes({.group = 2, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t n = shape.kv_len, blocks = 1 + random.below(std::min<std::int64_t>(n, 7));
        Rows rows;
        for (std::int64_t h = 0; h < shape.heads; ++h) rows.push_back(shuffled(random, blocks));
        const ForwardResult got = forward(
            inputs, mechanism, {{"pattern", "permutation"}, {"num_blocks", blocks}, {"permutations", json(rows)}});
        for (std::int64_t h = 0; h < shape.heads; ++h)
            for (std::int64_t t = 0; t < blocks; ++t) {
                const auto block = [&](std::int64_t at) { return range(at * n / blocks, (at + 1) * n / blocks); };
                const auto keys = block(rows[static_cast<std::size_t>(h)][static_cast<std::size_t>(t)]);
                const std::int64_t kv_head = h / (shape.heads / shape.kv_heads);
                ForwardInputs own;
                own.query = take(take(inputs.query, 1, {h}), 2, block(t));
                own.key = take(take(*inputs.key, 1, {kv_head}), 2, keys);
                own.value = take(take(*inputs.value, 1, {kv_head}), 2, keys);
                const ForwardResult wanted = forward(own, "standard-mha");
                CHECK(agree(take(take(got.output, 1, {h}), 2, block(t)), wanted.output));
                CHECK(agree(take(take(*got.lse, 1, {h}), 2, block(t)), *wanted.lse));
            }
    });
}

TEST_CASE("blockwise-attention: shifts are permutations") {
    Random random(23);
    const ForwardInputs inputs = make_inputs(random, {2, 3, 3, 50, 50, 8, 8});
    const NamedValues base{{"pattern", "permutation"}, {"num_blocks", 4}};
    const auto with = [&](const char* name, attend::Json value) {
        NamedValues options = base;
        options.emplace_back(name, std::move(value));
        return forward(inputs, mechanism, options);
    };
    CHECK(agree(with("block_shifts", json({0, 1, 2})), forward(inputs, mechanism, base)));
    CHECK(agree(with("block_shifts", json({-1, 5, 400})),
                with("permutations", json(Rows{{3, 0, 1, 2}, {1, 2, 3, 0}, {0, 1, 2, 3}}))));
    CHECK(agree(with("block_shifts", json({0, 0, 0})),
                forward(inputs, mechanism, {{"pattern", "diagonal"}, {"num_blocks", 4}})));
}

TEST_CASE("blockwise-attention: all shifts join to full attention") {
    Random random(29);
    for (const std::int64_t blocks : {2, 3, 5}) {
        const std::int64_t n = 10 + random.below(60);
        ForwardInputs one = make_inputs(random, {2, 1, 1, n, n, 12, 9});
        ForwardInputs many;
        const std::vector<std::int64_t> same(static_cast<std::size_t>(blocks), 0);
        many.query = take(one.query, 1, same);
        many.key = take(*one.key, 1, same);
        many.value = take(*one.value, 1, same);
        const ForwardResult got = forward(many, mechanism, {{"pattern", "permutation"}, {"num_blocks", blocks}});
        const auto head = [&](std::int64_t h) {
            ForwardResult part;
            part.output = take(got.output, 1, {h});
            part.lse = take(*got.lse, 1, {h});
            return part;
        };
        ForwardResult sum = head(0);
        for (std::int64_t h = 1; h < blocks; ++h) {
            const Partial both = merged(sum, head(h));
            std::copy(both.output.begin(), both.output.end(), sum.output.as<float>());
            std::copy(both.lse.begin(), both.lse.end(), sum.lse->as<float>());
        }
        CHECK(agree(sum, forward(one, "standard-mha")));
    }
}

TEST_CASE("blockwise-attention: number of pairs") {
    Random random(31);
    for (const std::int64_t n : {24, 31, 60})
        for (const std::int64_t blocks : {1, 3, 4, 6}) {
            const std::vector<std::int64_t> order = shuffled(random, blocks);
            const KeySets sets(
                mechanism, {{"pattern", "permutation"}, {"num_blocks", blocks}, {"permutations", json(Rows{order})}}, 1,
                n, n);
            std::int64_t wanted = 0;
            const auto size = [&](std::int64_t t) { return (t + 1) * n / blocks - t * n / blocks; };
            for (std::int64_t t = 0; t < blocks; ++t) wanted += size(t) * size(order[static_cast<std::size_t>(t)]);
            CHECK(sets.pairs() == wanted);
            if (n % blocks == 0) CHECK(wanted == n * n / blocks);
        }
}

TEST_CASE("blockwise-attention: rejects lists that are no permutations, options of other patterns, rows off the axis") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    const auto permuted = [](Rows rows, int blocks = 3) {
        return NamedValues{{"pattern", "permutation"}, {"num_blocks", blocks}, {"permutations", json(rows)}};
    };
    rejects(inputs, mechanism, permuted({{0, 1, 1}, {0, 1, 2}}), {"permutations", "row 0", "1"});
    rejects(inputs, mechanism, permuted({{0, 1, 2}, {0, 3, 2}}), {"permutations", "row 1", "3"});
    rejects(inputs, mechanism, permuted({{0, 1}, {1, 0}}), {"permutations", "2", "3"});
    rejects(inputs, mechanism, permuted({{0, 1, 2}}), {"permutations", "1", "2 query heads"});
    rejects(inputs, mechanism, permuted({{0, 1, 2}, {0, 1}}), {"permutations", "one length"});
    rejects(inputs, mechanism, {{"pattern", "permutation"}, {"num_blocks", 3}, {"block_shifts", json(std::vector<std::int64_t>{1})}},
            {"block_shifts", "1", "2 query heads"});
    rejects(inputs, mechanism, {{"pattern", "diagonal"}, {"num_blocks", 10}}, {"num_blocks", "10", "9"});
    rejects(inputs, mechanism, {{"num_blocks", 2}}, {"num_blocks", "2", "full"});
    for (const char* pattern : {"full", "diagonal"}) {
        rejects(inputs, mechanism, {{"pattern", pattern}, {"block_shifts", json({0, 0})}}, {"block_shifts", pattern});
        rejects(inputs, mechanism, {{"pattern", pattern}, {"permutations", json(Rows{{0}, {0}})}},
                {"permutations", pattern});
    }
    rejects(make_inputs(random, {1, 2, 2, 9, 8, 8, 8}), mechanism, {{"pattern", "diagonal"}}, {"9", "8"});
    rejects(inputs, mechanism, {{"query_chunk", -1}}, {"query_chunk", "-1"});
    // Pattern full has no such rule, and without keys there are no blocks to count.
    const ForwardInputs more_queries = make_inputs(random, {1, 2, 2, 9, 8, 8, 8});
    CHECK(agree(forward(more_queries, mechanism), forward(more_queries, "standard-mha")));
    const ForwardResult none =
        forward(make_inputs(random, {1, 2, 2, 9, 0, 8, 8}), mechanism, {{"pattern", "diagonal"}, {"num_blocks", 4}});
    for (const float x : values(none.output)) CHECK(x == 0.0f);
}
