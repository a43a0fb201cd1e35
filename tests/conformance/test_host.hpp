// SPDX-License-Identifier: Apache-2.0
// A host table for tests: counts every allocation, can refuse the n-th, runs loops serially or on plain threads, and
// can be as short as ABI 1.0 or longer than any host known.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "attend/abi.h"
#include "plugin_services/cpu.hpp"
#include "plugin_services/parallel.hpp"

namespace conformance {

class TestHost {
public:
    enum class Loop { serial, threads, refused };
    enum class Table { current, old, future };
    static constexpr std::uint32_t workers = 3;

    explicit TestHost(Loop loop = Loop::serial, Table table = Table::current)
        : loop_(loop), facts_(attend::detect_cpu()) {
        cpu_.struct_size = sizeof cpu_;
        cpu_.arch = facts_.arch;
        cpu_.isa = cpu_.isa_machine = facts_.isa_machine;
        cpu_.cache_line = 64;
        cpu_.cores = cpu_.threads = workers;
        cpu_.vendor = facts_.vendor.c_str();
        cpu_.model = facts_.model.c_str();
        constexpr std::size_t first_release = 120, later = 64;
        const std::size_t bytes = table == Table::future ? sizeof(attend_host) + later
                                  : table == Table::old  ? first_release
                                                         : sizeof(attend_host);
        memory_ = std::malloc(bytes);  // of exactly this size, so that a sanitizer sees reads beyond it
        std::memset(memory_, 0xA5, bytes);
        attend_host host{};
        host.struct_size = static_cast<std::uint32_t>(bytes);
        host.abi_major = ATTEND_ABI_MAJOR;
        host.abi_minor = static_cast<std::uint16_t>(table == Table::future ? 77 : 0);
        host.impl = this;
        host.cpu = &cpu_;
        host.alloc = alloc;
        host.release = release;
        host.parallel_for = parallel_for;
        host.max_workers = [](const attend_host*) { return workers; };
        host.log_level = [](const attend_host*) -> std::uint32_t { return ATTEND_LOG_OFF; };
        host.log = [](const attend_host*, std::uint32_t, const char*) {};
        host.cancelled = [](const attend_call*) -> std::uint32_t { return 0; };
        host.progress = [](attend_call*, double) {};
        host.now_ns = [](const attend_host*) -> std::uint64_t { return 1; };
        host.setting = [](const attend_host*, const char*, char*, std::uint64_t, std::uint64_t*) -> attend_status {
            return ATTEND_NOT_FOUND;
        };
        host.get_extension = [](const attend_host*, const char*) -> const void* { return nullptr; };
        std::memcpy(memory_, &host, std::min(bytes, sizeof host));
    }
    ~TestHost() { std::free(memory_); }
    TestHost(const TestHost&) = delete;
    TestHost& operator=(const TestHost&) = delete;

    [[nodiscard]] const attend_host* table() const { return static_cast<const attend_host*>(memory_); }
    [[nodiscard]] std::size_t blocks() const { return held_.size(); }
    [[nodiscard]] std::uint64_t allocations() const { return allocations_; }
    [[nodiscard]] std::uint64_t loops() const { return loops_; }
    [[nodiscard]] const std::string& misuse() const { return misuse_; }
    void fail_after(std::int64_t successes) { left_ = successes; }  // negative: never
    void set_loop(Loop loop) { loop_ = loop; }

private:
    static TestHost& self(const attend_host* host) { return *static_cast<TestHost*>(host->impl); }

    static void* alloc(const attend_host* host, std::uint64_t bytes, std::uint64_t align) {
        TestHost& me = self(host);
        const std::scoped_lock lock(me.mutex_);
        ++me.allocations_;
        if (me.left_ == 0) return nullptr;
        if (me.left_ > 0) --me.left_;
        const std::uint64_t alignment = std::max<std::uint64_t>(align, 64);
        void* p = std::aligned_alloc(alignment, std::max(alignment, (bytes + alignment - 1) / alignment * alignment));
        std::memset(p, 0xFF, bytes);  // fresh memory is not zero
        me.held_[p] = bytes;
        return p;
    }
    static void release(const attend_host* host, void* p, std::uint64_t bytes, std::uint64_t) {
        if (p == nullptr) return;
        TestHost& me = self(host);
        const std::scoped_lock lock(me.mutex_);
        const auto found = me.held_.find(p);
        if (found == me.held_.end()) {
            me.misuse_ = "released memory that was not allocated, or twice";
            return;
        }
        if (found->second != bytes)
            me.misuse_ = "released " + std::to_string(bytes) + " bytes of a block of " + std::to_string(found->second);
        me.held_.erase(found);
        std::free(p);
    }
    static attend_status parallel_for(const attend_host* host, attend_call*, std::uint64_t n, std::uint64_t grain,
                                      std::uint32_t flags, attend_range_fn body, void* user) {
        TestHost& me = self(host);
        ++me.loops_;
        if (me.loop_ == Loop::refused) return ATTEND_CANCELLED;
        static thread_local std::int64_t running = -1;  // the slot of the body that this thread runs
        const std::uint64_t chunk = std::max<std::uint64_t>(grain, 1);
        std::atomic<std::uint64_t> next{0};  // the begin of the chunk to be handed out
        std::atomic<attend_status> first{ATTEND_OK};
        const auto run = [&](std::uint64_t begin, std::uint32_t slot) {
            const attend_status status = body(user, begin, std::min(n, begin + chunk), slot);
            attend_status none = ATTEND_OK;
            if (status != ATTEND_OK) first.compare_exchange_strong(none, status);
        };
        const auto work = [&](std::uint32_t slot) {
            for (;;) {
                const std::uint64_t begin = next.fetch_add(chunk);
                if (begin >= n || first != ATTEND_OK) return;
                run(begin, slot);
            }
        };
        if (running >= 0 || me.loop_ == Loop::serial || (flags & ATTEND_PARALLEL_SERIAL) != 0) {
            const std::int64_t before = running;
            running = std::max<std::int64_t>(before, 0);
            work(static_cast<std::uint32_t>(running));
            running = before;
            return first;
        }
        // Every worker gets one chunk for certain, however busy the machine is; the rest goes to whoever asks first.
        next = workers * chunk;
        std::vector<std::thread> threads;
        for (std::uint32_t slot = 0; slot < workers; ++slot)
            threads.emplace_back([&, slot] {
                running = slot;
                if (slot * chunk < n) run(slot * chunk, slot);
                work(slot);
                running = -1;
            });
        for (std::thread& thread : threads) thread.join();
        return first;
    }

    Loop loop_;
    attend::CpuFacts facts_;
    attend_cpu cpu_{};
    void* memory_{};
    std::mutex mutex_;
    std::map<void*, std::uint64_t> held_;
    std::int64_t left_{-1};
    std::atomic<std::uint64_t> allocations_{0}, loops_{0};
    std::string misuse_;
};

}  // namespace conformance
