// SPDX-License-Identifier: Apache-2.0
// safetensors: 8 bytes of header length, a JSON header, raw data.
#pragma once

#include <string>

#include "attend/error.hpp"
#include "io/mapped_file.hpp"
#include "io/tensor_file.hpp"

namespace attend::io {

[[nodiscard]] Result<TensorFile> read_safetensors(const std::string& path);

// Called with tensors whose names and ranks write_tensor_file has checked. Wider items come first, so that every
// tensor is aligned to its item size; __metadata__ leads the header.
[[nodiscard]] Result<void> write_safetensors(OutputFile& out, const TensorFile& file, const std::string& place);

}  // namespace attend::io
