// SPDX-License-Identifier: Apache-2.0
// moe-attention: each token is held by its top-k experts.
#include "specs/moe/experts.hpp"

namespace {

specs::moe::Gates top_k(const specs::Call& call, const specs::moe::Logits& z, std::size_t experts) {
    const auto chosen =
        static_cast<std::size_t>(call.number("top_k", static_cast<double>(std::min<std::size_t>(2, experts))));
    specs::moe::Gates gates(experts, std::vector<double>(z.size(), -1.0));
    for (std::size_t i = 0; i < z.size(); ++i) {
        const std::vector<double> p = specs::moe::probabilities(call, z[i]);
        const std::vector<std::size_t> order = specs::moe::ranked(z[i]);
        double sum = 0.0;
        for (std::size_t rank = 0; rank < chosen; ++rank) sum += p[order[rank]];
        for (std::size_t rank = 0; rank < chosen; ++rank)
            gates[order[rank]][i] = call.word("gate_norm") == "none" ? p[order[rank]] : p[order[rank]] / sum;
    }
    return gates;
}

const specs::Registration spec(
    {.mechanism = "moe-attention",
     .oracle = [](const specs::Call& call) { return specs::moe::attend_experts("moe-attention", call, top_k); },
     .variants = {{{"causal", true}},
                  {{"num_experts", 1}},
                  {{"num_experts", 4}, {"top_k", 3}},
                  {{"scope", "global"}},
                  {{"scope", "global"}, {"share_kv", false}},
                  {{"share_kv", true}},
                  {{"gate", "sigmoid"}},
                  {{"gate_norm", "none"}},
                  {{"rope", "half"}},
                  {{"rope", "interleaved"}, {"rope_dim", 4}, {"rope_base", 100}},
                  {{"expert_heads", 2}, {"expert_dim", 4}, {"expert_value_dim", 3}},
                  {{"window_size", 4}},
                  {{"softcap", 0.5}},
                  {{"residual", true}},
                  {{"weight_seed", 99}},
                  {{"num_experts", 3}, {"top_k", 3}}},
     .exempt = specs::moe::exempt,
     .tolerance = 1e-5});

}  // namespace
