// SPDX-License-Identifier: Apache-2.0
// attend: the command line of the runtime. Parses, runs one command, prints its output or one line of error.
#include <cstdio>
#include <exception>
#include <new>

#include <CLI/CLI.hpp>

#include "attend/abi.h"
#include "attend/config/json.hpp"
#include "attend/config/names.hpp"
#include "attend_commit.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "text.hpp"

namespace attend::cli {

std::string product_version() { return ATTEND_VERSION; }
std::string abi_version() { return std::to_string(ATTEND_ABI_MAJOR) + "." + std::to_string(ATTEND_ABI_MINOR); }
std::string build_commit() { return ATTEND_COMMIT; }

const Handler* Commands::handler_of(const CLI::App& command) const {
    const auto found = handlers_.find(&command);
    return found == handlers_.end() ? nullptr : &found->second;
}

namespace {

void add_global_flags(const Command& app, GlobalFlags& flags) {
    app.add_option("--config", flags.config,
                   "Configuration file; else ATTEND_CONFIG, the per-user file, the built-in one")
        .type_name("FILE");
    app.add_option("--plugin", flags.plugins, "Load this plugin, repeatable").type_name("FILE").allow_extra_args(false);
    app.add_option("--plugin-dir", flags.plugin_dirs,
                   "Look for plugins in this folder, repeatable; also ATTEND_PLUGIN_PATH")
        .type_name("DIR")
        .allow_extra_args(false);
    app.add_option("--backend", flags.backend,
                   "auto, avx512, avx2, neon or baseline: widest instruction set (ATTEND_BACKEND)")
        .type_name("NAME");
    app.add_option("--threads", flags.threads, "Threads, 0 for one per logical core (ATTEND_THREADS)").type_name("N");
    app.add_option("--log-level", flags.log_level, "trace, debug, info, warn, error or off (ATTEND_LOG_LEVEL)")
        .type_name("LEVEL");
    app.add_flag("--json", flags.json, "One JSON document on standard output");
    app.add_flag("--quiet", flags.quiet, "No warnings on standard error");
}

// The command that was called, as deep as the names went.
CLI::App& called(CLI::App& app) {
    CLI::App* command = &app;
    while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
    return *command;
}

std::string full_name(const CLI::App& command) {
    const CLI::App* parent = command.get_parent();
    return parent == nullptr || parent->get_parent() == nullptr ? command.get_name()
                                                                : parent->get_name() + " " + command.get_name();
}

std::vector<std::string> sub_commands(const CLI::App& command) {
    std::vector<std::string> names;
    for (const CLI::App* sub : command.get_subcommands([](const CLI::App*) { return true; }))
        names.push_back(sub->get_name());
    return names;
}

// Words that nothing took: a mistyped flag, a mistyped command, or too many words.
Error unexpected(CLI::App& app) {
    CLI::App& command = called(app);
    const std::string place = &command == &app ? "command line" : full_name(command);
    const std::string word = app.remaining(true).front();
    if (word.size() > 1 && word.front() == '-') {
        std::vector<std::string> own, known;
        for (const CLI::App* level = &command; level != nullptr; level = level->get_parent())
            for (const CLI::Option* option : level->get_options())
                for (const std::string& name : option->get_lnames())
                    (level == &command ? own : known).push_back("--" + name);
        known.insert(known.begin(), own.begin(), own.end());
        return unknown_name(place, "flag", word.substr(0, word.find('=')), known);
    }
    const std::vector<std::string> subs = sub_commands(command);
    if (!subs.empty()) return unknown_name(place, "command", word, subs);
    return wrong_use(place + ": unexpected argument \"" + word + "\"; accepted: attend " + full_name(command) +
                     " --help shows what");
}

// CLI11's own complaints, which begin with the name of the flag.
Error parse_problem(const CLI::ParseError& error) {
    const std::string text = error.what();
    const std::string flag = text.substr(0, text.find(':'));
    if (text.find("required") != std::string::npos && text.find("missing") != std::string::npos)
        return wrong_use(flag + ": has no value; accepted: one value after it");
    if (text.find("At Most") != std::string::npos || text.find("At most") != std::string::npos)
        return wrong_use(flag + ": is given more than once; accepted: once");
    return wrong_use("command line: " + text + "; accepted: attend --help shows what");
}

std::string version_text(bool json) {
    if (json)
        return json_text(Json::object()
                             .set("version", product_version())
                             .set("plugin_abi", abi_version())
                             .set("commit", build_commit()));
    return "attend " + product_version() + "\nplugin ABI " + abi_version() + "\ncommit " + build_commit() + "\n";
}

Result<Outcome> run(int argc, char** argv) {
    CLI::App app{"attend: plugin-based attention runtime"};
    app.name("attend");
    app.set_help_flag("--help", "Shows this help, or that of a command");
    app.require_subcommand(0, 1);
    app.footer(
        "Examples:\n"
        "  attend compute flash-attention-v2 --sequence-length 4096 --heads 8 --causal    run one mechanism\n"
        "  attend recommend --sequence-length 32768 --causal                              ask which one to run\n\n"
        "Exit status: 0 done, 1 a check failed or nothing was found, 2 wrong use or input, 3 a plugin could not be "
        "used,\n"
        "4 the machine could not do it, 130 interrupted.");
    GlobalFlags flags;
    bool version = false;
    add_global_flags(Command(app), flags);
    app.add_flag("--version", version, "Versions of the product and of the plugin ABI, and the commit");
    Commands commands(app);
    add_list(commands);
    add_describe(commands);
    add_compute(commands);
    add_compare(commands);
    add_benchmark(commands);
    add_heatmap(commands);
    add_recommend(commands);
    add_rerank(commands);
    add_status(commands);
    add_tune(commands);
    add_plugins(commands);
    add_config(commands);
    add_completion(commands);
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        if (!app.remaining(true).empty()) return unexpected(app);
        return Outcome{exit_done, app.help()};
    } catch (const CLI::ExtrasError&) {
        return unexpected(app);
    } catch (const CLI::ParseError& error) {
        return parse_problem(error);
    }
    if (version) return Outcome{exit_done, version_text(flags.json)};
    const CLI::App& command = called(app);
    const Handler* handler = commands.handler_of(command);
    if (handler == nullptr) {
        const std::string place = &command == &app ? "command line" : full_name(command);
        return wrong_use(place + ": no command is named; accepted: " + join_names(sub_commands(command)),
                         "attend " + std::string(&command == &app ? "" : full_name(command) + " ") + "--help");
    }
    return (*handler)(flags);
}

int finish(const Result<Outcome>& outcome) {
    if (!outcome) {
        std::fputs(error_text(outcome.error()).c_str(), stderr);
        return exit_status_of(outcome.error());
    }
    const std::string& text = outcome->text;
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
        std::fputs("attend: standard output: cannot be written; accepted: an open file with room\n", stderr);
        return exit_machine;
    }
    return outcome->status;
}

}  // namespace
}  // namespace attend::cli

int main(int argc, char** argv) {
    using namespace attend;
    cli::install_interrupt_handler();
    try {
        return cli::finish(cli::run(argc, argv));
    } catch (const std::bad_alloc&) {
        return cli::finish(
            Error{ErrorCode::memory, "memory: none is left; accepted: smaller tensors or fewer of them", ""});
    } catch (const std::exception& error) {
        return cli::finish(
            Error{ErrorCode::internal, std::string("internal: ") + error.what() + "; accepted: a report of this", ""});
    }
}
