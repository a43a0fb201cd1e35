// SPDX-License-Identifier: Apache-2.0
#include "service/metrics.hpp"

#include <algorithm>
#include <cmath>

#include "service/service_state.hpp"

namespace attend {

double percentile(std::vector<double>& sorted, double p) {
    if (sorted.empty()) return 0;
    const auto rank = static_cast<std::size_t>(std::ceil(p * static_cast<double>(sorted.size())));
    return sorted[std::clamp<std::size_t>(rank, 1, sorted.size()) - 1];
}

void CallMetrics::record(double ms, std::uint64_t tokens, double flops) {
    const std::scoped_lock lock(mutex_);
    ++calls_;
    tokens_ += tokens;
    flops_ += flops;
    sum_ms_ += ms;
    max_ms_ = std::max(max_ms_, ms);
    if (samples_.size() < kept_samples) {
        samples_.push_back(ms);
        return;
    }
    samples_[next_] = ms;
    next_ = (next_ + 1) % kept_samples;
}

void CallMetrics::reset() {
    const std::scoped_lock lock(mutex_);
    calls_ = tokens_ = 0;
    flops_ = sum_ms_ = max_ms_ = 0;
    samples_.clear();
    next_ = 0;
}

std::optional<ServiceMetrics::Mechanism> CallMetrics::read(ServiceMetrics& totals) const {
    std::vector<double> sorted;
    ServiceMetrics::Mechanism out;
    {
        const std::scoped_lock lock(mutex_);
        if (calls_ == 0) return std::nullopt;
        totals.calls += calls_;
        totals.tokens += tokens_;
        totals.flops += flops_;
        out.calls = calls_;
        out.mean_ms = sum_ms_ / static_cast<double>(calls_);
        out.max_ms = max_ms_;
        sorted = samples_;
    }
    std::sort(sorted.begin(), sorted.end());
    out.p50 = percentile(sorted, 0.50);
    out.p95 = percentile(sorted, 0.95);
    out.p99 = percentile(sorted, 0.99);
    return out;
}

std::shared_ptr<CallMetrics> Metrics::of(const std::string& mechanism) {
    const std::scoped_lock lock(mutex_);
    auto& slot = mechanisms_[mechanism];
    if (!slot) slot = std::make_shared<CallMetrics>();
    return slot;
}

std::shared_ptr<std::atomic<std::uint64_t>> Metrics::rule(const std::string& rule) {
    const std::scoped_lock lock(mutex_);
    auto& slot = rules_[rule];
    if (!slot) slot = std::make_shared<std::atomic<std::uint64_t>>(0);
    return slot;
}

void Metrics::record_selection(double us, std::size_t skips) {
    const std::scoped_lock lock(mutex_);
    ++selections_;
    selection_us_ += us;
    skips_ += skips;
}

void Metrics::record_speedup(double speedup, double target) {
    if (!std::isfinite(speedup) || speedup <= 0) return;
    const std::scoped_lock lock(mutex_);
    ++runs_;
    speedups_ += speedup;
    peak_speedup_ = std::max(peak_speedup_, speedup);
    if (speedup >= target) ++successes_;
}

void Metrics::hold(std::uint64_t bytes) {
    const std::uint64_t now = held_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    std::uint64_t most = peak_.load(std::memory_order_relaxed);
    while (now > most && !peak_.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
    }
}

void Metrics::reset() {
    const std::scoped_lock lock(mutex_);
    for (auto& [name, slot] : mechanisms_) slot->reset();
    for (auto& [name, slot] : rules_) slot->store(0);
    for (auto& count : errors_) count = 0;
    selections_ = skips_ = runs_ = successes_ = 0;
    selection_us_ = speedups_ = peak_speedup_ = 0;
    peak_ = held_.load();
}

ServiceMetrics Metrics::read() const {
    ServiceMetrics out;
    const std::scoped_lock lock(mutex_);
    for (const auto& [name, slot] : mechanisms_)
        if (auto mechanism = slot->read(out)) out.mechanisms.emplace(name, *mechanism);
    for (std::size_t code = 0; code < errors_.size(); ++code)
        if (const std::uint64_t count = errors_[code]; count > 0) {
            out.errors.emplace(error_name(static_cast<ErrorCode>(code)), count);
            out.calls += count;
        }
    out.bytes_peak = peak_;
    out.selection.mean_us = selections_ > 0 ? selection_us_ / static_cast<double>(selections_) : 0;
    out.selection.skips = skips_;
    for (const auto& [name, slot] : rules_)
        if (const std::uint64_t count = *slot; count > 0) out.selection.rule_hits.emplace(name, count);
    out.benchmark.runs = runs_;
    if (runs_ > 0) {
        out.benchmark.average_speedup = speedups_ / static_cast<double>(runs_);
        out.benchmark.peak_speedup = peak_speedup_;
        out.benchmark.success_rate = static_cast<double>(successes_) / static_cast<double>(runs_);
    }
    return out;
}

Json ServiceMetrics::json() const {
    Json errors_json = Json::object(), mechanisms_json = Json::object(), hits = Json::object();
    for (const auto& [name, count] : errors) errors_json.set(name, count);
    for (const auto& [name, entry] : mechanisms)
        mechanisms_json.set(name, Json::object()
                                      .set("calls", entry.calls)
                                      .set("mean_ms", entry.mean_ms)
                                      .set("p50", entry.p50)
                                      .set("p95", entry.p95)
                                      .set("p99", entry.p99)
                                      .set("max_ms", entry.max_ms));
    for (const auto& [rule, count] : selection.rule_hits) hits.set(rule, count);
    return Json::object()
        .set("calls", calls)
        .set("errors", std::move(errors_json))
        .set("tokens", tokens)
        .set("flops", flops)
        .set("bytes_peak", bytes_peak)
        .set("mechanisms", std::move(mechanisms_json))
        .set("cache", Json::object()
                          .set("hits", cache.hits)
                          .set("misses", cache.misses)
                          .set("bypass", cache.bypass)
                          .set("evictions", cache.evictions)
                          .set("bytes", cache.bytes)
                          .set("entries", cache.entries))
        .set("selection", Json::object()
                              .set("mean_us", selection.mean_us)
                              .set("rule_hits", std::move(hits))
                              .set("skips", selection.skips))
        .set("benchmark", Json::object()
                              .set("runs", benchmark.runs)
                              .set("average_speedup", benchmark.average_speedup)
                              .set("peak_speedup", benchmark.peak_speedup)
                              .set("success_rate", benchmark.success_rate));
}

ServiceMetrics AttentionService::metrics() const {
    ServiceMetrics out = state_->metrics.read();
    const ResultCacheFacts facts = state_->results.facts();
    out.cache = {facts.hits, facts.misses, facts.bypass, facts.evictions, facts.bytes, facts.entries};
    return out;
}

void AttentionService::reset_metrics() {
    state_->metrics.reset();
    state_->results.reset_counters();
}

void AttentionService::record_speedup(double speedup) {
    state_->metrics.record_speedup(speedup, state_->now().config->service.speedup_target);
}

}  // namespace attend
