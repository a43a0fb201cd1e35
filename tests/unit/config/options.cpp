// SPDX-License-Identifier: Apache-2.0
// Values against option tables.
#include <limits>
#include <string>
#include <vector>

#include "attend/config/options.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

std::vector<OptionSpec> table() {
    std::vector<OptionSpec> rows;
    rows.push_back({.name = "window",
                    .help = "keys seen on each side of a query",
                    .type = OptionType::integer,
                    .default_value = Json(256),
                    .min = 1,
                    .max = 65536});
    rows.push_back({.name = "causal", .type = OptionType::boolean, .default_value = Json(false)});
    rows.push_back({.name = "scale", .type = OptionType::real, .min = std::numeric_limits<double>::denorm_min()});
    rows.push_back(
        {.name = "dropout", .type = OptionType::real, .default_value = Json(0), .min = 0, .max = 1.0 - 0x1p-53});
    rows.push_back({.name = "rope_scaling",
                    .type = OptionType::enumeration,
                    .default_value = Json("none"),
                    .choices = {"none", "dynamicNtk", "query-softmax", "true"}});
    rows.push_back({.name = "note", .type = OptionType::text});
    rows.push_back({.name = "seed", .type = OptionType::integer, .default_value = Json(0), .min = 0, .max = 0x1p64});
    rows.push_back({.name = "global_tokens",
                    .type = OptionType::integer_list,
                    .default_value = Json(0),
                    .min = 0,
                    .max = 1000,
                    .scalar_ok = true});
    rows.push_back({.name = "slopes", .type = OptionType::real_list, .max = 8});
    rows.push_back({.name = "offset", .type = OptionType::integer});
    rows.push_back({.name = "permutations", .type = OptionType::integer_list, .min = 0, .max = 100, .rows = true});
    return rows;
}

std::vector<OptionValue> complete(const NamedValues& given) {
    auto result = complete_options("test-attention", table(), given);
    if (!result.ok()) FAIL(result.error().message);
    return std::move(result).value();
}

std::string refused(const NamedValues& given) {
    const auto result = complete_options("test-attention", table(), given);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::option);
    return result.error().message;
}

const OptionValue& named(const std::vector<OptionValue>& values, const std::string& name) {
    for (const OptionValue& value : values) {
        if (value.name == name) return value;
    }
    FAIL("no option " << name);
    return values.front();
}

