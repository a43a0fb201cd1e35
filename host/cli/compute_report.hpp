// SPDX-License-Identifier: Apache-2.0
// What `attend compute` says about a run, and the file of output tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "attend/attention_service.hpp"
#include "io/tensor_file.hpp"

namespace attend::cli {

struct ComputeReport {
    const ForwardResult& result;
    const ForwardInputs& inputs;
    std::uint32_t threads;
    std::int64_t repeat;
    std::optional<std::string> output;
};

// Whether the name of the output can hold what is asked for, before anything is computed.
[[nodiscard]] Result<void> check_output(const std::string& path, bool several);

// output, lse, scores, further outputs by name; metadata: mechanism, plugin, plugin_version, backend, options, commit.
[[nodiscard]] io::TensorFile output_file(const ForwardResult& result);

[[nodiscard]] std::string report_json(const ComputeReport& report);
[[nodiscard]] std::string report_text(const ComputeReport& report);

// FNV-1a, 64 bits, over the elements in row-major order, as 16 hexadecimal digits.
[[nodiscard]] std::string checksum(const Tensor& tensor);

}  // namespace attend::cli
