// SPDX-License-Identifier: Apache-2.0
#include "service/candidate_checks.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>

#include "attend/config/names.hpp"
#include "service/call_form.hpp"

namespace attend {
namespace {

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

double memory_of(const Estimate& estimate, const SizeRequest& sizes) {
    return estimate.workspace.value_or(0.0) + 4.0 * static_cast<double>(sizes.batch) *
                                                  static_cast<double>(sizes.heads) * static_cast<double>(sizes.q_len) *
                                                  static_cast<double>(sizes.value_dim);
}

std::uint64_t precision_bit(const std::string& precision) {
    return precision == "bf16"   ? ATTEND_BF16
           : precision == "fp16" ? ATTEND_F16
           : precision == "int8" ? ATTEND_I8
                                 : ATTEND_F8_E4M3;
}

// A change of the needs, and how the request says it. True if it changes anything.
struct Trial {
    const char* name;
    bool (*apply)(RequestNeeds&, std::vector<Change>&);
};

bool off(bool& flag, const char* variable, std::vector<Change>& changes) {
    if (!flag) return false;
    flag = false;
    changes.push_back({variable, false});
    return true;
}

bool same_count(std::int64_t& value, std::int64_t wanted, const char* variable, std::vector<Change>& changes) {
    if (value == wanted) return false;
    value = wanted;
    changes.push_back({variable, wanted});
    return true;
}

// Wider heads, values of the same width with them.
bool widen(RequestNeeds& needs, std::int64_t step, std::vector<Change>& changes) {
    const std::int64_t wanted = (needs.sizes.head_dim + step - 1) / step * step;
    const bool alike = needs.sizes.value_dim == needs.sizes.head_dim;
    if (!same_count(needs.sizes.head_dim, wanted, "headDim", changes)) return false;
    if (alike) same_count(needs.sizes.value_dim, wanted, "valueDim", changes);
    return true;
}

const Trial trials[] = {
    {"causal", [](RequestNeeds& needs, std::vector<Change>& changes) { return off(needs.causal, "causal", changes); }},
    {"cross",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         return same_count(needs.sizes.kv_len, needs.sizes.q_len, "seqLenK", changes);
     }},
    {"mask",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         needs.sizes.mask = false;
         return off(needs.mask, "hasMask", changes);
     }},
    {"bias",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         needs.sizes.bias = false;
         return off(needs.bias, "hasBias", changes);
     }},
    {"window",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         needs.window = false;
         return same_count(needs.window_size, 0, "windowSize", changes);
     }},
    {"dropout",
     [](RequestNeeds& needs, std::vector<Change>& changes) { return off(needs.dropout, "hasDropout", changes); }},
    {"lse",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         needs.sizes.lse = false;
         return off(needs.lse, "needLse", changes);
     }},
    {"scores",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         needs.sizes.scores = false;
         return off(needs.scores, "needScores", changes);
     }},
    {"gqa",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         return same_count(needs.sizes.kv_heads, needs.sizes.heads, "kvHeads", changes);
     }},
    {"valueDim",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         return same_count(needs.sizes.value_dim, needs.sizes.head_dim, "valueDim", changes);
     }},
    {"graph",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         if (needs.graph) return false;
         needs.graph = true;
         changes.push_back({"graph", true});
         return true;
     }},
    {"dtype",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         if (needs.precision == "fp32") return false;
         needs.precision = "fp32";
         changes.push_back({"precision", "fp32"});
         return true;
     }},
    // What plugins ask for beyond that.
    {"",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         if (needs.causal) return false;
         needs.causal = true;
         changes.push_back({"causal", true});
         return true;
     }},
    {"", [](RequestNeeds& needs,
            std::vector<Change>& changes) { return same_count(needs.sizes.kv_heads, 1, "kvHeads", changes); }},
    {"", [](RequestNeeds& needs, std::vector<Change>& changes) { return widen(needs, 2, changes); }},
    {"", [](RequestNeeds& needs, std::vector<Change>& changes) { return widen(needs, 8, changes); }},
    {"",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         const bool alike = needs.sizes.kv_heads == needs.sizes.heads;
         if (!same_count(needs.sizes.heads, needs.sizes.heads + needs.sizes.heads % 2, "heads", changes)) return false;
         if (alike) same_count(needs.sizes.kv_heads, needs.sizes.heads, "kvHeads", changes);
         return true;
     }},
    {"",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         const bool alike = needs.sizes.kv_len == needs.sizes.q_len;
         if (!same_count(needs.sizes.q_len, std::max<std::int64_t>(needs.sizes.q_len, 1), "seqLen", changes))
             return false;
         if (alike) same_count(needs.sizes.kv_len, needs.sizes.q_len, "seqLenK", changes);
         return true;
     }},
    {"",
     [](RequestNeeds& needs, std::vector<Change>& changes) {
         if (needs.sizes.kv_len >= needs.sizes.q_len) return false;
         return same_count(needs.sizes.kv_len, needs.sizes.q_len, "seqLenK", changes);
     }},
};

