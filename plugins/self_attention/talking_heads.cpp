// SPDX-License-Identifier: Apache-2.0
// talking-heads-attention: heads exchange what they see, by linear maps across heads before and after the softmax.
//
// Paper    Shazeer, Lan, Cheng, Ding, Hou: Talking-Heads Attention, arXiv:2003.02436
// Formula  J[k] = scale Q_k K_k^T;  L[s] = sum_k J[k] pre_mix[k,s] + pre_bias[s];  W[s] = softmax_j(softcap(L[s]) + bias[s])
//          U[v] = sum_s W[s] post_mix[s,v] + post_bias[v] where any s sees;  O[v] = sum_j U[v] V[v]
// Cost     products as multi-head attention, the scores twice; O(Nq Nk (Hk Hs + Hs Hv)) for the mixing
// Differs  hiding follows the first mixing; rows of U do not sum to 1, so there are no scores and no merging of outputs

#include "attend/author/head_mix.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    OptionalInt softmax_heads;
    int32_t pre_mixing, post_mixing, mix_bias;
};

constexpr OptionRow option_table[] = {
    option_maybe_int(offsetof(Options, softmax_heads), "softmax_heads", {1, 65536},
                     "heads of the softmax; default: those of query"),
    option_bool(offsetof(Options, pre_mixing), "pre_mixing", true,
                "mixes scores before softmax; false: as many softmax heads as query heads"),
    option_bool(offsetof(Options, post_mixing), "post_mixing", true,
                "mixes weights after softmax; false: as many value heads as softmax heads"),
    option_bool(offsetof(Options, mix_bias), "mix_bias", false, "adds pre_bias and post_bias where heads are mixed",
                "pre_mixing | post_mixing"),
    ATTEND_VISIBILITY_OPTIONS(""),
    ATTEND_WINDOW_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed("pre_mixing | post_mixing"),
};

constexpr const char* pairs_shape = "broadcast(B,or(softmax_heads,Hq),Nq,Nk)";
constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port("B,Hq,Nk,D", "keys, one head for each of query; absent: query")),
    stored(common::value_port("B,Hv,Nk,Dv", "values, of any number of heads; absent: key")),
    input_port(ATTEND_MASK, "mask", pairs_shape, "non-zero: the pair may attend in that softmax head", ATTEND_OPTIONAL,
               ATTEND_U8),
    input_port(ATTEND_BIAS, "bias", pairs_shape, "added to the mixed scores; minus infinity hides", ATTEND_OPTIONAL),
    common::query_lengths_port(),
    common::key_lengths_port(),
    weight_port("pre_mix", "pre_mixing: Hq,or(softmax_heads,Hq)", "xavierUniform as preMix",
                "query heads to softmax heads [in, out]"),
    weight_port("pre_bias", "pre_mixing & mix_bias: or(softmax_heads,Hq)", "zeros as preBias",
                "added to the mixed scores"),
    weight_port("post_mix", "post_mixing: or(softmax_heads,Hq),Hv", "xavierUniform as postMix",
                "softmax heads to value heads [in, out]"),
    weight_port("post_bias", "post_mixing & mix_bias: Hv", "zeros as postBias",
                "added to the mixed weights of pairs that any softmax head sees"),
    stored(output_port(ATTEND_OUT, "output", "B,Hv,Nq,Dv", "result")),
    output_port(ATTEND_LSE, "lse", "B,or(softmax_heads,Hq),Nq",
                "log of the sum of exponentials of each row of each softmax head", ATTEND_OPTIONAL),
};

