// SPDX-License-Identifier: Apache-2.0
// The configuration file: what it sets, what it refuses, where values come from, and its schema.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "attend/config/config.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

constexpr const char* full = R"({
  "version": 1,
  "service": {
    "backend": "auto", "precision": "fp32", "threads": 0, "deterministic": true,
    "default_mechanism": "flash-attention-v2", "fallback_mechanism": "linear-attention",
    "long_sequence_threshold": 4096, "allow_approximate": true, "memory_budget": null,
    "enable_cache": true, "strict_rules": false, "speedup_target": 2.49
  },
  "cache": { "mode": "auto", "level": "output", "capacity_bytes": 67108864, "max_entries": 256,
             "max_entry_fraction": 0.25, "ttl_ms": 0, "verify": "hash" },
  "rules": [
    { "condition": "seqLen > 32768", "mechanism": "longformer-attention", "options": { "window_size": 256 } },
    { "condition": "seqLen > 8Ki and not causal", "mechanism": "linear-attention" },
    { "condition": "graph", "mechanism": "graph-attention", "options": { "version": "gatv2" } },
    { "condition": "default", "mechanism": "flash-attention-v2", "options": { "block_size": 128 } }
  ],
  "plugins": { "dirs": ["plugins"], "com.example.extra": { "trace": true } },
  "mechanisms": { "linear-attention": { "provider": "attend.linear" } },
  "targets": [
    { "name": "flash v2 against materialised", "mechanism": "flash-attention-v2", "against": "materialised",
      "sequence_length": 2048, "head_dim": 64, "heads": 8, "metric": "speedup", "at_least": 2.49 }
  ]
})";

Config loaded(const std::string& text, const std::string& file = "c.json") {
    LoadedConfig result = load_config(text, file);
    if (!result.problems.empty()) FAIL(result.problems.front().message);
    return std::move(result.config);
}

std::vector<std::string> problems(const std::string& text) {
    std::vector<std::string> messages;
    for (const Error& error : load_config(text, "c.json").problems) messages.push_back(error.message);
    return messages;
}

std::string only_problem(const std::string& text) {
    const auto messages = problems(text);
    INFO(text);
    for (const std::string& message : messages) UNSCOPED_INFO(message);
    REQUIRE(messages.size() == 1);
    return messages.front();
}

std::string with(const std::string& members) { return "{\"version\": 1, " + members + "}"; }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string read_file(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

std::vector<std::filesystem::path> shipped_files() {
    std::vector<std::filesystem::path> files{std::filesystem::path(ATTEND_SOURCE_DIR) / "config/defaults/attend.json"};
    for (const auto& entry :
         std::filesystem::directory_iterator(std::filesystem::path(ATTEND_SOURCE_DIR) / "config/examples")) {
        if (entry.path().extension() == ".json") files.push_back(entry.path());
    }
    return files;
}

// Enough of JSON Schema to hold a document against config_schema().
bool conforms(const Json& schema, const Json& value) {
    if (const Json* constant = schema.find("const")) return *constant == value;
    if (const Json* choices = schema.find("enum")) {
        const auto& list = choices->as_array();
        return std::find(list.begin(), list.end(), value) != list.end();
    }
    const auto is = [&](const std::string& type) {
        if (type == "null") return value.is_null();
        if (type == "boolean") return value.is_bool();
        if (type == "integer") return value.to_int64().has_value();
        if (type == "number") return value.is_number();
        if (type == "string") return value.is_string();
        if (type == "array") return value.is_array();
        return value.is_object();
    };
    if (const Json* type = schema.find("type")) {
        bool any = false;
        if (type->is_string()) any = is(type->as_string());
        if (type->is_array()) {
            for (const Json& one : type->as_array()) any = any || is(one.as_string());
        }
        if (!any) return false;
    }
    if (value.is_number()) {
        if (const Json* low = schema.find("minimum"); low != nullptr && value.as_double() < low->as_double())
            return false;
        if (const Json* high = schema.find("maximum"); high != nullptr && value.as_double() > high->as_double())
            return false;
        if (const Json* low = schema.find("exclusiveMinimum"); low != nullptr && value.as_double() <= low->as_double())
            return false;
    }
    if (const Json* required = schema.find("required")) {
        for (const Json& name : required->as_array()) {
            if (value.find(name.as_string()) == nullptr) return false;
        }
    }
    if (const Json* forbidden = schema.find("not"); forbidden != nullptr && conforms(*forbidden, value)) return false;
    if (const Json* choices = schema.find("oneOf")) {
        const auto& list = choices->as_array();
        if (std::count_if(list.begin(), list.end(), [&](const Json& one) { return conforms(one, value); }) != 1)
            return false;
    }
    if (value.is_array()) {
        const Json* items = schema.find("items");
        for (const Json& element : value.as_array()) {
            if (items != nullptr && !conforms(*items, element)) return false;
        }
    }
    if (value.is_object()) {
        const Json* known = schema.find("properties");
        const Json* others = schema.find("additionalProperties");
        for (const auto& [name, member] : value.as_object()) {
            const Json* own = known != nullptr ? known->find(name) : nullptr;
            if (own == nullptr) own = others;
            if (own == nullptr || (own->is_bool() && own->as_bool())) continue;
            if (own->is_bool() || !conforms(*own, member)) return false;
        }
    }
    return true;
}

}  // namespace

