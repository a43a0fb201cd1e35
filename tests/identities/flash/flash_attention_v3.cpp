// SPDX-License-Identifier: Apache-2.0
// Identities of flash-attention-v3.
#include "identities/identities.hpp"
#include "specs/flash/quantised.hpp"

namespace {

using namespace identities;
using specs::quantised::Formats;
using specs::quantised::Rounded;
constexpr const char* v2 = "flash-attention-v2";
constexpr const char* v3 = "flash-attention-v3";
constexpr const char* precisions[] = {"fp32", "bf16", "int8", "fp8"};
constexpr const char* low_precisions[] = {"bf16", "int8", "fp8"};

NamedValues with(NamedValues options, const NamedValues& more) {
    options.insert(options.end(), more.begin(), more.end());
    return options;
}
NamedValues in(const char* precision, const NamedValues& more = {}) { return with({{"precision", precision}}, more); }
// Weights and values as they are: what is left is the rounding of queries and keys.
NamedValues scores_alone(const char* precision, const NamedValues& more = {}) {
    return in(precision, with({{"p_precision", "fp32"}, {"v_precision", "fp32"}}, more));
}

bool same_call(const ForwardResult& a, const ForwardResult& b) {
    return same_bits(a.output, b.output) && same_bits(*a.lse, *b.lse);
}

double relative_error(const Tensor& got, const Tensor& exact) {
    const std::vector<float> a = values(got), b = values(exact);
    double off = 0, size = 0;
    for (std::size_t at = 0; at < a.size(); ++at) {
        off += std::pow(static_cast<double>(a[at]) - static_cast<double>(b[at]), 2);
        size += std::pow(static_cast<double>(b[at]), 2);
    }
    return std::sqrt(off / size);
}

// Every output, lse and float64 run of a call against flash-attention-v2 and the bounds. Options without masks: keys
// that a row sees follow from causal alone.
struct Errors {
    double own{0}, run{0};  // sums of squares of the errors: of the call and of a float64 run of its rounding
};
Errors check_bounds(const ForwardInputs& inputs, const NamedValues& options) {
    const ForwardResult got = forward(inputs, v3, options);
    const specs::Call call{&inputs, got.options()};
    const specs::Expected exact = specs::dense(call, specs::everywhere, true, true);
    const Rounded rounded(call);
    const Formats& formats = rounded.formats;
    const specs::Expected run = specs::quantised::solved_rounded(call, rounded);
    const double weight = Formats::unit(formats.weights), value = Formats::unit(formats.values);
    const std::vector<float> o = values(got.output), lse = values(*got.lse);
    const auto width = static_cast<std::size_t>(rounded.value_dim);
    Errors errors;
    bool within = true;
    for (std::int64_t b = 0; b < rounded.batch; ++b)
        for (std::int64_t h = 0; h < rounded.q_heads; ++h)
            for (std::int64_t i = 0; i < rounded.q_len; ++i) {
                std::vector<std::int64_t> allowed;
                for (std::int64_t j = 0; j < rounded.kv_len; ++j)
                    if (specs::common_visible(call, {b, h, i, j, i + specs::offset_of(call, b)}, true, true))
                        allowed.push_back(j);
                if (allowed.empty()) continue;
                const std::size_t row = rounded.row(b, h, i);
                const double eps = rounded.eps(b, h, i, allowed), slack = 1e-6;
                within = within && std::abs(static_cast<double>(lse[row]) - exact.lse[row]) <=
                                       eps + 0x1p-17 * std::max(1.0, std::abs(exact.lse[row])) + slack;
                const std::size_t head = rounded.key_head(b, h);
                double sum = 0;  // l: weights relative to the largest
                double most = 0;
                for (const std::int64_t j : allowed)
                    most = std::max(
                        most, exact.p[row * static_cast<std::size_t>(rounded.kv_len) + static_cast<std::size_t>(j)]);
                sum = 1.0 / most;
                for (std::size_t c = 0; c < width; ++c) {
                    double low = INFINITY, high = -INFINITY, size = 0;
                    for (const std::int64_t j : allowed) {
                        const double v = static_cast<double>(at(inputs.value ? *inputs.value : *inputs.key, b,
                                                                h * rounded.kv_heads / rounded.q_heads, j,
                                                                static_cast<std::int64_t>(c)));
                        low = std::min(low, v), high = std::max(high, v);
                        size = std::max(size, std::abs(v - rounded.mean[head * width + c]));
                    }
                    double bound =
                        std::tanh(eps / 2) * (high - low) + (weight + value + weight * value + 0x1p-17) * size;
                    if (formats.weights == "e4m3") bound += 0x1p-18 * static_cast<double>(rounded.kv_len) * size / sum;
                    if (formats.values == "e4m3")
                        bound += static_cast<double>(rounded.value_scale[head * width + c]) * 0x1p-10;
                    const double off = static_cast<double>(o[row * width + c]) - exact.o[row * width + c];
                    within = within && std::abs(off) <= bound + slack;
                    errors.own += off * off;
                    errors.run += std::pow(run.o[row * width + c] - exact.o[row * width + c], 2);
                }
            }
    CHECK(within);
    return errors;
}

// The float64 run of all of a call's rounding, weights included, at the final maximum.
std::vector<double> rounded_run(const ForwardInputs& inputs, const ForwardResult& got) {
    const specs::Call call{&inputs, got.options()};
    const Rounded rounded(call);
    const std::string& format = rounded.formats.weights;
    const auto keys = static_cast<std::size_t>(rounded.kv_len), width = static_cast<std::size_t>(rounded.value_dim);
    std::vector<double> out;
    for (std::int64_t b = 0; b < rounded.batch; ++b)
        for (std::int64_t h = 0; h < rounded.q_heads; ++h)
            for (std::int64_t i = 0; i < rounded.q_len; ++i) {
                const double* x = &rounded.score[rounded.row(b, h, i) * keys];
                const double most = *std::max_element(x, x + keys);
                const double* v = &rounded.value[rounded.key_head(b, h) * keys * width];
                std::vector<double> row(width, 0.0);
                double sum = 0;
                for (std::size_t j = 0; j < keys; ++j) {
                    const double e = std::exp(x[j] - most);
                    const auto whole = static_cast<float>(e);
                    const double weight = format == "bf16" ? static_cast<double>(specs::quantised::bf16(whole))
                                          : format == "e4m3"
                                              ? static_cast<double>(specs::quantised::e4m3(whole * 256.0f)) / 256.0
                                              : e;
                    sum += e;
                    for (std::size_t c = 0; c < width; ++c) row[c] += weight * v[j * width + c];
                }
                for (const double element : row) out.push_back(element / sum);
            }
    return out;
}

ForwardInputs outliers(Random& random, const Shape& shape) {
    ForwardInputs inputs = make_inputs(random, shape);
    for (Tensor* tensor : {&inputs.query, &*inputs.key, &*inputs.value})
        for (std::int64_t n = 0; n < tensor->size(); ++n)
            if (random.below(1000) == 0) tensor->as<float>()[n] += 10.0f * random.normal();
    return inputs;
}

specs::quantised::Row signs_of(std::size_t count, std::uint64_t seed) {
    specs::quantised::Row signs;
    for (std::uint32_t d = 0; d < count; ++d)
        signs.push_back(oracle::philox_word(seed, d / 4, 0, 0, 6u << 24, static_cast<int>(d % 4)) >> 31 ? -1.0f : 1.0f);
    return signs;
}

Shape square(std::int64_t heads, std::int64_t length, std::int64_t width) {
    return {1, heads, heads, length, length, width, width};
}

}  // namespace

