// SPDX-License-Identifier: Apache-2.0
// Identities of disentangled-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* disentangled = "disentangled-attention";
constexpr const char* standard = "standard-mha";

NamedValues plus(NamedValues a, const NamedValues& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
Tensor scaled(const Tensor& from, double factor) {
    return mapped(from, [factor](float x) { return static_cast<float>(factor) * x; });
}
double root(const Shape& s, double parts) { return 1.0 / std::sqrt(static_cast<double>(s.head_dim) * parts); }
Tensor table(Random& random, const Shape& s, std::int64_t side) {
    return scaled(normal(random, {s.heads, 2 * side, s.head_dim}), 0.5);
}
NamedValues bucketed(std::int64_t buckets, std::int64_t most) {
    return {{"position_buckets", buckets}, {"max_relative_positions", most}};
}
// Rows of a table, those that `row_of` has no row for at random.
Tensor rearranged(Random& random, const Tensor& from, std::int64_t rows,
                  const std::function<std::int64_t(std::int64_t)>& row_of) {
    Tensor to = normal(random, {from.shape[0], rows, from.shape[2]});
    for (std::int64_t h = 0; h < from.shape[0]; ++h)
        for (std::int64_t row = 0; row < rows; ++row)
            for (std::int64_t d = 0; d < from.shape[2]; ++d)
                if (const std::int64_t source = row_of(row); source >= 0 && source < from.shape[1])
                    at(to, h, row, d) = at(from, h, source, d);
    return to;
}

// The row of Kr, less S, of each distance -(count - 1) .. count - 1, read off the log-sum-exp of a single key.
std::vector<std::int64_t> rows_of(std::int64_t buckets, std::int64_t most, std::int64_t count) {
    const std::int64_t side = buckets > 0 ? buckets : most;
    ForwardInputs inputs;
    inputs.query = filled({1, 1, count, 4}, 0.0f);
    for (std::int64_t i = 0; i < count; ++i) at(inputs.query, 0, 0, i, 0) = 1.0f;
    inputs.key = filled({1, 1, 1, 4}, 0.0f);
    inputs.value = filled({1, 1, 1, 4}, 1.0f);
    Tensor numbers = filled({1, 2 * side, 4}, 0.0f);
    for (std::int64_t row = 0; row < 2 * side; ++row) at(numbers, 0, row, 0) = static_cast<float>(row);
    inputs.weights = {{"rel_key", numbers}};
    std::vector<std::int64_t> all(static_cast<std::size_t>(2 * count - 1));
    for (const char* alignment : {"top-left", "bottom-right"}) {
        const NamedValues options = {{"p2c", false}, {"scale", 1.0}, {"causal_alignment", alignment}};
        const ForwardResult result = forward(inputs, disentangled, plus(options, bucketed(buckets, most)));
        const std::int64_t offset = alignment[0] == 't' ? 0 : 1 - count;
        for (std::int64_t i = 0; i < count; ++i) {
            const double lse = static_cast<double>(result.lse->as<float>()[i]);
            CHECK(std::abs(lse - std::round(lse)) < 1e-3);
            all[static_cast<std::size_t>(count - 1 + i + offset)] = std::llround(lse) - side;
        }
    }
    return all;
}

}  // namespace

TEST_CASE("disentangled-attention: without position terms") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        const ForwardInputs bare = make_inputs(random, s);
        for (const bool causal : {false, true}) {
            const NamedValues options = {{"causal", causal}};
            CHECK(agree(forward(bare, disentangled, plus(options, {{"c2p", false}, {"p2c", false}})),
                        forward(bare, standard, options)));
            ForwardInputs zeros = bare;
            const Tensor zero = filled({s.heads, 16, s.head_dim}, 0.0f);
            zeros.weights = {{"rel_key", zero}, {"rel_query", zero}};
            CHECK(agree(forward(zeros, disentangled, plus(options, bucketed(8, 20))),
                        forward(bare, standard, plus(options, {{"scale", root(s, 3)}}))));
            zeros.weights.pop_back();
            CHECK(agree(forward(zeros, disentangled, plus(plus(options, {{"p2c", false}}), bucketed(8, 20))),
                        forward(bare, standard, plus(options, {{"scale", root(s, 2)}}))));
        }
    });
}

