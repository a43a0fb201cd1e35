// SPDX-License-Identifier: Apache-2.0
// The options of a call: --options FILE, --set name=value and the shorthands, as one list.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attend/config/options.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend::cli {

struct OptionFlags {
    std::vector<std::string> sets;
    std::optional<std::string> file;
    bool causal{false};
    std::optional<std::string> scale, softcap, window_size, dropout, seed, weight_seed, precision;
};

struct CallOptions {
    NamedValues options;
    // Given by a flag that means something beside the mechanism (--seed) or by the environment (ATTEND_BLOCK_SIZE): for
    // mechanisms that have the option, ignored by others.
    NamedValues if_taken;
    std::string precision;  // of the call; empty: the service's
    std::uint64_t data_seed{0};
};

// With a mechanism, values are read by its option table; without one (auto) as JSON or bare text.
[[nodiscard]] Result<CallOptions> collect_options(const OptionFlags& flags, const MechanismRecord* mechanism);

// Adds those of `if_taken` that the mechanism has and nobody set; says whether there were any.
bool add_taken(const CallOptions& call, const MechanismRecord& mechanism, NamedValues& options);

}  // namespace attend::cli
