// SPDX-License-Identifier: Apache-2.0
// The static inspection on real shared objects, built here with the system's compiler, and on damaged ones.

#include "loading/elf_inspection.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "support/catch.hpp"

namespace {

using namespace attend;

// A plugin in miniature: the note and the entry, each of which a macro can spoil.
constexpr const char* source = R"c(
#include <stdint.h>
#ifndef MAGIC
#define MAGIC 0x444E5441u
#endif
#ifndef MAJOR
#define MAJOR 1
#endif
#ifndef MIN_HOST
#define MIN_HOST 0
#endif
#ifndef LAYOUT
#define LAYOUT 0x08080108u
#endif
#ifndef ISA
#define ISA 0
#endif
#ifndef FLAGS
#define FLAGS 0
#endif
#ifndef PAYLOAD
#define PAYLOAD 32
#endif
struct note {
  uint32_t name_bytes, payload_bytes, type; char name[8];
  uint32_t magic, layout; uint16_t major, minor, min_host, flags; uint32_t isa[2], reserved[2];
};
#ifndef NO_NOTE
__attribute__((used, section(".note.attend"), aligned(4)))
static const struct note the_note = {7, PAYLOAD, 1, "ATTEND",
  MAGIC, LAYOUT, MAJOR, 3, MIN_HOST, FLAGS, {ISA, 0}, {0, 0}};
#endif
#ifdef TWO_NOTES
__attribute__((used, section(".note.attend"), aligned(4)))
static const struct note other_note = {7, 32, 1, "ATTEND", MAGIC, LAYOUT, MAJOR, 3, MIN_HOST, FLAGS, {ISA, 0}, {0, 0}};
#endif
#define EXPORT __attribute__((visibility("default")))
#ifdef TLS
static __thread int counter;
__attribute__((noinline)) static int count(void) { return ++counter; }
#else
static int count(void) { return 0; }
#endif
#ifdef DATA_ENTRY
EXPORT int attend_plugin_entry = 1;
#elif defined NO_ENTRY
EXPORT int other(void) { return count(); }
#else
EXPORT const void *attend_plugin_entry(const void *hello) { return count() ? hello : 0; }
#endif
#ifdef EXTRA
EXPORT int helper(void) { return 2; }
EXPORT int helper_data = 3;
__attribute__((visibility("hidden"))) int hidden_one(void) { return 4; }
#endif
#ifdef PRINTS
#include <stdio.h>
#include <math.h>
void print_it(double x) { printf("%f", pow(x, 2.5)); }
#endif
#ifdef CONSTRUCTOR
static volatile int started;
__attribute__((constructor)) static void start(void) { started = 1; }
#endif
#ifdef TEXTREL
extern int count_of_something; int count_of_something = 3;
const int *const volatile somewhere __attribute__((section(".text.somewhere"))) = &count_of_something;
#endif
#ifdef MAIN
int main(void) { return 0; }
#endif
)c";

