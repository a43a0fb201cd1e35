// SPDX-License-Identifier: Apache-2.0
// Many calls, calls in the background, what is counted, and changes of a service in use.
#include <cstring>

#include "counted.hpp"
#include "service/metrics.hpp"

using namespace support;
using attend::ErrorCode;
using attend::ForwardInputs;
using attend::ForwardOptions;

namespace {

ForwardOptions named(const std::string& mechanism, attend::NamedValues options = {}) {
    ForwardOptions call;
    call.mechanism = mechanism;
    call.options = std::move(options);
    return call;
}

std::unique_ptr<attend::AttentionService> plain(int threads = 2) {
    return open_service(R"({"version": 1, "service": {"enable_cache": false}})", threads);
}

// Shapes small and large, in disorder.
std::vector<ForwardInputs> many_inputs(std::size_t count) {
    Random random(7);
    std::vector<ForwardInputs> list;
    for (std::size_t at = 0; at < count; ++at) {
        const std::int64_t n = at % 9 == 4 ? 300 : 1 + random.below(40);
        list.push_back(make_inputs(random, {1 + random.below(2), 2, 2, n, n, 16, 16}));
    }
    return list;
}

}  // namespace

TEST_CASE("service: batch results equal single calls bit for bit") {
    const std::vector<ForwardInputs> inputs = many_inputs(30);
    for (const int threads : {1, 2, 5}) {
        auto service = plain(threads);
        for (const ForwardOptions& base :
             {named("flash-attention-v2", {{"causal", true}}), named("standard-mha", {{"dropout", 0.4}, {"seed", 9}}),
              named("auto"), named("linear-attention")}) {
            ForwardOptions options = base;
            options.lse = base.mechanism == "flash-attention-v2";
            const auto batch = service->forward_batch(inputs, options);
            REQUIRE(batch.ok());
            REQUIRE(batch->size() == inputs.size());
            for (std::size_t at = 0; at < inputs.size(); ++at) {
                const auto single = service->forward(inputs[at], options).value();
                REQUIRE(same_bits((*batch)[at].output, single.output));
                CHECK((*batch)[at].mechanism == single.mechanism);
                if (single.lse) CHECK(same_bits(*(*batch)[at].lse, *single.lse));
            }
        }
        CHECK(service->forward_batch({}, {})->empty());
    }
}

TEST_CASE("service: batch failure names its item and nothing is computed") {
    auto service = plain();
    Counted::reset();
    REQUIRE(service->register_mechanism(Counted::record(*service, "counted")));
    std::vector<ForwardInputs> inputs = many_inputs(6);
    inputs[3].key = inputs[4].key->view({1, 2, 1, 7}, {14, 7, 7, 1});
    const auto refused = service->forward_batch(inputs, named("counted"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message.starts_with("item 3: "));
    CHECK(refused.error().code == ErrorCode::shape);
    CHECK(Counted::runs == 0);
    const auto unknown = service->forward_batch(inputs, named("flash-attention-v2", {{"causl", true}}));
    REQUIRE_FALSE(unknown.ok());
    CHECK(unknown.error().message.starts_with("item 0: "));
    CHECK(unknown.error().message.find("causal") != std::string::npos);
    // What fails while it runs names the first item.
    Counted::fails = true;
    const auto failed = service->forward_batch(many_inputs(6), named("counted"));
    REQUIRE_FALSE(failed.ok());
    CHECK(failed.error().message.starts_with("item "));
    CHECK(failed.error().code == ErrorCode::nonfinite);
    Counted::reset();
}

TEST_CASE("service: asynchronous calls give what forward gives") {
    auto service = plain();
    const std::vector<ForwardInputs> inputs = many_inputs(20);
    std::vector<attend::PendingForward> pending;
    for (const ForwardInputs& each : inputs) {
        ForwardInputs own = each;  // the tensors hold their storage
        pending.push_back(service->forward_async(std::move(own), named("flash-attention-v2")));
    }
    for (std::size_t at = 0; at < inputs.size(); ++at) {
        const auto result = pending[at].get();
        REQUIRE(result.ok());
        CHECK(pending[at].ready());
        CHECK(same_bits(result->output, service->forward(inputs[at], named("flash-attention-v2"))->output));
    }
    const auto refused = service->forward_async(inputs[0], named("flash-attention-v9")).get();
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().code == ErrorCode::not_found);
    // Inputs that only the call knows.
    attend::PendingForward last = service->forward_async(many_inputs(1)[0], named("flash-attention-v2"));
    CHECK(last.get().ok());
}

