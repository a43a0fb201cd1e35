// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(graph) X(hyperbolic)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "org.attend.geometric", .version = "1.0.0", .vendor = "attend", .license = "Apache-2.0",
                  .summary = "Attention on graphs and in hyperbolic space")
