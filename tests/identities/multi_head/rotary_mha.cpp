// SPDX-License-Identifier: Apache-2.0
// Identities of rotary-mha.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* rotary = "rotary-mha";
constexpr double pi = 3.14159265358979323846;

NamedValues joined_options(NamedValues a, const NamedValues& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

// The rows of x [N, D] as the mechanism turns them at the given positions: one key per channel, a unit vector that is
// not turned, so that the log-sum-exp of head d is channel d of the turned query.
Tensor rotated(const Tensor& x, const std::vector<std::int64_t>& positions, const NamedValues& options = {}) {
    const std::int64_t rows = x.shape[0], width = x.shape[1];
    ForwardInputs inputs;
    inputs.query = x.view({1, width, rows, width}, {0, 0, width, 1});
    inputs.key = filled({1, width, 1, width}, 0.0f);
    for (std::int64_t d = 0; d < width; ++d) at(*inputs.key, 0, d, 0, d) = 1.0f;
    inputs.value = filled({1, width, 1, 1}, 1.0f);
    inputs.extra = {{"positions_q", ints({rows}, positions)}};
    const ForwardResult result =
        forward(inputs, rotary, joined_options({{"keys_rotated", true}, {"scale", 1.0}}, options));
    Tensor turned = filled({rows, width}, 0.0f);
    for (std::int64_t d = 0; d < width; ++d)
        for (std::int64_t row = 0; row < rows; ++row) turned.as<float>()[row * width + d] = at(*result.lse, 0, d, row);
    return turned;
}

// Columns of pair t of a half-split rotation over r channels.
Tensor pair_columns(const Tensor& x, std::int64_t r, std::int64_t t) { return take(x, 1, {t, t + r / 2}); }

// Dim t goes to 2t, t + r/2 to 2t + 1; entries of `take`.
std::vector<std::int64_t> paired_order(std::int64_t width, std::int64_t r) {
    std::vector<std::int64_t> order = range(0, width);
    for (std::int64_t t = 0; t < r / 2; ++t) {
        order[static_cast<std::size_t>(2 * t)] = t;
        order[static_cast<std::size_t>(2 * t + 1)] = t + r / 2;
    }
    return order;
}

std::int64_t even_below(Random& random, std::int64_t width) { return 2 * (1 + random.below(width / 2)); }
std::vector<std::int64_t> some_positions(Random& random, std::int64_t count, std::int64_t most = 5000) {
    std::vector<std::int64_t> positions;
    for (std::int64_t at = 0; at < count; ++at) positions.push_back(random.below(2 * most + 1) - most);
    return positions;
}
std::vector<std::int64_t> plus(std::vector<std::int64_t> positions, std::int64_t shift) {
    for (std::int64_t& position : positions) position += shift;
    return positions;
}
std::vector<std::int64_t> times(std::vector<std::int64_t> positions, std::int64_t factor) {
    for (std::int64_t& position : positions) position *= factor;
    return positions;
}

}  // namespace

TEST_CASE("rotary-mha: shifted positions") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t r = even_below(random, shape.head_dim);
        for (const char* layout : {"half", "interleaved"})
            for (const bool causal : {true, false}) {
                const NamedValues options = {{"layout", layout}, {"rotary_dim", r}, {"causal", causal}};
                inputs.extra.clear();
                const ForwardResult plain = forward(inputs, rotary, options);
                for (const std::int64_t shift : {0, -1000, 123456}) {
                    inputs.extra.clear();
                    CHECK(agree(forward(inputs, rotary, joined_options(options, {{"position_offset", shift}})), plain));
                    const std::vector<std::int64_t> q = range(shape.kv_len - shape.q_len, shape.kv_len),
                                                    k = range(0, shape.kv_len);
                    inputs.extra = {{"positions_q", ints({shape.q_len}, plus(q, shift))},
                                    {"positions_k", ints({shape.kv_len}, plus(k, shift))}};
                    CHECK(agree(forward(inputs, rotary, options), plain));
                    inputs.extra.pop_back();
                    CHECK(agree(forward(inputs, rotary, joined_options(options, {{"position_offset", shift}})), plain));
                }
            }
    });
}

