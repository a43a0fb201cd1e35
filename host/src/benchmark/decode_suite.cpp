// SPDX-License-Identifier: Apache-2.0
// The suite decode: one new token of a text against a cache of keys and values. What it costs is reading the cache, so
// every row is held against the rate at which this machine reads memory.
#include <algorithm>

#include "benchmark/bench.hpp"

namespace attend::benchmark {
namespace {

// How the cache is kept.
struct Storage {
    DType dtype;
    bool codes;
    std::int64_t page;
};
constexpr Storage storages[] = {{DType::f32, false, 0},    {DType::bf16, false, 0},  {DType::f32, true, 0},
                                {DType::f32, false, 64},   {DType::bf16, false, 16}, {DType::bf16, false, 64},
                                {DType::bf16, false, 256}, {DType::f32, true, 64}};

}  // namespace

Result<void> run_decode(Bench& bench, const std::vector<MechanismPtr>&, BenchmarkReport& report) {
    const BenchmarkSettings& settings = bench.settings();
    const std::string mechanism = settings.mechanisms.empty() ? "flash-decoding" : settings.mechanisms.front();
    std::vector<std::int64_t> lengths = settings.lengths, dims = settings.dims;
    if (lengths.empty()) lengths = {1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
    if (dims.empty()) dims = {128};
    const std::uint32_t most = (*bench.service("", 0))->threads();
    std::vector<std::uint32_t> threads{1};
    while (threads.back() * 2 <= most) threads.push_back(threads.back() * 2);
    if (settings.service.config.service.threads > 0) threads = {most};
    for (const std::int64_t dim : dims)
        for (const Storage& storage : storages)
            for (const std::int64_t length : lengths)
                for (const std::uint32_t count : threads) {
                    CallSpec spec;
                    spec.mechanism = mechanism;
                    spec.heads = settings.heads.value_or(32);
                    spec.kv_heads = settings.kv_heads.value_or(std::max<std::int64_t>(spec.heads / 4, 1));
                    spec.q_len = 1;
                    spec.kv_len = length;
                    spec.dim = dim;
                    spec.threads = count;
                    spec.dtype = storage.dtype;
                    spec.codes = storage.codes;
                    spec.page = storage.page;
                    report.rows.push_back(bench.measure(spec, PeakKind::memory, 3));
                }
    report.notes.emplace_back(
        "one query step; share is of the read rate measured beside the row: caches that fit into the processor's own "
        "may exceed it");
    return {};
}

}  // namespace attend::benchmark
