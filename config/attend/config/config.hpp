// SPDX-License-Identifier: Apache-2.0
// The typed configuration: what a file, the environment and flags may set, where each value came from, and the
// descriptions derived from the same table (JSON Schema, `config show`).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attend/config/json.hpp"
#include "attend/config/options.hpp"
#include "attend/config/rules.hpp"
#include "attend/error.hpp"

namespace attend {

inline constexpr std::int64_t config_version = 1;

// Where a value comes from.
struct Origin {
    enum class Kind { default_value, file, environment, flag };
    Kind kind{Kind::default_value};
    std::string name;  // path of the file, name of the variable or flag

    // "default", "file attend.json", "environment ATTEND_BACKEND", "flag --backend".
    [[nodiscard]] std::string text() const;
    bool operator==(const Origin&) const = default;
};

struct ServiceConfig {
    std::string backend{"auto"};  // auto, avx512, avx2, neon, baseline
    std::string precision{"fp32"};
    std::int64_t threads{0};  // 0: one per logical core
    bool deterministic{true};
    std::string default_mechanism{"flash-attention-v2"};
    std::string fallback_mechanism{"linear-attention"};
    std::int64_t long_sequence_threshold{4096};
    bool allow_approximate{true};
    std::optional<std::int64_t> memory_budget;  // bytes; nothing: unlimited
    bool enable_cache{true};
    bool strict_rules{false};
    double speedup_target{2.49};
};

struct CacheConfig {
    std::string mode{"auto"};     // off, on, auto
    std::string level{"output"};  // output, pattern, both
    std::int64_t capacity_bytes{std::int64_t{64} << 20};
    std::int64_t max_entries{256};
    double max_entry_fraction{0.25};
    std::int64_t ttl_ms{0};      // 0: entries do not age
    std::string verify{"hash"};  // hash, full
};

struct PluginsConfig {
    std::vector<std::string> dirs;                       // resolved against the folder of the file
    std::vector<std::pair<std::string, Json>> settings;  // plugin id -> its settings, unread
};

struct MechanismConfig {
    std::string name;
    std::string provider;  // "<plugin id>" or "<plugin id>@<version>"
};

struct TargetConfig {
    std::string name;
    std::string mechanism;
    std::string against{"materialised"};  // or a mechanism
    std::int64_t sequence_length{2048};
    std::int64_t head_dim{64};
    std::int64_t heads{8};
    std::string metric{"speedup"};   // speedup, memory_saving, relative_error
    std::optional<double> at_least;  // exactly one of the two limits is given
    std::optional<double> at_most;
};

struct Config {
    std::string file;     // what messages call it; empty: built from defaults alone
    bool shipped{false};  // the one in the library: its rules may name mechanisms of plugins that are not there
    ServiceConfig service;
    CacheConfig cache;
    std::vector<Rule> rules;
    std::vector<RuleSource> rule_sources;  // the same rules as written, also those that did not compile
    PluginsConfig plugins;
    std::vector<MechanismConfig> mechanisms;
    std::vector<TargetConfig> targets;

    // Path ("service.backend", "rules", "plugins.dirs", "plugins.<id>", "mechanisms.<name>.provider", "targets") to
    // origin; a path that is absent is a default.
    std::map<std::string, Origin> origins;
    [[nodiscard]] Origin origin_of(const std::string& path) const;
};

struct LoadedConfig {
    Config config;                // what could be read; use it only if there are no problems
    std::vector<Error> problems;  // every problem of the file, in its order
};

// Reads one configuration text. `file` is its name in messages and the base of relative paths. With `check`, the
// mechanisms and options of rules are checked as well (see check_rules for doing that later).
[[nodiscard]] LoadedConfig load_config(std::string_view text, const std::string& file, const RuleCheck& check = {});

// The same for a file on disk; an error only if it cannot be read.
[[nodiscard]] Result<LoadedConfig> load_config_file(const std::string& path, const RuleCheck& check = {});

// The configuration compiled into the library, and its text. Every origin in it is "default".
[[nodiscard]] std::string_view default_config_text();
[[nodiscard]] LoadedConfig load_default_config(const RuleCheck& check = {});

// Runs `check` over rules that were loaded before the mechanisms were known.
[[nodiscard]] std::vector<Error> check_rules(const Config& config, const RuleCheck& check);

// Every mechanism that the configuration names outside its rules, with the path that names it:
// {"service.default_mechanism", "flash-attention-v2"}, {"targets[0].mechanism", ...}, {"mechanisms.<name>", ...}.
struct MechanismReference {
    std::string path;
    std::string mechanism;
};
[[nodiscard]] std::vector<MechanismReference> mechanism_references(const Config& config);

// Sets one value of `service` or `cache` from text (JSON or bare) or JSON, for the environment and for flags. The
// message of an error begins with the origin's name: `--threads: is "many"; accepted: integer from 0 ...`.
[[nodiscard]] Result<void> override_setting(Config& config, std::string_view path, std::string_view text,
                                            Origin origin);
[[nodiscard]] Result<void> override_setting_json(Config& config, std::string_view path, const Json& value,
                                                 Origin origin);

// JSON Schema (draft 2020-12) of the file.
[[nodiscard]] Json config_schema();

// The configuration in force. Without origins it is a valid file again; with origins every leaf is
// {"value": ..., "origin": "file attend.json"}.
[[nodiscard]] Json config_to_json(const Config& config, bool with_origin);

// One line per value, in the order of the file, for people.
struct ShownSetting {
    std::string path;
    Json value;
    Origin origin;
};
[[nodiscard]] std::vector<ShownSetting> list_settings(const Config& config);

}  // namespace attend
