// SPDX-License-Identifier: Apache-2.0
// Narrow number formats, and integers or 8-bit floats with scales for storage (symmetric, no zero point).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend {

enum class NumberFormat { fp16, bf16, fp8_e4m3, fp8_e5m2 };

// What is too large for the format: usual is infinity for the 16-bit ones and the largest number for the 8-bit ones;
// saturate is the largest number for all; strict is what the format itself says (e4m3: above 464 NaN, e5m2: from 61440
// on infinity; for the 16-bit ones the same as usual).
enum class Overflow { usual, saturate, strict };

// To nearest, ties to even; subnormals stay, NaN stays a quiet NaN of its sign. 8-bit codes are in the lower byte.
[[nodiscard]] std::uint16_t encode_number(float value, NumberFormat format,
                                          Overflow overflow = Overflow::usual) noexcept;
[[nodiscard]] float decode_number(std::uint16_t code, NumberFormat format) noexcept;

enum class CodeFormat { int8, e4m3, e5m2 };
// Elements that share a scale, within a matrix [rows = tokens, columns = channels].
enum class Granularity { tensor, per_token, per_channel, per_block };

struct QuantizeOptions {
    CodeFormat format{CodeFormat::int8};
    Granularity granularity{Granularity::tensor};
    std::int64_t block_rows{0}, block_cols{0};  // per_block; 0: all rows, all columns; the last block may be short
    bool pow2_scale{false};                     // scales are powers of two, never smaller than the plain ones
    std::optional<Tensor> scales{};             // given ones, in the shape that the result has; finite and above 0
};

struct Quantized {
    Tensor codes;   // I8; 8-bit floats as U8. The shape of the input
    Tensor scales;  // F32 [..., groups of rows, groups of columns]
    CodeFormat format{CodeFormat::int8};
    std::int64_t block_rows{1}, block_cols{1};  // elements of a group
    double amax{0}, scale_min{0}, scale_max{0}, rms_error{0};
    std::int64_t clipped{0};  // elements that given scales could not hold
};

// x [..., rows, columns], F32. Errors: NaN or infinity (nonfinite), block sizes, given scales.
[[nodiscard]] Result<Quantized> quantize(const Tensor& x, const QuantizeOptions& options = {});
// code * scale, F32.
[[nodiscard]] Result<Tensor> dequantize(const Quantized& quantized);

}  // namespace attend
