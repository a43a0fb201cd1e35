// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "attend/precision.hpp"
#include "attend/random.hpp"
#include "support/catch.hpp"

namespace {

using attend::CodeFormat;
using attend::DType;
using attend::Granularity;
using attend::NumberFormat;
using attend::Overflow;
using attend::Quantized;
using attend::QuantizeOptions;
using attend::Tensor;

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Format {
    NumberFormat format;
    unsigned bits;
    int precision;
    float max_finite, min_subnormal;
};
const Format formats[] = {{NumberFormat::fp16, 16, 11, 65504.0f, 0x1p-24f},
                          {NumberFormat::bf16, 16, 8, 0x1.FEp127f, 0x1p-133f},
                          {NumberFormat::fp8_e4m3, 8, 4, 448.0f, 0x1p-9f},
                          {NumberFormat::fp8_e5m2, 8, 3, 57344.0f, 0x1p-16f}};

// Finite values of the format from zero up, by their codes.
std::vector<float> ladder(const Format& format) {
    std::vector<float> values;
    for (std::uint32_t code = 0; code < (1u << (format.bits - 1)); ++code) {
        const float value = attend::decode_number(static_cast<std::uint16_t>(code), format.format);
        if (std::isfinite(value)) values.push_back(value);
    }
    return values;
}

Tensor filled(std::vector<std::int64_t> shape, std::uint64_t seed) {
    Tensor tensor = Tensor::allocate(DType::f32, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at)
        tensor.as<float>()[at] = static_cast<float>(attend::normals(
            attend::named_words(static_cast<std::uint64_t>(at), seed, attend::RandomDomain::data, 3))[0]);
    return tensor;
}
Tensor scaled(const Tensor& x, float factor) {
    Tensor made = Tensor::allocate(DType::f32, x.shape).value();
    for (std::int64_t at = 0; at < x.size(); ++at) made.as<float>()[at] = x.as<const float>()[at] * factor;
    return made;
}
float scale_at(const Quantized& q, std::int64_t at) {
    const std::int64_t columns = q.codes.shape.back(), rows = q.codes.shape[q.codes.shape.size() - 2];
    const std::int64_t down = (rows + q.block_rows - 1) / q.block_rows,
                       across = (columns + q.block_cols - 1) / q.block_cols;
    const std::int64_t row = at / columns % rows, matrix = at / columns / rows;
    return q.scales.as<const float>()[(matrix * down + row / q.block_rows) * across + at % columns / q.block_cols];
}
const QuantizeOptions granularities[] = {{.granularity = Granularity::tensor},
                                         {.granularity = Granularity::per_token},
                                         {.granularity = Granularity::per_channel},
                                         {.granularity = Granularity::per_block, .block_rows = 4, .block_cols = 3},
                                         {.granularity = Granularity::per_block, .block_rows = 5}};

// Random, with outliers, tiny, constant, zero.
std::vector<Tensor> kinds() {
    std::vector<Tensor> all{filled({2, 9, 8}, 1), filled({2, 9, 8}, 2), scaled(filled({9, 8}, 3), 0x1p-60f),
                            filled({3, 4}, 4), filled({3, 4}, 4)};
    all[1].as<float>()[17] = 1e6f;
    for (int at = 0; at < 12; ++at) {
        all[3].as<float>()[at] = -2.5f;
        all[4].as<float>()[at] = 0.0f;
    }
    return all;
}
void check_bounds(CodeFormat format, double precision, double subnormal) {
    for (const Tensor& x : kinds())
        for (QuantizeOptions options : granularities)
            for (const bool pow2 : {false, true}) {
                options.format = format;
                options.pow2_scale = pow2;
                const Quantized q = attend::quantize(x, options).value();
                const Tensor back = attend::dequantize(q).value();
                for (std::int64_t at = 0; at < x.size(); ++at) {
                    const double scale = static_cast<double>(scale_at(q, at)),
                                 value = static_cast<double>(x.as<const float>()[at]);
                    const double bound =
                        format == CodeFormat::int8
                            ? (0.5 + 0x1p-14) * scale
                            : std::max(precision * std::abs(value), scale * subnormal / 2) * (1 + 0x1p-20);
                    CHECK(std::abs(value - static_cast<double>(back.as<const float>()[at])) <= bound);
                }
                CHECK(q.clipped == 0);
            }
}

}  // namespace

