// SPDX-License-Identifier: Apache-2.0
// Identities of performer-attention.
#include <algorithm>

#include "identities/linear/linear.hpp"

namespace {

using namespace identities;
using specs::linear::Directions;
using specs::linear::omega;
constexpr const char* performer = "performer-attention";

Tensor matrix(const std::vector<Row>& rows) {
    Tensor tensor = filled({static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows[0].size())}, 0.0f);
    std::size_t at = 0;
    for (const Row& row : rows)
        for (const double x : row) tensor.as<float>()[at++] = static_cast<float>(x);
    return tensor;
}
// One query and one key for each of so many heads, which have directions of their own: as many estimates of one kernel.
ForwardInputs one_pair(const std::vector<float>& x, const std::vector<float>& y, std::int64_t heads) {
    const auto width = static_cast<std::int64_t>(x.size());
    ForwardInputs inputs;
    inputs.query = filled({1, heads, 1, width}, 0.0f);
    inputs.key = filled({1, heads, 1, width}, 0.0f);
    inputs.value = filled({1, heads, 1, 1}, 1.0f);
    for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t d = 0; d < width; ++d) {
            at(inputs.query, 0, h, 0, d) = x[static_cast<std::size_t>(d)];
            at(*inputs.key, 0, h, 0, d) = y[static_cast<std::size_t>(d)];
        }
    return inputs;
}
double squares(const std::vector<float>& x) {
    double sum = 0;
    for (const float value : x) sum += static_cast<double>(value) * static_cast<double>(value);
    return sum;
}
std::vector<float> numbers(Random& random, std::size_t count, float size) {
    std::vector<float> out;
    for (std::size_t at = 0; at < count; ++at) out.push_back(size * random.normal());
    return out;
}

// Root of the mean square error of each row against exact attention, over heads with directions of their own and redraws.
double median_error(const ForwardInputs& inputs, const std::vector<float>& exact, std::int64_t features,
                    bool orthogonal) {
    std::vector<double> errors;
    const auto width = static_cast<std::size_t>(inputs.value->shape[3]);
    for (int redraw = 0; redraw < 64; ++redraw) {
        const auto got = values(call(inputs, performer,
                                     {{"num_features", features},
                                      {"orthogonal", orthogonal},
                                      {"per_head_features", true},
                                      {"redraw_index", redraw}})
                                    .output);
        for (std::size_t at = 0; at < got.size(); at += width) {
            double sum = 0;
            for (std::size_t c = 0; c < width; ++c)
                sum += std::pow(static_cast<double>(got[at + c]) - static_cast<double>(exact[at + c]), 2);
            errors.push_back(std::sqrt(sum / static_cast<double>(width)));
        }
    }
    std::nth_element(errors.begin(), errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2), errors.end());
    return errors[errors.size() / 2];
}

}  // namespace

TEST_CASE("performer-attention: opposite rows") {
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        Random random(seed);
        const std::vector<float> x = numbers(random, static_cast<std::size_t>(2 + random.below(14)), 0.8f);
        std::vector<float> opposite = x;
        for (float& value : opposite) value = -value;
        // x' = sqrt(scale) x.
        const double scale = 0.5, square = scale * squares(x);
        for (const char* kernel : {"softmax", "hyperbolic"})
            for (const NamedValues& stabilizer :
                 {NamedValues{{"stabilizer", "exact"}}, NamedValues{{"feature_eps", 0}, {"denom_eps", 0}}}) {
                const ForwardResult got =
                    forward(one_pair(x, opposite, 3), performer,
                            with(stabilizer, {{"kernel", kernel}, {"scale", scale}, {"num_features", 5}}));
                CHECK(static_cast<double>(values(*got.lse)[0]) == Approx(-square).epsilon(1e-5).margin(1e-5));
            }
        // Relative to the key's own factor the trigonometric estimate of <x, x> is 1, as its guard shows.
        const ForwardResult trig =
            call(one_pair(x, x, 2), performer, {{"kernel", "trig"}, {"scale", scale}, {"denom_eps", 10}});
        CHECK(static_cast<double>(values(trig.output)[0]) == Approx(1.0 / 21.0).epsilon(1e-5));
    }
}

