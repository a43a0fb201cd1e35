// SPDX-License-Identifier: Apache-2.0
// The rows of the configuration file.
#include "config_table.hpp"

#include <limits>

namespace attend::config_table {
namespace {

constexpr double smallest_positive = std::numeric_limits<double>::denorm_min();
constexpr double largest_int32 = 2147483647.0;

template <class Section>
class Table {
public:
    template <class Member>
    OptionSpec& add(const char* name, OptionType type, Member member, const char* help) {
        Setting<Section> setting{OptionSpec{.name = name, .help = help, .type = type}, member};
        const Json value = fetch(Section{}, setting);
        const bool empty_text = value.is_string() && value.as_string().empty();
        if (!value.is_null() && !empty_text) setting.spec.default_value = value;
        rows_.push_back(std::move(setting));
        return rows_.back().spec;
    }
    OptionSpec& flag(const char* name, bool Section::*member, const char* help) {
        return add(name, OptionType::boolean, member, help);
    }
    template <class Member>
    OptionSpec& integer(const char* name, Member member, double min, double max, const char* help) {
        OptionSpec& spec = add(name, OptionType::integer, member, help);
        spec.min = min;
        spec.max = max;
        return spec;
    }
    template <class Member>
    OptionSpec& real(const char* name, Member member, const char* help) {
        return add(name, OptionType::real, member, help);
    }
    OptionSpec& text(const char* name, std::string Section::*member, const char* help) {
        return add(name, OptionType::text, member, help);
    }
    void choice(const char* name, std::string Section::*member, std::vector<std::string> choices, const char* help) {
        // The default is set after the choices: add() only copies the text.
        add(name, OptionType::enumeration, member, help).choices = std::move(choices);
    }
    void nullable() { rows_.back().nullable = true; }
    [[nodiscard]] std::vector<Setting<Section>> take() { return std::move(rows_); }

private:
    std::vector<Setting<Section>> rows_;
};

constexpr double unlimited = std::numeric_limits<double>::infinity();

}  // namespace

std::span<const Setting<ServiceConfig>> service_settings() {
    static const auto rows = [] {
        using S = ServiceConfig;
        Table<S> table;
        table.choice("backend", &S::backend, {"auto", "avx512", "avx2", "neon", "baseline"},
                     "highest instruction set that plugins may use");
        table.choice("precision", &S::precision, {"fp32", "fp16", "bf16", "int8", "fp8"},
                     "number format of the computation");
        table.integer("threads", &S::threads, 0, largest_int32, "threads to use, 0 for one per logical core");
        table.flag("deterministic", &S::deterministic, "same bits for any number of threads");
        table.text("default_mechanism", &S::default_mechanism, "mechanism for requests that no rule decides");
        table.text("fallback_mechanism", &S::fallback_mechanism, "mechanism for long requests that no rule decides");
        table.integer("long_sequence_threshold", &S::long_sequence_threshold, 1, unlimited,
                      "sequences longer than this are long");
        table.flag("allow_approximate", &S::allow_approximate, "long requests may go to the fallback mechanism");
        table.integer("memory_budget", &S::memory_budget, 1, unlimited, "bytes that a call may use, null for no limit");
        table.nullable();
        table.flag("enable_cache", &S::enable_cache, "keep results of earlier calls");
        table.flag("strict_rules", &S::strict_rules, "a rule that cannot be evaluated is an error");
        table.real("speedup_target", &S::speedup_target, "speed-up that counts as a success in benchmarks").min =
            smallest_positive;
        return table.take();
    }();
    return rows;
}

std::span<const Setting<CacheConfig>> cache_settings() {
    static const auto rows = [] {
        using C = CacheConfig;
        Table<C> table;
        table.choice("mode", &C::mode, {"off", "on", "auto"},
                     "auto leaves out calls that are faster than hashing their input");
        table.choice("level", &C::level, {"output", "pattern", "both"}, "what is kept");
        table.integer("capacity_bytes", &C::capacity_bytes, 0, unlimited, "bytes of all entries together");
        table.integer("max_entries", &C::max_entries, 0, unlimited, "number of entries");
        OptionSpec& fraction =
            table.real("max_entry_fraction", &C::max_entry_fraction, "share of the capacity that one entry may take");
        fraction.min = 0.0;
        fraction.max = 1.0;
        table.integer("ttl_ms", &C::ttl_ms, 0, unlimited, "milliseconds that an entry lives, 0 for ever");
        table.choice("verify", &C::verify, {"hash", "full"}, "full compares all bytes of the input on a hit");
        return table.take();
    }();
    return rows;
}

std::span<const Setting<TargetConfig>> target_settings() {
    static const auto rows = [] {
        using T = TargetConfig;
        Table<T> table;
        table.text("name", &T::name, "what reports call the target");
        table.text("mechanism", &T::mechanism, "the mechanism that is measured").required = true;
        table.text("against", &T::against, "materialised, or a mechanism");
        table.integer("sequence_length", &T::sequence_length, 1, largest_int32, "queries and keys");
        table.integer("head_dim", &T::head_dim, 1, largest_int32, "width of a head");
        table.integer("heads", &T::heads, 1, largest_int32, "number of heads");
        table.choice("metric", &T::metric, {"speedup", "memory_saving", "relative_error"}, "what is measured");
        table.real("at_least", &T::at_least, "the target is met at this value or above");
        table.real("at_most", &T::at_most, "the target is met at this value or below");
        return table.take();
    }();
    return rows;
}

std::span<const Setting<MechanismConfig>> mechanism_settings() {
    static const auto rows = [] {
        Table<MechanismConfig> table;
        table.text("provider", &MechanismConfig::provider, "plugin id, or id@version, that provides the mechanism");
        return table.take();
    }();
    return rows;
}

std::span<const Setting<RuleSource>> rule_settings() {
    static const auto rows = [] {
        Table<RuleSource> table;
        table.text("condition", &RuleSource::condition, "when the rule matches, in the rule language").required = true;
        table.text("mechanism", &RuleSource::mechanism, "the mechanism that the rule selects").required = true;
        return table.take();
    }();
    return rows;
}

}  // namespace attend::config_table
