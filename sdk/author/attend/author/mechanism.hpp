// SPDX-License-Identifier: Apache-2.0
// What a mechanism file includes. It is compiled once per instruction set, without exceptions, and everything in it
// lives in namespace attend::ATTEND_ISA. A mechanism is an Options struct, tables of options and ports, and functions:
//
//   struct Options { int64_t window_size; ... };
//   constexpr OptionRow option_table[] = { option_int(ATTEND_FIELD(window_size), "128", ...), ... };
//   constexpr attend_port port_table[] = { input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "queries"), ... };
//   attend_status forward(const Options& options, const ForwardArgs& args, const Context& context);
//   ATTEND_MECHANISM(local, described<check, workspace, forward, cost>({.name = "local-attention", ...},
//                                                                      option_table, port_table))
//
// plugin.cpp lists the mechanism by its first argument (plugin.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "attend/author/options.hpp"

namespace attend::ATTEND_ISA {

using author::ForwardArgs;
using author::MechanismEntry;
using author::PatternArgs;
using author::PlanArgs;
using Context = attend_context;

// erased<f>: f with its Options behind a plain pointer, as MechanismEntry wants it.
template <auto function>
struct Erased;
template <class Options, attend_status (*function)(const Options&, const PlanArgs&, attend_error*)>
struct Erased<function> {
    static attend_status call(const void* options, const PlanArgs& args, attend_error* error) {
        return function(*static_cast<const Options*>(options), args, error);
    }
};
template <class Options, uint64_t (*function)(const Options&, const PlanArgs&)>
struct Erased<function> {
    static uint64_t call(const void* options, const PlanArgs& args) {
        return function(*static_cast<const Options*>(options), args);
    }
};
template <class Options, double (*function)(const Options&, const PlanArgs&)>
struct Erased<function> {
    static double call(const void* options, const PlanArgs& args) {
        return function(*static_cast<const Options*>(options), args);
    }
};
template <class Options, attend_status (*function)(const Options&, const PlanArgs&, void*, const Context&)>
struct Erased<function> {
    static attend_status call(const void* options, const PlanArgs& args, void* memory, const Context& context) {
        return function(*static_cast<const Options*>(options), args, memory, context);
    }
};
template <class Options, attend_status (*function)(const Options&, const ForwardArgs&, const Context&)>
struct Erased<function> {
    static attend_status call(const void* options, const ForwardArgs& args, const Context& context) {
        return function(*static_cast<const Options*>(options), args, context);
    }
};
template <class Options, void (*function)(const Options&, const PlanArgs&, attend_cost&)>
struct Erased<function> {
    static void call(const void* options, const PlanArgs& args, attend_cost& cost) {
        function(*static_cast<const Options*>(options), args, cost);
    }
};
template <class Options, attend_status (*function)(const Options&, const PlanArgs&, const PatternArgs&, const Context&)>
struct Erased<function> {
    static attend_status call(const void* options, const PlanArgs& args, const PatternArgs& asked,
                              const Context& context) {
        return function(*static_cast<const Options*>(options), args, asked, context);
    }
};
template <auto function>
constexpr auto erased = &Erased<function>::call;

// What a catalogue says about a mechanism. `caps` and the rest have the values of exact softmax attention.
struct About {
    const char *name, *category, *title, *summary, *reference, *time, *space;
    uint64_t caps = softmax_caps | position_caps, dtypes = stored_floats;
    uint32_t numerics = ATTEND_EXACT, revision = 1;
    // The guide (attend_guide_extension): formula, cost in words, when to choose it, a command that runs.
    const char *formula = nullptr, *cost = nullptr, *use = nullptr, *example = nullptr;
    // Offers caches of keys and values: write_cache_rows of author/cache_rows.hpp.
    bool (*write_rows)(const author::CacheRows& rows) = nullptr;
    // How far it honours ForwardArgs::rows, as everything does that hands its scores to the tile engine through a TileCall.
    author::ScoreStages score_rows = author::ScoreStages::weights_and_logits;
};

// Puts a function of a mechanism in the place that its type belongs to. Of two functions that count bytes the first is
// workspace, the second prepared_bytes; `has_workspace` tells them apart, because with -fsanitize=undefined GCC refuses
// to compare the address of a function with null in a constant expression.
template <auto function>
consteval void install(MechanismEntry& entry, bool& has_workspace) {
    constexpr auto call = erased<function>;
    if constexpr (requires { entry.check = call; })
        entry.check = call;
    else if constexpr (requires { entry.workspace = call; }) {
        (has_workspace ? entry.prepared_bytes : entry.workspace) = call;
        has_workspace = true;
    } else if constexpr (requires { entry.prepare = call; })
        entry.prepare = call;
    else if constexpr (requires { entry.forward = call; })
        entry.forward = call;
    else if constexpr (requires { entry.cost = call; })
        entry.cost = call;
    else if constexpr (requires { entry.pattern = call; })
        entry.pattern = call;
    else
        entry.error_bound = call;
}

template <auto function>
struct OptionsOf;
template <class Options, attend_status (*function)(const Options&, const ForwardArgs&, const Context&)>
struct OptionsOf<function> {
    static constexpr uint32_t size = sizeof(Options);
};
template <auto function>
consteval uint32_t options_size() {
    if constexpr (requires { OptionsOf<function>::size; })
        return OptionsOf<function>::size;
    else
        return 0;
}

// The entry of a mechanism from its functions (check, workspace, forward, cost, error_bound, pattern, in any order; forward alone
// must be there) and its tables.
template <auto... functions, uint32_t num_options, uint32_t num_ports>
consteval MechanismEntry described(const About& about, const OptionRow (&options)[num_options],
                                   const attend_port (&ports)[num_ports]) {
    MechanismEntry entry{};
    entry.name = about.name;
    entry.category = about.category;
    entry.title = about.title;
    entry.summary = about.summary;
    entry.reference = about.reference;
    entry.time_complexity = about.time;
    entry.space_complexity = about.space;
    entry.caps = about.caps;
    entry.dtypes = about.dtypes;
    entry.numerics = about.numerics;
    entry.revision = about.revision;
    entry.guide = {sizeof(attend_guide_extension), 0, about.formula, about.cost, about.use, about.example};
    entry.write_rows = about.write_rows;
    if ((about.caps & ATTEND_CAP_SCORES_OUT) != 0) entry.score_rows = about.score_rows;
    entry.options = options;
    entry.option_count = num_options;
    entry.options_size = (options_size<functions>() + ...);
    entry.ports = ports;
    entry.port_count = num_ports;
    bool has_workspace = false;
    (install<functions>(entry, has_workspace), ...);
    return entry;
}

inline bool was_given(const attend_array& values, const char* name) {
    const attend_value* value = attend_find_option(&values, name);
    return value != nullptr && (value->flags & ATTEND_VALUE_GIVEN) != 0;
}

}  // namespace attend::ATTEND_ISA

// The first two arguments of a row in an option table: option_int(ATTEND_FIELD(window_size), "128", ...).
#define ATTEND_FIELD(field) offsetof(Options, field), #field
#define ATTEND_COUNT_OF(array) (static_cast<uint32_t>(sizeof(array) / sizeof((array)[0])))
#define ATTEND_OPTION_TABLE(Options, table) \
    .options = table, .option_count = ATTEND_COUNT_OF(table), .options_size = static_cast<uint32_t>(sizeof(Options))
#define ATTEND_PORT_TABLE(table) .ports = table, .port_count = ATTEND_COUNT_OF(table)

// Defines the entry that plugin.cpp finds. Stands in namespace attend::ATTEND_ISA, outside the anonymous namespace.
#define ATTEND_MECHANISM(id, ...)           \
    extern const MechanismEntry id##_entry; \
    constexpr MechanismEntry id##_entry = __VA_ARGS__;