TEST_CASE("rotary-mha: interleaved and half") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const std::int64_t width = shape.head_dim, r = even_below(random, width);
        const std::vector<std::int64_t> order = paired_order(width, r);
        const Tensor x = normal(random, {9, width});
        const std::vector<std::int64_t> positions = some_positions(random, 9);
        CHECK(agree(rotated(take(x, 1, order), positions, {{"rotary_dim", r}, {"layout", "interleaved"}}),
                    take(rotated(x, positions, {{"rotary_dim", r}}), 1, order)));
        const ForwardInputs inputs = make_inputs(random, shape);
        ForwardInputs other = inputs;
        other.query = take(inputs.query, 3, order);
        other.key = take(*inputs.key, 3, order);
        CHECK(agree(forward(other, rotary, {{"rotary_dim", r}, {"layout", "interleaved"}}),
                    forward(inputs, rotary, {{"rotary_dim", r}})));
    });
}

TEST_CASE("rotary-mha: norm and composition") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t rows = 3 + random.below(20), width = 2 + random.below(30), r = even_below(random, width);
        const Tensor x = normal(random, {rows, width});
        const std::vector<std::int64_t> first = some_positions(random, rows), second = some_positions(random, rows);
        std::vector<std::int64_t> sum = first;
        for (std::size_t row = 0; row < sum.size(); ++row) sum[row] += second[row];
        for (const char* layout : {"half", "interleaved"}) {
            const NamedValues options = {{"rotary_dim", r}, {"layout", layout}};
            const Tensor once = rotated(x, first, options);
            for (std::int64_t row = 0; row < rows; ++row) {
                double before = 0, after = 0;
                for (std::int64_t d = row * width; d < (row + 1) * width; ++d) {
                    before += std::pow(static_cast<double>(x.as<float>()[d]), 2);
                    after += std::pow(static_cast<double>(once.as<float>()[d]), 2);
                }
                CHECK(std::abs(std::sqrt(before) - std::sqrt(after)) <= 1e-5 * (1 + std::sqrt(before)));
            }
            CHECK(agree(rotated(once, second, options), rotated(x, sum, options)));
        }
    }
}

TEST_CASE("rotary-mha: linear and ntk") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t width = 4 + random.below(28), r = 4 + 2 * random.below((width - 2) / 2);
        const std::int64_t factor = 2 + random.below(7);
        INFO("width " << width << ", r " << r << ", factor " << factor);
        const Tensor x = normal(random, {11, width});
        const std::vector<std::int64_t> positions = some_positions(random, 11);
        const Tensor none = rotated(x, positions, {{"rotary_dim", r}});
        const NamedValues linear = {{"rotary_dim", r}, {"scaling", "linear"}, {"scaling_factor", factor}};
        CHECK(agree(rotated(x, times(positions, factor), linear), none));
        const Tensor ntk = rotated(x, positions, {{"rotary_dim", r}, {"scaling", "ntk"}, {"scaling_factor", factor}});
        CHECK(agree(pair_columns(ntk, r, 0), pair_columns(none, r, 0)));
        CHECK(agree(pair_columns(ntk, r, r / 2 - 1), pair_columns(rotated(x, positions, linear), r, r / 2 - 1)));
        if (r > 4) CHECK_FALSE(agree(pair_columns(ntk, r, 1), pair_columns(none, r, 1), 1e-3));
    }
}

TEST_CASE("rotary-mha: dynamicNtk and llama3") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t width = 4 + 2 * random.below(14), factor = 2 + random.below(7);
        ForwardInputs inputs = make_inputs(random, {1, 2, 1, 30, 30, width, 5});
        const auto dynamic = [&](std::int64_t trained, std::int64_t offset) {
            return forward(inputs, rotary,
                           {{"scaling", "dynamicNtk"},
                            {"scaling_factor", factor},
                            {"original_max_position", trained},
                            {"position_offset", offset}});
        };
        CHECK(agree(dynamic(30, 0), forward(inputs, rotary)));
        CHECK(agree(dynamic(131, 100), forward(inputs, rotary)));
        for (const std::int64_t trained : {29, 16, 5}) {
            const double longer =
                static_cast<double>(factor * 30) / static_cast<double>(trained) - static_cast<double>(factor - 1);
            CHECK(
                agree(dynamic(trained, 0), forward(inputs, rotary, {{"scaling", "ntk"}, {"scaling_factor", longer}})));
        }
        const Tensor x = normal(random, {11, width});
        const std::vector<std::int64_t> positions = some_positions(random, 11);
        const double trained = 300, low = 1, high = 4;
        const Tensor none = rotated(x, positions),
                     linear = rotated(x, positions, {{"scaling", "linear"}, {"scaling_factor", factor}}),
                     llama =
                         rotated(x, positions,
                                 {{"scaling", "llama3"}, {"scaling_factor", factor}, {"original_max_position", 300}});
        for (std::int64_t t = 0; t < width / 2; ++t) {
            const double wave = 2 * pi * std::pow(10000.0, 2.0 * static_cast<double>(t) / static_cast<double>(width));
            if (wave < trained / high) CHECK(agree(pair_columns(llama, width, t), pair_columns(none, width, t)));
            if (wave > trained / low) CHECK(agree(pair_columns(llama, width, t), pair_columns(linear, width, t)));
        }
    }
}

