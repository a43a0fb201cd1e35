// SPDX-License-Identifier: Apache-2.0
// The variables of conditions: their table, and the values that one request gives them.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attend/config/names.hpp"
#include "attend/config/rules.hpp"

namespace attend {
namespace {

using enum RuleVariable;
using Kind = RuleVariableKind;

constexpr double infinity = std::numeric_limits<double>::infinity();

RuleVariableInfo row(RuleVariable id, std::string name, std::string alias, Kind kind, std::string default_text,
                     std::string help) {
    RuleVariableInfo info{id,   std::move(name),         std::move(alias), {}, RuleType::number,
                          kind, std::move(default_text), std::move(help)};
    if (kind == Kind::flag) info.type = RuleType::boolean;
    if (kind == Kind::word) info.type = RuleType::text;
    for (const std::string& spelling : {info.name, fold_name(info.name), info.alias, fold_name(info.alias)}) {
        const bool known = std::find(info.spellings.begin(), info.spellings.end(), spelling) != info.spellings.end();
        if (!spelling.empty() && !known) info.spellings.push_back(spelling);
    }
    return info;
}

std::vector<RuleVariableInfo> make_table() {
    std::vector<RuleVariableInfo> table;
    const auto add = [&](RuleVariable id, const char* name, const char* alias, Kind kind, const char* default_text,
                         const char* help) { table.push_back(row(id, name, alias, kind, default_text, help)); };
    add(seq_len, "seqLen", "sequenceLength", Kind::count, "required", "number of queries");
    add(seq_len_k, "seqLenK", "", Kind::count, "seqLen", "number of keys");
    add(batch_size, "batchSize", "", Kind::count, "1", "items in the batch");
    add(heads, "heads", "", Kind::count, "1", "query heads");
    add(kv_heads, "kvHeads", "", Kind::count, "heads", "key and value heads");
    add(head_dim, "headDim", "", Kind::count, "64", "width of a query or key head");
    add(value_dim, "valueDim", "", Kind::count, "headDim", "width of a value head");
    add(model_dim, "modelDim", "", Kind::count, "heads * headDim", "width of all heads together");
    add(causal, "causal", "", Kind::flag, "false", "later keys are hidden from earlier queries");
    add(has_mask, "hasMask", "", Kind::flag, "false", "a mask is given");
    add(has_bias, "hasBias", "", Kind::flag, "false", "a bias is given");
    add(has_dropout, "hasDropout", "", Kind::flag, "false", "dropout above 0 is asked for");
    add(need_lse, "needLse", "", Kind::flag, "false", "the logarithm of the row sums is wanted");
    add(need_scores, "needScores", "", Kind::flag, "false", "the attention weights are wanted");
    add(cross_attention, "crossAttention", "", Kind::flag, "seqLenK != seqLen, or the key is not the query",
        "queries attend to another sequence");
    add(hierarchical, "hierarchical", "isHierarchical", Kind::flag, "false", "the data has a hierarchy");
    add(graph, "graph", "hasGraphStructure", Kind::flag, "false", "a graph is supplied");
    add(moe, "moe", "isMoe", Kind::flag, "false", "a mixture of experts is wanted");
    add(decode, "decode", "", Kind::flag, "seqLen <= 16 and seqLenK >= 64 * seqLen",
        "a few queries read a long cache of keys");
    add(window_size, "windowSize", "", Kind::count, "0", "keys seen on each side of a query, 0 for all");
    add(num_edges, "numEdges", "", Kind::count, "0", "edges of the graph");
    add(density, "density", "", Kind::amount, "1", "share of pairs that may attend");
    add(query_complexity, "queryComplexity", "", Kind::amount, "0", "how demanding the caller rates the query");
    add(memory_budget, "memoryBudget", "", Kind::bytes, "infinity", "bytes that a call may use");
    add(max_error, "maxError", "", Kind::amount, "infinity", "largest error against exact attention");
    add(latency_budget_ms, "latencyBudgetMs", "", Kind::amount, "infinity", "milliseconds that a call may take");
    add(precision, "precision", "", Kind::word, "the service's (fp32)", "fp32, fp16, bf16, int8 or fp8");
    add(device, "device", "", Kind::word, "'cpu'", "where the tensors live");
    add(backend, "backend", "", Kind::word, "the service's (auto)", "auto, avx512, avx2, neon or baseline");
    add(task_type, "taskType", "", Kind::word, "''", "what the caller is doing, in a word of their own");
    add(threads, "threads", "", Kind::count, "the service's", "threads that a call may use");
    add(score_bytes, "scoreBytes", "", Kind::derived, "4 * batchSize * heads * seqLen * seqLenK",
        "bytes of the full score matrix; computed, cannot be supplied");
    return table;
}

constexpr std::size_t first_text = static_cast<std::size_t>(precision);
static_assert(static_cast<std::size_t>(task_type) == first_text + 3);

const char* accepted(Kind kind) {
    switch (kind) {
        case Kind::count: return "integer of at least 0";
        case Kind::bytes: return "integer of at least 0, or infinity";
        case Kind::amount: return "number of at least 0";
        case Kind::flag: return "true or false";
        case Kind::word: return "text";
        case Kind::derived: return "nothing: it is computed";
    }
    return "nothing";
}

bool fits(Kind kind, const RuleValue& value) {
    if (kind == Kind::flag) return std::holds_alternative<bool>(value);
    if (kind == Kind::word) return std::holds_alternative<std::string>(value);
    const double* number = std::get_if<double>(&value);
    if (number == nullptr || !(*number >= 0.0)) return false;
    switch (kind) {
        case Kind::count: return std::isfinite(*number) && std::trunc(*number) == *number;
        case Kind::bytes: return std::trunc(*number) == *number;
        default: return kind == Kind::amount;
    }
}

std::string shown_fact(const RuleValue& value) {
    if (const double* number = std::get_if<double>(&value)) {
        if (std::isnan(*number)) return "NaN";
        if (std::isinf(*number)) return *number > 0 ? "infinity" : "-infinity";
        const Json json(*number);
        const auto integer = json.to_int64();
        return shown_value(integer ? Json(*integer) : json);
    }
    if (const bool* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
    return shown_value(Json(*std::get_if<std::string>(&value)));
}

}  // namespace

const char* rule_type_name(RuleType type) noexcept {
    switch (type) {
        case RuleType::number: return "number";
        case RuleType::boolean: return "bool";
        case RuleType::text: return "string";
    }
    return "number";
}

std::span<const RuleVariableInfo> rule_variables() {
    static const std::vector<RuleVariableInfo> table = make_table();
    return table;
}

const RuleVariableInfo* find_rule_variable(std::string_view spelling) {
    for (const RuleVariableInfo& info : rule_variables()) {
        if (std::find(info.spellings.begin(), info.spellings.end(), spelling) != info.spellings.end()) return &info;
    }
    return nullptr;
}

const std::string& RuleVariables::text(RuleVariable id) const {
    static const std::string none;
    const auto index = static_cast<std::size_t>(id);
    return index >= first_text && index < first_text + texts_.size() ? texts_[index - first_text] : none;
}

RuleValue RuleVariables::value(RuleVariable id) const {
    switch (rule_variables()[static_cast<std::size_t>(id)].type) {
        case RuleType::boolean: return flag(id);
        case RuleType::text: return text(id);
        case RuleType::number: break;
    }
    return number(id);
}

Result<RuleVariables> RuleVariables::make(const RequestFacts& facts, const RuleDefaults& defaults,
                                          const std::string& place) {
    const auto fail = [&](const std::string& what) { return Error{ErrorCode::option, place + ": " + what, {}}; };
    std::array<const RuleValue*, rule_variable_count> given{};
    std::array<const std::string*, rule_variable_count> written_as{};
    for (const auto& [name, value] : facts) {
        const RuleVariableInfo* info = find_rule_variable(name);
        if (info == nullptr) {
            std::vector<std::string> names;
            for (const RuleVariableInfo& variable : rule_variables()) names.push_back(variable.name);
            const std::string nearest = did_you_mean(name, names);
            return fail("unknown variable \"" + name + "\"" +
                        (nearest.empty() ? "; accepted: " + join_names(names) : nearest));
        }
        const auto index = static_cast<std::size_t>(info->id);
        if (given[index] != nullptr) {
            return fail("variable \"" + info->name + "\" is given twice (as \"" + *written_as[index] + "\" and as \"" +
                        name + "\"); each variable may be given once");
        }
        if (info->kind == Kind::derived) {
            return fail("variable \"" + info->name + "\" cannot be supplied; it is computed as " + info->default_text);
        }
        if (!fits(info->kind, value)) {
            return fail("variable \"" + info->name + "\" is " + shown_fact(value) +
                        "; accepted: " + accepted(info->kind));
        }
        given[index] = &value;
        written_as[index] = &name;
    }
    if (given[static_cast<std::size_t>(seq_len)] == nullptr) {
        return fail("variable \"seqLen\" is missing; accepted: integer of at least 0");
    }

    RuleVariables result;
    // Sets a number or flag to the supplied value or to its default, which may use what was set before.
    const auto settle = [&](RuleVariable id, double default_value) {
        const auto index = static_cast<std::size_t>(id);
        double& slot = result.numbers_[index];
        slot = default_value;
        if (given[index] == nullptr) return;
        if (const double* number = std::get_if<double>(given[index])) slot = *number + 0.0;  // -0 becomes 0
        if (const bool* flag = std::get_if<bool>(given[index])) slot = *flag ? 1.0 : 0.0;
    };
    const auto of = [&](RuleVariable id) { return result.number(id); };
    settle(seq_len, 0.0);
    settle(seq_len_k, of(seq_len));
    settle(batch_size, 1.0);
    settle(heads, 1.0);
    settle(kv_heads, of(heads));
    settle(head_dim, 64.0);
    settle(value_dim, of(head_dim));
    settle(model_dim, of(heads) * of(head_dim));
    for (const RuleVariable id :
         {causal, has_mask, has_bias, has_dropout, need_lse, need_scores, hierarchical, graph, moe}) {
        settle(id, 0.0);
    }
    settle(cross_attention, of(seq_len_k) != of(seq_len) || !defaults.key_is_query ? 1.0 : 0.0);
    settle(decode, of(seq_len) <= 16.0 && of(seq_len_k) >= 64.0 * of(seq_len) ? 1.0 : 0.0);
    settle(window_size, 0.0);
    settle(num_edges, 0.0);
    settle(density, 1.0);
    settle(query_complexity, 0.0);
    for (const RuleVariable id : {memory_budget, max_error, latency_budget_ms}) settle(id, infinity);
    settle(threads, defaults.threads);
    settle(score_bytes, 4.0 * of(batch_size) * of(heads) * of(seq_len) * of(seq_len_k));

    result.texts_ = {defaults.precision, "cpu", defaults.backend, ""};
    for (std::size_t i = 0; i < result.texts_.size(); ++i) {
        if (given[first_text + i] == nullptr) continue;
        result.texts_[i] = *std::get_if<std::string>(given[first_text + i]);
    }
    return result;
}

RuleValue rule_value_from_text(std::string_view name, std::string_view text) {
    const RuleVariableInfo* info = find_rule_variable(name);
    const bool wants_text = info != nullptr && info->type == RuleType::text;
    const Json value = parse_bare_value(text);
    if (value.is_string()) {
        const std::string& word = value.as_string();
        if (info != nullptr && info->type == RuleType::number && (word == "infinity" || word == "inf")) return infinity;
        return word;
    }
    if (wants_text) return std::string(text);
    if (value.is_number()) return value.as_double();
    if (value.is_bool()) return value.as_bool();
    return std::string(text);
}

}  // namespace attend
