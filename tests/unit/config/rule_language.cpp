// SPDX-License-Identifier: Apache-2.0
// What conditions mean: precedence, types, units, variables, arithmetic, limits.
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attend/config/rules.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

RuleVariables variables(RequestFacts facts = {}, const RuleDefaults& defaults = {}) {
    facts.try_emplace("seqLen", 1024.0);
    auto result = RuleVariables::make(facts, defaults);
    if (!result.ok()) FAIL(result.error().message);
    return std::move(result).value();
}

Condition compiled(const std::string& text) {
    auto result = Condition::compile(text, "f.json: rules[0].condition");
    if (!result.ok()) FAIL(result.error().message << "\n" << result.error().hint);
    return std::move(result).value();
}

bool holds(const std::string& text, const RequestFacts& facts = {}) {
    const auto result = compiled(text).evaluate(variables(facts));
    if (!result.ok()) FAIL(result.error().message);
    return result.value();
}

std::string evaluation_error(const std::string& text, const RequestFacts& facts = {}) {
    const auto result = compiled(text).evaluate(variables(facts));
    INFO(text);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::rule);
    return result.error().message;
}

bool compiles(const std::string& text) { return Condition::compile(text, "place").ok(); }

}  // namespace

TEST_CASE("selection: not binds weaker than a comparison") {
    CHECK(holds("not seqLen > 2000"));
    CHECK_FALSE(holds("not seqLen > 1000"));
    CHECK_FALSE(compiles("(not seqLen) > 1000"));
}

TEST_CASE("selection: not binds tighter than and, and tighter than or") {
    CHECK_FALSE(holds("not true and false"));
    CHECK(holds("not (true and false)"));
    CHECK(holds("true or true and false"));
    CHECK_FALSE(holds("(true or true) and false"));
    CHECK(holds("not false or true"));
    CHECK(holds("not (false or false)"));
}

TEST_CASE("selection: symbols are the same operators as words") {
    CHECK(holds("!false && (true || false)"));
    CHECK(holds("not not true"));
    CHECK(holds("!!true"));
    CHECK(holds("true&&!false"));
}

TEST_CASE("selection: arithmetic precedence and association") {
    CHECK(holds("2 + 3 * 4 == 14"));
    CHECK(holds("(2 + 3) * 4 == 20"));
    CHECK(holds("10 - 3 - 2 == 5"));
    CHECK(holds("100 / 10 / 5 == 2"));
    CHECK(holds("2 * 7 % 4 == 2"));
    CHECK(holds("- 2 * 3 == -6"));
    CHECK(holds("--2 == 2"));
    CHECK(holds("1 - -1 == 2"));
    CHECK(holds("1 + 1 < 3 and 4 > 2 + 1"));
}

TEST_CASE("selection: the remainder is floored") {
    CHECK(holds("7 % 3 == 1"));
    CHECK(holds("-7 % 3 == 2"));
    CHECK(holds("7 % -3 == -2"));
    CHECK(holds("-7 % -3 == -1"));
    CHECK(holds("5.5 % 2 == 1.5"));
    CHECK(holds("-6 % 3 == 0"));
}

TEST_CASE("selection: units of numbers") {
    CHECK(holds("8Ki == 8192"));
    CHECK(holds("8K == 8000"));
    CHECK(holds("1Mi == 1024 * 1024 and 1M == 1000000"));
    CHECK(holds("1Gi == 1Ki * 1Mi and 1G == 1000M"));
    CHECK(holds("0.5Ki == 512 and 1.5K == 1500"));
    CHECK(holds("1e3 == 1K and 1E+3 == 1000 and 5e-1 == 0.5 and 1e1Ki == 10240"));
}

TEST_CASE("selection: numbers beyond a double are infinity or zero") {
    CHECK(holds("1e999 == memoryBudget"));
    CHECK(holds("1e-999 == 0"));
    CHECK(holds("1e308G > 1e308"));
}

TEST_CASE("selection: and, or stop as soon as the result is known") {
    CHECK_FALSE(holds("false and 1/0 > 0"));
    CHECK(holds("true or 1/0 > 0"));
    CHECK_FALSE(holds("true and false and 1/0 > 0"));
    CHECK(holds("false or true or 1/0 > 0"));
    evaluation_error("true and 1/0 > 0");
    evaluation_error("1/0 > 0 and false");
}

