// SPDX-License-Identifier: Apache-2.0
// Named tensors in a file. The extension chooses the format: .safetensors, .npy (one tensor, read as "query") or
// .npz (stored members).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend::io {

struct TensorFile {
    std::vector<std::pair<std::string, Tensor>> tensors;        // in the order of the file, names unique
    std::vector<std::pair<std::string, std::string>> metadata;  // safetensors only; other formats drop it
    [[nodiscard]] const Tensor* find(std::string_view name) const noexcept;
};

enum class FileFormat { safetensors, npy, npz };

inline constexpr std::size_t max_rank = 8;

// By the extension, lower case. Lets a command refuse an output name before it computes.
[[nodiscard]] Result<FileFormat> tensor_file_format(const std::string& path);

// Tensors whose data is aligned to their item size point into the mapped file and are read-only; the others are
// copied. Everything is checked before it is used; errors have code input, except failures of the machine (io, memory).
[[nodiscard]] Result<TensorFile> read_tensor_file(const std::string& path);

// Complete or not at all: written beside the target, then renamed. Tensors may have any strides.
[[nodiscard]] Result<void> write_tensor_file(const std::string& path, const TensorFile& file, bool sync = false);

// For the readers of the formats: a tensor over bytes of a mapped file, copied where they are not aligned. The number
// of bytes has been checked against the shape. BOOL bytes other than 0 and 1 are refused.
[[nodiscard]] Result<Tensor> adopt_bytes(DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes,
                                         const std::shared_ptr<const void>& storage, const std::string& place);

}  // namespace attend::io