TEST_CASE("service: cancelled calls end without a result") {
    auto service = plain(1);
    Counted::reset();
    REQUIRE(service->register_mechanism(Counted::record(*service, "counted")));
    Counted::slow_ms = 40;
    const ForwardInputs inputs = many_inputs(1)[0];
    // The second waits behind the first and is never begun.
    const auto first = service->forward_async(inputs, named("counted"));
    const auto second = service->forward_async(inputs, named("counted"));
    second.cancel();
    CHECK(first.get().ok());
    REQUIRE_FALSE(second.get().ok());
    CHECK(second.get().error().code == ErrorCode::cancelled);
    CHECK(Counted::runs == 1);
    // One that runs is ended, too.
    const auto third = service->forward_async(inputs, named("counted"));
    while (Counted::runs < 2) std::this_thread::yield();
    CHECK_FALSE(third.wait_for(std::chrono::milliseconds(1)));
    third.cancel();
    CHECK(third.get().error().code == ErrorCode::cancelled);
    // And by the token of a call that somebody waits for.
    ForwardOptions options = named("flash-attention-v2");
    options.cancel = std::make_shared<std::atomic<bool>>(true);
    CHECK(service->forward(inputs, options).error().code == ErrorCode::cancelled);
    *options.cancel = false;
    CHECK(service->forward(inputs, options).ok());
    // A service that ends takes its calls with it.
    const auto running = service->forward_async(inputs, named("counted"));
    const auto waiting = service->forward_async(inputs, named("counted"));
    while (Counted::runs < 3) std::this_thread::yield();
    service.reset();
    CHECK(running.get().error().code == ErrorCode::cancelled);
    CHECK(waiting.get().error().code == ErrorCode::cancelled);
    Counted::reset();
}

TEST_CASE("service: metrics count calls, errors, tokens and flops") {
    auto service = open_service(
        R"({"version": 1, "cache": {"mode": "on"}, "rules": [{"condition": "seqLen > 20", "mechanism": "cross-attention"}, {"condition": "default", "mechanism": "standard-mha"}]})");
    Random random(3);
    const ForwardInputs small = make_inputs(random, {2, 2, 2, 10, 10, 8, 8}),
                        large = make_inputs(random, {1, 2, 2, 30, 30, 8, 8});
    REQUIRE(service->forward(small, {}));
    REQUIRE(service->forward(small, {}));
    REQUIRE(service->forward(large, {}));
    REQUIRE(service->forward(large, named("flash-attention-v2")));
    CHECK_FALSE(service->forward(large, named("flash-attention-v2", {{"causl", true}})).ok());
    CHECK_FALSE(service->forward(large, named("nobody")).ok());
    CHECK_FALSE(service->forward(large, named("nobody")).ok());
    // Rule 0 holds and is skipped: cross-attention does not take causal.
    REQUIRE(service->forward(large, named("auto", {{"causal", true}})));
    const attend::ServiceMetrics metrics = service->metrics();
    CHECK(metrics.calls == 8);
    CHECK(metrics.errors == std::map<std::string, std::uint64_t>{{"E_OPTION", 1}, {"E_NOT_FOUND", 2}});
    CHECK(metrics.tokens == 20 + 20 + 30 + 30 + 30);
    CHECK(metrics.flops > 0);
    CHECK(metrics.bytes_peak >= large.query.byte_size());
    CHECK(metrics.mechanisms.at("standard-mha").calls == 3);
    CHECK(metrics.mechanisms.at("cross-attention").calls == 1);
    CHECK(metrics.mechanisms.at("flash-attention-v2").calls == 1);
    for (const auto& [name, entry] : metrics.mechanisms) {
        CHECK(entry.p50 <= entry.p95);
        CHECK(entry.p95 <= entry.p99);
        CHECK(entry.p99 <= entry.max_ms);
        CHECK(entry.mean_ms > 0);
    }
    CHECK(metrics.cache.hits == 1);
    CHECK(metrics.cache.misses == 4);
    CHECK(metrics.cache.entries == 4);
    CHECK(metrics.selection.rule_hits == std::map<std::string, std::uint64_t>{{"0", 1}, {"1", 3}});
    CHECK(metrics.selection.skips == 1);
    CHECK(metrics.selection.mean_us > 0);
    const attend::Json json = metrics.json();
    for (const char* key :
         {"calls", "errors", "tokens", "flops", "bytes_peak", "mechanisms", "cache", "selection", "benchmark"})
        CHECK(json.find(key) != nullptr);
    service->reset_metrics();
    const attend::ServiceMetrics none = service->metrics();
    CHECK(none.calls == 0);
    CHECK(none.tokens == 0);
    CHECK(none.errors.empty());
    CHECK(none.mechanisms.empty());
    CHECK(none.selection.rule_hits.empty());
    CHECK(none.cache.hits == 0);
    CHECK(none.cache.entries == 4);  // what is kept stays
    REQUIRE(service->forward(small, {}));
    CHECK(service->metrics().calls == 1);
    CHECK(service->metrics().mechanisms.at("standard-mha").calls == 1);
}

