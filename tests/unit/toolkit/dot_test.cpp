// SPDX-License-Identifier: Apache-2.0
// bf16 and f16 to float and back over every code and every midpoint, and the dot of pairs.
#include "unit/toolkit/pair_entries.hpp"

namespace attend::test {
namespace {

constexpr int codes = 65536;
struct Format {
    int fraction_bits, bias, infinity;  // infinity: the code
};
constexpr Format formats[] = {{7, 127, 0x7F80}, {10, 15, 0x7C00}};

// By the definition of the formats.
double value_of(const Format& format, int code) {
    const int size = code & 0x7FFF, exponent = size >> format.fraction_bits;
    const int fraction = size - (exponent << format.fraction_bits);
    const double sign = code >= 0x8000 ? -1.0 : 1.0;
    if (size > format.infinity) return std::numeric_limits<double>::quiet_NaN();
    if (size == format.infinity) return sign * std::numeric_limits<double>::infinity();
    const double significand = fraction + (exponent == 0 ? 0 : 1 << format.fraction_bits);
    return sign * std::ldexp(significand, std::max(exponent, 1) - format.bias - format.fraction_bits);
}

template <class Body>
void for_each_conversion(Body body) {
    for_each_dots([&](const PairEntry& entry, int hardware) {
        if (hardware != 0) return;
        for (int format = 0; format < 2; ++format)
            for (int scalar = 0; scalar < 2; ++scalar) {
                INFO((format == 0 ? "bf16" : "f16") << (scalar != 0 ? ", single elements" : ", vectors"));
                body(entry, format, scalar);
            }
    });
}

TEST_CASE("dot: every code becomes its value", "[toolkit]") {
    std::vector<uint16_t> from(codes + 5);
    for (size_t at = 0; at < from.size(); ++at) from[at] = static_cast<uint16_t>(at);
    for_each_conversion([&](const PairEntry& entry, int format, int scalar) {
        std::vector<float> to(from.size());
        entry.widen(format, scalar, from.data(), to.data(), static_cast<int64_t>(from.size()));
        int wrong = 0;
        for (size_t at = 0; at < from.size(); ++at) {
            const double expected = value_of(formats[format], from[at]), got = static_cast<double>(to[at]);
            const bool agrees =
                std::isnan(expected) ? std::isnan(got) : got == expected && std::signbit(got) == std::signbit(expected);
            if (!agrees) ++wrong;
        }
        CHECK(wrong == 0);
    });
}

TEST_CASE("dot: rounding is to nearest even", "[toolkit]") {
    // For each pair of neighbouring codes: the lower value, just below, at and just above the midpoint.
    for_each_conversion([&](const PairEntry& entry, int format, int scalar) {
        const Format& kind = formats[format];
        std::vector<float> from;
        std::vector<uint16_t> expected;
        for (int code = 0; code < kind.infinity; ++code) {
            const double low = value_of(kind, code);
            const double high =
                code + 1 < kind.infinity ? value_of(kind, code + 1) : 2.0 * low - value_of(kind, code - 1);
            const auto middle = static_cast<float>(low / 2 + high / 2);
            const float values[] = {static_cast<float>(low), std::nextafterf(middle, 0.0f), middle,
                                    std::nextafterf(middle, std::numeric_limits<float>::infinity())};
            const int to[] = {code, code, code + code % 2, code + 1};
            for (int sign = 0; sign < 2; ++sign)
                for (int at = 0; at < 4; ++at) {
                    from.push_back(sign == 0 ? values[at] : -values[at]);
                    expected.push_back(static_cast<uint16_t>(to[at] + 0x8000 * sign));
                }
        }
        for (int code = kind.infinity; code <= 0x7FFF; ++code) {
            float special;
            const auto bits = static_cast<uint16_t>(code);
            entry.widen(format, 1, &bits, &special, 1);
            from.push_back(special);
            expected.push_back(
                static_cast<uint16_t>(code == kind.infinity ? code : code | 1 << (kind.fraction_bits - 1)));
        }
        for (const float big : {3.4e38f, std::numeric_limits<float>::max(), -std::numeric_limits<float>::max()}) {
            from.push_back(big);
            expected.push_back(static_cast<uint16_t>(kind.infinity + (big < 0.0f ? 0x8000 : 0)));
        }
        // A NaN whose payload lies below the bits that are kept.
        from.push_back(same_bits_as<float>(0x7F800001u));
        expected.push_back(static_cast<uint16_t>(kind.infinity | 1 << (kind.fraction_bits - 1)));
        std::vector<uint16_t> to(from.size(), 0xABAB);
        entry.narrow(format, scalar, from.data(), to.data(), static_cast<int64_t>(from.size()));
        int wrong = 0;
        for (size_t at = 0; at < to.size(); ++at)
            if (to[at] != expected[at] && ++wrong < 4) {
                INFO("of " << from[at]);
                CHECK(to[at] == expected[at]);
            }
        CHECK(wrong == 0);
    });
}

TEST_CASE("dot: pairs of floats round like single ones", "[toolkit]") {
    // All upper halves with lower halves around the midpoint; subnormals may become zero in hardware.
    for_each_dots([&](const PairEntry& entry, int hardware) {
        const int64_t lanes = 2 * entry.lanes();
        std::vector<float> from(static_cast<size_t>(3 * lanes));
        std::vector<uint32_t> to(static_cast<size_t>(2 * lanes));
        std::vector<uint16_t> expected(from.size());
        int wrong = 0;
        uint32_t bits = 0;
        constexpr uint32_t lows[] = {0u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu};
        for (int64_t round = 0; round * 3 * lanes < 5 * codes; ++round) {
            for (float& value : from) {
                value = same_bits_as<float>((bits / 5 % codes) << 16 | lows[bits % 5]);
                bits += 1;
            }
            entry.narrow(0, 1, from.data(), expected.data(), 3 * lanes);
            entry.round_rows(hardware, from.data(), 3, to.data());
            for (int64_t row = 0; row < 4; ++row)
                for (int64_t lane = 0; lane < lanes; ++lane) {
                    const auto got =
                        static_cast<uint16_t>(to[static_cast<size_t>(row / 2 * lanes + lane)] >> row % 2 * 16);
                    const auto at = static_cast<size_t>(row * lanes + lane);
                    const int want = row == 3 ? 0 : expected[at];
                    // An input at or below the largest subnormal number may count as zero.
                    const bool tiny = row < 3 && std::fabs(from[at]) < std::numeric_limits<float>::min();
                    if (got == want || (hardware != 0 && tiny && (got & 0x7FFF) == 0)) continue;
                    ++wrong;
                }
        }
        CHECK(wrong == 0);
    });
}

TEST_CASE("dot: adds both products", "[toolkit]") {
    Random random(3);
    for_each_dots([&](const PairEntry& entry, int hardware) {
        constexpr size_t count = 4096;
        std::vector<uint32_t> a(count), b(count);
        std::vector<float> acc(count);
        std::vector<double> expected;
        for (size_t at = 0; at < count; ++at) {
            const uint16_t parts[] = {random_bf16(random), random_bf16(random), random_bf16(random),
                                      random_bf16(random)};
            a[at] = uint32_t{parts[0]} | uint32_t{parts[1]} << 16;
            b[at] = uint32_t{parts[2]} | uint32_t{parts[3]} << 16;
            acc[at] = random.normal();
            expected.push_back(static_cast<double>(acc[at]) + bf16_value(parts[0]) * bf16_value(parts[2]) +
                               bf16_value(parts[1]) * bf16_value(parts[3]));
        }
        const std::vector<float> start = acc;
        entry.dot(hardware, a.data(), b.data(), acc.data(), count);
        CHECK(first_difference(acc, expected, 4e-6) == -1);
        if (hardware != 0) {
            // The same two roundings in the same order.
            std::vector<float> twin = start;
            entry.dot(0, a.data(), b.data(), twin.data(), count);
            CHECK(same_bits(acc, twin));
        }
    });
}

TEST_CASE("dot: infinities and NaN", "[toolkit]") {
    for_each_dots([&](const PairEntry& entry, int hardware) {
        const auto lanes = static_cast<size_t>(entry.lanes());
        const auto of = [&](uint32_t a, uint32_t b, float start) {
            std::vector<uint32_t> x(lanes, a), y(lanes, b);
            std::vector<float> acc(lanes, start);
            entry.dot(hardware, x.data(), y.data(), acc.data(), static_cast<int64_t>(lanes));
            return acc[0];
        };
        constexpr uint32_t one = 0x3F803F80u;
        constexpr float inf = std::numeric_limits<float>::infinity();
        CHECK(of(one, one, 1.0f) == 3.0f);
        CHECK(of(0x3F807F80u, one, 1.0f) == inf);
        CHECK(of(0x3F80FF80u, one, 1.0f) == -inf);
        CHECK(std::isnan(of(0x7F80FF80u, one, 1.0f)));
        CHECK(std::isnan(of(0x7FC03F80u, one, 1.0f)));
        CHECK(std::isnan(of(one, 0x3F807FC0u, 1.0f)));
        CHECK(std::isnan(of(0x7F803F80u, 0x00003F80u, 1.0f)));
        CHECK(std::isnan(of(one, one, nan_value)));
    });
}

}  // namespace
}  // namespace attend::test
