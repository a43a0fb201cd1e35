// SPDX-License-Identifier: Apache-2.0
// moe-attention: each token is processed by its top-k attention experts.
//
// Paper    Zhang et al. 2022, "Mixture of Attention Heads", arXiv:2210.05144 (scope = global)
// Formula  y_i = sum over e in T_i of g_ie F_e(i),  F_e(i) = sum_a A[e,a,i] Wo[e,a],  T_i = top-k experts by z_i = x_i Wr
//          routed: an expert attends only among the tokens routed to it; global: over all keys
// Cost     routed, balanced: O(k^2 n^2 / E) for the attention, O(n k M d) for the projections
// Differs  scope = routed is this project's; the paper's membership by gate > 0 is not followed: the top-k set stays

#include "attend/author/routing.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int64_t num_experts, expert_heads, rope_dim;
    OptionalInt expert_dim, expert_value_dim, top_k;
    double rope_base, router_noise;
    int32_t gate, gate_norm, residual, rope, router_bias, scope, return_routing;
};

constexpr const char* gates[] = {"softmax", "sigmoid", nullptr};
constexpr const char* ropes[] = {"none", "half", "interleaved", nullptr};
constexpr const char* scopes[] = {"routed", "global", nullptr};
constexpr const char* gate_norms[] = {"topk", "none", nullptr};
constexpr OptionRow option_table[] = {
    option_int(offsetof(Options, num_experts), "num_experts", "8", {1, 1024}, "experts E"),
    option_int(offsetof(Options, expert_heads), "expert_heads", "1", {1, 256}, "heads of an expert"),
    option_maybe_int(offsetof(Options, expert_dim), "expert_dim", {1, 1024}, "width of an expert's heads; default D"),
    option_maybe_int(offsetof(Options, expert_value_dim), "expert_value_dim", {1, 1024},
                     "width of its values; default Dv"),
    option_enum(offsetof(Options, gate), "gate", "\"softmax\"", gates, "gates from the router's logits"),
    option_maybe_int(offsetof(Options, top_k), "top_k", {1, 1024},
                     "experts of a token, 1 to num_experts; default min(2, E)"),
    option_enum(offsetof(Options, scope), "scope", "\"routed\"", scopes,
                "keys of an expert: those routed to it, or all"),
    option_row(ATTEND_TYPE_BOOL, 0, "share_kv", nullptr, {0, 1}, nullptr,
               "one key and one value projection for all experts; default: true with scope=global", Field::none, 0,
               nullptr),
    option_enum(offsetof(Options, gate_norm), "gate_norm", "\"topk\"", gate_norms,
                "topk: gates of a token sum to 1; none: as the router gives them"),
    option_bool(offsetof(Options, residual), "residual", false, "add the token itself to its result"),
    option_enum(offsetof(Options, rope), "rope", "\"none\"", ropes,
                "rotary positions on queries and keys of every expert head"),
    option_real(offsetof(Options, rope_base), "rope_base", "10000", {1.0000000000000002, no_limit},
                "base of the rotary angles, above 1", "rope!=none"),
    option_int(offsetof(Options, rope_dim), "rope_dim", "0", {0, 1024}, "leading channels that rotate, even; 0: all",
               "rope!=none"),
    option_bool(offsetof(Options, router_bias), "router_bias", false, "bias of the router, on both sides"),
    option_real(offsetof(Options, router_noise), "router_noise", "0", {0, 0.99999999999999988},
                "noise r: the router's input times 1 - r + 2 r u; below 1"),
    option_bool(offsetof(Options, return_routing), "return_routing", false, "return the routing report"),
    ATTEND_VISIBILITY_OPTIONS(" | rope!=none"),
    common::scale("factor before softmax; left out or 0: 1/sqrt(expert_dim)"),
    common::softcap(),
    ATTEND_WINDOW_OPTIONS,
    common::dropout(),
    common::seed("seed of dropout and router noise", "dropout | router_noise"),
    common::rng_offset(),
    common::weight_seed(nullptr),
};

