// SPDX-License-Identifier: Apache-2.0
// Lists of rules, the variables of a request, and the choice that both make together.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "attend/config/rules.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

using V = RuleVariable;
constexpr double infinity = std::numeric_limits<double>::infinity();

RuleVariables variables(const RequestFacts& facts, const RuleDefaults& defaults = {}) {
    auto result = RuleVariables::make(facts, defaults);
    if (!result.ok()) FAIL(result.error().message);
    return std::move(result).value();
}

std::string refused(const RequestFacts& facts) {
    const auto result = RuleVariables::make(facts, {}, "request");
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::option);
    return result.error().message;
}

std::vector<RuleSource> seed_rules() {
    return {{"seqLen > 32768", "longformer-attention", {}},
            {"seqLen > 8192", "linear-attention", {}},
            {"hierarchical", "hyperbolic-attention", {}},
            {"graph", "graph-attention", {}},
            {"moe", "moe-attention", {}},
            {"default", "flash-attention-v2", {}}};
}

std::string choose(const std::vector<Rule>& rules, const RequestFacts& facts) {
    const RuleVariables request = variables(facts);
    for (const Rule& rule : rules) {
        const auto matches = rule.condition.evaluate(request);
        if (matches.ok() && matches.value()) return rule.mechanism;
    }
    return "(none)";
}

std::vector<Rule> compiled(const std::vector<RuleSource>& sources) {
    CompiledRules result = compile_rules("f.json", sources);
    if (!result.problems.empty()) FAIL(result.problems.front().message);
    return std::move(result.rules);
}

}  // namespace

TEST_CASE("variables: defaults follow from what is supplied") {
    const RuleVariables v = variables({{"seqLen", 100.0}, {"heads", 8.0}});
    CHECK(v.number(V::seq_len_k) == 100);
    CHECK(v.number(V::batch_size) == 1);
    CHECK(v.number(V::kv_heads) == 8);
    CHECK(v.number(V::head_dim) == 64);
    CHECK(v.number(V::value_dim) == 64);
    CHECK(v.number(V::model_dim) == 512);
    CHECK(v.number(V::density) == 1);
    CHECK(v.number(V::query_complexity) == 0);
    CHECK(v.number(V::memory_budget) == infinity);
    CHECK(v.number(V::max_error) == infinity);
    CHECK(v.number(V::latency_budget_ms) == infinity);
    CHECK(v.text(V::device) == "cpu");
    CHECK(v.text(V::task_type).empty());
    CHECK_FALSE(v.flag(V::causal));
}

TEST_CASE("variables: the service supplies precision, back end and threads") {
    RuleDefaults defaults;
    defaults.threads = 12;
    defaults.precision = "bf16";
    defaults.backend = "avx2";
    const RuleVariables v = variables({{"seqLen", 1.0}}, defaults);
    CHECK(v.number(V::threads) == 12);
    CHECK(v.text(V::precision) == "bf16");
    CHECK(v.text(V::backend) == "avx2");
    CHECK(variables({{"seqLen", 1.0}, {"precision", std::string("fp16")}}, defaults).text(V::precision) == "fp16");
}

TEST_CASE("variables: crossAttention is true for other lengths and for keys of their own") {
    CHECK_FALSE(variables({{"seqLen", 10.0}}).flag(V::cross_attention));
    CHECK(variables({{"seqLen", 10.0}, {"seqLenK", 11.0}}).flag(V::cross_attention));
    RuleDefaults own_keys;
    own_keys.key_is_query = false;
    CHECK(variables({{"seqLen", 10.0}}, own_keys).flag(V::cross_attention));
    CHECK_FALSE(variables({{"seqLen", 10.0}, {"crossAttention", false}}, own_keys).flag(V::cross_attention));
}

TEST_CASE("variables: decode means few queries and many keys") {
    const auto decode = [](double queries, double keys) {
        return variables({{"seqLen", queries}, {"seqLenK", keys}}).flag(V::decode);
    };
    CHECK(decode(1, 64));
    CHECK_FALSE(decode(1, 63));
    CHECK(decode(16, 1024));
    CHECK_FALSE(decode(17, 100000));
    CHECK_FALSE(variables({{"seqLen", 1.0}, {"seqLenK", 64.0}, {"decode", false}}).flag(V::decode));
}

