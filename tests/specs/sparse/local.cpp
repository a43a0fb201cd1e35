// SPDX-License-Identifier: Apache-2.0
// Band or blocks, united with globals; global queries see all keys; causal cuts.
#include "specs/spec.hpp"

namespace {
std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

bool visible(const specs::Call& call, const specs::Place& at) {
    const attend::Json* tokens = call.options.find("global_tokens");
    const auto is_global = [&](std::int64_t position) {
        if (position < 0 || tokens == nullptr) return false;
        if (tokens->is_number()) return position < tokens->as_int64();
        for (const attend::Json& token : tokens->as_array())
            if (token.as_int64() == position) return true;
        return false;
    };
    if (call.flag("causal") && at.j > at.position) return false;
    if (is_global(at.j) || (call.flag("global_rows") && is_global(at.position))) return true;
    const auto w = static_cast<std::int64_t>(call.number("window_size", 128));
    if (call.word("mode") == "block") {
        const std::int64_t own = floor_div(at.position, w), block = at.j / w;
        const auto forward = static_cast<std::int64_t>(call.number("look_forward", call.flag("causal") ? 0 : 1));
        return block >= own - static_cast<std::int64_t>(call.number("look_backward", 1)) && block <= own + forward;
    }
    const auto left = static_cast<std::int64_t>(call.number("window_left", static_cast<double>(w)));
    const auto right = static_cast<std::int64_t>(call.number("window_right", static_cast<double>(w)));
    return (left < 0 || at.j >= at.position - left) && (right < 0 || at.j <= at.position + right);
}
attend::Json list(std::initializer_list<int> items) {
    attend::Json array = attend::Json::array();
    for (const int item : items) array.push(item);
    return array;
}
const specs::Registration spec(
    {.mechanism = "local-attention",
     .oracle =
         [](const specs::Call& call) {
             return specs::dense(
                 call, [&](const specs::Place& at) { return visible(call, at); }, false, false);
         },
     .variants = {{{"window_size", 0}},
                  {{"window_size", 3}},
                  {{"window_size", 6}, {"causal", true}},
                  {{"window_left", 2}, {"window_right", -1}},
                  {{"window_size", 2}, {"global_tokens", 2}},
                  {{"window_size", 2}, {"global_tokens", list({0})}, {"global_rows", false}},
                  {{"window_size", 4}, {"mode", "block"}},
                  {{"window_size", 3}, {"mode", "block"}, {"look_backward", 2}, {"look_forward", 0}},
                  {{"window_size", 5}, {"mode", "block"}, {"causal", true}, {"global_tokens", 1}}},
     .own_window = true});
}  // namespace
