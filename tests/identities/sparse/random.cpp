// SPDX-License-Identifier: Apache-2.0
// random-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "random-attention";

}  // namespace

TEST_CASE("random-attention: check values") {
    const KeySets causal(mechanism, {{"num_keys", 4}, {"causal", true}}, 2, 32, 32);
    CHECK(causal.row(0, 0) == Keys{0});
    CHECK(causal.row(0, 3) == Keys{0, 1, 2, 3});
    CHECK(causal.row(0, 4) == Keys{0, 1, 2, 4});
    CHECK(causal.row(0, 5) == Keys{0, 2, 3, 4});
    CHECK(causal.row(0, 31) == Keys{13, 17, 21, 27});
    const KeySets all(mechanism, {{"num_keys", 4}}, 2, 32, 32);
    CHECK(all.row(0, 0) == Keys{13, 15, 17, 23});
    CHECK(all.row(0, 1) == Keys{9, 10, 14, 15});
    CHECK(all.row(0, 31) == Keys{13, 17, 21, 27});
    CHECK(all.row(1, 0) == Keys{11, 19, 24, 30});
}

TEST_CASE("random-attention: all keys, one key") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            const ForwardResult full = forward(inputs, "standard-mha", {{"causal", causal}});
            for (const std::int64_t more : {0, 5})
                CHECK(agree(forward(inputs, mechanism, {{"num_keys", shape.kv_len + more}, {"causal", causal}}), full));
            CHECK(agree(
                forward(inputs, mechanism, {{"num_keys", shape.kv_len}, {"causal", causal}, {"include_self", true}}),
                full));
        }
        const ForwardResult one = forward(inputs, mechanism, {{"num_keys", 1}}, true);
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    std::int64_t key = 0;
                    while (at(*one.scores, b, h, i, key) == 0.0f) ++key;
                    for (std::int64_t c = 0; c < shape.value_dim; ++c)
                        CHECK(at(one.output, b, h, i, c) ==
                              at(*inputs.value, b, h * shape.kv_heads / shape.heads, key, c));
                }
    });
}

TEST_CASE("random-attention: sizes of sets") {
    for (const bool causal : {false, true})
        for (const bool self : {false, true})
            for (const std::int64_t k : {1, 3, 8, 50}) {
                const std::int64_t nq = 21, nk = 33;
                const KeySets sets(mechanism, {{"num_keys", k}, {"causal", causal}, {"include_self", self}}, 3, nq, nk);
                for (std::int64_t h = 0; h < 3; ++h)
                    for (std::int64_t i = 0; i < nq; ++i) {
                        const std::int64_t p = i + nk - nq, m = causal ? p + 1 : nk;
                        const Keys keys = sets.row(h, i);
                        CHECK(static_cast<std::int64_t>(keys.size()) == std::min(k, m));
                        CHECK(keys.back() < m);
                        if (self) CHECK(std::count(keys.begin(), keys.end(), p) == 1);
                    }
            }
    // Neither threads nor the batch change a set, nor the length of other items.
    Random random(3);
    ForwardInputs inputs = make_inputs(random, {2, 4, 2, 60, 60, 8, 8});
    for (const std::int64_t g : {1, 4, 16}) {
        const NamedValues options{{"num_keys", 9}, {"query_block", g}};
        const ForwardResult two = run(service("auto", 2), inputs, mechanism, options, true);
        for (const int threads : {1, 7})
            CHECK(same_bits(run(service("auto", threads), inputs, mechanism, options, true).output, two.output));
        ForwardInputs alone = inputs;
        for (auto* tensor : {&*alone.key, &*alone.value, &alone.query}) *tensor = take(*tensor, 0, {1});
        CHECK(same_bits(forward(alone, mechanism, options).output, take(two.output, 0, {1})));
    }
}

