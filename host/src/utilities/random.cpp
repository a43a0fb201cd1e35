// SPDX-License-Identifier: Apache-2.0
#include "attend/random.hpp"

#include <cmath>
#include <numbers>
#include <numeric>
#include <string>

namespace attend {

PhiloxWords philox(PhiloxWords counter, std::uint64_t seed) {
    auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0], b = std::uint64_t{0xCD9E8D57u} * counter[2];
        counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(b),
                   static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(a)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

PhiloxWords named_words(std::uint64_t group, std::uint64_t seed, RandomDomain domain, std::uint32_t hash,
                        std::uint32_t aux) {
    return philox({static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32), hash,
                   (static_cast<std::uint32_t>(domain) << 24) | (aux & 0xFFFFFFu)},
                  seed);
}

std::uint32_t name_hash(std::string_view name) {
    std::uint32_t hash = 2166136261u;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
    return hash;
}

std::array<double, 4> normals(const PhiloxWords& words) {
    std::array<double, 4> values{};
    for (std::size_t pair = 0; pair < 4; pair += 2) {
        const double radius = std::sqrt(-2.0 * std::log(uniform_open(words[pair])));
        const double angle = 2.0 * std::numbers::pi * uniform01(words[pair + 1]);
        values[pair] = radius * std::cos(angle);
        values[pair + 1] = radius * std::sin(angle);
    }
    return values;
}

Result<std::vector<std::int64_t>> sample_without_replacement(std::int64_t n, std::int64_t k,
                                                             const std::vector<std::uint32_t>& words) {
    if (n < 0 || n > std::int64_t{0xFFFFFFFF} || k < 0 || k > n)
        return Error{ErrorCode::option,
                     "sample: " + std::to_string(k) + " of " + std::to_string(n) +
                         "; accepted: at most as many as there are, and fewer than 2^32 of them",
                     ""};
    if (static_cast<std::int64_t>(words.size()) < k)
        return Error{ErrorCode::option,
                     "sample: " + std::to_string(words.size()) + " words for " + std::to_string(k) +
                         " draws; accepted: one each",
                     ""};
    std::vector<std::int64_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), std::int64_t{0});
    for (std::int64_t d = 0; d < k; ++d) {
        const std::int64_t other = d + bounded(words[static_cast<std::size_t>(d)], static_cast<std::uint32_t>(n - d));
        std::swap(order[static_cast<std::size_t>(d)], order[static_cast<std::size_t>(other)]);
    }
    order.resize(static_cast<std::size_t>(k));
    return order;
}

Result<Dropout> Dropout::of(double p) {
    if (!(p >= 0.0 && p < 1.0))
        return Error{ErrorCode::option, "dropout: is " + std::to_string(p) + "; accepted: at least 0 and below 1", ""};
    const double rounded = std::nearbyint(p * 0x1p32);
    return Dropout{static_cast<std::uint32_t>(std::fmin(rounded, 0x1p32 - 1.0)), static_cast<float>(1.0 / (1.0 - p))};
}

std::uint32_t dropout_word(std::uint64_t seed, std::uint32_t rng_offset, std::int64_t b, std::int64_t h,
                           std::int64_t heads, std::int64_t i, std::int64_t j) {
    const PhiloxWords words = philox(
        {static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(b * heads + h),
         (static_cast<std::uint32_t>(RandomDomain::dropout) << 24) | (rng_offset & 0xFFFFFFu)},
        seed);
    return words[static_cast<std::size_t>(j % 4)];
}

std::vector<double> orthonormal(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::uint32_t hash,
                                std::int64_t offset) {
    std::vector<double> q(static_cast<std::size_t>(rows * cols));
    for (std::int64_t at = 0; at < rows * cols; ++at) {
        const std::int64_t element = offset + at;
        q[static_cast<std::size_t>(at)] =
            normals(named_words(static_cast<std::uint64_t>(element / 4), seed, RandomDomain::init,
                                hash))[static_cast<std::size_t>(element % 4)];
    }
    const auto entry = [&](std::int64_t r, std::int64_t c) -> double& {
        return q[static_cast<std::size_t>(r * cols + c)];
    };
    for (std::int64_t c = 0; c < cols; ++c) {
        // Gram-Schmidt, run twice.
        for (int pass = 0; pass < 2; ++pass)
            for (std::int64_t before = 0; before < c; ++before) {
                double dot = 0;
                for (std::int64_t r = 0; r < rows; ++r) dot += entry(r, before) * entry(r, c);
                for (std::int64_t r = 0; r < rows; ++r) entry(r, c) -= dot * entry(r, before);
            }
        double norm = 0;
        for (std::int64_t r = 0; r < rows; ++r) norm += entry(r, c) * entry(r, c);
        norm = std::sqrt(norm);
        for (std::int64_t r = 0; r < rows; ++r) entry(r, c) /= norm;
    }
    return q;
}

}  // namespace attend