TEST_CASE("flash-attention-v3: float32") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const NamedValues& more :
             {NamedValues{}, NamedValues{{"causal", true}}, NamedValues{{"softcap", 2.0}, {"window_size", 9}},
              NamedValues{{"dropout", 0.25}, {"seed", 4}}})
            for (const int stages : {1, 2, 4})
                CHECK(same_call(forward(inputs, v3, in("fp32", with(more, {{"pipeline_stages", stages}}))),
                                forward(inputs, v2, more)));
    });
}

TEST_CASE("flash-attention-v3: pipeline stages") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* precision : precisions) {
            const ForwardResult one = forward(inputs, v3, in(precision, {{"pipeline_stages", 1}}));
            for (const int stages : {2, 3, 4})
                CHECK(same_call(one, forward(inputs, v3, in(precision, {{"pipeline_stages", stages}}))));
        }
    });
}

TEST_CASE("flash-attention-v3: constant vector in the keys") {
    for (const char* precision : {"int8", "fp8"}) {
        Random random(31);
        const ForwardInputs inputs = make_inputs(random, square(2, 90, 32));
        ForwardInputs moved = inputs;
        moved.key = mapped(*inputs.key, [](float x) { return x + 0.0f; });
        Tensor t = normal(random, {32});
        for (std::int64_t h = 0; h < 2; ++h)
            for (std::int64_t j = 0; j < 90; ++j)
                for (std::int64_t d = 0; d < 32; ++d) at(*moved.key, 0, h, j, d) += 100.0f * t.as<float>()[d];
        const Tensor exact = forward(inputs, v2).output;
        const ForwardResult plain = forward(inputs, v3, in(precision)), shifted = forward(moved, v3, in(precision));
        const double error = relative_error(plain.output, exact);
        CHECK(relative_error(shifted.output, plain.output) <= 2 * error);
        CHECK(relative_error(forward(moved, v3, in(precision, {{"smooth_k", false}})).output, exact) > 5 * error);
        // What the mean takes from the scores is back in lse.
        const std::vector<float> a = values(*forward(moved, v2).lse), b = values(*shifted.lse);
        for (std::size_t row = 0; row < a.size(); ++row) CHECK(std::abs(a[row] - b[row]) <= 0.3f);
    }
}

