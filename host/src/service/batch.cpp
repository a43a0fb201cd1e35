// SPDX-License-Identifier: Apache-2.0
// Many calls at once: all are prepared, then small ones run beside each other, one thread each, and large ones in turn on
// all threads. Which way a call goes changes no bit of it: the engines promise that for any number of threads.
#include <cmath>

#include "service/service_state.hpp"

namespace attend {
namespace {

// Below this a call gains less from its threads than waking them costs, beside others that wait for a thread.
constexpr double small_flops = 64e6;

bool is_small(const CallPlan& plan) {
    return plan.flops > 0 ? plan.flops < small_flops : plan.desc.q_len * plan.desc.kv_len < 65536;
}

Error of_item(std::size_t index, const Error& error) {
    return {error.code, "item " + std::to_string(index) + ": " + error.message, error.hint};
}

}  // namespace

Result<std::vector<ForwardResult>> AttentionService::State::forward_batch(const std::vector<ForwardInputs>& inputs,
                                                                          const ForwardOptions& options) {
    const Now now = this->now();  // one configuration for all
    std::vector<ForwardCall> calls(inputs.size());
    for (ForwardCall& call : calls) {
        call.config = now.config;
        call.epoch = now.epoch;
        call.passed = now.passed;
    }
    for (std::size_t at = 0; at < inputs.size(); ++at)
        if (auto fits = prepare(calls[at], inputs[at], options); !fits) {
            metrics.count_error(fits.error().code);
            return of_item(at, fits.error());
        }
    std::vector<std::optional<Result<ForwardResult>>> done(inputs.size());
    const std::uint32_t workers = machine->pool->workers();
    struct Together {
        State* state;
        std::vector<ForwardCall>* calls;
        std::vector<std::optional<Result<ForwardResult>>>* done;
        std::vector<std::size_t> small;
    } together{this, &calls, &done, {}};
    for (std::size_t at = 0; at < calls.size(); ++at)
        if (workers > 1 && is_small(*calls[at].plan)) together.small.push_back(at);
    if (together.small.size() < 2) together.small.clear();
    if (!together.small.empty()) {
        // A few neighbours at a time, so that taking them costs nothing beside them.
        const std::uint64_t grain = std::max<std::uint64_t>(1, together.small.size() / (8 * std::uint64_t{workers}));
        const auto body = [](void* user, std::uint64_t begin, std::uint64_t end, std::uint32_t) -> attend_status {
            const Together& work = *static_cast<Together*>(user);
            for (std::uint64_t at = begin; at < end; ++at) {
                const std::size_t item = work.small[at];
                (*work.done)[item] = work.state->carry_out((*work.calls)[item], 1);
                if (!*(*work.done)[item]) return ATTEND_INTERNAL;
            }
            return ATTEND_OK;
        };
        machine->pool->run(nullptr, together.small.size(), grain, ATTEND_PARALLEL_NEAR, body, &together);
    }
    std::vector<ForwardResult> list;
    list.reserve(calls.size());
    // The first failure by index is reported; an item without a result was not reached because of another.
    for (std::size_t at = 0; at < calls.size(); ++at)
        if (done[at] && !*done[at]) return of_item(at, done[at]->error());
    for (const std::size_t at : together.small)
        if (!done[at]) return of_item(at, {ErrorCode::internal, "forward: was interrupted by an exception", ""});
    for (std::size_t at = 0; at < calls.size(); ++at) {
        if (!done[at]) done[at] = carry_out(calls[at], workers);
        if (!*done[at]) return of_item(at, done[at]->error());
        list.push_back(std::move(**done[at]));
    }
    return list;
}

Result<std::vector<ForwardResult>> AttentionService::forward_batch(const std::vector<ForwardInputs>& inputs,
                                                                   const ForwardOptions& options) {
    return state_->forward_batch(inputs, options);
}

}  // namespace attend
