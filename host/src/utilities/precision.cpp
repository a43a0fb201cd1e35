// SPDX-License-Identifier: Apache-2.0
#include "attend/precision.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "io/precision.hpp"

namespace attend {
namespace {

namespace formats = precision;

Error wrong(ErrorCode code, const std::string& text) { return Error{code, "quantize: " + text, ""}; }

float largest(CodeFormat format) {
    return format == CodeFormat::int8 ? 127.0f : format == CodeFormat::e4m3 ? 448.0f : 57344.0f;
}

std::uint8_t code_of(float x, CodeFormat format) {
    if (format == CodeFormat::e4m3) return static_cast<std::uint8_t>(formats::encode<formats::fp8_e4m3>(x));
    if (format == CodeFormat::e5m2) return static_cast<std::uint8_t>(formats::encode<formats::fp8_e5m2>(x));
    // To nearest, ties to even, whatever the rounding mode: adding 1.5 * 2^23 would follow it.
    const float down = std::floor(x), rest = x - down;
    const bool odd = std::fmod(down, 2.0f) != 0.0f;
    const float nearest = rest > 0.5f || (rest == 0.5f && odd) ? down + 1.0f : down;
    return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::clamp(nearest, -127.0f, 127.0f)));
}

float value_of(std::uint8_t code, CodeFormat format) {
    if (format == CodeFormat::e4m3) return formats::decode<formats::fp8_e4m3>(code);
    if (format == CodeFormat::e5m2) return formats::decode<formats::fp8_e5m2>(code);
    return static_cast<float>(static_cast<std::int8_t>(code));
}

// Groups of a matrix.
struct Groups {
    std::int64_t rows, columns, block_rows, block_columns;
    [[nodiscard]] std::int64_t down() const { return (rows + block_rows - 1) / block_rows; }
    [[nodiscard]] std::int64_t across() const { return (columns + block_columns - 1) / block_columns; }
};

}  // namespace

std::uint16_t encode_number(float value, NumberFormat format, Overflow overflow) noexcept {
    const float magnitude = std::fabs(value);
    switch (format) {
        case NumberFormat::fp16: {
            const std::uint16_t code = formats::encode<formats::fp16>(value);
            const bool too_large = (code & 0x7FFFu) == 0x7C00u;
            return too_large && overflow == Overflow::saturate ? static_cast<std::uint16_t>((code & 0x8000u) | 0x7BFFu)
                                                               : code;
        }
        case NumberFormat::bf16: {
            const std::uint16_t code = formats::encode_bf16(value);
            const bool too_large = (code & 0x7FFFu) == 0x7F80u;
            return too_large && overflow == Overflow::saturate ? static_cast<std::uint16_t>((code & 0x8000u) | 0x7F7Fu)
                                                               : code;
        }
        case NumberFormat::fp8_e4m3: {
            const std::uint16_t code = formats::encode<formats::fp8_e4m3>(value);
            return overflow == Overflow::strict && magnitude > 464.0f ? static_cast<std::uint16_t>(code | 0x7Fu) : code;
        }
        case NumberFormat::fp8_e5m2: {
            const std::uint16_t code = formats::encode<formats::fp8_e5m2>(value);
            return overflow == Overflow::strict && magnitude >= 61440.0f
                       ? static_cast<std::uint16_t>((code & 0x80u) | 0x7Cu)
                       : code;
        }
    }
    return 0;
}

float decode_number(std::uint16_t code, NumberFormat format) noexcept {
    switch (format) {
        case NumberFormat::fp16: return formats::decode<formats::fp16>(code);
        case NumberFormat::bf16: return formats::decode_bf16(code);
        case NumberFormat::fp8_e4m3: return formats::decode<formats::fp8_e4m3>(code);
        case NumberFormat::fp8_e5m2: return formats::decode<formats::fp8_e5m2>(code);
    }
    return 0.0f;
}

