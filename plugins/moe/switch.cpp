// SPDX-License-Identifier: Apache-2.0
// switch-attention: every token goes to one attention expert, and an expert takes a bounded number of them.
//
// Paper    Fedus, Zoph, Shazeer 2021, "Switch Transformers", arXiv:2101.03961 (its experts are feed-forward; these attend)
// Formula  y_i = x_i + [i kept] p_{i,e} F_e(i),  e = argmax z_i,  z_i = x_i Wr;  C = ceil(capacity_factor n / E) kept
// Cost     at most E C^2 = capacity_factor^2 n^2 / E pairs, whatever the router does
// Differs  capacity is rounded up and counted per sequence; a dropped token is neither a query nor a key

#include "expert_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    ExpertOptions experts;
    int64_t expert_capacity, min_capacity;
    double capacity_factor;
    int32_t priority;
};

constexpr const char* priorities[] = {"position", "probability", nullptr};
constexpr OptionRow option_table[] = {
    ATTEND_EXPERT_OPTIONS(softmax_gate, true),
    option_row(ATTEND_TYPE_INT, 0, "top_k", "1", {1, 1}, nullptr, "experts of a token: 1", Field::none, 0, nullptr),
    option_real(offsetof(Options, capacity_factor), "capacity_factor", "1.25", {smallest_factor, no_limit},
                "room of an expert over its even share of the tokens, above 0", "!expert_capacity"),
    option_int(offsetof(Options, expert_capacity), "expert_capacity", "0", {0, 2147483647},
               "tokens an expert keeps; 0: by capacity_factor"),
    option_int(offsetof(Options, min_capacity), "min_capacity", "1", {1, 2147483647},
               "least number of tokens an expert keeps", "!expert_capacity"),
    option_enum(offsetof(Options, priority), "priority", "\"position\"", priorities,
                "whom a full expert keeps: the first tokens, or those of largest gate"),
};

constexpr attend_port port_table[] = {
    ATTEND_EXPERT_PORTS("", "", ""),
    ATTEND_ROUTING_PORTS("query", "queries", "return_routing", "B*Nq", "Nq"),
    ATTEND_ROUTING_PORTS("key", "keys", "return_routing", "B*Nk", "Nk"),
};

int64_t capacity(const Options& options, int64_t tokens) {
    return capacity_of(options.expert_capacity, options.capacity_factor, options.min_capacity, tokens,
                       options.experts.num_experts);
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    return check_experts(options.experts, args, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) { return experts_workspace(options.experts, args, 1); }

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    attend_router router{};
    router.top_k = 1;
    router.flags = options.priority == 0 ? 0u : ATTEND_ROUTER_KEEP_LARGEST;
    return run_experts(options.experts, args, context, 1, true, router,
                       [&](attend_router& side, int64_t tokens) { side.capacity = capacity(options, tokens); });
}

// Balanced, so that no expert is full.
void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const auto share = [&](int64_t tokens) {
        const double even = static_cast<double>(tokens) / static_cast<double>(options.experts.num_experts);
        const double most = static_cast<double>(capacity(options, tokens));
        return even < most ? even : most;
    };
    cost_of_experts(options.experts, args, share(args.desc->q_len), share(args.desc->kv_len), false, cost);
}

}  // namespace

ATTEND_MECHANISM(
    switch_,
    (described<check, workspace, forward, cost>(
        {.name = "switch-attention",
         .category = "moe",
         .title = "Switch attention",
         .summary = "A router sends each token to one expert of bounded size, which attends among its tokens; "
                    "tokens that find no room pass unchanged.",
         .reference = "Fedus, Zoph and Shazeer 2021, Switch Transformers, arXiv:2101.03961",
         .time = "O(n^2 d / E)",
         .space = "O(n d)",
         .caps = expert_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "e = argmax(router x_t);  expert e keeps its first C = ceil(capacity_factor n / E) tokens\n"
                    "y_t = x_t + gate_te attention_e(x_t among the tokens that e keeps), or x_t where dropped",
         .cost = "No expert attends among more than C tokens, so the quadratic part is at most "
                 "capacity_factor^2 / E of dense attention, however unevenly tokens are routed.",
         .use = "When the cost of a call must be known beforehand. moe-attention drops nobody; "
                "expert-choice-attention fills every expert evenly.",
         .example = "attend compute switch-attention --sequence-length 256 --heads 8 --dim 32"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
