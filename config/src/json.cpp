// SPDX-License-Identifier: Apache-2.0
// The value type of json.hpp: look-ups, exact number conversions, comparison.
#include "attend/config/json.hpp"

#include <cmath>

namespace attend {

Json::Json() = default;
Json::~Json() = default;
Json::Json(const Json& other) = default;
Json::Json(Json&& other) noexcept = default;
Json& Json::operator=(const Json& other) = default;
Json& Json::operator=(Json&& other) noexcept = default;

const char* Json::kind() const noexcept {
    if (is_null()) return "null";
    if (is_bool()) return "a boolean";
    if (is_number()) return "a number";
    if (is_string()) return "a string";
    if (is_array()) return "an array";
    return "an object";
}

double Json::as_double() const {
    if (is_int64()) return static_cast<double>(get<std::int64_t>());
    if (is_uint64()) return static_cast<double>(get<std::uint64_t>());
    return get<double>();
}

std::optional<std::int64_t> Json::to_int64() const noexcept {
    if (const auto* integer = std::get_if<std::int64_t>(&value_)) return *integer;
    if (const auto* real = std::get_if<double>(&value_)) {
        // 2^63 is exact as a double, INT64_MAX is not.
        if (*real >= -0x1p63 && *real < 0x1p63 && std::trunc(*real) == *real) return static_cast<std::int64_t>(*real);
    }
    return std::nullopt;
}

std::optional<std::uint64_t> Json::to_uint64() const noexcept {
    if (const auto* integer = std::get_if<std::int64_t>(&value_)) {
        if (*integer >= 0) return static_cast<std::uint64_t>(*integer);
        return std::nullopt;
    }
    if (const auto* integer = std::get_if<std::uint64_t>(&value_)) return *integer;
    if (const auto* real = std::get_if<double>(&value_)) {
        if (*real >= 0.0 && *real < 0x1p64 && std::trunc(*real) == *real) return static_cast<std::uint64_t>(*real);
    }
    return std::nullopt;
}

const Json* Json::find(std::string_view key) const noexcept {
    const auto* members = std::get_if<Object>(&value_);
    if (members == nullptr) return nullptr;
    for (const Member& member : *members) {
        if (member.first == key) return &member.second;
    }
    return nullptr;
}

Json* Json::find(std::string_view key) noexcept { return const_cast<Json*>(static_cast<const Json*>(this)->find(key)); }

std::size_t Json::size() const noexcept {
    if (const auto* elements = std::get_if<Array>(&value_)) return elements->size();
    if (const auto* members = std::get_if<Object>(&value_)) return members->size();
    return 0;
}

Json& Json::set(std::string_view key, Json value) {
    if (is_null()) value_ = Object{};
    if (Json* existing = find(key)) {
        *existing = std::move(value);
    } else {
        as_object().emplace_back(std::string(key), std::move(value));
    }
    return *this;
}

Json& Json::push(Json value) {
    if (is_null()) value_ = Array{};
    as_array().push_back(std::move(value));
    return *this;
}

bool Json::operator==(const Json& other) const { return value_ == other.value_; }

}  // namespace attend
