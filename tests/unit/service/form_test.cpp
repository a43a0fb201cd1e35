// SPDX-License-Identifier: Apache-2.0
// The form of a call: from option `form`, from a mechanism's own option, or from the weights; and what heads mean in it.
#include "service/call_form.hpp"
#include "support/calls.hpp"

using namespace support;
using attend::CallRequest;
using attend::ForwardInputs;
using attend::ForwardOptions;

namespace {

attend::MechanismPtr found(const char* name) { return service().registry()->find(name); }

bool projected(const char* mechanism, attend::NamedValues options) {
    CallRequest request;
    request.options = std::move(options);
    const auto form = attend::choose_form(*found(mechanism), nullptr, request);
    REQUIRE(form.ok());
    return form->projected;
}

}  // namespace

TEST_CASE("form: the tables say which mechanisms have two, and which of them holds") {
    CHECK(attend::has_forms(*found("standard-mha")));
    CHECK(attend::has_forms(*found("hierarchical-cross-attention")));
    CHECK_FALSE(attend::has_forms(*found("flash-attention-v2")));
    CHECK_FALSE(attend::has_forms(*found("local-attention")));
    CHECK(projected("standard-mha", {{"form", "projected"}, {"heads", 2}}));
    CHECK(projected("standard-mha", {{"form", "projected"}, {"batch_first", false}}));
    CHECK_FALSE(projected("standard-mha", {{"form", "core"}}));
    CHECK_FALSE(projected("standard-mha", {}));
    CHECK(projected("hierarchical-cross-attention", {{"block", true}}));
    CHECK_FALSE(projected("hierarchical-cross-attention", {}));
    CHECK(projected("perceiver-attention", {{"form", "projected"}}));
    CHECK_FALSE(projected("perceiver-attention", {}));
}

TEST_CASE("form: key heads of the request are honoured or refused") {
    Random random(3);
    ForwardInputs inputs;
    inputs.query = normal(random, {1, 5, 16});
    ForwardOptions call;
    call.mechanism = "bidirectional-self-attention";
    call.options = {{"form", "projected"}};
    call.heads = 4;
    call.kv_heads = 4;
    CHECK(service().forward(inputs, call).ok());
    call.kv_heads = 2;
    const auto refused = service().forward(inputs, call);
    REQUIRE_FALSE(refused.ok());
    for (const char* word : {"bidirectional-self-attention", "kv_heads is 2", "accepted: 4"})
        CHECK(refused.error().message.find(word) != std::string::npos);
    call.mechanism = "grouped-query-attention";
    CHECK(service().forward(inputs, call).ok());
}
