// SPDX-License-Identifier: Apache-2.0
// attend tune: measures this machine and keeps what mechanisms take on it.
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "attend/tuning.hpp"
#include "command.hpp"
#include "cost_file.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "io/mapped_file.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

namespace fs = std::filesystem;

constexpr double factor = 1.5, wanted_share = 0.9;
constexpr std::size_t checked_calls = 200;

struct Flags {
    std::optional<std::string> output, seconds;
    std::vector<std::string> mechanisms;
    bool check{false};
};

// A bar on the terminal, for what takes longer than a second.
class Progress {
public:
    explicit Progress(bool shown) : shown_(shown && ::isatty(STDERR_FILENO) != 0) {}
    ~Progress() {
        if (drawn_) std::fputs("\r\033[K", stderr);
    }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    void operator()(double share) {
        constexpr int width = 40;
        const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
        const int percent = static_cast<int>(100 * share);
        if (!shown_ || elapsed < 1 || percent == last_) return;
        last_ = percent;
        drawn_ = true;
        const auto full = static_cast<std::size_t>(width * share);
        std::fprintf(stderr, "\r\033[Kmeasuring [%s%s] %d %%", std::string(full, '#').c_str(),
                     std::string(width - full, ' ').c_str(), percent);
    }

private:
    bool shown_, drawn_{false};
    int last_{-1};
    std::chrono::steady_clock::time_point begin_{std::chrono::steady_clock::now()};
};

// What the table had for other mechanisms stays where it still holds.
CostTable with_kept(CostTable fresh, const std::string& path) {
    std::error_code status;
    if (!fs::exists(path, status)) return fresh;
    const Result<CostTable> before = CostTable::load(path);
    if (!before || !before->keys().difference(fresh.keys()).empty()) return fresh;
    std::vector<MechanismCosts> all = fresh.mechanisms();
    for (const MechanismCosts& old : before->mechanisms())
        if (std::none_of(all.begin(), all.end(),
                         [&](const MechanismCosts& entry) { return entry.mechanism == old.mechanism; }))
            all.push_back(old);
    return CostTable(fresh.keys(), std::move(all));
}

Result<void> write_table(const CostTable& table, const std::string& path) {
    const UninterruptedSection writing;
    const std::string text = write_json(table.json(), true) + "\n";
    Result<io::OutputFile> file = io::OutputFile::create(path);
    if (!file) return file.error();
    if (auto done = file->write(text.data(), text.size()); !done) return done;
    return file->commit();
}

Result<Outcome> check(const std::string& path, const TuningSettings& settings, const Session& session, bool json,
                      const std::function<void()>& finished) {
    const Result<CostTable> table = CostTable::load(path);
    if (!table) return as_input_error(table.error());
    if (const std::string difference =
            table->keys().difference(cost_keys(*session.service, settings.version, settings.commit));
        !difference.empty())
        return wrong_use(path + ": " + difference + "; accepted: a table of this machine, as `attend tune` writes it");
    const Result<CostCheck> result = check_costs(*table, settings, checked_calls);
    finished();
    if (!result) return result.error();
    const std::size_t count = result->calls.size(), within = result->within(factor);
    const double share = count == 0 ? 0 : static_cast<double>(within) / static_cast<double>(count);
    const int status = share >= wanted_share ? exit_done : exit_found_problem;
    if (json) {
        Json calls = Json::array();
        for (const PredictedCall& call : result->calls)
            calls.push(Json::object()
                           .set("mechanism", call.mechanism)
                           .set("shape", call.shape)
                           .set("threads", call.threads)
                           .set("predicted_ms", call.predicted_ms)
                           .set("measured_ms", call.measured_ms));
        return Outcome{status, json_text(Json::object()
                                             .set("table", path)
                                             .set("factor", factor)
                                             .set("wanted_share", wanted_share)
                                             .set("share", share)
                                             .set("within", within)
                                             .set("calls", std::move(calls)))};
    }
    Table worst({"worst predictions", "shape", "threads", "predicted ms", "measured ms"});
    for (std::size_t at = 0; at < std::min<std::size_t>(count, 10); ++at) {
        const PredictedCall& call = result->calls[at];
        worst.add({call.mechanism, call.shape, std::to_string(call.threads), number_text(call.predicted_ms),
                   number_text(call.measured_ms)});
    }
    return Outcome{status, std::to_string(within) + " of " + std::to_string(count) + " calls within a factor of " +
                               number_text(factor) + " of their prediction (" + number_text(100 * share, 3) +
                               " %, wanted: " + number_text(100 * wanted_share) + " %)\n\n" + worst.text()};
}

