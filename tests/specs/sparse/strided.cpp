// SPDX-License-Identifier: Apache-2.0
// Keys in steps of the stride, from the query's position or from an offset; a band beside them.
#include <cmath>

#include "specs/spec.hpp"

namespace {

bool visible(const specs::Call& call, const specs::Place& at) {
    const attend::Tensor& key = call.inputs->key ? *call.inputs->key : call.inputs->query;
    const std::int64_t keys = key.shape[2];
    auto stride = static_cast<std::int64_t>(call.number("stride", 0));
    while (call.number("stride", 0) == 0.0 && (stride < 1 || stride * stride < keys)) ++stride;
    const auto taps = static_cast<std::int64_t>(call.number("max_taps", 0)),
               local = static_cast<std::int64_t>(call.number("local_window", 0)),
               offset = static_cast<std::int64_t>(call.number("offset", 0));
    const std::int64_t distance = at.j - at.position;
    if (local > 0 && std::abs(distance) <= local) return true;
    if (call.word("phase") == "relative")
        return distance % stride == 0 && (taps == 0 || std::abs(distance) <= taps * stride);
    if (at.j % stride != offset) return false;
    // Members of A between j and the position, j itself included.
    std::int64_t nearer = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
        if (j % stride != offset) continue;
        const bool below = j <= at.position;
        if (below != (at.j <= at.position)) continue;
        nearer += below ? (j >= at.j ? 1 : 0) : (j <= at.j ? 1 : 0);
    }
    return taps == 0 || nearer <= taps;
}

const specs::Registration spec(
    {.mechanism = "strided-attention",
     .oracle =
         [](const specs::Call& call) {
             return specs::dense(
                 call, [&](const specs::Place& at) { return visible(call, at); }, true, true);
         },
     .variants = {{{"stride", 1}},
                  {{"stride", 3}},
                  {{"stride", 4}, {"causal", true}, {"dropout", 0.3}, {"seed", 5}},
                  {{"stride", 5}, {"max_taps", 2}},
                  {{"stride", 3}, {"max_taps", 1}, {"local_window", 4}, {"causal", true}},
                  {{"stride", 7}, {"local_window", 2}, {"dropout", 0.25}},
                  {{"stride", 6}, {"local_window", 9}, {"window_left", 20}},
                  {{"stride", 4}, {"phase", "absolute"}, {"offset", 3}},
                  {{"stride", 5}, {"phase", "absolute"}, {"offset", 2}, {"causal", true}},
                  {{"stride", 3}, {"phase", "absolute"}, {"offset", 1}, {"max_taps", 2}},
                  {{"stride", 4}, {"phase", "absolute"}, {"max_taps", 1}, {"local_window", 3}, {"softcap", 2.0}},
                  {{"stride", 200}},
                  {{"stride", 2}, {"local_window", 300}}}});
}  // namespace
