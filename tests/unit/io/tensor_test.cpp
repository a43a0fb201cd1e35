// SPDX-License-Identifier: Apache-2.0
// Tensor, the scalar formats and convert(): every 16-bit code, every midpoint, every dtype pair, awkward strides.

#include "attend/tensor.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>

#include "io/precision.hpp"
#include "support/catch.hpp"

namespace {

using namespace attend;
using namespace attend::precision;

bool same_bits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

Tensor make(DType dtype, std::vector<std::int64_t> shape) {
    auto tensor = Tensor::allocate(dtype, std::move(shape));
    REQUIRE(tensor);
    return *tensor;
}

// Encodes by searching all finite codes for the nearest one, ties to the even code: slow and obviously right.
template <class Decode>
std::uint16_t nearest_code(double magnitude, std::uint16_t max_finite, Decode decode_one) {
    std::uint16_t low = 0;
    std::uint16_t high = max_finite;
    while (high - low > 1) {
        const auto middle = static_cast<std::uint16_t>((low + high) / 2);
        (static_cast<double>(decode_one(middle)) <= magnitude ? low : high) = middle;
    }
    if (static_cast<double>(decode_one(high)) <= magnitude) return high;
    const double to_low = magnitude - static_cast<double>(decode_one(low));
    const double to_high = static_cast<double>(decode_one(high)) - magnitude;
    if (to_low == to_high) return low % 2 == 0 ? low : high;
    return to_low < to_high ? low : high;
}

}  // namespace

TEST_CASE("all fp16 codes round trip and midpoints go to the even code") {
    for (std::uint32_t value = 0; value < 0x10000; ++value) {
        const auto code = static_cast<std::uint16_t>(value);
        const float decoded = decode<fp16>(code);
        if ((code & 0x7FFF) > 0x7C00) {
            if (!std::isnan(decoded) || encode<fp16>(decoded) != (code | 0x200)) FAIL("code " << value);
            continue;
        }
        if (encode<fp16>(decoded) != code) FAIL("code " << value);
        if (encode<fp16>(-decoded) != (code ^ 0x8000)) FAIL("negated code " << value);
        if (code >= 0x7BFF) continue;
        const float next = decode<fp16>(static_cast<std::uint16_t>(code + 1));
        if (!(next > decoded)) FAIL("not monotone at " << value);
        const float middle = (decoded + next) / 2;  // exact: fp16 has 11 bits, float 24
        const auto even = static_cast<std::uint16_t>(code + (code & 1));
        if (encode<fp16>(middle) != even) FAIL("midpoint above " << value);
        if (encode<fp16>(std::nextafter(middle, 0.0F)) != code) FAIL("below midpoint " << value);
        if (encode<fp16>(std::nextafter(middle, next)) != code + 1) FAIL("above midpoint " << value);
    }
    CHECK(encode<fp16>(65519.996F) == 0x7BFF);
    CHECK(encode<fp16>(65520.0F) == 0x7C00);
    CHECK(encode<fp16>(-1e30F) == 0xFC00);
    CHECK(encode<fp16>(0x1p-25F) == 0);
    CHECK(encode<fp16>(0x1.000002p-25F) == 1);
    CHECK(decode<fp16>(1) == 0x1p-24F);
    CHECK(decode<fp16>(0x0400) == 0x1p-14F);
    CHECK(same_bits(decode<fp16>(0x8000), -0.0F));
    CHECK(std::isinf(decode<fp16>(0x7C00)));
}

TEST_CASE("all bf16 codes round trip and midpoints go to the even code") {
    for (std::uint32_t value = 0; value < 0x10000; ++value) {
        const auto code = static_cast<std::uint16_t>(value);
        const float decoded = decode_bf16(code);
        if ((code & 0x7FFF) > 0x7F80) {
            if (!std::isnan(decoded) || encode_bf16(decoded) != (code | 0x40)) FAIL("code " << value);
            continue;
        }
        if (encode_bf16(decoded) != code) FAIL("code " << value);
        if ((code & 0x7FFF) >= 0x7F80) continue;
        const auto middle = std::bit_cast<float>((value << 16) | 0x8000U);
        if (encode_bf16(middle) != code + (code & 1)) FAIL("midpoint above " << value);
        if (encode_bf16(std::bit_cast<float>((value << 16) | 0x7FFFU)) != code) FAIL("below midpoint " << value);
        if (encode_bf16(std::bit_cast<float>((value << 16) | 0x8001U)) != code + 1) FAIL("above midpoint " << value);
    }
    CHECK(encode_bf16(std::numeric_limits<float>::max()) == 0x7F80);
    CHECK(encode_bf16(std::bit_cast<float>(0x7F800001U)) == 0x7FC0);  // the payload below the cut is not lost to Inf
}

