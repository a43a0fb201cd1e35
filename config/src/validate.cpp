// SPDX-License-Identifier: Apache-2.0
// Values against option tables: names, types, ranges, choices, defaults.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "attend/config/names.hpp"
#include "attend/config/options.hpp"

namespace attend {
namespace {

constexpr double smallest_positive = std::numeric_limits<double>::denorm_min();
// The largest double below 1, 1 - 2^-53.
constexpr double below_one = 1.0 - 0x1p-53;

bool is_unsigned(const OptionSpec& spec) {
    return spec.type == OptionType::integer && std::isfinite(spec.max) && spec.max >= 0x1p63 && spec.min >= 0.0;
}

std::string number_text(double value) {
    if (value >= 0x1p63 && value <= 0x1p64 && std::trunc(value) == value) {
        // Bounds of unsigned options: 2^64 as a double stands for 2^64 - 1.
        return std::to_string(value >= 0x1p64 ? UINT64_MAX : static_cast<std::uint64_t>(value));
    }
    if (std::abs(value) < 0x1p63 && std::trunc(value) == value && std::abs(value) < 1e19) {
        return std::to_string(static_cast<std::int64_t>(value));
    }
    char buffer[40];
    const auto [end, status] = std::to_chars(buffer, buffer + sizeof buffer, value);
    return {buffer, end};
}

std::string range_text(const OptionSpec& spec) {
    const bool low = std::isfinite(spec.min);
    const bool high = std::isfinite(spec.max);
    const bool above_zero = spec.min == smallest_positive;
    const bool under_one = spec.max == below_one;
    if (low && high && !above_zero && !under_one) {
        return " from " + number_text(spec.min) + " to " + number_text(spec.max);
    }
    std::string text;
    if (low) text += above_zero ? " above 0" : " of at least " + number_text(spec.min);
    if (low && high) text += " and";
    if (high) text += under_one ? " below 1" : " up to " + number_text(spec.max);
    return text;
}

bool is_list(OptionType type) { return type == OptionType::integer_list || type == OptionType::real_list; }

bool has_default(const OptionSpec& spec) { return spec.default_value && !spec.default_value->is_null(); }

std::optional<OptionValue::Value> to_integer(const OptionSpec& spec, const Json& value) {
    // long double holds every 64-bit integer, so that bounds beyond 2^53 are compared exactly.
    const auto inside = [&](long double number) {
        return number >= static_cast<long double>(spec.min) && number <= static_cast<long double>(spec.max);
    };
    if (is_unsigned(spec)) {
        const auto number = value.to_uint64();
        if (!number || !inside(static_cast<long double>(*number))) return std::nullopt;
        return OptionValue::Value(static_cast<std::int64_t>(*number));
    }
    const auto number = value.to_int64();
    if (!number || !inside(static_cast<long double>(*number))) return std::nullopt;
    return OptionValue::Value(*number);
}

std::optional<OptionValue::Value> to_real(const OptionSpec& spec, const Json& value) {
    if (!value.is_number()) return std::nullopt;
    const double number = value.as_double();
    if (!std::isfinite(number) || number < spec.min || number > spec.max) return std::nullopt;
    return OptionValue::Value(number);
}

std::optional<OptionValue::Value> to_choice(const OptionSpec& spec, const Json& value) {
    // A choice may read like a JSON literal ("true", "4"): then the literal is taken, too.
    std::string text;
    if (value.is_string()) {
        text = value.as_string();
    } else if (value.is_bool() || value.is_integer()) {
        text = write_json(value);
    } else {
        return std::nullopt;
    }
    for (std::size_t i = 0; i < spec.choices.size(); ++i) {
        if (spec.choices[i] == text) return OptionValue::Value(static_cast<std::int64_t>(i));
    }
    const std::string folded = fold_name(text);
    for (std::size_t i = 0; i < spec.choices.size(); ++i) {
        if (fold_name(spec.choices[i]) == folded) return OptionValue::Value(static_cast<std::int64_t>(i));
    }
    return std::nullopt;
}

// "dilated(256,2)" against the choice "dilated(w,r)": the index and two arguments.
std::optional<std::array<std::int64_t, 3>> to_call(const OptionSpec& spec, std::string_view text) {
    const auto name_of = [](std::string_view call) { return call.substr(0, call.find('(')); };
    std::array<std::int64_t, 3> element{};
    std::size_t arguments = 0;
    if (const std::size_t open = text.find('('); open != std::string_view::npos) {
        if (text.back() != ')') return std::nullopt;
        auto list = parse_json("[" + std::string(text.substr(open + 1, text.size() - open - 2)) + "]", "arguments");
        if (!list || list->size() == 0 || list->size() > 2) return std::nullopt;
        for (const Json& item : list->as_array()) {
            const auto number = item.to_int64();
            if (!number) return std::nullopt;
            element[++arguments] = *number;
        }
    }
    for (std::size_t at = 0; at < spec.choices.size(); ++at) {
        const std::string& choice = spec.choices[at];
        const std::size_t wanted = choice.find('(') == std::string::npos
                                       ? 0
                                       : 1 + static_cast<std::size_t>(std::count(choice.begin(), choice.end(), ','));
        if (name_of(choice) != name_of(text) || wanted != arguments) continue;
        element[0] = static_cast<std::int64_t>(at);
        return element;
    }
    return std::nullopt;
}

std::optional<OptionValue::Value> to_calls(const OptionSpec& spec, const Json& value) {
    std::vector<std::int64_t> elements;
    const auto add = [&](const Json& word) {
        const auto call = word.is_string() ? to_call(spec, word.as_string()) : std::nullopt;
        if (call) elements.insert(elements.end(), call->begin(), call->end());
        return call.has_value();
    };
    if (spec.scalar_ok && value.is_string() && add(value)) return OptionValue::Value(std::move(elements));
    if (!value.is_array()) return std::nullopt;
    for (const Json& element : value.as_array())
        if (!add(element)) return std::nullopt;
    return OptionValue::Value(std::move(elements));
}

std::string call_text(const OptionSpec& spec, const std::int64_t* element) {
    const std::string& choice = spec.choices[static_cast<std::size_t>(element[0])];
    const std::size_t open = choice.find('(');
    if (open == std::string::npos) return choice;
    const bool two = choice.find(',', open) != std::string::npos;
    return choice.substr(0, open + 1) + std::to_string(element[1]) + (two ? "," + std::to_string(element[2]) : "") +
           ")";
}

template <class Element, class Convert>
std::optional<OptionValue::Value> to_list(const OptionSpec& spec, const Json& value, Convert convert) {
    std::vector<Element> elements;
    const auto add = [&](const Json& element) {
        const auto converted = convert(spec, element);
        if (converted) elements.push_back(*std::get_if<Element>(&*converted));
        return converted.has_value();
    };
    if (spec.scalar_ok && (spec.choices.empty() ? value.is_number() : value.is_string())) {
        if (!add(value)) return std::nullopt;
        return OptionValue::Value(std::move(elements));
    }
    if (!value.is_array()) return std::nullopt;
    elements.reserve(value.as_array().size());
    for (const Json& element : value.as_array()) {
        if (!add(element)) return std::nullopt;
    }
    return OptionValue::Value(std::move(elements));
}

// The number of rows, then the rows.
std::optional<OptionValue::Value> to_rows(const OptionSpec& spec, const Json& value) {
    if (!value.is_array()) return std::nullopt;
    const auto& rows = value.as_array();
    std::vector<std::int64_t> elements{static_cast<std::int64_t>(rows.size())};
    for (const Json& row : rows) {
        if (!row.is_array() || row.size() != rows.front().size()) return std::nullopt;
        for (const Json& element : row.as_array()) {
            const auto converted = to_integer(spec, element);
            if (!converted) return std::nullopt;
            elements.push_back(*std::get_if<std::int64_t>(&*converted));
        }
    }
    return OptionValue::Value(std::move(elements));
}

std::optional<OptionValue::Value> convert(const OptionSpec& spec, const Json& value) {
    switch (spec.type) {
        case OptionType::none: return std::nullopt;
        case OptionType::boolean:
            if (!value.is_bool()) return std::nullopt;
            return OptionValue::Value(value.as_bool());
        case OptionType::integer: return to_integer(spec, value);
        case OptionType::real: return to_real(spec, value);
        case OptionType::text:
            if (!value.is_string()) return std::nullopt;
            return OptionValue::Value(value.as_string());
        case OptionType::enumeration: return to_choice(spec, value);
        case OptionType::integer_list:
            if (spec.rows) return to_rows(spec, value);
            if (spec.takes_arguments()) return to_calls(spec, value);
            return to_list<std::int64_t>(spec, value, spec.choices.empty() ? to_integer : to_choice);
        case OptionType::real_list: return to_list<double>(spec, value, to_real);
    }
    return std::nullopt;
}

Error problem(std::string message) { return Error{ErrorCode::option, std::move(message), {}}; }

// A word that is no choice gets the nearest ones, unless the list of all is short enough to be seen at a glance.
std::string choice_hint(const OptionSpec& spec, const Json& value) {
    if (spec.choices.empty()) return {};
    if (value.is_string()) return did_you_mean(value.as_string(), spec.choices);
    if (!value.is_array()) return {};
    for (const Json& element : value.as_array())
        if (element.is_string() && !to_choice(spec, element)) return did_you_mean(element.as_string(), spec.choices);
    return {};
}

struct Completed {
    std::vector<OptionValue> values;
    std::vector<Error> problems;
};

Error unknown_option(const std::string& place, std::span<const OptionSpec> table, const std::string& name) {
    std::vector<std::string> names;
    names.reserve(table.size());
    for (const OptionSpec& spec : table) names.push_back(spec.name);
    std::string message = place + ": unknown option \"" + name + "\"";
    const std::string nearest = did_you_mean(name, names);
    if (names.empty()) return problem(message + "; it has no options");
    return problem(message + (nearest.empty() ? "; it has: " : nearest + " It has: ") + join_names(names));
}

Completed complete(const std::string& place, std::span<const OptionSpec> table, const NamedValues& given) {
    Completed result;
    result.values.resize(table.size());
    std::vector<const std::string*> written_as(table.size(), nullptr);
    for (std::size_t i = 0; i < table.size(); ++i) result.values[i].name = table[i].name;

    for (const auto& [name, value] : given) {
        const std::string folded = fold_name(name);
        std::size_t row = 0;
        while (row < table.size() && table[row].name != folded) ++row;
        if (row == table.size()) {
            result.problems.push_back(unknown_option(place, table, name));
            continue;
        }
        const OptionSpec& spec = table[row];
        const std::string subject = place + ": option \"" + spec.name + "\"";
        if (written_as[row] != nullptr) {
            const bool two_spellings = *written_as[row] != name;
            result.problems.push_back(
                problem(subject + " is given twice" +
                        (two_spellings ? " (as \"" + *written_as[row] + "\" and as \"" + name + "\")" : std::string()) +
                        "; each option may be given once"));
            continue;
        }
        written_as[row] = &name;
        if (value.is_null() && !has_default(spec) && !spec.required) continue;
        auto converted = convert_option(subject, spec, value);
        if (converted.ok()) {
            result.values[row] = std::move(converted).value();
        } else {
            result.problems.push_back(converted.error());
        }
    }

    for (std::size_t row = 0; row < table.size(); ++row) {
        if (written_as[row] != nullptr) continue;
        const OptionSpec& spec = table[row];
        const std::string subject = place + ": option \"" + spec.name + "\"";
        if (!has_default(spec)) {
            if (spec.required) {
                result.problems.push_back(problem(subject + " is missing; accepted: " + accepted_values(spec)));
            }
            continue;
        }
        const auto value = convert(spec, *spec.default_value);
        if (!value) {
            result.problems.push_back(Error{ErrorCode::internal,
                                            subject + ": its default " + shown_value(*spec.default_value) +
                                                " does not fit its own table; accepted: " + accepted_values(spec),
                                            {}});
            continue;
        }
        result.values[row].type = spec.type;
        result.values[row].scalar = is_list(spec.type) && !spec.default_value->is_array();
        result.values[row].value = *value;
    }
    return result;
}

}  // namespace

const char* option_type_name(OptionType type) noexcept {
    switch (type) {
        case OptionType::none: return "none";
        case OptionType::boolean: return "bool";
        case OptionType::integer: return "int";
        case OptionType::real: return "float";
        case OptionType::text: return "string";
        case OptionType::enumeration: return "enum";
        case OptionType::integer_list: return "int list";
        case OptionType::real_list: return "float list";
    }
    return "none";
}

bool OptionSpec::takes_arguments() const noexcept {
    return type == OptionType::integer_list &&
           std::any_of(choices.begin(), choices.end(),
                       [](const std::string& choice) { return choice.find('(') != std::string::npos; });
}

std::string accepted_values(const OptionSpec& spec) {
    switch (spec.type) {
        case OptionType::none: return "nothing";
        case OptionType::boolean: return "true or false";
        case OptionType::integer: return "integer" + range_text(spec);
        case OptionType::real: return "number" + range_text(spec);
        case OptionType::text: return "text";
        case OptionType::enumeration: return "one of " + join_names(spec.choices);
        case OptionType::integer_list:
            if (!spec.choices.empty())
                return (spec.scalar_ok ? "one word or a list of words, each one of " : "list of words, each one of ") +
                       join_names(spec.choices);
            if (spec.rows)
                return "list of lists of one length, of integers" +
                       (range_text(spec).empty() ? std::string(" of any size") : range_text(spec));
            return (spec.scalar_ok ? "one integer or a list of integers, each" : "list of integers, each") +
                   (range_text(spec).empty() ? std::string(" of any size") : range_text(spec));
        case OptionType::real_list:
            return (spec.scalar_ok ? "one number or a list of numbers, each" : "list of numbers, each") +
                   (range_text(spec).empty() ? std::string(" finite") : range_text(spec));
    }
    return "nothing";
}

Result<OptionValue> convert_option(const std::string& subject, const OptionSpec& spec, const Json& value) {
    auto converted = convert(spec, value);
    if (!converted) {
        std::string message = subject + " is " + shown_value(value) + "; accepted: " + accepted_values(spec);
        if (!spec.help.empty()) message += " (" + spec.help + ")";
        return problem(message + choice_hint(spec, value));
    }
    OptionValue result;
    result.name = spec.name;
    result.type = spec.type;
    result.given = true;
    result.scalar = is_list(spec.type) && !value.is_array();
    result.value = std::move(*converted);
    return result;
}

Result<std::vector<OptionValue>> complete_options(const std::string& place, std::span<const OptionSpec> table,
                                                  const NamedValues& given) {
    Completed completed = complete(place, table, given);
    if (!completed.problems.empty()) return std::move(completed.problems.front());
    return std::move(completed.values);
}

std::vector<Error> check_options(const std::string& place, std::span<const OptionSpec> table,
                                 const NamedValues& given) {
    return complete(place, table, given).problems;
}

Json option_to_json(const OptionSpec& spec, const OptionValue& value) {
    if (const auto* flag = std::get_if<bool>(&value.value)) return Json(*flag);
    if (const auto* integer = std::get_if<std::int64_t>(&value.value)) {
        if (spec.type == OptionType::enumeration) {
            const auto index = static_cast<std::size_t>(*integer);
            return index < spec.choices.size() ? Json(spec.choices[index]) : Json();
        }
        return is_unsigned(spec) ? Json(static_cast<std::uint64_t>(*integer)) : Json(*integer);
    }
    if (const auto* real = std::get_if<double>(&value.value)) return Json(*real);
    if (const auto* text = std::get_if<std::string>(&value.value)) return Json(*text);
    const auto list = [&](const auto& elements) {
        if (value.scalar && elements.size() == 1) return Json(elements.front());
        Json array = Json::array();
        for (const auto& element : elements) array.push(Json(element));
        return array;
    };
    if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&value.value)) {
        if (spec.rows) {
            Json rows = Json::array();
            const std::size_t count = integers->empty() ? 0 : static_cast<std::size_t>(integers->front());
            for (std::size_t row = 0; row < count; ++row) {
                const std::size_t width = (integers->size() - 1) / count;
                Json array = Json::array();
                for (std::size_t at = 0; at < width; ++at) array.push(Json((*integers)[1 + row * width + at]));
                rows.push(std::move(array));
            }
            return rows;
        }
        if (spec.choices.empty()) return list(*integers);
        std::vector<std::string> words;
        if (spec.takes_arguments()) {
            for (std::size_t at = 0; at + 3 <= integers->size(); at += 3)
                words.push_back(call_text(spec, &(*integers)[at]));
            return list(words);
        }
        for (const std::int64_t index : *integers)
            words.push_back(static_cast<std::size_t>(index) < spec.choices.size()
                                ? spec.choices[static_cast<std::size_t>(index)]
                                : std::string());
        return list(words);
    }
    if (const auto* reals = std::get_if<std::vector<double>>(&value.value)) return list(*reals);
    return Json();
}

