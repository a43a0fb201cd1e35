// SPDX-License-Identifier: Apache-2.0
// rotary-mha: queries and keys are turned by angles that grow with their positions, so scores know only distances.
//
// Paper    Su et al. 2021 (RoFormer), arXiv:2104.09864; scalings: Chen et al. 2023 (arXiv:2306.15595, linear), NTK-aware (bloc97,
//          2023), Peng et al. 2023 (YaRN, arXiv:2309.00071), Llama 3.1
// Formula  pair (a, b) of channels at position p: a' = m (a cos p w - b sin p w), b' = m (a sin p w + b cos p w),
//          w_t = base^(-2t/r) changed by the scaling; then softmax attention
// Cost     softmax attention and O((Nq + Nk) r); each key turns once for a group of query tiles
// Differs  angles are double, tables are rounded once

#include <stdio.h>

#include "attend/toolkit/core/message.hpp"
#include "rotary_tables.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr const char* layouts[] = {"half", "interleaved", nullptr};
constexpr const char* scalings[] = {"none", "linear", "ntk", "dynamicNtk", "yarn", "llama3", nullptr};
constexpr double smallest = 2.2250738585072014e-308;
constexpr OptionRow option_table[] = {
    option_maybe_int(offsetof(Options, rotary_dim), "rotary_dim", {2, 1048576},
                     "channels r that turn, even; default: the head width"),
    option_enum(offsetof(Options, layout), "layout", "\"half\"", layouts,
                "pairs of channels: half (t, t + r/2) or interleaved (2t, 2t + 1)"),
    option_real(offsetof(Options, base), "base", "10000", {1.0000000000000002, no_limit}, "w_t = base^(-2t/r)"),
    option_enum(offsetof(Options, scaling), "scaling", "\"none\"", scalings, "how frequencies stretch to longer texts"),
    option_maybe_real(offsetof(Options, scaling_factor), "scaling_factor", {1, no_limit},
                      "factor f of the scaling; default 1, llama3: 8",
                      "scaling=linear|scaling=ntk|scaling=dynamicNtk|scaling=yarn|scaling=llama3"),
    option_maybe_int(offsetof(Options, original_max_position), "original_max_position", {1, farthest},
                     "length L0 that the model was trained for; default 2048, llama3: 8192",
                     "scaling=dynamicNtk|scaling=yarn|scaling=llama3"),
    option_real(offsetof(Options, low_freq_factor), "low_freq_factor", "1", {smallest, no_limit},
                "wavelengths above L0 / low are divided by f", "scaling=llama3"),
    option_real(offsetof(Options, high_freq_factor), "high_freq_factor", "4", {smallest, no_limit},
                "wavelengths below L0 / high stay", "scaling=llama3"),
    option_real(offsetof(Options, beta_fast), "beta_fast", "32", {smallest, no_limit},
                "pairs that turn more often within L0 stay", "scaling=yarn"),
    option_real(offsetof(Options, beta_slow), "beta_slow", "1", {smallest, no_limit},
                "pairs that turn less often within L0 are divided by f", "scaling=yarn"),
    option_maybe_real(offsetof(Options, attention_factor), "attention_factor", {smallest, no_limit},
                      "factor m of the turned channels; default 1, yarn with f > 1: 0.1 ln f + 1"),
    option_maybe_int(offsetof(Options, position_offset), "position_offset", {-farthest, farthest},
                     "position of key 0; default 0", "!keys_rotated | !query_offset & !positions_q"),
    option_maybe_int(offsetof(Options, query_offset), "query_offset", {-farthest, farthest},
                     "position of query 0; default: its place on the key axis plus position_offset"),
    option_bool(offsetof(Options, keys_rotated), "keys_rotated", false, "keys come from a cache, turned already"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    input_port(0, "positions_q", "Nq | B,Nq", "positions of the queries, for the rotation alone", ATTEND_OPTIONAL,
               length_types),
    input_port(0, "positions_k", "Nk | B,Nk", "positions of the keys, for the rotation alone", ATTEND_OPTIONAL,
               length_types),
    ATTEND_MASK_PORTS,
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

Message saying(const char* option) { return Message() << "rotary-mha: option \"" << option << "\" "; }

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t dim = turned(options, desc);
    if (dim % 2 != 0 || dim > desc.head_dim)
        return (saying("rotary_dim") << "is " << dim << "; accepted: an even number from 2 to the head width "
                                     << desc.head_dim)
            .fail(error, ATTEND_BAD_OPTION, "rotary_dim");
    const bool ntk = options.scaling == RotaryFrequencies::ntk || options.scaling == RotaryFrequencies::dynamic_ntk;
    if (ntk && dim == 2)
        return (saying("scaling") << "is " << scalings[options.scaling]
                                  << " with rotary_dim 2; accepted: rotary_dim of at least 4")
            .fail(error, ATTEND_BAD_OPTION, "scaling");
    if (options.keys_rotated && options.scaling == RotaryFrequencies::dynamic_ntk)
        return (
                   saying("keys_rotated")
                   << "is true with scaling dynamicNtk, whose frequencies change as the text grows; "
                      "accepted: false, or another scaling")
            .fail(error, ATTEND_BAD_OPTION, "keys_rotated");
    const struct {
        RotaryFrequencies::Scaling scaling;
        const char *high, *low;
        double above, below;
    } bounds[] = {{RotaryFrequencies::llama3, "high_freq_factor", "low_freq_factor", options.high_freq_factor,
                   options.low_freq_factor},
                  {RotaryFrequencies::yarn, "beta_fast", "beta_slow", options.beta_fast, options.beta_slow}};
    for (const auto& bound : bounds) {
        if (options.scaling != bound.scaling || bound.above > bound.below) continue;
        char values[96];
        ::snprintf(values, sizeof values, "is %g with %s %g", bound.above, bound.low, bound.below);
        return (saying(bound.high) << values << "; accepted: more than " << bound.low)
            .fail(error, ATTEND_BAD_OPTION, bound.high);
    }
    const struct {
        const char *option, *input;
        const OptionalInt* given;
    } pairs[] = {{"query_offset", "positions_q", &options.query_offset},
                 {"position_offset", "positions_k", &options.position_offset}};
    for (const auto& pair : pairs)
        if (pair.given->given && attend_find_name(&desc.bindings, pair.input))
            return (saying(pair.option) << "is " << pair.given->value << " beside input \"" << pair.input
                                        << "\"; accepted: one of them")
                .fail(error, ATTEND_BAD_OPTION, pair.option);
    if (options.keys_rotated && attend_find_name(&desc.bindings, "positions_k"))
        return (saying("keys_rotated") << "is true beside input \"positions_k\", and keys do not turn twice; "
                                          "accepted: one of them")
            .fail(error, ATTEND_BAD_OPTION, "keys_rotated");
    return ATTEND_OK;
}

// Whether positions, and with them the tables, are known before the call.
bool known(const Options& options, const attend_plan_desc& desc) {
    const bool given =
        attend_find_name(&desc.bindings, "positions_q") || attend_find_name(&desc.bindings, "positions_k");
    const bool moves =
        options.scaling == RotaryFrequencies::dynamic_ntk && (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) != 0;
    return !given && !moves;
}
Tables planned(const Options& options, const PlanArgs& args) {
    return {options, *args.desc, attend_find_name(&args.desc->bindings, "positions_q"),
            attend_find_name(&args.desc->bindings, "positions_k")};
}

uint64_t prepared_bytes(const Options& options, const PlanArgs& args) {
    return known(options, *args.desc) ? planned(options, args).bytes() : 0;
}
attend_status prepare(const Options& options, const PlanArgs& args, void* memory, const Context& context) {
    const Tables tables = planned(options, args);
    float* rows = static_cast<float*>(memory);
    // As many doubles as half of a row's floats: they fit the row that bytes() adds.
    double* frequencies = reinterpret_cast<double*>(rows + Carve::floats(tables.rows() * tables.dim) / sizeof(float));
    return fill(options, tables, rows, frequencies, tables.positions(nullptr), context);
}

attend_tile_hooks hooks_of(const Options& options, int64_t dim) {
    attend_tile_hooks hooks{};
    hooks.queries = RotaryHooks::turn_queries;
    hooks.tile_floats = RotaryHooks::memory_floats(dim);
    if (options.keys_rotated) return hooks;
    hooks.flags = ATTEND_HOOKS_CHANGE_KEYS;
    hooks.keys = RotaryHooks::turn_keys;
    return hooks;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tile_hooks hooks = hooks_of(options, turned(options, desc));
    return tile_workspace(desc, 0, 0, 0, &hooks) + (known(options, desc) ? 0 : planned(options, args).bytes());
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const Tables tables(options, *args.desc, attend_find_name(args.bindings, "positions_q"),
                        attend_find_name(args.bindings, "positions_k"));
    Carve carve(context);
    const float* rows = static_cast<const float*>(args.prepared);
    if (rows == nullptr) {
        float* made = carve.take(tables.rows() * tables.dim);
        double* frequencies = reinterpret_cast<double*>(carve.take(tables.dim));
        const attend_status status =
            fill(options, tables, made, frequencies, tables.positions(&args), carve.rest(context));
        if (status != ATTEND_OK) return status;
        rows = made;
    }
    RotaryHooks rotary{};
    rotary.dim = tables.dim;
    rotary.layout = options.layout == 0 ? RotaryLayout::half : RotaryLayout::interleaved;
    rotary.queries_by_row = tables.by_row;
    rotary.keys = {rows, tables.key_items > 1 ? tables.key_rows * tables.dim : 0, 0};
    rotary.queries = {tables.queries_of(const_cast<float*>(rows)),
                      tables.query_items > 1 ? tables.query_rows * tables.dim : 0, tables.first_query};
    attend_tile_hooks hooks = hooks_of(options, tables.dim);
    hooks.user = &rotary;
    TileCall call(args);
    call.problem.hooks = &hooks;
    return run_tiles(call, carve.rest(context));
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    softmax_cost(desc, visible_pairs(desc), cost);
    const auto rows =
        static_cast<double>(desc.batch * (desc.num_q_heads * desc.q_len + desc.num_kv_heads * desc.kv_len));
    cost.flops += 3.0 * rows * static_cast<double>(turned(options, desc));
}

}  // namespace

