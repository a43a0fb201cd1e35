// SPDX-License-Identifier: Apache-2.0
// attend status: the machine, what runs on it, where plugins came from, and the configuration in force.
#include "attend/registry/mechanism_registry.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "loading/plugin_loader.hpp"
#include "plugin_services/cpu.hpp"
#include "service/documents.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

std::vector<std::string> level_names(std::uint64_t isa) {
    std::vector<std::string> names;
    for (std::uint64_t bit = 1; bit != 0; bit <<= 1)
        if ((isa & bit) != 0) names.push_back(isa_names(bit));
    return names;
}

Json status_json(const Session& session) {
    const AttentionService& service = *session.service;
    const CpuFacts& cpu = service.cpu();
    Json plugins = Json::array(), refused = Json::array(), path = Json::array();
    for (const PluginReport& report : service.plugin_reports()) {
        Json row = Json::object().set("path", report.path).set("origin", report.origin);
        if (!report.id.empty()) row.set("id", report.id).set("version", report.version);
        if (report.loaded) {
            plugins.push(std::move(row.set("backend", report.backend).set("mechanisms", json_list(report.mechanisms))));
        } else {
            row.set("stage", report.failure.stage)
                .set("code", report.failure.code)
                .set("sentence", report.failure.sentence);
            if (!report.failure.hint.empty()) row.set("hint", report.failure.hint);
            refused.push(std::move(row));
        }
    }
    for (const SearchedDir& dir : service.searched_dirs())
        path.push(std::move(Json::object()
                                .set("path", dir.path.string())
                                .set("origin", dir.origin)
                                .set("candidates", dir.candidates)
                                .set("note", dir.note)));
    const AttentionService::PlanCacheFacts cache = service.plan_cache();
    const Settings& settings = session.settings;
    return Json::object()
        .set("version", product_version())
        .set("plugin_abi", abi_version())
        .set("commit", build_commit())
        .set("cpu", Json::object()
                        .set("vendor", cpu.vendor)
                        .set("model", cpu.model)
                        .set("cores", cpu.cores)
                        .set("threads", cpu.threads)
                        .set("l1d_bytes", cpu.l1d_bytes)
                        .set("l2_bytes", cpu.l2_bytes)
                        .set("l3_bytes", cpu.l3_bytes))
        .set("instruction_sets", Json::object()
                                     .set("machine", json_list(level_names(cpu.isa_machine)))
                                     .set("permitted", json_list(level_names(service.isa()))))
        .set("backend", Json::object()
                            .set("asked", settings.service.config.service.backend)
                            .set("widest", entry_name(service.isa())))
        .set("threads", service.threads())
        .set("mechanisms", service.registry()->list().size())
        .set("plugins", std::move(plugins))
        .set("refused", std::move(refused))
        .set("search_path", std::move(path))
        .set("config", Json::object()
                           .set("file", settings.config_file ? Json(*settings.config_file) : Json())
                           .set("origin", settings.config_origin)
                           .set("rules", settings.service.config.rules.size()))
        .set("plan_cache",
             Json::object().set("entries", cache.entries).set("hits", cache.hits).set("misses", cache.misses))
        .set("metrics", service.metrics().json());
}

std::string status_text(const Session& session) {
    const AttentionService& service = *session.service;
    const CpuFacts& cpu = service.cpu();
    const Settings& settings = session.settings;
    const AttentionService::PlanCacheFacts cache = service.plan_cache();
    const ServiceMetrics metrics = service.metrics();
    const CacheConfig& kept = settings.service.config.cache;
    const bool caches = settings.service.config.service.enable_cache && kept.mode != "off";
    std::string text = aligned(
        {{"attend", product_version() + ", plugin ABI " + abi_version() + ", commit " + build_commit()},
         {"CPU", cpu.model + ", " + std::to_string(cpu.cores) + " cores, " + std::to_string(cpu.threads) + " threads"},
         {"caches", bytes_text(static_cast<double>(cpu.l1d_bytes)) + " data, " +
                        bytes_text(static_cast<double>(cpu.l2_bytes)) + ", " +
                        bytes_text(static_cast<double>(cpu.l3_bytes))},
         {"machine has", join(level_names(cpu.isa_machine), " ")},
         {"permitted", join(level_names(service.isa()), " ")},
         {"back end", settings.service.config.service.backend + " -> " + entry_name(service.isa())},
         {"threads", std::to_string(service.threads())},
         {"mechanisms", std::to_string(service.registry()->list().size())},
         {"configuration",
          settings.config_file ? *settings.config_file + " (" + settings.config_origin + ")" : settings.config_origin},
         {"rules", std::to_string(settings.service.config.rules.size())},
         {"plan cache", std::to_string(cache.entries) + " entries, " + std::to_string(cache.hits) + " hits, " +
                            std::to_string(cache.misses) + " misses"},
         {"result cache",
          (caches ? kept.mode + ", " + kept.level + ", up to " + bytes_text(static_cast<double>(kept.capacity_bytes))
                  : std::string("off")) +
              "; " + std::to_string(metrics.cache.entries) + " entries, " + std::to_string(metrics.cache.hits) +
              " hits, " + std::to_string(metrics.cache.misses) + " misses, " + std::to_string(metrics.cache.bypass) +
              " bypassed"},
         {"calls", std::to_string(metrics.calls)}});
    Table plugins({"plugin", "version", "back end", "mechanisms", "origin", "file"}),
        refused({"file", "stage", "code", "reason"}), path({"folder", "origin", "files", ""});
    for (const PluginReport& report : service.plugin_reports()) {
        if (report.loaded)
            plugins.add({report.id, report.version, report.backend, std::to_string(report.mechanisms.size()),
                         report.origin, report.path});
        else
            refused.add({report.path, report.failure.stage, report.failure.code, one_line(report.failure.sentence)});
    }
    for (const SearchedDir& dir : service.searched_dirs())
        path.add({dir.path.string(), dir.origin, std::to_string(dir.candidates), dir.note});
    text += "\n" + bold("Plugins loaded") + "\n" + (plugins.empty() ? "  none\n" : plugins.text("  "));
    text += "\n" + bold("Plugins refused") + "\n" + (refused.empty() ? "  none\n" : refused.text("  "));
    text += "\n" + bold("Search path") + "\n" + (path.empty() ? "  nothing was searched\n" : path.text("  "));
    return text;
}

}  // namespace

void add_status(Commands& commands) {
    Command command = commands.add(
        "status",
        "Shows the CPU, the back end of each plugin, plugins loaded and refused, and the configuration in force.",
        "  attend status                        everything at a glance\n"
        "  attend status --backend avx2 --json  what a lower limit would change, for a program");
    commands.handle(command, [](const GlobalFlags& flags) -> Result<Outcome> {
        // Refused plugins are part of the answer here, so they do not stop the command.
        GlobalFlags silent = flags;
        silent.quiet = true;
        Result<Session> session = open_session(silent, Refusals::report);
        if (!session) return session.error();
        return Outcome{exit_done, flags.json ? json_text(status_json(*session)) : status_text(*session)};
    });
}

}  // namespace attend::cli