TEST_CASE("flash-attention-v3: rotation") {
    Random random(32);
    for (const std::int64_t width : {1, 5, 16, 24, 40, 64, 80, 128, 200}) {
        const auto row = [&] {
            specs::quantised::Row x(static_cast<std::size_t>(width));
            for (float& element : x) element = random.normal();
            return x;
        };
        const auto dot = [](const specs::quantised::Row& a, const specs::quantised::Row& b) {
            double sum = 0;
            for (std::size_t d = 0; d < std::min(a.size(), b.size()); ++d)
                sum += static_cast<double>(a[d]) * static_cast<double>(b[d]);
            return sum;
        };
        const specs::quantised::Row x = row(), y = row(), rx = specs::quantised::rotated(x, 7),
                                    ry = specs::quantised::rotated(y, 7);
        CHECK(std::abs(dot(rx, ry) - dot(x, y)) <= 1e-5 * std::sqrt(dot(x, x) * dot(y, y)));
        CHECK(std::abs(dot(rx, rx) - dot(x, x)) <= 1e-5 * dot(x, x));
        // Had_m Had_m = m I: with the signs undone in between, the second rotation gives x times the signs.
        specs::quantised::Row turned = rx;
        const specs::quantised::Row signs = signs_of(rx.size(), 7);
        for (std::size_t d = 0; d < turned.size(); ++d) turned[d] *= signs[d];
        turned = specs::quantised::rotated(turned, 7);
        double worst = 0;
        for (std::size_t d = 0; d < x.size(); ++d)
            worst = std::max(worst, std::abs(static_cast<double>(turned[d] - signs[d] * x[d])));
        CHECK(worst <= 1e-5);
        // The engine rotates in the same way: its scores have these codes.
        ForwardInputs inputs = make_inputs(random, square(1, 40, width));
        const ForwardResult got = forward(inputs, v3, scores_alone("int8", {{"hadamard_seed", 7}}));
        const specs::Call call{&inputs, got.options()};
        const Rounded rounded(call);
        const specs::Expected expected = specs::quantised::solved_rounded(call, rounded);
        CHECK(difference(values(*got.lse), expected.lse) <= 2e-5);
        CHECK(difference(values(got.output), expected.o) <= 2e-5);
    }
}

