// SPDX-License-Identifier: Apache-2.0
// Identities of mixture-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* mixture = "mixture-attention";
constexpr const char* standard = "standard-mha";
constexpr Limits limits{.group = 2, .length = 50, .square = false, .same_width = false};

NamedValues plus(NamedValues a, const NamedValues& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
NamedValues patterns(const std::vector<std::string>& names) {
    attend::Json list = attend::Json::array();
    for (const std::string& name : names) list.push(name);
    return {{"patterns", list}};
}
std::string call(const char* name, std::int64_t a) { return std::string(name) + "(" + std::to_string(a) + ")"; }
std::string call(const char* name, std::int64_t a, std::int64_t b) {
    return std::string(name) + "(" + std::to_string(a) + "," + std::to_string(b) + ")";
}

// A pattern on its own: its one gate is 1.
ForwardResult alone(ForwardInputs inputs, const std::string& pattern, const NamedValues& options = {}) {
    inputs.weights.clear();
    return forward(inputs, mixture, plus(patterns({pattern}), options));
}
// Column p of the log-sum-exp [B, Hq, Nq, P].
Tensor column(const Tensor& lse, std::int64_t p) {
    const Tensor one = take(lse, 3, {p});
    return one.view({lse.shape[0], lse.shape[1], lse.shape[2]}, {lse.shape[1] * lse.shape[2], lse.shape[2], 1});
}
// Gates [B, Hq, Nq, P], positive, of sum 1.
Tensor convex_gates(Random& random, const Shape& s, std::int64_t count) {
    Tensor gates = filled({s.batch, s.heads, s.q_len, count}, 0.0f);
    for (std::int64_t row = 0; row < gates.size() / count; ++row) {
        double sum = 0;
        std::vector<double> parts;
        for (std::int64_t p = 0; p < count; ++p)
            sum += parts.emplace_back(std::exp(static_cast<double>(random.normal())));
        for (std::int64_t p = 0; p < count; ++p)
            gates.as<float>()[row * count + p] = static_cast<float>(parts[static_cast<std::size_t>(p)] / sum);
    }
    return gates;
}
// sum += gate * part, gate by row.
void add_gated(Tensor& sum, const Tensor& part, const std::function<double(std::int64_t)>& gate) {
    const std::int64_t width = sum.shape[3];
    const std::vector<float> from = values(part);
    for (std::int64_t at = 0; at < sum.size(); ++at)
        sum.as<float>()[at] +=
            static_cast<float>(gate(at / width) * static_cast<double>(from[static_cast<std::size_t>(at)]));
}

// The patterns by their definitions.
struct Pattern {
    std::string text;
    std::function<bool(std::int64_t, std::int64_t)> shows;  // (i', j)
};
std::vector<Pattern> some_patterns(Random& random) {
    const std::int64_t w = 1 + random.below(12), r = 1 + random.below(5), s = random.below(6), c = 1 + random.below(6),
                       b = 1 + random.below(15);
    const auto floor_of = [](std::int64_t x, std::int64_t n) { return x >= 0 ? x / n : -((-x + n - 1) / n); };
    using I = std::int64_t;
    return {{"global", [](I, I) { return true; }},
            {call("local", w), [=](I i, I j) { return std::abs(i - j) < w; }},
            {call("remote", w), [=](I i, I j) { return std::abs(i - j) >= w; }},
            {call("dilated", w, r), [=](I i, I j) { return std::abs(i - j) < w * r && (i - j) % r == 0; }},
            {call("sink", s, w), [=](I i, I j) { return j < s || std::abs(i - j) < w; }},
            {call("strided", c), [=](I i, I j) { return (i - j) % c == 0; }},
            {call("block", b), [=](I i, I j) { return floor_of(i, b) == floor_of(j, b); }}};
}

}  // namespace

