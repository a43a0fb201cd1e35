// SPDX-License-Identifier: Apache-2.0
// config check, show and schema; where settings come from.
#include "program.hpp"

using namespace cli_test;

namespace {

const char* faulty = R"({"version": 1, "service": {"threads": -1, "backnd": "auto", "default_mechanism": "flsh"},
  "rules": [{"condition": "seqLn > 3", "mechanism": "flash-attention-v2"},
            {"condition": "causal", "mechanism": "flash-attention-v2", "options": {"blok_size": 3}},
            {"condition": "graph", "mechanism": "no-such-attention"}]})";

}  // namespace

TEST_CASE("config check lists every problem, one per line") {
    const Folder folder;
    const std::string file = folder.write("c.json", faulty);
    const Run run = run_attend({"config", "check", file});
    INFO(run.out);
    CHECK(run.status == 1);
    CHECK(lines(run.out) == 6);
    for (const char* part :
         {"service.threads: is -1", "backnd", "rules[0].condition: column 1: unknown variable \"seqLn\"",
          "unknown option \"blok_size\"", "unknown mechanism \"no-such-attention\"", "unknown mechanism \"flsh\""})
        CHECK(contains(run.out, part));
    const attend::Json json = run_attend({"config", "check", file, "--json"}).json();
    CHECK_FALSE(json.find("ok")->as_bool());
    CHECK(json.find("problems")->size() == 6);
}

TEST_CASE("config check of a good file, and of the one in force") {
    const Folder folder;
    const Run run = run_attend({"config", "check", folder.write("c.json", R"({"version": 1})")});
    CHECK(run.status == 0);
    CHECK(run.out.empty());
    CHECK(run_attend({"config", "check"}).status == 0);
    CHECK(run_attend({"config", "check", "--json"}).json().find("ok")->as_bool());
    CHECK(run_attend({"config", "check"}, {{"ATTEND_CONFIG", folder.write("d.json", "{}")}}).status == 1);
    check_error(run_attend({"config", "check", folder / "none.json"}), 2, {"none.json"});
}

TEST_CASE("config check of text that is no JSON") {
    const Folder folder;
    const Run run = run_attend({"config", "check", folder.write("c.json", "{\"version\": 1,}")});
    CHECK(run.status == 1);
    CHECK(contains(run.out, "line 1, column 15"));
}

TEST_CASE("commands that use a faulty file stop with its first problem") {
    const Folder folder;
    const std::string file = folder.write("c.json", faulty);
    for (const std::vector<std::string>& words : {std::vector<std::string>{"list"},
                                                  {"status"},
                                                  {"config", "show"},
                                                  {"plugins", "list"},
                                                  {"describe", "flash-attention-v2"},
                                                  {"recommend", "--sequence-length", "4"}}) {
        std::vector<std::string> all = words;
        all.insert(all.end(), {"--config", file});
        const Run run = run_attend(all);
        check_error(run, 2, {"service.threads: is -1"});
        CHECK(lines(run.err) == 1);
    }
    check_error(
        run_attend(
            {"list", "--config",
             folder.write("d.json",
                          R"({"version": 1, "rules": [{"condition": "moe", "mechanism": "flash-attention-v3x"}]})")}),
        2, {"rules[0].mechanism: unknown mechanism"});
    check_error(run_attend({"list", "--config",
                            folder.write("e.json", R"({"version": 1, "service": {"fallback_mechanism": "flsh"}})")}),
                2, {"service.fallback_mechanism: unknown mechanism"});
    check_error(run_attend({"list", "--config", folder / "none.json"}), 2, {"none.json: cannot be read"});
}

TEST_CASE("the configuration comes from flag, environment, user, default, in this order") {
    const Folder folder;
    const auto threads = [](const attend::Json& shown) {
        return shown.find("service")->find("threads")->find("value")->as_int64();
    };
    const std::string flag = folder.write("flag.json", R"({"version": 1, "service": {"threads": 3}})");
    const std::string variable = folder.write("env.json", R"({"version": 1, "service": {"threads": 4}})");
    folder.write("xdg/attend/attend.json", R"({"version": 1, "service": {"threads": 5}})");
    Environment environment{{"XDG_CONFIG_HOME", folder / "xdg"}};
    CHECK(threads(run_attend({"config", "show", "--json"}).json()) == 0);
    CHECK(threads(run_attend({"config", "show", "--json"}, environment).json()) == 5);
    environment["ATTEND_CONFIG"] = variable;
    CHECK(threads(run_attend({"config", "show", "--json"}, environment).json()) == 4);
    CHECK(threads(run_attend({"config", "show", "--json", "--config", flag}, environment).json()) == 3);
}

