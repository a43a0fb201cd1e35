// SPDX-License-Identifier: Apache-2.0
// attend.kv-cache/1 for mechanisms that read keys from pages: inputs key_pages [P,Hkv,S,D], value_pages [P,Hkv,S,Dv],
// block_table [B,n], key_lengths [B], and for codes key_scale and value_scale [P,Hkv,S]. Such a mechanism offers caches by
// naming a row writer in its About (author/cache_rows.hpp); a step is a call of its forward on the cache's pages. A
// contiguous cache has one page for each sequence. Part of plugin.hpp.
#pragma once

#include "attend/author/entry.hpp"

namespace attend::author {

// A row-major tensor of the cache, and the description of it that a mechanism gets.
struct CacheTensor {
    attend_tensor tensor;
    int64_t shape[4], strides[4];

    void describe(void* data, uint8_t code, uint8_t bits, const int64_t* extents, int32_t rank) {
        tensor = attend_tensor{};
        tensor.struct_size = sizeof tensor;
        tensor.data = data;
        tensor.device_type = ATTEND_DEVICE_CPU;
        tensor.ndim = rank;
        tensor.dtype_code = code;
        tensor.dtype_bits = bits;
        tensor.dtype_lanes = 1;
        tensor.align = bits / 8u;
        tensor.shape = shape;
        tensor.strides = strides;
        int64_t step = 1;
        for (int32_t axis = rank - 1; axis >= 0; --axis) {
            shape[axis] = extents[axis];
            strides[axis] = step;
            step *= extents[axis];
        }
        tensor.extent_bytes = static_cast<uint64_t>(step) * (bits / 8u);
    }
};

// What the extension's own functions need of the description of a cache.
struct CacheSizes {
    uint32_t dtype;
    int64_t num_sequences, capacity, page_keys, num_pages, table_width;  // pages of the longest sequence
    int64_t num_heads, head_dim, value_dim;

    uint8_t code() const {
        return dtype == ATTEND_I8 ? ATTEND_CODE_INT : dtype == ATTEND_BF16 ? ATTEND_CODE_BFLOAT : ATTEND_CODE_FLOAT;
    }
    uint8_t bits() const { return dtype == ATTEND_F32 ? 32 : has_scales() ? 8 : 16; }
    bool has_scales() const { return dtype == ATTEND_I8; }
    uint64_t row_bytes(int64_t width) const { return static_cast<uint64_t>(width) * (bits() / 8u); }
    uint64_t page_bytes() const {
        const uint64_t row = row_bytes(head_dim) + row_bytes(value_dim) + (has_scales() ? 8u : 0u);
        return static_cast<uint64_t>(num_heads * page_keys) * row;
    }
};

// Tensors that a step binds beside the caller's.
struct StepTensors {
    CacheTensor key, value, table, lengths, key_scale, value_scale;

    void describe(const CacheSizes& sizes, int64_t num_sequences, char* keys, char* values, float* key_scales,
                  float* value_scales, int32_t* pages, int64_t* lengths_of) {
        const int64_t key_shape[4] = {sizes.num_pages, sizes.num_heads, sizes.page_keys, sizes.head_dim};
        const int64_t value_shape[4] = {sizes.num_pages, sizes.num_heads, sizes.page_keys, sizes.value_dim};
        const int64_t table_shape[2] = {num_sequences, sizes.table_width};
        key.describe(keys, sizes.code(), sizes.bits(), key_shape, 4);
        value.describe(values, sizes.code(), sizes.bits(), value_shape, 4);
        table.describe(pages, ATTEND_CODE_INT, 32, table_shape, 2);
        lengths.describe(lengths_of, ATTEND_CODE_INT, 64, table_shape, 1);
        key_scale.describe(key_scales, ATTEND_CODE_FLOAT, 32, key_shape, 3);
        value_scale.describe(value_scales, ATTEND_CODE_FLOAT, 32, key_shape, 3);
    }
    uint32_t bind(attend_binding* to, bool has_scales) const {
        uint32_t count = 0;
        const auto add = [&](uint32_t role, const char* name, const CacheTensor& from) {
            to[count++] = attend_binding{sizeof(attend_binding), role, name, &from.tensor};
        };
        add(0, "key_pages", key);
        add(0, "value_pages", value);
        add(0, "block_table", table);
        add(ATTEND_K_LENGTHS, "key_lengths", lengths);
        if (has_scales) {
            add(0, "key_scale", key_scale);
            add(0, "value_scale", value_scale);
        }
        return count;
    }
};
constexpr uint32_t most_step_bindings = 16;

}  // namespace attend::author

