// SPDX-License-Identifier: Apache-2.0
// BenchmarkRunner: checks mechanisms against float64 oracles, times them beside the machine's measured peaks, and holds
// the result against the table of targets.
//
//   attend::BenchmarkSettings settings;
//   settings.suite = "quick";
//   auto report = attend::BenchmarkRunner(std::move(settings)).run();
//   attend::write_benchmark(*report, "report.html");
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/config/json.hpp"
#include "attend/error.hpp"

namespace attend {

struct BenchmarkSettings {
    ServiceSettings service;
    std::string suite;                    // one of benchmark_suites(); empty: quick
    std::vector<std::string> mechanisms;  // empty: all of the suite
    std::string category;                 // empty: all
    std::vector<std::int64_t> lengths, dims;
    std::optional<std::int64_t> heads, kv_heads, batch;
    std::string precision;  // empty: fp32; of targets: all
    bool causal{false};
    std::uint64_t repeat{10};  // least number of runs, at least 10
    double seconds{30};        // of the stress suite
    std::uint64_t seed{0};
    std::string rows;  // targets: only rows whose name holds this text
    std::string command, commit, version;
    AttentionService* record_to{nullptr};              // its metrics get the speedups of targets that were really run
    std::function<void(const std::string&)> progress;  // may be empty
};

// A target and what became of it.
struct TargetOutcome {
    std::string metric, unit;
    bool lower_is_better{false};
    double must{0}, aim{0};
    std::optional<double> measured;
    std::string result;  // aim, must, missed, wrong, failed, not_applicable, not_measured
};

struct BenchmarkRow {
    std::string name, mechanism, category, backend, precision, shape;
    std::int64_t batch{1}, heads{1}, kv_heads{1}, q_len{0}, kv_len{0}, dim{0};
    bool causal{false};
    std::uint32_t threads{1};
    std::string status{"measured"};  // wrong, failed, not_run
    std::string note;
    std::uint64_t runs{0};
    double median_ms{0}, lower_ms{0}, upper_ms{0}, fastest_ms{0};  // 0 runs: there is no time
    double flops{0}, gflops{0}, peak{0}, share{0};
    std::string peak_kind;  // fma, bf16, int8 and bf16, memory
    double bytes_moved{0}, gbps{0};
    std::uint64_t workspace_bytes{0}, peak_resident_bytes{0}, extra_bytes{0};
    std::string checked_against;
    std::optional<double> growth;  // time over that of the row before: half as many keys (scaling) or experts (experts)
    std::optional<double> check_error, error;  // error: against exact attention, where a mechanism approximates
    std::optional<TargetOutcome> target;
};

struct BenchmarkReport {
    std::string suite;
    Json environment;  // commit, compiler, CPU, command, threads, back end
    std::vector<Json> peaks;
    std::vector<BenchmarkRow> rows;
    std::vector<std::string> notes;
    double elapsed_s{0};
    bool passed{true};  // no wrong answer, no failure, no missed target

    [[nodiscard]] Json json() const;
    [[nodiscard]] std::string csv() const;
    [[nodiscard]] std::string html() const;
};

[[nodiscard]] const std::vector<std::string>& benchmark_suites();

class BenchmarkRunner {
public:
    explicit BenchmarkRunner(BenchmarkSettings settings) : settings_(std::move(settings)) {}
    // Errors are wrong settings (unknown suite, mechanism, category); what goes wrong while measuring is in the rows.
    [[nodiscard]] Result<BenchmarkReport> run();

private:
    BenchmarkSettings settings_;
};

// By the extension: .json, .html, .csv; written beside and renamed. check_benchmark_output says beforehand whether the
// name is one of those.
[[nodiscard]] Result<void> check_benchmark_output(const std::string& path);
[[nodiscard]] Result<void> write_benchmark(const BenchmarkReport& report, const std::string& path);

}  // namespace attend
