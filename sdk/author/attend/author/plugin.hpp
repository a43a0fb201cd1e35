// SPDX-License-Identifier: Apache-2.0
// Turns a list of mechanisms into the exported entry of a plugin. Included by plugin.cpp alone, which is compiled once,
// without instruction-set flags, and is all that remains of a plugin beside its mechanism files:
//
//   #define ATTEND_MECHANISMS(X) X(local) X(longformer)
//   #include "attend/author/plugin.hpp"
//   ATTEND_CPP_PLUGIN(.id = "org.example.sparse", .version = "1.0.0", .license = "MIT", .summary = "...")
//
// `open` chooses the instruction set: the widest entry that the plugin holds and attend_cpu.isa permits.
#pragma once

#include <exception>
#include <new>

#include "attend/author/plugin_options.hpp"

namespace attend::author {

#define ATTEND_ISA_NEEDS_baseline ATTEND_ISA_X86_V2
#define ATTEND_ISA_NEEDS_avx2 ATTEND_ISA_X86_V3
#define ATTEND_ISA_NEEDS_avx512 ATTEND_ISA_X86_V4
#define ATTEND_ISA_NEEDS_neon ATTEND_ISA_NEON

struct IsaSet {
    const char* name;
    uint64_t needs;
    const MechanismEntry* const* entries;
};

}  // namespace attend::author

struct attend_lib {
    const attend_host* host;
    const attend::author::IsaSet* isa;
    uint32_t count;
    const attend_mechanism* mechanisms;  // `count` of them, in host memory
    const attend_cost_extension* cost;
    const attend_tolerance_extension* tolerance;
};

struct attend_plan {
    const attend_host* host;
    const attend::author::MechanismEntry* entry;
    const char* variant;
    attend_plan_desc desc;
    uint64_t block_bytes, prepared_bytes, workspace_bytes;
    int64_t score_rows;  // of all weights; -1: made without them
    void* options;
    void* prepared;
    attend_array values, weights;
    const char* warnings;
};

namespace attend::author {

template <uint32_t... index>
struct Indices {};
template <uint32_t count, uint32_t... index>
struct MakeIndices : MakeIndices<count - 1, count - 1, index...> {};
template <uint32_t... index>
struct MakeIndices<0, index...> {
    using Type = Indices<index...>;
};

// Nothing is thrown across the boundary, whatever a plugin's own sources do.
template <class Function>
attend_status guarded(attend_error* error, Function function) noexcept {
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return attend_fail(error, ATTEND_OUT_OF_MEMORY, "out of memory", nullptr);
    } catch (const std::exception& thrown) {
        return attend_fail(error, ATTEND_INTERNAL, thrown.what(), nullptr);
    } catch (...) {
        return attend_fail(error, ATTEND_INTERNAL, "an unknown exception was thrown", nullptr);
    }
}

// Sizes first, then places: one walk over the same code counts the bytes of the plan's block and fills it.
class Carver {
public:
    explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}
    template <class T>
    T* take(uint64_t count) {
        used_ = (used_ + 63) & ~uint64_t{63};
        T* at = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
        used_ += count * sizeof(T);
        return at;
    }
    uint64_t used() const { return (used_ + 63) & ~uint64_t{63}; }

private:
    char* memory_;
    uint64_t used_ = 0;
};

