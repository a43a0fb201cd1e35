// SPDX-License-Identifier: Apache-2.0
#include "plugin_services/parallel.hpp"

#include <algorithm>
#include <array>
#include <span>

#if defined(__SANITIZE_THREAD__)
// The thread sanitizer cannot see into the distribution's oneTBB, so that build runs the same loop on plain threads.
#include <thread>
#include <vector>
#else
#include <tbb/global_control.h>
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
        if (call != nullptr && call->cancelled.load(std::memory_order_relaxed)) return ATTEND_CANCELLED;
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

}  // namespace

#if defined(__SANITIZE_THREAD__)
struct WorkerPool::Arena {
    explicit Arena(int) {}
    void run(Loop& loop, std::uint32_t workers) {
        std::vector<std::thread> threads;
        for (std::uint32_t slot = 1; slot < workers; ++slot) threads.emplace_back([&loop, slot] { loop.work(slot); });
        loop.work(0);
        for (std::thread& thread : threads) thread.join();
    }
};
#else
struct WorkerPool::Arena {
    explicit Arena(int workers) : arena((allow_many(), workers)) {}
    // The library caps the process at one thread a core; somebody who asks for more shall have them. Of several such
    // controls the lowest counts, so there is one, for the life of the process.
    static void allow_many() {
        static const tbb::global_control control(tbb::global_control::max_allowed_parallelism, 1024);
        (void)control;
    }
    void run(Loop& loop, std::uint32_t workers) {
        // Isolated: a thread that waits here never picks up another plugin's work.
        arena.execute([&] {
            tbb::this_task_arena::isolate([&] {
                tbb::parallel_for(
                    std::uint32_t{0}, workers, [&](std::uint32_t slot) { loop.work(slot); }, tbb::static_partitioner{});
            });
        });
    }
    tbb::task_arena arena;
};
#endif

WorkerPool::WorkerPool(std::uint32_t workers)
    : workers_(std::max(1u, workers)), arena_(std::make_unique<Arena>(static_cast<int>(workers_))) {}
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
