// SPDX-License-Identifier: Apache-2.0
// The result cache: what hits, what misses, what is kept, and that nothing of it can be seen in a result's bits.
#include <cstring>
#include <limits>

#include "counted.hpp"

using namespace support;
using attend::ErrorCode;
using attend::ForwardInputs;
using attend::ForwardOptions;
using attend::Json;
using attend::Tensor;

namespace {

ForwardOptions named(const std::string& mechanism, attend::NamedValues options = {}) {
    ForwardOptions call;
    call.mechanism = mechanism;
    call.options = std::move(options);
    return call;
}
const ForwardOptions flash = named("flash-attention-v2");

attend::ForwardResult call(attend::AttentionService& service, const ForwardInputs& inputs,
                           const ForwardOptions& options = flash) {
    auto result = service.forward(inputs, options);
    if (!result) FAIL(result.error().message);
    return std::move(*result);
}

ForwardInputs some_inputs(std::uint64_t seed = 1, std::int64_t n = 12) {
    Random random(seed);
    return make_inputs(random, {1, 2, 2, n, n, 8, 8});
}

// The same elements behind other strides: the last two axes are stored the other way round.
Tensor transposed_storage(const Tensor& tensor) {
    const auto& s = tensor.shape;
    Tensor made = Tensor::allocate(tensor.dtype, {s[0], s[1], s[3], s[2]}).value();
    const Tensor view = made.view(s, {made.strides[0], made.strides[1], 1, s[2]});
    for (std::int64_t b = 0; b < s[0] * s[1]; ++b)
        for (std::int64_t i = 0; i < s[2]; ++i)
            for (std::int64_t j = 0; j < s[3]; ++j)
                made.as<float>()[(b * s[3] + j) * s[2] + i] = tensor.as<float>()[(b * s[2] + i) * s[3] + j];
    return view;
}

Tensor own_copy(const Tensor& tensor) {
    const Tensor flat = attend::contiguous_copy(tensor).value();
    Tensor made = Tensor::allocate(tensor.dtype, tensor.shape).value();
    std::memcpy(made.data, flat.data, flat.byte_size());
    return made;
}

}  // namespace

TEST_CASE("cache: mutate one element misses") {
    auto service = open_caching();
    ForwardInputs inputs = some_inputs();
    const auto first = call(*service, inputs);
    CHECK_FALSE(first.cached);
    const auto again = call(*service, inputs);
    CHECK(again.cached);
    CHECK(same_bits(first.output, again.output));
    for (Tensor* tensor : {&inputs.query, &*inputs.key, &*inputs.value}) {
        float& element = tensor->as<float>()[tensor->size() - 1];
        const float before = element;
        element += 0.5f;
        CHECK_FALSE(call(*service, inputs).cached);
        element = before;
        CHECK(call(*service, inputs).cached);
    }
    inputs.query.as<float>()[0] = 0.0f;
    CHECK_FALSE(call(*service, inputs).cached);
    inputs.query.as<float>()[0] = -0.0f;  // other bits, another key
    CHECK_FALSE(call(*service, inputs).cached);
}

TEST_CASE("cache: mutate returned output leaves the next hit unaffected") {
    auto service = open_caching();
    const ForwardInputs inputs = some_inputs();
    ForwardOptions options = flash;
    options.lse = true;
    const auto first = call(*service, inputs, options);
    const auto expected = values(first.output), expected_lse = values(*first.lse);
    std::memset(first.output.data, 0x11, first.output.byte_size());
    for (int round = 0; round < 3; ++round) {
        const auto hit = call(*service, inputs, options);
        REQUIRE(hit.cached);
        CHECK(values(hit.output) == expected);
        CHECK(values(*hit.lse) == expected_lse);
        std::memset(hit.output.data, 0x22, hit.output.byte_size());
        std::memset(hit.lse->data, 0x22, hit.lse->byte_size());
    }
}

