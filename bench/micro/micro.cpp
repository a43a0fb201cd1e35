// SPDX-License-Identifier: Apache-2.0
// Times the toolkit's inner loops in every instruction set that this machine has, with Google Benchmark:
//   taskset -c 1 build/release/bench/bench_micro --benchmark_filter=avx512
// GFLOP/s and elements per second are counters; what the machine can do is what `attend benchmark` prints first.
#include <benchmark/benchmark.h>

#include <cmath>
#include <new>
#include <string>

#include "micro.hpp"

#if defined(__x86_64__)
#define MICRO_ENTRIES(X) X(baseline) X(avx2) X(avx512)
#else
#define MICRO_ENTRIES(X) X(neon)
#endif
#define MICRO_DECLARE(entry) extern "C" const MicroTable* attend_micro_##entry();
MICRO_ENTRIES(MICRO_DECLARE)

namespace {

#if defined(__x86_64__)
bool has_baseline() { return true; }
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool has_neon() { return true; }
#endif

float* floats(std::int64_t count) {
    auto* data =
        static_cast<float*>(::operator new (static_cast<std::size_t>(count) * sizeof(float), std::align_val_t{64}));
    for (std::int64_t at = 0; at < count; ++at)
        data[at] = -0.5f + 0.4f * static_cast<float>(std::sin(0.37 * static_cast<double>(at)));
    return data;
}

// Lives as long as the program.
const MicroData& data() {
    static const MicroData made{floats(micro_floats), floats(micro_floats), floats(micro_floats), floats(1024),
                                floats(1024),         floats(1024),         floats(1024),         1};
    return made;
}

void add(const char* entry, const MicroTable* table) {
    for (int at = 0; at < table->count; ++at) {
        const MicroCase& one = table->cases[at];
        const std::string name = std::string(entry) + "/" + one.name;
        benchmark::RegisterBenchmark(name.c_str(), [&one](benchmark::State& state) {
            for (auto turn : state) {
                (void)turn;
                one.run(data());
                benchmark::ClobberMemory();
            }
            const auto rate = benchmark::Counter::kIsIterationInvariantRate;
            if (one.operations > 0) state.counters["FLOP/s"] = benchmark::Counter(one.operations, rate);
            state.counters["elements/s"] = benchmark::Counter(one.elements, rate);
        });
    }
}

}  // namespace

int main(int argc, char** argv) {
#define MICRO_ADD(entry) \
    if (has_##entry()) add(#entry, attend_micro_##entry());
    MICRO_ENTRIES(MICRO_ADD)
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
