// SPDX-License-Identifier: Apache-2.0
// What all suites share: services by back end and thread count, checks that are done once per kind of call, and the
// measuring of one row with its peak beside it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attend/benchmark.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "benchmark/call.hpp"
#include "benchmark/peaks.hpp"

namespace attend::benchmark {

// What a check found: a wrong answer and a refused call have a problem.
struct Check {
    std::string against;
    std::optional<double> error;
    std::string problem;
    bool wrong{false}, refused{false};  // refused: the mechanism does not take such a call
};

class Bench {
public:
    explicit Bench(const BenchmarkSettings& settings);

    // Opened on first use; an empty back end and 0 threads are those of the settings.
    [[nodiscard]] Result<AttentionService*> service(const std::string& backend, std::uint32_t threads);
    [[nodiscard]] const std::vector<int>& cpus() const { return cpus_; }
    [[nodiscard]] const BenchmarkSettings& settings() const { return settings_; }

    [[nodiscard]] BenchmarkRow describe(const CallSpec& spec) const;
    // Against an oracle on a small call of the same kind, or where none fits against the baseline back end.
    [[nodiscard]] Check check(const CallSpec& spec);
    // Check, then time; the result says why where there is no time. Peaks are measured before and after. Of several
    // turns the one with the middle share counts: other work on the machine comes and goes within seconds. least_runs 0:
    // as the settings say.
    [[nodiscard]] BenchmarkRow measure(const CallSpec& spec, std::optional<PeakKind> peak = std::nullopt,
                                       std::size_t turns = 1, std::uint64_t least_runs = 0);
    // Relative L2 distance from exact attention, for mechanisms that approximate it.
    [[nodiscard]] std::optional<double> distance_from_exact(const CallSpec& spec);
    // Check and prepare, for suites that time on their own; the row holds the problem where the pointer is null.
    [[nodiscard]] std::unique_ptr<PreparedCall> prepare(const CallSpec& spec, BenchmarkRow& row);
    // For a row to end with: everything that follows from its times.
    void fill(BenchmarkRow& row, const CallSpec& spec, const PreparedCall& call, const Timing& timing) const;

    void progress(const std::string& text) const;

private:
    [[nodiscard]] Check check_now(const CallSpec& small);

    BenchmarkSettings settings_;
    std::vector<int> cpus_;
    std::map<std::string, std::unique_ptr<AttentionService>> services_;
    std::map<std::string, Check> checks_;
};

// The suites. Rows and notes go into the report; `passed` is set by the caller from the rows.
Result<void> run_quick(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_comprehensive(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_memory(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_scaling(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_decode(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_precision(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_stress(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
Result<void> run_experts(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);
// The rows of the table of targets; the mechanisms are those that it names.
Result<void> run_targets(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report);

// The shape that flags and defaults give.
[[nodiscard]] CallSpec spec_of(const Bench& bench, const MechanismRecord& mechanism);
// As many as query heads, or one where the mechanism takes no other number.
std::int64_t usual_key_heads(const MechanismRecord& mechanism, std::int64_t heads);
[[nodiscard]] Result<void> apply_precision(CallSpec& spec, const std::string& precision);

// bench/targets.json as it was when the program was built.
[[nodiscard]] std::string_view targets_text();

}  // namespace attend::benchmark
