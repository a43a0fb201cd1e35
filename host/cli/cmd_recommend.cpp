// SPDX-License-Identifier: Apache-2.0
// attend recommend: what the selector would pick for a request described by flags, and why not something else.
#include "attend/config/rules.hpp"
#include "command.hpp"
#include "cost_file.hpp"
#include "errors.hpp"
#include "recommend_request.hpp"
#include "service/documents.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

std::string predicted(const Candidate& candidate) {
    std::vector<std::string> parts;
    if (candidate.est_time_ms) parts.push_back(number_text(*candidate.est_time_ms) + " ms");
    if (candidate.est_flops) parts.push_back(number_text(*candidate.est_flops) + " flops");
    if (candidate.est_bytes) parts.push_back(bytes_text(*candidate.est_bytes));
    if (candidate.est_workspace) parts.push_back("workspace " + bytes_text(*candidate.est_workspace));
    return parts.empty() ? "no prediction" : join(parts);
}

std::string recommendation_text(const Recommendation& result, const Config& config) {
    std::string text;
    if (result.selected && !result.recommendations.empty()) {
        const Candidate& first = result.recommendations.front();
        Json options = Json::object();
        for (const auto& [name, value] : first.options) options.set(name, value);
        text += bold(*result.selected) + "\n" +
                aligned({{"because", join(first.reasons, "; ")},
                         {"options", first.options.empty() ? "defaults" : write_json(options)},
                         {"numerics", first.exactness},
                         {"predicted", predicted(first)}},
                        "  ");
    } else {
        text += "no mechanism serves this request\n";
    }
    if (!result.trace.empty()) {
        Table rules({"rule", "", "condition", ""});
        for (const TraceStep& step : result.trace)
            rules.add({std::to_string(step.index),
                       !step.error.empty()          ? "error"
                       : step.value.value_or(false) ? (step.skipped_because.empty() ? "selected" : "skipped")
                                                    : "false",
                       step.text, !step.error.empty() ? one_line(step.error) : step.skipped_because});
        text += "\n" + bold("Rules in order") + "\n" + rules.text("  ");
    }
    if (result.recommendations.size() > 1) {
        Table others({"mechanism", "why", "numerics", "predicted"});
        for (std::size_t at = 1; at < result.recommendations.size(); ++at) {
            const Candidate& candidate = result.recommendations[at];
            others.add({candidate.mechanism, join(candidate.reasons, "; "), candidate.exactness, predicted(candidate)});
        }
        text += "\n" + bold("Next best") + "\n" + others.text("  ");
    }
    if (!result.rejected.empty()) {
        Table rejected({"mechanism", "check", "reason", "numerics", "predicted", "would pass"});
        for (const Candidate& candidate : result.rejected) {
            std::vector<std::string> changes;
            for (const Change& change : candidate.admit) changes.push_back(change_text(change));
            rejected.add({candidate.mechanism, candidate.check, one_line(join(candidate.reasons, "; ")),
                          candidate.exactness, predicted(candidate), changes.empty() ? "-" : join(changes)});
        }
        text += "\n" + bold("Rejected") + "\n" + rejected.text("  ");
    }
    Table changes({});
    for (const TraceStep& step : result.trace)
        if (step.error.empty() && !step.value.value_or(false))
            changes.add({"rule " + std::to_string(step.index) + ", if it held, would choose " +
                             config.rules[step.index].mechanism + ":",
                         step.text});
    if (!result.trace.empty() || result.selected)
        changes.add({"lengths beyond", std::to_string(config.service.long_sequence_threshold) +
                                           ", where no rule decides, go to " +
                                           (config.service.allow_approximate ? config.service.fallback_mechanism
                                                                             : config.service.default_mechanism)});
    if (!changes.empty()) text += "\n" + bold("What would change the choice") + "\n" + changes.text("  ");
    return text;
}

Result<Outcome> run(const RequestFlags& request, const GlobalFlags& flags) {
    Result<RequestFacts> facts = facts_of(request);
    if (!facts) return facts.error();
    Result<Session> session = open_session(flags, Refusals::stop, Rules::used);
    if (!session) return session.error();
    use_cost_table(*session, flags.quiet);
    Result<Recommendation> result = request.task ? session->service->recommend_for_task(*request.task, *facts)
                                                 : session->service->recommend(*facts);
    if (!result) return result.error();
    return Outcome{result->selected ? exit_done : exit_found_problem,
                   flags.json ? json_text(recommendation_json(*result))
                              : recommendation_text(*result, session->settings.service.config)};
}

}  // namespace

void add_recommend(Commands& commands) {
    Command command = commands.add(
        "recommend", "Says which mechanism the selector would pick for a request, and why.",
        "  attend recommend --sequence-length 16384 --causal              the choice, every rule, what was rejected\n"
        "  attend recommend --sequence-length 1 --var seqLenK=8192 --json  any variable of the rules, for a program");
    auto request = std::make_shared<RequestFlags>();
    declare_flags(command, *request);
    commands.handle(command, [request](const GlobalFlags& flags) { return run(*request, flags); });
}

}  // namespace attend::cli
