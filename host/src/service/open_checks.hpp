// SPDX-License-Identifier: Apache-2.0
// What is wrong with an open service although it opened: plugins that were asked for and refused, names in the configuration
// that nobody provides. Whether that stops anything is for the caller to say.
#pragma once

#include <vector>

#include "attend/config/config.hpp"
#include "attend/error.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

struct PluginReport;

[[nodiscard]] Error refusal(const PluginReport& report);

// Every mechanism that the configuration file names and nobody provides, outside the rules.
[[nodiscard]] std::vector<Error> reference_problems(const Config& config, const RegistrySnapshot& registry);

}  // namespace attend
