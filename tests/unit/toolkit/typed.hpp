// SPDX-License-Identifier: Apache-2.0
// Tensors of float32, bf16 and f16 with awkward strides: written and read as floats, rounded by the definition of the
// formats.
#pragma once

#include "unit/toolkit/support.hpp"

namespace attend::test {

enum class Stored { f32, bf16, f16 };

inline const char* name_of(Stored type) {
    return type == Stored::f32 ? "float32" : type == Stored::bf16 ? "bf16" : "f16";
}
// Largest error of rounding a number x to the type, relative to |x|; subnormals apart.
inline double rounding_of(Stored type) {
    return type == Stored::f32 ? 0x1p-24 : type == Stored::bf16 ? 0x1p-8 : 0x1p-11;
}

// To the nearest representable number, ties to even; NaN stays NaN.
inline uint16_t code_of(float x, Stored type) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const int fraction = type == Stored::bf16 ? 7 : 10, lowest = type == Stored::bf16 ? -126 : -14;
    const int infinity = type == Stored::bf16 ? 0x7F80 : 0x7C00;
    if (std::isnan(x)) return static_cast<uint16_t>(sign | infinity | 1 << (fraction - 1) | 1);
    const double size = std::fabs(static_cast<double>(x));
    if (std::isinf(size)) return static_cast<uint16_t>(sign | infinity);
    const int exponent = std::max(size > 0.0 ? std::ilogb(size) : lowest, lowest);
    // Steps of the exponent's binade, counted on from the codes of the binades below.
    const double steps = std::nearbyint(std::ldexp(size, fraction - exponent));
    const double code = std::ldexp(static_cast<double>(exponent - lowest), fraction) + steps;
    return static_cast<uint16_t>(sign | static_cast<int>(std::min(code, static_cast<double>(infinity))));
}
inline float value_of(uint16_t code, Stored type) {
    const int fraction = type == Stored::bf16 ? 7 : 10, lowest = type == Stored::bf16 ? -126 : -14;
    const int size = code & 0x7FFF, exponent = size >> fraction, rest = size - (exponent << fraction);
    const bool special = size >= (type == Stored::bf16 ? 0x7F80 : 0x7C00);
    const double value = special         ? (rest == 0 ? HUGE_VAL : static_cast<double>(nan_value))
                         : exponent == 0 ? std::ldexp(rest, lowest - fraction)
                                         : std::ldexp(rest + (1 << fraction), exponent - 1 + lowest - fraction);
    return static_cast<float>((code & 0x8000) != 0 ? -value : value);
}
inline float rounded_to(float x, Stored type) { return type == Stored::f32 ? x : value_of(code_of(x, type), type); }

// A tensor of any of the types; what lies between its elements is NaN.
class TypedTensor {
public:
    TypedTensor() = default;
    TypedTensor(const std::vector<int64_t>& shape, Strides kind, const std::vector<float>& dense, Stored type)
        : type_(type) {
        if (type == Stored::f32) {
            whole_ = Strided<float>(shape, kind, dense);
            return;
        }
        std::vector<uint16_t> codes;
        for (const float x : dense) codes.push_back(code_of(x, type));
        half_ = Strided<uint16_t>(shape, kind, codes);
    }
    attend_tensor tensor() {
        attend_tensor tensor = type_ == Stored::f32 ? whole_.tensor() : half_.tensor();
        tensor.dtype_code = static_cast<uint8_t>(type_ == Stored::bf16 ? ATTEND_CODE_BFLOAT : ATTEND_CODE_FLOAT);
        return tensor;
    }
    std::vector<float> values() {
        if (type_ == Stored::f32) return whole_.values();
        std::vector<float> floats;
        for (const uint16_t code : half_.values()) floats.push_back(value_of(code, type_));
        return floats;
    }
    bool gaps_untouched() { return type_ == Stored::f32 ? whole_.gaps_untouched() : half_.gaps_untouched(); }

private:
    Stored type_{Stored::f32};
    Strided<float> whole_;
    Strided<uint16_t> half_;
};

// Whether an entry has products of bf16 pairs in hardware, and this processor too.
inline bool has_bf16_dots(const Entry& entry) {
#if defined(__x86_64__)
    return std::strcmp(entry.name, "avx512") == 0 && entry.runs_here && __builtin_cpu_supports("avx512bf16") != 0;
#else
    return entry.name == nullptr;
#endif
}

}  // namespace attend::test
