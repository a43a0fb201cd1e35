// SPDX-License-Identifier: Apache-2.0
#include "attend/registry/catalogue.hpp"

#include <algorithm>
#include <array>

#include "attend/config/json.hpp"

namespace attend {
namespace {

// Vertical bars end a cell of a Markdown table.
std::string cell(const std::string& text) {
    std::string out;
    for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
    return out.empty() ? " " : out;
}

std::string dtypes(std::uint64_t mask) {
    constexpr std::array names{"F32", "F64", "F16", "BF16", "I8", "U8 or BOOL", "I32", "I64"};
    std::string out;
    for (std::size_t bit = 0; bit < names.size(); ++bit)
        if ((mask >> bit & 1u) != 0) out += (out.empty() ? "" : ", ") + std::string(names[bit]);
    return out;
}

std::string joined(const std::vector<std::string>& words) {
    std::string out;
    for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
    return out;
}

void write_ports(std::string& out, const MechanismRecord& mechanism, std::uint32_t kind, const char* title,
                 bool with_init) {
    const bool any = std::any_of(mechanism.ports.begin(), mechanism.ports.end(),
                                 [&](const PortRecord& port) { return (port.flags & kind) != 0; });
    if (!any) return;
    out +=
        std::string("\n| ") + title + " | shape | " + (with_init ? "default" : "types") + " | |\n|---|---|---|---|\n";
    for (const PortRecord& port : mechanism.ports)
        if (port.flags & kind)
            out += "| `" + port.name + "` | `" + cell(port.shape) + "` | " +
                   cell(with_init ? port.init : dtypes(port.dtypes)) + " | " + cell(port.help) + " |\n";
}

}  // namespace

std::string write_catalogue(const RegistrySnapshot& registry) {
    std::string out =
        "# Mechanism reference\n\nWritten from the tables in the plugins by `cmake --build build/release --target "
        "docs`; a test compares the two. Shapes use B batch, Hq and Hkv heads of\n"
        "queries and of keys, Nq and Nk lengths, D and Dv widths; alternatives are separated by bars, each with the "
        "condition under which it holds ([ports](../plugin-abi.md#ports)).\n\n"
        "| mechanism | category | time | space |\n|---|---|---|---|\n";
    for (const MechanismPtr& m : registry.list())
        out += "| [" + m->name + "](#" + m->name + ") | " + m->category + " | " + cell(m->time_complexity) + " | " +
               cell(m->space_complexity) + " |\n";
    for (const MechanismPtr& m : registry.list()) {
        const std::string numerics = m->numerics == ATTEND_EXACT         ? "exact"
                                     : m->numerics == ATTEND_APPROXIMATE ? "approximate"
                                                                         : "own definition";
        out += "\n## " + m->name + "\n\n" + m->summary + "\n\nSource: " + m->reference + ". Numerics: " + numerics +
               ". Capabilities: " + joined(capability_names(m->caps)) + ".\n";
        if (!m->formula.empty()) out += "\n```\n" + m->formula + "\n```\n";
        if (!m->cost.empty()) out += "\n**Cost.** " + m->cost + "\n";
        if (!m->use.empty()) out += "\n**When to choose it.** " + m->use + "\n";
        if (!m->example.empty()) out += "\n```sh\n" + m->example + "\n```\n";
        out += "\n| option | type | default | accepted | |\n|---|---|---|---|---|\n";
        for (const OptionSpec& option : m->options)
            out += "| `" + option.name + "` | " + option_type_name(option.type) + " | " +
                   (option.default_value ? cell(write_json(*option.default_value)) : " ") + " | " +
                   cell(accepted_values(option)) + " | " + cell(option.help) + " |\n";
        write_ports(out, *m, ATTEND_INPUT, "input", false);
        write_ports(out, *m, ATTEND_WEIGHT, "weight", true);
        write_ports(out, *m, ATTEND_OUTPUT, "output", false);
    }
    return out;
}

}  // namespace attend
