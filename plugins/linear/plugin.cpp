// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(linear) X(performer) X(cosformer) X(rfa) X(nystrom) X(linformer)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.linear", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend", .license = "Apache-2.0",
                  .summary = "Attention at a cost linear in the length")
