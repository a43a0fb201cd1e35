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
    const int32_t *lane_head;     /* h, the query head; with maps, the map's head for it */
    const int32_t *lane_position; /* i' = i + offset of the item: the query's place on the key axis, cut at +-2^30 */
    const int32_t *lane_row;      /* row of the query tensor */
    int64_t map;                  /* number of the softmax map (attend_tile_hooks), 0 without maps */
    float *queries;               /* [D][lane_stride], times scale: what the product reads; NULL with products of bf16 pairs */
    float *memory;                /* tile_floats of attend_tile_hooks, kept from the tile's start to its end; NULL if 0 */
} attend_query_tile;

struct attend_key_segment;

/* Rows of keys that the query tiles of a group share, as float32: keys[row * row_stride + d * feature_stride] is
   feature d of main key first_key + row. */
typedef struct attend_key_block {
    const struct attend_key_segment *segment;
    int64_t batch, kv_head, map;
    int64_t first_key, num_keys;
    int64_t first_position, last_position; /* smallest and largest lane_position of the tiles of the group */
    float *keys;                           /* may be changed by the keys hook alone */
    int64_t row_stride, feature_stride;
    float *memory;                         /* block_floats, the worker's own: kept until its next block */
} attend_key_block;

/* A tile of scores: scores[row * queries->lane_stride + lane] belongs to key first_key + row (or key_index[row] where
   that is not NULL). A hook may write any lane of the stride; what it writes past num_lanes is never used. */
typedef struct attend_score_tile {
    const attend_query_tile *queries;
    float *scores;
    int64_t first_key, num_keys;
    const int32_t *key_index;
    const attend_key_block *block; /* what the rows belong to: row r is row first_key - block->first_key + r; NULL without hooks */
    float *scratch;                /* scratch_floats of attend_tile_hooks, the worker's own; NULL if 0 */
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
    const attend_tensor *const *map_key; /* the keys of each softmax map, shaped as key; NULL: `key` for all maps */
} attend_key_segment;

/* Hooks of mechanisms beside `score`, `keys` and `keep`. All functions are called by one worker at a time with its own
   tile, may be NULL, and get `user`. Any of them (finish alone excepted) keeps bf16 tensors off the products of bf16 pairs; calls with
   hooks do not go the way of few queries. */

/* Queries of a tile have been loaded: changes tile->queries in place, prepares tile->memory. */
typedef void (*attend_queries_fn)(const void *user, const attend_query_tile *tile);
/* A block of keys has been taken up for a group of tiles: changes a copy of the keys (with ATTEND_HOOKS_CHANGE_KEYS, then rows
   lie without gaps), prepares block->memory. Not called for always-visible segments. */
typedef void (*attend_key_block_fn)(const void *user, const attend_key_block *block);
/* Scores have become weights relative to the row's running base, dropout included, hidden ones zero: adds to sums
   [num_sums][lane_stride], which the engine rescales and normalises like the output. */
typedef void (*attend_weights_fn)(const void *user, const attend_score_tile *tile, float *sums);

typedef struct attend_finished_tile {
    const attend_query_tile *queries; /* of map 0 */
    float *values;                    /* [Dv][lane_stride], normalised; of map 0: what will be stored */
    float *sums;                      /* [num_sums][lane_stride], normalised */
    float *lse;                       /* [lane_stride], natural logarithm; what will be stored. NULL without ATTEND_HOOKS_LSE */
    float *const *map_values;         /* num_maps times values */
    float *const *map_lse;            /* num_maps times lse; NULL without ATTEND_HOOKS_LSE */
} attend_finished_tile;
/* All keys have been seen: changes values (and lse) before they are stored. */
typedef void (*attend_finish_fn)(const void *user, const attend_finished_tile *tile);

#define ATTEND_KEYS_NONE 0u
#define ATTEND_KEYS_SOME 1u
#define ATTEND_KEYS_ALL 2u
/* Which of the keys [begin, end) the tile's map sees; for SOME the problem's keep hook decides pair by pair. */
typedef uint32_t (*attend_map_keys_fn)(const void *user, const attend_query_tile *tile, int64_t begin, int64_t end);
/* Factor of each lane's weights in `scores`, which are summed over the maps; called after finish. */
typedef void (*attend_map_share_fn)(const void *user, const attend_query_tile *tile, float *share);

/* One of several softmax maps over the same rows and values; head h of the output reads the map's query head h and counts
   as head first_head + h * head_step in mask, bias, dropout and lane_head. */
typedef struct attend_softmax_map {
    const attend_tensor *query; /* as the problem's query, which is that of map 0 */
    const attend_tensor *lse;   /* [B, Hq, Nq], written, or NULL */
    int64_t first_head, head_step;
} attend_softmax_map;

#define ATTEND_HOOKS_CHANGE_KEYS (1u << 0)
#define ATTEND_HOOKS_LSE (1u << 1)         /* finish and close read lse */
#define ATTEND_HOOKS_SHARED_SCORES (1u << 2) /* all maps have the scores of map 0, which are computed once; each hides its own */

