// SPDX-License-Identifier: Apache-2.0
// causal-self-attention: a token sees itself and the past, optionally a bidirectional prefix (prefix-LM).
//
// Paper    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3; Radford et al. 2018 (GPT)
// Formula  softmax attention over { j : (j <= i' and j >= i' - window_left) or j < prefix_length }, i' = i + Nk - Nq
//          projected: rows of Wqkv give q, then k, then v; a cache past_key, past_value stands in front of the new keys
// Cost     about half of the dense product for Nq = Nk; O(Nq * window) with a window
// Differs  the diagonal is bottom-right aligned, so one query against n cached keys sees all of them

#include "attend/author/projected.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/keys/band.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, bias, causal;
    OptionalInt heads, kv_heads, window_right;
    IntList prefix_length;
    int64_t window_size, window_left;
};

constexpr double longest = 2147483647.0;
constexpr OptionRow option_table[] = {
    option_enum(offsetof(Options, form), "form", "\"auto\"", common::forms,
                "core: ready-made heads; projected: with projections; auto: projected if a weight is given"),
    option_maybe_int(offsetof(Options, heads), "heads", {1, 65536},
                     "query heads, required in the projected form; divides E", "form=projected"),
    option_maybe_int(offsetof(Options, kv_heads), "kv_heads", {1, 65536}, "key heads; default: heads",
                     "form=projected"),
    option_int_list(offsetof(Options, prefix_length), "prefix_length", "0", {0, longest},
                    "keys in front that every query sees; one number, or one for each item of the batch"),
    option_int(offsetof(Options, window_size), "window_size", "0", {0, longest}, "as window_left; 0: all of the past"),
    option_int(offsetof(Options, window_left), "window_left", "-1", {-1, longest},
               "keys seen to the left; -1: all of the past"),
    option_maybe_int(offsetof(Options, window_right), "window_right", {-1, longest},
                     "fixed to 0: nothing lies to the right"),
    option_bool(offsetof(Options, bias), "bias", true, "biases of the projections", "form=projected"),
    option_row(ATTEND_TYPE_INT, 0, "layers", "1", {1, 1048576}, nullptr,
               "scales the default initialiser of Wo by 1/sqrt(2 layers)", Field::none, 0, "form=projected"),
    option_bool(offsetof(Options, causal), "causal", true, "always true; false is refused"),
    common::causal_alignment(),
    common::causal_offset(),
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(),
};