ATTEND_MECHANISM(
    rotary_mha,
    (described<check, workspace, prepared_bytes, prepare, forward, cost>(
        {.name = "rotary-mha",
         .category = "multi-head",
         .title = "Rotary multi-head attention",
         .summary = "Queries and keys turn with their positions (RoPE), so that scores depend on distances.",
         .reference = "Su et al. 2021, RoFormer, arXiv:2104.09864",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .numerics = ATTEND_OWN_DEFINITION,
         .formula =
             "q'_i = R(position of i) q_i,  k'_j = R(position of j) k_j: pairs of features turn by position / "
             "base^(2t/rotary_dim)\n"
             "s_ij = scale q'_i.k'_j depends on positions by their difference alone;  o_i = sum_j softmax_j(s_ij) "
             "v_j",
         .cost = "As dense attention; turning costs one pass over queries and keys and is done when a tile is loaded. "
                 "A table of sines and cosines per position is made once per plan.",
         .use = "For models trained with rotary positions (Llama, GPT-NeoX, Mistral). The scaling options stretch "
                "such a model beyond its training length. For a model trained without positions take standard-mha, "
                "for linear penalties alibi-mha.",
         .example = "attend compute rotary-mha --sequence-length 256 --heads 8 --causal --set scaling=linear --set "
                    "scaling_factor=4"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
