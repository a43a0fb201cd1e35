// SPDX-License-Identifier: Apache-2.0
// What is settled before a call has tensors: options completed, the form chosen, and with it the types of query, key, value.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>

#include "service/call_plan.hpp"

namespace attend {

struct DTypeBit {
    DType dtype;
    std::uint64_t bit;
    std::uint8_t code, bits;
};
inline constexpr DTypeBit dtype_bits[] = {{DType::f32, ATTEND_F32, ATTEND_CODE_FLOAT, 32},
                                          {DType::f64, ATTEND_F64, ATTEND_CODE_FLOAT, 64},
                                          {DType::f16, ATTEND_F16, ATTEND_CODE_FLOAT, 16},
                                          {DType::bf16, ATTEND_BF16, ATTEND_CODE_BFLOAT, 16},
                                          {DType::i8, ATTEND_I8, ATTEND_CODE_INT, 8},
                                          {DType::u8, ATTEND_U8, ATTEND_CODE_UINT, 8},
                                          {DType::f8_e4m3, ATTEND_F8_E4M3, ATTEND_CODE_UINT, 8},  // its bits
                                          {DType::boolean, ATTEND_U8, ATTEND_CODE_UINT, 8},
                                          {DType::i32, ATTEND_I32, ATTEND_CODE_INT, 32},
                                          {DType::i64, ATTEND_I64, ATTEND_CODE_INT, 64}};

inline const DTypeBit* find_dtype(DType dtype) {
    const auto* found = std::find_if(std::begin(dtype_bits), std::end(dtype_bits),
                                     [dtype](const DTypeBit& row) { return row.dtype == dtype; });
    return found == std::end(dtype_bits) ? nullptr : found;
}

inline std::string port_dtypes(std::uint64_t mask) {
    std::string names;
    for (const DTypeBit& row : dtype_bits)
        if (mask & row.bit) names += (names.empty() ? "" : ", ") + std::string(dtype_name(row.dtype));
    return names;
}

inline bool is_model_float(DType dtype) {
    return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::f16 || dtype == DType::bf16;
}

// Whether the mechanism takes heads [B,H,N,D] in one form and tokens of rank 3 in another: its output says so.
[[nodiscard]] bool has_forms(const MechanismRecord& mechanism);

}  // namespace attend