TEST_CASE("disentangled-attention: constant tables") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        const ForwardInputs bare = make_inputs(random, s);
        const Tensor a = normal(random, {s.heads, 1, s.head_dim});
        const Tensor constant = take(a, 1, std::vector<std::int64_t>(16, 0)), zero = filled(constant.shape, 0.0f);
        const auto dot = [&](const Tensor& x, std::int64_t b, std::int64_t head, std::int64_t row, std::int64_t of) {
            double sum = 0;
            for (std::int64_t d = 0; d < s.head_dim; ++d)
                sum += static_cast<double>(at(x, b, head, row, d)) * static_cast<double>(at(a, of, 0, d));
            return static_cast<float>(root(s, 3) * sum);
        };
        ForwardInputs keyed = bare, queried = bare, biased = bare;
        const ForwardResult plain = forward(bare, standard, {{"scale", root(s, 3)}});
        keyed.weights = {{"rel_key", constant}, {"rel_query", zero}};
        const ForwardResult got = forward(keyed, disentangled, bucketed(8, 20));
        Tensor lse = mapped(*plain.lse, [](float x) { return x; });
        biased.bias = filled({s.batch, s.heads, 1, s.kv_len}, 0.0f);
        for (std::int64_t b = 0; b < s.batch; ++b)
            for (std::int64_t h = 0; h < s.heads; ++h) {
                for (std::int64_t i = 0; i < s.q_len; ++i) at(lse, b, h, i) += dot(bare.query, b, h, i, h);
                for (std::int64_t j = 0; j < s.kv_len; ++j)
                    at(*biased.bias, b, h, 0, j) = dot(*bare.key, b, h * s.kv_heads / s.heads, j, h);
            }
        CHECK(agree(got.output, plain.output));
        CHECK(agree(*got.lse, lse));
        queried.weights = {{"rel_key", zero}, {"rel_query", constant}};
        for (const char* index : {"code", "paper"})
            CHECK(agree(forward(queried, disentangled, plus(bucketed(8, 20), {{"p2c_index", index}})),
                        forward(biased, standard, {{"scale", root(s, 3)}})));
    });
}

TEST_CASE("disentangled-attention: paper and code") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        for (const std::int64_t buckets : {std::int64_t{0}, std::int64_t{6}, std::int64_t{12}}) {
            const std::int64_t most = buckets > 0 ? 30 : s.kv_len + s.q_len, side = buckets > 0 ? buckets : most;
            ForwardInputs paper = make_inputs(random, s), code = paper;
            const Tensor kr = table(random, s, side), qr = table(random, s, side);
            paper.weights = {{"rel_key", kr}, {"rel_query", qr}};
            code.weights = {{"rel_key", kr}, {"rel_query", rearranged(random, qr, 2 * side, [&](std::int64_t row) {
                                                  return row == 0 ? -1 : 2 * side - row;
                                              })}};
            const NamedValues options = bucketed(buckets, most);
            CHECK(agree(forward(paper, disentangled, plus(options, {{"p2c_index", "paper"}})),
                        forward(code, disentangled, options)));
            CHECK_FALSE(
                agree(forward(paper, disentangled, options).output, forward(code, disentangled, options).output, 1e-3));
        }
    });
}

TEST_CASE("disentangled-attention: buckets") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        const std::int64_t buckets = 4 + 2 * random.below(8), most = buckets / 2 + 2 + random.below(40);
        ForwardInputs inputs = make_inputs(random, s), other = inputs;
        const Tensor kr = table(random, s, buckets), qr = table(random, s, buckets);
        const auto centred = [&](std::int64_t row) {
            const std::int64_t distance = row - most;
            return std::abs(distance) <= buckets / 2 ? distance + buckets : -1;
        };
        inputs.weights = {{"rel_key", kr}, {"rel_query", qr}};
        other.weights = {{"rel_key", rearranged(random, kr, 2 * most, centred)},
                         {"rel_query", rearranged(random, qr, 2 * most, centred)}};
        for (const char* index : {"code", "paper"}) {
            const NamedValues options = {{"window_size", buckets / 2}, {"p2c_index", index}};
            CHECK(agree(forward(inputs, disentangled, plus(options, bucketed(buckets, most))),
                        forward(other, disentangled, plus(options, bucketed(0, most)))));
        }
    });
    const std::int64_t count = 700;
    for (const auto& [buckets, most] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{256, 512}, {4, 4}, {32, 128}, {6, 600}}) {
        INFO(buckets << " buckets up to " << most);
        const std::vector<std::int64_t> all = rows_of(buckets, most, count);
        const auto of = [&](std::int64_t distance) { return all[static_cast<std::size_t>(count - 1 + distance)]; };
        for (std::int64_t d = 0; d < count; ++d) {
            REQUIRE(of(-d) == -of(d));
            if (d > 0) REQUIRE(of(d) >= of(d - 1));
            if (d <= buckets / 2) REQUIRE(of(d) == d);
            if (d >= most - 1) REQUIRE(of(d) == buckets - 1);
        }
        if (buckets != 256) continue;
        CHECK(of(128) == 128);
        CHECK(of(129) == 129);
        CHECK(of(511) == 255);
        CHECK(of(-511) == -255);
    }
    const std::vector<std::int64_t> plain = rows_of(0, 50, 80);  // without buckets
    for (std::int64_t d = -79; d < 80; ++d)
        REQUIRE(plain[static_cast<std::size_t>(79 + d)] == std::clamp<std::int64_t>(d, -50, 49));
}