TEST_CASE("cache: strided view hits") {
    auto service = open_caching();
    const ForwardInputs inputs = some_inputs(1, 40);
    call(*service, inputs);
    ForwardInputs strided = inputs;
    strided.query = transposed_storage(inputs.query);
    strided.key = transposed_storage(*inputs.key);
    const auto hit = call(*service, strided);
    CHECK(hit.cached);
    ForwardInputs copies = inputs;
    copies.value = own_copy(*inputs.value);
    CHECK(call(*service, copies).cached);
    // Rows longer than what is gathered, with gaps between them.
    Random random(3);
    const Tensor wide = normal(random, {1, 2, 6, 200});
    ForwardInputs rows;
    rows.query = wide.view({1, 2, 6, 128}, wide.strides);
    CHECK_FALSE(call(*service, rows).cached);
    rows.query = own_copy(rows.query);
    CHECK(call(*service, rows).cached);
}

TEST_CASE("cache: option default spelled out hits") {
    auto service = open_caching();
    const ForwardInputs inputs = some_inputs();
    call(*service, inputs);
    CHECK(call(*service, inputs, named("flash-attention-v2", {{"causal", false}})).cached);
    CHECK(call(*service, inputs, named("flash-attention-v2", {{"dropout", 0.0}, {"causal", false}})).cached);
    CHECK(call(*service, inputs, named("attend.flash/flash-attention-v2")).cached);
    CHECK_FALSE(call(*service, inputs, named("flash-attention-v2", {{"causal", true}})).cached);
    CHECK_FALSE(call(*service, inputs, named("standard-mha")).cached);
    ForwardOptions lse = flash;
    lse.lse = true;
    CHECK_FALSE(call(*service, inputs, lse).cached);
}

TEST_CASE("cache: least recently used goes first and bytes are counted") {
    const std::uint64_t each = 1 * 2 * 12 * 8 * 4;
    auto service = open_caching("\"max_entries\": 3");
    std::vector<ForwardInputs> inputs;
    for (std::uint64_t seed = 0; seed < 4; ++seed) inputs.push_back(some_inputs(seed + 1));
    for (std::size_t at = 0; at < 3; ++at) {
        call(*service, inputs[at]);
        CHECK(service->result_cache().bytes == (at + 1) * each);
        CHECK(service->result_cache().entries == at + 1);
    }
    CHECK(call(*service, inputs[0]).cached);        // 1 is the oldest now
    CHECK_FALSE(call(*service, inputs[3]).cached);  // drives it out
    CHECK(service->result_cache().bytes == 3 * each);
    CHECK(service->result_cache().evictions == 1);
    CHECK(call(*service, inputs[0]).cached);
    CHECK(call(*service, inputs[2]).cached);
    CHECK(call(*service, inputs[3]).cached);
    CHECK_FALSE(call(*service, inputs[1]).cached);  // back, and 0 is driven out
    CHECK_FALSE(call(*service, inputs[0]).cached);
    // The other limit: five results and a half.
    auto small = open_caching("\"max_entry_fraction\": 1.0, \"capacity_bytes\": " + std::to_string(each * 11 / 2));
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        call(*small, some_inputs(seed));
        CHECK(small->result_cache().bytes <= each * 11 / 2);
    }
    CHECK(small->result_cache().entries == 5);
    for (std::uint64_t seed = 15; seed < 20; ++seed) CHECK(call(*small, some_inputs(seed)).cached);
}

TEST_CASE("cache: capacity 0 stores nothing") {
    for (const char* limit : {"\"capacity_bytes\": 0", "\"max_entries\": 0"}) {
        auto loaded =
            attend::load_config(std::string(R"({"version": 1, "cache": {"mode": "on", )") + limit + "}}", "t");
        if (!loaded.problems.empty()) continue;  // not every limit may be 0
        auto service = open_caching(limit);
        const ForwardInputs inputs = some_inputs();
        for (int round = 0; round < 3; ++round) CHECK_FALSE(call(*service, inputs).cached);
        CHECK(service->result_cache().entries == 0);
        CHECK(service->result_cache().bytes == 0);
    }
    auto service = open_caching("\"capacity_bytes\": 0");
    CHECK(service->result_cache().entries == 0);
}

