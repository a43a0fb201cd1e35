// SPDX-License-Identifier: Apache-2.0
// Candidates by attention through the C API.
#include "attend/rerank.hpp"
#include "support.hpp"

using namespace c_api_test;

namespace {

struct Request {
    attend_rerank_request request = sized<attend_rerank_request>();
    std::deque<attend_view> views;
    std::vector<attend_named_tensor> tensors;

    void add(const char* name, const attend::Tensor& tensor) {
        attend_view view = sized<attend_view>();
        view.dtype = number_of(tensor.dtype);
        view.data = tensor.data;
        view.shape = tensor.shape.data();
        view.strides = tensor.strides.data();
        view.ndim = static_cast<std::int32_t>(tensor.rank());
        views.push_back(view);
        attend_named_tensor named = sized<attend_named_tensor>();
        named.name = name;
        named.view = &views.back();
        tensors.push_back(named);
        request.tensors = tensors.data();
        request.num_tensors = tensors.size();
    }
};

}  // namespace

TEST_CASE("c api rerank: the list of the service, as many as there is room for") {
    support::Random random(31);
    const attend::Tensor query = support::normal(random, {2, 16}), candidates = support::normal(random, {30, 16});
    Request call;
    call.add("query", query);
    call.add("candidates", candidates);
    Problem problem;
    for (const char* mechanism : {static_cast<const char*>(nullptr), "flash-attention-v2", "linear-attention"}) {
        call.request.mechanism = mechanism;
        call.request.heads = 2;
        attend::RerankOptions options;
        if (mechanism != nullptr) options.mechanism = mechanism;
        options.heads = 2;
        const auto expected = support::service().rerank(query, candidates, options).value().results;
        std::vector<attend_ranked> ranked(40);
        std::uint64_t count = 99;
        REQUIRE(attend_rerank(service(), &call.request, ranked.data(), 40, &count, problem) == ATTEND_E_NONE);
        REQUIRE(count == 30);
        for (std::size_t rank = 0; rank < 30; ++rank) {
            CHECK(ranked[rank].index == expected[rank].index);
            CHECK(ranked[rank].score == expected[rank].score);
            CHECK(ranked[rank].logit == expected[rank].logit);
        }
        ranked.assign(2, {-1, 0, 0});
        REQUIRE(attend_rerank(service(), &call.request, ranked.data(), 1, &count, problem) == ATTEND_E_NONE);
        CHECK(count == 30);
        CHECK(ranked[0].index == expected[0].index);
        CHECK(ranked[1].index == -1);
        call.request.top_k = 3;
        CHECK(attend_rerank(service(), &call.request, nullptr, 0, &count, nullptr) == ATTEND_E_NONE);
        CHECK(count == 3);
        call.request.top_k = 0;
    }
    call.request = sized<attend_rerank_request>();
    call.request.tensors = call.tensors.data();
    call.request.num_tensors = 2;
    call.request.mechanism = "standard-mha";
    call.request.flags = ATTEND_RERANK_NORMALIZE;
    call.request.scale = 3;
    call.request.options_json = R"({"softcap": 2.0})";
    attend_ranked best{};
    REQUIRE(attend_rerank(service(), &call.request, &best, 1, nullptr, problem) == ATTEND_E_NONE);
    CHECK(best.logit < 2);
}

TEST_CASE("c api rerank: what is wrong is said and changes nothing") {
    support::Random random(32);
    const attend::Tensor query = support::normal(random, {8}), candidates = support::normal(random, {3, 8});
    Request call;
    call.add("query", query);
    Problem problem;
    std::uint64_t count = 7;
    attend_ranked ranked[3];
    const auto rerank = [&] { return attend_rerank(service(), &call.request, ranked, 3, &count, problem); };
    CHECK(rerank() == ATTEND_E_INPUT);
    CHECK(problem.says("\"candidates\" is missing"));
    CHECK(count == 0);
    call.add("candidates", candidates);
    CHECK(rerank() == ATTEND_E_NONE);
    call.request.mechanism = "moe-attention";
    CHECK(rerank() == ATTEND_E_UNSUPPORTED);
    call.request.mechanism = "moe";
    CHECK(rerank() == ATTEND_E_NOT_FOUND);
    call.request.mechanism = nullptr;
    call.request.heads = 3;
    CHECK(rerank() == ATTEND_E_OPTION);
    call.request.heads = 0;
    call.request.flags = ATTEND_RERANK_NORMALIZE | ATTEND_RERANK_NO_NORMALIZE;
    CHECK(rerank() == ATTEND_E_UNSUPPORTED);
    call.request.flags = 0;
    call.request.options_json = "{";
    CHECK(rerank() == ATTEND_E_INPUT);
    call.request.options_json = nullptr;
    CHECK(attend_rerank(service(), &call.request, nullptr, 3, &count, problem) == ATTEND_E_INPUT);
    CHECK(attend_rerank(nullptr, &call.request, ranked, 3, &count, problem) == ATTEND_E_INPUT);
    CHECK(attend_rerank(service(), nullptr, ranked, 3, &count, problem) == ATTEND_E_INPUT);
    call.add("value", candidates);
    CHECK(rerank() == ATTEND_E_INPUT);
    CHECK(problem.says("unknown tensor \"value\""));
}
