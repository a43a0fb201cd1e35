/* SPDX-License-Identifier: Apache-2.0 */
/* The plugin ABI: everything that crosses the boundary between a host and an attention plugin, as C11 (C++11 and
   later too). Includes nothing but <stdint.h> and <stddef.h>.

   Rules: every struct begins with its size, set by whoever allocates it, and only grows at its end; a reader copies
   min(struct_size, its own sizeof) and treats the rest as zero; zero means "absent" or "default"; nothing is thrown
   across and nothing is allocated on one side and freed on the other. The text: sdk/docs/plugin-abi.md.

   Numbering: flags and masks from bit 0, kinds (types, roles, numerics, levels) from 1; 0 = none.

   In brackets behind a function: who may call it (any-thread, alone = nothing else of this library runs), in which
   state (opened, planned), and what it promises (no-alloc). Nothing throws. */
#ifndef ATTEND_ABI_H
#define ATTEND_ABI_H

#include <stddef.h>
#include <stdint.h>

#define ATTEND_ABI_MAJOR 1
#define ATTEND_ABI_MINOR 0
#define ATTEND_MAGIC 0x444E5441u /* 'A','T','N','D' in memory order */

/* A host that defines ATTEND_HOST_BUILD sees the function types without noexcept: with it, compilers delete the
   catch around a call, which is the last line of defence against a plugin that throws all the same. */
#if defined(__cplusplus) && __cplusplus >= 201703L && !defined(ATTEND_HOST_BUILD)
#define ATTEND_NOEXCEPT noexcept
#else
#define ATTEND_NOEXCEPT
#endif

#if defined(_WIN32)
#define ATTEND_EXPORT_ATTRIBUTE __declspec(dllexport)
#else
#define ATTEND_EXPORT_ATTRIBUTE __attribute__((visibility("default")))
#endif

/* Whether a table that is passed back by pointer is long enough to hold a field newer than 1.0. */
#define ATTEND_HAS(type, pointer, field) \
    ((pointer)->struct_size >= offsetof(type, field) + sizeof(((const type *)0)->field))

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Handles and status ------------------------------------------------------------------------- */

#define ATTEND_ENTRY "attend_plugin_entry" /* the only exported symbol, for ever */

typedef struct attend_lib attend_lib;   /* the plugin's: what open() returned */
typedef struct attend_plan attend_plan; /* the plugin's: a mechanism prepared for given options, weights, shapes */
typedef struct attend_call attend_call; /* the host's: one call in progress */
typedef struct attend_host attend_host; /* the host's: its services */

typedef int32_t attend_status;
#define ATTEND_OK 0
#define ATTEND_INVALID_ARGUMENT 1
#define ATTEND_UNSUPPORTED 2 /* not a failure: the selector tries its next candidate and keeps the text as the reason */
#define ATTEND_OUT_OF_MEMORY 3
#define ATTEND_CANCELLED 4
#define ATTEND_NOT_FOUND 5
#define ATTEND_BAD_OPTION 6
#define ATTEND_BAD_SHAPE 7
#define ATTEND_BAD_DTYPE 8
#define ATTEND_WORKSPACE_TOO_SMALL 9
#define ATTEND_NUMERIC 10
#define ATTEND_STATE 11
#define ATTEND_LIMIT 12
#define ATTEND_IO 13
#define ATTEND_INTERNAL 99
#define ATTEND_PRIVATE_FIRST 1000 /* 1000..1999 are the plugin's own; an unknown positive value means INTERNAL */
#define ATTEND_PRIVATE_LAST 1999

/* Error text. The memory is the caller's; the callee writes at most text_capacity bytes with the NUL and cuts
   at a UTF-8 boundary. A pointer to one of these may always be NULL. */
typedef struct attend_error {
    uint32_t struct_size, text_capacity;
    attend_status code;
    uint32_t text_length; /* bytes written, without the NUL */
    char *text;
    const char *where; /* static: option, port or field name, or NULL */
} attend_error;

/* A table of structs. The reader steps by the producer's stride (a multiple of 8). No size field, fixed for ever. */
typedef struct attend_array {
    const void *items;
    uint32_t count, stride;
} attend_array;

/* ---- 2. Machine ------------------------------------------------------------------------------------- */

#define ATTEND_ARCH_X86_64 1u
#define ATTEND_ARCH_AARCH64 2u

/* Levels: one bit stands for all features of a level together, enabled by the operating system too. */
#define ATTEND_ISA_X86_V2 (1ull << 0) /* entry baseline */
#define ATTEND_ISA_X86_V3 (1ull << 1) /* entry avx2 */
#define ATTEND_ISA_X86_V4 (1ull << 2) /* entry avx512 */
#define ATTEND_ISA_AVX512_BF16 (1ull << 3)
#define ATTEND_ISA_AVX512_VNNI (1ull << 4)
#define ATTEND_ISA_AVX512_FP16 (1ull << 5)
#define ATTEND_ISA_AMX_BF16 (1ull << 6)
#define ATTEND_ISA_AMX_INT8 (1ull << 7)
#define ATTEND_ISA_NEON (1ull << 8) /* entry neon */
#define ATTEND_ISA_NEON_DOTPROD (1ull << 9)
#define ATTEND_ISA_NEON_I8MM (1ull << 10)
#define ATTEND_ISA_NEON_BF16 (1ull << 11)
#define ATTEND_ISA_SVE (1ull << 12)

typedef struct attend_cpu {
    uint32_t struct_size, arch;
    uint64_t isa, isa_machine;              /* levels that may be used; the same before the host's limit, for reports only */
    uint64_t l1d_bytes, l2_bytes, l3_bytes; /* 0 = unknown */
    uint32_t cache_line, cores, threads, reserved0;
    const char *vendor, *model;
    const void *reserved1;
} attend_cpu;

/* ---- 3. Tensors ------------------------------------------------------------------------------------- */

#define ATTEND_TENSOR_READ_ONLY (1u << 0)
#define ATTEND_TENSOR_ZERO_STRIDE_OK (1u << 1)
#define ATTEND_TENSOR_MAY_ALIAS_OUTPUT (1u << 2)
#define ATTEND_TENSOR_INITIALISED (1u << 3) /* a weight that the caller left out: the host's initialiser made it */

/* DLPack's numbers: device type, and data type code */
#define ATTEND_DEVICE_CPU 1
#define ATTEND_CODE_INT 0u
#define ATTEND_CODE_UINT 1u
#define ATTEND_CODE_FLOAT 2u
#define ATTEND_CODE_BFLOAT 4u

