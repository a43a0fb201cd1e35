// SPDX-License-Identifier: Apache-2.0
// Batches, cancelling, metrics and the result cache through the C API.
#include "attend/config/json.hpp"
#include "support.hpp"

using namespace c_api_test;
using attend::Json;
using support::Random;

namespace {

Service open_with(const char* config) {
    auto settings = sized<attend_open_settings>();
    settings.config_json = config;
    settings.threads = 2;
    attend_service* handle = nullptr;
    Problem problem;
    if (attend_service_open(&settings, &handle, problem) != ATTEND_E_NONE) FAIL(problem.message());
    return Service(handle);
}

Json metrics_of(attend_service* service) {
    char* json = nullptr;
    Problem problem;
    REQUIRE(attend_metrics(service, &json, problem) == ATTEND_E_NONE);
    const Text text(json);
    return attend::parse_json(json, "metrics").value();
}

bool was_cached(const ResultHandle& result) {
    return attend::parse_json(attend_result_record(result.get()), "record").value().find("cached")->as_bool();
}

// Items of one batch, with what they point to.
struct Batch {
    std::vector<std::unique_ptr<Call>> calls;
    std::vector<attend_batch_item> items;

    void add(const attend::ForwardInputs& inputs) {
        calls.push_back(std::make_unique<Call>("flash-attention-v2"));
        calls.back()->add(inputs);
        auto& item = items.emplace_back(sized<attend_batch_item>());
        item.tensors = calls.back()->tensors.data();
        item.num_tensors = calls.back()->tensors.size();
    }
};

}  // namespace

TEST_CASE("c api batch: results are those of single calls, faults name their item") {
    Batch batch;
    Random random(1);
    std::vector<attend::ForwardInputs> inputs;
    for (std::int64_t n = 1; n < 9; ++n) {
        inputs.push_back(support::make_inputs(random, {1, 2, 2, 3 * n, 3 * n, 8, 8}));
        batch.add(inputs.back());
    }
    auto request = sized<attend_forward_request>();
    request.mechanism = "flash-attention-v2";
    request.flags = ATTEND_FORWARD_LSE;
    std::vector<attend_result*> results(8, nullptr);
    Problem problem;
    REQUIRE(attend_forward_batch(service(), &request, batch.items.data(), 8, results.data(), problem) == ATTEND_E_NONE);
    for (std::size_t at = 0; at < 8; ++at) {
        const ResultHandle own(results[at]);
        const auto expected = support::run(support::service(), inputs[at], "flash-attention-v2", {}, true);
        CHECK(same_bits(view_of(own, "output"), expected.output));
        CHECK(same_bits(view_of(own, "lse"), *expected.lse));
    }
    batch.items[5].num_tensors = 0;
    std::fill(results.begin(), results.end(), reinterpret_cast<attend_result*>(1));
    CHECK(attend_forward_batch(service(), &request, batch.items.data(), 8, results.data(), problem) != ATTEND_E_NONE);
    CHECK(problem.message().starts_with("item 5: "));
    for (const attend_result* result : results) CHECK(result == nullptr);
    batch.items[5].flags = 1;
    CHECK(attend_forward_batch(service(), &request, batch.items.data(), 8, results.data(), problem) ==
          ATTEND_E_UNSUPPORTED);
    CHECK(attend_forward_batch(service(), &request, nullptr, 0, nullptr, problem) == ATTEND_E_NONE);
    CHECK(attend_forward_batch(service(), &request, nullptr, 3, results.data(), problem) == ATTEND_E_INPUT);
    request.tensors = batch.items[0].tensors;
    request.num_tensors = 1;
    CHECK(attend_forward_batch(service(), &request, batch.items.data(), 1, results.data(), problem) == ATTEND_E_INPUT);
    CHECK(problem.says("has 1 tensors"));
}

TEST_CASE("c api batch: a cancelled call ends with its code") {
    attend_cancel* cancel = attend_cancel_new();
    REQUIRE(cancel != nullptr);
    Random random(1);
    Call call("flash-attention-v2");
    call.add(support::make_inputs(random, {1, 2, 2, 30, 30, 8, 8}));
    call.request.cancel = cancel;
    call.run();
    attend_cancel_set(cancel);
    CHECK(call.refused(ATTEND_E_CANCELLED).says("cancelled"));
    attend_cancel_clear(cancel);
    call.run();
    attend_cancel_free(cancel);
    attend_cancel_free(nullptr);
    attend_cancel_set(nullptr);
}

TEST_CASE("c api batch: metrics, and what invalidation drops") {
    const Service own = open_with(R"({"version": 1, "cache": {"mode": "on"}})");
    Random random(1);
    Call call("flash-attention-v2");
    call.add(support::make_inputs(random, {1, 2, 2, 30, 30, 8, 8}));
    ResultHandle result;
    REQUIRE(call.run(own.get(), result, nullptr) == ATTEND_E_NONE);
    CHECK_FALSE(was_cached(result));
    REQUIRE(call.run(own.get(), result, nullptr) == ATTEND_E_NONE);
    CHECK(was_cached(result));
    call.request.flags = ATTEND_FORWARD_COMPUTE;
    REQUIRE(call.run(own.get(), result, nullptr) == ATTEND_E_NONE);
    CHECK_FALSE(was_cached(result));
    call.request.flags = 0;
    const Json metrics = metrics_of(own.get());
    CHECK(metrics.find("calls")->as_int64() == 3);
    CHECK(metrics.find("cache")->find("hits")->as_int64() == 1);
    CHECK(metrics.find("mechanisms")->find("flash-attention-v2")->find("calls")->as_int64() == 3);
    Problem problem;
    CHECK(attend_invalidate(own.get(), "standard-mha", problem) == ATTEND_E_NONE);
    CHECK(metrics_of(own.get()).find("cache")->find("entries")->as_int64() == 1);
    CHECK(attend_invalidate(own.get(), "flash-attention-v2", problem) == ATTEND_E_NONE);
    CHECK(metrics_of(own.get()).find("cache")->find("entries")->as_int64() == 0);
    REQUIRE(call.run(own.get(), result, nullptr) == ATTEND_E_NONE);
    CHECK(attend_invalidate(own.get(), nullptr, problem) == ATTEND_E_NONE);
    CHECK(metrics_of(own.get()).find("cache")->find("entries")->as_int64() == 0);
    CHECK(attend_invalidate(own.get(), "nobody", problem) == ATTEND_E_NOT_FOUND);
    CHECK(attend_metrics_reset(own.get(), problem) == ATTEND_E_NONE);
    CHECK(metrics_of(own.get()).find("calls")->as_int64() == 0);
    CHECK(attend_metrics_reset(nullptr, problem) == ATTEND_E_INPUT);
    CHECK(attend_invalidate(nullptr, nullptr, problem) == ATTEND_E_INPUT);
}
