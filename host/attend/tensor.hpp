// SPDX-License-Identifier: Apache-2.0
// Tensor: typed, strided memory that keeps alive whatever owns it, an allocation, a mapped file or a buffer
// of the caller. Copying a Tensor copies the description, never the elements.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "attend/error.hpp"

namespace attend {

enum class DType : std::uint8_t {
    f32,
    f64,
    f16,
    bf16,
    i8,
    u8,
    boolean,
    i32,
    i64,
    i16,
    u16,
    u32,
    u64,
    f8_e4m3,
    f8_e5m2,
};

inline constexpr std::array all_dtypes{DType::f32, DType::f64,     DType::f16, DType::bf16,    DType::i8,
                                       DType::u8,  DType::boolean, DType::i32, DType::i64,     DType::i16,
                                       DType::u16, DType::u32,     DType::u64, DType::f8_e4m3, DType::f8_e5m2};

// Bytes of one element.
[[nodiscard]] constexpr std::size_t dtype_size(DType dtype) noexcept {
    switch (dtype) {
        case DType::f64:
        case DType::i64:
        case DType::u64: return 8;
        case DType::f32:
        case DType::i32:
        case DType::u32: return 4;
        case DType::f16:
        case DType::bf16:
        case DType::i16:
        case DType::u16: return 2;
        case DType::i8:
        case DType::u8:
        case DType::boolean:
        case DType::f8_e4m3:
        case DType::f8_e5m2: return 1;
    }
    return 1;
}

// "F32", "BF16", "BOOL", "F8_E4M3", ...: the spelling of safetensors, upper case; static storage.
[[nodiscard]] constexpr const char* dtype_name(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32: return "F32";
        case DType::f64: return "F64";
        case DType::f16: return "F16";
        case DType::bf16: return "BF16";
        case DType::i8: return "I8";
        case DType::u8: return "U8";
        case DType::boolean: return "BOOL";
        case DType::i32: return "I32";
        case DType::i64: return "I64";
        case DType::i16: return "I16";
        case DType::u16: return "U16";
        case DType::u32: return "U32";
        case DType::u64: return "U64";
        case DType::f8_e4m3: return "F8_E4M3";
        case DType::f8_e5m2: return "F8_E5M2";
    }
    return "?";
}

// The inverse of dtype_name; case matters.
[[nodiscard]] std::optional<DType> dtype_from_name(std::string_view name) noexcept;

// f32, f64, f16, bf16 and the two 8-bit formats.
[[nodiscard]] constexpr bool is_float(DType dtype) noexcept {
    return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::f16 || dtype == DType::bf16 ||
           dtype == DType::f8_e4m3 || dtype == DType::f8_e5m2;
}

// Product of the extents; nothing if one is negative or a partial product (from the left, then times item_size)
// exceeds int64. The empty shape is a scalar: 1.
[[nodiscard]] std::optional<std::int64_t> checked_byte_size(const std::vector<std::int64_t>& shape,
                                                            std::size_t item_size) noexcept;

// Row-major strides in elements.
[[nodiscard]] std::vector<std::int64_t> compact_strides(const std::vector<std::int64_t>& shape);

// "[2, 3, 4]", "[]" for a scalar.
[[nodiscard]] std::string shape_text(const std::vector<std::int64_t>& shape);

struct Tensor {
    DType dtype{DType::f32};
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> strides;    // in elements; may be 0 or negative
    std::shared_ptr<const void> storage;  // keeps the memory behind data; may be null for borrowed memory
    void* data{nullptr};                  // element (0, ..., 0)
    bool read_only{false};                // a mapped file, or a buffer that its owner shares for reading

    enum class Fill { zero, none };

    // Own memory, aligned to 64 bytes, row-major. Error: negative or overflowing extents (shape), no memory (memory).
    [[nodiscard]] static Result<Tensor> allocate(DType dtype, std::vector<std::int64_t> shape, Fill fill = Fill::zero);

    // Row-major elements in memory that somebody else owns; `keep` (may be null) is held as storage.
    [[nodiscard]] static Tensor wrap(DType dtype, std::vector<std::int64_t> shape, void* data,
                                     std::shared_ptr<const void> keep = nullptr, bool read_only = false);

    [[nodiscard]] std::int64_t rank() const noexcept { return static_cast<std::int64_t>(shape.size()); }
    // Number of elements; 1 for a scalar.
    [[nodiscard]] std::int64_t size() const noexcept;
    [[nodiscard]] std::size_t byte_size() const noexcept {
        return static_cast<std::size_t>(size()) * dtype_size(dtype);
    }
    // Row-major without gaps; strides of axes of extent 1 do not matter, and an empty tensor is contiguous.
    [[nodiscard]] bool contiguous() const noexcept;

    // The same memory seen otherwise; the caller answers for staying inside it. `offset` is in elements.
    [[nodiscard]] Tensor view(std::vector<std::int64_t> new_shape, std::vector<std::int64_t> new_strides,
                              std::int64_t offset = 0) const;

    // data as T*, T of the item size of dtype. Reading a read-only tensor: as<const float>().
    template <class T>
    [[nodiscard]] T* as() const noexcept {
        assert(sizeof(T) == dtype_size(dtype) && "item size differs from that of the dtype");
        assert((std::is_const_v<T> || !read_only) && "the tensor is read-only");
        return static_cast<T*>(data);
    }
};

// The elements in another type, row-major: F32, F64, F16, BF16 and the 8-bit formats among each other, integers and
// BOOL to any of them. One rounding, to nearest, ties to even; F16 and BF16 overflow to infinity, the 8-bit formats
// saturate; NaN stays NaN. The same dtype gives the tensor itself. Anything to an integer is an error (dtype).
[[nodiscard]] Result<Tensor> convert(const Tensor& tensor, DType dtype);

// The tensor itself if it is contiguous, else a row-major copy.
[[nodiscard]] Result<Tensor> contiguous_copy(const Tensor& tensor);

}  // namespace attend
