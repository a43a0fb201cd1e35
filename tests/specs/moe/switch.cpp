// SPDX-License-Identifier: Apache-2.0
// switch-attention: each token is held by the expert of its largest logit, if there is room.
#include "specs/moe/experts.hpp"

namespace {

specs::moe::Gates one_expert(const specs::Call& call, const specs::moe::Logits& z, std::size_t experts) {
    const double even =
        call.number("capacity_factor", 1.25) * static_cast<double>(z.size()) / static_cast<double>(experts);
    double capacity = call.number("expert_capacity", 0);
    if (capacity == 0) capacity = std::max(call.number("min_capacity", 1), std::ceil(even));
    specs::moe::Gates gates(experts, std::vector<double>(z.size(), -1.0));
    // In order of priority: by position, or by the gate, which the runtime holds in float32.
    std::vector<double> best;
    std::vector<float> rounded;
    std::vector<std::size_t> expert, order(z.size());
    for (std::size_t i = 0; i < z.size(); ++i) {
        expert.push_back(specs::moe::ranked(z[i])[0]);
        best.push_back(specs::moe::probabilities(call, z[i])[expert.back()]);
        rounded.push_back(static_cast<float>(best.back()));
        order[i] = i;
    }
    if (call.word("priority") == "probability") order = specs::moe::ranked(rounded);
    std::vector<double> held(experts, 0.0);
    for (const std::size_t i : order)
        if (held[expert[i]]++ < capacity) gates[expert[i]][i] = best[i];
    return gates;
}

std::map<std::string, std::string> with_residual() {
    auto exempt = specs::moe::exempt;
    exempt["empty rows"] = exempt["empty tensors"] = "a token without keys is its own result";
    return exempt;
}

const specs::Registration spec(
    {.mechanism = "switch-attention",
     .oracle = [](const specs::Call& call) { return specs::moe::attend_experts("switch-attention", call, one_expert); },
     .variants = {{{"causal", true}},
                  {{"residual", false}},
                  {{"top_k", 1}},
                  {{"num_experts", 4}, {"capacity_factor", 4}},
                  {{"num_experts", 3}, {"capacity_factor", 0.5}},
                  {{"num_experts", 4}, {"capacity_factor", 0.01}, {"min_capacity", 2}},
                  {{"num_experts", 4}, {"expert_capacity", 3}},
                  {{"num_experts", 3}, {"priority", "probability"}},
                  {{"num_experts", 2}, {"priority", "probability"}, {"expert_capacity", 2}},
                  {{"num_experts", 1}},
                  {{"rope", "half"}},
                  {{"rope", "interleaved"}, {"rope_dim", 4}, {"rope_base", 100}},
                  {{"expert_heads", 2}, {"expert_dim", 4}, {"expert_value_dim", 3}},
                  {{"window_size", 4}},
                  {{"softcap", 0.5}},
                  {{"weight_seed", 99}}},
     .adds_token = true,
     .exempt = with_residual(),
     .tolerance = 1e-5});

}  // namespace