Json parse_bare_value(std::string_view text) {
    auto parsed = parse_json(text, "value");
    return parsed.ok() ? std::move(parsed).value() : Json(text);
}

Json parse_option_text(const OptionSpec& spec, std::string_view text) {
    Json value = parse_bare_value(text);
    switch (spec.type) {
        case OptionType::text:
        case OptionType::enumeration:
            // 4, true or [1] is a word here unless it was written as a JSON string.
            return value.is_string() || value.is_null() ? value : Json(text);
        case OptionType::integer_list:
        case OptionType::real_list: {
            if (!value.is_string()) return value;
            if (!spec.choices.empty()) {
                if (text.find(',') == std::string_view::npos) return value;
                Json words = Json::array();
                for (std::size_t begin = 0; begin <= text.size();) {
                    // Commas between parentheses belong to the word.
                    std::size_t end = begin;
                    for (int depth = 0; end < text.size() && (depth > 0 || text[end] != ','); ++end)
                        depth += text[end] == '(' ? 1 : text[end] == ')' ? -1 : 0;
                    words.push(Json(text.substr(begin, end - begin)));
                    begin = end + 1;
                }
                return words;
            }
            auto list = parse_json("[" + std::string(text) + "]", "value");
            return list.ok() ? std::move(list).value() : value;
        }
        default: return value;
    }
}

std::string shown_value(const Json& value) {
    constexpr std::size_t longest = 80;
    std::string text = write_json(value);
    if (text.size() <= longest) return text;
    std::size_t end = longest;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
    return text.substr(0, end) + "...";
}

}  // namespace attend
