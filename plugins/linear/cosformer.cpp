// SPDX-License-Identifier: Apache-2.0
// cosformer-attention: non-negative linear attention whose weights fall with the distance of query and key.
//
// Paper    Qin et al. 2022, "cosFormer: Rethinking Softmax in Attention", arXiv:2202.08791
// Formula  A_ij = <act(q_i), act(k_j)> cos(pi (s_i - j) / (2 M)),  s_i = i + query_offset,  o_i = sum_j A_ij v_j / max(sum_j A_ij, eps)
//          as a product of features [a sin t, a cos t], t = pi position / (2 M)
// Cost     O((Nq + Nk) 2 D Dv); state 2 D (Dv + 1); a table of 2 (Nq + Nk) sines and cosines
// Differs  positions count from 0, which changes nothing; causal queries stand at the end of the keys; M may be fixed, as
//          decoding needs

#include "linear_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    OptionalInt query_offset;
    int64_t max_len;
    double eps;
    int32_t activation;
};

constexpr double farthest = 9007199254740992.0;
constexpr const char* activations[] = {"relu", "elu", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(max_len), "0", {0, farthest},
               "M, at least the largest position + 1; 0: the longer of Nk and Nq + query_offset"),
    option_maybe_int(ATTEND_FIELD(query_offset), {-farthest, farthest},
                     "position of query 0 for the cosine, at least 0; default: 0, causal: that of the diagonal"),
    option_enum(ATTEND_FIELD(activation), "\"relu\"", activations,
                "relu: max(x, 0); elu: x + 1 above 0, e^x elsewhere"),
    option_real(ATTEND_FIELD(eps), "1e-6", {0, no_limit}, "denominators are at least this"),
    refused::scale(),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_REFUSED_OPTIONS,
};

constexpr attend_port port_table[] = {
    common::query_port(),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    output_port(ATTEND_LSE, "lse", "B,Hq,Nq", "logarithm of the denominator, without eps", ATTEND_OPTIONAL),
};

bool is_causal(const attend_plan_desc& desc) { return (desc.flags & ATTEND_PLAN_CAUSAL) != 0; }

int64_t offset_of(const Options& options, const attend_plan_desc& desc) {
    return options.query_offset.given ? options.query_offset.value : is_causal(desc) ? desc.causal_offset : 0;
}
// One more than the largest position of the call.
int64_t positions_of(const Options& options, const attend_plan_desc& desc) {
    const int64_t queries = desc.q_len > 0 ? desc.q_len + offset_of(options, desc) : 0;
    return queries > desc.kv_len ? queries : desc.kv_len;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (const attend_status status = refuse_pairwise(args, error)) return status;
    if (const attend_status status = refuse_scale(args, "rows go through the activation as they are", error))
        return status;
    const int64_t offset = offset_of(options, desc);
    if (options.query_offset.given && offset < 0)
        return refuse_value(error, ATTEND_BAD_OPTION, "query_offset", static_cast<double>(offset),
                            "positions count from 0; accepted: 0 or more");
    // With an offset of its own for each item, rows before the first key are empty and the others stand at 0 or later.
    if (offset < 0 && !(desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM)) {
        Message text;
        text << "option \"query_offset\" is left out, but the first of " << desc.q_len << " causal queries on "
             << desc.kv_len << " keys would stand at " << offset << "; accepted: 0 or more, given";
        return text.fail(error, ATTEND_BAD_OPTION, "query_offset");
    }
    if (options.max_len > 0 && options.max_len < positions_of(options, desc)) {
        Message text;
        text << "option \"max_len\" is " << options.max_len << ", but positions go up to "
             << positions_of(options, desc) - 1 << " (" << desc.kv_len << " keys, " << desc.q_len
             << " queries from position " << offset << "); accepted: 0, or at least " << positions_of(options, desc);
        return text.fail(error, ATTEND_BAD_OPTION, "max_len");
    }
    return refuse_large_state(2.0 * static_cast<double>(desc.head_dim), "dim", args, error);
}

void apply(const Options& options, const attend_plan_desc& desc, LinearCall& call) {
    const int64_t longest = options.max_len > 0 ? options.max_len : positions_of(options, desc);
    attend_feature_map& map = call.problem.features;
    map.kind = ATTEND_FEATURES_COSINE;
    map.variant = options.activation == 1;
    map.angle = 1.5707963267948966 / static_cast<double>(longest > 0 ? longest : 1);
    map.query_offset = offset_of(options, desc);
    map.item_positions = is_causal(desc) && !options.query_offset.given;
    call.problem.guard = ATTEND_GUARD_MAX;
    call.problem.guard_eps = options.eps;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    LinearCall call(args);
    apply(options, *args.desc, call);
    return call.workspace(args.desc->max_workers);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    LinearCall call(args);
    apply(options, *args.desc, call);
    return call.run(context);
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    linear_cost(*args.desc, 2.0 * static_cast<double>(args.desc->head_dim), 0.0, cost);
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    cosformer,
    described<check, workspace, forward, cost, error_bound>(
        {.name = "cosformer-attention",
         .category = "linear",
         .title = "cosFormer attention",
         .summary = "Linear attention whose non-negative weights carry the cosine of a distance: near keys count more.",
         .reference = "Qin et al. 2022, cosFormer: Rethinking Softmax in Attention, arXiv:2202.08791",
         .time = "O(n d dv)",
         .space = "O(d dv + n)",
         .caps = linear_caps,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_APPROXIMATE,
         .formula = "a = act(q), b = act(k), act = max(x, 0) or elu(x) + 1\n"
                    "A_ij = exp(bias_j) a_i.b_j cos(pi (i + query_offset - j) / (2 max_len))\n"
                    "output_i = sum_j A_ij v_j / max(sum_j A_ij, eps)",
         .cost =
             "Twice the features of linear-attention: 2 D (Dv + 1) multiplications per token, and a table of sines and "
             "cosines of all positions.",
         .use =
             "For models trained with it: linear time and a preference for near keys without a window. When decoding, "
             "fix max_len, or weights of the past change as the sequence grows; linear-attention has no notion of "
             "distance and needs no such number.",
         .example = "attend compute cosformer-attention --sequence-length 4096 --heads 8 --causal --set max_len=8192"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
