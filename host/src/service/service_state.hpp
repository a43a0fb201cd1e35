// SPDX-License-Identifier: Apache-2.0
// What an AttentionService holds, for the files that implement its parts.
#pragma once

#include <atomic>
#include <map>
#include <mutex>

#include "loading/plugin_loader.hpp"
#include "service/plan_cache.hpp"
#include "service/selector.hpp"

namespace attend {

// The list of edges of a graph among the inputs, or the sources of its rows; null: no graph.
const Tensor* edges_of(const ForwardInputs& inputs);

// A plan and the tensors as it takes them.
struct PreparedCall {
    std::shared_ptr<const CallPlan> plan;
    ForwardInputs inputs;
};

struct AttentionService::State {
    ServiceSettings settings;
    std::shared_ptr<Machine> machine;
    std::unique_ptr<PluginLoader> loader;
    MechanismRegistry registry;
    PlanCache plans;
    mutable std::mutex projections_mutex;
    std::map<std::string, std::shared_ptr<const NamedTensors>> projections;  // by qualified name
    std::atomic<bool> keeps_projections{false};                              // spares calls without weights the look-up

    // The call with kept or unpacked weights, where it has any; nothing where it stays as it is.
    Result<std::optional<ForwardInputs>> with_projections(const ForwardInputs& inputs,
                                                          const ForwardOptions& options) const;
    Result<std::shared_ptr<CallPlan>> plan_of(const ForwardInputs& inputs, const ForwardOptions& options) const;
    // Of a call that asks for scores.
    Result<PreparedCall> prepare_weights(const ForwardInputs& inputs, const ForwardOptions& options);
    Result<RuleVariables> variables_of(const ForwardInputs& inputs, const ForwardOptions& options) const;
    Result<Selection> choose(const ForwardInputs& inputs, const ForwardOptions& options) const;
    [[nodiscard]] RuleDefaults defaults() const {
        RuleDefaults defaults;
        defaults.threads = machine->pool->workers();
        defaults.precision = settings.config.service.precision;
        defaults.backend = settings.config.service.backend;
        return defaults;
    }
    static std::string key_of(const ForwardInputs& inputs, const ForwardOptions& options);
};

}  // namespace attend
