// SPDX-License-Identifier: Apache-2.0
// flash-attention-v2: exact softmax attention in O(N) extra memory, by tiles over queries and keys.
//
// Paper    Dao 2023, "FlashAttention-2", arXiv:2307.08691
// Formula  o_i = sum_j softmax_j(softcap(scale q_i . k_j) + bias_ij - m_h |i' - j|) v_j over the visible keys
// Cost     2 B H A (D + Dv) flops for A visible pairs; memory: the output and one tile per thread
// Differs  empty rows have LSE minus infinity; ALiBi is -m |i' - j| in every mode, so LSE differs from m * j forms;
//          softcap comes before biases

#include "flash_options.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    FlashOptions flash;
};

constexpr OptionRow option_table[] = {ATTEND_FLASH_OPTIONS};
constexpr attend_port port_table[] = {ATTEND_FLASH_PORTS};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    return check_flash("flash-attention-v2", options.flash, args, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) { return flash_workspace(options.flash, args); }

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    FlashCall call(args);
    const attend_status filled = call.fill(options.flash, args, context);
    return filled != ATTEND_OK ? filled : run_tiles(call.tile, context);
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    softmax_cost(*args.desc, visible_pairs(*args.desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    flash_attention_v2,
    described<check, workspace, forward, cost>(
        {.name = "flash-attention-v2",
         .category = "flash",
         .title = "FlashAttention-2",
         .summary = "Exact attention in tiles: the scores are never stored, so memory "
                    "grows with the length, not with its square.",
         .reference = "Dao 2023, FlashAttention-2, arXiv:2307.08691",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .formula = "s_ij = scale q_i.k_j (capped, biased, masked) over visible keys j, tile by tile with a running "
                    "maximum and sum\n"
                    "o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "Every query meets every key; scores live in a tile of the cache only, so memory grows with the "
                 "lengths. bf16 inputs use the processor's dot products where it has them.",
         .use = "Exact attention on ready-made heads of any length that dense cost allows: the fastest exact choice, "
                "and the reference for the approximate ones. For learned projections take standard-mha.",
         .example = "attend compute flash-attention-v2 --sequence-length 1024 --heads 8 --causal"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