TEST_CASE("mixture-attention: patterns that coincide") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        for (const bool causal : {false, true}) {
            const NamedValues options = {{"causal", causal}};
            inputs.weights.clear();
            const ForwardResult plain = forward(inputs, standard, options);
            inputs.weights = {{"gate_logits", normal(random, {s.heads, 3})}};
            const ForwardResult same =
                forward(inputs, mixture, plus(options, patterns({"global", "global", "global"})));
            CHECK(agree(same.output, plain.output));
            for (const std::int64_t p : {0, 1, 2}) CHECK(agree(column(*same.lse, p), *plain.lse));
            ForwardInputs gated = inputs;
            gated.weights.clear();
            gated.extra = {{"gates", convex_gates(random, s, 2)}};
            CHECK(agree(forward(gated, mixture,
                                plus(plus(options, patterns({"global", "global"})), {{"gate_mode", "explicit"}}))
                            .output,
                        plain.output));
            const std::int64_t w = 1 + random.below(20);
            const ForwardResult one = alone(inputs, call("local", w), options),
                                other = alone(inputs, call("dilated", w, 1), options);
            CHECK(agree(other, one));
        }
    });
    Limits square = limits;
    square.square = true;
    on_random_shapes(square, [](Random& random, const Shape& s) {
        const ForwardInputs inputs = make_inputs(random, s);
        CHECK(agree(alone(inputs, call("local", s.kv_len + random.below(3))), alone(inputs, "global")));
    });
}

TEST_CASE("mixture-attention: clamped gate") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const std::string first = call("local", 1 + random.below(8)), second = call("sink", 2, 1 + random.below(5));
        const Tensor a = alone(inputs, first).output, b = alone(inputs, second).output;
        const NamedValues options = plus(patterns({first, second}), {{"gate_mode", "clamp"}});
        CHECK(agree(forward(inputs, mixture, options).output, a));  // ones are the default
        for (const bool by_key_head : {true, false})
            for (const double factor : {0.2, 1.0, 5.0}) {
                const std::int64_t count = by_key_head ? s.kv_heads : s.heads;
                const Tensor alpha =
                    mapped(normal(random, {count}), [&](float x) { return static_cast<float>(factor) * x + 0.5f; });
                inputs.weights = {{"gate_alpha", alpha}};
                Tensor expected = filled(a.shape, 0.0f);
                const auto gate = [&](std::int64_t row) {
                    const std::int64_t head = row / s.q_len % s.heads,
                                       at = by_key_head ? head * s.kv_heads / s.heads : head;
                    return std::clamp(static_cast<double>(alpha.as<float>()[at]), 0.0, 1.0);
                };
                add_gated(expected, a, gate);
                add_gated(expected, b, [&](std::int64_t row) { return 1.0 - gate(row); });
                CHECK(agree(forward(inputs, mixture, options).output, expected));
            }
        for (const float alpha : {1.0f, 3.0f, 0.0f, -2.0f}) {
            inputs.weights = {{"gate_alpha", filled({s.heads}, alpha)}};
            CHECK(agree(forward(inputs, mixture, options).output, alpha > 0.5f ? a : b));
        }
    });
}

TEST_CASE("mixture-attention: partition") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const std::int64_t w = 1 + random.below(20);
        for (const bool causal : {false, true}) {
            const NamedValues options = plus(patterns({call("local", w), call("remote", w)}), {{"causal", causal}});
            inputs.extra.clear();
            const ForwardResult parts = forward(inputs, mixture, options),
                                plain = forward(inputs, standard, {{"causal", causal}});
            Tensor gates = filled(parts.lse->shape, 0.0f);
            for (std::int64_t row = 0; row < gates.size() / 2; ++row) {
                const double a = static_cast<double>(parts.lse->as<float>()[2 * row]),
                             b = static_cast<double>(parts.lse->as<float>()[2 * row + 1]), most = std::max(a, b);
                if (std::isinf(most)) continue;  // no key at all
                const double sum = most + std::log(std::exp(a - most) + std::exp(b - most));
                gates.as<float>()[2 * row] = static_cast<float>(std::exp(a - sum));
                gates.as<float>()[2 * row + 1] = static_cast<float>(std::exp(b - sum));
            }
            inputs.extra = {{"gates", gates}};
            CHECK(agree(forward(inputs, mixture, plus(options, {{"gate_mode", "explicit"}})).output, plain.output));
        }
    });
}

