// SPDX-License-Identifier: Apache-2.0
#include "session.hpp"

#include <stdlib.h>

#include <filesystem>

#include "attend/config/config.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "errors.hpp"
#include "loading/plugin_loader.hpp"
#include "plugin_services/log.hpp"
#include "service/open_checks.hpp"

namespace attend::cli {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> environment(const char* name) {
    const char* value = ::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return std::string(value);
}

// Nothing where the process runs with more rights than its user: then the environment is somebody else's.
std::optional<std::string> trusted_environment(const char* name) {
    const char* value = ::secure_getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return std::string(value);
}

// The value of a variable and the name under which it was found; the older name counts where the new one is unset.
struct Variable {
    std::string name, value;
};
std::optional<Variable> variable(const char* name, const char* older) {
    if (auto value = environment(name)) return Variable{name, std::move(*value)};
    if (auto value = environment(older)) return Variable{older, std::move(*value)};
    return std::nullopt;
}

std::string older_backend(const std::string& word) {
    if (word == "napi") return "auto";
    if (word == "js") return "baseline";
#if defined(__aarch64__)
    if (word == "wasm") return "neon";
#else
    if (word == "wasm") return "avx2";
#endif
    return word;
}

Result<void> choose_config(const GlobalFlags& flags, const std::optional<std::string>& file, Settings& settings) {
    if (file) {
        settings.config_file = file;
        settings.config_origin = "argument";
    } else if (flags.config) {
        settings.config_file = flags.config;
        settings.config_origin = "flag --config";
    } else if (auto named = environment("ATTEND_CONFIG")) {
        settings.config_file = std::move(named);
        settings.config_origin = "environment ATTEND_CONFIG";
    } else {
        std::error_code status;
        const fs::path folder = user_folder("XDG_CONFIG_HOME", ".config");
        if (!folder.empty() && fs::is_regular_file(folder / "attend" / "attend.json", status)) {
            settings.config_file = (folder / "attend" / "attend.json").string();
            settings.config_origin = "per-user file";
        }
    }
    LoadedConfig loaded;
    if (settings.config_file) {
        Result<LoadedConfig> read = load_config_file(*settings.config_file);
        if (!read) return as_input_error(read.error());
        loaded = std::move(*read);
        settings.built_in_config = false;
    } else {
        loaded = load_default_config();
        settings.config_origin = "built-in default";
    }
    settings.service.config = std::move(loaded.config);
    settings.problems = std::move(loaded.problems);
    return {};
}

Result<void> apply_overrides(const GlobalFlags& flags, Settings& settings) {
    Config& config = settings.service.config;
    const auto from_environment = [](const std::string& name) { return Origin{Origin::Kind::environment, name}; };
    if (auto backend = variable("ATTEND_BACKEND", "RUVECTOR_ATTN_BACKEND")) {
        const std::string value = backend->name == "ATTEND_BACKEND" ? backend->value : older_backend(backend->value);
        if (auto done = override_setting(config, "service.backend", value, from_environment(backend->name)); !done)
            return done;
    }
    if (auto threads = variable("ATTEND_THREADS", "RUVECTOR_ATTN_THREADS"))
        if (auto done = override_setting(config, "service.threads", threads->value, from_environment(threads->name));
            !done)
            return done;
    if (flags.backend)
        if (auto done = override_setting(config, "service.backend", *flags.backend, {Origin::Kind::flag, "--backend"});
            !done)
            return done;
    if (flags.threads)
        if (auto done = override_setting(config, "service.threads", *flags.threads, {Origin::Kind::flag, "--threads"});
            !done)
            return done;
    if (auto block = variable("ATTEND_BLOCK_SIZE", "RUVECTOR_ATTN_BLOCK_SIZE")) {
        const Result<std::int64_t> value = parse_count(block->name, block->value, 0);
        if (!value) return value.error();
        settings.block_size = *value;
        settings.block_size_origin = block->name;
    }
    std::optional<Variable> level = variable("ATTEND_LOG_LEVEL", "RUVECTOR_ATTN_LOG_LEVEL");
    if (flags.log_level) level = Variable{"--log-level", *flags.log_level};
    if (level && !set_log_level(level->value))
        return wrong_use(level->name + ": is \"" + level->value + "\"; accepted: trace, debug, info, warn, error, off");
    return {};
}

bool asked_for(const std::string& origin) {
    return origin == "--plugin" || origin == "--plugin-dir" || origin == "config" || origin == "ATTEND_PLUGIN_PATH" ||
           origin == "built-in";
}

}  // namespace

