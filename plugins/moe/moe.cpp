// SPDX-License-Identifier: Apache-2.0
// moe-attention: each token is processed by its top-k attention experts.
//
// Paper    Zhang et al. 2022, "Mixture of Attention Heads", arXiv:2210.05144 (scope = global)
// Formula  y_i = sum over e in T_i of g_ie F_e(i),  F_e(i) = sum_a A[e,a,i] Wo[e,a],  T_i = top-k experts by z_i = x_i Wr
//          routed: an expert attends only among the tokens routed to it; global: over all keys
// Cost     routed, balanced: O(k^2 n^2 / E) for the attention, O(n k M d) for the projections
// Differs  scope = routed is this project's; the paper's membership by gate > 0 is not followed: the top-k set stays

#include "expert_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    ExpertOptions experts;
    OptionalInt top_k;
    int32_t gate_norm, scope;
};

constexpr const char* scopes[] = {"routed", "global", nullptr};
constexpr const char* gate_norms[] = {"topk", "none", nullptr};
constexpr OptionRow option_table[] = {
    ATTEND_EXPERT_OPTIONS(gates, false),
    option_maybe_int(offsetof(Options, top_k), "top_k", {1, 1024},
                     "experts of a token, 1 to num_experts; default min(2, E)"),
    option_enum(offsetof(Options, scope), "scope", "\"routed\"", scopes,
                "keys of an expert: those routed to it, or all"),
    option_row(ATTEND_TYPE_BOOL, 0, "share_kv", nullptr, {0, 1}, nullptr,
               "one key and one value projection for all experts; default: true with scope=global", Field::none, 0,
               nullptr),
    option_enum(offsetof(Options, gate_norm), "gate_norm", "\"topk\"", gate_norms,
                "topk: gates of a token sum to 1; none: as the router gives them"),
};

constexpr attend_port port_table[] = {
    ATTEND_EXPERT_PORTS("scope=routed: ", "or(share_kv,scope): 1,expert_heads,Hkv*D,or(expert_dim,D) | ",
                        "or(share_kv,scope): 1,expert_heads,Hkv*Dv,or(expert_value_dim,Dv) | "),
    ATTEND_ROUTING_PORTS("query", "queries", "return_routing", "B*Nq*or(top_k,min(2,num_experts))", "Nq"),
    ATTEND_ROUTING_PORTS("key", "keys", "return_routing & scope=routed", "B*Nk*or(top_k,min(2,num_experts))", "Nk"),
};

int64_t top_k(const Options& options) {
    const int64_t experts = options.experts.num_experts;
    return options.top_k.given ? options.top_k.value : experts < 2 ? experts : 2;
}
bool is_routed(const Options& options) { return options.scope == 0; }

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    if (top_k(options) > options.experts.num_experts)
        return (Message() << "moe-attention: option \"top_k\" is " << top_k(options) << "; accepted: 1 to "
                          << options.experts.num_experts << " (num_experts)")
            .fail(error, ATTEND_BAD_OPTION, "top_k");
    return check_experts(options.experts, args, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return experts_workspace(options.experts, args, top_k(options));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    attend_router router{};
    router.top_k = top_k(options);
    router.normalise_gates = options.gate_norm == 0;
    return run_experts(options.experts, args, context, router.top_k, is_routed(options), router,
                       [](attend_router&, int64_t) {});
}

// Balanced: each of the E experts attends over k n / E of the queries and, routed, of the keys.
void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const double share = static_cast<double>(top_k(options)) / static_cast<double>(options.experts.num_experts);
    const double queries = share * static_cast<double>(args.desc->q_len), keys = static_cast<double>(args.desc->kv_len);
    const attend_value* share_kv = attend_find_option(args.values, "share_kv");
    const bool shared =
        share_kv == nullptr || share_kv->type == 0 || share_kv->u.i != 0;  // the default of scope=global
    cost_of_experts(options.experts, args, queries, is_routed(options) ? share * keys : keys,
                    !is_routed(options) && shared, cost);
}

}  // namespace

ATTEND_MECHANISM(
    moe, (described<check, workspace, forward, cost>(
             {.name = "moe-attention",
              .category = "moe",
              .title = "Mixture-of-experts attention",
              .summary = "A router sends each token to a few experts; every expert owns its projections and attends "
                         "among its tokens.",
              .reference = "Zhang et al. 2022, Mixture of Attention Heads, arXiv:2210.05144",
              .time = "O(k^2 n^2 d / E)",
              .space = "O(n d)",
              .caps = expert_caps,
              .numerics = ATTEND_OWN_DEFINITION,
              .formula = "r_t = softmax(router x_t);  token t goes to its k best experts e\n"
                         "y_t = sum_e gate_te attention_e(x_t among the tokens of expert e)",
              .cost = "Each expert attends among its own tokens only: with E experts and k choices the quadratic part "
                      "falls to k^2 / E of dense attention, while the weights grow with E.",
              .use = "To give a model more parameters at little cost per token, with trained routers. A single dense "
                     "layer is standard-mha.",
              .example = "attend compute moe-attention --sequence-length 256 --heads 8 --dim 32"},
             option_table, port_table)))

}  // namespace attend::ATTEND_ISA