// Limits are raised to what the estimate says.
bool raise_limit(const Verdict& verdict, RequestNeeds& needs, std::vector<Change>& changes) {
    if (!verdict.estimate) return false;
    if (verdict.check == "memory") {
        needs.memory_budget = std::ceil(memory_of(*verdict.estimate, needs.sizes));
        changes.push_back({"memoryBudget", needs.memory_budget < 9e15
                                               ? Json(static_cast<std::int64_t>(needs.memory_budget))
                                               : Json("infinity")});
        return true;
    }
    if (verdict.check != "maxError") return false;
    needs.max_error = verdict.estimate->error_bound;
    changes.push_back({"maxError", std::isfinite(needs.max_error) ? Json(needs.max_error) : Json("infinity")});
    return true;
}

}  // namespace

std::string shown_number(double number) {
    if (std::isinf(number)) return "unbounded";
    std::array<char, 32> text{};
    const auto [end, status] =
        std::to_chars(text.data(), text.data() + text.size(), number, std::chars_format::general, 6);
    return status == std::errc{} ? std::string(text.data(), end) : std::string("?");
}

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

Verdict check_candidate(const MechanismPtr& mechanism, const RequestNeeds& needs, const NamedValues& options,
                        std::uint32_t max_workers) {
    const SizeRequest& sizes = needs.sizes;
    struct Need {
        bool wanted;
        std::uint64_t capability;
        const char* check;
        const char* what;
        std::int64_t accepted, given;  // numbers, where the check compares two
    };
    const Need list[] = {{needs.causal, ATTEND_CAP_CAUSAL, "causal", "does not take causal", 0, 0},
                         {sizes.q_len != sizes.kv_len, ATTEND_CAP_CROSS, "cross", "needs as many keys as queries",
                          sizes.q_len, sizes.kv_len},
                         {needs.mask, ATTEND_CAP_MASK, "mask", "does not take a mask", 0, 0},
                         {needs.bias, ATTEND_CAP_BIAS, "bias", "does not take a bias", 0, 0},
                         {needs.window, ATTEND_CAP_WINDOW, "window", "does not take a window", 0, needs.window_size},
                         {needs.dropout, ATTEND_CAP_DROPOUT, "dropout", "does not take dropout", 0, 0},
                         {needs.lse, ATTEND_CAP_LSE_OUT, "lse", "gives no LSE", 0, 0},
                         {needs.scores, ATTEND_CAP_SCORES_OUT, "scores", "has no score matrix", 0, 0},
                         {sizes.heads != sizes.kv_heads,
                          sizes.kv_heads == 1 && mechanism->has(ATTEND_CAP_MQA) ? ATTEND_CAP_MQA : ATTEND_CAP_GQA,
                          "gqa", "needs as many key heads as query heads", sizes.heads, sizes.kv_heads},
                         {sizes.head_dim != sizes.value_dim, ATTEND_CAP_DV_DIFFERS, "valueDim",
                          "needs values as wide as keys", sizes.head_dim, sizes.value_dim}};
    for (const Need& need : list) {
        if (!need.wanted || mechanism->has(need.capability)) continue;
        std::string reason = need.what;
        if (need.accepted != need.given)
            reason += ", " + std::to_string(need.accepted) + ", the request has " + std::to_string(need.given);
        return {need.check, std::move(reason), std::nullopt};
    }
    if (mechanism->has(ATTEND_CAP_GRAPH_INPUT) && !needs.graph)
        return {"graph", "needs a graph and none is supplied", std::nullopt};
    if (needs.precision != "fp32" && (mechanism->dtypes & precision_bit(needs.precision)) == 0)
        return {"dtype", "does not offer precision " + needs.precision + ", it reads " + port_dtypes(mechanism->dtypes),
                std::nullopt};
    Result<Estimate> estimate = estimate_call(mechanism, sizes, implied(*mechanism, needs, options), max_workers);
    if (!estimate) {
        std::string reason = estimate.error().message;
        const std::string place = mechanism->name + ": ";  // named by those who show the reason
        if (reason.starts_with(place)) reason.erase(0, place.size());
        return {"plugin", std::move(reason), std::nullopt};
    }
    const double memory = memory_of(*estimate, sizes);
    if (memory > needs.memory_budget)
        return {"memory",
                "needs " + shown_number(memory) + " bytes, the budget is " + shown_number(needs.memory_budget),
                std::move(*estimate)};
    if (std::isfinite(needs.max_error) && !(estimate->error_bound <= needs.max_error))
        return {"maxError",
                "its error bound is " + shown_number(estimate->error_bound) +
                    ", accepted: " + shown_number(needs.max_error),
                std::move(*estimate)};
    return {"", "", std::move(*estimate)};
}