constexpr attend_port port_table[] = {
    stored(input_port(ATTEND_Q, "query", "form=projected: B,Nq,E | B,Hq,Nq,D",
                      "queries; in the projected form the tokens X")),
    stored(common::key_port("form=core: B,Hkv,Nk,D")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv")),
    input_port(0, "past_key", "form=projected: B,Hkv,Np,D", "cached keys in front of the projected ones",
               ATTEND_OPTIONAL),
    input_port(0, "past_value", "form=projected: B,Hkv,Np,D", "cached values", ATTEND_OPTIONAL),
    ATTEND_MASK_PORTS,
    weight_port("wqkv", "form=projected: (Hq+2*Hkv)*D,E", "normal(0,0.02) as Wqkv",
                "projection; rows of queries, then keys, then values"),
    weight_port("bqkv", "form=projected & bias: (Hq+2*Hkv)*D", "zeros", "its bias"),
    weight_port("wo", "form=projected: E,Hq*D", "normal(0,0.02/sqrt(2*layers)) as Wo", "output projection"),
    weight_port("bo", "form=projected & bias: E", "zeros", "output bias"),
    stored(output_port(ATTEND_OUT, "output", "form=projected: B,Nq,E | B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (!options.causal)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"causal\" is false; accepted: true (this mechanism is causal)", "causal");
    if (options.window_right.given && options.window_right.value != 0)
        return (Message() << "causal-self-attention: option \"window_right\" is " << options.window_right.value
                          << "; accepted: 0 (nothing lies to the right)")
            .fail(error, ATTEND_BAD_OPTION, "window_right");
    const IntList& prefix = options.prefix_length;
    if (!prefix.is_scalar && prefix.count != desc.batch && was_given(*args.values, "prefix_length"))
        return (Message() << "causal-self-attention: option \"prefix_length\" lists " << int64_t{prefix.count}
                          << " numbers; accepted: one number, or a list of " << desc.batch << " (one for each item)")
            .fail(error, ATTEND_BAD_OPTION, "prefix_length");
    for (uint32_t item = 0; item < prefix.count; ++item)
        if (prefix.items[item] > desc.kv_len)
            return (Message() << "causal-self-attention: option \"prefix_length\" is " << prefix.items[item]
                              << "; accepted: 0 to " << desc.kv_len << " (the number of keys)")
                .fail(error, ATTEND_BAD_OPTION, "prefix_length");
    const attend_tensor* past_key = attend_find_name(&desc.bindings, "past_key");
    const attend_tensor* past_value = attend_find_name(&desc.bindings, "past_value");
    if (!past_key != !past_value)
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "inputs \"past_key\" and \"past_value\" belong together; accepted: both or none",
                           "past_key");
    return ATTEND_OK;
}

int64_t past_window(const Options& options) {
    return options.window_left >= 0 ? options.window_left : options.window_size > 0 ? options.window_size : -1;
}

int64_t new_keys(const attend_plan_desc& desc, const Options& options) {
    return is_projected(options.form) ? desc.q_len : desc.kv_len;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    uint64_t bytes = tile_workspace(desc);
    if (!is_projected(options.form)) return bytes;
    const int64_t inner = desc.num_q_heads * desc.head_dim,
                  all = (desc.num_q_heads + 2 * desc.num_kv_heads) * desc.head_dim;
    bytes += Carve::floats(desc.batch * desc.q_len * all) + Carve::floats(desc.batch * desc.q_len * inner);
    const attend_tensor* query = attend_find(&desc.bindings, ATTEND_Q);
    const int64_t width = query && query->ndim == 3 ? query->shape[2] : inner;
    return bytes + projection_workspace(desc.batch, desc.q_len, width > inner ? width : inner,
                                        all > width ? all : width, desc.max_workers);
}

attend_status attend_past(const Options& options, TileCall& call, const Context& context) {
    attend_tile_problem& problem = call.problem;
    const IntList& prefix = options.prefix_length;
    bool any = false;
    for (uint32_t item = 0; item < prefix.count; ++item) any = any || prefix.items[item] > 0;
    problem.window_left = past_window(options);
    problem.window_right = -1;
    problem.flags |= ATTEND_TILE_CAUSAL;
    if (!any) return run_tiles(call, context);
    // A prefix key ignores diagonal and window, so the band is a key pattern here, not the engine's causal edge.
    BandKeys keys{};
    keys.left = problem.window_left;
    keys.right = 0;
    keys.globals.num_leading = prefix.items;
    keys.globals.leading_stride = prefix.count > 1 ? 1 : 0;
    problem.flags &= ~ATTEND_TILE_CAUSAL;
    problem.window_left = -1;
    use_keys(problem, keys);
    return run_tiles(call, context);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (!is_projected(options.form)) {
        TileCall call(args);
        return attend_past(options, call, context);
    }
    const int64_t hq = desc.num_q_heads, hkv = desc.num_kv_heads, d = desc.head_dim;
    Carve carve(context);
    Rows qkv(carve.take(desc.batch * desc.q_len * (hq + 2 * hkv) * d), desc.batch, desc.q_len, (hq + 2 * hkv) * d);
    Rows joined(carve.take(desc.batch * desc.q_len * hq * d), desc.batch, desc.q_len, hq * d);
    const attend_array& weights = *args.weights;
    attend_status status = project(args.query, attend_find_name(&weights, "wqkv"), attend_find_name(&weights, "bqkv"),
                                   &qkv.tensor, carve.rest(context));
    if (status != ATTEND_OK) return status;
    OwnTensor q, k, v, o;
    const int64_t row = (hq + 2 * hkv) * d, item = desc.q_len * row;
    const auto heads_at = [&](OwnTensor& own, int64_t first, int64_t heads) {
        describe(own, qkv.tensor, {desc.batch, heads, desc.q_len, d}, {item, d, row, 1});
        own.tensor.data = static_cast<float*>(qkv.tensor.data) + first * d;
    };
    heads_at(q, 0, hq);
    heads_at(k, hq, hkv);
    heads_at(v, hq + hkv, hkv);
    split_heads(o, joined.tensor, hq);
    TileCall call(args, &q.tensor, nullptr, nullptr, &o.tensor);
    const attend_tensor* past_key = attend_find_name(args.bindings, "past_key");
    if (past_key) call.add_segment(past_key, attend_find_name(args.bindings, "past_value"), 0);
    call.add_segment(&k.tensor, &v.tensor, 0);
    status = attend_past(options, call, carve.rest(context));
    if (status == ATTEND_OK)
        status = project(&joined.tensor, attend_find_name(&weights, "wo"), attend_find_name(&weights, "bo"),
                         args.output, carve.rest(context));
    return status;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    attend_plan_desc desc = *args.desc;
    desc.flags |= ATTEND_PLAN_CAUSAL;
    desc.window_left = past_window(options);
    desc.window_right = -1;
    softmax_cost(desc, visible_pairs(desc), cost);
    if (is_projected(options.form)) {
        const auto inner = static_cast<double>(desc.num_q_heads * desc.head_dim),
                   kv = static_cast<double>(2 * desc.num_kv_heads * desc.head_dim);
        cost.flops += 2.0 * static_cast<double>(desc.batch * new_keys(desc, options)) * inner * (2.0 * inner + kv);
    }
}

}  // namespace

ATTEND_MECHANISM(causal_self,
                 {.name = "causal-self-attention",
                  .category = "self-attention",
                  .title = "Causal self-attention",
                  .summary = "A token sees itself and what came before it, as language models generate text.",
                  .reference = "Vaswani et al. 2017, arXiv:1706.03762, section 3.2.3",
                  .time_complexity = "O(n^2 d / 2)",
                  .space_complexity = "O(n d)",
                  .caps = softmax_caps | position_caps,
                  .dtypes = stored_floats,
                  .numerics = ATTEND_EXACT,
                  .revision = 1,
                  ATTEND_OPTION_TABLE(Options, option_table),
                  ATTEND_PORT_TABLE(port_table),
                  .check = erased<check>,
                  .workspace = erased<workspace>,
                  .forward = erased<forward>,
                  .cost = erased<cost>})

}  // namespace attend::ATTEND_ISA
