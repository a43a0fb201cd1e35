// SPDX-License-Identifier: Apache-2.0
// Core form: attention to the media that a text token may see, times tanh of the gate, on top of the residual.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

using specs::Call;
using specs::Place;

const attend::Tensor* find(const std::vector<std::pair<std::string, attend::Tensor>>& list, const char* name) {
    for (const auto& [known, tensor] : list)
        if (known == name) return &tensor;
    return nullptr;
}

specs::Expected oracle(const Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const attend::Tensor* time = find(in.extra, "text_time");
    const attend::Tensor* index = find(in.extra, "media_index");
    const std::string mask = call.optional_given("media_mask") ? call.word("media_mask")
                             : time != nullptr                 ? "immediate"
                                                               : "none";
    const auto tokens = static_cast<std::int64_t>(call.number("tokens_per_media", 1));
    const std::int64_t nq = in.query.shape[2], nk = in.key->shape[2];
    specs::Expected expected = specs::dense(
        call,
        [&](const Place& at) {
            if (mask == "none") return true;
            const std::int64_t medium =
                index != nullptr ? index->as<const std::int32_t>()[at.b * nk + at.j] : at.j / tokens + 1;
            const std::int64_t now = time->as<const std::int32_t>()[at.b * nq + at.i];
            return mask == "immediate" ? now == medium : now >= medium;
        },
        false, false);
    const attend::Tensor* gate = find(in.weights, "attn_gate");
    const attend::Tensor* residual = find(in.extra, "residual");
    const oracle::View base{residual != nullptr ? residual : &in.query};
    const auto& shape = in.query.shape;
    const std::int64_t width = (in.value ? *in.value : *in.key).shape[3];
    std::size_t at = 0;
    for (std::int64_t b = 0; b < shape[0]; ++b)
        for (std::int64_t h = 0; h < shape[1]; ++h)
            for (std::int64_t i = 0; i < shape[2]; ++i)
                for (std::int64_t d = 0; d < width; ++d, ++at) {
                    const double g = gate == nullptr
                                         ? 0.0
                                         : static_cast<double>(gate->as<const float>()[gate->shape[0] == 1 ? 0 : h]);
                    expected.o[at] = base(b, h, i, d) + std::tanh(g) * expected.o[at];
                }
    return expected;
}

// Text between media of uneven lengths, gates of both signs, a residual of its own.
void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const auto given = [&](const char* name) {
        return std::any_of(options.begin(), options.end(), [&](const auto& option) { return option.first == name; });
    };
    const std::int64_t batch = inputs.query.shape[0], heads = inputs.query.shape[1], nq = inputs.query.shape[2],
                       nk = inputs.key->shape[2];
    const auto counter = [&](std::int64_t length, std::int64_t first) {
        attend::Tensor tensor = attend::Tensor::allocate(attend::DType::i32, {batch, length}).value();
        for (std::int64_t b = 0; b < batch; ++b) {
            auto now = static_cast<std::int32_t>(first);
            for (std::int64_t i = 0; i < length; ++i) {
                now += numbers.below(4) == 0 ? 1 : 0;
                tensor.as<std::int32_t>()[b * length + i] = now;
            }
        }
        return tensor;
    };
    inputs.extra.emplace_back("text_time", counter(nq, 0));
    if (!given("tokens_per_media")) inputs.extra.emplace_back("media_index", counter(nk, 1));
    inputs.extra.emplace_back("residual", numbers.normal({batch, heads, nq, inputs.value->shape[3]}));
    inputs.weights.emplace_back("attn_gate", numbers.normal({given("gate_shape") ? heads : 1}));
}

const specs::Registration spec({.mechanism = "gated-cross-attention",
                                .oracle = oracle,
                                .variants = {{{"media_mask", "previous"}},
                                             {{"media_mask", "previous"}, {"tokens_per_media", 1}},
                                             {{"media_mask", "immediate"}, {"tokens_per_media", 1}},
                                             {{"media_mask", "none"}},
                                             {{"gate_shape", "head"}, {"softcap", 3.0}},
                                             {{"scale", -0.2}, {"dropout", 0.5}, {"seed", 1}}},
                                .causal = false,
                                .exempt = {{"ones", "the residual is added"},
                                           {"scores", "the residual is added"},
                                           {"empty rows", "they are the residual"},
                                           {"empty tensors", "rows without keys are the residual"}},
                                .more = more});

}  // namespace
