// SPDX-License-Identifier: Apache-2.0
// Initialisers and the port grammar.
#include <cmath>

#include "attend/registry/mechanism_registry.hpp"
#include "service/port_grammar.hpp"
#include "service/weights.hpp"
#include "support/catch.hpp"

using attend::Initialiser;
using attend::Tensor;

namespace {
std::vector<float> made(const std::string& name, std::vector<double> arguments, std::vector<std::int64_t> shape,
                        std::uint64_t seed = 0, const std::string& weight = "m/W", bool out_first = true) {
    const Tensor tensor =
        attend::initialise(Initialiser{name, std::move(arguments), "", ""}, shape, seed, weight, out_first).value();
    return {tensor.as<float>(), tensor.as<float>() + tensor.size()};
}
double extreme(const std::vector<float>& data) {
    double most = 0;
    for (const float x : data) most = std::max(most, std::abs(static_cast<double>(x)));
    return most;
}
}  // namespace

TEST_CASE("weights: hash and normals come out as specified") {
    CHECK(attend::name_hash("moe-attention/Wr") == 0x6f4c82c9u);
    const auto z = made("normal", {0, 1}, {4}, 0, "moe-attention/Wr");
    CHECK(z[0] == Approx(-1.0339916).epsilon(1e-6));
    CHECK(z[1] == Approx(0.5854058).epsilon(1e-6));
    CHECK(z[2] == Approx(0.8075701).epsilon(1e-6));
    CHECK(z[3] == Approx(0.1696807).epsilon(1e-6));
}

TEST_CASE("utilities: initialisers keep their bounds") {
    CHECK(extreme(made("xavierUniform", {}, {30, 50})) <= std::sqrt(6.0 / 80));
    CHECK(extreme(made("xavierUniform", {}, {30, 50})) >= 0.98 * std::sqrt(6.0 / 80));
    CHECK(extreme(made("kaimingUniform", {}, {30, 50})) <= 1 / std::sqrt(50.0));
    CHECK(extreme(made("kaimingUniform", {}, {30, 50}, 0, "m/W", false)) >= 0.98 / std::sqrt(30.0));
    CHECK(extreme(made("uniform", {0.25}, {1000})) <= 0.25);
    for (const float x : made("uniform", {2, 3}, {1000})) CHECK((x >= 2.0f && x <= 3.0f));
    CHECK(extreme(made("truncNormal", {0.5}, {5000})) <= 1.0);
}

TEST_CASE("utilities: initialisers have their moments") {
    const auto z = made("normal", {0.5, 2}, {20000});
    double mean = 0, square = 0;
    for (const float x : z) mean += static_cast<double>(x) / 20000;
    for (const float x : z) square += (static_cast<double>(x) - mean) * (static_cast<double>(x) - mean) / 20000;
    CHECK(std::abs(mean - 0.5) < 5 * 2 / std::sqrt(20000.0));
    CHECK(std::abs(std::sqrt(square) - 2) < 0.06);
}

TEST_CASE("utilities: an element depends on seed, name and index alone") {
    const auto small = made("normal", {0, 1}, {10}), large = made("normal", {0, 1}, {20});
    CHECK(std::equal(small.begin(), small.end(), large.begin()));
    CHECK(made("normal", {0, 1}, {10}, 1) != small);
    CHECK(made("normal", {0, 1}, {10}, 0, "m/V") != small);
}

TEST_CASE("utilities: constants, identity and orthogonal weights") {
    CHECK(made("zeros", {}, {3}) == std::vector<float>{0, 0, 0});
    CHECK(made("ones", {}, {2}) == std::vector<float>{1, 1});
    CHECK(made("constant", {2.5}, {2}) == std::vector<float>{2.5f, 2.5f});
    CHECK(made("identity", {}, {2, 2, 2}) == std::vector<float>{1, 0, 0, 1, 1, 0, 0, 1});
    const auto q = made("orthogonal", {}, {6, 6});
    for (std::size_t a = 0; a < 6; ++a)
        for (std::size_t b = 0; b < 6; ++b) {
            double dot = 0;
            for (std::size_t c = 0; c < 6; ++c)
                dot += static_cast<double>(q[a * 6 + c]) * static_cast<double>(q[b * 6 + c]);
            CHECK(std::abs(dot - (a == b ? 1.0 : 0.0)) < 1e-6);
        }
    CHECK_FALSE(attend::initialise(Initialiser{"nonsense", {}, "", ""}, {2}, 0, "m/W", true).ok());
}

TEST_CASE("ports: names that stand for several weights") {
    CHECK(attend::repeated_by("s_{layers}.wq") == "layers");
    CHECK(attend::repeated_by("wq").empty());
    CHECK(attend::repeated_name("s_{layers}.Wq", 12) == "s_12.Wq");
    CHECK(attend::repeated_name("wq", 3) == "wq");
    CHECK(attend::repeated_number("s_{layers}.wq", "s_3.wq") == 3);
    CHECK(attend::repeated_number("s_{layers}.wq", "s_42.wq") == 42);
    for (const char* other : {"s_0.wq", "s_03.wq", "s_.wq", "s_1.wk", "t_1.wq", "s_1", "s_1.wq2", "", "wq",
                              "s_9999999999999999999.wq", "s_{layers}.wq"})
        CHECK(attend::repeated_number("s_{layers}.wq", other) == 0);
    CHECK(attend::repeated_number("wq", "wq") == 0);
}

