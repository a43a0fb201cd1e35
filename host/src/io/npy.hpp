// SPDX-License-Identifier: Apache-2.0
// .npy versions 1 to 3, and .npz archives of stored members. The header is read as a literal, never evaluated.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "attend/error.hpp"
#include "attend/tensor.hpp"
#include "io/mapped_file.hpp"
#include "io/tensor_file.hpp"

namespace attend::io {

// One array that fills `bytes` exactly.
[[nodiscard]] Result<Tensor> parse_npy(std::span<const std::byte> bytes, const std::shared_ptr<const void>& storage,
                                       const std::string& place);

[[nodiscard]] Result<TensorFile> read_npy(const std::string& path);
[[nodiscard]] Result<TensorFile> read_npz(const std::string& path);

// Called with tensors whose names and ranks write_tensor_file has checked.
[[nodiscard]] Result<void> write_npy(OutputFile& out, const TensorFile& file, const std::string& place);
[[nodiscard]] Result<void> write_npz(OutputFile& out, const TensorFile& file, const std::string& place);

}  // namespace attend::io
