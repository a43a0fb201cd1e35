// SPDX-License-Identifier: Apache-2.0
// A checked condition as a flat program for a small stack machine, and the machine. Types were settled before, so a
// cell is a number (booleans are 0 and 1) or a pointer to a string, and no instruction asks which.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <deque>
#include <utility>

#include "rule_language/ast.hpp"

namespace attend {

namespace rule_language {

enum class Op : std::uint8_t {
    push_number,
    push_text,
    load_number,
    load_text,
    negate,
    logical_not,
    add,
    subtract,
    multiply,
    divide,
    remainder,
    less,
    less_equal,
    greater,
    greater_equal,
    equal,
    not_equal,
    equal_text,
    not_equal_text,
    in,
    in_text,  // argument: number of members
    skip_if_false,
    skip_if_true,  // argument: target; the value stays if the jump is taken
    min,
    max,  // argument: number of arguments
    abs,
    floor,
    ceil,
    log2,
    sqrt
};

struct Instruction {
    Op op;
    std::uint32_t argument{0};
    double number{0.0};
};

}  // namespace rule_language

struct ConditionProgram {
    std::string source;
    std::string place;
    bool is_default{false};
    std::size_t first_column{1};
    std::vector<rule_language::Instruction> code;
    std::deque<std::string> texts;  // addresses stay
    std::size_t stack_size{0};
};

namespace rule_language {
namespace {

class Emitter {
public:
    Emitter(const Syntax& syntax, ConditionProgram& program) : syntax_(syntax), program_(program) {}

    void emit(NodeIndex index) {
        const Node& node = syntax_.nodes[index];
        switch (node.kind) {
            case NodeKind::number:
            case NodeKind::boolean: push(Op::push_number, 0, node.number); return;
            case NodeKind::text:
                push(Op::push_text, static_cast<std::uint32_t>(program_.texts.size()));
                program_.texts.emplace_back(node.text);
                return;
            case NodeKind::variable:
                push(node.type == RuleType::text ? Op::load_text : Op::load_number,
                     static_cast<std::uint32_t>(node.variable));
                return;
            case NodeKind::call: call(node); return;
            case NodeKind::negate:
                emit(node.operands.front());
                apply(Op::negate, 1);
                return;
            case NodeKind::logical_not:
                emit(node.operands.front());
                apply(Op::logical_not, 1);
                return;
            case NodeKind::logical_and: logical(node, Op::skip_if_false); return;
            case NodeKind::logical_or: logical(node, Op::skip_if_true); return;
            case NodeKind::arithmetic: arithmetic(node); return;
            case NodeKind::compare: compare(node); return;
            case NodeKind::in: membership(node); return;
        }
    }

private:
    void push(Op op, std::uint32_t argument, double number = 0.0) {
        program_.code.push_back({op, argument, number});
        program_.stack_size = std::max(program_.stack_size, ++used_);
    }
    // An instruction that takes `operands` cells and leaves one.
    void apply(Op op, std::size_t operands, std::uint32_t argument = 0) {
        program_.code.push_back({op, argument, 0.0});
        used_ -= operands - 1;
    }

    void call(const Node& node) {
        for (const NodeIndex argument : node.operands) emit(argument);
        const std::size_t count = node.operands.size();
        switch (node.function) {
            case Function::min: apply(Op::min, count, static_cast<std::uint32_t>(count)); return;
            case Function::max: apply(Op::max, count, static_cast<std::uint32_t>(count)); return;
            case Function::abs: apply(Op::abs, 1); return;
            case Function::floor: apply(Op::floor, 1); return;
            case Function::ceil: apply(Op::ceil, 1); return;
            case Function::log2: apply(Op::log2, 1); return;
            case Function::sqrt: apply(Op::sqrt, 1); return;
        }
    }

    void logical(const Node& node, Op skip) {
        std::vector<std::size_t> jumps;
        for (std::size_t i = 0; i < node.operands.size(); ++i) {
            if (i > 0) {
                jumps.push_back(program_.code.size());
                program_.code.push_back({skip, 0, 0.0});
                --used_;
            }
            emit(node.operands[i]);
        }
        for (const std::size_t jump : jumps) {
            program_.code[jump].argument = static_cast<std::uint32_t>(program_.code.size());
        }
    }