/* Data types where a field holds a mask of them */
#define ATTEND_F32 (1ull << 0)
#define ATTEND_F64 (1ull << 1)
#define ATTEND_F16 (1ull << 2)
#define ATTEND_BF16 (1ull << 3)
#define ATTEND_I8 (1ull << 4)
#define ATTEND_U8 (1ull << 5) /* also boolean masks */
#define ATTEND_I32 (1ull << 6)
#define ATTEND_I64 (1ull << 7)
#define ATTEND_F8_E4M3 (1ull << 8) /* reserved */
#define ATTEND_F8_E5M2 (1ull << 9) /* reserved */

/* Logical order is [batch, head, position, feature]; memory layout is expressed by the strides.
   The 48 bytes from data on are laid out as a DLTensor on LP64. */
typedef struct attend_tensor {
    uint32_t struct_size, flags;
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t dtype_code, dtype_bits;
    uint16_t dtype_lanes;
    const int64_t *shape, *strides; /* strides in elements; never NULL if ndim > 0; may be 0 or negative */
    uint64_t byte_offset;           /* always 0 at this boundary */
    uint64_t extent_bytes;          /* addressable bytes counted from the lowest used address */
    uint32_t align, reserved0;      /* guaranteed alignment of data in bytes, a power of two */
} attend_tensor;

/* ---- 4. Mechanism descriptor ------------------------------------------------------------------------ */

/* Option types */
#define ATTEND_TYPE_BOOL 1u
#define ATTEND_TYPE_INT 2u /* 64 bits; an option whose max is 2^63 or more is unsigned and arrives as its bit pattern */
#define ATTEND_TYPE_FLOAT 3u
#define ATTEND_TYPE_STRING 4u
#define ATTEND_TYPE_ENUM 5u
#define ATTEND_TYPE_INT_LIST 6u
#define ATTEND_TYPE_FLOAT_LIST 7u

#define ATTEND_OPTION_REQUIRED (1u << 0)
#define ATTEND_OPTION_TUNABLE (1u << 1)
#define ATTEND_OPTION_AFFECTS_NUMERICS (1u << 2)
#define ATTEND_OPTION_EXPERT (1u << 3)
#define ATTEND_OPTION_DEPRECATED (1u << 4)
#define ATTEND_OPTION_SCALAR_OK (1u << 5) /* a list that also takes one bare number; the value then has VALUE_SCALAR */
/* An INT_LIST without choices that is written as lists of one length, [[2,0,1],[0,1,2]]: the number of rows comes first,
   then the rows, one after the other: 2, 2, 0, 1, 0, 1, 2. */
#define ATTEND_OPTION_ROWS (1u << 6)

typedef struct attend_option {
    uint32_t struct_size, type;
    uint32_t flags, reserved0;
    const char *name, *help, *unit, *default_json, *replaced_by;
    double min, max, step; /* numbers and list elements; step 0 = any */
    /* ENUM: ends with NULL. INT_LIST with choices: a list of words, as indices; min 0, max the last one. If a choice has
       parameters, "dilated(w,r)", each element is three numbers: index and up to two arguments, 0 where there is none. */
    const char *const *choices;
    const char *since;
} attend_option;

#define ATTEND_VALUE_GIVEN (1u << 0)  /* set by the user */
#define ATTEND_VALUE_SCALAR (1u << 1) /* a list option given as one bare number */

typedef struct attend_value {
    uint32_t struct_size, type;  /* type 0 = not given, and there is no default */
    uint32_t count, flags;       /* count: list length, bytes of a text */
    const char *name;
    union {
        int64_t i; /* BOOL 0 or 1, ENUM index in choices */
        double f;
        const char *s;
        const int64_t *is;
        const double *fs;
    } u;
} attend_value;

/* Port roles: what a host understands by itself; everything else has role 0 and is found by name */
#define ATTEND_Q 1u
#define ATTEND_K 2u
#define ATTEND_V 3u
#define ATTEND_OUT 4u
#define ATTEND_LSE 5u
#define ATTEND_SCORES 6u
#define ATTEND_MASK 7u
#define ATTEND_BIAS 8u
#define ATTEND_Q_LENGTHS 9u
#define ATTEND_K_LENGTHS 10u
#define ATTEND_CU_SEQ_Q 11u
#define ATTEND_CU_SEQ_K 12u

#define ATTEND_INPUT (1u << 0)
#define ATTEND_OUTPUT (1u << 1)
#define ATTEND_WEIGHT (1u << 2)
#define ATTEND_OPTIONAL (1u << 3)
#define ATTEND_IN_PLACE (1u << 4)
#define ATTEND_LAST_DIM_CONTIGUOUS (1u << 5)

/* Inputs, outputs and weights, one table. The grammar of shape and init: plugin-abi.md, "Ports". */
typedef struct attend_port {
    uint32_t struct_size, role, flags, min_align;
    const char *name, *shape, *help, *init;
    uint64_t dtypes;
} attend_port;

typedef struct attend_binding { /* a tensor for a port */
    uint32_t struct_size, role;
    const char *name;
    const attend_tensor *tensor;
} attend_binding;

#define ATTEND_CAP_CAUSAL (1ull << 0)
#define ATTEND_CAP_MASK (1ull << 1)
#define ATTEND_CAP_BIAS (1ull << 2)
#define ATTEND_CAP_GQA (1ull << 3)
#define ATTEND_CAP_MQA (1ull << 4)
#define ATTEND_CAP_CROSS (1ull << 5) /* Nq != Nk */
#define ATTEND_CAP_WINDOW (1ull << 6)
#define ATTEND_CAP_SOFTCAP (1ull << 7)
#define ATTEND_CAP_LSE_OUT (1ull << 8)
#define ATTEND_CAP_SCORES_OUT (1ull << 9)
#define ATTEND_CAP_DROPOUT (1ull << 10)
#define ATTEND_CAP_VARLEN (1ull << 11) /* packed sequences */
#define ATTEND_CAP_DECODE (1ull << 12)
#define ATTEND_CAP_BACKWARD (1ull << 13)
#define ATTEND_CAP_DETERMINISTIC (1ull << 14) /* same bits for any worker count */
#define ATTEND_CAP_NEEDS_WEIGHTS (1ull << 15)
#define ATTEND_CAP_STATEFUL (1ull << 16)
#define ATTEND_CAP_STRIDED_IO (1ull << 17)
#define ATTEND_CAP_DV_DIFFERS (1ull << 18)
#define ATTEND_CAP_GRAPH_INPUT (1ull << 19)
#define ATTEND_CAP_ROUTED (1ull << 20)
#define ATTEND_CAP_IN_PLACE (1ull << 21)
#define ATTEND_CAP_PLUGIN_FIRST (1ull << 48) /* bits 48 to 63 carry no meaning for a host */

