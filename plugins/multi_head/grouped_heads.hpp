// SPDX-License-Identifier: Apache-2.0
// Attention whose query heads share key and value heads: what grouped-query and multi-query attention have in common.
// The engine reads key head h * Hkv / Hq for query head h and lays the queries of a group side by side in one tile, so
// keys and values are read once for the group and never repeated.
#pragma once

#include "attend/author/projected.hpp"

namespace attend::ATTEND_ISA {

struct GroupedOptions {
    int32_t form, bias, output_bias;
    OptionalInt heads, kv_heads, head_dim, value_dim;
};

// Rows of the option table; kv_heads stands between them.
#define ATTEND_GROUPED_FRONT_OPTIONS                                           \
    common::form_option(offsetof(GroupedOptions, form)),                       \
        option_maybe_int(offsetof(GroupedOptions, heads), "heads", {1, 65536}, \
                         "query heads Hq; required in the projected form, else as the tensors")
#define ATTEND_GROUPED_BACK_OPTIONS                                                                                  \
    option_maybe_int(offsetof(GroupedOptions, head_dim), "head_dim", {1, 1048576},                                   \
                     "width D of query and key heads; default: E / Hq", "form=projected"),                           \
        option_maybe_int(offsetof(GroupedOptions, value_dim), "value_dim", {1, 1048576},                             \
                         "width Dv of value heads; default: D", "form=projected"),                                   \
        option_bool(offsetof(GroupedOptions, bias), "bias", false, "biases of the query, key and value projections", \
                    "form=projected"),                                                                               \
        option_bool(offsetof(GroupedOptions, output_bias), "output_bias", false, "bias of the output projection",    \
                    "form=projected"),                                                                               \
        ATTEND_VISIBILITY_OPTIONS(""), ATTEND_SCORE_OPTIONS, ATTEND_WINDOW_OPTIONS, ATTEND_DROPOUT_OPTIONS,                  \
        common::weight_seed()

// Rows of the port table behind query, key and value.
#define ATTEND_GROUPED_PORTS                                                                                           \
    common::past_key_port(), common::past_value_port("form=projected: B,Hkv,Np,or(value_dim,D)"), ATTEND_MASK_PORTS,   \
        weight_port("wq", "form=projected: Hq*D,E", "kaimingUniform as Wq", "query projection"),                       \
        weight_port("wk", "form=projected: Hkv*D,E", "kaimingUniform as Wk", "key projection"),                        \
        weight_port("wv", "form=projected: Hkv*or(value_dim,D),E", "kaimingUniform as Wv", "value projection"),        \
        weight_port("bq", "form=projected & bias: Hq*D", "zeros", "query bias"),                                       \
        weight_port("bk", "form=projected & bias: Hkv*D", "zeros", "key bias"),                                        \
        weight_port("bv", "form=projected & bias: Hkv*or(value_dim,D)", "zeros", "value bias"),                        \
        weight_port("wo", "form=projected: E,Hq*or(value_dim,D)", "kaimingUniform as Wo", "output projection"),        \
        weight_port("bo", "form=projected & output_bias: E", "zeros", "output bias"), common::output_or_tokens_port(), \
        common::lse_port(), common::scores_port()

// The plan's sizes with the value width of the projected form.
inline attend_plan_desc grouped_sizes(const GroupedOptions& options, const attend_plan_desc& given) {
    attend_plan_desc desc = given;
    if (is_projected(options.form)) desc.value_dim = options.value_dim.given ? options.value_dim.value : desc.head_dim;
    return desc;
}

inline uint64_t grouped_workspace(const GroupedOptions& options, const attend_plan_desc& given) {
    const attend_plan_desc desc = grouped_sizes(options, given);
    return form_workspace(options.form, self_projection(desc), desc);
}

inline attend_status grouped_projected(const GroupedOptions& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc desc = grouped_sizes(options, *args.desc);
    return run_projected(self_projection(desc), args, context, run_tiles);
}

inline void grouped_cost(const GroupedOptions& options, const attend_plan_desc& given, attend_cost& cost) {
    const attend_plan_desc desc = grouped_sizes(options, given);
    form_cost(options.form, self_projection(desc), desc, visible_pairs(desc), cost);
}

}  // namespace attend::ATTEND_ISA
