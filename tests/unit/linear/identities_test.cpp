// SPDX-License-Identifier: Apache-2.0
// Random directions with their check values, sine and cosine through the maps, and identities of the maps.
#include "unit/linear/support.hpp"

namespace attend::linear_test {
namespace {

std::vector<float> draw(const Entry& entry, int64_t width, int64_t rows, int64_t slots = 1, bool orthogonal = true,
                        bool sqrt_norms = false, uint64_t seed = 0, uint32_t redraw = 0) {
    const attend_random_features spec{"performer-attention/projection",
                                      "performer-attention/norms",
                                      seed,
                                      redraw,
                                      orthogonal,
                                      sqrt_norms,
                                      0,
                                      slots,
                                      rows,
                                      width};
    std::vector<double> scratch(static_cast<size_t>(entry.draw_scratch(&spec)));
    std::vector<float> matrix(static_cast<size_t>(slots * rows * width));
    entry.draw(&spec, scratch.data(), matrix.data());
    return matrix;
}

TEST_CASE("random features: check values", "[linear]") {
    for_each_entry([](const Entry& entry) {
        const std::vector<float> plain = draw(entry, 4, 6, 1, false);
        const float elements[] = {-0.9806946f, 0.1175193f, -1.5114749f, -1.0570566f, 0.0437648f};
        for (size_t at = 0; at < 5; ++at) CHECK(plain[at] == Approx(elements[at]).margin(1e-6));
        const std::vector<float> omega = draw(entry, 4, 6);
        const std::pair<size_t, std::vector<float>> rows[] = {{0, {-0.6622589f, 0.0295542f, 0.1217968f, 0.5958732f}},
                                                              {3, {-0.1337315f, -0.9220226f, 0.7841676f, -0.2631842f}},
                                                              {5, {-0.5254914f, -0.3252043f, 1.0254729f, 1.5511869f}}};
        for (const auto& [row, expected] : rows)
            for (size_t c = 0; c < 4; ++c) CHECK(omega[row * 4 + c] == Approx(expected[c]).margin(1e-6));
    });
}

TEST_CASE("random features: blocks are orthogonal, lengths are as asked", "[linear]") {
    for_each_entry([](const Entry& entry) {
        for (const int64_t width : {1, 5, 16, 33})
            for (const bool sqrt_norms : {false, true}) {
                const int64_t rows = 2 * width + 1;
                const std::vector<float> omega = draw(entry, width, rows, 2, true, sqrt_norms, 3, 7);
                for (int64_t slot = 0; slot < 2; ++slot)
                    for (int64_t a = 0; a < rows; ++a)
                        for (int64_t b = a; b < rows && b / width == a / width; ++b) {
                            double dot = 0.0, size_a = 0.0, size_b = 0.0;
                            for (int64_t c = 0; c < width; ++c) {
                                const auto x =
                                    static_cast<double>(omega[static_cast<size_t>((slot * rows + a) * width + c)]);
                                const auto y =
                                    static_cast<double>(omega[static_cast<size_t>((slot * rows + b) * width + c)]);
                                dot += x * y;
                                size_a += x * x;
                                size_b += y * y;
                            }
                            if (a != b)
                                CHECK(std::fabs(dot) <= 1e-6 * std::sqrt(size_a * size_b));
                            else if (sqrt_norms)
                                CHECK(dot == Approx(static_cast<double>(width)).epsilon(1e-6));
                        }
            }
        // A longer matrix begins with the shorter one; another redraw has nothing in common with it; slots differ.
        const std::vector<float> a = draw(entry, 8, 8), b = draw(entry, 8, 24, 1),
                                 c = draw(entry, 8, 8, 1, true, false, 0, 1), d = draw(entry, 8, 8, 2);
        for (size_t at = 0; at < a.size(); ++at) {
            CHECK(a[at] == b[at]);
            CHECK(a[at] == d[at]);
            CHECK(a[at] != c[at]);
            CHECK(d[at] != d[64 + at]);
        }
        double mean = 0.0;
        const std::vector<float> many = draw(entry, 8, 8000);
        for (const float x : many) mean += static_cast<double>(x) * static_cast<double>(x) / 8000.0;
        CHECK(mean == Approx(8.0).epsilon(0.03));
    });
}

// One query and one key: LSE is the logarithm of the estimate of e^{<x, y>}.
double estimate(const Entry& entry, LinearCase c, const std::vector<float>& x, const std::vector<float>& y) {
    c.q_len = c.kv_len = c.q_heads = c.kv_heads = 1;
    c.value_dim = 1;
    c.q = x;
    c.k = y;
    c.v = {1.0f};
    const EngineResult got = run_engine(entry, c, 1);
    REQUIRE(got.status == ATTEND_OK);
    if (c.want_lse) return static_cast<double>(got.lse[0]);
    return static_cast<double>(got.output[0]);
}

TEST_CASE("linear: estimates that hold for any directions", "[linear]") {
    for_each_entry([](const Entry& entry) {
        Random random(4);
        LinearCase c;
        c.head_dim = 7;
        c.num_features = 10;
        c.omega = random.normals(70, 1.0f);
        const std::vector<float> x = random.normals(7, 0.7f);
        std::vector<float> opposite = x;
        double square = 0.0;
        for (float& value : opposite) {
            square += static_cast<double>(value) * static_cast<double>(value);
            value = -value;
        }
        for (const uint32_t kind : {ATTEND_FEATURES_SOFTMAX, ATTEND_FEATURES_HYPERBOLIC}) {
            c.kind = kind;
            CHECK(estimate(entry, c, x, opposite) == Approx(-square).epsilon(1e-5));
        }
        // The trigonometric estimate of <x, x> is e^{|x|^2}; references: d of the key (the query keeps none).
        c.kind = ATTEND_FEATURES_TRIG;
        c.want_lse = false;
        c.guard = ATTEND_GUARD_NUMERATOR;
        CHECK(std::log(estimate(entry, c, x, x)) == Approx(square / 2.0).epsilon(1e-5));
        // Far arguments of sine and cosine leave cos^2 + sin^2 = 1.
        for (const float size : {100.0f, 3000.0f}) {
            c.num_features = 1;
            c.head_dim = 1;
            c.omega = {size};
            c.guard = ATTEND_GUARD_NONE;
            CHECK(estimate(entry, c, {7.77f}, {7.77f}) == Approx(1.0).epsilon(1e-6));
        }
    });
}

TEST_CASE("linear: the mean over redraws is the kernel", "[linear]") {
    const Entry& entry = entries[0];
    Random random(12);
    for (const bool orthogonal : {false, true})
        for (const uint32_t kind : {ATTEND_FEATURES_SOFTMAX, ATTEND_FEATURES_HYPERBOLIC}) {
            LinearCase c;
            c.head_dim = 4;
            c.num_features = 6;
            c.kind = kind;
            const std::vector<float> x = random.normals(4, 0.2f), y = random.normals(4, 0.2f);
            double exact = 0.0, sum = 0.0, squares = 0.0;
            for (size_t d = 0; d < 4; ++d) exact += static_cast<double>(x[d]) * static_cast<double>(y[d]);
            constexpr uint32_t redraws = 3000;
            for (uint32_t redraw = 0; redraw < redraws; ++redraw) {
                c.omega = draw(entry, 4, 6, 1, orthogonal, false, 1, redraw);
                const double value = std::exp(estimate(entry, c, x, y));
                sum += value;
                squares += value * value;
            }
            const double mean = sum / redraws, deviation = std::sqrt(squares / redraws - mean * mean);
            CHECK(std::fabs(mean - std::exp(exact)) <= 5.0 * deviation / std::sqrt(static_cast<double>(redraws)));
        }
}

std::vector<float> output_of(const Entry& entry, const LinearCase& c) {
    const EngineResult got = run_engine(entry, c, 1);
    INFO(got.text);
    REQUIRE(got.status == ATTEND_OK);
    return got.output;
}

void check_close(const std::vector<float>& a, const std::vector<float>& b, double limit) {
    REQUIRE(a.size() == b.size());
    for (size_t at = 0; at < a.size(); ++at)
        CHECK(std::fabs(static_cast<double>(a[at]) - static_cast<double>(b[at])) <= limit);
}

TEST_CASE("linear: identities of the maps", "[linear]") {
    for_each_entry([](const Entry& entry) {
        LinearCase c;
        c.fill(21);
        // Values of one give den / (den + eps); a scale of the queries drops out of homogeneous maps.
        c.guard = ATTEND_GUARD_ADD;
        for (const uint32_t kind : {ATTEND_FEATURES_RELU, ATTEND_FEATURES_DPFP}) {
            LinearCase scaled = c;
            scaled.kind = kind;
            const std::vector<float> once = output_of(entry, scaled);
            scaled.query_scale = 3.5;
            check_close(once, output_of(entry, scaled), 1e-5);
        }
        LinearCase ones = c;
        ones.guard_eps = 0.5;
        ones.v.assign(ones.v.size(), 1.0f);
        const EngineResult sums = run_engine(entry, ones, 1);
        for (size_t at = 0; at < sums.output.size(); ++at) {
            const double den = std::exp(static_cast<double>(sums.lse[at / static_cast<size_t>(c.value_dim)]));
            CHECK(static_cast<double>(sums.output[at]) == Approx(den / (den + 0.5)).epsilon(1e-5));
        }
        // Numerators alone are linear in the keys.
        LinearCase bare = c;
        bare.guard = ATTEND_GUARD_NUMERATOR;
        const EngineResult a = run_engine(entry, bare, 1, Piece{0, -1, 0, 14, nullptr, false}),
                           b = run_engine(entry, bare, 1, Piece{0, -1, 14, -1, nullptr, false});
        std::vector<float> added = a.output;
        for (size_t at = 0; at < added.size(); ++at) added[at] += b.output[at];
        check_close(output_of(entry, bare), added, 2e-4);
        // The hyperbolic map is the exponential one of the directions and their opposites.
        LinearCase both = c;
        both.guard = ATTEND_GUARD_NONE;
        both.kind = ATTEND_FEATURES_HYPERBOLIC;
        both.num_features = 5;
        both.fill(22);
        LinearCase stacked = both;
        stacked.kind = ATTEND_FEATURES_SOFTMAX;
        stacked.num_features = 10;
        for (const float x : both.omega) stacked.omega.push_back(-x);
        check_close(output_of(entry, both), output_of(entry, stacked), 1e-5);
        // Without epsilons the official stabiliser changes nothing.
        LinearCase official = both;
        official.official = true;
        official.guard = ATTEND_GUARD_SHIFT;
        for (const bool causal : {false, true}) {
            both.causal = official.causal = causal;
            both.offset = official.offset = both.kv_len - both.q_len;
            check_close(output_of(entry, both), output_of(entry, official), 1e-5);
        }
        // The last causal row is the row of the call that is not causal.
        for (const uint32_t kind : {ATTEND_FEATURES_ELU, ATTEND_FEATURES_SOFTMAX}) {
            LinearCase last = both;
            last.kind = kind;
            last.causal = true;
            const std::vector<float> causal = output_of(entry, last);
            last.causal = false;
            const std::vector<float> full = output_of(entry, last);
            const auto width = static_cast<size_t>(last.value_dim), rows = static_cast<size_t>(last.q_len);
            for (size_t column = 0; column < width; ++column)
                CHECK(std::fabs(static_cast<double>(causal[(rows - 1) * width + column] -
                                                    full[(rows - 1) * width + column])) <= 1e-5);
        }
    });
}

}  // namespace
}  // namespace attend::linear_test
