// SPDX-License-Identifier: Apache-2.0
// Core form; segments, padding masks and the projected form have identities.
#include "specs/spec.hpp"

namespace {

bool visible(const specs::Call& call, const specs::Place& at) {
    if (!call.flag("zero_padded_queries")) return true;
    const auto& in = *call.inputs;
    const std::int64_t keys = (in.key ? *in.key : in.query).shape[2];
    const std::int64_t length = specs::length_of(in.key_lengths, at.b, keys);
    return at.position < 0 || at.position >= keys || at.position < length;
}

const specs::Registration spec({.mechanism = "bidirectional-self-attention",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [&](const specs::Place& at) { return visible(call, at); }, false,
                                            true);
                                    },
                                .variants = {{{"zero_padded_queries", true}},
                                             {{"window_size", 4}},
                                             {{"window_left", 2}, {"causal_offset", -1}},
                                             {{"softcap", 2.0}},
                                             {{"scale", -0.4}},
                                             {{"dropout", 0.1}, {"seed", 3}}},
                                .causal = false});

}  // namespace