TEST_CASE("rotary-mha: yarn") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t width = 16 + 2 * random.below(25), factor = 2 + random.below(15);
        const double base = 10000, trained = 2048, fast = 32, slow = 1;
        const ForwardInputs inputs = make_inputs(random, {2, 2, 1, 20, 33, width, 7});
        CHECK(agree(forward(inputs, rotary, {{"scaling", "yarn"}, {"scaling_factor", 1}}), forward(inputs, rotary)));

        const Tensor x = normal(random, {11, width});
        const std::vector<std::int64_t> positions = some_positions(random, 11);
        const Tensor none = rotated(x, positions),
                     linear = rotated(x, positions, {{"scaling", "linear"}, {"scaling_factor", factor}});
        const NamedValues options = {{"scaling", "yarn"}, {"scaling_factor", factor}};
        const Tensor yarn = rotated(x, positions, joined_options(options, {{"attention_factor", 1}}));
        const auto pair_of = [&](double turns) {
            return static_cast<double>(width) * std::log(trained / (2 * pi * turns)) / (2 * std::log(base));
        };
        const double least = std::max(0.0, std::floor(pair_of(fast))),
                     most = std::min(static_cast<double>(width - 1), std::ceil(pair_of(slow)));
        std::int64_t kept = 0, divided = 0;
        for (std::int64_t t = 0; t < width / 2; ++t) {
            const Tensor got = pair_columns(yarn, width, t);
            if (static_cast<double>(t) <= least) {
                ++kept;
                CHECK(agree(got, pair_columns(none, width, t)));
            }
            if (static_cast<double>(t) >= most) {
                ++divided;
                CHECK(agree(got, pair_columns(linear, width, t)));
            }
        }
        CHECK(kept > 0);
        CHECK(divided > 0);

        // With every channel turned, the factor of both sides is a factor of the scores.
        const double m = 0.1 * std::log(static_cast<double>(factor)) + 1.0,
                     usual = 1 / std::sqrt(static_cast<double>(width));
        const auto with = [&](const char* option, double value) { return joined_options(options, {{option, value}}); };
        const ForwardResult automatic = forward(inputs, rotary, options);
        CHECK(agree(automatic, forward(inputs, rotary, with("attention_factor", m))));
        for (const double size : {m, 0.5, 1.7})
            CHECK(agree(forward(inputs, rotary, with("attention_factor", size)),
                        forward(inputs, rotary,
                                joined_options(with("attention_factor", 1.0), {{"scale", usual * size * size}}))));
    }
}

TEST_CASE("rotary-mha: unturned channels and decode") {
    on_random_shapes({.group = 2, .width = 28, .same_width = false}, [](Random& random, Shape shape) {
        shape.head_dim += 2;
        const std::int64_t width = shape.head_dim, r = even_below(random, width - 1);
        const ForwardInputs inputs = make_inputs(random, shape);
        ForwardInputs rest = inputs;
        rest.query = take(inputs.query, 3, range(r, width));
        rest.key = take(*inputs.key, 3, range(r, width));
        const ForwardResult plain =
            forward(rest, "standard-mha", {{"scale", 1 / std::sqrt(static_cast<double>(width))}});
        const auto emptied = [&](const Tensor& tensor) {
            std::vector<std::int64_t> shape_of = tensor.shape;
            shape_of[3] = r;
            return joined(filled(shape_of, 0.0f), take(tensor, 3, range(r, width)), 3);
        };
        for (const bool key : {false, true}) {
            ForwardInputs zeroed = inputs;
            (key ? *zeroed.key : zeroed.query) = emptied(key ? *inputs.key : inputs.query);
            CHECK(agree(forward(zeroed, rotary, {{"rotary_dim", r}, {"attention_factor", 1.5}}), plain));
        }

        const NamedValues options = {{"rotary_dim", r}, {"causal", true}, {"attention_factor", 1.2}};
        const ForwardResult whole = forward(inputs, rotary, options);
        ForwardInputs step = inputs;
        step.query = take(inputs.query, 2, {shape.q_len - 1});
        step.key = filled(inputs.key->shape, 0.0f);
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
                const Tensor head = take(take(*inputs.key, 0, {b}), 1, {h});
                const Tensor turned = rotated(head.view({shape.kv_len, width}, {width, 1}), range(0, shape.kv_len),
                                              {{"rotary_dim", r}, {"attention_factor", 1.2}});
                for (std::int64_t j = 0; j < shape.kv_len; ++j)
                    for (std::int64_t d = 0; d < width; ++d)
                        at(*step.key, b, h, j, d) = turned.as<float>()[j * width + d];
            }
        const ForwardResult last = forward(step, rotary, joined_options(options, {{"keys_rotated", true}}));
        CHECK(agree(last.output, take(whole.output, 2, {shape.q_len - 1})));
        CHECK(agree(*last.lse, take(*whole.lse, 2, {shape.q_len - 1})));
    });
}

