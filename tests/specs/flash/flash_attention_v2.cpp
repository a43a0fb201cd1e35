// SPDX-License-Identifier: Apache-2.0
// Exact attention under the common rules; ALiBi and block patterns have tests of their own.
#include "specs/spec.hpp"

namespace {
const specs::Registration spec({.mechanism = "flash-attention-v2",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [](const specs::Place&) { return true; }, true, true);
                                    },
                                .variants = {{{"causal", true}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}},
                                             {{"causal", true}, {"causal_offset", 3}},
                                             {{"window_size", 5}},
                                             {{"causal", true}, {"window_size", 7}},
                                             {{"window_left", 3}, {"window_right", 9}},
                                             {{"softcap", 1.5}},
                                             {{"scale", 0.31}},
                                             {{"dropout", 0.3}, {"seed", 77}, {"rng_offset", 5}},
                                             {{"block_size", 16}},
                                             {{"block_size_q", 16}, {"block_size_kv", 64}, {"causal", true}}}});
}