Result<Quantized> quantize(const Tensor& x, const QuantizeOptions& options) {
    if (x.dtype != DType::f32)
        return wrong(ErrorCode::dtype, std::string("x is ") + dtype_name(x.dtype) + "; accepted: F32");
    if (x.rank() < 2)
        return wrong(ErrorCode::shape, "x is " + shape_text(x.shape) + "; accepted: [..., rows, columns]");
    const Result<Tensor> plain = contiguous_copy(x);
    if (!plain) return plain.error();
    Groups groups{x.shape[x.shape.size() - 2], x.shape.back(), 1, 1};
    if (options.granularity != Granularity::per_block && (options.block_rows != 0 || options.block_cols != 0))
        return wrong(ErrorCode::option, "block_rows or block_cols without granularity per_block");
    if (options.block_rows < 0 || options.block_cols < 0)
        return wrong(ErrorCode::option, "a block of " + std::to_string(options.block_rows) + " by " +
                                            std::to_string(options.block_cols) +
                                            "; accepted: at least 0, which is all");
    const std::int64_t all_rows = std::max<std::int64_t>(groups.rows, 1),
                       all_columns = std::max<std::int64_t>(groups.columns, 1);
    switch (options.granularity) {
        case Granularity::tensor: groups.block_rows = all_rows, groups.block_columns = all_columns; break;
        case Granularity::per_token: groups.block_columns = all_columns; break;
        case Granularity::per_channel: groups.block_rows = all_rows; break;
        case Granularity::per_block:
            groups.block_rows = options.block_rows == 0 ? all_rows : options.block_rows;
            groups.block_columns = options.block_cols == 0 ? all_columns : options.block_cols;
    }
    std::vector<std::int64_t> scale_shape(x.shape.begin(), x.shape.end() - 2);
    scale_shape.push_back(groups.down());
    scale_shape.push_back(groups.across());

    Quantized made;
    made.format = options.format;
    made.block_rows = groups.block_rows;
    made.block_cols = groups.block_columns;
    Result<Tensor> codes = Tensor::allocate(options.format == CodeFormat::int8 ? DType::i8 : DType::u8, x.shape);
    Result<Tensor> scales = Tensor::allocate(DType::f32, scale_shape);
    if (!codes) return codes.error();
    if (!scales) return scales.error();
    Result<Tensor> given = options.scales ? contiguous_copy(*options.scales) : Result<Tensor>(Tensor{});
    if (!given) return given.error();
    if (options.scales) {
        if (options.scales->dtype != DType::f32 || options.scales->shape != scale_shape)
            return wrong(ErrorCode::shape, std::string("scales are ") + dtype_name(options.scales->dtype) + " " +
                                               shape_text(options.scales->shape) + "; accepted: F32 " +
                                               shape_text(scale_shape));
        for (std::int64_t at = 0; at < given->size(); ++at)
            if (const float scale = given->as<const float>()[at]; !(scale > 0.0f) || !std::isfinite(scale))
                return wrong(ErrorCode::option, "scale " + std::to_string(scale) + "; accepted: finite, above 0");
    }

    const float highest = largest(options.format);
    const std::int64_t matrix = groups.rows * groups.columns, per_matrix = groups.down() * groups.across();
    made.scale_min = std::numeric_limits<double>::infinity();
    double squares = 0.0;
    for (std::int64_t group = 0; group < scales->size(); ++group) {
        const std::int64_t within = group % per_matrix;
        const std::int64_t first_row = within / groups.across() * groups.block_rows,
                           first_column = within % groups.across() * groups.block_columns;
        const std::int64_t last_row = std::min(first_row + groups.block_rows, groups.rows),
                           last_column = std::min(first_column + groups.block_columns, groups.columns);
        const float* from = plain->as<const float>() + group / per_matrix * matrix;
        auto* to = static_cast<std::uint8_t*>(codes->data) + group / per_matrix * matrix;
        float amax = 0.0f;
        for (std::int64_t row = first_row; row < last_row; ++row)
            for (std::int64_t column = first_column; column < last_column; ++column) {
                const float value = from[row * groups.columns + column];
                if (!std::isfinite(value))
                    return wrong(ErrorCode::nonfinite,
                                 "x holds " + std::string(std::isnan(value) ? "NaN" : "infinity") + " in row " +
                                     std::to_string(row) + "; accepted: finite numbers");
                amax = std::max(amax, std::fabs(value));
            }
        const bool tiny = amax < 0x1p-100f;
        float scale = tiny ? 1.0f : static_cast<float>(static_cast<double>(amax) / static_cast<double>(highest));
        float inverse = tiny ? 0.0f : static_cast<float>(static_cast<double>(highest) / static_cast<double>(amax));
        if (options.pow2_scale && !tiny) {
            // The exponent of the quotient, one more unless it is a power of two itself.
            int exponent = 0;
            const double mantissa = std::frexp(static_cast<double>(amax) / static_cast<double>(highest), &exponent);
            scale = static_cast<float>(std::ldexp(1.0, mantissa == 0.5 ? exponent - 1 : exponent));
            inverse = 1.0f / scale;
        }
        if (options.scales) {
            scale = given->as<const float>()[group];
            inverse = 1.0f / scale;
        }
        scales->as<float>()[group] = scale;
        made.amax = std::max(made.amax, static_cast<double>(amax));
        made.scale_min = std::min(made.scale_min, static_cast<double>(scale));
        made.scale_max = std::max(made.scale_max, static_cast<double>(scale));
        for (std::int64_t row = first_row; row < last_row; ++row)
            for (std::int64_t column = first_column; column < last_column; ++column) {
                const std::int64_t at = row * groups.columns + column;
                const float scaled = from[at] * inverse;
                to[at] = code_of(scaled, options.format);
                made.clipped += options.scales && std::fabs(scaled) > highest ? 1 : 0;
                const double error =
                    static_cast<double>(from[at]) - static_cast<double>(value_of(to[at], options.format) * scale);
                squares += error * error;
            }
    }
    if (scales->size() == 0) made.scale_min = 0.0;
    made.rms_error = plain->size() == 0 ? 0.0 : std::sqrt(squares / static_cast<double>(plain->size()));
    made.codes = std::move(*codes);
    made.scales = std::move(*scales);
    return made;
}

Result<Tensor> dequantize(const Quantized& quantized) {
    Result<Tensor> made = Tensor::allocate(DType::f32, quantized.codes.shape);
    if (!made) return made;
    if (quantized.codes.rank() < 2 || quantized.scales.rank() != quantized.codes.rank() || quantized.block_rows < 1 ||
        quantized.block_cols < 1)
        return wrong(ErrorCode::shape, "codes " + shape_text(quantized.codes.shape) + " with scales " +
                                           shape_text(quantized.scales.shape) + "; accepted: what quantize gives");
    const std::int64_t rows = quantized.codes.shape[quantized.codes.shape.size() - 2],
                       columns = quantized.codes.shape.back();
    const Groups groups{rows, columns, quantized.block_rows, quantized.block_cols};
    const auto* codes = static_cast<const std::uint8_t*>(quantized.codes.data);
    for (std::int64_t at = 0; at < made->size(); ++at) {
        const std::int64_t row = at / columns % rows, column = at % columns, matrix = at / columns / rows;
        const std::int64_t group =
            (matrix * groups.down() + row / groups.block_rows) * groups.across() + column / groups.block_columns;
        made->as<float>()[at] = value_of(codes[at], quantized.format) * quantized.scales.as<const float>()[group];
    }
    return made;
}

}  // namespace attend
