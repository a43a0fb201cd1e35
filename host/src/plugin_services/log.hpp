// SPDX-License-Identifier: Apache-2.0
// The log of the process: lines on standard error, one logger for the host and one per plugin.
#pragma once

#include <cstdint>
#include <string>

#include "attend/error.hpp"

namespace attend {

// "trace" ... "error", "off".
Result<void> set_log_level(const std::string& level);
[[nodiscard]] std::uint32_t log_level();  // ATTEND_LOG_...

// Levels as in abi.h. `source` is "host" or "plugin.<id>".
void log_line(const std::string& source, std::uint32_t level, const std::string& text);

}  // namespace attend
