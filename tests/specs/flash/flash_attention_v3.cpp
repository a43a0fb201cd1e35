// SPDX-License-Identifier: Apache-2.0
// The rounding of the text in double precision, except that of the weights: what base they are rounded at depends on the
// tiles, so outputs agree within the unit of bf16. Identities look at float32 weights more closely.
#include "specs/flash/quantised.hpp"

namespace {
const specs::Registration spec(
    {.mechanism = "flash-attention-v3",
     .oracle =
         [](const specs::Call& call) {
             const specs::quantised::Rounded rounded(call);
             return specs::quantised::solved_rounded(call, rounded);
         },
     .variants = {{{"causal", true}},
                  {{"window_left", 3}, {"window_right", 9}},
                  {{"softcap", 1.5}},
                  {{"dropout", 0.3}, {"seed", 77}, {"rng_offset", 5}},
                  {{"p_precision", "fp32"}, {"v_precision", "fp32"}},
                  {{"block_size_q", 16}, {"block_size_kv", 64}, {"causal", true}},
                  {{"precision", "fp32"}, {"window_size", 5}},
                  {{"precision", "int8"}},
                  {{"precision", "int8"}, {"causal", true}, {"quant_block_k", 16}, {"quant_block_q", 16}},
                  {{"precision", "int8"}, {"softcap", 1.5}},
                  {{"precision", "int8"}, {"smooth_k", false}, {"incoherent", false}},
                  {{"precision", "int8"}, {"smooth_v", true}, {"window_size", 7}},
                  {{"precision", "int8"}, {"dropout", 0.3}, {"seed", 77}, {"scale", 0.31}},
                  {{"precision", "fp8"}},
                  {{"precision", "fp8"}, {"incoherent", false}, {"softcap", 1.5}, {"quant_block_k", 16}},
                  {{"precision", "fp8"}, {"smooth_k", false}, {"v_precision", "bf16"}, {"causal", true}},
                  {{"precision", "fp8"}, {"smooth_v", true}, {"p_precision", "fp32"}}},
     .exempt = {{"ones", "weights are rounded, their sums are not"},
                {"scores", "weights and values are rounded for the product"}},
     .tolerance = 0x1p-8});
}
