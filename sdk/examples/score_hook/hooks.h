/* SPDX-License-Identifier: Apache-2.0 */
/* What plugin.c, compiled once, calls in hooks.c, compiled once per instruction set. */
#ifndef RECENCY_HOOKS_H
#define RECENCY_HOOKS_H

#include <attend/plugin.h>

struct recency_call {
    const attend_plan_desc *desc;
    const attend_tensor *query, *key, *value, *output;
    float half_life; /* keys after which a weight is halved */
};
typedef attend_status (*recency_forward_fn)(const struct recency_call *call, const attend_context *context);
typedef uint64_t (*recency_workspace_fn)(const attend_plan_desc *desc);

#endif
