// SPDX-License-Identifier: Apache-2.0
// Compile errors of conditions: which token they name, and how they show it.
#include <string>
#include <vector>

#include "attend/config/rules.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

Error compile_error(const std::string& text) {
    const auto result = Condition::compile(text, "f.json: rules[3].condition");
    INFO(text);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::rule);
    return result.error();
}

// The column that the message names; 0 if it names none.
std::size_t column(const std::string& text) {
    const std::string message = compile_error(text).message;
    const std::string prefix = "f.json: rules[3].condition: column ";
    if (message.rfind(prefix, 0) != 0) return 0;
    return static_cast<std::size_t>(std::stoul(message.substr(prefix.size())));
}

bool says(const std::string& text, const std::string& part) {
    return compile_error(text).message.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("selection: errors name the column, with a caret below it") {
    const Error error = compile_error("seqLen > 8Ki and caussal");
    CHECK(error.message ==
          "f.json: rules[3].condition: column 18: unknown variable \"caussal\"; did you mean \"causal\"?");
    CHECK(error.hint == "seqLen > 8Ki and caussal\n                 ^");
}

TEST_CASE("rule errors: the end of the text is length + 1") {
    CHECK(column("") == 1);
    CHECK(column("   ") == 4);
    CHECK(column("seqLen >") == 9);
    CHECK(column("seqLen > ") == 10);
    CHECK(column("(causal") == 8);
    CHECK(column("min(1, 2") == 9);
    CHECK(column("seqLen in") == 10);
    CHECK(column("seqLen in [1") == 13);
    CHECK(column("not") == 4);
    CHECK(column("causal and") == 11);
    CHECK(column("-") == 2);
    CHECK(column("causal not") == 11);
}

TEST_CASE("rule errors: an unexpected token") {
    CHECK(column("causal moe") == 8);
    CHECK(column("causal and and moe") == 12);
    CHECK(column("seqLen > > 3") == 10);
    CHECK(column(")") == 1);
    CHECK(column("(causal))") == 9);
    CHECK(column("causal]") == 7);
    CHECK(column("min()") == 5);
    CHECK(column("min(1,)") == 7);
    CHECK(column("seqLen in []") == 12);
    CHECK(column("seqLen in [1,]") == 14);
    CHECK(column("seqLen in 3") == 11);
    CHECK(column("seqLen in (1)") == 11);
    CHECK(column("causal not moe") == 12);
    CHECK(column("causal ! in [true]") == 8);
    CHECK(column("seqLen > not 3") == 10);
    CHECK(column("+ 3 > 2") == 1);
    CHECK(column("1, 2") == 2);
    CHECK(column("8 K > seqLen") == 3);
    CHECK(column("'a' 'b'") == 5);
}

TEST_CASE("rule errors: an unexpected character") {
    CHECK(column("seqLen # 3") == 8);
    CHECK(column("seqLen = 3") == 8);
    CHECK(says("seqLen = 3", "=="));
    CHECK(column("causal & moe") == 8);
    CHECK(column("causal | moe") == 8);
    CHECK(column("$x") == 1);
    CHECK(column("_x > 1") == 1);
    CHECK(column(".5 > 1") == 1);
    CHECK(column("seqLen \\ 2") == 8);
    CHECK(column(std::string("moe\0", 4)) == 4);
    CHECK(column("moe \xc3\xa9") == 5);
}

TEST_CASE("rule errors: the leftmost fault is reported") {
    CHECK(column("causal moe # '") == 8);
    CHECK(column("seqLen > 5x and #") == 11);
}

TEST_CASE("rule errors: a malformed number names the character that does not fit") {
    CHECK(column("seqLen > 12abc") == 12);
    CHECK(column("seqLen > 1.") == 12);
    CHECK(column("seqLen > 1.x") == 12);
    CHECK(column("seqLen > 1..2") == 12);
    CHECK(column("seqLen > 1.2.3") == 13);
    CHECK(column("seqLen > 1e") == 12);
    CHECK(column("seqLen > 1eK") == 12);
    CHECK(column("seqLen > 1e+") == 13);
    CHECK(column("seqLen > 1e5e3") == 13);
    CHECK(column("seqLen > 8k") == 11);
    CHECK(column("seqLen > 8Kib") == 13);
    CHECK(column("seqLen > 8Kx") == 12);
    CHECK(column("seqLen > 8Mi5") == 13);
    CHECK(column("seqLen > 1_000") == 11);
}

TEST_CASE("rule errors: an open string names its quote") {
    CHECK(column("precision == 'fp16") == 14);
    CHECK(column("precision == \"fp16'") == 14);
    CHECK(column("precision in ['a', 'b]") == 20);
    CHECK(column("'") == 1);
}

TEST_CASE("rule errors: comparisons do not chain") {
    CHECK(column("1 < seqLen < 3") == 12);
    CHECK(says("1 < seqLen < 3", "do not chain"));
    CHECK(column("1 == 1 == true") == 8);
    CHECK(column("seqLen in [1] in [2]") == 15);
    CHECK(column("seqLen in [1] not in [2]") == 15);
    CHECK(column("seqLen > 1 in [true]") == 12);
}

TEST_CASE("rule errors: an unknown variable gets the nearest names") {
    CHECK(column("seqLn > 3") == 1);
    CHECK(says("seqLn > 3", "unknown variable \"seqLn\"; did you mean \"seqLen\""));
    CHECK(says("sequence_lenght > 3", "\"sequenceLength\""));
    CHECK(column("causal and graf") == 12);
    CHECK(column("seqLen > zzzzzzz") == 10);
    CHECK(column("fp16 == precision") == 1);
}

TEST_CASE("rule errors: an unknown function, a variable that is called, a function that is not") {
    CHECK(column("1 + maxi(1, 2) > 0") == 5);
    CHECK(says("maxi(1, 2) > 0", "unknown function \"maxi\"; did you mean \"max\""));
    CHECK(column("seqLen(3) > 0") == 1);
    CHECK(says("seqLen(3) > 0", "is a variable, not a function"));
    CHECK(column("1 < min") == 5);
    CHECK(says("1 < min", "is a function"));
}

TEST_CASE("rule errors: a wrong number of arguments names the function") {
    CHECK(column("0 < min(1)") == 5);
    CHECK(says("0 < min(1)", "two or more"));
    CHECK(column("0 < abs(1, 2)") == 5);
    CHECK(says("0 < abs(1, 2)", "it takes one"));
    CHECK(column("0 < 1 + sqrt(1, 2, 3)") == 9);
}

TEST_CASE("rule errors: a wrong argument type names the function") {
    CHECK(column("0 < abs(causal)") == 5);
    CHECK(column("0 < max(1, 'x')") == 5);
    CHECK(column("0 < floor(1 < 2)") == 5);
}

TEST_CASE("rule errors: a type error names the operator") {
    CHECK(column("seqLen and causal") == 8);
    CHECK(column("causal and seqLen") == 8);
    CHECK(column("causal and moe and seqLen") == 16);
    CHECK(column("causal or 'x'") == 8);
    CHECK(column("causal || 1") == 8);
    CHECK(column("not seqLen") == 1);
    CHECK(column("causal and not seqLen") == 12);
    CHECK(column("! 'x'") == 1);
    CHECK(column("-causal == 1") == 1);
    CHECK(column("causal + 1 > 0") == 8);
    CHECK(column("1 + 2 * 'x' > 0") == 7);
    CHECK(column("1 - 2 + causal > 0") == 7);
    CHECK(column("precision < 'x'") == 11);
    CHECK(column("causal >= moe") == 8);
    CHECK(column("seqLen == '1'") == 8);
    CHECK(column("seqLen != true") == 8);
    CHECK(column("precision == causal") == 11);
}

TEST_CASE("rule errors: members of a set have the type of the left side") {
    CHECK(column("seqLen in ['a']") == 8);
    CHECK(column("precision in ['a', 1]") == 11);
    CHECK(column("precision not in [1]") == 15);
    CHECK(says("precision in ['a', 1]", "all must have one type"));
}

TEST_CASE("rule errors: a condition that is no bool names its first token") {
    CHECK(column("seqLen + 1") == 1);
    CHECK(column("  'x'") == 3);
    CHECK(column("(seqLen)") == 1);
    CHECK(column("\n -3") == 3);
    CHECK(says("seqLen", "the condition is a number"));
    CHECK(says("precision", "the condition is a string"));
}

TEST_CASE("rule errors: names and types are checked inside out, from left to right") {
    CHECK(column("causal + graf > 0") == 10);
    CHECK(column("graf > 0 and seqLen") == 1);
    CHECK(column("seqLen and graf > 0") == 12);
}

TEST_CASE("rule errors: syntax comes before names and types") { CHECK(column("graf > 0 and )") == 14); }

TEST_CASE("rule errors: default takes nothing behind it") {
    CHECK(column("default and causal") == 9);
    CHECK(column("default 1x") == 10);
    CHECK(column("causal or default") == 11);
    CHECK(column("(default)") == 2);
}

TEST_CASE("rule errors: columns count characters, not bytes") {
    const Error error = compile_error("taskType == '\xc3\xa4\xc3\xb6\xe2\x82\xac' and graf");
    CHECK(error.message.find("column 23:") != std::string::npos);
    CHECK(error.hint.substr(error.hint.find('\n') + 1) == std::string(22, ' ') + "^");
}

TEST_CASE("rule errors: the caret stays under its token when the condition has tabs and line ends") {
    CHECK(compile_error("\tcausal\nand graf").hint == " causal and graf\n            ^");
}

TEST_CASE("rule errors: limits name no column") {
    const Error error = compile_error(std::string(65, '(') + "causal" + std::string(65, ')'));
    CHECK(error.message.rfind("f.json: rules[3].condition: nested", 0) == 0);
    CHECK(error.hint.empty());
}
