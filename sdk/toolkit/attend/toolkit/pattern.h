/* SPDX-License-Identifier: Apache-2.0 */
/* C interface of key patterns: which keys a query reads, as a union of simple terms over its position p (the query's
   place on the key axis) and its head h. A pattern gives the tile engine its hooks keys and keep, and the extension
   attend.pattern/1 its answer; it stores nothing of the size of the sequence.

     attend_pattern_term terms[2] = {attend_pattern_band(128, 128), attend_pattern_range(0, 4)};
     attend_pattern pattern = {0, 2, terms, num_keys, 0, 1};
     problem.keys = ATTEND_KERNEL(attend_pattern_keys);  problem.keys_user = &pattern;
     problem.keep = ATTEND_KERNEL(attend_pattern_keep);  problem.keep_user = &pattern;

   A term may hold for some rows (by position) and some heads only: rows that see everything are the term
   attend_pattern_all() for those rows. Masks, lengths, windows and the diagonal are the engine's. Numbers of any size
   are fine; products that leave the key axis saturate. Divisions round down, remainders are not negative. */
#ifndef ATTEND_TOOLKIT_PATTERN_H
#define ATTEND_TOOLKIT_PATTERN_H

#include "attend/toolkit.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ATTEND_UNLIMITED INT64_MAX /* left, right, end, row_end: as far as there are keys or rows */
#define ATTEND_PATTERN_MOST_TERMS 16

/* Kinds of terms: the keys j that position p sees. width at least 1 where it is read. */
#define ATTEND_PATTERN_BAND 1u      /* p - left <= j <= p + right; either may be negative                       */
#define ATTEND_PATTERN_BLOCKS 2u    /* c - left <= floor(j / width) <= c + right, c = floor(p / width)          */
#define ATTEND_PATTERN_DILATED 3u   /* j = p + t width, -left <= t <= right                                     */
#define ATTEND_PATTERN_RING 4u      /* u - left .. u + right modulo end - begin, u = p - begin, j = begin + that;
                                       none for p outside [begin, end)                                          */
#define ATTEND_PATTERN_RANGE 5u     /* begin <= j < end                                                         */
#define ATTEND_PATTERN_COLUMNS 6u   /* begin <= j mod width < end                                               */
#define ATTEND_PATTERN_LISTED 7u    /* j in list                                                                */
#define ATTEND_PATTERN_BLOCK_MAP 8u /* block of j in blocks(block of p, h)                                      */

/* Rows that a term holds for, by their position. */
#define ATTEND_ROWS_ALL 0u
#define ATTEND_ROWS_RANGE 1u      /* row_begin <= p < row_end */
#define ATTEND_ROWS_OUTSIDE 2u    /* the others               */
#define ATTEND_ROWS_LISTED 3u     /* p in row_list            */
#define ATTEND_ROWS_NOT_LISTED 4u /* the others               */

/* Positions, ascending and distinct, from 0. */
typedef struct attend_pattern_list {
    const int32_t *items;
    int64_t count;
    const int64_t *offsets; /* NULL: one list of `count` for all items; else item b's begins at items[offsets[b]] */
} attend_pattern_list;

typedef struct attend_pattern_term {
    uint32_t kind, rows;
    int64_t left, right, width;
    int64_t begin, end;
    int64_t row_begin, row_end;
    attend_pattern_list list, row_list;
    const uint8_t *heads;   /* NULL: every head; else heads[h] is not 0 where the term holds */
    const int32_t *by_head; /* NULL, or head h's own number: width of DILATED, begin of COLUMNS (end moves with it) */
    /* BLOCK_MAP. width: block t is [t width, (t + 1) width); width 0: even_blocks blocks, t from floor(t Nk / n) on.
       blocks[h head_stride + I row_stride] and the next, most_blocks at most, are the key blocks of row block I:
       ascending, ended early by a negative one. I outside [0, num_row_blocks) sees nothing. */
    const int32_t *blocks;
    int64_t head_stride, row_stride, most_blocks, num_row_blocks, even_blocks;
} attend_pattern_term;

/* The caller cuts at the diagonal: what a term would add right of it need not be exact. */
#define ATTEND_PATTERN_CAUSAL (1u << 0)

typedef struct attend_pattern {
    uint32_t flags, num_terms; /* at most ATTEND_PATTERN_MOST_TERMS */
    const attend_pattern_term *terms;
    int64_t num_keys;            /* Nk; positions of keys are below it */
    int64_t key_first, key_step; /* row r of the keys stands for position key_first + r key_step; step 0 counts as 1 */
} attend_pattern;

