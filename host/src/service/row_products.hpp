// SPDX-License-Identifier: Apache-2.0
// Products of rows summed in double precision. Products of two floats are exact there and every element has its lane, so
// that all instruction sets give the same bits for float rows.
#pragma once

#include <cstdint>

namespace attend {

struct RowProducts {
    double product{}, squares{};  // row . query, row . row
};

using FloatRowProducts = RowProducts (*)(const float* row, const double* query, std::int64_t length);
using DoubleRowProducts = RowProducts (*)(const double* row, const double* query, std::int64_t length);

// For the widest of the permitted instruction sets.
[[nodiscard]] FloatRowProducts float_row_products(std::uint64_t isa) noexcept;
[[nodiscard]] DoubleRowProducts double_row_products(std::uint64_t isa) noexcept;

}  // namespace attend
