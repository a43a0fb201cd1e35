// SPDX-License-Identifier: Apache-2.0
// What lexer, parser, checker and evaluator of conditions hand to one another. Internal to the rule language.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attend/config/rules.hpp"

namespace attend::rule_language {

// Where and why a condition does not compile. Limits have no place.
struct Failure {
    std::optional<std::size_t> offset;  // in bytes from the beginning of the condition
    std::string message;
};

enum class TokenKind {
    end,
    invalid,
    number,
    text,
    word,
    keyword_default,
    keyword_and,
    keyword_or,
    keyword_not,
    keyword_in,
    keyword_true,
    keyword_false,
    less,
    less_equal,
    greater,
    greater_equal,
    equal,
    not_equal,
    plus,
    minus,
    times,
    divide,
    remainder,
    open,
    close,
    open_set,
    close_set,
    comma
};

struct Token {
    TokenKind kind{TokenKind::end};
    std::size_t offset{0};
    std::string_view source;  // as written
    double number{0.0};
    std::string_view text;   // a string without its quotes
    Failure failure;         // of an invalid token
    bool symbol_not{false};  // "!" instead of "not": the same operator, but not part of "not in"
};

class Lexer {
public:
    explicit Lexer(std::string_view source) : source_(source) {}
    [[nodiscard]] Token next();

private:
    [[nodiscard]] Token number();
    [[nodiscard]] Token string();
    [[nodiscard]] Token invalid(std::size_t offset, std::string message) const;
    [[nodiscard]] char at(std::size_t offset) const { return offset < source_.size() ? source_[offset] : '\0'; }

    std::string_view source_;
    std::size_t position_{0};
};

// A character or token as a message shows it.
[[nodiscard]] std::string shown(std::string_view source, std::size_t offset);

// The condition and, below it, a caret under a column. Line ends and tabs become blanks, or the caret would be moved.
[[nodiscard]] std::string caret_hint(std::string_view source, std::size_t column);

enum class NodeKind {
    number,
    text,
    boolean,
    variable,
    call,
    negate,
    logical_not,
    logical_and,
    logical_or,
    compare,
    in,
    arithmetic
};

enum class Function { min, max, abs, floor, ceil, log2, sqrt };
[[nodiscard]] const std::vector<std::string>& function_names();  // in the order of the enumeration
[[nodiscard]] std::optional<Function> find_function(std::string_view name);

using NodeIndex = std::uint32_t;

struct Operator {
    TokenKind kind;
    std::size_t offset;
};

// Operators of one level stand in one node with all their operands (a - b + c is one node), so that the depth of
// the tree is bounded by the depth limit of the language and not by the length of the text.
struct Node {
    NodeKind kind;
    std::size_t offset{0};            // of the atom, the function or the prefix operator
    double number{0.0};               // number, boolean
    std::string_view text;            // text; the name of a variable or function
    bool negated{false};              // "not in"
    std::vector<NodeIndex> operands;  // of `in`: the left side, then the members
    std::vector<Operator> operators;  // between the operands
    RuleType type{RuleType::number};  // filled in by the checker
    RuleVariable variable{RuleVariable::seq_len};
    Function function{Function::min};
};

struct Syntax {
    bool is_default{false};
    std::size_t first_offset{0};  // of the first token
    std::vector<Node> nodes;
    NodeIndex root{0};
};

// Grammar only: names and types are looked at by check().
[[nodiscard]] std::optional<Failure> parse(std::string_view source, Syntax& syntax);

// Resolves names and computes types.
[[nodiscard]] std::optional<Failure> check(Syntax& syntax);

}  // namespace attend::rule_language