fs::path user_folder(const char* xdg, const char* below_home) {
    if (const auto folder = trusted_environment(xdg); folder && fs::path(*folder).is_absolute()) return *folder;
    const auto home = trusted_environment("HOME");
    if (!home || !fs::path(*home).is_absolute()) return {};
    return fs::path(*home) / below_home;
}

Result<Settings> load_settings(const GlobalFlags& flags, const std::optional<std::string>& file) {
    Settings settings;
    if (auto done = choose_config(flags, file, settings); !done) return done.error();
    if (auto done = apply_overrides(flags, settings); !done) return done.error();
    ServiceSettings& service = settings.service;
    for (const std::string& plugin : flags.plugins) service.plugin_files.emplace_back(plugin);
    for (const std::string& dir : flags.plugin_dirs) service.plugin_dirs.emplace_back(dir);
    service.plugin_path = trusted_environment("ATTEND_PLUGIN_PATH").value_or("");
    const fs::path data = user_folder("XDG_DATA_HOME", ".local/share");
    if (!data.empty()) service.user_plugin_dir = data / "attend" / "plugins" / "abi-1";
    return settings;
}

Result<Session> open_session(const GlobalFlags& flags, Refusals refusals, Rules rules) {
    Result<Settings> loaded = load_settings(flags);
    if (!loaded) return loaded.error();
    if (!loaded->problems.empty()) return loaded->problems.front();
    Session session{std::move(*loaded), nullptr};
    ServiceSettings settings = session.settings.service;
    if (session.settings.built_in_config && rules == Rules::unused) {
        settings.config.rules.clear();
        settings.config.rule_sources.clear();
    }
    Result<std::unique_ptr<AttentionService>> opened = AttentionService::open(std::move(settings));
    if (!opened) {
        Error error = opened.error();
        const Origin origin = session.settings.service.config.origin_of("service.backend");
        constexpr std::string_view place = "service.backend: ";
        if (error.message.starts_with(place) && !origin.name.empty() && origin.kind != Origin::Kind::file)
            error.message = origin.name + ": " + error.message.substr(place.size());
        return error;
    }
    session.service = std::move(*opened);
    for (const PluginReport& report : session.service->plugin_reports()) {
        if (report.loaded || !asked_for(report.origin)) continue;
        const Error error = refusal(report);
        if (report.origin == "--plugin" && refusals == Refusals::stop) return error;
        warn(flags.quiet, error.message);
    }
    for (const SearchedDir& dir : session.service->searched_dirs())
        if (!dir.note.empty() && asked_for(dir.origin))
            warn(flags.quiet, dir.path.string() + " (" + dir.origin + "): " + dir.note);
    if (!session.settings.built_in_config) {
        const std::vector<Error> problems =
            reference_problems(session.settings.service.config, *session.service->registry());
        if (!problems.empty()) return problems.front();
    }
    return session;
}

Result<MechanismPtr> find_mechanism(const AttentionService& service, const std::string& name,
                                    const std::string& place) {
    Result<MechanismPtr> found = service.registry()->get(name, place);
    if (found) return found;
    const std::size_t slash = name.find('/');
    if (slash == std::string::npos) return found;
    // What was refused in the child process has no id here, but then the sentence begins with it.
    const std::string id = name.substr(0, slash);
    for (const PluginReport& report : service.plugin_reports())
        if (!report.loaded && (report.id == id || report.failure.sentence.starts_with(id + ":") ||
                               report.failure.sentence.starts_with(id + " ")))
            return refusal(report);
    return found;
}

}  // namespace attend::cli