constexpr attend_port port_table[] = {
    input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "queries; the heads of a token are merged"),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    weight_port("wr", "Hq*D,num_experts", "normal(0,0.02) as Wr", "router [in, out]"),
    weight_port("wr_k", "scope=routed: Hkv*D,num_experts", "Hkv*D=Hq*D: same(wr) | normal(0,0.02) as WrK",
                "router of the keys [in, out]"),
    weight_port("br", "router_bias: num_experts", "zeros", "router bias"),
    weight_port("wq", "num_experts,expert_heads,Hq*D,or(expert_dim,D)", "xavierUniform as Wq",
                "query projections [in, out]"),
    weight_port(
        "wk",
        "or(share_kv,scope): 1,expert_heads,Hkv*D,or(expert_dim,D) | num_experts,expert_heads,Hkv*D,or(expert_dim,D)",
        "xavierUniform as Wk", "key projections [in, out]"),
    weight_port("wv",
                "or(share_kv,scope): 1,expert_heads,Hkv*Dv,or(expert_value_dim,Dv) | "
                "num_experts,expert_heads,Hkv*Dv,or(expert_value_dim,Dv)",
                "xavierUniform as Wv", "value projections [in, out]"),
    weight_port("wo", "num_experts,expert_heads,or(expert_value_dim,Dv),Hq*Dv",
                "xavierUniform(1/sqrt(expert_heads)) as Wo", "output projections [in, out]"),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    ATTEND_ROUTING_PORTS("query", "queries", "return_routing", "B*Nq*or(top_k,min(2,num_experts))", "Nq"),
    ATTEND_ROUTING_PORTS("key", "keys", "return_routing & scope=routed", "B*Nk*or(top_k,min(2,num_experts))", "Nk"),
};

int64_t top_k(const Options& options) {
    return options.top_k.given ? options.top_k.value : options.num_experts < 2 ? options.num_experts : 2;
}
bool is_routed(const Options& options) { return options.scope == 0; }

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (top_k(options) > options.num_experts)
        return (Message() << "moe-attention: option \"top_k\" is " << top_k(options) << "; accepted: 1 to "
                          << options.num_experts << " (num_experts)")
            .fail(error, ATTEND_BAD_OPTION, "top_k");
    const int64_t width = options.expert_dim.given ? options.expert_dim.value : desc.head_dim;
    const int64_t rotated = options.rope_dim > 0 ? options.rope_dim : width;
    if (options.rope != 0 && (rotated % 2 != 0 || rotated > width))
        return attend_fail(
            error, ATTEND_BAD_OPTION,
            "option \"rope_dim\" is odd or wider than the expert's heads; accepted: an even number up to expert_dim",
            "rope_dim");
    if (options.residual && desc.value_dim != desc.head_dim)
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "option \"residual\" adds the token to its result; accepted: values as wide as queries",
                           "residual");
    for (const uint32_t role : {ATTEND_MASK, ATTEND_BIAS})
        if (const attend_tensor* tensor = attend_find(&desc.bindings, role); tensor && tensor->shape[1] != 1)
            return attend_fail(error, ATTEND_BAD_SHAPE,
                               "mask and bias act on all experts alike; accepted: head extent 1",
                               role == ATTEND_MASK ? "mask" : "bias");
    return ATTEND_OK;
}

