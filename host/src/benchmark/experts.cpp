// SPDX-License-Identifier: Apache-2.0
// The suite experts: what a mixture of experts costs as its experts become more. Attention among the tokens of an expert
// costs k^2 n^2 / E in all, so each doubling of E should halve it; projections and the router do not become cheaper.
#include <algorithm>

#include "benchmark/bench.hpp"

namespace attend::benchmark {

Result<void> run_experts(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    const BenchmarkSettings& settings = bench.settings();
    std::vector<std::int64_t> lengths = settings.lengths;
    if (lengths.empty()) lengths = {16384};
    for (const MechanismPtr& mechanism : mechanisms) {
        // Slots are as many in all, whatever the number of experts: their cost says something where it is asked for.
        if (mechanism->category != "moe" || (!mechanism->has(ATTEND_CAP_ROUTED) && settings.mechanisms.empty()))
            continue;
        for (const std::int64_t length : lengths) {
            double before_ms = 0;
            for (const std::int64_t experts : {4, 8, 16, 32}) {
                CallSpec spec = spec_of(bench, *mechanism);
                spec.threads = (*bench.service("", 0))->threads();
                spec.q_len = spec.kv_len = length;
                spec.options.emplace_back("num_experts", experts);
                BenchmarkRow row = bench.measure(spec, std::nullopt, 1, 5);
                row.name += ", E=" + std::to_string(experts);
                if (row.median_ms > 0) {
                    if (before_ms > 0) row.growth = row.median_ms / before_ms;
                    before_ms = row.median_ms;
                }
                report.rows.push_back(std::move(row));
            }
        }
    }
    report.notes.emplace_back(
        "growth is the time over that of the row before, with half as many experts: 0.5 where attention is all of the "
        "cost");
    return {};
}

}  // namespace attend::benchmark