class Workshop {
public:
    Workshop() {
        std::string pattern = (std::filesystem::temp_directory_path() / "attend-elf-XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        folder_ = pattern;
        std::ofstream(folder_ / "plugin.c") << source;
        std::ofstream(folder_ / "unique.cpp")
            << source << "\ntemplate <class T> struct Holder { static int value; };\n"
            << "template <class T> int Holder<T>::value = 1;\n"
            << "__attribute__((visibility(\"default\"))) int use() { return Holder<int>::value++; }\n";
    }
    Workshop(const Workshop&) = delete;
    Workshop& operator=(const Workshop&) = delete;
    ~Workshop() {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

    // Compiles and returns the bytes of the result.
    [[nodiscard]] std::string build(const std::string& flags = "", const std::string& kind = "-shared",
                                    const std::string& file = "plugin.c") const {
        const std::string output = (folder_ / "out.so").string();
        std::filesystem::remove(output);
        const char* compiler = std::getenv(file.ends_with(".cpp") ? "CXX" : "CC");
        const std::string command = std::string(compiler != nullptr      ? compiler
                                                : file.ends_with(".cpp") ? "c++"
                                                                         : "cc") +
                                    " -O1 -fPIC -fvisibility=hidden -w " + kind + " " + flags + " -o '" + output +
                                    "' '" + (folder_ / file).string() + "' -lm";
        INFO(command);
        REQUIRE(std::system(command.c_str()) == 0);
        std::ifstream in(output, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    }

private:
    std::filesystem::path folder_;
};

const Workshop& workshop() {
    static const Workshop one;
    return one;
}

const std::string& good() {
    static const std::string bytes = workshop().build();
    return bytes;
}

// A copy of exactly the size of the file, so that the address sanitizer sees a read behind it.
std::variant<ElfFacts, InspectionFailure> inspect(const std::string& bytes) {
    std::vector<std::byte> exact(bytes.size());
    if (!bytes.empty()) std::memcpy(exact.data(), bytes.data(), bytes.size());
    return inspect_elf(exact);
}

ElfFacts facts_of(const std::string& bytes) {
    auto result = inspect(bytes);
    if (const auto* failure = std::get_if<InspectionFailure>(&result)) FAIL(failure->code << ": " << failure->sentence);
    return std::get<ElfFacts>(std::move(result));
}

HostFacts this_host() {
    HostFacts host;
    host.isa = 0b11;
    host.machine = facts_of(good()).machine;
    return host;
}

// What becomes of the file, from either step; "" = accepted.
std::string verdict(const std::string& bytes, const HostFacts& host = this_host()) {
    auto result = inspect(bytes);
    std::optional<InspectionFailure> failure;
    if (auto* structural = std::get_if<InspectionFailure>(&result)) {
        failure = *structural;
    } else {
        failure = judge(std::get<ElfFacts>(result), host);
    }
    if (!failure) return "";
    CHECK(failure->sentence.find("; ") != std::string::npos);
    CHECK(failure->sentence.find('\n') == std::string::npos);
    return failure->code + ": " + failure->sentence;
}

void refused(const std::string& bytes, const std::string& begin, const HostFacts& host = this_host()) {
    const std::string text = verdict(bytes, host);
    INFO("expected: " << begin << "\nsays: " << text);
    CHECK(text.starts_with(begin));
}

template <class T>
std::string patched(std::string bytes, std::size_t at, T value) {
    char raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes.replace(at, sizeof value, raw, sizeof value);
    return bytes;
}

template <class T>
T field(const std::string& bytes, std::size_t at) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

// File offset of the first program header of a type.
std::size_t program_header(const std::string& bytes, std::uint32_t type) {
    const auto table = field<std::uint64_t>(bytes, 32);
    for (std::size_t index = 0; index < field<std::uint16_t>(bytes, 56); ++index) {
        if (field<std::uint32_t>(bytes, table + index * 56) == type) return table + index * 56;
    }
    FAIL("no program header of type " << type);
    return 0;
}

// File offset of a dynamic entry.
std::size_t dynamic_entry(const std::string& bytes, std::uint64_t tag) {
    for (auto at = field<std::uint64_t>(bytes, program_header(bytes, 2) + 8); at + 16 <= bytes.size(); at += 16) {
        if (field<std::uint64_t>(bytes, at) == tag) return at;
    }
    FAIL("no dynamic entry " << tag);
    return 0;
}

}  // namespace

TEST_CASE("elf: a plugin is accepted and described") {
    CHECK(verdict(good()).empty());
    const ElfFacts facts = facts_of(good());
    CHECK(facts.has_note);
    CHECK(facts.note.magic == note_magic);
    CHECK(facts.note.layout_tag == 0x08080108);
    CHECK(facts.note.abi_major == 1);
    CHECK(facts.note.abi_minor == 3);
    CHECK(facts.note.min_host_minor == 0);
    CHECK(facts.note.required_isa == 0);
    CHECK(facts.exported_symbols == std::vector<std::string>{"attend_plugin_entry"});
    CHECK(facts.entry_is_function);
    CHECK(facts.unique_symbols.empty());
    CHECK(facts.tls_bytes == 0);
    CHECK_FALSE(facts.static_tls);
    CHECK_FALSE(facts.exec_stack);
    CHECK_FALSE(facts.text_relocations);
    CHECK(facts.init_array_entries <= 1);
    CHECK(facts.rpath_or_runpath.empty());
}

TEST_CASE("elf: stripped, without section table, with either hash style") {
    CHECK(verdict(workshop().build("-s")).empty());
    CHECK(verdict(workshop().build("-Wl,--hash-style=sysv")).empty());
    CHECK(verdict(workshop().build("-Wl,--hash-style=gnu")).empty());
    CHECK(verdict(workshop().build("-Wl,--hash-style=both -Wl,--gc-sections")).empty());
    const std::string none =
        patched<std::uint64_t>(patched<std::uint16_t>(patched<std::uint16_t>(good(), 60, 0), 62, 0), 40, 0);
    CHECK(verdict(none).empty());
    CHECK(facts_of(none).exported_symbols.size() == 1);
    refused(workshop().build("-DEXTRA -Wl,--hash-style=sysv"), "EXTRA_EXPORTS");
}

TEST_CASE("elf: libraries, versions, constructors, search path") {
    const ElfFacts facts = facts_of(workshop().build("-DPRINTS -DCONSTRUCTOR -Wl,-rpath,/opt/lib -Wl,--no-as-needed"));
    CHECK(std::count(facts.needed_libraries.begin(), facts.needed_libraries.end(), "libc.so.6") == 1);
    CHECK(std::count(facts.needed_libraries.begin(), facts.needed_libraries.end(), "libm.so.6") == 1);
    CHECK(facts.newest_glibc.starts_with("GLIBC_2."));
    CHECK(facts.init_array_entries == facts_of(good()).init_array_entries + 1);
    CHECK(facts.rpath_or_runpath == "/opt/lib");
    CHECK_FALSE(judge(facts, this_host()));
    refused(workshop().build("'-Wl,-rpath,$ORIGIN/../lib'"),
            "MISSING_LIBRARY: has the relative library search path \"$ORIGIN/../lib\"");
    refused(workshop().build("-Wl,-rpath,/opt/lib:lib"), "MISSING_LIBRARY");
}

TEST_CASE("elf: unique symbols and the C++ library are reported") {
    const ElfFacts facts =
        facts_of(workshop().build("-fvisibility=default -Wl,--no-as-needed", "-shared", "unique.cpp"));
    CHECK(std::count(facts.unique_symbols.begin(), facts.unique_symbols.end(), "_ZN6HolderIiE5valueE") == 1);
    CHECK(std::count(facts.exported_symbols.begin(), facts.exported_symbols.end(), "_Z3usev") == 1);
    CHECK(std::count(facts.needed_libraries.begin(), facts.needed_libraries.end(), "libstdc++.so.6") == 1);
}

TEST_CASE("elf: what is no shared library is WRONG_FORMAT") {
    refused("", "WRONG_FORMAT: the file is empty");
    refused("\x7F", "WRONG_FORMAT");
    refused("#!/bin/sh\necho this is text, and longer than an ELF header would be, so nothing is missing\n",
            "WRONG_FORMAT: the file does not begin");
    refused(workshop().build("", "-c"), "WRONG_FORMAT: the file is an object file (type 1)");
    refused(workshop().build("-DMAIN -no-pie", ""), "WRONG_FORMAT: the file is an executable (type 2)");
    refused(workshop().build("-DMAIN -pie", ""), "WRONG_FORMAT: the file is a position-independent executable");
    refused(patched<std::uint8_t>(good(), 6, 9), "WRONG_FORMAT: ELF version 9");
    refused(patched<std::uint16_t>(good(), 56, 0), "WRONG_FORMAT: 0 program headers");
    refused(patched<std::uint16_t>(good(), 54, 32), "WRONG_FORMAT");
    refused(patched<std::uint16_t>(good(), 58, 40), "WRONG_FORMAT: section headers of 40 bytes");
}

TEST_CASE("elf: another machine is WRONG_ARCH") {
    refused(patched<std::uint16_t>(good(), 18, 243), "WRONG_ARCH: built for RISC-V; this host runs on");
    refused(patched<std::uint16_t>(good(), 18, 999), "WRONG_ARCH: built for machine 999");
    refused(patched<std::uint8_t>(good(), 4, 1), "WRONG_ARCH: built for 32 bits");
    refused(patched<std::uint8_t>(good(), 5, 2), "WRONG_ARCH: built for another byte order");
}

TEST_CASE("elf: every cut is TRUNCATED") {
    for (const std::size_t percent : {25U, 50U, 75U, 90U, 99U}) {
        INFO(percent << " %");
        refused(good().substr(0, good().size() * percent / 100), "TRUNCATED: ");
    }
    refused(good().substr(0, good().size() - 1),
            "TRUNCATED: the section table ends at byte " + std::to_string(good().size()));
    refused(good().substr(0, 63), "TRUNCATED: the ELF header");
    refused(good().substr(0, 100), "TRUNCATED: the program header table");
    refused(good().substr(0, 4), "TRUNCATED");
    // Without a section table the segments still show it.
    const std::string none = patched<std::uint64_t>(good(), 40, 0);
    refused(none.substr(0, none.size() / 2), "TRUNCATED: segment");
}

TEST_CASE("elf: a library without the note is NOT_A_PLUGIN") {
    const ElfFacts facts = facts_of(workshop().build("-DNO_NOTE"));
    CHECK_FALSE(facts.has_note);
    refused(workshop().build("-DNO_NOTE"), "NOT_A_PLUGIN: has no ATTEND note");
    refused(workshop().build("-DMAGIC=0x12345678u"), "NOT_A_PLUGIN: its ATTEND note has the magic 0x12345678");
    refused(workshop().build("-DTWO_NOTES"), "WRONG_FORMAT: two ATTEND notes");
    refused(workshop().build("-DPAYLOAD=16"), "WRONG_FORMAT: an ATTEND note of 16 bytes");
    refused(workshop().build("-DPAYLOAD=4096"), "WRONG_FORMAT: a note of 7 + 4096 bytes");
}

TEST_CASE("elf: the note must suit the host") {
    refused(workshop().build("-DMAJOR=2"), "ABI_MAJOR: built for plugin ABI 2; this host accepts 1");
    refused(workshop().build("-DMAJOR=0"), "ABI_MAJOR");
    refused(workshop().build("-DLAYOUT=0x04040104u"),
            "LAYOUT: built with the data layout 0x4040104; this host accepts 0x8080108");
    const std::string needs = workshop().build("-DMIN_HOST=4");
    refused(needs, "NEEDS_NEWER_HOST: needs a host with plugin ABI 1.4; this host has 1.0");
    HostFacts newer = this_host();
    newer.abi_minor = 4;
    CHECK(verdict(needs, newer).empty());
    CHECK(verdict(workshop().build("-DISA=3")).empty());
    refused(workshop().build("-DISA=0x80000005u"),
            "ISA_UNSUPPORTED: needs the instruction sets X86_V4, bit 31; this machine offers X86_V2, X86_V3");
    const std::string instrumented = workshop().build("-DFLAGS=1");
    refused(instrumented, "UNRESOLVED: built with the address sanitizer");
    HostFacts same = this_host();
    same.sanitizers = 1;
    CHECK(verdict(instrumented, same).empty());
}

TEST_CASE("elf: the entry is the only export") {
    refused(workshop().build("-DNO_ENTRY"), "MISSING_ENTRY: exports 1 symbols, none of them attend_plugin_entry");
    refused(workshop().build("-DDATA_ENTRY"), "MISSING_ENTRY: exports attend_plugin_entry as data");
    const std::string extra = verdict(workshop().build("-DEXTRA"));
    CHECK(extra.starts_with("EXTRA_EXPORTS: exports 2 symbols beside attend_plugin_entry: "));
    CHECK(extra.find("helper_data") != std::string::npos);
    CHECK(extra.find("hidden_one") == std::string::npos);
}

TEST_CASE("elf: executable stack, static TLS and text relocations are refused") {
    refused(workshop().build("-z execstack"), "EXEC_STACK");
    const std::string tls = workshop().build("-DTLS -ftls-model=initial-exec");
    refused(tls, "STATIC_TLS");
    CHECK(facts_of(tls).tls_bytes == 4);
    const std::string dynamic_tls = workshop().build("-DTLS");
    CHECK(verdict(dynamic_tls).empty());
    CHECK(facts_of(dynamic_tls).tls_bytes == 4);
    refused(workshop().build("-DTEXTREL -Wl,-z,notext"), "TEXT_RELOCATIONS");
    if (this_host().machine == 62) {
        const std::size_t stack = program_header(good(), 0x6474E551);
        refused(patched<std::uint32_t>(good(), stack, 0), "EXEC_STACK");
    }
}

TEST_CASE("elf: lies in headers and tables end in a sentence") {
    const std::size_t load = program_header(good(), 1);
    const std::size_t note = program_header(good(), 4);
    const std::uint64_t far = ~std::uint64_t{0};
    refused(patched(good(), load + 8, far), "TRUNCATED");
    refused(patched(good(), load + 32, far), "TRUNCATED");
    refused(patched<std::uint64_t>(good(), load + 40, 0), "WRONG_FORMAT: segment");
    refused(patched(good(), load + 16, far), "WRONG_FORMAT: segment");
    refused(patched<std::uint64_t>(good(), note + 32, good().size()), "TRUNCATED: segment");
    refused(patched(good(), 32, far), "TRUNCATED: the program header table");
    refused(patched(good(), 40, far), "TRUNCATED: the section table");
    refused(patched<std::uint16_t>(good(), 60, 0xFFFF), "TRUNCATED: the section table");
    refused(patched<std::uint32_t>(good(), program_header(good(), 2), 0), "WRONG_FORMAT: there is no dynamic segment");
    for (const std::uint64_t tag :
         {5U, 6U, 10U, 0x6FFFFEF5U}) {  // string and symbol table, size of strings, hash table
        INFO("dynamic tag " << tag);
        refused(patched(good(), dynamic_entry(good(), tag) + 8, far - 4096), "WRONG_FORMAT");
    }
    refused(patched<std::uint64_t>(good(), dynamic_entry(good(), 10) + 8, 1), "WRONG_FORMAT: a symbol has its name");
    refused(patched<std::uint64_t>(good(), dynamic_entry(good(), 11) + 8, 16), "WRONG_FORMAT: symbols of 16 bytes");
    const std::string versioned = workshop().build("-DPRINTS");
    refused(patched(versioned, dynamic_entry(versioned, 0x6FFFFFFE) + 8, far), "WRONG_FORMAT: needed versions");
    refused(patched(versioned, dynamic_entry(versioned, 1) + 8, far), "WRONG_FORMAT: a needed library");
}

TEST_CASE("elf: damaged libraries are judged, never a crash") {
    const std::string versioned = workshop().build("-DPRINTS -DCONSTRUCTOR -DEXTRA -s -Wl,--hash-style=both");
    const HostFacts host = this_host();
    std::mt19937_64 random(11);
    const auto below = [&random](std::size_t bound) { return static_cast<std::size_t>(random() % bound); };
    std::size_t refusals = 0;
    for (int trial = 0; trial < 3000; ++trial) {
        std::string bytes = trial % 2 == 0 ? good() : versioned;
        const auto dynamic = field<std::uint64_t>(bytes, program_header(bytes, 2) + 8);
        const std::size_t headers = 64 + 56 * std::size_t{field<std::uint16_t>(bytes, 56)};
        for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
            // Half of the damage goes where the structure is.
            const std::size_t kind = below(6);
            const std::size_t at = kind == 0   ? below(bytes.size())
                                   : kind <= 2 ? below(headers)
                                   : kind == 3
                                       ? std::min(bytes.size() - 1, static_cast<std::size_t>(dynamic) + below(512))
                                       : below(std::min<std::size_t>(bytes.size(), 4096));
            const std::size_t width = std::min(std::size_t{1} << below(4), bytes.size() - at);
            const std::uint64_t value = below(3) == 0 ? ~std::uint64_t{0} : below(2) == 0 ? random() : below(5000);
            if (below(3) == 0) {
                bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ (1U << below(8)));
            } else {
                std::memcpy(bytes.data() + at, &value, width);
            }
        }
        if (below(10) == 0) bytes.resize(below(bytes.size()));
        auto result = inspect(bytes);
        const auto* structural = std::get_if<InspectionFailure>(&result);
        const auto failure =
            structural != nullptr ? std::optional(*structural) : judge(std::get<ElfFacts>(result), host);
        if (!failure) continue;
        ++refusals;
        if (failure->code.empty() || failure->sentence.find("; ") == std::string::npos ||
            failure->sentence.find('\n') != std::string::npos) {
            FAIL("trial " << trial << ": " << failure->code << ": " << failure->sentence);
        }
    }
    CHECK(refusals > 1000);
}

TEST_CASE("elf: a file of one repeated byte, and garbage behind the magic") {
    for (int byte = 0; byte < 256; byte += 5) {
        std::string bytes =
            "\x7F"
            "ELF\x02\x01\x01" +
            std::string(500, static_cast<char>(byte));
        CHECK_FALSE(verdict(bytes).empty());
        CHECK_FALSE(verdict(patched<std::uint16_t>(bytes, 16, 3)).empty());
    }
}