/* What a validator compares with */
#define ATTEND_EXACT 1u          /* softmax attention as the host's reference computes it */
#define ATTEND_APPROXIMATE 2u    /* the same, within attend.tolerance/1 */
#define ATTEND_OWN_DEFINITION 3u /* the plugin's own definition, attend.reference/1 */

/* ---- 5. Plan and execution -------------------------------------------------------------------------- */

#define ATTEND_EXT_REQUIRED (1u << 0) /* not understood means ATTEND_UNSUPPORTED */
typedef struct attend_ext { /* head of an optional per-call block */
    uint32_t struct_size, flags;
    const char *id;
    const struct attend_ext *next;
} attend_ext;

#define ATTEND_PLAN_CAUSAL (1u << 0)
#define ATTEND_PLAN_TRAINING (1u << 1)
#define ATTEND_PLAN_DETERMINISTIC (1u << 2)
#define ATTEND_PLAN_NEED_LSE (1u << 3)
#define ATTEND_PLAN_NEED_SCORES (1u << 4)
#define ATTEND_PLAN_OFFSET_PER_ITEM (1u << 5) /* both length tensors are bound; Lk_b - Lq_b replaces causal_offset */

typedef struct attend_plan_desc {
    uint32_t struct_size, flags;
    int64_t batch, num_q_heads, num_kv_heads, q_len, kv_len, head_dim, value_dim; /* B Hq Hkv Nq Nk D Dv */
    int64_t causal_offset, window_left, window_right; /* resolved position offset; windows: -1 = unlimited */
    double scale, softcap, dropout;                   /* scale 0 = 1/sqrt(D) */
    uint32_t io_dtype, acc_dtype, max_workers, reserved0;
    attend_array bindings; /* attend_binding; weights with data, everything else metadata only (data NULL) */
    attend_array options;  /* attend_value: typed, checked and completed with defaults by the host */
    const attend_ext *next;
    const void *reserved1;
} attend_plan_desc;

typedef struct attend_plan_info { /* the host sets struct_size */
    uint32_t struct_size, workspace_align; /* at most 4096 */
    uint64_t workspace_bytes, persistent_bytes, grain;
    const char *variant, *warnings; /* path taken; options set but not read in this mode, one a line, or NULL */
    const void *reserved1;
} attend_plan_info;

typedef struct attend_exec {
    uint32_t struct_size, flags;
    attend_array bindings;
    void *workspace;
    uint64_t workspace_bytes, seed, rng_offset;
    attend_call *call;
    const attend_ext *next;
    const void *reserved1;
} attend_exec;

typedef struct attend_mechanism {
    uint32_t struct_size, revision; /* revision grows when results change for equal inputs */
    const char *name, *category, *title, *summary, *reference, *time_complexity, *space_complexity;
    uint64_t caps, dtypes, acc_dtypes;
    uint32_t numerics, reserved0;
    attend_array options, ports; /* attend_option, attend_port */
    /* Cheap test whether plan would accept; optional. [any-thread, opened, no-alloc] */
    attend_status (*check)(const attend_lib *, const attend_plan_desc *, attend_error *) ATTEND_NOEXCEPT;
    /* [any-thread, opened] */
    attend_status (*plan)(attend_lib *, const attend_plan_desc *, attend_plan **, attend_error *) ATTEND_NOEXCEPT;
    /* [any-thread, planned] */
    attend_status (*plan_info)(const attend_plan *, attend_plan_info *) ATTEND_NOEXCEPT;
    /* The same plan may run on several threads if workspaces and outputs differ. [any-thread, planned, no-alloc] */
    attend_status (*execute)(const attend_plan *, const attend_exec *, attend_error *) ATTEND_NOEXCEPT;
    /* [any-thread, planned] */
    void (*plan_destroy)(attend_plan *) ATTEND_NOEXCEPT;
    /* NULL for every id the mechanism does not know; optional. [any-thread, opened, no-alloc] */
    const void *(*get_extension)(const attend_lib *, const char *id) ATTEND_NOEXCEPT;
    const void *reserved1;
} attend_mechanism;

/* ---- 6. Host services ------------------------------------------------------------------------------- */

typedef attend_status (*attend_range_fn)(void *user, uint64_t begin, uint64_t end, uint32_t slot) ATTEND_NOEXCEPT;

#define ATTEND_PARALLEL_SERIAL (1u << 0) /* on the calling thread, slot 0 */
#define ATTEND_PARALLEL_NEAR (1u << 1)   /* a wish: neighbouring chunks, and the same ones in the next call, go to one worker */

#define ATTEND_LOG_TRACE 1u
#define ATTEND_LOG_DEBUG 2u
#define ATTEND_LOG_INFO 3u
#define ATTEND_LOG_WARN 4u
#define ATTEND_LOG_ERROR 5u
#define ATTEND_LOG_OFF 6u

/* Const; lives from before open until after close; passed back unchanged, never copied. Fields newer than 1.0
   are asked for with ATTEND_HAS. */
struct attend_host {
    uint32_t struct_size;
    uint16_t abi_major, abi_minor;
    void *impl;
    const attend_cpu *cpu;
    void *(*alloc)(const attend_host *, uint64_t bytes, uint64_t align) ATTEND_NOEXCEPT; /* NULL on failure */
    void (*release)(const attend_host *, void *p, uint64_t bytes, uint64_t align) ATTEND_NOEXCEPT; /* NULL ok */
    /* Cuts [0, n) into chunks of grain; every body call gets exactly one chunk. slot < the plan's max_workers and
       belongs to one running body at a time. From inside a body it runs at once on that worker. */
    attend_status (*parallel_for)(const attend_host *, attend_call *, uint64_t n, uint64_t grain, uint32_t flags,
                                  attend_range_fn body, void *user) ATTEND_NOEXCEPT;
    uint32_t (*max_workers)(const attend_host *) ATTEND_NOEXCEPT;
    uint32_t (*log_level)(const attend_host *) ATTEND_NOEXCEPT;
    void (*log)(const attend_host *, uint32_t level, const char *text) ATTEND_NOEXCEPT;
    uint32_t (*cancelled)(const attend_call *) ATTEND_NOEXCEPT;
    void (*progress)(attend_call *, double fraction) ATTEND_NOEXCEPT;
    uint64_t (*now_ns)(const attend_host *) ATTEND_NOEXCEPT;
    /* Two calls: with cap 0 for the size (with the NUL), then with the buffer. NOT_FOUND when absent. */
    attend_status (*setting)(const attend_host *, const char *key, char *buf, uint64_t cap, uint64_t *needed) ATTEND_NOEXCEPT;
    const void *(*get_extension)(const attend_host *, const char *id) ATTEND_NOEXCEPT;
    const void *reserved1;
};

