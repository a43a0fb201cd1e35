// SPDX-License-Identifier: Apache-2.0
// The table of host services that one plugin receives: memory (counted), threads, log, clock, CPU facts, its settings.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "attend/abi.h"
#include "plugin_services/cpu.hpp"
#include "plugin_services/parallel.hpp"

namespace attend {

// What all plugins of a service share.
struct Machine {
    CpuFacts facts;
    std::uint64_t isa{};  // after the back end's limit
    std::shared_ptr<WorkerPool> pool;
};

class PluginServices {
public:
    PluginServices(std::shared_ptr<const Machine> machine, std::string plugin_id,
                   std::map<std::string, std::string> settings);
    PluginServices(const PluginServices&) = delete;
    PluginServices& operator=(const PluginServices&) = delete;

    [[nodiscard]] const attend_host* table() const noexcept { return &table_; }
    [[nodiscard]] const std::string& plugin_id() const noexcept { return plugin_id_; }
    [[nodiscard]] std::uint64_t bytes_in_use() const noexcept { return bytes_in_use_; }
    [[nodiscard]] std::uint64_t blocks_in_use() const noexcept { return blocks_in_use_; }
    [[nodiscard]] std::uint64_t allocations() const noexcept { return allocations_; }

private:
    static void* alloc(const attend_host*, std::uint64_t bytes, std::uint64_t align);
    static void release(const attend_host*, void* p, std::uint64_t bytes, std::uint64_t align);
    static attend_status parallel_for(const attend_host*, attend_call*, std::uint64_t n, std::uint64_t grain,
                                      std::uint32_t flags, attend_range_fn body, void* user);
    static std::uint32_t max_workers(const attend_host*);
    static std::uint32_t host_log_level(const attend_host*);
    static void log(const attend_host*, std::uint32_t level, const char* text);
    static std::uint32_t cancelled(const attend_call*);
    static void progress(attend_call*, double fraction);
    static std::uint64_t now_ns(const attend_host*);
    static attend_status setting(const attend_host*, const char* key, char* buf, std::uint64_t cap,
                                 std::uint64_t* needed);
    static const void* get_extension(const attend_host*, const char* id);

    std::shared_ptr<const Machine> machine_;
    std::string plugin_id_;
    std::map<std::string, std::string> settings_;
    attend_cpu cpu_{};
    attend_host table_{};
    std::atomic<std::uint64_t> bytes_in_use_{0}, blocks_in_use_{0}, allocations_{0};
    std::mutex log_mutex_;
    std::uint64_t log_second_{0}, log_lines_{0};
};

}  // namespace attend
