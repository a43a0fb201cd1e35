// SPDX-License-Identifier: Apache-2.0
// What attention experts share, whoever chooses their tokens: options, weights, refusals, the call, its cost.
#pragma once

#include "attend/author/routing.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {

struct ExpertOptions {
    int64_t num_experts, expert_heads, rope_dim;
    OptionalInt expert_dim, expert_value_dim;
    double rope_base, router_noise;
    int32_t gate, residual, rope, router_bias, return_routing;
};

constexpr double smallest_factor = 2.2250738585072014e-308;  // what is above 0

constexpr const char* gates[] = {"softmax", "sigmoid", nullptr};
constexpr const char* softmax_gate[] = {"softmax", nullptr};
constexpr const char* ropes[] = {"none", "half", "interleaved", nullptr};

// Rows of the member `experts` of a mechanism's Options.
#define ATTEND_EXPERT_SIZES                                                                                       \
    option_int(offsetof(Options, experts.num_experts), "num_experts", "8", {1, 1024}, "experts E"),               \
        option_int(offsetof(Options, experts.expert_heads), "expert_heads", "1", {1, 256}, "heads of an expert"), \
        option_maybe_int(offsetof(Options, experts.expert_dim), "expert_dim", {1, 1024},                          \
                         "width of an expert's heads; default D"),                                                \
        option_maybe_int(offsetof(Options, experts.expert_value_dim), "expert_value_dim", {1, 1024},              \
                         "width of its values; default Dv")
#define ATTEND_EXPERT_OPTIONS(gate_words, adds_token)                                                                 \
    ATTEND_EXPERT_SIZES,                                                                                              \
        option_enum(offsetof(Options, experts.gate), "gate", "\"softmax\"", gate_words,                               \
                    "gates from the router's logits"),                                                                \
        option_bool(offsetof(Options, experts.residual), "residual", adds_token,                                      \
                    "add the token itself to its result"),                                                            \
        option_enum(offsetof(Options, experts.rope), "rope", "\"none\"", ropes,                                       \
                    "rotary positions on queries and keys of every expert head"),                                     \
        option_real(offsetof(Options, experts.rope_base), "rope_base", "10000", {1.0000000000000002, no_limit},       \
                    "base of the rotary angles, above 1", "rope!=none"),                                              \
        option_int(offsetof(Options, experts.rope_dim), "rope_dim", "0", {0, 1024},                                   \
                   "leading channels that rotate, even; 0: all", "rope!=none"),                                       \
        option_bool(offsetof(Options, experts.router_bias), "router_bias", false,                                     \
                    "bias of the router, on both sides"),                                                             \
        option_real(offsetof(Options, experts.router_noise), "router_noise", "0", {0, 0.99999999999999988},           \
                    "noise r: the router's input times 1 - r + 2 r u; below 1"),                                      \
        option_bool(offsetof(Options, experts.return_routing), "return_routing", false, "return the routing report"), \
        ATTEND_VISIBILITY_OPTIONS(" | rope!=none"),                                                                   \
        common::scale("factor before softmax; left out or 0: 1/sqrt(expert_dim)"), common::softcap(),                 \
        ATTEND_WINDOW_OPTIONS, common::dropout(),                                                                     \
        common::seed("seed of dropout and router noise", "dropout | router_noise"), common::rng_offset(),             \
        common::weight_seed(nullptr)

// The experts' matrices; `shared` heads the shapes of wk and wv.
#define ATTEND_EXPERT_MATRICES(shared_k, shared_v)                                                                   \
    weight_port("wq", "num_experts,expert_heads,Hq*D,or(expert_dim,D)", "xavierUniform as Wq",                       \
                "query projections [in, out]"),                                                                      \
        weight_port("wk", shared_k "num_experts,expert_heads,Hkv*D,or(expert_dim,D)", "xavierUniform as Wk",         \
                    "key projections [in, out]"),                                                                    \
        weight_port("wv", shared_v "num_experts,expert_heads,Hkv*Dv,or(expert_value_dim,Dv)", "xavierUniform as Wv", \
                    "value projections [in, out]"),                                                                  \
        weight_port("wo", "num_experts,expert_heads,or(expert_value_dim,Dv),Hq*Dv",                                  \
                    "xavierUniform(1/sqrt(expert_heads)) as Wo", "output projections [in, out]")

