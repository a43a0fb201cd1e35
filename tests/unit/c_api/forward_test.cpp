// SPDX-License-Identifier: Apache-2.0
// Calls through the C API against the same calls of the C++ service.
#include <atomic>
#include <thread>

#include "support.hpp"

using namespace c_api_test;
using attend::Json;

namespace {

attend::ForwardInputs inputs_of(const std::string& mechanism) {
    support::Random random(11);
    const specs::Spec& spec = specs::spec_of(mechanism);
    return specs::completed(spec, specs::make_inputs(spec, random, {1, 2, 2, 24, 24, 16, 16}), {});
}

Json record_of(const ResultHandle& result) {
    return attend::parse_json(attend_result_record(result.get()), "record").value();
}

}  // namespace

TEST_CASE("c api: every mechanism gives the bits that the C++ service gives") {
    int compared = 0;
    for (const auto& mechanism : support::service().registry()->list()) {
        INFO(mechanism->name);
        const attend::ForwardInputs inputs = inputs_of(mechanism->name);
        attend::ForwardOptions options;
        options.mechanism = mechanism->name;
        const auto expected = support::service().forward(inputs, options).value();
        Call call(mechanism->name);
        call.add(inputs);
        const ResultHandle result = call.run();
        CHECK(same_bits(view_of(result, "output"), expected.output));
        for (const auto& [name, tensor] : expected.extra) CHECK(same_bits(view_of(result, name), tensor));
        CHECK(attend_result_count(result.get()) == 1 + expected.extra.size());
        const Json record = record_of(result);
        CHECK(record.find("mechanism")->as_string() == expected.mechanism);
        CHECK(record.find("plugin")->as_string() == expected.plugin);
        CHECK(record.find("plugin_version")->as_string() == expected.plugin_version);
        CHECK(record.find("backend")->as_string() == expected.backend);
        CHECK(record.find("precision")->as_string() == expected.precision);
        CHECK(record.find("exactness")->as_string() == expected.exactness);
        CHECK(record.find("reason")->as_string() == expected.reason);
        CHECK(*record.find("options") == expected.options());
        CHECK(record.find("warnings")->size() == expected.warnings.size());
        CHECK(record.find("flops")->as_double() == expected.flops);
        CHECK(record.find("workspace_bytes")->to_uint64() == expected.workspace_bytes);
        CHECK(record.find("time_ms")->as_double() >= 0.0);
        ++compared;
    }
    CHECK(compared >= 41);
}

TEST_CASE("c api: the routing report of every routed mechanism") {
    int routed = 0;
    for (const auto& mechanism : support::service().registry()->list()) {
        if (mechanism->find_option("return_routing") == nullptr) continue;
        INFO(mechanism->name);
        const attend::ForwardInputs inputs = inputs_of(mechanism->name);
        attend::ForwardOptions options;
        options.mechanism = mechanism->name;
        options.options = {{"return_routing", true}};
        const auto expected = support::service().forward(inputs, options).value();
        Call call(mechanism->name, R"({"return_routing": true})");
        call.add(inputs);
        const ResultHandle result = call.run();
        REQUIRE_FALSE(expected.extra.empty());
        std::string names = "output ";
        for (const auto& [name, tensor] : expected.extra) {
            CHECK(name.rfind("routing.", 0) == 0);
            CHECK(same_bits(view_of(result, name), tensor));
            names += name + " ";
        }
        CHECK(names_of(result) == names);
        ++routed;
    }
    CHECK(routed == 4);
}

TEST_CASE("c api: options, lse, scores, precision, masks and packed heads reach the service") {
    support::Random random(5);
    const attend::ForwardInputs inputs = support::make_inputs(random, {2, 4, 2, 9, 9, 8, 8});
    attend::ForwardOptions options;
    options.mechanism = "grouped-query-attention";
    options.options = {{"causal", true}};
    options.lse = options.scores = true;
    auto expected = support::service().forward(inputs, options).value();
    {
        Call call("grouped-query-attention", R"({"causal": true})");
        call.request.flags = ATTEND_FORWARD_LSE | ATTEND_FORWARD_SCORES;
        call.add(inputs);
        const ResultHandle result = call.run();
        CHECK(names_of(result) == "output lse scores ");
        CHECK(same_bits(view_of(result, "output"), expected.output));
        CHECK(same_bits(view_of(result, "lse"), *expected.lse));
        CHECK(same_bits(view_of(result, "scores"), *expected.scores));
    }
    options = {};
    options.precision = "bf16";
    options.mechanism = "flash-attention-v2";
    expected = support::service().forward(inputs, options).value();
    {
        Call call("flash-attention-v2");
        call.request.precision = "bf16";
        call.add(inputs);
        const ResultHandle result = call.run();
        CHECK(same_bits(view_of(result, "output"), expected.output));
        CHECK(record_of(result).find("precision")->as_string() == "bf16");
    }
    attend::ForwardInputs packed;
    packed.query = support::normal(random, {2, 9, 32});
    packed.mask = attend::Tensor::allocate(attend::DType::boolean, {9, 9}).value();
    for (std::int64_t at = 0; at < 81; ++at) packed.mask->as<std::uint8_t>()[at] = at % 3 != 0;
    options = {};
    options.mechanism = "standard-mha";
    options.heads = 4;
    expected = support::service().forward(packed, options).value();
    {
        Call call("standard-mha");
        call.request.heads = 4;
        call.add(packed);
        const ResultHandle result = call.run();
        CHECK(same_bits(view_of(result, "output"), expected.output));
        CHECK_FALSE(same_bits(view_of(result, "output"), packed.query));
    }
}

