// SPDX-License-Identifier: Apache-2.0
// tune: the cost table, and what recommend makes of it. Only a second is measured.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "program.hpp"

using namespace cli_test;

namespace {

Environment with_cache(const Folder& folder) { return {{"XDG_CACHE_HOME", folder / "cache"}}; }

std::vector<std::string> quick(std::vector<std::string> more) {
    std::vector<std::string> words{"tune", "--mechanism", "linear-attention", "--seconds", "0.2"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

}  // namespace

TEST_CASE("tuning: the table is written to the user's cache folder, and recommend predicts times by it") {
    const Folder folder;
    const Environment environment = with_cache(folder);
    const std::vector<std::string> question{"recommend", "--sequence-length", "9000", "--dim", "32", "--json"};
    const auto time_of = [&] {
        const attend::Json json = run_attend(question, environment).json();
        const attend::Json& first = json.find("recommendations")->as_array().front();
        REQUIRE(first.find("mechanism")->as_string() == "linear-attention");
        return first.find("est_time_ms");
    };
    CHECK(time_of() == nullptr);
    const Run run = run_attend(quick({"--json"}), environment);
    INFO(run.err);
    REQUIRE(run.status == 0);
    CHECK(run.err.empty());
    const attend::Json report = run.json();
    const std::string path = (folder / "cache") + "/attend/costs.json";
    CHECK(report.find("output")->as_string() == path);
    CHECK(report.find("mechanisms")->as_int64() == 1);
    CHECK(report.find("samples")->as_int64() > 5);
    const attend::Json json = run_attend(question, environment).json();
    const attend::Json& first = json.find("recommendations")->as_array().front();
    REQUIRE(first.find("est_time_ms") != nullptr);
    CHECK(first.find("est_time_ms")->as_double() > 0);
    CHECK(contains(run_attend({"recommend", "--sequence-length", "9000"}, environment).out, " ms, "));
}

TEST_CASE("tuning: a table of another machine or build is not used, and one sentence says what differs") {
    const Folder folder;
    const std::string file = folder / "costs.json";
    REQUIRE(run_attend(quick({"--output", file})).status == 0);
    std::filesystem::create_directories((folder / "cache") + "/attend");
    const std::string place = (folder / "cache") + "/attend/costs.json";
    std::ifstream stream(file);
    const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    const auto told = [&](const std::string& changed) {
        std::ofstream(place) << changed;
        const Run run = run_attend({"recommend", "--sequence-length", "9000", "--json"}, with_cache(folder));
        CHECK(run.status == 0);
        CHECK(run.json().find("recommendations")->as_array().front().find("est_time_ms") == nullptr);
        CHECK(lines(run.err) == 1);
        return run.err;
    };
    const auto with = [&](const std::string& key, const std::string& value) {
        attend::Json json = attend::parse_json(text, "table").value();
        json.set(key, value);
        return attend::write_json(json);
    };
    CHECK(contains(told(with("cpu", "Abacus 3")), "the table is for Abacus 3"));
    CHECK(contains(told(with("isa", "mmx")), "the table is for mmx"));
    CHECK(contains(told("{"), "line 1"));
    CHECK(contains(told(with("version", "two")), "attend tune"));
    std::ofstream(place) << text;
    const Run other =
        run_attend({"recommend", "--sequence-length", "9000", "--backend", "baseline"}, with_cache(folder));
    CHECK(other.status == 0);
    CHECK(contains(other.err, "instruction set"));
    CHECK(run_attend({"recommend", "--sequence-length", "9000"}, with_cache(folder)).err.empty());
    const Run check = run_attend({"tune", "--check", "--output", file, "--backend", "baseline"});
    check_error(check, 2, {"instruction set", "attend tune"});
}

TEST_CASE("tuning: one mechanism more leaves the others in the table") {
    const Folder folder;
    const std::string file = folder / "costs.json";
    REQUIRE(run_attend(quick({"--output", file})).status == 0);
    REQUIRE(run_attend({"tune", "--mechanism", "local-attention", "--seconds", "0.1", "--output", file}).status == 0);
    std::ifstream stream(file);
    const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    const attend::Json json = attend::parse_json(text, "table").value();
    std::vector<std::string> names;
    for (const attend::Json& entry : json.find("mechanisms")->as_array())
        if (names.empty() || names.back() != entry.find("mechanism")->as_string())
            names.push_back(entry.find("mechanism")->as_string());
    CHECK(names == std::vector<std::string>{"local-attention", "linear-attention"});
}

TEST_CASE("tuning: wrong use is refused before anything is measured") {
    const Folder folder;
    check_error(run_attend({"tune", "--mechanism", "linear", "--output", folder / "x"}), 2,
                {"unknown mechanism \"linear\""});
    check_error(run_attend({"tune", "--seconds", "none", "--output", folder / "x"}), 2, {"--seconds: is \"none\""});
    check_error(run_attend({"tune", "--seconds", "0", "--output", folder / "x"}), 2, {"--seconds"});
    check_error(run_attend({"tune", "--output", (folder / "no") + "/x"}), 4, {"cannot be written"});
    check_error(run_attend({"tune", "--check", "--output", folder / "none"}), 2, {"none"});
    CHECK_FALSE(std::filesystem::exists(folder / "x"));
}