typedef struct attend_tile_hooks {
    uint32_t flags, num_maps; /* 0 or 1: one */
    const void *user;
    attend_queries_fn queries;
    attend_key_block_fn keys;
    attend_score_fn content; /* changes scores after scale and before softcap */
    attend_weights_fn weights;
    attend_finish_fn finish;
    /* Called after each range that the problem's keys hook has visited, with that range's softmax alone; then the
       softmax starts anew. What the rows become in the end, values and lse, is left to finish. The ranges must be the
       same for all tiles of an item. */
    attend_finish_fn close;
    int64_t num_sums;
    int64_t tile_floats, block_floats, scratch_floats;
    int64_t max_group; /* upper bound of the tiles that share a block; 0 = the engine chooses */
    const attend_softmax_map *maps;
    attend_map_keys_fn map_keys;
    attend_map_share_fn map_share;
    int64_t mask_heads; /* extent of mask and bias in the dimension of heads; 0 = Hq */
} attend_tile_hooks;

#define ATTEND_TILE_CAUSAL (1u << 0)
#define ATTEND_TILE_OFFSET_PER_ITEM (1u << 1) /* offset = key length - query length of the item, a missing one whole */
#define ATTEND_TILE_AVERAGE_SCORES (1u << 2)  /* scores is [B, Nq, Nk], the mean over heads */
#define ATTEND_TILE_SCORE_HIDES (1u << 3)     /* the score hook may write minus infinity */
#define ATTEND_TILE_WIDEN (1u << 4)           /* bf16 is widened to float32, also where the processor has bf16 dots */
#define ATTEND_TILE_LEAVES_STATE (1u << 5)    /* the softmax goes on in another call: no results yet, but its state */
#define ATTEND_TILE_TAKES_STATE (1u << 6)     /* the softmax goes on from the state that another call has left */
#define ATTEND_TILE_LOGITS (1u << 7)          /* with num_rows: scores are what the softmax gets, minus infinity where hidden */

/* How the keys and values of the first segment are kept: in pages, as codes, in parts that are computed apart.

   pages: key is [P, Hkv, S, D], value [P, Hkv, S, Dv]; key j of item b is row j % S of page pages[b, j / S], and the
   segment has pages->shape[1] * S keys. Only entries below an item's key length are read, and must be below P.

   Codes: key and value are int8, or uint8 with the bits of fp8 e4m3, and stand for code * scale. key_scale and value_scale
   are float32 [B, Hkv, n], one scale for every scale_keys keys; with pages [P, Hkv, n], counted within a page.

   Rounding: float32 keys and values count as if they were stored in a narrower type (to nearest, ties to even). */
#define ATTEND_STORE_AS_IT_IS 0u
#define ATTEND_STORE_ROUND_BF16 1u
#define ATTEND_STORE_ROUND_F16 2u
typedef struct attend_key_store {
    const attend_tensor *pages;                   /* int32 [B, n], or NULL */
    const attend_tensor *key_scale, *value_scale; /* or NULL */
    int64_t scale_keys;
    int64_t splits, split_keys; /* few queries: an item's keys in so many parts of whole split_keys; 0 = the engine chooses */
    uint32_t rounding, reserved;
} attend_key_store;

/* Softmax attention over tiles: for each query i and visible key j
     s = softcap(scale * q_i . k_j);  s = score hook(s) + bias_ij;  p = softmax_j(s);  o_i = sum_j keep_ij p_ij v_j / (1 - dropout)
   Visible: causal, window, lengths, boolean mask, keys hook with keep hook, bias and hook not minus infinity. Hidden keys
   are selected away, never multiplied. A row without keys is zero with LSE minus infinity, and so is a row whose i is not
   below the query length. Output bits do not depend on the number of workers. Zero-initialise the struct and set what
   applies (scale is taken as it is; windows: -1 is unlimited); NULL and 0 mean absent. At least one of output, lse and
   scores is given.

   With query_index and key_index the rows of the tensors stand for other indices i and j: those count in lengths, causal,
   window, mask, bias and dropout. Output, lse and scores stay addressed by row, and the keys hook visits rows. key_index
   covers the main segments; always-visible keys keep their row number as j.

   One softmax may span several calls, each of which sees other keys of the same rows, in other tiles and another order
   of rows if that suits it. All but the last leave their state, all but the first take it: state_max and state_sum have
   the largest score and the sum of weights of each row, output (float32) the unnormalised values. Such calls have no
   hooks and no scores, those that leave their state no lse; types, scale, softcap, score hook and ATTEND_TILE_WIDEN are
   the same in all of them, and so is whether there is a bias. */
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
    const attend_tile_hooks *hooks;
    const attend_tensor *state_max, *state_sum; /* float32 [B, Hq, Nq], with ATTEND_TILE_LEAVES_STATE and _TAKES_STATE */
    const attend_key_store *store;
    /* Only the rows [first_row, first_row + num_rows) of `scores` are written, which has all Nq rows; without output and lse.
       num_rows 0 = all. Weights have the bits that they have in the whole call. */
    int64_t first_row, num_rows;
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