TEST_CASE("config show tells the origin of every value") {
    const Folder folder;
    const std::string file =
        folder.write("c.json", R"({"version": 1, "service": {"threads": 3, "longSequenceThreshold": 9}})");
    const attend::Json json =
        run_attend({"config", "show", "--config", file, "--json", "--backend", "baseline"}, {{"ATTEND_THREADS", "2"}})
            .json();
    const attend::Json& service = *json.find("service");
    CHECK(service.find("threads")->find("value")->as_int64() == 2);
    CHECK(service.find("threads")->find("origin")->as_string() == "environment ATTEND_THREADS");
    CHECK(service.find("backend")->find("origin")->as_string() == "flag --backend");
    CHECK(service.find("long_sequence_threshold")->find("origin")->as_string() == "file " + file);
    CHECK(service.find("precision")->find("origin")->as_string() == "default");
    const Run text = run_attend({"config", "show"}, {{"ATTEND_THREADS", "2"}});
    CHECK(contains(text.out, "environment ATTEND_THREADS"));
    CHECK(contains(text.out, "built-in default"));
}

TEST_CASE("flag beats environment") {
    const attend::Json json = run_attend({"status", "--threads", "3", "--json"}, {{"ATTEND_THREADS", "2"}}).json();
    CHECK(json.find("threads")->as_int64() == 3);
}

TEST_CASE("the older names of variables count where the new ones are unset") {
    const auto shown = [](const Environment& environment, const char* key) {
        return *run_attend({"config", "show", "--json"}, environment).json().find("service")->find(key)->find("value");
    };
    CHECK(shown({{"RUVECTOR_ATTN_THREADS", "2"}}, "threads").as_int64() == 2);
    CHECK(shown({{"RUVECTOR_ATTN_THREADS", "2"}, {"ATTEND_THREADS", "1"}}, "threads").as_int64() == 1);
    CHECK(shown({{"RUVECTOR_ATTN_BACKEND", "napi"}}, "backend").as_string() == "auto");
    CHECK(shown({{"RUVECTOR_ATTN_BACKEND", "js"}}, "backend").as_string() == "baseline");
    CHECK(shown({{"RUVECTOR_ATTN_BACKEND", "baseline"}}, "backend").as_string() == "baseline");
    check_error(run_attend({"list"}, {{"RUVECTOR_ATTN_LOG_LEVEL", "loud"}}), 2,
                {"RUVECTOR_ATTN_LOG_LEVEL: is \"loud\""});
}

TEST_CASE("variables with a wrong value are named") {
    check_error(run_attend({"list"}, {{"ATTEND_THREADS", "many"}}), 2, {"ATTEND_THREADS: is \"many\""});
    check_error(run_attend({"list"}, {{"ATTEND_BACKEND", "gpu"}}), 2, {"ATTEND_BACKEND: is \"gpu\""});
    check_error(run_attend({"list"}, {{"ATTEND_LOG_LEVEL", "loud"}}), 2, {"ATTEND_LOG_LEVEL: is \"loud\""});
    check_error(run_attend({"list"}, {{"ATTEND_BLOCK_SIZE", "big"}}), 2, {"ATTEND_BLOCK_SIZE: is \"big\""});
    CHECK(run_attend({"list"}, {{"ATTEND_THREADS", ""}}).status == 0);
}

TEST_CASE("ATTEND_BLOCK_SIZE is the default of option block_size") {
    const auto block = [](const std::vector<std::string>& more, const Environment& environment) {
        std::vector<std::string> words{"compute", "flash-attention-v2", "--sequence-length", "8", "--json"};
        words.insert(words.end(), more.begin(), more.end());
        return run_attend(words, environment).json().find("options")->find("block_size")->as_int64();
    };
    CHECK(block({}, {{"ATTEND_BLOCK_SIZE", "64"}}) == 64);
    CHECK(block({}, {{"RUVECTOR_ATTN_BLOCK_SIZE", "32"}}) == 32);
    CHECK(block({"--set", "block_size=128"}, {{"ATTEND_BLOCK_SIZE", "64"}}) == 128);
    CHECK(run_attend({"compute", "auto", "--sequence-length", "8", "--json"}, {{"ATTEND_BLOCK_SIZE", "64"}})
              .json()
              .find("options")
              ->find("block_size")
              ->as_int64() == 64);
    CHECK(run_attend({"compute", "echo-attention", "--plugin", plugin("echo"), "--sequence-length", "8"},
                     {{"ATTEND_BLOCK_SIZE", "64"}})
              .status == 0);
    check_error(
        run_attend({"compute", "flash-attention-v2", "--sequence-length", "8"}, {{"ATTEND_BLOCK_SIZE", "100000"}}), 2,
        {"ATTEND_BLOCK_SIZE"});
}

TEST_CASE("config schema is a JSON Schema") {
    const attend::Json json = run_attend({"config", "schema"}).json();
    CHECK(json.find("$schema")->as_string() == "https://json-schema.org/draft/2020-12/schema");
    CHECK(json.find("properties")->find("rules") != nullptr);
}