TEST_CASE("mixture-attention: convex gates") {
    on_random_shapes(limits, [](Random& random, Shape s) {
        s.kv_len += s.q_len;  // every query has a key of its own
        ForwardInputs inputs = make_inputs(random, s);
        const NamedValues chosen = patterns({call("local", 1 + random.below(9)), "global", call("dilated", 3, 2),
                                             call("sink", 1, 4), call("block", 7)});
        inputs.extra = {{"gates", convex_gates(random, s, 5)}};
        const NamedValues options = plus(chosen, {{"gate_mode", "explicit"}, {"causal", true}});
        const Tensor output = forward(inputs, mixture, options).output;
        std::int64_t outside = 0;
        for (std::int64_t b = 0; b < s.batch; ++b)
            for (std::int64_t h = 0; h < s.heads; ++h)
                for (std::int64_t i = 0; i < s.q_len; ++i)
                    for (std::int64_t d = 0; d < s.value_dim; ++d) {
                        float least = std::numeric_limits<float>::infinity(), most = -least;
                        for (std::int64_t j = 0; j <= i + s.kv_len - s.q_len; ++j) {
                            const float v = at(*inputs.value, b, h * s.kv_heads / s.heads, j, d);
                            least = std::min(least, v);
                            most = std::max(most, v);
                        }
                        const float o = at(output, b, h, i, d);
                        if (o < least - 1e-5f * (1 + std::abs(least)) || o > most + 1e-5f * (1 + std::abs(most)))
                            ++outside;
                    }
        CHECK(outside == 0);

        inputs.value = filled(inputs.value->shape, 1.0f);
        for (const bool convex : {true, false}) {
            Tensor gates = convex_gates(random, s, 5);
            if (!convex) gates = mapped(gates, [](float x) { return 3.0f * x * x; });
            inputs.extra = {{"gates", gates}};
            Tensor sums = filled(output.shape, 0.0f);
            for (std::int64_t p = 0; p < 5; ++p)
                add_gated(sums, filled(output.shape, 1.0f),
                          [&](std::int64_t row) { return static_cast<double>(gates.as<float>()[row * 5 + p]); });
            CHECK(agree(forward(inputs, mixture, options).output, sums));
        }
    });
}

TEST_CASE("mixture-attention: hard gates") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const NamedValues chosen = patterns({"global", call("local", 3), call("strided", 4), call("sink", 2, 2)});
        Tensor logits = filled({s.heads, 4}, 0.0f);
        for (std::int64_t h = 0; h < s.heads; ++h) {
            const std::vector<std::int64_t> order = shuffled(random, 4);
            for (std::size_t p = 0; p < 4; ++p)
                logits.as<float>()[h * 4 + static_cast<std::int64_t>(p)] = 0.01f * static_cast<float>(order[p]) - 1.0f;
        }
        inputs.weights = {{"gate_logits", logits}};
        const ForwardResult hard = forward(inputs, mixture, plus(chosen, {{"gate_mode", "hard"}}));
        inputs.weights = {{"gate_logits", mapped(logits, [](float x) { return 1e4f * x; })}};
        CHECK(agree(hard, forward(inputs, mixture, chosen)));
        inputs.weights = {{"gate_logits", filled({s.heads, 4}, 0.5f)}};  // the lowest index wins a tie
        CHECK(agree(forward(inputs, mixture, plus(chosen, {{"gate_mode", "hard"}})).output,
                    alone(inputs, "global").output));
        const std::int64_t w = 1 + random.below(20);
        CHECK(agree(alone(inputs, call("sink", 0, w)), alone(inputs, call("local", w))));
    });
}

