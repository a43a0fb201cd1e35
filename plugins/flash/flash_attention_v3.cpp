// SPDX-License-Identifier: Apache-2.0
// flash-attention-v3: flash-attention-v2 in low precision, with exactly defined rounding and a bound of the errors.
//
// Paper    Shah et al. 2024, "FlashAttention-3", arXiv:2407.08608; Zhang et al. 2024, "SageAttention", arXiv:2410.02367
// Formula  s_ij = scale sq sk (codes of R(q_i)) . (codes of R(k_j - mean k))
//          o_i = sum_j round(e_ij) round(v_j) / sum_j e_ij
// Cost     as flash-attention-v2, and one pass over K for scales and codes; memory: K at one byte an element
// Differs  sums are those of weights before rounding; lse has what the mean takes from the scores; e4m3 saturates;
//          int8 codes are rounded to even, and an all-zero block has scale 1

#include "attend/toolkit/quantised.h"
#include "flash_options.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    FlashOptions flash;
    int64_t quant_block_q, quant_block_k, hadamard_seed, pipeline_stages;
    double max_error;
    int32_t precision, smooth_k, incoherent, smooth_v, p_precision, v_precision;
};

constexpr const char* mechanism = "flash-attention-v3";
enum Precision : int32_t { fp32, bf16, int8, fp8 };
constexpr const char* precisions[] = {"fp32", "bf16", "int8", "fp8", nullptr};
enum Grid : int32_t { grid_auto, grid_fp32, grid_bf16, grid_e4m3 };
constexpr const char* grids[] = {"auto", "fp32", "bf16", "e4m3", nullptr};
enum Choice : int32_t { choice_auto, choice_true, choice_false };
constexpr const char* choices[] = {"auto", "true", "false", nullptr};
constexpr Range quant_range{16, 1024};

constexpr OptionRow option_table[] = {
    ATTEND_FLASH_OPTIONS,
    option_enum(ATTEND_FIELD(precision), "\"bf16\"", precisions,
                "of the products: fp32 is flash-attention-v2; int8 and fp8 (e4m3) have scales, and what follows"),
    option_int(ATTEND_FIELD(quant_block_q), "128", quant_range, "queries that share a scale; a multiple of 16",
               "precision=int8 | precision=fp8"),
    option_int(ATTEND_FIELD(quant_block_k), "64", quant_range, "keys that share a scale; a multiple of 16",
               "precision=int8 | precision=fp8"),
    option_enum(ATTEND_FIELD(smooth_k), "\"auto\"", choices,
                "quantise keys less their mean, which changes no weight; auto: with int8 and fp8"),
    option_enum(ATTEND_FIELD(incoherent), "\"auto\"", choices,
                "rotate queries and keys by a random Hadamard matrix, which spreads outliers; auto: with int8 and fp8"),
    option_int(ATTEND_FIELD(hadamard_seed), "0", {0, uint64_limit}, "seed of the rotation's signs",
               "precision=int8 & incoherent!=false | precision=fp8 & incoherent!=false"),
    option_bool(ATTEND_FIELD(smooth_v), false, "round values less their mean, which the output gets back"),
    option_enum(ATTEND_FIELD(p_precision), "\"auto\"", grids,
                "of the weights in the value product; auto: fp32 with fp32, else bf16; e4m3 with fp8 alone"),
    option_enum(ATTEND_FIELD(v_precision), "\"auto\"", grids,
                "of the values; auto: fp32 with fp32, e4m3 with fp8, else bf16; e4m3 with fp8 alone"),
    option_int(ATTEND_FIELD(pipeline_stages), "2", {1, 4},
               "tiles in flight; the processor overlaps products and softmax by itself, and no bit depends on this"),
    option_real(ATTEND_FIELD(max_error), "0", {0, no_limit},
                "refuse the call if the bound of an output's error, computed from the tensors, is larger; 0: no check"),
};

constexpr attend_port port_table[] = {ATTEND_FLASH_PORTS};

bool is_scaled(const Options& options) { return options.precision == int8 || options.precision == fp8; }

attend_status refuse_option(attend_error* error, const char* name, const char* value, const char* accepted) {
    return (Message() << mechanism << ": option \"" << name << "\" is " << value << "; accepted: " << accepted)
        .fail(error, ATTEND_BAD_OPTION, name);
}