TEST_CASE("selection: comparisons") {
    CHECK(holds("1 < 2 and 2 <= 2 and 3 > 2 and 3 >= 3 and 1 == 1 and 1 != 2"));
    CHECK(holds("0.1 + 0.2 != 0.3"));
    CHECK(holds("true == true and true != false and (1 < 2) == true"));
    CHECK(holds("'a' == \"a\" and 'a' != 'A'"));
}

TEST_CASE("selection: strings hold anything but their quote") {
    CHECK(holds("taskType == \"it's\"", {{"taskType", std::string("it's")}}));
    CHECK(holds("taskType == 'say \"x\"'", {{"taskType", std::string("say \"x\"")}}));
    CHECK(holds("taskType == 'a\\n'", {{"taskType", std::string("a\\n")}}));
    CHECK(holds("taskType == 'gr\xc3\xbc\xc3\x9f'", {{"taskType", std::string("gr\xc3\xbc\xc3\x9f")}}));
    CHECK(holds("taskType == ''"));
}

TEST_CASE("selection: membership in sets") {
    CHECK(holds("seqLen in [512, 1Ki, 2048]"));
    CHECK_FALSE(holds("seqLen not in [512, 1Ki]"));
    CHECK(holds("seqLen not in [1]"));
    CHECK(holds("precision in ['fp16', 'fp32']"));
    CHECK(holds("seqLen / 2 in [500 + 12]"));
    CHECK(holds("causal in [true, false]"));
    CHECK(holds("not seqLen in [1]"));
}

TEST_CASE("selection: every member of a set is evaluated") { evaluation_error("1 in [1, 1/0]"); }

TEST_CASE("selection: functions") {
    CHECK(holds("min(3, 1, 2) == 1 and max(3, 1, 2) == 3"));
    CHECK(holds("abs(-3) == 3 and floor(-1.5) == -2 and ceil(-1.5) == -1"));
    CHECK(holds("log2(1024) == 10 and sqrt(81) == 9 and sqrt(0) == 0"));
    CHECK(holds("max(seqLen, min(5000, seqLenK * 3)) == 3072"));
}

TEST_CASE("selection: evaluation errors") {
    for (const char* text :
         {"1 / 0 > 0", "0 / 0 > 0", "1 % 0 > 0", "log2(0) < 0", "log2(-1) < 0", "sqrt(-1) > 0",
          "memoryBudget - memoryBudget == 0", "0 * memoryBudget == 0", "memoryBudget / memoryBudget == 1",
          "memoryBudget % 2 == 0", "memoryBudget + -memoryBudget == 0"}) {
        const std::string message = evaluation_error(text);
        CHECK(message.rfind("f.json: rules[0].condition: ", 0) == 0);
        CHECK(message.find("column") == std::string::npos);
    }
}

TEST_CASE("selection: overflow to infinity is no error") {
    CHECK(holds("1e308 * 10 > 1e308"));
    CHECK(holds("1e308 * 10 == memoryBudget"));
    CHECK(holds("-1e308 * 10 < 0"));
    CHECK(holds("floor(memoryBudget) == memoryBudget and 1 / memoryBudget == 0 and 5 % memoryBudget == 5"));
}

TEST_CASE("selection: both spellings and the aliases are one variable") {
    const RequestFacts facts{{"seqLen", 777.0}, {"hierarchical", true}, {"graph", true}, {"moe", true}};
    CHECK(holds("seqLen == 777 and seq_len == 777 and sequenceLength == 777 and sequence_length == 777", facts));
    CHECK(holds("isHierarchical and is_hierarchical and hasGraphStructure and has_graph_structure and isMoe and is_moe",
                facts));
    CHECK(holds("seqLenK == seq_len_k and headDim == head_dim and latencyBudgetMs == latency_budget_ms"));
    CHECK_FALSE(compiles("SeqLen > 1"));
    CHECK_FALSE(compiles("seqlen > 1"));
    CHECK_FALSE(compiles("seq_lenK > 1"));
}

TEST_CASE("selection: blanks separate, line ends and tabs are blanks") {
    CHECK(holds("\tseqLen\n>\r\n1000 \t"));
    CHECK(holds("seqLen>1000 and(causal==false)"));
}

TEST_CASE("selection: a number may not be followed by a letter, digit or underscore") {
    for (const char* text : {"seqLen > 1000and causal", "seqLen > 8k", "seqLen > 8Kib", "seqLen > 8KK",
                             "seqLen > 1_000", "seqLen > 0x10"}) {
        CHECK_FALSE(compiles(text));
    }
    CHECK(compiles("seqLen > 8Ki and causal"));
    CHECK(compiles("seqLen>8Ki&&causal"));
}

