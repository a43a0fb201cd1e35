// SPDX-License-Identifier: Apache-2.0
// Guards: small conditions on options, written in tables. "projected" texts like "form=projected & bias" say when an
// option is read; the same grammar heads the alternatives of port shapes (sdk/docs/plugin-abi.md, "Ports").
//   guard = all { "|" all } ;  all = term { "&" term } ;  term = name | "!" name | name "=" value | name "!=" value
// A bare name holds if the option is true or not zero, or, where no option has it, if an input or weight of that name
// is bound; of a number without a default it holds if the caller gave one. `windowed` holds if a window option limits the
// keys. For a list of words name=value holds if the value is among them. An option without a value makes a comparison false.
#pragma once

#include "attend/author/entry.hpp"

namespace attend::author {

struct Span {
    const char* text;
    uint64_t length;
};

inline bool span_equal(Span a, const char* b) {
    for (uint64_t at = 0; at < a.length; ++at)
        if (!b || b[at] == '\0' || b[at] != a.text[at]) return false;
    return b && b[a.length] == '\0';
}

inline Span trimmed(Span span) {
    while (span.length && *span.text == ' ') ++span.text, --span.length;
    while (span.length && span.text[span.length - 1] == ' ') --span.length;
    return span;
}

inline bool windowed(const attend_array& values) {
    const attend_value *size = attend_find_option(&values, "window_size"),
                       *left = attend_find_option(&values, "window_left"),
                       *right = attend_find_option(&values, "window_right");
    return (size && size->type && size->u.i > 0) || (left && left->type && left->u.i >= 0) ||
           (right && right->type && right->u.i >= 0);
}

inline bool term_holds(Span term, const MechanismEntry& entry, const attend_array& values,
                       const attend_array& bindings) {
    term = trimmed(term);
    const bool negated = term.length && term.text[0] == '!';
    if (negated) ++term.text, --term.length;
    uint64_t equals = 0;
    while (equals < term.length && term.text[equals] != '=') ++equals;
    const bool compares = equals < term.length;
    const bool differs = compares && equals > 0 && term.text[equals - 1] == '!';
    const Span name = trimmed({term.text, differs ? equals - 1 : equals});
    const Span wanted = compares ? trimmed({term.text + equals + 1, term.length - equals - 1}) : Span{"", 0};
    for (uint32_t at = 0; at < entry.option_count; ++at) {
        const attend_option& row = entry.options[at].row;
        if (!span_equal(name, row.name)) continue;
        const attend_value* value = attend_find_option(&values, row.name);
        const bool has_value = value && value->type != 0;
        if (!compares && !row.default_json && row.type != ATTEND_TYPE_BOOL) return has_value != negated;
        if (!has_value) return !compares && negated;
        if (!compares) return (value->u.i != 0) != negated;
        if (row.type == ATTEND_TYPE_INT_LIST && row.choices) {
            bool among = false;
            for (uint32_t item = 0; item < value->count; ++item)
                among = among || span_equal(wanted, row.choices[value->u.is[item]]);
            return among != differs;
        }
        if (row.type != ATTEND_TYPE_ENUM) return false;
        return span_equal(wanted, row.choices[value->u.i]) != differs;
    }
    if (compares) return false;
    if (span_equal(name, "windowed")) return windowed(values) != negated;
    bool bound = false;
    for (uint32_t at = 0; at < bindings.count; ++at)
        bound = bound || span_equal(name, attend_binding_at(&bindings, at)->name);
    return bound != negated;
}

// One of the alternatives holds if all of its terms do.
inline bool guard_holds(const char* guard, const MechanismEntry& entry, const attend_array& values,
                        const attend_array& bindings) {
    uint64_t begin = 0;
    bool all = true;
    for (uint64_t at = 0;; ++at) {
        const char c = guard[at];
        if (c != '&' && c != '|' && c != '\0') continue;
        all = all && term_holds({guard + begin, at - begin}, entry, values, bindings);
        begin = at + 1;
        if (c == '&') continue;
        if (all || c == '\0') return all;
        all = true;
    }
}

// Reads a plain decimal number as tables write it ("256", "-1", "1e-6").
inline double table_number(const char* text) {
    double number = 0, place = 1;
    int exponent = 0;
    const bool negative = *text == '-';
    if (negative) ++text;
    for (; *text >= '0' && *text <= '9'; ++text) number = number * 10 + (*text - '0');
    if (*text == '.')
        for (++text; *text >= '0' && *text <= '9'; ++text) number += (*text - '0') * (place /= 10);
    if (*text == 'e' || *text == 'E') {
        ++text;
        const bool down = *text == '-';
        if (*text == '-' || *text == '+') ++text;
        for (; *text >= '0' && *text <= '9'; ++text) exponent = exponent * 10 + (*text - '0');
        for (; exponent > 0; --exponent) number = down ? number / 10 : number * 10;
    }
    return negative ? -number : number;
}

inline bool is_default(const OptionRow& row, const attend_value& value) {
    const char* text = row.row.default_json;
    if (!text) return false;
    switch (row.row.type) {
        case ATTEND_TYPE_BOOL: return (value.u.i != 0) == (text[0] == 't');
        case ATTEND_TYPE_INT: return static_cast<double>(value.u.i) == table_number(text);
        case ATTEND_TYPE_FLOAT: {
            const double difference = value.u.f - table_number(text);
            return difference < 1e-12 && difference > -1e-12;
        }
        case ATTEND_TYPE_ENUM: return span_equal({text + 1, attend_text_length(text) - 2}, row.row.choices[value.u.i]);
        case ATTEND_TYPE_INT_LIST:
            if (row.row.choices)
                return value.count == 1 &&
                       span_equal({text + 1, attend_text_length(text) - 2}, row.row.choices[value.u.is[0]]);
            return text[0] == '[' ? value.count == 0
                                  : value.count == 1 && static_cast<double>(value.u.is[0]) == table_number(text);
        default: return false;
    }
}

}  // namespace attend::author