struct Heads {
    int64_t score, softmax, value;
    Heads(const Options& options, const attend_plan_desc& desc)
        : score(desc.num_q_heads), softmax(options.softmax_heads.given ? options.softmax_heads.value : score) {
        const attend_tensor* bound = attend_find(&desc.bindings, ATTEND_V);
        value = bound != nullptr && bound->ndim == 4 ? bound->shape[1] : desc.num_kv_heads;
    }
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const Heads heads(options, desc);
    const auto refuse = [&](const char* what, int64_t got, const char* why, int64_t accepted, attend_status status,
                            const char* where) {
        return (Message() << "talking-heads-attention: " << what << " is " << got << "; accepted: " << accepted << why)
            .fail(error, status, where);
    };
    if (desc.num_kv_heads != heads.score)
        return refuse("the number of key heads", desc.num_kv_heads, " (that of query heads, no groups here)",
                      heads.score, ATTEND_BAD_SHAPE, "key");
    if (!options.pre_mixing && heads.softmax != heads.score)
        return refuse("option \"softmax_heads\"", heads.softmax, " (the query heads, since pre_mixing is false)",
                      heads.score, ATTEND_BAD_OPTION, "softmax_heads");
    if (!options.post_mixing && heads.value != heads.softmax)
        return refuse("the number of value heads", heads.value, " (the softmax heads, since post_mixing is false)",
                      heads.softmax, ATTEND_BAD_OPTION, "post_mixing");
    return ATTEND_OK;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const Heads heads(options, *args.desc);
    return head_mix_workspace(*args.desc, heads.softmax, heads.value);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const auto weight = [&](const char* name, bool used) {
        return used ? attend_find_name(args.weights, name) : nullptr;
    };
    attend_head_mix_problem problem = head_mix_call(args);
    problem.pre_mix = weight("pre_mix", options.pre_mixing != 0);
    problem.pre_bias = weight("pre_bias", options.pre_mixing && options.mix_bias);
    problem.post_mix = weight("post_mix", options.post_mixing != 0);
    problem.post_bias = weight("post_bias", options.post_mixing && options.mix_bias);
    return ATTEND_KERNEL(attend_head_mix_forward)(&problem, &context);
}

// Two products and the mixing, each counted once.
void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const Heads heads(options, desc);
    const auto number = [](int64_t n) { return static_cast<double>(n); };
    softmax_cost(desc, visible_pairs(desc), cost);
    const double hk = number(heads.score), hs = number(heads.softmax), hv = number(heads.value),
                 d = number(desc.head_dim), dv = number(desc.value_dim);
    cost.flops = 2.0 * number(desc.batch) * visible_pairs(desc) *
                 (hk * d + hv * dv + (options.pre_mixing ? hk * hs : 0.0) + (options.post_mixing ? hs * hv : 0.0));
}

}  // namespace

ATTEND_MECHANISM(
    talking_heads,
    (described<check, workspace, forward, cost>(
        {.name = "talking-heads-attention",
         .category = "self-attention",
         .title = "Talking-heads attention",
         .summary = "Heads exchange what they see: linear maps across heads before and after the softmax.",
         .reference = "Shazeer et al. 2020, arXiv:2003.02436",
         .time = "O(n^2 (d + h^2))",
         .space = "O(n d)",
         .caps = ATTEND_CAP_MASK | ATTEND_CAP_BIAS | ATTEND_CAP_CROSS | ATTEND_CAP_SOFTCAP | ATTEND_CAP_LSE_OUT |
                 ATTEND_CAP_DROPOUT | ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS |
                 position_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula =
             "s = scale Q K^T for every head;  s' = s mixed across heads by pre_softmax;  p = softmax(s');  p' = "
             "p mixed by post_softmax\n"
             "o_i = sum_j p'_ij v_j",
         .cost = "Dense attention twice over the scores (a first sweep for the softmax sums) plus heads squared "
                 "multiplications per pair for the mixing; memory grows with the lengths.",
         .use = "For models trained with talking heads (some T5 and vision variants). The mixing makes it about half "
                "as fast as standard-mha.",
         .example = "attend compute talking-heads-attention --sequence-length 512 --heads 8 --dim 64 --set "
                    "softmax_heads=12 --set mix_bias=true --lse"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
