/* SPDX-License-Identifier: Apache-2.0 */
/* Attention of the tile engine in low precision: keys and queries as int8, e4m3 or bf16, weights and values rounded to
   bf16 or e4m3, everything else (masks, windows, biases, lengths, dropout, outputs) as attend_tile_forward does it.

   The two scaled formats (int8, e4m3) quantise k' and q' with one float32 scale for block_k keys of a key head and for
   block_q rows of a query head, blocks from row 0, rows past an item's length left out:
     k' = R(k - mean of the item's keys, with SMOOTH_KEYS), q' = R(q), R the rotation of toolkit/quantised/rotation.hpp
     with INCOHERENT, else nothing;  s = ((scale sq) sk) (sum of the products of codes)
   What the mean takes from a row's scores is added before a soft cap, and to lse without one. Sums of weights are those
   before rounding. */
#ifndef ATTEND_TOOLKIT_QUANTISED_H
#define ATTEND_TOOLKIT_QUANTISED_H

#include "attend/toolkit.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Formats: of scores ROUND_BF16, _INT8, _E4M3; of weights and values ROUND_NONE, _BF16, _E4M3 (this one with scores of
   e4m3). Values of e4m3 have a scale for each channel of a key head. */
#define ATTEND_ROUND_NONE 0u
#define ATTEND_ROUND_BF16 1u
#define ATTEND_ROUND_INT8 2u
#define ATTEND_ROUND_E4M3 3u

#define ATTEND_QUANTISED_SMOOTH_KEYS (1u << 0)   /* the scaled formats alone, like the next two */
#define ATTEND_QUANTISED_INCOHERENT (1u << 1)
#define ATTEND_QUANTISED_SMOOTH_VALUES (1u << 2) /* values less their mean, which rows with keys get back; no dropout */

typedef struct attend_quantised_problem {
    const attend_tile_problem *tile; /* one segment, no hooks, no state, no index lists, no mean over heads; head width at most 1024 */
    uint32_t flags, scores, weights, values;
    int64_t block_q, block_k; /* multiples of 16, 16 to 1024 */
    uint64_t hadamard_seed;
    double max_error;         /* above 0: refused with ATTEND_BAD_OPTION if the bound of the errors is larger */
    const char *name;         /* of the mechanism, for messages */
} attend_quantised_problem;

/* Scratch, from shapes, formats, flags, blocks and whether there is a max_error. */
uint64_t ATTEND_KERNEL(attend_quantised_workspace)(const attend_quantised_problem *problem, uint32_t max_workers);
/* Scaled formats refuse queries, keys or values within the lengths that are not finite (ATTEND_NUMERIC). */
attend_status ATTEND_KERNEL(attend_quantised_forward)(const attend_quantised_problem *problem, const attend_context *context);

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_QUANTISED_H */
