// SPDX-License-Identifier: Apache-2.0
#include "plugin_services/cpu.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace attend {
namespace {

struct Level {
    std::uint64_t bit;
    const char* name;
};
constexpr std::array levels{Level{ATTEND_ISA_X86_V2, "x86-64-v2"},
                            Level{ATTEND_ISA_X86_V3, "x86-64-v3"},
                            Level{ATTEND_ISA_X86_V4, "x86-64-v4"},
                            Level{ATTEND_ISA_AVX512_BF16, "avx512-bf16"},
                            Level{ATTEND_ISA_AVX512_VNNI, "avx512-vnni"},
                            Level{ATTEND_ISA_AVX512_FP16, "avx512-fp16"},
                            Level{ATTEND_ISA_AMX_BF16, "amx-bf16"},
                            Level{ATTEND_ISA_AMX_INT8, "amx-int8"},
                            Level{ATTEND_ISA_NEON, "neon"},
                            Level{ATTEND_ISA_NEON_DOTPROD, "neon-dotprod"},
                            Level{ATTEND_ISA_NEON_I8MM, "neon-i8mm"},
                            Level{ATTEND_ISA_NEON_BF16, "neon-bf16"},
                            Level{ATTEND_ISA_SVE, "sve"}};

constexpr std::uint64_t wide_x86 = ATTEND_ISA_X86_V4 | ATTEND_ISA_AVX512_BF16 | ATTEND_ISA_AVX512_VNNI |
                                   ATTEND_ISA_AVX512_FP16 | ATTEND_ISA_AMX_BF16 | ATTEND_ISA_AMX_INT8;

#if defined(__x86_64__)
struct Registers {
    unsigned eax{}, ebx{}, ecx{}, edx{};
};

Registers leaf(unsigned number, unsigned sub = 0) {
    Registers r;
    if (__get_cpuid_count(number, sub, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
    return r;
}

bool all(unsigned word, std::initializer_list<unsigned> bits) {
    return std::all_of(bits.begin(), bits.end(), [word](unsigned bit) { return (word >> bit & 1u) != 0; });
}

// What the operating system saves at a context switch; readable only where OSXSAVE is set.
std::uint64_t saved_state() {
    unsigned low{}, high{};
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (std::uint64_t{high} << 32) | low;
}

std::uint64_t detect_isa() {
    const Registers one = leaf(1), seven = leaf(7), seven_one = leaf(7, 1), extended = leaf(0x80000001u);
    std::uint64_t isa = 0;
    const bool v2 = all(one.ecx, {0, 9, 13, 19, 20, 23}) && all(extended.ecx, {0});
    if (!v2) return isa;
    isa |= ATTEND_ISA_X86_V2;
    if (!all(one.ecx, {27})) return isa;
    const std::uint64_t state = saved_state();
    const bool v3 =
        (state & 0x6) == 0x6 && all(one.ecx, {12, 22, 28, 29}) && all(seven.ebx, {3, 5, 8}) && all(extended.ecx, {5});
    if (!v3) return isa;
    isa |= ATTEND_ISA_X86_V3;
    const bool v4 = (state & 0xE6) == 0xE6 && all(seven.ebx, {16, 17, 28, 30, 31});
    if (!v4) return isa;
    isa |= ATTEND_ISA_X86_V4;
    if (all(seven_one.eax, {5})) isa |= ATTEND_ISA_AVX512_BF16;
    if (all(seven.ecx, {11})) isa |= ATTEND_ISA_AVX512_VNNI;
    if (all(seven.edx, {23})) isa |= ATTEND_ISA_AVX512_FP16;
    if ((state & 0x60000) == 0x60000) {
        if (all(seven.edx, {22})) isa |= ATTEND_ISA_AMX_BF16;
        if (all(seven.edx, {25})) isa |= ATTEND_ISA_AMX_INT8;
    }
    return isa;
}

void name_cpu(CpuFacts& facts) {
    const Registers zero = leaf(0);
    char vendor[13] = {};
    std::memcpy(vendor, &zero.ebx, 4);
    std::memcpy(vendor + 4, &zero.edx, 4);
    std::memcpy(vendor + 8, &zero.ecx, 4);
    facts.vendor = vendor;
    char model[49] = {};
    for (unsigned part = 0; part < 3; ++part) {
        const Registers r = leaf(0x80000002u + part);
        std::memcpy(model + 16 * part, &r, 16);
    }
    facts.model = model;
    while (!facts.model.empty() && facts.model.back() == ' ') facts.model.pop_back();
    facts.arch = ATTEND_ARCH_X86_64;
}
#elif defined(__aarch64__)
std::uint64_t detect_isa() {
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    std::uint64_t isa = 0;
    if (first & (1ul << 1)) isa |= ATTEND_ISA_NEON;
    if (first & (1ul << 20)) isa |= ATTEND_ISA_NEON_DOTPROD;
    if (first & (1ul << 22)) isa |= ATTEND_ISA_SVE;
    if (second & (1ul << 13)) isa |= ATTEND_ISA_NEON_I8MM;
    if (second & (1ul << 14)) isa |= ATTEND_ISA_NEON_BF16;
    return isa;
}
void name_cpu(CpuFacts& facts) {
    facts.vendor = "ARM";
    facts.model = "aarch64";
    facts.arch = ATTEND_ARCH_AARCH64;
}
#endif

std::uint64_t cache_bytes(int name) {
    const long bytes = sysconf(name);
    return bytes > 0 ? static_cast<std::uint64_t>(bytes) : 0;
}

}  // namespace

CpuFacts detect_cpu() {
    CpuFacts facts;
    name_cpu(facts);
    facts.isa_machine = detect_isa();
    facts.l1d_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE);
    facts.l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE);
    facts.l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE);
    const std::uint64_t line = cache_bytes(_SC_LEVEL1_DCACHE_LINESIZE);
    if (line != 0) facts.cache_line = static_cast<std::uint32_t>(line);
    facts.threads = std::max(1u, std::thread::hardware_concurrency());
    facts.cores = facts.threads;
    std::ifstream siblings("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
    std::string text;
    if (std::getline(siblings, text)) {
        const auto count = static_cast<std::uint32_t>(
            1 + std::count_if(text.begin(), text.end(), [](char c) { return c == ',' || c == '-'; }));
        facts.cores = std::max(1u, facts.threads / count);
    }
    return facts;
}

