// SPDX-License-Identifier: Apache-2.0
// A configuration file to Config, with every problem it has.
#include <algorithm>
#include <filesystem>
#include <unordered_set>

#include "attend/config/names.hpp"
#include "config_table.hpp"

namespace attend {
namespace {

using config_table::Setting;

class Reader {
public:
    Reader(std::string file, const RuleCheck& check) : check_(check) { result_.config.file = std::move(file); }

    LoadedConfig read(std::string_view text) {
        JsonLimits limits;
        limits.reject_duplicates = false;  // reported below, together with everything else
        auto document = parse_json(text, result_.config.file, limits);
        if (!document.ok()) {
            result_.problems.push_back(document.error());
            return std::move(result_);
        }
        top_level(*document);
        return std::move(result_);
    }

private:
    using Member = Json::Member;

    void problem(const std::string& path, const std::string& what) {
        result_.problems.push_back(Error{ErrorCode::input, result_.config.file + ": " + path + ": " + what, {}});
    }
    void came_from_file(const std::string& path) {
        result_.config.origins[path] = Origin{Origin::Kind::file, result_.config.file};
    }

    bool is_object(const std::string& path, const Json& value) {
        if (value.is_object()) return true;
        problem(path, std::string("is ") + value.kind() + "; accepted: an object");
        return false;
    }
    bool is_array(const std::string& path, const Json& value) {
        if (value.is_array()) return true;
        problem(path, std::string("is ") + value.kind() + "; accepted: an array");
        return false;
    }

    // Calls visit(canonical name, member) for every member with a known name, once per name.
    template <class Visit>
    void members(const std::string& path, const Json& object, const std::vector<std::string>& names, Visit visit) {
        std::vector<std::string> seen;
        const std::string prefix = path.empty() ? std::string() : path + ".";
        for (const Member& member : object.as_object()) {
            const std::string name = fold_name(member.first);
            if (std::find(names.begin(), names.end(), name) == names.end()) {
                const std::string nearest = did_you_mean(member.first, names);
                problem(prefix + member.first,
                        "unknown key" + (nearest.empty() ? "; accepted: " + join_names(names) : nearest));
                continue;
            }
            if (std::find(seen.begin(), seen.end(), name) != seen.end()) {
                problem(prefix + name, "is given twice; each key may stand once");
                continue;
            }
            seen.push_back(name);
            visit(name, member.second);
        }
    }

    // Names as they are: ids of plugins, names of mechanisms, everything inside values that are not ours.
    bool first_of_name(const std::string& path, std::unordered_set<std::string_view>& seen, const std::string& name) {
        if (seen.insert(name).second) return true;
        problem(path + "." + name, "is given twice; each key may stand once");
        return false;
    }
    void no_key_twice(const std::string& path, const Json& value) {
        if (value.is_array()) {
            for (std::size_t i = 0; i < value.size(); ++i) {
                no_key_twice(path + "[" + std::to_string(i) + "]", value.as_array()[i]);
            }
        }
        if (!value.is_object()) return;
        std::unordered_set<std::string_view> seen;
        for (const Member& member : value.as_object()) {
            if (first_of_name(path, seen, member.first)) no_key_twice(path + "." + member.first, member.second);
        }
    }

    void top_level(const Json& document) {
        if (!document.is_object()) {
            problem("top level", std::string("is ") + document.kind() + "; accepted: one object");
            return;
        }
        static const std::vector<std::string> names{"version", "service",    "cache",  "rules",
                                                    "plugins", "mechanisms", "targets"};
        if (document.find("version") == nullptr) {
            const bool other_spelling =
                std::any_of(document.as_object().begin(), document.as_object().end(),
                            [](const Member& member) { return fold_name(member.first) == "version"; });
            if (!other_spelling) problem("version", "is missing; accepted: " + std::to_string(config_version));
        }
        members("", document, names, [&](const std::string& name, const Json& value) {
            Config& config = result_.config;
            if (name == "version") {
                if (!value.is_number() || value.to_int64() != config_version) {
                    problem(name, "is " + shown_value(value) + "; accepted: " + std::to_string(config_version));
                }
            } else if (name == "service") {
                section(name, value, config.service, config_table::service_settings());
            } else if (name == "cache") {
                section(name, value, config.cache, config_table::cache_settings());
            } else if (name == "rules") {
                rules(value);
            } else if (name == "plugins") {
                plugins(value);
            } else if (name == "mechanisms") {
                mechanisms(value);
            } else {
                targets(value);
            }
        });
    }

