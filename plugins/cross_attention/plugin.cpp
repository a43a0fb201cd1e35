// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(cross) X(gated_cross) X(memory) X(perceiver) X(hierarchical_cross)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.cross-attention", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend",
                  .license = "Apache-2.0", .summary = "Attention from one sequence to another")