TEST_CASE("config: the full example loads") {
    const Config config = loaded(full, "/etc/attend/c.json");
    CHECK(config.service.default_mechanism == "flash-attention-v2");
    CHECK(config.service.speedup_target == 2.49);
    CHECK_FALSE(config.service.memory_budget.has_value());
    CHECK(config.cache.capacity_bytes == 67108864);
    REQUIRE(config.rules.size() == 4);
    CHECK(config.rules[0].options.front().first == "window_size");
    CHECK(config.rules[3].condition.is_default());
    CHECK(config.plugins.dirs == std::vector<std::string>{"/etc/attend/plugins"});
    REQUIRE(config.plugins.settings.size() == 1);
    CHECK(config.plugins.settings[0].first == "com.example.extra");
    CHECK(*config.plugins.settings[0].second.find("trace") == Json(true));
    REQUIRE(config.mechanisms.size() == 1);
    CHECK(config.mechanisms[0].provider == "attend.linear");
    REQUIRE(config.targets.size() == 1);
    CHECK(config.targets[0].at_least == 2.49);
    CHECK_FALSE(config.targets[0].at_most.has_value());
}

TEST_CASE("config: only version is needed, and everything else has its default") {
    const Config config = loaded("{\"version\": 1}");
    CHECK(config.service.backend == "auto");
    CHECK(config.service.long_sequence_threshold == 4096);
    CHECK(config.service.enable_cache);
    CHECK(config.cache.mode == "auto");
    CHECK(config.cache.max_entry_fraction == 0.25);
    CHECK(config.rules.empty());
    CHECK(config.targets.empty());
    CHECK(config.origins.empty());
}

