// SPDX-License-Identifier: Apache-2.0
#include "plugin_services/parallel.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <span>
#include <thread>
#include <vector>

// The thread sanitizer cannot see into the distribution's oneTBB, so that build runs the same loops on plain threads.
#if !defined(__SANITIZE_THREAD__)
#include <tbb/global_control.h>
#include <tbb/info.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#endif

namespace attend {
namespace {

// The slot of the running body: the number of the task, not of the thread. Set while a body runs, so that a loop
// called from inside one runs at once, with that worker's slot and scratch.
struct Running {
    bool inside{false};
    std::uint32_t slot{0};
};
thread_local Running running;

// Chunks that are handed out in ascending order; on a cache line of its own, since each worker mostly draws from one.
struct alignas(64) Band {
    std::atomic<std::uint64_t> next{0};
    std::uint64_t end{0};
};
constexpr std::uint32_t most_bands = 64;

struct Loop {
    attend_call* call;
    std::uint64_t n, grain, chunks;
    attend_range_fn body;
    void* user;
    std::atomic<attend_status> status{ATTEND_OK};
    std::span<Band> bands{};

    void cut_into(std::span<Band> parts) {
        bands = parts;
        const std::uint64_t count = parts.size();
        for (std::uint64_t band = 0; band < count; ++band) {
            const std::uint64_t each = chunks / count, more = chunks % count;
            bands[band].next = band * each + std::min(band, more);
            bands[band].end = (band + 1) * each + std::min(band + 1, more);
        }
    }

    // The slot's own band first, then what the others have left.
    void work(std::uint32_t slot) {
        const Running before = running;
        running = {true, slot};
        for (std::size_t step = 0; step < bands.size(); ++step) {
            Band& band = bands[(slot + step) % bands.size()];
            while (status.load(std::memory_order_relaxed) == ATTEND_OK) {
                const std::uint64_t chunk = band.next.fetch_add(1, std::memory_order_relaxed);
                if (chunk >= band.end) break;
                fail(one(chunk, slot));
            }
        }
        running = before;
    }

    void work_in_order(std::uint32_t slot) {
        const Running before = running;
        running = {true, slot};
        for (std::uint64_t chunk = 0; chunk < chunks && status.load(std::memory_order_relaxed) == ATTEND_OK; ++chunk)
            fail(one(chunk, slot));
        running = before;
    }

    attend_status one(std::uint64_t chunk, std::uint32_t slot) {
        if (call != nullptr && call->is_cancelled()) return ATTEND_CANCELLED;
        try {
            return body(user, chunk * grain, std::min(n, (chunk + 1) * grain), slot);
        } catch (...) {
            return ATTEND_INTERNAL;
        }
    }

    void fail(attend_status now) {
        attend_status expected = ATTEND_OK;
        if (now != ATTEND_OK) status.compare_exchange_strong(expected, now);
    }
};

// Where threads come from: `start` runs a function on one of them at some time, `run` a loop on several at once.
#if defined(__SANITIZE_THREAD__)
class Threads {
public:
    explicit Threads(std::uint32_t) {}
    static std::uint32_t processors() { return std::thread::hardware_concurrency(); }
    template <class F>
    void start(F f) {
        std::thread(f).detach();
    }
    void run(Loop& loop, std::uint32_t workers) {
        std::vector<std::thread> threads;
        for (std::uint32_t slot = 1; slot < workers; ++slot) threads.emplace_back([&loop, slot] { loop.work(slot); });
        loop.work(0);
        for (std::thread& thread : threads) thread.join();
    }
};
#else
class Threads {
public:
    explicit Threads(std::uint32_t workers) : arena_((allow_many(), static_cast<int>(workers))) {}
    // Those that the process may use: an affinity mask counts.
    static std::uint32_t processors() { return static_cast<std::uint32_t>(tbb::info::default_concurrency()); }
    template <class F>
    void start(F f) {
        arena_.enqueue(f);
    }
    void run(Loop& loop, std::uint32_t workers) {
        // Isolated: a thread that waits here never picks up another plugin's work.
        arena_.execute([&] {
            tbb::this_task_arena::isolate([&] {
                tbb::parallel_for(
                    std::uint32_t{0}, workers, [&](std::uint32_t slot) { loop.work(slot); }, tbb::static_partitioner{});
            });
        });
    }

private:
    // The library caps the process at one thread a core; somebody who asks for more shall have them. Of several such
    // controls the lowest counts, so there is one, for the life of the process.
    static void allow_many() {
        static const tbb::global_control control(tbb::global_control::max_allowed_parallelism, 1024);
        (void)control;
    }
    tbb::task_arena arena_;
};
#endif

}  // namespace

// A thread that has worked stays a moment and watches for the next loop: handing that over costs a store and a load,
// where waking a thread costs as much as a small call (bench/NOTES.md). Only where every worker has a processor.
struct WorkerPool::Arena {
    explicit Arena(std::uint32_t workers)
        : threads_(workers), helpers_(workers), lingers_(workers <= Threads::processors()) {}
    ~Arena() {
        closing_.store(true);
        while (started_.load() > 0) std::this_thread::yield();
    }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    void run(Loop& loop, std::uint32_t workers) {
        // One caller at a time has the helpers; another one goes the ordinary way.
        if (!lingers_ || busy_.exchange(true)) return threads_.run(loop, workers);
        for (std::uint32_t slot = 1; slot < workers; ++slot) post(slot, loop);
        loop.work(0);
        for (std::uint32_t slot = 1; slot < workers; ++slot) take_back(helpers_[slot], loop);
        busy_.store(false);
    }

private:
    static constexpr std::chrono::microseconds linger{100};

