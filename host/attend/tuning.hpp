// SPDX-License-Identifier: Apache-2.0
// Measures what mechanisms take on this machine, for the cost table, and how well a table predicts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/cost_table.hpp"

namespace attend {

struct TuningSettings {
    ServiceSettings service;
    std::vector<std::string> mechanisms;         // empty: all
    double seconds{25};                          // about so long
    std::string version, commit;                 // of the program
    std::function<void(double share)> progress;  // may be empty
};

// With one thread and with as many as the service has. Mechanisms that give no number of operations are left out.
[[nodiscard]] Result<CostTable> measure_costs(const TuningSettings& settings);

struct PredictedCall {
    std::string mechanism, shape;
    std::uint32_t threads{1};
    double predicted_ms{0}, measured_ms{0};
};
struct CostCheck {
    std::vector<PredictedCall> calls;  // the worst prediction first
    [[nodiscard]] std::size_t within(double factor) const;
};
// Calls of random shapes of the table's mechanisms, predicted and measured.
[[nodiscard]] Result<CostCheck> check_costs(const CostTable& table, const TuningSettings& settings, std::size_t calls);

}  // namespace attend
