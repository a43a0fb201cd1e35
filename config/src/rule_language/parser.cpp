// SPDX-License-Identifier: Apache-2.0
// Tokens to a tree. One function per line of the grammar; the current token is always looked at, never skipped
// over, so the token that an error names is the first one that no condition could have at that place.
#include <utility>

#include "rule_language/ast.hpp"

namespace attend::rule_language {
namespace {

constexpr NodeIndex nothing = static_cast<NodeIndex>(-1);

class Parser {
public:
    Parser(std::string_view source, Syntax& syntax) : lexer_(source), syntax_(syntax) { advance(); }

    std::optional<Failure> condition() {
        syntax_.first_offset = token_.offset;
        if (token_.kind == TokenKind::keyword_default) {
            advance();
            if (token_.kind != TokenKind::end) unexpected("the end: \"default\" stands alone");
            syntax_.is_default = true;
            return std::move(failure_);
        }
        syntax_.root = expression();
        if (!failure_ && token_.kind != TokenKind::end) unexpected(after_value_);
        return std::move(failure_);
    }

private:
    // Counts an open parenthesis, argument list, `not` or minus for as long as it lives.
    class Nesting {
    public:
        explicit Nesting(Parser& parser) : parser_(parser) { ++parser_.depth_; }
        ~Nesting() { --parser_.depth_; }
        Nesting(const Nesting&) = delete;
        Nesting& operator=(const Nesting&) = delete;
        [[nodiscard]] bool too_deep() {
            if (parser_.depth_ <= max_condition_depth) return false;
            parser_.fail({std::nullopt, "nested too deeply; accepted: up to " + std::to_string(max_condition_depth) +
                                            " open parentheses, calls, \"not\" and minus signs together"});
            return true;
        }

    private:
        Parser& parser_;
    };

    void advance() { token_ = lexer_.next(); }

    void fail(Failure failure) {
        if (!failure_) failure_ = std::move(failure);
    }
    NodeIndex unexpected(const std::string& expected) {
        if (token_.kind == TokenKind::invalid) {
            fail(token_.failure);
        } else if (token_.kind == TokenKind::end) {
            fail({token_.offset, "the condition ends here; expected " + expected});
        } else {
            fail({token_.offset, "unexpected \"" + std::string(token_.source) + "\"; expected " + expected});
        }
        return nothing;
    }

    NodeIndex add(Node node) {
        syntax_.nodes.push_back(std::move(node));
        return static_cast<NodeIndex>(syntax_.nodes.size() - 1);
    }

    // operand { operator operand }: a node only if there is an operator.
    template <class Operand, class IsOperator>
    NodeIndex chain(NodeKind kind, Operand operand, IsOperator is_operator) {
        const NodeIndex first = operand();
        if (failure_ || !is_operator(token_.kind)) return first;
        Node node{.kind = kind, .offset = token_.offset, .text = {}, .operands = {first}, .operators = {}};
        while (is_operator(token_.kind)) {
            node.operators.push_back({token_.kind, token_.offset});
            advance();
            node.operands.push_back(operand());
            if (failure_) return nothing;
        }
        return add(std::move(node));
    }

    NodeIndex expression() {
        return chain(
            NodeKind::logical_or, [this] { return conjunction(); },
            [](TokenKind kind) { return kind == TokenKind::keyword_or; });
    }
    NodeIndex conjunction() {
        return chain(
            NodeKind::logical_and, [this] { return negation(); },
            [](TokenKind kind) { return kind == TokenKind::keyword_and; });
    }
    NodeIndex negation() {
        if (token_.kind != TokenKind::keyword_not) return comparison();
        return prefix(NodeKind::logical_not, [this] { return negation(); });
    }
    NodeIndex sum() {
        return chain(
            NodeKind::arithmetic, [this] { return term(); },
            [](TokenKind kind) { return kind == TokenKind::plus || kind == TokenKind::minus; });
    }
    NodeIndex term() {
        return chain(
            NodeKind::arithmetic, [this] { return unary(); },
            [](TokenKind kind) {
                return kind == TokenKind::times || kind == TokenKind::divide || kind == TokenKind::remainder;
            });
    }
    NodeIndex unary() {
        if (token_.kind != TokenKind::minus) return atom();
        return prefix(NodeKind::negate, [this] { return unary(); });
    }

