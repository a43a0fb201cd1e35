// SPDX-License-Identifier: Apache-2.0
// Every check over every built-in plugin and the examples of the SDK; and over members of the zoo that must not pass.
#include <filesystem>
#include <set>

#include "plugin_conformance.hpp"
#include "support/catch.hpp"

namespace {

void check(const std::string& path, const std::string& id) {
    if (!std::filesystem::exists(path)) {
        WARN(path << " is not built");
        return;
    }
    std::string text;
    for (const std::string& finding : conformance::run_check(path, id)) text += "\n  " + finding;
    INFO(path << ":" << text);
    CHECK(text.empty());
}

std::string built_in(const std::string& name) {
    return std::string(ATTEND_BINARY_DIR) + "/plugins/libattend_" + name + ".so";
}
std::string example(const std::string& name) {
    return std::string(CONFORMANCE_PLUGINS) + "/libattend_conformance_" + name + ".so";
}
std::string extra(const std::string& name) {
    return std::string(ATTEND_BINARY_DIR) + "/tests/extra_plugins/libattend_" + name + ".so";
}

}  // namespace

#define TAGGED(place, plugin, id, tags) \
    TEST_CASE("conformance: " #plugin ": " id, tags) { check(place(#plugin), id); }
#define CASE(place, plugin, id) TAGGED(place, plugin, id, "")
// required: tags of the check on REQUIRED blocks. The plugins in plain C do not look at blocks yet.
#define PLUGIN(place, plugin, required)               \
    CASE(place, plugin, "entry-is-pure")              \
    CASE(place, plugin, "wrong-major")                \
    CASE(place, plugin, "opens-twice")                \
    CASE(place, plugin, "open-without-memory")        \
    CASE(place, plugin, "plan-without-execute")       \
    CASE(place, plugin, "plan-without-memory")        \
    CASE(place, plugin, "plan-info-size")             \
    TAGGED(place, plugin, "required-block", required) \
    CASE(place, plugin, "unknown-extensions")         \
    CASE(place, plugin, "short-workspace")            \
    CASE(place, plugin, "poisoned-workspace")         \
    CASE(place, plugin, "execute-allocates-nothing")  \
    CASE(place, plugin, "guards-stay-intact")         \
    CASE(place, plugin, "loops-agree")                \
    CASE(place, plugin, "threads-share-a-plan")       \
    CASE(place, plugin, "loop-status-is-returned")    \
    CASE(place, plugin, "score-rows")                 \
    CASE(place, plugin, "old-host")                   \
    CASE(place, plugin, "future-host")

PLUGIN(built_in, multi_head, "")
PLUGIN(built_in, self_attention, "")
PLUGIN(built_in, cross_attention, "")
PLUGIN(built_in, sparse, "")
PLUGIN(built_in, linear, "")
PLUGIN(built_in, flash, "")
PLUGIN(built_in, moe, "")
PLUGIN(example, minimal, "")
PLUGIN(example, hook, "")
PLUGIN(example, cpp, "")
PLUGIN(extra, geometric, "")

TEST_CASE("conformance: the checks have distinct names and each states its rule") {
    std::set<std::string> ids;
    for (const conformance::Check& check : conformance::checks()) {
        CHECK(ids.insert(check.id).second);
        CHECK(std::string(check.rule).size() > 10);
    }
    CHECK(ids.size() == 19);
    CHECK_FALSE(conformance::run_check("/nonexistent.so", "wrong-major").empty());
    CHECK_FALSE(conformance::run_check("/nonexistent.so", "no-such-check").empty());
}

// A check that has never failed is not yet a check.
#if !defined(__SANITIZE_ADDRESS__)  // its overruns are real, and the sanitizer ends the process at the first
TEST_CASE("conformance: a plugin that breaks the rules is found out") {
    for (const auto& [id, part] :
         {std::pair("plan-without-execute", "memory behind"), std::pair("plan-without-memory", "status 99"),
          std::pair("plan-info-size", "wrote past"), std::pair("unknown-extensions", "knows the extension"),
          std::pair("short-workspace", "missing"), std::pair("poisoned-workspace", "held before"),
          std::pair("execute-allocates-nothing", "blocks from the host"),
          std::pair("guards-stay-intact", "outside its outputs"), std::pair("loops-agree", "number of workers"),
          std::pair("required-block", "REQUIRED"), std::pair("loop-status-is-returned", "cancelled loop"),
          std::pair("score-rows", "outside their buffer"), std::pair("score-rows", "differ"),
          std::pair("score-rows", "rows 0 and 0"), std::pair("opens-twice", "same library")}) {
        std::string text;
        for (const std::string& finding : conformance::run_check(example("sinner"), id)) text += finding + "\n";
        INFO(id << ": " << text);
        CHECK(text.find(part) != std::string::npos);
    }
}
#endif