// Ports; key_guard says when keys have a router of their own, and `shared` heads the shapes of wk and wv.
#define ATTEND_EXPERT_PORTS(key_guard, shared_k, shared_v)                                                      \
    input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "queries; the heads of a token are merged"), common::key_port(), \
        common::value_port(), ATTEND_MASK_PORTS,                                                                \
        weight_port("wr", "Hq*D,num_experts", "normal(0,0.02) as Wr", "router [in, out]"),                      \
        weight_port("wr_k", key_guard "Hkv*D,num_experts", "Hkv*D=Hq*D: same(wr) | normal(0,0.02) as WrK",      \
                    "router of the keys [in, out]"),                                                            \
        weight_port("br", "router_bias: num_experts", "zeros", "router bias"),                                  \
        ATTEND_EXPERT_MATRICES(shared_k, shared_v), output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")

constexpr uint64_t expert_caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_MASK | ATTEND_CAP_BIAS | ATTEND_CAP_GQA |
                                 ATTEND_CAP_MQA | ATTEND_CAP_CROSS | ATTEND_CAP_WINDOW | ATTEND_CAP_SOFTCAP |
                                 ATTEND_CAP_DROPOUT | ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO |
                                 ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_ROUTED | ATTEND_CAP_NEEDS_WEIGHTS;

inline attend_status check_experts(const ExpertOptions& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t width = options.expert_dim.given ? options.expert_dim.value : desc.head_dim;
    const int64_t rotated = options.rope_dim > 0 ? options.rope_dim : width;
    if (options.rope != 0 && (rotated % 2 != 0 || rotated > width))
        return (Message() << "option \"rope_dim\" makes " << rotated << " of " << width
                          << " channels rotate; accepted: an even number up to expert_dim")
            .fail(error, ATTEND_BAD_OPTION, "rope_dim");
    if (options.residual && desc.value_dim != desc.head_dim)
        return (Message() << "option \"residual\" adds tokens of width " << desc.num_q_heads * desc.head_dim
                          << " to a result of width " << desc.num_q_heads * desc.value_dim
                          << "; accepted: values as wide as queries, or residual=false")
            .fail(error, ATTEND_BAD_SHAPE, "residual");
    for (const uint32_t role : {ATTEND_MASK, ATTEND_BIAS})
        if (const attend_tensor* tensor = attend_find(&desc.bindings, role); tensor && tensor->shape[1] != 1)
            return (Message() << "mask and bias act on all experts alike, but this one has " << tensor->shape[1]
                              << " heads; accepted: head extent 1")
                .fail(error, ATTEND_BAD_SHAPE, role == ATTEND_MASK ? "mask" : "bias");
    return ATTEND_OK;
}