    template <class Section>
    bool assign(const std::string& path, Section& section, const Setting<Section>& setting, const Json& value) {
        if (value.is_null() && setting.nullable) {
            config_table::store_nothing(section, setting);
            return true;
        }
        const auto converted = convert_option(result_.config.file + ": " + path + ":", setting.spec, value);
        if (!converted.ok()) {
            result_.problems.push_back(converted.error());
            return false;
        }
        // An empty condition is left to the compiler of rules, which names the column.
        if (setting.spec.type == OptionType::text && setting.spec.name != "condition" && value.as_string().empty()) {
            problem(path, "is empty; accepted: text (" + setting.spec.help + ")");
            return false;
        }
        config_table::store(section, setting, *converted);
        return true;
    }

    template <class Section>
    static std::vector<std::string> names_of(std::span<const Setting<Section>> settings) {
        std::vector<std::string> names;
        for (const auto& setting : settings) names.push_back(setting.spec.name);
        return names;
    }
    template <class Section>
    static const Setting<Section>& setting_named(std::span<const Setting<Section>> settings, const std::string& name) {
        return *std::find_if(settings.begin(), settings.end(),
                             [&](const Setting<Section>& setting) { return setting.spec.name == name; });
    }

    // A section of plain values.
    template <class Section>
    void section(const std::string& path, const Json& value, Section& section,
                 std::span<const Setting<Section>> settings) {
        if (!is_object(path, value)) return;
        members(path, value, names_of(settings), [&](const std::string& name, const Json& member) {
            const std::string member_path = path + "." + name;
            if (assign(member_path, section, setting_named(settings, name), member)) came_from_file(member_path);
        });
    }

    // An object of a list: plain values, and required ones that must be there. `other` takes names beside the table.
    template <class Section, class Other>
    bool item(const std::string& path, const Json& value, Section& section, std::span<const Setting<Section>> settings,
              const std::vector<std::string>& other_names, Other other) {
        if (!is_object(path, value)) return false;
        std::vector<std::string> names = names_of(settings);
        names.insert(names.end(), other_names.begin(), other_names.end());
        std::vector<std::string> seen;
        bool good = true;
        members(path, value, names, [&](const std::string& name, const Json& member) {
            seen.push_back(name);
            if (std::find(other_names.begin(), other_names.end(), name) != other_names.end()) {
                other(name, member);
            } else {
                good = assign(path + "." + name, section, setting_named(settings, name), member) && good;
            }
        });
        for (const auto& setting : settings) {
            if (!setting.spec.required || std::find(seen.begin(), seen.end(), setting.spec.name) != seen.end())
                continue;
            problem(path + "." + setting.spec.name, "is missing; accepted: text (" + setting.spec.help + ")");
            good = false;
        }
        return good;
    }

    void rules(const Json& value) {
        if (!is_array("rules", value)) return;
        came_from_file("rules");
        std::vector<RuleSource>& sources = result_.config.rule_sources;
        std::vector<bool> readable;
        for (std::size_t i = 0; i < value.size(); ++i) {
            const std::string path = "rules[" + std::to_string(i) + "]";
            RuleSource source;
            const bool good = item(path, value.as_array()[i], source, config_table::rule_settings(), {"options"},
                                   [&](const std::string& name, const Json& options) {
                                       read_options(path + "." + name, options, source.options);
                                   });
            readable.push_back(good);
            sources.push_back(std::move(source));
        }
        // A rule that could not be read was reported already; it takes its place in the list as one that never
        // matches, so that the others keep their numbers.
        std::vector<RuleSource> compiled = sources;
        for (std::size_t i = 0; i < compiled.size(); ++i) {
            if (!readable[i] && compiled[i].condition.empty()) compiled[i].condition = "false";
        }
        const RuleCheck named = [&](const std::string& mechanism, const NamedValues& options,
                                    const std::string& place) {
            return mechanism.empty() ? std::vector<Error>() : check_(mechanism, options, place);
        };
        CompiledRules rules = compile_rules(result_.config.file, compiled, check_ ? named : RuleCheck());
        result_.problems.insert(result_.problems.end(), rules.problems.begin(), rules.problems.end());
        result_.config.rules = std::move(rules.rules);
    }