NamedValues unasked_options(const MechanismRecord& mechanism, const RequestNeeds& needs, NamedValues options) {
    const OptionSpec* causal = mechanism.find_option("causal");
    const bool given = std::any_of(options.begin(), options.end(),
                                   [](const auto& entry) { return fold_name(entry.first) == "causal"; });
    if (!given && causal != nullptr && causal->default_value == Json(true) && !needs.causal)
        options.emplace_back("causal", false);
    return options;
}

std::vector<Change> changes_to_admit(const MechanismPtr& mechanism, const RequestNeeds& needs,
                                     const NamedValues& options, bool unasked, std::uint32_t max_workers) {
    const auto checked = [&](const RequestNeeds& request) {
        return check_candidate(mechanism, request, unasked ? unasked_options(*mechanism, request, options) : options,
                               max_workers);
    };
    RequestNeeds changed = needs;
    std::vector<Change> changes;
    // One failed check after the other; a plugin's own sentence says nothing to a program, so known changes are tried.
    for (std::size_t step = 0; step < 2 * std::size(trials); ++step) {
        const Verdict verdict = checked(changed);
        if (verdict.check.empty()) return changes;
        if (raise_limit(verdict, changed, changes)) continue;
        const Trial* known = std::find_if(std::begin(trials), std::end(trials),
                                          [&](const Trial& trial) { return verdict.check == trial.name; });
        if (known != std::end(trials)) {
            if (!known->apply(changed, changes)) return {};
            continue;
        }
        // As plain a request as can be, and if need be one thing more; then all that it can do without is left out.
        const auto serves = [&](const std::vector<const Trial*>& list, RequestNeeds& made, std::vector<Change>& said) {
            made = changed;
            said.clear();
            for (const Trial* trial : list) trial->apply(made, said);
            const std::string failed = checked(made).check;
            return failed.empty() || failed == "memory" || failed == "maxError";
        };
        std::vector<const Trial*> plain, further{nullptr};
        for (const Trial& trial : trials) (*trial.name != '\0' ? plain : further).push_back(&trial);
        bool found = false;
        RequestNeeds made;
        std::vector<Change> said;
        for (const Trial* more : further) {
            std::vector<const Trial*> list = plain;
            if (more != nullptr) list.push_back(more);
            if (!serves(list, made, said)) continue;
            for (std::size_t at = 0; at < list.size();) {
                std::vector<const Trial*> fewer = list;
                fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(at));
                if (serves(fewer, made, said))
                    list = std::move(fewer);
                else
                    ++at;
            }
            found = serves(list, made, said);
            break;
        }
        changed = made;
        changes.insert(changes.end(), said.begin(), said.end());
        if (!found) return {};
    }
    return {};
}

PassedChecks::Key PassedChecks::key_of(const MechanismRecord& mechanism, std::ptrdiff_t rule,
                                       const RequestNeeds& needs) {
    const SizeRequest& sizes = needs.sizes;
    std::uint64_t flags = 0;
    for (const bool flag : {needs.causal, needs.mask, needs.bias, needs.window, needs.dropout, needs.lse, needs.scores,
                            needs.graph, true})
        flags = flags << 1 | (flag ? 1u : 0u);
    const std::uint64_t precision = needs.precision == "fp32" ? 0 : precision_bit(needs.precision);
    const auto word = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
    return {reinterpret_cast<std::uintptr_t>(&mechanism),
            word(rule),
            word(sizes.batch),
            word(sizes.heads),
            word(sizes.kv_heads),
            word(sizes.q_len),
            word(sizes.kv_len),
            word(sizes.head_dim),
            word(sizes.value_dim),
            flags,
            word(needs.window_size),
            std::bit_cast<std::uint64_t>(needs.memory_budget),
            std::bit_cast<std::uint64_t>(needs.max_error),
            precision};
}

PassedChecks::Entry& PassedChecks::place(const Key& key) {
    std::uint64_t hash = 0;
    for (const std::uint64_t word : key) hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    return entries_[hash >> 58];
}

bool PassedChecks::contains(const RegistrySnapshot& registry, const MechanismRecord& mechanism, std::ptrdiff_t rule,
                            const RequestNeeds& needs) {
    const Key key = key_of(mechanism, rule, needs);
    const std::scoped_lock lock(mutex_);
    if (generation_ != registry.generation()) return false;
    const Entry& entry = place(key);
    return entry.key == key && !entry.mechanism.expired();
}

void PassedChecks::add(const RegistrySnapshot& registry, const MechanismPtr& mechanism, std::ptrdiff_t rule,
                       const RequestNeeds& needs) {
    const Key key = key_of(*mechanism, rule, needs);
    const std::scoped_lock lock(mutex_);
    if (generation_ != registry.generation()) {
        entries_.fill({});
        generation_ = registry.generation();
    }
    place(key) = {key, mechanism};
}

}  // namespace attend
