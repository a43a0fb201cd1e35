// SPDX-License-Identifier: Apache-2.0
#include "attend/registry/mechanism_registry.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <tuple>

#include "attend/config/names.hpp"

namespace attend {
namespace {

const std::array<std::string, 8> category_order{
    "multi-head", "self-attention", "cross-attention", "sparse", "linear", "flash", "moe", "extra"};

constexpr std::array capability_table{
    "CAUSAL",   "MASK",       "BIAS",       "GQA",         "MQA",    "CROSS",    "WINDOW",        "SOFTCAP",
    "LSE_OUT",  "SCORES_OUT", "DROPOUT",    "VARLEN",      "DECODE", "BACKWARD", "DETERMINISTIC", "NEEDS_WEIGHTS",
    "STATEFUL", "STRIDED_IO", "DV_DIFFERS", "GRAPH_INPUT", "ROUTED", "IN_PLACE"};

std::size_t category_rank(const std::string& category) {
    return static_cast<std::size_t>(std::find(category_order.begin(), category_order.end(), category) -
                                    category_order.begin());
}

bool provides(const MechanismRecord& record, std::string_view provider) {
    const std::size_t at = provider.find('@');
    return record.plugin_id == provider.substr(0, at) &&
           (at == std::string_view::npos || record.plugin_version == provider.substr(at + 1));
}

}  // namespace

std::span<const std::string> categories() { return category_order; }

std::vector<std::string> capability_names(std::uint64_t caps) {
    std::vector<std::string> names;
    for (std::size_t bit = 0; bit < capability_table.size(); ++bit)
        if ((caps >> bit & 1u) != 0) names.emplace_back(capability_table[bit]);
    return names;
}

std::uint64_t capability_bit(std::string_view name) {
    std::string upper(name);
    std::transform(upper.begin(), upper.end(), upper.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    for (std::size_t bit = 0; bit < capability_table.size(); ++bit)
        if (upper == capability_table[bit]) return std::uint64_t{1} << bit;
    return 0;
}

bool is_mechanism_name(std::string_view name) {
    if (name.empty() || name.size() > 63 || name.front() == '-' || name.back() == '-') return false;
    char before = '\0';
    for (const char c : name) {
        const bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!letter && !(c == '-' && before != '-')) return false;
        before = c;
    }
    return true;
}

const OptionSpec* MechanismRecord::find_option(std::string_view option) const {
    const auto found =
        std::find_if(options.begin(), options.end(), [&](const OptionSpec& spec) { return spec.name == option; });
    return found == options.end() ? nullptr : &*found;
}

std::string_view repeated_by(std::string_view name) {
    const std::size_t open = name.find('{'), close = name.find('}', open);
    return close == std::string_view::npos ? std::string_view() : name.substr(open + 1, close - open - 1);
}

std::string repeated_name(std::string_view text, std::int64_t number) {
    const std::size_t open = text.find('{'), close = text.find('}', open);
    if (close == std::string_view::npos) return std::string(text);
    return std::string(text.substr(0, open)) + std::to_string(number) + std::string(text.substr(close + 1));
}

std::int64_t repeated_number(std::string_view port, std::string_view name) {
    const std::size_t open = port.find('{'), close = port.find('}', open);
    if (close == std::string_view::npos || name.substr(0, open) != port.substr(0, open)) return 0;
    std::size_t end = open;
    while (end < name.size() && end - open < 18 && name[end] >= '0' && name[end] <= '9') ++end;
    if (end == open || name[open] == '0' || name.substr(end) != port.substr(close + 1)) return 0;
    std::int64_t number = 0;
    for (const char digit : name.substr(open, end - open)) number = number * 10 + (digit - '0');
    return number;
}

const PortRecord* MechanismRecord::find_port(std::string_view port) const {
    const auto found = std::find_if(ports.begin(), ports.end(), [&](const PortRecord& record) {
        return record.name == port || repeated_number(record.name, port) > 0;
    });
    return found == ports.end() ? nullptr : &*found;
}

MechanismPtr RegistrySnapshot::find(std::string_view name) const {
    // Calls look mechanisms up: nothing is put together here.
    const auto is_qualified = [name](const MechanismRecord& mechanism) {
        const std::size_t id = mechanism.plugin_id.size();
        return name.size() == id + 1 + mechanism.name.size() && name[id] == '/' &&
               name.starts_with(mechanism.plugin_id) && name.ends_with(mechanism.name);
    };
    for (const MechanismPtr& mechanism : mechanisms_)
        if ((mechanism->shadowed_by.empty() && mechanism->name == name) || is_qualified(*mechanism)) return mechanism;
    return nullptr;
}

Result<MechanismPtr> RegistrySnapshot::get(std::string_view name, const std::string& place) const {
    if (MechanismPtr found = find(name)) return found;
    const std::vector<std::string> known = names();
    return Error{ErrorCode::not_found,
                 (place.empty() ? "" : place + ": ") + "unknown mechanism \"" + std::string(name) + "\"" +
                     did_you_mean(name, known) +
                     (known.size() <= 16 ? "; accepted: " + join_names(known) : "; `attend list` shows all"),
                 ""};
}

std::vector<MechanismPtr> RegistrySnapshot::by_category(std::string_view category) const {
    std::vector<MechanismPtr> found;
    std::copy_if(mechanisms_.begin(), mechanisms_.end(), std::back_inserter(found),
                 [&](const MechanismPtr& mechanism) { return mechanism->category == category; });
    return found;
}

std::vector<std::string> RegistrySnapshot::names() const {
    std::vector<std::string> names;
    for (const MechanismPtr& mechanism : mechanisms_)
        names.push_back(mechanism->shadowed_by.empty() ? mechanism->name : mechanism->qualified_name());
    return names;
}

MechanismRegistry::MechanismRegistry() : current_(std::make_shared<const RegistrySnapshot>()) {}

std::shared_ptr<const RegistrySnapshot> MechanismRegistry::snapshot() const {
    const std::scoped_lock lock(mutex_);
    return current_;
}

namespace {
void sort_mechanisms(std::vector<MechanismPtr>& mechanisms) {
    std::stable_sort(mechanisms.begin(), mechanisms.end(), [](const MechanismPtr& a, const MechanismPtr& b) {
        const auto key = [](const MechanismPtr& m) {
            return std::tuple(category_rank(m->category), std::string_view(m->name), !m->shadowed_by.empty());
        };
        return key(a) < key(b);
    });
}
}  // namespace

Result<void> MechanismRegistry::add(std::vector<MechanismRecord> records,
                                    std::span<const std::pair<std::string, std::string>> providers) {
    const std::scoped_lock lock(mutex_);
    auto next = std::make_shared<RegistrySnapshot>(*current_);
    ++next->generation_;
    for (MechanismRecord& record : records) {
        for (const MechanismPtr& known : next->mechanisms_)
            if (known->plugin_id == record.plugin_id && known->name == record.name)
                return Error{ErrorCode::plugin,
                             record.plugin_id + ": mechanism \"" + record.name +
                                 "\" is already registered; accepted: a name once per plugin",
                             ""};
        auto holder = std::find_if(next->mechanisms_.begin(), next->mechanisms_.end(), [&](const MechanismPtr& known) {
            return known->name == record.name && known->shadowed_by.empty();
        });
        if (holder != next->mechanisms_.end()) {
            const auto wanted = std::find_if(providers.begin(), providers.end(),
                                             [&](const auto& entry) { return entry.first == record.name; });
            if (wanted != providers.end() && provides(record, wanted->second)) {
                auto loser = std::make_shared<MechanismRecord>(**holder);
                loser->shadowed_by = record.plugin_id;
                *holder = std::move(loser);
            } else {
                record.shadowed_by = (*holder)->plugin_id;
            }
        }
        next->mechanisms_.push_back(std::make_shared<const MechanismRecord>(std::move(record)));
    }
    sort_mechanisms(next->mechanisms_);
    current_ = std::move(next);
    return {};
}

Result<void> MechanismRegistry::put(MechanismRecord record, bool replace) {
    if (!is_mechanism_name(record.name))
        return Error{ErrorCode::option,
                     "register: mechanism name \"" + record.name +
                         "\" is malformed; accepted: lower-case words of letters and digits, joined by dashes",
                     ""};
    const auto known_categories = categories();
    if (std::find(known_categories.begin(), known_categories.end(), record.category) == known_categories.end())
        return Error{ErrorCode::option,
                     "register: " + record.name + ": unknown category \"" + record.category +
                         "\"; accepted: one of the seven categories or extra",
                     ""};
    if (record.functions == nullptr)
        return Error{ErrorCode::input, "register: " + record.name + ": has no functions; accepted: a mechanism's table",
                     ""};
    const std::scoped_lock lock(mutex_);
    auto next = std::make_shared<RegistrySnapshot>(*current_);
    ++next->generation_;
    record.shadowed_by.clear();
    std::vector<MechanismPtr>& all = next->mechanisms_;
    const auto holder = std::find_if(all.begin(), all.end(), [&](const MechanismPtr& known) {
        return known->name == record.name && known->shadowed_by.empty();
    });
    if (holder != all.end()) {
        if (!replace)
            return Error{ErrorCode::option,
                         "register: mechanism \"" + record.name + "\" is already registered by " +
                             (*holder)->plugin_id + "; accepted: a free name, or replace",
                         ""};
        record.replacements = (*holder)->replacements + 1;
        all.erase(holder);
    }
    // What this plugin had under the name, shadowed, gives way too.
    std::erase_if(all, [&](const MechanismPtr& known) {
        return known->name == record.name && known->plugin_id == record.plugin_id;
    });
    all.push_back(std::make_shared<const MechanismRecord>(std::move(record)));
    sort_mechanisms(all);
    current_ = std::move(next);
    return {};
}

}  // namespace attend