attend_status check_grid(const Options& options, const char* name, int32_t grid, attend_error* error) {
    if (options.precision == fp32 && grid != grid_auto && grid != grid_fp32)
        return refuse_option(error, name, grids[grid], "auto or fp32 where precision is fp32");
    if (options.precision != fp8 && grid == grid_e4m3)
        return (Message() << mechanism << ": option \"" << name << "\" is e4m3 and precision is "
                          << precisions[options.precision] << "; accepted: e4m3 with precision fp8 alone")
            .fail(error, ATTEND_BAD_OPTION, name);
    return ATTEND_OK;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    attend_status status = check_flash(mechanism, options.flash, args, error);
    if (status != ATTEND_OK) return status;
    if (args.desc->head_dim > 1024)
        return (Message() << mechanism << ": head width " << args.desc->head_dim << "; accepted: 1 to 1024")
            .fail(error, ATTEND_BAD_SHAPE, "query");
    const struct {
        const char* name;
        int64_t value;
    } blocks[] = {{"quant_block_q", options.quant_block_q}, {"quant_block_k", options.quant_block_k}};
    for (const auto& block : blocks)
        if (block.value % 16 != 0)
            return (Message() << mechanism << ": option \"" << block.name << "\" is " << block.value
                              << "; accepted: multiples of 16 from 16 to 1024")
                .fail(error, ATTEND_BAD_OPTION, block.name);
    const struct {
        const char* name;
        bool on;
    } scaled_alone[] = {{"smooth_k", options.smooth_k == choice_true},
                        {"incoherent", options.incoherent == choice_true},
                        {"smooth_v", options.smooth_v != 0}};
    for (const auto& option : scaled_alone)
        if (option.on && !is_scaled(options))
            return (Message() << mechanism << ": option \"" << option.name << "\" is true and precision is "
                              << precisions[options.precision] << "; accepted: true with precision int8 or fp8")
                .fail(error, ATTEND_BAD_OPTION, option.name);
    if (options.smooth_v != 0 && args.desc->dropout > 0.0)
        return refuse_option(error, "smooth_v", "true beside dropout", "smooth_v without dropout");
    status = check_grid(options, "p_precision", options.p_precision, error);
    return status != ATTEND_OK ? status : check_grid(options, "v_precision", options.v_precision, error);
}

uint32_t format_of(int32_t grid, uint32_t automatic) {
    return grid == grid_auto   ? automatic
           : grid == grid_fp32 ? ATTEND_ROUND_NONE
           : grid == grid_bf16 ? ATTEND_ROUND_BF16
                               : ATTEND_ROUND_E4M3;
}

attend_quantised_problem quantised(const Options& options, const attend_tile_problem& tile) {
    attend_quantised_problem problem{};
    problem.tile = &tile;
    problem.name = mechanism;
    problem.scores = options.precision == bf16   ? ATTEND_ROUND_BF16
                     : options.precision == int8 ? ATTEND_ROUND_INT8
                                                 : ATTEND_ROUND_E4M3;
    problem.weights = format_of(options.p_precision, ATTEND_ROUND_BF16);
    problem.values = format_of(options.v_precision, options.precision == fp8 ? ATTEND_ROUND_E4M3 : ATTEND_ROUND_BF16);
    if (is_scaled(options) && options.smooth_k != choice_false) problem.flags |= ATTEND_QUANTISED_SMOOTH_KEYS;
    if (is_scaled(options) && options.incoherent != choice_false) problem.flags |= ATTEND_QUANTISED_INCOHERENT;
    if (options.smooth_v != 0) problem.flags |= ATTEND_QUANTISED_SMOOTH_VALUES;
    problem.block_q = options.quant_block_q;
    problem.block_k = options.quant_block_k;
    problem.hadamard_seed = static_cast<uint64_t>(options.hadamard_seed);
    problem.max_error = options.max_error;
    return problem;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    if (options.precision == fp32) return flash_workspace(options.flash, args);
    return with_tile_shapes(*args.desc, options.flash.query_side(), options.flash.key_side(),
                            [&](const attend_tile_problem& tile) {
                                const attend_quantised_problem problem = quantised(options, tile);
                                return ATTEND_KERNEL(attend_quantised_workspace)(&problem, args.desc->max_workers);
                            });
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    FlashCall call(args);
    const attend_status filled = call.fill(options.flash, args, context);
    if (filled != ATTEND_OK) return filled;
    if (options.precision == fp32) return run_tiles(call.tile, context);
    const attend_quantised_problem problem = quantised(options, call.tile.problem);
    return ATTEND_KERNEL(attend_quantised_forward)(&problem, &context);
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    softmax_cost(*args.desc, visible_pairs(*args.desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    flash_attention_v3,
    described<check, workspace, forward, cost>(
        {.name = "flash-attention-v3",
         .category = "flash",
         .title = "FlashAttention-3",
         .summary =
             "Attention in tiles with products in bf16, int8 or fp8: the rounding is defined to the bit, and the "
             "error has a bound that a call may insist on.",
         .reference = "Shah et al. 2024, FlashAttention-3, arXiv:2407.08608",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula =
             "precision bf16: s_ij = scale bf16(q_i).bf16(k_j)\n"
             "precision int8, fp8: q'_i = R(q_i), k'_j = R(k_j - mean k), rounded to codes with one scale per block;\n"
             "s_ij = scale sq sk code(q'_i).code(k'_j)\n"
             "e_ij = exp(s_ij - max_j s_ij),  o_i = sum_j p_precision(e_ij) v_precision(v_j) / sum_j e_ij",
         .cost = "As flash-attention-v2, where the processor has the instructions at twice its rate with bf16 and more "
                 "with "
                 "int8, and one pass over the keys for scales and codes.",
         .use =
             "Long sequences where an error of a few parts in a thousand (bf16) or in a hundred (int8, fp8) is no "
             "harm. "
             "With outliers in the keys leave smooth_k and incoherent on. For exact results take flash-attention-v2.",
         .example = "attend compute flash-attention-v3 --sequence-length 1024 --heads 8 --precision int8"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
