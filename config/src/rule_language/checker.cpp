// SPDX-License-Identifier: Apache-2.0
// Names and types of a parsed condition. There is no implicit conversion; every complaint names one token.
#include <algorithm>

#include "attend/config/names.hpp"
#include "rule_language/ast.hpp"

namespace attend::rule_language {
namespace {

const char* operator_text(TokenKind kind) {
    switch (kind) {
        case TokenKind::keyword_and: return "and";
        case TokenKind::keyword_or: return "or";
        case TokenKind::less: return "<";
        case TokenKind::less_equal: return "<=";
        case TokenKind::greater: return ">";
        case TokenKind::greater_equal: return ">=";
        case TokenKind::equal: return "==";
        case TokenKind::not_equal: return "!=";
        case TokenKind::plus: return "+";
        case TokenKind::minus: return "-";
        case TokenKind::times: return "*";
        case TokenKind::divide: return "/";
        case TokenKind::remainder: return "%";
        default: return "?";
    }
}

std::string in_quotes(std::string_view text) {
    std::string result = "\"";
    result += text;
    result += '"';
    return result;
}

class Checker {
public:
    explicit Checker(Syntax& syntax) : syntax_(syntax) {}

    std::optional<Failure> run() {
        visit(syntax_.root);
        if (!failure_ && syntax_.nodes[syntax_.root].type != RuleType::boolean) {
            fail(syntax_.first_offset, std::string("the condition is a ") +
                                           rule_type_name(syntax_.nodes[syntax_.root].type) +
                                           "; a condition must be a bool, such as a comparison");
        }
        return std::move(failure_);
    }

private:
    void fail(std::size_t offset, std::string message) {
        if (!failure_) failure_ = Failure{offset, std::move(message)};
    }

    [[nodiscard]] RuleType type_of(NodeIndex index) const { return syntax_.nodes[index].type; }

    // Nodes are not added any more, so references into the list stay valid during the walk.
    void visit(NodeIndex index) {
        Node& node = syntax_.nodes[index];
        switch (node.kind) {
            case NodeKind::number: node.type = RuleType::number; return;
            case NodeKind::text: node.type = RuleType::text; return;
            case NodeKind::boolean: node.type = RuleType::boolean; return;
            case NodeKind::variable: variable(node); return;
            case NodeKind::call: call(node); return;
            case NodeKind::negate: prefix(node, "-", RuleType::number); return;
            case NodeKind::logical_not: prefix(node, "not", RuleType::boolean); return;
            case NodeKind::logical_and:
            case NodeKind::logical_or: operators(node, RuleType::boolean); return;
            case NodeKind::arithmetic: operators(node, RuleType::number); return;
            case NodeKind::compare: compare(node); return;
            case NodeKind::in: membership(node); return;
        }
    }

    void variable(Node& node) {
        if (const RuleVariableInfo* info = find_rule_variable(node.text)) {
            node.variable = info->id;
            node.type = info->type;
            return;
        }
        if (find_function(node.text)) {
            fail(node.offset,
                 in_quotes(node.text) + " is a function, not a variable; its arguments follow in parentheses");
            return;
        }
        std::vector<std::string> names;
        for (const RuleVariableInfo& info : rule_variables()) {
            names.push_back(info.name);
            if (!info.alias.empty()) names.push_back(info.alias);
        }
        const std::string nearest = did_you_mean(node.text, names);
        fail(node.offset,
             "unknown variable " + in_quotes(node.text) +
                 (nearest.empty() ? std::string("; strings stand in quotes, the variables are listed in the "
                                                "reference of selection rules")
                                  : nearest));
    }

    void call(Node& node) {
        const auto function = find_function(node.text);
        if (!function) {
            const bool is_variable = find_rule_variable(node.text) != nullptr;
            const std::string nearest = is_variable ? std::string() : did_you_mean(node.text, function_names());
            fail(node.offset, (is_variable ? in_quotes(node.text) + " is a variable, not a function"
                                           : "unknown function " + in_quotes(node.text)) +
                                  (nearest.empty() ? "; functions: " + join_names(function_names()) : nearest));
            return;
        }
        node.function = *function;
        node.type = RuleType::number;
        const bool many = *function == Function::min || *function == Function::max;
        if (many ? node.operands.size() < 2 : node.operands.size() != 1) {
            fail(node.offset, std::string(node.text) + " has " + std::to_string(node.operands.size()) +
                                  (node.operands.size() == 1 ? " argument" : " arguments") + "; it takes " +
                                  (many ? "two or more" : "one"));
            return;
        }
        for (const NodeIndex argument : node.operands) {
            visit(argument);
            if (failure_) return;
        }
        for (const NodeIndex argument : node.operands) {
            if (type_of(argument) == RuleType::number) continue;
            fail(node.offset, std::string(node.text) + " takes numbers, not a " + rule_type_name(type_of(argument)));
            return;
        }
    }

    void prefix(Node& node, const std::string& name, RuleType type) {
        node.type = type;
        visit(node.operands.front());
        if (failure_ || type_of(node.operands.front()) == type) return;
        fail(node.offset, in_quotes(name) + " takes a " + rule_type_name(type) + ", not a " +
                              rule_type_name(type_of(node.operands.front())));
    }

    void operators(Node& node, RuleType type) {
        node.type = type;
        visit(node.operands.front());
        for (std::size_t i = 0; i < node.operators.size() && !failure_; ++i) {
            visit(node.operands[i + 1]);
            if (failure_) return;
            const RuleType left = i == 0 ? type_of(node.operands.front()) : type;
            const RuleType wrong = left != type ? left : type_of(node.operands[i + 1]);
            if (wrong == type) continue;
            fail(node.operators[i].offset, in_quotes(operator_text(node.operators[i].kind)) + " takes a " +
                                               rule_type_name(type) + " on either side, not a " +
                                               rule_type_name(wrong));
        }
    }

    void compare(Node& node) {
        node.type = RuleType::boolean;
        visit(node.operands[0]);
        if (!failure_) visit(node.operands[1]);
        if (failure_) return;
        const RuleType left = type_of(node.operands[0]);
        const RuleType right = type_of(node.operands[1]);
        const Operator& op = node.operators.front();
        const bool equality = op.kind == TokenKind::equal || op.kind == TokenKind::not_equal;
        if (equality ? left == right : left == RuleType::number && right == RuleType::number) return;
        fail(op.offset, in_quotes(operator_text(op.kind)) +
                            (equality ? " compares values of one type" : " compares numbers") + ", not a " +
                            rule_type_name(left) + " with a " + rule_type_name(right));
    }

    void membership(Node& node) {
        node.type = RuleType::boolean;
        for (const NodeIndex operand : node.operands) {
            visit(operand);
            if (failure_) return;
        }
        const RuleType left = type_of(node.operands.front());
        for (const NodeIndex member : node.operands) {
            if (type_of(member) == left) continue;
            fail(node.offset, std::string("\"in\" looks for a ") + rule_type_name(left) + " in a set with a " +
                                  rule_type_name(type_of(member)) + "; all must have one type");
            return;
        }
    }

    Syntax& syntax_;
    std::optional<Failure> failure_;
};

}  // namespace

const std::vector<std::string>& function_names() {
    static const std::vector<std::string> names{"min", "max", "abs", "floor", "ceil", "log2", "sqrt"};
    return names;
}

std::optional<Function> find_function(std::string_view name) {
    const auto& names = function_names();
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) return std::nullopt;
    return static_cast<Function>(found - names.begin());
}

std::optional<Failure> check(Syntax& syntax) { return Checker(syntax).run(); }

}  // namespace attend::rule_language
