/* SPDX-License-Identifier: Apache-2.0 */
/* C interface of the gather engine: softmax attention of rows whose keys are lists of indices, such as keys drawn at
   random. O(Nq k) work for k keys per row, and no memory that grows with the number of keys. Everything else means what it
   means in the tile engine (toolkit.h). */
#ifndef ATTEND_TOOLKIT_GATHER_H
#define ATTEND_TOOLKIT_GATHER_H

#include "attend/toolkit.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes the keys of query row i of head h, ascending and distinct within [0, Nk), into list, and returns how many: at most
   most_keys. kv_len is the key length of the item. Rows of one group get one list: that of the group's first row. memory has
   list_ints entries, the worker's own. */
typedef int64_t (*attend_gather_keys_fn)(const void *user, int64_t batch, int64_t head, int64_t row, int64_t position,
                                         int64_t kv_len, int32_t *list, int32_t *memory);

#define ATTEND_GATHER_HEADS_SHARE (1u << 0) /* all heads have the list of head 0 */

/* `call` has one segment, no keys, keep or score hooks, no index maps and no tile hooks; the mean of scores over heads is not
   offered. A key that causal, window, length, mask or bias hides is not read. Groups of at least 8 rows that share a list go
   through the tile engine on a copy of their keys; the others row by row,
   or, with at most 24 keys each, a vector of rows at a time. bf16 and f16 are widened to float32. */
typedef struct attend_gather_problem {
    const attend_tile_problem *call;
    uint32_t flags, reserved0;
    attend_gather_keys_fn keys;
    const void *keys_user;
    int64_t most_keys;
    int64_t list_ints;
    int64_t group_rows; /* rows [n g, (n + 1) g) share a list; 0 and 1: every row has its own */
} attend_gather_problem;

/* Scratch, from shapes alone (data pointers may be NULL). */
uint64_t ATTEND_KERNEL(attend_gather_workspace)(const attend_gather_problem *problem, uint32_t max_workers);
attend_status ATTEND_KERNEL(attend_gather_forward)(const attend_gather_problem *problem, const attend_context *context);

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_GATHER_H */