TEST_CASE("random-attention: inclusion frequencies") {
    constexpr std::int64_t rows = 10000, m = 12, k = 5;
    const KeySets sets(mechanism, {{"num_keys", k}, {"seed", 9}}, 1, rows, m);
    std::vector<double> single(m, 0.0), pair(m * m, 0.0);
    for (std::int64_t i = 0; i < rows; ++i) {
        const Keys keys = sets.row(0, i);
        for (const std::int64_t a : keys) {
            single[static_cast<std::size_t>(a)] += 1;
            for (const std::int64_t b : keys) pair[static_cast<std::size_t>(a * m + b)] += 1;
        }
    }
    const auto near = [&](double count, double p) {
        const double sigma = std::sqrt(static_cast<double>(rows) * p * (1 - p));
        return std::abs(count - static_cast<double>(rows) * p) <= 4 * sigma;
    };
    for (std::int64_t a = 0; a < m; ++a) {
        CHECK(near(single[static_cast<std::size_t>(a)], static_cast<double>(k) / m));
        for (std::int64_t b = 0; b < a; ++b)
            CHECK(near(pair[static_cast<std::size_t>(a * m + b)],
                       static_cast<double>(k * (k - 1)) / static_cast<double>(m * (m - 1))));
    }
}

TEST_CASE("random-attention: unbiased partition function") {
    Random random(11);
    const std::int64_t m = 24, k = 6, seeds = 2000;
    ForwardInputs inputs = make_inputs(random, {1, 1, 1, 1, m, 8, 8});
    const double full = std::exp(static_cast<double>(values(*forward(inputs, "standard-mha").lse)[0]));
    double sum = 0, squares = 0;
    for (std::int64_t seed = 0; seed < seeds; ++seed) {
        const ForwardResult got = forward(inputs, mechanism, {{"num_keys", k}, {"seed", seed}});
        const double estimate =
            static_cast<double>(m) / static_cast<double>(k) * std::exp(static_cast<double>(values(*got.lse)[0]));
        sum += estimate, squares += estimate * estimate;
    }
    const double mean = sum / static_cast<double>(seeds);
    const double sigma = std::sqrt((squares / static_cast<double>(seeds) - mean * mean) / static_cast<double>(seeds));
    INFO("mean " << mean << ", full " << full << ", standard error " << sigma);
    CHECK(std::abs(mean - full) <= 4 * sigma);
}

TEST_CASE("random-attention: seeds and heads") {
    const auto sets = [](std::int64_t seed, bool per_head = true) {
        return KeySets(mechanism, {{"num_keys", 6}, {"seed", seed}, {"per_head", per_head}}, 3, 40, 40);
    };
    const KeySets zero = sets(0), again = sets(0), other = sets(1), shared = sets(0, false);
    CHECK(same_bits(zero.weights, again.weights));
    std::int64_t of_seeds = 0, of_heads = 0;
    for (std::int64_t i = 0; i < 40; ++i) {
        of_seeds += zero.row(0, i) != other.row(0, i) ? 1 : 0;
        of_heads += zero.row(0, i) != zero.row(1, i) ? 1 : 0;
        for (std::int64_t h = 0; h < 3; ++h) CHECK(shared.row(h, i) == zero.row(0, i));
    }
    CHECK(of_seeds >= 38);
    CHECK(of_heads >= 38);
}

TEST_CASE("random-attention: blocks of queries") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const std::int64_t g : {2, 8, 11}) {
            const NamedValues options{{"num_keys", 5}, {"query_block", g}, {"causal", random.below(2) == 1}};
            // With scores rows are computed one at a time, without them in blocks.
            CHECK(agree(forward(inputs, mechanism, options), forward(inputs, mechanism, options, true)));
        }
    });
}

TEST_CASE("random-attention: rejects sizes below 1 and blocks with include_self") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    rejects(inputs, mechanism, {{"num_keys", 0}}, {"\"num_keys\"", "0", "accepted"});
    rejects(inputs, mechanism, {{"query_block", 0}}, {"\"query_block\"", "0", "accepted"});
    rejects(inputs, mechanism, {{"query_block", 2}, {"include_self", true}},
            {"\"include_self\"", "\"query_block\"", "accepted"});
}