    void arithmetic(const Node& node) {
        emit(node.operands.front());
        for (std::size_t i = 0; i < node.operators.size(); ++i) {
            emit(node.operands[i + 1]);
            apply(arithmetic_op(node.operators[i].kind), 2);
        }
    }
    static Op arithmetic_op(TokenKind kind) {
        switch (kind) {
            case TokenKind::plus: return Op::add;
            case TokenKind::minus: return Op::subtract;
            case TokenKind::times: return Op::multiply;
            case TokenKind::divide: return Op::divide;
            default: return Op::remainder;
        }
    }

    void compare(const Node& node) {
        emit(node.operands[0]);
        emit(node.operands[1]);
        const bool text = syntax_.nodes[node.operands[0]].type == RuleType::text;
        switch (node.operators.front().kind) {
            case TokenKind::less: apply(Op::less, 2); return;
            case TokenKind::less_equal: apply(Op::less_equal, 2); return;
            case TokenKind::greater: apply(Op::greater, 2); return;
            case TokenKind::greater_equal: apply(Op::greater_equal, 2); return;
            case TokenKind::equal: apply(text ? Op::equal_text : Op::equal, 2); return;
            default: apply(text ? Op::not_equal_text : Op::not_equal, 2); return;
        }
    }

    void membership(const Node& node) {
        for (const NodeIndex operand : node.operands) emit(operand);
        const bool text = syntax_.nodes[node.operands.front()].type == RuleType::text;
        apply(text ? Op::in_text : Op::in, node.operands.size(), static_cast<std::uint32_t>(node.operands.size() - 1));
        if (node.negated) apply(Op::logical_not, 1);
    }

