// SPDX-License-Identifier: Apache-2.0
#include "attend/positions.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "attend/config/names.hpp"
#include "attend/random.hpp"

namespace attend {
namespace {

std::string shown(double number) {
    std::string text = std::to_string(number);
    while (text.find('.') != std::string::npos && (text.back() == '0' || text.back() == '.')) {
        const bool point = text.back() == '.';
        text.pop_back();
        if (point) break;
    }
    return text;
}
Error wrong(const char* place, const std::string& text) {
    return Error{ErrorCode::option, std::string(place) + ": " + text, ""};
}

// Frequencies of the pairs, and what cosines and sines are multiplied by.
struct Frequencies {
    std::vector<double> theta;
    double size{1.0};
};

std::vector<double> plain(std::int64_t dim, double base) {
    std::vector<double> theta(static_cast<std::size_t>(dim / 2));
    for (std::size_t t = 0; t < theta.size(); ++t)
        theta[t] = std::pow(base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
    return theta;
}

Result<Frequencies> yarn(std::int64_t dim, double base, const RotaryScaling& scaling) {
    if (!scaling.original_len || *scaling.original_len < 1)
        return wrong("rotary_embedding", "yarn needs original_len, the trained length, of at least 1");
    if (!(scaling.beta_fast > scaling.beta_slow))
        return wrong("rotary_embedding", "beta_fast " + shown(scaling.beta_fast) + " beside beta_slow " +
                                             shown(scaling.beta_slow) + "; accepted: a larger one");
    if (!(scaling.beta_slow > 0.0))
        return wrong("rotary_embedding", "beta_slow " + shown(scaling.beta_slow) + "; accepted: above 0");
    const auto dim_of = [&](double turns) {
        return static_cast<double>(dim) *
               std::log(static_cast<double>(*scaling.original_len) / (2.0 * std::numbers::pi * turns)) /
               (2.0 * std::log(base));
    };
    const double low = std::max(std::floor(dim_of(scaling.beta_fast)), 0.0);
    double high = std::min(std::ceil(dim_of(scaling.beta_slow)), static_cast<double>(dim - 1));
    if (low == high) high += 0.001;
    Frequencies made{plain(dim, base), 1.0};
    for (std::size_t t = 0; t < made.theta.size(); ++t) {
        const double ramp = std::clamp((static_cast<double>(t) - low) / (high - low), 0.0, 1.0);
        made.theta[t] *= (1.0 - ramp) + ramp / scaling.factor;
    }
    made.size = scaling.attention_factor.value_or(scaling.factor <= 1.0 ? 1.0 : 0.1 * std::log(scaling.factor) + 1.0);
    return made;
}

Result<Frequencies> llama3(std::int64_t dim, double base, const RotaryScaling& scaling) {
    if (!(scaling.high > scaling.low))
        return wrong("rotary_embedding",
                     "high " + shown(scaling.high) + " beside low " + shown(scaling.low) + "; accepted: a larger one");
    if (!(scaling.low > 0.0)) return wrong("rotary_embedding", "low " + shown(scaling.low) + "; accepted: above 0");
    const auto trained = static_cast<double>(scaling.original_len.value_or(8192));
    if (!(trained >= 1.0))
        return wrong("rotary_embedding", "original_len " + shown(trained) + "; accepted: at least 1");
    Frequencies made{plain(dim, base), 1.0};
    for (double& theta : made.theta) {
        const double wavelength = 2.0 * std::numbers::pi / theta;
        if (wavelength < trained / scaling.high) continue;
        if (wavelength > trained / scaling.low) {
            theta /= scaling.factor;
            continue;
        }
        const double f = (trained / wavelength - scaling.low) / (scaling.high - scaling.low);
        theta = (1.0 - f) * theta / scaling.factor + f * theta;
    }
    return made;
}

Result<Frequencies> frequencies(std::int64_t seq_len, std::int64_t dim, const RotaryOptions& options) {
    const RotaryScaling& scaling = options.scaling;
    static const std::vector<std::string> types{"none", "linear", "ntk", "dynamic_ntk", "yarn", "llama3"};
    const std::string type = fold_name(scaling.type);
    if (std::find(types.begin(), types.end(), type) == types.end())
        return wrong("rotary_embedding", "unknown scaling \"" + scaling.type + "\"" + did_you_mean(type, types) +
                                             "; accepted: " + join_names(types));
    if (!(scaling.factor >= 1.0) || !std::isfinite(scaling.factor))
        return wrong("rotary_embedding", "factor " + shown(scaling.factor) + "; accepted: finite, at least 1");
    if (!(scaling.alpha >= 1.0) || !std::isfinite(scaling.alpha))
        return wrong("rotary_embedding", "alpha " + shown(scaling.alpha) + "; accepted: finite, at least 1");
    const double base = options.base, d = static_cast<double>(dim);
    if (type == "none") return Frequencies{plain(dim, base), 1.0};
    if (type == "linear") {
        Frequencies made{plain(dim, base), 1.0};
        for (double& theta : made.theta) theta /= scaling.factor;
        return made;
    }
    if (type == "yarn") return yarn(dim, base, scaling);
    if (type == "llama3") return llama3(dim, base, scaling);
    if (dim < 4)
        return wrong("rotary_embedding", "dim " + std::to_string(dim) + " with " + type + "; accepted: at least 4");
    if (type == "ntk") return Frequencies{plain(dim, base * std::pow(scaling.alpha, d / (d - 2.0))), 1.0};
    if (!scaling.max_len || *scaling.max_len < 1)
        return wrong("rotary_embedding", "dynamic_ntk needs max_len, the trained length, of at least 1");
    const auto trained = static_cast<double>(*scaling.max_len);
    const double length = std::max(static_cast<double>(seq_len + options.offset), trained);
    const double stretch = scaling.factor * length / trained - (scaling.factor - 1.0);
    return Frequencies{plain(dim, base * std::pow(stretch, d / (d - 2.0))), 1.0};
}

}  // namespace

Result<RotaryTable> rotary_embedding(std::int64_t seq_len, std::int64_t dim, const RotaryOptions& options) {
    if (dim < 2 || dim > 1024 || dim % 2 != 0)
        return wrong("rotary_embedding", "dim " + std::to_string(dim) + "; accepted: even, 2 to 1024");
    if (!(options.base > 1.0) || !std::isfinite(options.base))
        return wrong("rotary_embedding", "base " + shown(options.base) + "; accepted: finite, above 1");
    if (seq_len < 0) return wrong("rotary_embedding", "seq_len " + std::to_string(seq_len) + "; accepted: at least 0");
    if (options.positions && static_cast<std::int64_t>(options.positions->size()) != seq_len)
        return wrong("rotary_embedding", std::to_string(options.positions->size()) + " positions for " +
                                             std::to_string(seq_len) + " rows; accepted: one each");
    if (options.positions && options.offset != 0)
        return wrong("rotary_embedding", "offset beside positions; accepted: one of the two");
    const Result<Frequencies> found = frequencies(seq_len, dim, options);
    if (!found) return found.error();
    Result<Tensor> cos = Tensor::allocate(DType::f32, {seq_len, dim / 2}),
                   sin = Tensor::allocate(DType::f32, {seq_len, dim / 2});
    if (!cos) return cos.error();
    if (!sin) return sin.error();
    for (std::int64_t row = 0; row < seq_len; ++row) {
        const auto position = static_cast<double>(
            options.positions ? (*options.positions)[static_cast<std::size_t>(row)] : options.offset + row);
        for (std::int64_t t = 0; t < dim / 2; ++t) {
            const double angle = position * found->theta[static_cast<std::size_t>(t)];
            cos->as<float>()[row * (dim / 2) + t] = static_cast<float>(found->size * std::cos(angle));
            sin->as<float>()[row * (dim / 2) + t] = static_cast<float>(found->size * std::sin(angle));
        }
    }
    return RotaryTable{std::move(*cos), std::move(*sin)};
}

Result<Tensor> apply_rotary(const Tensor& x, const RotaryTable& table, RotaryPairs layout) {
    const auto fail = [](ErrorCode code, const std::string& text) { return Error{code, "apply_rotary: " + text, ""}; };
    if (x.dtype != DType::f32 || table.cos.dtype != DType::f32 || table.sin.dtype != DType::f32)
        return fail(ErrorCode::dtype, "x and tables are not all F32; accepted: F32");
    if (x.rank() < 2) return fail(ErrorCode::shape, "x is " + shape_text(x.shape) + "; accepted: [..., N, D]");
    if (table.cos.rank() != 2 || table.sin.shape != table.cos.shape)
        return fail(ErrorCode::shape, "tables are " + shape_text(table.cos.shape) + " and " +
                                          shape_text(table.sin.shape) + "; accepted: [N, dim / 2] both");
    const std::int64_t rows = x.shape[x.shape.size() - 2], width = x.shape.back(), pairs = table.cos.shape[1];
    if (table.cos.shape[0] != rows)
        return fail(ErrorCode::shape,
                    "tables have " + std::to_string(table.cos.shape[0]) + " rows, x has " + std::to_string(rows));
    if (2 * pairs > width)
        return fail(ErrorCode::option, "rotary_dim " + std::to_string(2 * pairs) + "; accepted: at most the width " +
                                           std::to_string(width));
    Result<Tensor> made = contiguous_copy(x), cos = contiguous_copy(table.cos), sin = contiguous_copy(table.sin);
    if (!made) return made;
    if (!cos) return cos;
    if (!sin) return sin;
    if (made->data == x.data && made->size() > 0) {  // contiguous_copy gave x itself
        Result<Tensor> own = Tensor::allocate(DType::f32, x.shape, Tensor::Fill::none);
        if (!own) return own;
        std::copy_n(made->as<const float>(), made->size(), own->as<float>());
        made = std::move(own);
    }
    const std::int64_t all = width == 0 ? 0 : made->size() / width;
    for (std::int64_t at = 0; at < all; ++at) {
        float* row = made->as<float>() + at * width;
        const float* c = cos->as<const float>() + at % rows * pairs;
        const float* s = sin->as<const float>() + at % rows * pairs;
        for (std::int64_t t = 0; t < pairs; ++t) {
            float& first = row[layout == RotaryPairs::half ? t : 2 * t];
            float& second = row[layout == RotaryPairs::half ? t + pairs : 2 * t + 1];
            const float a = first, b = second;
            first = a * c[t] - b * s[t];
            second = b * c[t] + a * s[t];
        }
    }
    return made;
}

Result<std::vector<double>> alibi_slopes(std::int64_t heads) {
    if (heads < 1 || heads > (std::int64_t{1} << 20))
        return wrong("alibi_slopes", "heads " + std::to_string(heads) + "; accepted: 1 to 1048576");
    std::int64_t power = 1;
    while (2 * power <= heads) power *= 2;
    std::vector<double> slopes;
    for (std::int64_t h = 0; h < power; ++h)
        slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(power)));
    for (std::int64_t t = 0; t < heads - power; ++t)
        slopes.push_back(std::exp2(-4.0 * static_cast<double>(2 * t + 1) / static_cast<double>(power)));
    return slopes;
}

