// SPDX-License-Identifier: Apache-2.0
// attend benchmark: checks mechanisms, times them beside the machine's peaks, and holds them against targets.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "cmd_benchmark_flags.hpp"
#include "cmd_benchmark_text.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

namespace fs = std::filesystem;

// The plugin of rows that are no mechanisms lies in the build tree only; what --plugin names goes first.
void add_engines(Session& session) {
    if (session.service->registry()->find("bench-projection") != nullptr) return;
    std::error_code status;
    const fs::path program = fs::read_symlink("/proc/self/exe", status);
    const fs::path file = program.parent_path().parent_path() / "bench" / "engines" / "libattend_bench_engines.so";
    if (!status && fs::exists(file, status)) session.settings.service.plugin_files.push_back(file);
}

// Every argument of this process, as it was typed.
std::string command_line() {
    std::ifstream file("/proc/self/cmdline", std::ios::binary);
    std::string line;
    for (std::string word; std::getline(file, word, '\0');) line += (line.empty() ? "" : " ") + word;
    return line;
}

Result<Outcome> run(const BenchmarkFlags& flags, const GlobalFlags& global) {
    Result<BenchmarkSettings> settings = settings_of(flags);
    if (!settings) return settings.error();
    Result<Session> session = open_session(global);
    if (!session) return session.error();
    for (const std::string& name : settings->mechanisms)
        if (auto found = find_mechanism(*session->service, name, "benchmark");
            !found && !(name == "bench-projection" && settings->suite == "targets"))
            return found.error();
    if (settings->suite == "targets") add_engines(*session);
    settings->service = session->settings.service;
    session->service.reset();
    settings->commit = build_commit();
    settings->version = product_version();
    settings->command = command_line();
    if (::isatty(STDERR_FILENO) != 0 && !global.quiet)
        settings->progress = [](const std::string& text) { std::fprintf(stderr, "\r\033[K%s", text.c_str()); };
    const Result<BenchmarkReport> report = BenchmarkRunner(std::move(*settings)).run();
    if (!report) return report.error();
    if (flags.output) {
        const UninterruptedSection writing;
        if (auto done = write_benchmark(*report, *flags.output); !done) return done.error();
    }
    return Outcome{report->passed ? exit_done : exit_found_problem,
                   global.json ? json_text(report->json()) : report_text(*report)};
}

}  // namespace

void add_benchmark(Commands& commands) {
    Command command =
        commands.add("benchmark", "Checks mechanisms against float64, then times them beside the machine's own peaks.",
                     "  attend benchmark --category flash --sequence-length 1024,4096 --causal --output report.html\n"
                     "      one category at two lengths, with a page of charts\n"
                     "  attend benchmark --suite targets --threads 1 --json\n"
                     "      the table of targets on one thread; exit status 1 if one is missed");
    command.alias("bench");
    auto flags = std::make_shared<BenchmarkFlags>();
    declare_flags(command, *flags);
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
