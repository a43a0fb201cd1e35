// SPDX-License-Identifier: Apache-2.0
// attend config check|show|schema: the configuration file, what is in force, and the form of the file.
#include <algorithm>

#include "attend/registry/mechanism_registry.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "service/open_checks.hpp"
#include "service/selector.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

// Everything that is wrong with a file: its form, then what it says about mechanisms that the plugins do not have.
Result<std::vector<Error>> problems_of(const Settings& settings) {
    ServiceSettings quiet = settings.service;
    quiet.config.rules.clear();
    quiet.config.rule_sources.clear();
    Result<std::unique_ptr<AttentionService>> service = AttentionService::open(std::move(quiet));
    if (!service) {
        std::vector<Error> problems = settings.problems;
        problems.push_back(service.error());
        return problems;
    }
    const auto registry = (*service)->registry();
    const RuleCheck check = [&](const std::string& mechanism, const NamedValues& options, const std::string& place) {
        return check_rule(*registry, settings.service.config, mechanism, options, place);
    };
    std::vector<Error> problems;
    Config config;
    if (settings.config_file) {
        Result<LoadedConfig> loaded = load_config_file(*settings.config_file, check);
        if (!loaded) return as_input_error(loaded.error());
        problems = std::move(loaded->problems);
        config = std::move(loaded->config);
    } else {
        LoadedConfig loaded = load_default_config(check);
        problems = std::move(loaded.problems);
        config = std::move(loaded.config);
    }
    for (Error& problem : reference_problems(config, *registry)) problems.push_back(std::move(problem));
    return problems;
}

Result<Outcome> check(const std::optional<std::string>& file, const GlobalFlags& flags) {
    Result<Settings> settings = load_settings(flags, file);
    if (!settings) return settings.error();
    const std::string name = settings->config_file.value_or("built-in configuration");
    Result<std::vector<Error>> problems = problems_of(*settings);
    if (!problems) return problems.error();
    const int status = problems->empty() ? exit_done : exit_found_problem;
    if (flags.json) {
        Json list = Json::array();
        for (const Error& problem : *problems) {
            Json entry = Json::object().set("error", error_name(problem.code)).set("message", problem.message);
            if (!problem.hint.empty()) entry.set("hint", problem.hint);
            list.push(std::move(entry));
        }
        return Outcome{
            status,
            json_text(Json::object().set("file", name).set("ok", problems->empty()).set("problems", std::move(list)))};
    }
    Outcome outcome{status, ""};
    for (const Error& problem : *problems) outcome.text += one_line(problem.message) + "\n";
    if (problems->empty() && !flags.quiet)
        std::fputs(("attend: " + one_line(name) + ": no problems\n").c_str(), stderr);
    return outcome;
}

Result<Outcome> show(const GlobalFlags& flags) {
    Result<Settings> settings = load_settings(flags);
    if (!settings) return settings.error();
    if (!settings->problems.empty()) return settings->problems.front();
    const Config& config = settings->service.config;
    if (flags.json) return Outcome{exit_done, json_text(config_to_json(config, true))};
    Table table({"setting", "value", "from"});
    for (const ShownSetting& setting : list_settings(config)) {
        const bool list_of_objects = setting.path == "rules" || setting.path == "targets";
        if (!list_of_objects || setting.value.size() == 0) {
            table.add({setting.path, write_json(setting.value), setting.origin.text()});
            continue;
        }
        for (std::size_t at = 0; at < setting.value.size(); ++at)
            table.add({setting.path + "[" + std::to_string(at) + "]", write_json(setting.value.as_array()[at]),
                       setting.origin.text()});
    }
    const std::string head =
        settings->config_file ? *settings->config_file + " (" + settings->config_origin + ")" : "built-in default";
    return Outcome{exit_done, "configuration: " + head + "\n" + table.text()};
}

}  // namespace

void add_config(Commands& commands) {
    Command group = commands.add(
        "config", "Checks a configuration file, shows the configuration in force, prints the form of the file.",
        "  attend config check attend.json    every problem of a file\n"
        "  attend config show                 what is in force, and where each value comes from");
    Command check_command =
        commands.add("check", "Lists every problem of a configuration file, one per line; exit status 0 or 1.",
                     "  attend config check attend.json           a file that is not in use yet\n"
                     "  attend config check --json                the one in force, for a program",
                     &group);
    auto file = std::make_shared<std::optional<std::string>>();
    check_command.add_option("FILE", *file, "The file; default: the configuration in force").type_name("");
    commands.handle(check_command, [file](const GlobalFlags& flags) { return check(*file, flags); });
    Command show_command =
        commands.add("show", "Prints the configuration in force, with the origin of each value.",
                     "  attend config show                                    default, file, environment or flag\n"
                     "  ATTEND_THREADS=4 attend config show --json            the same for a program",
                     &group);
    commands.handle(show_command, [](const GlobalFlags& flags) { return show(flags); });
    Command schema_command = commands.add("schema", "Prints the JSON Schema of the configuration file.",
                                          "  attend config schema > attend.schema.json             for an editor\n"
                                          "  attend config schema --json                           the same",
                                          &group);
    commands.handle(schema_command, [](const GlobalFlags&) -> Result<Outcome> {
        return Outcome{exit_done, json_text(config_schema())};
    });
}

}  // namespace attend::cli
