// SPDX-License-Identifier: Apache-2.0
// Batches, elementary functions and register-tile products of every instruction set.
#include "unit/toolkit/support.hpp"

namespace attend::test {
namespace {

TEST_CASE("simd: batch operations", "[toolkit]") {
    for_each_entry([](const Entry& entry) { CHECK(entry.registers() == 0); });
}

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float smallest_normal = std::numeric_limits<float>::min();

// By number, as in kernels/probe.cpp.
enum Function { exp_nonpositive, exp2, exp, tanh, exp2_nonpositive, exp2_nonpositive_short, log };
constexpr const char* names[] = {"exp_nonpositive",        "exp2", "exp", "tanh", "exp2_nonpositive",
                                 "exp2_nonpositive_short", "log"};
constexpr int functions = 7;

double reference(int function, double x) {
    if (function == exp_nonpositive || function == exp) return std::exp(x);
    if (function == tanh) return std::tanh(x);
    return function == log ? std::log(x) : std::exp2(x);
}

// Distance in units of the last place of the exact result; infinity counts as 2^128.
double ulps(float got, double exact) {
    if (std::isnan(exact) || std::isnan(got)) return std::isnan(exact) && std::isnan(got) ? 0.0 : HUGE_VAL;
    const double top = 0x1p128;
    const double g = std::isinf(got) ? std::copysign(top, got) : static_cast<double>(got);
    const double e = std::fabs(exact) > top ? std::copysign(top, exact) : exact;
    if (g == e) return 0.0;
    const int exponent = e == 0.0 ? -126 : std::max(std::min(std::ilogb(e), 127), -126);
    return std::fabs(g - e) / std::ldexp(1.0, exponent - 23);
}

float next(float x, int64_t steps) {
    // On a line of integers: negative codes run backwards.
    const auto line = [](int32_t code) { return code < 0 ? int64_t{INT32_MIN} - code : int64_t{code}; };
    int32_t code;
    std::memcpy(&code, &x, sizeof code);
    const int64_t place = line(code) + steps;
    const auto bits = static_cast<int32_t>(place < 0 ? INT32_MIN - place : place);
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Every 1009th float, and all floats near: multiples of ln(2)/2 and of 1/2, powers of two and of their halves' roots,
// the thresholds of the functions, subnormals, infinities.
std::vector<float> arguments() {
    std::vector<float> x;
    for (uint64_t code = 0; code < (uint64_t{1} << 32); code += 1009) {
        const auto bits = static_cast<uint32_t>(code);
        float value;
        std::memcpy(&value, &bits, sizeof value);
        x.push_back(value);
    }
    const auto around = [&](double place) {
        for (const double sign : {1.0, -1.0})
            for (int64_t step = -70; step <= 70; ++step) {
                const float value = next(static_cast<float>(sign * place), step);
                if (!std::isnan(value)) x.push_back(value);
            }
    };
    for (int n = 0; n <= 310; ++n) {
        around(n * 0.34657359027997265);
        around(n * 0.5);
    }
    for (int n = -149; n <= 128; ++n) {
        around(std::ldexp(1.0, n));
        around(std::ldexp(1.4142135623730951, n));
    }
    for (const double place : {87.33654475, 88.3, 88.72283905, 89.0, 103.97208, 104.0, 126.0, 126.5, 127.0, 129.0,
                               149.5, 150.0, 151.0, 0.625, 9.010913, static_cast<double>(inf)})
        around(place);
    x.push_back(inf);
    x.push_back(-inf);
    x.push_back(nan_value);
    x.push_back(-nan_value);
    return x;
}

TEST_CASE("simd: elementary functions keep their contracts, and these are tight", "[toolkit]") {
    const std::vector<float> x = arguments();
    std::vector<float> y(x.size());
    for (int function = 0; function < functions; ++function)
        for_each_entry([&](const Entry& entry) {
            float low = 0.0f, high = 0.0f;
            double max_ulp = 0.0;
            if (!entry.contract(function, &low, &high, &max_ulp)) {
                CHECK(std::string(entry.name) == "baseline");
                return;
            }
            entry.map(function, x.data(), y.data(), static_cast<int64_t>(x.size()));
            double worst = 0.0;
            float at = 0.0f, astray = 0.0f;
            int64_t outside = 0;
            for (size_t n = 0; n < x.size(); ++n) {
                if (x[n] >= low && x[n] <= high) {
                    const double error = ulps(y[n], reference(function, static_cast<double>(x[n])));
                    if (!(error <= worst)) worst = error, at = x[n];
                    continue;
                }
                // Outside: NaN for NaN and for logarithms of negative numbers, next to nothing below; softmax asks
                // for no exponential above 0.
                const bool fine = std::isnan(x[n]) || function == log ? std::isnan(y[n])
                                  : x[n] < low                        ? y[n] >= 0.0f && y[n] <= smallest_normal
                                                                      : true;
                if (!fine) ++outside, astray = x[n];
            }
            INFO(names[function] << " is " << worst << " units off at " << at);
            CHECK(worst <= max_ulp);
            CHECK(worst >= max_ulp / 4.0);
            INFO("outside of its range it is wrong at " << astray);
            CHECK(outside == 0);
        });
}

TEST_CASE("simd: elementary functions at their edges", "[toolkit]") {
    for_each_entry([](const Entry& entry) {
        const auto at = [&](int function, float x) {
            float y = 7.0f;
            entry.map(function, &x, &y, 1);
            return y;
        };
        for (const int function : {exp_nonpositive, exp2, exp, exp2_nonpositive, exp2_nonpositive_short}) {
            float low, high;
            double max_ulp;
            if (!entry.contract(function, &low, &high, &max_ulp)) continue;
            INFO(names[function]);
            CHECK(at(function, -inf) == 0.0f);
            CHECK(at(function, std::numeric_limits<float>::lowest()) == 0.0f);
            CHECK(at(function, -1000.0f) == 0.0f);
            CHECK(at(function, 0.0f) == 1.0f);
            CHECK(at(function, -0.0f) == 1.0f);
            // One weight of nearly 1 is that, not the end of a binade.
            CHECK(std::fabs(at(function, -1e-8f) - 1.0f) < 2e-7f);
            CHECK(std::isnan(at(function, nan_value)));
            if (function == exp2 || function == exp) {
                CHECK(at(function, inf) == inf);
                CHECK(at(function, 1000.0f) == inf);
                CHECK(std::isfinite(at(function, 88.7f)));
                CHECK(at(function, function == exp ? -103.0f : -149.0f) == 0x1p-149f);
            }
            CHECK(at(function, -88.0f) >= 0.0f);
        }
        CHECK(at(exp2, 10.0f) == 1024.0f);
        CHECK(at(tanh, inf) == 1.0f);
        CHECK(at(tanh, -inf) == -1.0f);
        CHECK(at(tanh, 0.0f) == 0.0f);
        CHECK(std::signbit(at(tanh, -0.0f)));
        CHECK(at(tanh, 1e-30f) == 1e-30f);
        CHECK(std::isnan(at(tanh, nan_value)));
        CHECK(at(log, 0.0f) == -inf);
        CHECK(at(log, -0.0f) == -inf);
        CHECK(at(log, inf) == inf);
        CHECK(at(log, 1.0f) == 0.0f);
        CHECK_FALSE(std::signbit(at(log, 1.0f)));
        CHECK(std::isnan(at(log, -1e-45f)));
        CHECK(std::isnan(at(log, -inf)));
        CHECK(std::isnan(at(log, nan_value)));
    });
}

TEST_CASE("gemm: register-tile products", "[toolkit]") {
    Random random(1);
    for_each_entry([&](const Entry& entry) {
        for (int vectors = 1; vectors <= 3; ++vectors)
            for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 23})
                for (const int64_t count : {0, 1, 2, 5, 17})
                    for (int layout = 0; layout < 3; ++layout)
                        for (int into = 0; into < 3; ++into) {
                            const int64_t lanes = vectors * entry.lanes();
                            const int64_t row_stride = layout == 0 ? 19 : layout == 1 ? 1 : -40;
                            const int64_t inner_stride = layout == 0 ? 1 : layout == 1 ? 29 : 2;
                            std::vector<float> a(1600, nan_value), x(static_cast<size_t>(count * lanes) + 16),
                                out(static_cast<size_t>(rows * lanes) + 32), rescale(static_cast<size_t>(lanes));
                            const int64_t base = layout == 2 ? 1000 : 0;
                            std::vector<double> expected;
                            for (int64_t row = 0; row < rows; ++row)
                                for (int64_t t = 0; t < count; ++t)
                                    a[static_cast<size_t>(base + row * row_stride + t * inner_stride)] =
                                        random.normal();
                            for (float& value : x) value = random.normal();
                            for (float& value : rescale) value = random.normal();
                            for (float& value : out) value = into == 0 ? nan_value : random.normal();
                            for (int64_t row = 0; row < rows; ++row)
                                for (int64_t lane = 0; lane < lanes; ++lane) {
                                    double sum = 0.0;
                                    for (int64_t t = 0; t < count; ++t)
                                        sum += static_cast<double>(
                                                   a[static_cast<size_t>(base + row * row_stride + t * inner_stride)]) *
                                               static_cast<double>(x[static_cast<size_t>(t * lanes + lane)]);
                                    const double old =
                                        static_cast<double>(out[static_cast<size_t>(row * lanes + lane)]);
                                    if (into == 1) sum += old;
                                    if (into == 2) sum += old * static_cast<double>(rescale[static_cast<size_t>(lane)]);
                                    expected.push_back(sum);
                                }
                            const std::vector<float> behind(out.end() - 32, out.end());
                            entry.product(vectors, a.data() + base, row_stride, inner_stride, rows, x.data(), count,
                                          out.data(), into, rescale.data());
                            REQUIRE(same_bits(behind, std::vector<float>(out.end() - 32, out.end())));
                            out.resize(out.size() - 32);
                            REQUIRE(first_difference(out, expected, 1e-5) == -1);
                        }
    });
}

}  // namespace
}  // namespace attend::test