inline attend_experts experts_of(const ExpertOptions& options, const attend_plan_desc& desc) {
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

// `each`: most experts of a token.
inline uint64_t experts_workspace(const ExpertOptions& options, const PlanArgs& args, int64_t each) {
    Context counting{};
    Carve carve(counting);
    const RoutingLists lists(*args.desc, options.num_experts, each, carve);
    return static_cast<uint64_t>(0 - carve.left) + experts_workspace(experts_of(options, *args.desc));
}

// ceil(factor * tokens / experts), not below `least`; an absolute capacity wins.
inline int64_t capacity_of(int64_t absolute, double factor, int64_t least, int64_t tokens, int64_t experts) {
    if (absolute > 0) return absolute;
    const double wanted = __builtin_ceil(factor * static_cast<double>(tokens) / static_cast<double>(experts));
    const int64_t capacity = wanted < 2147483647.0 ? static_cast<int64_t>(wanted) : 2147483647;
    return capacity > least ? capacity : least;
}

// The whole call, item by item. `router` lacks tokens, weights and side; limit(router, number of tokens) sets its capacity.
template <class Limit>
attend_status run_experts(const ExpertOptions& options, const ForwardArgs& args, const Context& context, int64_t each,
                          bool keys_routed, const attend_router& router, Limit limit) {
    const attend_plan_desc& desc = *args.desc;
    attend_experts experts = experts_of(options, desc);
    bind_experts(experts, args);
    attend_router query_router = router;
    query_router.tokens = args.query;
    query_router.weight = attend_find_name(args.weights, "wr");
    query_router.bias = attend_find_name(args.weights, "br");
    query_router.experts = options.num_experts;
    query_router.gate = static_cast<uint32_t>(options.gate);
    query_router.noise = options.router_noise;
    query_router.seed = args.exec->seed;
    attend_router key_router = query_router;
    key_router.tokens = args.key;
    key_router.weight = attend_find_name(args.weights, "wr_k");
    key_router.side = 1;
    Carve carve(context);
    RoutingLists lists(desc, options.num_experts, each, carve);
    const Context engines = carve.rest(context);
    int64_t query_rows = 0, key_rows = 0;
    for (int64_t item = 0; item < desc.batch; ++item) {
        const int64_t queries = length_of(args.query_lengths, item, desc.q_len),
                      keys = length_of(args.key_lengths, item, desc.kv_len);
        const int64_t offset = (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) ? keys - queries : desc.causal_offset;
        limit(query_router, queries);
        limit(key_router, keys);
        attend_status status = ATTEND_KERNEL(attend_route)(&query_router, item, queries, &lists.query, &context);
        if (status == ATTEND_OK && keys_routed)
            status = ATTEND_KERNEL(attend_route)(&key_router, item, keys, &lists.key, &context);
        if (status != ATTEND_OK) return status;
        if (options.return_routing) {
            report_routing(args, query_router, lists.query, "query", item, query_rows);
            if (keys_routed) report_routing(args, key_router, lists.key, "key", item, key_rows);
        }
        status = ATTEND_KERNEL(attend_run_experts)(&experts, item, offset, &lists.query,
                                                   keys_routed ? &lists.key : nullptr, keys, &engines);
        if (status != ATTEND_OK) return status;
    }
    set_rows(args, "routing.query.assignments", query_rows);
    set_rows(args, "routing.query.gates", query_rows);
    set_rows(args, "routing.key.assignments", key_rows);
    set_rows(args, "routing.key.gates", key_rows);
    return ATTEND_OK;
}

// Experts with the same number of members: `queries` and `keys` each. shared: key projections, of all keys, are paid once.
inline void cost_of_experts(const ExpertOptions& options, const PlanArgs& args, double queries, double keys,
                            bool shared_keys, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const attend_experts x = experts_of(options, desc);
    const auto e = static_cast<double>(options.num_experts), he = static_cast<double>(x.heads),
               nq = static_cast<double>(desc.q_len), nk = static_cast<double>(desc.kv_len),
               b = static_cast<double>(desc.batch), de = static_cast<double>(x.key_dim),
               dv = static_cast<double>(x.value_dim);
    const auto mq = static_cast<double>(desc.num_q_heads * desc.head_dim),
               mk = static_cast<double>(desc.num_kv_heads * desc.head_dim),
               mv = static_cast<double>(desc.num_kv_heads * desc.value_dim),
               mo = static_cast<double>(desc.num_q_heads * desc.value_dim);
    const double key_rows = shared_keys ? nk : e * keys;
    cost.flops = b * (2.0 * e * queries * keys * he * (de + dv) + 2.0 * e * queries * he * (mq * de + dv * mo) +
                      2.0 * key_rows * he * (mk * de + mv * dv) + 2.0 * nq * mq * e);
    cost.bytes = 4.0 * b * (nq * (mq + mo) + nk * (mk + mv)) + 4.0 * e * he * (mq * de + mk * de + mv * dv + dv * mo);
}

}  // namespace attend::ATTEND_ISA
