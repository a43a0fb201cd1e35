// SPDX-License-Identifier: Apache-2.0
#include "recommend_request.hpp"

#include <algorithm>

#include "errors.hpp"

namespace attend::cli {

void declare_flags(const Command& command, RequestFlags& request) {
    command.add_option("--sequence-length", request.sequence_length, "Queries (variable seqLen)").type_name("N");
    command.add_option("--sequence-length-k", request.sequence_length_k, "Keys (seqLenK); default: as many as queries")
        .type_name("M");
    command.add_option("--batch", request.batch, "Items (batchSize)").type_name("B");
    command.add_option("--heads", request.heads, "Query heads (heads)").type_name("H");
    command.add_option("--dim", request.dim, "Width of a head (headDim)").type_name("D");
    command.add_flag("--causal", request.causal, "Keys after the query are hidden (causal)");
    command.add_flag("--hierarchical", request.hierarchical, "The data form a hierarchy (hierarchical)");
    command.add_flag("--graph", request.graph, "A graph will be supplied (graph)");
    command.add_flag("--moe", request.moe, "Experts are wanted (moe)");
    command.add_option("--max-error", request.max_error, "Largest error bound that is accepted (maxError)")
        .type_name("E");
    command.add_option("--memory-budget", request.memory_budget, "Bytes that the call may use (memoryBudget)")
        .type_name("BYTES");
    command
        .add_option("--task", request.task,
                    "A kind of task: code-analysis, memory-retrieval, long-context, swarm-coordination, or any other")
        .type_name("NAME");
    command.add_option("--var", request.variables, "Any variable of the rules, repeatable")
        .type_name("NAME=VALUE")
        .allow_extra_args(false);
}

Result<RequestFacts> facts_of(const RequestFlags& request) {
    RequestFacts facts;
    // One variable, whichever of its spellings was used, may come once.
    const auto supply = [&](const std::string& place, const std::string& name, RuleValue value) -> Result<void> {
        const RuleVariableInfo* info = find_rule_variable(name);
        for (const auto& [known, unused] : facts)
            if (known == name || (info != nullptr && find_rule_variable(known) == info))
                return wrong_use(place + ": variable \"" + name + "\" is given twice; accepted: every variable once");
        facts.emplace(name, std::move(value));
        return {};
    };
    struct Number {
        const char *flag, *variable;
        const std::optional<std::string>* text;
    };
    for (const Number& number :
         {Number{"--sequence-length", "seqLen", &request.sequence_length},
          Number{"--sequence-length-k", "seqLenK", &request.sequence_length_k},
          Number{"--batch", "batchSize", &request.batch}, Number{"--heads", "heads", &request.heads},
          Number{"--dim", "headDim", &request.dim}, Number{"--max-error", "maxError", &request.max_error},
          Number{"--memory-budget", "memoryBudget", &request.memory_budget}}) {
        if (!*number.text) continue;
        RuleValue value = rule_value_from_text(number.variable, **number.text);
        if (!std::holds_alternative<double>(value))
            return wrong_use(std::string(number.flag) + ": is \"" + **number.text + "\"; accepted: a number");
        if (auto done = supply(number.flag, number.variable, std::move(value)); !done) return done.error();
    }
    for (const auto& [variable, given] :
         {std::pair("causal", request.causal), std::pair("hierarchical", request.hierarchical),
          std::pair("graph", request.graph), std::pair("moe", request.moe)})
        if (given)
            if (auto done = supply(std::string("--") + variable, variable, true); !done) return done.error();
    for (const std::string& text : request.variables) {
        const std::size_t equals = text.find('=');
        if (equals == std::string::npos || equals == 0)
            return wrong_use("--var: is \"" + text + "\"; accepted: NAME=VALUE");
        const std::string name = text.substr(0, equals);
        if (find_rule_variable(name) == nullptr) {
            std::vector<std::string> known;
            for (const RuleVariableInfo& info : rule_variables()) known.push_back(info.name);
            return unknown_name("--var", "variable", name, known);
        }
        if (auto done = supply("--var", name, rule_value_from_text(name, text.substr(equals + 1))); !done)
            return done.error();
    }
    if (request.task) return facts;  // a task may do without a length
    const RuleVariableInfo* length = find_rule_variable("seqLen");
    if (std::none_of(facts.begin(), facts.end(),
                     [&](const auto& fact) { return find_rule_variable(fact.first) == length; }))
        return wrong_use("recommend: the length of the sequence is missing; accepted: --sequence-length N");
    return facts;
}

}  // namespace attend::cli
