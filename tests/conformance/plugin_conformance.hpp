// SPDX-License-Identifier: Apache-2.0
// Does a plugin keep the rules of the ABI? Each check opens the plugin through the raw C interface, with a host table
// of its own, and says in plain sentences what it found; an empty list means that nothing is wrong. Descriptions of
// calls are made by the host's call builder, so options, weights and shapes are complete and typed as in real use.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace conformance {

using Findings = std::vector<std::string>;

struct Check {
    const char* id;
    const char* rule;  // one line
    void (*run)(const std::string& path, Findings& findings);
};

// All checks, in the order of a plugin's life.
[[nodiscard]] std::span<const Check> checks();

// One check by its id; an unknown id is a finding.
[[nodiscard]] Findings run_check(const std::string& path, const std::string& id);

}  // namespace conformance