TEST_CASE("flash-attention-v3: signs of the rotation") {
    // Seed 0: - - + - + + + + for d = 0..7, seen through the rotation of unit vectors.
    const int signs[] = {-1, -1, 1, -1, 1, 1, 1, 1};
    for (std::size_t d = 0; d < 8; ++d) {
        specs::quantised::Row x(16, 0.0f);
        x[d] = 1.0f;
        CHECK(specs::quantised::rotated(x, 0)[0] == static_cast<float>(signs[d]) * 0.25f);
    }
}

TEST_CASE("flash-attention-v3: powers of two") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        ForwardInputs other = inputs;
        other.query = mapped(inputs.query, [](float x) { return x * 0x1p-5f; });
        other.key = mapped(*inputs.key, [](float x) { return x * 0x1p5f; });
        for (const char* precision : low_precisions)
            CHECK(same_call(forward(inputs, v3, in(precision)), forward(other, v3, in(precision))));
    });
}

TEST_CASE("flash-attention-v3: integers") {
    Random random(33);
    for (const bool extreme : {false, true})
        for (const std::int64_t width : {3, 16, 65, 128}) {
            ForwardInputs inputs = make_inputs(random, {1, 2, 2, 64, 96, width, 8});
            for (Tensor* tensor : {&inputs.query, &*inputs.key})
                for (std::int64_t n = 0; n < tensor->size(); ++n) {
                    // Products of 127 and 127 alone are what would saturate 16 bits.
                    const auto any = static_cast<float>(random.below(255) - 127);
                    const float edge = extreme && random.below(8) == 0 ? -127.0f : 127.0f;
                    tensor->as<float>()[n] = extreme || n % (16 * width) == 0 ? edge : any;
                }
            const NamedValues options = scores_alone("int8", {{"smooth_k", false},
                                                              {"incoherent", false},
                                                              {"quant_block_q", 16},
                                                              {"quant_block_k", 16},
                                                              {"scale", 0x1p-14}});
            // Scores of flash-attention-v2 are exact here as well, and everything behind them is the same.
            for (const std::string& set : backends()) {
                INFO(set << " width " << width);
                CHECK(same_call(run(service(set), inputs, v3, options, true),
                                run(service(set), inputs, v2, {{"scale", 0x1p-14}}, true)));
            }
        }
}

TEST_CASE("flash-attention-v3: bounds") {
    for (const char* precision : low_precisions)
        for (const int kind : {0, 1, 2, 3}) {
            Random random(34);
            const Shape shape{1, 4, 2, 60, 60, 32, 16};
            ForwardInputs inputs = kind == 2 ? outliers(random, shape) : make_inputs(random, shape);
            if (kind == 3) inputs.key = filled({1, 2, 60, 32}, 0.7f);
            const NamedValues more = kind == 1 ? NamedValues{{"causal", true}} : NamedValues{};
            INFO(precision << " data " << kind);
            check_bounds(inputs, in(precision, with(more, {{"quant_block_k", 16}})));
            if (std::string(precision) == "bf16") continue;
            check_bounds(inputs, in(precision, with(more, {{"smooth_v", true}, {"incoherent", false}})));
            check_bounds(inputs, in(precision, with(more, {{"softcap", 3.0}})));
            if (std::string(precision) == "fp8")
                check_bounds(inputs, in(precision, with(more, {{"p_precision", "e4m3"}})));
        }
}

TEST_CASE("flash-attention-v3: constant values") {
    Random random(35);
    ForwardInputs inputs = make_inputs(random, square(2, 80, 16));
    inputs.value = filled({1, 2, 80, 16}, 1.7f);
    for (const auto& [precision, weights, unit] :
         {std::tuple{"bf16", "bf16", 0x1p-8}, std::tuple{"int8", "bf16", 0x1p-8}, std::tuple{"fp8", "e4m3", 0x1p-4}})
        for (const float x :
             values(forward(inputs, v3, in(precision, {{"p_precision", weights}, {"v_precision", "fp32"}})).output))
            CHECK(std::abs(static_cast<double>(x) / 1.7 - 1.0) <= unit + 1e-6);
}

