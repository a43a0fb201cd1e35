// SPDX-License-Identifier: Apache-2.0
// A list of rules: compiled, and checked for what no single condition shows.
#include "attend/config/rules.hpp"

#include "rule_language/ast.hpp"

namespace attend {

CompiledRules compile_rules(const std::string& file, std::span<const RuleSource> sources, const RuleCheck& check) {
    CompiledRules result;
    if (sources.size() > max_rules) {
        result.problems.push_back(Error{ErrorCode::rule,
                                        file + ": rules: there are " + std::to_string(sources.size()) +
                                            " rules; accepted: up to " + std::to_string(max_rules),
                                        {}});
        return result;
    }
    std::optional<std::size_t> default_rule;
    result.rules.reserve(sources.size());
    for (std::size_t i = 0; i < sources.size(); ++i) {
        const RuleSource& source = sources[i];
        const std::string place = file + ": rules[" + std::to_string(i) + "]";
        auto condition = Condition::compile(source.condition, place + ".condition");
        if (!condition.ok()) {
            result.problems.push_back(condition.error());
        } else if (default_rule) {
            const std::size_t column = condition->first_column();
            result.problems.push_back(
                Error{ErrorCode::rule,
                      place + ".condition: column " + std::to_string(column) + ": UnreachableRule: rules[" +
                          std::to_string(*default_rule) +
                          "] is \"default\" and matches always; \"default\" must be the last rule",
                      rule_language::caret_hint(source.condition, column)});
        } else if (condition->is_default()) {
            default_rule = i;
        }
        if (check) {
            for (Error& problem : check(source.mechanism, source.options, place)) {
                result.problems.push_back(std::move(problem));
            }
        }
        if (condition.ok()) {
            result.rules.push_back(
                Rule{source.condition, std::move(condition).value(), source.mechanism, source.options});
        }
    }
    return result;
}

}  // namespace attend
