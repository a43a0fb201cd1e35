// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include "attend/merge.hpp"
#include "attend/random.hpp"
#include "support/catch.hpp"

namespace {

using attend::DType;
using attend::merge;
using attend::PartialResult;
using attend::Tensor;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr std::int64_t rows = 3, width = 4, features = 5;

double number(std::uint64_t at, std::uint64_t seed) {
    return attend::normals(attend::named_words(at / 4, seed, attend::RandomDomain::data, 8))[at % 4];
}
// Attention of 3 rows over keys [begin, end).
PartialResult attention(std::int64_t begin, std::int64_t end) {
    PartialResult made{Tensor::allocate(DType::f32, {rows, width}).value(),
                       Tensor::allocate(DType::f32, {rows}).value()};
    for (std::int64_t i = 0; i < rows; ++i) {
        double sum = 0, out[size_t{width}] = {};
        for (std::int64_t j = begin; j < end; ++j) {
            double score = 0;
            for (std::int64_t d = 0; d < features; ++d)
                score += number(static_cast<std::uint64_t>(i * features + d), 1) *
                         number(static_cast<std::uint64_t>(j * features + d), 2);
            sum += std::exp(score);
            for (std::int64_t d = 0; d < width; ++d)
                out[d] += std::exp(score) * number(static_cast<std::uint64_t>(j * width + d), 3);
        }
        made.lse.as<float>()[i] = static_cast<float>(std::log(sum));
        for (std::int64_t d = 0; d < width; ++d)
            made.output.as<float>()[i * width + d] = begin == end ? std::nanf("") : static_cast<float>(out[d] / sum);
    }
    return made;
}
void check_same(const PartialResult& a, const PartialResult& b, double tolerance = 2e-6) {
    for (std::int64_t at = 0; at < rows * width; ++at)
        CHECK(a.output.as<const float>()[at] == Approx(b.output.as<const float>()[at]).margin(tolerance));
    for (std::int64_t i = 0; i < rows; ++i)
        CHECK(a.lse.as<const float>()[i] == Approx(b.lse.as<const float>()[i]).margin(tolerance));
}

}  // namespace

TEST_CASE("utilities: merged parts are the whole") {
    const PartialResult whole = attention(0, 60);
    check_same(merge({attention(0, 7), attention(7, 30), attention(30, 60)}).value(), whole);
    std::vector<PartialResult> many;
    for (std::int64_t key = 0; key < 60; ++key) many.push_back(attention(key, key + 1));
    check_same(merge(many).value(), whole);
}

TEST_CASE("utilities: merging is commutative and associative") {
    const PartialResult a = attention(0, 5), b = attention(5, 20), c = attention(20, 22);
    check_same(merge({a, b, c}).value(), merge({c, a, b}).value());
    check_same(merge({merge({a, b}).value(), c}).value(), merge({a, merge({b, c}).value()}).value());
}

TEST_CASE("utilities: a part without keys is the identity") {
    const PartialResult a = attention(0, 9), empty = attention(4, 4);  // whose output is NaN
    const PartialResult merged = merge({empty, a, empty}).value();
    check_same(merged, a, 0);
    const PartialResult nothing = merge({empty, empty}).value();
    for (std::int64_t i = 0; i < rows; ++i) {
        CHECK(nothing.lse.as<const float>()[i] == minus_infinity);
        CHECK(nothing.output.as<const float>()[i * width] == 0.0f);
    }
}

TEST_CASE("utilities: a part merged with itself") {
    const PartialResult a = attention(0, 9), twice = merge({a, a}).value();
    for (std::int64_t at = 0; at < rows * width; ++at)
        CHECK(twice.output.as<const float>()[at] == Approx(a.output.as<const float>()[at]).margin(1e-7));
    for (std::int64_t i = 0; i < rows; ++i)
        CHECK(twice.lse.as<const float>()[i] == Approx(a.lse.as<const float>()[i] + std::log(2.0f)).margin(1e-6));
}

TEST_CASE("utilities: merged outputs are convex combinations") {
    const PartialResult a = attention(0, 9), b = attention(9, 11), m = merge({a, b}).value();
    for (std::int64_t at = 0; at < rows * width; ++at) {
        const float x = a.output.as<const float>()[at], y = b.output.as<const float>()[at];
        CHECK(m.output.as<const float>()[at] >= std::min(x, y) - 1e-6f);
        CHECK(m.output.as<const float>()[at] <= std::max(x, y) + 1e-6f);
    }
}

TEST_CASE("utilities: merging refuses") {
    CHECK_FALSE(merge({}).ok());
    for (const float bad : {std::nanf(""), -minus_infinity}) {
        PartialResult a = attention(0, 3);
        a.lse.as<float>()[1] = bad;
        CHECK(merge({attention(3, 4), a}).error().code == attend::ErrorCode::nonfinite);
    }
    PartialResult other = attention(0, 3);
    other.lse = Tensor::allocate(DType::f32, {rows + 1}).value();
    CHECK(merge({attention(3, 4), other}).error().code == attend::ErrorCode::shape);
}