    template <class Operand>
    NodeIndex prefix(NodeKind kind, Operand operand) {
        Nesting nesting(*this);
        if (nesting.too_deep()) return nothing;
        Node node{.kind = kind, .offset = token_.offset, .text = {}, .operands = {}, .operators = {}};
        advance();
        node.operands.push_back(operand());
        if (failure_) return nothing;
        return add(std::move(node));
    }

    [[nodiscard]] static bool is_comparison(TokenKind kind) {
        return kind == TokenKind::less || kind == TokenKind::less_equal || kind == TokenKind::greater ||
               kind == TokenKind::greater_equal || kind == TokenKind::equal || kind == TokenKind::not_equal;
    }

    NodeIndex comparison() {
        const NodeIndex left = sum();
        if (failure_) return nothing;
        NodeIndex node = left;
        if (is_comparison(token_.kind)) {
            Node compare{
                .kind = NodeKind::compare, .offset = token_.offset, .text = {}, .operands = {left}, .operators = {}};
            compare.operators.push_back({token_.kind, token_.offset});
            advance();
            compare.operands.push_back(sum());
            if (failure_) return nothing;
            node = add(std::move(compare));
        } else if (token_.kind == TokenKind::keyword_in ||
                   (token_.kind == TokenKind::keyword_not && !token_.symbol_not)) {
            node = membership(left);
        } else {
            return node;
        }
        if (!failure_ && (is_comparison(token_.kind) || token_.kind == TokenKind::keyword_in)) {
            fail({token_.offset, "comparisons do not chain; write a < b and b < c"});
        }
        return failure_ ? nothing : node;
    }

    NodeIndex membership(NodeIndex left) {
        Node node{.kind = NodeKind::in, .text = {}, .operands = {left}, .operators = {}};
        if (token_.kind == TokenKind::keyword_not) {
            node.negated = true;
            advance();
            if (token_.kind != TokenKind::keyword_in) return unexpected("\"in\" after \"not\"");
        }
        node.offset = token_.offset;
        advance();
        if (token_.kind != TokenKind::open_set) return unexpected("\"[\" after \"in\"");
        do {
            advance();
            node.operands.push_back(sum());
            if (failure_) return nothing;
        } while (token_.kind == TokenKind::comma);
        if (token_.kind != TokenKind::close_set) return unexpected("an operator, \",\" or \"]\"");
        advance();
        return add(std::move(node));
    }

    NodeIndex atom() {
        Node node{.kind = NodeKind::number, .offset = token_.offset, .text = {}, .operands = {}, .operators = {}};
        switch (token_.kind) {
            case TokenKind::number: node.number = token_.number; break;
            case TokenKind::text:
                node.kind = NodeKind::text;
                node.text = token_.text;
                break;
            case TokenKind::keyword_true:
            case TokenKind::keyword_false:
                node.kind = NodeKind::boolean;
                node.number = token_.kind == TokenKind::keyword_true ? 1.0 : 0.0;
                break;
            case TokenKind::word:
                node.kind = NodeKind::variable;
                node.text = token_.source;
                advance();
                return token_.kind == TokenKind::open ? call(std::move(node)) : add(std::move(node));
            case TokenKind::open: return parenthesis();
            default: return unexpected("a value: a number, a string, a variable, a function or \"(\"");
        }
        advance();
        return add(std::move(node));
    }

    NodeIndex parenthesis() {
        Nesting nesting(*this);
        if (nesting.too_deep()) return nothing;
        advance();
        const NodeIndex inner = expression();
        if (failure_) return nothing;
        if (token_.kind != TokenKind::close) return unexpected("an operator or \")\"");
        advance();
        return inner;
    }

    NodeIndex call(Node node) {
        Nesting nesting(*this);
        if (nesting.too_deep()) return nothing;
        node.kind = NodeKind::call;
        do {
            advance();
            node.operands.push_back(expression());
            if (failure_) return nothing;
        } while (token_.kind == TokenKind::comma);
        if (token_.kind != TokenKind::close) return unexpected("an operator, \",\" or \")\"");
        advance();
        return add(std::move(node));
    }

    const std::string after_value_ = "an operator or the end";
    Lexer lexer_;
    Syntax& syntax_;
    Token token_;
    std::size_t depth_{0};
    std::optional<Failure> failure_;
};

}  // namespace

std::optional<Failure> parse(std::string_view source, Syntax& syntax) { return Parser(source, syntax).condition(); }

}  // namespace attend::rule_language
