// SPDX-License-Identifier: Apache-2.0
// Commands and their flags, as CLI11 has them.
#include "command.hpp"

#include <CLI/CLI.hpp>

namespace attend::cli {

const Flag& Flag::type_name(const std::string& name) const {
    option_->type_name(name);
    return *this;
}
const Flag& Flag::allow_extra_args(bool allow) const {
    option_->allow_extra_args(allow);
    return *this;
}

Flag Command::add_option(const std::string& name, std::string& value, const std::string& help) const {
    return Flag(*app_->add_option(name, value, help));
}
Flag Command::add_option(const std::string& name, std::optional<std::string>& value, const std::string& help) const {
    return Flag(*app_->add_option(name, value, help));
}
Flag Command::add_option(const std::string& name, std::vector<std::string>& value, const std::string& help) const {
    return Flag(*app_->add_option(name, value, help));
}
Flag Command::add_flag(const std::string& name, bool& value, const std::string& help) const {
    return Flag(*app_->add_flag(name, value, help));
}
void Command::remove_option(const std::string& name) const { app_->remove_option(app_->get_option(name)); }
void Command::alias(const std::string& name) const { app_->alias(name); }

Command Commands::add(const std::string& name, const std::string& help, const std::string& examples,
                      const Command* parent) {
    CLI::App& command = *(parent != nullptr ? &parent->app() : &root_)->add_subcommand(name, help);
    command.fallthrough();  // global flags may follow the command
    command.require_subcommand(0, 1);
    command.set_help_flag("--help", "Shows this help");
    command.footer("Examples:\n" + examples +
                   (parent != nullptr || name != "plugins" ? "\n\nGlobal flags: attend --help" : ""));
    return Command(command);
}

}  // namespace attend::cli