TEST_CASE("ports: expressions, alternatives and guards") {
    attend::OptionSpec flag, mode, number;
    flag.name = "flag", flag.type = attend::OptionType::boolean;
    mode.name = "mode", mode.type = attend::OptionType::enumeration, mode.choices = {"one", "two"};
    number.name = "number", number.type = attend::OptionType::integer;
    attend::OptionSpec factors, parts;
    factors.name = "factors", factors.type = attend::OptionType::integer_list;
    parts.name = "parts", parts.type = attend::OptionType::integer_list, parts.choices = {"dense", "dot"};
    const std::vector<attend::OptionSpec> specs{flag, mode, number, factors, parts};
    std::vector<attend::OptionValue> values(5);
    values[3] = {"factors", attend::OptionType::integer_list, true, false, std::vector<std::int64_t>{6, 5}};
    values[4] = {"parts", attend::OptionType::integer_list, true, false, std::vector<std::int64_t>{1}};
    values[0] = {"flag", attend::OptionType::boolean, true, false, true};
    values[1] = {"mode", attend::OptionType::enumeration, true, false, std::int64_t{1}};
    values[2] = {"number", attend::OptionType::none, false, false, {}};
    attend::PortScope scope{{{"E", 12.0}, {"H", 3.0}}, &specs, &values};
    const auto number_of = [&](const char* text) { return attend::Expression::parse(text).value().evaluate(scope); };
    CHECK(number_of("E/H + 2*(H-1)") == 8.0);
    CHECK(number_of("or(number, E)") == 12.0);
    CHECK(number_of("flag + 1") == 2.0);
    CHECK(number_of("sqrt(E*H)") == 6.0);
    CHECK(number_of("ceil(sqrt(E))") == 4.0);
    CHECK(number_of("round(5/2)") == 2.0);
    CHECK(number_of("round(7/2)") == 4.0);
    CHECK(number_of("round(12/5)") == 2.0);
    CHECK(number_of("round(13/5)") == 3.0);
    CHECK(number_of("count(parts)*10 + item(factors,1)") == 15.0);
    CHECK(number_of("or(item(factors,2),ceil(E/5))") == 3.0);
    CHECK_FALSE(number_of("count(number)").has_value());
    CHECK_FALSE(attend::Expression::parse("count(2)").ok());
    CHECK_FALSE(number_of("number").has_value());
    CHECK_FALSE(attend::Expression::parse("E +").ok());
    CHECK(attend::Expression::parse("or(number,K)").value().bindable(scope) == "K");
    const auto chosen = [&](const char* text) {
        const attend::PortShape shape = attend::PortShape::parse(text).value();
        const auto* alternative = shape.choose(scope);
        return alternative == nullptr ? std::string("none") : alternative->text;
    };
    CHECK(chosen("!flag: 1 | mode=two & flag: E,H | 7") == "E,H");
    CHECK(chosen("mode=one: E") == "none");
    CHECK(chosen("mode!=one: E") == "E");
    CHECK(chosen("parts=dense: E | parts!=dense & parts=dot: H") == "H");
    CHECK(chosen("or(number,H)=3: E,E") == "E,E");
    const attend::PortShape by_rank = attend::PortShape::parse("E | E,H").value(),
                            bounded = attend::PortShape::parse("upto(E*2),3").value();
    CHECK(by_rank.choose(scope, 2)->dims.size() == 2);
    CHECK(bounded.choose(scope)->dynamic_rows);
    CHECK(bounded.choose(scope)->dynamic_axis == 0);
    const attend::PortShape last = attend::PortShape::parse("H,upto(given(nnz,0)+E)").value();
    CHECK(last.choose(scope)->dynamic_axis == 1);
    CHECK_FALSE(attend::PortShape::parse("upto(E),upto(H)").ok());
    const auto init =
        attend::PortInit::parse("E=H: zeros | normal(0,0.02/sqrt(H*H)) as Wo").value().choose(scope).value();
    CHECK(init.name == "normal");
    CHECK(init.table_name == "Wo");
    CHECK(init.arguments[1] == Approx(0.02 / 3));
    // given(a,b): open while a tensor may still bind a, and b if none did.
    const attend::Expression latents = attend::Expression::parse("or(number,given(L,512))").value();
    CHECK_FALSE(latents.evaluate(scope, true).has_value());
    CHECK(latents.bindable(scope) == "L");
    CHECK(latents.evaluate(scope) == 512.0);
    scope.symbols["L"] = 7.0;
    CHECK(latents.evaluate(scope, true) == 7.0);
    CHECK(latents.evaluate(scope) == 7.0);
    // Guards see which inputs the call has.
    scope.inputs = {{"query", true}, {"bias", false}};
    CHECK(chosen("bias: E | query: H | 7") == "H");
    CHECK(chosen("!query: E | !bias: E,H") == "E,H");
    CHECK(chosen("absent: E | !absent: E") == "none");
    CHECK_FALSE(attend::PortShape::parse("E,,H").ok());
    CHECK_FALSE(attend::PortShape::parse("a b").ok());
}