// Copies what the plan keeps (values with their lists and texts, weights with their shapes) into its block.
inline void keep(Carver& carver, const MechanismEntry& entry, const attend_plan_desc& desc, attend_plan* plan) {
    const attend_array& from = desc.options;
    auto* values = carver.take<attend_value>(from.count);
    for (uint32_t at = 0; at < from.count; ++at) {
        const auto& value =
            *reinterpret_cast<const attend_value*>(static_cast<const char*>(from.items) + uint64_t{at} * from.stride);
        const uint64_t bytes = value.type == ATTEND_TYPE_STRING ? uint64_t{value.count} + 1
                               : value.type == ATTEND_TYPE_INT_LIST || value.type == ATTEND_TYPE_FLOAT_LIST
                                   ? uint64_t{value.count} * 8
                                   : 0;
        char* payload = bytes ? carver.take<char>(bytes) : nullptr;
        if (!values) continue;
        attend_copy_sized(&values[at], sizeof(attend_value), &value, value.struct_size);
        const OptionRow* row = find_row(entry, value.name);
        values[at].struct_size = sizeof(attend_value);
        values[at].name = row ? row->row.name : "";
        if (payload) {
            attend_copy_sized(payload, static_cast<uint32_t>(bytes), value.u.s, static_cast<uint32_t>(bytes));
            values[at].u.s = payload;
        }
    }
    uint32_t weight_count = 0;
    for (uint32_t at = 0; at < desc.bindings.count; ++at) {
        const attend_binding& binding = *attend_binding_at(&desc.bindings, at);
        weight_count += binding.tensor && binding.tensor->data && binding.role == 0;
    }
    auto* weights = carver.take<attend_binding>(weight_count);
    auto* tensors = carver.take<attend_tensor>(weight_count);
    uint32_t next = 0;
    for (uint32_t at = 0; at < desc.bindings.count; ++at) {
        const attend_binding& binding = *attend_binding_at(&desc.bindings, at);
        if (!binding.tensor || !binding.tensor->data || binding.role != 0) continue;
        const auto rank = static_cast<uint64_t>(binding.tensor->ndim);
        auto* extents = carver.take<int64_t>(2 * rank);
        // Repeated weights have names that stand in no table.
        const uint64_t bytes = attend_text_length(binding.name) + 1;
        char* name = carver.take<char>(bytes);
        if (name) attend_copy_sized(name, static_cast<uint32_t>(bytes), binding.name, static_cast<uint32_t>(bytes));
        if (weights) {
            tensors[next] = *binding.tensor;
            for (uint64_t axis = 0; axis < rank; ++axis) {
                extents[axis] = binding.tensor->shape[axis];
                extents[rank + axis] = binding.tensor->strides[axis];
            }
            tensors[next].shape = extents;
            tensors[next].strides = extents + rank;
            weights[next] = {sizeof(attend_binding), 0, "", &tensors[next]};
            weights[next].name = name;
        }
        ++next;
    }
    if (plan) {
        plan->values = {values, from.count, sizeof(attend_value)};
        plan->weights = {weights, weight_count, sizeof(attend_binding)};
    }
}

struct OptionBuffer {
    alignas(64) unsigned char bytes[2048];
};

inline attend_status check(const attend_lib* lib, const MechanismEntry& entry, const attend_plan_desc* given,
                           attend_error* error, OptionBuffer& options) {
    (void)lib;
    if (attend_status status = attend_check_blocks(given->next, nullptr, error)) return status;
    attend_plan_desc desc;
    attend_copy_sized(&desc, sizeof desc, given, given->struct_size);
    if (attend_status status = check_sizes(entry, desc, error)) return status;
    for (uint32_t at = 0; at < sizeof options.bytes; ++at) options.bytes[at] = 0;
    if (attend_status status = read_options(entry, desc.options, options.bytes, error)) return status;
    const PlanArgs args{&desc, &desc.options};
    return entry.check ? entry.check(options.bytes, args, error) : ATTEND_OK;
}

