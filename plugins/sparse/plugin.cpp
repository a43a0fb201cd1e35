// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(local) X(bigbird) X(blockwise) X(random) X(strided) X(sparse_transformer) X(longformer) X(star)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "attend.sparse", .version = ATTEND_PLUGIN_VERSION, .vendor = "attend", .license = "Apache-2.0",
                  .summary = "Attention to few keys per query")
