// SPDX-License-Identifier: Apache-2.0
// Reads what a plugin says about itself, distrusting every pointer target as far as a process can: sizes, counts,
// texts, names, ranges, shape texts. What passes is copied; nothing of the plugin's tables is read afterwards but its
// functions.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attend/abi.h"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

// One line of the load report: which stage refused, its code, and why.
struct LoadFailure {
    std::string stage, code, sentence, hint;
};

struct PluginFacts {
    std::string id, version, vendor, license, url, summary, variant;
    std::uint64_t required_isa{};
};

// The table that the entry returned: frozen prefix, versions, mandatory functions.
[[nodiscard]] std::optional<LoadFailure> audit_plugin(const attend_plugin* plugin, PluginFacts& facts);

// One mechanism; `record` gets everything but plugin id, version, path, backend and library.
[[nodiscard]] std::optional<LoadFailure> audit_mechanism(const attend_mechanism* mechanism, const attend_lib* lib,
                                                         MechanismRecord& record);

}  // namespace attend
