// SPDX-License-Identifier: Apache-2.0
// Choosing, strictness, layouts and results of the service, through the built plugins.
#include <limits>

#include "support/calls.hpp"

using namespace support;
using attend::ErrorCode;
using attend::ForwardInputs;
using attend::ForwardOptions;
using attend::Json;

namespace {

std::unique_ptr<attend::AttentionService> open_with(const std::string& config) {
    attend::ServiceSettings settings;
    auto loaded = attend::load_config(config, "test.json");
    for (const auto& problem : loaded.problems) FAIL(problem.message);
    settings.config = std::move(loaded.config);
    settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
    auto opened = attend::AttentionService::open(std::move(settings));
    if (!opened) FAIL(opened.error().message);
    return std::move(*opened);
}

ForwardOptions named(const std::string& mechanism, attend::NamedValues options = {}) {
    ForwardOptions call;
    call.mechanism = mechanism;
    call.options = std::move(options);
    return call;
}

}  // namespace

TEST_CASE("service: a mechanism named by the caller is never replaced") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 8, 8, 8, 8});
    inputs.mask = attend::Tensor::allocate(attend::DType::boolean, {8, 8}).value();
    for (const auto& mechanism : service().registry()->list()) {
        auto result = service().forward(inputs, named(mechanism->name));
        if (result) CHECK(result->mechanism == mechanism->name);
    }
    auto refused = service().forward(inputs, named("cross-attention", {{"causal", true}}));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::option);
}

TEST_CASE("service: unknown mechanisms are errors with the nearest names") {
    Random random(1);
    const auto result = service().forward(make_inputs(random, {}), named("flash-attention-v3x"));
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::not_found);
    CHECK(result.error().message.find("flash-attention-v2") != std::string::npos);
}

TEST_CASE("service: without rules the length threshold decides, and tells why") {
    auto engine = open_with(
        R"({"version": 1, "service": {"long_sequence_threshold": 10, "fallback_mechanism": "local-attention"}})");
    Random random(2);
    const auto low = engine->forward(make_inputs(random, {1, 1, 1, 10, 10, 4, 4}), {}).value();
    CHECK(low.mechanism == "flash-attention-v2");
    CHECK(low.reason.find("10 <= 10") != std::string::npos);
    const auto high = engine->forward(make_inputs(random, {1, 1, 1, 11, 11, 4, 4}), {}).value();
    CHECK(high.mechanism == "local-attention");
    auto exact = open_with(
        R"({"version": 1, "service": {"long_sequence_threshold": 10, "fallback_mechanism": "local-attention", "allow_approximate": false}})");
    CHECK(exact->forward(make_inputs(random, {1, 1, 1, 11, 11, 4, 4}), {}).value().mechanism == "flash-attention-v2");
}

TEST_CASE("service: a rule whose mechanism does not fit is skipped with its reason") {
    auto engine = open_with(
        R"({"version": 1, "rules": [{"condition": "seqLen > 4", "mechanism": "cross-attention"}, {"condition": "default", "mechanism": "standard-mha"}]})");
    Random random(3);
    const auto plain = engine->forward(make_inputs(random, {1, 1, 1, 6, 6, 4, 4}), {}).value();
    CHECK(plain.mechanism == "cross-attention");
    const auto causal =
        engine->forward(make_inputs(random, {1, 1, 1, 6, 6, 4, 4}), named("auto", {{"causal", true}})).value();
    CHECK(causal.mechanism == "standard-mha");
    CHECK(causal.reason.find("cross-attention does not take causal") != std::string::npos);
}

TEST_CASE("service: when nothing fits, every reason is given") {
    auto engine = open_with(
        R"({"version": 1, "service": {"default_mechanism": "cross-attention", "fallback_mechanism": "moe-attention"}})");
    Random random(4);
    ForwardOptions call = named("auto", {{"causal", true}});
    call.lse = true;
    const auto result = engine->forward(make_inputs(random, {1, 1, 1, 6, 6, 4, 4}), call);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code == ErrorCode::unsupported);
    CHECK(result.error().message.find("cross-attention") != std::string::npos);
    CHECK(result.error().message.find("moe-attention") != std::string::npos);
}

TEST_CASE("service: options of a rule stand under the call's own") {
    auto engine = open_with(
        R"({"version": 1, "rules": [{"condition": "default", "mechanism": "local-attention", "options": {"windowSize": 3, "global_tokens": 1}}]})");
    Random random(5);
    const auto result =
        engine->forward(make_inputs(random, {1, 1, 1, 9, 9, 4, 4}), named("auto", {{"global_tokens", 2}})).value();
    CHECK(result.options().find("window_size")->as_int64() == 3);
    CHECK(result.options().find("global_tokens")->as_int64() == 2);
}