TEMPLATE_TEST_CASE_SIG("all codes of the 8-bit formats round trip and midpoints go to the even code", "",
                       ((bool e4m3), e4m3), true, false) {
    constexpr SmallFloat format = e4m3 ? fp8_e4m3 : fp8_e5m2;
    for (int code = 0; code < 256; ++code) {
        const float decoded = decode<format>(static_cast<std::uint16_t>(code));
        INFO("code " << code);
        if (std::isnan(decoded)) {
            CHECK(encode<format>(decoded) == ((code & 0x80) | 0x7F));
            CHECK((e4m3 ? (code & 0x7F) == 0x7F : (code & 0x7F) >= 0x7D));
            continue;
        }
        if (std::isinf(decoded)) {
            CHECK(encode<format>(decoded) == ((code & 0x80) | 0x7B));
            continue;
        }
        CHECK(encode<format>(decoded) == code);
        if ((code & 0x7F) >= format.max_finite) continue;
        const float next = decode<format>(static_cast<std::uint16_t>(code + 1));
        CHECK(encode<format>((decoded + next) / 2) == code + (code & 1));
    }
    CHECK(decode<fp8_e4m3>(0x7E) == 448.0F);
    CHECK(decode<fp8_e4m3>(1) == 0x1p-9F);
    CHECK(encode<fp8_e4m3>(464.0F) == 0x7E);
    CHECK(encode<fp8_e4m3>(1e9F) == 0x7E);
    CHECK(decode<fp8_e5m2>(0x7B) == 57344.0F);
    CHECK(decode<fp8_e5m2>(1) == 0x1p-16F);
}

TEST_CASE("a double reaches the 16-bit formats with one rounding") {
    // Just above a midpoint of fp16, by less than float can see: through float it would be a tie and go down.
    const double above = 1.0 + 0x1p-11 + 0x1p-40;
    CHECK(encode<fp16>(static_cast<float>(above)) == 0x3C00);
    CHECK(encode<fp16>(round_to_odd(above)) == 0x3C01);
    std::mt19937_64 random(7);
    for (int trial = 0; trial < 20000; ++trial) {
        const double mantissa = 1.0 + static_cast<double>(random() >> 12) * 0x1p-52;
        const double value = std::ldexp(mantissa, static_cast<int>(random() % 48) - 30);
        const std::uint16_t expected =
            value >= 65520.0 ? 0x7C00 : nearest_code(value, 0x7BFF, [](std::uint16_t c) { return decode<fp16>(c); });
        if (encode<fp16>(round_to_odd(value)) != expected) FAIL("value " << value);
        // Values that sit next to midpoints of bf16, where a second rounding shows.
        const double near =
            static_cast<double>(std::bit_cast<float>((static_cast<std::uint32_t>(random() % 0x7E00) << 16) | 0x8000U)) *
            (1.0 + (trial % 3 - 1) * 0x1p-50);
        const std::uint16_t bf16 = nearest_code(near, 0x7F7F, decode_bf16);
        if (encode_bf16(round_to_odd(near)) != bf16) FAIL("value " << near);
    }
    CHECK(encode_bf16(round_to_odd(1e300)) == 0x7F80);
    CHECK(encode_bf16(round_to_odd(-1e-300)) == 0x8000);
    CHECK(std::isnan(round_to_odd(std::nan(""))));
}

TEST_CASE("allocate gives aligned zeros and refuses impossible shapes") {
    for (const DType dtype : all_dtypes) {
        const Tensor tensor = make(dtype, {3, 0, 5});
        CHECK(tensor.size() == 0);
        CHECK(tensor.contiguous());
        const Tensor filled = make(dtype, {2, 3, 5});
        CHECK(reinterpret_cast<std::uintptr_t>(filled.data) % 64 == 0);
        CHECK(filled.byte_size() == 30 * dtype_size(dtype));
        CHECK(filled.strides == std::vector<std::int64_t>{15, 5, 1});
        for (std::size_t byte = 0; byte < filled.byte_size(); ++byte) {
            if (static_cast<const unsigned char*>(filled.data)[byte] != 0) FAIL("not zero");
        }
        CHECK(dtype_from_name(dtype_name(dtype)) == dtype);
    }
    CHECK(make(DType::f32, {}).size() == 1);
    CHECK_FALSE(dtype_from_name("f32"));
    const auto negative = Tensor::allocate(DType::f32, {2, -1});
    REQUIRE_FALSE(negative);
    CHECK(negative.error().code == ErrorCode::shape);
    CHECK(negative.error().message.find("[2, -1]") != std::string::npos);
    const std::int64_t huge = std::int64_t{1} << 40;
    CHECK_FALSE(Tensor::allocate(DType::f32, {huge, huge}));
    CHECK_FALSE(Tensor::allocate(DType::f32, {huge, huge, 0}));
    CHECK_FALSE(Tensor::allocate(DType::f64, {std::int64_t{1} << 60}));
    CHECK(Tensor::allocate(DType::f32, {0, huge, huge}));
}

