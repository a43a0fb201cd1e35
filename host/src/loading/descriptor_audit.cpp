// SPDX-License-Identifier: Apache-2.0
#include "loading/descriptor_audit.hpp"

#include <algorithm>
#include <limits>
#include <set>

#include "attend/config/json.hpp"
#include "service/port_grammar.hpp"

namespace attend {
namespace {

constexpr std::size_t longest_text = 65536;
constexpr std::uint32_t most_rows = 1024;

LoadFailure bad(std::string sentence) {
    return {"audit", "BAD_DESCRIPTOR", std::move(sentence), "see the descriptor rules of the plugin ABI"};
}

// A text of at most 64 KiB, printable UTF-8; NULL gives an empty text.
std::optional<std::string> read_text(const char* text) {
    if (text == nullptr) return std::string();
    std::size_t length = 0;
    while (length < longest_text && text[length] != '\0') ++length;
    if (length == longest_text) return std::nullopt;
    std::string copy(text, length);
    // A JSON string of it parses only if it is valid UTF-8.
    std::string quoted = "\"";
    for (const char c : copy) {
        if (c == '"' || c == '\\') quoted += '\\';
        quoted += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    quoted += '"';
    if (!parse_json(quoted, "text")) return std::nullopt;
    return copy;
}

// Element `index` of a strided table.
template <class T>
const T* element(const attend_array& table, std::uint32_t index) {
    return reinterpret_cast<const T*>(static_cast<const char*>(table.items) + std::size_t{index} * table.stride);
}

template <class T>
std::optional<LoadFailure> audit_table(const attend_array& table, const std::string& what) {
    if (table.count == 0) return std::nullopt;
    if (table.count > most_rows)
        return bad(what + ": " + std::to_string(table.count) + " rows; accepted: at most 1024");
    if (table.items == nullptr) return bad(what + ": the table is NULL with count " + std::to_string(table.count));
    if (table.stride % 8 != 0 || table.stride < sizeof(T))
        return bad(what + ": stride " + std::to_string(table.stride) + "; accepted: a multiple of 8, at least " +
                   std::to_string(sizeof(T)));
    for (std::uint32_t row = 0; row < table.count; ++row) {
        const std::uint32_t size = element<T>(table, row)->struct_size;
        if (size < sizeof(T) || size > table.stride)
            return bad(what + "[" + std::to_string(row) + "]: struct_size " + std::to_string(size) + "; accepted: " +
                       std::to_string(sizeof(T)) + " up to the stride " + std::to_string(table.stride));
    }
    return std::nullopt;
}

std::optional<LoadFailure> audit_option(const attend_option& from, const std::string& mechanism, OptionSpec& to) {
    const auto name = read_text(from.name), help = read_text(from.help), unit = read_text(from.unit),
               since = read_text(from.since), replaced = read_text(from.replaced_by),
               initial = read_text(from.default_json);
    if (!name || !help || !unit || !since || !replaced || !initial || name->empty())
        return bad(mechanism + ": an option has no name, or a text that is not UTF-8 of at most 64 KiB");
    const std::string what = mechanism + ": option \"" + *name + "\"";
    if (!std::all_of(name->begin(), name->end(),
                     [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }))
        return bad(what + ": accepted: names in snake_case");
    static const OptionType types[] = {OptionType::none,         OptionType::boolean,  OptionType::integer,
                                       OptionType::real,         OptionType::text,     OptionType::enumeration,
                                       OptionType::integer_list, OptionType::real_list};
    if (from.type < ATTEND_TYPE_BOOL || from.type > ATTEND_TYPE_FLOAT_LIST)
        return bad(what + ": type " + std::to_string(from.type) + "; accepted: 1 to 7");
    to.name = *name;
    to.help = *help;
    to.unit = *unit;
    to.since = *since;
    to.replaced_by = *replaced;
    to.type = types[from.type];
    to.min = from.min;
    to.max = from.max;
    to.step = from.step;
    to.required = (from.flags & ATTEND_OPTION_REQUIRED) != 0;
    to.tunable = (from.flags & ATTEND_OPTION_TUNABLE) != 0;
    to.affects_numerics = (from.flags & ATTEND_OPTION_AFFECTS_NUMERICS) != 0;
    to.expert = (from.flags & ATTEND_OPTION_EXPERT) != 0;
    to.deprecated = (from.flags & ATTEND_OPTION_DEPRECATED) != 0;
    to.scalar_ok = (from.flags & ATTEND_OPTION_SCALAR_OK) != 0;
    to.rows = (from.flags & ATTEND_OPTION_ROWS) != 0;
    if (to.rows && (to.type != OptionType::integer_list || from.choices != nullptr || to.scalar_ok))
        return bad(what + ": rows; accepted: in a list of integers without choices, never as one number");
    const bool ranged = to.type == OptionType::integer || to.type == OptionType::real ||
                        to.type == OptionType::integer_list || to.type == OptionType::real_list;
    if (ranged && !(to.min <= to.max)) return bad(what + ": its range is empty");
    if (to.type == OptionType::enumeration || (to.type == OptionType::integer_list && from.choices != nullptr)) {
        if (from.choices == nullptr) return bad(what + ": an enumeration without choices");
        for (std::size_t at = 0; from.choices[at] != nullptr; ++at) {
            const auto choice = read_text(from.choices[at]);
            if (!choice || choice->empty() || at >= most_rows)
                return bad(what + ": a choice is empty, not UTF-8, or there are too many");
            to.choices.push_back(*choice);
        }
        if (to.choices.empty()) return bad(what + ": an enumeration without choices");
        // A list's elements are indices, whose range a plugin checks again.
        if (to.type == OptionType::integer_list &&
            (to.min != 0.0 || to.max != static_cast<double>(to.choices.size() - 1)))
            return bad(what + ": the range of a list of words; accepted: 0 to " +
                       std::to_string(to.choices.size() - 1) + ", the indices of its choices");
    }
    if (!initial->empty()) {
        Result<Json> value = parse_json(*initial, what + ": default");
        if (!value) return bad(value.error().message);
        to.default_value = std::move(*value);
        if (Result<OptionValue> checked = convert_option(what + ": its default", to, *to.default_value); !checked)
            return bad(checked.error().message);
    }
    return std::nullopt;
}

std::optional<LoadFailure> audit_port(const attend_port& from, const std::string& mechanism, PortRecord& to) {
    const auto name = read_text(from.name), shape = read_text(from.shape), help = read_text(from.help),
               init = read_text(from.init);
    if (!name || !shape || !help || !init || name->empty())
        return bad(mechanism + ": a port has no name, or a text that is not UTF-8 of at most 64 KiB");
    const std::string what = mechanism + ": port \"" + *name + "\"";
    to.name = *name;
    to.shape = *shape;
    to.help = *help;
    to.init = *init;
    to.role = from.role;
    to.flags = from.flags;
    to.min_align = from.min_align;
    to.dtypes = from.dtypes;
    const std::uint32_t kinds = from.flags & (ATTEND_INPUT | ATTEND_OUTPUT | ATTEND_WEIGHT);
    if (kinds == 0 || (kinds & (kinds - 1)) != 0) return bad(what + ": accepted: exactly one of INPUT, OUTPUT, WEIGHT");
    if (from.role > ATTEND_CU_SEQ_K) return bad(what + ": role " + std::to_string(from.role) + "; accepted: 0 to 12");
    const bool result = from.role == ATTEND_OUT || from.role == ATTEND_LSE || from.role == ATTEND_SCORES;
    if (from.role != 0 && kinds != (result ? ATTEND_OUTPUT : ATTEND_INPUT))
        return bad(what + ": role " + std::to_string(from.role) +
                   " on the wrong side; accepted: " + (result ? "OUTPUT" : "INPUT") + " with this role");
    if (from.dtypes == 0) return bad(what + ": takes no data type");
    if (const Result<PortShape> parsed = PortShape::parse(*shape); !parsed)
        return bad(what + ": " + parsed.error().message);
    if (!init->empty())
        if (const Result<PortInit> parsed = PortInit::parse(*init); !parsed)
            return bad(what + ": " + parsed.error().message);
    return std::nullopt;
}

// What the plan description carries for every mechanism needs no row of its own: a capability says that the mechanism
// honours it, and the option follows.
void add_common_options(MechanismRecord& to) {
    constexpr double most = 9007199254740992.0, below_one = 0.99999999999999988, largest_seed = 18446744073709551615.0;
    const auto add = [&](std::uint64_t capability, const char* name, OptionType type, std::optional<Json> initial,
                         double min, double max, const char* help, std::vector<std::string> choices = {}) {
        if ((to.caps & capability) == 0 || to.find_option(name) != nullptr) return;
        OptionSpec spec;
        spec.name = name;
        spec.type = type;
        spec.default_value = std::move(initial);
        spec.min = min;
        spec.max = max;
        spec.help = help;
        spec.choices = std::move(choices);
        to.options.push_back(std::move(spec));
    };
    using enum OptionType;
    add(ATTEND_CAP_CAUSAL, "causal", boolean, Json(false), 0, 1, "hide keys that come after the query");
    add(ATTEND_CAP_CAUSAL, "causal_alignment", enumeration, Json("bottom-right"), 0, 0,
        "position of query i on the key axis: i + Nk - Nq, or i", {"bottom-right", "top-left"});
    add(ATTEND_CAP_CAUSAL, "causal_offset", integer, std::nullopt, -most, most,
        "position of query 0 on the key axis; wins over causal_alignment");
    add(ATTEND_CAP_WINDOW, "window_size", integer, Json(0), 0, most,
        "keys seen on each side of the query, itself excluded; 0: all");
    add(ATTEND_CAP_WINDOW, "window_left", integer, Json(-1), -1, most, "keys seen to the left; -1: unlimited");
    add(ATTEND_CAP_WINDOW, "window_right", integer, Json(-1), -1, most, "keys seen to the right; -1: unlimited");
    add(ATTEND_CAP_SOFTCAP, "softcap", real, Json(0.0), 0, std::numeric_limits<double>::infinity(),
        "c > 0: scores become c * tanh(score / c)");
    add(ATTEND_CAP_DROPOUT, "dropout", real, Json(0.0), 0, below_one, "probability that a weight is dropped");
    add(ATTEND_CAP_DROPOUT, "seed", integer, Json(0), 0, largest_seed, "seed of the dropout bits");
    add(ATTEND_CAP_DROPOUT, "rng_offset", integer, Json(0), 0, 16777215,
        "number of the call in the stream of random bits");
}

// The texts of the guide, if the mechanism has one.
std::optional<LoadFailure> audit_guide(const attend_mechanism& from, const attend_lib* lib, MechanismRecord& to) {
    if (from.get_extension == nullptr) return std::nullopt;
    const auto* guide = static_cast<const attend_guide_extension*>(from.get_extension(lib, ATTEND_EXT_GUIDE));
    if (guide == nullptr) return std::nullopt;
    if (guide->struct_size < sizeof(attend_guide_extension))
        return bad(to.name + ": struct_size of " + ATTEND_EXT_GUIDE + " is " + std::to_string(guide->struct_size) +
                   "; accepted: at least " + std::to_string(sizeof(attend_guide_extension)));
    const auto formula = read_text(guide->formula), cost = read_text(guide->cost), use = read_text(guide->use),
               example = read_text(guide->example);
    if (!formula || !cost || !use || !example)
        return bad(to.name + ": a text of its guide is not UTF-8 of at most 64 KiB");
    to.formula = *formula;
    to.cost = *cost;
    to.use = *use;
    to.example = *example;
    return std::nullopt;
}

}  // namespace

std::optional<LoadFailure> audit_plugin(const attend_plugin* plugin, PluginFacts& facts) {
    constexpr std::size_t prefix = offsetof(attend_plugin, vendor);
    if (plugin == nullptr)
        return LoadFailure{"negotiate", "ABI_MAJOR", "the entry returned no table for this host's ABI",
                           "rebuild the plugin"};
    if (plugin->struct_size < prefix || plugin->magic != ATTEND_MAGIC)
        return LoadFailure{"negotiate", "BAD_DESCRIPTOR", "the entry returned something that is not a plugin table",
                           ""};
    const auto id = read_text(plugin->id), version = read_text(plugin->version);
    if (!id || !version || id->empty() || version->empty()) return bad("the plugin has no id or no version");
    facts.id = *id;
    facts.version = *version;
    if (plugin->abi_major != ATTEND_ABI_MAJOR)
        return LoadFailure{"negotiate", "ABI_MAJOR",
                           *id + " " + *version + " was built for plugin ABI " + std::to_string(plugin->abi_major) +
                               ", this host speaks " + std::to_string(ATTEND_ABI_MAJOR),
                           "rebuild the plugin or update the host"};
    if (plugin->layout_tag != ATTEND_LAYOUT_TAG)
        return LoadFailure{"negotiate", "LAYOUT", *id + ": built for another data layout", "build it for this machine"};
    if (plugin->min_host_minor > ATTEND_ABI_MINOR)
        return LoadFailure{"negotiate", "NEEDS_NEWER_HOST",
                           *id + " needs plugin ABI 1." + std::to_string(plugin->min_host_minor) +
                               ", this host offers 1." + std::to_string(ATTEND_ABI_MINOR),
                           "update the host"};
    if (plugin->struct_size < offsetof(attend_plugin, reserved1))
        return bad(*id + ": its table is shorter than that of ABI 1.0");
    for (const char c : *id)
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_'))
            return bad("plugin id \"" + *id + "\"; accepted: lower-case letters, digits, dots, dashes");
    const auto vendor = read_text(plugin->vendor), license = read_text(plugin->license), url = read_text(plugin->url),
               summary = read_text(plugin->summary), variant = read_text(plugin->variant);
    if (!vendor || !license || !url || !summary || !variant)
        return bad(*id + ": a text is not UTF-8 of at most 64 KiB");
    facts.vendor = *vendor;
    facts.license = *license;
    facts.url = *url;
    facts.summary = *summary;
    facts.variant = *variant;
    facts.required_isa = plugin->required_isa;
    if (plugin->open == nullptr || plugin->close == nullptr || plugin->mechanism_count == nullptr ||
        plugin->mechanism_at == nullptr)
        return bad(*id + ": open, close, mechanism_count or mechanism_at is NULL");
    return std::nullopt;
}

std::optional<LoadFailure> audit_mechanism(const attend_mechanism* from, const attend_lib* lib, MechanismRecord& to) {
    if (from == nullptr) return bad("mechanism_at returned NULL below mechanism_count");
    if (from->struct_size < offsetof(attend_mechanism, reserved1))
        return bad("a mechanism's struct_size is " + std::to_string(from->struct_size) + "; accepted: at least " +
                   std::to_string(sizeof(attend_mechanism)));
    const auto name = read_text(from->name), category = read_text(from->category), title = read_text(from->title),
               summary = read_text(from->summary), reference = read_text(from->reference),
               time = read_text(from->time_complexity), space = read_text(from->space_complexity);
    if (!name || !category || !title || !summary || !reference || !time || !space)
        return bad("a mechanism has a text that is not UTF-8 of at most 64 KiB");
    if (!is_mechanism_name(*name))
        return bad("mechanism name \"" + *name +
                   "\"; accepted: words of a-z and 0-9 joined by dashes, at most 63 bytes");
    const auto known = categories();
    if (std::find(known.begin(), known.end(), *category) == known.end() && category->find('/') == std::string::npos)
        return bad(*name + ": unknown category \"" + *category + "\"");
    if (from->plan == nullptr || from->plan_info == nullptr || from->execute == nullptr ||
        from->plan_destroy == nullptr)
        return bad(*name + ": plan, plan_info, execute or plan_destroy is NULL");
    if (from->numerics < ATTEND_EXACT || from->numerics > ATTEND_OWN_DEFINITION)
        return bad(*name + ": numerics " + std::to_string(from->numerics) + "; accepted: 1 to 3");
    if ((from->dtypes & ATTEND_F32) == 0) return bad(*name + ": does not take float32, which every mechanism must");
    to.name = *name;
    to.category = *category;
    to.title = *title;
    to.summary = *summary;
    to.reference = *reference;
    to.time_complexity = *time;
    to.space_complexity = *space;
    to.caps = from->caps;
    to.dtypes = from->dtypes;
    to.numerics = from->numerics;
    to.revision = from->revision;
    to.functions = from;
    if (auto failure = audit_guide(*from, lib, to)) return failure;
    if (auto failure = audit_table<attend_option>(from->options, *name + ": options")) return failure;
    if (auto failure = audit_table<attend_port>(from->ports, *name + ": ports")) return failure;
    std::set<std::string> seen, outputs;
    for (std::uint32_t row = 0; row < from->options.count; ++row) {
        OptionSpec spec;
        if (auto failure = audit_option(*element<attend_option>(from->options, row), *name, spec)) return failure;
        if (!seen.insert(spec.name).second) return bad(*name + ": option \"" + spec.name + "\" is listed twice");
        to.options.push_back(std::move(spec));
    }
    to.own_options = to.options.size();
    add_common_options(to);
    seen.clear();
    bool has_output = false;
    for (std::uint32_t row = 0; row < from->ports.count; ++row) {
        PortRecord port;
        if (auto failure = audit_port(*element<attend_port>(from->ports, row), *name, port)) return failure;
        // An output may carry the name of an input: a graph goes in and comes out.
        if (!(port.flags & ATTEND_OUTPUT ? outputs : seen).insert(port.name).second)
            return bad(*name + ": port \"" + port.name + "\" is listed twice");
        if (port.name.find_first_of("{}") != std::string::npos) {
            const OptionSpec* by = to.find_option(repeated_by(port.name));
            if ((port.flags & ATTEND_WEIGHT) == 0 || by == nullptr || by->type != OptionType::integer)
                return bad(*name + ": port \"" + port.name +
                           "\"; accepted in braces: an integer option, in the name of a weight");
        }
        has_output = has_output || port.role == ATTEND_OUT;
        to.ports.push_back(std::move(port));
    }
    if (!has_output) return bad(*name + ": has no output port");
    return std::nullopt;
}

}  // namespace attend
