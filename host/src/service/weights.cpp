// SPDX-License-Identifier: Apache-2.0
// Generator and conversions: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x32-10).
#include "service/weights.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace attend {
namespace {

using Words = std::array<std::uint32_t, 4>;

Words philox(Words counter, std::uint32_t key0, std::uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0], b = std::uint64_t{0xCD9E8D57u} * counter[2];
        counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(b),
                   static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(a)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

Words words_of(std::uint64_t group, std::uint64_t seed, RandomDomain domain, std::uint32_t hash) {
    return philox({static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32), hash,
                   static_cast<std::uint32_t>(domain) << 24},
                  static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

double uniform01(std::uint32_t word) { return static_cast<double>(word >> 8) * 0x1p-24; }

std::array<double, 4> normals(const Words& words) {
    std::array<double, 4> values{};
    for (std::size_t pair = 0; pair < 4; pair += 2) {
        const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(words[pair] >> 8) + 1.0) * 0x1p-24));
        const double angle = 2.0 * std::numbers::pi * uniform01(words[pair + 1]);
        values[pair] = radius * std::cos(angle);
        values[pair + 1] = radius * std::sin(angle);
    }
    return values;
}

template <class Function>
void for_each_group(std::int64_t count, Function function) {
    for (std::int64_t first = 0; first < count; first += 4) function(first, std::min<std::int64_t>(4, count - first));
}

void fill_uniform(float* out, std::int64_t count, std::uint64_t seed, std::uint32_t hash, double low, double high) {
    const auto a = static_cast<float>(low);
    const float width = static_cast<float>(high) - a;
    for_each_group(count, [&](std::int64_t first, std::int64_t n) {
        const Words words = words_of(static_cast<std::uint64_t>(first / 4), seed, RandomDomain::init, hash);
        for (std::int64_t lane = 0; lane < n; ++lane)
            out[first + lane] = a + width * static_cast<float>(uniform01(words[static_cast<std::size_t>(lane)]));
    });
}

void fill_scaled_normal(float* out, std::int64_t count, std::uint64_t seed, RandomDomain domain, std::uint32_t hash,
                        double mean, double deviation, double clamp) {
    for_each_group(count, [&](std::int64_t first, std::int64_t n) {
        const std::array<double, 4> values =
            normals(words_of(static_cast<std::uint64_t>(first / 4), seed, domain, hash));
        for (std::int64_t lane = 0; lane < n; ++lane) {
            // The normal number is a float by itself; scale and shift act on it.
            const float z = static_cast<float>(std::clamp(values[static_cast<std::size_t>(lane)], -clamp, clamp));
            out[first + lane] = static_cast<float>(mean + deviation * static_cast<double>(z));
        }
    });
}

