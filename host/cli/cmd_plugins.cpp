// SPDX-License-Identifier: Apache-2.0
// attend plugins list|why: what became of every plugin file, and every decision about one of them.
#include <filesystem>

#include "attend/config/names.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "loading/plugin_loader.hpp"
#include "service/documents.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

namespace fs = std::filesystem;

// Refusals are what these commands report, so none stops them and none is warned about.
Result<Session> open_for_report(const GlobalFlags& flags) {
    GlobalFlags silent = flags;
    silent.quiet = true;
    return open_session(silent, Refusals::report);
}

Result<Outcome> list(const GlobalFlags& flags) {
    Result<Session> session = open_for_report(flags);
    if (!session) return session.error();
    Json plugins = Json::array();
    Table table({"plugin", "version", "state", "back end", "mechanisms", "origin", "file"});
    for (const PluginReport& report : session->service->plugin_reports()) {
        plugins.push(plugin_json(report));
        table.add({report.id.empty() ? "?" : report.id, report.version,
                   report.loaded ? "loaded" : "refused: " + report.failure.code, report.backend,
                   std::to_string(report.mechanisms.size()), report.origin, report.path});
    }
    if (flags.json) return Outcome{exit_done, json_text(Json::object().set("plugins", std::move(plugins)))};
    return Outcome{exit_done, table.empty()
                                  ? "no plugin files were found; `attend status` shows where they were looked for\n"
                                  : table.text()};
}

bool names_file(const PluginReport& report, const std::string& name) {
    const fs::path path(report.path);
    if (name == report.path || name == path.filename().string() || name == path.stem().string()) return true;
    std::error_code status;
    return name.find('/') != std::string::npos && fs::equivalent(name, path, status) && !status;
}

struct Match {
    std::vector<const PluginReport*> reports;
    std::vector<MechanismPtr> mechanisms;
};

Match find(const AttentionService& service, const std::string& name) {
    Match match;
    for (const MechanismPtr& mechanism : service.registry()->list())
        if (mechanism->name == name || mechanism->qualified_name() == name) match.mechanisms.push_back(mechanism);
    for (const PluginReport& report : service.plugin_reports()) {
        const bool provides =
            std::find(report.mechanisms.begin(), report.mechanisms.end(), name) != report.mechanisms.end();
        const bool qualified =
            std::any_of(match.mechanisms.begin(), match.mechanisms.end(),
                        [&](const MechanismPtr& mechanism) { return mechanism->plugin_path == report.path; });
        if ((!report.id.empty() && report.id == name) || provides || qualified || names_file(report, name))
            match.reports.push_back(&report);
    }
    return match;
}

std::string name_decision(const MechanismRecord& mechanism) {
    if (!mechanism.shadowed_by.empty())
        return mechanism.qualified_name() + ": the short name belongs to " + mechanism.shadowed_by +
               "; reachable by the qualified name" + "; mechanisms." + mechanism.name +
               ".provider in the configuration changes that";
    return mechanism.qualified_name() + ": has the short name \"" + mechanism.name + "\"" +
           (mechanism.built_in ? ", which is reserved for the built-in one" : "");
}

std::string why_text(const PluginReport& report, const std::vector<MechanismPtr>& mechanisms) {
    std::string text = bold(report.path) + "\n";
    std::vector<std::pair<std::string, std::string>> lines;
    if (!report.id.empty()) lines.emplace_back("plugin", report.id + " " + report.version);
    lines.emplace_back("enumerate", "found by " + report.origin);
    for (const std::string& step : report.steps) {
        const std::size_t colon = step.find(": ");
        lines.emplace_back(colon == std::string::npos ? "" : step.substr(0, colon),
                           colon == std::string::npos ? step : step.substr(colon + 2));
    }
    if (report.loaded) lines.emplace_back("publish", "loaded, back end " + report.backend);
    for (const MechanismPtr& mechanism : mechanisms)
        if (mechanism->plugin_path == report.path) lines.emplace_back("names", name_decision(*mechanism));
    if (!report.loaded) {
        lines.emplace_back(report.failure.stage,
                           "refused, " + report.failure.code + ": " + one_line(report.failure.sentence));
        if (!report.failure.hint.empty()) lines.emplace_back("hint", one_line(report.failure.hint));
    }
    return text + aligned(lines, "  ");
}

Result<Outcome> why(const std::optional<std::string>& name, const GlobalFlags& flags) {
    if (!name)
        return wrong_use("plugins why: nothing is named; accepted: a plugin id, a mechanism, a file name or a path");
    Result<Session> session = open_for_report(flags);
    if (!session) return session.error();
    const Match match = find(*session->service, *name);
    if (match.reports.empty()) {
        std::vector<std::string> known;
        for (const PluginReport& report : session->service->plugin_reports()) {
            if (!report.id.empty()) known.push_back(report.id);
            known.push_back(fs::path(report.path).filename().string());
            known.insert(known.end(), report.mechanisms.begin(), report.mechanisms.end());
        }
        return wrong_use("plugins why: unknown plugin, mechanism or file \"" + *name + "\"" +
                             did_you_mean(*name, known) + "; accepted: what `attend plugins list` shows",
                         "`attend status` shows the folders that were searched");
    }
    // Of a plugin named as a whole, all mechanisms; of a mechanism, every plugin that brings one of that name.
    std::vector<MechanismPtr> mechanisms = match.mechanisms;
    if (mechanisms.empty())
        for (const MechanismPtr& mechanism : session->service->registry()->list())
            if (std::any_of(match.reports.begin(), match.reports.end(),
                            [&](const PluginReport* report) { return report->path == mechanism->plugin_path; }))
                mechanisms.push_back(mechanism);
    if (flags.json) {
        Json plugins = Json::array();
        for (const PluginReport* report : match.reports) {
            Json json = plugin_json(*report), names = Json::array();
            for (const MechanismPtr& mechanism : mechanisms)
                if (mechanism->plugin_path == report->path) names.push(name_decision(*mechanism));
            plugins.push(std::move(json.set("names", std::move(names))));
        }
        return Outcome{exit_done, json_text(Json::object().set("name", *name).set("plugins", std::move(plugins)))};
    }
    std::string text;
    for (const PluginReport* report : match.reports) text += (text.empty() ? "" : "\n") + why_text(*report, mechanisms);
    return Outcome{exit_done, std::move(text)};
}

}  // namespace

void add_plugins(Commands& commands) {
    Command group = commands.add("plugins", "Shows what became of every plugin file, and why.",
                                 "  attend plugins list                    every file that was looked at\n"
                                 "  attend plugins why linear-attention    each decision about the plugin that has it");
    Command list_command =
        commands.add("list", "Lists every plugin file that was looked at, loaded or refused.",
                     "  attend plugins list                                   files, versions, back ends\n"
                     "  attend plugins list --plugin-dir /opt/attend --json   with a further folder, for a program",
                     &group);
    commands.handle(list_command, [](const GlobalFlags& flags) { return list(flags); });
    Command why_command = commands.add(
        "why", "Prints every decision about a plugin, with the stage that made it; also for refused files.",
        "  attend plugins why attend.flash                       by plugin id\n"
        "  attend plugins why mine.so --plugin ./mine.so         by file, before using it",
        &group);
    auto name = std::make_shared<std::optional<std::string>>();
    why_command.add_option("NAME", *name, "Plugin id, mechanism, file name or path").type_name("");
    commands.handle(why_command, [name](const GlobalFlags& flags) { return why(*name, flags); });
}

}  // namespace attend::cli
