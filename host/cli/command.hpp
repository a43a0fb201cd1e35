// SPDX-License-Identifier: Apache-2.0
// What a command is: flags declared on it, and a function that runs when that command was called. Commands
// return their whole standard output; nothing is printed before they have succeeded.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attend/error.hpp"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace attend::cli {

enum ExitStatus : int {
    exit_done = 0,
    exit_found_problem = 1,
    exit_wrong_use = 2,
    exit_plugin = 3,
    exit_machine = 4,
    exit_interrupted = 130
};

struct Outcome {
    int status{exit_done};
    std::string text;  // standard output
};

// Flags that every command takes, before or after its name.
struct GlobalFlags {
    std::optional<std::string> config, backend, threads, log_level;
    std::vector<std::string> plugins, plugin_dirs;
    bool json{false}, quiet{false};
};

using Handler = std::function<Result<Outcome>(const GlobalFlags&)>;

// A declared flag or argument.
class Flag {
public:
    explicit Flag(CLI::Option& option) : option_(&option) {}
    const Flag& type_name(const std::string& name) const;
    const Flag& allow_extra_args(bool allow) const;

private:
    CLI::Option* option_;
};

// A command whose flags are declared. Only command.cpp, main.cpp and cmd_completion.cpp include CLI11, which takes the
// compiler seconds.
class Command {
public:
    explicit Command(CLI::App& app) : app_(&app) {}
    Flag add_option(const std::string& name, std::string& value, const std::string& help) const;
    Flag add_option(const std::string& name, std::optional<std::string>& value, const std::string& help) const;
    Flag add_option(const std::string& name, std::vector<std::string>& value, const std::string& help) const;
    Flag add_flag(const std::string& name, bool& value, const std::string& help) const;
    void remove_option(const std::string& name) const;
    void alias(const std::string& name) const;
    [[nodiscard]] CLI::App& app() const { return *app_; }

private:
    CLI::App* app_;
};

class Commands {
public:
    explicit Commands(CLI::App& root) : root_(root) {}
    // A command below `parent` (the program itself where null). `examples` are two command lines with their meaning.
    Command add(const std::string& name, const std::string& help, const std::string& examples,
                const Command* parent = nullptr);
    void handle(const Command& command, Handler handler) { handlers_[&command.app()] = std::move(handler); }
    // The handler of the command that was called; null for a group without its sub-command.
    [[nodiscard]] const Handler* handler_of(const CLI::App& command) const;
    [[nodiscard]] CLI::App& root() const { return root_; }

private:
    CLI::App& root_;
    std::map<const CLI::App*, Handler> handlers_;
};

// Each cmd_*.cpp adds its command.
void add_list(Commands& commands);
void add_describe(Commands& commands);
void add_compute(Commands& commands);
void add_compare(Commands& commands);
void add_benchmark(Commands& commands);
void add_heatmap(Commands& commands);
void add_recommend(Commands& commands);
void add_rerank(Commands& commands);
void add_status(Commands& commands);
void add_tune(Commands& commands);
void add_plugins(Commands& commands);
void add_config(Commands& commands);
void add_completion(Commands& commands);

// "0.1.0", "1.0", "abc1234".
[[nodiscard]] std::string product_version();
[[nodiscard]] std::string abi_version();
[[nodiscard]] std::string build_commit();

}  // namespace attend::cli
