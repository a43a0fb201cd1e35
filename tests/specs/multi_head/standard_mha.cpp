// SPDX-License-Identifier: Apache-2.0
// Core form; add_zero_attn and the projected form have tests of their own.
#include "specs/spec.hpp"

namespace {
const specs::Registration spec({.mechanism = "standard-mha",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [](const specs::Place&) { return true; }, true, true);
                                    },
                                .variants = {{{"causal", true}},
                                             {{"window_size", 4}},
                                             {{"softcap", 2.0}},
                                             {{"dropout", 0.1}, {"seed", 3}},
                                             {{"causal", true}, {"window_left", 2}}}});
}
