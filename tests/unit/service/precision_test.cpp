// SPDX-License-Identifier: Apache-2.0
// Types of tensors and the precision of a call: what reaches the plugin, what comes back, and how far it is off.
#include "support/calls.hpp"

using namespace support;
using attend::DType;
using attend::ErrorCode;
using attend::ForwardInputs;
using attend::ForwardOptions;

namespace {

ForwardOptions call_of(const std::string& mechanism, const std::string& precision = "") {
    ForwardOptions call;
    call.mechanism = mechanism;
    call.precision = precision;
    return call;
}

attend::Tensor as(const attend::Tensor& tensor, DType dtype) { return attend::convert(tensor, dtype).value(); }

ForwardInputs rounded(const ForwardInputs& inputs, DType query, DType key) {
    ForwardInputs narrow = inputs;
    narrow.query = as(inputs.query, query);
    narrow.key = as(*inputs.key, key);
    narrow.value = as(*inputs.value, key);
    return narrow;
}

// Largest absolute difference of two outputs, as floats.
double difference(const attend::Tensor& a, const attend::Tensor& b) {
    const attend::Tensor x = as(a, DType::f32), y = as(b, DType::f32);
    REQUIRE(x.shape == y.shape);
    double worst = 0.0;
    for (std::int64_t at = 0; at < x.size(); ++at)
        worst =
            std::max(worst, std::fabs(static_cast<double>(x.as<float>()[at]) - static_cast<double>(y.as<float>()[at])));
    return worst;
}

const char* const tile_mechanisms[] = {"flash-attention-v2", "standard-mha", "causal-self-attention", "cross-attention",
                                       "local-attention"};

}  // namespace

TEST_CASE("precision: narrow tensors reach the mechanisms that read them, and the output has their type") {
    Random random(31);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 2, 70, 70, 24, 24});
    for (const std::string& backend : backends())
        for (const char* mechanism : tile_mechanisms)
            for (const DType dtype : {DType::bf16, DType::f16}) {
                INFO(mechanism << " " << attend::dtype_name(dtype) << " on " << backend);
                const ForwardInputs narrow = rounded(inputs, dtype, dtype);
                const auto got = service(backend).forward(narrow, call_of(mechanism)).value();
                CHECK(got.output.dtype == dtype);
                CHECK(got.precision == (dtype == DType::bf16 ? "bf16" : "fp16"));
                // The same rounded numbers in float32 all the way.
                const auto wide =
                    service(backend).forward(rounded(narrow, DType::f32, DType::f32), call_of(mechanism)).value();
                CHECK(wide.precision == "fp32");
                CHECK(difference(got.output, wide.output) < (dtype == DType::bf16 ? 2.5e-2 : 2e-3));
                CHECK(difference(got.output, wide.output) > 0.0);
                // With few keys nothing but the output is rounded.
                CHECK(difference(got.output, as(wide.output, dtype)) == 0.0);
            }
}

TEST_CASE("precision: mixed heads and synthesised scores round nothing but the output") {
    Random random(36);
    const ForwardInputs inputs = make_inputs(random, {2, 4, 4, 70, 70, 24, 40});
    const auto parts = [](std::initializer_list<const char*> names) {
        attend::Json list = attend::Json::array();
        for (const char* name : names) list.push(name);
        return list;
    };
    const std::vector<std::pair<const char*, attend::NamedValues>> calls{
        {"talking-heads-attention", {{"softmax_heads", 6}}},
        {"talking-heads-attention", {{"post_mixing", false}, {"causal", true}}},
        {"synthesizer-attention", {}},
        {"synthesizer-attention", {{"local_context", 9}}},
        {"synthesizer-attention", {{"components", parts({"dense", "dot"})}, {"causal", true}}},
        {"synthesizer-attention", {{"components", parts({"random", "factorized-dense", "factorized-random"})}}}};
    for (const std::string& backend : backends())
        for (const auto& [mechanism, options] : calls)
            for (const auto& [query, key] : {std::pair(DType::bf16, DType::bf16), std::pair(DType::f16, DType::f16),
                                             std::pair(DType::f32, DType::bf16)}) {
                INFO(mechanism << " " << attend::dtype_name(query) << " " << attend::dtype_name(key) << " on "
                               << backend);
                ForwardOptions call = call_of(mechanism);
                call.options = options;
                const ForwardInputs narrow = rounded(inputs, query, key);
                const auto got = service(backend).forward(narrow, call).value();
                CHECK(got.output.dtype == query);
                const auto wide = service(backend).forward(rounded(narrow, DType::f32, DType::f32), call).value();
                CHECK(difference(as(got.output, DType::f32), as(as(wide.output, query), DType::f32)) <=
                      (query == DType::f32 ? 2e-6 : 2e-2));
            }
}

