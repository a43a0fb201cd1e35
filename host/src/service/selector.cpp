// SPDX-License-Identifier: Apache-2.0
#include "service/selector.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "attend/config/names.hpp"

namespace attend {
namespace {

constexpr std::size_t most_recommendations = 5;

std::string shown(double number) {
    if (std::isinf(number)) return "unbounded";
    std::array<char, 32> text{};
    const auto [end, status] =
        std::to_chars(text.data(), text.data() + text.size(), number, std::chars_format::general, 6);
    return status == std::errc{} ? std::string(text.data(), end) : std::string("?");
}

// The call's own options win over the rule's.
NamedValues merged(const NamedValues& rule, const NamedValues& call) {
    NamedValues all = call;
    for (const auto& [name, value] : rule)
        if (std::none_of(call.begin(), call.end(),
                         [&](const auto& entry) { return fold_name(entry.first) == fold_name(name); }))
            all.emplace_back(name, value);
    return all;
}

// What the request implies for options that the mechanism has and nobody set.
NamedValues implied(const MechanismRecord& mechanism, const RequestNeeds& needs, NamedValues options) {
    const auto add = [&](const char* name, Json value) {
        const bool set = std::any_of(options.begin(), options.end(),
                                     [&](const auto& entry) { return fold_name(entry.first) == name; });
        if (!set && mechanism.find_option(name) != nullptr) options.emplace_back(name, std::move(value));
    };
    if (needs.causal) add("causal", true);
    if (needs.window_size > 0) add("window_size", needs.window_size);
    return options;
}

}  // namespace

RequestNeeds needs_of(const RuleVariables& v) {
    using enum RuleVariable;
    const auto count = [&](RuleVariable id) {
        return static_cast<std::int64_t>(std::min(v.number(id), 9007199254740992.0));
    };
    RequestNeeds needs;
    needs.sizes = {count(batch_size), count(heads),     count(kv_heads),    count(seq_len),
                   count(seq_len_k),  count(head_dim),  count(value_dim),   v.flag(has_mask),
                   v.flag(has_bias),  v.flag(need_lse), v.flag(need_scores)};
    needs.causal = v.flag(causal);
    needs.mask = v.flag(has_mask);
    needs.bias = v.flag(has_bias);
    needs.window_size = count(window_size);
    needs.window = needs.window_size > 0;
    needs.dropout = v.flag(has_dropout);
    needs.lse = v.flag(need_lse);
    needs.scores = v.flag(need_scores);
    needs.graph = v.flag(graph);
    needs.memory_budget = v.number(memory_budget);
    needs.max_error = v.number(max_error);
    needs.precision = v.text(precision);
    return needs;
}

MechanismSelector::Verdict MechanismSelector::check(const MechanismRecord& mechanism, const MechanismPtr& pointer,
                                                    const RequestNeeds& needs, const NamedValues& options) const {
    const SizeRequest& sizes = needs.sizes;
    struct Need {
        bool wanted;
        std::uint64_t capability;
        const char* check;
        const char* what;
    };
    const Need list[] = {
        {needs.causal, ATTEND_CAP_CAUSAL, "causal", "does not take causal"},
        {sizes.q_len != sizes.kv_len, ATTEND_CAP_CROSS, "cross", "needs as many keys as queries"},
        {needs.mask, ATTEND_CAP_MASK, "mask", "does not take a mask"},
        {needs.bias, ATTEND_CAP_BIAS, "bias", "does not take a bias"},
        {needs.window, ATTEND_CAP_WINDOW, "window", "does not take a window"},
        {needs.dropout, ATTEND_CAP_DROPOUT, "dropout", "does not take dropout"},
        {needs.lse, ATTEND_CAP_LSE_OUT, "lse", "gives no LSE"},
        {needs.scores, ATTEND_CAP_SCORES_OUT, "scores", "has no score matrix"},
        {sizes.heads != sizes.kv_heads,
         sizes.kv_heads == 1 && mechanism.has(ATTEND_CAP_MQA) ? ATTEND_CAP_MQA : ATTEND_CAP_GQA, "gqa",
         "needs as many key heads as query heads"},
        {sizes.head_dim != sizes.value_dim, ATTEND_CAP_DV_DIFFERS, "valueDim", "needs values as wide as keys"}};
    for (const Need& need : list)
        if (need.wanted && !mechanism.has(need.capability)) return {need.check, need.what, std::nullopt};
    if (mechanism.has(ATTEND_CAP_GRAPH_INPUT) && !needs.graph)
        return {"graph", "needs a graph and none is supplied", std::nullopt};
    if (needs.precision != "fp32") {
        const std::uint64_t wanted = needs.precision == "bf16"   ? ATTEND_BF16
                                     : needs.precision == "fp16" ? ATTEND_F16
                                     : needs.precision == "int8" ? ATTEND_I8
                                                                 : ATTEND_F8_E4M3;
        if ((mechanism.dtypes & wanted) == 0)
            return {"dtype", "does not offer precision " + needs.precision, std::nullopt};
    }
    Result<Estimate> estimate = estimate_call(pointer, sizes, implied(mechanism, needs, options), max_workers_);
    if (!estimate) {
        std::string reason = estimate.error().message;
        const std::string place = mechanism.name + ": ";  // named by those who show the reason
        if (reason.starts_with(place)) reason.erase(0, place.size());
        return {"plugin", reason, std::nullopt};
    }
    const double output_bytes = 4.0 * static_cast<double>(sizes.batch) * static_cast<double>(sizes.heads) *
                                static_cast<double>(sizes.q_len) * static_cast<double>(sizes.value_dim);
    const double memory = estimate->workspace.value_or(0.0) + output_bytes;
    if (memory > needs.memory_budget)
        return {"memory", "needs " + shown(memory) + " bytes, the budget is " + shown(needs.memory_budget),
                std::move(*estimate)};
    if (std::isfinite(needs.max_error) && !(estimate->error_bound <= needs.max_error))
        return {"maxError",
                "its error bound is " + shown(estimate->error_bound) + ", accepted: " + shown(needs.max_error),
                std::move(*estimate)};
    return {"", "", std::move(*estimate)};
}

Result<Selection> MechanismSelector::select(const RuleVariables& variables, const NamedValues& call_options,
                                            std::optional<bool> graph) const {
    RequestNeeds needs = needs_of(variables);
    needs.graph = graph.value_or(needs.graph);
    Selection selection;
    for (std::size_t index = 0; index < config_.rules.size(); ++index) {
        const Rule& rule = config_.rules[index];
        TraceStep step{index, rule.condition_text, std::nullopt, "", ""};
        const Result<bool> holds = rule.condition.evaluate(variables);
        if (!holds) {
            if (config_.service.strict_rules) return holds.error();
            step.error = holds.error().message;
            selection.trace.push_back(std::move(step));
            continue;
        }
        step.value = *holds;
        if (*holds) {
            const MechanismPtr mechanism = registry_->find(rule.mechanism);
            const NamedValues options = merged(rule.options, call_options);
            const Verdict verdict = mechanism ? check(*mechanism, mechanism, needs, options)
                                              : Verdict{"missing", "is not loaded", std::nullopt};
            if (verdict.check.empty()) {
                selection.trace.push_back(std::move(step));
                selection.mechanism = mechanism;
                selection.options = options;
                selection.rule = std::to_string(index);
                selection.rule_text = rule.condition_text;
                selection.reason = "rule " + std::to_string(index) + " (" + rule.condition_text + ")";
                return selection;
            }
            step.skipped_because = rule.mechanism + " " + verdict.reason;
            selection.refusals.push_back("rule " + std::to_string(index) + ": " + rule.mechanism + " " +
                                         verdict.reason);
        }
        selection.trace.push_back(std::move(step));
    }
    const ServiceConfig& service = config_.service;
    const double length = std::max(variables.number(RuleVariable::seq_len), variables.number(RuleVariable::seq_len_k));
    const bool is_long = length > static_cast<double>(service.long_sequence_threshold);
    const bool fallback_first = is_long && service.allow_approximate;
    const std::string first = fallback_first ? service.fallback_mechanism : service.default_mechanism;
    const std::string second = fallback_first ? service.default_mechanism : service.fallback_mechanism;
    for (const std::string& name : {first, second}) {
        const MechanismPtr mechanism = registry_->find(name);
        if (!mechanism) {
            selection.refusals.push_back(name + ": unknown mechanism");
            continue;
        }
        if (name == second && !service.allow_approximate && mechanism->numerics != ATTEND_EXACT) {
            selection.refusals.push_back(name + ": is " + exactness_name(mechanism->numerics) +
                                         ", and allow_approximate is false");
            continue;
        }
        const Verdict verdict = check(*mechanism, mechanism, needs, call_options);
        if (!verdict.check.empty()) {
            selection.refusals.push_back(name + ": " + verdict.reason);
            continue;
        }
        selection.mechanism = mechanism;
        selection.options = call_options;
        selection.rule = "threshold";
        selection.rule_text = std::string("length ") + shown(length) + (is_long ? " > " : " <= ") +
                              std::to_string(service.long_sequence_threshold);
        selection.reason = "no rule selected; " + selection.rule_text + ", " +
                           (name == service.default_mechanism ? "default" : "fallback") + " mechanism";
        break;
    }
    return selection;
}

Candidate MechanismSelector::describe(const MechanismPtr& mechanism, const Verdict& verdict, const NamedValues& options,
                                      std::string rule, std::string text) const {
    Candidate candidate;
    candidate.mechanism = mechanism->shadowed_by.empty() ? mechanism->name : mechanism->qualified_name();
    candidate.options = options;
    candidate.rule = std::move(rule);
    candidate.rule_text = std::move(text);
    candidate.exactness = exactness_name(mechanism->numerics);
    candidate.supported = verdict.check.empty();
    candidate.check = verdict.check;
    if (!verdict.reason.empty()) candidate.reasons.push_back(verdict.reason);
    if (verdict.estimate) {
        if (std::isfinite(verdict.estimate->error_bound)) candidate.error_bound = verdict.estimate->error_bound;
        candidate.est_flops = verdict.estimate->flops;
        candidate.est_bytes = verdict.estimate->bytes;
    } else if (mechanism->numerics == ATTEND_EXACT) {
        candidate.error_bound = 0.0;
    }
    return candidate;
}

Result<Recommendation> MechanismSelector::recommend(const RuleVariables& variables) const {
    const RequestNeeds needs = needs_of(variables);
    Result<Selection> selected = select(variables, {});
    if (!selected) return selected.error();
    Recommendation result;
    result.trace = selected->trace;
    std::vector<std::string> seen;
    const auto is_new = [&](const std::string& name) {
        if (std::find(seen.begin(), seen.end(), name) != seen.end()) return false;
        seen.push_back(name);
        return true;
    };
    const auto consider = [&](const MechanismPtr& mechanism, const NamedValues& options, const std::string& rule,
                              const std::string& text, std::string reason) {
        const std::string name = mechanism->shadowed_by.empty() ? mechanism->name : mechanism->qualified_name();
        if (!is_new(name)) return;
        const Verdict verdict = check(*mechanism, mechanism, needs, options);
        Candidate candidate = describe(mechanism, verdict, options, rule, text);
        if (!candidate.supported) {
            result.rejected.push_back(std::move(candidate));
            return;
        }
        candidate.reasons.push_back(std::move(reason));
        result.recommendations.push_back(std::move(candidate));
    };
    if (selected->mechanism) {
        result.selected = selected->mechanism->shadowed_by.empty() ? selected->mechanism->name
                                                                   : selected->mechanism->qualified_name();
        consider(selected->mechanism, selected->options, selected->rule, selected->rule_text, selected->reason);
    }
    for (std::size_t index = 0; index < config_.rules.size(); ++index) {
        const Rule& rule = config_.rules[index];
        const Result<bool> holds = rule.condition.evaluate(variables);
        if (!holds || !*holds) continue;
        if (const MechanismPtr mechanism = registry_->find(rule.mechanism))
            consider(mechanism, rule.options, std::to_string(index), rule.condition_text,
                     "rule " + std::to_string(index) + " (" + rule.condition_text + ")");
    }
    for (const auto& [name, what] : {std::pair(config_.service.default_mechanism, "default mechanism"),
                                     std::pair(config_.service.fallback_mechanism, "fallback mechanism")})
        if (const MechanismPtr mechanism = registry_->find(name)) consider(mechanism, {}, "default", what, what);
    // The rest by cost; without a prediction last, ties by name.
    const std::size_t ordered = result.recommendations.size();
    for (const MechanismPtr& mechanism : registry_->list()) {
        // Causal by default is another function than the one asked for, unless it can be switched off.
        const OptionSpec* causal = mechanism->find_option("causal");
        const bool by_default = causal != nullptr && causal->default_value == Json(true) && !needs.causal;
        consider(mechanism, by_default ? NamedValues{{"causal", false}} : NamedValues{}, "candidate", "registered",
                 "passes every check");
    }
    const auto cost = [](const Candidate& candidate) {
        return candidate.est_time_ms.value_or(candidate.est_flops.value_or(std::numeric_limits<double>::infinity()));
    };
    std::sort(result.recommendations.begin() + static_cast<std::ptrdiff_t>(ordered), result.recommendations.end(),
              [&](const Candidate& a, const Candidate& b) {
                  return std::pair(cost(a), a.mechanism) < std::pair(cost(b), b.mechanism);
              });
    if (result.recommendations.size() > most_recommendations) result.recommendations.resize(most_recommendations);
    return result;
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
