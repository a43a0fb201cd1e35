// SPDX-License-Identifier: Apache-2.0
// What a command is: flags declared on a CLI11 command, and a function that runs when that command was called. Commands
// return their whole standard output; nothing is printed before they have succeeded.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attend/error.hpp"

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

class Commands {
public:
    explicit Commands(CLI::App& root) : root_(root) {}
    // A command below `parent` (the program itself where null). `examples` are two command lines with their meaning.
    CLI::App& add(const std::string& name, const std::string& help, const std::string& examples,
                  CLI::App* parent = nullptr);
    void handle(const CLI::App& command, Handler handler) { handlers_[&command] = std::move(handler); }
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
void add_status(Commands& commands);
void add_plugins(Commands& commands);
void add_config(Commands& commands);
void add_completion(Commands& commands);

// "0.1.0", "1.0", "abc1234".
[[nodiscard]] std::string product_version();
[[nodiscard]] std::string abi_version();
[[nodiscard]] std::string build_commit();

}  // namespace attend::cli