TEST_CASE("config: camelCase keys are folded") {
    const Config config = loaded(with(R"("service": {"longSequenceThreshold": 9, "allowApproximate": false},
                                         "cache": {"ttlMs": 5},
                                         "targets": [{"mechanism": "a", "sequenceLength": 7, "atMost": 1}])"));
    CHECK(config.service.long_sequence_threshold == 9);
    CHECK_FALSE(config.service.allow_approximate);
    CHECK(config.cache.ttl_ms == 5);
    CHECK(config.targets[0].sequence_length == 7);
    CHECK(config.targets[0].at_most == 1.0);
}

TEST_CASE("config: version must be there and be 1") {
    CHECK(only_problem("{}") == "c.json: version: is missing; accepted: 1");
    CHECK(only_problem("{\"version\": 2}") == "c.json: version: is 2; accepted: 1");
    CHECK(only_problem("{\"version\": \"1\"}") == "c.json: version: is \"1\"; accepted: 1");
    CHECK(only_problem("{\"version\": null}") == "c.json: version: is null; accepted: 1");
}

TEST_CASE("config: unknown keys get the nearest name, everywhere") {
    CHECK(only_problem(with("\"servise\": {}")) == "c.json: servise: unknown key; did you mean \"service\"?");
    CHECK(only_problem(with("\"service\": {\"thread\": 1}")) ==
          "c.json: service.thread: unknown key; did you mean \"threads\"?");
    CHECK(contains(only_problem(with("\"cache\": {\"zzzz\": 1}")),
                   "c.json: cache.zzzz: unknown key; accepted: mode, level"));
    CHECK(contains(only_problem(with(R"("rules": [{"condition": "moe", "mechanism": "a", "option": {}}])")),
                   "rules[0].option: unknown key"));
    CHECK(contains(only_problem(with(R"("mechanisms": {"a": {"providers": "x"}})")),
                   "mechanisms.a.providers: unknown key"));
    CHECK(contains(only_problem(with(R"("targets": [{"mechanism": "a", "at_leest": 1, "at_most": 2}])")),
                   "did you mean \"at_least\""));
}

TEST_CASE("config: wrong types and values name their path") {
    CHECK(contains(only_problem(with("\"service\": {\"threads\": -1}")),
                   "c.json: service.threads: is -1; accepted: integer from 0"));
    CHECK(contains(only_problem(with("\"service\": {\"backend\": \"cuda\"}")),
                   "one of auto, avx512, avx2, neon, baseline"));
    CHECK(contains(only_problem(with("\"service\": {\"precision\": \"fp64\"}")), "one of fp32, fp16, bf16, int8, fp8"));
    CHECK(contains(only_problem(with("\"service\": {\"deterministic\": 1}")), "true or false"));
    CHECK(contains(only_problem(with("\"service\": {\"speedup_target\": 0}")), "number above 0"));
    CHECK(contains(only_problem(with("\"service\": {\"long_sequence_threshold\": 0}")), "integer of at least 1"));
    CHECK(contains(only_problem(with("\"service\": {\"default_mechanism\": \"\"}")), "is empty"));
    CHECK(contains(only_problem(with("\"cache\": {\"max_entry_fraction\": 1.5}")), "number from 0 to 1"));
    CHECK(contains(only_problem(with("\"service\": []")), "c.json: service: is an array; accepted: an object"));
    CHECK(contains(only_problem(with("\"rules\": {}")), "c.json: rules: is an object; accepted: an array"));
    CHECK(contains(only_problem("[]"), "c.json: top level: is an array; accepted: one object"));
}

TEST_CASE("config: null stands for no memory budget and for nothing else") {
    CHECK_FALSE(loaded(with("\"service\": {\"memory_budget\": null}")).service.memory_budget.has_value());
    CHECK(loaded(with("\"service\": {\"memoryBudget\": 1024}")).service.memory_budget == 1024);
    CHECK(contains(only_problem(with("\"service\": {\"memory_budget\": 0}")), "integer of at least 1"));
    CHECK(contains(only_problem(with("\"service\": {\"threads\": null}")), "service.threads: is null"));
    CHECK(contains(only_problem(with("\"cache\": null")), "cache: is null; accepted: an object"));
}

TEST_CASE("config: no key twice, also in two spellings and deep inside") {
    CHECK(only_problem(with("\"version\": 1")) == "c.json: version: is given twice; each key may stand once");
    CHECK(contains(only_problem(with("\"cache\": {\"ttl_ms\": 1, \"ttlMs\": 2}")), "cache.ttl_ms: is given twice"));
    CHECK(contains(only_problem(with(R"("plugins": {"a.b": {"x": [{"y": 1, "y": 2}]}})")),
                   "plugins.a.b.x[0].y: is given twice"));
    CHECK(contains(only_problem(with(R"("plugins": {"a.b": 1, "a.b": 2})")), "plugins.a.b: is given twice"));
    CHECK(contains(only_problem(with(R"("mechanisms": {"m": {}, "m": {}})")), "mechanisms.m: is given twice"));
    CHECK(contains(
        only_problem(with(R"("rules": [{"condition": "moe", "mechanism": "m", "options": {"a": 1, "a": 1}}])")),
        "rules[0].options.a: is given twice"));
}

TEST_CASE("config: all problems of a file at once, in their order") {
    const auto messages = problems(R"({
      "version": 3,
      "service": {"threads": -1, "bakend": "avx2", "precision": 7},
      "cache": {"mode": "maybe"},
      "rules": [{"condition": "seqLn > 3", "mechanism": "m"}, {"mechanism": "m"},
                {"condition": "default", "mechanism": "m"},
                {"condition": "moe", "mechanism": "m"}],
      "targets": [{"mechanism": "m"}],
      "extra": 1
    })");
    const std::vector<std::string> beginnings{"c.json: version:",
                                              "c.json: service.threads:",
                                              "c.json: service.bakend:",
                                              "c.json: service.precision:",
                                              "c.json: cache.mode:",
                                              "c.json: rules[1].condition: is missing",
                                              "c.json: rules[0].condition: column 1: unknown variable",
                                              "c.json: rules[3].condition: column 1: UnreachableRule",
                                              "c.json: targets[0]: has no limit",
                                              "c.json: extra: unknown key"};
    REQUIRE(messages.size() == beginnings.size());
    for (std::size_t i = 0; i < messages.size(); ++i) {
        INFO(messages[i]);
        CHECK(messages[i].rfind(beginnings[i], 0) == 0);
    }
}