const OptionSpec& spec(const std::vector<OptionSpec>& rows, const std::string& name) {
    for (const OptionSpec& row : rows) {
        if (row.name == name) return row;
    }
    FAIL("no row " << name);
    return rows.front();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("options: every row gets a value, in table order, defaults filled in") {
    const auto values = complete({});
    REQUIRE(values.size() == table().size());
    CHECK(values[0].name == "window");
    CHECK(std::get<std::int64_t>(values[0].value) == 256);
    CHECK_FALSE(values[0].given);
    CHECK(values[2].type == OptionType::none);
    CHECK(std::holds_alternative<std::monostate>(values[2].value));
    CHECK(std::get<double>(values[3].value) == 0.0);
}

TEST_CASE("options: given values are marked") {
    const auto values = complete({{"causal", Json(true)}});
    CHECK(named(values, "causal").given);
    CHECK(std::get<bool>(named(values, "causal").value));
}

TEST_CASE("options: both spellings of a name") {
    CHECK(std::get<std::int64_t>(named(complete({{"ropeScaling", Json("none")}}), "rope_scaling").value) == 0);
    CHECK(named(complete({{"globalTokens", Json(3)}}), "global_tokens").given);
}

TEST_CASE("options: an unknown name gets the nearest and the list") {
    const std::string message = refused({{"windw", Json(1)}});
    CHECK(contains(message,
                   "test-attention: unknown option \"windw\"; did you mean \"window\"? It has: window, causal, "));
    CHECK(contains(refused({{"qqqqqqqqqq", Json(1)}}), "; it has: window"));
}

TEST_CASE("options: a name given twice, also in both spellings") {
    CHECK(contains(refused({{"window", Json(1)}, {"window", Json(1)}}), "is given twice"));
    CHECK(contains(refused({{"global_tokens", Json(1)}, {"globalTokens", Json(1)}}),
                   "(as \"global_tokens\" and as \"globalTokens\")"));
}

TEST_CASE("options: both bounds of an integer, and one past each") {
    CHECK(std::get<std::int64_t>(complete({{"window", Json(1)}})[0].value) == 1);
    CHECK(std::get<std::int64_t>(complete({{"window", Json(65536)}})[0].value) == 65536);
    CHECK(refused({{"window", Json(0)}}) ==
          "test-attention: option \"window\" is 0; accepted: integer from 1 to 65536 (keys seen on each side of a "
          "query)");
    CHECK(contains(refused({{"window", Json(65537)}}), "is 65537"));
}

TEST_CASE("options: an integer takes a whole double and nothing else") {
    CHECK(std::get<std::int64_t>(complete({{"window", Json(4.0)}})[0].value) == 4);
    for (const Json& value : {Json(4.5), Json("4"), Json(true), Json(), Json::array(), Json(1e300)}) {
        refused({{"window", value}});
    }
}

TEST_CASE("options: a signed integer without bounds takes all of 64 bits and no more") {
    CHECK(std::get<std::int64_t>(named(complete({{"offset", Json(INT64_MIN)}}), "offset").value) == INT64_MIN);
    CHECK(std::get<std::int64_t>(named(complete({{"offset", Json(INT64_MAX)}}), "offset").value) == INT64_MAX);
    refused({{"offset", Json(UINT64_MAX)}});
    refused({{"offset", Json(9223372036854775808.0)}});
}

TEST_CASE("options: an unsigned integer takes up to 2^64 - 1 and keeps its bits") {
    const auto values = complete({{"seed", Json(UINT64_MAX)}});
    CHECK(std::get<std::int64_t>(named(values, "seed").value) == -1);
    const auto rows = table();
    CHECK(write_json(option_to_json(spec(rows, "seed"), named(values, "seed"))) == "18446744073709551615");
    CHECK(contains(refused({{"seed", Json(-1)}}), "integer from 0 to 18446744073709551615"));
    refused({{"seed", Json(18446744073709551616.0)}});
}

TEST_CASE("options: a real takes integers and refuses NaN, infinity and values past its bounds") {
    CHECK(std::get<double>(named(complete({{"dropout", Json(0)}}), "dropout").value) == 0.0);
    CHECK(std::get<double>(named(complete({{"dropout", Json(0.5)}}), "dropout").value) == 0.5);
    for (const double value :
         {1.0, -0.001, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        refused({{"dropout", Json(value)}});
    }
    CHECK(contains(refused({{"dropout", Json(1)}}), "number of at least 0 and below 1"));
    CHECK(contains(refused({{"scale", Json(0)}}), "number above 0"));
    CHECK(std::get<double>(named(complete({{"scale", Json(1e-300)}}), "scale").value) == 1e-300);
}

TEST_CASE("options: an enumeration takes its choices as spelled and folded") {
    CHECK(std::get<std::int64_t>(named(complete({{"rope_scaling", Json("dynamicNtk")}}), "rope_scaling").value) == 1);
    CHECK(std::get<std::int64_t>(named(complete({{"rope_scaling", Json("dynamic_ntk")}}), "rope_scaling").value) == 1);
    CHECK(std::get<std::int64_t>(named(complete({{"rope_scaling", Json("query-softmax")}}), "rope_scaling").value) ==
          2);
    CHECK(std::get<std::int64_t>(named(complete({{"rope_scaling", Json(true)}}), "rope_scaling").value) == 3);
    const std::string message = refused({{"rope_scaling", Json("dynamicNt")}});
    CHECK(contains(message, "accepted: one of none, dynamicNtk, query-softmax, true"));
    CHECK(contains(message, "did you mean \"dynamicNtk\"?"));
    refused({{"rope_scaling", Json(7)}});
}

TEST_CASE("options: lists check every element") {
    const auto values = complete({{"slopes", Json::array().push(1).push(0.5)}});
    CHECK(std::get<std::vector<double>>(named(values, "slopes").value) == std::vector<double>{1.0, 0.5});
    refused({{"slopes", Json::array().push(9)}});
    refused({{"slopes", Json::array().push("1")}});
    refused({{"slopes", Json(1)}});
    CHECK(std::get<std::vector<double>>(named(complete({{"slopes", Json::array()}}), "slopes").value).empty());
}

TEST_CASE("options: a list of words") {
    const std::vector<attend::OptionSpec> rows{{.name = "parts",
                                                .type = OptionType::integer_list,
                                                .default_value = Json("dense"),
                                                .min = 0,
                                                .max = 2,
                                                .choices = {"dense", "random", "factorized-dense"},
                                                .scalar_ok = true}};
    const auto run = [&](const Json& value) { return attend::complete_options("m", rows, {{"parts", value}}); };
    const auto indices = [](const attend::OptionValue& value) {
        return std::get<std::vector<std::int64_t>>(value.value);
    };
    const auto initial = attend::complete_options("m", rows, {}).value();
    CHECK(indices(initial[0]) == std::vector<std::int64_t>{0});
    CHECK(write_json(option_to_json(rows[0], initial[0])) == "\"dense\"");
    const auto both = run(Json::array().push("factorized-dense").push("random")).value();
    CHECK(indices(both[0]) == std::vector<std::int64_t>{2, 1});
    CHECK(write_json(option_to_json(rows[0], both[0])) == "[\"factorized-dense\",\"random\"]");
    for (const char* text : {"random,dense", "[\"random\",\"dense\"]"})
        CHECK(indices(run(attend::parse_option_text(rows[0], text)).value()[0]) == std::vector<std::int64_t>{1, 0});
    CHECK(indices(run(attend::parse_option_text(rows[0], "random")).value()[0]) == std::vector<std::int64_t>{1});
    const auto refusal = run(Json::array().push("random").push("dence"));
    REQUIRE_FALSE(refusal);
    CHECK(contains(refusal.error().message, "accepted: one word or a list of words, each one of dense, random"));
    CHECK(contains(refusal.error().message, "did you mean \"dense\"?"));
    CHECK_FALSE(run(Json(1)).ok());
    CHECK_FALSE(run(Json::array().push(1)).ok());
}

TEST_CASE("options: a list that takes a bare number remembers that it was bare") {
    const auto rows = table();
    const auto bare = complete({{"global_tokens", Json(4)}});
    CHECK(named(bare, "global_tokens").scalar);
    CHECK(std::get<std::vector<std::int64_t>>(named(bare, "global_tokens").value) == std::vector<std::int64_t>{4});
    CHECK(write_json(option_to_json(spec(rows, "global_tokens"), named(bare, "global_tokens"))) == "4");
    const auto list = complete({{"global_tokens", Json::array().push(4)}});
    CHECK_FALSE(named(list, "global_tokens").scalar);
    CHECK(write_json(option_to_json(spec(rows, "global_tokens"), named(list, "global_tokens"))) == "[4]");
    CHECK(named(complete({}), "global_tokens").scalar);
    refused({{"global_tokens", Json(-1)}});
}

TEST_CASE("options: null means not given, but only without a default") {
    const auto values = complete({{"scale", Json()}});
    CHECK_FALSE(named(values, "scale").given);
    CHECK(named(values, "scale").type == OptionType::none);
    CHECK(contains(refused({{"window", Json()}}), "is null"));
}

TEST_CASE("options: a required option must be there") {
    std::vector<OptionSpec> rows = table();
    rows[5].required = true;
    const auto result = complete_options("test-attention", rows, {});
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().message == "test-attention: option \"note\" is missing; accepted: text");
    CHECK_FALSE(complete_options("test-attention", rows, {{"note", Json()}}).ok());
    CHECK(complete_options("test-attention", rows, {{"note", Json("x")}}).ok());
}

TEST_CASE("options: check reports every problem") {
    const auto problems =
        check_options("test-attention", table(),
                      {{"windw", Json(1)}, {"window", Json(0)}, {"causal", Json(1)}, {"note", Json("fine")}});
    REQUIRE(problems.size() == 3);
    CHECK(contains(problems[0].message, "windw"));
    CHECK(contains(problems[1].message, "is 0"));
    CHECK(contains(problems[2].message, "accepted: true or false"));
    CHECK(check_options("test-attention", table(), {}).empty());
}

TEST_CASE("options: a default outside its own table is our mistake") {
    std::vector<OptionSpec> rows{{.name = "a", .type = OptionType::integer, .default_value = Json(0), .min = 1}};
    const auto result = complete_options("x", rows, {});
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::internal);
}

