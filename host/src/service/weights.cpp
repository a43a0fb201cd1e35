// SPDX-License-Identifier: Apache-2.0
#include "service/weights.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace attend {
namespace {

template <class Function>
void for_each_group(std::int64_t count, Function function) {
    for (std::int64_t first = 0; first < count; first += 4) function(first, std::min<std::int64_t>(4, count - first));
}

void fill_uniform(float* out, std::int64_t count, std::uint64_t seed, std::uint32_t hash, double low, double high) {
    const auto a = static_cast<float>(low);
    const float width = static_cast<float>(high) - a;
    for_each_group(count, [&](std::int64_t first, std::int64_t n) {
        const PhiloxWords words = named_words(static_cast<std::uint64_t>(first / 4), seed, RandomDomain::init, hash);
        for (std::int64_t lane = 0; lane < n; ++lane)
            out[first + lane] = a + width * static_cast<float>(uniform01(words[static_cast<std::size_t>(lane)]));
    });
}

void fill_scaled_normal(float* out, std::int64_t count, std::uint64_t seed, RandomDomain domain, std::uint32_t hash,
                        double mean, double deviation, double clamp) {
    for_each_group(count, [&](std::int64_t first, std::int64_t n) {
        const std::array<double, 4> values =
            normals(named_words(static_cast<std::uint64_t>(first / 4), seed, domain, hash));
        for (std::int64_t lane = 0; lane < n; ++lane) {
            // The normal number is a float by itself; scale and shift act on it.
            const float z = static_cast<float>(std::clamp(values[static_cast<std::size_t>(lane)], -clamp, clamp));
            out[first + lane] = static_cast<float>(mean + deviation * static_cast<double>(z));
        }
    });
}

}  // namespace

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
