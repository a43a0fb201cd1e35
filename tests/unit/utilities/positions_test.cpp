// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <numbers>

#include "attend/positions.hpp"
#include "attend/random.hpp"
#include "support/catch.hpp"

namespace {

using attend::DType;
using attend::RotaryOptions;
using attend::RotaryPairs;
using attend::RotaryScaling;
using attend::RotaryTable;
using attend::Tensor;

Tensor normal(std::vector<std::int64_t> shape, std::uint64_t seed) {
    Tensor tensor = Tensor::allocate(DType::f32, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at)
        tensor.as<float>()[at] = static_cast<float>(attend::normals(
            attend::named_words(static_cast<std::uint64_t>(at), seed, attend::RandomDomain::data, 1))[0]);
    return tensor;
}
RotaryTable table(std::int64_t rows, std::int64_t dim, RotaryOptions options = {}) {
    return attend::rotary_embedding(rows, dim, options).value();
}
double dot(const Tensor& a, std::int64_t row, const Tensor& b, std::int64_t other) {
    double sum = 0;
    for (std::int64_t d = 0; d < a.shape.back(); ++d)
        sum += static_cast<double>(a.as<const float>()[row * a.shape.back() + d]) *
               static_cast<double>(b.as<const float>()[other * a.shape.back() + d]);
    return sum;
}
// Angle of the first row at position 1: the frequency of pair t.
double frequency(const RotaryScaling& scaling, std::int64_t dim, std::int64_t t, double base = 10000.0,
                 std::int64_t rows = 1) {
    RotaryOptions options{.base = base, .scaling = scaling, .offset = 1};
    const RotaryTable made = table(rows, dim, options);
    return std::atan2(static_cast<double>(made.sin.as<const float>()[t]),
                      static_cast<double>(made.cos.as<const float>()[t]));
}
bool equal(const RotaryTable& a, const RotaryTable& b) {
    return std::equal(a.cos.as<const float>(), a.cos.as<const float>() + a.cos.size(), b.cos.as<const float>()) &&
           std::equal(a.sin.as<const float>(), a.sin.as<const float>() + a.sin.size(), b.sin.as<const float>());
}
RotaryScaling scaling_of(const char* type) {
    RotaryScaling scaling;
    scaling.type = type;
    return scaling;
}

}  // namespace

TEST_CASE("utilities: rotation keeps the norm of a pair") {
    RotaryScaling yarn = scaling_of("yarn");
    yarn.factor = 4;
    yarn.original_len = 64;
    for (const RotaryScaling& scaling : {RotaryScaling{}, yarn}) {
        const double size = scaling.factor > 1 ? 0.1 * std::log(4.0) + 1 : 1.0;
        const Tensor x = normal({3, 9, 12}, 1);
        for (const RotaryPairs layout : {RotaryPairs::half, RotaryPairs::interleaved}) {
            const Tensor y = attend::apply_rotary(x, table(9, 8, {.scaling = scaling, .offset = 5}), layout).value();
            for (std::int64_t row = 0; row < 27; ++row) {
                for (std::int64_t t = 0; t < 4; ++t) {
                    const std::int64_t a = row * 12 + (layout == RotaryPairs::half ? t : 2 * t),
                                       b = layout == RotaryPairs::half ? a + 4 : a + 1;
                    CHECK(std::hypot(y.as<const float>()[a], y.as<const float>()[b]) ==
                          Approx(size * std::hypot(static_cast<double>(x.as<const float>()[a]),
                                                   static_cast<double>(x.as<const float>()[b])))
                              .epsilon(1e-5));
                }
                for (std::int64_t d = 8; d < 12; ++d)
                    CHECK(y.as<const float>()[row * 12 + d] == x.as<const float>()[row * 12 + d]);
            }
        }
    }
}

TEST_CASE("utilities: rotated products depend on the distance alone") {
    const Tensor q = normal({1, 64}, 2), k = normal({1, 64}, 3);
    const auto turned = [&](const Tensor& x, std::int64_t position) {
        return attend::apply_rotary(x, table(1, 64, {.offset = position})).value();
    };
    for (const std::int64_t shift : {0, 17, 4000})
        CHECK(dot(turned(q, 40 + shift), 0, turned(k, 9 + shift), 0) ==
              Approx(dot(turned(q, 31), 0, turned(k, 0), 0)).margin(2e-5));
    CHECK(std::abs(dot(turned(q, 40), 0, turned(k, 9), 0) - dot(turned(q, 40), 0, turned(k, 10), 0)) > 1e-3);
}

TEST_CASE("utilities: rotating back is the identity") {
    const Tensor x = normal({5, 32}, 4);
    const std::vector<std::int64_t> there{3, 70000, -8, 0, 12}, back{-3, -70000, 8, 0, -12};
    const Tensor y = attend::apply_rotary(attend::apply_rotary(x, table(5, 32, {.positions = there})).value(),
                                          table(5, 32, {.positions = back}))
                         .value();
    for (std::int64_t at = 0; at < x.size(); ++at)
        CHECK(y.as<const float>()[at] == Approx(x.as<const float>()[at]).margin(1e-6));
}

