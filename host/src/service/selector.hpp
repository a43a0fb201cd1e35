// SPDX-License-Identifier: Apache-2.0
// Which mechanism serves a request: the rules of the configuration in order, then the length threshold; every
// candidate checked against what the request needs, every refusal with its reason.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "service/candidate_checks.hpp"

namespace attend {

struct Selection {
    MechanismPtr mechanism;  // null: nothing passed
    NamedValues options;     // the rule's, under the call's own
    std::string rule;        // index, "threshold"
    std::string rule_text, reason;
    std::vector<TraceStep> trace;
    std::vector<std::string> refusals;  // "name: why", for every candidate that was skipped
};

class MechanismSelector {
public:
    // passed: what passed the checks before, or null.
    MechanismSelector(std::shared_ptr<const RegistrySnapshot> registry, const Config& config, std::uint32_t max_workers,
                      PassedChecks* passed = nullptr, const CostTable* costs = nullptr)
        : registry_(std::move(registry)), config_(config), max_workers_(max_workers), passed_(passed), costs_(costs) {}

    // Error: only an evaluation error under strict_rules (ErrorCode::rule). graph: whether the call supplies one,
    // whatever the variables say.
    [[nodiscard]] Result<Selection> select(const RuleVariables& variables, const NamedValues& call_options,
                                           std::optional<bool> graph = std::nullopt) const;
    // The mechanism alone, null if nothing passes: no trace, no reasons, no allocation where the checks passed before.
    [[nodiscard]] Result<MechanismPtr> pick(const RuleVariables& variables) const;
    [[nodiscard]] Result<Recommendation> recommend(const RuleVariables& variables, const NamedValues& call_options = {},
                                                   std::optional<bool> graph = std::nullopt,
                                                   const std::string& task = "") const;

private:
    struct Choice {
        MechanismPtr mechanism;
        std::ptrdiff_t rule{-1};  // -1: by the threshold
    };
    template <class Recorder>
    Result<Choice> choose(const RuleVariables& variables, const RequestNeeds& needs, const NamedValues& call_options,
                          Recorder& recorder) const;
    [[nodiscard]] Verdict check(const MechanismPtr& mechanism, const RequestNeeds& needs,
                                const NamedValues& options) const {
        return check_candidate(mechanism, needs, options, max_workers_);
    }
    [[nodiscard]] Candidate describe(const MechanismPtr& mechanism, const RequestNeeds& needs, const Verdict& verdict,
                                     const NamedValues& options, std::string rule, std::string text) const;

    std::shared_ptr<const RegistrySnapshot> registry_;
    const Config& config_;
    std::uint32_t max_workers_;
    PassedChecks* passed_;
    const CostTable* costs_;
};

// The mechanism that serves a kind of task best; flash-attention-v2 for kinds without one.
[[nodiscard]] const char* mechanism_of_task(std::string_view task);

// Checks that the mechanism of a rule of this configuration exists and takes the rule's options; every problem found. The
// shipped configuration may name mechanisms that are not loaded: such rules are skipped when they hold, and say so.
[[nodiscard]] std::vector<Error> check_rule(const RegistrySnapshot& registry, const Config& config,
                                            const std::string& mechanism, const NamedValues& options,
                                            const std::string& place);

}  // namespace attend