TEST_CASE("disentangled-attention: translation") {
    on_random_shapes({.group = 2, .length = 40, .same_width = false}, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        inputs.weights = {{"rel_key", table(random, s, 6)}, {"rel_query", table(random, s, 6)}};
        const std::int64_t before = random.below(40), after = random.below(40), whole = before + s.kv_len + after;
        const auto embedded = [&](const Tensor& tensor, float padding) {
            std::vector<std::int64_t> front = tensor.shape, back = tensor.shape;
            front[2] = before;
            back[2] = after;
            return joined(joined(filled(front, padding), tensor, 2), filled(back, padding), 2);
        };
        const float nan = std::numeric_limits<float>::quiet_NaN();
        ForwardInputs padded = inputs;
        padded.query = embedded(inputs.query, 0.5f);
        padded.key = embedded(*inputs.key, nan);
        padded.value = embedded(*inputs.value, nan);
        padded.mask = bools({1, 1, 1, whole}, [&](const std::vector<std::int64_t>& at) {
            return at[3] >= before && at[3] < before + s.kv_len;
        });
        const ForwardResult got = forward(padded, disentangled, bucketed(6, 9)),
                            expected = forward(inputs, disentangled, bucketed(6, 9));
        CHECK(agree(take(got.output, 2, range(before, before + s.kv_len)), expected.output));
        CHECK(agree(take(*got.lse, 2, range(before, before + s.kv_len)), *expected.lse));
    });
    on_random_shapes({.group = 2, .square = false}, [](Random& random, Shape s) {
        const std::int64_t most = 9;
        s.q_len = 1 + random.below(9);
        s.kv_len = s.q_len + most + 2 + random.below(30);
        ForwardInputs inputs = make_inputs(random, s);
        inputs.weights = {{"rel_key", table(random, s, 6)}, {"rel_query", table(random, s, 6)}};
        const std::int64_t far = s.kv_len - s.q_len - (most - 1) + 1;  // keys with |d| >= M - 1 for every query
        for (const char* alignment : {"bottom-right", "top-left"})
            for (const char* index : {"code", "paper"}) {
                const std::vector<std::int64_t> mixed = shuffled(random, far);
                std::vector<std::int64_t> order = range(0, s.kv_len);
                const std::int64_t first = alignment[0] == 'b' ? 0 : s.kv_len - far;
                for (std::int64_t at = 0; at < far; ++at)
                    order[static_cast<std::size_t>(first + at)] = first + mixed[static_cast<std::size_t>(at)];
                ForwardInputs other = inputs;
                other.key = take(*inputs.key, 2, order);
                other.value = take(*inputs.value, 2, order);
                const NamedValues options =
                    plus(bucketed(6, most), {{"causal_alignment", alignment}, {"p2c_index", index}});
                CHECK(agree(forward(other, disentangled, options), forward(inputs, disentangled, options)));
            }
    });
}