TEST_CASE("performer-attention: stacked directions") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const Tensor half = normal(random, {7, shape.head_dim});
        for (const NamedValues& options :
             {NamedValues{{"feature_eps", 0}, {"denom_eps", 0}}, NamedValues{{"stabilizer", "exact"}}}) {
            inputs.weights = {{"projection", half}};
            const ForwardResult hyperbolic = forward(inputs, performer, with(options, {{"kernel", "hyperbolic"}}));
            inputs.weights = {{"projection", joined(half, mapped(half, [](float x) { return -x; }), 0)}};
            CHECK(agree(hyperbolic, forward(inputs, performer, options), 2e-5));
        }
    });
}

TEST_CASE("performer-attention: unbiased") {
    // |x' + y'| stays below 1: the relative variance grows like its exponential.
    Random random(8);
    const std::int64_t heads = 128;
    for (const bool orthogonal : {true, false})
        for (const char* kernel : {"softmax", "hyperbolic"}) {
            const std::vector<float> x = numbers(random, 4, 0.2f), y = numbers(random, 4, 0.2f);
            const ForwardInputs inputs = one_pair(x, y, heads);
            double exact = 0, sum = 0, of_squares = 0, count = 0;
            for (std::size_t d = 0; d < 4; ++d) exact += static_cast<double>(x[d]) * static_cast<double>(y[d]);
            for (int redraw = 0; redraw < 30; ++redraw)
                for (const float lse : values(*forward(inputs, performer,
                                                       {{"kernel", kernel},
                                                        {"scale", 1},
                                                        {"stabilizer", "exact"},
                                                        {"orthogonal", orthogonal},
                                                        {"num_features", 6},
                                                        {"per_head_features", true},
                                                        {"redraw_index", redraw}})
                                                   .lse)) {
                    const double estimate = std::exp(static_cast<double>(lse));
                    sum += estimate;
                    of_squares += estimate * estimate;
                    ++count;
                }
            const double mean = sum / count, deviation = std::sqrt(of_squares / count - mean * mean);
            CHECK(std::abs(mean - std::exp(exact)) <= 5 * deviation / std::sqrt(count));
        }
}

TEST_CASE("performer-attention: error and features") {
    Random random(9);
    ForwardInputs inputs = make_inputs(random, {1, 8, 8, 24, 24, 8, 8});
    for (auto* tensor : {&inputs.query, &*inputs.key}) *tensor = mapped(*tensor, [](float x) { return 0.5f * x; });
    const auto exact = values(call(inputs, "standard-mha").output);
    const double few = median_error(inputs, exact, 32, true), many = median_error(inputs, exact, 128, true);
    CHECK((few / many >= 1.6 && few / many <= 2.3));
    CHECK(few <= median_error(inputs, exact, 32, false));
}

TEST_CASE("performer-attention: given projection") {
    // The directions by their definition, passed as a weight, are those that the seed stands for.
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const bool orthogonal : {true, false}) {
            const std::int64_t m = 1 + random.below(30);
            const Directions of{"performer-attention",
                                static_cast<std::size_t>(m),
                                static_cast<std::size_t>(shape.head_dim),
                                77,
                                5,
                                orthogonal};
            ForwardInputs given = inputs;
            given.weights = {{"projection", matrix(omega(of))}};
            CHECK(agree(forward(given, performer),
                        forward(inputs, performer,
                                {{"num_features", m}, {"seed", 77}, {"redraw_index", 5}, {"orthogonal", orthogonal}})));
        }
    });
}