TEST_CASE("variables: scoreBytes is derived and cannot be supplied") {
    CHECK(variables({{"seqLen", 10.0}, {"seqLenK", 20.0}, {"heads", 3.0}, {"batchSize", 2.0}}).number(V::score_bytes) ==
          4800);
    CHECK(refused({{"seqLen", 10.0}, {"scoreBytes", 1.0}}).find("cannot be supplied") != std::string::npos);
    CHECK(refused({{"seqLen", 10.0}, {"score_bytes", 1.0}}).find("cannot be supplied") != std::string::npos);
}

TEST_CASE("variables: seqLen is required") {
    CHECK(refused({}) == "request: variable \"seqLen\" is missing; accepted: integer of at least 0");
    CHECK(variables({{"sequence_length", 5.0}}).number(V::seq_len) == 5);
    CHECK(variables({{"seqLen", 0.0}}).number(V::score_bytes) == 0);
}

TEST_CASE("variables: sizes and counts are whole, finite and not negative") {
    const double nan = std::nan("");
    for (const char* name : {"seqLenK", "batchSize", "heads", "kvHeads", "headDim", "valueDim", "modelDim",
                             "windowSize", "numEdges", "threads"}) {
        for (const double value : {-1.0, 1.5, nan, infinity, -infinity}) refused({{"seqLen", 1.0}, {name, value}});
        variables({{"seqLen", 1.0}, {name, 3.0}});
    }
    CHECK(refused({{"seqLen", -1.0}}) == "request: variable \"seqLen\" is -1; accepted: integer of at least 0");
    CHECK(refused({{"seqLen", 2.5}}).find("is 2.5") != std::string::npos);
}

TEST_CASE("variables: some amounts may be fractions, budgets may be infinite") {
    for (const char* name : {"density", "queryComplexity", "latencyBudgetMs", "maxError"}) {
        variables({{"seqLen", 1.0}, {name, 0.25}});
        refused({{"seqLen", 1.0}, {name, -0.25}});
        refused({{"seqLen", 1.0}, {name, std::nan("")}});
    }
    variables({{"seqLen", 1.0}, {"memoryBudget", infinity}});
    variables({{"seqLen", 1.0}, {"maxError", infinity}});
    refused({{"seqLen", 1.0}, {"memoryBudget", 0.5}});
}

TEST_CASE("variables: values have the variable's type") {
    refused({{"seqLen", true}});
    refused({{"seqLen", std::string("5")}});
    CHECK(refused({{"seqLen", 1.0}, {"causal", 1.0}}) == "request: variable \"causal\" is 1; accepted: true or false");
    refused({{"seqLen", 1.0}, {"causal", std::string("true")}});
    refused({{"seqLen", 1.0}, {"precision", 16.0}});
}

TEST_CASE("variables: unknown names and names given twice") {
    CHECK(refused({{"seqLen", 1.0}, {"batchSise", 2.0}}).find("did you mean \"batchSize\"") != std::string::npos);
    CHECK(refused({{"seqLen", 1.0}, {"sequenceLength", 1.0}}).find("given twice") != std::string::npos);
    CHECK(refused({{"seqLen", 1.0}, {"seq_len", 1.0}}).find("given twice") != std::string::npos);
}

TEST_CASE("variables: values from a command line") {
    CHECK(std::get<double>(rule_value_from_text("numEdges", "12")) == 12);
    CHECK(std::get<bool>(rule_value_from_text("hasMask", "true")));
    CHECK(std::get<std::string>(rule_value_from_text("precision", "fp16")) == "fp16");
    CHECK(std::get<std::string>(rule_value_from_text("precision", "\"fp16\"")) == "fp16");
    CHECK(std::get<std::string>(rule_value_from_text("taskType", "7")) == "7");
    CHECK(std::get<double>(rule_value_from_text("maxError", "infinity")) == infinity);
    CHECK(std::get<std::string>(rule_value_from_text("numEdges", "many")) == "many");
}

TEST_CASE("variables: the table lists every spelling once") {
    std::vector<std::string> all;
    for (const RuleVariableInfo& info : rule_variables()) {
        CHECK(&rule_variables()[static_cast<std::size_t>(info.id)] == &info);
        CHECK_FALSE(info.help.empty());
        CHECK_FALSE(info.default_text.empty());
        all.insert(all.end(), info.spellings.begin(), info.spellings.end());
        for (const std::string& spelling : info.spellings) CHECK(find_rule_variable(spelling) == &info);
    }
    CHECK(rule_variables().size() == rule_variable_count);
    std::sort(all.begin(), all.end());
    CHECK(std::adjacent_find(all.begin(), all.end()) == all.end());
    for (const char* taken :
         {"default", "and", "or", "not", "in", "true", "false", "min", "max", "abs", "floor", "ceil", "log2", "sqrt"}) {
        CHECK(find_rule_variable(taken) == nullptr);
    }
}

