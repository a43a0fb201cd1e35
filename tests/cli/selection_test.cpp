// SPDX-License-Identifier: Apache-2.0
// recommend: what would be chosen, and why.
#include "program.hpp"

using namespace cli_test;

namespace {

const char* rules = R"({"version": 1, "rules": [
  {"condition": "moe", "mechanism": "moe-attention"},
  {"condition": "heads / (causal ? 1 : 0) > 1", "mechanism": "linear-attention"}]})";

attend::Json recommend(std::vector<std::string> words, const Environment& environment = {}) {
    words.insert(words.begin(), "recommend");
    words.emplace_back("--json");
    const Run run = run_attend(words, environment);
    INFO(run.err);
    REQUIRE(run.status == 0);
    return run.json();
}

}  // namespace

TEST_CASE("recommend --json holds the keys of the contract") {
    const Folder folder;
    const attend::Json json = recommend(
        {"--sequence-length", "100", "--config",
         folder.write("c.json", R"({"version": 1, "rules": [{"condition": "moe", "mechanism": "moe-attention"}]})")});
    std::vector<std::string> keys;
    for (const auto& [key, value] : json.as_object()) keys.push_back(key);
    CHECK(keys == std::vector<std::string>{"selected", "recommendations", "rejected", "trace"});
    REQUIRE(json.find("recommendations")->size() > 0);
    CHECK(json.find("recommendations")->size() <= 5);
    const attend::Json& first = json.find("recommendations")->as_array().front();
    CHECK(*first.find("mechanism") == *json.find("selected"));
    for (const char* key : {"mechanism", "options", "rule", "rule_text", "exactness", "error_bound", "est_flops",
                            "est_bytes", "supported", "reasons"})
        CHECK(first.find(key) != nullptr);
    CHECK(first.find("check") == nullptr);
    CHECK(first.find("rule")->as_string() == "threshold");
    CHECK(json.find("trace")->size() == 1);
    for (const attend::Json& step : json.find("trace")->as_array()) {
        CHECK(step.find("index")->is_integer());
        CHECK(step.find("text")->is_string());
        CHECK((step.find("value") != nullptr) != (step.find("error") != nullptr));
    }
}

TEST_CASE("recommend names the rule by its index and ends the trace there") {
    const Folder folder;
    const std::string file = folder.write(
        "c.json", R"({"version": 1, "rules": [{"condition": "seqLen > 1000", "mechanism": "linear-attention"},
        {"condition": "default", "mechanism": "flash-attention-v2", "options": {"block_size": 64}}]})");
    const attend::Json json = recommend({"--sequence-length", "10", "--config", file});
    const attend::Json& first = json.find("recommendations")->as_array().front();
    CHECK(first.find("rule")->as_int64() == 1);
    CHECK(first.find("rule_text")->as_string() == "default");
    CHECK(first.find("options")->find("block_size")->as_int64() == 64);
    CHECK(json.find("trace")->size() == 2);
    CHECK(recommend({"--sequence-length", "1001", "--config", file}).find("trace")->size() == 1);
}

TEST_CASE("recommend: what cannot serve the request is rejected with the check") {
    const attend::Json json = recommend({"--sequence-length", "100", "--causal"});
    bool found = false;
    for (const attend::Json& candidate : json.find("rejected")->as_array())
        if (candidate.find("mechanism")->as_string() == "cross-attention") {
            found = true;
            CHECK(candidate.find("check")->as_string() == "causal");
            CHECK(candidate.find("reasons")->size() > 0);
            CHECK_FALSE(candidate.find("supported")->as_bool());
        }
    CHECK(found);
}

TEST_CASE("recommend: nothing passes") {
    const Run run = run_attend({"recommend", "--sequence-length", "100", "--memory-budget", "1", "--json"});
    CHECK(run.status == 1);
    CHECK(run.json().find("selected")->is_null());
    CHECK(run.json().find("recommendations")->size() == 0);
    const Run text = run_attend({"recommend", "--sequence-length", "100", "--memory-budget", "1"});
    CHECK(text.status == 1);
    CHECK(contains(text.out, "no mechanism serves this request"));
}

TEST_CASE("recommend for people shows choice, rules, rejections and what would change it") {
    const Run run = run_attend({"recommend", "--sequence-length", "100", "--causal"});
    CHECK(run.status == 0);
    for (const char* part : {"flash-attention-v2", "because", "Rules in order", "Rejected", "does not take causal",
                             "What would change the choice"})
        CHECK(contains(run.out, part));
}

TEST_CASE("recommend: variables by flag and by --var") {
    CHECK(recommend({"--sequence-length", "100", "--moe"}).find("selected")->as_string() == "moe-attention");
    CHECK(recommend({"--var", "seqLen=100", "--var", "isMoe=true"}).find("selected")->as_string() == "moe-attention");
    CHECK(recommend({"--sequence-length", "8192", "--var", "maxError=infinity"}).find("selected")->is_string());
    check_error(run_attend({"recommend"}), 2, {"--sequence-length N"});
    check_error(run_attend({"recommend", "--sequence-length", "100", "--var", "seqLn=3"}), 2,
                {"unknown variable \"seqLn\"", "seqLen"});
    check_error(run_attend({"recommend", "--sequence-length", "100", "--var", "seqLen=3"}), 2, {"given twice"});
    check_error(run_attend({"recommend", "--sequence-length", "100", "--var", "moe"}), 2, {"NAME=VALUE"});
    check_error(run_attend({"recommend", "--sequence-length", "-4"}), 2, {"seqLen"});
    check_error(run_attend({"recommend", "--sequence-length", "many"}), 2, {"--sequence-length: is \"many\""});
    check_error(run_attend({"recommend", "--sequence-length", "4", "--var", "moe=3"}), 2, {"moe"});
}