/* Hooks keys and keep of attend_tile_problem; user is an attend_pattern. Ranges are coalesced; partial ones are those
   that some lane does not see whole. */
void ATTEND_KERNEL(attend_pattern_keys)(const void *pattern, const attend_query_tile *tile, attend_key_visit_fn visit,
                                        void *visitor);
void ATTEND_KERNEL(attend_pattern_keep)(const void *pattern, const attend_score_tile *tile);

/* max_query_tile for patterns of blocks: the largest number of lanes whose tiles do not reach over the edge of a block
   of `width` rows, with so many query heads to a key head; 0 (any) where that would leave most lanes idle. */
int64_t ATTEND_KERNEL(attend_pattern_query_tile)(int64_t width, int64_t heads_per_key_head);

/* Rows of one head, for the functions below. Position of row i: i + offset. */
typedef struct attend_pattern_rows {
    int64_t head, first_row, num_rows;
    int64_t rows_at_once; /* 0 counts as the tile of the engine: tile_rows, and where that is 0, too, 48 */
    int64_t tile_rows;
    int64_t offset;
    int64_t window_left, window_right; /* of the call, -1 = unlimited: cut like the diagonal does */
} attend_pattern_rows;

/* The answer of attend.pattern/1, for item 0: keys of the rows, rows_at_once at a time. ATTEND_PATTERN_CAUSAL cuts at
   the diagonal. One row at a time: the exact set, ranges as long as they get, steps where keys are evenly apart. */
void ATTEND_KERNEL(attend_pattern_visit)(const attend_pattern *pattern, const attend_pattern_rows *rows,
                                         attend_pattern_visit_fn visit, void *visitor);
/* Number of pairs of these rows and the keys that they see. */
double ATTEND_KERNEL(attend_pattern_pairs)(const attend_pattern *pattern, const attend_pattern_rows *rows);

/* Terms by name. */
static inline attend_pattern_term attend_pattern_term_of(uint32_t kind, int64_t left, int64_t right, int64_t width,
                                                         int64_t begin, int64_t end) {
    attend_pattern_term term = {kind, 0u, left, right, width, begin, end, 0, 0, {0, 0, 0}, {0, 0, 0}, 0, 0, 0,
                                0, 0, 0, 0, 0};
    return term;
}
static inline attend_pattern_term attend_pattern_band(int64_t left, int64_t right) {
    return attend_pattern_term_of(ATTEND_PATTERN_BAND, left, right, 1, 0, 0);
}
static inline attend_pattern_term attend_pattern_blocks(int64_t width, int64_t back, int64_t forward) {
    return attend_pattern_term_of(ATTEND_PATTERN_BLOCKS, back, forward, width, 0, 0);
}
static inline attend_pattern_term attend_pattern_dilated(int64_t step, int64_t left, int64_t right) {
    return attend_pattern_term_of(ATTEND_PATTERN_DILATED, left, right, step, 0, 0);
}
static inline attend_pattern_term attend_pattern_ring(int64_t begin, int64_t end, int64_t radius) {
    return attend_pattern_term_of(ATTEND_PATTERN_RING, radius, radius, 1, begin, end);
}
static inline attend_pattern_term attend_pattern_range(int64_t begin, int64_t end) {
    return attend_pattern_term_of(ATTEND_PATTERN_RANGE, 0, 0, 1, begin, end);
}
static inline attend_pattern_term attend_pattern_all(void) { return attend_pattern_range(0, ATTEND_UNLIMITED); }
static inline attend_pattern_term attend_pattern_columns(int64_t period, int64_t begin, int64_t end) {
    return attend_pattern_term_of(ATTEND_PATTERN_COLUMNS, 0, 0, period, begin, end);
}
static inline attend_pattern_term attend_pattern_listed(const int32_t *positions, int64_t count) {
    attend_pattern_term term = attend_pattern_term_of(ATTEND_PATTERN_LISTED, 0, 0, 1, 0, 0);
    term.list.items = positions;
    term.list.count = count;
    return term;
}
/* The same term for the positions [row_begin, row_end) alone, and for the others. */
static inline attend_pattern_term attend_pattern_for_rows(attend_pattern_term term, int64_t row_begin,
                                                          int64_t row_end) {
    term.rows = ATTEND_ROWS_RANGE;
    term.row_begin = row_begin;
    term.row_end = row_end;
    return term;
}
static inline attend_pattern_term attend_pattern_for_other_rows(attend_pattern_term term, int64_t row_begin,
                                                                int64_t row_end) {
    term.rows = ATTEND_ROWS_OUTSIDE;
    term.row_begin = row_begin;
    term.row_end = row_end;
    return term;
}

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_PATTERN_H */
