// SPDX-License-Identifier: Apache-2.0
// What surrounds the reading of a configuration: files, the built-in one, overrides, schema, and the way back to JSON.
#include "attend/config/config.hpp"

#include <fstream>
#include <limits>
#include <sstream>

#include "attend/config/names.hpp"
#include "config_table.hpp"

namespace attend {
namespace {

using config_table::Setting;

constexpr std::size_t largest_file = std::size_t{16} << 20;

// ---- overriding -----------------------------------------------------------------------------------------------

template <class Section>
std::vector<std::string> paths_of(const std::string& prefix, std::span<const Setting<Section>> settings) {
    std::vector<std::string> paths;
    for (const auto& setting : settings) paths.push_back(prefix + setting.spec.name);
    return paths;
}

template <class Section, class ToValue>
bool try_section(Section& section, std::span<const Setting<Section>> settings, const std::string& name,
                 const std::string& place, ToValue to_value, Result<void>& result) {
    for (const auto& setting : settings) {
        if (setting.spec.name != name) continue;
        const Json value = to_value(setting.spec);
        if (value.is_null() && setting.nullable) {
            config_table::store_nothing(section, setting);
            return true;
        }
        const auto converted = convert_option(place + ":", setting.spec, value);
        if (!converted.ok()) {
            result = converted.error();
        } else if (setting.spec.type == OptionType::text && value.as_string().empty()) {
            result = Error{ErrorCode::option, place + ": is empty; accepted: text (" + setting.spec.help + ")", {}};
        } else {
            config_table::store(section, setting, *converted);
        }
        return true;
    }
    return false;
}

template <class ToValue>
Result<void> override_with(Config& config, std::string_view path, ToValue to_value, Origin origin) {
    const std::string folded = fold_name(path);
    const std::string place = origin.name.empty() ? folded : origin.name;
    const auto below = [&](std::string_view section) {
        return folded.starts_with(section) ? folded.substr(section.size()) : std::string();
    };
    Result<void> result;
    const bool known =
        try_section(config.service, config_table::service_settings(), below("service."), place, to_value, result) ||
        try_section(config.cache, config_table::cache_settings(), below("cache."), place, to_value, result);
    if (!known) {
        std::vector<std::string> paths = paths_of("service.", config_table::service_settings());
        for (std::string& other : paths_of("cache.", config_table::cache_settings())) paths.push_back(std::move(other));
        const std::string nearest = did_you_mean(folded, paths);
        return Error{ErrorCode::option,
                     place + ": unknown setting \"" + std::string(path) + "\"" +
                         (nearest.empty() ? "; accepted: " + join_names(paths) : nearest),
                     {}};
    }
    if (result.ok()) config.origins[folded] = std::move(origin);
    return result;
}

// ---- schema ---------------------------------------------------------------------------------------------------

Json text_schema(const std::string& help) {
    Json schema = Json::object();
    schema.set("description", help).set("type", "string").set("minLength", 1);
    return schema;
}

Json bound(double value, bool integer) { return integer ? Json(static_cast<std::int64_t>(value)) : Json(value); }

template <class Section>
Json setting_schema(const Setting<Section>& setting) {
    const OptionSpec& spec = setting.spec;
    Json schema = Json::object();
    schema.set("description", spec.help);
    const auto type = [&](const char* name) {
        if (setting.nullable) {
            schema.set("type", Json::array().push(name).push("null"));
        } else {
            schema.set("type", name);
        }
    };
    switch (spec.type) {
        case OptionType::boolean: type("boolean"); break;
        case OptionType::enumeration: {
            Json choices = Json::array();
            for (const std::string& choice : spec.choices) choices.push(choice);
            schema.set("enum", std::move(choices));
            break;
        }
        case OptionType::integer:
        case OptionType::real: {
            const bool integer = spec.type == OptionType::integer;
            type(integer ? "integer" : "number");
            if (spec.min == std::numeric_limits<double>::denorm_min()) {
                schema.set("exclusiveMinimum", 0);
            } else if (spec.min > -std::numeric_limits<double>::infinity()) {
                schema.set("minimum", bound(spec.min, integer));
            }
            if (spec.max < std::numeric_limits<double>::infinity()) schema.set("maximum", bound(spec.max, integer));
            break;
        }
        default: type("string"); schema.set("minLength", 1);
    }
    if (spec.default_value) {
        schema.set("default", *spec.default_value);
    } else if (setting.nullable) {
        schema.set("default", Json());
    }
    return schema;
}

template <class Section>
Json section_schema(const std::string& help, std::span<const Setting<Section>> settings) {
    Json properties = Json::object();
    Json required = Json::array();
    for (const auto& setting : settings) {
        properties.set(setting.spec.name, setting_schema(setting));
        if (setting.spec.required) required.push(setting.spec.name);
    }
    Json schema = Json::object();
    schema.set("description", help).set("type", "object").set("properties", std::move(properties));
    if (required.size() > 0) schema.set("required", std::move(required));
    schema.set("additionalProperties", false);
    return schema;
}

Json list_schema(const std::string& help, Json items) {
    Json schema = Json::object();
    schema.set("description", help).set("type", "array").set("items", std::move(items));
    return schema;
}

Json requires_only(const char* present, const char* absent) {
    const auto required = [](const char* name) { return Json::object().set("required", Json::array().push(name)); };
    return required(present).set("not", required(absent));
}

// ---- writing --------------------------------------------------------------------------------------------------

template <class Section>
void list_section(std::vector<ShownSetting>& shown, const Config& config, const std::string& name,
                  const Section& section, std::span<const Setting<Section>> settings) {
    for (const auto& setting : settings) {
        const std::string path = name + "." + setting.spec.name;
        shown.push_back({path, config_table::fetch(section, setting), config.origin_of(path)});
    }
}

Json rules_json(const Config& config) {
    Json rules = Json::array();
    for (const RuleSource& source : config.rule_sources) {
        Json rule = Json::object();
        rule.set("condition", source.condition).set("mechanism", source.mechanism);
        if (!source.options.empty())
            rule.set("options", Json(Json::Object(source.options.begin(), source.options.end())));
        rules.push(std::move(rule));
    }
    return rules;
}

Json targets_json(const Config& config) {
    Json targets = Json::array();
    for (const TargetConfig& target : config.targets) {
        Json object = Json::object();
        for (const auto& setting : config_table::target_settings()) {
            Json value = config_table::fetch(target, setting);
            if (!value.is_null()) object.set(setting.spec.name, std::move(value));
        }
        targets.push(std::move(object));
    }
    return targets;
}

Json dirs_json(const Config& config) {
    Json dirs = Json::array();
    for (const std::string& dir : config.plugins.dirs) dirs.push(dir);
    return dirs;
}

}  // namespace

std::string Origin::text() const {
    switch (kind) {
        case Kind::default_value: return "default";
        case Kind::file: return "file " + name;
        case Kind::environment: return "environment " + name;
        case Kind::flag: return "flag " + name;
    }
    return "default";
}

Origin Config::origin_of(const std::string& path) const {
    const auto found = origins.find(path);
    return found == origins.end() ? Origin{} : found->second;
}

Result<LoadedConfig> load_config_file(const std::string& path, const RuleCheck& check) {
    std::ifstream stream(path, std::ios::binary);
    std::string text;
    char buffer[65536];
    while (stream && text.size() <= largest_file) {
        stream.read(buffer, sizeof buffer);
        text.append(buffer, static_cast<std::size_t>(stream.gcount()));
    }
    // A folder opens as a stream and then refuses to be read.
    if (!stream.eof() && text.size() <= largest_file) {
        return Error{ErrorCode::io, path + ": cannot be read; accepted: a readable configuration file", {}};
    }
    if (text.size() > largest_file) {
        return Error{
            ErrorCode::input, path + ": is larger than 16 MiB; accepted: a configuration file up to that size", {}};
    }
    return load_config(text, path, check);
}

LoadedConfig load_default_config(const RuleCheck& check) {
    LoadedConfig loaded = load_config(default_config_text(), "built-in configuration", check);
    loaded.config.origins.clear();
    loaded.config.shipped = true;
    return loaded;
}

std::vector<Error> check_rules(const Config& config, const RuleCheck& check) {
    std::vector<Error> problems;
    for (std::size_t i = 0; i < config.rule_sources.size(); ++i) {
        const RuleSource& source = config.rule_sources[i];
        if (source.mechanism.empty()) continue;
        for (Error& problem :
             check(source.mechanism, source.options, config.file + ": rules[" + std::to_string(i) + "]")) {
            problems.push_back(std::move(problem));
        }
    }
    return problems;
}

std::vector<MechanismReference> mechanism_references(const Config& config) {
    std::vector<MechanismReference> references{{"service.default_mechanism", config.service.default_mechanism},
                                               {"service.fallback_mechanism", config.service.fallback_mechanism}};
    for (const MechanismConfig& mechanism : config.mechanisms) {
        references.push_back({"mechanisms." + mechanism.name, mechanism.name});
    }
    for (std::size_t i = 0; i < config.targets.size(); ++i) {
        const std::string path = "targets[" + std::to_string(i) + "]";
        references.push_back({path + ".mechanism", config.targets[i].mechanism});
        if (config.targets[i].against != "materialised") {
            references.push_back({path + ".against", config.targets[i].against});
        }
    }
    return references;
}

Result<void> override_setting(Config& config, std::string_view path, std::string_view text, Origin origin) {
    return override_with(
        config, path, [&](const OptionSpec& spec) { return parse_option_text(spec, text); }, std::move(origin));
}

Result<void> override_setting_json(Config& config, std::string_view path, const Json& value, Origin origin) {
    return override_with(
        config, path, [&](const OptionSpec&) { return value; }, std::move(origin));
}

Json config_schema() {
    Json rule = section_schema("one rule", config_table::rule_settings());
    rule.find("properties")->find("condition")->set("maxLength", max_condition_bytes);
    rule.find("properties")
        ->set("options", Json::object()
                             .set("description", "options of the mechanism; options of the call come before them")
                             .set("type", "object"));
    Json target = section_schema("one target", config_table::target_settings());
    target.set("oneOf",
               Json::array().push(requires_only("at_least", "at_most")).push(requires_only("at_most", "at_least")));

    Json rules = list_schema("selection rules; the first that matches wins", std::move(rule));
    rules.set("maxItems", max_rules).set("default", Json::array());

    Json plugins = Json::object();
    plugins.set("description", "where plugins are looked for, and the settings of each plugin by its id")
        .set("type", "object")
        .set("properties",
             Json::object().set("dirs", list_schema("folders, relative to the file", text_schema("path of a folder"))))
        .set("additionalProperties", true);
    Json mechanisms = Json::object();
    mechanisms.set("description", "choices for single mechanisms, by their names")
        .set("type", "object")
        .set("additionalProperties", section_schema("one mechanism", config_table::mechanism_settings()));

    Json properties = Json::object();
    properties.set("version", Json::object().set("description", "version of this format").set("const", config_version))
        .set("service", section_schema("the attention service", config_table::service_settings()))
        .set("cache", section_schema("the cache of earlier results", config_table::cache_settings()))
        .set("rules", std::move(rules))
        .set("plugins", std::move(plugins))
        .set("mechanisms", std::move(mechanisms))
        .set("targets", list_schema("what `attend benchmark --suite targets` measures", std::move(target)));

    Json schema = Json::object();
    schema.set("$schema", "https://json-schema.org/draft/2020-12/schema")
        .set("title", "attend configuration")
        .set("type", "object")
        .set("properties", std::move(properties))
        .set("required", Json::array().push("version"))
        .set("additionalProperties", false);
    return schema;
}

std::vector<ShownSetting> list_settings(const Config& config) {
    std::vector<ShownSetting> shown;
    list_section(shown, config, "service", config.service, config_table::service_settings());
    list_section(shown, config, "cache", config.cache, config_table::cache_settings());
    shown.push_back({"rules", rules_json(config), config.origin_of("rules")});
    shown.push_back({"plugins.dirs", dirs_json(config), config.origin_of("plugins.dirs")});
    for (const auto& [id, settings] : config.plugins.settings) {
        shown.push_back({"plugins." + id, settings, config.origin_of("plugins." + id)});
    }
    for (const MechanismConfig& mechanism : config.mechanisms) {
        if (mechanism.provider.empty()) continue;
        const std::string path = "mechanisms." + mechanism.name + ".provider";
        shown.push_back({path, Json(mechanism.provider), config.origin_of(path)});
    }
    shown.push_back({"targets", targets_json(config), config.origin_of("targets")});
    return shown;
}

Json config_to_json(const Config& config, bool with_origin) {
    Json document = Json::object();
    document.set("version", config_version);
    for (const char* section : {"service", "cache", "rules", "plugins", "mechanisms", "targets"}) {
        const bool is_list = std::string_view(section) == "rules" || std::string_view(section) == "targets";
        document.set(section, is_list ? Json::array() : Json::object());
    }
    for (const ShownSetting& setting : list_settings(config)) {
        const Json leaf = with_origin ? Json::object().set("value", setting.value).set("origin", setting.origin.text())
                                      : setting.value;
        // Only the first dot separates: ids of plugins have dots of their own.
        const std::size_t dot = setting.path.find('.');
        const std::string section = setting.path.substr(0, dot);
        if (dot == std::string::npos) {
            document.set(section, leaf);
        } else if (section == "mechanisms") {
            const std::size_t last = setting.path.rfind('.');
            document.find(section)->set(setting.path.substr(dot + 1, last - dot - 1),
                                        Json::object().set(setting.path.substr(last + 1), leaf));
        } else {
            document.find(section)->set(setting.path.substr(dot + 1), leaf);
        }
    }
    return document;
}

}  // namespace attend