TEST_CASE("impossible amounts of memory are an error, not a crash") {
    const auto tensor = Tensor::allocate(DType::u8, {std::int64_t{1} << 62});
    REQUIRE_FALSE(tensor);
    CHECK(tensor.error().code == ErrorCode::memory);
}

TEST_CASE("views, contiguity and compaction") {
    const Tensor base = make(DType::i32, {4, 6});
    for (std::int32_t i = 0; i < 24; ++i) base.as<std::int32_t>()[i] = i;
    const Tensor transposed = base.view({6, 4}, {1, 6});
    CHECK_FALSE(transposed.contiguous());
    const Tensor reversed = base.view({4, 6}, {6, -1}, 5);
    const Tensor repeated = base.view({3, 4}, {0, 6}, 2);
    CHECK(base.view({4, 1, 6}, {6, 99, 1}).contiguous());
    const auto a = contiguous_copy(transposed);
    const auto b = contiguous_copy(reversed);
    const auto c = contiguous_copy(repeated);
    REQUIRE((a && b && c));
    for (std::int32_t row = 0; row < 6; ++row) {
        for (std::int32_t column = 0; column < 4; ++column) {
            CHECK(a->as<std::int32_t>()[row * 4 + column] == column * 6 + row);
            CHECK(b->as<std::int32_t>()[column * 6 + row] == column * 6 + 5 - row);
            if (row < 3) CHECK(c->as<std::int32_t>()[row * 4 + column] == column * 6 + 2);
        }
    }
    const auto same = contiguous_copy(base);
    REQUIRE(same);
    CHECK(same->data == base.data);
    const auto as_float = convert(transposed, DType::f32);
    REQUIRE(as_float);
    CHECK(as_float->shape == std::vector<std::int64_t>{6, 4});
    CHECK(as_float->as<float>()[7] == 19.0F);
}

TEST_CASE("convert reaches every float dtype from every dtype") {
    for (const DType source : all_dtypes) {
        Tensor one = make(source, {3});
        auto* bytes = static_cast<unsigned char*>(one.data);
        if (is_float(source)) {
            Tensor seed = make(DType::f32, {3});
            seed.as<float>()[1] = 1.0F;
            seed.as<float>()[2] = 3.0F;
            const auto converted = convert(seed, source);
            REQUIRE(converted);
            one = *converted;
        } else {
            bytes[dtype_size(source)] = 1;
            bytes[2 * dtype_size(source)] = source == DType::boolean ? 1 : 3;
        }
        for (const DType target : all_dtypes) {
            INFO(dtype_name(source) << " to " << dtype_name(target));
            const auto result = convert(one, target);
            if (!is_float(target) && target != source) {
                REQUIRE_FALSE(result);
                CHECK(result.error().code == ErrorCode::dtype);
                continue;
            }
            REQUIRE(result);
            const auto back = convert(*result, DType::f64);
            if (!is_float(target)) continue;
            REQUIRE(back);
            CHECK(back->as<double>()[0] == 0.0);
            CHECK(back->as<double>()[1] == 1.0);
            CHECK(back->as<double>()[2] == (source == DType::boolean ? 1.0 : 3.0));
        }
    }
}

TEST_CASE("wide integers are rounded once") {
    Tensor tensor = make(DType::i64, {3});
    // 2^62 plus half a bf16 step plus one: a double would drop the one and leave a tie.
    tensor.as<std::int64_t>()[0] = (std::int64_t{1} << 62) + (std::int64_t{1} << 54) + 1;
    tensor.as<std::int64_t>()[1] = -tensor.as<std::int64_t>()[0];
    tensor.as<std::int64_t>()[2] = std::numeric_limits<std::int64_t>::min();
    const auto result = convert(tensor, DType::bf16);
    REQUIRE(result);
    CHECK(result->as<std::uint16_t>()[0] == encode_bf16(0x1.02p62F));
    CHECK(result->as<std::uint16_t>()[1] == encode_bf16(-0x1.02p62F));
    CHECK(result->as<std::uint16_t>()[2] == encode_bf16(-0x1p63F));
    const auto single = convert(tensor, DType::f32);
    REQUIRE(single);
    CHECK(single->as<float>()[2] == -0x1p63F);
}
