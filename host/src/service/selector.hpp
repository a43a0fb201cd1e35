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
#include "service/call_plan.hpp"

namespace attend {

// What a request needs of a mechanism. Derived from rule variables, so that a described request (recommend) and a real
// one (forward) with the same variables get the same answer.
struct RequestNeeds {
    SizeRequest sizes;
    bool causal{}, mask{}, bias{}, window{}, dropout{}, lse{}, scores{}, graph{};
    std::int64_t window_size{};
    double memory_budget{}, max_error{};
    std::string precision{"fp32"};
};
[[nodiscard]] RequestNeeds needs_of(const RuleVariables& variables);

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
    MechanismSelector(std::shared_ptr<const RegistrySnapshot> registry, const Config& config, std::uint32_t max_workers)
        : registry_(std::move(registry)), config_(config), max_workers_(max_workers) {}

    // Error: only an evaluation error under strict_rules (ErrorCode::rule). graph: whether the call supplies one,
    // whatever the variables say.
    [[nodiscard]] Result<Selection> select(const RuleVariables& variables, const NamedValues& call_options,
                                           std::optional<bool> graph = std::nullopt) const;
    [[nodiscard]] Result<Recommendation> recommend(const RuleVariables& variables) const;

private:
    struct Verdict {
        std::string check, reason;  // empty: passes
        std::optional<Estimate> estimate;
    };
    [[nodiscard]] Verdict check(const MechanismRecord& mechanism, const MechanismPtr& pointer,
                                const RequestNeeds& needs, const NamedValues& options) const;
    [[nodiscard]] Candidate describe(const MechanismPtr& mechanism, const Verdict& verdict, const NamedValues& options,
                                     std::string rule, std::string text) const;

    std::shared_ptr<const RegistrySnapshot> registry_;
    const Config& config_;
    std::uint32_t max_workers_;
};

// Checks that the mechanism of a rule of this configuration exists and takes the rule's options; every problem found. The
// shipped configuration may name mechanisms that are not loaded: such rules are skipped when they hold, and say so.
[[nodiscard]] std::vector<Error> check_rule(const RegistrySnapshot& registry, const Config& config,
                                            const std::string& mechanism, const NamedValues& options,
                                            const std::string& place);

}  // namespace attend
