// SPDX-License-Identifier: Apache-2.0
#define ATTEND_MECHANISMS(X) X(sink)
#include "attend/author/plugin.hpp"

ATTEND_CPP_PLUGIN(.id = "org.example.sink", .version = "1.0.0", .vendor = "example", .license = "Apache-2.0",
                  .summary = "Attention sinks, in C++")
