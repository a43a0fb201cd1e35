// SPDX-License-Identifier: Apache-2.0
// Text of a condition to tokens, one at a time, so that the leftmost fault is the one that is reported.
#include <array>
#include <charconv>
#include <limits>
#include <utility>

#include "rule_language/ast.hpp"

namespace attend::rule_language {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

struct Unit {
    std::string_view name;
    double factor;
};
// Longer names first: a number takes the longest unit.
constexpr std::array<Unit, 6> units{
    {{"Ki", 0x1p10}, {"Mi", 0x1p20}, {"Gi", 0x1p30}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}}};

constexpr std::array<std::pair<std::string_view, TokenKind>, 7> keywords{{{"default", TokenKind::keyword_default},
                                                                          {"and", TokenKind::keyword_and},
                                                                          {"or", TokenKind::keyword_or},
                                                                          {"not", TokenKind::keyword_not},
                                                                          {"in", TokenKind::keyword_in},
                                                                          {"true", TokenKind::keyword_true},
                                                                          {"false", TokenKind::keyword_false}}};

// Two characters before one: the longest symbol wins.
constexpr std::array<std::pair<std::string_view, TokenKind>, 18> symbols{{{"<=", TokenKind::less_equal},
                                                                          {">=", TokenKind::greater_equal},
                                                                          {"==", TokenKind::equal},
                                                                          {"!=", TokenKind::not_equal},
                                                                          {"&&", TokenKind::keyword_and},
                                                                          {"||", TokenKind::keyword_or},
                                                                          {"<", TokenKind::less},
                                                                          {">", TokenKind::greater},
                                                                          {"!", TokenKind::keyword_not},
                                                                          {"+", TokenKind::plus},
                                                                          {"-", TokenKind::minus},
                                                                          {"*", TokenKind::times},
                                                                          {"/", TokenKind::divide},
                                                                          {"%", TokenKind::remainder},
                                                                          {"(", TokenKind::open},
                                                                          {")", TokenKind::close},
                                                                          {"[", TokenKind::open_set},
                                                                          {"]", TokenKind::close_set}}};

// Value of well-formed digits; beyond the range of doubles it is infinity or zero, as arithmetic would give.
double decimal_value(std::string_view digits) {
    double value = 0.0;
    const auto [end, status] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (status != std::errc::result_out_of_range) return value;
    const std::size_t exponent_at = digits.find_first_of("eE");
    long exponent = 0;
    if (exponent_at != std::string_view::npos) {
        std::string_view text = digits.substr(exponent_at + 1);
        const bool negative = text.front() == '-';
        if (text.front() == '+' || text.front() == '-') text.remove_prefix(1);
        constexpr long enough = 100000;  // more than a condition has digits
        for (const char c : text) exponent = exponent > enough ? exponent : 10 * exponent + (c - '0');
        if (negative) exponent = -exponent;
    }
    // Digits before the point, less leading zeros behind it: the size of the mantissa in powers of ten.
    const std::string_view mantissa = digits.substr(0, exponent_at);
    const std::size_t first = mantissa.find_first_of("123456789");
    const std::size_t point = mantissa.find('.') == std::string_view::npos ? mantissa.size() : mantissa.find('.');
    const long magnitude = static_cast<long>(point) - static_cast<long>(first);
    return magnitude + exponent > 0 ? std::numeric_limits<double>::infinity() : 0.0;
}

}  // namespace

std::string shown(std::string_view source, std::size_t offset) {
    if (offset >= source.size()) return "the end";
    const auto byte = static_cast<unsigned char>(source[offset]);
    if (byte < 0x20 || byte == 0x7F) {
        constexpr const char* digits = "0123456789abcdef";
        return std::string("control character 0x") + digits[byte >> 4U] + digits[byte & 15U];
    }
    std::size_t length = 1;
    while (offset + length < source.size() && (static_cast<unsigned char>(source[offset + length]) & 0xC0U) == 0x80U) {
        ++length;
    }
    std::string text = "\"";
    text += source.substr(offset, length);
    text += '"';
    return text;
}

std::string caret_hint(std::string_view source, std::size_t column) {
    std::string line(source);
    for (char& c : line) {
        if (static_cast<unsigned char>(c) < 0x20U || c == 0x7F) c = ' ';
    }
    return line + "\n" + std::string(column - 1, ' ') + "^";
}

Token Lexer::invalid(std::size_t offset, std::string message) const {
    Token token;
    token.kind = TokenKind::invalid;
    token.offset = offset;
    token.failure = Failure{offset, std::move(message)};
    return token;
}

Token Lexer::number() {
    std::size_t end = position_;
    const auto digits = [&] {
        const std::size_t begin = end;
        while (is_digit(at(end))) ++end;
        return end > begin;
    };
    digits();
    if (at(end) == '.') {
        ++end;
        if (!digits()) return invalid(end, "a digit must follow the point of a number, not " + shown(source_, end));
    }
    if (at(end) == 'e' || at(end) == 'E') {
        ++end;
        if (at(end) == '+' || at(end) == '-') ++end;
        if (!digits())
            return invalid(end, "a number ends in its exponent; a digit must follow, not " + shown(source_, end));
    }
    Token token;
    token.kind = TokenKind::number;
    token.offset = position_;
    token.number = decimal_value(source_.substr(position_, end - position_));
    for (const Unit& unit : units) {
        if (source_.substr(end, unit.name.size()) != unit.name) continue;
        token.number *= unit.factor;
        end += unit.name.size();
        break;
    }
    if (is_letter(at(end)) || is_digit(at(end)) || at(end) == '_') {
        return invalid(end, "a number is followed by " + shown(source_, end) +
                                "; units are K, M, G, Ki, Mi, Gi, and a blank separates words");
    }
    token.source = source_.substr(position_, end - position_);
    position_ = end;
    return token;
}

Token Lexer::string() {
    const std::size_t close = source_.find(source_[position_], position_ + 1);
    if (close == std::string_view::npos) return invalid(position_, "this string has no closing quote");
    Token token;
    token.kind = TokenKind::text;
    token.offset = position_;
    token.source = source_.substr(position_, close + 1 - position_);
    token.text = source_.substr(position_ + 1, close - position_ - 1);
    position_ = close + 1;
    return token;
}

Token Lexer::next() {
    while (is_space(at(position_))) ++position_;
    Token token;
    token.offset = position_;
    if (position_ == source_.size()) return token;
    const char c = source_[position_];
    if (is_digit(c)) return number();
    if (c == '\'' || c == '"') return string();
    if (is_letter(c)) {
        std::size_t end = position_;
        while (is_letter(at(end)) || is_digit(at(end)) || at(end) == '_') ++end;
        token.kind = TokenKind::word;
        token.source = source_.substr(position_, end - position_);
        for (const auto& [name, kind] : keywords) {
            if (token.source == name) token.kind = kind;
        }
        position_ = end;
        return token;
    }
    if (c == ',') {
        token.kind = TokenKind::comma;
        token.source = source_.substr(position_++, 1);
        return token;
    }
    for (const auto& [name, kind] : symbols) {
        if (source_.substr(position_, name.size()) != name) continue;
        token.kind = kind;
        token.source = name;
        token.symbol_not = name == "!";
        position_ += name.size();
        return token;
    }
    std::string message = "unexpected character " + shown(source_, position_);
    if (c == '=') message += "; equality is written ==";
    if (c == '&') message += "; \"and\" is written and or &&";
    if (c == '|') message += "; \"or\" is written or or ||";
    return invalid(position_, std::move(message));
}

}  // namespace attend::rule_language
