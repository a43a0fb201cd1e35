// SPDX-License-Identifier: Apache-2.0
// Services of the C API: opening one from a configuration, and questions that need no tensors.
#include <algorithm>
#include <cstdlib>

#include "attend/config/names.hpp"
#include "c_api/handles.hpp"
#include "loading/plugin_loader.hpp"
#include "plugin_services/log.hpp"
#include "service/documents.hpp"
#include "service/open_checks.hpp"

namespace attend::c_api {
namespace {

Result<Config> load(const attend_open_settings& given) {
    if (given.config_json != nullptr && given.config_file != nullptr)
        return wrong_argument("settings: config_json and config_file are both given; accepted: one of them");
    LoadedConfig loaded;
    if (given.config_file != nullptr) {
        Result<LoadedConfig> read = load_config_file(given.config_file);
        if (!read) return read.error();
        loaded = std::move(*read);
    } else {
        loaded = given.config_json != nullptr ? load_config(given.config_json, "config_json") : load_default_config();
    }
    if (!loaded.problems.empty()) return loaded.problems.front();
    if (given.backend != nullptr)
        if (auto done = override_setting_json(loaded.config, "service.backend", Json(given.backend),
                                              {Origin::Kind::flag, "settings: backend"});
            !done)
            return done.error();
    if (given.threads != 0)
        if (auto done = override_setting_json(loaded.config, "service.threads", Json(given.threads),
                                              {Origin::Kind::flag, "settings: threads"});
            !done)
            return done.error();
    return std::move(loaded.config);
}

Result<std::vector<std::filesystem::path>> paths_of(const char* const* paths, std::uint64_t count,
                                                    const std::string& place) {
    std::vector<std::filesystem::path> list;
    if (count != 0 && paths == nullptr)
        return wrong_argument(place + ": is NULL; accepted: " + std::to_string(count) + " paths");
    for (std::uint64_t at = 0; at < count; ++at) {
        if (paths[at] == nullptr)
            return wrong_argument(place + "[" + std::to_string(at) + "]: is NULL; accepted: a path");
        list.emplace_back(paths[at]);
    }
    return list;
}

Result<std::unique_ptr<AttentionService>> open(const attend_open_settings& given) {
    if ((given.flags & ~ATTEND_OPEN_NO_PROBE) != 0)
        return Error{ErrorCode::unsupported,
                     "settings: flags are " + std::to_string(given.flags) + "; accepted: 0 or ATTEND_OPEN_NO_PROBE",
                     ""};
    ServiceSettings settings;
    Result<Config> config = load(given);
    if (!config) return config.error();
    settings.config = std::move(*config);
    auto files = paths_of(given.plugin_files, given.num_plugin_files, "settings: plugin_files");
    if (!files) return files.error();
    auto dirs = paths_of(given.plugin_dirs, given.num_plugin_dirs, "settings: plugin_dirs");
    if (!dirs) return dirs.error();
    settings.plugin_files = std::move(*files);
    settings.plugin_dirs = std::move(*dirs);
    if (given.built_in_dir != nullptr) settings.built_in_dir = given.built_in_dir;
    settings.probe = (given.flags & ATTEND_OPEN_NO_PROBE) == 0;
    auto opened = AttentionService::open(std::move(settings));
    if (!opened) return opened;
    for (const PluginReport& report : (*opened)->plugin_reports())
        if (!report.loaded && report.origin == "--plugin") return refusal(report);
    if (given.config_json != nullptr || given.config_file != nullptr) {
        const std::vector<Error> problems = reference_problems((*opened)->config(), *(*opened)->registry());
        if (!problems.empty()) return problems.front();
    }
    return opened;
}

// A text that attend_text_free releases.
Result<void> give_text(const std::string& text, char** to) {
    auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy, text.c_str(), text.size() + 1);
    *to = copy;
    return {};
}

// Answers a question with a document; the question is a Result<Json>(AttentionService&).
template <class Question>
attend_code answer(attend_service* handle, char** json, attend_error_text* error, Question question) {
    if (json != nullptr) *json = nullptr;
    return guarded(error, [&]() -> Result<void> {
        if (json == nullptr) return wrong_argument("json: is NULL; accepted: where the text's address goes");
        const Result<AttentionService*> service = service_of(handle);
        if (!service) return service.error();
        const Result<Json> document = question(**service);
        if (!document) return document.error();
        return give_text(write_json(*document, true) + "\n", json);
    });
}

}  // namespace

