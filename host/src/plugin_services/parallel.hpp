// SPDX-License-Identifier: Apache-2.0
// The loop service that plugins receive. Chunks are drawn in ascending order from one counter, or with
// ATTEND_PARALLEL_NEAR from one per worker. Which worker runs a chunk changes nothing that a body may depend on, so
// partial results kept per chunk and merged in chunk order give the same bits for any number of workers.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "attend/abi.h"

// One call in progress, as the host knows it; plugins pass the pointer back.
struct attend_call {
    std::uint32_t max_workers{1};
    std::atomic<bool> cancelled{false};
    std::atomic<double> progress{0.0};
    const std::atomic<bool>* token{nullptr};  // somebody else's wish to cancel

    [[nodiscard]] bool is_cancelled() const {
        return cancelled.load(std::memory_order_relaxed) ||
               (token != nullptr && token->load(std::memory_order_relaxed));
    }
};

namespace attend {

class WorkerPool {
public:
    explicit WorkerPool(std::uint32_t workers);
    ~WorkerPool();
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;

    [[nodiscard]] std::uint32_t workers() const noexcept { return workers_; }

    // attend_host.parallel_for (abi.h). Bodies are guarded: a throw becomes ATTEND_INTERNAL.
    attend_status run(attend_call* call, std::uint64_t n, std::uint64_t grain, std::uint32_t flags,
                      attend_range_fn body, void* user);

private:
    struct Arena;
    std::uint32_t workers_;
    std::unique_ptr<Arena> arena_;
};

}  // namespace attend
