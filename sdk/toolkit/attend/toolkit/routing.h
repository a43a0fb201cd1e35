/* SPDX-License-Identifier: Apache-2.0 */
/* C interface of the routing engine: tokens -> router -> assignment -> experts that own their projections -> scatter.
   Routing is per sequence, over its valid tokens only, so a result depends neither on the other sequences of a batch
   nor on padding. No one-hot tensors: an assignment is a list per expert of ascending token numbers.

   Tokens are rows with the heads of a [B, H, N, D] tensor merged: width H * D. */
#ifndef ATTEND_TOOLKIT_ROUTING_H
#define ATTEND_TOOLKIT_ROUTING_H

#include "attend/toolkit.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ATTEND_GATE_SOFTMAX 0u
#define ATTEND_GATE_SIGMOID 1u

#define ATTEND_ROPE_NONE 0u
#define ATTEND_ROPE_HALF 1u
#define ATTEND_ROPE_INTERLEAVED 2u

/* Who chooses. Tokens: each takes its top_k experts by z, ties to the lower expert; with a capacity an expert keeps that
   many of those that chose it and drops the others. Experts: each takes the `capacity` tokens of largest gate (sigmoid: of
   largest z, since the gate saturates), ties to the lower token. */
#define ATTEND_TOKENS_CHOOSE 0u
#define ATTEND_EXPERTS_CHOOSE 1u

/* Flags of a router. */
#define ATTEND_ROUTER_KEEP_LARGEST 1u /* tokens choose: an expert keeps those of largest gate instead of the first */
#define ATTEND_ROUTER_FIRST_TOKEN 2u  /* experts choose: token 0 always, then by rank */

/* The router of one side: logits z = x W + b in double, rounded once, so that the discrete choice does not depend on the
   instruction set. */
typedef struct attend_router {
    const attend_tensor *tokens; /* [B, H, N, D] */
    const attend_tensor *weight; /* [H * D, experts] */
    const attend_tensor *bias;   /* [experts] or NULL */
    int64_t experts, top_k;
    uint32_t gate, normalise_gates; /* gates divided by their sum over the chosen experts */
    double noise;                   /* multiplicative, on the router's input only */
    uint64_t seed;
    uint32_t side, reserved0;       /* 0 queries, 1 keys: a part of the noise counter */
    uint32_t choice, flags;         /* ATTEND_TOKENS_CHOOSE ..., ATTEND_ROUTER_* */
    int64_t capacity;               /* most members of an expert; 0 with tokens that choose: no limit */
} attend_router;

/* The assignment of one sequence. Arrays of the caller: logits [N, experts], gates and members [N * top_k] (experts that
   choose: [N * experts]), first [experts + 1], counts and gate_sums [experts], scratch [N]. Expert e holds members
   first[e] .. first[e + 1] - 1, ascending, with their gates; counts and gate_sums tell what chose it before dropping. */
typedef struct attend_assignment {
    float *logits, *gates;
    int32_t *members, *first;
    int64_t num_tokens;
    int32_t *counts;
    double *gate_sums;
    uint32_t *scratch;
} attend_assignment;

/* Routes the first num_tokens tokens of item. ATTEND_NUMERIC if a logit is not finite. */
attend_status ATTEND_KERNEL(attend_route)(const attend_router *router, int64_t item, int64_t num_tokens,
                                          attend_assignment *to, const attend_context *context);

/* Statistics of an assignment before dropping; zeros where no token is valid. load, importance: [experts] floats. */
typedef struct attend_routing_report {
    int32_t *counts;
    float *load, *importance;
    float balance_loss, cv2, z_loss, entropy, max_load, dropped_fraction;
    int32_t empty_experts, capacity, dropped, unassigned; /* unassigned: tokens that no expert has, before dropping */
} attend_routing_report;
void ATTEND_KERNEL(attend_report_routing)(const attend_router *router, const attend_assignment *assignment,
                                          attend_routing_report *report);

/* The experts: expert e has `heads` heads of width key_dim (values value_dim) and F_e(i) = sum_a A[e,a,i] Wo[e,a]. */
typedef struct attend_experts {
    const attend_plan_desc *desc; /* causal, windows, offset, scale, softcap, dropout */
    const attend_tensor *query, *key, *value, *output; /* [B, H, N, D]; output is written */
    const attend_tensor *mask, *bias;                  /* rank 4, head extent 1, or NULL */
    const attend_tensor *wq, *wk, *wv, *wo;            /* [E, heads, in, out]; wk and wv may have E = 1 (shared) */
    int64_t experts, heads, key_dim, value_dim;
    uint32_t rope, residual;
    double rope_base;
    int64_t rope_dim; /* leading channels that rotate */
    uint64_t seed, rng_offset;
} attend_experts;

uint64_t ATTEND_KERNEL(attend_experts_workspace)(const attend_experts *experts, uint32_t max_workers);

/* Output rows of one item from its assignments; key_side NULL: every expert attends over all of the num_keys keys. Rows
   at and past query_side->num_tokens become zero. Experts contribute in ascending order. offset: position of query 0. */
attend_status ATTEND_KERNEL(attend_run_experts)(const attend_experts *experts, int64_t item, int64_t offset,
                                                const attend_assignment *query_side, const attend_assignment *key_side,
                                                int64_t num_keys, const attend_context *context);

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_ROUTING_H */
