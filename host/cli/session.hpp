// SPDX-License-Identifier: Apache-2.0
// From global flags, environment and configuration file to an open service. This is the only part of the program that
// reads the environment.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "command.hpp"

namespace attend::cli {

struct Settings {
    ServiceSettings service;
    std::vector<Error> problems;  // of the configuration file; only `config check` goes on in spite of them
    bool built_in_config{true};
    std::optional<std::string> config_file;
    std::string config_origin;  // "flag --config", "environment ATTEND_CONFIG", "per-user file", "built-in default"
    std::optional<std::int64_t> block_size;
    std::string block_size_origin;
};

// `file` replaces the choice of --config, environment and per-user configuration.
[[nodiscard]] Result<Settings> load_settings(const GlobalFlags& flags,
                                             const std::optional<std::string>& file = std::nullopt);

// The folder that an XDG variable names, else the one below the home folder that stands for it; empty without either. Not where
// the process runs with more rights than its user.
[[nodiscard]] std::filesystem::path user_folder(const char* xdg, const char* below_home);

enum class Refusals { stop, report };  // what a refused --plugin FILE means
enum class Rules { used, unused };

struct Session {
    Settings settings;  // its configuration is the one in force, rules included
    std::unique_ptr<AttentionService> service;
};

// Stops at the first problem of the configuration and, with Refusals::stop, at a refused --plugin FILE. Warns about
// plugins refused in folders that somebody named and about such folders that cannot be searched. Rules of the built-in
// configuration are not checked for commands that do not use them, so that those work without its mechanisms.
[[nodiscard]] Result<Session> open_session(const GlobalFlags& flags, Refusals refusals = Refusals::stop,
                                           Rules rules = Rules::unused);

// The mechanism, or why not: unknown (exit status 2), or of a plugin that was refused (3).
[[nodiscard]] Result<MechanismPtr> find_mechanism(const AttentionService& service, const std::string& name,
                                                  const std::string& place);

}  // namespace attend::cli
