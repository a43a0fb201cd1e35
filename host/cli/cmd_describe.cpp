// SPDX-License-Identifier: Apache-2.0
// attend describe: everything that a mechanism says about itself.
#include <algorithm>
#include <string>
#include <string_view>

#include "attend/registry/mechanism_registry.hpp"
#include "command.hpp"
#include "errors.hpp"
#include "pattern_flags.hpp"
#include "service/call_plan.hpp"
#include "service/documents.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

// Every line two columns further in.
std::string indented(const std::string& text) {
    std::string lines = "  ";
    for (const char c : text) lines += c == '\n' ? std::string("\n  ") : std::string(1, c);
    return lines;
}

bool only_projected(const PortRecord& port) {
    // Every alternative of the shape is guarded by the projected form.
    std::size_t begin = 0;
    while (begin <= port.shape.size()) {
        const std::size_t end = std::min(port.shape.find('|', begin), port.shape.size());
        if (port.shape.substr(begin, end - begin).find("form=projected") == std::string::npos) return false;
        begin = end + 1;
    }
    return true;
}

// What happens to weights that the caller leaves out.
std::string left_out_text(const MechanismRecord& mechanism) {
    bool projected = false, others = false, optional = false;
    for (const PortRecord& port : mechanism.ports)
        if ((port.flags & ATTEND_WEIGHT) != 0)
            ((port.flags & ATTEND_OPTIONAL) != 0 ? optional : only_projected(port) ? projected : others) = true;
    std::string text;
    if (projected)
        text +=
            "  Projections left out are not applied in the core form, which takes ready-made heads. In the projected "
            "form\n"
            "  (option form, or chosen by giving one of its weights) those left out are initialised from "
            "weight_seed.\n";
    if (others)
        text +=
            "  Learned tensors left out are initialised from weight_seed; the result then says \"default weights\".\n";
    if (optional) text += "  Optional ones may be left out; their lines say what holds then.\n";
    return text;
}

std::string describe_text(const MechanismRecord& mechanism) {
    std::string text = bold(mechanism.name) + (mechanism.title.empty() ? "" : ": " + mechanism.title) + "\n" +
                       mechanism.summary + "\n\n";
    text +=
        aligned({{"category", mechanism.category},
                 {"source", mechanism.reference.empty() ? "-" : mechanism.reference},
                 {"complexity", "time " + mechanism.time_complexity + ", memory " + mechanism.space_complexity},
                 {"numerics", exactness_name(mechanism.numerics)},
                 {"capabilities", join(capability_names(mechanism.caps))},
                 {"dtypes", join(dtype_names(mechanism.dtypes))},
                 {"plugin", mechanism.plugin_id + " " + mechanism.plugin_version + ", back end " + mechanism.backend},
                 {"file", mechanism.plugin_path}});
    const auto section = [&](const char* title, const std::string& body) {
        if (body.empty()) return;
        text += "\n" + bold(title) + "\n" + indented(body) + "\n";
    };
    section("Formula", mechanism.formula);
    section("Cost", mechanism.cost);
    section("When to choose it", mechanism.use);
    section("Example", mechanism.example);
    Table options({"name", "type", "default", "accepted", "meaning"});
    for (const OptionSpec& option : mechanism.options)
        options.add({option.name, option_type_name(option.type),
                     option.default_value && !option.default_value->is_null() ? shown_value(*option.default_value)
                     : option.required                                        ? "required"
                                                                              : "-",
                     accepted_values(option), option.help});
    text += "\n" + bold("Options") + "\n" + (options.empty() ? "  none\n" : options.text("  "));
    Table inputs({"name", "shape", "dtypes", "", "meaning"}), weights({"name", "shape", "initialised by", "meaning"}),
        outputs({"name", "shape", "meaning"});
    for (const PortRecord& port : mechanism.ports) {
        if ((port.flags & ATTEND_WEIGHT) != 0)
            weights.add({port.name, port.shape,
                         (port.flags & ATTEND_OPTIONAL) != 0 && port.init.empty() ? "- (optional)"
                                                                                  : initialiser_text(port.init),
                         port.help});
        else if ((port.flags & ATTEND_INPUT) != 0)
            inputs.add({port.name, port.shape, join(dtype_names(port.dtypes), ","),
                        (port.flags & ATTEND_OPTIONAL) != 0 || !port.init.empty() ? "optional" : "", port.help});
        else
            outputs.add({port.name, port.shape, port.help});
    }
    text += "\n" + bold("Inputs") + "\n" + (inputs.empty() ? "  none\n" : inputs.text("  "));
    text +=
        "\n" + bold("Weights") + "\n" + (weights.empty() ? "  none\n" : weights.text("  ") + left_out_text(mechanism));
    text += "\n" + bold("Outputs") + "\n" + outputs.text("  ");
    return text;
}

struct Flags {
    ComputeFlags sizes;
    bool plan{false};
};

Result<Outcome> run_plan(const AttentionService& service, const Flags& flags, bool json) {
    Result<PatternQuestion> question = pattern_question(service, flags.sizes, "describe --plan");
    if (!question) return question.error();
    Result<PatternCount> count = count_pattern(service, std::move(*question));
    if (!count) return count.error();
    return Outcome{exit_done, json ? json_text(count->json()) : count->text()};
}

Result<Outcome> run(const Flags& given, const GlobalFlags& flags) {
    const std::optional<std::string>& name = given.sizes.mechanism;
    if (!name)
        return wrong_use("describe: no mechanism is named; accepted: attend describe MECHANISM",
                         "`attend list` shows all");
    Result<Session> session = open_session(flags);
    if (!session) return session.error();
    if (given.plan) return run_plan(*session->service, given, flags.json);
    const OptionFlags& options = given.sizes.options;
    if (given.sizes.length || given.sizes.length_k || given.sizes.heads || given.sizes.kv_heads ||
        !options.sets.empty() || options.file || options.causal || options.window_size)
        return wrong_use("describe: sizes and options of a call are given without --plan; accepted: with --plan alone");
    Result<MechanismPtr> mechanism = find_mechanism(*session->service, *name, "describe");
    if (!mechanism) return mechanism.error();
    return Outcome{exit_done, flags.json ? json_text(describe_json(**mechanism)) : describe_text(**mechanism)};
}

}  // namespace

void add_describe(Commands& commands) {
    Command command =
        commands.add("describe", "Describes one mechanism: source, options, inputs, weights, capabilities, numerics.",
                     "  attend describe flash-attention-v2       options with type, default and range\n"
                     "  attend describe standard-mha --json      the same for a program\n"
                     "  attend describe local-attention --plan --sequence-length 16384 --causal\n"
                     "                                           which share of dense attention it computes");
    auto given = std::make_shared<Flags>();
    command.add_option("MECHANISM", given->sizes.mechanism, "Name, or PLUGIN_ID/NAME").type_name("");
    command.add_flag("--plan", given->plan,
                     "Instead: density and skipped work of a call of these sizes, for mechanisms that choose keys by "
                     "position");
    declare_pattern_flags(command, given->sizes);
    commands.handle(command, [given](const GlobalFlags& flags) { return run(*given, flags); });
}

}  // namespace attend::cli
