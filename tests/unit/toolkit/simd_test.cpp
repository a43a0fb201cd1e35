// SPDX-License-Identifier: Apache-2.0
// Batches, elementary functions and register-tile products of every instruction set.
#include "unit/toolkit/support.hpp"

namespace attend::test {
namespace {

TEST_CASE("simd: batch operations", "[toolkit]") {
    for_each_entry([](const Entry& entry) { CHECK(entry.registers() == 0); });
}

double reference(int function, double x) {
    return function == 0 || function == 2 ? std::exp(x) : function == 1 ? std::exp2(x) : std::tanh(x);
}

TEST_CASE("simd: elementary functions keep their error", "[toolkit]") {
    for (int function = 0; function < 4; ++function) {
        const double low = function == 3 ? -12.0 : function == 1 ? -126.0 : -87.3;
        const double high = function == 3 ? 12.0 : function == 0 ? 0.0 : function == 1 ? 127.99 : 88.7;
        std::vector<float> x;
        for (int64_t step = 0; step <= 400003; ++step)
            x.push_back(static_cast<float>(low + (high - low) * static_cast<double>(step) / 400003.0));
        for (float small = 1.0f; small > 1e-30f; small *= 0.37f) {
            x.push_back(-small);
            if (function == 3) x.push_back(small);
        }
        std::vector<float> y(x.size());
        for_each_entry([&](const Entry& entry) {
            entry.map(function, x.data(), y.data(), static_cast<int64_t>(x.size()));
            double worst = 0.0;
            float at = 0.0f;
            for (size_t n = 0; n < x.size(); ++n) {
                const double e = reference(function, static_cast<double>(x[n]));
                const double error = e == 0.0 ? std::fabs(static_cast<double>(y[n]))
                                              : std::fabs(static_cast<double>(y[n]) - e) / std::fabs(e);
                if (!(error <= worst)) worst = error, at = x[n];
            }
            INFO("function " << function << " is worst at " << at);
            CHECK(worst <= entry.error_limit(function));
        });
    }
}

TEST_CASE("simd: elementary functions at their edges", "[toolkit]") {
    static constexpr float inf = std::numeric_limits<float>::infinity();
    for_each_entry([](const Entry& entry) {
        const auto at = [&](int function, float x) {
            float y = 7.0f;
            entry.map(function, &x, &y, 1);
            return y;
        };
        for (int function = 0; function < 3; ++function) {
            INFO("function " << function);
            CHECK(at(function, -inf) == 0.0f);
            CHECK(at(function, std::numeric_limits<float>::lowest()) == 0.0f);
            CHECK(at(function, -1000.0f) == 0.0f);
            CHECK(at(function, 0.0f) == 1.0f);
            CHECK(at(function, -0.0f) == 1.0f);
            CHECK(std::isnan(at(function, nan_value)));
            if (function > 0) {
                CHECK(at(function, inf) == inf);
                CHECK(at(function, 1000.0f) == inf);
                CHECK(std::isfinite(at(function, 88.7f)));
            }
            CHECK(at(function, -88.0f) >= 0.0f);
        }
        CHECK(at(1, 10.0f) == 1024.0f);
        CHECK(at(3, inf) == 1.0f);
        CHECK(at(3, -inf) == -1.0f);
        CHECK(at(3, 0.0f) == 0.0f);
        CHECK(std::signbit(at(3, -0.0f)));
        CHECK(at(3, 1e-30f) == 1e-30f);
        CHECK(std::isnan(at(3, nan_value)));
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
