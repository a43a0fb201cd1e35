/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest complete plugin, in C, with nothing to link: mean-attention gives every query the average of the values
   that it may see. Copy this folder to begin a plugin of your own. */
#include <attend/plugin.h>

struct attend_lib {
    const attend_host *host;
};
struct attend_plan {
    const attend_host *host;
    attend_plan_desc desc;
};
struct job {
    const attend_plan_desc *desc;
    const attend_tensor *value, *output;
};

/* Rows [begin, end) of batch x head x query. The host calls it from several threads, each with its own range. */
static attend_status mean_rows(void *user, uint64_t begin, uint64_t end, uint32_t slot) {
    const struct job *job = user;
    const attend_plan_desc *d = job->desc;
    (void)slot;
    for (uint64_t row = begin; row < end; ++row) {
        const int64_t query = (int64_t)row % d->q_len;
        const int64_t head = (int64_t)row / d->q_len % d->num_q_heads;
        const int64_t batch = (int64_t)row / d->q_len / d->num_q_heads;
        int64_t visible = (d->flags & ATTEND_PLAN_CAUSAL) ? query + 1 + d->causal_offset : d->kv_len;
        visible = visible < 0 ? 0 : visible > d->kv_len ? d->kv_len : visible;
        float *out = attend_f32_row(job->output, batch, head, query);
        for (int64_t c = 0; c < d->value_dim; ++c) out[c] = 0.0f;
        for (int64_t key = 0; key < visible; ++key) {
            const float *value = attend_f32_row(job->value, batch, head * d->num_kv_heads / d->num_q_heads, key);
            for (int64_t c = 0; c < d->value_dim; ++c) out[c] += value[c] / (float)visible;
        }
    }
    return ATTEND_OK;
}

static attend_status execute(const attend_plan *plan, const attend_exec *call, attend_error *error) {
    if (attend_check_blocks(call->next, NULL, error) != ATTEND_OK) return ATTEND_UNSUPPORTED;
    struct job job = {&plan->desc, attend_find(&call->bindings, ATTEND_V), attend_find(&call->bindings, ATTEND_OUT)};
    if (!job.value || !job.output) return attend_fail(error, ATTEND_INVALID_ARGUMENT, "value and output must be bound", "bindings");
    const uint64_t rows = (uint64_t)(plan->desc.batch * plan->desc.num_q_heads * plan->desc.q_len);
    return plan->host->parallel_for(plan->host, call->call, rows, 16, 0, mean_rows, &job);
}

static attend_status make_plan(attend_lib *lib, const attend_plan_desc *desc, attend_plan **out, attend_error *error) {
    if (attend_check_blocks(desc->next, NULL, error) != ATTEND_OK) return ATTEND_UNSUPPORTED;
    attend_plan *plan = lib->host->alloc(lib->host, sizeof *plan, 64);
    if (!plan) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the plan", NULL);
    plan->host = lib->host;
    attend_plan_desc_copy(&plan->desc, desc);
    *out = plan;
    return ATTEND_OK;
}
static attend_status plan_info(const attend_plan *plan, attend_plan_info *info) {
    (void)plan;
    return attend_no_workspace(info);
}
static void drop_plan(attend_plan *plan) { plan->host->release(plan->host, plan, sizeof *plan, 64); }

static const attend_port ports[] = {
    ATTEND_PORT(ATTEND_Q, ATTEND_INPUT, "query", "B,Hq,Nq,D", ATTEND_F32, "only its shape counts"),
    ATTEND_PORT(ATTEND_V, ATTEND_INPUT, "value", "B,Hkv,Nk,Dv", ATTEND_F32, "values"),
    ATTEND_PORT(ATTEND_OUT, ATTEND_OUTPUT, "output", "B,Hq,Nq,Dv", ATTEND_F32, "mean of the visible values"),
};
static const attend_mechanism mechanism = {
    .struct_size = sizeof mechanism,
    .revision = 1,
    .name = "mean-attention",
    .category = "linear",
    .title = "Mean attention",
    .summary = "Every query receives the average value.",
    .time_complexity = "O(Nq*Nk*Dv)",
    .space_complexity = "O(1)",
    .caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_GQA | ATTEND_CAP_CROSS | ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_DETERMINISTIC,
    .dtypes = ATTEND_F32,
    .acc_dtypes = ATTEND_F32,
    .numerics = ATTEND_OWN_DEFINITION,
    .ports = ATTEND_TABLE(ports),
    .plan = make_plan,
    .plan_info = plan_info,
    .execute = execute,
    .plan_destroy = drop_plan,
};

static attend_status open_plugin(const attend_host *host, attend_lib **out, attend_error *error) {
    *out = host->alloc(host, sizeof **out, 64);
    if (!*out) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory to open the plugin", NULL);
    (*out)->host = host;
    return ATTEND_OK;
}
static void close_plugin(attend_lib *lib) { lib->host->release(lib->host, lib, sizeof *lib, 64); }
static uint32_t mechanism_count(const attend_lib *lib) {
    (void)lib;
    return 1;
}
static const attend_mechanism *mechanism_at(const attend_lib *lib, uint32_t index) {
    (void)lib;
    return index == 0 ? &mechanism : NULL;
}

ATTEND_PLUGIN(.id = "org.example.mean", .version = "1.0.0", .license = "Apache-2.0", .summary = "The smallest plugin",
              .open = open_plugin, .close = close_plugin, .mechanism_count = mechanism_count, .mechanism_at = mechanism_at)
