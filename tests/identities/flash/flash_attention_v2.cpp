// SPDX-License-Identifier: Apache-2.0
// Identities of flash-attention-v2.
#include "identities/identities.hpp"
#include "specs/spec.hpp"

namespace {

using namespace identities;
constexpr const char* v2 = "flash-attention-v2";
constexpr Limits any_shape{.group = 3, .square = false, .same_width = false};
constexpr float infinity = std::numeric_limits<float>::infinity();

// Parts over disjoint keys as one call, by the rule of merging: w_s = exp(lse_s - max), terms of weight 0 left out.
Partial merged_parts(const std::vector<ForwardResult>& parts) {
    Partial to{values(parts[0].output), values(*parts[0].lse)};
    const std::size_t width = to.output.size() / to.lse.size();
    for (std::size_t row = 0; row < to.lse.size(); ++row) {
        double most = -static_cast<double>(infinity), sum = 0;
        for (const ForwardResult& part : parts) most = std::max(most, static_cast<double>(values(*part.lse)[row]));
        std::vector<double> mix(width, 0.0);
        for (const ForwardResult& part : parts) {
            const double weight = std::exp(static_cast<double>(values(*part.lse)[row]) - most);
            if (!(weight > 0)) continue;
            sum += weight;
            const std::vector<float> o = values(part.output);
            for (std::size_t c = 0; c < width; ++c) mix[c] += weight * static_cast<double>(o[row * width + c]);
        }
        to.lse[row] = sum > 0 ? static_cast<float>(most + std::log(sum)) : -infinity;
        for (std::size_t c = 0; c < width; ++c)
            to.output[row * width + c] = sum > 0 ? static_cast<float>(mix[c] / sum) : 0.0f;
    }
    return to;
}

Tensor some_mask(Random& random, const Shape& shape) {
    return bools({shape.batch, 1, shape.q_len, shape.kv_len}, [&](const auto&) { return random.below(4) != 0; });
}

// Unmasked scores of a row in double precision.
double score(const ForwardInputs& inputs, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    const std::int64_t heads = inputs.query.shape[1], kv_heads = inputs.key->shape[1], width = inputs.query.shape[3];
    double sum = 0;
    for (std::int64_t d = 0; d < width; ++d)
        sum += static_cast<double>(at(inputs.query, b, h, i, d)) *
               static_cast<double>(at(*inputs.key, b, h * kv_heads / heads, j, d));
    return sum / std::sqrt(static_cast<double>(width));
}

}  // namespace

TEST_CASE("flash-attention-v2: partition of the keys") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        for (const bool causal : {false, true}) {
            const NamedValues options{{"causal", causal}};
            const ForwardResult whole = forward(inputs, v2, options);
            const std::int64_t parts = 1 + random.below(4);
            std::vector<std::int64_t> part(static_cast<std::size_t>(shape.kv_len));
            for (std::int64_t& p : part) p = random.below(parts);
            std::vector<ForwardResult> results;
            for (std::int64_t p = 0; p < parts; ++p) {
                ForwardInputs one = inputs;
                one.mask = bools({1, 1, 1, shape.kv_len},
                                 [&](const auto& index) { return part[static_cast<std::size_t>(index[3])] == p; });
                results.push_back(forward(one, v2, options));
            }
            const Partial all = merged_parts(results);
            CHECK(agree(all.output, values(whole.output)));
            CHECK(agree(all.lse, values(*whole.lse)));
        }
    });
}

TEST_CASE("flash-attention-v2: order of the keys") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.mask = some_mask(random, shape);
        const ForwardResult plain = forward(inputs, v2);
        const std::vector<std::int64_t> order = shuffled(random, shape.kv_len);
        ForwardInputs other = inputs;
        other.key = take(*inputs.key, 2, order);
        other.value = take(*inputs.value, 2, order);
        other.mask = take(*inputs.mask, 3, order);
        CHECK(agree(forward(other, v2), plain));
    });
}

