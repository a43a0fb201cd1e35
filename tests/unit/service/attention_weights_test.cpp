// SPDX-License-Identifier: Apache-2.0
// Attention weights by rows: each reduction against the whole matrix, the guard, and what is refused.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/calls.hpp"

namespace {

using namespace support;
using attend::ErrorCode;
using attend::ForwardInputs;
using attend::ForwardOptions;
using attend::NamedValues;
using attend::Tensor;
using attend::WeightRequest;
using attend::WeightSummary;

struct Case {
    const char* mechanism;
    NamedValues options;
};
const std::vector<Case>& cases() {
    static const std::vector<Case> list{{"standard-mha", {}},
                                        {"standard-mha", {{"causal", true}}},
                                        {"local-attention", {{"window_size", 9}}},
                                        {"star-attention", {}},
                                        {"perceiver-attention", {}},
                                        {"hierarchical-cross-attention", {{"segment_size", 16}}},
                                        {"random-attention", {{"num_keys", 12}}}};
    return list;
}

ForwardInputs inputs_of(const Shape& shape) {
    Random random(41);
    ForwardInputs inputs = make_inputs(random, shape);
    if (shape.batch == 2) inputs.key_lengths = lengths({shape.kv_len, 3});
    return inputs;
}

Tensor whole_of(const ForwardInputs& inputs, const Case& of) {
    return *run(service(), inputs, of.mechanism, of.options, false, true).scores;
}

WeightSummary asked(const ForwardInputs& inputs, const Case& of, const WeightRequest& request, int threads = 2) {
    auto got = service("auto", threads).attention_weights(inputs, {of.mechanism, of.options}, request);
    if (!got) FAIL(got.error().message);
    return std::move(*got);
}

attend::Error refused(const ForwardOptions& options, const WeightRequest& request) {
    const auto got = service().attention_weights(inputs_of({1, 2, 2, 60, 60, 8, 8}), options, request);
    REQUIRE_FALSE(got.ok());
    return got.error();
}

}  // namespace

TEST_CASE("weights: reductions equal those of the whole matrix") {
    for (const Case& of : cases())
        for (const Shape& shape : {Shape{2, 2, 2, 70, 70, 8, 8}, Shape{1, 3, 3, 131, 131, 16, 16}}) {
            INFO(of.mechanism << " " << shape.text());
            const ForwardInputs inputs = inputs_of(shape);
            const Tensor p = whole_of(inputs, of);
            const std::int64_t heads = p.shape[0] * p.shape[1], rows = p.shape[2], keys = p.shape[3], k = 5;
            WeightRequest request;
            request.top_k = k;
            request.column_mass = request.row_entropy = true;
            request.chunk_bytes = 11 * 4 * static_cast<std::uint64_t>(heads * keys);
            const WeightSummary got = asked(inputs, of, request);
            CHECK(got.q_len == rows);
            CHECK(got.kv_len == keys);
            double worst_mass = 0.0, worst_entropy = 0.0;
            bool top = true;
            std::vector<double> mass(static_cast<std::size_t>(heads * keys), 0.0);
            for (std::int64_t row = 0; row < heads * rows; ++row) {
                const float* w = p.as<float>() + row * keys;
                double entropy = 0.0;
                std::vector<std::int64_t> order;
                for (std::int64_t j = 0; j < keys; ++j) {
                    mass[static_cast<std::size_t>(row / rows * keys + j)] += static_cast<double>(w[j]);
                    if (w[j] <= 0.0f) continue;
                    order.push_back(j);
                    entropy -= static_cast<double>(w[j]) * std::log(static_cast<double>(w[j]));
                }
                worst_entropy = std::max(worst_entropy, std::abs(entropy - got.row_entropy->as<double>()[row]));
                std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return w[a] > w[b]; });
                for (std::int64_t n = 0; n < k; ++n) {
                    const bool there = n < static_cast<std::int64_t>(order.size());
                    const std::int64_t key = there ? order[static_cast<std::size_t>(n)] : -1;
                    top = top && got.top_keys->as<std::int64_t>()[row * k + n] == key &&
                          got.top_values->as<float>()[row * k + n] == (there ? w[key] : 0.0f);
                }
            }
            for (std::size_t at = 0; at < mass.size(); ++at)
                worst_mass = std::max(worst_mass, std::abs(mass[at] - got.column_mass->as<double>()[at]));
            CHECK(top);
            CHECK(worst_mass == 0.0);
            CHECK(worst_entropy <= 1e-11);
        }
}

