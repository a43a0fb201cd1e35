// SPDX-License-Identifier: Apache-2.0
#include "service/async_calls.hpp"

#include <algorithm>

#include "service/service_state.hpp"

namespace attend {
namespace {

Error cancelled() { return {ErrorCode::cancelled, "forward: was cancelled", ""}; }

}  // namespace

AsyncCall::AsyncCall(ForwardInputs inputs, ForwardOptions options)
    : inputs_(std::move(inputs)), options_(std::move(options)) {
    if (!options_.cancel) options_.cancel = std::make_shared<std::atomic<bool>>(false);
}

bool AsyncCall::wait_for(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    return done_.wait_for(lock, time, [this] { return result_.has_value(); });
}

Result<ForwardResult> AsyncCall::get() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return result_.has_value(); });
    return *result_;
}

void AsyncCall::finish(Result<ForwardResult> result) {
    const std::scoped_lock lock(mutex_);
    inputs_ = {};  // what the caller's tensors hold is free as soon as the call is done
    result_ = std::move(result);
    done_.notify_all();
}

AsyncCalls::~AsyncCalls() {
    std::deque<std::shared_ptr<AsyncCall>> left;
    {
        const std::scoped_lock lock(mutex_);
        closing_ = true;
        left.swap(waiting_);
        for (const auto& call : running_) call->cancel();
        more_.notify_all();
    }
    for (const auto& call : left) call->finish(cancelled());
    for (std::thread& thread : threads_) thread.join();
}

void AsyncCalls::start(std::shared_ptr<AsyncCall> call, const Forward& forward, std::uint32_t most_threads) {
    const std::scoped_lock lock(mutex_);
    waiting_.push_back(std::move(call));
    if (idle_ < waiting_.size() && threads_.size() < most_threads) {
        try {
            threads_.emplace_back([this, forward] { work(forward); });
        } catch (...) {
            if (threads_.empty()) {  // nobody would ever come for it
                waiting_.back()->finish(Error{ErrorCode::memory, "forward_async: no thread could be started", ""});
                waiting_.pop_back();
            }
        }
    }
    more_.notify_one();
}

void AsyncCalls::work(const Forward& forward) {
    std::unique_lock lock(mutex_);
    for (;;) {
        ++idle_;
        more_.wait(lock, [this] { return closing_ || !waiting_.empty(); });
        --idle_;
        if (closing_) return;
        const std::shared_ptr<AsyncCall> call = std::move(waiting_.front());
        waiting_.pop_front();
        running_.push_back(call);
        lock.unlock();
        Result<ForwardResult> result = cancelled();
        if (!call->options_.cancel->load()) {
            try {
                result = forward(call->inputs_, call->options_);
            } catch (const std::exception& caught) {
                result = Error{ErrorCode::internal, std::string("forward: ") + caught.what(), ""};
            }
        }
        lock.lock();
        std::erase(running_, call);
        lock.unlock();
        call->finish(std::move(result));
        lock.lock();
    }
}

void PendingForward::cancel() const { call_->cancel(); }
bool PendingForward::ready() const { return call_->wait_for(std::chrono::milliseconds(0)); }
bool PendingForward::wait_for(std::chrono::milliseconds time) const { return call_->wait_for(time); }
Result<ForwardResult> PendingForward::get() const { return call_->get(); }

PendingForward AttentionService::forward_async(ForwardInputs inputs, ForwardOptions options) {
    auto call = std::make_shared<AsyncCall>(std::move(inputs), std::move(options));
    State* const state = state_.get();
    state->async.start(
        call,
        [state](const ForwardInputs& given, const ForwardOptions& wanted) { return state->forward(given, wanted); },
        state->machine->pool->workers());
    return PendingForward(std::move(call));
}

}  // namespace attend