Result<std::uint64_t> limit_isa(const CpuFacts& cpu, const std::string& backend) {
    struct Entry {
        const char* name;
        std::uint64_t needs, removes;
    };
    constexpr std::uint64_t neon = ATTEND_ISA_NEON;
    const Entry entries[] = {{"auto", 0, 0},
                             {"avx512", ATTEND_ISA_X86_V4, 0},
                             {"avx2", ATTEND_ISA_X86_V3, wide_x86},
                             {"neon", neon, 0},
                             {"baseline", 0, wide_x86 | ATTEND_ISA_X86_V3}};
    for (const Entry& entry : entries) {
        if (backend != entry.name) continue;
        if ((cpu.isa_machine & entry.needs) != entry.needs)
            return Error{
                ErrorCode::unsupported,
                "service.backend: \"" + backend + "\" cannot run on this CPU; it has " + isa_names(cpu.isa_machine),
                ""};
        return cpu.isa_machine & ~entry.removes;
    }
    return Error{ErrorCode::option,
                 "service.backend: unknown back end \"" + backend + "\"; accepted: auto, avx512, avx2, neon, baseline",
                 ""};
}

std::string isa_names(std::uint64_t isa) {
    std::string names;
    for (const Level& level : levels)
        if (isa & level.bit) names += (names.empty() ? "" : " ") + std::string(level.name);
    return names.empty() ? "no known level" : names;
}

std::string entry_name(std::uint64_t isa) {
    if (isa & ATTEND_ISA_X86_V4) return "avx512";
    if (isa & ATTEND_ISA_X86_V3) return "avx2";
    if (isa & ATTEND_ISA_X86_V2) return "baseline";
    if (isa & ATTEND_ISA_NEON) return "neon";
    return "none";
}

}  // namespace attend