TEST_CASE("utilities: half and interleaved are one permutation apart") {
    const Tensor x = normal({4, 16}, 5);
    Tensor shuffled = Tensor::allocate(DType::f32, {4, 16}).value();
    const auto place = [](std::int64_t d) {
        return d % 2 == 0 ? d / 2 : 8 + d / 2;
    };  // of interleaved channel d among halves
    for (std::int64_t at = 0; at < 64; ++at)
        shuffled.as<float>()[at / 16 * 16 + place(at % 16)] = x.as<const float>()[at];
    const RotaryTable turns = table(4, 16);
    const Tensor a = attend::apply_rotary(x, turns, RotaryPairs::interleaved).value(),
                 b = attend::apply_rotary(shuffled, turns).value();
    for (std::int64_t at = 0; at < 64; ++at)
        CHECK(a.as<const float>()[at] == b.as<const float>()[at / 16 * 16 + place(at % 16)]);
}

TEST_CASE("utilities: scalings of one are no scaling") {
    const RotaryTable plain = table(50, 32);
    RotaryScaling linear = scaling_of("linear"), ntk = scaling_of("ntk"), yarn = scaling_of("yarn"),
                  dynamic = scaling_of("dynamicNtk");
    yarn.original_len = 2048;
    dynamic.factor = 7;
    dynamic.max_len = 50;
    for (const RotaryScaling& scaling : {linear, ntk, yarn, dynamic}) {
        INFO(scaling.type);
        CHECK(equal(table(50, 32, {.scaling = scaling}), plain));
    }
    dynamic.max_len = 49;
    CHECK_FALSE(equal(table(50, 32, {.scaling = dynamic}), plain));
}

TEST_CASE("utilities: linear scaling interpolates positions") {
    RotaryScaling linear = scaling_of("linear");
    linear.factor = 4;
    CHECK(equal(table(3, 64, {.scaling = linear, .positions = std::vector<std::int64_t>{4, 40, 400}}),
                table(3, 64, {.positions = std::vector<std::int64_t>{1, 10, 100}})));
}

TEST_CASE("utilities: ntk keeps the first frequency and divides the last") {
    RotaryScaling ntk = scaling_of("ntk");
    ntk.alpha = 8;
    CHECK(frequency(ntk, 64, 0) == Approx(1.0).epsilon(1e-6));
    CHECK(frequency(ntk, 64, 31) == Approx(frequency({}, 64, 31) / 8).epsilon(1e-5));
    CHECK(frequency(ntk, 64, 10) < frequency({}, 64, 10));
}

TEST_CASE("utilities: llama3 leaves short wavelengths") {
    RotaryScaling llama = scaling_of("llama3");
    llama.factor = 8;
    const double base = 500000.0;
    bool kept = false, divided = false, between = false;
    for (std::int64_t t = 0; t < 64; ++t) {
        const double theta = std::pow(base, -2.0 * static_cast<double>(t) / 128.0),
                     wavelength = 2 * std::numbers::pi / theta;
        const double found = frequency(llama, 128, t, base), plain = frequency({}, 128, t, base);
        if (wavelength < 8192.0 / 4) {
            CHECK(found == plain);
            kept = true;
        } else if (wavelength > 8192.0) {
            CHECK(found == Approx(theta / 8).epsilon(1e-5));
            divided = true;
        } else {
            const double f = (8192.0 / wavelength - 1) / 3;
            CHECK(found == Approx((1 - f) * theta / 8 + f * theta).epsilon(1e-5));
            between = true;
        }
    }
    CHECK((kept && divided && between));
}

TEST_CASE("utilities: yarn's ramp and attention factor") {
    RotaryScaling yarn = scaling_of("yarn");
    yarn.factor = 4;
    yarn.original_len = 4096;
    const double size = std::hypot(static_cast<double>(table(1, 128, {.scaling = yarn}).cos.as<const float>()[3]), 0.0);
    CHECK(size == Approx(1.1386294).epsilon(1e-7));
    for (std::int64_t t = 0; t < 64; ++t) {
        const double plain = std::pow(10000.0, -2.0 * static_cast<double>(t) / 128.0), found = frequency(yarn, 128, t);
        const double ramp = std::min(std::max((static_cast<double>(t) - 20.0) / 26.0, 0.0), 1.0);  // from 20 to 46
        CHECK(found == Approx(plain * ((1 - ramp) + ramp / 4)).epsilon(1e-5));
    }
    yarn.attention_factor = 1.0;
    CHECK(table(1, 128, {.scaling = yarn}).cos.as<const float>()[0] == 1.0f);
}

TEST_CASE("utilities: angles are right at far positions") {
    const RotaryTable far = table(1, 64, {.offset = 65536});
    const double angle = 65536.0 * std::pow(10000.0, -2.0 / 64.0);
    CHECK(far.sin.as<const float>()[1] == static_cast<float>(std::sin(angle)));
    CHECK(far.cos.as<const float>()[1] == static_cast<float>(std::cos(angle)));
}

