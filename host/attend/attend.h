/* SPDX-License-Identifier: Apache-2.0 */
/* The attention service for C and for every language that can call C: libattend.so. C11, C++11 and later.

   Errors: functions return 0 or a code; a caller that wants the sentence hands in an attend_error_text of its own (NULL: does
   not want it). What fails changes nothing and sets the result to NULL.

   Structs begin with their size, which the caller sets (attend_view view = {.struct_size = sizeof view}), and only grow at their
   end. What a smaller struct of an older program lacks counts as zero; what a larger struct of a newer program has more must be
   zero, or the call is refused. Zero means "absent" or "default" everywhere.

   Threads: a service may be used by any number of threads at a time, a result too. Only attend_service_close and
   attend_result_free need that nobody else uses the same handle. Results and tensors outlive their service.

   Texts are UTF-8. The library reads no environment and keeps no pointer of the caller after a call. Plugins' warnings go to
   standard error (attend_set_log_level); nothing else is printed. */
#ifndef ATTEND_ATTEND_H
#define ATTEND_ATTEND_H

#include <stdint.h>

#if defined(__GNUC__)
#define ATTEND_API __attribute__((visibility("default")))
#else
#define ATTEND_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Codes and error texts ----------------------------------------------------------------------- */

typedef int32_t attend_code; /* the numbers are fixed for ever; a newer library may return one that is not here */
#define ATTEND_E_NONE 0
#define ATTEND_E_OPTION 1      /* an option: unknown, of the wrong type, outside its range, contradictory */
#define ATTEND_E_SHAPE 2       /* a tensor's extent or rank */
#define ATTEND_E_DTYPE 3       /* a data type */
#define ATTEND_E_MASK 4        /* mask or bias not broadcastable */
#define ATTEND_E_WEIGHT 5      /* a learned tensor: unknown, mis-shaped, switched off */
#define ATTEND_E_NONFINITE 6   /* NaN or infinity where it cannot be accepted */
#define ATTEND_E_LIMIT 7       /* above a configured or structural cap */
#define ATTEND_E_UNSUPPORTED 8 /* available elsewhere, not in this mechanism, mode, back end or version */
#define ATTEND_E_RULE 9        /* a rule of the configuration */
#define ATTEND_E_NOT_FOUND 10  /* a name that nothing has */
#define ATTEND_E_INPUT 11      /* a malformed argument or file */
#define ATTEND_E_IO 12         /* the operating system refused */
#define ATTEND_E_PLUGIN 13     /* a plugin could not be used */
#define ATTEND_E_MEMORY 14     /* out of memory */
#define ATTEND_E_CANCELLED 15
#define ATTEND_E_INTERNAL 16     /* our own mistake, or a plugin's */
#define ATTEND_E_STALE_HANDLE 17 /* a registered tensor whose elements changed without a word */

/* One sentence: place, what was wrong with its value, what is accepted. Texts end with NUL and are cut between characters. */
typedef struct attend_error_text {
    uint32_t struct_size;
    attend_code code;
    char name[16];      /* "E_OPTION"; empty after success */
    char message[1000]; /* "flash-attention-v2: unknown option \"causl\"; did you mean \"causal\"? ..." */
    char hint[512];     /* perhaps a second sentence, or the caret line of a rule */
} attend_error_text;

/* "E_OPTION"; "E_NONE" for 0, "E_INTERNAL" for what is no code. Static. */
ATTEND_API const char *attend_code_name(attend_code code);

/* "0.1.0", of the library that runs. Static. */
ATTEND_API const char *attend_version(void);

/* trace, debug, info, warn (at first), error or off, of the process. */
ATTEND_API attend_code attend_set_log_level(const char *level, attend_error_text *error);

/* ---- 2. Services ------------------------------------------------------------------------------------ */

typedef struct attend_service attend_service;

#define ATTEND_OPEN_NO_PROBE (1u << 0) /* foreign plugins are not tried in a child process first */

