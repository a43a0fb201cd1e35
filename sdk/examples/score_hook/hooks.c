/* SPDX-License-Identifier: Apache-2.0 */
/* recency-attention: softmax attention in which a key loses half of its weight every `half_life` positions. The twenty
   lines of `recede` are all that is new; tiles, softmax, threads and tails are the engine's. */
#include <attend/toolkit.h>

#include "hooks.h"

/* One call per tile of scores, with keys as rows and queries as lanes; the inner loop is what the compiler vectorises. */
static void recede(const void *user, const attend_score_tile *tile) {
    const float slope = *(const float *)user;
    const int64_t lanes = tile->queries->lane_stride;
    const int32_t *const position = tile->queries->lane_position;
    for (int64_t row = 0; row < tile->num_keys; ++row) {
        const int32_t key = (int32_t)(tile->first_key + row);
        float *const scores = tile->scores + row * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int32_t distance = position[lane] - key;
            scores[lane] -= slope * (float)(distance < 0 ? -distance : distance);
        }
    }
}

static attend_tensor shaped(const int64_t *shape, const int64_t *strides) {
    attend_tensor tensor = {.struct_size = sizeof(attend_tensor), .device_type = ATTEND_DEVICE_CPU, .ndim = 4,
                            .dtype_code = ATTEND_CODE_FLOAT, .dtype_bits = 32, .dtype_lanes = 1, .align = 4};
    tensor.shape = shape;
    tensor.strides = strides;
    return tensor;
}

uint64_t ATTEND_KERNEL(recency_workspace)(const attend_plan_desc *d) {
    const int64_t strides[4] = {1, 1, 1, 1};
    const int64_t q[4] = {d->batch, d->num_q_heads, d->q_len, d->head_dim}, k[4] = {d->batch, d->num_kv_heads, d->kv_len, d->head_dim},
                  v[4] = {d->batch, d->num_kv_heads, d->kv_len, d->value_dim}, o[4] = {d->batch, d->num_q_heads, d->q_len, d->value_dim};
    const attend_tensor query = shaped(q, strides), key = shaped(k, strides), value = shaped(v, strides), output = shaped(o, strides);
    const attend_key_segment segment = {.key = &key, .value = &value};
    const attend_tile_problem problem = {.num_segments = 1, .segments = &segment, .query = &query, .output = &output};
    return ATTEND_KERNEL(attend_tile_workspace)(&problem, d->max_workers);
}

attend_status ATTEND_KERNEL(recency_forward)(const struct recency_call *call, const attend_context *context) {
    const attend_plan_desc *d = call->desc;
    const float slope = 0.69314718f / call->half_life; /* ln 2: exp(-slope * half_life) = 1/2 */
    const attend_key_segment segment = {.key = call->key, .value = call->value};
    double root = 1.0; /* sqrt(D) by Newton's steps, so that no library is needed */
    for (int step = 0; step < 64; ++step) root = 0.5 * (root + (double)d->head_dim / root);
    const attend_tile_problem problem = {
        .flags = (d->flags & ATTEND_PLAN_CAUSAL) ? ATTEND_TILE_CAUSAL : 0u, .num_segments = 1, .segments = &segment,
        .query = call->query, .output = call->output, .causal_offset = d->causal_offset, .window_left = -1, .window_right = -1,
        .scale = d->scale != 0.0 ? d->scale : 1.0 / root, .score = recede, .score_user = &slope};
    return ATTEND_KERNEL(attend_tile_forward)(&problem, context);
}
