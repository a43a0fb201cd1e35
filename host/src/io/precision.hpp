// SPDX-License-Identifier: Apache-2.0
// Scalar conversions between float and the 16- and 8-bit formats: to nearest, ties to even, subnormals kept, NaN
// quiet with its sign. Integer arithmetic only, so the result depends on neither the rounding mode nor the hardware.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace attend::precision {

// An IEEE-like format of sign, exponent and mantissa bits in at most 16 bits.
struct SmallFloat {
    unsigned exponent_bits;
    unsigned mantissa_bits;
    std::uint16_t max_finite;  // code of the largest finite value
    std::uint16_t overflow;    // what lies beyond rounds to: infinity, or max_finite in formats that saturate
    std::uint16_t nan;         // a quiet NaN, sign bit clear
    bool has_infinity;         // the all-ones exponent holds infinity and NaN only
};

inline constexpr SmallFloat fp16{5, 10, 0x7BFF, 0x7C00, 0x7E00, true};
inline constexpr SmallFloat fp8_e4m3{4, 3, 0x7E, 0x7E, 0x7F, false};
inline constexpr SmallFloat fp8_e5m2{5, 2, 0x7B, 0x7B, 0x7F, true};

template <SmallFloat format>
[[nodiscard]] constexpr std::uint16_t encode(float value) noexcept {
    constexpr unsigned sign_shift = format.exponent_bits + format.mantissa_bits;
    constexpr int bias = (1 << (format.exponent_bits - 1)) - 1;
    constexpr unsigned drop = 23 - format.mantissa_bits;
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 31) << sign_shift);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) {
        // Where the format has room for a payload, its upper bits survive.
        constexpr std::uint32_t mantissa_mask = (1U << format.mantissa_bits) - 1U;
        const std::uint32_t payload = format.has_infinity ? (magnitude >> drop) & mantissa_mask : 0U;
        return static_cast<std::uint16_t>(sign | format.nan | payload);
    }
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    std::uint32_t code = 0;
    if (exponent >= 1 - bias) {
        // Normal in the target. A carry out of the mantissa moves into the exponent by itself.
        const std::uint32_t rebased = magnitude - (static_cast<std::uint32_t>(127 - bias) << 23);
        code = (rebased + ((1U << (drop - 1)) - 1U) + ((rebased >> drop) & 1U)) >> drop;
    } else {
        const unsigned shift = drop + static_cast<unsigned>(1 - bias - exponent);
        if (shift <= 24) {
            const std::uint32_t mantissa = (magnitude & 0x7FFFFFU) | 0x800000U;
            code = (mantissa + ((1U << (shift - 1)) - 1U) + ((mantissa >> shift) & 1U)) >> shift;
        }
    }
    if (code > format.max_finite) code = format.overflow;
    return static_cast<std::uint16_t>(sign | code);
}

template <SmallFloat format>
[[nodiscard]] constexpr float decode(std::uint16_t code) noexcept {
    constexpr unsigned sign_shift = format.exponent_bits + format.mantissa_bits;
    constexpr int bias = (1 << (format.exponent_bits - 1)) - 1;
    constexpr std::uint32_t mantissa_mask = (1U << format.mantissa_bits) - 1U;
    constexpr std::uint32_t exponent_mask = (1U << format.exponent_bits) - 1U;
    const std::uint32_t sign = static_cast<std::uint32_t>(code >> sign_shift) << 31;
    const std::uint32_t exponent = (code >> format.mantissa_bits) & exponent_mask;
    const std::uint32_t mantissa = code & mantissa_mask;
    const bool nan = format.has_infinity ? exponent == exponent_mask && mantissa != 0
                                         : (code & ((1U << sign_shift) - 1U)) == format.nan;
    if (nan) return std::bit_cast<float>(sign | 0x7FC00000U | (mantissa << (23 - format.mantissa_bits)));
    if (format.has_infinity && exponent == exponent_mask) return std::bit_cast<float>(sign | 0x7F800000U);
    if (exponent != 0) {
        return std::bit_cast<float>(sign | ((exponent + static_cast<std::uint32_t>(127 - bias)) << 23) |
                                    (mantissa << (23 - format.mantissa_bits)));
    }
    if (mantissa == 0) return std::bit_cast<float>(sign);
    // A subnormal of the target is normal in float: move its leading one to the hidden place.
    const auto lead = static_cast<unsigned>(std::bit_width(mantissa)) - 1U;
    const std::uint32_t scaled = 127U - static_cast<std::uint32_t>(bias) + 1U + lead - format.mantissa_bits;
    return std::bit_cast<float>(sign | (scaled << 23) | ((mantissa << (23 - lead)) & 0x7FFFFFU));
}

[[nodiscard]] constexpr std::uint16_t encode_bf16(float value) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

[[nodiscard]] constexpr float decode_bf16(std::uint16_t code) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 16);
}

// The float nearest to zero from value, its last bit set when that was inexact. Rounding the result to a format with
// at least two bits less gives what rounding the double directly would give, so there is no double rounding.
[[nodiscard]] inline float round_to_odd(double value) noexcept {
    if (std::isnan(value)) return static_cast<float>(value);
    if (std::isinf(value)) return static_cast<float>(value);
    const double magnitude = std::fabs(value);
    std::uint32_t bits = 0x7F7FFFFFU;  // beyond the largest float: that float, which is odd
    if (magnitude <= static_cast<double>(std::numeric_limits<float>::max())) {
        bits = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude));
        const auto nearest = static_cast<double>(std::bit_cast<float>(bits));
        if (nearest > magnitude) --bits;
        if (nearest != magnitude) bits |= 1U;
    }
    return std::bit_cast<float>(bits | (std::signbit(value) ? 0x80000000U : 0U));
}

}  // namespace attend::precision