/* ---- 7. Plugin -------------------------------------------------------------------------------------- */

#define ATTEND_PLUGIN_UNLOADABLE (1u << 0)
#define ATTEND_PLUGIN_OWN_THREADS (1u << 1)

#define ATTEND_NOTE_ASAN (1u << 0)
#define ATTEND_NOTE_TSAN (1u << 1)
#define ATTEND_NOTE_MSAN (1u << 2)

/* Host to plugin. Frozen in every major up to reserved0, like the signature of the entry. */
typedef struct attend_hello {
    uint32_t struct_size;
    uint16_t abi_major, abi_minor;
    uint32_t layout_tag, reserved0;
    const char *host_name, *host_version;
    const void *reserved1;
} attend_hello;

typedef struct attend_plugin {
    /* frozen prefix, identical in every major, so that any host can name any plugin in its report */
    uint32_t struct_size;
    uint32_t magic;
    uint16_t abi_major, abi_minor, min_host_minor, reserved0;
    uint32_t layout_tag, flags;
    const char *id, *version; /* "org.example.fancy", "1.4.0" (semantic version) */
    /* major 1 */
    const char *vendor, *license, *url, *summary, *variant;
    uint64_t required_isa; /* bits of attend_cpu.isa; 0 = runs everywhere */
    /* Optional; 0 = cannot run here. [any-thread, no-alloc] */
    int32_t (*score)(const attend_cpu *cpu) ATTEND_NOEXCEPT;
    /* May be called more than once in a process, each with its own lib. [alone] */
    attend_status (*open)(const attend_host *host, attend_lib **out, attend_error *err) ATTEND_NOEXCEPT;
    void (*close)(attend_lib *lib) ATTEND_NOEXCEPT;
    uint32_t (*mechanism_count)(const attend_lib *lib) ATTEND_NOEXCEPT;
    const attend_mechanism *(*mechanism_at)(const attend_lib *lib, uint32_t index) ATTEND_NOEXCEPT;
    const void *(*get_extension)(const attend_lib *lib, const char *id) ATTEND_NOEXCEPT; /* optional */
    const void *reserved1;
} attend_plugin;

/* What the ELF note holds: name "ATTEND", type 1, aligned 4. No size field, fixed for ever. */
typedef struct attend_note {
    uint32_t magic, layout_tag;
    uint16_t abi_major, abi_minor, min_host_minor, flags;
    uint64_t required_isa, reserved0;
} attend_note;

/* ---- 8. Extensions ---------------------------------------------------------------------------------- */

/* Mechanism: what a call would cost. Cheap, no allocation; ns 0 = not predicted. */
#define ATTEND_EXT_COST "attend.cost/1"
typedef struct attend_cost {
    uint32_t struct_size, reserved0;
    double flops, bytes, workspace_bytes, ns;
} attend_cost;
typedef struct attend_cost_extension {
    uint32_t struct_size, reserved0;
    attend_status (*predict)(const attend_lib *, const attend_plan_desc *, attend_cost *) ATTEND_NOEXCEPT;
} attend_cost_extension;

/* Mechanism: bound of the error against exact softmax attention, as a share of max |V|; infinity = unbounded. */
#define ATTEND_EXT_TOLERANCE "attend.tolerance/1"
typedef struct attend_tolerance_extension {
    uint32_t struct_size, reserved0;
    double (*error_bound)(const attend_lib *, const attend_plan_desc *) ATTEND_NOEXCEPT;
} attend_tolerance_extension;

/* Mechanism: what a newcomer asks beyond title and summary. UTF-8, each of them may be NULL. */
#define ATTEND_EXT_GUIDE "attend.guide/1"
typedef struct attend_guide_extension {
    uint32_t struct_size, reserved0;
    const char *formula; /* lines of text, in the names of the options */
    const char *cost;    /* time and memory in words */
    const char *use;     /* when to choose it, and when another */
    const char *example; /* one command of the attend tool that runs as it stands */
} attend_guide_extension;

/* Mechanism: which keys a call would read, from sizes and options alone: causal counts, masks and lengths do not. */
#define ATTEND_EXT_PATTERN "attend.pattern/1"
#define ATTEND_PATTERN_PARTIAL (1u << 0) /* some of these rows do not see some of these keys */
typedef struct attend_pattern_keys {
    int64_t begin, end, step; /* begin, begin + step, ... below end */
    uint32_t flags, reserved0;
} attend_pattern_keys;
typedef void (*attend_pattern_visit_fn)(void *visitor, int64_t first_row, int64_t num_rows,
                                        const attend_pattern_keys *keys) ATTEND_NOEXCEPT;
typedef struct attend_pattern_extension {
    uint32_t struct_size, reserved0;
    /* Keys of the query rows [first_row, first_row + num_rows) of a query head, rows_at_once rows at a time (0: as many
       as the engine takes together). Ranges of the same rows are disjoint and ascend by begin. One row at a time: the
       exact set. May allocate through the host. [any-thread, opened] */
    attend_status (*visit)(const attend_lib *, const attend_plan_desc *, int64_t head, int64_t first_row,
                           int64_t num_rows, int64_t rows_at_once, attend_pattern_visit_fn visit, void *visitor,
                           attend_error *error) ATTEND_NOEXCEPT;
} attend_pattern_extension;

/* Mechanism: attention weights of some rows, so that nobody needs a matrix of all of them. */
#define ATTEND_EXT_SCORES "attend.scores/1"
typedef struct attend_scores_extension {
    uint32_t struct_size, reserved0;
    /* What `execute` writes into `scores`, to the bit, for the rows [first_row, first_row + num_rows) of all batch items
       and heads. The binding `scores` has num_rows rows; other outputs need not be bound and are not written. The plan
       was made with ATTEND_PLAN_NEED_SCORES and the shape of all weights. [any-thread, planned] */
    attend_status (*rows)(const attend_plan *, const attend_exec *, int64_t first_row, int64_t num_rows,
                          attend_error *) ATTEND_NOEXCEPT;
    /* Likewise what the softmax makes weights of: scaled, capped, biased; minus infinity where a key is not seen. NULL: the
       weights are not those of one softmax. */
    attend_status (*logits)(const attend_plan *, const attend_exec *, int64_t first_row, int64_t num_rows,
                            attend_error *) ATTEND_NOEXCEPT;
} attend_scores_extension;

