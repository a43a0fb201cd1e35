// SPDX-License-Identifier: Apache-2.0
// Tensor: allocation, shape arithmetic, views.

#include "attend/tensor.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace attend {
namespace {

constexpr std::size_t alignment = 64, huge_page = std::size_t{2} << 20;
// No process on a 64-bit machine has more; asking the allocator for it would only make it complain.
constexpr std::size_t max_bytes = std::size_t{1} << 47;

}  // namespace

std::optional<DType> dtype_from_name(std::string_view name) noexcept {
    for (const DType dtype : all_dtypes) {
        if (name == dtype_name(dtype)) return dtype;
    }
    return std::nullopt;
}

std::optional<std::int64_t> checked_byte_size(const std::vector<std::int64_t>& shape, std::size_t item_size) noexcept {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) {
        if (extent < 0 || __builtin_mul_overflow(product, extent, &product)) return std::nullopt;
    }
    if (__builtin_mul_overflow(product, static_cast<std::int64_t>(item_size), &product)) return std::nullopt;
    return product;
}

std::vector<std::int64_t> compact_strides(const std::vector<std::int64_t>& shape) {
    std::vector<std::int64_t> strides(shape.size());
    std::int64_t stride = 1;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
        strides[axis] = stride;
        // Only an empty tensor such as [0, 2^40, 2^40] can saturate, and its strides are never used.
        if (__builtin_mul_overflow(stride, shape[axis], &stride)) stride = std::numeric_limits<std::int64_t>::max();
    }
    return strides;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string text = "[";
    for (const std::int64_t extent : shape) {
        if (text.size() > 1) text += ", ";
        text += std::to_string(extent);
    }
    return text + "]";
}

Result<Tensor> Tensor::allocate(DType dtype, std::vector<std::int64_t> shape, Fill fill) {
    const auto bytes = checked_byte_size(shape, dtype_size(dtype));
    if (!bytes) {
        return Error{
            ErrorCode::shape,
            "tensor: shape " + shape_text(shape) + " of " + dtype_name(dtype) +
                " has a negative extent or too many elements; accepted: extents of 0 or more, below 2^63 bytes",
            {}};
    }
    const std::size_t size = std::max<std::size_t>(static_cast<std::size_t>(*bytes), 1);
    // Large tensors ask for huge pages: a sweep over a cache of keys then misses the page tables a hundredth as often.
    const bool large = size >= huge_page;
    const std::align_val_t align{large ? huge_page : alignment};
    void* memory = size > max_bytes ? nullptr : ::operator new(size, align, std::nothrow);
    if (memory == nullptr) {
        return Error{ErrorCode::memory,
                     "tensor: " + std::to_string(*bytes) + " bytes for shape " + shape_text(shape) + " of " +
                         dtype_name(dtype) + " could not be allocated; a smaller tensor or more memory is needed",
                     {}};
    }
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (large) ::madvise(memory, size / huge_page * huge_page, MADV_HUGEPAGE);  // a wish: refusal changes nothing
#endif
    std::shared_ptr<const void> storage(
        memory, [align](const void* pointer) { ::operator delete(const_cast<void*>(pointer), align); });
    if (fill == Fill::zero) std::memset(memory, 0, size);
    return wrap(dtype, std::move(shape), memory, std::move(storage));
}

Tensor Tensor::wrap(DType dtype, std::vector<std::int64_t> shape, void* data, std::shared_ptr<const void> keep,
                    bool read_only) {
    Tensor tensor;
    tensor.dtype = dtype;
    tensor.strides = compact_strides(shape);
    tensor.shape = std::move(shape);
    tensor.storage = std::move(keep);
    tensor.data = data;
    tensor.read_only = read_only;
    return tensor;
}

std::int64_t Tensor::size() const noexcept {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) product *= extent;
    return product;
}

bool Tensor::contiguous() const noexcept {
    if (size() == 0) return true;
    std::int64_t expected = 1;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
        if (shape[axis] != 1 && strides[axis] != expected) return false;
        expected *= shape[axis];
    }
    return true;
}

Tensor Tensor::view(std::vector<std::int64_t> new_shape, std::vector<std::int64_t> new_strides,
                    std::int64_t offset) const {
    assert(new_shape.size() == new_strides.size() && "one stride per axis");
    Tensor result = *this;
    result.shape = std::move(new_shape);
    result.strides = std::move(new_strides);
    if (data != nullptr) {
        result.data = static_cast<std::byte*>(data) + offset * static_cast<std::int64_t>(dtype_size(dtype));
    }
    return result;
}

}  // namespace attend
