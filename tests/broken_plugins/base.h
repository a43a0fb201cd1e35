/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin without fault, in C and in C++. Each file in sins/ redefines one piece of it before the include, and that
   piece is its sin. */
#ifndef ATTEND_ZOO_BASE_H
#define ATTEND_ZOO_BASE_H

#include "attend/plugin.h"

#ifndef ZOO_ID
#define ZOO_ID "org.zoo." ZOO_FILE
#endif
#ifndef ZOO_VERSION
#define ZOO_VERSION "1.0.0"
#endif
#ifndef ZOO_MECHANISM
#define ZOO_MECHANISM "zoo-attention"
#endif
#ifndef ZOO_CATEGORY
#define ZOO_CATEGORY "extra"
#endif
#ifndef ZOO_NUMERICS
#define ZOO_NUMERICS ATTEND_OWN_DEFINITION
#endif
#ifndef ZOO_DTYPES
#define ZOO_DTYPES ATTEND_F32
#endif
#ifndef ZOO_SUMMARY
#define ZOO_SUMMARY "A member of the zoo"
#endif
#ifndef ZOO_IN_OPEN /* statements at the begin of open */
#define ZOO_IN_OPEN
#endif
#ifndef ZOO_OPEN
#define ZOO_OPEN zoo_open
#endif
#ifndef ZOO_IN_COUNT
#define ZOO_IN_COUNT
#endif
#ifndef ZOO_COUNT
#define ZOO_COUNT 1u
#endif
#ifndef ZOO_AT
#define ZOO_AT &zoo_mechanism
#endif
#ifndef ZOO_PLAN
#define ZOO_PLAN zoo_plan
#endif
#ifndef ZOO_EXTENSION
#define ZOO_EXTENSION NULL
#endif
#ifndef ZOO_MECHANISM_SIZE
#define ZOO_MECHANISM_SIZE sizeof(attend_mechanism)
#endif
#ifndef ZOO_PLUGIN_SIZE
#define ZOO_PLUGIN_SIZE sizeof(attend_plugin)
#endif
#ifndef ZOO_MAGIC
#define ZOO_MAGIC ATTEND_MAGIC
#endif
#ifndef ZOO_TABLE_MAJOR
#define ZOO_TABLE_MAJOR ATTEND_ABI_MAJOR
#endif
#ifndef ZOO_TABLE_MIN_MINOR
#define ZOO_TABLE_MIN_MINOR ATTEND_MIN_HOST_MINOR
#endif
#ifndef ZOO_TABLE_LAYOUT
#define ZOO_TABLE_LAYOUT ATTEND_LAYOUT_TAG
#endif
#ifndef ZOO_TABLE_ISA
#define ZOO_TABLE_ISA ATTEND_REQUIRED_ISA
#endif
#ifndef ZOO_ENTRY
#define ZOO_ENTRY &zoo_table
#endif
#ifndef ZOO_SCORE
#define ZOO_SCORE NULL
#endif
#ifndef ZOO_PORT_STRIDE
#define ZOO_PORT_STRIDE (uint32_t)sizeof(attend_port)
#endif
#ifndef ZOO_PORT_SIZE
#define ZOO_PORT_SIZE (uint32_t)sizeof(attend_port)
#endif

#define ZOO_PORT(role, flags, name, shape) { ZOO_PORT_SIZE, role, flags, 0u, name, shape, "", NULL, ATTEND_F32 }
#define ZOO_INT(name, initial, min, max) \
    { (uint32_t)sizeof(attend_option), ATTEND_TYPE_INT, 0u, 0u, name, "", "", initial, NULL, min, max, 0.0, NULL, NULL }
#ifndef ZOO_PORTS
#define ZOO_PORTS ZOO_QUERY, ZOO_OUTPUT
#endif
#define ZOO_QUERY ZOO_PORT(ATTEND_Q, ATTEND_INPUT, "query", "B,Hq,Nq,D")
#define ZOO_OUTPUT ZOO_PORT(ATTEND_OUT, ATTEND_OUTPUT, "output", "B,Hq,Nq,D")
#ifndef ZOO_OPTIONS
#define ZOO_OPTIONS ZOO_INT("window", "4", 0.0, 8.0)
#endif
#ifndef ZOO_OPTION_STRIDE
#define ZOO_OPTION_STRIDE (uint32_t)sizeof(attend_option)
#endif

struct attend_lib {
    const attend_host *host;
};
struct attend_plan {
    const attend_host *host;
};

