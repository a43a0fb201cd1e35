// SPDX-License-Identifier: Apache-2.0
// Ring and hubs, or blocks with an anchor. Hubs outside the sequence and private keys are further keys of an own problem.
#include <algorithm>
#include <cmath>

#include "specs/spec.hpp"

namespace {

const attend::Tensor* input_of(const specs::Call& call, const char* name) {
    for (const auto& [given, tensor] : call.inputs->extra)
        if (given == name) return &tensor;
    return nullptr;
}

struct Numbers {
    std::int64_t nk, leading, extra, radius, context, block, anchor;
    bool cyclic, anchored, mean;
};
Numbers numbers_of(const specs::Call& call) {
    const attend::Tensor& key = call.inputs->key ? *call.inputs->key : call.inputs->query;
    const attend::Tensor* given = input_of(call, "hub_key");
    Numbers n{};
    n.nk = key.shape[2];
    n.anchored = call.word("mode") == "anchor";
    n.mean = call.word("hub_source") == "mean" && !n.anchored;
    n.extra = n.mean ? 1 : given != nullptr ? given->shape[2] : 0;
    n.leading = n.anchored || n.mean || given != nullptr
                    ? 0
                    : std::min(n.nk, static_cast<std::int64_t>(call.number("num_hubs", 1)));
    n.radius = static_cast<std::int64_t>(call.number("ring_radius", 1));
    n.cyclic = call.optional_given("cyclic") ? call.flag("cyclic") : !call.flag("causal");
    n.context = static_cast<std::int64_t>(call.number("context_length", static_cast<double>(n.nk)));
    n.block = static_cast<std::int64_t>(call.number("block_size", 0));
    if (n.block == 0) n.block = std::max<std::int64_t>(1, (n.context + 3) / 4);
    n.anchor = static_cast<std::int64_t>(call.number("anchor_size", 0));
    if (n.anchor == 0) n.anchor = n.block;
    return n;
}

bool sees(const Numbers& n, std::int64_t p, std::int64_t j) {
    if (n.anchored) return p >= n.context || j / n.block == p / n.block || j < n.anchor;
    if (p < n.leading || j < n.leading) return true;
    const std::int64_t apart = std::abs(p - j), around = n.nk - n.leading - apart;
    return apart <= n.radius || (n.cyclic && around <= n.radius);
}

specs::Expected oracle_of(const specs::Call& call) {
    const Numbers n = numbers_of(call);
    const attend::Tensor *hub_key = input_of(call, "hub_key"), *hub_value = input_of(call, "hub_value"),
                         *own_key = input_of(call, "private_key"), *own_value = input_of(call, "private_value");
    oracle::Dense x = specs::problem_of(
        call, [&](const specs::Place& at) { return sees(n, at.position, at.j); }, true, true);
    // Behind the keys: hubs, then for every query its private key.
    const std::int64_t hubs_end = n.nk + n.extra, all = hubs_end + (own_key != nullptr ? x.q_len : 0);
    const auto length = [&](std::int64_t b) { return specs::length_of(call.inputs->key_lengths, b, n.nk); };
    const auto joined = [&](const auto& main, const attend::Tensor* hubs, const attend::Tensor* own, std::int64_t) {
        return [=](std::int64_t b, std::int64_t h, std::int64_t j, std::int64_t d) {
            if (j < n.nk) return main(b, h, j, d);
            if (j >= hubs_end) return oracle::View{own}(b, h, j - hubs_end, d);
            if (!n.mean) return oracle::View{hubs}(b, h, j - n.nk, d);
            double sum = 0;
            for (std::int64_t row = 0; row < length(b); ++row) sum += main(b, h, row, d);
            return length(b) > 0 ? sum / static_cast<double>(length(b)) : 0.0;
        };
    };
    const std::function<bool(std::int64_t, std::int64_t, std::int64_t, std::int64_t)> visible = x.visible;
    const auto bias = x.bias;
    x.k = joined(x.k, hub_key, own_key, 0);
    x.v = joined(x.v, hub_value, own_value, 0);
    x.kv_len = all;
    x.visible = [=, &call](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        if (j < n.nk) return visible(b, h, i, j);
        if (call.inputs->query_lengths && i >= specs::length_of(call.inputs->query_lengths, b, 0)) return false;
        if (j < hubs_end) return !n.mean || length(b) > 0;
        return j - hubs_end == i && i + specs::offset_of(call, b) >= n.leading;
    };
    if (bias)
        x.bias = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            return j < n.nk ? bias(b, h, i, j) : 0.0;
        };
    specs::Expected expected = specs::solved(x);
    // Weights are shown for the keys and the hubs.
    if (all > hubs_end) {
        std::vector<double> shown;
        for (std::size_t row = 0; row < expected.p.size() / static_cast<std::size_t>(all); ++row)
            shown.insert(shown.end(), expected.p.begin() + static_cast<std::ptrdiff_t>(row) * all,
                         expected.p.begin() + static_cast<std::ptrdiff_t>(row) * all + hubs_end);
        expected.p = shown;
    }
    return expected;
}