// Columns of an m x m normal matrix made orthonormal, Gram-Schmidt run twice: Q of G = QR with a positive diagonal.
std::vector<double> orthonormal(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::uint32_t hash,
                                std::int64_t offset) {
    std::vector<double> q(static_cast<std::size_t>(rows * cols));
    for (std::int64_t at = 0; at < rows * cols; ++at) {
        const std::int64_t element = offset + at;
        q[static_cast<std::size_t>(at)] =
            normals(words_of(static_cast<std::uint64_t>(element / 4), seed, RandomDomain::init,
                             hash))[static_cast<std::size_t>(element % 4)];
    }
    const auto entry = [&](std::int64_t r, std::int64_t c) -> double& {
        return q[static_cast<std::size_t>(r * cols + c)];
    };
    for (std::int64_t c = 0; c < cols; ++c) {
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

}  // namespace

std::uint32_t name_hash(std::string_view name) {
    std::uint32_t hash = 2166136261u;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
    return hash;
}

void fill_normal(float* out, std::int64_t count, std::uint64_t seed, RandomDomain domain, std::string_view name) {
    fill_scaled_normal(out, count, seed, domain, name_hash(name), 0.0, 1.0, 1e300);
}

Result<Tensor> initialise(const Initialiser& init, const std::vector<std::int64_t>& shape, std::uint64_t seed,
                          const std::string& name, bool out_first) {
    Result<Tensor> made = Tensor::allocate(DType::f32, shape);
    if (!made) return made.error();
    Tensor tensor = std::move(*made);
    auto* data = tensor.as<float>();
    const std::int64_t count = tensor.size();
    const std::uint32_t hash = name_hash(name);
    const std::int64_t last = shape.empty() ? 1 : shape.back();
    const std::int64_t before_last = shape.size() < 2 ? last : shape[shape.size() - 2];
    const auto fan_in = static_cast<double>(shape.size() < 2 ? last : out_first ? last : before_last);
    const auto fan_out = static_cast<double>(shape.size() < 2 ? last : out_first ? before_last : last);
    const auto argument = [&](std::size_t at, double otherwise) {
        return at < init.arguments.size() ? init.arguments[at] : otherwise;
    };
    const double gain = argument(0, 1.0);
    constexpr double unlimited = 1e300;
    const auto uniform = [&](double low, double high) { fill_uniform(data, count, seed, hash, low, high); };
    const auto normal = [&](double mean, double deviation, double clamp) {
        fill_scaled_normal(data, count, seed, RandomDomain::init, hash, mean, deviation, clamp);
    };
    if (init.name == "zeros") return tensor;
    if (init.name == "ones")
        std::fill_n(data, count, 1.0f);
    else if (init.name == "constant" || init.name == "const")
        std::fill_n(data, count, static_cast<float>(argument(0, 0.0)));
    else if (init.name == "identity") {
        for (std::int64_t at = 0; at < count; ++at) {
            const std::int64_t column = at % last, row = at / last % before_last;
            data[at] = row == column ? 1.0f : 0.0f;
        }
    } else if (init.name == "uniform") {
        init.arguments.size() < 2 ? uniform(-argument(0, 1.0), argument(0, 1.0))
                                  : uniform(argument(0, 0.0), argument(1, 1.0));
    } else if (init.name == "normal") {
        init.arguments.size() < 2 ? normal(0.0, argument(0, 1.0), unlimited)
                                  : normal(argument(0, 0.0), argument(1, 1.0), unlimited);
    } else if (init.name == "xavierUniform" || init.name == "xavier") {
        const double bound = gain * std::sqrt(6.0 / (fan_in + fan_out));
        uniform(-bound, bound);
    } else if (init.name == "xavierNormal") {
        normal(0.0, gain * std::sqrt(2.0 / (fan_in + fan_out)), unlimited);
    } else if (init.name == "kaimingUniform" || init.name == "linear") {
        uniform(-1.0 / std::sqrt(fan_in), 1.0 / std::sqrt(fan_in));
    } else if (init.name == "lecunNormal") {
        normal(0.0, 1.0 / std::sqrt(fan_in), unlimited);
    } else if (init.name == "truncNormal") {
        normal(0.0, argument(0, 1.0), 2.0);
    } else if (init.name == "orthogonal") {
        const std::int64_t side = std::max(last, before_last);
        const std::int64_t matrices = before_last * last == 0 ? 0 : count / (before_last * last);
        for (std::int64_t matrix = 0; matrix < matrices; ++matrix) {
            const std::vector<double> q = orthonormal(side, side, seed, hash, matrix * side * side);
            for (std::int64_t row = 0; row < before_last; ++row)
                for (std::int64_t column = 0; column < last; ++column)
                    data[(matrix * before_last + row) * last + column] =
                        static_cast<float>(gain * q[static_cast<std::size_t>(row * side + column)]);
        }
    } else {
        return Error{ErrorCode::plugin, name + ": unknown initialiser \"" + init.name + "\"", ""};
    }
    return tensor;
}

}  // namespace attend