TEST_CASE("flash-attention-v3: halves") {
    Random random(36);
    const ForwardInputs whole = make_inputs(random, {2, 2, 1, 50, 128, 24, 16});
    ForwardInputs first = whole, second = whole;
    for (auto [half, begin, end] : {std::tuple{&first, 0, 64}, std::tuple{&second, 64, 128}}) {
        half->key = take(*whole.key, 2, range(begin, end));
        half->value = take(*whole.value, 2, range(begin, end));
    }
    for (const char* precision : {"int8", "fp8"}) {
        const NamedValues options = scores_alone(precision, {{"smooth_k", false}, {"quant_block_k", 32}});
        const ForwardResult full = forward(whole, v3, options);
        const Partial both = merged(forward(first, v3, options), forward(second, v3, options));
        CHECK(agree(both.output, values(full.output)));
        CHECK(agree(both.lse, values(*full.lse)));
    }
}

TEST_CASE("flash-attention-v3: parts of the queries") {
    // From 512 queries of a key head on, rows are rounded before the first tile; 128 queries see the others' blocks.
    Random random(42);
    ForwardInputs inputs = make_inputs(random, {2, 4, 2, 300, 201, 24, 20});
    inputs.key_lengths = lengths({201, 87});
    inputs.mask = bools({1, 1, 300, 201}, [&](const auto& index) {
        return index[3] == 8 ? index[2] % 2 == 0 : index[3] != 7 && random.below(8) != 0;
    });
    for (const char* precision : low_precisions) {
        ForwardInputs wild = inputs;
        wild.value = take(*inputs.value, 0, {0, 1});
        for (const std::int64_t padding : {88, 100, 200}) at(*wild.value, 1, 0, padding, 3) = NAN;
        // What every query hides, and what half of them see: infinity reaches those and no other.
        if (std::string(precision) == "bf16") {
            at(*wild.value, 0, 1, 7, 2) = NAN;
            at(*wild.value, 0, 1, 8, 4) = std::numeric_limits<float>::infinity();
        }
        for (const NamedValues& more :
             {NamedValues{}, NamedValues{{"block_size_kv", 48}}, NamedValues{{"dropout", 0.25}, {"seed", 3}}}) {
            const NamedValues options = in(precision, more);
            const ForwardResult whole = forward(wild, v3, options);
            for (std::int64_t first = 0; first < 300 && more.empty(); first += 128) {
                const std::vector<std::int64_t> rows = range(first, std::min<std::int64_t>(first + 128, 300));
                ForwardInputs part = wild;
                part.query = take(wild.query, 2, rows);
                part.mask = take(*wild.mask, 2, rows);
                const ForwardResult got = forward(part, v3, options);
                CHECK(same_bits(got.output, take(whole.output, 2, rows)));
                CHECK(same_bits(*got.lse, take(*whole.lse, 2, rows)));
            }
            bool placed = true;
            for (std::int64_t b = 0; b < 2; ++b)
                for (std::int64_t h = 0; h < 4; ++h)
                    for (std::int64_t i = 0; i < 300; ++i)
                        for (std::int64_t c = 0; c < 20; ++c) {
                            const bool reached =
                                std::string(precision) == "bf16" && b == 0 && h >= 2 && c == 4 && i % 2 == 0;
                            placed = placed && (std::isfinite(at(whole.output, b, h, i, c)) || reached);
                            if (reached && more.empty())
                                placed =
                                    placed && at(whole.output, b, h, i, c) == std::numeric_limits<float>::infinity();
                        }
            CHECK(placed);
        }
        // Windows begin and end at any key, so blocks of pairs do.
        for (const std::int64_t left : {5, 30, 131}) {
            const NamedValues window{{"window_left", left}, {"window_right", 12}, {"causal_offset", -40}};
            const ForwardResult got = forward(inputs, v3, in(precision, window));
            const specs::Call call{&inputs, got.options()};
            const specs::Expected expected = specs::quantised::solved_rounded(call, Rounded(call));
            CHECK(difference(values(got.output), expected.o) <= 0x1p-7 * largest(values(*inputs.value)));
            CHECK(difference(values(*got.lse), expected.lse) <= 2e-5);
        }
    }
}