TEST_CASE("flash-attention-v2: shift of the keys") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult plain = forward(inputs, v2);
        const Tensor t = normal(random, {shape.head_dim});
        ForwardInputs moved = inputs;
        moved.key = take(*inputs.key, 2, range(0, shape.kv_len));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.kv_heads; ++h)
                for (std::int64_t j = 0; j < shape.kv_len; ++j)
                    for (std::int64_t d = 0; d < shape.head_dim; ++d) at(*moved.key, b, h, j, d) += t.as<float>()[d];
        const ForwardResult got = forward(moved, v2);
        CHECK(agree(got.output, plain.output));
        std::vector<float> expected = values(*plain.lse);
        std::size_t row = 0;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i, ++row) {
                    double dot = 0;
                    for (std::int64_t d = 0; d < shape.head_dim; ++d)
                        dot +=
                            static_cast<double>(at(inputs.query, b, h, i, d)) * static_cast<double>(t.as<float>()[d]);
                    expected[row] += static_cast<float>(dot / std::sqrt(static_cast<double>(shape.head_dim)));
                }
        CHECK(agree(values(*got.lse), expected));
    });
}

TEST_CASE("flash-attention-v2: keys twice") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.mask = some_mask(random, shape);
        const ForwardResult plain = forward(inputs, v2);
        ForwardInputs twice = inputs;
        twice.key = joined(*inputs.key, *inputs.key, 2);
        twice.value = joined(*inputs.value, *inputs.value, 2);
        twice.mask = joined(*inputs.mask, *inputs.mask, 3);
        const ForwardResult got = forward(twice, v2);
        CHECK(agree(got.output, plain.output));
        std::vector<float> expected = values(*plain.lse);
        for (float& x : expected) x += std::log(2.0f);
        CHECK(agree(values(*got.lse), expected));
    });
}

TEST_CASE("flash-attention-v2: last rows and wide windows") {
    on_random_shapes({.group = 3, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult whole = forward(inputs, v2, {{"causal", true}});
        const std::int64_t last = 1 + random.below(shape.q_len);
        ForwardInputs fewer = inputs;
        const std::vector<std::int64_t> rows = range(shape.q_len - last, shape.q_len);
        fewer.query = take(inputs.query, 2, rows);
        const ForwardResult got = forward(fewer, v2, {{"causal", true}});
        CHECK(agree(got.output, take(whole.output, 2, rows)));
        CHECK(agree(*got.lse, take(*whole.lse, 2, rows)));
        for (const bool causal : {false, true})
            for (const std::int64_t more : {0, 1, 100})
                CHECK(agree(forward(inputs, v2, {{"causal", causal}, {"window_size", shape.kv_len + more}}),
                            forward(inputs, v2, {{"causal", causal}})));
        // A window of W sees W keys on each side beside the query's own: one less than all of them makes a difference.
        if (shape.kv_len >= 3)
            CHECK_FALSE(
                same_bits(*forward(inputs, v2, {{"window_size", shape.kv_len - 2}}).lse, *forward(inputs, v2).lse));
    });
}

TEST_CASE("flash-attention-v2: scores") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        // Rows without keys among them: causal with more queries than keys, and lengths.
        inputs.query_lengths =
            lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), shape.q_len - 1));
        const ForwardResult got = forward(inputs, v2, {{"causal", true}, {"dropout", 0.0}}, true);
        const std::vector<float> o = values(got.output), lse = values(*got.lse);
        std::size_t row = 0;
        std::vector<float> product;
        bool sums = true;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i, ++row) {
                    std::vector<double> mix(static_cast<std::size_t>(shape.value_dim), 0.0);
                    double sum = 0;
                    for (std::int64_t j = 0; j < shape.kv_len; ++j) {
                        const auto p = static_cast<double>(at(*got.scores, b, h, i, j));
                        sum += p;
                        for (std::int64_t c = 0; c < shape.value_dim; ++c)
                            mix[static_cast<std::size_t>(c)] +=
                                p * static_cast<double>(at(*inputs.value, b, h * shape.kv_heads / shape.heads, j, c));
                    }
                    const bool empty = lse[row] == -infinity;
                    sums = sums && (empty ? sum == 0.0 : std::abs(sum - 1.0) <= 1e-5);
                    for (const double x : mix) product.push_back(static_cast<float>(x));
                }
        CHECK(sums);
        CHECK(agree(o, product));
        // Dropout leaves them as they are.
        CHECK(agree(*forward(inputs, v2, {{"causal", true}, {"dropout", 0.4}}, true).scores, *got.scores));
    });
}

