// SPDX-License-Identifier: Apache-2.0
// Core form; the projected form is tested with those of other mechanisms.
#include "specs/spec.hpp"

namespace {

const attend::Tensor* find(const specs::Call& call, const char* name) {
    for (const auto& [key, tensor] : call.inputs->extra)
        if (key == name) return &tensor;
    return nullptr;
}

bool visible(const specs::Call& call, const specs::Place& at) {
    const auto& in = *call.inputs;
    const std::int64_t keys = (in.key ? *in.key : in.query).shape[2];
    const auto padded = [&](std::int64_t j) {
        const attend::Tensor* mask = find(call, "padding_mask");
        return j >= specs::length_of(in.key_lengths, at.b, keys) ||
               (mask != nullptr && mask->as<const std::uint8_t>()[at.b * keys + j] == 0);
    };
    if (padded(at.j)) return false;
    if (call.flag("zero_padded_queries") && at.position >= 0 && at.position < keys && padded(at.position)) return false;
    const attend::Tensor* ids = find(call, "segment_ids");
    if (ids == nullptr) return true;
    const auto id = [&](std::int64_t j) { return ids->as<const std::int32_t>()[at.b * keys + j]; };
    return id(at.i) >= 0 && id(at.i) == id(at.j);
}

// Padding where nothing else speaks of it, and segments where there are as many queries as keys.
void more(specs::ForwardInputs& inputs, const specs::NamedValues& options, specs::Numbers& numbers) {
    const std::int64_t batch = inputs.query.shape[0], keys = (inputs.key ? *inputs.key : inputs.query).shape[2];
    if (options.empty()) return;
    if (!inputs.key_lengths) {
        attend::Tensor mask = attend::Tensor::allocate(attend::DType::boolean, {batch, keys}).value();
        const std::int64_t tail = numbers.below(keys + 1);
        for (std::int64_t at = 0; at < mask.size(); ++at)
            mask.as<std::uint8_t>()[at] = at % keys < tail ? 1 : numbers.below(2) == 0 ? 1 : 0;
        inputs.extra.emplace_back("padding_mask", mask);
    }
    if (inputs.query.shape[2] != keys || numbers.below(2) == 0) return;
    attend::Tensor ids = attend::Tensor::allocate(attend::DType::i32, {batch, keys}).value();
    const bool mixed = numbers.below(2) == 0;
    for (std::int64_t at = 0; at < ids.size(); ++at)
        ids.as<std::int32_t>()[at] = static_cast<std::int32_t>(mixed ? numbers.below(4) - 1 : at % keys / 7 - 1);
    inputs.extra.emplace_back("segment_ids", ids);
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
                                .causal = false,
                                .more = more});

}  // namespace
