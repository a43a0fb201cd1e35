// SPDX-License-Identifier: Apache-2.0
// One JSON value, the strict parser and the writer. The library behind them stays in src/parse.cpp: whoever
// includes this header sees the standard library only.
#pragma once

#include <cassert>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "attend/error.hpp"

namespace attend {

// A JSON value. Objects keep the order in which their keys were written. Numbers remember how they were written:
// an integer (no fraction, no exponent) is an int64, or a uint64 if it is larger than an int64 holds; every other
// number, and an integer beyond 64 bits, is a double.
class Json {
public:
    using Array = std::vector<Json>;
    using Member = std::pair<std::string, Json>;
    using Object = std::vector<Member>;

    // Out of line: the variant's moves, inlined everywhere, cost code and mislead the compiler's warnings.
    Json();
    ~Json();
    Json(const Json& other);
    Json(Json&& other) noexcept;
    Json& operator=(const Json& other);
    Json& operator=(Json&& other) noexcept;

    Json(std::nullptr_t) {}
    // A template, so that no pointer becomes a boolean.
    template <std::same_as<bool> T>
    Json(T value) : value_(value) {}
    template <std::signed_integral T>
    Json(T value) : value_(static_cast<std::int64_t>(value)) {}
    template <std::unsigned_integral T>
    requires(!std::same_as<T, bool>) Json(T value) {
        const auto wide = static_cast<std::uint64_t>(value);
        if (wide <= static_cast<std::uint64_t>(INT64_MAX)) {
            value_ = static_cast<std::int64_t>(wide);
        } else {
            value_ = wide;
        }
    }
    Json(double value) : value_(value) {}
    Json(float value) : value_(static_cast<double>(value)) {}
    Json(const char* value) : value_(std::string(value)) {}
    Json(std::string value) : value_(std::move(value)) {}
    Json(std::string_view value) : value_(std::string(value)) {}
    Json(Array value) : value_(std::move(value)) {}
    Json(Object value) : value_(std::move(value)) {}

    [[nodiscard]] static Json array() { return Json(Array{}); }
    [[nodiscard]] static Json object() { return Json(Object{}); }

    [[nodiscard]] bool is_null() const noexcept { return std::holds_alternative<std::monostate>(value_); }
    [[nodiscard]] bool is_bool() const noexcept { return std::holds_alternative<bool>(value_); }
    [[nodiscard]] bool is_int64() const noexcept { return std::holds_alternative<std::int64_t>(value_); }
    [[nodiscard]] bool is_uint64() const noexcept { return std::holds_alternative<std::uint64_t>(value_); }
    [[nodiscard]] bool is_integer() const noexcept { return is_int64() || is_uint64(); }
    [[nodiscard]] bool is_double() const noexcept { return std::holds_alternative<double>(value_); }
    [[nodiscard]] bool is_number() const noexcept { return is_integer() || is_double(); }
    [[nodiscard]] bool is_string() const noexcept { return std::holds_alternative<std::string>(value_); }
    [[nodiscard]] bool is_array() const noexcept { return std::holds_alternative<Array>(value_); }
    [[nodiscard]] bool is_object() const noexcept { return std::holds_alternative<Object>(value_); }

    // "null", "a boolean", "a number", "a string", "an array", "an object": for messages.
    [[nodiscard]] const char* kind() const noexcept;

    // The value itself; it is a mistake of the caller to ask for a type that it is not.
    [[nodiscard]] bool as_bool() const { return get<bool>(); }
    [[nodiscard]] std::int64_t as_int64() const { return get<std::int64_t>(); }
    [[nodiscard]] const std::string& as_string() const { return get<std::string>(); }
    [[nodiscard]] const Array& as_array() const { return get<Array>(); }
    [[nodiscard]] const Object& as_object() const { return get<Object>(); }
    [[nodiscard]] Array& as_array() { return const_cast<Array&>(get<Array>()); }
    [[nodiscard]] Object& as_object() { return const_cast<Object&>(get<Object>()); }
    // Any number as a double (integers beyond 2^53 are rounded); 0 is never invented: not a number is a mistake.
    [[nodiscard]] double as_double() const;

    // Exact conversions: a value only if this is a number that the target holds exactly; 4.0 counts as 4.
    [[nodiscard]] std::optional<std::int64_t> to_int64() const noexcept;
    [[nodiscard]] std::optional<std::uint64_t> to_uint64() const noexcept;

    // Member of an object by its exact name, or nullptr; also nullptr if this is not an object.
    [[nodiscard]] const Json* find(std::string_view key) const noexcept;
    [[nodiscard]] Json* find(std::string_view key) noexcept;

    // Elements of an array or members of an object; 0 for everything else.
    [[nodiscard]] std::size_t size() const noexcept;

    // Adds or replaces a member; null becomes an object first. Returns *this, so that calls can be chained.
    Json& set(std::string_view key, Json value);
    // Appends an element; null becomes an array first.
    Json& push(Json value);

    [[nodiscard]] bool operator==(const Json& other) const;

private:
    template <class T>
    [[nodiscard]] const T& get() const {
        const T* value = std::get_if<T>(&value_);
        assert(value != nullptr && "Json: asked for a type that the value does not have");
        return *value;
    }

    std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object> value_;
};

struct JsonLimits {
    std::size_t max_depth = 64;        // arrays and objects inside one another; the outermost counts as 1
    bool allow_trailing_space = true;  // blanks and line ends after the value
    bool reject_duplicates = true;     // false only for callers that report duplicate keys themselves
};

// Parses exactly one JSON value as RFC 8259 has it: UTF-8 is checked, no comments, no trailing commas, no key
// twice in one object, no number beyond a double. The error message is
// "<place>: line L, column C (byte B): <what>; <what is accepted>", code ErrorCode::input.
[[nodiscard]] Result<Json> parse_json(std::string_view text, const std::string& place, const JsonLimits& limits = {});

// Writes a value: keys in their order, doubles as the shortest text that reads back as the same double (always
// with a fraction or exponent), NaN and infinity as null, bytes that are no UTF-8 as U+FFFD. Pretty output is
// indented by two blanks and ends without a line end.
[[nodiscard]] std::string write_json(const Json& value, bool pretty = false);

}  // namespace attend