typedef struct attend_open_settings {
    uint32_t struct_size, flags;
    const char *config_json; /* a configuration as text, or */
    const char *config_file; /* the path of one; neither: the built-in configuration */
    const char *backend;     /* in place of the configuration's: auto, baseline, avx2, avx512, neon */
    int64_t threads;         /* likewise; 0: as configured, which is one per logical core by default */
    const char *const *plugin_files; /* libraries; one that is refused is an error */
    const char *const *plugin_dirs;  /* folders of libraries; attend_plugins says what became of each */
    uint64_t num_plugin_files, num_plugin_dirs;
    const char *built_in_dir; /* where the mechanisms that come with the library are; NULL: found from its own place */
} attend_open_settings;

/* settings may be NULL: all defaults. */
ATTEND_API attend_code attend_service_open(const attend_open_settings *settings, attend_service **service,
                                           attend_error_text *error);
/* NULL is accepted. */
ATTEND_API void attend_service_close(attend_service *service);

/* ---- 3. Tensors ------------------------------------------------------------------------------------- */

#define ATTEND_DTYPE_F32 1u
#define ATTEND_DTYPE_F64 2u
#define ATTEND_DTYPE_F16 3u
#define ATTEND_DTYPE_BF16 4u
#define ATTEND_DTYPE_I8 5u
#define ATTEND_DTYPE_U8 6u
#define ATTEND_DTYPE_BOOL 7u /* one byte, 0 or 1 */
#define ATTEND_DTYPE_I32 8u
#define ATTEND_DTYPE_I64 9u
#define ATTEND_DTYPE_I16 10u
#define ATTEND_DTYPE_U16 11u
#define ATTEND_DTYPE_U32 12u
#define ATTEND_DTYPE_U64 13u
#define ATTEND_DTYPE_F8_E4M3 14u
#define ATTEND_DTYPE_F8_E5M2 15u

/* Memory that somebody else owns: the caller's for inputs, the result's for outputs. Inputs are never written. */
typedef struct attend_view {
    uint32_t struct_size, dtype;
    void *data;                      /* element (0, ..., 0), aligned to its size; may be NULL if there is none */
    const int64_t *shape, *strides;  /* ndim extents; strides in elements, may be 0 or negative; NULL strides: row-major */
    int32_t ndim;                    /* 0 to 8 */
    uint32_t reserved0;
} attend_view;

/* DLPack's structs: attend/dlpack.h, or DLPack's own header. */
struct DLTensor;
struct DLManagedTensor;
struct DLManagedTensorVersioned;

/* The call takes the DLPack tensor over: its deleter runs exactly once before the call returns, whatever it returns. Without
   the flag it stays the caller's. Tensors in an array that cannot be read (struct_size) stay the caller's too. */
#define ATTEND_TENSOR_GIVEN (1u << 0)

/* A tensor with the name of its part in the call, in exactly one of four forms. */
typedef struct attend_named_tensor {
    uint32_t struct_size, flags;
    const char *name; /* query, key, value, mask, bias, query_lengths, key_lengths, input.<name>, weight.<name> */
    const attend_view *view;
    struct DLManagedTensorVersioned *dlpack;
    struct DLManagedTensor *dlpack_unversioned;
    const struct DLTensor *dltensor; /* borrowed, always */
} attend_named_tensor;

/* ---- 4. Calls --------------------------------------------------------------------------------------- */

typedef struct attend_result attend_result;

#define ATTEND_FORWARD_LSE (1u << 0)    /* the logarithm of each row's sum, tensor "lse" */
#define ATTEND_FORWARD_SCORES (1u << 1) /* the scores, tensor "scores" */
#define ATTEND_FORWARD_COMPUTE (1u << 2) /* neither served from the result cache nor kept in it */

/* A wish to end calls, which any thread may utter. Reusable once cleared; must live until the calls that name it are done. */
typedef struct attend_cancel attend_cancel;
ATTEND_API attend_cancel *attend_cancel_new(void); /* NULL: no memory */
ATTEND_API void attend_cancel_set(attend_cancel *cancel);
ATTEND_API void attend_cancel_clear(attend_cancel *cancel);
ATTEND_API void attend_cancel_free(attend_cancel *cancel);