TEST_CASE("selection: recommend()[0] is what forward picks, on a grid of 1000 requests") {
    auto engine = open_with(R"json({"version": 1, "service": {"long_sequence_threshold": 24}, "rules": [
        {"condition": "seqLen > 20 and not causal", "mechanism": "local-attention", "options": {"window_size": 4}},
        {"condition": "hasMask and heads > 1", "mechanism": "standard-mha"},
        {"condition": "crossAttention and not causal", "mechanism": "cross-attention"},
        {"condition": "causal and seqLen % 2 == 0", "mechanism": "causal-self-attention"},
        {"condition": "batchSize == 2", "mechanism": "moe-attention"}]})json");
    Random random(6);
    for (int request = 0; request < 1000; ++request) {
        Shape shape{1 + random.below(2), 1 + random.below(2), 1, 1 + random.below(30), 1 + random.below(30), 4, 4};
        shape.kv_heads = shape.heads;
        if (random.below(2) == 0) shape.kv_len = shape.q_len;
        ForwardInputs inputs = make_inputs(random, shape);
        const bool mask = random.below(3) == 0, causal = random.below(2) == 0, bias = random.below(4) == 0;
        if (mask) inputs.mask = attend::Tensor::allocate(attend::DType::boolean, {shape.q_len, shape.kv_len}).value();
        if (bias) inputs.bias = normal(random, {shape.q_len, shape.kv_len});
        const auto result = engine->forward(
            inputs, named("auto", causal ? attend::NamedValues{{"causal", true}} : attend::NamedValues{}));
        attend::RequestFacts facts{{"seqLen", double(shape.q_len)},
                                   {"seqLenK", double(shape.kv_len)},
                                   {"batchSize", double(shape.batch)},
                                   {"heads", double(shape.heads)},
                                   {"headDim", 4.0},
                                   {"causal", causal},
                                   {"hasMask", mask},
                                   {"hasBias", bias},
                                   {"crossAttention", true}};
        const auto advice = engine->recommend(facts);
        REQUIRE(advice.ok());
        INFO(shape.text() << " mask " << mask << " causal " << causal << " bias " << bias);
        REQUIRE(result.ok() == advice->selected.has_value());
        if (result) {
            CHECK(result->mechanism == *advice->selected);
            REQUIRE_FALSE(advice->recommendations.empty());
            CHECK(advice->recommendations.front().mechanism == *advice->selected);
        }
    }
}

TEST_CASE("service: rules with unknown mechanisms or options fail when the service opens") {
    for (const char* rule : {R"({"condition": "default", "mechanism": "flash-attention-v9"})",
                             R"({"condition": "default", "mechanism": "local-attention", "options": {"windw": 1}})"}) {
        attend::ServiceSettings settings;
        settings.config =
            attend::load_config(std::string(R"({"version": 1, "rules": [)") + rule + "]}", "r.json").config;
        settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
        const auto opened = attend::AttentionService::open(std::move(settings));
        REQUIRE_FALSE(opened.ok());
        CHECK(opened.error().code == ErrorCode::rule);
        CHECK(opened.error().message.find("r.json: rules[0]") == 0);
    }
}

TEST_CASE("service: a rule for graphs is skipped where the call has none, whatever its facts say") {
    attend::ServiceSettings settings;
    settings.config = attend::load_config(R"({"version": 1, "rules": [
        {"condition": "graph", "mechanism": "graph-attention"}]})",
                                          "r.json")
                          .config;
    settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
    settings.plugin_path = ATTEND_BINARY_DIR "/tests/extra_plugins";
    auto opened = attend::AttentionService::open(std::move(settings));
    REQUIRE(opened.ok());
    Random random(8);
    ForwardInputs inputs = make_inputs(random, {1, 1, 1, 3, 3, 4, 4});
    attend::ForwardOptions options;
    options.facts = {{"graph", true}};
    const auto without = (*opened)->forward(inputs, options);
    REQUIRE(without.ok());
    CHECK(without->mechanism == "flash-attention-v2");
    CHECK(without->reason.find("needs a graph") != std::string::npos);
    attend::Tensor edges = attend::Tensor::allocate(attend::DType::i32, {2, 1}).value();
    edges.as<std::int32_t>()[0] = 0, edges.as<std::int32_t>()[1] = 2;
    inputs.extra = {{"edges", edges}};
    const auto with = (*opened)->forward(inputs, options);
    REQUIRE(with.ok());
    CHECK(with->mechanism == "graph-attention");
    options.facts = {};
    CHECK((*opened)->forward(inputs, options)->mechanism == "graph-attention");
}

TEST_CASE("service: strict rules return the evaluation error, others go on") {
    const std::string rules = R"("rules": [{"condition": "1 / (seqLen - 5) > 0", "mechanism": "standard-mha"}]})";
    Random random(7);
    const ForwardInputs inputs = make_inputs(random, {1, 1, 1, 5, 5, 4, 4});
    CHECK(open_with(R"({"version": 1, )" + rules)->forward(inputs, {}).ok());
    const auto strict = open_with(R"({"version": 1, "service": {"strict_rules": true}, )" + rules)->forward(inputs, {});
    REQUIRE_FALSE(strict.ok());
    CHECK(strict.error().code == ErrorCode::rule);
}

