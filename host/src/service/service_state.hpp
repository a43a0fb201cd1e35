// SPDX-License-Identifier: Apache-2.0
// What an AttentionService holds, for the files that implement its parts.
#pragma once

#include <atomic>
#include <map>
#include <mutex>

#include "loading/plugin_loader.hpp"
#include "service/async_calls.hpp"
#include "service/forward_call.hpp"
#include "service/metrics.hpp"
#include "service/plan_cache.hpp"
#include "service/result_cache.hpp"
#include "service/selector.hpp"

namespace attend {

// The list of edges of a graph among the inputs, or the sources of its rows; null: no graph.
const Tensor* edges_of(const ForwardInputs& inputs);

// A plan and the tensors as it takes them.
struct PreparedCall {
    std::shared_ptr<const CallPlan> plan;
    ForwardInputs inputs;
};

// How fast this service has hashed so far; a cautious figure before it has hashed anything.
class HashRate {
public:
    void record(std::uint64_t bytes, double seconds) {
        if (bytes < 65536 || !(seconds > 0)) return;
        const double before = rate_.load(std::memory_order_relaxed), now = static_cast<double>(bytes) / seconds;
        rate_.store(0.75 * before + 0.25 * now, std::memory_order_relaxed);
    }
    // What is around a hash, up to the copy of a hit, costs some microseconds.
    [[nodiscard]] double ms(std::uint64_t bytes) const {
        return 3e-3 + static_cast<double>(bytes) / rate_.load(std::memory_order_relaxed) * 1e3;
    }

private:
    std::atomic<double> rate_{5e9};
};

struct AttentionService::State {
    ServiceSettings settings;
    std::shared_ptr<Machine> machine;
    std::unique_ptr<PluginLoader> loader;
    MechanismRegistry registry;
    PlanCache plans;
    TensorHandles handles;
    ResultCache results{handles};
    HashRate hash_rate;
    Metrics metrics;
    mutable std::mutex costs_mutex;
    std::shared_ptr<const CostTable> costs;  // of this machine; null: times are not predicted
    mutable std::mutex projections_mutex;
    std::map<std::string, std::shared_ptr<const NamedTensors>> projections;  // by qualified name
    std::atomic<bool> keeps_projections{false};                              // spares calls without weights the look-up

    // The call with kept or unpacked weights, where it has any; nothing where it stays as it is.
    Result<std::optional<ForwardInputs>> with_projections(const ForwardInputs& inputs,
                                                          const ForwardOptions& options) const;
    Result<std::shared_ptr<CallPlan>> plan_of(const ForwardInputs& inputs, const ForwardOptions& options) const;
    // Of a call that asks for scores.
    Result<PreparedCall> prepare_weights(const ForwardInputs& inputs, const ForwardOptions& options);
    // The configuration in force; a call takes it once, at its beginning. The epoch grows with every change of it or of the
    // registry and tells plans of before from plans of now.
    struct Now {
        std::shared_ptr<const Config> config;
        std::uint64_t epoch{};
        std::shared_ptr<PassedChecks> passed;  // checks under this configuration
    };
    mutable std::mutex now_mutex;
    Now current;
    [[nodiscard]] Now now() const {
        const std::scoped_lock lock(now_mutex);
        return current;
    }

    Result<RuleVariables> variables_of(const Config& config, const ForwardInputs& inputs,
                                       const ForwardOptions& options) const;
    Result<Selection> choose(const Config& config, PassedChecks& passed, const ForwardInputs& inputs,
                             const ForwardOptions& options) const;
    Result<Recommendation> recommend(RequestFacts facts, const std::string& task) const;
    std::shared_ptr<const CostTable> costs_now() const;
    [[nodiscard]] RuleDefaults defaults(const Config& config) const {
        RuleDefaults defaults;
        defaults.threads = machine->pool->workers();
        defaults.precision = config.service.precision;
        defaults.backend = config.service.backend;
        return defaults;
    }
    static void write_key(KeyWriter& key, std::uint64_t epoch, const ForwardInputs& inputs,
                          const ForwardOptions& options);

    Result<ForwardResult> forward(const ForwardInputs& inputs, const ForwardOptions& options);
    Result<std::vector<ForwardResult>> forward_batch(const std::vector<ForwardInputs>& inputs,
                                                     const ForwardOptions& options);
    // A call is prepared, which finds every fault of it, and then carried out: by the result cache or by the plugin.
    Result<void> prepare(ForwardCall& call, const ForwardInputs& inputs, const ForwardOptions& options);
    Result<ForwardResult> carry_out(const ForwardCall& call, std::uint32_t workers);
    Result<ForwardResult> compute(const ForwardCall& call, std::uint32_t workers);
    // The calls that the result cache has to do with; auto: only where hashing is cheap beside computing.
    [[nodiscard]] bool worth_caching(const ForwardCall& call, std::uint32_t workers) const;

    // Last, so that its threads are gone before anything else is.
    AsyncCalls async;
};

}  // namespace attend