TEST_CASE("rotary-mha: rejects channels that do not pair") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 4, 5, 5, 8, 8});
    rejects(inputs, rotary, {{"rotary_dim", 5}}, {"rotary_dim", "5", "even", "8"});
    rejects(inputs, rotary, {{"rotary_dim", 10}}, {"rotary_dim", "10", "8"});
    rejects(inputs, rotary, {{"rotary_dim", 0}}, {"rotary_dim", "0", "accepted"});
    rejects(make_inputs(random, {1, 2, 2, 5, 5, 7, 7}), rotary, {}, {"rotary_dim", "7", "even"});
    for (const char* scaling : {"ntk", "dynamicNtk"})
        rejects(inputs, rotary, {{"scaling", scaling}, {"rotary_dim", 2}}, {"scaling", scaling, "rotary_dim", "2"});
}

TEST_CASE("rotary-mha: rejects scalings out of range") {
    Random random(2);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 4, 5, 5, 8, 8});
    rejects(inputs, rotary, {{"scaling", "linear"}, {"scaling_factor", 0.5}}, {"scaling_factor", "0.5", "accepted"});
    rejects(inputs, rotary, {{"scaling", "stretch"}}, {"scaling", "stretch", "yarn"});
    rejects(inputs, rotary, {{"base", 1}}, {"base", "1", "accepted"});
    rejects(inputs, rotary, {{"attention_factor", 0}}, {"attention_factor", "0", "accepted"});
    rejects(inputs, rotary, {{"scaling", "yarn"}, {"beta_fast", 0.5}}, {"beta_fast", "0.5", "beta_slow", "1"});
    rejects(inputs, rotary, {{"scaling", "llama3"}, {"low_freq_factor", 4.5}},
            {"high_freq_factor", "4", "low_freq_factor", "4.5"});
    rejects(inputs, rotary, {{"scaling", "llama3"}, {"low_freq_factor", 0}}, {"low_freq_factor", "0", "accepted"});
    rejects(inputs, rotary, {{"scaling", "dynamicNtk"}, {"keys_rotated", true}}, {"keys_rotated", "dynamicNtk"});
}

TEST_CASE("rotary-mha: rejects positions that do not fit") {
    Random random(3);
    ForwardInputs inputs = make_inputs(random, {2, 4, 4, 5, 6, 8, 8});
    inputs.extra = {{"positions_q", ints({4}, {0, 1, 2, 3})}};
    rejects(inputs, rotary, {}, {"positions_q", "4", "5"});
    inputs.extra = {{"positions_k", ints({2, 5}, range(0, 10))}};
    rejects(inputs, rotary, {}, {"positions_k", "5", "6"});
    inputs.extra = {{"positions_k", ints({3, 6}, range(0, 18))}};
    rejects(inputs, rotary, {}, {"positions_k", "3", "2"});
    inputs.extra = {{"positions_q", ints({5}, range(0, 5))}};
    rejects(inputs, rotary, {{"query_offset", 3}}, {"query_offset", "3", "positions_q"});
    inputs.extra = {{"positions_k", ints({6}, range(0, 6))}};
    rejects(inputs, rotary, {{"position_offset", 7}}, {"position_offset", "7", "positions_k"});
    rejects(inputs, rotary, {{"keys_rotated", true}}, {"keys_rotated", "true", "positions_k"});
}
