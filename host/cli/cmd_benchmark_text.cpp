// SPDX-License-Identifier: Apache-2.0
#include "cmd_benchmark_text.hpp"

#include <algorithm>

#include "text.hpp"

namespace attend::cli {
namespace {

std::string percent(double share) { return number_text(100.0 * share, 3) + " %"; }

std::string time_text(const BenchmarkRow& row) {
    if (row.median_ms <= 0) return "-";
    return row.median_ms < 1 ? number_text(row.median_ms * 1e3, 4) + " us" : number_text(row.median_ms, 4) + " ms";
}

// Half the distance of the quartiles.
std::string spread_text(const BenchmarkRow& row) {
    return row.median_ms > 0 ? "+-" + number_text(50.0 * (row.upper_ms - row.lower_ms) / row.median_ms, 2) + " %" : "";
}

std::string optional_text(const std::optional<double>& value) { return value ? number_text(*value, 2) : ""; }

std::string value_text(const TargetOutcome& target, double value) {
    return target.metric.starts_with("share") ? percent(value) : number_text(value, 4);
}

std::string targets_text(const BenchmarkReport& report) {
    Table table({"row", "measured", "must", "aim", "", "result", "median", "spread", "GFLOP/s", "check error", "note"});
    for (const BenchmarkRow& row : report.rows) {
        if (!row.target) continue;
        const TargetOutcome& target = *row.target;
        table.add({row.name, target.measured ? value_text(target, *target.measured) : "-",
                   value_text(target, target.must), value_text(target, target.aim), target.unit, target.result,
                   time_text(row), spread_text(row), row.gflops > 0 ? number_text(row.gflops) : "",
                   optional_text(row.check_error), row.note});
    }
    std::string summary;
    for (const char* result : {"aim", "must", "missed", "wrong", "failed", "not_applicable", "not_measured"}) {
        const auto count = std::count_if(report.rows.begin(), report.rows.end(), [&](const BenchmarkRow& row) {
            return row.target && row.target->result == result;
        });
        if (count > 0) summary += (summary.empty() ? "" : ", ") + std::to_string(count) + " " + result;
    }
    return table.text() + "\n" + summary + "\n";
}

std::string decode_text(const BenchmarkReport& report) {
    Table table({"cache", "shape", "threads", "median", "spread", "GB/s", "of the read rate", "check error", "note"});
    for (const BenchmarkRow& row : report.rows) {
        const bool timed = row.median_ms > 0;
        table.add({row.precision, row.shape, std::to_string(row.threads), time_text(row), spread_text(row),
                   timed ? number_text(row.gbps, 4) : "-", timed && row.peak > 0 ? percent(row.share) : "-",
                   optional_text(row.check_error), row.status == "measured" ? row.note : row.status + ": " + row.note});
    }
    return table.text();
}

std::string rows_text(const BenchmarkReport& report) {
    Table table({"mechanism", "shape", "precision", "back end", "threads", "median", "spread", "runs", "GFLOP/s",
                 "peak", "growth", "GB/s", "workspace", "extra", "resident", "check error", "checked against", "error",
                 "note"});
    for (const BenchmarkRow& row : report.rows) {
        const bool timed = row.median_ms > 0;
        table.add({row.name, row.shape + (row.causal ? " causal" : ""), row.precision, row.backend,
                   std::to_string(row.threads), time_text(row), spread_text(row), std::to_string(row.runs),
                   timed && row.flops > 0 ? number_text(row.gflops) : "",
                   timed && row.peak > 0 && row.flops > 0 ? percent(row.share) : "",
                   row.growth ? number_text(*row.growth, 3) : "", timed && row.gbps > 0 ? number_text(row.gbps, 3) : "",
                   bytes_text(static_cast<double>(row.workspace_bytes)),
                   bytes_text(static_cast<double>(row.extra_bytes)),
                   bytes_text(static_cast<double>(row.peak_resident_bytes)), optional_text(row.check_error),
                   row.checked_against, optional_text(row.error),
                   row.status == "measured" ? row.note : row.status + ": " + row.note});
    }
    return table.text();
}

}  // namespace

std::string report_text(const BenchmarkReport& report) {
    std::string text;
    for (const Json& peak : report.peaks) {
        const auto figure = [&](const char* key) {
            const Json* value = peak.find(key);
            return value != nullptr && value->is_number() ? number_text(value->as_double()) : std::string("-");
        };
        text += "peaks, " + figure("threads") + " threads: multiply-add " + figure("fma_gflops") + " GFLOP/s, bf16 " +
                figure("bf16_gflops") + " GFLOP/s, int8 " + figure("int8_gops") + " GOP/s, memory " +
                figure("memory_read_gbps") + " GB/s\n";
    }
    const bool targets = std::any_of(report.rows.begin(), report.rows.end(),
                                     [](const BenchmarkRow& row) { return row.target.has_value(); });
    text += "\n" + (targets                    ? targets_text(report)
                    : report.suite == "decode" ? decode_text(report)
                                               : rows_text(report));
    for (const std::string& note : report.notes) text += note + "\n";
    return text + (report.passed ? "passed" : "failed") + " in " + number_text(report.elapsed_s, 3) + " s\n";
}

}  // namespace attend::cli
