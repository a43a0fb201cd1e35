// SPDX-License-Identifier: Apache-2.0
// Candidates ordered by attention, against sums in double of the definition alone.
#include "attend/rerank.hpp"

#include <numeric>

#include "support/calls.hpp"

using namespace support;
using attend::ErrorCode;
using attend::RankedCandidate;
using attend::Reranking;
using attend::RerankOptions;
using attend::Tensor;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

Reranking ranked(const Tensor& query, const Tensor& candidates, const RerankOptions& options = {},
                 const std::string& backend = "auto", int threads = 2) {
    auto result = service(backend, threads).rerank(query, candidates, options);
    INFO((result ? std::string() : result.error().message));
    REQUIRE(result.ok());
    return *result;
}

RerankOptions by(const std::string& mechanism, std::int64_t heads = 1) {
    RerankOptions options;
    options.mechanism = mechanism;
    options.heads = heads;
    return options;
}

Tensor from(std::vector<std::int64_t> shape, const std::vector<float>& values) {
    Tensor tensor = Tensor::allocate(attend::DType::f32, std::move(shape)).value();
    std::copy(values.begin(), values.end(), tensor.as<float>());
    return tensor;
}

float& at(Tensor& tensor, std::int64_t row, std::int64_t column) {
    return tensor.as<float>()[row * tensor.shape[1] + column];
}

// By candidate index.
struct Expected {
    std::vector<double> score, logit;
};

// The definition: scores of every head and row, their mean over rows, softmax, the mean over heads.
Expected expected(const Tensor& query, const Tensor& candidates, std::int64_t heads, bool normalize, double scale) {
    const std::int64_t width = candidates.shape[1], n = candidates.shape[0], part = width / heads,
                       rows = query.rank() == 1 ? 1 : query.shape[0];
    const auto* q = query.as<const float>();
    const auto* c = candidates.as<const float>();
    const auto norm = [&](const float* from) {
        double sum = 1e-6;
        for (std::int64_t d = 0; d < part; ++d) sum += static_cast<double>(from[d]) * static_cast<double>(from[d]);
        return normalize ? std::sqrt(sum) : 1.0;
    };
    Expected result{std::vector<double>(static_cast<std::size_t>(n)), std::vector<double>(static_cast<std::size_t>(n))};
    for (std::int64_t h = 0; h < heads; ++h) {
        std::vector<double> logits(static_cast<std::size_t>(n));
        for (std::int64_t j = 0; j < n; ++j) {
            const float* key = c + j * width + h * part;
            double sum = 0;
            for (std::int64_t i = 0; i < rows; ++i) {
                const float* own = q + i * width + h * part;
                double product = 0;
                for (std::int64_t d = 0; d < part; ++d)
                    product += static_cast<double>(own[d]) * static_cast<double>(key[d]);
                sum += scale * product / (norm(own) * norm(key));
            }
            logits[static_cast<std::size_t>(j)] = sum / static_cast<double>(rows);
        }
        double total = 0;
        const double top = *std::max_element(logits.begin(), logits.end());
        for (const double logit : logits) total += std::exp(logit - top);
        for (std::size_t j = 0; j < logits.size(); ++j) {
            result.score[j] += std::exp(logits[j] - top) / total / static_cast<double>(heads);
            result.logit[j] += logits[j] / static_cast<double>(heads);
        }
    }
    return result;
}

void check_order(const std::vector<RankedCandidate>& results) {
    for (std::size_t r = 0; r < results.size(); ++r) {
        CHECK(results[r].rank == static_cast<std::int64_t>(r));
        if (r == 0) continue;
        const auto key = [](const RankedCandidate& x) { return std::tuple(-x.score, -x.logit, x.index); };
        CHECK(key(results[r - 1]) < key(results[r]));
    }
}