/* Mechanism: keys and values that a decoder keeps from step to step, for sequences 0 to num_sequences - 1, all empty at
   first. A cache is destroyed before its lib is closed. Append, truncate, fork and destroy exclude every other call with
   the same cache; steps and questions may run on several threads at a time. What fails changes nothing. */
#define ATTEND_EXT_KV_CACHE "attend.kv-cache/1"
typedef struct attend_kv_cache attend_kv_cache;
typedef struct attend_kv_cache_desc {
    uint32_t struct_size;
    uint32_t dtype; /* how keys and values are kept: one bit, ATTEND_F32 ...; codes of 8 bits have scales of the cache's own */
    int64_t num_sequences;
    int64_t capacity;  /* keys that each sequence may hold */
    int64_t page_keys; /* keys of a page; 0: contiguous, every sequence has room for `capacity` keys */
    int64_t num_pages; /* pages that all sequences share; 0 with page_keys 0 */
    const void *reserved1;
} attend_kv_cache_desc;
typedef struct attend_kv_cache_info {
    uint32_t struct_size, reserved0;
    uint64_t bytes, used_bytes; /* memory held; of it pages with keys (contiguous: room of sequences that are not empty) */
    int64_t num_pages, free_pages;
} attend_kv_cache_info;
typedef struct attend_kv_cache_extension {
    uint32_t struct_size, reserved0;
    /* steps: Hq, Hkv, D, Dv, types, options, workers and what the steps return (flags); its other sizes are not read.
       [any-thread, opened] */
    attend_status (*create)(attend_lib *, const attend_plan_desc *steps, const attend_kv_cache_desc *,
                            attend_kv_cache **out, attend_error *) ATTEND_NOEXCEPT;
    void (*destroy)(attend_kv_cache *) ATTEND_NOEXCEPT;
    /* key [n, Hkv, m, D] and value [n, Hkv, m, Dv], float32 or as kept: m more keys for each of n sequences, no two the
       same. No room: ATTEND_LIMIT. */
    attend_status (*append)(attend_kv_cache *, const int64_t *sequences, int64_t num_sequences, const attend_tensor *key,
                            const attend_tensor *value, attend_error *) ATTEND_NOEXCEPT;
    /* Forgets all keys from `length` on. */
    attend_status (*truncate)(attend_kv_cache *, int64_t sequence, int64_t length, attend_error *) ATTEND_NOEXCEPT;
    /* `to`, which is empty, gets the keys of `from`; pages are shared until one of the two changes. */
    attend_status (*fork)(attend_kv_cache *, int64_t from, int64_t to, attend_error *) ATTEND_NOEXCEPT;
    int64_t (*length)(const attend_kv_cache *, int64_t sequence) ATTEND_NOEXCEPT; /* -1: there is no such sequence */
    attend_status (*info)(const attend_kv_cache *, attend_kv_cache_info *) ATTEND_NOEXCEPT;
    /* Bytes that a step of so many sequences with q_len queries each needs; aligned to 64. */
    uint64_t (*step_workspace)(const attend_kv_cache *, int64_t num_sequences, int64_t q_len) ATTEND_NOEXCEPT;
    /* One decoding step: row b of query, output and lse belongs to sequences[b], which may repeat. The queries are the last
       positions of their sequence: append the keys of a step before the step. [no-alloc] */
    attend_status (*step)(const attend_kv_cache *, const int64_t *sequences, int64_t num_sequences, const attend_exec *,
                          attend_error *) ATTEND_NOEXCEPT;
} attend_kv_cache_extension;

/* Per call (attend_exec.next): outputs whose number of rows depends on the data. The host allocates the bound that
   the port's shape gives and the plugin writes the rows that it filled into *rows. */
#define ATTEND_EXT_DYNAMIC_ROWS "attend.dynamic-rows/1"
typedef struct attend_dynamic_row {
    uint32_t struct_size, reserved0;
    const char *name; /* of the output port */
    int64_t *rows;
} attend_dynamic_row;
typedef struct attend_dynamic_rows {
    uint32_t struct_size, flags;
    const char *id;
    const attend_ext *next;
    attend_array outputs; /* attend_dynamic_row */
} attend_dynamic_rows;

typedef const attend_plugin *(*attend_entry_fn)(const attend_hello *hello) ATTEND_NOEXCEPT;

#ifdef __cplusplus
}
#endif

/* ---- 9. Layout --------------------------------------------------------------------------------------- */

#if defined(__cplusplus)
#define ATTEND_STATIC_ASSERT(condition, text) static_assert(condition, text)
#else
#define ATTEND_STATIC_ASSERT(condition, text) _Static_assert(condition, text)
#endif

/* The two probes are padded on purpose. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpadded"
#endif
struct attend_probe_u64 {
    char before;
    uint64_t probed;
};
struct attend_probe_double {
    char before;
    double probed;
};
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

/* From the low byte up: pointer size, byte order (1 = little), alignment inside a struct of uint64_t and of double. */
#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__)
#define ATTEND_LITTLE_ENDIAN_TAG ((__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) ? 2u : 1u)
#else
#define ATTEND_LITTLE_ENDIAN_TAG 1u
#endif
#define ATTEND_LAYOUT_TAG                                                                    \
    ((uint32_t)sizeof(void *) | (ATTEND_LITTLE_ENDIAN_TAG << 8) |                            \
     ((uint32_t)offsetof(struct attend_probe_u64, probed) << 16) |                           \
     ((uint32_t)offsetof(struct attend_probe_double, probed) << 24))

#define ATTEND_ASSERT_SIZE(type, size) ATTEND_STATIC_ASSERT(sizeof(type) == (size), #type)
#define ATTEND_ASSERT_FIELD(type, field, at) ATTEND_STATIC_ASSERT(offsetof(type, field) == (at), #type "." #field)

