// SPDX-License-Identifier: Apache-2.0
#include "service/port_grammar.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

namespace attend {
namespace {

std::string_view trim(std::string_view text) {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    return text;
}

// Splits at a separator outside parentheses.
std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    std::size_t begin = 0;
    int depth = 0;
    for (std::size_t at = 0; at <= text.size(); ++at) {
        if (at == text.size() || (text[at] == separator && depth == 0)) {
            parts.push_back(trim(text.substr(begin, at - begin)));
            begin = at + 1;
        } else if (text[at] == '(') {
            ++depth;
        } else if (text[at] == ')') {
            --depth;
        }
    }
    return parts;
}

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

Error grammar_error(std::string_view text, const std::string& what) {
    return Error{ErrorCode::plugin, "port text \"" + std::string(text) + "\": " + what, ""};
}

Result<Guard> parse_guard(std::string_view text) {
    Guard guard;
    for (std::string_view term : split(text, '&')) {
        Guard::Term parsed;
        if (!term.empty() && term.front() == '!') {
            parsed.negated = true;
            term = trim(term.substr(1));
        }
        const std::size_t equals = term.find('=');
        if (equals != std::string_view::npos) {
            parsed.compares = true;
            parsed.value = std::string(trim(term.substr(equals + 1)));
            term = term.substr(0, equals);
            if (!term.empty() && term.back() == '!') {
                parsed.negated = true;
                term.remove_suffix(1);
            }
        }
        parsed.name = std::string(trim(term));
        if (const Result<Expression> expression = Expression::parse(parsed.name); !expression)
            return expression.error();
        guard.terms.push_back(std::move(parsed));
    }
    return guard;
}

struct Headed {
    Guard guard;
    std::string_view body;
};

// "guard: body" or "body".
Result<Headed> parse_head(std::string_view text) {
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos) return Headed{{}, trim(text)};
    Result<Guard> guard = parse_guard(text.substr(0, colon));
    if (!guard) return guard.error();
    return Headed{std::move(*guard), trim(text.substr(colon + 1))};
}

}  // namespace

const OptionValue* PortScope::option(std::string_view name) const {
    if (values == nullptr) return nullptr;
    const auto found =
        std::find_if(values->begin(), values->end(), [&](const OptionValue& value) { return value.name == name; });
    return found == values->end() ? nullptr : &*found;
}

const OptionSpec* PortScope::spec(std::string_view name) const {
    if (specs == nullptr) return nullptr;
    const auto found =
        std::find_if(specs->begin(), specs->end(), [&](const OptionSpec& row) { return row.name == name; });
    return found == specs->end() ? nullptr : &*found;
}

std::optional<double> PortScope::number(std::string_view name) const {
    if (const auto found = symbols.find(name); found != symbols.end()) return found->second;
    const OptionValue* value = option(name);
    if (value == nullptr) {
        const auto input = inputs.find(name);
        return input == inputs.end() ? std::nullopt : std::optional(input->second ? 1.0 : 0.0);
    }
    if (value->type == OptionType::none) return std::nullopt;
    if (const bool* flag = std::get_if<bool>(&value->value)) return *flag ? 1.0 : 0.0;
    if (const std::int64_t* integer = std::get_if<std::int64_t>(&value->value)) return static_cast<double>(*integer);
    if (const double* real = std::get_if<double>(&value->value)) return *real;
    return std::nullopt;
}

const std::vector<std::int64_t>* PortScope::list(std::string_view name) const {
    const OptionValue* value = option(name);
    return value == nullptr ? nullptr : std::get_if<std::vector<std::int64_t>>(&value->value);
}

struct Expression::Node {
    enum class Kind {
        number,
        name,
        add,
        subtract,
        multiply,
        divide,
        either,
        given,
        root,
        ceiling,
        nearest,
        least,
        greatest,
        item,
        count
    };
    Kind kind{Kind::number};
    double number{};
    std::string name;
    std::vector<std::shared_ptr<const Node>> children;
};

class ExpressionParser {
public:
    using Node = Expression::Node;
    using Kind = Node::Kind;
    explicit ExpressionParser(std::string_view text) : text_(text) {}

    Result<Expression> parse() {
        auto root = sum();
        skip();
        if (!root || at_ != text_.size()) return grammar_error(text_, "not an expression of sizes and options");
        Expression expression;
        expression.text_ = std::string(text_);
        expression.root_ = std::move(root);
        return expression;
    }