ATTEND_UNUSED static attend_status zoo_plan(attend_lib *lib, const attend_plan_desc *desc, attend_plan **out, attend_error *error) {
    (void)desc;
    *out = (attend_plan *)lib->host->alloc(lib->host, sizeof **out, 64);
    if (!*out) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "plan", NULL);
    (*out)->host = lib->host;
    return ATTEND_OK;
}
static attend_status zoo_plan_info(const attend_plan *plan, attend_plan_info *info) {
    (void)plan;
    return attend_no_workspace(info);
}
static attend_status zoo_execute(const attend_plan *plan, const attend_exec *call, attend_error *error) {
    (void)plan, (void)call, (void)error;
    return ATTEND_OK;
}
static void zoo_drop(attend_plan *plan) { plan->host->release(plan->host, plan, sizeof *plan, 64); }

static const attend_port zoo_ports[] = { ZOO_PORTS };
static const attend_option zoo_options[] = { ZOO_OPTIONS };
ATTEND_UNUSED static const attend_mechanism zoo_mechanism = {
    .struct_size = (uint32_t)ZOO_MECHANISM_SIZE,
    .revision = 1,
    .name = ZOO_MECHANISM,
    .category = ZOO_CATEGORY,
    .title = "Zoo",
    .summary = ZOO_SUMMARY,
    .caps = ATTEND_CAP_CROSS,
    .dtypes = ZOO_DTYPES,
    .acc_dtypes = ATTEND_F32,
    .numerics = ZOO_NUMERICS,
    .options = { zoo_options, (uint32_t)(sizeof zoo_options / sizeof zoo_options[0]), ZOO_OPTION_STRIDE },
    .ports = { zoo_ports, (uint32_t)(sizeof zoo_ports / sizeof zoo_ports[0]), ZOO_PORT_STRIDE },
    .plan = ZOO_PLAN,
    .plan_info = zoo_plan_info,
    .execute = zoo_execute,
    .plan_destroy = zoo_drop,
    .get_extension = ZOO_EXTENSION,
};

ATTEND_UNUSED static attend_status zoo_open(const attend_host *host, attend_lib **out, attend_error *error) {
    ZOO_IN_OPEN
    *out = (attend_lib *)host->alloc(host, sizeof **out, 64);
    if (!*out) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "open", NULL);
    (*out)->host = host;
    return ATTEND_OK;
}
static void zoo_close(attend_lib *lib) { lib->host->release(lib->host, lib, sizeof *lib, 64); }
static uint32_t zoo_count(const attend_lib *lib) {
    (void)lib;
    ZOO_IN_COUNT
    return ZOO_COUNT;
}
static const attend_mechanism *zoo_at(const attend_lib *lib, uint32_t index) {
    (void)lib, (void)index;
    return ZOO_AT;
}

ATTEND_UNUSED static const attend_plugin zoo_table = {
    .struct_size = (uint32_t)ZOO_PLUGIN_SIZE,
    .magic = ZOO_MAGIC,
    .abi_major = ZOO_TABLE_MAJOR,
    .abi_minor = ATTEND_ABI_MINOR,
    .min_host_minor = ZOO_TABLE_MIN_MINOR,
    .layout_tag = ZOO_TABLE_LAYOUT,
    .id = ZOO_ID,
    .version = ZOO_VERSION,
    .license = "Apache-2.0",
    .required_isa = ZOO_TABLE_ISA,
    .score = ZOO_SCORE,
    .open = ZOO_OPEN,
    .close = zoo_close,
    .mechanism_count = zoo_count,
    .mechanism_at = zoo_at,
};
#ifndef ZOO_NO_ENTRY
const attend_plugin *attend_plugin_entry(const attend_hello *hello) {
    (void)hello;
    return ZOO_ENTRY;
}
#else
ATTEND_EXPORT_ATTRIBUTE const void *zoo_another_entry(void);
const void *zoo_another_entry(void) { return &zoo_table; }
#endif

#ifdef ZOO_NOTE_MAJOR
#undef ATTEND_ABI_MAJOR
#define ATTEND_ABI_MAJOR ZOO_NOTE_MAJOR
#endif
#ifdef ZOO_NOTE_LAYOUT
#undef ATTEND_LAYOUT_TAG
#define ATTEND_LAYOUT_TAG ZOO_NOTE_LAYOUT
#endif
#ifdef ZOO_NOTE_MAGIC
#undef ATTEND_MAGIC
#define ATTEND_MAGIC ZOO_NOTE_MAGIC
#endif
#ifndef ZOO_NO_NOTE
ATTEND_PLUGIN_NOTE
#endif

#endif
