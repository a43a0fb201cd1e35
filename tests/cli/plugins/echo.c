/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin in C for tests of the command line: its output is the query. Built several times, under other names and
   with faults: ECHO_ID, ECHO_NAME, ECHO_FAILS_TO_OPEN, ECHO_CRASHES. */
#include <attend/plugin.h>

#ifdef ECHO_CRASHES
#include <stdlib.h>
#endif

struct attend_lib {
    const attend_host* host;
};
struct attend_plan {
    const attend_host* host;
    attend_plan_desc desc;
};

static attend_status echo_execute(const attend_plan* plan, const attend_exec* exec, attend_error* error) {
    const attend_tensor *query = attend_find(&exec->bindings, ATTEND_Q),
                        *output = attend_find(&exec->bindings, ATTEND_OUT);
    if (!query || !output) return attend_fail(error, ATTEND_INVALID_ARGUMENT, "needs query and output", "bindings");
    for (int64_t b = 0; b < plan->desc.batch; ++b)
        for (int64_t h = 0; h < plan->desc.num_q_heads; ++h)
            for (int64_t i = 0; i < plan->desc.q_len; ++i) {
                const float* from = attend_f32_row(query, b, h, i);
                float* to = attend_f32_row(output, b, h, i);
                for (int64_t c = 0; c < plan->desc.head_dim; ++c) to[c] = from[c];
            }
    return ATTEND_OK;
}

static attend_status echo_plan(attend_lib* lib, const attend_plan_desc* desc, attend_plan** out, attend_error* error) {
    attend_plan* plan = lib->host->alloc(lib->host, sizeof *plan, 64);
    if (!plan) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the plan", "plan");
    plan->host = lib->host;
    attend_plan_desc_copy(&plan->desc, desc);
    *out = plan;
    return ATTEND_OK;
}

static attend_status echo_info(const attend_plan* plan, attend_plan_info* info) {
    (void)plan;
    return attend_no_workspace(info);
}

static void echo_destroy(attend_plan* plan) { plan->host->release(plan->host, plan, sizeof *plan, 64); }

static const attend_port echo_ports[] = {
    ATTEND_PORT(ATTEND_Q, ATTEND_INPUT, "query", "B,Hq,Nq,D", ATTEND_F32, "what comes back"),
    ATTEND_PORT(ATTEND_OUT, ATTEND_OUTPUT, "output", "B,Hq,Nq,D", ATTEND_F32, "the query again")};
static const attend_mechanism echo_mechanism = {.struct_size = sizeof echo_mechanism,
                                                .revision = 1,
                                                .name = ECHO_NAME,
                                                .category = "extra",
                                                .title = "Echo",
                                                .summary = "Returns the query.",
                                                .time_complexity = "O(n d)",
                                                .space_complexity = "O(1)",
                                                .caps = ATTEND_CAP_GQA,
                                                .dtypes = ATTEND_F32,
                                                .acc_dtypes = ATTEND_F32,
                                                .numerics = ATTEND_OWN_DEFINITION,
                                                .ports = ATTEND_TABLE(echo_ports),
                                                .plan = echo_plan,
                                                .plan_info = echo_info,
                                                .execute = echo_execute,
                                                .plan_destroy = echo_destroy};

static attend_status echo_open(const attend_host* host, attend_lib** out, attend_error* error) {
#ifdef ECHO_CRASHES
    abort();
#endif
#ifdef ECHO_FAILS_TO_OPEN
    (void)host;
    (void)out;
    return attend_fail(error, ATTEND_UNSUPPORTED, "not today", "open");
#else
    attend_lib* lib = host->alloc(host, sizeof *lib, 64);
    if (!lib) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the plugin", "open");
    lib->host = host;
    *out = lib;
    return ATTEND_OK;
#endif
}

static void echo_close(attend_lib* lib) { lib->host->release(lib->host, lib, sizeof *lib, 64); }
static uint32_t echo_count(const attend_lib* lib) {
    (void)lib;
    return 1;
}
static const attend_mechanism* echo_at(const attend_lib* lib, uint32_t index) {
    (void)lib;
    return index == 0 ? &echo_mechanism : NULL;
}

ATTEND_PLUGIN(.id = ECHO_ID, .version = "1.2.3", .license = "Apache-2.0", .summary = "Echo, for tests",
              .open = echo_open, .close = echo_close, .mechanism_count = echo_count, .mechanism_at = echo_at)
