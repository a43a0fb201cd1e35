/* SPDX-License-Identifier: Apache-2.0 */
/* A mechanism in C that keeps keys and values from step to step: plain-decoding is causal softmax attention, row by row, and
   offers the extension attend.kv-cache/1 with contiguous float32 memory of its own. Mechanisms in C++ that read pages get
   the extension from attend/author/key_cache.hpp instead. */
#include <math.h>
#include <string.h>

#include <attend/plugin.h>

struct attend_lib {
    const attend_host *host;
};
struct attend_plan {
    const attend_host *host;
    attend_plan_desc desc;
};
struct attend_kv_cache {
    const attend_host *host;
    attend_plan_desc steps;
    attend_kv_cache_desc sizes;
    uint64_t bytes;
    int64_t *lengths;     /* [num_sequences] */
    float *keys, *values; /* [num_sequences][num_kv_heads][capacity][head_dim or value_dim] */
};

static attend_status fail(attend_error *error, attend_status status, const char *text, const char *where) {
    return attend_fail(error, status, text, where);
}

/* One row: softmax(scale q.k) v over the first `visible` keys, in one pass with a running maximum. */
static void attend_row(const attend_plan_desc *d, const float *query, const float *keys, int64_t key_step,
                       const float *values, int64_t value_step, int64_t visible, float *out, float *lse) {
    const float scale = (float)(d->scale == 0.0 ? 1.0 / sqrt((double)d->head_dim) : d->scale);
    float most = -INFINITY, sum = 0.0f;
    for (int64_t c = 0; c < d->value_dim; ++c) out[c] = 0.0f;
    for (int64_t j = 0; j < visible; ++j) {
        float score = 0.0f;
        for (int64_t c = 0; c < d->head_dim; ++c) score += query[c] * keys[j * key_step + c];
        score *= scale;
        const float above = score > most ? score : most;
        const float old = most == -INFINITY ? 0.0f : expf(most - above), weight = expf(score - above);
        for (int64_t c = 0; c < d->value_dim; ++c) out[c] = out[c] * old + weight * values[j * value_step + c];
        sum = sum * old + weight;
        most = above;
    }
    for (int64_t c = 0; sum > 0.0f && c < d->value_dim; ++c) out[c] /= sum;
    if (lse) *lse = sum > 0.0f ? most + logf(sum) : -INFINITY;
}

/* ---- calls ---- */

struct job {
    const attend_plan_desc *desc;
    const attend_tensor *query, *key, *value, *output, *lse;
    const attend_kv_cache *cache; /* a step: keys and values are the cache's */
    const int64_t *sequences;
};

static attend_status rows(void *user, uint64_t begin, uint64_t end, uint32_t slot) {
    const struct job *job = user;
    const attend_plan_desc *d = job->desc;
    const int64_t q_len = job->query->shape[2];
    (void)slot;
    for (uint64_t row = begin; row < end; ++row) {
        const int64_t i = (int64_t)row % q_len, head = (int64_t)row / q_len % d->num_q_heads,
                      batch = (int64_t)row / q_len / d->num_q_heads, kv_head = head * d->num_kv_heads / d->num_q_heads;
        const float *keys, *values;
        int64_t key_step = d->head_dim, value_step = d->value_dim, length;
        if (job->cache) {
            const int64_t place = (job->sequences[batch] * d->num_kv_heads + kv_head) * job->cache->sizes.capacity;
            keys = job->cache->keys + place * d->head_dim;
            values = job->cache->values + place * d->value_dim;
            length = job->cache->lengths[job->sequences[batch]];
        } else {
            keys = attend_f32_row(job->key, batch, kv_head, 0);
            values = attend_f32_row(job->value, batch, kv_head, 0);
            key_step = job->key->strides[2];
            value_step = job->value->strides[2];
            length = d->kv_len;
        }
        int64_t visible = length - q_len + i + 1;
        visible = visible < 0 ? 0 : visible > length ? length : visible;
        float *lse = job->lse ? (float *)job->lse->data + batch * job->lse->strides[0] + head * job->lse->strides[1] +
                                    i * job->lse->strides[2]
                              : NULL;
        attend_row(d, attend_f32_row(job->query, batch, head, i), keys, key_step, values, value_step, visible,
                   attend_f32_row(job->output, batch, head, i), lse);
    }
    return ATTEND_OK;
}