TEST_CASE("selection: keywords are case-sensitive") {
    CHECK_FALSE(compiles("True"));
    CHECK_FALSE(compiles("causal AND moe"));
    CHECK_FALSE(compiles("Default"));
    CHECK_FALSE(compiles("causal Or moe"));
}

TEST_CASE("selection: default stands alone") {
    CHECK(compiled("default").is_default());
    CHECK(compiled("  default\n").is_default());
    CHECK(compiled("default").evaluate(variables()).value());
    CHECK_FALSE(compiled("true").is_default());
    CHECK_FALSE(compiles("default or true"));
    CHECK_FALSE(compiles("not default"));
    CHECK_FALSE(compiles("(default)"));
}

TEST_CASE("selection: 64 levels are accepted, 65 are refused") {
    const auto wrap = [](const std::string& open, const std::string& inner, const std::string& close,
                         std::size_t levels) {
        std::string text;
        for (std::size_t i = 0; i < levels; ++i) text += open;
        text += inner;
        for (std::size_t i = 0; i < levels; ++i) text += close;
        return text;
    };
    const std::vector<std::array<std::string, 3>> kinds{
        {"(", "causal", ")"}, {"not ", "causal", ""}, {"!", "causal", ""}};
    for (const auto& [open, inner, close] : kinds) {
        CHECK(compiles(wrap(open, inner, close, 64)));
        const auto refused = Condition::compile(wrap(open, inner, close, 65), "f.json: rules[0].condition");
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().message.find("nested too deeply") != std::string::npos);
        CHECK(refused.error().message.find("column") == std::string::npos);
    }
    CHECK(compiles("1 == " + wrap("abs(", "1", ")", 64)));
    CHECK_FALSE(compiles("1 == " + wrap("abs(", "1", ")", 65)));
    CHECK(compiles("1 == " + wrap("- ", "1", "", 64)));
    CHECK_FALSE(compiles("1 == " + wrap("- ", "1", "", 65)));
    // The four kinds count together.
    CHECK(compiles(wrap("not (", "1 == " + wrap("-abs(", "1", ")", 16), ")", 16)));
    CHECK_FALSE(compiles(wrap("not (", "1 == -" + wrap("-abs(", "1", ")", 16), ")", 16)));
    // Levels that are closed again do not count.
    std::string wide = "(causal)";
    for (int i = 0; i < 200; ++i) wide += " or (causal)";
    CHECK(compiles(wide));
}

TEST_CASE("selection: 4096 bytes are accepted, 4097 are refused") {
    const std::string text = "causal";
    CHECK(compiles(text + std::string(4096 - text.size(), ' ')));
    const auto refused = Condition::compile(text + std::string(4097 - text.size(), ' '), "f.json: rules[0].condition");
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message == "f.json: rules[0].condition: the condition has 4097 bytes; accepted: up to 4096");
}

TEST_CASE("selection: the longest chains compile and evaluate") {
    std::string sum = "0==1";
    while (sum.size() + 2 <= max_condition_bytes) sum += "-1";
    CHECK_FALSE(holds(sum));
    std::string chain = "moe";
    while (chain.size() + 5 <= max_condition_bytes) chain += "||moe";
    CHECK_FALSE(holds(chain));
    std::string set = "0 in [1";
    while (set.size() + 3 <= max_condition_bytes) set += ",1";
    CHECK_FALSE(holds(set + "]"));
}

TEST_CASE("selection: a copy of a condition works like the original") {
    const Condition original = compiled("seqLen > 1000");
    const Condition copy = original;
    CHECK(copy.evaluate(variables()).value());
    CHECK(copy.text() == "seqLen > 1000");
    CHECK(copy.place() == "f.json: rules[0].condition");
}

TEST_CASE("selection: 64 rules are evaluated in less than a tenth of a millisecond") {
    std::vector<Condition> conditions;
    for (int i = 0; i < 64; ++i) {
        conditions.push_back(compiled("not (causal or moe) and max(seqLen, seqLenK) > 8Ki * " + std::to_string(i + 1) +
                                      " and precision in ['fp16', 'bf16'] or scoreBytes > memoryBudget / 2"));
    }
    const RuleVariables request = variables();
    std::size_t matches = 0;
    double best_ms = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 50; ++repeat) {
        const auto begin = std::chrono::steady_clock::now();
        for (const Condition& condition : conditions) matches += condition.evaluate(request).value() ? 1U : 0U;
        const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
        best_ms = std::min(best_ms, time.count());
    }
    CHECK(matches == 0);
    CHECK(best_ms < 0.1);
}
