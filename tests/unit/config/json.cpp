// SPDX-License-Identifier: Apache-2.0
// The strict JSON parser, the value type and the writer.
#include <cmath>
#include <limits>
#include <string>

#include "attend/config/json.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

std::string rejected(std::string_view text, const JsonLimits& limits = {}) {
    const auto result = parse_json(text, "file.json", limits);
    INFO(text);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::input);
    return result.error().message;
}

Json accepted(std::string_view text, const JsonLimits& limits = {}) {
    auto result = parse_json(text, "file.json", limits);
    INFO(text);
    REQUIRE(result.ok());
    return std::move(result).value();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string nested(std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("json: scalars keep their kind") {
    CHECK(accepted("null").is_null());
    CHECK(accepted("true").as_bool());
    CHECK_FALSE(accepted(" false ").as_bool());
    CHECK(accepted("\"text\"").as_string() == "text");
    CHECK(accepted("-12").as_int64() == -12);
}

TEST_CASE("json: an integer is a number without fraction and exponent") {
    CHECK(accepted("4").is_int64());
    CHECK(accepted("4.0").is_double());
    CHECK(accepted("4e0").is_double());
    CHECK(accepted("9223372036854775807").as_int64() == INT64_MAX);
    CHECK(accepted("-9223372036854775808").as_int64() == INT64_MIN);
    CHECK(accepted("9223372036854775808").is_uint64());
    CHECK(accepted("18446744073709551615").to_uint64() == UINT64_MAX);
    CHECK(accepted("18446744073709551616").is_double());
}

TEST_CASE("json: doubles are rounded correctly") {
    CHECK(accepted("0.1").as_double() == 0.1);
    CHECK(accepted("2.2250738585072011e-308").as_double() == 2.2250738585072011e-308);
    CHECK(accepted("9007199254740993.0").as_double() == 9007199254740992.0);
    CHECK(accepted("1e-400").as_double() == 0.0);
    CHECK(std::signbit(accepted("-1e-400").as_double()));
    CHECK(accepted("1" + std::string(400, '0') + "e-200").as_double() == 1e200);
}

TEST_CASE("json: a number beyond a double is refused") {
    CHECK(contains(rejected("1e400"), "too large"));
    CHECK(contains(rejected("[-1e999]"), "too large"));
    CHECK(contains(rejected("1" + std::string(400, '0')), "too large"));
    rejected("1e99999999999999");
}

TEST_CASE("json: malformed numbers are refused") {
    for (const char* text :
         {"01", "-", "+1", ".5", "1.", "1e", "1e+", "0x10", "NaN", "Infinity", "-Infinity", "1_000"}) {
        rejected(text);
    }
}

TEST_CASE("json: comments and trailing commas are refused") {
    for (const char* text :
         {"/* a */ 1", "1 // a", "[1,]", "{\"a\":1,}", "[,1]", "[1 2]", "{\"a\" 1}", "{a:1}", "{'a':1}"}) {
        rejected(text);
    }
}

TEST_CASE("json: a key may stand once, at any level") {
    CHECK(contains(rejected(R"({"a":1,"a":1})"), "key \"a\" is given twice"));
    CHECK(contains(rejected(R"({"x":[{"y":{"k":1,"\u006b":2}}]})"), "key \"k\" is given twice"));
    std::string many = "{";
    for (int i = 0; i < 100; ++i) many += "\"k" + std::to_string(i) + "\":0,";
    CHECK(contains(rejected(many + "\"k57\":1}"), "\"k57\""));
    CHECK(accepted(many + "\"k100\":1}").size() == 101);
}

TEST_CASE("json: duplicates are kept for callers that report them themselves") {
    JsonLimits limits;
    limits.reject_duplicates = false;
    CHECK(accepted(R"({"a":1,"a":2})", limits).size() == 2);
}

TEST_CASE("json: invalid UTF-8 is refused") {
    for (const char* text : {"\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf5\x80\x80\x80\"", "\"\xe2\x82\"",
                             "{\"\x80\":1}", "\xef\xbb\xbf{}"}) {
        rejected(text);
    }
    CHECK(accepted("\"\xe2\x82\xac\"").as_string() == "\xe2\x82\xac");
}

TEST_CASE("json: control characters and half surrogates in strings are refused") {
    rejected("\"a\nb\"");
    rejected(std::string("\"a\0b\"", 5));
    rejected(R"("\ud800")");
    rejected(R"("\udc00")");
    rejected(R"("\x41")");
    CHECK(accepted(R"("\ud83d\ude00")").as_string() == "\xf0\x9f\x98\x80");
    CHECK(accepted(R"("\u0000")").as_string().size() == 1);
}

TEST_CASE("json: nesting is limited") {
    accepted(nested(64));
    CHECK(contains(rejected(nested(65)), "64 levels"));
    JsonLimits limits;
    limits.max_depth = 2;
    accepted("{\"a\":[1]}", limits);
    rejected("{\"a\":[[1]]}", limits);
}

TEST_CASE("json: exactly one value") {
    rejected("");
    rejected("   ");
    rejected("1 2");
    rejected("{} x");
    CHECK(contains(rejected("{\"a\":"), "the text ends"));
    accepted(" \t\r\n{}\n ");
    JsonLimits limits;
    limits.allow_trailing_space = false;
    accepted("{}", limits);
    CHECK(contains(rejected("{} ", limits), "nothing after the value"));
}

TEST_CASE("json: the error names line, column and byte") {
    CHECK(contains(rejected("[\n 1,\n  \"\xc3\xa9\" x]"), "file.json: line 3, column 7 (byte 13): unexpected 'x'"));
    CHECK(contains(rejected("{\"a\": [tru]}"), "line 1, column 8"));
    CHECK(contains(rejected(""), "line 1, column 1 (byte 0)"));
}

TEST_CASE("json: objects keep their order") {
    const Json value = accepted(R"({"z":1,"a":{"y":2,"b":3},"m":[1,"x",null,true]})");
    CHECK(value.as_object()[0].first == "z");
    CHECK(value.as_object()[1].first == "a");
    CHECK(write_json(value) == R"({"z":1,"a":{"y":2,"b":3},"m":[1,"x",null,true]})");
}

TEST_CASE("json: a long list of keys keeps its order") {
    std::string text = "{";
    for (int i = 0; i < 3000; ++i) text += (i == 0 ? "\"k" : ",\"k") + std::to_string(i) + "\":" + std::to_string(i);
    text += "}";
    CHECK(write_json(accepted(text)) == text);
}

TEST_CASE("json: the writer escapes and replaces") {
    CHECK(write_json(Json("a\"b\\c\n\t\x01\x7f")) == "\"a\\\"b\\\\c\\n\\t\\u0001\\u007f\"");
    CHECK(write_json(Json("\xff"
                          "a\xc3")) == "\"\\ufffda\\ufffd\"");
    CHECK(write_json(Json("\xe2\x82\xac")) == "\"\xe2\x82\xac\"");
}

TEST_CASE("json: doubles are written as the shortest text that reads back") {
    CHECK(write_json(Json(0.1)) == "0.1");
    CHECK(write_json(Json(4.0)) == "4.0");
    CHECK(write_json(Json(-0.0)) == "-0.0");
    CHECK(write_json(Json(1e22)) == "1e+22");
    for (const double value : {1.0 / 3.0, 5e-324, 1.7976931348623157e308, 123456789.125}) {
        CHECK(accepted(write_json(Json(value))).as_double() == value);
    }
}

TEST_CASE("json: NaN and infinity are written as null") {
    CHECK(write_json(Json(std::nan(""))) == "null");
    CHECK(write_json(Json(-std::numeric_limits<double>::infinity())) == "null");
}

TEST_CASE("json: pretty output reads back as the same value") {
    const Json value = accepted(R"({"a":[{"b":[]},{}],"c":[1,2,3],"d":{},"e":[[1],[2]]})");
    const std::string text = write_json(value, true);
    CHECK(contains(text, "\n  \"c\": [1, 2, 3]"));
    CHECK(accepted(text) == value);
}

TEST_CASE("json: values are built, found and compared") {
    Json value = Json::object();
    value.set("a", 1).set("b", Json::array().push(1.5).push("x")).set("a", 2);
    CHECK(value.size() == 2);
    REQUIRE(value.find("a") != nullptr);
    CHECK(value.find("a")->as_int64() == 2);
    CHECK(value.find("zz") == nullptr);
    CHECK(Json(1).find("a") == nullptr);
    CHECK(value == accepted(R"({"a":2,"b":[1.5,"x"]})"));
    CHECK_FALSE(Json(1) == Json(1.0));
}

TEST_CASE("json: exact conversions of numbers") {
    CHECK(Json(4.0).to_int64() == 4);
    CHECK_FALSE(Json(4.5).to_int64().has_value());
    CHECK_FALSE(Json(9223372036854775808.0).to_int64().has_value());
    CHECK(Json(9223372036854775808.0).to_uint64() == 9223372036854775808U);
    CHECK_FALSE(Json(-1).to_uint64().has_value());
    CHECK_FALSE(Json(18446744073709551616.0).to_uint64().has_value());
    CHECK_FALSE(Json("4").to_int64().has_value());
    CHECK(Json(UINT64_MAX).to_uint64() == UINT64_MAX);
}
