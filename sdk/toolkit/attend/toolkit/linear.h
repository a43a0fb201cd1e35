/* SPDX-License-Identifier: Apache-2.0 */
/* C interface of the linear engine: attention whose weights factorise over a feature map,

     A_ij = e^{beta_j} <phi(q_i), phi(k_j)>,  num_i = sum_j A_ij v_j,  den_i = sum_j A_ij,  o_i = num_i / guard(den_i)

   so that keys are read once into a state of F x Dv numbers and queries read that state. Causal calls work in chunks of
   the key axis: older chunks through the state, the own chunk as a small triangle. Time O((Nq + Nk) F Dv), workspace
   independent of the lengths. Masks and biases are per key: anything that depends on query and key does not factorise. */
#ifndef ATTEND_TOOLKIT_LINEAR_H
#define ATTEND_TOOLKIT_LINEAR_H

#include "attend/toolkit.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Feature maps. x is the input row times query_scale or key_scale; u = Omega x, d = |x|^2 / 2, M rows of Omega. */
#define ATTEND_FEATURES_ELU 1u            /* x + 1 above 0, e^x elsewhere                                  F = D      */
#define ATTEND_FEATURES_RELU 2u           /* max(x, 0)                                                     F = D      */
#define ATTEND_FEATURES_DPFP 3u           /* r_t r_(t - n), n = 1 to nu, r = [relu(x), relu(-x)]           F = 2 D nu */
#define ATTEND_FEATURES_SOFTMAX 4u        /* M^-1/2 e^(u - d)                                              F = M      */
#define ATTEND_FEATURES_HYPERBOLIC 5u     /* (2 M)^-1/2 [e^(u - d), e^(-u - d)]                            F = 2 M    */
#define ATTEND_FEATURES_TRIG 6u           /* M^-1/2 e^d [cos u, sin u]                                     F = 2 M    */
#define ATTEND_FEATURES_PROJECTED_RELU 7u /* M^-1/2 relu(u) + kernel_eps; without Omega relu(x) + kernel_eps, F = M or D */
#define ATTEND_FEATURES_COSINE 8u         /* [a sin t, a cos t], a = relu(x) or elu(x) + 1, t = angle * position   F = 2 D */
#define ATTEND_FEATURES_SINCOS 9u         /* feature_factor [sin u, cos u], u of the row at length 1       F = 2 M    */
#define ATTEND_FEATURES_ARCCOS 10u        /* feature_factor relu(u), u of the row at length 1              F = M      */

typedef struct attend_feature_map {
    uint32_t kind;
    uint32_t sum_normalize; /* kinds 1 to 3: phi divided by the sum of its components, 0 where that is 0 */
    /* Kinds 4 to 6 take a common factor out of the features, or they would overflow. official = 0: out of a query its
       own largest feature, out of the keys the largest so far (a running reference). official = 1: e^{-max u} of the
       query's own row and of all visible keys of the item, future ones too, and feature_eps is added to what remains. */
    uint32_t official;
    /* Kind 8: 0 relu, 1 elu + 1. Kinds 9 and 10: 0 rows x / max(|x|, 1e-6), 1 rows x / (|x| + 1e-3). */
    uint32_t variant;
    int64_t nu;
    const attend_tensor *projection; /* Omega: [1 or Hkv, M, D]; NULL where the kind does without */
    double query_scale, key_scale;
    double feature_eps, kernel_eps;
    double feature_factor; /* kinds 9 and 10 */
    double angle;          /* kind 8: of one position */
    /* Kind 8: positions of key 0 and query 0; with item_positions query 0 stands at key_offset and the item's offset. */
    int64_t key_offset, query_offset;
    uint32_t item_positions, reserved0;
} attend_feature_map;

#define ATTEND_GUARD_NONE 1u       /* den; a row with den = 0 is 0 */
#define ATTEND_GUARD_ADD 2u        /* den + guard_eps; where that is 0 the row is 0 */
#define ATTEND_GUARD_SHIFT 3u      /* den + 2 guard_eps where |den| <= guard_eps */
#define ATTEND_GUARD_NUMERATOR 4u  /* no denominator: o_i = num_i */
#define ATTEND_GUARD_MAX 5u        /* max(den, guard_eps) */
#define ATTEND_GUARD_MAX_SIZE 6u   /* max(|den|, guard_eps) */
#define ATTEND_GUARD_WEIGHT 7u     /* max(den, n guard_heads[key head]), n the sum of the row's weights without features */