TEST_CASE("utilities: every code of every format comes back") {
    for (const Format& format : formats)
        for (std::uint32_t code = 0; code < (1u << format.bits); ++code) {
            const float value = attend::decode_number(static_cast<std::uint16_t>(code), format.format);
            if (std::isnan(value)) {
                CHECK(std::isnan(attend::decode_number(attend::encode_number(value, format.format), format.format)));
                continue;
            }
            if (std::isinf(value) && format.bits == 8) continue;  // the default saturates
            CHECK(attend::encode_number(value, format.format) == code);
        }
}

TEST_CASE("utilities: midpoints go to the even code") {
    for (const Format& format : formats) {
        const std::vector<float> values = ladder(format);
        CHECK(values.back() == format.max_finite);
        CHECK(values[1] == format.min_subnormal);
        for (std::size_t code = 0; code + 1 < values.size(); ++code) {
            if (format.format == NumberFormat::bf16 && code < 2) continue;  // between them is no float
            const float middle = values[code] + (values[code + 1] - values[code]) / 2;
            const std::uint16_t even = static_cast<std::uint16_t>(code % 2 == 0 ? code : code + 1);
            CHECK(attend::encode_number(middle, format.format) == even);
            CHECK(attend::encode_number(std::nextafter(middle, infinity), format.format) == code + 1);
            CHECK(attend::encode_number(std::nextafter(middle, 0.0f), format.format) == code);
        }
    }
}

TEST_CASE("utilities: rounding is monotone and bounded") {
    for (const Format& format : formats) {
        float before = -1.0f;
        for (float x = format.min_subnormal / 3; x < format.max_finite; x *= 1.013f) {
            const float y = attend::decode_number(attend::encode_number(x, format.format), format.format);
            CHECK(y >= before);
            before = y;
            CHECK(std::abs(static_cast<double>(x) - static_cast<double>(y)) <=
                  std::max(std::ldexp(static_cast<double>(x), -format.precision),
                           static_cast<double>(format.min_subnormal) / 2));
            if (x < 0x1p-126f && format.format == NumberFormat::bf16) continue;
        }
    }
}

TEST_CASE("utilities: encoding a negative number flips the sign") {
    for (const Format& format : formats)
        for (const float x : {0.0f, 1e-9f, 0.37f, 1.0f, 300.0f, 1e9f, infinity, std::nanf("")})
            CHECK(attend::encode_number(-x, format.format) ==
                  (attend::encode_number(x, format.format) ^ (1u << (format.bits - 1))));
}

TEST_CASE("utilities: what is too large for a format") {
    const auto encoded = [](float x, NumberFormat format, Overflow overflow) {
        return attend::decode_number(attend::encode_number(x, format, overflow), format);
    };
    CHECK(encoded(65519.0f, NumberFormat::fp16, Overflow::usual) == 65504.0f);
    CHECK(encoded(65520.0f, NumberFormat::fp16, Overflow::usual) == infinity);
    CHECK(encoded(-65520.0f, NumberFormat::fp16, Overflow::saturate) == -65504.0f);
    CHECK(encoded(infinity, NumberFormat::bf16, Overflow::usual) == infinity);
    CHECK(encoded(3.4e38f, NumberFormat::bf16, Overflow::saturate) == 0x1.FEp127f);
    CHECK(encoded(1e9f, NumberFormat::fp8_e4m3, Overflow::usual) == 448.0f);
    CHECK(encoded(464.0f, NumberFormat::fp8_e4m3, Overflow::strict) == 448.0f);
    CHECK(std::isnan(encoded(465.0f, NumberFormat::fp8_e4m3, Overflow::strict)));
    CHECK(encoded(-infinity, NumberFormat::fp8_e5m2, Overflow::usual) == -57344.0f);
    CHECK(encoded(61439.0f, NumberFormat::fp8_e5m2, Overflow::strict) == 57344.0f);
    CHECK(encoded(-61440.0f, NumberFormat::fp8_e5m2, Overflow::strict) == -infinity);
    CHECK(attend::encode_number(std::nanf(""), NumberFormat::fp8_e4m3) == 0x7F);
}

