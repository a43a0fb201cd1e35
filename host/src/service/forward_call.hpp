// SPDX-License-Identifier: Apache-2.0
// One call between its two halves: everything that can be refused is behind it, the computation before it.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "attend/attention_service.hpp"
#include "service/call_plan.hpp"
#include "service/tensor_handles.hpp"

namespace attend {

class PassedChecks;

struct ForwardCall {
    std::shared_ptr<const Config> config;  // with its epoch; absent: preparing takes the one in force
    std::uint64_t epoch{};
    std::shared_ptr<PassedChecks> passed;
    const ForwardInputs* given{};            // the caller's; lives as long as the call
    const ForwardOptions* options{};         // likewise
    std::optional<ForwardInputs> complete;   // with kept weights and registered tensors, where there are any
    std::optional<ForwardInputs> converted;  // in the types that the plan reads, where they differ
    std::vector<HandleUse> handles;
    std::shared_ptr<const CallPlan> plan;
    bool plan_reused{false};

    [[nodiscard]] const ForwardInputs& inputs() const { return complete ? *complete : *given; }
    [[nodiscard]] const ForwardInputs& read_inputs() const { return converted ? *converted : inputs(); }
};

// The inputs by role, "query", ..., "input.<name>", "weight.<name>"; descriptions only. Inputs and weights sorted by name.
[[nodiscard]] NamedTensors inputs_by_role(const ForwardInputs& inputs);

struct CacheQuery;
struct Machine;
// The name of a call for the result cache.
[[nodiscard]] CacheQuery cache_query(const ForwardCall& call, const NamedTensors& roles, const Machine& machine);

}  // namespace attend
