// SPDX-License-Identifier: Apache-2.0
// Calls that run on threads of the service, in the order in which they came.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "attend/attention_service.hpp"

namespace attend {

class AsyncCall {
public:
    AsyncCall(ForwardInputs inputs, ForwardOptions options);
    void cancel() { options_.cancel->store(true); }
    [[nodiscard]] bool wait_for(std::chrono::milliseconds time);
    [[nodiscard]] Result<ForwardResult> get();

private:
    friend class AsyncCalls;
    void finish(Result<ForwardResult> result);

    ForwardInputs inputs_;
    ForwardOptions options_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::optional<Result<ForwardResult>> result_;
};

class AsyncCalls {
public:
    using Forward = std::function<Result<ForwardResult>(const ForwardInputs&, const ForwardOptions&)>;

    AsyncCalls() = default;
    // Ends what runs and what waits as cancelled, and joins the threads.
    ~AsyncCalls();
    AsyncCalls(const AsyncCalls&) = delete;
    AsyncCalls& operator=(const AsyncCalls&) = delete;

    // Threads come one by one, up to so many, as calls wait for one.
    void start(std::shared_ptr<AsyncCall> call, const Forward& forward, std::uint32_t most_threads);

private:
    void work(const Forward& forward);

    std::mutex mutex_;
    std::condition_variable more_;
    std::deque<std::shared_ptr<AsyncCall>> waiting_;
    std::vector<std::shared_ptr<AsyncCall>> running_;
    std::vector<std::thread> threads_;
    std::size_t idle_{0};
    bool closing_{false};
};

}  // namespace attend
