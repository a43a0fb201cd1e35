// SPDX-License-Identifier: Apache-2.0
// What the host makes of an inspected library: may it be loaded here, and if not, why.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "loading/elf_inspection.hpp"

namespace attend {
namespace {

constexpr std::uint16_t machine_x86_64 = 62;
constexpr std::string_view entry_name = "attend_plugin_entry";

std::string number(std::uint64_t value) { return std::to_string(value); }

std::string hex(std::uint64_t value) {
    std::string digits;
    do {
        digits.insert(digits.begin(), "0123456789abcdef"[value & 15U]);
        value >>= 4;
    } while (value != 0);
    return "0x" + digits;
}

std::string machine_name(std::uint16_t machine) {
    switch (machine) {
        case 3: return "x86 (32 bits)";
        case 21: return "PowerPC 64";
        case 22: return "S/390";
        case 40: return "ARM (32 bits)";
        case machine_x86_64: return "x86-64";
        case 183: return "AArch64";
        case 243: return "RISC-V";
        default: return "machine " + number(machine);
    }
}

std::string isa_names(std::uint64_t isa) {
    constexpr std::array names{"X86_V2",      "X86_V3",    "X86_V4",   "AVX512_BF16", "AVX512_VNNI",
                               "AVX512_FP16", "AMX_BF16",  "AMX_INT8", "NEON",        "NEON_DOTPROD",
                               "NEON_I8MM",   "NEON_BF16", "SVE"};
    std::string list;
    for (std::size_t bit = 0; bit < 64; ++bit) {
        if ((isa >> bit & 1U) == 0) continue;
        if (!list.empty()) list += ", ";
        list += bit < names.size() ? names[bit] : "bit " + number(bit);
    }
    return list.empty() ? "none" : list;
}

// A name from the file on one line, without what a terminal would act on, and of bearable length.
std::string printable(std::string_view name) {
    std::string result;
    for (const char letter : name.substr(0, 80)) result += letter > 0x20 && letter < 0x7F ? letter : '?';
    return name.size() > 80 ? result + "..." : result;
}

std::string abi(std::uint16_t major) { return "plugin ABI " + number(major); }

std::optional<InspectionFailure> judge_note(const NoteFacts& note, const HostFacts& host) {
    if (note.abi_major != host.abi_major) {
        return InspectionFailure{"ABI_MAJOR",
                                 "built for " + abi(note.abi_major) + "; this host accepts " + number(host.abi_major),
                                 "rebuild the plugin or update the host"};
    }
    if (note.layout_tag != host.layout_tag) {
        return InspectionFailure{
            "LAYOUT",
            "built with the data layout " + hex(note.layout_tag) + "; this host accepts " + hex(host.layout_tag),
            "rebuild the plugin for this platform without flags that change alignment"};
    }
    if (note.min_host_minor > host.abi_minor) {
        return InspectionFailure{"NEEDS_NEWER_HOST",
                                 "needs a host with plugin ABI " + number(host.abi_major) + "." +
                                     number(note.min_host_minor) + "; this host has " + number(host.abi_major) + "." +
                                     number(host.abi_minor),
                                 "update the host"};
    }
    if (const std::uint64_t missing = note.required_isa & ~host.isa; missing != 0) {
        return InspectionFailure{
            "ISA_UNSUPPORTED",
            "needs the instruction sets " + isa_names(missing) + "; this machine offers " + isa_names(host.isa),
            "use a build of the plugin for this machine"};
    }
    if (const unsigned foreign = note.flags & 7U & ~unsigned{host.sanitizers}; foreign != 0) {
        const char* name = (foreign & 1U) != 0 ? "address" : (foreign & 2U) != 0 ? "thread" : "memory";
        return InspectionFailure{"UNRESOLVED",
                                 std::string("built with the ") + name + " sanitizer; a host with the same is needed",
                                 "rebuild the plugin without it, or the host with it"};
    }
    return std::nullopt;
}

std::optional<InspectionFailure> judge_exports(const ElfFacts& facts) {
    const auto& symbols = facts.exported_symbols;
    const auto entries = std::count(symbols.begin(), symbols.end(), entry_name);
    if (entries == 0) {
        return InspectionFailure{"MISSING_ENTRY",
                                 "exports " + number(symbols.size()) +
                                     " symbols, none of them attend_plugin_entry; exactly this one is needed",
                                 "the entry must be extern \"C\" and visible"};
    }
    if (!facts.entry_is_function) {
        return InspectionFailure{"MISSING_ENTRY", "exports attend_plugin_entry as data; a function is needed", {}};
    }
    if (symbols.size() == 1) return std::nullopt;
    std::string list;
    std::size_t shown = 0;
    for (const std::string& symbol : symbols) {
        if (symbol == entry_name && entries == 1) continue;
        if (shown++ == 5) {
            list += ", ...";
            break;
        }
        list += (list.empty() ? "" : ", ") + printable(symbol);
    }
    return InspectionFailure{"EXTRA_EXPORTS",
                             "exports " + number(symbols.size() - 1) + " symbols beside attend_plugin_entry: " + list +
                                 "; exactly attend_plugin_entry is accepted",
                             "link with the version script of the SDK and hidden visibility"};
}

std::optional<InspectionFailure> judge_link(const ElfFacts& facts) {
    if (facts.exec_stack) {
        return InspectionFailure{"EXEC_STACK", "asks for an executable stack; a stack without execution is accepted",
                                 "link with -z noexecstack and mark assembler sources with .note.GNU-stack"};
    }
    if (facts.text_relocations) {
        return InspectionFailure{"TEXT_RELOCATIONS", "has text relocations; position-independent code is accepted",
                                 "compile everything with -fPIC"};
    }
    if (facts.static_tls) {
        return InspectionFailure{"STATIC_TLS", "uses static thread-local storage; a plugin declares none",
                                 "remove thread_local variables, or compile without -ftls-model=initial-exec"};
    }
    // The file is loaded from a copy elsewhere, so a path relative to it, or to anything, leads nowhere.
    std::string_view rest = facts.rpath_or_runpath;
    while (!facts.rpath_or_runpath.empty()) {
        const std::size_t colon = rest.find(':');
        if (!rest.substr(0, colon).starts_with('/')) {
            return InspectionFailure{"MISSING_LIBRARY",
                                     "has the relative library search path \"" + printable(facts.rpath_or_runpath) +
                                         "\"; a self-contained plugin is needed",
                                     "link private libraries statically and set no RPATH"};
        }
        if (colon == std::string_view::npos) break;
        rest.remove_prefix(colon + 1);
    }
    return std::nullopt;
}

}  // namespace

std::optional<InspectionFailure> judge(const ElfFacts& facts, const HostFacts& host) {
    if (!facts.has_note) {
        return InspectionFailure{"NOT_A_PLUGIN", "has no ATTEND note; a plugin built with the SDK is needed", {}};
    }
    if (facts.note.magic != note_magic) {
        return InspectionFailure{
            "NOT_A_PLUGIN",
            "its ATTEND note has the magic " + hex(facts.note.magic) + "; " + hex(note_magic) + " is accepted",
            {}};
    }
    if (facts.machine != host.machine) {
        return InspectionFailure{
            "WRONG_ARCH",
            "built for " + machine_name(facts.machine) + "; this host runs on " + machine_name(host.machine),
            "use a build of the plugin for this machine"};
    }
    if (auto failure = judge_note(facts.note, host)) return failure;
    if (auto failure = judge_exports(facts)) return failure;
    return judge_link(facts);
}

}  // namespace attend
