// SPDX-License-Identifier: Apache-2.0
// Element type conversion and compaction of tensors with any strides.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "attend/tensor.hpp"
#include "io/precision.hpp"

namespace attend {
namespace {

// Calls visit(source row, elements, stride in bytes) for every row of the last axis, in row-major order.
template <class Visit>
void for_each_row(const Tensor& tensor, Visit&& visit) {
    if (tensor.size() == 0) return;
    const auto item = static_cast<std::int64_t>(dtype_size(tensor.dtype));
    const auto* base = static_cast<const std::byte*>(tensor.data);
    if (tensor.contiguous()) {
        visit(base, tensor.size(), item);
        return;
    }
    const std::size_t outer = tensor.shape.size() - 1;
    std::vector<std::int64_t> index(outer, 0);
    std::int64_t offset = 0;  // in elements
    for (;;) {
        visit(base + offset * item, tensor.shape[outer], tensor.strides[outer] * item);
        std::size_t axis = outer;
        while (axis-- > 0) {
            offset += tensor.strides[axis];
            if (++index[axis] < tensor.shape[axis]) break;
            offset -= tensor.strides[axis] * tensor.shape[axis];
            index[axis] = 0;
        }
        if (axis == static_cast<std::size_t>(-1)) return;
    }
}

template <class T>
T read(const std::byte* from) noexcept {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
struct Plain {
    using stored = T;
    static T load(const std::byte* from) noexcept { return read<T>(from); }
};
struct Bool {
    static float load(const std::byte* from) noexcept { return *from != std::byte{0} ? 1.0F : 0.0F; }
};
struct Bf16 {
    using stored = std::uint16_t;
    static float load(const std::byte* from) noexcept { return precision::decode_bf16(read<std::uint16_t>(from)); }
    static stored from_float(float value) noexcept { return precision::encode_bf16(value); }
};
template <precision::SmallFloat format, class Stored>
struct Small {
    using stored = Stored;
    static float load(const std::byte* from) noexcept { return precision::decode<format>(read<Stored>(from)); }
    static stored from_float(float value) noexcept { return static_cast<Stored>(precision::encode<format>(value)); }
};
using Fp16 = Small<precision::fp16, std::uint16_t>;
using E4m3 = Small<precision::fp8_e4m3, std::uint8_t>;
using E5m2 = Small<precision::fp8_e5m2, std::uint8_t>;

// A 64-bit integer as a double whose low bit records that something was lost: no double rounding later.
template <class Int>
double sticky_double(Int value) noexcept {
    const bool negative = value < 0;
    const std::uint64_t wide = static_cast<std::uint64_t>(value);
    std::uint64_t magnitude = negative ? ~wide + 1U : wide;
    if (magnitude >> 53 != 0 && (magnitude & 0x7FFU) != 0) magnitude = (magnitude & ~std::uint64_t{0x7FF}) | 0x800U;
    const auto result = static_cast<double>(magnitude);
    return negative ? -result : result;
}

template <class Target, class Value>
typename Target::stored store(Value value) noexcept {
    using Stored = typename Target::stored;
    if constexpr (std::is_floating_point_v<Stored>) {
        return static_cast<Stored>(value);
    } else if constexpr (std::is_same_v<Value, float>) {
        return Target::from_float(value);
    } else if constexpr (std::is_same_v<Value, double>) {
        return Target::from_float(precision::round_to_odd(value));
    } else {
        return Target::from_float(precision::round_to_odd(sticky_double(value)));
    }
}

template <class Source, class Target>
void convert_all(const Tensor& source, Tensor& target) {
    auto* out = target.as<typename Target::stored>();
    for_each_row(source, [&out](const std::byte* row, std::int64_t count, std::int64_t stride) {
        for (std::int64_t element = 0; element < count; ++element) {
            *out++ = store<Target>(Source::load(row + element * stride));
        }
    });
}

template <class Target>
void convert_to(const Tensor& source, Tensor& target) {
    switch (source.dtype) {
        case DType::f32: return convert_all<Plain<float>, Target>(source, target);
        case DType::f64: return convert_all<Plain<double>, Target>(source, target);
        case DType::f16: return convert_all<Fp16, Target>(source, target);
        case DType::bf16: return convert_all<Bf16, Target>(source, target);
        case DType::i8: return convert_all<Plain<std::int8_t>, Target>(source, target);
        case DType::u8: return convert_all<Plain<std::uint8_t>, Target>(source, target);
        case DType::boolean: return convert_all<Bool, Target>(source, target);
        case DType::i32: return convert_all<Plain<std::int32_t>, Target>(source, target);
        case DType::i64: return convert_all<Plain<std::int64_t>, Target>(source, target);
        case DType::i16: return convert_all<Plain<std::int16_t>, Target>(source, target);
        case DType::u16: return convert_all<Plain<std::uint16_t>, Target>(source, target);
        case DType::u32: return convert_all<Plain<std::uint32_t>, Target>(source, target);
        case DType::u64: return convert_all<Plain<std::uint64_t>, Target>(source, target);
        case DType::f8_e4m3: return convert_all<E4m3, Target>(source, target);
        case DType::f8_e5m2: return convert_all<E5m2, Target>(source, target);
    }
}

}  // namespace

Result<Tensor> convert(const Tensor& tensor, DType dtype) {
    if (tensor.dtype == dtype) return tensor;
    if (!is_float(dtype)) {
        return Error{ErrorCode::dtype,
                     std::string("tensor: ") + dtype_name(tensor.dtype) + " cannot be converted to " +
                         dtype_name(dtype) + "; accepted targets: F32, F64, F16, BF16, F8_E4M3, F8_E5M2",
                     {}};
    }
    auto target = Tensor::allocate(dtype, tensor.shape, Tensor::Fill::none);
    if (!target) return target;
    switch (dtype) {
        case DType::f32: convert_to<Plain<float>>(tensor, *target); break;
        case DType::f64: convert_to<Plain<double>>(tensor, *target); break;
        case DType::f16: convert_to<Fp16>(tensor, *target); break;
        case DType::bf16: convert_to<Bf16>(tensor, *target); break;
        case DType::f8_e4m3: convert_to<E4m3>(tensor, *target); break;
        default: convert_to<E5m2>(tensor, *target); break;
    }
    return target;
}

Result<Tensor> contiguous_copy(const Tensor& tensor) {
    if (tensor.contiguous()) return tensor;
    auto target = Tensor::allocate(tensor.dtype, tensor.shape, Tensor::Fill::none);
    if (!target) return target;
    auto* out = static_cast<std::byte*>(target->data);
    const std::size_t item = dtype_size(tensor.dtype);
    for_each_row(tensor, [&out, item](const std::byte* row, std::int64_t count, std::int64_t stride) {
        if (stride == static_cast<std::int64_t>(item)) {
            std::memcpy(out, row, static_cast<std::size_t>(count) * item);
            out += static_cast<std::size_t>(count) * item;
            return;
        }
        for (std::int64_t element = 0; element < count; ++element, out += item) {
            std::memcpy(out, row + element * stride, item);
        }
    });
    return target;
}

}  // namespace attend