TEST_CASE("mixture-attention: each pattern is a masked call") {
    on_random_shapes(
        limits,
        [](Random& random, const Shape& s) {
            ForwardInputs inputs = make_inputs(random, s);
            const std::vector<Pattern> all = some_patterns(random);
            std::vector<std::string> names;
            for (const Pattern& pattern : all) names.push_back(pattern.text);
            const auto count = static_cast<std::int64_t>(all.size());
            for (const char* alignment : {"bottom-right", "top-left"})
                for (const bool causal : {false, true}) {
                    const NamedValues options = {{"causal", causal}, {"causal_alignment", alignment}};
                    const Tensor gates = convex_gates(random, s, count);
                    inputs.extra = {{"gates", gates}};
                    const ForwardResult got = forward(
                        inputs, mixture, plus(plus(options, patterns(names)), {{"gate_mode", "explicit"}}), true);
                    REQUIRE(got.lse->shape == std::vector<std::int64_t>{s.batch, s.heads, s.q_len, count});
                    Tensor output = filled(got.output.shape, 0.0f), scores = filled(got.scores->shape, 0.0f);
                    for (std::int64_t p = 0; p < count; ++p) {
                        const Pattern& pattern = all[static_cast<std::size_t>(p)];
                        INFO(pattern.text << ' ' << alignment << (causal ? ", causal" : ""));
                        const std::int64_t offset = alignment[0] == 'b' ? s.kv_len - s.q_len : 0;
                        ForwardInputs masked = inputs;
                        masked.extra.clear();
                        masked.mask = bools({1, 1, s.q_len, s.kv_len}, [&](const std::vector<std::int64_t>& at) {
                            return pattern.shows(at[2] + offset, at[3]);
                        });
                        const ForwardResult part = forward(masked, standard, options, true);
                        CHECK(agree(column(*got.lse, p), *part.lse));
                        ForwardInputs bare = inputs;
                        bare.extra.clear();
                        CHECK(agree(alone(bare, pattern.text, options).output, part.output));
                        const auto gate = [&](std::int64_t row) {
                            return static_cast<double>(gates.as<float>()[row * count + p]);
                        };
                        add_gated(output, part.output, gate);
                        add_gated(scores, *part.scores, gate);
                    }
                    CHECK(agree(got.output, output));
                    CHECK(agree(*got.scores, scores));
                }
        },
        6);
}

TEST_CASE("mixture-attention: gates of the query") {
    on_random_shapes(limits, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        const NamedValues chosen =
            plus(patterns({"global", call("local", 4), call("strided", 3)}), {{"scale", 0.3}, {"softcap", 2.0}});
        const Tensor proj = mapped(normal(random, {s.heads, 3, s.head_dim}), [](float x) { return 0.4f * x; }),
                     bias = normal(random, {s.heads, 3});
        for (const bool softmax : {true, false}) {
            Tensor gates = filled({s.batch, s.heads, s.q_len, 3}, 0.0f);
            for (std::int64_t b = 0; b < s.batch; ++b)
                for (std::int64_t h = 0; h < s.heads; ++h)
                    for (std::int64_t i = 0; i < s.q_len; ++i) {
                        double logit[3], sum = 0;
                        for (std::int64_t p = 0; p < 3; ++p) {
                            logit[p] = static_cast<double>(bias.as<float>()[h * 3 + p]);
                            for (std::int64_t d = 0; d < s.head_dim; ++d)
                                logit[p] += static_cast<double>(at(proj, h, p, d)) *
                                            static_cast<double>(at(inputs.query, b, h, i, d));
                            sum += std::exp(logit[p]);
                        }
                        for (std::int64_t p = 0; p < 3; ++p)
                            at(gates, b, h, i, p) = static_cast<float>(softmax ? std::exp(logit[p]) / sum
                                                                               : 1.0 / (1.0 + std::exp(-logit[p])));
                    }
            inputs.extra.clear();
            inputs.weights = {{"gate_proj", proj}, {"gate_bias", bias}};
            const ForwardResult got = forward(
                inputs, mixture, plus(chosen, {{"gate_mode", softmax ? "query-softmax" : "query-sigmoid"}}), true);
            inputs.weights.clear();
            inputs.extra = {{"gates", gates}};
            const ForwardResult expected = forward(inputs, mixture, plus(chosen, {{"gate_mode", "explicit"}}), true);
            CHECK(agree(got, expected));
            CHECK(agree(*got.scores, *expected.scores));
        }
    });
}

