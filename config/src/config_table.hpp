// SPDX-License-Identifier: Apache-2.0
// The one description of the configuration file: names, types, ranges, help, and the member that holds the value.
// Reading, overriding, the schema and `show` all walk these tables. Internal to config.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "attend/config/config.hpp"

namespace attend::config_table {

template <class Section>
struct Setting {
    OptionSpec spec;  // the default is taken from the section's member initialiser
    std::variant<bool Section::*, std::int64_t Section::*, double Section::*, std::string Section::*,
                 std::optional<std::int64_t> Section::*, std::optional<double> Section::*>
        member;
    bool nullable{false};  // JSON null is a value of its own: nothing
};

[[nodiscard]] std::span<const Setting<ServiceConfig>> service_settings();
[[nodiscard]] std::span<const Setting<CacheConfig>> cache_settings();
[[nodiscard]] std::span<const Setting<TargetConfig>> target_settings();
[[nodiscard]] std::span<const Setting<MechanismConfig>> mechanism_settings();
[[nodiscard]] std::span<const Setting<RuleSource>> rule_settings();  // without "options", which is no single value

// Stores a converted value; `value` fits the setting's type.
template <class Section>
void store(Section& section, const Setting<Section>& setting, const OptionValue& value) {
    const auto text = [&]() -> std::string {
        if (const auto* index = std::get_if<std::int64_t>(&value.value)) {
            return setting.spec.choices[static_cast<std::size_t>(*index)];
        }
        const auto* written = std::get_if<std::string>(&value.value);
        return written != nullptr ? *written : std::string();
    };
    std::visit(
        [&](auto member) {
            using Member = std::remove_reference_t<decltype(section.*member)>;
            if constexpr (std::is_same_v<Member, std::string>) {
                section.*member = text();
            } else if constexpr (std::is_same_v<Member, std::optional<std::int64_t>>) {
                if (const auto* number = std::get_if<std::int64_t>(&value.value)) section.*member = *number;
            } else if constexpr (std::is_same_v<Member, std::optional<double>>) {
                if (const auto* number = std::get_if<double>(&value.value)) section.*member = *number;
            } else {
                if (const auto* plain = std::get_if<Member>(&value.value)) section.*member = *plain;
            }
        },
        setting.member);
}

template <class Section>
void store_nothing(Section& section, const Setting<Section>& setting) {
    std::visit(
        [&](auto member) {
            using Member = std::remove_reference_t<decltype(section.*member)>;
            if constexpr (std::is_same_v<Member, std::optional<std::int64_t>> ||
                          std::is_same_v<Member, std::optional<double>>) {
                section.*member = std::nullopt;
            }
        },
        setting.member);
}

template <class Section>
[[nodiscard]] Json fetch(const Section& section, const Setting<Section>& setting) {
    return std::visit(
        [&](auto member) {
            using Member = std::remove_cvref_t<decltype(section.*member)>;
            if constexpr (std::is_same_v<Member, std::optional<std::int64_t>> ||
                          std::is_same_v<Member, std::optional<double>>) {
                return section.*member ? Json(*(section.*member)) : Json();
            } else {
                return Json(section.*member);
            }
        },
        setting.member);
}

}  // namespace attend::config_table