TEST_CASE("weights: chosen rows and pairs are those of the whole matrix") {
    for (const Case& of : cases()) {
        INFO(of.mechanism);
        const ForwardInputs inputs = inputs_of({2, 2, 2, 150, 150, 8, 8});
        const Tensor p = whole_of(inputs, of);
        const std::int64_t keys = p.shape[3], rows = p.shape[2];
        WeightRequest request;
        request.rows = {rows - 1, 0, 5, 5};
        request.pairs = {{1, 1, rows - 2, keys - 1}, {0, 0, 0, 0}, {0, 1, 7, 2}};
        request.chunk_bytes = 1;
        const WeightSummary got = asked(inputs, of, request);
        bool same = true;
        for (std::int64_t head = 0; head < 4; ++head)
            for (std::size_t n = 0; n < request.rows.size(); ++n)
                same =
                    same && std::memcmp(got.row_weights->as<float>() + (head * 4 + static_cast<std::int64_t>(n)) * keys,
                                        p.as<float>() + (head * rows + request.rows[n]) * keys,
                                        static_cast<std::size_t>(keys) * 4) == 0;
        CHECK(same);
        for (std::size_t n = 0; n < request.pairs.size(); ++n) {
            const auto& pair = request.pairs[n];
            CHECK(got.pairs[n] == p.as<float>()[((pair.batch * 2 + pair.head) * rows + pair.row) * keys + pair.key]);
        }
    }
}

TEST_CASE("weights: projected forms and means over heads") {
    Random random(47);
    ForwardInputs inputs;
    inputs.query = normal(random, {2, 61, 16});
    ForwardInputs media = inputs;
    media.key = normal(random, {2, 30, 16});
    const struct {
        Case of;
        const ForwardInputs& inputs;
    } calls[] = {{{"standard-mha", {{"form", "projected"}, {"heads", 4}}}, inputs},
                 {{"standard-mha", {{"form", "projected"}, {"heads", 4}, {"average_weights", true}}}, inputs},
                 {{"standard-mha", {{"form", "projected"}, {"heads", 4}, {"batch_first", false}}}, inputs},
                 {{"standard-mha", {{"form", "projected"}, {"heads", 4}, {"output_projection", false}}}, inputs},
                 {{"disentangled-attention", {{"form", "projected"}, {"heads", 4}}}, inputs},
                 {{"gated-cross-attention", {{"form", "projected"}, {"heads", 4}}}, media}};
    for (const auto& call : calls) {
        INFO(call.of.mechanism << " " << attend::write_json(call.of.options.back().second));
        const Tensor p = whole_of(call.inputs, call.of);
        WeightRequest request;
        request.full = true;
        request.chunk_bytes = static_cast<std::uint64_t>(p.size() / p.shape[p.shape.size() - 2]) * 4 * 9;
        const WeightSummary got = asked(call.inputs, call.of, request);
        REQUIRE(got.full->byte_size() == p.byte_size());
        CHECK(std::memcmp(got.full->data, p.data, p.byte_size()) == 0);
    }
    const auto logits =
        service().attention_scores(inputs, {"standard-mha", calls[1].of.options}, attend::ScoreStage::logits);
    REQUIRE_FALSE(logits.ok());
    CHECK(logits.error().code == ErrorCode::unsupported);
}

TEST_CASE("weights: the same bits for any threads and chunks") {
    const ForwardInputs inputs = inputs_of({1, 2, 2, 200, 200, 16, 16});
    WeightRequest request;
    request.top_k = 7;
    request.column_mass = request.row_entropy = request.full = true;
    const WeightSummary one = asked(inputs, cases()[0], request, 1);
    for (const int threads : {2, 7}) {
        request.chunk_bytes = threads == 2 ? 1 : 60000;
        const WeightSummary other = asked(inputs, cases()[0], request, threads);
        CHECK(same_bits(*one.full, *other.full));
        CHECK(same_bits(*one.top_values, *other.top_values));
        CHECK(std::memcmp(one.top_keys->data, other.top_keys->data, one.top_keys->byte_size()) == 0);
        CHECK(std::memcmp(one.column_mass->data, other.column_mass->data, one.column_mass->byte_size()) == 0);
        CHECK(std::memcmp(one.row_entropy->data, other.row_entropy->data, one.row_entropy->byte_size()) == 0);
    }
}

TEST_CASE("weights: a row that sees no key has no top keys and entropy 0") {
    ForwardInputs inputs = inputs_of({2, 1, 1, 9, 9, 8, 8});
    inputs.key_lengths = lengths({9, 0});
    WeightRequest request;
    request.top_k = 2;
    request.row_entropy = true;
    const WeightSummary got = asked(inputs, cases()[0], request);
    for (std::int64_t row = 9; row < 18; ++row) {
        CHECK(got.top_keys->as<std::int64_t>()[row * 2] == -1);
        CHECK(got.top_values->as<float>()[row * 2 + 1] == 0.0f);
        CHECK(got.row_entropy->as<double>()[row] == 0.0);
    }
    CHECK(got.row_entropy->as<double>()[0] > 0.0);
}

