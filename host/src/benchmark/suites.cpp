// SPDX-License-Identifier: Apache-2.0
// The suites quick, comprehensive, memory, precision and scaling.
#include <algorithm>

#include "benchmark/bench.hpp"
#include "benchmark/materialised.hpp"

namespace attend::benchmark {
namespace {

std::uint32_t all_threads(Bench& bench) { return (*bench.service("", 0))->threads(); }

// The row, and for mechanisms that approximate how far they are from exact attention.
BenchmarkRow with_distance(Bench& bench, const CallSpec& spec) {
    BenchmarkRow row = bench.measure(spec);
    if (row.status == "measured") row.error = bench.distance_from_exact(spec);
    return row;
}

}  // namespace

Result<void> run_quick(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    const BenchmarkSettings& settings = bench.settings();
    std::vector<std::int64_t> lengths = settings.lengths, dims = settings.dims;
    if (lengths.empty()) lengths = {512};
    if (dims.empty()) dims = {64};
    for (const MechanismPtr& mechanism : mechanisms)
        for (const std::int64_t dim : dims)
            for (const std::int64_t length : lengths) {
                CallSpec spec = spec_of(bench, *mechanism);
                spec.threads = all_threads(bench);
                spec.dim = dim;
                spec.q_len = spec.kv_len = length;
                report.rows.push_back(with_distance(bench, spec));
            }
    return {};
}

Result<void> run_comprehensive(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    const BenchmarkSettings& settings = bench.settings();
    std::vector<std::int64_t> lengths = settings.lengths, dims = settings.dims;
    if (lengths.empty()) lengths = {128, 256, 512, 1024, 2048, 4096, 8192, 16384};
    if (dims.empty()) dims = {64, 80, 96, 128, 192, 256};
    const std::uint32_t threads = all_threads(bench);
    const std::int64_t middle =
        lengths[lengths.size() / 2] > 1024 && settings.lengths.empty() ? 1024 : lengths[lengths.size() / 2];
    for (const MechanismPtr& mechanism : mechanisms) {
        CallSpec spec = spec_of(bench, *mechanism);
        spec.dim = dims.front();
        for (const std::int64_t length : lengths) {
            spec.threads = threads;
            spec.q_len = spec.kv_len = length;
            report.rows.push_back(with_distance(bench, spec));
        }
        spec.q_len = spec.kv_len = middle;
        // The other head widths, model widths 128 to 1024 in heads of 64, and one thread alone.
        for (std::size_t at = 1; at < dims.size(); ++at) {
            spec.dim = dims[at];
            report.rows.push_back(bench.measure(spec));
        }
        spec.dim = dims.front();
        if (!settings.heads && settings.dims.empty())
            for (const std::int64_t width : {128, 256, 768, 1024}) {
                spec.heads = width / 64;
                spec.kv_heads = usual_key_heads(*mechanism, spec.heads);
                report.rows.push_back(bench.measure(spec));
            }
        spec = spec_of(bench, *mechanism);
        spec.dim = dims.front();
        spec.q_len = spec.kv_len = middle;
        for (std::uint32_t count = 1; count < threads; count *= 2) {
            spec.threads = count;
            report.rows.push_back(bench.measure(spec));
        }
    }
    return {};
}

Result<void> run_memory(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    const BenchmarkSettings& settings = bench.settings();
    std::vector<std::int64_t> lengths = settings.lengths;
    if (lengths.empty()) lengths = {1024, 2048, 4096, 8192, 16384};
    for (const std::int64_t length : lengths) {
        CallSpec plain;
        bool first = true;
        for (const MechanismPtr& mechanism : mechanisms) {
            // Without a choice of mechanisms, the one that this suite is about.
            if (settings.mechanisms.empty() && settings.category.empty() && mechanism->category != "flash") continue;
            CallSpec spec = spec_of(bench, *mechanism);
            spec.heads = settings.heads.value_or(1);
            spec.kv_heads = settings.kv_heads.value_or(usual_key_heads(*mechanism, spec.heads));
            spec.threads = all_threads(bench);
            spec.q_len = spec.kv_len = length;
            report.rows.push_back(bench.measure(spec));
            if (first) plain = spec;
            first = false;
        }
        if (!first) report.rows.push_back(measure_materialised(bench, plain));
    }
    report.notes.emplace_back(
        "extra memory is the growth of the resident size during the first run: outputs and workspace; of materialised "
        "output and scores");
    return {};
}

Result<void> run_precision(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    // tensors: what the call's are of; option: the mechanism's own, on float32 tensors.
    static constexpr struct {
        const char *mechanism, *tensors, *option;
        PeakKind peak;
    } lines[] = {
        {"flash-attention-v2", "fp32", "", PeakKind::fma},
        {"flash-attention-v2", "bf16", "", PeakKind::bf16},
        {"flash-attention-v3", "fp32", "fp32", PeakKind::fma},
        {"flash-attention-v3", "fp32", "bf16", PeakKind::bf16},
        {"flash-attention-v3", "fp32", "int8", PeakKind::int8_mix},
        {"flash-attention-v3", "fp32", "fp8", PeakKind::bf16},
    };
    const BenchmarkSettings& settings = bench.settings();
    std::vector<std::int64_t> lengths = settings.lengths;
    if (lengths.empty()) lengths = {512, 1024, 2048, 4096, 8192};
    for (const auto& line : lines) {
        const std::string precision = *line.option != 0 ? line.option : line.tensors;
        if (!settings.precision.empty() && settings.precision != precision) continue;
        for (const MechanismPtr& mechanism : mechanisms) {
            if (mechanism->name != line.mechanism) continue;
            CallSpec spec = spec_of(bench, *mechanism);
            spec.precision.clear();
            if (auto done = apply_precision(spec, line.tensors); !done) return done.error();
            if (*line.option != 0) spec.options.emplace_back("precision", line.option);
            if (settings.dims.empty()) spec.dim = 128;
            spec.threads = all_threads(bench);
            for (const std::int64_t length : lengths) {
                spec.q_len = spec.kv_len = length;
                const bool is_long = length > 2048;  // many times as long as a disturbance
                BenchmarkRow row = bench.measure(spec, line.peak, is_long ? 1 : 3, is_long ? 5 : 0);
                row.precision = precision;
                if (row.status == "measured") row.error = bench.distance_from_exact(spec);
                report.rows.push_back(std::move(row));
            }
        }
    }
    report.notes.emplace_back(
        "flash-attention-v2 in bf16 has tensors of bf16, flash-attention-v3 rounds float32 tensors; the peak of int8 "
        "is "
        "that of half of the operations as int8 dots and half as bf16 dots, of fp8 the bf16 dot");
    return {};
}

Result<void> run_scaling(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    const BenchmarkSettings& settings = bench.settings();
    std::vector<std::int64_t> lengths = settings.lengths;
    if (lengths.empty()) lengths = {2048, 4096, 8192, 16384, 32768, 65536, 131072};
    std::sort(lengths.begin(), lengths.end());
    // A run that would take longer than this says nothing that shorter ones do not say.
    constexpr double longest_ms = 20e3;
    for (const MechanismPtr& mechanism : mechanisms) {
        const bool unasked = settings.mechanisms.empty() && settings.category.empty();
        // Without a choice: those whose cost falls below the square, and the exact one that they stand in for.
        if (unasked && mechanism->category != "sparse" && mechanism->category != "linear" &&
            mechanism->name != "flash-attention-v2")
            continue;
        CallSpec spec = spec_of(bench, *mechanism);
        spec.threads = all_threads(bench);
        double last_ms = 0, growth = 0;
        std::int64_t last_length = 0;
        for (const std::int64_t length : lengths) {
            spec.q_len = spec.kv_len = length;
            const double ratio = last_length > 0 ? static_cast<double>(length) / static_cast<double>(last_length) : 1.0;
            const double expected = last_ms * (growth > 0 && ratio == 2.0 ? growth : ratio * ratio);
            if (expected > longest_ms) {
                BenchmarkRow row = bench.describe(spec);
                row.category = mechanism->category;
                row.status = "not_run";
                row.note = "a run would take about " + std::to_string(static_cast<std::int64_t>(expected / 1e3)) +
                           " s, by the growth so far";
                report.rows.push_back(std::move(row));
                continue;
            }
            BenchmarkRow row = bench.measure(spec, std::nullopt, 1, expected > 2e3 ? 3 : 5);
            if (row.median_ms > 0) {
                if (ratio == 2.0 && last_ms > 0) row.growth = growth = row.median_ms / last_ms;
                last_ms = row.median_ms;
                last_length = length;
            }
            report.rows.push_back(std::move(row));
        }
    }
    report.notes.emplace_back(
        "growth is the time over that of the row before, of half as many keys: 2 for linear cost, 4 for the square; "
        "medians "
        "of at least 5 runs, or 3 of those that take seconds");
    return {};
}

}  // namespace attend::benchmark