// The experts of a call; tensors of `args` where it runs, described from sizes where it is planned.
attend_experts experts_of(const Options& options, const attend_plan_desc& desc) {
    attend_experts experts{};
    experts.desc = &desc;
    experts.experts = options.num_experts;
    experts.heads = options.expert_heads;
    experts.key_dim = options.expert_dim.given ? options.expert_dim.value : desc.head_dim;
    experts.value_dim = options.expert_value_dim.given ? options.expert_value_dim.value : desc.value_dim;
    experts.rope = static_cast<uint32_t>(options.rope);
    experts.rope_base = options.rope_base;
    experts.rope_dim = options.rope == 0 ? 0 : options.rope_dim > 0 ? options.rope_dim : experts.key_dim;
    experts.residual = options.residual != 0;
    return experts;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    Context counting{};
    Carve carve(counting);
    const RoutingLists lists(*args.desc, options.num_experts, top_k(options), carve);
    return static_cast<uint64_t>(0 - carve.left) + experts_workspace(experts_of(options, *args.desc));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    attend_experts experts = experts_of(options, desc);
    bind_experts(experts, args);
    const attend_tensor* router_bias = attend_find_name(args.weights, "br");
    const attend_router query_router{args.query,
                                     attend_find_name(args.weights, "wr"),
                                     router_bias,
                                     options.num_experts,
                                     top_k(options),
                                     static_cast<uint32_t>(options.gate),
                                     options.gate_norm == 0,
                                     options.router_noise,
                                     args.exec->seed,
                                     0,
                                     0};
    attend_router key_router = query_router;
    key_router.tokens = args.key, key_router.weight = attend_find_name(args.weights, "wr_k"), key_router.side = 1;
    Carve carve(context);
    RoutingLists lists(desc, options.num_experts, top_k(options), carve);
    const Context engines = carve.rest(context);
    int64_t query_rows = 0, key_rows = 0;
    for (int64_t item = 0; item < desc.batch; ++item) {
        const int64_t queries = length_of(args.query_lengths, item, desc.q_len),
                      keys = length_of(args.key_lengths, item, desc.kv_len);
        const int64_t offset = (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) ? keys - queries : desc.causal_offset;
        if (attend_status status =
                ATTEND_KERNEL(attend_route)(&query_router, item, queries, &lists.query, context.error))
            return status;
        if (is_routed(options))
            if (attend_status status = ATTEND_KERNEL(attend_route)(&key_router, item, keys, &lists.key, context.error))
                return status;
        if (options.return_routing) {
            report_routing(args, query_router, lists.query, "query", item, query_rows);
            if (is_routed(options)) report_routing(args, key_router, lists.key, "key", item, key_rows);
        }
        const attend_status status = ATTEND_KERNEL(attend_run_experts)(
            &experts, item, offset, &lists.query, is_routed(options) ? &lists.key : nullptr, keys, &engines);
        if (status != ATTEND_OK) return status;
    }
    set_rows(args, "routing.query.assignments", query_rows);
    set_rows(args, "routing.query.gates", query_rows);
    set_rows(args, "routing.key.assignments", key_rows);
    set_rows(args, "routing.key.gates", key_rows);
    return ATTEND_OK;
}

// Balanced: each of the E experts attends over k n / E of the queries and, routed, of the keys.
void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const attend_experts x = experts_of(options, desc);
    const auto e = static_cast<double>(options.num_experts), k = static_cast<double>(top_k(options)),
               he = static_cast<double>(x.heads), nq = static_cast<double>(desc.q_len),
               nk = static_cast<double>(desc.kv_len), b = static_cast<double>(desc.batch),
               de = static_cast<double>(x.key_dim), dv = static_cast<double>(x.value_dim);
    const auto mq = static_cast<double>(desc.num_q_heads * desc.head_dim),
               mk = static_cast<double>(desc.num_kv_heads * desc.head_dim),
               mv = static_cast<double>(desc.num_kv_heads * desc.value_dim),
               mo = static_cast<double>(desc.num_q_heads * desc.value_dim);
    const double keys_per_query = is_routed(options) ? k * nk / e : nk, key_rows = is_routed(options) ? k * nk : nk;
    cost.flops = b * (2.0 * k * nq * keys_per_query * he * (de + dv) + 2.0 * k * nq * he * (mq * de + dv * mo) +
                      2.0 * key_rows * he * (mk * de + mv * dv) + 2.0 * nq * mq * e);
    cost.bytes = 4.0 * b * (nq * (mq + mo) + nk * (mk + mv)) + 4.0 * e * he * (mq * de + mk * de + mv * dv + dv * mo);
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
              .caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_MASK | ATTEND_CAP_BIAS | ATTEND_CAP_GQA | ATTEND_CAP_MQA |
                      ATTEND_CAP_CROSS | ATTEND_CAP_WINDOW | ATTEND_CAP_SOFTCAP | ATTEND_CAP_DROPOUT |
                      ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_ROUTED |
                      ATTEND_CAP_NEEDS_WEIGHTS,
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
