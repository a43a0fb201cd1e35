// SPDX-License-Identifier: Apache-2.0
// What exists: the mechanisms of all plugins, in immutable snapshots. A lookup takes a snapshot and keeps what it
// found alive; a change builds the next snapshot and swaps it in, so calls in flight never see half a change.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/abi.h"
#include "attend/config/options.hpp"
#include "attend/error.hpp"

namespace attend {

struct PortRecord {
    std::string name, shape, help, init;
    std::uint32_t role{}, flags{}, min_align{};
    std::uint64_t dtypes{};
};

// A port whose name holds an option in braces stands for one weight per number from 1 to the option's value.
// The option's name; empty: an ordinary port.
[[nodiscard]] std::string_view repeated_by(std::string_view name);
// The text with the braces replaced by a number.
[[nodiscard]] std::string repeated_name(std::string_view text, std::int64_t number);
// The number that makes `name` of the repeated port's name, 0 if there is none.
[[nodiscard]] std::int64_t repeated_number(std::string_view port, std::string_view name);

// One mechanism as the host knows it: a copy of everything its plugin said about it, and the functions.
struct MechanismRecord {
    std::string name, category, title, summary, reference, time_complexity, space_complexity;
    std::string formula, cost, use, example;  // the guide (attend.guide/1); empty: the plugin gives none
    std::uint64_t caps{}, dtypes{};
    std::uint32_t numerics{}, revision{};
    std::uint64_t replacements{
        0};  // how often a mechanism of this name was replaced: results of before are not its own
    std::vector<OptionSpec> options;  // the plugin's own, then the common ones that its capabilities imply
    std::size_t own_options{0};
    std::vector<PortRecord> ports;
    std::string plugin_id, plugin_version, plugin_path;
    std::string backend;   // the instruction set that the plugin chose
    bool built_in{false};  // its short name is reserved
    std::string
        shadowed_by;  // not empty: reachable by qualified name only, and this is the plugin that has the short name

    const attend_mechanism* functions{};
    attend_lib* lib{};
    std::shared_ptr<const void> library;  // keeps the plugin open

    [[nodiscard]] std::string qualified_name() const { return plugin_id + "/" + name; }
    [[nodiscard]] const OptionSpec* find_option(std::string_view option) const;
    // By its name, or the repeated port that has a weight of this name ("s_{layers}.wq" for "s_2.wq").
    [[nodiscard]] const PortRecord* find_port(std::string_view port) const;
    [[nodiscard]] bool has(std::uint64_t capability) const { return (caps & capability) == capability; }
};

using MechanismPtr = std::shared_ptr<const MechanismRecord>;

// The seven categories and "extra", in the order of reports.
[[nodiscard]] std::span<const std::string> categories();
// "CAUSAL", "MASK", ... of a capability word, in the order of the bits.
[[nodiscard]] std::vector<std::string> capability_names(std::uint64_t caps);
// The bit of a name (any case), or 0.
[[nodiscard]] std::uint64_t capability_bit(std::string_view name);
[[nodiscard]] bool is_mechanism_name(std::string_view name);

class RegistrySnapshot {
public:
    // By short name or qualified name ("org.example.fancy/my-attention"); null if there is none.
    [[nodiscard]] MechanismPtr find(std::string_view name) const;
    // find, or the error with the nearest names.
    [[nodiscard]] Result<MechanismPtr> get(std::string_view name, const std::string& place) const;
    // Sorted by (category in the order of categories(), name); qualified-only mechanisms included last within a name.
    [[nodiscard]] const std::vector<MechanismPtr>& list() const noexcept { return mechanisms_; }
    [[nodiscard]] std::vector<MechanismPtr> by_category(std::string_view category) const;
    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] std::uint64_t generation() const noexcept { return generation_; }

private:
    friend class MechanismRegistry;
    std::vector<MechanismPtr> mechanisms_;
    std::uint64_t generation_{0};
};

class MechanismRegistry {
public:
    MechanismRegistry();

    [[nodiscard]] std::shared_ptr<const RegistrySnapshot> snapshot() const;

    // Adds mechanisms. A short name that a built-in has stays the built-in's; otherwise the earlier one keeps it,
    // unless `providers` names the plugin ("<plugin id>[@version]") that should have it. The loser stays reachable by
    // its qualified name. The same plugin's same name twice is an error, and then nothing is added.
    Result<void> add(std::vector<MechanismRecord> records,
                     std::span<const std::pair<std::string, std::string>> providers = {});

    // One mechanism under its short name. A name that another has is refused, unless `replace`: then this one takes its
    // place, whoever brought it, and counts one replacement more.
    Result<void> put(MechanismRecord record, bool replace);

private:
    mutable std::mutex mutex_;
    std::shared_ptr<const RegistrySnapshot> current_;
};

}  // namespace attend
