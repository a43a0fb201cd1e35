// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(moe) X(soft_moe) X(switch_) X(expert_choice)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.moe", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend", .license = "Apache-2.0",
                  .summary = "Attention experts and routing")