TEST_CASE("utilities: quantised numbers stay within their bounds") {
    check_bounds(CodeFormat::int8, 0, 0);
    check_bounds(CodeFormat::e4m3, 0x1p-4, 0x1p-9);
    check_bounds(CodeFormat::e5m2, 0x1p-3, 0x1p-16);
}

TEST_CASE("utilities: codes do not change with powers of two") {
    for (const CodeFormat format : {CodeFormat::int8, CodeFormat::e4m3, CodeFormat::e5m2})
        for (QuantizeOptions options : granularities) {
            options.format = format;
            const Tensor x = filled({2, 9, 8}, 5);
            const Quantized one = attend::quantize(x, options).value(),
                            other = attend::quantize(scaled(x, 0x1p-17f), options).value();
            CHECK(std::memcmp(one.codes.data, other.codes.data, one.codes.byte_size()) == 0);
        }
}

TEST_CASE("utilities: quantising the negative negates the codes") {
    const Tensor x = filled({9, 8}, 6);
    const Quantized one = attend::quantize(x).value(), other = attend::quantize(scaled(x, -1.0f)).value();
    for (std::int64_t at = 0; at < x.size(); ++at)
        CHECK(one.codes.as<const std::int8_t>()[at] == -other.codes.as<const std::int8_t>()[at]);
}

TEST_CASE("utilities: one block equals the whole tensor") {
    const Tensor x = filled({9, 8}, 7);
    const Quantized whole = attend::quantize(x).value();
    const Quantized block =
        attend::quantize(x, {.granularity = Granularity::per_block, .block_rows = 9, .block_cols = 8}).value();
    CHECK(std::memcmp(whole.codes.data, block.codes.data, whole.codes.byte_size()) == 0);
    CHECK(whole.scales.as<const float>()[0] == block.scales.as<const float>()[0]);
    CHECK(block.scales.shape == std::vector<std::int64_t>{1, 1});
    CHECK(
        attend::quantize(x, {.granularity = Granularity::per_block, .block_rows = 4, .block_cols = 3})->scales.shape ==
        std::vector<std::int64_t>{3, 3});
}

TEST_CASE("utilities: the largest element gets the largest code") {
    for (const Tensor& x : kinds()) {
        const Quantized q = attend::quantize(x).value();
        std::int64_t most = 0;
        for (std::int64_t at = 0; at < x.size(); ++at)
            if (std::fabs(x.as<const float>()[at]) > std::fabs(x.as<const float>()[most])) most = at;
        CHECK(std::abs(static_cast<int>(q.codes.as<const std::int8_t>()[most])) ==
              (x.as<const float>()[most] == 0.0f ? 0 : 127));
        CHECK(q.amax == static_cast<double>(std::fabs(x.as<const float>()[most])));
    }
}

TEST_CASE("utilities: requantising gives the same codes") {
    for (const CodeFormat format : {CodeFormat::int8, CodeFormat::e4m3, CodeFormat::e5m2})
        for (QuantizeOptions options : granularities) {
            options.format = format;
            const Quantized once = attend::quantize(filled({2, 9, 8}, 8), options).value();
            const Quantized twice = attend::quantize(attend::dequantize(once).value(), options).value();
            CHECK(std::memcmp(once.codes.data, twice.codes.data, once.codes.byte_size()) == 0);
        }
}

TEST_CASE("utilities: quantising refuses and reports") {
    Tensor x = filled({2, 3}, 9);
    CHECK(attend::quantize(x, {.scales = scaled(filled({1, 1}, 1), 0.0f)}).error().message.find("above 0") !=
          std::string::npos);
    Tensor small = Tensor::allocate(DType::f32, {1, 1}).value();
    small.as<float>()[0] = 1e-3f;
    const Quantized clipped = attend::quantize(x, {.scales = small}).value();
    CHECK(clipped.clipped > 0);
    CHECK(clipped.scale_min == Approx(1e-3));
    CHECK(clipped.rms_error > 0);
    CHECK(attend::quantize(x, {.block_rows = 2}).error().message.find("per_block") != std::string::npos);
    x.as<float>()[4] = std::nanf("");
    CHECK(attend::quantize(x).error().code == attend::ErrorCode::nonfinite);
    x.as<float>()[4] = -infinity;
    CHECK(attend::quantize(x).error().message.find("infinity in row 1") != std::string::npos);
}
