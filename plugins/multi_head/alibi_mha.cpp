// SPDX-License-Identifier: Apache-2.0
// alibi-mha: attention with a penalty that grows linearly with the distance of query and key, another slope per head.
//
// Paper    Press, Smith, Lewis 2022, "Train Short, Test Long", arXiv:2108.12409
// Formula  s_ij = softcap(scale q_i . k_j) - m_h |i' - j| + bias_ij, or with signed distance - m_h (i' - j)
//          P = 2^floor(log2 Hq); m_h = 2^(-max_bias (h+1)/P) below P, then 2^(-max_bias (2(h-P)+1)/(2P))
// Cost     as full attention
// Differs  the penalty is -m |i' - j| with and without causal, so LSE differs from m j forms by m i'

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/scores/alibi.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    double max_bias;
    int32_t distance;
};
constexpr const char* name = "alibi-mha";
constexpr const char* distances[] = {"absolute", "signed", nullptr};

constexpr OptionRow option_table[] = {
    option_real(ATTEND_FIELD(max_bias), "8", {__DBL_DENORM_MIN__, no_limit},
                "the slopes go from 2^(-max_bias/P) down to 2^-max_bias"),
    option_enum(ATTEND_FIELD(distance), "\"absolute\"", distances,
                "absolute: |i' - j|; signed: i' - j, which favours keys to come"),
    common::causal("true"),
    common::causal_alignment(),
    common::causal_offset(),
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    ATTEND_MASK_PORTS,
    input_port(0, "positions_q", "Nq | B,Nq", "positions in place of i' in the distance", ATTEND_OPTIONAL,
               length_types),
    input_port(0, "positions_k", "Nk | B,Nk", "positions in place of j in the distance", ATTEND_OPTIONAL, length_types),
    weight_port("slopes", "Hq | B,Hq", nullptr, "slope m of each query head; absent: from max_bias", ATTEND_OPTIONAL),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

attend_status check(const Options&, const PlanArgs& args, attend_error* error) {
    const attend_tensor* slopes = attend_find_name(&args.desc->bindings, "slopes");
    if (!slopes) return ATTEND_OK;
    if (was_given(*args.values, "max_bias"))
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"max_bias\" is given together with weight \"slopes\"; accepted: one of them",
                           "max_bias");
    const int64_t rows = slopes->ndim == 2 ? slopes->shape[0] : 1, heads = slopes->shape[slopes->ndim - 1];
    for (int64_t at = 0; slopes->data && at < rows * heads; ++at) {
        const int64_t place =
            (slopes->ndim == 2 ? at / heads * slopes->strides[0] : 0) + at % heads * slopes->strides[slopes->ndim - 1];
        const float slope = static_cast<const float*>(slopes->data)[place];
        if (slope - slope != 0.0f)
            return (Message() << name << ": weight \"slopes\" is not finite for head " << at % heads
                              << "; accepted: finite slopes")
                .fail(error, ATTEND_NUMERIC, "slopes");
    }
    return ATTEND_OK;
}

int64_t longs(const attend_tensor* tensor) {
    return tensor ? 2 * (tensor->ndim == 2 ? tensor->shape[0] : 1) * tensor->shape[tensor->ndim - 1] : 0;
}

uint64_t workspace(const Options&, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    return tile_workspace(desc) + Carve::floats(desc.num_q_heads) +
           Carve::floats(longs(attend_find_name(&desc.bindings, "positions_q"))) +
           Carve::floats(longs(attend_find_name(&desc.bindings, "positions_k")));
}

void fill_slopes(float* slopes, int64_t heads, double max_bias) {
    int64_t power = 1;
    while (power * 2 <= heads) power *= 2;
    const auto whole = static_cast<double>(power);
    for (int64_t head = 0; head < heads; ++head) {
        const auto place = static_cast<double>(head < power ? head + 1 : 2 * (head - power) + 1);
        slopes[head] = static_cast<float>(__builtin_exp2(-max_bias * place / (head < power ? whole : 2.0 * whole)));
    }
}

// The caller's positions as rows of int64 without gaps; NULL stays NULL.
const int64_t* read_positions(const attend_tensor* tensor, int64_t& batch_stride, Carve& carve) {
    if (!tensor) return nullptr;
    const int64_t rows = tensor->ndim == 2 ? tensor->shape[0] : 1, count = tensor->shape[tensor->ndim - 1];
    auto* positions = reinterpret_cast<int64_t*>(carve.take(longs(tensor)));
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t at = 0; at < count; ++at) {
            const int64_t place =
                (tensor->ndim == 2 ? row * tensor->strides[0] : 0) + at * tensor->strides[tensor->ndim - 1];
            positions[row * count + at] = tensor->dtype_bits == 64 ? static_cast<const int64_t*>(tensor->data)[place]
                                                                   : static_cast<const int32_t*>(tensor->data)[place];
        }
    batch_stride = tensor->ndim == 2 ? count : 0;
    return positions;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    Carve carve(context);
    TileCall call(args);
    AlibiSlopes alibi{};
    float* computed = carve.take(args.desc->num_q_heads);
    if (const attend_tensor* slopes = attend_find_name(args.weights, "slopes")) {
        alibi.slopes = static_cast<const float*>(slopes->data);
        alibi.batch_stride = slopes->ndim == 2 ? slopes->strides[0] : 0;
        alibi.head_stride = slopes->strides[slopes->ndim - 1];
    } else {
        fill_slopes(computed, args.desc->num_q_heads, options.max_bias);
        alibi.slopes = computed;
        alibi.head_stride = 1;
    }
    alibi.signed_distance = options.distance;
    alibi.query_positions =
        read_positions(attend_find_name(args.bindings, "positions_q"), alibi.query_batch_stride, carve);
    alibi.key_positions = read_positions(attend_find_name(args.bindings, "positions_k"), alibi.key_batch_stride, carve);
    use_scores(call.problem, alibi);
    return run_tiles(call, carve.rest(context));
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    softmax_cost(*args.desc, visible_pairs(*args.desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    alibi_mha,
    described<check, workspace, forward, cost>(
        {.name = name,
         .category = "multi-head",
         .title = "Attention with linear biases (ALiBi)",
         .summary = "Scores lose a little with every token of distance, so a model reads texts "
                    "longer than those it learned from.",
         .reference = "Press, Smith, Lewis 2022, Train Short, Test Long, arXiv:2108.12409",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "s_ij = scale q_i.k_j - slope_h |p_i - j|, slope_h falls geometrically over the heads\n"
                    "o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "As dense attention; the penalty is computed from the distance inside the tile, nothing is stored.",
         .use = "For models trained with ALiBi (BLOOM, MPT), and when a model should read longer texts than it was "
                "trained on without learned positions. If positions come from rotation take rotary-mha.",
         .example = "attend compute alibi-mha --sequence-length 256 --heads 8 --set max_bias=4"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
