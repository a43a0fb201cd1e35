/* SPDX-License-Identifier: Apache-2.0 */
/* What a plugin in C uses beside the ABI: small inline functions, the ELF note, the entry. C11, and C++11 and later
   for everything but ATTEND_PLUGIN (C++ has attend/author/plugin.hpp, or the bare ATTEND_PLUGIN_NOTE).

   Before the include a plugin may define ATTEND_MIN_HOST_MINOR (the ABI minor without which it cannot work) and
   ATTEND_REQUIRED_ISA (bits of attend_cpu.isa that all of its code needs); both default to 0. */
#ifndef ATTEND_PLUGIN_H
#define ATTEND_PLUGIN_H

#include "attend/abi.h"

#ifndef ATTEND_MIN_HOST_MINOR
#define ATTEND_MIN_HOST_MINOR 0
#endif
#ifndef ATTEND_REQUIRED_ISA
#define ATTEND_REQUIRED_ISA 0
#endif

#if defined(__SANITIZE_ADDRESS__)
#define ATTEND_SANITIZER_FLAGS ATTEND_NOTE_ASAN
#elif defined(__SANITIZE_THREAD__)
#define ATTEND_SANITIZER_FLAGS ATTEND_NOTE_TSAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ATTEND_SANITIZER_FLAGS ATTEND_NOTE_ASAN
#elif __has_feature(thread_sanitizer)
#define ATTEND_SANITIZER_FLAGS ATTEND_NOTE_TSAN
#elif __has_feature(memory_sanitizer)
#define ATTEND_SANITIZER_FLAGS ATTEND_NOTE_MSAN
#endif
#endif
#ifndef ATTEND_SANITIZER_FLAGS
#define ATTEND_SANITIZER_FLAGS 0
#endif

