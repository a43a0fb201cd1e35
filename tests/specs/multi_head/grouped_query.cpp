// SPDX-License-Identifier: Apache-2.0
// Core form: dense attention whose query head h reads key head floor(h Hkv / Hq). The projected form has identities.
#include "specs/spec.hpp"

namespace {
const specs::Registration spec({.mechanism = "grouped-query-attention",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [](const specs::Place&) { return true; }, true, true);
                                    },
                                .variants = {{{"causal", true}},
                                             {{"window_size", 4}},
                                             {{"softcap", 2.0}},
                                             {{"dropout", 0.1}, {"seed", 3}},
                                             {{"scale", 0.3}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}},
                                             {{"causal", true}, {"window_left", 2}}}});
}