inline attend_status make_plan(attend_lib* lib, const MechanismEntry& entry, const attend_plan_desc* given,
                               attend_plan** out, attend_error* error) {
    *out = nullptr;
    OptionBuffer scratch;
    if (attend_status status = check(lib, entry, given, error, scratch)) return status;
    attend_plan_desc desc;
    attend_copy_sized(&desc, sizeof desc, given, given->struct_size);

    Carver counter(nullptr);
    counter.take<attend_plan>(1);
    counter.take<unsigned char>(entry.options_size);
    counter.take<char>(warnings_room(entry));
    keep(counter, entry, desc, nullptr);
    const attend_host* host = lib->host;
    void* block = host->alloc(host, counter.used(), 64);
    if (!block) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the plan", nullptr);
    Carver carver(block);
    auto* plan = new (carver.take<attend_plan>(1)) attend_plan{};
    plan->host = host;
    plan->entry = &entry;
    plan->variant = lib->isa->name;
    plan->block_bytes = counter.used();
    plan->score_rows = -1;
    if (const attend_tensor* scores = attend_find(&desc.bindings, ATTEND_SCORES))
        if (scores->ndim >= 2) plan->score_rows = scores->shape[scores->ndim - 2];
    attend_plan_desc_copy(&plan->desc, &desc);
    plan->options = carver.take<unsigned char>(entry.options_size);
    char* warnings = carver.take<char>(warnings_room(entry));
    keep(carver, entry, desc, plan);
    attend_status status = read_options(entry, plan->values, plan->options, error);
    write_warnings(entry, plan->values, desc.bindings, warnings, warnings_room(entry));
    plan->warnings = *warnings ? warnings : nullptr;

    attend_plan_desc with_weights = desc;
    with_weights.options = plan->values;
    const PlanArgs args{&with_weights, &plan->values};
    if (status == ATTEND_OK) {
        plan->workspace_bytes = entry.workspace ? entry.workspace(plan->options, args) : 0;
        plan->prepared_bytes = entry.prepared_bytes ? entry.prepared_bytes(plan->options, args) : 0;
        if (plan->prepared_bytes) {
            plan->prepared = host->alloc(host, plan->prepared_bytes, 64);
            const attend_context context{host, nullptr, nullptr, 0, error, 1, 0};
            status = plan->prepared
                         ? entry.prepare(plan->options, args, plan->prepared, context)
                         : attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for prepared weights", nullptr);
        }
    }
    if (status != ATTEND_OK) {
        if (plan->prepared) host->release(host, plan->prepared, plan->prepared_bytes, 64);
        host->release(host, block, counter.used(), 64);
        return status;
    }
    *out = plan;
    return ATTEND_OK;
}

inline attend_status plan_info(const attend_plan* plan, attend_plan_info* to) noexcept {
    attend_plan_info info{};
    info.workspace_align = 64;
    info.workspace_bytes = plan->workspace_bytes;
    info.persistent_bytes = plan->block_bytes + plan->prepared_bytes;
    info.variant = plan->variant;
    info.warnings = plan->warnings;
    return attend_write_plan_info(to, &info);
}

inline void destroy_plan(attend_plan* plan) noexcept {
    const attend_host* host = plan->host;
    if (plan->prepared) host->release(host, plan->prepared, plan->prepared_bytes, 64);
    host->release(host, plan, plan->block_bytes, 64);
}

inline attend_status check_lengths(const MechanismEntry& entry, const attend_tensor* lengths, int64_t batch,
                                   int64_t extent, const char* name, attend_error* error) {
    if (!lengths) return ATTEND_OK;
    for (int64_t item = 0; item < batch; ++item) {
        const int64_t at = item * lengths->strides[0];
        const int64_t length = lengths->dtype_bits == 32 ? static_cast<const int32_t*>(lengths->data)[at]
                                                         : static_cast<const int64_t*>(lengths->data)[at];
        if (length < 0 || length > extent)
            return fail(error, ATTEND_BAD_SHAPE,
                        Message{} << entry.name << ": " << name << "[" << item << "] is " << length
                                  << "; accepted: 0 to " << extent,
                        name);
    }
    return ATTEND_OK;
}