TEST_CASE("config: text that is no JSON is one problem with its place") {
    CHECK(contains(only_problem("{\n  \"version\": 1,\n}"), "c.json: line 3, column 1"));
    only_problem("");
    only_problem("{\"version\": 1} x");
    only_problem("{\"version\": 1, // no comments\n \"rules\": []}");
}

TEST_CASE("config: rules need a condition and a mechanism") {
    CHECK(contains(only_problem(with(R"("rules": [{"condition": "moe"}])")), "rules[0].mechanism: is missing"));
    CHECK(contains(only_problem(with(R"("rules": [{"mechanism": "m"}])")), "rules[0].condition: is missing"));
    CHECK(contains(only_problem(with(R"("rules": [{"condition": 1, "mechanism": "m"}])")),
                   "rules[0].condition: is 1; accepted: text"));
    CHECK(contains(only_problem(with(R"("rules": ["moe"])")), "rules[0]: is a string; accepted: an object"));
    CHECK(contains(only_problem(with(R"("rules": [{"condition": "moe", "mechanism": "m", "options": []}])")),
                   "rules[0].options: is an array"));
}

TEST_CASE("config: a rule's error carries the caret line") {
    const LoadedConfig result =
        load_config(with(R"("rules": [{"condition": "moe and graf", "mechanism": "m"}])"), "c.json");
    REQUIRE(result.problems.size() == 1);
    CHECK(result.problems[0].code == ErrorCode::rule);
    CHECK(result.problems[0].hint == "moe and graf\n        ^");
}

TEST_CASE("config: mechanisms and options of rules are checked by the caller") {
    const std::string text = with(
        R"("rules": [{"condition": "graf", "mechanism": "a"}, {"condition": "moe", "mechanism": "b",
            "options": {"x": 1}}])");
    std::vector<std::string> seen;
    const RuleCheck check = [&](const std::string& mechanism, const NamedValues& options, const std::string& place) {
        seen.push_back(place + " " + mechanism + " " + std::to_string(options.size()));
        return std::vector<Error>{{ErrorCode::rule, place + ".mechanism: no", {}}};
    };
    const LoadedConfig with_check = load_config(text, "c.json", check);
    CHECK(seen == std::vector<std::string>{"c.json: rules[0] a 0", "c.json: rules[1] b 1"});
    CHECK(with_check.problems.size() == 3);
    seen.clear();
    const LoadedConfig without = load_config(text, "c.json");
    CHECK(check_rules(without.config, check).size() == 2);
    CHECK(seen == std::vector<std::string>{"c.json: rules[0] a 0", "c.json: rules[1] b 1"});
}