TEST_CASE("flash-attention-v3: quality") {
    Random random(37);
    const ForwardInputs inputs = make_inputs(random, square(1, 1024, 128));
    const Tensor exact = forward(inputs, v2).output;
    const std::vector<float> e = values(exact);
    const struct {
        NamedValues options;
        double most;
    } gates[] = {
        {in("bf16"), 0.01}, {in("int8"), 0.03}, {in("fp8"), 0.10}, {in("fp8", {{"p_precision", "e4m3"}}), 0.10}};
    for (const auto& gate : gates) {
        const ForwardResult got = forward(inputs, v3, gate.options);
        const double error = relative_error(got.output, exact);
        CHECK(error <= gate.most);
        // Neither worse nor better than a float64 run of the same rounding.
        const std::vector<double> rounded = rounded_run(inputs, got);
        double off = 0, size = 0;
        for (std::size_t at = 0; at < e.size(); ++at) {
            off += std::pow(rounded[at] - static_cast<double>(e[at]), 2);
            size += std::pow(static_cast<double>(e[at]), 2);
        }
        INFO("relative error " << error << ", of the float64 run " << std::sqrt(off / size));
        CHECK(error <= 1.5 * std::sqrt(off / size));
        CHECK(error >= 0.5 * std::sqrt(off / size));
    }
    const std::vector<float> g = values(forward(inputs, v3, in("int8")).output);
    double dot = 0, a = 0, b = 0;
    for (std::size_t at = 0; at < e.size(); ++at) {
        dot += static_cast<double>(g[at]) * static_cast<double>(e[at]);
        a += static_cast<double>(g[at]) * static_cast<double>(g[at]);
        b += static_cast<double>(e[at]) * static_cast<double>(e[at]);
    }
    CHECK(dot / std::sqrt(a * b) >= 0.999);
    const ForwardInputs wild = outliers(random, square(1, 1024, 128));
    const Tensor wild_exact = forward(wild, v2).output;
    CHECK(relative_error(forward(wild, v3, in("int8")).output, wild_exact) <=
          0.5 * relative_error(forward(wild, v3, in("int8", {{"incoherent", false}})).output, wild_exact));
}

TEST_CASE("flash-attention-v3: rounding") {
    // With float32 weights all of a call is the text's rounding.
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* precision : low_precisions)
            for (const char* value_format : {"fp32", "bf16", "e4m3"})
                for (const bool causal : {false, true}) {
                    if (std::string(value_format) == "e4m3" && std::string(precision) != "fp8") continue;
                    NamedValues options = in(precision, {{"p_precision", "fp32"},
                                                         {"v_precision", value_format},
                                                         {"causal", causal},
                                                         {"quant_block_k", 16},
                                                         {"quant_block_q", 32},
                                                         {"softcap", causal ? 4.0 : 0.0}});
                    if (std::string(precision) != "bf16" && !causal) options.emplace_back("smooth_v", true);
                    const ForwardResult got = forward(inputs, v3, options, true);
                    const specs::Call call{&inputs, got.options()};
                    const Rounded rounded(call);
                    const specs::Expected expected = specs::quantised::solved_rounded(call, rounded);
                    CHECK(difference(values(got.output), expected.o) <= 2e-5);
                    CHECK(difference(values(*got.lse), expected.lse) <= 2e-5);
                    CHECK(difference(values(*got.scores), expected.p) <= 2e-5);
                }
    });
}