// rows.count 0: the whole call; else rows of the scores.
inline attend_status run_call(const attend_plan* plan, const attend_exec* call, const ScoreRows& rows,
                              const attend_tensor* scores, attend_error* error) {
    const MechanismEntry& entry = *plan->entry;
    if (call->workspace_bytes < plan->workspace_bytes || (plan->workspace_bytes && !call->workspace))
        return fail(error, ATTEND_WORKSPACE_TOO_SMALL,
                    Message{} << entry.name << ": workspace of " << static_cast<int64_t>(call->workspace_bytes)
                              << " bytes; needed: " << static_cast<int64_t>(plan->workspace_bytes),
                    "workspace");
    if (attend_status status = attend_check_blocks(call->next, ATTEND_EXT_DYNAMIC_ROWS, error)) return status;
    ForwardArgs args{};
    args.desc = &plan->desc;
    const attend_tensor** roles[] = {&args.query,  &args.key,  &args.value, &args.output,        &args.lse,
                                     &args.scores, &args.mask, &args.bias,  &args.query_lengths, &args.key_lengths};
    for (uint32_t at = 0; at < call->bindings.count; ++at) {
        const attend_binding* binding = attend_binding_at(&call->bindings, at);
        if (binding->role >= ATTEND_Q && binding->role <= ATTEND_K_LENGTHS) *roles[binding->role - 1] = binding->tensor;
    }
    bool query_needed = true;
    for (uint32_t at = 0; at < entry.port_count; ++at)
        if (entry.ports[at].role == ATTEND_Q) query_needed = (entry.ports[at].flags & ATTEND_OPTIONAL) == 0;
    if (rows.count > 0) {
        args.output = args.lse = nullptr;
        args.scores = scores;
        args.rows = rows;
    }
    if ((query_needed && !args.query) || (!args.output && rows.count == 0))
        return fail(error, ATTEND_INVALID_ARGUMENT,
                    Message{} << entry.name << (query_needed ? ": query and output" : ": output") << " must be bound",
                    "bindings");
    const attend_plan_desc& desc = plan->desc;
    if (attend_status status = check_lengths(entry, args.query_lengths, desc.batch, desc.q_len, "query_lengths", error))
        return status;
    if (attend_status status = check_lengths(entry, args.key_lengths, desc.batch, desc.kv_len, "key_lengths", error))
        return status;
    args.bindings = &call->bindings;
    args.weights = &plan->weights;
    args.values = &plan->values;
    args.prepared = plan->prepared;
    args.exec = call;
    const attend_context context{
        plan->host, call->call, call->workspace, call->workspace_bytes, error, plan->desc.max_workers, 0};
    return entry.forward(plan->options, args, context);
}

inline attend_status execute(const attend_plan* plan, const attend_exec* call, attend_error* error) {
    return run_call(plan, call, ScoreRows{}, nullptr, error);
}

// The scores of the call get the extents of all weights, with the rows asked for where they belong.
inline attend_status score_rows(const attend_plan* plan, const attend_exec* call, const ScoreRows& rows,
                                attend_error* error) {
    const int64_t first = rows.first, count = rows.count;
    const MechanismEntry& entry = *plan->entry;
    const auto refuse = [&](Message& text, const char* where) {
        return fail(error, ATTEND_INVALID_ARGUMENT, text, where);
    };
    Message text;
    text << entry.name << ": ";
    if (plan->score_rows < 0)
        return refuse(text << "the plan was made without scores; accepted: a plan for which they are described",
                      "scores");
    if (first < 0 || count < 1 || first > plan->score_rows || count > plan->score_rows - first)
        return refuse(text << "rows " << first << " to " << (first + count)
                           << " of the scores; accepted: at least one of 0 to " << plan->score_rows,
                      "rows");
    const attend_tensor* given = nullptr;
    for (uint32_t at = 0; at < call->bindings.count; ++at) {
        const attend_binding* binding = attend_binding_at(&call->bindings, at);
        if (binding->role == ATTEND_SCORES) given = binding->tensor;
    }
    if (!given || given->ndim < 2 || given->ndim > 4 || given->shape[given->ndim - 2] != count)
        return refuse(text << "scores must be bound with " << count << " rows", "scores");
    int64_t shape[4];
    for (int32_t axis = 0; axis < given->ndim; ++axis) shape[axis] = given->shape[axis];
    shape[given->ndim - 2] = plan->score_rows;
    attend_tensor whole = *given;
    whole.shape = shape;
    // Nothing before the first row is touched; as numbers, since no such place need exist.
    const int64_t ahead = first * given->strides[given->ndim - 2] * (given->dtype_bits / 8);
    whole.data = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(given->data) - static_cast<uintptr_t>(ahead));
    return run_call(plan, call, rows, &whole, error);
}

}  // namespace attend::author

