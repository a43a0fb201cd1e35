// SPDX-License-Identifier: Apache-2.0
// The flags of `attend benchmark`, and the settings that they give.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attend/benchmark.hpp"
#include "command.hpp"

namespace attend::cli {

struct BenchmarkFlags {
    std::vector<std::string> mechanisms;
    std::optional<std::string> category, suite, lengths, dims, heads, kv_heads, batch, precision, repeat, seconds, seed,
        rows, output;
    bool all{false}, causal{false};
};

void declare_flags(const Command& command, BenchmarkFlags& flags);

// Everything but the service, the commit and the command line.
[[nodiscard]] Result<BenchmarkSettings> settings_of(const BenchmarkFlags& flags);

}  // namespace attend::cli