TEST_CASE("config: a target has exactly one limit") {
    CHECK(contains(only_problem(with(R"("targets": [{"mechanism": "m"}])")),
                   "targets[0]: has no limit; accepted: at_least or at_most"));
    CHECK(contains(only_problem(with(R"("targets": [{"mechanism": "m", "at_least": 1, "at_most": 2}])")),
                   "has two limits"));
    CHECK(contains(only_problem(with(R"("targets": [{"at_least": 1}])")), "targets[0].mechanism: is missing"));
    CHECK(contains(only_problem(with(R"("targets": [{"mechanism": "m", "metric": "time", "at_least": 1}])")),
                   "one of speedup, memory_saving, relative_error"));
    CHECK(loaded(with(R"("targets": [{"mechanism": "m", "at_least": 1}])")).targets[0].name ==
          "m against materialised");
}

TEST_CASE("config: folders of plugins are relative to the file") {
    const auto dirs = [](const std::string& file) {
        return loaded(with(R"("plugins": {"dirs": ["plugins", "../x", "/abs"]})"), file).plugins.dirs;
    };
    CHECK(dirs("/a/b/c.json") == std::vector<std::string>{"/a/b/plugins", "/a/x", "/abs"});
    CHECK(dirs("c.json") == std::vector<std::string>{"plugins", "../x", "/abs"});
    CHECK(contains(only_problem(with(R"("plugins": {"dirs": "plugins"})")),
                   "plugins.dirs: is a string; accepted: an array"));
    CHECK(contains(only_problem(with(R"("plugins": {"dirs": [3]})")), "plugins.dirs[0]: is 3"));
}

TEST_CASE("config: settings of plugins stay as they are") {
    const Config config = loaded(with(R"("plugins": {"com.Example.x": {"someKey": {"otherKey": [1, null]}}, "y": 3})"));
    REQUIRE(config.plugins.settings.size() == 2);
    CHECK(config.plugins.settings[0].first == "com.Example.x");
    CHECK(write_json(config.plugins.settings[0].second) == R"({"someKey":{"otherKey":[1,null]}})");
}

TEST_CASE("config: every value knows its origin") {
    Config config = loaded(with("\"service\": {\"threads\": 3, \"backend\": \"avx2\"}"));
    CHECK(config.origin_of("service.threads").text() == "file c.json");
    CHECK(config.origin_of("service.precision").text() == "default");
    CHECK(override_setting(config, "service.backend", "neon", {Origin::Kind::environment, "ATTEND_BACKEND"}).ok());
    CHECK(config.service.backend == "neon");
    CHECK(config.origin_of("service.backend").text() == "environment ATTEND_BACKEND");
    CHECK(override_setting(config, "service.backend", "baseline", {Origin::Kind::flag, "--backend"}).ok());
    CHECK(config.origin_of("service.backend").text() == "flag --backend");
    const Json shown = config_to_json(config, true);
    CHECK(*shown.find("service")->find("backend")->find("origin") == Json("flag --backend"));
    CHECK(*shown.find("service")->find("threads")->find("value") == Json(3));
    CHECK(*shown.find("cache")->find("mode")->find("origin") == Json("default"));
}

TEST_CASE("config: overrides are checked like the file") {
    Config config;
    const Origin flag{Origin::Kind::flag, "--threads"};
    auto result = override_setting(config, "service.threads", "many", flag);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::option);
    CHECK(contains(result.error().message, "--threads: is \"many\"; accepted: integer from 0"));
    CHECK(config.service.threads == 0);
    CHECK(config.origins.empty());
    CHECK(override_setting(config, "service.threads", "6", flag).ok());
    CHECK(override_setting(config, "service.memoryBudget", "1000", flag).ok());
    CHECK(config.service.memory_budget == 1000);
    CHECK(override_setting(config, "service.memory_budget", "null", flag).ok());
    CHECK_FALSE(config.service.memory_budget.has_value());
    CHECK(override_setting(config, "cache.verify", "full", flag).ok());
    CHECK(config.cache.verify == "full");
    CHECK(override_setting_json(config, "service.strict_rules", Json(true), flag).ok());
    CHECK(config.service.strict_rules);
    result = override_setting(config, "service.thread", "1", flag);
    REQUIRE_FALSE(result.ok());
    CHECK(contains(result.error().message, "did you mean \"service.threads\"?"));
    CHECK_FALSE(override_setting(config, "rules", "[]", flag).ok());
}