    void read_options(const std::string& path, const Json& value, NamedValues& options) {
        if (!is_object(path, value)) return;
        no_key_twice(path, value);
        options.assign(value.as_object().begin(), value.as_object().end());
    }

    void plugins(const Json& value) {
        if (!is_object("plugins", value)) return;
        std::unordered_set<std::string_view> seen;
        for (const auto& [id, settings] : value.as_object()) {
            if (!first_of_name("plugins", seen, id)) continue;
            const std::string path = "plugins." + id;
            if (id == "dirs") {
                plugin_dirs(settings);
                continue;
            }
            if (id.empty()) {
                problem("plugins", "has an empty plugin id; accepted: ids such as com.example.extra");
                continue;
            }
            no_key_twice(path, settings);
            result_.config.plugins.settings.emplace_back(id, settings);
            came_from_file(path);
        }
    }

    void plugin_dirs(const Json& value) {
        if (!is_array("plugins.dirs", value)) return;
        came_from_file("plugins.dirs");
        const std::filesystem::path base = std::filesystem::path(result_.config.file).parent_path();
        for (std::size_t i = 0; i < value.size(); ++i) {
            const Json& dir = value.as_array()[i];
            const std::string path = "plugins.dirs[" + std::to_string(i) + "]";
            if (!dir.is_string() || dir.as_string().empty() || dir.as_string().find('\0') != std::string::npos) {
                problem(path, "is " + shown_value(dir) + "; accepted: the path of a folder");
                continue;
            }
            result_.config.plugins.dirs.push_back((base / dir.as_string()).lexically_normal().string());
        }
    }

    void mechanisms(const Json& value) {
        if (!is_object("mechanisms", value)) return;
        std::unordered_set<std::string_view> seen;
        for (const auto& [name, settings] : value.as_object()) {
            if (!first_of_name("mechanisms", seen, name)) continue;
            if (name.empty()) {
                problem("mechanisms", "has an empty name; accepted: names of mechanisms");
                continue;
            }
            MechanismConfig mechanism;
            mechanism.name = name;
            section("mechanisms." + name, settings, mechanism, config_table::mechanism_settings());
            result_.config.mechanisms.push_back(std::move(mechanism));
        }
    }

    void targets(const Json& value) {
        if (!is_array("targets", value)) return;
        came_from_file("targets");
        for (std::size_t i = 0; i < value.size(); ++i) {
            const std::string path = "targets[" + std::to_string(i) + "]";
            TargetConfig target;
            const std::size_t problems_before = result_.problems.size();
            if (!item(path, value.as_array()[i], target, config_table::target_settings(), {},
                      [](const std::string&, const Json&) {})) {
                continue;
            }
            if (result_.problems.size() == problems_before) {
                if (target.at_least && target.at_most) problem(path, "has two limits; accepted: at_least or at_most");
                if (!target.at_least && !target.at_most) problem(path, "has no limit; accepted: at_least or at_most");
            }
            if (target.name.empty()) target.name = target.mechanism + " against " + target.against;
            result_.config.targets.push_back(std::move(target));
        }
    }

    const RuleCheck& check_;
    LoadedConfig result_;
};

}  // namespace

LoadedConfig load_config(std::string_view text, const std::string& file, const RuleCheck& check) {
    return Reader(file, check).read(text);
}

}  // namespace attend