TEST_CASE("rule lists: the first match wins") {
    const auto rules = compiled(seed_rules());
    CHECK(choose(rules, {{"seqLen", 16384.0}}) == "linear-attention");
    CHECK(choose(rules, {{"seqLen", 32768.0}}) == "linear-attention");
    CHECK(choose(rules, {{"seqLen", 32769.0}}) == "longformer-attention");
    CHECK(choose(rules, {{"seqLen", 100.0}, {"hierarchical", true}}) == "hyperbolic-attention");
    CHECK(choose(rules, {{"seqLen", 100.0}, {"graph", true}}) == "graph-attention");
    CHECK(choose(rules, {{"seqLen", 100.0}, {"hierarchical", true}, {"graph", true}}) == "hyperbolic-attention");
    CHECK(choose(rules, {{"seqLen", 100.0}, {"moe", true}}) == "moe-attention");
    CHECK(choose(rules, {{"seqLen", 100.0}}) == "flash-attention-v2");
}

TEST_CASE("selection: shuffling changes the outcome only when two conditions hold together") {
    std::vector<RuleSource> sources = seed_rules();
    const auto original = compiled(sources);
    std::mt19937 random(7);
    std::size_t changed = 0;
    for (int round = 0; round < 20; ++round) {
        std::shuffle(sources.begin(), sources.end() - 1, random);
        const auto shuffled = compiled(sources);
        for (int sample = 0; sample < 50; ++sample) {
            RequestFacts facts{{"seqLen", std::floor(std::exp2(static_cast<double>(random() % 1700) / 100.0))}};
            for (const char* flag : {"hierarchical", "graph", "moe"}) facts[flag] = random() % 3 == 0;
            const RuleVariables request = variables(facts);
            const auto matches = std::count_if(original.begin(), original.end() - 1, [&](const Rule& rule) {
                return rule.condition.evaluate(request).value();
            });
            const bool same = choose(original, facts) == choose(shuffled, facts);
            if (matches < 2) CHECK(same);
            changed += same ? 0U : 1U;
        }
    }
    CHECK(changed > 0);
}

TEST_CASE("rule lists: a rule behind default cannot be reached") {
    const std::vector<RuleSource> sources{{"default", "a", {}}, {" moe", "b", {}}, {"default", "c", {}}};
    const CompiledRules result = compile_rules("f.json", sources);
    REQUIRE(result.problems.size() == 2);
    CHECK(result.problems[0].code == ErrorCode::rule);
    CHECK(result.problems[0].message.rfind(
              "f.json: rules[1].condition: column 2: UnreachableRule: rules[0] is \"default\"", 0) == 0);
    CHECK(result.problems[0].hint == " moe\n ^");
    CHECK(result.problems[1].message.rfind("f.json: rules[2].condition: column 1: UnreachableRule", 0) == 0);
}

TEST_CASE("rule lists: all problems are collected, with the number of their rule") {
    const std::vector<RuleSource> sources{
        {"graf", "a", {}}, {"moe", "nobody", {}}, {"seqLen >", "a", {{"x", Json(1)}}}};
    const RuleCheck check = [](const std::string& mechanism, const NamedValues& options, const std::string& place) {
        std::vector<Error> problems;
        if (mechanism == "nobody") problems.push_back({ErrorCode::rule, place + ".mechanism: unknown mechanism", {}});
        if (!options.empty()) problems.push_back({ErrorCode::rule, place + ".options: unknown option", {}});
        return problems;
    };
    const CompiledRules result = compile_rules("f.json", sources, check);
    REQUIRE(result.problems.size() == 4);
    CHECK(result.problems[0].message.rfind("f.json: rules[0].condition: column 1:", 0) == 0);
    CHECK(result.problems[1].message == "f.json: rules[1].mechanism: unknown mechanism");
    CHECK(result.problems[2].message.rfind("f.json: rules[2].condition: column 9:", 0) == 0);
    CHECK(result.problems[3].message == "f.json: rules[2].options: unknown option");
}

TEST_CASE("rule lists: 1024 rules are accepted, 1025 are refused") {
    std::vector<RuleSource> sources(1024, {"moe", "a", {}});
    CHECK(compile_rules("f.json", sources).problems.empty());
    sources.push_back({"moe", "a", {}});
    const CompiledRules result = compile_rules("f.json", sources);
    REQUIRE(result.problems.size() == 1);
    CHECK(result.problems[0].message == "f.json: rules: there are 1025 rules; accepted: up to 1024");
}
