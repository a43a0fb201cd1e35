// SPDX-License-Identifier: Apache-2.0
// Attention weights and learned tensors through the C API.
#include "attend/attention_weights.hpp"
#include "attend/config/json.hpp"
#include "support.hpp"

using namespace c_api_test;
using attend::Json;
using attend::Tensor;
using support::Random;

namespace {

attend_forward_request& ready(Call& call) {
    call.request.tensors = call.tensors.data();
    call.request.num_tensors = call.tensors.size();
    return call.request;
}
ResultHandle weights_of(Call& call, const attend_weight_request& asked) {
    attend_result* handle = nullptr;
    Problem problem;
    if (attend_weights(service(), &ready(call), &asked, &handle, problem) != ATTEND_E_NONE) FAIL(problem.message());
    return ResultHandle(handle);
}
attend_code refused(Call& call, const attend_weight_request& asked, Problem& problem) {
    auto* handle = reinterpret_cast<attend_result*>(1);
    const attend_code code = attend_weights(service(), &ready(call), &asked, &handle, problem);
    CHECK(handle == nullptr);
    return code;
}
Json record_of(const ResultHandle& result) {
    return attend::parse_json(attend_result_record(result.get()), "record").value();
}

}  // namespace

TEST_CASE("c api weights: what is asked for is what the service finds") {
    Random random(3);
    const attend::ForwardInputs inputs = support::make_inputs(random, {2, 4, 2, 9, 13, 8, 8});
    Call call("flash-attention-v2", R"({"causal": true})");
    call.add(inputs);
    const std::int64_t rows[] = {8, 0};
    auto asked = sized<attend_weight_request>();
    asked.flags = ATTEND_WEIGHTS_COLUMN_MASS | ATTEND_WEIGHTS_ROW_ENTROPY | ATTEND_WEIGHTS_FULL;
    asked.top_k = 3;
    asked.rows = rows;
    asked.num_rows = 2;
    const ResultHandle result = weights_of(call, asked);
    attend::WeightRequest wanted;
    wanted.top_k = 3;
    wanted.column_mass = wanted.row_entropy = wanted.full = true;
    wanted.rows = {8, 0};
    const attend::WeightSummary expected =
        support::service().attention_weights(inputs, {"flash-attention-v2", {{"causal", true}}}, wanted).value();
    CHECK(same_bits(view_of(result, "top_values"), *expected.top_values));
    CHECK(same_bits(view_of(result, "top_keys"), *expected.top_keys));
    CHECK(same_bits(view_of(result, "column_mass"), *expected.column_mass));
    CHECK(same_bits(view_of(result, "row_entropy"), *expected.row_entropy));
    CHECK(same_bits(view_of(result, "row_weights"), *expected.row_weights));
    CHECK(same_bits(view_of(result, "full"), *expected.full));
    CHECK(attend_result_count(result.get()) == 6);
    CHECK(record_of(result).find("kv_len")->as_int64() == 13);
    CHECK(record_of(result).find("heads")->as_int64() == 4);
    asked = sized<attend_weight_request>();
    asked.top_k = 1;
    CHECK(attend_result_count(weights_of(call, asked).get()) == 2);
}

TEST_CASE("c api weights: what cannot be had is refused with a sentence") {
    Random random(3);
    Call call("flash-attention-v2");
    call.add(support::make_inputs(random, {1, 1, 1, 40, 40, 8, 8}));
    Problem problem;
    auto asked = sized<attend_weight_request>();
    asked.flags = ATTEND_WEIGHTS_FULL;
    asked.max_full_bytes = 100;
    CHECK(refused(call, asked, problem) == ATTEND_E_LIMIT);
    CHECK(problem.says("100"));
    asked = sized<attend_weight_request>();
    asked.flags = 8;
    CHECK(refused(call, asked, problem) == ATTEND_E_UNSUPPORTED);
    asked = sized<attend_weight_request>();
    asked.num_rows = 1;
    CHECK(refused(call, asked, problem) == ATTEND_E_INPUT);
    const std::int64_t outside = 40;
    asked.rows = &outside;
    CHECK(refused(call, asked, problem) != ATTEND_E_NONE);
    CHECK(problem.says("40"));
    asked = sized<attend_weight_request>();
    asked.top_k = -1;
    CHECK(refused(call, asked, problem) != ATTEND_E_NONE);
    asked.top_k = 1;
    call.request.mechanism = "linear-attention";
    CHECK(refused(call, asked, problem) == ATTEND_E_UNSUPPORTED);
    CHECK(problem.says("no score matrix"));
    CHECK(attend_weights(service(), &ready(call), nullptr, nullptr, problem) == ATTEND_E_INPUT);
    CHECK(attend_weights(nullptr, &ready(call), &asked, nullptr, problem) == ATTEND_E_INPUT);
}

TEST_CASE("c api projections: kept, given back and forgotten") {
    auto settings = sized<attend_open_settings>();
    settings.threads = 1;
    attend_service* handle = nullptr;
    Problem problem;
    REQUIRE(attend_service_open(&settings, &handle, problem) == ATTEND_E_NONE);
    const Service own(handle);
    Random random(5);
    attend::ForwardInputs inputs;
    inputs.query = support::normal(random, {1, 6, 16});
    const char* const options = R"({"form": "projected", "heads": 4})";
    Call plain("standard-mha", options), with("standard-mha", options);
    plain.add(inputs);
    const auto get = [&](Call& call) {
        attend_result* made = nullptr;
        if (attend_get_projections(own.get(), &ready(call), &made, problem) != ATTEND_E_NONE) FAIL(problem.message());
        return ResultHandle(made);
    };
    ResultHandle before, after;
    REQUIRE(plain.run(own.get(), before, problem) == ATTEND_E_NONE);
    const ResultHandle seeded = get(plain);
    CHECK(attend_result_count(seeded.get()) == 8);
    CHECK(record_of(seeded).find("param_count")->as_int64() == 4 * 16 * 16 + 4 * 16);
    for (const char* name : {"wq", "wk", "wv", "wo"})
        inputs.weights.emplace_back(name, support::normal(random, {16, 16}));
    for (const char* name : {"bq", "bk", "bv", "bo"}) inputs.weights.emplace_back(name, support::normal(random, {16}));
    with.add(inputs);
    REQUIRE(attend_set_projections(own.get(), &ready(with), problem) == ATTEND_E_NONE);
    CHECK(same_bits(view_of(get(plain), "wv"), inputs.weights[2].second));
    REQUIRE(plain.run(own.get(), after, problem) == ATTEND_E_NONE);
    ResultHandle given;
    REQUIRE(with.run(own.get(), given, problem) == ATTEND_E_NONE);
    const auto bits = [](const ResultHandle& result) {
        const attend_view view = view_of(result, "output");
        return std::vector<float>(static_cast<const float*>(view.data), static_cast<const float*>(view.data) + 96);
    };
    CHECK(bits(after) == bits(given));
    CHECK(bits(after) != bits(before));
    REQUIRE(attend_set_projections(own.get(), &ready(plain), problem) == ATTEND_E_NONE);
    REQUIRE(plain.run(own.get(), after, problem) == ATTEND_E_NONE);
    CHECK(bits(after) == bits(before));
    inputs.weights[0].second = support::normal(random, {16, 15});
    Call wrong("standard-mha", options);
    wrong.add(inputs);
    CHECK(attend_set_projections(own.get(), &ready(wrong), problem) != ATTEND_E_NONE);
    CHECK(problem.says("wq"));
}
