// SPDX-License-Identifier: Apache-2.0
// Exact attention whose positions follow the lengths, one of them alone as well. Pages and codes have tests of their own.
#include "specs/spec.hpp"

namespace {

using namespace specs;

std::int64_t offset_of_item(const Call& call, std::int64_t item) {
    const ForwardInputs& in = *call.inputs;
    if (call.optional_given("causal_offset")) return static_cast<std::int64_t>(call.number("causal_offset", 0));
    if (call.word("causal_alignment") == "top-left") return 0;
    return length_of(in.key_lengths, item, (in.key ? *in.key : in.query).shape[2]) -
           length_of(in.query_lengths, item, in.query.shape[2]);
}

bool sees(const Call& call, const Place& at) {
    const std::int64_t position = at.i + offset_of_item(call, at.b);
    const bool causal = call.flag("causal");
    if (causal && at.j > position) return false;
    auto left = static_cast<std::int64_t>(call.number("window_left", -1));
    auto right = static_cast<std::int64_t>(call.number("window_right", -1));
    const auto both = static_cast<std::int64_t>(call.number("window_size", 0));
    if (left < 0 && right < 0 && both > 0) left = both, right = causal ? 0 : both;
    return (left < 0 || at.j >= position - left) && (right < 0 || at.j <= position + right);
}

// To the nearest number of so many significant bits and this smallest exponent, ties to even.
double rounded(double x, int bits, int lowest) {
    if (x == 0.0 || !std::isfinite(x)) return x;
    const double unit = std::ldexp(1.0, std::max(std::ilogb(x), lowest) - bits + 1);
    return std::nearbyint(x / unit) * unit;
}

Expected oracle_of(const Call& call) {
    oracle::Dense x = problem_of(
        call, [&call](const Place& at) { return sees(call, at); }, false, false);
    const std::string kept = call.word("kv_dtype");
    if (kept == "bf16" || kept == "fp16")
        for (auto* side : {&x.k, &x.v})
            *side = [from = *side, half = kept == "fp16"](std::int64_t b, std::int64_t h, std::int64_t j,
                                                          std::int64_t d) {
                return half ? rounded(from(b, h, j, d), 11, -14) : rounded(from(b, h, j, d), 8, -126);
            };
    return solved(x);
}

const Registration spec({.mechanism = "flash-decoding",
                         .oracle = oracle_of,
                         .variants = {{{"causal", false}},
                                      {{"causal_alignment", "top-left"}},
                                      {{"causal_offset", 3}},
                                      {{"causal", false}, {"window_size", 5}},
                                      {{"window_size", 7}},
                                      {{"causal", false}, {"window_left", 3}, {"window_right", 9}},
                                      {{"softcap", 1.5}},
                                      {{"scale", 0.31}},
                                      {{"num_splits", 3}, {"block_kv", 16}},
                                      {{"num_splits", 256}, {"block_kv", 16}, {"causal", false}},
                                      {{"num_splits", 1}},
                                      {{"pack_gqa", false}},
                                      {{"pack_gqa", true}, {"num_splits", 2}, {"block_kv", 32}},
                                      {{"kv_dtype", "bf16"}},
                                      {{"kv_dtype", "fp16"}, {"num_splits", 2}, {"block_kv", 16}},
                                      {{"kv_dtype", "fp32"}},
                                      {{"validate", "full"}}}});

}  // namespace