    const Syntax& syntax_;
    ConditionProgram& program_;
    std::size_t used_{0};
};

union Cell {
    double number;
    const std::string* text;
};

// The remainder has the sign of the divisor, as a floored quotient leaves it.
double floored_remainder(double left, double right) {
    // Sizes and counts are whole and not negative: no library call for those.
    constexpr double exact = 9007199254740992.0;
    if (left >= 0.0 && left < exact && right >= 1.0 && right < exact) {
        const auto whole_left = static_cast<std::int64_t>(left), whole_right = static_cast<std::int64_t>(right);
        if (static_cast<double>(whole_left) == left && static_cast<double>(whole_right) == right)
            return static_cast<double>(whole_left % whole_right);
    }
    const double remainder = std::fmod(left, right);
    return remainder != 0.0 && (remainder < 0.0) != (right < 0.0) ? remainder + right : remainder;
}

// Why arithmetic has no result; nullptr: it has one.
using Reason = const char*;

Reason arithmetic(Op op, double left, double right, double& result) {
    switch (op) {
        case Op::add: result = left + right; break;
        case Op::subtract: result = left - right; break;
        case Op::multiply: result = left * right; break;
        case Op::divide:
            if (right == 0.0) return "division by zero; the right side of / must not be 0";
            result = left / right;
            break;
        default:
            if (right == 0.0) return "remainder by zero; the right side of % must not be 0";
            result = floored_remainder(left, right);
    }
    return std::isnan(result)
               ? "the result is not a number, as of infinity - infinity; accepted: operands with a result"
               : nullptr;
}

Reason run(const ConditionProgram& program, const RuleVariables& variables, Cell* stack, bool& result) {
    Cell* top = stack - 1;
    const auto drop_to = [&](double value) {
        --top;
        top->number = value;
    };
    const auto truth = [](bool value) { return value ? 1.0 : 0.0; };
    for (std::size_t at = 0; at < program.code.size(); ++at) {
        const Instruction& step = program.code[at];
        switch (step.op) {
            case Op::push_number: (++top)->number = step.number; break;
            case Op::push_text: (++top)->text = &program.texts[step.argument]; break;
            case Op::load_number: (++top)->number = variables.number(static_cast<RuleVariable>(step.argument)); break;
            case Op::load_text: (++top)->text = &variables.text(static_cast<RuleVariable>(step.argument)); break;
            case Op::negate: top->number = -top->number; break;
            case Op::logical_not: top->number = 1.0 - top->number; break;
            case Op::add:
            case Op::subtract:
            case Op::multiply:
            case Op::divide:
            case Op::remainder: {
                double value = 0.0;
                if (Reason reason = arithmetic(step.op, top[-1].number, top[0].number, value)) return reason;
                drop_to(value);
                break;
            }
            case Op::less: drop_to(truth(top[-1].number < top[0].number)); break;
            case Op::less_equal: drop_to(truth(top[-1].number <= top[0].number)); break;
            case Op::greater: drop_to(truth(top[-1].number > top[0].number)); break;
            case Op::greater_equal: drop_to(truth(top[-1].number >= top[0].number)); break;
            case Op::equal: drop_to(truth(top[-1].number == top[0].number)); break;
            case Op::not_equal: drop_to(truth(top[-1].number != top[0].number)); break;
            case Op::equal_text: drop_to(truth(*top[-1].text == *top[0].text)); break;
            case Op::not_equal_text: drop_to(truth(*top[-1].text != *top[0].text)); break;
            case Op::in: {
                top -= step.argument;
                bool found = false;
                for (std::uint32_t i = 1; i <= step.argument; ++i) found = found || top[i].number == top[0].number;
                top->number = truth(found);
                break;
            }
            case Op::in_text: {
                top -= step.argument;
                bool found = false;
                for (std::uint32_t i = 1; i <= step.argument; ++i) found = found || *top[i].text == *top[0].text;
                top->number = truth(found);
                break;
            }
            case Op::skip_if_false:
            case Op::skip_if_true:
                if ((top->number != 0.0) == (step.op == Op::skip_if_true)) {
                    at = step.argument - 1;
                } else {
                    --top;
                }
                break;
            case Op::min:
            case Op::max:
                top -= step.argument - 1;
                for (std::uint32_t i = 1; i < step.argument; ++i) {
                    top->number = step.op == Op::min ? std::min(top->number, top[i].number)
                                                     : std::max(top->number, top[i].number);
                }
                break;
            case Op::abs: top->number = std::abs(top->number); break;
            case Op::floor: top->number = std::floor(top->number); break;
            case Op::ceil: top->number = std::ceil(top->number); break;
            case Op::log2:
                if (!(top->number > 0.0)) return "log2 of a number that is not above 0; accepted: numbers above 0";
                top->number = std::log2(top->number);
                break;
            case Op::sqrt:
                if (!(top->number >= 0.0)) return "sqrt of a negative number; accepted: 0 and above";
                top->number = std::sqrt(top->number);
                break;
        }
    }
    assert(top == stack && "a condition leaves one value");
    result = top->number != 0.0;
    return nullptr;
}

std::size_t column_of(std::string_view source, std::size_t offset) {
    // Characters, not bytes: what continues a UTF-8 sequence does not count.
    return 1 + static_cast<std::size_t>(
                   std::count_if(source.begin(), source.begin() + static_cast<std::ptrdiff_t>(offset),
                                 [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

Error compile_error(std::string_view source, const std::string& place, const Failure& failure) {
    if (!failure.offset) return Error{ErrorCode::rule, place + ": " + failure.message, {}};
    const std::size_t column = column_of(source, *failure.offset);
    return Error{ErrorCode::rule, place + ": column " + std::to_string(column) + ": " + failure.message,
                 caret_hint(source, column)};
}

}  // namespace
}  // namespace rule_language

Result<Condition> Condition::compile(std::string_view text, const std::string& place) {
    using namespace rule_language;
    if (text.size() > max_condition_bytes) {
        return compile_error(text, place,
                             {std::nullopt, "the condition has " + std::to_string(text.size()) +
                                                " bytes; accepted: up to " + std::to_string(max_condition_bytes)});
    }
    auto program = std::make_shared<ConditionProgram>();
    program->source = text;
    program->place = place;
    Syntax syntax;
    if (const auto failure = parse(program->source, syntax)) return compile_error(text, place, *failure);
    program->first_column = column_of(text, syntax.first_offset);
    program->is_default = syntax.is_default;
    if (!syntax.is_default) {
        if (const auto failure = check(syntax)) return compile_error(text, place, *failure);
        Emitter(syntax, *program).emit(syntax.root);
    }
    return Condition(std::move(program));
}

Result<bool> Condition::evaluate(const RuleVariables& variables) const {
    using namespace rule_language;
    if (program_->is_default) return true;
    constexpr std::size_t usual_stack = 64;
    Cell usual[usual_stack];
    std::vector<Cell> large;
    Cell* stack = usual;
    if (program_->stack_size > usual_stack) {
        large.resize(program_->stack_size);
        stack = large.data();
    }
    bool result = false;
    if (Reason reason = run(*program_, variables, stack, result)) {
        return Error{ErrorCode::rule, program_->place + ": " + reason, {}};
    }
    return result;
}

bool Condition::is_default() const noexcept { return program_->is_default; }
const std::string& Condition::text() const noexcept { return program_->source; }
const std::string& Condition::place() const noexcept { return program_->place; }
std::size_t Condition::first_column() const noexcept { return program_->first_column; }

}  // namespace attend
