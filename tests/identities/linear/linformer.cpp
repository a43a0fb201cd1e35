// SPDX-License-Identifier: Apache-2.0
// Identities of linformer-attention.
#include "identities/linear/linear.hpp"

namespace {

using namespace identities;
constexpr const char* linformer = "linformer-attention";

Tensor exact(const ForwardInputs& inputs) { return call(inputs, "standard-mha").output; }
// One row for each entry of `which`, with a one in that column.
Tensor one_hot(const std::vector<std::int64_t>& which, std::int64_t columns) {
    Tensor tensor = filled({static_cast<std::int64_t>(which.size()), columns}, 0.0f);
    for (std::size_t t = 0; t < which.size(); ++t)
        tensor.as<float>()[static_cast<std::int64_t>(t) * columns + which[t]] = 1.0f;
    return tensor;
}
ForwardInputs projected(const ForwardInputs& inputs, const Tensor& e, const Tensor& f) {
    ForwardInputs to = inputs;
    to.weights = {{"e", e}, {"f", f}};
    return to;
}
// Small projections: the size of the output stays that of the values.
Tensor small(Random& random, std::int64_t rows, std::int64_t columns) { return layer(random, rows, columns); }
std::vector<float> sum(const Tensor& a, const Tensor& b) {
    std::vector<float> x = values(a);
    const std::vector<float> y = values(b);
    for (std::size_t at = 0; at < x.size(); ++at) x[at] += y[at];
    return x;
}
Tensor added(const Tensor& a, const Tensor& b) {
    Tensor to = take(a, 0, range(0, a.shape[0]));
    for (std::int64_t at = 0; at < to.size(); ++at) to.as<float>()[at] += b.as<float>()[at];
    return to;
}

}  // namespace

TEST_CASE("linformer-attention: projections of the identity") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor identity = one_hot(range(0, shape.kv_len), shape.kv_len);
        CHECK(agree(call(projected(inputs, identity, identity), linformer).output, exact(inputs)));
    });
}

TEST_CASE("linformer-attention: selected keys") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        std::vector<std::int64_t> which = shuffled(random, shape.kv_len);
        which.resize(static_cast<std::size_t>(1 + random.below(shape.kv_len)));
        ForwardInputs some = inputs;
        some.key = take(*inputs.key, 2, which);
        some.value = take(*inputs.value, 2, which);
        const Tensor e = one_hot(which, shape.kv_len);
        CHECK(agree(call(projected(inputs, e, e), linformer).output, exact(some)));
    });
}

TEST_CASE("linformer-attention: pools of single keys") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        for (const char* pool : {"mean-pool", "max-pool"}) {
            inputs.key_lengths.reset();
            CHECK(agree(call(inputs, linformer, {{"projection", pool}, {"proj_dim", shape.kv_len}}).output,
                        exact(inputs)));
            const std::int64_t keys = 1 + random.below(shape.kv_len);
            inputs.key_lengths = lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), keys));
            CHECK(agree(call(inputs, linformer, {{"projection", pool}, {"proj_dim", keys}}).output, exact(inputs)));
        }
    });
}

TEST_CASE("linformer-attention: linear in values and their projection") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t k = 1 + random.below(shape.kv_len);
        const Tensor e = small(random, k, shape.kv_len), f = small(random, k, shape.kv_len),
                     g = small(random, k, shape.kv_len);
        const auto both =
            sum(call(projected(inputs, e, f), linformer).output, call(projected(inputs, e, g), linformer).output);
        CHECK(agree(values(call(projected(inputs, e, added(f, g)), linformer).output), both));
        ForwardInputs other = inputs, together = inputs;
        other.value = normal(random, inputs.value->shape);
        together.value = added(*inputs.value, *other.value);
        CHECK(agree(
            values(call(projected(together, e, f), linformer).output),
            sum(call(projected(inputs, e, f), linformer).output, call(projected(other, e, f), linformer).output)));
    });
}

TEST_CASE("linformer-attention: permuted keys") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t k = 1 + random.below(shape.kv_len);
        const Tensor e = small(random, k, shape.kv_len), f = small(random, k, shape.kv_len);
        const auto order = shuffled(random, shape.kv_len);
        ForwardInputs other = inputs;
        other.key = take(*inputs.key, 2, order);
        other.value = take(*inputs.value, 2, order);
        CHECK(agree(call(projected(inputs, e, f), linformer).output,
                    call(projected(other, take(e, 1, order), take(f, 1, order)), linformer).output));
    });
}

TEST_CASE("linformer-attention: permuted rows of the projections") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t k = 1 + random.below(shape.kv_len);
        const Tensor e = small(random, k, shape.kv_len), f = small(random, k, shape.kv_len);
        const auto order = shuffled(random, k);
        CHECK(agree(call(projected(inputs, e, f), linformer).output,
                    call(projected(inputs, take(e, 0, order), take(f, 0, order)), linformer).output));
    });
}

