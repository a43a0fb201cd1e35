// SPDX-License-Identifier: Apache-2.0
// attend completion: a script for the shell, written from the commands and flags themselves.
#include <CLI/CLI.hpp>

#include <algorithm>

#include "attend/config/names.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

constexpr const char* mechanism_names = "attend list --quiet 2>/dev/null | sed -n '2,$s/ .*//p'";

std::vector<std::string> flags_of(const CLI::App& command) {
    std::vector<std::string> names;
    for (const CLI::Option* option : command.get_options())
        for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    return names;
}

std::vector<const CLI::App*> commands_of(const CLI::App& parent) {
    return parent.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> names_of(const std::vector<const CLI::App*>& commands) {
    std::vector<std::string> names;
    for (const CLI::App* command : commands) names.push_back(command->get_name());
    return names;
}

bool takes_mechanism(const CLI::App& command) {
    const auto options = command.get_options();
    return std::any_of(options.begin(), options.end(),
                       [](const CLI::Option* option) { return option->get_name() == "MECHANISM"; });
}

// What may follow a command: its sub-commands, its flags, and those of the program.
std::string words_after(const CLI::App& root, const CLI::App& command) {
    std::vector<std::string> words = names_of(commands_of(command));
    for (const std::string& flag : flags_of(command)) words.push_back(flag);
    if (&command != &root)
        for (const std::string& flag : flags_of(root))
            if (std::find(words.begin(), words.end(), flag) == words.end()) words.push_back(flag);
    return join(words, " ");
}

std::string bash_script(const CLI::App& root) {
    std::string cases;
    for (const CLI::App* command : commands_of(root)) {
        cases += "        " + command->get_name() + ") words=\"" + words_after(root, *command) + "\"";
        if (takes_mechanism(*command)) cases += "; words+=\" auto $(" + std::string(mechanism_names) + ")\"";
        cases += " ;;\n";
    }
    return "# attend completion for bash: source <(attend completion bash)\n"
           "_attend() {\n"
           "    local word=\"${COMP_WORDS[COMP_CWORD]}\" command=\"\" at words\n"
           "    for ((at = 1; at < COMP_CWORD; ++at)); do\n"
           "        case \"${COMP_WORDS[at]}\" in\n"
           "            " +
           join(names_of(commands_of(root)), "|") +
           ") command=\"${COMP_WORDS[at]}\"; break ;;\n"
           "        esac\n"
           "    done\n"
           "    case \"$command\" in\n" +
           cases + "        *) words=\"" + words_after(root, root) +
           "\" ;;\n"
           "    esac\n"
           "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
           "}\n"
           "complete -o default -F _attend attend\n";
}

std::string zsh_script(const CLI::App& root) {
    return "#compdef attend\n# attend completion for zsh: source <(attend completion zsh)\nautoload -U +X bashcompinit "
           "&& bashcompinit\n" +
           bash_script(root);
}

std::string in_quotes(const std::string& text) {
    std::string out = "'";
    for (const char c : text) out += c == '\'' ? std::string("\\'") : std::string(1, c);
    return out + "'";
}

std::string fish_script(const CLI::App& root) {
    std::string script = "# attend completion for fish: attend completion fish | source\ncomplete -c attend -e\n";
    const auto add_flags = [&](const CLI::App& command, const std::string& when) {
        for (const CLI::Option* option : command.get_options())
            for (const std::string& name : option->get_lnames())
                script += "complete -c attend" + when + " -l " + name + (option->get_expected_min() > 0 ? " -r" : "") +
                          " -d " + in_quotes(option->get_description()) + "\n";
    };
    add_flags(root, "");
    const std::vector<std::string> top = names_of(commands_of(root));
    for (const CLI::App* command : commands_of(root)) {
        const std::string& name = command->get_name();
        script += "complete -c attend -f -n 'not __fish_seen_subcommand_from " + join(top, " ") + "' -a " + name +
                  " -d " + in_quotes(command->get_description()) + "\n";
        const std::string when = " -n '__fish_seen_subcommand_from " + name + "'";
        add_flags(*command, when);
        for (const CLI::App* sub : commands_of(*command))
            script += "complete -c attend -f" + when + " -a " + sub->get_name() + " -d " +
                      in_quotes(sub->get_description()) + "\n";
        if (takes_mechanism(*command))
            script += "complete -c attend -f" + when + " -a \"auto (" + mechanism_names + ")\"\n";
    }
    return script;
}

}  // namespace

void add_completion(Commands& commands) {
    Command command = commands.add("completion", "Prints a completion script for bash, zsh or fish.",
                                   "  source <(attend completion bash)          in ~/.bashrc\n"
                                   "  attend completion fish | source           in config.fish");
    auto shell = std::make_shared<std::optional<std::string>>();
    command.add_option("SHELL", *shell, "bash, zsh or fish").type_name("");
    commands.handle(command, [shell, &commands](const GlobalFlags&) -> Result<Outcome> {
        const std::vector<std::string> known{"bash", "zsh", "fish"};
        if (!*shell) return wrong_use("completion: no shell is named; accepted: " + join_names(known));
        if (**shell == "bash") return Outcome{exit_done, bash_script(commands.root())};
        if (**shell == "zsh") return Outcome{exit_done, zsh_script(commands.root())};
        if (**shell == "fish") return Outcome{exit_done, fish_script(commands.root())};
        return unknown_name("completion", "shell", **shell, known);
    });
}

}  // namespace attend::cli
