// SPDX-License-Identifier: Apache-2.0
// expert-choice-attention: every expert picks its own tokens and attends among them.
//
// Paper    Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv:2202.09368; as attention: Piekos,
//          Csordas, Schmidhuber 2025, "Mixture of Sparse Attention", arXiv:2505.00315 (gate = sigmoid)
// Formula  y_i = sum over e with i in I_e of a_ie F_e(i),  I_e = the C tokens of largest a_ie,  a_i = softmax(x_i Wr)
// Cost     E C^2 = capacity_factor^2 n^2 / E pairs, the same for every expert
// Differs  the sigmoid gate ranks logits, since the gate itself saturates; padding is never picked

#include "expert_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    ExpertOptions experts;
    int64_t expert_capacity, min_tokens;
    double capacity_factor;
    int32_t include_first, allow_non_causal_routing;
};

constexpr OptionRow option_table[] = {
    ATTEND_EXPERT_OPTIONS(gates, false),
    option_real(offsetof(Options, capacity_factor), "capacity_factor", "2", {smallest_factor, no_limit},
                "experts that a token has on average, above 0", "!expert_capacity"),
    option_int(offsetof(Options, expert_capacity), "expert_capacity", "0", {0, 2147483647},
               "tokens of an expert, at most all of them; 0: by capacity_factor"),
    option_int(offsetof(Options, min_tokens), "min_tokens", "1", {1, 2147483647}, "least number of tokens of an expert",
               "!expert_capacity"),
    option_bool(offsetof(Options, include_first), "include_first", false, "every expert has token 0"),
    option_bool(offsetof(Options, allow_non_causal_routing), "allow_non_causal_routing", false,
                "accept causal although who is chosen depends on later tokens"),
};

constexpr attend_port port_table[] = {
    ATTEND_EXPERT_PORTS("", "", ""),
    ATTEND_ROUTING_PORTS("query", "queries", "return_routing", "B*Nq*num_experts", "Nq"),
    ATTEND_ROUTING_PORTS("key", "keys", "return_routing", "B*Nk*num_experts", "Nk"),
};

int64_t capacity(const Options& options, int64_t tokens) {
    const int64_t wanted = capacity_of(options.expert_capacity, options.capacity_factor, options.min_tokens, tokens,
                                       options.experts.num_experts);
    return wanted < tokens ? wanted : tokens;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    if ((args.desc->flags & ATTEND_PLAN_CAUSAL) && !options.allow_non_causal_routing)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"causal\" is true, but experts choose among all tokens, later ones too; accepted: "
                           "causal=false, or allow_non_causal_routing=true",
                           "causal");
    return check_experts(options.experts, args, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return experts_workspace(options.experts, args, options.experts.num_experts);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    attend_router router{};
    router.top_k = 1;
    router.choice = ATTEND_EXPERTS_CHOOSE;
    router.flags = options.include_first ? ATTEND_ROUTER_FIRST_TOKEN : 0u;
    return run_experts(options.experts, args, context, options.experts.num_experts, true, router,
                       [&](attend_router& side, int64_t tokens) { side.capacity = capacity(options, tokens); });
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    cost_of_experts(options.experts, args, static_cast<double>(capacity(options, args.desc->q_len)),
                    static_cast<double>(capacity(options, args.desc->kv_len)), false, cost);
}

}  // namespace

ATTEND_MECHANISM(
    expert_choice,
    (described<check, workspace, forward, cost>(
        {.name = "expert-choice-attention",
         .category = "moe",
         .title = "Expert-choice attention",
         .summary = "Every expert picks the tokens that score highest for it and attends among them, so all experts "
                    "have equally much to do.",
         .reference = "Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, arXiv:2202.09368; Piekos, "
                      "Csordas and Schmidhuber 2025, Mixture of Sparse Attention, arXiv:2505.00315",
         .time = "O(n^2 d / E)",
         .space = "O(n d + n E)",
         .caps = expert_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula =
             "a_te = softmax over experts of router x_t;  expert e takes its C = ceil(capacity_factor n / E) best\n"
             "y_t = sum over experts that took t of a_te attention_e(x_t among the tokens of e)",
         .cost = "Every expert attends among exactly C tokens: capacity_factor^2 / E of dense attention, without "
                 "drops and without idle experts.",
         .use = "For encoders and other calls that see the whole sequence: the choice looks at all tokens, so it is "
                "not for generating text. There take moe-attention or switch-attention with a fixed expert_capacity.",
         .example = "attend compute expert-choice-attention --sequence-length 256 --heads 8 --dim 32"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