Result<Outcome> run(const Flags& flags, const GlobalFlags& global) {
    const fs::path own = cost_file();
    const std::string path = flags.output.value_or(own.string());
    if (path.empty()) return wrong_use("tune: there is no home folder to write to; accepted: --output FILE");
    TuningSettings settings;
    if (flags.seconds) {
        const RuleValue value = rule_value_from_text("latencyBudgetMs", *flags.seconds);
        const double* seconds = std::get_if<double>(&value);
        if (seconds == nullptr || !(*seconds > 0) || !(*seconds <= 3600))
            return wrong_use("--seconds: is \"" + *flags.seconds + "\"; accepted: a number above 0, up to 3600");
        settings.seconds = *seconds;
    }
    Result<Session> session = open_session(global);
    if (!session) return session.error();
    for (const std::string& name : flags.mechanisms)
        if (auto found = find_mechanism(*session->service, name, "tune"); !found) return found.error();
    settings.service = session->settings.service;
    settings.service.config.rules.clear();
    settings.service.config.rule_sources.clear();
    settings.mechanisms = flags.mechanisms;
    settings.version = product_version();
    settings.commit = build_commit();
    auto progress = std::make_unique<Progress>(!global.quiet);
    settings.progress = [&progress](double share) { (*progress)(share); };
    if (flags.check) return check(path, settings, *session, global.json, [&progress] { progress.reset(); });
    if (!flags.output) {
        std::error_code status;
        fs::create_directories(own.parent_path(), status);
        if (status)
            return Error{
                ErrorCode::io,
                own.parent_path().string() + ": cannot be made (" + status.message() + "); accepted: --output FILE",
                ""};
    } else if (const fs::path folder = fs::absolute(path).parent_path(); !fs::is_directory(folder)) {
        return Error{
            ErrorCode::io,
            path + ": cannot be written: no folder \"" + folder.string() + "\"; an existing, writable folder is needed",
            ""};
    }
    const auto begin = std::chrono::steady_clock::now();
    Result<CostTable> measured = measure_costs(settings);
    progress.reset();
    if (!measured) return measured.error();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::size_t samples = 0;
    std::vector<std::string> names;
    Json threads = Json::array();
    for (const MechanismCosts& costs : measured->mechanisms()) {
        samples += costs.samples.size();
        if (names.empty() || names.back() != costs.mechanism) names.push_back(costs.mechanism);
        if (names.size() == 1) threads.push(costs.threads);
    }
    const CostTable table = with_kept(std::move(*measured), path);
    if (auto done = write_table(table, path); !done) return done.error();
    if (global.json)
        return Outcome{exit_done, json_text(Json::object()
                                                .set("output", path)
                                                .set("mechanisms", names.size())
                                                .set("threads", std::move(threads))
                                                .set("samples", samples)
                                                .set("seconds", seconds))};
    return Outcome{exit_done, aligned({{"table", path},
                                       {"mechanisms", std::to_string(names.size())},
                                       {"samples", std::to_string(samples)},
                                       {"seconds", number_text(seconds, 3)}})};
}

}  // namespace

void add_tune(Commands& commands) {
    Command command = commands.add(
        "tune", "Measures this machine and writes the cost table from which recommend predicts times.",
        "  attend tune                                        all mechanisms, for this user\n"
        "  attend tune --mechanism linear-attention --seconds 5 --output costs.json    one of them, to a file\n"
        "  attend tune --check                                how well the table predicts; exit status 1 if badly");
    auto flags = std::make_shared<Flags>();
    command.add_option("--output", flags->output, "Where the table is; default: costs.json in the user's cache folder")
        .type_name("FILE");
    command.add_option("--mechanism", flags->mechanisms, "Measure this one, repeatable; default: all")
        .type_name("M")
        .allow_extra_args(false);
    command.add_option("--seconds", flags->seconds, "About how long to measure; default 25").type_name("S");
    command.add_flag("--check", flags->check,
                     "Measure calls of other shapes and compare them with the table's predictions");
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