TEST_CASE("weights: equal weights are ranked by key") {
    ForwardInputs inputs = inputs_of({1, 1, 1, 3, 200, 8, 8});
    std::fill_n(inputs.query.as<float>(), inputs.query.size(), 0.0f);
    WeightRequest request;
    request.top_k = 3;
    request.row_entropy = true;
    const WeightSummary got = asked(inputs, cases()[0], request);
    for (std::int64_t n = 0; n < 3; ++n) CHECK(got.top_keys->as<std::int64_t>()[3 + n] == n);
    CHECK(std::abs(got.row_entropy->as<double>()[2] - std::log(200.0)) <= 1e-6);
}

TEST_CASE("weights: what does not fit the guard is refused with both sizes") {
    WeightRequest request;
    request.full = true;
    request.max_full_bytes = 1000;
    attend::Error error = refused({"standard-mha", {}}, request);
    CHECK(error.code == ErrorCode::limit);
    CHECK(error.message.find("28800 bytes") != std::string::npos);
    CHECK(error.message.find("1000 bytes") != std::string::npos);
    request.full = false;
    request.rows = {1, 2, 3};
    CHECK(refused({"standard-mha", {}}, request).code == ErrorCode::limit);
    const auto scores = service().attention_scores(inputs_of({1, 2, 2, 60, 60, 8, 8}), {"standard-mha", {}},
                                                   attend::ScoreStage::weights, 28799);
    REQUIRE_FALSE(scores.ok());
    CHECK(scores.error().code == ErrorCode::limit);
}

TEST_CASE("weights: what lies outside the call is refused by place") {
    WeightRequest request;
    request.rows = {0, 60};
    CHECK(refused({"standard-mha", {}}, request).message.find("rows[1] is 60; accepted: 0 to 59") != std::string::npos);
    request.rows.clear();
    request.pairs = {{0, 2, 0, 0}};
    const attend::Error error = refused({"standard-mha", {}}, request);
    CHECK(error.code == ErrorCode::shape);
    CHECK(error.message.find("pairs[0].head is 2; accepted: 0 to 1") != std::string::npos);
    request.pairs.clear();
    request.top_k = -1;
    CHECK(refused({"standard-mha", {}}, request).code == ErrorCode::option);
}

TEST_CASE("weights: a mechanism without weights is refused by name") {
    for (const char* name : {"linear-attention", "talking-heads-attention", "flash-decoding"}) {
        const attend::Error error = refused({name, {}}, {});
        CHECK(error.code == ErrorCode::unsupported);
        CHECK(error.message.find(std::string(name) + ": no score matrix") != std::string::npos);
    }
    const auto logits = service().attention_scores(inputs_of({1, 2, 2, 60, 60, 8, 8}),
                                                   {"hierarchical-cross-attention", {}}, attend::ScoreStage::logits);
    REQUIRE_FALSE(logits.ok());
    CHECK(logits.error().code == ErrorCode::unsupported);
}

TEST_CASE("weights: rows come in order and an error of the visitor ends the call") {
    const ForwardInputs inputs = inputs_of({1, 2, 2, 100, 100, 8, 8});
    std::int64_t next = 0;
    attend::WeightVisit how;
    how.chunk_bytes = 2 * 100 * 4 * 10;
    REQUIRE(service()
                .visit_attention_weights(inputs, {"standard-mha", {}}, how,
                                         [&](const attend::WeightRows& rows) -> attend::Result<void> {
                                             CHECK(rows.first == next);
                                             CHECK(rows.count == 10);
                                             next += rows.count;
                                             return {};
                                         })
                .ok());
    CHECK(next == 100);
    const auto stopped = service().visit_attention_weights(inputs, {"standard-mha", {}}, how,
                                                           [&](const attend::WeightRows&) -> attend::Result<void> {
                                                               return attend::Error{ErrorCode::io, "enough", ""};
                                                           });
    REQUIRE_FALSE(stopped.ok());
    CHECK(stopped.error().message == "enough");
}

TEST_CASE("weights: keys alone are enough, in any precision") {
    Random random(43);
    ForwardInputs inputs;
    inputs.query = normal(random, {1, 2, 40, 8});
    inputs.key = normal(random, {1, 2, 30, 8});
    const auto scores = service().attention_scores(inputs, {"standard-mha", {}});
    REQUIRE(scores.ok());
    CHECK(scores->shape == std::vector<std::int64_t>{1, 2, 40, 30});
    for (std::int64_t row = 0; row < 80; ++row) {
        double sum = 0.0;
        for (std::int64_t j = 0; j < 30; ++j) sum += static_cast<double>(scores->as<float>()[row * 30 + j]);
        CHECK(std::abs(sum - 1.0) <= 1e-5);
    }
    inputs.query = attend::convert(inputs.query, attend::DType::bf16).value();
    inputs.key = attend::convert(*inputs.key, attend::DType::bf16).value();
    const auto narrow = service().attention_scores(inputs, {"standard-mha", {}});
    REQUIRE(narrow.ok());
    const auto wide = values(*scores);
    CHECK(difference(values(*narrow), {wide.begin(), wide.end()}) <= 2e-2);
}