#ifdef __cplusplus
#define ATTEND_EXPORT extern "C" ATTEND_EXPORT_ATTRIBUTE
extern "C" {
#else
#define ATTEND_EXPORT ATTEND_EXPORT_ATTRIBUTE
#endif

#if defined(__GNUC__)
#define ATTEND_UNUSED __attribute__((unused))
#else
#define ATTEND_UNUSED
#endif

/* What an engine of the toolkit needs of a call; a plugin fills it in execute. The workspace may be split among
   several engines: each gets a context of its own with its part. */
typedef struct attend_context {
    const attend_host *host;
    attend_call *call;
    void *workspace; /* 64-byte aligned */
    uint64_t workspace_bytes;
    attend_error *error;
    uint32_t max_workers, reserved0;
} attend_context;

/* A table of the ABI from an array. */
#define ATTEND_TABLE(array) \
    { array, (uint32_t)(sizeof(array) / sizeof((array)[0])), (uint32_t)sizeof((array)[0]) }

/* One row of a port table whose last dimension must be contiguous. */
#define ATTEND_PORT(role, flags, name, shape, dtypes, help) \
    { (uint32_t)sizeof(attend_port), (role), (flags) | ATTEND_LAST_DIM_CONTIGUOUS, 0, (name), (shape), (help), NULL, (dtypes) }

ATTEND_UNUSED static inline uint64_t attend_text_length(const char *text) {
    uint64_t n = 0;
    while (text && text[n]) ++n;
    return n;
}

ATTEND_UNUSED static inline int attend_text_equal(const char *a, const char *b) {
    if (!a || !b) return a == b;
    while (*a && *a == *b) {
        ++a;
        ++b;
    }
    return *a == *b;
}

/* Fills err (which may be NULL) with a copy of text, cut at a UTF-8 boundary, and returns status. */
ATTEND_UNUSED static inline attend_status attend_fail(attend_error *err, attend_status status, const char *text,
                                                      const char *where) {
    if (err && err->struct_size >= sizeof(attend_error)) {
        uint32_t length = 0;
        err->code = status;
        err->where = where;
        if (err->text && err->text_capacity > 0) {
            while (text && text[length] && length + 1 < err->text_capacity) ++length;
            if (text && text[length])
                while (length > 0 && ((unsigned char)text[length] & 0xC0u) == 0x80u) --length;
            for (uint32_t at = 0; at < length; ++at) err->text[at] = text[at];
            err->text[length] = '\0';
        }
        err->text_length = length;
    }
    return status;
}

ATTEND_UNUSED static inline const attend_binding *attend_binding_at(const attend_array *bindings, uint32_t index) {
    return (const attend_binding *)(const void *)((const char *)bindings->items + (size_t)index * bindings->stride);
}

/* The tensor bound to a role, or NULL. */
ATTEND_UNUSED static inline const attend_tensor *attend_find(const attend_array *bindings, uint32_t role) {
    for (uint32_t index = 0; index < bindings->count; ++index) {
        const attend_binding *binding = attend_binding_at(bindings, index);
        if (binding->role == role) return binding->tensor;
    }
    return NULL;
}

/* The tensor bound to a name, or NULL. */
ATTEND_UNUSED static inline const attend_tensor *attend_find_name(const attend_array *bindings, const char *name) {
    for (uint32_t index = 0; index < bindings->count; ++index) {
        const attend_binding *binding = attend_binding_at(bindings, index);
        if (attend_text_equal(binding->name, name)) return binding->tensor;
    }
    return NULL;
}

/* The value of an option, or NULL. */
ATTEND_UNUSED static inline const attend_value *attend_find_option(const attend_array *options, const char *name) {
    for (uint32_t index = 0; index < options->count; ++index) {
        const attend_value *value =
            (const attend_value *)(const void *)((const char *)options->items + (size_t)index * options->stride);
        if (attend_text_equal(value->name, name)) return value;
    }
    return NULL;
}

/* Row (batch, head, position) of a rank-4 float tensor. */
ATTEND_UNUSED static inline float *attend_f32_row(const attend_tensor *tensor, int64_t batch, int64_t head,
                                                  int64_t position) {
    return (float *)tensor->data + batch * tensor->strides[0] + head * tensor->strides[1] + position * tensor->strides[2];
}

/* A block that is marked REQUIRED and that the caller does not know must be refused; it knows none but `known` (or NULL). */
ATTEND_UNUSED static inline attend_status attend_check_blocks(const attend_ext *next, const char *known, attend_error *err) {
    for (; next; next = next->next)
        if ((next->flags & ATTEND_EXT_REQUIRED) && !(known && attend_text_equal(next->id, known)))
            return attend_fail(err, ATTEND_UNSUPPORTED, "a required block is unknown here", "next");
    return ATTEND_OK;
}

ATTEND_UNUSED static inline void attend_copy_sized(void *to, uint32_t to_size, const void *from, uint32_t from_size) {
    const uint32_t shared = to_size < from_size ? to_size : from_size;
    for (uint32_t at = 0; at < shared; ++at) ((unsigned char *)to)[at] = ((const unsigned char *)from)[at];
    for (uint32_t at = shared; at < to_size; ++at) ((unsigned char *)to)[at] = 0;
}

/* Sized copy of a description for use after plan has returned: pointers that were borrowed for the call are cleared. */
ATTEND_UNUSED static inline void attend_plan_desc_copy(attend_plan_desc *to, const attend_plan_desc *from) {
    attend_copy_sized(to, (uint32_t)sizeof *to, from, from->struct_size);
    to->struct_size = (uint32_t)sizeof *to;
    to->bindings.items = NULL;
    to->bindings.count = 0;
    to->options.items = NULL;
    to->options.count = 0;
    to->next = NULL;
    to->reserved1 = NULL;
}

/* plan_info of a mechanism that needs no workspace. Writes no more than the caller has room for. */
ATTEND_UNUSED static inline attend_status attend_write_plan_info(attend_plan_info *to, const attend_plan_info *from) {
    const uint32_t room = to->struct_size;
    if (room < sizeof(attend_plan_info)) return ATTEND_INVALID_ARGUMENT;
    attend_copy_sized(to, room, from, (uint32_t)sizeof *from);
    to->struct_size = room;
    return ATTEND_OK;
}

ATTEND_UNUSED static inline attend_status attend_no_workspace(attend_plan_info *to) {
    attend_plan_info none;
    attend_copy_sized(&none, (uint32_t)sizeof none, NULL, 0);
    none.workspace_align = 64;
    return attend_write_plan_info(to, &none);
}

/* The ELF note, so that a host can refuse the file before any of its code runs. Survives strip, --gc-sections and
   the loss of the section table. */
#define ATTEND_PLUGIN_NOTE                                                                                          \
    struct attend_elf_note {                                                                                        \
        uint32_t name_bytes, payload_bytes, type;                                                                   \
        char name[8];                                                                                               \
        uint32_t payload[sizeof(attend_note) / 4];                                                                  \
    };                                                                                                              \
    __attribute__((used, section(".note.attend"), aligned(4))) static const struct attend_elf_note attend_elf_note_ \
        = { 7u, (uint32_t)sizeof(attend_note), 1u, { 'A', 'T', 'T', 'E', 'N', 'D', 0, 0 },                          \
            { ATTEND_MAGIC, ATTEND_LAYOUT_TAG, (uint32_t)ATTEND_ABI_MAJOR | ((uint32_t)ATTEND_ABI_MINOR << 16),     \
              (uint32_t)(ATTEND_MIN_HOST_MINOR) | ((uint32_t)(ATTEND_SANITIZER_FLAGS) << 16),                       \
              (uint32_t)((uint64_t)(ATTEND_REQUIRED_ISA) & 0xFFFFFFFFu),                                            \
              (uint32_t)((uint64_t)(ATTEND_REQUIRED_ISA) >> 32), 0u, 0u } };

/* Prefix of the table, common to C and C++. */
#define ATTEND_PLUGIN_PREFIX                                                                            \
    .struct_size = (uint32_t)sizeof(attend_plugin), .magic = ATTEND_MAGIC, .abi_major = ATTEND_ABI_MAJOR, \
    .abi_minor = ATTEND_ABI_MINOR, .min_host_minor = ATTEND_MIN_HOST_MINOR, .layout_tag = ATTEND_LAYOUT_TAG

ATTEND_EXPORT_ATTRIBUTE const attend_plugin *attend_plugin_entry(const attend_hello *hello) ATTEND_NOEXCEPT;

#ifndef __cplusplus
/* Writes prefix, note and entry; the arguments are designated initialisers of attend_plugin, in any order. */
#define ATTEND_PLUGIN(...)                                                                                    \
    ATTEND_PLUGIN_NOTE                                                                                        \
    static const attend_plugin attend_plugin_table_ = { ATTEND_PLUGIN_PREFIX,                                 \
                                                        .required_isa = ATTEND_REQUIRED_ISA, __VA_ARGS__ };   \
    const attend_plugin *attend_plugin_entry(const attend_hello *hello) { (void)hello; return &attend_plugin_table_; }
#endif

#ifdef __cplusplus
}
#endif

#endif /* ATTEND_PLUGIN_H */