TEST_CASE("performer-attention: orthogonal blocks") {
    // Relative to the identity of the test above: what the seed stands for has orthogonal rows in each block of D, of
    // squared length D on the mean (chi) or exactly (sqrtD).
    for (const std::size_t d : {4u, 9u}) {
        double mean = 0;
        constexpr std::size_t draws = 60;
        for (std::size_t seed = 0; seed < draws; ++seed)
            for (const bool sqrt_norms : {false, true}) {
                const auto rows = omega({"performer-attention", 2 * d, d, seed, 0, true, sqrt_norms});
                for (std::size_t a = 0; a < 2 * d; ++a) {
                    const double size = specs::linear::dot(rows[a], rows[a]);
                    if (sqrt_norms) CHECK(size == Approx(static_cast<double>(d)).epsilon(1e-6));
                    if (!sqrt_norms) mean += size / static_cast<double>(2 * d * draws);
                    for (std::size_t b = a / d * d; b < a; ++b)
                        CHECK(std::abs(specs::linear::dot(rows[a], rows[b])) <=
                              1e-6 * std::sqrt(size * specs::linear::dot(rows[b], rows[b])));
                }
            }
        CHECK(mean == Approx(static_cast<double>(d)).epsilon(0.1));
    }
    // The calls that read them: directions of length sqrt(D) through the service.
    Random random(4);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 12, 4, 4});
    ForwardInputs given = inputs;
    given.weights = {{"projection", matrix(omega({"performer-attention", 6, 4, 0, 0, true, true}))}};
    CHECK(agree(forward(given, performer), forward(inputs, performer, {{"num_features", 6}, {"norms", "sqrtD"}})));
}

TEST_CASE("performer-attention: check values") {
    // Row 0, 3 and 5 of the matrix of seed 0 with D = 4 and M = 6.
    const double printed[3][4] = {{-0.6622589, 0.0295542, 0.1217968, 0.5958732},
                                  {-0.1337315, -0.9220226, 0.7841676, -0.2631842},
                                  {-0.5254914, -0.3252043, 1.0254729, 1.5511869}};
    const std::size_t which[] = {0, 3, 5};
    const auto rows = omega({"performer-attention", 6, 4});
    for (std::size_t r = 0; r < 3; ++r)
        for (std::size_t c = 0; c < 4; ++c) CHECK(std::abs(rows[which[r]][c] - printed[r][c]) <= 1e-6);
    const double elements[] = {-0.9806946, 0.1175193, -1.5114749, -1.0570566, 0.0437648};
    for (std::uint64_t e = 0; e < 5; ++e)
        CHECK(std::abs(specs::linear::feature_normal("performer-attention/projection", 0, 0, e) - elements[e]) <= 1e-6);
    // And in a call: u = 2 omega q omega k with one direction and the relu kernel gives that direction back.
    Random random(6);
    for (std::size_t r = 0; r < 3; ++r) {
        ForwardInputs inputs = make_inputs(random, {1, 1, 1, 3, 5, 4, 4});
        ForwardInputs given = inputs;
        given.weights = {{"projection", matrix(rows)}};
        CHECK(agree(forward(given, performer, {{"kernel", "relu"}}),
                    forward(inputs, performer, {{"kernel", "relu"}, {"num_features", 6}}), 1e-6));
    }
}

TEST_CASE("performer-attention: constant weight of the keys") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        for (const NamedValues& options : {NamedValues{{"stabilizer", "exact"}, {"num_features", 12}},
                                           NamedValues{{"causal", true}, {"num_features", 12}}}) {
            inputs.bias.reset();
            const ForwardResult before = forward(inputs, performer, options);
            inputs.bias = filled({1, 1, 1, shape.kv_len}, 60.0f);
            const ForwardResult after = forward(inputs, performer, options);
            CHECK(agree(before.output, after.output));
            CHECK(agree(mapped(*before.lse, [](float x) { return x + 60.0f; }), *after.lse));
        }
    });
}