static attend_status run(const attend_host *host, struct job *job, const attend_exec *call, attend_error *error) {
    if (attend_check_blocks(call->next, NULL, error) != ATTEND_OK) return ATTEND_UNSUPPORTED;
    job->query = attend_find(&call->bindings, ATTEND_Q);
    job->output = attend_find(&call->bindings, ATTEND_OUT);
    job->lse = attend_find(&call->bindings, ATTEND_LSE);
    if (!job->query || !job->output) return fail(error, ATTEND_INVALID_ARGUMENT, "query and output must be bound", "bindings");
    const int64_t *shape = job->query->shape;
    return host->parallel_for(host, call->call, (uint64_t)(shape[0] * shape[1] * shape[2]), 4, 0, rows, job);
}

static attend_status execute(const attend_plan *plan, const attend_exec *call, attend_error *error) {
    struct job job = {.desc = &plan->desc};
    job.key = attend_find(&call->bindings, ATTEND_K);
    job.value = attend_find(&call->bindings, ATTEND_V);
    if (!job.key || !job.value) return fail(error, ATTEND_INVALID_ARGUMENT, "key and value must be bound", "bindings");
    return run(plan->host, &job, call, error);
}

static attend_status make_plan(attend_lib *lib, const attend_plan_desc *desc, attend_plan **out, attend_error *error) {
    if (attend_check_blocks(desc->next, NULL, error) != ATTEND_OK) return ATTEND_UNSUPPORTED;
    attend_plan *plan = lib->host->alloc(lib->host, sizeof *plan, 64);
    if (!plan) return fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the plan", NULL);
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

/* ---- the cache ---- */

static attend_status cache_create(attend_lib *lib, const attend_plan_desc *steps, const attend_kv_cache_desc *desc,
                                  attend_kv_cache **out, attend_error *error) {
    *out = NULL;
    if (desc->dtype != ATTEND_F32) return fail(error, ATTEND_BAD_DTYPE, "this cache keeps float32 alone", "dtype");
    if (desc->page_keys != 0) return fail(error, ATTEND_UNSUPPORTED, "this cache is contiguous; accepted: page_keys 0", "page_keys");
    if (desc->num_sequences < 1 || desc->capacity < 1)
        return fail(error, ATTEND_INVALID_ARGUMENT, "num_sequences and capacity must be at least 1", "capacity");
    const uint64_t all = (uint64_t)desc->num_sequences * (uint64_t)steps->num_kv_heads * (uint64_t)desc->capacity;
    const uint64_t head = (sizeof(attend_kv_cache) + (uint64_t)desc->num_sequences * sizeof(int64_t) + 63) & ~(uint64_t)63;
    const uint64_t bytes = head + all * (uint64_t)(steps->head_dim + steps->value_dim) * sizeof(float);
    char *memory = lib->host->alloc(lib->host, bytes, 64);
    if (!memory) return fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the cache", "capacity");
    attend_kv_cache *cache = (attend_kv_cache *)(void *)memory;
    cache->host = lib->host;
    attend_plan_desc_copy(&cache->steps, steps);
    attend_copy_sized(&cache->sizes, (uint32_t)sizeof cache->sizes, desc, desc->struct_size);
    cache->bytes = bytes;
    cache->lengths = (int64_t *)(void *)(memory + sizeof *cache);
    cache->keys = (float *)(void *)(memory + head);
    cache->values = cache->keys + all * (uint64_t)steps->head_dim;
    for (int64_t at = 0; at < desc->num_sequences; ++at) cache->lengths[at] = 0;
    *out = cache;
    return ATTEND_OK;
}
static void cache_destroy(attend_kv_cache *cache) {
    if (cache) cache->host->release(cache->host, cache, cache->bytes, 64);
}
static int64_t cache_length(const attend_kv_cache *cache, int64_t sequence) {
    return sequence >= 0 && sequence < cache->sizes.num_sequences ? cache->lengths[sequence] : -1;
}

static void write_rows(const attend_kv_cache *cache, float *to, int64_t width, const attend_tensor *from, int64_t item,
                       int64_t sequence) {
    for (int64_t head = 0; head < cache->steps.num_kv_heads; ++head)
        for (int64_t row = 0; row < from->shape[2]; ++row)
            memcpy(to + ((sequence * cache->steps.num_kv_heads + head) * cache->sizes.capacity + cache->lengths[sequence] + row) * width,
                   attend_f32_row(from, item, head, row), (uint64_t)width * sizeof(float));
}

static attend_status cache_append(attend_kv_cache *cache, const int64_t *sequences, int64_t num_sequences,
                                  const attend_tensor *key, const attend_tensor *value, attend_error *error) {
    const int64_t more = key->shape[2];
    for (int64_t at = 0; at < num_sequences; ++at) {
        const int64_t length = cache_length(cache, sequences[at]);
        if (length < 0) return fail(error, ATTEND_INVALID_ARGUMENT, "a sequence is not in the cache", "sequences");
        if (more > cache->sizes.capacity - length)
            return fail(error, ATTEND_LIMIT, "a sequence has no room for so many keys; accepted: up to its capacity", "key");
        for (int64_t before = 0; before < at; ++before)
            if (sequences[before] == sequences[at])
                return fail(error, ATTEND_INVALID_ARGUMENT, "a sequence is appended to twice in one call; accepted: once", "sequences");
    }
    for (int64_t at = 0; at < num_sequences; ++at) {
        write_rows(cache, cache->keys, cache->steps.head_dim, key, at, sequences[at]);
        write_rows(cache, cache->values, cache->steps.value_dim, value, at, sequences[at]);
        cache->lengths[sequences[at]] += more;
    }
    return ATTEND_OK;
}
static attend_status cache_truncate(attend_kv_cache *cache, int64_t sequence, int64_t length, attend_error *error) {
    if (length < 0 || length > cache_length(cache, sequence))
        return fail(error, ATTEND_INVALID_ARGUMENT, "a sequence can be cut to 0 up to its length", "length");
    cache->lengths[sequence] = length;
    return ATTEND_OK;
}
static attend_status cache_fork(attend_kv_cache *cache, int64_t from, int64_t to, attend_error *error) {
    const int64_t length = cache_length(cache, from);
    if (length < 0 || cache_length(cache, to) < 0)
        return fail(error, ATTEND_INVALID_ARGUMENT, "a sequence is not in the cache", "sequence");
    if (cache->lengths[to] != 0) return fail(error, ATTEND_STATE, "the copy must be an empty sequence; cut it to 0 first", "to");
    const uint64_t all = (uint64_t)(cache->steps.num_kv_heads * cache->sizes.capacity);
    const uint64_t key = all * (uint64_t)cache->steps.head_dim, value = all * (uint64_t)cache->steps.value_dim;
    if (from != to) {
        memcpy(cache->keys + (uint64_t)to * key, cache->keys + (uint64_t)from * key, key * sizeof(float));
        memcpy(cache->values + (uint64_t)to * value, cache->values + (uint64_t)from * value, value * sizeof(float));
    }
    cache->lengths[to] = length;
    return ATTEND_OK;
}
static attend_status cache_info(const attend_kv_cache *cache, attend_kv_cache_info *to) {
    attend_kv_cache_info info = {.bytes = cache->bytes, .num_pages = cache->sizes.num_sequences};
    const uint32_t room = to->struct_size;
    for (int64_t at = 0; at < cache->sizes.num_sequences; ++at) info.free_pages += cache->lengths[at] == 0;
    info.used_bytes = (uint64_t)((info.num_pages - info.free_pages) * cache->steps.num_kv_heads * cache->sizes.capacity *
                                 (cache->steps.head_dim + cache->steps.value_dim)) *
                      sizeof(float);
    attend_copy_sized(to, room, &info, (uint32_t)sizeof info);
    to->struct_size = room;
    return ATTEND_OK;
}
static uint64_t step_workspace(const attend_kv_cache *cache, int64_t num_sequences, int64_t q_len) {
    (void)cache, (void)num_sequences, (void)q_len;
    return 0;
}
static attend_status step(const attend_kv_cache *cache, const int64_t *sequences, int64_t num_sequences,
                          const attend_exec *call, attend_error *error) {
    for (int64_t at = 0; at < num_sequences; ++at)
        if (cache_length(cache, sequences[at]) < 0)
            return fail(error, ATTEND_INVALID_ARGUMENT, "a sequence is not in the cache", "sequences");
    struct job job = {.desc = &cache->steps, .cache = cache, .sequences = sequences};
    return run(cache->host, &job, call, error);
}
static const attend_kv_cache_extension caches = {
    sizeof caches, 0,           cache_create, cache_destroy,  cache_append, cache_truncate,
    cache_fork,    cache_length, cache_info,   step_workspace, step};

static const void *extension(const attend_lib *lib, const char *id) {
    (void)lib;
    return attend_text_equal(id, ATTEND_EXT_KV_CACHE) ? &caches : NULL;
}

/* ---- tables ---- */

static const attend_port ports[] = {
    ATTEND_PORT(ATTEND_Q, ATTEND_INPUT, "query", "B,Hq,Nq,D", ATTEND_F32, "queries, the last positions"),
    ATTEND_PORT(ATTEND_K, ATTEND_INPUT, "key", "B,Hkv,Nk,D", ATTEND_F32, "keys"),
    ATTEND_PORT(ATTEND_V, ATTEND_INPUT, "value", "B,Hkv,Nk,Dv", ATTEND_F32, "values"),
    ATTEND_PORT(ATTEND_OUT, ATTEND_OUTPUT, "output", "B,Hq,Nq,Dv", ATTEND_F32, "result"),
    ATTEND_PORT(ATTEND_LSE, ATTEND_OUTPUT | ATTEND_OPTIONAL, "lse", "B,Hq,Nq", ATTEND_F32, "log of the sums of exponentials"),
};
static const attend_option options[] = {
    {.struct_size = sizeof(attend_option),
     .type = ATTEND_TYPE_FLOAT,
     .flags = ATTEND_OPTION_AFFECTS_NUMERICS,
     .name = "scale",
     .help = "factor of the scores; 0: 1/sqrt(D)",
     .default_json = "0",
     .min = -1e30,
     .max = 1e30},
};
static const attend_mechanism mechanism = {
    .struct_size = sizeof mechanism,
    .revision = 1,
    .name = "plain-decoding",
    .category = "extra",
    .title = "Plain decoding",
    .summary = "Causal softmax attention, row by row, with a cache of keys and values.",
    .time_complexity = "O(Nq*Nk*(D+Dv))",
    .space_complexity = "O(1)",
    .caps = ATTEND_CAP_GQA | ATTEND_CAP_CROSS | ATTEND_CAP_LSE_OUT | ATTEND_CAP_DECODE | ATTEND_CAP_STATEFUL |
            ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_DETERMINISTIC,
    .dtypes = ATTEND_F32,
    .acc_dtypes = ATTEND_F32,
    .numerics = ATTEND_OWN_DEFINITION,
    .options = ATTEND_TABLE(options),
    .ports = ATTEND_TABLE(ports),
    .plan = make_plan,
    .plan_info = plan_info,
    .execute = execute,
    .plan_destroy = drop_plan,
    .get_extension = extension,
};

static attend_status open_plugin(const attend_host *host, attend_lib **out, attend_error *error) {
    *out = host->alloc(host, sizeof **out, 64);
    if (!*out) return fail(error, ATTEND_OUT_OF_MEMORY, "no memory to open the plugin", NULL);
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

ATTEND_PLUGIN(.id = "org.example.decoding", .version = "1.0.0", .license = "Apache-2.0", .summary = "Decoding with a cache",
              .open = open_plugin, .close = close_plugin, .mechanism_count = mechanism_count, .mechanism_at = mechanism_at)
