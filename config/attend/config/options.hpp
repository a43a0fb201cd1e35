// SPDX-License-Identifier: Apache-2.0
// Option tables as data, and values checked against them: the options of mechanisms and the settings of the
// configuration file go through the same code, so both speak of names, types and ranges in the same way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "attend/config/json.hpp"
#include "attend/error.hpp"

namespace attend {

enum class OptionType { none, boolean, integer, real, text, enumeration, integer_list, real_list };

// "bool", "int", "float", "string", "enum", "int list", "float list"; "none" for none. A list of words is an "int list" of
// their indices to a plugin; people read and write the words.
[[nodiscard]] const char* option_type_name(OptionType type) noexcept;

// One row of an option table.
struct OptionSpec {
    std::string name{};  // canonical: snake_case
    std::string help{};  // one line
    OptionType type{OptionType::none};
    std::optional<Json> default_value{};  // nothing, or JSON null: no default
    // Bounds, both inclusive, of a number or of each element of a list. A minimum of the smallest positive double
    // means "above 0", a maximum of the largest double below 1 "below 1". An integer whose finite maximum is
    // 2^63 or more and whose minimum is not negative is an unsigned 64-bit number.
    double min{-std::numeric_limits<double>::infinity()};
    double max{std::numeric_limits<double>::infinity()};
    double step{0.0};  // a hint for tuning, not a check
    std::vector<std::string>
        choices{};  // of an enumeration, or of the elements of an integer list, which are then words
    // Choices of a list may take integers, "dilated(w,r)": people write dilated(256,2), and a plugin gets three numbers for
    // each element, the index and up to two arguments (0 where there is none).
    [[nodiscard]] bool takes_arguments() const noexcept;
    std::string unit{};
    std::string since{};
    std::string replaced_by{};
    bool rows{false};       // an integer list of lists of one length: a plugin gets their number, then one after the other
    bool scalar_ok{false};  // a list that also takes one bare number, and tells that it was bare
    bool required{false};
    bool tunable{false};
    bool affects_numerics{false};
    bool expert{false};
    bool deprecated{false};
};

// One option as a mechanism gets it.
struct OptionValue {
    using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<std::int64_t>,
                               std::vector<double>>;

    std::string name;
    OptionType type{OptionType::none};  // none: not given and no default
    bool given{false};                  // set by the caller, not filled in
    bool scalar{false};                 // a list that was written as one bare number
    Value value;                        // a choice: its index in choices; unsigned: the bits of the number
};

using NamedValues = std::vector<std::pair<std::string, Json>>;

// What an option accepts, in words: "integer from 1 to 65536", "one of auto, on, off", "number above 0".
[[nodiscard]] std::string accepted_values(const OptionSpec& spec);

// Checks the given options against the table and completes it: one value per row, in table order. Names are taken
// in both spellings; JSON null counts as not given where the option has no default. `place` begins the message:
// `<place>: option "window" is 0; accepted: integer from 1 to 65536 (keys seen on each side of a query)`.
[[nodiscard]] Result<std::vector<OptionValue>> complete_options(const std::string& place,
                                                                std::span<const OptionSpec> table,
                                                                const NamedValues& given);

// The same checks; every problem instead of the first one.
[[nodiscard]] std::vector<Error> check_options(const std::string& place, std::span<const OptionSpec> table,
                                               const NamedValues& given);

// One value against one row; `subject` begins the message: `<subject> is 0; accepted: ...`.
[[nodiscard]] Result<OptionValue> convert_option(const std::string& subject, const OptionSpec& spec, const Json& value);

// A value in force as JSON again: enumerations by their choice, lists that were bare as a bare number.
[[nodiscard]] Json option_to_json(const OptionSpec& spec, const OptionValue& value);

// A value given on a command line or in the environment: JSON, or bare (a word for text and enumerations, numbers
// separated by commas for lists). What is neither comes back as a string, which the checks above then refuse.
[[nodiscard]] Json parse_option_text(const OptionSpec& spec, std::string_view text);
// The same without a table: JSON if it is JSON, otherwise a string.
[[nodiscard]] Json parse_bare_value(std::string_view text);

// A value as a message shows it: compact JSON, cut off where it is long.
[[nodiscard]] std::string shown_value(const Json& value);

}  // namespace attend
