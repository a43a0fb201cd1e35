// SPDX-License-Identifier: Apache-2.0
// expert-choice-attention: each expert holds the tokens that score highest for it.
#include "specs/moe/experts.hpp"

namespace {

specs::moe::Gates own_tokens(const specs::Call& call, const specs::moe::Logits& z, std::size_t experts) {
    const double even =
        call.number("capacity_factor", 2) * static_cast<double>(z.size()) / static_cast<double>(experts);
    double capacity = call.number("expert_capacity", 0);
    if (capacity == 0) capacity = std::max(call.number("min_tokens", 1), std::ceil(even));
    const auto most = static_cast<std::size_t>(std::min(capacity, static_cast<double>(z.size())));
    const bool sigmoid = call.word("gate") == "sigmoid";
    specs::moe::Gates gates(experts, std::vector<double>(z.size(), -1.0));
    std::vector<std::vector<double>> p;
    for (const std::vector<float>& row : z) p.push_back(specs::moe::probabilities(call, row));
    for (std::size_t e = 0; e < experts; ++e) {
        std::vector<float> rank;
        for (std::size_t i = 0; i < z.size(); ++i) rank.push_back(sigmoid ? z[i][e] : static_cast<float>(p[i][e]));
        if (call.flag("include_first") && !rank.empty()) rank[0] = std::numeric_limits<float>::infinity();
        const std::vector<std::size_t> order = specs::moe::ranked(rank);
        for (std::size_t at = 0; at < most; ++at) gates[e][order[at]] = p[order[at]][e];
    }
    return gates;
}

const specs::Registration spec({.mechanism = "expert-choice-attention",
                                .oracle =
                                    [](const specs::Call& call) {
                                        return specs::moe::attend_experts("expert-choice-attention", call, own_tokens);
                                    },
                                .variants = {{{"causal", true}, {"allow_non_causal_routing", true}},
                                             {{"residual", true}},
                                             {{"gate", "sigmoid"}},
                                             {{"num_experts", 4}, {"capacity_factor", 1}},
                                             {{"num_experts", 3}, {"capacity_factor", 0.5}, {"gate", "sigmoid"}},
                                             {{"num_experts", 4}, {"capacity_factor", 0.01}, {"min_tokens", 2}},
                                             {{"num_experts", 4}, {"expert_capacity", 3}},
                                             {{"num_experts", 2}, {"expert_capacity", 100000}},
                                             {{"num_experts", 3}, {"include_first", true}, {"expert_capacity", 2}},
                                             {{"num_experts", 1}},
                                             {{"rope", "half"}},
                                             {{"rope", "interleaved"}, {"rope_dim", 4}, {"rope_base", 100}},
                                             {{"expert_heads", 2}, {"expert_dim", 4}, {"expert_value_dim", 3}},
                                             {{"window_size", 4}},
                                             {{"softcap", 0.5}},
                                             {{"weight_seed", 99}}},
                                .causal = false,
                                .exempt = specs::moe::exempt,
                                .tolerance = 1e-5});

}  // namespace
