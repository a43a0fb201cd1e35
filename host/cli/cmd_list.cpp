// SPDX-License-Identifier: Apache-2.0
// attend list: every mechanism, or those that the filters leave.
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

struct Filters {
    std::optional<std::string> category, from, caps;
    bool accelerated{false};
};

// "CAUSAL,GQA" as a mask.
Result<std::uint64_t> parse_caps(const std::string& text) {
    std::uint64_t mask = 0;
    std::size_t begin = 0;
    while (begin <= text.size()) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string name = text.substr(begin, end - begin);
        const std::uint64_t bit = capability_bit(name);
        if (bit == 0) return unknown_name("--caps", "capability", name, capability_names(~std::uint64_t{0}));
        mask |= bit;
        begin = end + 1;
    }
    return mask;
}

// "39 mechanisms: 7 multi-head, 6 self-attention, ...", in the order of the table.
std::string summary(const std::vector<std::pair<std::string, std::size_t>>& counts) {
    std::size_t total = 0;
    std::vector<std::string> words;
    for (const auto& [category, count] : counts) {
        total += count;
        words.push_back(std::to_string(count) + " " + category);
    }
    return std::to_string(total) + (total == 1 ? " mechanism: " : " mechanisms: ") + join(words);
}

Result<Outcome> run(const Filters& filters, const GlobalFlags& flags) {
    const auto known_categories = categories();
    if (filters.category &&
        std::find(known_categories.begin(), known_categories.end(), *filters.category) == known_categories.end())
        return unknown_name("--category", "category", *filters.category, known_categories);
    Result<std::uint64_t> caps = filters.caps ? parse_caps(*filters.caps) : Result<std::uint64_t>(std::uint64_t{0});
    if (!caps) return caps.error();
    Result<Session> session = open_session(flags);
    if (!session) return session.error();
    if (filters.from) {
        std::vector<std::string> ids;
        for (const PluginReport& report : session->service->plugin_reports())
            if (report.loaded) ids.push_back(report.id);
        if (std::find(ids.begin(), ids.end(), *filters.from) == ids.end())
            return unknown_name("--from", "plugin", *filters.from, ids);
    }

    Json list = Json::array();
    std::vector<std::pair<std::string, std::size_t>> counts;
    Table table({"name", "category", "complexity", "capabilities", "dtypes", "plugin", "backend"});
    for (const MechanismPtr& mechanism : session->service->registry()->list()) {
        if (filters.category && mechanism->category != *filters.category) continue;
        if (filters.from && mechanism->plugin_id != *filters.from) continue;
        if (filters.accelerated && mechanism->backend == "baseline") continue;
        if (!mechanism->has(*caps)) continue;
        if (counts.empty() || counts.back().first != mechanism->category) counts.emplace_back(mechanism->category, 0);
        ++counts.back().second;
        list.push(list_json(*mechanism));
        table.add({listed_name(*mechanism), mechanism->category, mechanism->time_complexity,
                   join(capability_names(mechanism->caps), ","), join(dtype_names(mechanism->dtypes), ","),
                   mechanism->plugin_id, mechanism->backend});
    }
    if (flags.json) return Outcome{exit_done, json_text(Json::object().set("mechanisms", std::move(list)))};
    return Outcome{exit_done,
                   table.empty() ? "no mechanism passes the filters\n" : table.text() + "\n" + summary(counts) + "\n"};
}

}  // namespace

void add_list(Commands& commands) {
    Command command =
        commands.add("list", "Lists every mechanism: what it is, what it can do, and which plugin brings it.",
                     "  attend list --category flash           the mechanisms of one category\n"
                     "  attend list --caps CAUSAL,GQA --json   those that take both, for a program");
    auto filters = std::make_shared<Filters>();
    command.add_option("--category", filters->category, "Only this category: " + join_names(categories()))
        .type_name("CATEGORY");
    command.add_option("--from", filters->from, "Only mechanisms of this plugin").type_name("PLUGIN_ID");
    command.add_flag("--accelerated", filters->accelerated, "Only mechanisms whose back end is wider than baseline");
    command.add_option("--caps", filters->caps, "Only mechanisms with all of these capabilities, separated by commas")
        .type_name("CAPS");
    commands.handle(command, [filters](const GlobalFlags& flags) { return run(*filters, flags); });
}

}  // namespace attend::cli