TEST_CASE("precision: fp32 asked for by the call widens narrow tensors first") {
    Random random(32);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 40, 300, 16, 16});
    const ForwardInputs narrow = rounded(inputs, DType::bf16, DType::bf16);
    const auto got = service().forward(narrow, call_of("flash-attention-v2", "fp32")).value();
    CHECK(got.precision == "fp32");
    CHECK(got.output.dtype == DType::bf16);
    const auto wide = service().forward(rounded(narrow, DType::f32, DType::f32), call_of("flash-attention-v2")).value();
    const attend::Tensor once = as(wide.output, DType::bf16);
    CHECK(std::memcmp(got.output.data, once.data, static_cast<std::size_t>(once.size()) * 2) == 0);
}

TEST_CASE("precision: bf16 and fp16 asked for by the call round float32 tensors, the output stays float32") {
    Random random(33);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 40, 300, 16, 16});
    const auto exact = service().forward(inputs, call_of("flash-attention-v2")).value();
    for (const auto& [precision, dtype, low, high] :
         {std::tuple("bf16", DType::bf16, 1e-5, 3e-2), std::tuple("fp16", DType::f16, 1e-6, 3e-3)}) {
        INFO(precision);
        const auto got = service().forward(inputs, call_of("flash-attention-v2", precision)).value();
        CHECK(got.precision == precision);
        CHECK(got.output.dtype == DType::f32);
        CHECK(difference(got.output, exact.output) > low);
        CHECK(difference(got.output, exact.output) < high);
        // The same as tensors of that type.
        const auto narrow = service().forward(rounded(inputs, dtype, dtype), call_of("flash-attention-v2")).value();
        CHECK(difference(got.output, narrow.output) == 0.0);
    }
}

TEST_CASE("precision: a narrow cache under float32 queries stays as it is") {
    Random random(34);
    const ForwardInputs inputs = make_inputs(random, {1, 4, 1, 3, 200, 32, 32});
    for (const DType dtype : {DType::bf16, DType::f16}) {
        const ForwardInputs cache = rounded(inputs, DType::f32, dtype);
        const auto got = service().forward(cache, call_of("flash-attention-v2")).value();
        CHECK(got.output.dtype == DType::f32);
        const auto wide =
            service().forward(rounded(cache, DType::f32, DType::f32), call_of("flash-attention-v2")).value();
        CHECK(difference(got.output, wide.output) < 2e-6);
    }
    ForwardInputs wider = inputs;
    wider.query = as(inputs.query, DType::bf16);
    const auto refused = service().forward(wider, call_of("flash-attention-v2"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::dtype);
    CHECK(refused.error().message.find("key has data type F32, query has BF16") != std::string::npos);
}

TEST_CASE("precision: what is not offered is refused with what is") {
    Random random(35);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 12, 12, 8, 8});
    const auto message = [&](const char* mechanism, const char* precision, attend::NamedValues options = {}) {
        ForwardOptions call = call_of(mechanism, precision);
        call.options = std::move(options);
        const auto refused = service().forward(inputs, call);
        REQUIRE_FALSE(refused.ok());
        CHECK(refused.error().code == ErrorCode::unsupported);
        return refused.error().message;
    };
    CHECK(message("flash-attention-v2", "int8").find("precision int8 is not offered; accepted: fp32, bf16, fp16") !=
          std::string::npos);
    CHECK(message("linear-attention", "bf16").find("precision bf16 is not offered; accepted: fp32") !=
          std::string::npos);
    CHECK(message("standard-mha", "bf16", {{"form", "projected"}, {"heads", 2}}).find("projected form") !=
          std::string::npos);
}

TEST_CASE("precision: mechanisms that compute in float32 take narrow tensors by conversion") {
    Random random(36);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 40, 40, 16, 16});
    for (const char* mechanism : {"linear-attention", "moe-attention"}) {
        INFO(mechanism);
        const ForwardInputs narrow = rounded(inputs, DType::bf16, DType::bf16);
        const auto got = service().forward(narrow, call_of(mechanism)).value();
        CHECK(got.precision == "fp32");
        CHECK(got.output.dtype == DType::bf16);
        const auto wide = service().forward(rounded(narrow, DType::f32, DType::f32), call_of(mechanism)).value();
        CHECK(difference(got.output, as(wide.output, DType::bf16)) == 0.0);
    }
}

TEST_CASE("precision: the projected form computes narrow tensors in float32, however the form was chosen") {
    Random random(37);
    ForwardInputs inputs;
    inputs.query = as(normal(random, {1, 300, 8}), DType::bf16);
    inputs.weights.emplace_back("wq", normal(random, {8, 8}));
    ForwardInputs wide = inputs;
    wide.query = as(inputs.query, DType::f32);
    for (const attend::NamedValues& options :
         {attend::NamedValues{{"heads", 2}}, attend::NamedValues{{"heads", 2}, {"form", "auto"}},
          attend::NamedValues{{"heads", 2}, {"form", "projected"}}}) {
        ForwardOptions call = call_of("standard-mha");
        call.options = options;
        const auto got = service().forward(inputs, call);
        if (!got) FAIL(got.error().message);
        CHECK(got->precision == "fp32");
        CHECK(got->output.dtype == DType::bf16);
        CHECK(difference(got->output, as(service().forward(wide, call).value().output, DType::bf16)) == 0.0);
    }
}