TEST_CASE("selection: the shipped rules decide as the table says") {
    const struct {
        std::vector<std::string> request;
        const char *selected, *rule;
    } cases[] = {{{"--sequence-length", "16384"}, "linear-attention", "1"},
                 {{"--sequence-length", "32768"}, "linear-attention", "1"},
                 {{"--sequence-length", "32769"}, "longformer-attention", "0"},
                 {{"--sequence-length", "8192"}, "flash-attention-v2", "5"},
                 {{"--sequence-length", "100", "--var", "hierarchical=true"}, "hyperbolic-attention", "2"},
                 {{"--sequence-length", "100", "--var", "graph=true"}, "graph-attention", "3"},
                 {{"--sequence-length", "100", "--var", "hierarchical=true", "--var", "graph=true"},
                  "hyperbolic-attention",
                  "2"},
                 {{"--sequence-length", "100", "--moe"}, "moe-attention", "4"},
                 {{"--sequence-length", "100"}, "flash-attention-v2", "5"}};
    for (const auto& expected : cases) {
        const attend::Json json = recommend(expected.request, {{"ATTEND_PLUGIN_PATH", CLI_TEST_EXTRA_PLUGINS}});
        INFO(expected.selected << " " << expected.rule);
        CHECK(json.find("selected")->as_string() == expected.selected);
        const attend::Json& first = json.find("recommendations")->as_array().front();
        CHECK(std::to_string(first.find("rule")->as_int64()) == expected.rule);
    }
}

TEST_CASE("recommend: a shipped rule whose plugin is not there is skipped, and says so") {
    const attend::Json json = recommend({"--sequence-length", "100", "--var", "hierarchical=true"});
    CHECK(json.find("selected")->as_string() == "flash-attention-v2");
    const attend::Json& step = json.find("trace")->as_array()[2];
    CHECK(step.find("text")->as_string() == "hierarchical");
    CHECK(step.find("skipped_because")->as_string() == "hyperbolic-attention is not loaded");
    CHECK(run_attend({"config", "check"}).status == 0);
    // The rules of a user's own file are checked as they are.
    const Folder folder;
    const std::string file =
        folder.write("c.json", R"({"version": 1, "rules": [{"condition": "graph", "mechanism": "graph-attention"}]})");
    check_error(run_attend({"recommend", "--sequence-length", "100", "--config", file}), 2, {"graph-attention"});
}

TEST_CASE("recommend and compute auto agree") {
    for (const char* length : {"1", "64", "5000"})
        for (const bool causal : {false, true}) {
            std::vector<std::string> described{"--sequence-length",  length, "--heads", "2", "--dim", "16", "--var",
                                               "crossAttention=true"};
            std::vector<std::string> computed{"compute", "auto",  "--sequence-length", length, "--heads", "2", "--dim",
                                              "16",      "--json"};
            if (causal) described.emplace_back("--causal"), computed.emplace_back("--causal");
            INFO(length << (causal ? " causal" : ""));
            CHECK(recommend(described).find("selected")->as_string() ==
                  run_attend(computed).json().find("mechanism")->as_string());
        }
}

TEST_CASE("an error in a rule is followed by the condition and a caret line") {
    const Folder folder;
    const Run run = run_attend({"recommend", "--sequence-length", "4", "--config", folder.write("c.json", rules)});
    check_error(run, 2, {"rules[1].condition: column 17: ", "\nheads / (causal ? 1 : 0) > 1\n                ^\n"});
}

TEST_CASE("recommend says of every rejected mechanism what would admit it") {
    const std::vector<std::string> request{"--sequence-length", "100",      "--heads",         "4",   "--var",
                                           "kvHeads=2",         "--causal", "--memory-budget", "1000"};
    const attend::Json json = [&] {
        std::vector<std::string> words = request;
        words.insert(words.begin(), "recommend");
        words.emplace_back("--json");
        const Run run = run_attend(words);
        REQUIRE(run.status == 1);
        return run.json();
    }();
    CHECK(json.find("selected")->is_null());
    CHECK(json.find("rejected")->size() >= 39);
    for (const attend::Json& candidate : json.find("rejected")->as_array()) {
        INFO(candidate.find("mechanism")->as_string());
        REQUIRE(candidate.find("admit") != nullptr);
        REQUIRE(candidate.find("admit")->size() > 0);
        for (const attend::Json& change : candidate.find("admit")->as_array()) {
            CHECK(change.find("variable")->is_string());
            CHECK(change.find("value") != nullptr);
        }
    }
    const Run text =
        run_attend({"recommend", "--sequence-length", "100", "--heads", "4", "--var", "kvHeads=2", "--causal"});
    for (const char* part : {"would pass", "kvHeads = 4", "not causal"}) CHECK(contains(text.out, part));
    CHECK(contains(run_attend({"recommend", "--sequence-length", "9", "--memory-budget", "1"}).out,
                   "a memory budget of at least "));
}

TEST_CASE("recommend --task names the mechanism of the task") {
    const attend::Json json = recommend({"--task", "memory-retrieval"});
    CHECK(json.find("selected")->as_string() == "memory-attention");
    CHECK(json.find("recommendations")->as_array().front().find("rule")->as_string() == "task");
    CHECK(recommend({"--task", "chess", "--sequence-length", "10"}).find("selected")->as_string() ==
          "flash-attention-v2");
}