TEST_CASE("flash-attention-v3: largest error") {
    for (const char* precision : low_precisions) {
        Random random(38);
        const ForwardInputs inputs = make_inputs(random, {1, 2, 1, 30, 40, 24, 8});
        attend::ForwardOptions call;
        call.mechanism = v3;
        call.options = in(precision, {{"max_error", 1e-6}});
        const auto refused = service().forward(inputs, call);
        REQUIRE_FALSE(refused.ok());
        const std::string& text = refused.error().message;
        const std::size_t where = text.find("at least ");
        REQUIRE(where != std::string::npos);
        const double bound = std::stod(text.substr(where + 9));
        // The bound of the text, over all keys.
        const ForwardResult got = forward(inputs, v3, in(precision));
        const specs::Call plain{&inputs, got.options()};
        const Rounded rounded(plain);
        const double weight = Formats::unit(rounded.formats.weights), value = Formats::unit(rounded.formats.values);
        double expected = 0;
        for (std::int64_t h = 0; h < 2; ++h)
            for (std::int64_t i = 0; i < 30; ++i)
                for (std::int64_t c = 0; c < 8; ++c) {
                    double low = INFINITY, high = -INFINITY;
                    for (std::int64_t j = 0; j < 40; ++j) {
                        const auto v = static_cast<double>(at(*inputs.value, 0, 0, j, c));
                        low = std::min(low, v), high = std::max(high, v);
                    }
                    double now = std::tanh(rounded.eps(0, h, i, range(0, 40)) / 2) * (high - low) +
                                 (weight + value + weight * value + 0x1p-17) * std::max(high, -low);
                    if (rounded.formats.values == "e4m3")
                        now += 0x1p-10 * static_cast<double>(rounded.value_scale[static_cast<std::size_t>(c)]);
                    expected = std::max(expected, now);
                }
        INFO(precision << " " << text << " expected " << expected);
        CHECK(std::abs(bound - expected) <= 1e-4 * expected);
        CHECK(same_bits(forward(inputs, v3, in(precision, {{"max_error", bound}})).output, got.output));
        rejects(inputs, v3, in(precision, {{"max_error", 0.99 * bound}}), {"max_error", "accepted"});
    }
}

TEST_CASE("flash-attention-v3: rejects formats and options that do not go together") {
    Random random(39);
    const ForwardInputs inputs = make_inputs(random, square(2, 20, 16));
    for (const char* name : {"p_precision", "v_precision"}) {
        for (const char* precision : {"bf16", "int8"})
            rejects(inputs, v3, in(precision, {{name, "e4m3"}}), {name, "e4m3", precision, "fp8"});
        for (const char* grid : {"bf16", "e4m3"}) rejects(inputs, v3, in("fp32", {{name, grid}}), {name, grid, "fp32"});
    }
    for (const char* name : {"smooth_k", "incoherent", "smooth_v"})
        for (const char* precision : {"fp32", "bf16"})
            rejects(inputs, v3, in(precision, {{name, true}}), {name, "true", precision, "int8 or fp8"});
    for (const char* name : {"quant_block_q", "quant_block_k"})
        for (const int size : {17, 40, 1000})
            rejects(inputs, v3, in("int8", {{name, size}}), {name, "multiples of 16"});
    rejects(inputs, v3, in("int8", {{"smooth_v", true}, {"dropout", 0.1}}), {"smooth_v", "dropout"});
}

TEST_CASE("flash-attention-v3: rejects wide heads and what flash-attention-v2 rejects") {
    Random random(40);
    rejects(make_inputs(random, square(1, 3, 1025)), v3, {}, {"1025", "1024"});
    const ForwardInputs inputs = make_inputs(random, square(2, 20, 16));
    rejects(inputs, v3, {{"heads", 3}}, {"heads", "3", "2"});
    rejects(inputs, v3, {{"dim", 8}}, {"dim", "8", "16"});
    rejects(inputs, v3, {{"block_size", 15}}, {"block_size", "15", "accepted"});
}

TEST_CASE("flash-attention-v3: rejects numbers that are not finite in scaled formats") {
    Random random(41);
    for (const char* precision : {"int8", "fp8"})
        for (const float wild : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
            for (int which = 0; which < 3; ++which) {
                ForwardInputs inputs = make_inputs(random, {2, 2, 2, 40, 40, 16, 16});
                Tensor& tensor = which == 0 ? inputs.query : which == 1 ? *inputs.key : *inputs.value;
                at(tensor, 1, 1, 30, 3) = wild;
                rejects(inputs, v3, in(precision), {which == 0 ? "query" : which == 1 ? "key" : "value", "NaN"});
                // Padding may hold anything.
                inputs.query_lengths = lengths({40, 30});
                inputs.key_lengths = lengths({40, 30});
                for (const float x : values(forward(inputs, v3, in(precision)).output)) CHECK(std::isfinite(x));
            }
}
