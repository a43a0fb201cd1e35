// SPDX-License-Identifier: Apache-2.0
// Where the cost table of this user and machine lies, and its use.
#pragma once

#include <filesystem>

#include "session.hpp"

namespace attend::cli {

// $XDG_CACHE_HOME/attend/costs.json, else ~/.cache/attend/costs.json; empty without a home.
[[nodiscard]] std::filesystem::path cost_file();

// Gives the table to the service where there is one that holds for this machine and build. One that does not is left alone,
// with a warning that says what differs.
void use_cost_table(Session& session, bool quiet);

}  // namespace attend::cli
