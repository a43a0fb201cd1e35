// SPDX-License-Identifier: Apache-2.0
// The random numbers that every implementation of the runtime must agree on, bit by bit.
#include "unit/toolkit/support.hpp"

#include "attend/toolkit/core/rng.hpp"

namespace attend::test {
namespace {

using namespace attend::ATTEND_ISA;

bool words_are(const RandomWords& words, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return words.word[0] == a && words.word[1] == b && words.word[2] == c && words.word[3] == d;
}

TEST_CASE("rng: known answers of the generator", "[toolkit]") {
    CHECK(words_are(philox(0, 0, 0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
    const uint32_t ones = 0xffffffffu;
    CHECK(words_are(philox(~uint64_t{0}, ones, ones, ones, ones), 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
    CHECK(words_are(philox(0x299f31d0a4093822ull, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344), 0xd16cfe09,
                    0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST_CASE("rng: dropout words", "[toolkit]") {
    CHECK(words_are(dropout_words(0, 0, 0, 0, 0), 0x910223a1, 0x29946dd3, 0x621adeee, 0xde653caf));
    const uint64_t seed = 0x123456789ABCDEF0ull;
    CHECK(words_are(dropout_words(seed, 0, 8 + 3, 5, 0), 0x4030f5f6, 0xde04ebae, 0xda141a71, 0x1daa6d92));
    CHECK(words_are(dropout_words(seed, 0, 8 + 3, 5, 1), 0xae9d9225, 0xa82f2730, 0x121c7db5, 0x1491cf58));
    CHECK(words_are(dropout_words(seed, 2, 8 + 3, 5, 0), 0x3cea206c, 0x85e63ba6, 0xe24d4af4, 0x7dcb3234));
    CHECK(dropout_threshold(0.1) == 429496730u);
    CHECK(dropout_threshold(0.5) == 0x80000000u);
    CHECK(dropout_threshold(0.9999999999999) == 4294967295u);
    CHECK(dropout_threshold(0.0) == 0u);
    CHECK(dropout_scale(0.1) == static_cast<float>(1.0 / 0.9));
}

TEST_CASE("rng: weights, names, signs, patterns", "[toolkit]") {
    const uint32_t name = name_hash("moe-attention/Wr");
    CHECK(name == 0x6f4c82c9u);
    const RandomWords words = element_words(RandomDomain::init, 0, name, 0, 0);
    CHECK(words_are(words, 0x7e60249c, 0x6b029f99, 0xb6202b89, 0x0870222a));
    const double normals[4] = {-1.0339916, 0.5854058, 0.8075701, 0.1696807};
    for (uint64_t element = 0; element < 4; ++element) {
        CHECK(element_word(RandomDomain::init, 0, name, 0, element) == words.word[element]);
        CHECK(static_cast<double>(element_normal(RandomDomain::init, 0, name, 0, element)) ==
              Approx(normals[element]).margin(5e-8));
    }
    const double signs[8] = {-1, -1, 1, -1, 1, 1, 1, 1};
    for (uint32_t d = 0; d < 8; ++d)
        CHECK(static_cast<double>(random_sign(
                  philox(0, d / 4, 0, 0, counter_tail(RandomDomain::hadamard, 0)).word[d % 4])) == signs[d]);
    CHECK(words_are(philox(0, 0, 0, 0, counter_tail(RandomDomain::pattern, 0)), 0xb820cd9c, 0x78fc2aa8, 0x6438f5b7,
                    0x7c871f8f));
    // An element beyond 2^34 reaches the high counter word.
    CHECK(words_are(element_words(RandomDomain::data, 5, name, 3, uint64_t{7} << 32 | 9),
                    philox(5, 9, 7, name, 7u << 24 | 3).word[0], philox(5, 9, 7, name, 7u << 24 | 3).word[1],
                    philox(5, 9, 7, name, 7u << 24 | 3).word[2], philox(5, 9, 7, name, 7u << 24 | 3).word[3]));
}

TEST_CASE("rng: conversions", "[toolkit]") {
    CHECK(uniform01(0) == 0.0f);
    CHECK(uniform01(0xffffffffu) == 1.0f - 0x1p-24f);
    CHECK(uniform_open(0) == 0x1p-24f);
    CHECK(uniform_open(0xffffffffu) == 1.0f);
    CHECK(uniform(-2.0f, 2.0f, 0x80000000u) == 0.0f);
    CHECK(bounded(0xffffffffu, 7) == 6);
    CHECK(bounded(0, 7) == 0);
    double sum = 0.0, squares = 0.0;
    const uint64_t count = 40000;
    for (uint64_t element = 0; element < count; ++element) {
        const double x =
            static_cast<double>(element_normal(RandomDomain::data, 1, name_hash("data/query"), 0, element));
        sum += x;
        squares += x * x;
    }
    CHECK(std::fabs(sum / static_cast<double>(count)) < 0.025);
    CHECK(squares / static_cast<double>(count) == Approx(1.0).epsilon(0.04));
}

}  // namespace
}  // namespace attend::test
