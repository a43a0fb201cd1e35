// SPDX-License-Identifier: Apache-2.0
// Loops of the engines over the host's workers, or a plain loop where the host offers none.
#pragma once

#include <cstdint>

#include "attend/plugin.h"

namespace attend::ATTEND_ISA {

constexpr uint64_t chunks_per_worker = 16;  // some tens at most: each chunk costs the host about a hundred nanoseconds

inline uint32_t worker_count(const attend_context* context) {
    return context->max_workers == 0 ? 1 : context->max_workers;
}

// body(user, begin, end, slot) over [0, n), slot below worker_count(). The grain depends on the number of workers, so
// an item must give the same bits in any chunk. Flags: ATTEND_PARALLEL_NEAR where neighbouring items share data.
inline attend_status parallel_items(const attend_context* context, uint64_t n, attend_range_fn body, void* user,
                                    uint32_t flags = 0) {
    if (n == 0) return ATTEND_OK;
    const attend_host* host = context->host;
    if (host == nullptr || host->parallel_for == nullptr) return body(user, 0, n, 0);
    const uint64_t workers = worker_count(context);
    const uint64_t grain = (n + workers * chunks_per_worker - 1) / (workers * chunks_per_worker);
    return host->parallel_for(host, context->call, n, grain, flags, body, user);
}

}  // namespace attend::ATTEND_ISA
