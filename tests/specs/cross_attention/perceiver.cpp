// SPDX-License-Identifier: Apache-2.0
// Core form: latents read keys and values, queries read the latents. Masks and biases belong to the first stage.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

using attend::Tensor;
using specs::Call;

// normal(0, 0.02) as the initialiser of the weights table draws it.
Tensor drawn(const char* name, std::uint64_t seed, std::vector<std::int64_t> shape) {
    Tensor tensor = Tensor::allocate(attend::DType::f32, std::move(shape)).value();
    std::uint32_t hash = 2166136261u;
    for (const char* c = name; *c != '\0'; ++c) hash = (hash ^ static_cast<std::uint8_t>(*c)) * 16777619u;
    for (std::int64_t e = 0; e < tensor.size(); ++e) {
        const auto word = [&](int lane) {
            return oracle::philox_word(seed, static_cast<std::uint32_t>(e / 4), 0, hash, 2u << 24, lane);
        };
        const int first = static_cast<int>(e % 4) / 2 * 2;
        const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(word(first) >> 8) + 1.0) * 0x1p-24)),
                     angle = 6.283185307179586476925 * static_cast<double>(word(first + 1) >> 8) * 0x1p-24;
        const auto z = static_cast<float>(e % 2 == 0 ? radius * std::cos(angle) : radius * std::sin(angle));
        tensor.as<float>()[e] = static_cast<float>(0.02 * static_cast<double>(z));
    }
    return tensor;
}

Tensor latents(const Call& call, const char* name, const char* seeded) {
    const attend::ForwardInputs& in = *call.inputs;
    for (const auto& [known, tensor] : in.weights)
        if (known == name) return tensor;
    const std::int64_t heads = in.query.shape.empty() ? in.key->shape[1] : in.query.shape[1];
    return drawn(seeded, static_cast<std::uint64_t>(call.number("weight_seed", 0)),
                 {heads, static_cast<std::int64_t>(call.number("num_latents", 512)), in.key->shape[3]});
}

Tensor repeated(const Tensor& tensor, std::int64_t batch) {
    const auto& s = tensor.shape;
    return tensor.view({batch, s[0], s[1], s[2]}, {0, s[1] * s[2], s[2], 1});
}

specs::Expected oracle_of(const Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const std::int64_t batch = in.key->shape[0];
    attend::ForwardInputs first = in;
    first.query = repeated(latents(call, "latent_query", "perceiver-attention/latentQuery"), batch);
    first.query_lengths.reset();
    const Call encode{&first, call.options};
    specs::Expected read = specs::dense(encode, specs::everywhere, false, false);
    if (in.query.shape.empty()) return read;
    attend::ForwardInputs second = in;
    second.key = repeated(latents(call, "latent_key", "perceiver-attention/latentKey"), batch);
    const auto& shape = second.key->shape;
    const std::int64_t width = in.value->shape[3];
    second.value = Tensor::allocate(attend::DType::f32, {batch, shape[1], shape[2], width}).value();
    second.mask.reset(), second.bias.reset(), second.key_lengths.reset();
    const Call decode{&second, call.options};
    oracle::Dense problem = specs::problem_of(decode, specs::everywhere, false, false);
    problem.rng_offset += 1;
    problem.v = [&](std::int64_t b, std::int64_t h, std::int64_t j, std::int64_t d) {
        return read.o[static_cast<std::size_t>(((b * shape[1] + h) * shape[2] + j) * width + d)];
    };
    return specs::solved(problem);
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const auto given = [&](const char* name) {
        return std::any_of(options.begin(), options.end(), [&](const auto& option) { return option.first == name; });
    };
    if (given("num_latents")) {  // without queries
        inputs.query = Tensor{};
        inputs.query_lengths.reset();
        return;
    }
    if (numbers.below(3) == 0) return;  // the default latents
    const std::int64_t heads = inputs.query.shape[1], count = 1 + numbers.below(20), width = inputs.key->shape[3];
    inputs.weights.emplace_back("latent_query", numbers.normal({heads, count, width}));
    inputs.weights.emplace_back("latent_key", numbers.normal({heads, count, width}));
    if (inputs.mask || inputs.bias) return;
    const std::int64_t nk = inputs.key->shape[2];
    Tensor mask = Tensor::allocate(attend::DType::boolean, {1, heads, count, nk}).value();
    for (std::int64_t at = 0; at < mask.size(); ++at) mask.as<std::uint8_t>()[at] = numbers.below(4) != 0;
    inputs.mask = mask;
    inputs.bias = numbers.normal({1, 1, count, nk});
}

const specs::Registration spec({.mechanism = "perceiver-attention",
                                .oracle = oracle_of,
                                .variants = {{{"softcap", 1.5}},
                                             {{"scale", -0.4}},
                                             {{"num_latents", 5}},
                                             {{"num_latents", 3}, {"softcap", 0.3}, {"weight_seed", 4}},
                                             {{"dropout", 0.5}, {"seed", 1}},
                                             {{"dropout", 0.25}, {"seed", 2}, {"rng_offset", 9}}},
                                .masks = false,
                                .causal = false,
                                .exempt = {{"scores", "they are the weights of the latents"},
                                           {"empty rows", "latents that have read nothing are there to be read"}},
                                .more = more});

}  // namespace
