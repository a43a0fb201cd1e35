// SPDX-License-Identifier: Apache-2.0
// bench_hooks: speed per visited pair with a score modifier in plain C, and with a key iterator that visits half of the
// keys, as a share of the speed of the plain engine. In turns in one run, medians, one thread, the widest entry.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "hooks.hpp"

#define DECLARE(entry) \
    extern "C" double bench_hook_run_##entry(Hook, int64_t, int64_t, float* const(&)[4], void*, uint64_t);
ATTEND_FOR_EACH_ISA(DECLARE)

namespace {

HookRun widest(const char** name) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return *name = "avx512", bench_hook_run_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return *name = "avx2", bench_hook_run_avx2;
    return *name = "baseline", bench_hook_run_baseline;
#else
    return *name = "neon", bench_hook_run_neon;
#endif
}

double median(std::vector<double> samples) {
    std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2), samples.end());
    return samples[samples.size() / 2];
}

}  // namespace

int main() {
    const char* name = nullptr;
    const HookRun run = widest(&name);
    constexpr uint64_t workspace_bytes = uint64_t{4} << 20;
    std::printf("%-9s %6s %5s %12s %12s %12s\n", "entry", "length", "D", "plain", "modifier", "keys");
    for (const int64_t head_dim : {64, 128}) {
        constexpr int64_t length = 2048;
        std::vector<std::vector<float>> memory(4, std::vector<float>(static_cast<std::size_t>(8 * length * head_dim)));
        for (std::size_t at = 0; at < 3; ++at)
            for (std::size_t element = 0; element < memory[at].size(); ++element)
                memory[at][element] = 0.01f * static_cast<float>((element * 37 + at * 11) % 211) - 1.0f;
        float* const tensors[4] = {memory[0].data(), memory[1].data(), memory[2].data(), memory[3].data()};
        void* workspace = std::aligned_alloc(64, workspace_bytes);
        std::vector<double> times[3];
        for (int turn = 0; turn < 12; ++turn)
            for (const Hook hook : {Hook::none, Hook::modifier, Hook::keys}) {
                const double seconds = run(hook, length, head_dim, tensors, workspace, workspace_bytes);
                if (seconds < 0) return std::fprintf(stderr, "bench_hooks: the engine refused the problem\n"), 1;
                if (turn > 0) times[static_cast<int>(hook)].push_back(seconds);
            }
        std::free(workspace);
        const double plain = median(times[0]);
        // The iterator visits half of the keys.
        std::printf("%-9s %6lld %5lld %9.2f ms %10.1f %% %10.1f %%\n", name, static_cast<long long>(length),
                    static_cast<long long>(head_dim), 1e3 * plain, 100 * plain / median(times[1]),
                    100 * 0.5 * plain / median(times[2]));
    }
}