#include "attend/author/key_cache.hpp"

namespace attend::author {

// `check` and friends get no handle on the mechanism but their own address, so each mechanism has its own functions.
template <const IsaSet* sets, uint32_t index>
struct Trampolines {
    static const MechanismEntry& entry(const attend_lib* lib) { return *lib->isa->entries[index]; }
    static attend_status check(const attend_lib* lib, const attend_plan_desc* desc, attend_error* error) noexcept {
        OptionBuffer options;
        return guarded(error, [&] { return author::check(lib, entry(lib), desc, error, options); });
    }
    static attend_status plan(attend_lib* lib, const attend_plan_desc* desc, attend_plan** out,
                              attend_error* error) noexcept {
        return guarded(error, [&] { return make_plan(lib, entry(lib), desc, out, error); });
    }
    static attend_status execute(const attend_plan* plan, const attend_exec* call, attend_error* error) noexcept {
        return guarded(error, [&] { return author::execute(plan, call, error); });
    }
    static attend_status rows_of_scores(const attend_plan* plan, const attend_exec* call, int64_t first, int64_t count,
                                        attend_error* error) noexcept {
        return guarded(error, [&] { return author::score_rows(plan, call, {first, count, false}, error); });
    }
    static attend_status rows_of_logits(const attend_plan* plan, const attend_exec* call, int64_t first, int64_t count,
                                        attend_error* error) noexcept {
        return guarded(error, [&] { return author::score_rows(plan, call, {first, count, true}, error); });
    }
    static attend_status predict(const attend_lib* lib, const attend_plan_desc* given, attend_cost* cost) noexcept {
        OptionBuffer options;
        if (attend_status status = author::check(lib, entry(lib), given, nullptr, options)) return status;
        attend_plan_desc desc;
        attend_copy_sized(&desc, sizeof desc, given, given->struct_size);
        attend_cost result{sizeof(attend_cost), 0, 0, 0, 0, 0};
        const PlanArgs args{&desc, &desc.options};
        if (!entry(lib).cost) return ATTEND_UNSUPPORTED;
        entry(lib).cost(options.bytes, args, result);
        if (entry(lib).workspace)
            result.workspace_bytes = static_cast<double>(entry(lib).workspace(options.bytes, args));
        const uint32_t room = cost->struct_size;
        attend_copy_sized(cost, room, &result, sizeof result);
        cost->struct_size = room;
        return ATTEND_OK;
    }
    static double error_bound(const attend_lib* lib, const attend_plan_desc* given) noexcept {
        OptionBuffer options;
        if (author::check(lib, entry(lib), given, nullptr, options) != ATTEND_OK) return __builtin_huge_val();
        attend_plan_desc desc;
        attend_copy_sized(&desc, sizeof desc, given, given->struct_size);
        return entry(lib).error_bound(options.bytes, PlanArgs{&desc, &desc.options});
    }
    static attend_status pattern(const attend_lib* lib, const attend_plan_desc* given, int64_t head, int64_t first_row,
                                 int64_t num_rows, int64_t rows_at_once, attend_pattern_visit_fn visit, void* visitor,
                                 attend_error* error) noexcept {
        return guarded(error, [&]() -> attend_status {
            OptionBuffer options;
            if (attend_status status = author::check(lib, entry(lib), given, error, options)) return status;
            attend_plan_desc desc;
            attend_copy_sized(&desc, sizeof desc, given, given->struct_size);
            desc.max_workers = 1;
            const PlanArgs args{&desc, &desc.options};
            const uint64_t bytes = entry(lib).workspace ? entry(lib).workspace(options.bytes, args) : 0;
            void* memory = bytes > 0 ? lib->host->alloc(lib->host, bytes, 64) : nullptr;
            if (bytes > 0 && memory == nullptr)
                return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory for the pattern of a call", "pattern");
            const attend_context context{lib->host, nullptr, memory, bytes, error, 1, 0};
            const PatternArgs asked{head, first_row, num_rows, rows_at_once, visit, visitor};
            const attend_status status = entry(lib).pattern(options.bytes, args, asked, context);
            if (memory != nullptr) lib->host->release(lib->host, memory, bytes, 64);
            return status;
        });
    }
    static attend_status create(attend_lib* lib, const attend_plan_desc* steps, const attend_kv_cache_desc* desc,
                                attend_kv_cache** out, attend_error* error) noexcept {
        return guarded(error, [&] { return create_cache(lib, entry(lib), steps, desc, out, error); });
    }
    static constexpr attend_kv_cache_extension kv_cache_extension{sizeof(attend_kv_cache_extension),
                                                                  0,
                                                                  create,
                                                                  destroy_cache,
                                                                  append_to_cache,
                                                                  truncate_cache,
                                                                  fork_cache,
                                                                  length_in_cache,
                                                                  cache_info,
                                                                  step_workspace,
                                                                  step_of_cache};
    static constexpr attend_pattern_extension pattern_extension{sizeof(attend_pattern_extension), 0, pattern};
    static constexpr attend_scores_extension scores_extension{sizeof(attend_scores_extension), 0, rows_of_scores,
                                                              rows_of_logits};
    static constexpr attend_scores_extension weights_alone{sizeof(attend_scores_extension), 0, rows_of_scores, nullptr};
    static constexpr attend_cost_extension cost_extension{sizeof(attend_cost_extension), 0, predict};
    static constexpr attend_tolerance_extension tolerance_extension{sizeof(attend_tolerance_extension), 0, error_bound};
    static const void* get_extension(const attend_lib* lib, const char* id) noexcept {
        if (attend_text_equal(id, ATTEND_EXT_COST) && entry(lib).cost) return &cost_extension;
        if (attend_text_equal(id, ATTEND_EXT_TOLERANCE) && entry(lib).error_bound) return &tolerance_extension;
        if (attend_text_equal(id, ATTEND_EXT_PATTERN) && entry(lib).pattern) return &pattern_extension;
        if (attend_text_equal(id, ATTEND_EXT_SCORES) && entry(lib).score_rows != ScoreStages::none)
            return entry(lib).score_rows == ScoreStages::weights ? &weights_alone : &scores_extension;
        if (attend_text_equal(id, ATTEND_EXT_KV_CACHE) && entry(lib).write_rows) return &kv_cache_extension;
        if (attend_text_equal(id, ATTEND_EXT_GUIDE) && entry(lib).guide.struct_size > 0) return &entry(lib).guide;
        return nullptr;
    }
    static void describe(const attend_lib& lib, attend_mechanism& to) {
        const MechanismEntry& from = entry(&lib);
        to = attend_mechanism{};
        to.struct_size = sizeof(attend_mechanism);
        to.revision = from.revision;
        to.name = from.name;
        to.category = from.category;
        to.title = from.title;
        to.summary = from.summary;
        to.reference = from.reference;
        to.time_complexity = from.time_complexity;
        to.space_complexity = from.space_complexity;
        to.caps = from.caps;
        to.dtypes = from.dtypes;
        to.acc_dtypes = ATTEND_F32;
        to.numerics = from.numerics;
        to.options = {from.options, from.option_count, sizeof(OptionRow)};
        to.ports = {from.ports, from.port_count, sizeof(attend_port)};
        to.check = check;
        to.plan = plan;
        to.plan_info = author::plan_info;
        to.execute = execute;
        to.plan_destroy = author::destroy_plan;
        to.get_extension = get_extension;
    }
};

template <const IsaSet* sets, uint32_t... index>
attend_status open_library(const attend_host* host, attend_lib** out, attend_error* error, uint32_t set_count,
                           Indices<index...>) {
    const IsaSet* chosen = nullptr;  // sets are listed from the narrowest on
    for (uint32_t at = 0; at < set_count; ++at)
        if ((host->cpu->isa & sets[at].needs) == sets[at].needs) chosen = &sets[at];
    if (!chosen)
        return attend_fail(error, ATTEND_UNSUPPORTED, "no instruction set of this plugin is permitted on this CPU",
                           "cpu");
    constexpr uint32_t count = sizeof...(index);
    void* memory = host->alloc(host, sizeof(attend_lib) + sizeof(attend_mechanism) * count, 64);
    if (!memory) return attend_fail(error, ATTEND_OUT_OF_MEMORY, "no memory to open the plugin", nullptr);
    auto* lib = new (memory) attend_lib{};
    auto* mechanisms = reinterpret_cast<attend_mechanism*>(static_cast<char*>(memory) + sizeof(attend_lib));
    lib->host = host;
    lib->isa = chosen;
    lib->count = count;
    lib->mechanisms = mechanisms;
    (Trampolines<sets, index>::describe(*lib, *new (&mechanisms[index]) attend_mechanism{}), ...);
    *out = lib;
    return ATTEND_OK;
}

inline void close_library(attend_lib* lib) noexcept {
    lib->host->release(lib->host, lib, sizeof(attend_lib) + sizeof(attend_mechanism) * lib->count, 64);
}
inline uint32_t mechanism_count(const attend_lib* lib) noexcept { return lib->count; }
inline const attend_mechanism* mechanism_at(const attend_lib* lib, uint32_t at) noexcept {
    return at < lib->count ? &lib->mechanisms[at] : nullptr;
}

}  // namespace attend::author

