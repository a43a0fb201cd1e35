// SPDX-License-Identifier: Apache-2.0
// list and describe: what exists.
#include "program.hpp"

using namespace cli_test;

namespace {

std::vector<std::string> names(const Run& run) {
    std::vector<std::string> found;
    const attend::Json json = run.json();
    for (const attend::Json& mechanism : json.find("mechanisms")->as_array())
        found.push_back(mechanism.find("name")->as_string());
    return found;
}

bool has(const std::vector<std::string>& list, const std::string& name) {
    return std::find(list.begin(), list.end(), name) != list.end();
}

}  // namespace

TEST_CASE("list --json holds the keys of the contract, sorted by category and name") {
    const attend::Json json = run_attend({"list", "--json"}).json();
    CHECK(json.size() == 1);
    const std::vector<std::string> order{"multi-head", "self-attention", "cross-attention", "sparse", "linear", "flash",
                                         "moe",        "extra"};
    std::size_t category = 0;
    std::string before;
    REQUIRE(json.find("mechanisms")->size() >= 7);
    for (const attend::Json& mechanism : json.find("mechanisms")->as_array()) {
        CHECK(mechanism.size() == 7);
        for (const char* key : {"name", "category", "complexity", "plugin", "backend"})
            CHECK(mechanism.find(key)->is_string());
        for (const char* key : {"capabilities", "dtypes"}) CHECK(mechanism.find(key)->is_array());
        const auto at = static_cast<std::size_t>(
            std::find(order.begin(), order.end(), mechanism.find("category")->as_string()) - order.begin());
        const std::string& name = mechanism.find("name")->as_string();
        CHECK(at >= category);
        if (at == category) CHECK(before < name);
        category = at;
        before = name;
    }
}

TEST_CASE("list as a table has a header, one line per mechanism, and how many there are of each category") {
    const Run table = run_attend({"list"});
    const std::size_t count = names(run_attend({"list", "--json"})).size();
    CHECK(table.out.starts_with("name "));
    CHECK(lines(table.out) == count + 3);
    CHECK(contains(table.out, "\n\n" + std::to_string(count) +
                                  " mechanisms: 7 multi-head, 6 self-attention, 5 cross-attention, "));
    CHECK(contains(run_attend({"list", "--category", "sparse"}).out, "\n\n8 mechanisms: 8 sparse\n"));
    CHECK(contains(run_attend({"list", "--from", "org.test.echo", "--plugin", plugin("echo")}).out,
                   "\n\n1 mechanism: 1 "));
}

TEST_CASE("list filters by category") {
    const auto flash = names(run_attend({"list", "--category", "flash", "--json"}));
    CHECK(has(flash, "flash-attention-v2"));
    CHECK_FALSE(has(flash, "linear-attention"));
    check_error(run_attend({"list", "--category", "spars"}), 2, {"--category", "did you mean \"sparse\""});
}

TEST_CASE("list filters by capabilities") {
    const auto both = names(run_attend({"list", "--caps", "causal,LSE_OUT", "--json"}));
    CHECK(has(both, "flash-attention-v2"));
    CHECK_FALSE(has(both, "cross-attention"));
    check_error(run_attend({"list", "--caps", "CAUSAL,GQQA"}), 2, {"--caps: unknown capability \"GQQA\"", "GQA"});
    check_error(run_attend({"list", "--caps", ""}), 2, {"--caps"});
}

TEST_CASE("list filters by plugin") {
    CHECK(names(run_attend({"list", "--from", "org.test.echo", "--plugin", plugin("echo"), "--json"})) ==
          std::vector<std::string>{"echo-attention"});
    check_error(run_attend({"list", "--from", "attend.flsh"}), 2, {"--from: unknown plugin", "attend.flash"});
}

TEST_CASE("list --accelerated leaves out the baseline") {
    CHECK(names(run_attend({"list", "--accelerated", "--backend", "baseline", "--json"})).empty());
    CHECK(contains(run_attend({"list", "--accelerated", "--backend", "baseline"}).out, "no mechanism passes"));
}

TEST_CASE("describe --json holds the keys of the contract, then the guide") {
    const attend::Json json = run_attend({"describe", "standard-mha", "--json"}).json();
    std::vector<std::string> keys;
    for (const auto& [key, value] : json.as_object()) keys.push_back(key);
    CHECK(keys == std::vector<std::string>{"name", "category", "summary", "source", "complexity", "options", "weights",
                                           "inputs", "capabilities", "numerics", "guide"});
    for (const attend::Json& option : json.find("options")->as_array()) {
        CHECK(option.size() == 5);
        for (const char* key : {"name", "type", "default", "range", "help"}) CHECK(option.find(key) != nullptr);
    }
    REQUIRE(json.find("weights")->size() > 0);
    for (const attend::Json& weight : json.find("weights")->as_array()) {
        CHECK(weight.size() == 3);
        CHECK_FALSE(contains(weight.find("init")->as_string(), " as "));
    }
    REQUIRE(json.find("inputs")->size() >= 3);
    for (const attend::Json& input : json.find("inputs")->as_array()) CHECK(input.size() == 4);
    CHECK(json.find("numerics")->as_string() == "exact");
}

TEST_CASE("describe for people says what happens to projections left out") {
    const Run run = run_attend({"describe", "standard-mha"});
    CHECK(run.status == 0);
    for (const char* part : {"Options", "Inputs", "Weights", "Outputs", "not applied", "initialised"})
        CHECK(contains(run.out, part));
}

TEST_CASE("describe wants a mechanism that exists") {
    check_error(run_attend({"describe"}), 2, {"no mechanism is named"});
    check_error(run_attend({"describe", "flash-atention-v2"}), 2,
                {"unknown mechanism \"flash-atention-v2\"", "did you mean \"flash-attention-v2\""});
}

TEST_CASE("a mechanism answers to its qualified name") {
    CHECK(run_attend({"describe", "attend.flash/flash-attention-v2", "--json"}).json().find("name")->as_string() ==
          "flash-attention-v2");
}

TEST_CASE("a plugin that repeats a built-in name is reachable by its qualified name only") {
    const auto all = names(run_attend({"list", "--plugin", plugin("shadow"), "--json"}));
    CHECK(has(all, "flash-attention-v2"));
    CHECK(has(all, "org.test.shadow/flash-attention-v2"));
    CHECK(run_attend({"describe", "flash-attention-v2", "--plugin", plugin("shadow"), "--json"})
              .json()
              .find("category")
              ->as_string() == "flash");
    CHECK(run_attend({"describe", "org.test.shadow/flash-attention-v2", "--plugin", plugin("shadow"), "--json"})
              .json()
              .find("category")
              ->as_string() == "extra");
}
