// SPDX-License-Identifier: Apache-2.0
#include "service/selector.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "attend/config/names.hpp"
#include "attend/cost_table.hpp"

namespace attend {
namespace {

constexpr std::size_t most_recommendations = 5;

// The call's own options win over the rule's.
NamedValues merged(const NamedValues& rule, const NamedValues& call) {
    NamedValues all = call;
    for (const auto& [name, value] : rule)
        if (std::none_of(call.begin(), call.end(),
                         [&](const auto& entry) { return fold_name(entry.first) == fold_name(name); }))
            all.emplace_back(name, value);
    return all;
}

std::string shown_name(const MechanismRecord& mechanism) {
    return mechanism.shadowed_by.empty() ? mechanism.name : mechanism.qualified_name();
}

// What became of each rule and candidate, for people.
struct Chronicle {
    const std::vector<Rule>& rules;
    Selection& to;

    TraceStep& step(std::size_t rule) {
        to.trace.push_back({rule, rules[rule].condition_text, std::nullopt, "", ""});
        return to.trace.back();
    }
    void failed(std::size_t rule, const Error& error) { step(rule).error = error.message; }
    void evaluated(std::size_t rule, bool value) { step(rule).value = value; }
    void skipped(std::size_t rule, const std::string& reason) {
        to.trace.back().skipped_because = rules[rule].mechanism + " " + reason;
        to.refusals.push_back("rule " + std::to_string(rule) + ": " + rules[rule].mechanism + " " + reason);
    }
    void refused(const std::string& name, const std::string& reason) { to.refusals.push_back(name + ": " + reason); }
};

struct Silence {
    void failed(std::size_t, const Error&) {}
    void evaluated(std::size_t, bool) {}
    void skipped(std::size_t, const std::string&) {}
    void refused(const std::string&, const std::string&) {}
};

}  // namespace

template <class Recorder>
Result<MechanismSelector::Choice> MechanismSelector::choose(const RuleVariables& variables, const RequestNeeds& needs,
                                                            const NamedValues& call_options, Recorder& recorder) const {
    // The reason of a refusal; nothing: it passes. What passed with the same numbers is not asked again.
    const auto refusal = [&](const MechanismPtr& mechanism, std::ptrdiff_t index) -> std::optional<std::string> {
        const bool kept = passed_ != nullptr && call_options.empty();
        if (kept && passed_->contains(*registry_, *mechanism, index, needs)) return std::nullopt;
        const bool own = index >= 0 && !config_.rules[static_cast<std::size_t>(index)].options.empty();
        Verdict verdict =
            check(mechanism, needs,
                  own ? merged(config_.rules[static_cast<std::size_t>(index)].options, call_options) : call_options);
        if (!verdict.check.empty()) return std::move(verdict.reason);
        if (kept) passed_->add(*registry_, mechanism, index, needs);
        return std::nullopt;
    };
    for (std::size_t index = 0; index < config_.rules.size(); ++index) {
        const Rule& rule = config_.rules[index];
        const Result<bool> holds = rule.condition.evaluate(variables);
        if (!holds) {
            if (config_.service.strict_rules) return holds.error();
            recorder.failed(index, holds.error());
            continue;
        }
        recorder.evaluated(index, *holds);
        if (!*holds) continue;
        MechanismPtr mechanism = registry_->find(rule.mechanism);
        const auto position = static_cast<std::ptrdiff_t>(index);
        const std::optional<std::string> why =
            mechanism ? refusal(mechanism, position) : std::optional<std::string>("is not loaded");
        if (!why) return Choice{std::move(mechanism), position};
        recorder.skipped(index, *why);
    }
    const ServiceConfig& service = config_.service;
    const double length = std::max(variables.number(RuleVariable::seq_len), variables.number(RuleVariable::seq_len_k));
    const bool fallback_first =
        length > static_cast<double>(service.long_sequence_threshold) && service.allow_approximate;
    const std::string* names[] = {&service.default_mechanism, &service.fallback_mechanism};
    if (fallback_first) std::swap(names[0], names[1]);
    for (const std::string* name : names) {
        MechanismPtr mechanism = registry_->find(*name);
        if (!mechanism) {
            recorder.refused(*name, "unknown mechanism");
            continue;
        }
        if (name == names[1] && !service.allow_approximate && mechanism->numerics != ATTEND_EXACT) {
            recorder.refused(
                *name, std::string("is ") + exactness_name(mechanism->numerics) + ", and allow_approximate is false");
            continue;
        }
        const std::optional<std::string> why = refusal(mechanism, -1);
        if (!why) return Choice{std::move(mechanism), -1};
        recorder.refused(*name, *why);
    }
    return Choice{};
}

Result<MechanismPtr> MechanismSelector::pick(const RuleVariables& variables) const {
    Silence silence;
    Result<Choice> choice = choose(variables, needs_of(variables), {}, silence);
    if (!choice) return choice.error();
    return std::move(choice->mechanism);
}

Result<Selection> MechanismSelector::select(const RuleVariables& variables, const NamedValues& call_options,
                                            std::optional<bool> graph) const {
    RequestNeeds needs = needs_of(variables);
    needs.graph = graph.value_or(needs.graph);
    Selection selection;
    Chronicle chronicle{config_.rules, selection};
    Result<Choice> choice = choose(variables, needs, call_options, chronicle);
    if (!choice) return choice.error();
    if (!choice->mechanism) return selection;
    selection.mechanism = std::move(choice->mechanism);
    if (choice->rule >= 0) {
        const Rule& rule = config_.rules[static_cast<std::size_t>(choice->rule)];
        selection.options = merged(rule.options, call_options);
        selection.rule = std::to_string(choice->rule);
        selection.rule_text = rule.condition_text;
        selection.reason = "rule " + selection.rule + " (" + rule.condition_text + ")";
        return selection;
    }
    const double length = std::max(variables.number(RuleVariable::seq_len), variables.number(RuleVariable::seq_len_k));
    const std::int64_t threshold = config_.service.long_sequence_threshold;
    selection.options = call_options;
    selection.rule = "threshold";
    selection.rule_text = "length " + shown_number(length) +
                          (length > static_cast<double>(threshold) ? " > " : " <= ") + std::to_string(threshold);
    const bool is_default = registry_->find(config_.service.default_mechanism) == selection.mechanism;
    selection.reason =
        "no rule selected; " + selection.rule_text + ", " + (is_default ? "default" : "fallback") + " mechanism";
    return selection;
}

Candidate MechanismSelector::describe(const MechanismPtr& mechanism, const RequestNeeds& needs, const Verdict& verdict,
                                      const NamedValues& options, std::string rule, std::string text) const {
    Candidate candidate;
    candidate.mechanism = shown_name(*mechanism);
    candidate.options = options;
    candidate.rule = std::move(rule);
    candidate.rule_text = std::move(text);
    candidate.exactness = exactness_name(mechanism->numerics);
    candidate.supported = verdict.check.empty();
    candidate.check = verdict.check;
    if (!verdict.reason.empty()) candidate.reasons.push_back(verdict.reason);
    if (verdict.estimate) {
        const Estimate& estimate = *verdict.estimate;
        if (std::isfinite(estimate.error_bound)) candidate.error_bound = estimate.error_bound;
        candidate.est_flops = estimate.flops;
        candidate.est_bytes = estimate.bytes;
        candidate.est_workspace = estimate.workspace;
        if (costs_ != nullptr && estimate.flops) {
            const auto size = [](std::int64_t value) { return static_cast<double>(value); };
            const CostPoint point{size(needs.sizes.batch) * size(needs.sizes.heads),
                                  std::sqrt(size(needs.sizes.q_len) * size(needs.sizes.kv_len)),
                                  size(needs.sizes.head_dim), needs.causal};
            candidate.est_time_ms =
                costs_->predict(candidate.mechanism, max_workers_, point, *estimate.flops, estimate.bytes.value_or(0));
        }
    } else if (mechanism->numerics == ATTEND_EXACT) {
        candidate.error_bound = 0.0;
    }
    return candidate;
}

Result<Recommendation> MechanismSelector::recommend(const RuleVariables& variables, const NamedValues& call_options,
                                                    std::optional<bool> graph, const std::string& task) const {
    RequestNeeds needs = needs_of(variables);
    needs.graph = graph.value_or(needs.graph);
    Result<Selection> selected = select(variables, call_options, graph);
    if (!selected) return selected.error();
    Recommendation result;
    std::vector<std::string> seen;
    const auto is_new = [&](const std::string& name) {
        if (std::find(seen.begin(), seen.end(), name) != seen.end()) return false;
        seen.push_back(name);
        return true;
    };
    const auto consider = [&](const MechanismPtr& mechanism, const NamedValues& options, const std::string& rule,
                              const std::string& text, std::string reason) {
        if (!is_new(shown_name(*mechanism))) return;
        Candidate candidate = describe(mechanism, needs, check(mechanism, needs, options), options, rule, text);
        if (!candidate.supported) {
            const bool unasked = rule == "candidate";
            candidate.admit =
                changes_to_admit(mechanism, needs, unasked ? call_options : options, unasked, max_workers_);
            result.rejected.push_back(std::move(candidate));
            return;
        }
        candidate.reasons.push_back(std::move(reason));
        result.recommendations.push_back(std::move(candidate));
    };
    if (!task.empty()) {
        if (const MechanismPtr mechanism = registry_->find(mechanism_of_task(task)))
            consider(mechanism, call_options, "task", task, "serves the task " + task);
        if (!result.recommendations.empty()) result.selected = result.recommendations.front().mechanism;
    }
    result.trace = selected->trace;
    if (selected->mechanism) {
        if (!result.selected) result.selected = shown_name(*selected->mechanism);
        consider(selected->mechanism, selected->options, selected->rule, selected->rule_text, selected->reason);
    }
    for (std::size_t index = 0; index < config_.rules.size(); ++index) {
        const Rule& rule = config_.rules[index];
        const Result<bool> holds = rule.condition.evaluate(variables);
        if (!holds || !*holds) continue;
        if (const MechanismPtr mechanism = registry_->find(rule.mechanism))
            consider(mechanism, merged(rule.options, call_options), std::to_string(index), rule.condition_text,
                     "rule " + std::to_string(index) + " (" + rule.condition_text + ")");
    }
    for (const auto& [name, what] : {std::pair(config_.service.default_mechanism, "default mechanism"),
                                     std::pair(config_.service.fallback_mechanism, "fallback mechanism")})
        if (const MechanismPtr mechanism = registry_->find(name))
            consider(mechanism, call_options, "default", what, what);
    // The rest by cost; without a prediction last, ties by name.
    const std::size_t ordered = result.recommendations.size();
    for (const MechanismPtr& mechanism : registry_->list()) {
        consider(mechanism, unasked_options(*mechanism, needs, call_options), "candidate", "registered",
                 "passes every check");
    }
    // A time and a number of operations are not compared: what was not measured follows what was.
    const auto cost = [](const Candidate& candidate) {
        constexpr double unknown = std::numeric_limits<double>::infinity();
        return std::tuple(candidate.est_time_ms.value_or(unknown), candidate.est_flops.value_or(unknown));
    };
    std::sort(result.recommendations.begin() + static_cast<std::ptrdiff_t>(ordered), result.recommendations.end(),
              [&](const Candidate& a, const Candidate& b) {
                  return std::tuple_cat(cost(a), std::tie(a.mechanism)) <
                         std::tuple_cat(cost(b), std::tie(b.mechanism));
              });
    if (result.recommendations.size() > most_recommendations) result.recommendations.resize(most_recommendations);
    return result;
}

const char* mechanism_of_task(std::string_view task) {
    constexpr std::pair<std::string_view, const char*> table[] = {{"code-analysis", "hierarchical-cross-attention"},
                                                                  {"memory-retrieval", "memory-attention"},
                                                                  {"long-context", "longformer-attention"},
                                                                  {"swarm-coordination", "star-attention"}};
    for (const auto& [name, mechanism] : table)
        if (name == task) return mechanism;
    return "flash-attention-v2";
}

std::vector<Error> check_rule(const RegistrySnapshot& registry, const Config& config, const std::string& mechanism,
                              const NamedValues& options, const std::string& place) {
    if (config.shipped && registry.find(mechanism) == nullptr) return {};
    const Result<MechanismPtr> found = registry.get(mechanism, place + ".mechanism");
    if (!found) return {Error{ErrorCode::rule, found.error().message, found.error().hint}};
    std::vector<Error> problems;
    for (Error& problem : check_options(mechanism, (*found)->options, options)) {
        problem.code = ErrorCode::rule;
        problem.message = place + ".options: " + problem.message;
        problems.push_back(std::move(problem));
    }
    return problems;
}

}  // namespace attend
