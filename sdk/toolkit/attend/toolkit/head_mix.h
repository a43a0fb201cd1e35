/* SPDX-License-Identifier: Apache-2.0 */
/* C interface of the head-mixing engine: softmax attention whose scores and weights are mixed across heads,

     J[k] = scale Q_k K_k^T,   L[s] = sum_k J[k] pre_mix[k, s] + pre_bias[s],   W[s] = softmax_j(softcap(L[s]) + bias[s])
     U[v] = sum_s W[s] post_mix[s, v] + post_bias[v],                          O[v] = sum_j keep_ij U[v]_ij V[v]_j / (1 - dropout)

   All heads of a tile of queries and keys are held together; nothing of the size queries x keys is. With post_mix keys are
   read twice: once for the logarithms of the sums, once for weights that are normalised before they are mixed. */
#ifndef ATTEND_TOOLKIT_HEAD_MIX_H
#define ATTEND_TOOLKIT_HEAD_MIX_H

#include "attend/toolkit.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Hk score heads, Hs softmax heads, Hv value heads. NULL means absent: without pre_mix Hs = Hk, without post_mix Hv = Hs.
   Visible: causal, window, lengths, mask and bias of the softmax head; hidden pairs are selected away after the first
   mixing, never multiplied. post_bias counts where a pair is visible in any softmax head, and so do values. A row that no
   softmax head sees anything in is zero; lse is minus infinity wherever a softmax head sees nothing, and for rows at or
   past the query length. Dropout is drawn per value head. Output bits do not depend on the number of workers. */
typedef struct attend_head_mix_problem {
    uint32_t flags, reserved0;          /* ATTEND_TILE_CAUSAL, ATTEND_TILE_OFFSET_PER_ITEM */
    const attend_tensor *query, *key;   /* [B, Hk, Nq, D], [B, Hk, Nk, D]; float32, bf16 or f16 */
    const attend_tensor *value;         /* [B, Hv, Nk, Dv]; key and value of one type: that of query, or any under float32 */
    const attend_tensor *output;        /* [B, Hv, Nq, Dv], written; float32 or as query */
    const attend_tensor *lse;           /* [B, Hs, Nq], written; natural logarithm; NULL = not wanted */
    const attend_tensor *pre_mix, *pre_bias;   /* [Hk, Hs], [Hs] */
    const attend_tensor *post_mix, *post_bias; /* [Hs, Hv], [Hv] */
    const attend_tensor *mask, *bias;   /* uint8 (non-zero = may attend) and float, each extent of [B, Hs, Nq, Nk] or 1 */
    const attend_tensor *query_lengths, *key_lengths; /* int32 or int64 [B], 0 to N */
    int64_t causal_offset;              /* position of query 0 on the key axis */
    int64_t window_left, window_right;  /* keys left and right of the position; -1 = unlimited */
    double scale;                       /* as is: 0 means 0 */
    double softcap;                     /* 0 = off */
    double dropout;
    uint64_t seed, rng_offset;
    int64_t max_query_tile, max_key_tile; /* upper bounds of the tile sides; 0 = the engine chooses */
} attend_head_mix_problem;

/* Scratch for attend_head_mix_forward, from shapes alone (data pointers may be NULL). */
uint64_t ATTEND_KERNEL(attend_head_mix_workspace)(const attend_head_mix_problem *problem, uint32_t max_workers);
attend_status ATTEND_KERNEL(attend_head_mix_forward)(const attend_head_mix_problem *problem, const attend_context *context);

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_HEAD_MIX_H */