#ifndef ATTEND_MECHANISMS
#error "define ATTEND_MECHANISMS(X) as X(first) X(second) ... before including plugin.hpp"
#endif
#define ATTEND_DECLARE_ENTRY(id) extern const ::attend::author::MechanismEntry id##_entry;
#define ATTEND_ENTRY_ADDRESS(id) &id##_entry,
#define ATTEND_COUNT_ENTRY(id) +1
#define ATTEND_DECLARE_SET(isa)                                                                                 \
    namespace isa {                                                                                             \
    ATTEND_MECHANISMS(ATTEND_DECLARE_ENTRY)                                                                     \
    static const ::attend::author::MechanismEntry* const entries[] = {ATTEND_MECHANISMS(ATTEND_ENTRY_ADDRESS)}; \
    }
#define ATTEND_LIST_SET(isa) {#isa, ATTEND_ISA_NEEDS_##isa, isa::entries},

// The arguments are designated initialisers of attend_plugin, in its order, from .id on.
#define ATTEND_CPP_PLUGIN(...)                                                                                       \
    namespace attend {                                                                                               \
    ATTEND_FOR_EACH_ISA(ATTEND_DECLARE_SET)                                                                          \
    static constexpr author::IsaSet isa_sets[] = {ATTEND_FOR_EACH_ISA(ATTEND_LIST_SET)};                             \
    static attend_status open_plugin(const attend_host* host, attend_lib** out, attend_error* error) noexcept {      \
        return author::open_library<isa_sets>(host, out, error, sizeof isa_sets / sizeof isa_sets[0],                \
                                              author::MakeIndices<0 ATTEND_MECHANISMS(ATTEND_COUNT_ENTRY)>::Type{}); \
    }                                                                                                                \
    static constexpr attend_plugin plugin_table = {ATTEND_PLUGIN_PREFIX,                                             \
                                                   __VA_ARGS__ __VA_OPT__(, ).required_isa = ATTEND_REQUIRED_ISA,    \
                                                   .open = open_plugin,                                              \
                                                   .close = author::close_library,                                   \
                                                   .mechanism_count = author::mechanism_count,                       \
                                                   .mechanism_at = author::mechanism_at};                            \
    }                                                                                                                \
    ATTEND_PLUGIN_NOTE                                                                                               \
    extern "C" const attend_plugin* attend_plugin_entry(const attend_hello*) noexcept { return &attend::plugin_table; }