TEST_CASE("service: percentiles are nearest ranks over the last 4096 samples") {
    std::vector<double> five{1, 2, 3, 4, 5};
    CHECK(attend::percentile(five, 0.50) == 3);
    CHECK(attend::percentile(five, 0.95) == 5);
    CHECK(attend::percentile(five, 0.20) == 1);
    CHECK(attend::percentile(five, 0.21) == 2);
    std::vector<double> none;
    CHECK(attend::percentile(none, 0.5) == 0);
    attend::CallMetrics metrics;
    attend::ServiceMetrics totals;
    CHECK_FALSE(metrics.read(totals).has_value());
    for (int at = 1; at <= 5000; ++at) metrics.record(at, 1, 2.0);
    const auto read = metrics.read(totals).value();
    CHECK(read.calls == 5000);
    CHECK(read.mean_ms == Approx(2500.5));
    CHECK(read.max_ms == 5000);
    CHECK(read.p50 == 904 + 2048);  // of 905 ... 5000
    CHECK(read.p99 == 904 + 4056);
    CHECK(totals.tokens == 5000);
    CHECK(totals.flops == 10000);
}

TEST_CASE("service: speedups are those that were recorded") {
    auto service = open_service(R"({"version": 1, "service": {"speedup_target": 2.0}})");
    CHECK(service->metrics().benchmark.runs == 0);
    CHECK(service->metrics().benchmark.success_rate == 0);
    for (const double speedup : {1.0, 2.0, 6.0}) service->record_speedup(speedup);
    service->record_speedup(0.0);  // none
    const auto benchmark = service->metrics().benchmark;
    CHECK(benchmark.runs == 3);
    CHECK(benchmark.average_speedup == Approx(3.0));
    CHECK(benchmark.peak_speedup == 6.0);
    CHECK(benchmark.success_rate == Approx(2.0 / 3.0));
}

