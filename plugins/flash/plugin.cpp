// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(flash_attention_v2) X(flash_attention_v3) X(flash_decoding)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.flash", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend", .license = "Apache-2.0",
                  .summary = "Attention in tiles, exact or in low precision")
