// SPDX-License-Identifier: Apache-2.0
// What a shared library says about itself before any of its code runs. The parser believes no field of the file: it
// works on a byte span, checks every access and needs neither the system's ELF header nor the rest of the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace attend {

inline constexpr std::uint32_t note_magic = 0x444E5441;  // 'A','T','N','D' in memory order

struct NoteFacts {
    std::uint32_t magic{0};
    std::uint32_t layout_tag{0};
    std::uint16_t abi_major{0};
    std::uint16_t abi_minor{0};
    std::uint16_t min_host_minor{0};
    std::uint16_t flags{0};  // bit 0 address, bit 1 thread, bit 2 memory sanitizer
    std::uint64_t required_isa{0};
};

struct ElfFacts {
    std::uint16_t machine{0};  // e_machine: 62 x86-64, 183 AArch64
    bool has_note{false};      // false: not a plugin, and only machine is filled in
    NoteFacts note;
    std::vector<std::string> exported_symbols;  // defined, not local, default or protected visibility; in table order
    bool entry_is_function{false};              // attend_plugin_entry is exported and is code
    std::vector<std::string> needed_libraries;
    std::string newest_glibc;                 // "GLIBC_2.34", empty if none is needed
    std::string newest_glibcxx;               // "GLIBCXX_3.4.30"
    std::vector<std::string> unique_symbols;  // they pin the library in memory
    std::uint64_t tls_bytes{0};
    bool static_tls{false};
    bool exec_stack{false};
    bool text_relocations{false};
    std::uint64_t init_array_entries{0};  // the compiler's start files alone give one
    std::string rpath_or_runpath;
};

struct InspectionFailure {
    std::string code;      // NOT_A_PLUGIN, WRONG_FORMAT, WRONG_ARCH, TRUNCATED, ABI_MAJOR, NEEDS_NEWER_HOST, LAYOUT,
                           // ISA_UNSUPPORTED, UNRESOLVED, MISSING_ENTRY, MISSING_LIBRARY, EXTRA_EXPORTS, STATIC_TLS,
                           // EXEC_STACK, TEXT_RELOCATIONS
    std::string sentence;  // "<what was wrong, with its value>; <what is accepted>", without the path
    std::string hint;      // may be empty
};

struct HostFacts {
    std::uint16_t abi_major{1};
    std::uint16_t abi_minor{0};
    std::uint32_t layout_tag{0x08080108};
    std::uint16_t machine{62};
    std::uint64_t isa{0};
    std::uint16_t sanitizers{0};  // same bits as the flags of the note
};

// The structure of the file. Fails for what the loader could not be trusted with: WRONG_FORMAT, WRONG_ARCH (32 bits or
// big-endian), TRUNCATED. A file without the note is no failure here.
[[nodiscard]] std::variant<ElfFacts, InspectionFailure> inspect_elf(std::span<const std::byte> file);

// Whether this host may load it; nothing = yes.
[[nodiscard]] std::optional<InspectionFailure> judge(const ElfFacts& facts, const HostFacts& host);

}  // namespace attend
