// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(standard_mha) X(alibi_mha) X(grouped_query) X(multi_query) X(rotary_mha) X(differential) X(mixture)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.multi-head", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend",
                  .license = "Apache-2.0", .summary = "Multi-head attention")