TEST_CASE("flash-attention-v2: constant values") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.mask = some_mask(random, shape);
        const Tensor w = normal(random, {shape.value_dim});
        inputs.value = filled({shape.batch, shape.kv_heads, shape.kv_len, shape.value_dim}, 0.0f);
        for (std::int64_t n = 0; n < inputs.value->size(); ++n)
            inputs.value->as<float>()[n] = w.as<float>()[n % shape.value_dim];
        const ForwardResult got = forward(inputs, v2, {{"causal", true}});
        const std::vector<float> o = values(got.output), lse = values(*got.lse);
        std::vector<float> expected;
        for (const float one : lse)
            for (std::int64_t c = 0; c < shape.value_dim; ++c)
                expected.push_back(one == -infinity ? 0.0f : w.as<float>()[c]);
        CHECK(agree(o, expected));
    });
}

TEST_CASE("flash-attention-v2: error of the soft cap") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult plain = forward(inputs, v2);
        for (const double cap : {3.0, 20.0}) {
            const ForwardResult capped = forward(inputs, v2, {{"softcap", cap}});
            bool within = true;
            double most_change = 0;
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t h = 0; h < shape.heads; ++h)
                    for (std::int64_t i = 0; i < shape.q_len; ++i) {
                        double most = 0;
                        for (std::int64_t j = 0; j < shape.kv_len; ++j)
                            most = std::max(most, std::abs(score(inputs, b, h, i, j)));
                        const double eps = most * most * most / (3 * cap * cap);
                        for (std::int64_t c = 0; c < shape.value_dim; ++c) {
                            double low = static_cast<double>(infinity), high = -low;
                            for (std::int64_t j = 0; j < shape.kv_len; ++j) {
                                const auto v =
                                    static_cast<double>(at(*inputs.value, b, h * shape.kv_heads / shape.heads, j, c));
                                low = std::min(low, v), high = std::max(high, v);
                            }
                            const double change = std::abs(static_cast<double>(at(capped.output, b, h, i, c)) -
                                                           static_cast<double>(at(plain.output, b, h, i, c)));
                            most_change = std::max(most_change, change);
                            within = within && change <= std::tanh(eps / 2) * (high - low) + 1e-5;
                        }
                    }
            CHECK(within);
            if (cap < 4) CHECK(most_change > 0);
        }
    });
}

TEST_CASE("flash-attention-v2: dropout") {
    on_random_shapes(any_shape, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const double p = 0.3;
        const std::uint64_t seed = 0x123456789ABCDEF0u;
        const std::uint32_t offset = 2;
        const NamedValues options{{"dropout", p}, {"seed", seed}, {"rng_offset", offset}};
        const ForwardResult got = forward(inputs, v2, options, true);
        const auto threshold = static_cast<std::uint32_t>(std::nearbyint(p * 4294967296.0));
        std::vector<float> expected;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    std::vector<double> mix(static_cast<std::size_t>(shape.value_dim), 0.0);
                    for (std::int64_t j = 0; j < shape.kv_len; ++j) {
                        const std::uint32_t word =
                            oracle::philox_word(seed, static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                                                static_cast<std::uint32_t>(b * shape.heads + h), 1u << 24 | offset,
                                                static_cast<int>(j % 4));
                        if (word < threshold) continue;
                        for (std::int64_t c = 0; c < shape.value_dim; ++c)
                            mix[static_cast<std::size_t>(c)] +=
                                static_cast<double>(at(*got.scores, b, h, i, j)) / (1 - p) *
                                static_cast<double>(at(*inputs.value, b, h * shape.kv_heads / shape.heads, j, c));
                    }
                    for (const double x : mix) expected.push_back(static_cast<float>(x));
                }
        CHECK(agree(values(got.output), expected));
        CHECK(agree(*got.lse, *forward(inputs, v2).lse));
        for (const int block : {16, 64}) {
            NamedValues other = options;
            other.emplace_back("block_size", block);
            CHECK(agree(forward(inputs, v2, other), got));
        }
        CHECK(same_bits(run(service("auto", 1), inputs, v2, options, true).output,
                        run(service("auto", 3), inputs, v2, options, true).output));
    });
}