    // offered: nullptr, a loop, or `taken` while a thread works on what it found.
    struct alignas(64) Helper {
        std::atomic<Loop*> offered{nullptr};
        std::atomic<bool> present{false};
    };

    static Loop* taken() {
        static Loop mark{};
        return &mark;
    }

    void post(std::uint32_t slot, Loop& loop) {
        Helper& helper = helpers_[slot];
        helper.offered.store(&loop);
        if (helper.present.exchange(true)) return;
        started_.fetch_add(1);
        try {
            threads_.start([this, slot] { help(slot); });
        } catch (...) {  // no memory for a task: the loop does with fewer workers
            started_.fetch_sub(1);
            helper.present.store(false);
        }
    }

    // Who came too late never comes: the loop ends with its caller. Who came in time is waited for.
    static void take_back(Helper& helper, Loop& loop) {
        Loop* mine = &loop;
        if (helper.offered.compare_exchange_strong(mine, nullptr)) return;
        while (helper.offered.load(std::memory_order_acquire) != nullptr) pause();
    }

    void help(std::uint32_t slot) {
        Helper& helper = helpers_[slot];
        do {
            while (Loop* loop = wait(helper)) {
                if (!helper.offered.compare_exchange_strong(loop, taken())) continue;
                loop->work(slot);
                helper.offered.store(nullptr, std::memory_order_release);
            }
            helper.present.store(false);
            // A loop that was posted before that and has started nobody.
        } while (found(helper.offered.load()) && !helper.present.exchange(true));
        started_.fetch_sub(1);
    }

    Loop* wait(Helper& helper) const {
        const auto until = std::chrono::steady_clock::now() + linger;
        for (std::uint32_t turn = 1;; ++turn) {
            Loop* loop = helper.offered.load(std::memory_order_acquire);
            if (found(loop)) return loop;
            if (turn % 64 == 0 && (closing_.load() || std::chrono::steady_clock::now() > until)) return nullptr;
            pause();
        }
    }
    static bool found(const Loop* loop) { return loop != nullptr && loop != taken(); }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }

    Threads threads_;
    std::vector<Helper> helpers_;
    bool lingers_;
    std::atomic<bool> busy_{false}, closing_{false};
    std::atomic<std::uint32_t> started_{0};
};

WorkerPool::WorkerPool(std::uint32_t workers)
    : workers_(std::max(1u, workers)), arena_(std::make_unique<Arena>(workers_)) {}
WorkerPool::~WorkerPool() = default;

attend_status WorkerPool::run(attend_call* call, std::uint64_t n, std::uint64_t grain, std::uint32_t flags,
                              attend_range_fn body, void* user) {
    if (n == 0) return ATTEND_OK;
    if (grain == 0) grain = 1;
    Loop loop{call, n, grain, n / grain + (n % grain != 0 ? 1 : 0), body, user};
    const std::uint32_t wanted = call != nullptr ? std::min(call->max_workers, workers_) : workers_;
    const auto workers = static_cast<std::uint32_t>(std::min<std::uint64_t>(wanted, loop.chunks));
    if (running.inside)
        loop.work_in_order(running.slot);
    else if (workers <= 1 || (flags & ATTEND_PARALLEL_SERIAL) != 0)
        loop.work_in_order(0);
    else {
        std::array<Band, most_bands> bands;
        loop.cut_into({bands.data(), (flags & ATTEND_PARALLEL_NEAR) != 0 ? std::min(workers, most_bands) : 1});
        arena_->run(loop, workers);
    }
    return loop.status.load();
}

}  // namespace attend