bool has(const attend::NamedValues& options, const char* name, const char* word) {
    for (const auto& [given, value] : options)
        if (given == name && value.is_string() && value.as_string() == word) return true;
    return false;
}
void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const attend::Tensor& key = inputs.key ? *inputs.key : inputs.query;
    const attend::Tensor& value = inputs.value ? *inputs.value : key;
    const std::int64_t b = key.shape[0], hq = inputs.query.shape[1], hkv = key.shape[1], d = key.shape[3],
                       dv = value.shape[3];
    if (has(options, "hub_source", "external")) {
        const std::int64_t hubs = 1 + numbers.below(4);
        inputs.extra.emplace_back("hub_query", numbers.normal({b, hq, hubs, d}));
        inputs.extra.emplace_back("hub_key", numbers.normal({b, hkv, hubs, d}));
        inputs.extra.emplace_back("hub_value", numbers.normal({b, hkv, hubs, dv}));
    }
    for (const auto& [name, number] : options)
        if (name == "ring_radius" && number.as_int64() == 3) {
            inputs.extra.emplace_back("private_key", numbers.normal({b, hkv, inputs.query.shape[2], d}));
            inputs.extra.emplace_back("private_value", numbers.normal({b, hkv, inputs.query.shape[2], dv}));
        }
}

const specs::Registration spec(
    {.mechanism = "star-attention",
     .oracle = oracle_of,
     .variants = {{{"ring_radius", 2}, {"num_hubs", 3}, {"causal", false}},
                  {{"num_hubs", 0}, {"cyclic", false}},
                  {{"num_hubs", 2}, {"causal", true}, {"cyclic", true}},
                  {{"ring_radius", 30}, {"num_hubs", 1}},
                  {{"ring_radius", 3}, {"num_hubs", 2}},
                  {{"hub_source", "mean"}, {"ring_radius", 2}, {"causal", false}},
                  {{"hub_source", "mean"}, {"ring_radius", 3}, {"causal", false}},
                  {{"hub_source", "external"}, {"causal", false}},
                  {{"hub_source", "external"}, {"ring_radius", 3}, {"causal", false}},
                  {{"mode", "anchor"}, {"causal", true}},
                  {{"mode", "anchor"}, {"causal", true}, {"block_size", 5}, {"anchor_size", 2}},
                  {{"mode", "anchor"},
                   {"causal", true},
                   {"block_size", 4},
                   {"anchor_size", -1},
                   {"context_length", 9},
                   {"num_hosts", 2}},
                  {{"mode", "anchor"},
                   {"causal", true},
                   {"block_size", 2},
                   {"context_length", 7},
                   {"num_hosts", 3},
                   {"dropout", 0.25}}},
     .rows_on_axis = true,
     .more = more,
     .fits = [](const attend::NamedValues& options, std::int64_t, std::int64_t nk) {
         for (const auto& [name, value] : options)
             if (name == "context_length" && value.as_int64() > nk) return false;
         return true;
     }});
}  // namespace