typedef struct attend_forward_request {
    uint32_t struct_size, flags;
    const char *mechanism; /* a name; "auto" or NULL: the rules of the configuration choose */
    const attend_named_tensor *tensors;
    uint64_t num_tensors;
    const char *options_json; /* {"causal": true, "window_size": 128}; NULL: none */
    const char *facts_json;   /* further variables for rules, {"taskType": "search"}; NULL: none */
    const char *precision;    /* fp32, bf16, fp16; NULL: the configuration's */
    int64_t heads, kv_heads;  /* of packed tensors [B,N,H*D]; 0: not given */
    attend_cancel *cancel;    /* once it is set, the call ends with ATTEND_E_CANCELLED; NULL: none */
} attend_forward_request;

/* Query [B,H,N,D] (or [N,D], [D], packed [B,N,H*D] with heads, projected [B,N,E]), key and value likewise. An absent key is
   the query, an absent value the key, unless the mechanism says otherwise. Tensors are read in place. */
ATTEND_API attend_code attend_forward(attend_service *service, const attend_forward_request *request,
                                      attend_result **result, attend_error_text *error);

/* The tensors of one call of several. */
typedef struct attend_batch_item {
    uint32_t struct_size, flags; /* flags: 0 */
    const attend_named_tensor *tensors;
    uint64_t num_tensors;
} attend_batch_item;

/* Several calls with one mechanism and one set of options; `request` gives everything but the tensors and has none. Every
   item is checked before anything is computed; what fails names its index, "item 3: ...". results is an array of num_items
   handles, in the order of the items, each what attend_forward would give; after an error all of them are NULL. Items have
   one size; those behind one that cannot be read (struct_size) keep what they would give over. */
ATTEND_API attend_code attend_forward_batch(attend_service *service, const attend_forward_request *request,
                                            const attend_batch_item *items, uint64_t num_items,
                                            attend_result **results, attend_error_text *error);

/* Tensors of a result: "output" first, "lse" and "scores" if asked for, then every further output of the mechanism by its
   name ("routing.query.dropped", ...). NULL behind the last one. The name lives as long as the result. */
ATTEND_API uint64_t attend_result_count(const attend_result *result);
ATTEND_API const char *attend_result_name(const attend_result *result, uint64_t index);

/* Fills the view, whose struct_size the caller has set. Data, shape and strides live as long as the result. */
ATTEND_API attend_code attend_result_view(const attend_result *result, const char *name, attend_view *view,
                                          attend_error_text *error);
/* The same memory as a DLPack tensor of its own life: it may outlive the result, and whoever gets it calls its deleter once. */
ATTEND_API attend_code attend_result_dlpack(const attend_result *result, const char *name,
                                            struct DLManagedTensorVersioned **tensor, attend_error_text *error);

/* What ran and why, as a JSON object: mechanism, reason, plugin, plugin_version, backend, precision, exactness, options (in
   force), shapes, warnings, plan_reused, cached, time_ms, flops, workspace_bytes. Lives as long as the result. */
ATTEND_API const char *attend_result_record(const attend_result *result);

/* NULL is accepted. */
ATTEND_API void attend_result_free(attend_result *result);

/* Attention weights (after softmax, before dropout) without a matrix of all of them: what is asked for is found row by row. */
#define ATTEND_WEIGHTS_COLUMN_MASS (1u << 0) /* column_mass [B,H,Nk], F64: sum over rows */
#define ATTEND_WEIGHTS_ROW_ENTROPY (1u << 1) /* row_entropy [B,H,Nq], F64, in nats */
#define ATTEND_WEIGHTS_FULL (1u << 2)        /* full [B,H,Nq,Nk], F32; refused above max_full_bytes */
typedef struct attend_weight_request {
    uint32_t struct_size, flags;
    int64_t top_k;           /* top_values [B,H,Nq,k], F32, and top_keys, I64, -1 where there are fewer; 0: none */
    const int64_t *rows;     /* row_weights [B,H,num_rows,Nk], F32, of these query rows; NULL: none */
    uint64_t num_rows;
    uint64_t max_full_bytes; /* of each result; 0: 256 MiB */
} attend_weight_request;
/* The request is that of a forward call; its mechanism is named, or the rules choose. The result holds the tensors by the
   names above; its record is {"mechanism", "batch", "heads", "q_len", "kv_len"}. */
