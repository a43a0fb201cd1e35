// SPDX-License-Identifier: Apache-2.0
// The instruction sets that engines are built for, which of them this processor runs, and a loop over those.
#pragma once

#include <string_view>

#include "support/catch.hpp"
#include "support/effort.hpp"

#if defined(__x86_64__)
#define ATTEND_TEST_ENTRIES(X) X(baseline) X(avx2) X(avx512)
#else
#define ATTEND_TEST_ENTRIES(X) X(neon)
#endif

namespace attend::test {

inline bool cpu_runs_baseline() { return true; }
inline bool cpu_runs_neon() { return true; }
#if defined(__x86_64__)
inline bool cpu_runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
inline bool cpu_runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
}
#endif

// One section per entry, skipped with a message where the processor lacks the instructions. An entry has a name and says
// whether it runs here.
template <class Entries, class Body>
void for_each_entry(const Entries& entries, Body body) {
    for (const auto& entry : entries) {
        // Sanitizers do not instrument this one (AttendPlugin.cmake).
        if (support::watched && std::string_view(entry.name) == "avx2") continue;
        if (!entry.runs_here) {
            WARN("instruction set " << entry.name << " is not available on this processor: not tested");
            continue;
        }
        INFO("instruction set " << entry.name);
        body(entry);
    }
}

}  // namespace attend::test
