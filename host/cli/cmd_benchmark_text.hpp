// SPDX-License-Identifier: Apache-2.0
// A benchmark report as text for people.
#pragma once

#include <string>

#include "attend/benchmark.hpp"

namespace attend::cli {

[[nodiscard]] std::string report_text(const BenchmarkReport& report);

}  // namespace attend::cli