TEST_CASE("linformer-attention: slices") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t k = 1 + random.below(shape.kv_len), n = shape.kv_len + 1 + random.below(30);
        const Tensor e = small(random, k, n), f = small(random, k, n);
        const Tensor got = call(projected(inputs, e, f), linformer).output;
        // Columns past the keys are not read.
        Tensor other_e = take(e, 0, range(0, k)), other_f = take(f, 0, range(0, k));
        for (std::int64_t t = 0; t < k; ++t)
            for (std::int64_t j = shape.kv_len; j < n; ++j)
                other_e.as<float>()[t * n + j] = other_f.as<float>()[t * n + j] = NAN;
        CHECK(same_bits(got, call(projected(inputs, other_e, other_f), linformer).output));
        // Zeros in their place are the same as no keys.
        ForwardInputs padded = inputs;
        const std::int64_t more = n - shape.kv_len;
        padded.key = joined(*inputs.key, filled({shape.batch, shape.kv_heads, more, shape.head_dim}, 0.0f), 2);
        padded.value = joined(*inputs.value, filled({shape.batch, shape.kv_heads, more, shape.value_dim}, 0.0f), 2);
        CHECK(agree(got, call(projected(padded, e, f), linformer).output));
    });
}

TEST_CASE("linformer-attention: sharing") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t k = 1 + random.below(shape.kv_len);
        const Tensor e = small(random, k, shape.kv_len), f = small(random, k, shape.kv_len);
        ForwardInputs one = inputs;
        one.weights = {{"e", e}};
        CHECK(same_bits(call(one, linformer, {{"sharing", "kv"}}).output,
                        call(projected(inputs, e, e), linformer).output));
        const std::vector<std::int64_t> heads(static_cast<std::size_t>(shape.kv_heads), 0);
        const auto each = [&](const Tensor& tensor) {
            return take(tensor.view({1, k, shape.kv_len}, {k * shape.kv_len, shape.kv_len, 1}), 0, heads);
        };
        CHECK(same_bits(call(projected(inputs, each(e), each(f)), linformer, {{"sharing", "none"}}).output,
                        call(projected(inputs, e, f), linformer).output));
    });
}

TEST_CASE("linformer-attention: default projections") {
    // The mean of (E K)^T (E K) over seeds is K^T K, and its relative distance halves as k becomes four times as large.
    Random random(3);
    const ForwardInputs inputs = make_inputs(random, {1, 1, 1, 4, 48, 4, 4});
    const auto gram = [](const std::vector<Row>& rows) {
        std::vector<double> out(16, 0.0);
        for (const Row& x : rows)
            for (std::size_t a = 0; a < 4; ++a)
                for (std::size_t b = 0; b < 4; ++b) out[a * 4 + b] += x[a] * x[b];
        return out;
    };
    std::vector<Row> keys;
    for (std::int64_t j = 0; j < 48; ++j) keys.push_back(row(*inputs.key, 0, 0, j));
    const auto expected = gram(keys);
    double size = 0;
    for (const double x : expected) size += x * x;
    double errors[2];
    for (const int round : {0, 1}) {
        const std::int64_t k = round == 0 ? 8 : 32;
        double squares = 0;
        std::vector<double> mean(16, 0.0);
        constexpr int seeds = 200;
        for (int seed = 0; seed < seeds; ++seed) {
            attend::ForwardOptions asked;
            asked.mechanism = linformer;
            asked.options = {{"proj_dim", k}, {"weight_seed", seed}};
            auto weights = service().get_projections(inputs, asked);
            REQUIRE(weights);
            const Tensor* e = nullptr;
            for (const auto& [name, tensor] : *weights)
                if (name == "e") e = &tensor;
            REQUIRE(e != nullptr);
            std::vector<Row> rows;
            for (std::int64_t t = 0; t < k; ++t) {
                Row sums(4, 0.0);
                for (std::int64_t j = 0; j < 48; ++j)
                    for (std::size_t d = 0; d < 4; ++d)
                        sums[d] += static_cast<double>(e->as<const float>()[t * 48 + j]) *
                                   keys[static_cast<std::size_t>(j)][d];
                rows.push_back(sums);
            }
            const auto got = gram(rows);
            for (std::size_t at = 0; at < 16; ++at) {
                squares += std::pow(got[at] - expected[at], 2) / size / seeds;
                mean[at] += got[at] / seeds;
            }
        }
        errors[round] = std::sqrt(squares);
        double bias = 0;
        for (std::size_t at = 0; at < 16; ++at) bias += std::pow(mean[at] - expected[at], 2) / size;
        CHECK(std::sqrt(bias) <= 4 * errors[round] / std::sqrt(static_cast<double>(seeds)));
    }
    CHECK((errors[0] / errors[1] > 1.7 && errors[0] / errors[1] < 2.3));
}