TEST_CASE("config: what is written is read again as the same") {
    const Config config = loaded(full, "/etc/attend/c.json");
    const Json written = config_to_json(config, false);
    const Config again = loaded(write_json(written, true), "/etc/attend/c.json");
    CHECK(config_to_json(again, false) == written);
    CHECK(written.find("rules")->size() == 4);
    CHECK(*written.find("plugins")->find("com.example.extra")->find("trace") == Json(true));
    CHECK(*written.find("mechanisms")->find("linear-attention")->find("provider") == Json("attend.linear"));
}

TEST_CASE("config: every mechanism that is named outside the rules is listed") {
    const auto references = mechanism_references(loaded(full));
    std::set<std::string> paths;
    for (const auto& reference : references) paths.insert(reference.path + "=" + reference.mechanism);
    CHECK(paths == std::set<std::string>{
                       "service.default_mechanism=flash-attention-v2", "service.fallback_mechanism=linear-attention",
                       "mechanisms.linear-attention=linear-attention", "targets[0].mechanism=flash-attention-v2"});
}

TEST_CASE("config: the built-in configuration is the shipped file") {
    CHECK(default_config_text() == read_file(shipped_files().front()));
    const LoadedConfig result = load_default_config();
    CHECK(result.problems.empty());
    CHECK(result.config.origins.empty());
    CHECK_FALSE(result.config.rules.empty());
}

TEST_CASE("config: the built-in values are the defaults of a file without them") {
    const Config built_in = load_default_config().config;
    const Config bare = loaded("{\"version\": 1}");
    CHECK(*config_to_json(built_in, false).find("service") == *config_to_json(bare, false).find("service"));
    CHECK(*config_to_json(built_in, false).find("cache") == *config_to_json(bare, false).find("cache"));
}

TEST_CASE("config: every shipped file loads and conforms to the schema") {
    const Json schema = config_schema();
    const auto files = shipped_files();
    CHECK(files.size() >= 4);
    for (const auto& file : files) {
        INFO(file.string());
        const std::string text = read_file(file);
        const LoadedConfig result = load_config(text, file.string());
        for (const Error& error : result.problems) UNSCOPED_INFO(error.message);
        CHECK(result.problems.empty());
        CHECK(conforms(schema, *parse_json(text, file.string())));
        const auto from_disk = load_config_file(file.string());
        REQUIRE(from_disk.ok());
        CHECK(config_to_json(from_disk->config, false) == config_to_json(result.config, false));
    }
}

TEST_CASE("config: the schema describes every key of the full example and refuses others") {
    const Json schema = config_schema();
    CHECK(conforms(schema, *parse_json(full, "full")));
    for (const char* text :
         {"{}", "{\"version\": 2}", "{\"version\": 1, \"extra\": 1}", "{\"version\": 1, \"service\": {\"thread\": 1}}",
          "{\"version\": 1, \"service\": {\"threads\": -1}}", "{\"version\": 1, \"service\": {\"backend\": \"cuda\"}}",
          "{\"version\": 1, \"service\": {\"speedup_target\": 0}}",
          "{\"version\": 1, \"rules\": [{\"condition\": \"moe\"}]}",
          "{\"version\": 1, \"targets\": [{\"mechanism\": \"m\"}]}",
          "{\"version\": 1, \"targets\": [{\"mechanism\": \"m\", \"at_least\": 1, \"at_most\": 1}]}"}) {
        INFO(text);
        CHECK_FALSE(conforms(schema, *parse_json(text, "text")));
        CHECK_FALSE(problems(text).empty());
    }
    CHECK(conforms(schema, *parse_json(R"({"version": 1, "service": {"memory_budget": null}})", "text")));
}