Result<RequestFacts> facts_of(const char* json) {
    RequestFacts facts;
    if (json == nullptr) return facts;
    const Result<Json> parsed = parse_json(json, "facts");
    if (!parsed) return parsed.error();
    if (!parsed->is_object())
        return wrong_argument(std::string("facts: are ") + parsed->kind() +
                              "; accepted: an object of rule variables by name");
    for (const auto& [name, value] : parsed->as_object()) {
        const RuleVariableInfo* info = find_rule_variable(name);
        if (value.is_bool())
            facts.emplace(name, value.as_bool());
        else if (value.is_number())
            facts.emplace(name, value.as_double());
        else if (value.is_string())  // "infinity", where a number is meant
            facts.emplace(name, info != nullptr && info->type == RuleType::number
                                    ? rule_value_from_text(name, value.as_string())
                                    : RuleValue(value.as_string()));
        else
            return Error{
                ErrorCode::option,
                "facts: variable \"" + name + "\" is " + value.kind() + "; accepted: a number, a boolean or a string",
                ""};
    }
    return facts;
}

}  // namespace attend::c_api

using namespace attend;

extern "C" attend_code attend_service_open(const attend_open_settings* settings, attend_service** service,
                                           attend_error_text* error) {
    if (service != nullptr) *service = nullptr;
    return c_api::guarded(error, [&]() -> Result<void> {
        if (service == nullptr)
            return c_api::wrong_argument("service: is NULL; accepted: where the service's address goes");
        attend_open_settings given{};
        if (settings != nullptr) {
            const Result<attend_open_settings> read = c_api::read_struct(settings, "settings");
            if (!read) return read.error();
            given = *read;
        }
        auto handle = std::make_unique<attend_service>();
        Result<std::unique_ptr<AttentionService>> opened = c_api::open(given);
        if (!opened) return opened.error();
        handle->service = std::move(*opened);
        *service = handle.release();
        return {};
    });
}

extern "C" attend_code attend_set_log_level(const char* level, attend_error_text* error) {
    return c_api::guarded(error, [&]() -> Result<void> {
        if (level == nullptr) return c_api::wrong_argument("log level: is NULL; accepted: a word");
        return set_log_level(level);
    });
}

extern "C" void attend_service_close(attend_service* service) { delete service; }

extern "C" attend_code attend_recommend(attend_service* service, const char* facts_json, char** json,
                                        attend_error_text* error) {
    return c_api::answer(service, json, error, [&](AttentionService& own) -> Result<Json> {
        const Result<RequestFacts> facts = c_api::facts_of(facts_json);
        if (!facts) return facts.error();
        const Result<Recommendation> result = own.recommend(*facts);
        if (!result) return result.error();
        return recommendation_json(*result);
    });
}

extern "C" attend_code attend_list(attend_service* service, const char* category, char** json,
                                   attend_error_text* error) {
    return c_api::answer(service, json, error, [&](AttentionService& own) -> Result<Json> {
        const auto known = categories();
        if (category != nullptr && std::find(known.begin(), known.end(), category) == known.end()) {
            const std::string nearest = did_you_mean(category, known);
            return c_api::wrong_argument("list: unknown category \"" + std::string(category) + "\"" +
                                         (nearest.empty() ? "; accepted: " + join_names(known) : nearest));
        }
        Json list = Json::array();
        for (const MechanismPtr& mechanism : own.registry()->list())
            if (category == nullptr || mechanism->category == category) list.push(list_json(*mechanism));
        return Json::object().set("mechanisms", std::move(list));
    });
}

extern "C" attend_code attend_describe(attend_service* service, const char* mechanism, char** json,
                                       attend_error_text* error) {
    return c_api::answer(service, json, error, [&](AttentionService& own) -> Result<Json> {
        if (mechanism == nullptr) return c_api::wrong_argument("mechanism: is NULL; accepted: a mechanism's name");
        const Result<MechanismPtr> found = own.registry()->get(mechanism, "describe");
        if (!found) return found.error();
        return describe_json(**found);
    });
}

extern "C" attend_code attend_plugins(attend_service* service, char** json, attend_error_text* error) {
    return c_api::answer(service, json, error, [&](AttentionService& own) -> Result<Json> {
        Json list = Json::array();
        for (const PluginReport& report : own.plugin_reports()) list.push(plugin_json(report));
        return Json::object().set("plugins", std::move(list));
    });
}

extern "C" attend_code attend_metrics(attend_service* service, char** json, attend_error_text* error) {
    return c_api::answer(service, json, error,
                         [&](AttentionService& own) -> Result<Json> { return own.metrics().json(); });
}

extern "C" attend_code attend_metrics_reset(attend_service* service, attend_error_text* error) {
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        (*own)->reset_metrics();
        return {};
    });
}

extern "C" attend_code attend_invalidate(attend_service* service, const char* mechanism, attend_error_text* error) {
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        if (mechanism == nullptr) {
            (*own)->invalidate();
            return {};
        }
        const Result<MechanismPtr> found = (*own)->registry()->get(mechanism, "invalidate");
        if (!found) return found.error();
        (*own)->invalidate(mechanism);
        return {};
    });
}

extern "C" void attend_text_free(char* text) { std::free(text); }