void check_against(const Reranking& got, const Expected& right, double tolerance) {
    REQUIRE(got.results.size() == right.score.size());
    double sum = 0;
    for (const RankedCandidate& candidate : got.results) {
        const auto j = static_cast<std::size_t>(candidate.index);
        CHECK(std::abs(candidate.score - right.score[j]) <= tolerance);
        CHECK(std::abs(candidate.logit - right.logit[j]) <= tolerance * (1 + std::abs(right.logit[j])));
        sum += candidate.score;
    }
    CHECK(std::abs(sum - 1) < 1e-12);
    check_order(got.results);
}

std::vector<std::int64_t> order_of(const Reranking& ranking) {
    std::vector<std::int64_t> order;
    for (const RankedCandidate& candidate : ranking.results) order.push_back(candidate.index);
    return order;
}

void refuses(const Tensor& query, const Tensor& candidates, const RerankOptions& options, ErrorCode code,
             const std::vector<std::string>& parts) {
    const auto result = service().rerank(query, candidates, options);
    REQUIRE_FALSE(result.ok());
    INFO(result.error().message);
    CHECK(result.error().code == code);
    for (const std::string& part : parts) CHECK(result.error().message.find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("rerank: the definition holds for every mechanism of softmax over products") {
    Random random(1);
    for (const auto& [rows, n, width, heads] :
         {std::array<std::int64_t, 4>{1, 7, 16, 1}, {1, 33, 30, 3}, {4, 12, 24, 2}}) {
        const Tensor query = normal(random, {rows, width}), candidates = normal(random, {n, width});
        const double scale = 1 / std::sqrt(static_cast<double>(width / heads));
        check_against(ranked(query, candidates, by("memory-attention", heads)),
                      expected(query, candidates, heads, true, 20), 1e-12);
        for (const char* mechanism : {"standard-mha", "flash-attention-v2", "multi-query-attention", "cross-attention"})
            check_against(ranked(query, candidates, by(mechanism, heads)),
                          expected(query, candidates, heads, false, scale), 1e-12);
        for (const char* mechanism : {"gated-cross-attention", "blockwise-attention"})
            check_against(ranked(query, candidates, by(mechanism, heads)),
                          expected(query, candidates, heads, false, scale), 1e-5);
        RerankOptions options = by("standard-mha", heads);
        options.normalize = RerankOptions::Normalize::on;
        options.scale = 3.0;
        check_against(ranked(query, candidates, options), expected(query, candidates, heads, true, 3), 1e-12);
        options.mechanism = "blockwise-attention";
        check_against(ranked(query, candidates, options), expected(query, candidates, heads, true, 3), 1e-5);
    }
}

TEST_CASE("rerank: memory-attention scales by the learned attn_scale where it normalises") {
    Random random(2);
    const Tensor query = normal(random, {12}), candidates = normal(random, {9, 12});
    RerankOptions options;
    options.scale = 0.5;
    check_against(ranked(query, candidates, options), expected(query, candidates, 1, true, 10), 1e-12);
    options.weights = {{"attn_scale", from({1}, {-4})}};
    check_against(ranked(query, candidates, options), expected(query, candidates, 1, true, 2), 1e-12);
    options.scale.reset();
    options.normalize = RerankOptions::Normalize::off;
    refuses(query, candidates, options, ErrorCode::weight, {"attn_scale", "normalize"});
    options.weights.clear();
    check_against(ranked(query, candidates, options), expected(query, candidates, 1, false, 1 / std::sqrt(12.0)),
                  1e-12);
}

TEST_CASE("rerank: permuting candidates permutes results") {
    Random random(3);
    const Tensor query = normal(random, {2, 24});
    Tensor candidates = normal(random, {40, 24});
    std::vector<std::int64_t> permutation(40);
    std::iota(permutation.begin(), permutation.end(), 0);
    std::shuffle(permutation.begin(), permutation.end(), random.engine);
    Tensor shuffled = Tensor::allocate(attend::DType::f32, {40, 24}).value();
    for (std::int64_t row = 0; row < 40; ++row)
        for (std::int64_t d = 0; d < 24; ++d)
            at(shuffled, row, d) = at(candidates, permutation[static_cast<std::size_t>(row)], d);
    for (const char* mechanism : {"memory-attention", "flash-attention-v2", "linear-attention"}) {
        const Reranking plain = ranked(query, candidates, by(mechanism, 2)),
                        other = ranked(query, shuffled, by(mechanism, 2));
        for (std::size_t r = 0; r < 40; ++r) {
            CHECK(permutation[static_cast<std::size_t>(other.results[r].index)] == plain.results[r].index);
            CHECK(other.results[r].score == Approx(plain.results[r].score).epsilon(1e-5));
        }
    }
}

TEST_CASE("rerank: duplicate candidates tie in index order") {
    Random random(4);
    Tensor candidates = normal(random, {60, 33});
    for (std::int64_t row = 0; row < 60; ++row)
        for (std::int64_t d = 0; d < 33; ++d) at(candidates, row, d) = at(candidates, row % 20, d);
    for (const char* mechanism : {"memory-attention", "standard-mha", "gated-cross-attention", "linear-attention"}) {
        const auto results = ranked(normal(random, {33}), candidates, by(mechanism)).results;
        for (std::size_t r = 0; r < 60; r += 3) {
            CHECK(results[r].index < 20);
            CHECK(results[r + 1].index == results[r].index + 20);
            CHECK(results[r + 2].index == results[r].index + 40);
            CHECK(results[r + 1].score == results[r].score);
        }
    }
}

TEST_CASE("rerank: one head equals sorting by q.k*scale") {
    Random random(5);
    const Tensor query = normal(random, {48}), candidates = normal(random, {100, 48});
    const Expected plain = expected(query, candidates, 1, false, -0.25),
                   cosine = expected(query, candidates, 1, true, 1);
    std::vector<std::int64_t> order(100);
    std::iota(order.begin(), order.end(), 0);
    RerankOptions options = by("standard-mha");
    options.scale = -0.25;
    for (const auto& [right, got] :
         {std::pair(&plain, ranked(query, candidates, options)), std::pair(&cosine, ranked(query, candidates))}) {
        std::sort(order.begin(), order.end(), [&, right = right](std::int64_t a, std::int64_t b) {
            return right->logit[static_cast<std::size_t>(a)] > right->logit[static_cast<std::size_t>(b)];
        });
        CHECK(order_of(got) == order);
    }
}

TEST_CASE("rerank: no candidates give an empty list") {
    const Tensor query = from({4}, {1, 2, 3, 4});
    for (const char* mechanism : {"memory-attention", "linformer-attention"}) {
        CHECK(ranked(query, from({0, 4}, {}), by(mechanism)).results.empty());
        CHECK(ranked(query, from({0}, {}), by(mechanism)).results.empty());
    }
    CHECK(service().rerank({1, 2}, std::vector<std::vector<float>>{}, {}).value().results.empty());
    refuses(query, from({0, 4}, {}), by("memry-attention"), ErrorCode::not_found,
            {"memry-attention", "memory-attention"});
}

TEST_CASE("rerank: one candidate has score 1") {
    Random random(6);
    for (const char* mechanism : {"memory-attention", "standard-mha", "rotary-mha", "local-attention",
                                  "linear-attention", "performer-attention", "cosformer-attention"}) {
        INFO(mechanism);
        const auto results = ranked(normal(random, {8}), normal(random, {1, 8}), by(mechanism, 2)).results;
        REQUIRE(results.size() == 1);
        CHECK(results[0].score == 1);
        CHECK(results[0].index == 0);
    }
}

TEST_CASE("rerank: adding a constant to all logits changes nothing") {
    Random random(7);
    // One more column, in which all candidates agree, adds the same to every score.
    Tensor query = normal(random, {17}), candidates = normal(random, {30, 17});
    for (std::int64_t row = 0; row < 30; ++row) at(candidates, row, 16) = 1;
    RerankOptions options = by("flash-attention-v2");
    options.scale = 1.0;
    query.as<float>()[16] = 0;
    const auto plain = ranked(query, candidates, options).results;
    query.as<float>()[16] = 100;
    const auto raised = ranked(query, candidates, options).results;
    for (std::size_t r = 0; r < 30; ++r) {
        CHECK(raised[r].index == plain[r].index);
        CHECK(raised[r].score == Approx(plain[r].score).epsilon(1e-11));
        CHECK(raised[r].logit == Approx(plain[r].logit + 100).epsilon(1e-12));
    }
}

TEST_CASE("rerank: underflowed scores are still ordered by logit") {
    Tensor candidates = Tensor::allocate(attend::DType::f32, {50, 8}).value();
    for (std::int64_t row = 0; row < 50; ++row) at(candidates, row, 0) = static_cast<float>((row * 37) % 50);
    const Tensor query = from({8}, {100, 0, 0, 0, 0, 0, 0, 0});
    for (const char* mechanism : {"standard-mha", "gated-cross-attention", "blockwise-attention"}) {
        INFO(mechanism);
        RerankOptions options = by(mechanism);
        options.scale = 1.0;
        const auto results = ranked(query, candidates, options).results;
        CHECK(results[49].score == 0);
        for (std::size_t r = 0; r < 50; ++r)
            CHECK(results[r].logit == Approx(100.0 * (49 - static_cast<double>(r))).epsilon(1e-5));
        check_order(results);
    }
}

TEST_CASE("rerank: NaN and infinity are refused as E_NONFINITE") {
    Random random(8);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
        for (const char* mechanism : {"memory-attention", "standard-mha", "gated-cross-attention", "linear-attention"})
            for (const bool in_query : {true, false}) {
                Tensor query = normal(random, {1, 20}), candidates = normal(random, {5, 20});
                at(query, 0, 19) = 0;  // infinity times nothing
                at(in_query ? query : candidates, in_query ? 0 : 3, 19) = bad;
                refuses(query, candidates, by(mechanism), ErrorCode::nonfinite, {"rerank: ", "finite"});
            }
}

TEST_CASE("rerank: top_k cuts the list after scores over all candidates") {
    Random random(9);
    const Tensor query = normal(random, {16}), candidates = normal(random, {25, 16});
    for (const char* mechanism : {"memory-attention", "linear-attention"}) {
        RerankOptions options = by(mechanism, 2);
        const auto all = ranked(query, candidates, options).results;
        options.top_k = 4;
        const auto some = ranked(query, candidates, options).results;
        REQUIRE(some.size() == 4);
        for (std::size_t r = 0; r < 4; ++r) {
            CHECK(some[r].index == all[r].index);
            CHECK(some[r].score == all[r].score);
        }
        options.top_k = 100;
        CHECK(ranked(query, candidates, options).results.size() == 25);
    }
}

TEST_CASE("rerank: dropped candidates have score 0, logit -infinity and come last by index") {
    Random random(10);
    const Tensor query = normal(random, {16}), candidates = normal(random, {12, 16});
    RerankOptions window = by("local-attention"), best = by("memory-attention");
    window.options = {{"window_size", 3}};
    best.options = {{"top_k", 4}};
    for (const RerankOptions& options : {window, best}) {
        const auto results = ranked(query, candidates, options).results;
        double sum = 0;
        for (std::size_t r = 0; r < 12; ++r) {
            sum += results[r].score;
            CHECK((results[r].score > 0) == (r < 4));
            if (r >= 4) CHECK(results[r].logit == -infinity);
            if (r > 4) CHECK(results[r].index > results[r - 1].index);
        }
        CHECK(std::abs(sum - 1) < 1e-12);
    }
    // The window ends at the last candidate; the best are those that all candidates ranked first.
    for (const RankedCandidate& candidate : ranked(query, candidates, window).results)
        CHECK((candidate.score > 0) == (candidate.index >= 8));
    const auto all = ranked(query, candidates).results, some = ranked(query, candidates, best).results;
    for (std::size_t r = 0; r < 4; ++r) CHECK(some[r].index == all[r].index);
}

TEST_CASE("rerank: feature maps weigh by phi(q).phi(k) without a scale") {
    Random random(11);
    const std::int64_t n = 300, width = 10, heads = 2, part = 5;
    const Tensor query = normal(random, {width}), candidates = normal(random, {n, width});
    const auto phi = [](float x) { return x > 0 ? static_cast<double>(x) + 1 : std::exp(static_cast<double>(x)); };
    std::vector<double> scores(static_cast<std::size_t>(n)), logits(static_cast<std::size_t>(n));
    for (std::int64_t h = 0; h < heads; ++h) {
        std::vector<double> products(static_cast<std::size_t>(n));
        for (std::int64_t j = 0; j < n; ++j)
            for (std::int64_t d = h * part; d < (h + 1) * part; ++d)
                products[static_cast<std::size_t>(j)] +=
                    phi(query.as<const float>()[d]) * phi(candidates.as<const float>()[j * width + d]);
        const double sum = std::accumulate(products.begin(), products.end(), 0.0);
        for (std::size_t j = 0; j < products.size(); ++j) {
            scores[j] += products[j] / sum / 2;
            logits[j] += products[j] / 2;
        }
    }
    RerankOptions options = by("linear-attention", heads);
    Reranking got = ranked(query, candidates, options);
    check_against(got, {scores, logits}, 1e-5);
    CHECK(got.warnings.empty());
    options.scale = 2.0;
    got = ranked(query, candidates, options);
    check_against(got, {scores, logits}, 1e-5);
    REQUIRE(got.warnings.size() == 1);
    CHECK(got.warnings[0].find("scale is given") != std::string::npos);
}

TEST_CASE("rerank: mechanisms without a weight for each key are E_UNSUPPORTED, with the reason") {
    Random random(12);
    const Tensor query = normal(random, {8}), candidates = normal(random, {6, 8});
    for (const char* mechanism :
         {"perceiver-attention", "soft-moe-attention", "linformer-attention", "nystrom-attention",
          "synthesizer-attention", "moe-attention", "switch-attention", "expert-choice-attention",
          "differential-attention", "talking-heads-attention", "graph-attention"})
        refuses(query, candidates, by(mechanism), ErrorCode::unsupported,
                {std::string("rerank: ") + mechanism, "; accepted: "});
}

TEST_CASE("rerank: every mechanism answers or says why not") {
    Random random(13);
    const Tensor query = normal(random, {3, 16}), candidates = normal(random, {9, 16});
    std::size_t answers = 0;
    for (const auto& mechanism : service().registry()->list()) {
        INFO(mechanism->name);
        for (const Tensor& rows : {query, query.view({16}, {1})}) {
            const auto result = service().rerank(rows, candidates, by(mechanism->name, 2));
            if (!result) {
                INFO(result.error().message);
                CHECK(result.error().code == ErrorCode::unsupported);
                continue;
            }
            ++answers;
            REQUIRE(result->results.size() == 9);
            CHECK(result->mechanism == mechanism->name);
            check_order(result->results);
            // Where rows keep different candidates, all may be dropped by one of them.
            if (result->results[0].logit == -infinity) continue;
            double sum = 0;
            for (const RankedCandidate& candidate : result->results) sum += candidate.score;
            CHECK(std::abs(sum - 1) < 1e-9);
        }
    }
    CHECK(answers >= 54);
}

TEST_CASE("rerank: wrong shapes and numbers are refused with both values") {
    Random random(14);
    const Tensor query = normal(random, {8}), candidates = normal(random, {6, 8});
    refuses(query, normal(random, {6, 7}), {}, ErrorCode::shape, {"[6, 7]", "8 columns"});
    refuses(normal(random, {1, 1, 8}), candidates, {}, ErrorCode::shape, {"query has shape [1, 1, 8]"});
    refuses(query, normal(random, {8}), {}, ErrorCode::shape, {"candidates has shape [8]", "[n, D]"});
    refuses(normal(random, {0, 8}), candidates, {}, ErrorCode::shape, {"query has shape [0, 8]"});
    refuses(query, candidates, by("standard-mha", 3), ErrorCode::option, {"heads is 3", "width 8"});
    refuses(query, candidates, by("standard-mha", 0), ErrorCode::option, {"heads is 0"});
    RerankOptions options;
    options.top_k = -1;
    refuses(query, candidates, options, ErrorCode::option, {"top_k is -1"});
    options = {};
    options.scale = infinity;
    refuses(query, candidates, options, ErrorCode::option, {"scale is inf"});
    options = {};
    options.ids = {"a", "b"};
    refuses(query, candidates, options, ErrorCode::option, {"ids are 2 for 6"});
    options = {};
    options.options = {{"mode", "joint"}};
    refuses(query, candidates, options, ErrorCode::option, {"\"mode\"", "accepted: top_k"});
    options.options = {{"tpo_k", 1}};
    refuses(query, candidates, options, ErrorCode::option, {"tpo_k", "top_k"});
    refuses(query, attend::convert(candidates, attend::DType::f8_e4m3).value(), {}, ErrorCode::dtype, {"F8_E4M3"});
    const auto ragged = service().rerank({1, 2, 3}, {{1, 2, 3}, {1, 2}}, {});
    REQUIRE_FALSE(ragged.ok());
    CHECK(ragged.error().message.find("candidate 1 has 2 numbers, the query has 3") != std::string::npos);
}

TEST_CASE("rerank: ids stay with their candidates, lists of vectors are taken") {
    RerankOptions options = by("standard-mha");
    options.ids = {"far", "near", "middle"};
    const auto result = service().rerank({1, 0}, {{-1, 0}, {1, 0}, {0, 1}}, options);
    REQUIRE(result.ok());
    CHECK(result->results[0].id == "near");
    CHECK(result->results[1].id == "middle");
    CHECK(result->results[2].id == "far");
}

TEST_CASE("rerank: strides, other data types, threads and instruction sets") {
    Random random(15);
    const Tensor query = normal(random, {40}), candidates = normal(random, {70, 40});
    const Reranking plain = ranked(query, candidates);
    const auto same = [&](const Reranking& other) {
        for (std::size_t r = 0; r < plain.results.size(); ++r)
            if (other.results[r].index != plain.results[r].index || other.results[r].score != plain.results[r].score ||
                other.results[r].logit != plain.results[r].logit)
                return false;
        return true;
    };
    Tensor wide = Tensor::allocate(attend::DType::f32, {40, 70}).value();
    for (std::int64_t row = 0; row < 70; ++row)
        for (std::int64_t d = 0; d < 40; ++d) at(wide, d, row) = candidates.as<const float>()[row * 40 + d];
    CHECK(same(ranked(query, wide.view({70, 40}, {1, 70}))));
    CHECK(same(ranked(attend::convert(query, attend::DType::f64).value(),
                      attend::convert(candidates, attend::DType::f64).value())));
    for (const std::string& backend : backends()) CHECK(same(ranked(query, candidates, {}, backend)));
    CHECK(same(ranked(query, candidates, {}, "auto", 1)));
    CHECK(same(ranked(query, candidates, {}, "auto", 5)));
    const Tensor narrow = attend::convert(candidates, attend::DType::bf16).value();
    CHECK(order_of(ranked(query, narrow)) ==
          order_of(ranked(query, attend::convert(narrow, attend::DType::f32).value())));
    for (const int threads : {1, 3, 5}) {
        const Reranking a = ranked(query, candidates, by("linear-attention"), "auto", threads),
                        b = ranked(query, candidates, by("linear-attention"), "auto", 2);
        for (std::size_t r = 0; r < 70; ++r) CHECK(a.results[r].score == b.results[r].score);
    }
}
