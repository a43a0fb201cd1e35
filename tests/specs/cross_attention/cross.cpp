// SPDX-License-Identifier: Apache-2.0
// Core form: every key is visible but for lengths and masks.
#include "specs/spec.hpp"

namespace {
const specs::Registration spec({.mechanism = "cross-attention",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [](const specs::Place&) { return true; }, false, false);
                                    },
                                .variants = {{{"softcap", 3.0}}, {{"scale", -0.2}}, {{"dropout", 0.5}, {"seed", 1}}},
                                .causal = false});
}