TEST_CASE("service: a memory budget and an error bound skip candidates") {
    attend::RequestFacts facts{{"seqLen", 64.0}, {"windowSize", 4.0}, {"maxError", 1e-3}};
    const auto strict = service().recommend(facts).value();
    REQUIRE(strict.selected);
    CHECK(*strict.selected != "local-attention");
    bool found = false;
    for (const auto& rejected : strict.rejected)
        found = found || (rejected.mechanism == "local-attention" && rejected.check == "maxError");
    CHECK(found);
    const auto poor = service().recommend({{"seqLen", 64.0}, {"memoryBudget", 16.0}}).value();
    CHECK_FALSE(poor.selected);
    CHECK(poor.recommendations.empty());
}

TEST_CASE("service: packed tensors and promoted ranks come back as they went in") {
    Random random(8);
    ForwardInputs native = make_inputs(random, {2, 3, 3, 7, 7, 4, 4});
    const auto expected = run(service(), native, "flash-attention-v2");
    ForwardInputs packed;
    const auto pack = [](const attend::Tensor& t) {
        return attend::contiguous_copy(t.view({t.shape[0], t.shape[2], t.shape[1], t.shape[3]},
                                              {t.strides[0], t.strides[2], t.strides[1], t.strides[3]}))
            .value()
            .view({t.shape[0], t.shape[2], t.shape[1] * t.shape[3]},
                  {t.shape[2] * t.shape[1] * t.shape[3], t.shape[1] * t.shape[3], 1});
    };
    packed.query = pack(native.query);
    packed.key = pack(*native.key);
    packed.value = pack(*native.value);
    ForwardOptions call = named("flash-attention-v2");
    call.heads = 3;
    const auto got = service().forward(packed, call).value();
    CHECK(got.output.shape == std::vector<std::int64_t>{2, 7, 12});
    CHECK(values(got.output) == values(pack(expected.output)));
    ForwardInputs flat;
    flat.query = normal(random, {5, 4});
    CHECK(run(service(), flat, "flash-attention-v2").output.shape == std::vector<std::int64_t>{5, 4});
    flat.query = normal(random, {4});
    CHECK(run(service(), flat, "flash-attention-v2").output.shape == std::vector<std::int64_t>{4});
}

TEST_CASE("service: narrow inputs give narrow outputs, wider keys than queries are refused") {
    Random random(9);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    ForwardInputs narrow;
    narrow.query = attend::convert(inputs.query, attend::DType::bf16).value();
    narrow.key = attend::convert(*inputs.key, attend::DType::bf16).value();
    narrow.value = attend::convert(*inputs.value, attend::DType::bf16).value();
    const auto got = run(service(), narrow, "flash-attention-v2");
    CHECK(got.output.dtype == attend::DType::bf16);
    ForwardInputs mixed = inputs;
    mixed.key = attend::convert(*inputs.key, attend::DType::f64).value();
    const auto refused = service().forward(mixed, named("flash-attention-v2"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::dtype);
}

TEST_CASE("service: plans are reused for the same request and shape alone") {
    auto engine = open_with(R"({"version": 1})");
    Random random(10);
    const auto call = [&](std::int64_t n) {
        return engine->forward(make_inputs(random, {1, 1, 1, n, n, 4, 4}), {}).value();
    };
    CHECK_FALSE(call(5).plan_reused);
    CHECK(call(5).plan_reused);
    CHECK_FALSE(call(6).plan_reused);
    CHECK(engine->plan_cache().hits == 1);
    CHECK(engine->plan_cache().entries == 2);
}

TEST_CASE("service: weights of the caller are checked by name and shape before anything runs") {
    Random random(11);
    ForwardInputs inputs = make_inputs(random, {1, 1, 1, 5, 5, 8, 8});
    inputs.weights = {{"wrr", normal(random, {8, 8})}};
    auto refused = service().forward(inputs, named("moe-attention"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::weight);
    CHECK(refused.error().message.find("\"wr\"") != std::string::npos);
    inputs.weights = {{"wr", normal(random, {8, 7})}};
    refused = service().forward(inputs, named("moe-attention"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::weight);
    inputs.weights = {{"br", normal(random, {8})}};
    refused = service().forward(inputs, named("moe-attention"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message.find("switched off") != std::string::npos);
}

TEST_CASE("service: the result says what ran and why") {
    Random random(12);
    const auto result = run(service("auto"), make_inputs(random, {1, 1, 1, 5, 5, 8, 8}), "moe-attention");
    CHECK(result.plugin == "attend.moe");
    CHECK(result.exactness == "different-function");
    CHECK(result.reason.find("default weights") != std::string::npos);
    CHECK(result.precision == "fp32");
    CHECK(result.flops > 0);
    const auto warned = run(service(), make_inputs(random, {1, 1, 1, 5, 5, 8, 8}), "standard-mha", {{"bias", false}});
    REQUIRE(warned.warnings.size() == 1);
    CHECK(warned.warnings[0].find("\"bias\"") != std::string::npos);
}
