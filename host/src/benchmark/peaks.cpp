// SPDX-License-Identifier: Apache-2.0
#include "benchmark/peaks.hpp"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include <dirent.h>

#include "attend/abi.h"

namespace attend {

#if defined(__x86_64__)
namespace peak_baseline {
double multiply_add(std::uint64_t rounds, float* sink);
std::uint64_t read_all(const void* data, std::uint64_t bytes);
}  // namespace peak_baseline
namespace peak_avx2 {
double multiply_add(std::uint64_t rounds, float* sink);
std::uint64_t read_all(const void* data, std::uint64_t bytes);
}  // namespace peak_avx2
namespace peak_avx512 {
double multiply_add(std::uint64_t rounds, float* sink);
double dot_bf16(std::uint64_t rounds, float* sink);
double dot_int8(std::uint64_t rounds, float* sink);
std::uint64_t read_all(const void* data, std::uint64_t bytes);
}  // namespace peak_avx512
#else
namespace peak_neon {
double multiply_add(std::uint64_t rounds, float* sink);
std::uint64_t read_all(const void* data, std::uint64_t bytes);
}  // namespace peak_neon
#endif

namespace benchmark {
namespace {

using Clock = std::chrono::steady_clock;
using Compute = double (*)(std::uint64_t, float*);
using Read = std::uint64_t (*)(const void*, std::uint64_t);

struct Kernels {
    const char* entry{};
    Compute fma{}, bf16{}, int8{};
    Read read{};
};

Kernels kernels_of(std::uint64_t isa) {
#if defined(__x86_64__)
    if ((isa & ATTEND_ISA_X86_V4) != 0)
        return {"avx512", peak_avx512::multiply_add,
                (isa & ATTEND_ISA_AVX512_BF16) != 0 ? peak_avx512::dot_bf16 : nullptr,
                (isa & ATTEND_ISA_AVX512_VNNI) != 0 ? peak_avx512::dot_int8 : nullptr, peak_avx512::read_all};
    if ((isa & ATTEND_ISA_X86_V3) != 0) return {"avx2", peak_avx2::multiply_add, nullptr, nullptr, peak_avx2::read_all};
    return {"baseline", peak_baseline::multiply_add, nullptr, nullptr, peak_baseline::read_all};
#else
    (void)isa;
    return {"neon", peak_neon::multiply_add, nullptr, nullptr, peak_neon::read_all};
#endif
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double median(std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
}

void pin(pid_t thread, int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<std::size_t>(cpu), &set);
    ::sched_setaffinity(thread, sizeof set, &set);
}

// Runs `body(thread)`, a rate, on all threads at the same moment; the sum of the rates.
double together(std::uint32_t threads, const std::vector<int>& cpus, const std::function<double(std::uint32_t)>& body) {
    std::vector<double> rates(threads, 0.0);
    std::atomic<std::uint32_t> ready{0};
    const auto run = [&](std::uint32_t thread) {
        if (cpus.size() >= threads) pin(0, cpus[thread]);
        ready.fetch_add(1);
        while (ready.load() < threads) std::this_thread::yield();
        rates[thread] = body(thread);
    };
    std::vector<std::thread> others;
    for (std::uint32_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    run(0);
    for (std::thread& other : others) other.join();
    double sum = 0;
    for (const double rate : rates) sum += rate;
    return sum;
}

// The median of blocks of about half a millisecond.
double compute_rate(Compute kernel) {
    std::array<float, 3> sink{0.5f, 0.25f, 0.0f};
    std::uint64_t rounds = 1024;
    for (;;) {
        const auto begin = Clock::now();
        kernel(rounds, sink.data());
        if (seconds_since(begin) > 4e-4) break;
        rounds *= 2;
    }
    std::vector<double> rates;
    for (int block = 0; block < 15; ++block) {
        const auto begin = Clock::now();
        const double operations = kernel(rounds, sink.data());
        rates.push_back(operations / seconds_since(begin) * 1e-9);
    }
    return median(rates);
}

struct Mapping {
    void* data{MAP_FAILED};
    std::uint64_t bytes{};
    explicit Mapping(std::uint64_t size) : bytes(size) {
        data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (data == MAP_FAILED) return;
        // Written once: untouched pages would all be the same page of zeros.
        for (std::uint64_t at = 0; at < bytes; at += 4096) static_cast<char*>(data)[at] = static_cast<char>(at >> 12);
    }
    ~Mapping() {
        if (data != MAP_FAILED) ::munmap(data, bytes);
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
};

double read_rate(Read kernel, std::uint32_t threads, const std::vector<int>& cpus) {
    constexpr std::uint64_t bytes = std::uint64_t{192} << 20;
    std::vector<std::unique_ptr<Mapping>> buffers;
    for (std::uint32_t thread = 0; thread < threads; ++thread) {
        buffers.push_back(std::make_unique<Mapping>(bytes));
        if (buffers.back()->data == MAP_FAILED) return 0.0;
    }
    std::atomic<std::uint64_t> sink{0};
    return together(threads, cpus, [&](std::uint32_t thread) {
        std::vector<double> rates;
        for (int block = 0; block < 5; ++block) {
            const auto begin = Clock::now();
            sink ^= kernel(buffers[thread]->data, bytes);
            rates.push_back(static_cast<double>(bytes) / seconds_since(begin) * 1e-9);
        }
        return median(rates);
    });
}

template <class Visit>
void for_each_thread(Visit visit) {
    DIR* tasks = ::opendir("/proc/self/task");
    if (tasks == nullptr) return;
    while (const dirent* entry = ::readdir(tasks))
        if (const int id = std::atoi(entry->d_name); id > 0) visit(static_cast<pid_t>(id));
    ::closedir(tasks);
}

}  // namespace

Json Peaks::json() const {
    Json json = Json::object().set("backend", entry).set("threads", threads).set("fma_gflops", fma);
    json.set("bf16_gflops", bf16).set("bf16_dot", bf16_dot);
    json.set("int8_gops", int8 > 0 ? Json(int8) : Json()).set("memory_read_gbps", memory > 0 ? Json(memory) : Json());
    return json;
}

double measure_peak(PeakKind kind, std::uint64_t isa, std::uint32_t threads, const std::vector<int>& cpus) {
    const Kernels kernels = kernels_of(isa);
    if (kind == PeakKind::memory) return read_rate(kernels.read, threads, cpus);
    if (kind == PeakKind::int8_mix) {
        const double int8 = measure_peak(PeakKind::int8, isa, threads, cpus);
        return int8 > 0 ? 2.0 / (1.0 / int8 + 1.0 / measure_peak(PeakKind::bf16, isa, threads, cpus)) : 0.0;
    }
    const Compute kernel = kind == PeakKind::int8                              ? kernels.int8
                           : kind == PeakKind::bf16 && kernels.bf16 != nullptr ? kernels.bf16
                                                                               : kernels.fma;
    if (kernel == nullptr) return 0.0;
    return together(threads, cpus, [&](std::uint32_t) { return compute_rate(kernel); });
}

const char* peak_name(PeakKind kind) {
    switch (kind) {
        case PeakKind::fma: return "fma";
        case PeakKind::bf16: return "bf16";
        case PeakKind::int8: return "int8";
        case PeakKind::int8_mix: return "int8 and bf16";
        case PeakKind::memory: return "memory";
    }
    return "";
}

Peaks measure_peaks(std::uint64_t isa, std::uint32_t threads, const std::vector<int>& cpus) {
    const Kernels kernels = kernels_of(isa);
    Peaks peaks;
    peaks.entry = kernels.entry;
    peaks.threads = threads;
    peaks.fma = measure_peak(PeakKind::fma, isa, threads, cpus);
    peaks.bf16_dot = kernels.bf16 != nullptr;
    peaks.bf16 = peaks.bf16_dot ? measure_peak(PeakKind::bf16, isa, threads, cpus) : peaks.fma;
    peaks.int8 = measure_peak(PeakKind::int8, isa, threads, cpus);
    peaks.memory = measure_peak(PeakKind::memory, isa, threads, cpus);
    return peaks;
}

std::vector<int> permitted_cpus() {
    cpu_set_t set;
    CPU_ZERO(&set);
    std::vector<int> cpus;
    if (::sched_getaffinity(0, sizeof set, &set) != 0) return cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(static_cast<std::size_t>(cpu), &set)) cpus.push_back(cpu);
    // The last one first: systems put their own work on the lower numbers.
    std::reverse(cpus.begin(), cpus.end());
    return cpus;
}

void pin_threads(const std::vector<int>& cpus, std::uint32_t threads) {
    if (cpus.size() < threads || cpus.empty()) return;
    const auto self = static_cast<pid_t>(::gettid());
    pin(self, cpus[0]);
    const std::size_t others = std::max<std::size_t>(cpus.size() - 1, 1), first = cpus.size() - others;
    std::size_t next = 0;
    for_each_thread([&](pid_t thread) {
        if (thread != self) pin(thread, cpus[first + next++ % others]);
    });
}

void unpin_threads(const std::vector<int>& cpus) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : cpus) CPU_SET(static_cast<std::size_t>(cpu), &set);
    if (!cpus.empty()) for_each_thread([&](pid_t thread) { ::sched_setaffinity(thread, sizeof set, &set); });
}

}  // namespace benchmark
}  // namespace attend
