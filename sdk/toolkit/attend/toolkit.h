/* SPDX-License-Identifier: Apache-2.0 */
/* C interface of the engines (library Attend::toolkit), for kernels: files that are compiled once per instruction
   set. Every function carries the set in its name through ATTEND_KERNEL, so `ATTEND_KERNEL(attend_tile_forward)` is
   attend_tile_forward_avx2 in the avx2 compilation of the same file.

   Shapes: B batch, Hq query heads, Hkv key/value heads, Nq queries, Nk keys, D head width, Dv value width. Query head
   h reads key/value head h * Hkv / Hq. Tensors are float32 with arbitrary strides unless a field says otherwise; query,
   key, value and output may be bf16 or f16 (arithmetic is float32 or bf16 dots, the output is rounded once).

   The hooks work on a whole tile at a time: one ordinary function per tile, called through a pointer. Scores are
   stored with keys as rows and queries as lanes, so a hook is a loop over rows with a vectorisable loop over lanes
   inside; a hook in plain C compiled with -O3 runs at the engine's speed. */
#ifndef ATTEND_TOOLKIT_H
#define ATTEND_TOOLKIT_H

#include "attend/plugin.h"

#ifndef ATTEND_ISA
#error "toolkit.h is for kernels: list the file under KERNELS of attend_add_plugin()"
#endif
#define ATTEND_JOIN_(a, b) a##_##b
#define ATTEND_JOIN(a, b) ATTEND_JOIN_(a, b)
#define ATTEND_KERNEL(name) ATTEND_JOIN(name, ATTEND_ISA)