TEST_CASE("cache: two threads, one computation") {
    auto service = open_caching();
    Counted::reset();
    REQUIRE(service->register_mechanism(Counted::record(*service, "counted")));
    Counted::slow_ms = 60;
    const ForwardInputs inputs = some_inputs();
    const auto expected = values(call(*service, inputs).output);
    std::atomic<int> wrong{0}, cached{0};
    std::vector<std::thread> threads;
    for (int at = 0; at < 4; ++at)
        threads.emplace_back([&] {
            const auto result = service->forward(inputs, named("counted"));
            if (!result || values(result->output) != expected) ++wrong;
            if (result && result->cached) ++cached;
            if (result) std::memset(result->output.data, 0x33, result->output.byte_size());
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(Counted::runs == 1);
    CHECK(cached == 3);
    CHECK(values(call(*service, inputs, named("counted")).output) == expected);
    // Where nothing can be kept the others still wait for the one that computes.
    auto bare = open_caching("\"capacity_bytes\": 0");
    Counted::reset();
    REQUIRE(bare->register_mechanism(Counted::record(*bare, "counted")));
    Counted::slow_ms = 300;
    threads.clear();
    for (int at = 0; at < 4; ++at)
        threads.emplace_back([&] {
            const auto result = bare->forward(inputs, named("counted"));
            if (!result || values(result->output) != expected) ++wrong;
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(Counted::runs == 1);
    Counted::reset();
}

TEST_CASE("cache: a failing computation reaches every waiter and is not kept") {
    auto service = open_caching();
    Counted::reset();
    REQUIRE(service->register_mechanism(Counted::record(*service, "counted")));
    Counted::slow_ms = 300;
    Counted::fails = true;
    const ForwardInputs inputs = some_inputs();
    std::atomic<int> failed{0};
    std::vector<std::thread> threads;
    for (int at = 0; at < 4; ++at)
        threads.emplace_back([&] {
            const auto result = service->forward(inputs, named("counted"));
            if (!result && result.error().code == ErrorCode::nonfinite) ++failed;
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(failed == 4);
    CHECK(Counted::runs == 1);
    CHECK(service->result_cache().entries == 0);
    Counted::reset();
    CHECK_FALSE(call(*service, inputs, named("counted")).cached);
    CHECK(Counted::runs == 1);
}

TEST_CASE("cache: replace mechanism misses") {
    auto service = open_caching();
    Counted::reset();
    const ForwardInputs inputs = some_inputs();
    REQUIRE(service->register_mechanism(Counted::record(*service, "counted")));
    call(*service, inputs, named("counted"));
    CHECK(call(*service, inputs, named("counted")).cached);
    const auto refused = service->register_mechanism(Counted::record(*service, "counted"));
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message.find("already registered") != std::string::npos);
    CHECK(call(*service, inputs, named("counted")).cached);
    REQUIRE(service->register_mechanism(Counted::record(*service, "counted"), true));
    CHECK_FALSE(call(*service, inputs, named("counted")).cached);
    CHECK(Counted::runs == 2);
    Counted::reset();
}

TEST_CASE("cache: seed change with dropout misses and without hits") {
    auto service = open_caching();
    const ForwardInputs inputs = some_inputs();
    call(*service, inputs, named("flash-attention-v2", {{"seed", 1}}));
    CHECK(call(*service, inputs, named("flash-attention-v2", {{"seed", 2}, {"rng_offset", 5}})).cached);
    const auto one = call(*service, inputs, named("flash-attention-v2", {{"dropout", 0.5}, {"seed", 1}}));
    const auto two = call(*service, inputs, named("flash-attention-v2", {{"dropout", 0.5}, {"seed", 2}}));
    CHECK_FALSE(one.cached);
    CHECK_FALSE(two.cached);
    CHECK_FALSE(same_bits(one.output, two.output));
    const auto later =
        call(*service, inputs, named("flash-attention-v2", {{"dropout", 0.5}, {"seed", 1}, {"rng_offset", 1}}));
    CHECK_FALSE(later.cached);
    const auto again = call(*service, inputs, named("flash-attention-v2", {{"dropout", 0.5}, {"seed", 1}}));
    CHECK(again.cached);
    CHECK(same_bits(one.output, again.output));
}

TEST_CASE("cache: weights count by their content") {
    auto service = open_caching();
    Random random(4);
    ForwardInputs inputs;
    inputs.query = normal(random, {1, 5, 16});
    ForwardOptions options = named("standard-mha", {{"form", "projected"}, {"heads", 2}});
    inputs.weights = {{"wq", normal(random, {16, 16})}, {"wk", normal(random, {16, 16})}};
    const auto first = call(*service, inputs, options);
    CHECK(call(*service, inputs, options).cached);
    std::swap(inputs.weights[0], inputs.weights[1]);
    CHECK(call(*service, inputs, options).cached);
    inputs.weights[0].second.as<float>()[3] += 1.0f;
    const auto other = call(*service, inputs, options);
    CHECK_FALSE(other.cached);
    CHECK_FALSE(same_bits(first.output, other.output));
}

TEST_CASE("cache: modes off, on and auto") {
    const ForwardInputs tiny = some_inputs(1, 2);
    for (const char* config : {R"({"version": 1, "cache": {"mode": "off"}})",
                               R"({"version": 1, "service": {"enable_cache": false}, "cache": {"mode": "on"}})"}) {
        auto off = open_service(config);
        call(*off, tiny);
        CHECK_FALSE(call(*off, tiny).cached);
        CHECK(off->result_cache().misses == 0);
        CHECK(off->result_cache().bypass == 0);
    }
    // auto is the default: a call of microseconds is not worth hashing, one of milliseconds is.
    auto automatic = open_service(R"({"version": 1})");
    call(*automatic, tiny);
    CHECK_FALSE(call(*automatic, tiny).cached);
    CHECK(automatic->result_cache().bypass == 2);
    Random random(2);
    const ForwardInputs large = make_inputs(random, {1, 2, 2, 1024, 1024, 32, 32});
    call(*automatic, large);
    CHECK(call(*automatic, large).cached);
    ForwardOptions without = flash;
    without.use_cache = false;
    CHECK_FALSE(call(*automatic, large, without).cached);
}

TEST_CASE("cache: levels keep what they are named for") {
    ForwardOptions scores = named("standard-mha");
    scores.scores = true;
    ForwardOptions scores_alone = scores;
    scores_alone.output = false;
    const ForwardInputs inputs = some_inputs();
    auto output = open_caching("\"level\": \"output\"");
    call(*output, inputs, scores);
    CHECK_FALSE(call(*output, inputs, scores).cached);
    CHECK(output->result_cache().bypass == 2);
    CHECK(output->result_cache().entries == 0);
    auto pattern = open_caching("\"level\": \"pattern\"");
    const auto first = call(*pattern, inputs, scores);
    CHECK_FALSE(call(*pattern, inputs, scores).cached);  // wants the output, too
    const auto alone = call(*pattern, inputs, scores_alone);
    CHECK(alone.cached);
    CHECK(same_bits(*alone.scores, *first.scores));
    CHECK(pattern->result_cache().bytes == first.scores->byte_size());
    call(*pattern, inputs);
    CHECK_FALSE(call(*pattern, inputs).cached);
    auto both = open_caching("\"level\": \"both\"");
    const auto whole = call(*both, inputs, scores);
    const auto hit = call(*both, inputs, scores);
    CHECK(hit.cached);
    CHECK(same_bits(*hit.scores, *whole.scores));
    CHECK(same_bits(hit.output, whole.output));
    // The report of a routed mechanism is part of its result.
    const ForwardOptions routed = named("switch-attention", {{"return_routing", true}});
    const auto report = call(*both, inputs, routed);
    const auto kept = call(*both, inputs, routed);
    CHECK(kept.cached);
    REQUIRE(kept.extra.size() == report.extra.size());
    CHECK(kept.extra.size() > 1);
    for (std::size_t at = 0; at < kept.extra.size(); ++at) {
        CHECK(kept.extra[at].first == report.extra[at].first);
        CHECK(kept.extra[at].second.shape == report.extra[at].second.shape);
    }
}

TEST_CASE("cache: entries age") {
    auto service = open_caching("\"ttl_ms\": 120");
    const ForwardInputs inputs = some_inputs();
    call(*service, inputs);
    bool hit = false;  // on a machine that is not held up for longer than that every time
    for (int turn = 0; turn < 10 && !hit; ++turn) hit = call(*service, inputs).cached;
    CHECK(hit);
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    CHECK_FALSE(call(*service, inputs).cached);
    CHECK(service->result_cache().evictions >= 1);
    CHECK(service->result_cache().entries == 1);
}

TEST_CASE("cache: verify full keeps the inputs and compares them") {
    auto service = open_caching("\"verify\": \"full\"");
    const ForwardInputs inputs = some_inputs();
    call(*service, inputs);
    CHECK(call(*service, inputs).cached);
    ForwardInputs strided = inputs;
    strided.key = transposed_storage(*inputs.key);
    CHECK(call(*service, strided).cached);
    CHECK(service->result_cache().bytes == 4 * inputs.query.byte_size());  // three inputs and the output
}

TEST_CASE("cache: results with NaN and large results are not kept") {
    auto service = open_caching();
    ForwardInputs inputs = some_inputs();
    inputs.value->as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
    call(*service, inputs);
    CHECK_FALSE(call(*service, inputs).cached);
    CHECK(service->result_cache().entries == 0);
    auto small = open_caching("\"capacity_bytes\": 4000");  // a quarter of it is 1000
    call(*small, some_inputs(1, 16));                       // 1024 bytes
    CHECK(small->result_cache().entries == 0);
    call(*small, some_inputs(1, 15));
    CHECK(small->result_cache().entries == 1);
}

TEST_CASE("cache: handles stand for their tensors until they are touched") {
    auto service = open_caching();
    ForwardInputs inputs = some_inputs();
    const auto plain = call(*service, inputs);
    const attend::TensorHandle key = service->register_tensor(*inputs.key).value();
    const attend::TensorHandle value = service->register_tensor(*inputs.value).value();
    ForwardInputs by_handle;
    by_handle.query = inputs.query;
    by_handle.handles = {{"key", key}, {"value", value}};
    const auto first = call(*service, by_handle);
    CHECK(same_bits(first.output, plain.output));
    CHECK(call(*service, by_handle).cached);
    by_handle.key = inputs.key;  // the same tensor beside its handle
    CHECK(call(*service, by_handle).cached);
    inputs.key->as<float>()[0] += 1.0f;
    REQUIRE(service->touch(key));
    const auto changed = call(*service, by_handle);
    CHECK_FALSE(changed.cached);
    CHECK(same_bits(changed.output, call(*service, inputs).output));
    CHECK(call(*service, by_handle).cached);
    const std::uint64_t before = service->result_cache().entries;
    service->invalidate_handle(value);
    CHECK(service->result_cache().entries < before);
    CHECK_FALSE(call(*service, by_handle).cached);
    by_handle.key = own_copy(*inputs.key);
    CHECK(service->forward(by_handle, flash).error().code == ErrorCode::input);
    by_handle.key.reset();
    REQUIRE(service->release(key));
    CHECK(service->forward(by_handle, flash).error().code == ErrorCode::not_found);
    CHECK_FALSE(service->touch(key).ok());
    CHECK_FALSE(service->release(key).ok());
    by_handle.handles = {{"kay", value}};
    CHECK(service->forward(by_handle, flash).error().message.find("unknown role \"kay\"") != std::string::npos);
}

TEST_CASE("cache: a handle whose elements changed without a touch is stale where handles are checked") {
    auto service = open_caching("", true);
    ForwardInputs inputs = some_inputs();
    const attend::TensorHandle key = service->register_tensor(*inputs.key).value();
    inputs.handles = {{"key", key}};
    call(*service, inputs);
    CHECK(call(*service, inputs).cached);
    inputs.key->as<float>()[5] += 1.0f;
    const auto stale = service->forward(inputs, flash);
    REQUIRE_FALSE(stale.ok());
    CHECK(stale.error().code == ErrorCode::stale_handle);
    CHECK(std::string(attend::error_name(stale.error().code)) == "E_STALE_HANDLE");
    REQUIRE(service->touch(key));
    CHECK_FALSE(call(*service, inputs).cached);
    CHECK(call(*service, inputs).cached);
}

TEST_CASE("cache: invalidation by everything, by mechanism and by configuration") {
    auto service = open_caching();
    const ForwardInputs inputs = some_inputs();
    const ForwardOptions other = named("standard-mha");
    call(*service, inputs);
    call(*service, inputs, other);
    service->invalidate("flash-attention-v2");
    CHECK(call(*service, inputs, other).cached);
    CHECK_FALSE(call(*service, inputs).cached);
    service->invalidate();
    CHECK(service->result_cache().entries == 0);
    CHECK_FALSE(call(*service, inputs, other).cached);
    attend::Config config = service->config();
    config.service.precision = "bf16";
    REQUIRE(service->reconfigure(config));
    CHECK(service->result_cache().entries == 0);
    const auto narrow = call(*service, inputs);
    CHECK_FALSE(narrow.cached);
    CHECK(narrow.precision == "bf16");
    config.cache.max_entries = 1;
    call(*service, inputs, other);
    REQUIRE(service->reconfigure(config));
    CHECK(service->result_cache().entries == 1);
    config.cache.mode = "off";
    REQUIRE(service->reconfigure(config));
    CHECK_FALSE(call(*service, inputs, other).cached);
}

TEST_CASE("cache: on and off give the same bits for any sequence of calls and changes") {
    for (const char* more : {"", "\"max_entries\": 3", "\"verify\": \"full\", \"level\": \"both\""}) {
        auto on = open_caching(more), off = open_service(R"({"version": 1, "service": {"enable_cache": false}})");
        Random random(11);
        std::vector<ForwardInputs> pool;
        for (std::uint64_t seed = 0; seed < 3; ++seed) pool.push_back(some_inputs(seed, 6));
        std::vector<std::pair<std::size_t, attend::TensorHandle>> handles;
        for (std::size_t at = 0; at < pool.size(); ++at)
            handles.emplace_back(at, on->register_tensor(*pool[at].key).value());
        const std::vector<ForwardOptions> calls = {flash,
                                                   named("flash-attention-v2", {{"causal", true}}),
                                                   named("standard-mha"),
                                                   named("flash-attention-v2", {{"dropout", 0.5}, {"seed", 3}}),
                                                   named("local-attention", {{"window_size", 2}}),
                                                   named("auto")};
        int hits = 0;
        for (int step = 0; step < 300; ++step) {
            const auto at = static_cast<std::size_t>(random.below(3));
            ForwardInputs& inputs = pool[at];
            switch (random.below(8)) {
                case 0: {
                    Tensor& tensor = random.below(2) == 0 ? inputs.query : *inputs.value;
                    tensor.as<float>()[random.below(tensor.size())] = static_cast<float>(random.below(3));
                    break;
                }
                case 1:
                    inputs.key->as<float>()[random.below(inputs.key->size())] = static_cast<float>(random.below(3));
                    REQUIRE(on->touch(handles[at].second));
                    break;
                case 2: {
                    attend::Config config = on->config();
                    config.service.precision = random.below(4) == 0 ? "bf16" : "fp32";
                    REQUIRE(on->reconfigure(config));
                    attend::Config same = off->config();
                    same.service.precision = config.service.precision;
                    REQUIRE(off->reconfigure(same));
                    break;
                }
                default: {
                    ForwardOptions options = calls[static_cast<std::size_t>(random.below(6))];
                    options.lse = options.mechanism == "standard-mha" && random.below(2) == 0;
                    ForwardInputs given = inputs;
                    if (random.below(2) == 0) given.handles = {{"key", handles[at].second}};
                    const auto a = call(*on, given, options);
                    given.handles.clear();
                    const auto b = call(*off, given, options);
                    REQUIRE(same_bits(a.output, b.output));
                    REQUIRE(a.lse.has_value() == b.lse.has_value());
                    if (a.lse) REQUIRE(same_bits(*a.lse, *b.lse));
                    CHECK(a.mechanism == b.mechanism);
                    CHECK(a.reason == b.reason);
                    hits += a.cached ? 1 : 0;
                    std::memset(a.output.data, 0x44, a.output.byte_size());
                }
            }
        }
        CHECK(hits > 10);
    }
}