struct attend_kv_cache {
    const attend_host* host;
    attend_plan* plan;  // options, values and sizes of a step; its batch and q_len are those of the step at hand
    uint64_t block_bytes;
    attend::author::CacheSizes sizes;
    int64_t* lengths;     // [num_sequences]
    int32_t* table;       // [num_sequences][table_width], pages of each sequence in order
    int32_t* users;       // [num_pages], sequences that a page belongs to
    int32_t* free_pages;  // [num_pages], a stack
    int64_t num_free;
    unsigned char* marks;  // [num_sequences], zero between calls
    char *keys, *values;
    float *key_scales, *value_scales;
};

namespace attend::author {

inline int64_t pages_for(const CacheSizes& sizes, int64_t keys) {
    return (keys + sizes.page_keys - 1) / sizes.page_keys;
}

// Sizes first, then places, by one walk.
inline uint64_t lay_out(attend_kv_cache& cache, char* memory) {
    const CacheSizes& sizes = cache.sizes;
    uint64_t used = (sizeof(attend_kv_cache) + 63) & ~uint64_t{63};
    const auto take = [&](uint64_t bytes) {
        char* at = memory != nullptr ? memory + used : nullptr;
        used += (bytes + 63) & ~uint64_t{63};
        return at;
    };
    const auto sequences = static_cast<uint64_t>(sizes.num_sequences), pages = static_cast<uint64_t>(sizes.num_pages);
    const auto rows = pages * static_cast<uint64_t>(sizes.num_heads * sizes.page_keys);
    cache.keys = take(rows * sizes.row_bytes(sizes.head_dim));
    cache.values = take(rows * sizes.row_bytes(sizes.value_dim));
    cache.key_scales = reinterpret_cast<float*>(take(sizes.has_scales() ? rows * 4 : 0));
    cache.value_scales = reinterpret_cast<float*>(take(sizes.has_scales() ? rows * 4 : 0));
    cache.lengths = reinterpret_cast<int64_t*>(take(sequences * 8));
    cache.table = reinterpret_cast<int32_t*>(take(sequences * static_cast<uint64_t>(sizes.table_width) * 4));
    cache.users = reinterpret_cast<int32_t*>(take(pages * 4));
    cache.free_pages = reinterpret_cast<int32_t*>(take(pages * 4));
    cache.marks = reinterpret_cast<unsigned char*>(take(sequences));
    return used;
}

inline attend_status check_cache(const MechanismEntry& entry, const attend_plan_desc& steps,
                                 const attend_kv_cache_desc& desc, CacheSizes& sizes, attend_error* error) {
    const auto refuse = [&](const char* field, int64_t value, const char* accepted) {
        return fail(
            error, ATTEND_INVALID_ARGUMENT,
            Message{} << entry.name << ": " << field << " of the cache is " << value << "; accepted: " << accepted,
            field);
    };
    constexpr int64_t most = 0x7FFFFFFF;
    if (desc.num_sequences < 1 || desc.num_sequences > most)
        return refuse("num_sequences", desc.num_sequences, "1 to 2147483647");
    if (desc.capacity < 1 || desc.capacity > most) return refuse("capacity", desc.capacity, "1 to 2147483647 keys");
    if (desc.page_keys < 0 || desc.page_keys > most)
        return refuse("page_keys", desc.page_keys, "0 (contiguous) to 2147483647 keys");
    if (desc.page_keys == 0 && desc.num_pages != 0)
        return refuse("num_pages", desc.num_pages, "0, because page_keys is 0 (contiguous)");
    if (desc.page_keys > 0 && (desc.num_pages < 1 || desc.num_pages > most))
        return refuse("num_pages", desc.num_pages, "1 to 2147483647");
    // What write_rows can make, of what the mechanism reads.
    uint64_t kept = 0;
    for (uint32_t at = 0; at < entry.port_count; ++at)
        if (attend_text_equal(entry.ports[at].name, "key_pages")) kept = entry.ports[at].dtypes;
    kept &= ATTEND_F32 | ATTEND_F16 | ATTEND_BF16 | ATTEND_I8;
    if (desc.dtype == 0 || (desc.dtype & (desc.dtype - 1)) != 0 || (desc.dtype & kept) == 0)
        return refuse("dtype", desc.dtype,
                      "one bit of those of float32, float16, bfloat16 and int8 that key_pages takes");
    sizes.dtype = desc.dtype;
    sizes.num_sequences = desc.num_sequences;
    sizes.capacity = desc.capacity;
    sizes.page_keys = desc.page_keys > 0 ? desc.page_keys : desc.capacity;
    sizes.num_pages = desc.page_keys > 0 ? desc.num_pages : desc.num_sequences;
    sizes.table_width = pages_for(sizes, desc.capacity);
    sizes.num_heads = steps.num_kv_heads;
    sizes.head_dim = steps.head_dim;
    sizes.value_dim = steps.value_dim;
    const double bytes = static_cast<double>(sizes.num_pages) * static_cast<double>(sizes.num_heads) *
                             static_cast<double>(sizes.page_keys) *
                             static_cast<double>(sizes.head_dim + sizes.value_dim + 2) * 4.0 +
                         static_cast<double>(sizes.num_sequences) * static_cast<double>(sizes.table_width) * 4.0;
    if (bytes > 0x1p60) return refuse("num_pages", sizes.num_pages, "pages that fit in the address space");
    return ATTEND_OK;
}

inline attend_status check_sequence(const attend_kv_cache* cache, int64_t sequence, attend_error* error) {
    if (sequence >= 0 && sequence < cache->sizes.num_sequences) return ATTEND_OK;
    return fail(error, ATTEND_INVALID_ARGUMENT,
                Message{} << cache->plan->entry->name << ": sequence " << sequence
                          << " is not in the cache; accepted: 0 to " << cache->sizes.num_sequences - 1,
                "sequence");
}

inline int32_t* pages_of(const attend_kv_cache* cache, int64_t sequence) {
    return cache->table + sequence * cache->sizes.table_width;
}
inline int32_t take_page(attend_kv_cache* cache) {
    const int32_t page = cache->free_pages[--cache->num_free];
    cache->users[page] = 1;
    return page;
}
inline void leave_page(attend_kv_cache* cache, int32_t page) {
    if (--cache->users[page] == 0) cache->free_pages[cache->num_free++] = page;
}

// The first `keys` keys of a page in another one.
inline void copy_page(attend_kv_cache* cache, int32_t from, int32_t to, int64_t keys) {
    const CacheSizes& sizes = cache->sizes;
    const auto copy = [&](void* memory, uint64_t row) {
        const uint64_t head_bytes = static_cast<uint64_t>(sizes.page_keys) * row;
        for (int64_t head = 0; head < sizes.num_heads; ++head)
            __builtin_memcpy(
                static_cast<char*>(memory) + static_cast<uint64_t>(to * sizes.num_heads + head) * head_bytes,
                static_cast<char*>(memory) + static_cast<uint64_t>(from * sizes.num_heads + head) * head_bytes,
                static_cast<uint64_t>(keys) * row);
    };
    copy(cache->keys, sizes.row_bytes(sizes.head_dim));
    copy(cache->values, sizes.row_bytes(sizes.value_dim));
    if (!sizes.has_scales()) return;
    copy(cache->key_scales, 4);
    copy(cache->value_scales, 4);
}

inline void destroy_cache(attend_kv_cache* cache) noexcept {
    if (cache == nullptr) return;
    const attend_host* host = cache->host;
    destroy_plan(cache->plan);
    host->release(host, cache, cache->block_bytes, 64);
}

// Room for `more` keys in a sequence: pages of its own from the one that the next key falls into on.
inline void make_room(attend_kv_cache* cache, int64_t sequence, int64_t more) {
    const CacheSizes& sizes = cache->sizes;
    const int64_t length = cache->lengths[sequence], have = pages_for(sizes, length);
    int32_t* pages = pages_of(cache, sequence);
    const int64_t filled = length % sizes.page_keys;
    if (filled != 0 && cache->users[pages[have - 1]] > 1) {
        const int32_t own = take_page(cache);
        copy_page(cache, pages[have - 1], own, filled);
        leave_page(cache, pages[have - 1]);
        pages[have - 1] = own;
    }
    for (int64_t at = have; at < pages_for(sizes, length + more); ++at) pages[at] = take_page(cache);
}
inline void drop_room(attend_kv_cache* cache, int64_t sequence, int64_t from_length, int64_t to_length) {
    int32_t* pages = pages_of(cache, sequence);
    for (int64_t at = pages_for(cache->sizes, from_length); at > pages_for(cache->sizes, to_length); --at)
        leave_page(cache, pages[at - 1]);
}

// Pages that an append takes: new ones, and a copy of each shared page that one of the sequences goes on in. Sharers count
// down while they are looked at: the last one keeps the page.
inline int64_t pages_to_take(attend_kv_cache* cache, const int64_t* sequences, int64_t count, int64_t more) {
    const CacheSizes& sizes = cache->sizes;
    int64_t needed = 0;
    for (int64_t at = 0; at < count; ++at) {
        const int64_t length = cache->lengths[sequences[at]], have = pages_for(sizes, length);
        needed += pages_for(sizes, length + more) - have;
        if (length % sizes.page_keys == 0) continue;
        int32_t& users = cache->users[pages_of(cache, sequences[at])[have - 1]];
        if (users <= 1) continue;
        --users;
        ++needed;
        cache->marks[sequences[at]] |= 2;
    }
    for (int64_t at = 0; at < count; ++at) {
        if ((cache->marks[sequences[at]] & 2) == 0) continue;
        ++cache->users[pages_of(cache, sequences[at])[pages_for(sizes, cache->lengths[sequences[at]]) - 1]];
        cache->marks[sequences[at]] &= static_cast<unsigned char>(~2u);
    }
    return needed;
}

inline attend_status check_appended(const attend_kv_cache* cache, const attend_tensor* tensor, const char* name,
                                    int64_t count, int64_t keys, int64_t width, attend_error* error) {
    const CacheSizes& sizes = cache->sizes;
    const char* mechanism = cache->plan->entry->name;
    if (tensor == nullptr || tensor->ndim != 4)
        return fail(error, ATTEND_BAD_SHAPE,
                    Message{} << mechanism << ": appended " << name << " has rank "
                              << static_cast<int64_t>(tensor != nullptr ? tensor->ndim : 0)
                              << "; accepted: 4, [sequences, Hkv, keys, width]",
                    name);
    const int64_t wanted[4] = {count, sizes.num_heads, keys, width};
    for (int axis = 0; axis < 4; ++axis)
        if (tensor->shape[axis] != wanted[axis])
            return fail(error, ATTEND_BAD_SHAPE,
                        Message{} << mechanism << ": extent " << static_cast<int64_t>(axis) << " of appended " << name
                                  << " is " << tensor->shape[axis] << "; accepted: " << wanted[axis],
                        name);
    const bool whole = tensor->dtype_code == ATTEND_CODE_FLOAT && tensor->dtype_bits == 32;
    const bool as_kept =
        !sizes.has_scales() && tensor->dtype_code == sizes.code() && tensor->dtype_bits == sizes.bits();
    if (!whole && !as_kept)
        return fail(error, ATTEND_BAD_DTYPE,
                    Message{} << mechanism << ": appended " << name << " has a data type of "
                              << static_cast<int64_t>(tensor->dtype_bits)
                              << " bits that the cache does not keep; accepted: float32"
                              << (sizes.has_scales() ? "" : ", or the type of the cache"),
                    name);
    return ATTEND_OK;
}

inline attend_status append_to_cache(attend_kv_cache* cache, const int64_t* sequences, int64_t count,
                                     const attend_tensor* key, const attend_tensor* value,
                                     attend_error* error) noexcept {
    const CacheSizes& sizes = cache->sizes;
    const MechanismEntry& entry = *cache->plan->entry;
    const int64_t more = key != nullptr && key->ndim == 4 ? key->shape[2] : 0;
    if (attend_status status = check_appended(cache, key, "key", count, more, sizes.head_dim, error)) return status;
    if (attend_status status = check_appended(cache, value, "value", count, more, sizes.value_dim, error))
        return status;
    for (int64_t at = 0; at < count; ++at)
        if (attend_status status = check_sequence(cache, sequences[at], error)) return status;
    int64_t twice = -1;
    for (int64_t at = 0; at < count; ++at) {
        if (cache->marks[sequences[at]] != 0) twice = sequences[at];
        cache->marks[sequences[at]] = 1;
    }
    for (int64_t at = 0; at < count; ++at) cache->marks[sequences[at]] = 0;
    if (twice >= 0)
        return fail(error, ATTEND_INVALID_ARGUMENT,
                    Message{} << entry.name << ": sequence " << twice
                              << " is appended to twice in one call; accepted: each sequence once",
                    "sequences");
    for (int64_t at = 0; at < count; ++at)
        if (more > sizes.capacity - cache->lengths[sequences[at]])
            return fail(error, ATTEND_LIMIT,
                        Message{} << entry.name << ": " << more << " more keys for sequence " << sequences[at]
                                  << ", which holds " << cache->lengths[sequences[at]] << "; accepted: up to "
                                  << sizes.capacity << " keys in a sequence",
                        "key");
    const int64_t needed = pages_to_take(cache, sequences, count, more);
    if (needed > cache->num_free)
        return fail(error, ATTEND_LIMIT,
                    Message{} << entry.name << ": the appended keys need " << needed << " pages; accepted: up to "
                              << cache->num_free << ", the free ones",
                    "key");
    for (int64_t at = 0; at < count; ++at) make_room(cache, sequences[at], more);
    bool finite = true;
    for (int64_t at = 0; at < count && finite; ++at) {
        const int64_t length = cache->lengths[sequences[at]];
        const int32_t* pages = pages_of(cache, sequences[at]);
        for (int64_t row = 0; row < more && finite;) {
            const int64_t slot = (length + row) % sizes.page_keys, left = sizes.page_keys - slot;
            const int64_t rows = more - row < left ? more - row : left;
            const int64_t page = pages[(length + row) / sizes.page_keys];
            for (int64_t head = 0; head < sizes.num_heads && finite; ++head) {
                const int64_t place = (page * sizes.num_heads + head) * sizes.page_keys + slot;
                const auto bytes = [&](int64_t width) { return static_cast<uint64_t>(place) * sizes.row_bytes(width); };
                finite =
                    entry.write_rows({key, at, head, row, rows, sizes.dtype, cache->keys + bytes(sizes.head_dim),
                                      cache->key_scales + (sizes.has_scales() ? place : 0)}) &&
                    entry.write_rows({value, at, head, row, rows, sizes.dtype, cache->values + bytes(sizes.value_dim),
                                      cache->value_scales + (sizes.has_scales() ? place : 0)});
            }
            row += rows;
        }
    }
    for (int64_t at = 0; at < count; ++at) {
        int64_t& length = cache->lengths[sequences[at]];
        if (finite)
            length += more;
        else
            drop_room(cache, sequences[at], length + more, length);
    }
    if (finite) return ATTEND_OK;
    return fail(error, ATTEND_NUMERIC,
                Message{} << entry.name
                          << ": appended keys or values hold NaN or infinity, which codes of 8 bits cannot "
                          << "keep; accepted: finite numbers",
                "key");
}

inline attend_status truncate_cache(attend_kv_cache* cache, int64_t sequence, int64_t length,
                                    attend_error* error) noexcept {
    if (attend_status status = check_sequence(cache, sequence, error)) return status;
    int64_t& now = cache->lengths[sequence];
    if (length < 0 || length > now)
        return fail(error, ATTEND_INVALID_ARGUMENT,
                    Message{} << cache->plan->entry->name << ": sequence " << sequence << " cannot be cut to " << length
                              << " keys; accepted: 0 to " << now << ", its length",
                    "length");
    drop_room(cache, sequence, now, length);
    now = length;
    return ATTEND_OK;
}

inline attend_status fork_cache(attend_kv_cache* cache, int64_t from, int64_t to, attend_error* error) noexcept {
    if (attend_status status = check_sequence(cache, from, error)) return status;
    if (attend_status status = check_sequence(cache, to, error)) return status;
    if (cache->lengths[to] != 0)
        return fail(error, ATTEND_STATE,
                    Message{} << cache->plan->entry->name << ": sequence " << to << " holds " << cache->lengths[to]
                              << " keys; accepted: an empty sequence as the copy (cut it to 0 first)",
                    "to");
    const int64_t pages = pages_for(cache->sizes, cache->lengths[from]);
    for (int64_t at = 0; at < pages; ++at) {
        pages_of(cache, to)[at] = pages_of(cache, from)[at];
        ++cache->users[pages_of(cache, from)[at]];
    }
    cache->lengths[to] = cache->lengths[from];
    return ATTEND_OK;
}

inline int64_t length_in_cache(const attend_kv_cache* cache, int64_t sequence) noexcept {
    return sequence >= 0 && sequence < cache->sizes.num_sequences ? cache->lengths[sequence] : -1;
}

inline attend_status cache_info(const attend_kv_cache* cache, attend_kv_cache_info* to) noexcept {
    attend_kv_cache_info info{};
    info.bytes = cache->block_bytes + cache->plan->block_bytes;
    info.used_bytes = static_cast<uint64_t>(cache->sizes.num_pages - cache->num_free) * cache->sizes.page_bytes();
    info.num_pages = cache->sizes.num_pages;
    info.free_pages = cache->num_free;
    const uint32_t room = to->struct_size;
    attend_copy_sized(to, room, &info, sizeof info);
    to->struct_size = room;
    return ATTEND_OK;
}

inline uint64_t step_table_bytes(const attend_kv_cache* cache, int64_t count) {
    const uint64_t table = static_cast<uint64_t>(count * cache->sizes.table_width) * 4;
    return ((table + 63) & ~uint64_t{63}) + ((static_cast<uint64_t>(count) * 8 + 63) & ~uint64_t{63});
}

// The plan's description with the sizes of a step.
inline attend_plan_desc step_desc(const attend_kv_cache* cache, int64_t count, int64_t q_len) {
    attend_plan_desc desc = cache->plan->desc;
    desc.batch = count;
    desc.q_len = q_len;
    return desc;
}

inline uint64_t step_workspace(const attend_kv_cache* cache, int64_t count, int64_t q_len) noexcept {
    const MechanismEntry& entry = *cache->plan->entry;
    const CacheSizes& sizes = cache->sizes;
    StepTensors tensors;
    tensors.describe(sizes, count, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
    CacheTensor query, output;
    attend_plan_desc desc = step_desc(cache, count, q_len);
    const int64_t query_shape[4] = {count, desc.num_q_heads, q_len, sizes.head_dim};
    const int64_t output_shape[4] = {count, desc.num_q_heads, q_len, sizes.value_dim};
    const bool whole = desc.io_dtype == ATTEND_F32;
    const uint8_t code = desc.io_dtype == ATTEND_BF16 ? ATTEND_CODE_BFLOAT : ATTEND_CODE_FLOAT;
    query.describe(nullptr, code, whole ? 32 : 16, query_shape, 4);
    output.describe(nullptr, code, whole ? 32 : 16, output_shape, 4);
    attend_binding bindings[most_step_bindings];
    uint32_t bound = tensors.bind(bindings, sizes.has_scales());
    bindings[bound++] = {sizeof(attend_binding), ATTEND_Q, "query", &query.tensor};
    bindings[bound++] = {sizeof(attend_binding), ATTEND_OUT, "output", &output.tensor};
    desc.bindings = {bindings, bound, sizeof(attend_binding)};
    desc.options = cache->plan->values;
    const PlanArgs args{&desc, &cache->plan->values};
    return step_table_bytes(cache, count) + (entry.workspace ? entry.workspace(cache->plan->options, args) : 0);
}

inline attend_status step_of_cache(const attend_kv_cache* cache, const int64_t* sequences, int64_t count,
                                   const attend_exec* call, attend_error* error) noexcept {
    const attend_plan* plan = cache->plan;
    const MechanismEntry& entry = *plan->entry;
    const CacheSizes& sizes = cache->sizes;
    if (attend_status status = attend_check_blocks(call->next, nullptr, error)) return status;
    for (int64_t at = 0; at < count; ++at)
        if (attend_status status = check_sequence(cache, sequences[at], error)) return status;
    ForwardArgs args{};
    const attend_tensor** roles[] = {&args.query,  &args.key,  &args.value, &args.output,        &args.lse,
                                     &args.scores, &args.mask, &args.bias,  &args.query_lengths, &args.key_lengths};
    attend_binding bindings[most_step_bindings];
    StepTensors tensors;
    tensors.describe(sizes, count, cache->keys, cache->values, cache->key_scales, cache->value_scales, nullptr,
                     nullptr);
    uint32_t bound = tensors.bind(bindings, sizes.has_scales());
    args.key_lengths = &tensors.lengths.tensor;
    for (uint32_t at = 0; at < call->bindings.count; ++at) {
        const attend_binding* binding = attend_binding_at(&call->bindings, at);
        if (binding->role == ATTEND_K || binding->role == ATTEND_V || binding->role >= ATTEND_Q_LENGTHS)
            return fail(error, ATTEND_INVALID_ARGUMENT,
                        Message{} << entry.name << ": a step got " << binding->name
                                  << "; accepted: query, output, lse, mask, bias and inputs without a role",
                        "bindings");
        if (binding->role >= ATTEND_Q && binding->role <= ATTEND_BIAS) *roles[binding->role - 1] = binding->tensor;
        if (binding->role != 0) continue;
        if (bound == most_step_bindings)
            return attend_fail(error, ATTEND_LIMIT, "a step has more inputs than its table has room for", "bindings");
        bindings[bound++] = *binding;
    }
    if (args.query == nullptr || args.output == nullptr)
        return fail(error, ATTEND_INVALID_ARGUMENT, Message{} << entry.name << ": query and output must be bound",
                    "bindings");
    const int64_t q_len = args.query->ndim == 4 ? args.query->shape[2] : 0;
    attend_plan_desc desc = step_desc(cache, count, q_len);
    const struct {
        const attend_tensor* tensor;
        const char* name;
        int32_t rank;
        int64_t width;
    } checked[] = {
        {args.query, "query", 4, sizes.head_dim}, {args.output, "output", 4, sizes.value_dim}, {args.lse, "lse", 3, 0}};
    for (const auto& entry_of : checked) {
        if (entry_of.tensor == nullptr) continue;
        const int64_t wanted[4] = {count, desc.num_q_heads, q_len, entry_of.width};
        bool fits = entry_of.tensor->ndim == entry_of.rank;
        for (int32_t axis = 0; fits && axis < entry_of.rank; ++axis)
            fits = entry_of.tensor->shape[axis] == wanted[axis];
        const bool whole = entry_of.tensor->dtype_code == ATTEND_CODE_FLOAT && entry_of.tensor->dtype_bits == 32;
        if (fits && (whole || entry_of.rank == 4)) continue;
        return fail(error, ATTEND_BAD_SHAPE,
                    Message{} << entry.name << ": " << entry_of.name << " of a step does not fit; accepted: [" << count
                              << ", " << desc.num_q_heads << ", Nq" << (entry_of.rank == 4 ? ", " : "] of float32")
                              << (entry_of.rank == 4 ? "D or Dv]" : ""),
                    entry_of.name);
    }
    const uint64_t own = step_table_bytes(cache, count), needed = step_workspace(cache, count, q_len);
    if (call->workspace_bytes < needed || call->workspace == nullptr)
        return fail(error, ATTEND_WORKSPACE_TOO_SMALL,
                    Message{} << entry.name << ": workspace of " << static_cast<int64_t>(call->workspace_bytes)
                              << " bytes; needed: " << static_cast<int64_t>(needed),
                    "workspace");
    auto* pages = static_cast<int32_t*>(call->workspace);
    auto* lengths = reinterpret_cast<int64_t*>(static_cast<char*>(call->workspace) + own -
                                               ((static_cast<uint64_t>(count) * 8 + 63) & ~uint64_t{63}));
    for (int64_t at = 0; at < count; ++at) {
        lengths[at] = cache->lengths[sequences[at]];
        const int64_t used = pages_for(sizes, lengths[at]);
        for (int64_t page = 0; page < sizes.table_width; ++page)
            pages[at * sizes.table_width + page] = page < used ? pages_of(cache, sequences[at])[page] : -1;
    }
    tensors.table.tensor.data = pages;
    tensors.lengths.tensor.data = lengths;
    const attend_array all{bindings, bound, sizeof(attend_binding)};
    desc.bindings = all;
    desc.options = plan->values;
    if (entry.check != nullptr) {
        // Tensors with a role count, too: what a call may bring depends on the options.
        attend_binding described[most_step_bindings + 5];
        uint32_t every = 0;
        for (; every < bound; ++every) described[every] = bindings[every];
        for (uint32_t at = 0; at < call->bindings.count && every < most_step_bindings + 5; ++at)
            if (const attend_binding* binding = attend_binding_at(&call->bindings, at); binding->role != 0)
                described[every++] = *binding;
        attend_plan_desc whole = desc;
        whole.bindings = {described, every, sizeof(attend_binding)};
        if (attend_status status = entry.check(plan->options, PlanArgs{&whole, &plan->values}, error)) return status;
    }
    args.desc = &desc;
    args.bindings = &all;
    args.weights = &plan->weights;
    args.values = &plan->values;
    args.prepared = plan->prepared;
    args.exec = call;
    const attend_context context{
        plan->host,       call->call, static_cast<char*>(call->workspace) + own, call->workspace_bytes - own, error,
        desc.max_workers, 0};
    return entry.forward(plan->options, args, context);
}

inline attend_status create_cache(attend_lib* lib, const MechanismEntry& entry, const attend_plan_desc* given,
                                  const attend_kv_cache_desc* cache_desc, attend_kv_cache** out, attend_error* error) {
    *out = nullptr;
    attend_kv_cache_desc asked{};
    attend_copy_sized(&asked, sizeof asked, cache_desc, cache_desc->struct_size);
    attend_plan_desc steps;
    attend_copy_sized(&steps, sizeof steps, given, given->struct_size);
    attend_kv_cache cache{};
    cache.host = lib->host;
    if (attend_status status = check_cache(entry, steps, asked, cache.sizes, error)) return status;
    // A step of one sequence with one query stands for all steps while the plan is made.
    StepTensors tensors;
    tensors.describe(cache.sizes, 1, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
    attend_binding bindings[most_step_bindings];
    steps.batch = 1;
    steps.q_len = 1;
    steps.kv_len = cache.sizes.table_width * cache.sizes.page_keys;
    steps.bindings = {bindings, tensors.bind(bindings, cache.sizes.has_scales()), sizeof(attend_binding)};
    if (attend_status status = make_plan(lib, entry, &steps, &cache.plan, error)) return status;
    cache.block_bytes = lay_out(cache, nullptr);
    void* block = lib->host->alloc(lib->host, cache.block_bytes, 64);
    if (block == nullptr) {
        destroy_plan(cache.plan);
        return fail(error, ATTEND_OUT_OF_MEMORY,
                    Message{} << entry.name << ": no memory for a cache of " << static_cast<int64_t>(cache.block_bytes)
                              << " bytes",
                    "num_pages");
    }
    lay_out(cache, static_cast<char*>(block));
    const CacheSizes& sizes = cache.sizes;
    cache.num_free = sizes.num_pages;
    for (int64_t at = 0; at < sizes.num_pages; ++at) {
        cache.free_pages[at] = static_cast<int32_t>(sizes.num_pages - 1 - at);
        cache.users[at] = 0;
    }
    for (int64_t at = 0; at < sizes.num_sequences; ++at) cache.lengths[at] = 0, cache.marks[at] = 0;
    *out = new (block) attend_kv_cache(cache);
    return ATTEND_OK;
}

}  // namespace attend::author
