// SPDX-License-Identifier: Apache-2.0
// What this machine can do at the moment: multiply-add, bf16 dot and int8 dot rates and the memory read rate, for one
// thread or several at once. The clock moves, so a figure is judged by the peaks measured right beside it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attend/config/json.hpp"

namespace attend::benchmark {

// int8_mix: half of the operations are int8 dots, half bf16 dots.
enum class PeakKind { fma, bf16, int8, int8_mix, memory };

// Rates in 1e9 per second (operations, bytes); 0 where the machine or the permitted instruction sets lack it. `fma` is
// that of the widest permitted set, `bf16` that of the dot where there is one and else fma.
struct Peaks {
    std::string entry;  // avx512, avx2, baseline, neon
    std::uint32_t threads{1};
    double fma{}, bf16{}, int8{}, memory{};
    bool bf16_dot{false};
    [[nodiscard]] Json json() const;
};

// One of them. `isa`: levels that may be used (attend_cpu.isa). Every thread is pinned to one of `cpus` where those are
// enough, the calling one to the first. About 10 ms; the read rate takes several times that, and memory.
[[nodiscard]] double measure_peak(PeakKind kind, std::uint64_t isa, std::uint32_t threads,
                                  const std::vector<int>& cpus);
// All of them, for the head of a report.
[[nodiscard]] Peaks measure_peaks(std::uint64_t isa, std::uint32_t threads, const std::vector<int>& cpus);

[[nodiscard]] const char* peak_name(PeakKind kind);

// Processors that this process may use.
[[nodiscard]] std::vector<int> permitted_cpus();
// The calling thread to cpus[0], all other threads of the process to the following ones in turns. Nothing happens where
// there is less than one processor for each of `threads`.
void pin_threads(const std::vector<int>& cpus, std::uint32_t threads);
// All threads may run on all of them again.
void unpin_threads(const std::vector<int>& cpus);

}  // namespace attend::benchmark
