// SPDX-License-Identifier: Apache-2.0
// Answers about requests that are not run: what would be chosen, and why not something else.
#include <algorithm>

#include "attend/cost_table.hpp"
#include "service/service_state.hpp"

namespace attend {
namespace {

constexpr double length_of_a_task = 1024;

bool has_variable(const RequestFacts& facts, RuleVariable id) {
    return std::any_of(facts.begin(), facts.end(), [id](const auto& fact) {
        const auto* info = find_rule_variable(fact.first);
        return info != nullptr && info->id == id;
    });
}

}  // namespace

Result<Recommendation> AttentionService::State::recommend(RequestFacts facts, const std::string& task) const {
    const Now in_force = now();
    const Config* const config = in_force.config.get();
    if (!has_variable(facts, RuleVariable::memory_budget) && config->service.memory_budget)
        facts.emplace("memoryBudget", static_cast<double>(*config->service.memory_budget));
    const Result<RuleVariables> variables = RuleVariables::make(facts, defaults(*config));
    if (!variables) return variables.error();
    const std::shared_ptr<const CostTable> known = costs_now();
    return MechanismSelector(registry.snapshot(), *config, machine->pool->workers(), in_force.passed.get(), known.get())
        .recommend(*variables, {}, std::nullopt, task);
}

Result<Recommendation> AttentionService::recommend(const RequestFacts& facts) { return state_->recommend(facts, ""); }

Result<Recommendation> AttentionService::recommend_for_task(const std::string& task, const RequestFacts& facts) {
    RequestFacts all = facts;
    if (!has_variable(all, RuleVariable::seq_len)) all.emplace("seqLen", length_of_a_task);
    if (!has_variable(all, RuleVariable::task_type)) all.emplace("taskType", task);
    return state_->recommend(std::move(all), task.empty() ? "any" : task);
}

Result<Recommendation> AttentionService::explain(const ForwardInputs& inputs, const ForwardOptions& options) {
    const State::Now now = state_->now();
    const Config* const config = now.config.get();
    const Result<RuleVariables> variables = state_->variables_of(*config, inputs, options);
    if (!variables) return variables.error();
    const std::shared_ptr<const CostTable> known = state_->costs_now();
    return MechanismSelector(state_->registry.snapshot(), *config, state_->machine->pool->workers(), now.passed.get(),
                             known.get())
        .recommend(*variables, options.options, edges_of(inputs) != nullptr);
}

void AttentionService::use_costs(std::shared_ptr<const CostTable> costs) {
    const std::scoped_lock lock(state_->costs_mutex);
    state_->costs = std::move(costs);
}

std::shared_ptr<const CostTable> AttentionService::State::costs_now() const {
    const std::scoped_lock lock(costs_mutex);
    return costs;
}

}  // namespace attend