TEST_CASE("linformer-attention: values of one") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        std::fill_n(inputs.value->as<float>(), inputs.value->size(), 1.0f);
        // A projection whose rows all add up to s gives s; pools and single rows are means, and give one.
        const std::int64_t k = 1 + random.below(shape.kv_len);
        const Tensor e = small(random, k, shape.kv_len);
        Tensor f = small(random, k, shape.kv_len);
        for (std::int64_t t = 0; t < k; ++t) {
            float rest = 2.5f;
            for (std::int64_t j = 1; j < shape.kv_len; ++j) rest -= f.as<float>()[t * shape.kv_len + j];
            f.as<float>()[t * shape.kv_len] = rest;
        }
        for (const float x : values(call(projected(inputs, e, f), linformer).output))
            CHECK(std::abs(x - 2.5f) <= 2e-5f);
        for (const char* pool : {"mean-pool", "max-pool"})
            for (const float x : values(call(inputs, linformer, {{"projection", pool}, {"proj_dim", k}}).output))
                CHECK(std::abs(x - 1.0f) <= 1e-5f);
    });
}

TEST_CASE("linformer-attention: hidden keys") {
    // A hidden key is a key of zeros to the projection; heads whose keys are all hidden are zero.
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t hidden = random.below(shape.kv_len);
        const Tensor e = small(random, 2, shape.kv_len), f = small(random, 2, shape.kv_len);
        ForwardInputs zeros = projected(inputs, e, f), masked = projected(inputs, e, f);
        for (auto* tensor : {&zeros.key, &zeros.value}) {
            *tensor = take(**tensor, 2, range(0, shape.kv_len));
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t h = 0; h < shape.kv_heads; ++h)
                    for (std::int64_t d = 0; d < shape.head_dim; ++d) at(**tensor, b, h, hidden, d) = 0.0f;
        }
        masked.mask = bools({1, 1, 1, shape.kv_len}, [hidden](const auto& index) { return index[3] != hidden; });
        CHECK(same_bits(call(zeros, linformer).output, call(masked, linformer).output));
        masked.mask = bools({1, shape.heads, 1, shape.kv_len}, [](const auto& index) { return index[1] != 0; });
        for (const float x : values(take(call(masked, linformer).output, 1, {0}))) CHECK(x == 0.0f);
    });
}

TEST_CASE("linformer-attention: threads") {
    for (const char* projection : {"linear", "mean-pool", "conv"})
        check_threads(linformer, {{"projection", projection}});
}

TEST_CASE("linformer-attention: rejects causal calls and what acts on single scores") {
    check_refuses_pairs(linformer, true);
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 8, 8});
    rejects(inputs, linformer, {{"causal", true}}, {"causal", "true", "flash-attention-v2"});
    inputs.bias = filled({1, 1, 1, 6}, 0.0f);
    rejects(inputs, linformer, {}, {"bias", "flash-attention-v2"});
    inputs.bias.reset();
    attend::ForwardOptions asked;
    asked.mechanism = linformer;
    asked.lse = true;
    const auto result = service().forward(inputs, asked);
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("lse") != std::string::npos);
}
TEST_CASE("linformer-attention: rejects lengths and projections that do not fit") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 9, 8, 8});
    rejects(inputs, linformer, {{"max_len", 8}}, {"max_len", "8", "9", "mean-pool"});
    rejects(inputs, linformer, {{"proj_dim", 10}}, {"proj_dim", "10", "9"});
    rejects(inputs, linformer, {{"proj_dim", 10}, {"projection", "mean-pool"}}, {"proj_dim", "10", "9"});
    rejects(inputs, linformer, {{"max_len", 12}, {"length_policy", "strict"}}, {"length_policy", "12", "9"});
    const Tensor e = normal(random, {4, 9});
    ForwardInputs given = projected(inputs, e, e);
    rejects(given, linformer, {{"sharing", "kv"}}, {"f"});
    rejects(given, linformer, {{"projection", "mean-pool"}}, {"e"});
    rejects(given, linformer, {{"projection", "conv"}}, {"e"});
    rejects(given, linformer, {{"proj_dim", 5}}, {"e", "4", "5"});
    rejects(given, linformer, {{"max_len", 11}}, {"e", "9", "11"});
    rejects(projected(inputs, e, normal(random, {3, 9})), linformer, {}, {"f", "3", "4"});
    rejects(projected(inputs, normal(random, {4, 8}), normal(random, {4, 8})), linformer, {}, {"9", "8"});
    rejects(projected(inputs, normal(random, {3, 4, 9}), normal(random, {3, 4, 9})), linformer, {{"sharing", "none"}},
            {"e", "3", "2"});
}