TEST_CASE("config: schema, settings and written file name the same keys") {
    const Json schema = config_schema();
    const Json written = config_to_json(loaded(full), false);
    for (const char* section : {"service", "cache"}) {
        const Json& properties = *schema.find("properties")->find(section)->find("properties");
        const Json& values = *written.find(section);
        REQUIRE(properties.size() == values.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
            CHECK(properties.as_object()[i].first == values.as_object()[i].first);
            CHECK_FALSE(properties.as_object()[i].second.find("description")->as_string().empty());
            CHECK(properties.as_object()[i].second.find("default") != nullptr);
        }
    }
    std::set<std::string> listed;
    for (const ShownSetting& setting : list_settings(loaded(full))) listed.insert(setting.path);
    CHECK(listed.count("service.speedup_target") == 1);
    CHECK(listed.count("plugins.com.example.extra") == 1);
    CHECK(listed.count("mechanisms.linear-attention.provider") == 1);
}

TEST_CASE("config: a file that cannot be read is an error of its own") {
    const auto missing = load_config_file("/nonexistent/attend.json");
    REQUIRE_FALSE(missing.ok());
    CHECK(missing.error().code == ErrorCode::io);
    CHECK_FALSE(load_config_file("/tmp").ok());
}

TEST_CASE("config: the file in the reference loads, and the reference names every key") {
    const std::string page = read_file(std::filesystem::path(ATTEND_SOURCE_DIR) / "sdk/docs/configuration.md");
    const std::size_t begin = page.find("```json\n") + 8;
    REQUIRE(begin > 8);
    const Config config = loaded(page.substr(begin, page.find("\n```", begin) - begin));
    CHECK(config.rules.size() == 3);
    const Json schema = config_schema();
    for (const char* section : {"service", "cache"}) {
        for (const auto& [name, unused] : schema.find("properties")->find(section)->find("properties")->as_object()) {
            CHECK(contains(page, "| `" + name + "` |"));
        }
    }
    for (const auto& [name, unused] :
         schema.find("properties")->find("targets")->find("items")->find("properties")->as_object()) {
        CHECK(contains(page, "`" + name + "`"));
    }
}

TEST_CASE("config: the reference of rules names every variable and alias, and its examples compile") {
    const std::string page = read_file(std::filesystem::path(ATTEND_SOURCE_DIR) / "sdk/docs/selection.md");
    for (const RuleVariableInfo& variable : rule_variables()) {
        CHECK(contains(page, "`" + variable.name + "`"));
        if (!variable.alias.empty()) CHECK(contains(page, "`" + variable.alias + "`"));
    }
    const std::size_t begin = page.find("```\n", page.find("### Examples")) + 4;
    std::istringstream lines(page.substr(begin, page.find("```", begin) - begin));
    std::size_t examples = 0;
    for (std::string line; std::getline(lines, line); ++examples) {
        INFO(line);
        CHECK(Condition::compile(line.substr(0, line.find("   ")), "example").ok());
    }
    CHECK(examples >= 7);
    for (const Rule& rule : load_default_config().config.rules) {
        CHECK(contains(page, "| `" + rule.condition_text + "` | `" + rule.mechanism + "`"));
    }
}

TEST_CASE("configuration: ten faults give ten sentences") {
    const auto loaded = attend::load_config(R"({"version": 2,
        "service": {"backnd": "auto", "threads": -1, "precision": "fp31", "speedup_target": 0},
        "cache": {"mode": "maybe", "ttl_ms": -5},
        "rules": [{"condition": "seqLn > 5", "mechanism": "flash-attention-v2"}],
        "targets": [{"name": "t", "mechanism": "flash-attention-v2"}],
        "mystery": 1})",
                                            "faults.json");
    CHECK(loaded.problems.size() == 10);
    for (const auto& problem : loaded.problems) {
        INFO(problem.message);
        CHECK(problem.message.starts_with("faults.json: "));
    }
}
