// SPDX-License-Identifier: Apache-2.0
// Softmax attention as textbooks write it: all scores of all heads stored, then normalised, then multiplied. What
// mechanisms that never store them are compared with; plain loops in float32, one thread.
#pragma once

#include "benchmark/bench.hpp"

namespace attend::benchmark {

[[nodiscard]] BenchmarkRow measure_materialised(Bench& bench, const CallSpec& spec);

}  // namespace attend::benchmark
