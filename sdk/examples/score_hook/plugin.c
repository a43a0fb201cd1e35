/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin in C whose mechanism runs on the tile engine: chooses the instruction set in open, the rest is bookkeeping. */
#include "hooks.h"

#define DECLARE(isa)                                                                                               \
    attend_status recency_forward_##isa(const struct recency_call *call, const attend_context *context);           \
    uint64_t recency_workspace_##isa(const attend_plan_desc *desc);
ATTEND_FOR_EACH_ISA(DECLARE)

#define NEEDS_baseline ATTEND_ISA_X86_V2
#define NEEDS_avx2 ATTEND_ISA_X86_V3
#define NEEDS_avx512 ATTEND_ISA_X86_V4
#define NEEDS_neon ATTEND_ISA_NEON

static const struct entry {
    const char *name;
    uint64_t needs;
    recency_forward_fn forward;
    recency_workspace_fn workspace;
} entries[] = {
#define LIST(isa) {#isa, NEEDS_##isa, recency_forward_##isa, recency_workspace_##isa},
    ATTEND_FOR_EACH_ISA(LIST)
};

struct attend_lib {
    const attend_host *host;
    const struct entry *entry;
};
struct attend_plan {
    const attend_host *host;
    const struct entry *entry;
    attend_plan_desc desc;
    float half_life;
};

static attend_status execute(const attend_plan *plan, const attend_exec *call, attend_error *error) {
    if (attend_check_blocks(call->next, NULL, error) != ATTEND_OK) return ATTEND_UNSUPPORTED;
    const struct recency_call job = {&plan->desc, attend_find(&call->bindings, ATTEND_Q), attend_find(&call->bindings, ATTEND_K),
                                     attend_find(&call->bindings, ATTEND_V), attend_find(&call->bindings, ATTEND_OUT), plan->half_life};
    if (!job.query || !job.key || !job.value || !job.output)
        return attend_fail(error, ATTEND_INVALID_ARGUMENT, "query, key, value and output must be bound", "bindings");
    const attend_context context = {plan->host, call->call, call->workspace, call->workspace_bytes, error, plan->desc.max_workers, 0};
    return plan->entry->forward(&job, &context);
}

static attend_status make_plan(attend_lib *lib, const attend_plan_desc *desc, attend_plan **out, attend_error *error) {
    if (attend_check_blocks(desc->next, NULL, error) != ATTEND_OK) return ATTEND_UNSUPPORTED;
    const attend_value *half_life = attend_find_option(&desc->options, "half_life");
    if (!half_life || !(half_life->u.f > 0.0)) return attend_fail(error, ATTEND_BAD_OPTION, "half_life must be above 0", "half_life");
    attend_plan *plan = lib->host->alloc(lib->host, sizeof *plan, 64);
    if (!plan) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the plan", NULL);
    plan->host = lib->host;
    plan->entry = lib->entry;
    plan->half_life = (float)half_life->u.f;
    attend_plan_desc_copy(&plan->desc, desc);
    *out = plan;
    return ATTEND_OK;
}
static attend_status plan_info(const attend_plan *plan, attend_plan_info *info) {
    const attend_plan_info facts = {.struct_size = sizeof facts, .workspace_align = 64,
                                    .workspace_bytes = plan->entry->workspace(&plan->desc), .variant = plan->entry->name};
    return attend_write_plan_info(info, &facts);
}
static void drop_plan(attend_plan *plan) { plan->host->release(plan->host, plan, sizeof *plan, 64); }

static const attend_option options[] = {
    {.struct_size = sizeof(attend_option), .type = ATTEND_TYPE_BOOL, .name = "causal", .help = "hide keys that come after the query", .default_json = "false", .max = 1},
    {.struct_size = sizeof(attend_option), .type = ATTEND_TYPE_FLOAT, .name = "scale", .help = "factor before softmax; left out or 0: 1/sqrt(head width)", .min = -1e30, .max = 1e30},
    {.struct_size = sizeof(attend_option), .type = ATTEND_TYPE_FLOAT, .name = "half_life", .help = "keys after which a weight is halved", .default_json = "64", .min = 1e-3, .max = 1e9},
};
static const attend_port ports[] = {
    {.struct_size = sizeof(attend_port), .role = ATTEND_Q, .flags = ATTEND_INPUT, .name = "query", .shape = "B,Hq,Nq,D", .help = "queries", .dtypes = ATTEND_F32},
    {.struct_size = sizeof(attend_port), .role = ATTEND_K, .flags = ATTEND_INPUT, .name = "key", .shape = "B,Hkv,Nk,D", .help = "keys", .init = "query", .dtypes = ATTEND_F32},
    {.struct_size = sizeof(attend_port), .role = ATTEND_V, .flags = ATTEND_INPUT, .name = "value", .shape = "B,Hkv,Nk,Dv", .help = "values", .init = "key", .dtypes = ATTEND_F32},
    {.struct_size = sizeof(attend_port), .role = ATTEND_OUT, .flags = ATTEND_OUTPUT, .name = "output", .shape = "B,Hq,Nq,Dv", .help = "result", .dtypes = ATTEND_F32},
};
static const attend_mechanism mechanism = {
    .struct_size = sizeof mechanism, .revision = 1, .name = "recency-attention", .category = "extra", .title = "Recency attention",
    .summary = "Softmax attention in which a key loses half of its weight every half_life positions.",
    .time_complexity = "O(n^2 d)", .space_complexity = "O(n d)",
    .caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_GQA | ATTEND_CAP_CROSS | ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO,
    .dtypes = ATTEND_F32, .acc_dtypes = ATTEND_F32, .numerics = ATTEND_OWN_DEFINITION, .options = ATTEND_TABLE(options),
    .ports = ATTEND_TABLE(ports), .plan = make_plan, .plan_info = plan_info, .execute = execute, .plan_destroy = drop_plan,
};

static attend_status open_plugin(const attend_host *host, attend_lib **out, attend_error *error) {
    const struct entry *chosen = NULL; /* narrowest first: the last that fits is the widest */
    for (size_t at = 0; at < sizeof entries / sizeof entries[0]; ++at)
        if ((host->cpu->isa & entries[at].needs) == entries[at].needs) chosen = &entries[at];
    if (!chosen) return attend_fail(error, ATTEND_UNSUPPORTED, "no instruction set of this plugin is permitted on this CPU", "cpu");
    *out = host->alloc(host, sizeof **out, 64);
    if (!*out) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory to open the plugin", NULL);
    (*out)->host = host;
    (*out)->entry = chosen;
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

ATTEND_PLUGIN(.id = "org.example.recency", .version = "1.0.0", .license = "Apache-2.0", .summary = "A score hook on the tile engine, in C",
              .open = open_plugin, .close = close_plugin, .mechanism_count = mechanism_count, .mechanism_at = mechanism_at)