TEST_CASE("c api: auto and NULL ask the rules, facts included") {
    support::Random random(6);
    Call call("auto");
    call.add(support::make_inputs(random, {1, 2, 2, 12, 12, 8, 8}));
    CHECK(record_of(call.run()).find("mechanism")->as_string() == "flash-attention-v2");
    call.request.mechanism = nullptr;
    CHECK(record_of(call.run()).find("mechanism")->as_string() == "flash-attention-v2");
    call.request.facts_json = R"({"moe": true})";
    const Json routed = record_of(call.run());
    CHECK(routed.find("mechanism")->as_string() != "flash-attention-v2");
    CHECK(routed.find("reason")->as_string().find("moe") != std::string::npos);
}

TEST_CASE("c api: strided views are read in place, NULL strides are row-major") {
    support::Random random(7);
    const attend::Tensor wide = support::normal(random, {1, 5, 2, 8});  // [B,N,H,D]
    attend::ForwardInputs inputs;
    inputs.query = wide.view({1, 2, 5, 8}, {80, 8, 16, 1});
    attend::ForwardOptions options;
    options.mechanism = "flash-attention-v2";
    const auto expected = support::service().forward(inputs, options).value();
    Call call("flash-attention-v2");
    call.add(inputs);
    CHECK(same_bits(view_of(call.run(), "output"), expected.output));
    Call compact("flash-attention-v2");
    const attend::Tensor rows = attend::contiguous_copy(inputs.query).value();
    auto view = sized<attend_view>();
    view.dtype = ATTEND_DTYPE_F32;
    view.data = rows.data;
    view.shape = rows.shape.data();
    view.ndim = 4;
    compact.add("query", rows).view = &view;
    CHECK(same_bits(view_of(compact.run(), "output"), expected.output));
}

TEST_CASE("c api: results outlive their service") {
    attend_service* handle = nullptr;
    REQUIRE(attend_service_open(nullptr, &handle, nullptr) == ATTEND_E_NONE);
    Service own(handle);
    support::Random random(8);
    const attend::ForwardInputs inputs = support::make_inputs(random, {1, 1, 1, 6, 6, 4, 4});
    Call call("flash-attention-v2");
    call.add(inputs);
    ResultHandle result;
    REQUIRE(call.run(own.get(), result, nullptr) == ATTEND_E_NONE);
    own.reset();
    CHECK(same_bits(view_of(result, "output"), support::service().forward(inputs, {}).value().output));
    CHECK(record_of(result).find("options")->find("causal") != nullptr);
}

TEST_CASE("c api threads: eight threads on one service") {
    struct Job {
        const char *mechanism, *options, *tensor;
    };
    const Job jobs[] = {{"flash-attention-v2", R"({"causal": true})", "output"},
                        {"switch-attention", R"({"return_routing": true})", "routing.query.assignments"},
                        {"linear-attention", "", "output"},
                        {"auto", "", "output"}};
    support::Random random(9);
    const attend::ForwardInputs inputs = support::make_inputs(random, {1, 2, 2, 33, 33, 8, 8});
    attend_service* shared = service();
    std::vector<ResultHandle> first;
    for (const Job& job : jobs) {
        Call call(job.mechanism, job.options);
        call.add(inputs);
        first.push_back(call.run());
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < 8; ++thread)
        threads.emplace_back([&, thread] {
            for (std::size_t round = 0; round < 12; ++round) {
                const std::size_t which = (thread + round) % std::size(jobs);
                Call call(jobs[which].mechanism, jobs[which].options);
                call.add(inputs);
                ResultHandle result;
                auto a = sized<attend_view>(), b = sized<attend_view>();
                if (call.run(shared, result, nullptr) != ATTEND_E_NONE ||
                    attend_result_view(result.get(), jobs[which].tensor, &a, nullptr) != ATTEND_E_NONE ||
                    attend_result_view(first[which].get(), jobs[which].tensor, &b, nullptr) != ATTEND_E_NONE ||
                    a.ndim != b.ndim || !std::equal(a.shape, a.shape + a.ndim, b.shape)) {
                    ++wrong;
                    continue;
                }
                std::size_t bytes = 4;  // of float32 and int32 elements
                for (std::int32_t axis = 0; axis < a.ndim; ++axis) bytes *= static_cast<std::size_t>(a.shape[axis]);
                if (std::memcmp(a.data, b.data, bytes) != 0) ++wrong;
                char* json = nullptr;
                if (attend_recommend(shared, R"({"seqLen": 5000})", &json, nullptr) != ATTEND_E_NONE) ++wrong;
                attend_text_free(json);
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
}
