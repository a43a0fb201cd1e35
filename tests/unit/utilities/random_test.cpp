// SPDX-License-Identifier: Apache-2.0
#include <bit>
#include <cmath>
#include <set>
#include <tuple>

#include "attend/random.hpp"
#include "support/catch.hpp"

namespace {

using attend::named_words;
using attend::philox;
using attend::PhiloxWords;
using attend::RandomDomain;

std::vector<double> many_normals(std::size_t groups, std::uint32_t hash) {
    std::vector<double> all;
    for (std::uint64_t group = 0; group < groups; ++group)
        for (const double z : attend::normals(named_words(group, 9, RandomDomain::data, hash))) all.push_back(z);
    return all;
}

}  // namespace

TEST_CASE("utilities: philox gives the published vectors") {
    CHECK(philox({0, 0, 0, 0}, 0) == PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    const std::uint32_t ones = 0xffffffff;
    CHECK(philox({ones, ones, ones, ones}, ~std::uint64_t{0}) ==
          PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822) ==
          PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    const std::uint32_t plain[] = {0x910223a1, 0x29946dd3, 0x621adeee, 0xde653caf};
    const std::uint32_t seeded[] = {0x4030f5f6, 0xde04ebae, 0xda141a71, 0x1daa6d92,
                                    0xae9d9225, 0xa82f2730, 0x121c7db5, 0x1491cf58};
    const std::uint32_t moved[] = {0x3cea206c, 0x85e63ba6, 0xe24d4af4, 0x7dcb3234};
    for (std::int64_t j = 0; j < 8; ++j) {
        const auto at = static_cast<std::size_t>(j);
        CHECK(attend::dropout_word(0x123456789ABCDEF0, 0, 1, 3, 8, 5, j) == seeded[at]);
        if (j >= 4) continue;
        CHECK(attend::dropout_word(0, 0, 0, 0, 8, 0, j) == plain[at]);
        CHECK(attend::dropout_word(0x123456789ABCDEF0, 2, 1, 3, 8, 5, j) == moved[at]);
    }
    CHECK(attend::name_hash("moe-attention/Wr") == 0x6f4c82c9);
    const PhiloxWords words = named_words(0, 0, RandomDomain::init, attend::name_hash("moe-attention/Wr"));
    CHECK(words == PhiloxWords{0x7e60249c, 0x6b029f99, 0xb6202b89, 0x0870222a});
    const double expected[] = {-1.0339916, 0.5854058, 0.8075701, 0.1696807};
    for (std::size_t at = 0; at < 4; ++at) CHECK(attend::normals(words)[at] == Approx(expected[at]).epsilon(1e-6));
    const int signs[] = {-1, -1, 1, -1, 1, 1, 1, 1};
    for (std::uint32_t d = 0; d < 8; ++d)
        CHECK(attend::random_sign(philox({d / 4, 0, 0, 6u << 24}, 0)[d % 4]) == signs[d]);
}

TEST_CASE("utilities: dropout keeps its share") {
    CHECK(attend::Dropout::of(0.1)->threshold == 429496730);
    for (const double p : {0.0, 0.1, 0.5, 0.9}) {
        const attend::Dropout dropout = attend::Dropout::of(p).value();
        CHECK(dropout.scale == static_cast<float>(1.0 / (1.0 - p)));
        const int n = 40000;
        int kept = 0;
        for (int j = 0; j < n; ++j)
            kept += dropout.keeps(attend::dropout_word(3, 0, 0, 1, 2, j / 200, j % 200)) ? 1 : 0;
        CHECK(std::abs(kept - n * (1 - p)) <= 5 * std::sqrt(n * p * (1 - p)));
    }
    for (const double p : {-0.1, 1.0, std::nan("")}) CHECK_FALSE(attend::Dropout::of(p).ok());
}

TEST_CASE("utilities: random domains never share a counter") {
    std::set<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>> seen;
    std::size_t all = 0;
    for (const auto domain : {RandomDomain::dropout, RandomDomain::init, RandomDomain::feature, RandomDomain::pattern,
                              RandomDomain::router, RandomDomain::hadamard, RandomDomain::data, RandomDomain::service})
        for (const std::uint32_t aux : {0u, 1u, 0xFFFFFFu})
            for (std::uint64_t group = 0; group < 20; ++group, ++all) {
                const PhiloxWords words = named_words(group, 5, domain, 7, aux);
                seen.emplace(words[0], words[1], words[2], words[3]);
            }
    CHECK(seen.size() == all);
}

TEST_CASE("utilities: moments of normal numbers") {
    const std::vector<double> z = many_normals(25000, 1);
    double moments[4] = {};
    for (const double x : z)
        for (int power = 0; power < 4; ++power)
            moments[power] += std::pow(x, power + 1) / static_cast<double>(z.size());
    const double n = static_cast<double>(z.size());
    CHECK(std::abs(moments[0]) < 5 / std::sqrt(n));
    CHECK(std::abs(moments[1] - 1) < 5 * std::sqrt(2 / n));
    CHECK(std::abs(moments[2]) < 5 * std::sqrt(15 / n));
    CHECK(std::abs(moments[3] - 3) < 5 * std::sqrt(96 / n));
    CHECK(*std::max_element(z.begin(), z.end()) <= 5.78);
}

TEST_CASE("utilities: other offsets are uncorrelated") {
    const int n = 40000;
    double products = 0;
    for (int j = 0; j < n; ++j)
        products += (attend::uniform01(attend::dropout_word(3, 0, 0, 0, 1, 0, j)) - 0.5) *
                    (attend::uniform01(attend::dropout_word(3, 1, 0, 0, 1, 0, j)) - 0.5);
    CHECK(std::abs(products / n) < 5.0 / 12.0 / std::sqrt(n));
    CHECK(attend::dropout_word(3, 0, 0, 0, 1, 0, 0) != attend::dropout_word(3, 1, 0, 0, 1, 0, 0));
}

TEST_CASE("utilities: conversions of a word") {
    CHECK(attend::uniform01(0) == 0.0);
    CHECK(attend::uniform01(0xFFFFFFFF) < 1.0);
    CHECK(attend::uniform_open(0) > 0.0);
    CHECK(attend::uniform_open(0xFFFFFFFF) == 1.0);
    CHECK(attend::uniform(0x80000000, -2.0f, 6.0f) == 2.0f);
    CHECK(attend::bounded(0xFFFFFFFF, 10) == 9);
    CHECK(attend::bounded(0x80000000, 10) == 5);
    CHECK(attend::random_sign(0x7FFFFFFF) == 1);
}

TEST_CASE("utilities: samples are distinct and their prefixes agree") {
    std::vector<std::uint32_t> words;
    for (std::uint32_t d = 0; d < 50; ++d) words.push_back(philox({d / 4, 1, 2, 4u << 24}, 11)[d % 4]);
    const std::vector<std::int64_t> all = attend::sample_without_replacement(50, 50, words).value();
    CHECK(std::set<std::int64_t>(all.begin(), all.end()).size() == 50);
    const std::vector<std::int64_t> some = attend::sample_without_replacement(50, 7, words).value();
    CHECK(std::equal(some.begin(), some.end(), all.begin()));
    CHECK_FALSE(attend::sample_without_replacement(3, 4, words).ok());
    CHECK_FALSE(attend::sample_without_replacement(100, 60, words).ok());
}

TEST_CASE("utilities: orthonormal columns have a positive diagonal") {
    const std::int64_t m = 12;
    const std::vector<double> q = attend::orthonormal(m, m, 4, 99, 0);
    for (std::int64_t a = 0; a < m; ++a)
        for (std::int64_t b = 0; b < m; ++b) {
            double sum = 0;
            for (std::int64_t r = 0; r < m; ++r)
                sum += q[static_cast<std::size_t>(r * m + a)] * q[static_cast<std::size_t>(r * m + b)];
            CHECK(sum == Approx(a == b ? 1.0 : 0.0).margin(1e-12));
        }
    // The diagonal of R: column c of Q times column c of the normal matrix.
    for (std::int64_t c = 0; c < m; ++c) {
        double sum = 0;
        for (std::int64_t r = 0; r < m; ++r) {
            const auto element = static_cast<std::uint64_t>(r * m + c);
            sum += q[static_cast<std::size_t>(r * m + c)] *
                   attend::normals(named_words(element / 4, 4, RandomDomain::init, 99))[element % 4];
        }
        CHECK(sum > 0);
    }
}
