// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(causal_self) X(bidirectional_self) X(talking_heads) X(synthesizer) X(relative_position) X(disentangled)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.self-attention", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend",
                  .license = "Apache-2.0", .summary = "Self-attention")
