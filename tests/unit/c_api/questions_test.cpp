// SPDX-License-Identifier: Apache-2.0
// Questions of the C API: the documents that the command line prints.
#include "service/documents.hpp"
#include "support.hpp"

using namespace c_api_test;
using attend::Json;

namespace {

std::string text_of(attend_code code, char* json, const Problem& problem) {
    const Text owner(json);
    INFO(problem.message());
    REQUIRE(code == ATTEND_E_NONE);
    REQUIRE(json != nullptr);
    return json;
}

}  // namespace

TEST_CASE("c api questions: recommend") {
    Problem problem;
    char* json = nullptr;
    attend_code code =
        attend_recommend(service(), R"({"seq_len": 16384, "causal": true, "maxError": "infinity"})", &json, problem);
    const auto expected =
        support::service().recommend({{"seqLen", 16384.0}, {"causal", true}, {"maxError", HUGE_VAL}}).value();
    CHECK(text_of(code, json, problem) == attend::write_json(attend::recommendation_json(expected), true) + "\n");
    code = attend_recommend(service(), R"({"seqLen": 128})", &json, problem);
    const Json small = attend::parse_json(text_of(code, json, problem), "text").value();
    REQUIRE(small.find("selected")->is_string());
    CHECK(small.find("selected")->as_string() == "flash-attention-v2");
    CHECK(small.find("trace")->size() > 0);
    CHECK(attend_recommend(service(), R"({"seqLn": 3})", &json, problem) == ATTEND_E_OPTION);
    CHECK(json == nullptr);
    CHECK(problem.says("did you mean \"seqLen\""));
    CHECK(attend_recommend(service(), R"({"causal": true})", &json, problem) == ATTEND_E_OPTION);
    CHECK(problem.says("seqLen"));
    CHECK(attend_recommend(service(), "{", &json, problem) == ATTEND_E_INPUT);
}

TEST_CASE("c api questions: list, describe, plugins") {
    Problem problem;
    char* json = nullptr;
    attend_code code = attend_list(service(), nullptr, &json, problem);
    const Json all = attend::parse_json(text_of(code, json, problem), "text").value();
    CHECK(all.find("mechanisms")->size() == support::service().registry()->list().size());
    code = attend_list(service(), "moe", &json, problem);
    const Json experts = attend::parse_json(text_of(code, json, problem), "text").value();
    CHECK(experts.find("mechanisms")->size() == 4);
    for (const Json& entry : experts.find("mechanisms")->as_array())
        CHECK(entry.find("category")->as_string() == "moe");
    CHECK(attend_list(service(), "flsh", &json, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("did you mean \"flash\""));

    code = attend_describe(service(), "switch-attention", &json, problem);
    const auto record = support::service().registry()->find("switch-attention");
    CHECK(text_of(code, json, problem) == attend::write_json(attend::describe_json(*record), true) + "\n");
    CHECK(attend_describe(service(), "swich-attention", &json, problem) == ATTEND_E_NOT_FOUND);
    CHECK(json == nullptr);
    CHECK(problem.says("switch-attention"));

    code = attend_plugins(service(), &json, problem);
    const Json plugins = attend::parse_json(text_of(code, json, problem), "text").value();
    std::size_t loaded = 0;
    for (const Json& entry : plugins.find("plugins")->as_array()) loaded += entry.find("loaded")->as_bool() ? 1u : 0u;
    CHECK(loaded == 8);
}
