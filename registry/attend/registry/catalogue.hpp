// SPDX-License-Identifier: Apache-2.0
// The mechanism reference as Markdown, written from what the plugins say about themselves.
#pragma once

#include <string>

#include "attend/registry/mechanism_registry.hpp"

namespace attend {

[[nodiscard]] std::string write_catalogue(const RegistrySnapshot& registry);

}  // namespace attend
