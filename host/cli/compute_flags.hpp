// SPDX-License-Identifier: Apache-2.0
// The flags of `attend compute`, and the sizes that they give.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "command.hpp"
#include "compute_inputs.hpp"
#include "compute_options.hpp"

namespace attend::cli {

struct ComputeFlags {
    std::optional<std::string> mechanism, input, output, repeat, heads, kv_heads, dim, batch, length, length_k;
    bool lse{false}, scores{false};
    OptionFlags options;
};

// Sizes given by flags; what describes generated tensors has no meaning beside a file.
struct Sizes {
    GeneratedShape generated;
    std::int64_t heads{0}, kv_heads{0}, repeat{1};
};

void declare_flags(const Command& command, ComputeFlags& flags);

[[nodiscard]] Result<Sizes> sizes_of(const ComputeFlags& flags);

// Heads of [B,H,N,D] tensors are in their shape; a flag that says otherwise would be ignored.
[[nodiscard]] Result<void> check_heads(const Sizes& sizes, const ForwardInputs& inputs);

}  // namespace attend::cli
