// SPDX-License-Identifier: Apache-2.0
// Visible: the past up to window_left, or the prefix.
#include "specs/spec.hpp"

namespace {
bool visible(const specs::Call& call, const specs::Place& at) {
    const attend::Json* prefix = call.options.find("prefix_length");
    std::int64_t length = 0;
    if (prefix != nullptr && prefix->is_array() && prefix->size() > 0)
        length = prefix->as_array()[prefix->size() > 1 ? static_cast<std::size_t>(at.b) : 0].as_int64();
    else if (prefix != nullptr && prefix->is_number())
        length = prefix->as_int64();
    if (at.j < length) return true;
    auto left = static_cast<std::int64_t>(call.number("window_left", -1));
    if (left < 0 && call.number("window_size", 0) > 0) left = static_cast<std::int64_t>(call.number("window_size", 0));
    return at.j <= at.position && (left < 0 || at.j >= at.position - left);
}
const specs::Registration spec({.mechanism = "causal-self-attention",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::dense(
                                            call, [&](const specs::Place& at) { return visible(call, at); }, false,
                                            false);
                                    },
                                .variants = {{{"window_left", 3}},
                                             {{"window_size", 6}},
                                             {{"prefix_length", 5}},
                                             {{"prefix_length", 4}, {"window_left", 2}},
                                             {{"causal_alignment", "top-left"}},
                                             {{"causal_offset", -2}},
                                             {{"dropout", 0.2}, {"seed", 9}},
                                             {{"softcap", 1.0}}},
                                .causal = false});
}  // namespace
