/* SPDX-License-Identifier: Apache-2.0 */
/* Breaks as many rules as one plugin can while it still loads: what the checks must find out. */
#include "attend/plugin.h"

struct attend_lib {
    const attend_host *host;
};
struct attend_plan {
    const attend_host *host;
    uint64_t floats;
};
static struct attend_lib only_one; /* two opens share it */

static attend_status body(void *user, uint64_t begin, uint64_t end, uint32_t slot) {
    float *output = user;
    for (uint64_t at = begin; at < end; ++at) output[at] = (float)slot; /* who computed it, not what */
    return ATTEND_OK;
}
static attend_status execute(const attend_plan *plan, const attend_exec *call, attend_error *error) {
    float *output = (float *)attend_find(&call->bindings, ATTEND_OUT)->data;
    (void)error;
    plan->host->release(plan->host, plan->host->alloc(plan->host, 64, 64), 64, 64);
    (void)plan->host->parallel_for(plan->host, call->call, plan->floats, 1, 0, body, output); /* status ignored */
    for (uint64_t wait = 0; wait < 1000; ++wait) plan->host->now_ns(plan->host);
    if (call->workspace) output[0] += ((const unsigned char *)call->workspace)[0]; /* read before it is written */
    output[plan->floats] = 1.0f;                                                   /* one past the end */
    const attend_tensor *scores = attend_find(&call->bindings, ATTEND_SCORES);
    for (uint64_t at = 0; scores && at < scores->extent_bytes / 4; ++at) ((float *)scores->data)[at] = (float)at;
    return ATTEND_OK;
}
/* Whatever rows are asked for: the first ones, and one number too many. */
static attend_status rows_of_scores(const attend_plan *plan, const attend_exec *call, int64_t first, int64_t count,
                                    attend_error *error) {
    const attend_tensor *scores = attend_find(&call->bindings, ATTEND_SCORES);
    (void)plan, (void)first, (void)count, (void)error;
    for (uint64_t at = 0; at <= scores->extent_bytes / 4; ++at) ((float *)scores->data)[at] = (float)at;
    return ATTEND_OK;
}
static const attend_scores_extension scores_extension = { (uint32_t)sizeof(attend_scores_extension), 0u, rows_of_scores, NULL };
static attend_status make_plan(attend_lib *lib, const attend_plan_desc *desc, attend_plan **out, attend_error *error) {
    void *forgotten = lib->host->alloc(lib->host, 64, 64);
    if (!forgotten) return attend_fail(error, ATTEND_INTERNAL, "the wrong status", NULL);
    *out = lib->host->alloc(lib->host, sizeof **out, 64);
    if (!*out) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "plan", NULL);
    (*out)->host = lib->host;
    (*out)->floats = (uint64_t)(desc->batch * desc->num_q_heads * desc->q_len * desc->head_dim);
    return ATTEND_OK;
}
static attend_status plan_info(const attend_plan *plan, attend_plan_info *info) {
    (void)plan;
    for (uint32_t at = 4; at < sizeof *info; ++at) ((unsigned char *)info)[at] = 0; /* whatever the caller's size */
    info->workspace_bytes = 64;
    return ATTEND_OK;
}
static void drop_plan(attend_plan *plan) { plan->host->release(plan->host, plan, sizeof *plan, 64); }
static const void *get_extension(const attend_lib *lib, const char *id) {
    const char *const known[] = {ATTEND_EXT_COST, ATTEND_EXT_TOLERANCE, ATTEND_EXT_GUIDE, ATTEND_EXT_PATTERN};
    if (attend_text_equal(id, ATTEND_EXT_SCORES)) return &scores_extension;
    for (unsigned at = 0; at < sizeof known / sizeof known[0]; ++at)
        if (attend_text_equal(id, known[at])) return NULL;
    return lib;
}

static const attend_port ports[] = {
    ATTEND_PORT(ATTEND_Q, ATTEND_INPUT, "query", "B,Hq,Nq,D", ATTEND_F32, "queries"),
    ATTEND_PORT(ATTEND_OUT, ATTEND_OUTPUT, "output", "B,Hq,Nq,D", ATTEND_F32, "output"),
    ATTEND_PORT(ATTEND_SCORES, ATTEND_OUTPUT | ATTEND_OPTIONAL, "scores", "B,Hq,Nq,Nq", ATTEND_F32, "weights"),
};
static const attend_mechanism mechanism = {
    .struct_size = sizeof mechanism, .revision = 1, .name = "sinner-attention", .category = "extra", .title = "Sinner",
    .summary = "Breaks rules.", .caps = ATTEND_CAP_SCORES_OUT, .dtypes = ATTEND_F32, .acc_dtypes = ATTEND_F32, .numerics = ATTEND_OWN_DEFINITION,
    .ports = ATTEND_TABLE(ports), .plan = make_plan, .plan_info = plan_info, .execute = execute, .plan_destroy = drop_plan,
    .get_extension = get_extension,
};
static attend_status open_plugin(const attend_host *host, attend_lib **out, attend_error *error) {
    (void)error;
    only_one.host = host;
    *out = &only_one;
    return ATTEND_OK;
}
static void close_plugin(attend_lib *lib) { (void)lib; }
static uint32_t mechanism_count(const attend_lib *lib) {
    (void)lib;
    return 1;
}
static const attend_mechanism *mechanism_at(const attend_lib *lib, uint32_t index) {
    (void)lib;
    return index == 0 ? &mechanism : NULL;
}
ATTEND_PLUGIN(.id = "org.test.sinner", .version = "1.0.0", .license = "Apache-2.0", .open = open_plugin, .close = close_plugin,
              .mechanism_count = mechanism_count, .mechanism_at = mechanism_at)
