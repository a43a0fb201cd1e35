// SPDX-License-Identifier: Apache-2.0
// The request that `attend recommend` is asked about, as variables of the rules.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attend/config/rules.hpp"
#include "command.hpp"

namespace attend::cli {

struct RequestFlags {
    std::optional<std::string> sequence_length, sequence_length_k, batch, heads, dim, max_error, memory_budget, task;
    bool causal{false}, hierarchical{false}, graph{false}, moe{false};
    std::vector<std::string> variables;
};

void declare_flags(const Command& command, RequestFlags& request);

[[nodiscard]] Result<RequestFacts> facts_of(const RequestFlags& request);

}  // namespace attend::cli
