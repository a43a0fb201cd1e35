// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(flash_attention_v2)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.flash", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend", .license = "Apache-2.0",
                  .summary = "Exact attention in tiles")