Result<Tensor> sinusoidal(std::int64_t seq_len, std::int64_t dim, double base, SinusoidalLayout layout,
                          std::int64_t offset) {
    if (dim < 1) return wrong("sinusoidal", "dim " + std::to_string(dim) + "; accepted: at least 1");
    if (!(base > 1.0) || !std::isfinite(base))
        return wrong("sinusoidal", "base " + shown(base) + "; accepted: finite, above 1");
    Result<Tensor> made = Tensor::allocate(DType::f32, {seq_len, dim});
    if (!made) return made;
    const std::int64_t sines = (dim + 1) / 2;
    for (std::int64_t row = 0; row < seq_len; ++row)
        for (std::int64_t t = 0; t < sines; ++t) {
            float* to = made->as<float>() + row * dim;
            const double angle = static_cast<double>(offset + row) *
                                 std::pow(base, -2.0 * static_cast<double>(t) / static_cast<double>(dim));
            const bool split = layout == SinusoidalLayout::split;
            to[split ? t : 2 * t] = static_cast<float>(std::sin(angle));
            if (t < dim / 2) to[split ? sines + t : 2 * t + 1] = static_cast<float>(std::cos(angle));
        }
    return made;
}

Result<Tensor> learned_positions(const Tensor& table, const std::vector<std::int64_t>& positions) {
    if (table.dtype != DType::f32 || table.rank() != 2)
        return Error{ErrorCode::shape,
                     "learned_positions: the table is " + std::string(dtype_name(table.dtype)) + " " +
                         shape_text(table.shape) + "; accepted: F32 [max_len, dim]",
                     ""};
    for (const std::int64_t position : positions)
        if (position < 0 || position >= table.shape[0])
            return wrong("learned_positions", "position " + std::to_string(position) + "; accepted: 0 to " +
                                                  std::to_string(table.shape[0] - 1));
    Result<Tensor> made = Tensor::allocate(DType::f32, {static_cast<std::int64_t>(positions.size()), table.shape[1]});
    if (!made) return made;
    for (std::size_t row = 0; row < positions.size(); ++row)
        for (std::int64_t d = 0; d < table.shape[1]; ++d)
            made->as<float>()[static_cast<std::int64_t>(row) * table.shape[1] + d] =
                table.as<const float>()[positions[row] * table.strides[0] + d * table.strides[1]];
    return made;
}

Result<Tensor> default_position_table(std::int64_t max_len, std::int64_t dim, std::uint64_t weight_seed) {
    Result<Tensor> made = Tensor::allocate(DType::f32, {max_len, dim});
    if (!made) return made;
    const std::uint32_t hash = name_hash("posTable");
    for (std::int64_t at = 0; at < made->size(); ++at) {
        const auto z =
            static_cast<float>(normals(named_words(static_cast<std::uint64_t>(at / 4), weight_seed, RandomDomain::init,
                                                   hash))[static_cast<std::size_t>(at % 4)]);
        made->as<float>()[at] = static_cast<float>(0.02 * static_cast<double>(z));
    }
    return made;
}

}  // namespace attend