TEST_CASE("disentangled-attention: zero queries") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        inputs.query = filled(inputs.query.shape, 0.0f);
        ForwardInputs biased = inputs;
        inputs.weights = {{"rel_key", table(random, s, 8)}};
        CHECK(agree(forward(inputs, disentangled, plus(bucketed(8, 20), {{"p2c", false}})), forward(biased, standard)));

        const std::int64_t most = s.kv_len + s.q_len;
        const Tensor qr = table(random, s, most);
        inputs.weights = {{"rel_query", qr}};
        inputs.key = take(*inputs.key, 2, std::vector<std::int64_t>(static_cast<std::size_t>(s.kv_len), 0));
        biased.key = inputs.key;
        biased.bias = filled({s.batch, s.heads, s.q_len, s.kv_len}, 0.0f);
        for (std::int64_t b = 0; b < s.batch; ++b)
            for (std::int64_t h = 0; h < s.heads; ++h)
                for (std::int64_t i = 0; i < s.q_len; ++i)
                    for (std::int64_t j = 0; j < s.kv_len; ++j) {
                        const std::int64_t row = i + s.kv_len - s.q_len - j + most;
                        double sum = 0;
                        for (std::int64_t d = 0; d < s.head_dim; ++d)
                            sum += static_cast<double>(at(*inputs.key, b, h * s.kv_heads / s.heads, j, d)) *
                                   static_cast<double>(at(qr, h, row, d));
                        at(*biased.bias, b, h, i, j) = static_cast<float>(root(s, 2) * sum);
                    }
        const ForwardResult got = forward(inputs, disentangled, plus(bucketed(0, most), {{"c2p", false}}), true);
        CHECK(agree(got, forward(biased, standard)));
        // All keys are one vector, and yet their weights differ.
        const auto [least, largest] = std::minmax_element(got.scores->as<float>(), got.scores->as<float>() + s.kv_len);
        CHECK(*largest - *least > 1e-4f);
    });
}

TEST_CASE("disentangled-attention: projected form") {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        Random random(seed);
        const std::int64_t batch = 1 + random.below(2), heads = 1 + random.below(4), width = 2 + random.below(8),
                           model = heads * width, length = 3 + random.below(40);
        const bool shares = seed % 2 == 0, normed = seed % 3 != 0;
        const std::int64_t buckets = seed == 5 ? 0 : 6, most = 15, rows = 2 * (buckets > 0 ? buckets : most);
        INFO("seed " << seed);
        ForwardInputs tokens;
        tokens.query = normal(random, {batch, length, model});
        const auto give = [&](const char* name, Tensor tensor) {
            tokens.weights.emplace_back(name, tensor);
            return tensor;
        };
        const Tensor wq = give("wq", layer(random, model, model)), wk = give("wk", layer(random, model, model)),
                     wv = give("wv", layer(random, model, model)), bq = give("bq", normal(random, {model})),
                     bk = give("bk", normal(random, {model})), bv = give("bv", normal(random, {model}));
        Tensor embedding = give("rel_emb", scaled(normal(random, {rows, model}), 0.7));
        const Tensor key_layer = shares ? wk : give("pos_wk", layer(random, model, model)),
                     key_bias = shares ? bk : give("pos_bk", normal(random, {model})),
                     query_layer = shares ? wq : give("pos_wq", layer(random, model, model)),
                     query_bias = shares ? bq : give("pos_bq", normal(random, {model}));
        if (normed) {
            const Tensor gamma = give("rel_norm_w", normal(random, {model})),
                         beta = give("rel_norm_b", normal(random, {model}));
            Tensor own = filled(embedding.shape, 0.0f);
            for (std::int64_t row = 0; row < rows; ++row) {
                const float* from = embedding.as<float>() + row * model;
                double mean = 0, square = 0;
                for (std::int64_t e = 0; e < model; ++e) mean += static_cast<double>(from[e]);
                mean /= static_cast<double>(model);
                for (std::int64_t e = 0; e < model; ++e) square += std::pow(static_cast<double>(from[e]) - mean, 2);
                const double deviation = std::sqrt(square / static_cast<double>(model) + 1e-7);
                for (std::int64_t e = 0; e < model; ++e)
                    own.as<float>()[row * model + e] = static_cast<float>(
                        (static_cast<double>(from[e]) - mean) / deviation * static_cast<double>(gamma.as<float>()[e]) +
                        static_cast<double>(beta.as<float>()[e]));
            }
            embedding = own;
        }
        const Tensor source = embedding.view({1, rows, model}, {rows * model, model, 1});
        const auto split = [&](const Tensor& packed) {
            return attend::contiguous_copy(heads_of(packed, heads)).value();
        };
        const auto as_table = [&](const Tensor& packed) {
            return split(packed).view({heads, rows, width}, {rows * width, width, 1});
        };
        ForwardInputs core;
        core.query = split(linear(tokens.query, wq, &bq));
        core.key = split(linear(tokens.query, wk, &bk));
        core.value = split(linear(tokens.query, wv, &bv));
        core.weights = {{"rel_key", as_table(linear(source, key_layer, &key_bias))},
                        {"rel_query", as_table(linear(source, query_layer, &query_bias))}};
        const NamedValues options = plus(bucketed(buckets, most), {{"causal", seed > 3}});
        const ForwardResult got =
            forward(tokens, disentangled,
                    plus(options, {{"heads", heads}, {"share_att_key", shares}, {"norm_rel_emb", normed}}));
        const ForwardResult expected = forward(core, disentangled, options);
        CHECK(agree(got.output, packed_heads(expected.output)));
        CHECK(agree(*got.lse, *expected.lse));
    }
}