TEST_CASE("options: values from a command line are JSON or bare") {
    const auto rows = table();
    CHECK(parse_option_text(spec(rows, "window"), "128") == Json(128));
    CHECK(parse_option_text(spec(rows, "causal"), "true") == Json(true));
    CHECK(parse_option_text(spec(rows, "rope_scaling"), "dynamicNtk") == Json("dynamicNtk"));
    CHECK(parse_option_text(spec(rows, "rope_scaling"), "\"none\"") == Json("none"));
    CHECK(parse_option_text(spec(rows, "rope_scaling"), "true") == Json("true"));
    CHECK(parse_option_text(spec(rows, "note"), "12") == Json("12"));
    CHECK(parse_option_text(spec(rows, "note"), "a word, or two") == Json("a word, or two"));
    CHECK(parse_option_text(spec(rows, "global_tokens"), "[1,2]") == Json(Json::Array{Json(1), Json(2)}));
    CHECK(parse_option_text(spec(rows, "global_tokens"), "1,2") == Json(Json::Array{Json(1), Json(2)}));
    CHECK(parse_option_text(spec(rows, "global_tokens"), "4") == Json(4));
    CHECK(parse_option_text(spec(rows, "window"), "many") == Json("many"));
    CHECK(parse_bare_value("0.5") == Json(0.5));
    CHECK(parse_bare_value("cosine") == Json("cosine"));
}