TEST_CASE("mixture-attention: rejects patterns that are none") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 2, 5, 6, 8, 8});
    rejects(inputs, mixture, patterns({}), {"patterns", "0", "1"});
    rejects(inputs, mixture, patterns(std::vector<std::string>(17, "global")), {"patterns", "17", "16"});
    for (const char* wrong :
         {"local(0)", "remote(0)", "dilated(0,2)", "dilated(2,0)", "sink(1,0)", "strided(0)", "block(0)"})
        rejects(inputs, mixture, patterns({"global", wrong}), {"patterns", "0", "accepted"});
    for (const char* wrong : {"local(-3)", "sink(-1,3)", "block(-2)"})
        rejects(inputs, mixture, patterns({wrong}), {"patterns", "-", "accepted"});
    rejects(inputs, mixture, patterns({"diagonal(3)"}), {"patterns", "diagonal", "strided"});
    for (const char* wrong : {"local", "local()", "local(1,2)", "local(1.5)", "dilated(3)", "global(1)", "local(3"})
        rejects(inputs, mixture, patterns({wrong}), {"patterns", wrong});
}

TEST_CASE("mixture-attention: rejects gates that do not fit") {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {2, 4, 2, 5, 6, 8, 8});
    const NamedValues two = patterns({"global", "local(2)"}), given = plus(two, {{"gate_mode", "explicit"}});
    rejects(inputs, mixture, plus(patterns({"global", "local(2)", "block(3)"}), {{"gate_mode", "clamp"}}),
            {"gate_mode", "clamp", "3", "two"});
    rejects(inputs, mixture, plus(patterns({"global"}), {{"gate_mode", "clamp"}}), {"gate_mode", "clamp", "1", "two"});
    rejects(inputs, mixture, plus(two, {{"gate_mode", "loose"}}), {"gate_mode", "loose", "query-softmax"});
    rejects(inputs, mixture, given, {"gate_mode", "explicit", "gates"});
    for (const float wrong :
         {-0.25f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        const Tensor gates = filled({2, 4, 5, 2}, 0.5f);
        at(gates, 1, 2, 3, 1) = wrong;
        inputs.extra = {{"gates", gates}};
        rejects(inputs, mixture, given,
                {"gates",
                 wrong < 0   ? "-0.25"
                 : wrong > 0 ? "inf"
                             : "nan",
                 "[1,2,3,1]", "accepted"});
    }
    inputs.extra = {{"gates", filled({2, 4, 5, 3}, 0.5f)}};
    rejects(inputs, mixture, given, {"gates", "3", "2"});
    inputs.extra = {{"gates", filled({2, 4, 5, 2}, 0.5f)}};
    rejects(inputs, mixture, two, {"gates"});
}

TEST_CASE("mixture-attention: rejects weights of other shapes and modes") {
    Random random(3);
    const ForwardInputs bare = make_inputs(random, {1, 6, 2, 5, 6, 8, 7});
    const auto refused = [&](const char* name, std::vector<std::int64_t> shape, const char* mode,
                             std::initializer_list<const char*> texts) {
        ForwardInputs inputs = bare;
        inputs.weights = {{name, normal(random, std::move(shape))}};
        rejects(inputs, mixture, plus(patterns({"global", "local(2)"}), {{"gate_mode", mode}}), texts);
    };
    refused("gate_logits", {6, 3}, "static", {"gate_logits", "3", "2"});
    refused("gate_logits", {2, 2}, "hard", {"gate_logits", "2", "6"});
    refused("gate_logits", {6, 2}, "clamp", {"gate_logits", "switched off"});
    refused("gate_alpha", {3}, "clamp", {"gate_alpha", "3", "2", "6"});
    refused("gate_alpha", {6}, "static", {"gate_alpha", "switched off"});
    refused("gate_proj", {6, 2, 7}, "query-softmax", {"gate_proj", "7", "8"});
    refused("gate_bias", {6, 1}, "query-sigmoid", {"gate_bias", "1", "2"});
    refused("gate_proj", {6, 2, 8}, "static", {"gate_proj", "switched off"});
}