    static std::optional<double> evaluate(const Node& node, const PortScope& scope, bool open) {
        if (node.kind == Kind::number) return node.number;
        if (node.kind == Kind::name) return scope.number(node.name);
        if (node.kind == Kind::item || node.kind == Kind::count) {
            const std::vector<std::int64_t>* list = scope.list(node.children[0]->name);
            if (list == nullptr) return std::nullopt;
            const OptionSpec* spec = scope.spec(node.children[0]->name);
            if (node.kind == Kind::count)
                return static_cast<double>(list->size() / (spec != nullptr && spec->takes_arguments() ? 3 : 1));
            const std::optional<double> at = evaluate(*node.children[1], scope, open);
            if (!at || !(*at >= 0) || *at >= static_cast<double>(list->size())) return std::nullopt;
            return static_cast<double>((*list)[static_cast<std::size_t>(*at)]);
        }
        const std::optional<double> a = evaluate(*node.children[0], scope, open);
        if (node.kind == Kind::given && open) return a;
        if (node.kind == Kind::either || node.kind == Kind::given)
            return a ? a : evaluate(*node.children[1], scope, open);
        if (!a) return std::nullopt;
        if (node.kind == Kind::root) return std::sqrt(*a);
        if (node.kind == Kind::ceiling) return std::ceil(*a);
        if (node.kind == Kind::nearest) return *a - std::remainder(*a, 1.0);  // halves to the even side
        const std::optional<double> b = evaluate(*node.children[1], scope, open);
        if (!b) return std::nullopt;
        switch (node.kind) {
            case Kind::add: return *a + *b;
            case Kind::subtract: return *a - *b;
            case Kind::multiply: return *a * *b;
            case Kind::divide: return *b == 0 ? std::nullopt : std::optional(*a / *b);
            case Kind::least: return std::min(*a, *b);
            case Kind::greatest: return std::max(*a, *b);
            default: return std::nullopt;
        }
    }

private:
    using Pointer = std::shared_ptr<const Node>;

    void skip() {
        while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    }
    bool take(char c) {
        skip();
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    static Pointer binary(Kind kind, Pointer a, Pointer b) {
        if (!a || !b) return nullptr;
        auto node = std::make_shared<Node>();
        node->kind = kind;
        node->children = {std::move(a), std::move(b)};
        return node;
    }
    Pointer sum() {
        if (++depth_ > 32) return nullptr;
        Pointer left = product();
        while (left) {
            if (take('+'))
                left = binary(Kind::add, left, product());
            else if (take('-'))
                left = binary(Kind::subtract, left, product());
            else
                break;
        }
        --depth_;
        return left;
    }
    Pointer product() {
        Pointer left = atom();
        while (left) {
            if (take('*'))
                left = binary(Kind::multiply, left, atom());
            else if (take('/'))
                left = binary(Kind::divide, left, atom());
            else
                break;
        }
        return left;
    }
    Pointer atom() {
        if (take('(')) {
            Pointer inner = sum();
            return take(')') ? inner : nullptr;
        }
        skip();
        if (at_ >= text_.size()) return nullptr;
        auto node = std::make_shared<Node>();
        if (std::isdigit(static_cast<unsigned char>(text_[at_])) != 0) {
            const auto [end, status] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), node->number);
            if (status != std::errc{}) return nullptr;
            at_ = static_cast<std::size_t>(end - text_.data());
            return node;
        }
        const std::size_t begin = at_;
        while (at_ < text_.size() && is_word(text_[at_])) ++at_;
        if (at_ == begin) return nullptr;
        node->name = std::string(text_.substr(begin, at_ - begin));
        node->kind = Kind::name;
        if (!take('(')) return node;
        int arguments = 2;
        if (node->name == "or")
            node->kind = Kind::either;
        else if (node->name == "given")
            node->kind = Kind::given;
        else if (node->name == "min")
            node->kind = Kind::least;
        else if (node->name == "max")
            node->kind = Kind::greatest;
        else if (node->name == "item")
            node->kind = Kind::item;
        else if (arguments = 1; node->name == "sqrt")
            node->kind = Kind::root;
        else if (node->name == "ceil")
            node->kind = Kind::ceiling;
        else if (node->name == "round")
            node->kind = Kind::nearest;
        else if (node->name == "count")
            node->kind = Kind::count;
        else
            return nullptr;
        for (int argument = 0; argument < arguments; ++argument) {
            if (argument > 0 && !take(',')) return nullptr;
            Pointer child = sum();
            if (!child) return nullptr;
            node->children.push_back(std::move(child));
        }
        const bool of_list = node->kind == Kind::item || node->kind == Kind::count;
        if (of_list && node->children[0]->kind != Kind::name) return nullptr;
        return take(')') ? node : nullptr;
    }

    std::string_view text_;
    std::size_t at_{0};
    int depth_{0};
};

Result<Expression> Expression::parse(std::string_view text) { return ExpressionParser(trim(text)).parse(); }

std::optional<double> Expression::evaluate(const PortScope& scope, bool open) const {
    return ExpressionParser::evaluate(*root_, scope, open);
}

std::optional<std::string> Expression::bindable(const PortScope& scope) const {
    const Node* node = root_.get();
    for (;;) {
        if (node->kind == Node::Kind::given)
            node = node->children[0].get();
        else if (node->kind == Node::Kind::either && !ExpressionParser::evaluate(*node->children[0], scope, true))
            node = node->children[1].get();
        else
            break;
    }
    if (node->kind != Node::Kind::name || scope.spec(node->name) != nullptr) return std::nullopt;
    return node->name;
}