#define ATTEND_LINEAR_CAUSAL (1u << 0)
#define ATTEND_LINEAR_OFFSET_PER_ITEM (1u << 1) /* offset = key length - query length of the item */
#define ATTEND_LINEAR_GATE_LOGITS (1u << 2)     /* gates hold x, the gate is 1 / (1 + e^-x) */

/* Numbers in scales of an exported state: c, r, number of keys, logarithm of the sum of weights. */
#define ATTEND_LINEAR_STATE_SCALES 4

/* The state after some keys, exportable; states over disjoint keys of the same map add. G = Hkv, or Hq where mask or bias
   has a head axis. Sums are scaled: the true value of sums is sums * e^{c + r}, of its last row (official = 1 only) e^r. */
typedef struct attend_linear_state {
    float *sums;    /* [B, G, attend_linear_state_rows, Dv + 1]: feature by value column, the sum of features last */
    double *scales; /* [B, G, ATTEND_LINEAR_STATE_SCALES] */
} attend_linear_state;

/* NULL means absent. mask and bias: rank 4, [B or 1, Hq or 1, 1, Nk or 1]. Output bits do not depend on the number of
   workers. Hidden keys are never multiplied: NaN behind them stays there. Rows that see no key, and rows at or past the
   query length, are zero with LSE minus infinity. LSE = ln den_i as summed, without the guard. */
typedef struct attend_linear_problem {
    uint32_t flags, guard;
    double guard_eps;
    attend_feature_map features;
    const attend_tensor *query, *key, *value; /* [B, Hq, Nq, D], [B, Hkv, Nk, D], [B, Hkv, Nk, Dv] */
    const attend_tensor *output, *lse;        /* written: [B, Hq, Nq, Dv], [B, Hq, Nq] */
    const attend_tensor *mask, *bias;         /* uint8, non-zero = may be seen; float, minus infinity hides */
    const attend_tensor *query_lengths, *key_lengths;
    /* float [B, Hkv, Nk] or NULL, causal calls only: key j enters with weight 1 - g_j and lessens those before it by g_j.
       Hidden keys do neither. ln g is cut at -87. */
    const attend_tensor *gates;
    const double *guard_heads;           /* [Hkv], of ATTEND_GUARD_WEIGHT */
    int64_t causal_offset;               /* position of query 0 on the key axis */
    int64_t chunk;                       /* keys of a chunk; 0 = the engine chooses */
    const attend_linear_state *initial;  /* keys before the first; visible to every row. Not with causal and official */
    const attend_linear_state *final;    /* written: the state after all visible keys. May be the same memory as initial */
} attend_linear_problem;

/* Features of the map (F) and rows of an exported state, from shapes alone. */
int64_t ATTEND_KERNEL(attend_linear_features)(const attend_linear_problem *problem);
int64_t ATTEND_KERNEL(attend_linear_state_rows)(const attend_linear_problem *problem);
/* Scratch for attend_linear_forward, from shapes alone (data pointers may be NULL). */
uint64_t ATTEND_KERNEL(attend_linear_workspace)(const attend_linear_problem *problem, uint32_t max_workers);
attend_status ATTEND_KERNEL(attend_linear_forward)(const attend_linear_problem *problem, const attend_context *context);

/* Gaussian directions for feature maps. Rows of D numbers in blocks of D: independent normal rows, or the columns of the
   orthogonal factor of a normal matrix (positive diagonal of R) times a length. Slot s is the matrix of key head s. */
typedef struct attend_random_features {
    const char *projection_name, *norms_name; /* the tensors of the generator, "mechanism/projection" */
    uint64_t seed;
    uint32_t redraw_index; /* below 2^24 */
    uint32_t orthogonal;
    uint32_t sqrt_norms, reserved0; /* orthogonal: length sqrt(D); otherwise that of a normal row */
    int64_t slots, num_features, head_dim;
} attend_random_features;

/* Doubles of scratch for attend_draw_features, and the matrix [slots, M, D]. */
uint64_t ATTEND_KERNEL(attend_draw_scratch)(const attend_random_features *features);
void ATTEND_KERNEL(attend_draw_features)(const attend_random_features *features, double *scratch, float *to);

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_TOOLKIT_LINEAR_H */