ATTEND_STATIC_ASSERT(ATTEND_LAYOUT_TAG == 0x08080108u, "64-bit little-endian targets only");
ATTEND_ASSERT_SIZE(attend_error, 32);
ATTEND_ASSERT_FIELD(attend_error, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_error, text_capacity, 4);
ATTEND_ASSERT_FIELD(attend_error, code, 8);
ATTEND_ASSERT_FIELD(attend_error, text_length, 12);
ATTEND_ASSERT_FIELD(attend_error, text, 16);
ATTEND_ASSERT_FIELD(attend_error, where, 24);
ATTEND_ASSERT_SIZE(attend_array, 16);
ATTEND_ASSERT_FIELD(attend_array, items, 0);
ATTEND_ASSERT_FIELD(attend_array, count, 8);
ATTEND_ASSERT_FIELD(attend_array, stride, 12);
ATTEND_ASSERT_SIZE(attend_cpu, 88);
ATTEND_ASSERT_FIELD(attend_cpu, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_cpu, arch, 4);
ATTEND_ASSERT_FIELD(attend_cpu, isa, 8);
ATTEND_ASSERT_FIELD(attend_cpu, isa_machine, 16);
ATTEND_ASSERT_FIELD(attend_cpu, l1d_bytes, 24);
ATTEND_ASSERT_FIELD(attend_cpu, l2_bytes, 32);
ATTEND_ASSERT_FIELD(attend_cpu, l3_bytes, 40);
ATTEND_ASSERT_FIELD(attend_cpu, cache_line, 48);
ATTEND_ASSERT_FIELD(attend_cpu, cores, 52);
ATTEND_ASSERT_FIELD(attend_cpu, threads, 56);
ATTEND_ASSERT_FIELD(attend_cpu, reserved0, 60);
ATTEND_ASSERT_FIELD(attend_cpu, vendor, 64);
ATTEND_ASSERT_FIELD(attend_cpu, model, 72);
ATTEND_ASSERT_FIELD(attend_cpu, reserved1, 80);
ATTEND_ASSERT_SIZE(attend_tensor, 72);
ATTEND_ASSERT_FIELD(attend_tensor, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_tensor, flags, 4);
ATTEND_ASSERT_FIELD(attend_tensor, data, 8);
ATTEND_ASSERT_FIELD(attend_tensor, device_type, 16);
ATTEND_ASSERT_FIELD(attend_tensor, device_id, 20);
ATTEND_ASSERT_FIELD(attend_tensor, ndim, 24);
ATTEND_ASSERT_FIELD(attend_tensor, dtype_code, 28);
ATTEND_ASSERT_FIELD(attend_tensor, dtype_bits, 29);
ATTEND_ASSERT_FIELD(attend_tensor, dtype_lanes, 30);
ATTEND_ASSERT_FIELD(attend_tensor, shape, 32);
ATTEND_ASSERT_FIELD(attend_tensor, strides, 40);
ATTEND_ASSERT_FIELD(attend_tensor, byte_offset, 48);
ATTEND_ASSERT_FIELD(attend_tensor, extent_bytes, 56);
ATTEND_ASSERT_FIELD(attend_tensor, align, 64);
ATTEND_ASSERT_FIELD(attend_tensor, reserved0, 68);
ATTEND_ASSERT_SIZE(attend_option, 96);
ATTEND_ASSERT_FIELD(attend_option, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_option, type, 4);
ATTEND_ASSERT_FIELD(attend_option, flags, 8);
ATTEND_ASSERT_FIELD(attend_option, reserved0, 12);
ATTEND_ASSERT_FIELD(attend_option, name, 16);
ATTEND_ASSERT_FIELD(attend_option, help, 24);
ATTEND_ASSERT_FIELD(attend_option, unit, 32);
ATTEND_ASSERT_FIELD(attend_option, default_json, 40);
ATTEND_ASSERT_FIELD(attend_option, replaced_by, 48);
ATTEND_ASSERT_FIELD(attend_option, min, 56);
ATTEND_ASSERT_FIELD(attend_option, max, 64);
ATTEND_ASSERT_FIELD(attend_option, step, 72);
ATTEND_ASSERT_FIELD(attend_option, choices, 80);
ATTEND_ASSERT_FIELD(attend_option, since, 88);
ATTEND_ASSERT_SIZE(attend_value, 32);
ATTEND_ASSERT_FIELD(attend_value, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_value, type, 4);
ATTEND_ASSERT_FIELD(attend_value, count, 8);
ATTEND_ASSERT_FIELD(attend_value, flags, 12);
ATTEND_ASSERT_FIELD(attend_value, name, 16);
ATTEND_ASSERT_FIELD(attend_value, u, 24);
ATTEND_ASSERT_SIZE(attend_port, 56);
ATTEND_ASSERT_FIELD(attend_port, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_port, role, 4);
ATTEND_ASSERT_FIELD(attend_port, flags, 8);
ATTEND_ASSERT_FIELD(attend_port, min_align, 12);
ATTEND_ASSERT_FIELD(attend_port, name, 16);
ATTEND_ASSERT_FIELD(attend_port, shape, 24);
ATTEND_ASSERT_FIELD(attend_port, help, 32);
ATTEND_ASSERT_FIELD(attend_port, init, 40);
ATTEND_ASSERT_FIELD(attend_port, dtypes, 48);
ATTEND_ASSERT_SIZE(attend_binding, 24);
ATTEND_ASSERT_FIELD(attend_binding, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_binding, role, 4);
ATTEND_ASSERT_FIELD(attend_binding, name, 8);
ATTEND_ASSERT_FIELD(attend_binding, tensor, 16);
ATTEND_ASSERT_SIZE(attend_ext, 24);
ATTEND_ASSERT_FIELD(attend_ext, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_ext, flags, 4);
ATTEND_ASSERT_FIELD(attend_ext, id, 8);
ATTEND_ASSERT_FIELD(attend_ext, next, 16);
ATTEND_ASSERT_SIZE(attend_plan_desc, 176);
ATTEND_ASSERT_FIELD(attend_plan_desc, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_plan_desc, flags, 4);
ATTEND_ASSERT_FIELD(attend_plan_desc, batch, 8);
ATTEND_ASSERT_FIELD(attend_plan_desc, num_q_heads, 16);
ATTEND_ASSERT_FIELD(attend_plan_desc, num_kv_heads, 24);
ATTEND_ASSERT_FIELD(attend_plan_desc, q_len, 32);
ATTEND_ASSERT_FIELD(attend_plan_desc, kv_len, 40);
ATTEND_ASSERT_FIELD(attend_plan_desc, head_dim, 48);
ATTEND_ASSERT_FIELD(attend_plan_desc, value_dim, 56);
ATTEND_ASSERT_FIELD(attend_plan_desc, causal_offset, 64);
ATTEND_ASSERT_FIELD(attend_plan_desc, window_left, 72);
ATTEND_ASSERT_FIELD(attend_plan_desc, window_right, 80);
ATTEND_ASSERT_FIELD(attend_plan_desc, scale, 88);
ATTEND_ASSERT_FIELD(attend_plan_desc, softcap, 96);
ATTEND_ASSERT_FIELD(attend_plan_desc, dropout, 104);
ATTEND_ASSERT_FIELD(attend_plan_desc, io_dtype, 112);
ATTEND_ASSERT_FIELD(attend_plan_desc, acc_dtype, 116);
ATTEND_ASSERT_FIELD(attend_plan_desc, max_workers, 120);
ATTEND_ASSERT_FIELD(attend_plan_desc, reserved0, 124);
ATTEND_ASSERT_FIELD(attend_plan_desc, bindings, 128);
ATTEND_ASSERT_FIELD(attend_plan_desc, options, 144);
ATTEND_ASSERT_FIELD(attend_plan_desc, next, 160);
ATTEND_ASSERT_FIELD(attend_plan_desc, reserved1, 168);
ATTEND_ASSERT_SIZE(attend_plan_info, 56);
ATTEND_ASSERT_FIELD(attend_plan_info, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_plan_info, workspace_align, 4);
ATTEND_ASSERT_FIELD(attend_plan_info, workspace_bytes, 8);
ATTEND_ASSERT_FIELD(attend_plan_info, persistent_bytes, 16);
ATTEND_ASSERT_FIELD(attend_plan_info, grain, 24);
ATTEND_ASSERT_FIELD(attend_plan_info, variant, 32);
ATTEND_ASSERT_FIELD(attend_plan_info, warnings, 40);
ATTEND_ASSERT_FIELD(attend_plan_info, reserved1, 48);
ATTEND_ASSERT_SIZE(attend_exec, 80);
ATTEND_ASSERT_FIELD(attend_exec, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_exec, flags, 4);
ATTEND_ASSERT_FIELD(attend_exec, bindings, 8);
ATTEND_ASSERT_FIELD(attend_exec, workspace, 24);
ATTEND_ASSERT_FIELD(attend_exec, workspace_bytes, 32);
ATTEND_ASSERT_FIELD(attend_exec, seed, 40);
ATTEND_ASSERT_FIELD(attend_exec, rng_offset, 48);
ATTEND_ASSERT_FIELD(attend_exec, call, 56);
ATTEND_ASSERT_FIELD(attend_exec, next, 64);
ATTEND_ASSERT_FIELD(attend_exec, reserved1, 72);
ATTEND_ASSERT_SIZE(attend_mechanism, 184);
ATTEND_ASSERT_FIELD(attend_mechanism, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_mechanism, revision, 4);
ATTEND_ASSERT_FIELD(attend_mechanism, name, 8);
ATTEND_ASSERT_FIELD(attend_mechanism, category, 16);
ATTEND_ASSERT_FIELD(attend_mechanism, title, 24);
ATTEND_ASSERT_FIELD(attend_mechanism, summary, 32);
ATTEND_ASSERT_FIELD(attend_mechanism, reference, 40);
ATTEND_ASSERT_FIELD(attend_mechanism, time_complexity, 48);
ATTEND_ASSERT_FIELD(attend_mechanism, space_complexity, 56);
ATTEND_ASSERT_FIELD(attend_mechanism, caps, 64);
ATTEND_ASSERT_FIELD(attend_mechanism, dtypes, 72);
ATTEND_ASSERT_FIELD(attend_mechanism, acc_dtypes, 80);
ATTEND_ASSERT_FIELD(attend_mechanism, numerics, 88);
ATTEND_ASSERT_FIELD(attend_mechanism, reserved0, 92);
ATTEND_ASSERT_FIELD(attend_mechanism, options, 96);
ATTEND_ASSERT_FIELD(attend_mechanism, ports, 112);
ATTEND_ASSERT_FIELD(attend_mechanism, check, 128);
ATTEND_ASSERT_FIELD(attend_mechanism, plan, 136);
ATTEND_ASSERT_FIELD(attend_mechanism, plan_info, 144);
ATTEND_ASSERT_FIELD(attend_mechanism, execute, 152);
ATTEND_ASSERT_FIELD(attend_mechanism, plan_destroy, 160);
ATTEND_ASSERT_FIELD(attend_mechanism, get_extension, 168);
ATTEND_ASSERT_FIELD(attend_mechanism, reserved1, 176);
ATTEND_ASSERT_SIZE(attend_host, 120);
ATTEND_ASSERT_FIELD(attend_host, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_host, abi_major, 4);
ATTEND_ASSERT_FIELD(attend_host, abi_minor, 6);
ATTEND_ASSERT_FIELD(attend_host, impl, 8);
ATTEND_ASSERT_FIELD(attend_host, cpu, 16);
ATTEND_ASSERT_FIELD(attend_host, alloc, 24);
ATTEND_ASSERT_FIELD(attend_host, release, 32);
ATTEND_ASSERT_FIELD(attend_host, parallel_for, 40);
ATTEND_ASSERT_FIELD(attend_host, max_workers, 48);
ATTEND_ASSERT_FIELD(attend_host, log_level, 56);
ATTEND_ASSERT_FIELD(attend_host, log, 64);
ATTEND_ASSERT_FIELD(attend_host, cancelled, 72);
ATTEND_ASSERT_FIELD(attend_host, progress, 80);
ATTEND_ASSERT_FIELD(attend_host, now_ns, 88);
ATTEND_ASSERT_FIELD(attend_host, setting, 96);
ATTEND_ASSERT_FIELD(attend_host, get_extension, 104);
ATTEND_ASSERT_FIELD(attend_host, reserved1, 112);
ATTEND_ASSERT_SIZE(attend_hello, 40);
ATTEND_ASSERT_FIELD(attend_hello, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_hello, abi_major, 4);
ATTEND_ASSERT_FIELD(attend_hello, abi_minor, 6);
ATTEND_ASSERT_FIELD(attend_hello, layout_tag, 8);
ATTEND_ASSERT_FIELD(attend_hello, reserved0, 12);
ATTEND_ASSERT_FIELD(attend_hello, host_name, 16);
ATTEND_ASSERT_FIELD(attend_hello, host_version, 24);
ATTEND_ASSERT_FIELD(attend_hello, reserved1, 32);
ATTEND_ASSERT_SIZE(attend_plugin, 144);
ATTEND_ASSERT_FIELD(attend_plugin, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_plugin, magic, 4);
ATTEND_ASSERT_FIELD(attend_plugin, abi_major, 8);
ATTEND_ASSERT_FIELD(attend_plugin, abi_minor, 10);
ATTEND_ASSERT_FIELD(attend_plugin, min_host_minor, 12);
ATTEND_ASSERT_FIELD(attend_plugin, reserved0, 14);
ATTEND_ASSERT_FIELD(attend_plugin, layout_tag, 16);
ATTEND_ASSERT_FIELD(attend_plugin, flags, 20);
ATTEND_ASSERT_FIELD(attend_plugin, id, 24);
ATTEND_ASSERT_FIELD(attend_plugin, version, 32);
ATTEND_ASSERT_FIELD(attend_plugin, vendor, 40);
ATTEND_ASSERT_FIELD(attend_plugin, license, 48);
ATTEND_ASSERT_FIELD(attend_plugin, url, 56);
ATTEND_ASSERT_FIELD(attend_plugin, summary, 64);
ATTEND_ASSERT_FIELD(attend_plugin, variant, 72);
ATTEND_ASSERT_FIELD(attend_plugin, required_isa, 80);
ATTEND_ASSERT_FIELD(attend_plugin, score, 88);
ATTEND_ASSERT_FIELD(attend_plugin, open, 96);
ATTEND_ASSERT_FIELD(attend_plugin, close, 104);
ATTEND_ASSERT_FIELD(attend_plugin, mechanism_count, 112);
ATTEND_ASSERT_FIELD(attend_plugin, mechanism_at, 120);
ATTEND_ASSERT_FIELD(attend_plugin, get_extension, 128);
ATTEND_ASSERT_FIELD(attend_plugin, reserved1, 136);
ATTEND_ASSERT_SIZE(attend_note, 32);
ATTEND_ASSERT_FIELD(attend_note, magic, 0);
ATTEND_ASSERT_FIELD(attend_note, layout_tag, 4);
ATTEND_ASSERT_FIELD(attend_note, abi_major, 8);
ATTEND_ASSERT_FIELD(attend_note, abi_minor, 10);
ATTEND_ASSERT_FIELD(attend_note, min_host_minor, 12);
ATTEND_ASSERT_FIELD(attend_note, flags, 14);
ATTEND_ASSERT_FIELD(attend_note, required_isa, 16);
ATTEND_ASSERT_FIELD(attend_note, reserved0, 24);
ATTEND_ASSERT_SIZE(attend_cost, 40);
ATTEND_ASSERT_FIELD(attend_cost, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_cost, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_cost, flops, 8);
ATTEND_ASSERT_FIELD(attend_cost, bytes, 16);
ATTEND_ASSERT_FIELD(attend_cost, workspace_bytes, 24);
ATTEND_ASSERT_FIELD(attend_cost, ns, 32);
ATTEND_ASSERT_SIZE(attend_cost_extension, 16);
ATTEND_ASSERT_FIELD(attend_cost_extension, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_cost_extension, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_cost_extension, predict, 8);
ATTEND_ASSERT_SIZE(attend_tolerance_extension, 16);
ATTEND_ASSERT_FIELD(attend_tolerance_extension, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_tolerance_extension, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_tolerance_extension, error_bound, 8);
ATTEND_ASSERT_SIZE(attend_guide_extension, 40);
ATTEND_ASSERT_FIELD(attend_guide_extension, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_guide_extension, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_guide_extension, formula, 8);
ATTEND_ASSERT_FIELD(attend_guide_extension, cost, 16);
ATTEND_ASSERT_FIELD(attend_guide_extension, use, 24);
ATTEND_ASSERT_FIELD(attend_guide_extension, example, 32);
ATTEND_ASSERT_SIZE(attend_pattern_keys, 32);
ATTEND_ASSERT_FIELD(attend_pattern_keys, begin, 0);
ATTEND_ASSERT_FIELD(attend_pattern_keys, end, 8);
ATTEND_ASSERT_FIELD(attend_pattern_keys, step, 16);
ATTEND_ASSERT_FIELD(attend_pattern_keys, flags, 24);
ATTEND_ASSERT_FIELD(attend_pattern_keys, reserved0, 28);
ATTEND_ASSERT_SIZE(attend_pattern_extension, 16);
ATTEND_ASSERT_FIELD(attend_pattern_extension, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_pattern_extension, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_pattern_extension, visit, 8);
ATTEND_ASSERT_SIZE(attend_scores_extension, 24);
ATTEND_ASSERT_FIELD(attend_scores_extension, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_scores_extension, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_scores_extension, rows, 8);
ATTEND_ASSERT_FIELD(attend_scores_extension, logits, 16);
ATTEND_ASSERT_SIZE(attend_kv_cache_desc, 48);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, dtype, 4);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, num_sequences, 8);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, capacity, 16);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, page_keys, 24);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, num_pages, 32);
ATTEND_ASSERT_FIELD(attend_kv_cache_desc, reserved1, 40);
ATTEND_ASSERT_SIZE(attend_kv_cache_info, 40);
ATTEND_ASSERT_FIELD(attend_kv_cache_info, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_kv_cache_info, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_kv_cache_info, bytes, 8);
ATTEND_ASSERT_FIELD(attend_kv_cache_info, used_bytes, 16);
ATTEND_ASSERT_FIELD(attend_kv_cache_info, num_pages, 24);
ATTEND_ASSERT_FIELD(attend_kv_cache_info, free_pages, 32);
ATTEND_ASSERT_SIZE(attend_kv_cache_extension, 80);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, create, 8);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, destroy, 16);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, append, 24);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, truncate, 32);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, fork, 40);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, length, 48);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, info, 56);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, step_workspace, 64);
ATTEND_ASSERT_FIELD(attend_kv_cache_extension, step, 72);
ATTEND_ASSERT_SIZE(attend_dynamic_row, 24);
ATTEND_ASSERT_FIELD(attend_dynamic_row, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_dynamic_row, reserved0, 4);
ATTEND_ASSERT_FIELD(attend_dynamic_row, name, 8);
ATTEND_ASSERT_FIELD(attend_dynamic_row, rows, 16);
ATTEND_ASSERT_SIZE(attend_dynamic_rows, 40);
ATTEND_ASSERT_FIELD(attend_dynamic_rows, struct_size, 0);
ATTEND_ASSERT_FIELD(attend_dynamic_rows, flags, 4);
ATTEND_ASSERT_FIELD(attend_dynamic_rows, id, 8);
ATTEND_ASSERT_FIELD(attend_dynamic_rows, next, 16);
ATTEND_ASSERT_FIELD(attend_dynamic_rows, outputs, 24);

#endif /* ATTEND_ABI_H */