#ifdef __cplusplus
extern "C" {
#endif

/* A tile of queries: the lanes. Arrays have lane_stride entries; entries past num_lanes repeat the last lane. */
typedef struct attend_query_tile {
    int64_t batch, kv_head;
    int64_t num_lanes, lane_stride;
    int64_t first_position, last_position; /* smallest and largest lane_position */
    int64_t kv_len;                        /* keys of the main segments, cut at this item's key length */
    const int32_t *lane_query;    /* i, the logical query index */
    const int32_t *lane_head;     /* h, the query head */
    const int32_t *lane_position; /* i' = i + offset of the item: the query's place on the key axis, cut at +-2^30 */
} attend_query_tile;

/* A tile of scores: scores[row * queries->lane_stride + lane] belongs to key first_key + row (or key_index[row] where
   that is not NULL). A hook may write any lane of the stride; what it writes past num_lanes is never used. */
typedef struct attend_score_tile {
    const attend_query_tile *queries;
    float *scores;
    int64_t first_key, num_keys;
    const int32_t *key_index;
} attend_score_tile;

/* Changes scores in place (minus infinity hides a key), after scale and softcap, before bias, mask and softmax. */
typedef void (*attend_score_fn)(const void *user, const attend_score_tile *tile);

#define ATTEND_KEYS_PARTIAL (1u << 0) /* some pairs of the range are hidden: the keep hook decides each */

/* Visits the ranges [begin, end) of keys that a query tile may see, ascending and disjoint, within [0, kv_len).
   Keys that no lane sees should not be visited: they are then neither read nor multiplied. */
typedef void (*attend_key_visit_fn)(void *visitor, int64_t begin, int64_t end, uint32_t flags);
typedef void (*attend_keys_fn)(const void *user, const attend_query_tile *tile, attend_key_visit_fn visit, void *visitor);

#define ATTEND_SEGMENT_ALWAYS_VISIBLE (1u << 0) /* causal, window, key lengths, mask, bias, keys hook do not apply */
#define ATTEND_SEGMENT_NO_DROPOUT (1u << 1)     /* weights of these keys are never dropped, nor scaled for it */

/* Keys and values that follow each other on the key axis: a cache in front, learned keys behind, and so on. Main
   segments come first and are numbered through from 0; always-visible ones follow and continue the numbering. The
   score hook is called for always-visible keys too: it tells them by first_key, which is then at least Nk. */
typedef struct attend_key_segment {
    /* [B, Hkv, n, D], [B, Hkv, n, Dv]; batch may have stride 0. Of one type: main segments as query, or narrower under
       float32 queries; always-visible ones any of the three. */
    const attend_tensor *key, *value;
    uint32_t flags, reserved0;
} attend_key_segment;

#define ATTEND_TILE_CAUSAL (1u << 0)
#define ATTEND_TILE_OFFSET_PER_ITEM (1u << 1) /* offset = key length - query length of the item */
#define ATTEND_TILE_AVERAGE_SCORES (1u << 2)  /* scores is [B, Nq, Nk], the mean over heads */
#define ATTEND_TILE_SCORE_HIDES (1u << 3)     /* the score hook may write minus infinity */
#define ATTEND_TILE_WIDEN (1u << 4)           /* bf16 is widened to float32, also where the processor has bf16 dots */

/* Softmax attention over tiles: for each query i and visible key j
     s = softcap(scale * q_i . k_j);  s = score hook(s) + bias_ij;  p = softmax_j(s);  o_i = sum_j keep_ij p_ij v_j / (1 - dropout)
   Visible: causal, window, lengths, boolean mask, keys hook with keep hook, bias and hook not minus infinity. Hidden keys
   are selected away, never multiplied. A row without keys is zero with LSE minus infinity, and so is a row whose i is not
   below the query length. Output bits do not depend on the number of workers. Zero-initialise the struct and set what
   applies (scale is taken as it is; windows: -1 is unlimited); NULL and 0 mean absent. At least one of output, lse and
   scores is given.

   With query_index and key_index the rows of the tensors stand for other indices i and j: those count in lengths, causal,
   window, mask, bias and dropout. Output, lse and scores stay addressed by row, and the keys hook visits rows. key_index
   covers the main segments; always-visible keys keep their row number as j. */
typedef struct attend_tile_problem {
    uint32_t flags, num_segments;
    const attend_tensor *query;         /* [B, Hq, Nq, D]; float32, bf16 or f16 */
    const attend_key_segment *segments; /* at least one */
    const attend_tensor *output;        /* [B, Hq, Nq, Dv], written; float32 or as query; NULL: only lse or scores */
    const attend_tensor *lse;           /* [B, Hq, Nq], written; natural logarithm */
    const attend_tensor *scores;        /* [B, Hq, Nq, Nk'], written: weights after softmax, before dropout; Nk' counts all segments */
    const attend_tensor *mask;          /* uint8 broadcast to [B, Hq, Nq, Nk] by zero strides, rank 4; non-zero = may attend */
    const attend_tensor *bias;          /* float, as mask */
    const attend_tensor *query_lengths, *key_lengths; /* int32 or int64 [B], 0 to N */
    int64_t causal_offset;              /* position of query 0 on the key axis */
    int64_t window_left, window_right;  /* keys left and right of the position; -1 = unlimited */
    double scale;                       /* as is: 0 means 0 */
    double softcap;                     /* 0 = off */
    double dropout;
    uint64_t seed, rng_offset;
    int64_t dropout_heads, dropout_head; /* heads in the counter and number of head 0; 0 = Hq, 0 */
    int64_t max_query_tile, max_key_tile; /* upper bounds of the tile sides; 0 = the engine chooses */
    attend_keys_fn keys;
    const void *keys_user;
    attend_score_fn keep; /* called on partial ranges of keys: minus infinity for what is hidden */
    const void *keep_user;
    attend_score_fn score;
    const void *score_user;
    const int32_t *query_index, *key_index; /* logical i and j of each row, ascending; NULL = the row number */
} attend_tile_problem;

/* Scratch for attend_tile_forward, from shapes alone (data pointers may be NULL). */
uint64_t ATTEND_KERNEL(attend_tile_workspace)(const attend_tile_problem *problem, uint32_t max_workers);
attend_status ATTEND_KERNEL(attend_tile_forward)(const attend_tile_problem *problem, const attend_context *context);

/* y = x W^T + b. input [B, N, E], weight [O, E], bias [O] or NULL, output [B, N, O]: each with any strides, each float32,
   bfloat16 or float16. Sums are float32, in blocks of ascending E; the output is rounded once. Input and weight both
   bfloat16: products by the processor's dot instruction where it has one (subnormal numbers count as zero there), else,
   like all other pairs of types, as float32. A token's bits depend on neither the other tokens nor the workers. */
typedef struct attend_projection {
    const attend_tensor *input, *weight, *bias, *output;
} attend_projection;
uint64_t ATTEND_KERNEL(attend_projection_workspace)(const attend_projection *projection, uint32_t max_workers);
attend_status ATTEND_KERNEL(attend_projection_forward)(const attend_projection *projection, const attend_context *context);

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_H */
