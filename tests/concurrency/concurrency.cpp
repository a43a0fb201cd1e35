// SPDX-License-Identifier: Apache-2.0
// What many threads do at once: calls of one service, loops inside loops, registry changes under lookups. Run under the
// thread sanitizer too.
#include <array>
#include <atomic>
#include <thread>

#include "plugin_services/parallel.hpp"
#include "specs/inputs.hpp"

using namespace support;

namespace {

template <class Body>
void on_threads(int count, Body body) {
    std::vector<std::thread> threads;
    for (int at = 0; at < count; ++at) threads.emplace_back([&body, at] { body(at); });
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

TEST_CASE("concurrency: eight threads call every mechanism of one service") {
    attend::AttentionService& engine = service("auto", 2);
    for (const auto& mechanism : engine.registry()->list()) {
        Random random(1);
        const specs::Spec& spec = specs::spec_of(mechanism->name);
        const attend::ForwardInputs inputs =
            specs::completed(spec, specs::make_inputs(spec, random, {1, 2, 2, 60, 60, 16, 16}), {});
        attend::ForwardOptions options;
        options.mechanism = mechanism->name;
        const auto expected = values(engine.forward(inputs, options).value().output);
        std::atomic<int> wrong{0};
        on_threads(8, [&](int) {
            for (int call = 0; call < 5; ++call) {
                auto got = engine.forward(inputs, options);
                if (!got || values(got->output) != expected) ++wrong;
            }
        });
        INFO(mechanism->name);
        CHECK(wrong == 0);
    }
}

TEST_CASE("concurrency: different shapes fill the plan cache from many threads") {
    attend::AttentionService& engine = service("auto", 2);
    std::atomic<int> failed{0};
    on_threads(6, [&](int thread) {
        Random random(static_cast<std::uint64_t>(thread));
        for (int call = 0; call < 30; ++call) {
            const std::int64_t n = 1 + random.below(40);
            if (!engine.forward(make_inputs(random, {1, 1, 1, n, n, 8, 8}), {})) ++failed;
        }
    });
    CHECK(failed == 0);
    CHECK(engine.plan_cache().entries > 0);
}

TEST_CASE("concurrency: every chunk of a loop runs exactly once, slots are never shared") {
    attend::WorkerPool pool(7);
    struct Job {
        std::vector<std::atomic<int>> seen = std::vector<std::atomic<int>>(1000);
        std::atomic<int> busy[7]{};
        std::atomic<int> clashes{0};
    } job;
    attend_call call;
    call.max_workers = 7;
    const auto body = [](void* user, std::uint64_t begin, std::uint64_t end, std::uint32_t slot) -> attend_status {
        Job& shared = *static_cast<Job*>(user);
        if (slot >= 7 || shared.busy[slot].fetch_add(1) != 0) ++shared.clashes;
        for (std::uint64_t at = begin; at < end; ++at) ++shared.seen[at];
        shared.busy[slot].fetch_sub(1);
        return ATTEND_OK;
    };
    int rounds = 0;
    for (const std::uint32_t flags : {0u, ATTEND_PARALLEL_NEAR}) {
        CHECK(pool.run(&call, 1000, 3, flags, body, &job) == ATTEND_OK);
        CHECK(job.clashes == 0);
        ++rounds;
        for (const auto& count : job.seen) CHECK(count == rounds);
    }
}

TEST_CASE("concurrency: near chunks go to one worker each, and the others help where one is late") {
    attend::WorkerPool pool(3);
    struct Job {
        std::atomic<int> started{0};
        std::array<std::atomic<std::uint64_t>, 3> first{};
        std::atomic<int> ran{0};
        int waits_for{3};
    } job;
    const auto body = [](void* user, std::uint64_t begin, std::uint64_t, std::uint32_t slot) -> attend_status {
        Job& shared = *static_cast<Job*>(user);
        ++shared.ran;
        if (begin % 5 != 0 || shared.started >= shared.waits_for) return ATTEND_OK;
        // The first chunk of a worker's part: waits until every worker has begun its own.
        shared.first[slot] = begin + 1;
        ++shared.started;
        while (shared.started < shared.waits_for) std::this_thread::yield();
        return ATTEND_OK;
    };
    CHECK(pool.run(nullptr, 15, 1, ATTEND_PARALLEL_NEAR, body, &job) == ATTEND_OK);
    CHECK(job.ran == 15);
    for (std::uint64_t slot = 0; slot < 3; ++slot) CHECK(job.first[slot] == 5 * slot + 1);
    // One worker stays in its first chunk until all others are done.
    struct Late {
        std::atomic<int> ran{0};
    } late;
    const auto slow = [](void* user, std::uint64_t begin, std::uint64_t, std::uint32_t) -> attend_status {
        Late& shared = *static_cast<Late*>(user);
        if (begin == 0)
            while (shared.ran < 14) std::this_thread::yield();
        ++shared.ran;
        return ATTEND_OK;
    };
    CHECK(pool.run(nullptr, 15, 1, ATTEND_PARALLEL_NEAR, slow, &late) == ATTEND_OK);
    CHECK(late.ran == 15);
    // Fewer chunks than workers.
    std::atomic<int> few{0};
    const auto count = [](void* user, std::uint64_t, std::uint64_t, std::uint32_t) -> attend_status {
        ++*static_cast<std::atomic<int>*>(user);
        return ATTEND_OK;
    };
    CHECK(pool.run(nullptr, 2, 1, ATTEND_PARALLEL_NEAR, count, &few) == ATTEND_OK);
    CHECK(few == 2);
}

TEST_CASE("concurrency: a loop inside a loop runs on the worker's own slot") {
    attend::WorkerPool pool(4);
    struct Job {
        attend::WorkerPool* pool;
        std::atomic<int> inner{0}, wrong{0};
    } job{&pool};
    const auto outer = [](void* user, std::uint64_t, std::uint64_t, std::uint32_t slot) -> attend_status {
        Job& shared = *static_cast<Job*>(user);
        struct Inner {
            Job* job;
            std::uint32_t slot;
        } inner{&shared, slot};
        return shared.pool->run(
            nullptr, 10, 1, 0,
            [](void* data, std::uint64_t, std::uint64_t, std::uint32_t at) -> attend_status {
                auto& seen = *static_cast<Inner*>(data);
                ++seen.job->inner;
                if (at != seen.slot) ++seen.job->wrong;
                return ATTEND_OK;
            },
            &inner);
    };
    CHECK(pool.run(nullptr, 20, 1, 0, outer, &job) == ATTEND_OK);
    CHECK(job.inner == 200);
    CHECK(job.wrong == 0);
}

TEST_CASE("concurrency: the first failing chunk stops a loop, and cancelling does") {
    attend::WorkerPool pool(3);
    std::atomic<int> ran{0};
    const auto failing = [](void* user, std::uint64_t begin, std::uint64_t, std::uint32_t) -> attend_status {
        ++*static_cast<std::atomic<int>*>(user);
        return begin == 5 ? ATTEND_NUMERIC : ATTEND_OK;
    };
    CHECK(pool.run(nullptr, 100000, 1, 0, failing, &ran) == ATTEND_NUMERIC);
    CHECK(ran < 100000);
    attend_call call;
    call.max_workers = 3;
    call.cancelled = true;
    CHECK(pool.run(&call, 10, 1, 0, failing, &ran) == ATTEND_CANCELLED);
}

TEST_CASE("concurrency: a body that throws becomes an internal error") {
    attend::WorkerPool pool(2);
    const auto throwing = [](void*, std::uint64_t, std::uint64_t, std::uint32_t) -> attend_status { throw 1; };
    CHECK(pool.run(nullptr, 4, 1, 0, throwing, nullptr) == ATTEND_INTERNAL);
}

TEST_CASE("concurrency: lookups see whole snapshots while mechanisms are added") {
    attend::MechanismRegistry registry;
    std::atomic<bool> stop{false};
    std::atomic<int> torn{0};
    std::thread reader([&] {
        while (!stop) {
            const auto snapshot = registry.snapshot();
            const auto names = snapshot->names();
            if (names.size() % 2 != 0) ++torn;  // pairs are added at once
        }
    });
    for (int pair = 0; pair < 200; ++pair) {
        std::vector<attend::MechanismRecord> records(2);
        for (int at = 0; at < 2; ++at) {
            records[static_cast<std::size_t>(at)].name = "m" + std::to_string(2 * pair + at);
            records[static_cast<std::size_t>(at)].category = "extra";
            records[static_cast<std::size_t>(at)].plugin_id = "org.example.many";
        }
        CHECK(registry.add(std::move(records)).ok());
    }
    stop = true;
    reader.join();
    CHECK(torn == 0);
    CHECK(registry.snapshot()->list().size() == 400);
}

TEST_CASE("concurrency: the result cache under calls, changes and invalidation") {
    attend::ServiceSettings settings;
    settings.config =
        attend::load_config(R"({"version": 1, "service": {"threads": 2}, "cache": {"mode": "on", "max_entries": 3}})",
                            "test.json")
            .config;
    settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
    auto engine = attend::AttentionService::open(std::move(settings)).value();
    std::vector<attend::ForwardInputs> inputs;
    std::vector<std::vector<float>> expected;
    attend::ForwardOptions options;
    options.mechanism = "flash-attention-v2";
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
        Random random(seed);
        inputs.push_back(make_inputs(random, {1, 2, 2, 20, 20, 8, 8}));
        expected.push_back(values(engine->forward(inputs.back(), options).value().output));
    }
    const attend::TensorHandle handle = engine->register_tensor(*inputs[0].key).value();
    std::atomic<int> wrong{0};
    on_threads(6, [&](int thread) {
        if (thread == 0) {
            attend::Config config = engine->config();
            for (int turn = 0; turn < 40; ++turn) {
                config.cache.max_entries = turn % 4;
                if (!engine->reconfigure(config) || !engine->touch(handle)) ++wrong;
                engine->invalidate_handle(handle);
                if (turn % 3 == 0) engine->invalidate("flash-attention-v2");
                (void)engine->metrics().json();
            }
            return;
        }
        for (int call = 0; call < 60; ++call) {
            const auto which = static_cast<std::size_t>(call) % inputs.size();
            attend::ForwardInputs given = inputs[which];
            if (which == 0) given.handles = {{"key", handle}};
            auto result = call % 7 == 0 ? engine->forward_async(given, options).get() : engine->forward(given, options);
            if (!result || values(result->output) != expected[which]) ++wrong;
            if (result) result->output.as<float>()[0] = 0.0f;
        }
        const auto batch = engine->forward_batch(inputs, options);
        if (!batch || values((*batch)[3].output) != expected[3]) ++wrong;
    });
    CHECK(wrong == 0);
}