TEST_CASE("utilities: rotary tables refuse") {
    const auto refused = [](std::int64_t dim, const RotaryOptions& options, const char* part) {
        const auto made = attend::rotary_embedding(2, dim, options);
        REQUIRE_FALSE(made.ok());
        INFO(made.error().message);
        CHECK(made.error().code == attend::ErrorCode::option);
        CHECK(made.error().message.find(part) != std::string::npos);
    };
    RotaryScaling scaling;
    refused(7, {}, "dim 7; accepted: even");
    refused(2048, {}, "2 to 1024");
    refused(8, {.base = 1.0}, "base 1; accepted: finite, above 1");
    scaling = scaling_of("linear");
    scaling.factor = 0.5;
    refused(8, {.scaling = scaling}, "factor 0.5");
    refused(8, {.scaling = scaling_of("yran")}, "did you mean \"yarn\"");
    refused(8, {.scaling = scaling_of("yarn")}, "original_len");
    refused(8, {.scaling = scaling_of("dynamic_ntk")}, "max_len");
    refused(2, {.scaling = scaling_of("ntk")}, "at least 4");
    scaling = scaling_of("llama3");
    scaling.high = 1.0;
    refused(8, {.scaling = scaling}, "beside low 1");
    scaling = scaling_of("yarn");
    scaling.original_len = 128;
    scaling.beta_fast = 1.0;
    refused(8, {.scaling = scaling}, "beta_slow 1");
    refused(8, {.positions = std::vector<std::int64_t>{1}}, "1 positions for 2 rows");
    const auto wide = attend::apply_rotary(normal({2, 6}, 1), table(2, 8));
    REQUIRE_FALSE(wide.ok());
    CHECK(wide.error().message.find("rotary_dim 8; accepted: at most the width 6") != std::string::npos);
}

TEST_CASE("utilities: alibi slopes") {
    const auto slopes = [](std::int64_t heads) { return attend::alibi_slopes(heads).value(); };
    for (int h = 0; h < 8; ++h) CHECK(slopes(8)[static_cast<std::size_t>(h)] == std::exp2(-(h + 1)));
    CHECK(slopes(1) == std::vector<double>{std::exp2(-8)});
    REQUIRE(slopes(12).size() == 12);
    CHECK(slopes(12)[8] == Approx(std::exp2(-0.5)));
    CHECK(slopes(12)[7] == std::exp2(-8));
    CHECK(slopes(12)[11] == Approx(std::exp2(-3.5)));
    CHECK_FALSE(attend::alibi_slopes(0).ok());
}

TEST_CASE("utilities: sinusoidal rows turn by a fixed rotation") {
    const Tensor table = attend::sinusoidal(20, 16).value();
    for (std::int64_t row = 0; row < 20; ++row) CHECK(dot(table, row, table, row) == Approx(8.0).epsilon(1e-5));
    for (std::int64_t t = 0; t < 8; ++t) {
        const double w = std::pow(10000.0, -2.0 * static_cast<double>(t) / 16.0);
        for (std::int64_t row = 0; row + 5 < 20; ++row) {
            const auto at = [&](std::int64_t r, std::int64_t d) {
                return static_cast<double>(table.as<const float>()[r * 16 + 2 * t + d]);
            };
            CHECK(at(row + 5, 0) == Approx(at(row, 0) * std::cos(5 * w) + at(row, 1) * std::sin(5 * w)).margin(1e-6));
            CHECK(at(row + 5, 1) == Approx(at(row, 1) * std::cos(5 * w) - at(row, 0) * std::sin(5 * w)).margin(1e-6));
        }
    }
    // Split has the same numbers in two halves; an odd width has a sine more.
    const Tensor split = attend::sinusoidal(3, 5, 10000.0, attend::SinusoidalLayout::split, 4).value();
    const Tensor mixed = attend::sinusoidal(3, 5, 10000.0, attend::SinusoidalLayout::interleaved, 4).value();
    for (std::int64_t row = 0; row < 3; ++row)
        for (std::int64_t d = 0; d < 5; ++d)
            CHECK(split.as<const float>()[row * 5 + (d % 2 == 0 ? d / 2 : 3 + d / 2)] ==
                  mixed.as<const float>()[row * 5 + d]);
    CHECK_FALSE(attend::sinusoidal(3, 0).ok());
}

TEST_CASE("utilities: learned positions are rows of a table") {
    const Tensor table = attend::default_position_table(10, 3, 7).value();
    const Tensor longer = attend::default_position_table(12, 3, 7).value();
    const Tensor rows = attend::learned_positions(table, {9, 0, 9}).value();
    for (std::int64_t d = 0; d < 3; ++d) {
        CHECK(rows.as<const float>()[d] == table.as<const float>()[27 + d]);
        CHECK(rows.as<const float>()[3 + d] == table.as<const float>()[d]);
        CHECK(longer.as<const float>()[d] == table.as<const float>()[d]);
        CHECK(std::abs(table.as<const float>()[d]) < 0.12f);
    }
    const auto outside = attend::learned_positions(table, {10});
    REQUIRE_FALSE(outside.ok());
    CHECK(outside.error().message.find("position 10; accepted: 0 to 9") != std::string::npos);
}