TEST_CASE("options: long values are cut off in messages") {
    const std::string message = refused({{"window", Json(std::string(5000, 'x'))}});
    CHECK(message.size() < 300);
    CHECK(contains(message, "..."));
}

TEST_CASE("lists of rows arrive flat, their number first", "[options]") {
    const auto rows = [](const char* text) { return parse_json(text, "test").value(); };
    const OptionSpec spec = table().back();
    REQUIRE(spec.name == "permutations");
    for (const char* text : {"[[2,0,1],[0,1,2]]", "[[5]]", "[[],[]]", "[]"}) {
        INFO(text);
        const auto values = complete({{"permutations", rows(text)}});
        CHECK(write_json(option_to_json(spec, named(values, "permutations"))) == text);
    }
    const auto values = complete({{"permutations", rows("[[2,0,1],[0,1,2]]")}});
    CHECK(std::get<std::vector<std::int64_t>>(named(values, "permutations").value) ==
          std::vector<std::int64_t>{2, 2, 0, 1, 0, 1, 2});
    CHECK(named(complete({}), "permutations").type == OptionType::none);
    for (const char* text : {"[[0,1],[0]]", "[0,1]", "7", "[[0,1],[0,\"a\"]]", "[[0,101]]", "[[-1]]"}) {
        INFO(text);
        CHECK(refused({{"permutations", rows(text)}}).find("list of lists of one length, of integers from 0 to 100") !=
              std::string::npos);
    }
    CHECK(write_json(parse_option_text(spec, "[[1,0],[0,1]]")) == "[[1,0],[0,1]]");
}
