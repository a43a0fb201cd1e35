// SPDX-License-Identifier: Apache-2.0
// Selection rules: a condition on a request, and the mechanism to use where it holds. Conditions are compiled once
// and evaluated for every request; nothing here knows which mechanisms exist.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "attend/config/json.hpp"
#include "attend/config/options.hpp"
#include "attend/error.hpp"

namespace attend {

inline constexpr std::size_t max_condition_bytes = 4096;
inline constexpr std::size_t max_condition_depth = 64;
inline constexpr std::size_t max_rules = 1024;

enum class RuleType { number, boolean, text };

// "number", "bool", "string".
[[nodiscard]] const char* rule_type_name(RuleType type) noexcept;

using RuleValue = std::variant<double, bool, std::string>;

// How a variable's value is checked when a request supplies it.
enum class RuleVariableKind {
    count,   // a number without fraction, not negative, finite
    bytes,   // the same, or infinity
    amount,  // any number that is not negative; infinity allowed
    flag,
    word,
    derived  // computed only, cannot be supplied
};

// The variables of conditions, in the order of the reference. The values of the enumeration are indices into
// rule_variables().
enum class RuleVariable : std::size_t {
    seq_len,
    seq_len_k,
    batch_size,
    heads,
    kv_heads,
    head_dim,
    value_dim,
    model_dim,
    causal,
    has_mask,
    has_bias,
    has_dropout,
    need_lse,
    need_scores,
    cross_attention,
    hierarchical,
    graph,
    moe,
    decode,
    window_size,
    num_edges,
    density,
    query_complexity,
    memory_budget,
    max_error,
    latency_budget_ms,
    precision,
    device,
    backend,
    task_type,
    threads,
    score_bytes,
    count_
};
inline constexpr std::size_t rule_variable_count = static_cast<std::size_t>(RuleVariable::count_);

struct RuleVariableInfo {
    RuleVariable id;
    std::string name;                    // camelCase, as the reference spells it
    std::string alias;                   // a second name, or empty
    std::vector<std::string> spellings;  // every accepted spelling: name, alias, and both in snake_case
    RuleType type;
    RuleVariableKind kind;
    std::string default_text;  // "required", "seqLen", "false": for the reference
    std::string help;
};

[[nodiscard]] std::span<const RuleVariableInfo> rule_variables();
// By any exact spelling (case counts), or nullptr.
[[nodiscard]] const RuleVariableInfo* find_rule_variable(std::string_view spelling);

// What the service contributes where a request says nothing.
struct RuleDefaults {
    double threads = 1.0;
    std::string precision = "fp32";
    std::string backend = "auto";
    bool key_is_query = true;  // false: the request has keys of its own, so crossAttention is true unless supplied
};

using RequestFacts = std::map<std::string, RuleValue>;

// The values of all variables for one request.
class RuleVariables {
public:
    // Checks the supplied facts (any spelling) and computes defaults and derived values. Errors: ErrorCode::option,
    // message `<place>: variable "seqLen" is -1; accepted: ...`.
    [[nodiscard]] static Result<RuleVariables> make(const RequestFacts& facts, const RuleDefaults& defaults,
                                                    const std::string& place = "request");

    [[nodiscard]] double number(RuleVariable id) const { return numbers_[static_cast<std::size_t>(id)]; }
    [[nodiscard]] bool flag(RuleVariable id) const { return number(id) != 0.0; }
    [[nodiscard]] const std::string& text(RuleVariable id) const;
    [[nodiscard]] RuleValue value(RuleVariable id) const;

private:
    std::array<double, rule_variable_count> numbers_{};  // booleans as 0 and 1
    std::array<std::string, 4> texts_;
};

// A value given as text (`--var NAME=VALUE`): JSON or bare, "infinity" for numbers. The type follows the text; make()
// compares it with the variable.
[[nodiscard]] RuleValue rule_value_from_text(std::string_view name, std::string_view text);

struct ConditionProgram;

// One compiled condition. Copies share the program; evaluation is safe from any number of threads.
class Condition {
public:
    // Errors: ErrorCode::rule, message `<place>: column N: ...` (limits: without column), hint = the condition, a
    // line end, blanks and a caret. `place` is "<file>: rules[i].condition".
    [[nodiscard]] static Result<Condition> compile(std::string_view text, const std::string& place);

    // An error is an evaluation error (division by zero, NaN, ...): the rule does not match, strict_rules returns it.
    [[nodiscard]] Result<bool> evaluate(const RuleVariables& variables) const;

    [[nodiscard]] bool is_default() const noexcept;
    [[nodiscard]] const std::string& text() const noexcept;
    [[nodiscard]] const std::string& place() const noexcept;
    // Column of the first token, counted in characters from 1.
    [[nodiscard]] std::size_t first_column() const noexcept;

private:
    explicit Condition(std::shared_ptr<const ConditionProgram> program) : program_(std::move(program)) {}
    std::shared_ptr<const ConditionProgram> program_;
};

struct RuleSource {
    std::string condition;
    std::string mechanism;
    NamedValues options;
};

struct Rule {
    std::string condition_text;
    Condition condition;
    std::string mechanism;
    NamedValues options;
};

// Says whether the mechanism exists and takes the options; called with place "<file>: rules[i]" for every rule.
// Returns every problem it finds.
using RuleCheck = std::function<std::vector<Error>(const std::string& mechanism, const NamedValues& options,
                                                   const std::string& place)>;

struct CompiledRules {
    std::vector<Rule> rules;      // complete only if there are no problems
    std::vector<Error> problems;  // in the order of the rules
};

// Compiles a list of rules: every condition, the number of rules, rules behind `default` (UnreachableRule), and what
// `check` says about mechanisms and options.
[[nodiscard]] CompiledRules compile_rules(const std::string& file, std::span<const RuleSource> sources,
                                          const RuleCheck& check = {});

}  // namespace attend