ATTEND_API attend_code attend_weights(attend_service *service, const attend_forward_request *request,
                                      const attend_weight_request *weights, attend_result **result,
                                      attend_error_text *error);

/* Learned tensors that the service keeps for a mechanism: later calls of it that bring no weights use them. `like` is a call
   that they must fit, with the tensors weight.<name> among its tensors; without any, those kept are forgotten. They are copied. */
ATTEND_API attend_code attend_set_projections(attend_service *service, const attend_forward_request *like,
                                              attend_error_text *error);
/* The weights that such a call has, by name: given, kept or made by the seeded initialisers; copies. The record is {"mechanism",
   "param_count"}. */
ATTEND_API attend_code attend_get_projections(attend_service *service, const attend_forward_request *like,
                                              attend_result **result, attend_error_text *error);

/* ---- 5. Candidates by attention ----------------------------------------------------------------------- */

#define ATTEND_RERANK_NORMALIZE (1u << 0)    /* rows of length 1 in each head, or */
#define ATTEND_RERANK_NO_NORMALIZE (1u << 1) /* as they are; neither: normalised for memory-attention */

typedef struct attend_rerank_request {
    uint32_t struct_size, flags;
    const char *mechanism;              /* NULL: memory-attention */
    const attend_named_tensor *tensors; /* query [D] or [Nq,D], candidates [n,D], weight.<name> */
    uint64_t num_tensors;
    const char *options_json; /* of the mechanism; NULL: none */
    int64_t heads;            /* 0: one */
    uint64_t top_k;           /* how many are wanted; 0: all. Scores are over all candidates either way. */
    double scale;             /* 0: the mechanism's */
} attend_rerank_request;

/* Does not grow. Its place in the array is its rank. */
typedef struct attend_ranked {
    int64_t index;
    double score, logit; /* dropped by the mechanism: 0, minus infinity */
} attend_ranked;

/* Writes the best `capacity` candidates (ranked may be NULL for 0) and how many there are in all; count may be NULL. */
ATTEND_API attend_code attend_rerank(attend_service *service, const attend_rerank_request *request, attend_ranked *ranked,
                                     uint64_t capacity, uint64_t *count, attend_error_text *error);

/* ---- 6. Questions: JSON texts as `attend ... --json` prints them -------------------------------------- */

/* facts_json: variables of the rules by name, {"seqLen": 16384, "causal": true}; seqLen must be there. */
ATTEND_API attend_code attend_recommend(attend_service *service, const char *facts_json, char **json,
                                        attend_error_text *error);
/* {"mechanisms": [...]}, of one category or of all (NULL). */
ATTEND_API attend_code attend_list(attend_service *service, const char *category, char **json, attend_error_text *error);
/* Options, inputs, weights, guide of one mechanism. */
ATTEND_API attend_code attend_describe(attend_service *service, const char *mechanism, char **json,
                                       attend_error_text *error);
/* {"plugins": [...]}: every file that was looked at, and why it was refused. */
ATTEND_API attend_code attend_plugins(attend_service *service, char **json, attend_error_text *error);

/* What the service has done since it was opened or reset: calls, errors, tokens, flops, bytes_peak, mechanisms, cache,
   selection, benchmark. */
ATTEND_API attend_code attend_metrics(attend_service *service, char **json, attend_error_text *error);
ATTEND_API attend_code attend_metrics_reset(attend_service *service, attend_error_text *error);
/* Drops kept results: those of a mechanism, or all (NULL). */
ATTEND_API attend_code attend_invalidate(attend_service *service, const char *mechanism, attend_error_text *error);

/* Of a text from this section. NULL is accepted. */
ATTEND_API void attend_text_free(char *text);

#ifdef __cplusplus
}
#endif
#endif