TEST_CASE("service: reconfiguration takes effect for later calls") {
    auto service = plain();
    const ForwardInputs inputs = many_inputs(1)[0];
    CHECK(service->forward(inputs, {})->mechanism == "flash-attention-v2");
    attend::Config config =
        attend::load_config(
            R"({"version": 1, "service": {"threads": 2, "enable_cache": false}, "rules": [{"condition": "default", "mechanism": "standard-mha"}]})",
            "next.json")
            .config;
    REQUIRE(service->reconfigure(config));
    CHECK(service->forward(inputs, {})->mechanism == "standard-mha");
    CHECK(service->config().rules.size() == 1);
    CHECK(service->recommend({{"seqLen", 100.0}})->selected == "standard-mha");
    config.rules.clear();
    config.rule_sources.clear();
    config.service.long_sequence_threshold = 1;
    config.service.fallback_mechanism = "local-attention";
    REQUIRE(service->reconfigure(config));
    ForwardInputs two;
    Random random(1);
    two = make_inputs(random, {1, 1, 1, 2, 2, 8, 8});
    CHECK(service->forward(two, {})->mechanism == "local-attention");
    // A configuration with faults changes nothing.
    attend::Config wrong = config;
    wrong.service.backend = "baseline";
    wrong.service.threads = 7;
    wrong.service.fallback_mechanism = "nobody";
    wrong.service.default_mechanism = "noone";
    CHECK(service->config_problems(wrong).size() == 4);
    const auto refused = service->reconfigure(wrong);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message.find("service.backend") != std::string::npos);
    CHECK(service->forward(two, {})->mechanism == "local-attention");
}

TEST_CASE("service: reconfiguration under calls from many threads") {
    auto service = open_service(R"({"version": 1, "cache": {"mode": "on", "max_entries": 2}})");
    Counted::reset();
    const std::vector<ForwardInputs> inputs = many_inputs(4);
    std::vector<std::vector<float>> expected;
    for (const ForwardInputs& each : inputs)
        expected.push_back(values(service->forward(each, named("flash-attention-v2"))->output));
    const attend::MechanismRecord record = Counted::record(*service, "flash-attention-v2");
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0}, calls{0};
    std::vector<std::thread> threads;
    for (int at = 0; at < 3; ++at)
        threads.emplace_back([&, at] {
            for (std::size_t turn = 0; !stop; ++turn) {
                const std::size_t which = (turn + static_cast<std::size_t>(at)) % inputs.size();
                const auto result =
                    service->forward(inputs[which], named(turn % 2 == 0 ? "auto" : "flash-attention-v2"));
                // Whatever the rules say at the moment, both of these mechanisms are exact.
                if (!result || (result->mechanism == "flash-attention-v2" && values(result->output) != expected[which]))
                    ++wrong;
                ++calls;
            }
        });
    attend::Config config = service->config();
    for (int turn = 0; turn < 60; ++turn) {
        config.service.default_mechanism = turn % 2 == 0 ? "standard-mha" : "flash-attention-v2";
        config.cache.max_entries = turn % 3;
        if (!service->reconfigure(config)) ++wrong;
        if (!service->register_mechanism(record, true)) ++wrong;
        if (turn % 5 == 0) service->invalidate();
        (void)service->metrics();
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(calls > 0);
    Counted::reset();
}

TEST_CASE("service: registered mechanisms have names of their own unless they replace") {
    auto service = plain();
    Counted::reset();
    auto record = Counted::record(*service, "counted");
    REQUIRE(service->register_mechanism(record));
    const ForwardInputs inputs = many_inputs(1)[0];
    CHECK(service->forward(inputs, named("counted"))->mechanism == "counted");
    CHECK(Counted::runs == 1);
    for (const char* name : {"Counted", "a--b", "-a", "a-", "", "a_b"}) {
        record.name = name;
        CHECK(service->register_mechanism(record).error().code == ErrorCode::option);
    }
    record.name = "flash-attention-v2";
    CHECK_FALSE(service->register_mechanism(record).ok());
    CHECK(service->forward(inputs, named("flash-attention-v2")).ok());
    CHECK(Counted::runs == 1);
    const std::size_t before = service->registry()->list().size();
    REQUIRE(service->register_mechanism(record, true));
    CHECK(service->registry()->list().size() == before);
    CHECK(service->forward(inputs, named("flash-attention-v2")).ok());
    CHECK(Counted::runs == 2);  // the plan of before is not used again
}