TEST_CASE("flash-attention-v2: block sizes") {
    on_random_shapes(
        {.group = 3, .length = 300, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
            const ForwardInputs inputs = make_inputs(random, shape);
            for (const bool causal : {false, true}) {
                const ForwardResult plain = forward(inputs, v2, {{"causal", causal}, {"block_size", 0}});
                for (const std::int64_t size :
                     {std::int64_t{16}, std::int64_t{64}, std::int64_t{256}, std::max(std::int64_t{16}, shape.kv_len)})
                    CHECK(agree(forward(inputs, v2, {{"causal", causal}, {"block_size", size}}), plain));
            }
        });
}

TEST_CASE("flash-attention-v2: rejects tensors that do not fit") {
    Random random(50);
    const Shape shape{2, 4, 2, 12, 15, 8, 6};
    const ForwardInputs good = make_inputs(random, shape);
    ForwardInputs inputs = good;
    inputs.key = normal(random, {2, 3, 15, 8});
    inputs.value = normal(random, {2, 3, 15, 6});
    rejects(inputs, v2, {}, {"4", "3"});
    inputs = good;
    inputs.key = normal(random, {2, 2, 15, 7});
    rejects(inputs, v2, {}, {"7", "8"});
    inputs = good;
    inputs.value = normal(random, {2, 2, 14, 6});
    rejects(inputs, v2, {}, {"14", "15"});
    inputs = good;
    inputs.mask = bools({2, 4, 12, 14}, [](const auto&) { return true; });
    rejects(inputs, v2, {}, {"mask"});
    inputs = good;
    inputs.key_lengths = lengths({15, 16});
    rejects(inputs, v2, {}, {"16", "15"});
    inputs = good;
    inputs.extra.emplace_back("block_pattern", filled({1, 1, 3, 4}, 1.0f));
    inputs.extra.back().second = bools({1, 1, 3, 4}, [](const auto&) { return true; });
    rejects(inputs, v2, {}, {"block_pattern", "pattern_block_q", "pattern_block_k"});
    rejects(inputs, v2, {{"pattern_block_q", 4}}, {"pattern_block_k"});
    rejects(inputs, v2, {{"pattern_block_q", 4}, {"pattern_block_k", 3}}, {"block_pattern"});
    CHECK(forward(inputs, v2, {{"pattern_block_q", 4}, {"pattern_block_k", 4}}).output.size() > 0);
}

TEST_CASE("flash-attention-v2: rejects options outside their range") {
    Random random(51);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    for (const double p : {-0.1, 1.0, 1.5}) rejects(inputs, v2, {{"dropout", p}}, {"dropout"});
    rejects(inputs, v2, {{"softcap", -1.0}}, {"softcap", "-1"});
    rejects(inputs, v2, {{"scale", std::numeric_limits<double>::quiet_NaN()}}, {"scale"});
    for (const int size : {1, 15, 4097}) rejects(inputs, v2, {{"block_size", size}}, {"block_size"});
    rejects(inputs, v2, {{"heads", 3}}, {"heads", "3", "2"});
    rejects(inputs, v2, {{"kv_heads", 1}}, {"kv_heads", "1", "2"});
    rejects(inputs, v2, {{"dim", 4}}, {"dim", "4", "8"});
    rejects(inputs, v2, {{"window_left", -2}}, {"window_left"});
    rejects(inputs, v2, {{"rng_offset", 1 << 24}}, {"rng_offset"});
}

TEST_CASE("flash-attention-v2: rejects numbers that are not finite on demand") {
    Random random(52);
    const ForwardInputs good = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    const NamedValues full{{"validate", "full"}};
    CHECK(forward(good, v2, full).output.size() > 0);
    for (const float wild : {std::numeric_limits<float>::quiet_NaN(), infinity})
        for (int which = 0; which < 4; ++which) {
            ForwardInputs inputs = good;
            Tensor& tensor = which == 0   ? inputs.query
                             : which == 1 ? *inputs.key
                             : which == 2 ? *inputs.value
                                          : inputs.bias.emplace(filled({1, 1, 9, 9}, 0.0f));
            tensor = take(tensor, 0, {0});
            tensor.as<float>()[5] = wild;
            const char* const names[] = {"query", "key", "value", "bias"};
            rejects(inputs, v2, full, {names[which], "finite"});
        }
}
