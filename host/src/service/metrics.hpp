// SPDX-License-Identifier: Apache-2.0
// Counters of a service. Calls write to what their plan points to, without looking anything up.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"

namespace attend {

inline constexpr std::size_t kept_samples = 4096;

// Of one mechanism.
class CallMetrics {
public:
    void record(double ms, std::uint64_t tokens, double flops);
    void reset();
    // Adds tokens and flops to the totals; nothing where there were no calls.
    [[nodiscard]] std::optional<ServiceMetrics::Mechanism> read(ServiceMetrics& totals) const;

private:
    mutable std::mutex mutex_;
    std::uint64_t calls_{0}, tokens_{0};
    double flops_{0}, sum_ms_{0}, max_ms_{0};
    std::vector<double> samples_;  // a ring once it is full
    std::size_t next_{0};
};

// Nearest rank: the smallest sample that at least the share p of all does not exceed. 0 of none.
[[nodiscard]] double percentile(std::vector<double>& sorted, double p);

class Metrics {
public:
    std::shared_ptr<CallMetrics> of(const std::string& mechanism);
    std::shared_ptr<std::atomic<std::uint64_t>> rule(const std::string& rule);
    void count_error(ErrorCode code) { ++errors_[static_cast<std::size_t>(code)]; }
    void record_selection(double us, std::size_t skips);
    void record_speedup(double speedup, double target);
    void hold(std::uint64_t bytes);
    void release(std::uint64_t bytes) { held_.fetch_sub(bytes, std::memory_order_relaxed); }
    void reset();
    [[nodiscard]] ServiceMetrics read() const;

private:
    mutable std::mutex mutex_;
    std::map<std::string, std::shared_ptr<CallMetrics>> mechanisms_;
    std::map<std::string, std::shared_ptr<std::atomic<std::uint64_t>>> rules_;
    std::uint64_t selections_{0}, skips_{0}, runs_{0}, successes_{0};
    double selection_us_{0}, speedups_{0}, peak_speedup_{0};
    std::array<std::atomic<std::uint64_t>, static_cast<std::size_t>(ErrorCode::stale_handle) + 1> errors_{};
    std::atomic<std::uint64_t> held_{0}, peak_{0};
};

// Outputs and workspace of a call, while it runs.
class BytesInUse {
public:
    BytesInUse(Metrics& metrics, std::uint64_t bytes) : metrics_(metrics), bytes_(bytes) { metrics_.hold(bytes_); }
    ~BytesInUse() { metrics_.release(bytes_); }
    BytesInUse(const BytesInUse&) = delete;
    BytesInUse& operator=(const BytesInUse&) = delete;

private:
    Metrics& metrics_;
    std::uint64_t bytes_;
};

}  // namespace attend