TEST_CASE("disentangled-attention: rejects buckets that are odd or reach too far") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 2, 5, 6, 8, 8});
    rejects(inputs, disentangled, {{"position_buckets", 7}}, {"position_buckets", "7", "even"});
    rejects(inputs, disentangled, {{"position_buckets", 2}}, {"position_buckets", "2", "4"});
    rejects(inputs, disentangled, {{"position_buckets", -2}}, {"position_buckets", "-2", "accepted"});
    rejects(inputs, disentangled, bucketed(16, 9), {"max_relative_positions", "9", "position_buckets", "16"});
    rejects(inputs, disentangled, {{"max_relative_positions", 1}}, {"max_relative_positions", "1", "accepted"});
    rejects(inputs, disentangled, {{"p2c_index", "draft"}}, {"p2c_index", "draft", "paper"});
    CHECK(forward(inputs, disentangled, bucketed(16, 10)).output.size() > 0);
}

TEST_CASE("disentangled-attention: rejects tables of other shapes") {
    Random random(2);
    const ForwardInputs bare = make_inputs(random, {1, 4, 2, 5, 6, 8, 8});
    const auto refused = [&](const char* name, std::vector<std::int64_t> shape, const NamedValues& options,
                             std::initializer_list<const char*> texts) {
        ForwardInputs inputs = bare;
        inputs.weights = {{name, normal(random, std::move(shape))}};
        rejects(inputs, disentangled, options, texts);
    };
    refused("rel_key", {4, 15, 8}, bucketed(8, 20), {"rel_key", "15", "16"});
    refused("rel_key", {2, 16, 8}, bucketed(8, 20), {"rel_key", "2", "4"});
    refused("rel_query", {4, 16, 7}, bucketed(8, 20), {"rel_query", "7", "8"});
    refused("rel_query", {4, 16, 8}, bucketed(0, 20), {"rel_query", "16", "40"});
    refused("rel_key", {4, 16, 8}, plus(bucketed(8, 20), {{"c2p", false}}), {"rel_key", "switched off"});
    ForwardInputs tokens;
    tokens.query = normal(random, {1, 5, 12});
    tokens.weights = {{"rel_emb", normal(random, {14, 12})}};
    rejects(tokens, disentangled, plus(bucketed(8, 20), {{"heads", 3}}), {"rel_emb", "14", "16"});
    tokens.weights = {{"wq", normal(random, {12, 10})}};
    rejects(tokens, disentangled, {{"heads", 3}}, {"wq", "10", "12"});
    tokens.weights = {{"wq", normal(random, {12, 12})}};
    rejects(tokens, disentangled, {{"heads", 5}}, {"12", "5"});
    rejects(tokens, disentangled, {}, {"heads"});
}

TEST_CASE("disentangled-attention: rejects projections of positions that are missing") {
    Random random(3);
    ForwardInputs tokens;
    tokens.query = normal(random, {1, 5, 12});
    const Tensor square = layer(random, 12, 12);
    const NamedValues own = {{"form", "projected"}, {"heads", 3}, {"share_att_key", false}};
    CHECK(forward(tokens, disentangled, own).output.size() > 0);  // all of them from the initialiser
    for (const char* given : {"wq", "wk", "wv"}) {
        tokens.weights = {{given, square}};
        rejects(tokens, disentangled, own, {"pos_wk", "missing", "share_att_key"});
        rejects(tokens, disentangled, plus(own, {{"c2p", false}}), {"pos_wq", "missing", "share_att_key"});
    }
    tokens.weights = {{"wq", square}, {"pos_wk", square}};
    rejects(tokens, disentangled, own, {"pos_wq", "missing"});
    CHECK(forward(tokens, disentangled, plus(own, {{"p2c", false}})).output.size() > 0);
    tokens.weights = {{"pos_wk", square}};
    rejects(tokens, disentangled, own, {"pos_wq", "missing"});
    tokens.weights = {{"rel_norm_w", filled({12}, 1.0f)}};
    rejects(tokens, disentangled, own, {"pos_wk", "missing"});
    tokens.weights = {{"pos_wk", square}};
    rejects(tokens, disentangled, {{"form", "projected"}, {"heads", 3}}, {"pos_wk", "switched off"});
}