TEST_CASE("performer-attention: stabilizers") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* kernel : {"softmax", "hyperbolic"})
            for (const bool causal : {false, true}) {
                const NamedValues options = {{"kernel", kernel}, {"causal", causal}, {"num_features", 40}};
                CHECK(agree(
                    forward(inputs, performer, with(options, {{"stabilizer", "exact"}})),
                    forward(inputs, performer,
                            with(options, {{"stabilizer", "official"}, {"feature_eps", 0}, {"denom_eps", 1e-30}})),
                    3e-5));
            }
    });
}

TEST_CASE("performer-attention: causal rows") {
    // Row i of a causal call is the only row of a call on the keys up to its position.
    on_random_shapes({.group = 2, .length = 100}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* kernel : {"softmax", "hyperbolic", "relu"}) {
            const NamedValues options = {{"kernel", kernel}, {"num_features", 20}};
            const ForwardResult whole = forward(inputs, performer, with(options, {{"causal", true}}));
            const std::int64_t i = random.below(shape.q_len);
            ForwardInputs one = inputs;
            one.query = take(inputs.query, 2, {i});
            one.key = take(*inputs.key, 2, range(0, i + 1));
            one.value = take(*inputs.value, 2, range(0, i + 1));
            const ForwardResult row = forward(one, performer, with(options, {{"stabilizer", "exact"}}));
            CHECK(agree(take(whole.output, 2, {i}), row.output));
            CHECK(agree(take(*whole.lse, 2, {i}), *row.lse));
        }
    });
}

TEST_CASE("performer-attention: key order") {
    for (const char* kernel : {"softmax", "hyperbolic", "relu"}) check_key_order(performer, {{"kernel", kernel}});
}
TEST_CASE("performer-attention: last causal row") { check_last_row(performer, {{"stabilizer", "exact"}}); }
TEST_CASE("performer-attention: future keys") {
    for (const char* kernel : {"softmax", "hyperbolic", "relu"}) check_future(performer, {{"kernel", kernel}});
}
TEST_CASE("performer-attention: decoding") { check_decoding(performer, {{"num_features", 24}}); }
TEST_CASE("performer-attention: threads") {
    for (const bool causal : {false, true}) check_threads(performer, {{"causal", causal}});
}

TEST_CASE("performer-attention: rejects what acts on single scores") { check_refuses_pairs(performer); }
TEST_CASE("performer-attention: rejects a projection that does not fit") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 4, 2, 5, 5, 8, 8});
    inputs.weights = {{"projection", normal(random, {6, 7})}};
    rejects(inputs, performer, {}, {"projection", "7", "8"});
    inputs.weights = {{"projection", normal(random, {6, 8})}};
    rejects(inputs, performer, {{"num_features", 5}}, {"projection", "6", "5"});
    inputs.weights = {{"projection", normal(random, {4, 6, 8})}};
    rejects(inputs, performer, {}, {"projection", "4", "2"});
    inputs.weights.clear();
    rejects(inputs, performer, {{"num_features", 0}}, {"num_features", "0"});
}
TEST_CASE("performer-attention: rejects options against each other") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 5, 5, 8, 8});
    rejects(inputs, performer, {{"stabilizer", "exact"}, {"feature_eps", 1e-3}}, {"feature_eps", "0.001", "exact"});
    rejects(inputs, performer, {{"causal", true}, {"feature_eps", 1e-3}}, {"feature_eps", "exact"});
    rejects(inputs, performer, {{"use_projection", false}}, {"use_projection", "relu"});
    rejects(inputs, performer, {{"redraw", true}}, {"redraw", "redraw_index"});
    rejects(inputs, performer, {{"num_features", 4}, {"num_random_features", 4}},
            {"num_features", "num_random_features"});
    rejects(inputs, performer, {{"scale", -1.0}}, {"scale", "-1"});
    rejects(inputs, performer, {{"denom_eps", -1.0}}, {"denom_eps", "-1"});
    attend::ForwardOptions asked;
    asked.mechanism = performer;
    asked.options = {{"kernel", "trig"}};
    asked.lse = true;
    const auto result = service().forward(inputs, asked);
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("trig") != std::string::npos);
}