bool Guard::holds(const PortScope& scope) const {
    return std::all_of(terms.begin(), terms.end(), [&](const Term& term) {
        const OptionSpec* spec = scope.spec(term.name);
        const OptionValue* value = scope.option(term.name);
        const Result<Expression> left_text = Expression::parse(term.name);
        const std::optional<double> left = left_text ? left_text->evaluate(scope) : std::nullopt;
        if (!term.compares) return left.has_value() && (*left != 0) != term.negated;
        if (spec != nullptr && spec->type == OptionType::enumeration) {
            if (value == nullptr || value->type == OptionType::none) return false;
            const auto index = static_cast<std::size_t>(std::get<std::int64_t>(value->value));
            return (spec->choices[index] == term.value) != term.negated;
        }
        if (spec != nullptr && spec->type == OptionType::integer_list && !spec->choices.empty()) {
            if (value == nullptr || value->type == OptionType::none) return false;
            const auto& items = std::get<std::vector<std::int64_t>>(value->value);
            return std::any_of(items.begin(), items.end(), [&](std::int64_t item) {
                       return spec->choices[static_cast<std::size_t>(item)] == term.value;
                   }) != term.negated;
        }
        const Result<Expression> right_text = Expression::parse(term.value);
        const std::optional<double> right = right_text ? right_text->evaluate(scope) : std::nullopt;
        return left.has_value() && right.has_value() && (*left == *right) != term.negated;
    });
}

bool Guard::mentions(std::string_view name, std::string_view value) const {
    return std::any_of(terms.begin(), terms.end(), [&](const Term& term) {
        return term.compares && !term.negated && term.name == name && term.value == value;
    });
}

Result<PortShape> PortShape::parse(std::string_view text) {
    PortShape shape;
    for (const std::string_view part : split(text, '|')) {
        Result<Headed> head = parse_head(part);
        if (!head) return head.error();
        ShapeAlternative alternative{std::move(head->guard), std::string(head->body), {}, false, false, 0};
        std::string_view body = head->body;
        if (body != "scalar") {
            if (body.starts_with("broadcast(") && body.ends_with(")")) {
                alternative.broadcast = true;
                body = body.substr(10, body.size() - 11);
                alternative.text = std::string(body);
            }
            for (std::string_view dim : split(body, ',')) {
                if (!alternative.dynamic_rows && dim.starts_with("upto(") && dim.ends_with(")")) {
                    alternative.dynamic_rows = true;
                    alternative.dynamic_axis = alternative.dims.size();
                    dim = dim.substr(5, dim.size() - 6);
                }
                Result<Expression> expression = Expression::parse(dim);
                if (!expression) return expression.error();
                alternative.dims.push_back(std::move(*expression));
            }
        }
        shape.alternatives_.push_back(std::move(alternative));
    }
    return shape;
}

const ShapeAlternative* PortShape::choose(const PortScope& scope, std::optional<std::size_t> rank) const {
    const ShapeAlternative* first = nullptr;
    for (const ShapeAlternative& alternative : alternatives_) {
        if (!alternative.guard.holds(scope)) continue;
        if (!rank || alternative.dims.size() == *rank) return &alternative;
        if (first == nullptr) first = &alternative;
    }
    return first;
}

Result<PortInit> PortInit::parse(std::string_view text) {
    PortInit init;
    for (const std::string_view part : split(text, '|')) {
        Result<Headed> head = parse_head(part);
        if (!head) return head.error();
        Alternative alternative;
        alternative.guard = std::move(head->guard);
        std::string_view body = head->body;
        if (const std::size_t as = body.rfind(" as "); as != std::string_view::npos) {
            alternative.table_name = std::string(trim(body.substr(as + 4)));
            body = trim(body.substr(0, as));
        }
        const std::size_t open = body.find('(');
        alternative.name = std::string(trim(body.substr(0, open)));
        if (open != std::string_view::npos) {
            if (body.back() != ')') return grammar_error(text, "an initialiser's arguments end with )");
            const std::string_view arguments = body.substr(open + 1, body.size() - open - 2);
            if (alternative.name == "same") {
                alternative.same_as = std::string(trim(arguments));
            } else {
                for (const std::string_view argument : split(arguments, ',')) {
                    // Expressions have no unary minus: a leading one is a difference from zero.
                    Result<Expression> expression = Expression::parse(
                        argument.starts_with("-") ? "0" + std::string(argument) : std::string(argument));
                    if (!expression) return expression.error();
                    alternative.arguments.push_back(std::move(*expression));
                }
            }
        }
        if (alternative.name.empty()) return grammar_error(text, "an initialiser has a name");
        init.alternatives_.push_back(std::move(alternative));
    }
    return init;
}

Result<Initialiser> PortInit::choose(const PortScope& scope) const {
    for (const Alternative& alternative : alternatives_) {
        if (!alternative.guard.holds(scope)) continue;
        Initialiser chosen{alternative.name, {}, alternative.same_as, alternative.table_name};
        for (const Expression& argument : alternative.arguments) {
            const std::optional<double> value = argument.evaluate(scope);
            if (!value) return grammar_error(argument.text(), "has no value here");
            chosen.arguments.push_back(*value);
        }
        return chosen;
    }
    return grammar_error("", "no initialiser applies");
}

}  // namespace attend
