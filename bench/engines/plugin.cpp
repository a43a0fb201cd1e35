// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(bench_projection)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.bench-engines", .version = "1.0.0", .license = "Apache-2.0",
                  .summary = "Engines that are no mechanisms, for benchmarks")
