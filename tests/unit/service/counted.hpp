// SPDX-License-Identifier: Apache-2.0
// A mechanism that counts its computations, can be slow and can fail: that of the built-in flash-attention-v2 otherwise.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

#include "support/calls.hpp"

namespace support {

struct Counted {
    static inline std::atomic<int> runs{0};
    static inline std::atomic<int> slow_ms{0};
    static inline std::atomic<bool> fails{false};
    static inline std::atomic<bool> waits_for_cancel{false};
    static inline const attend_mechanism* original{nullptr};
    static inline const attend_host* host{nullptr};

    static attend_status execute(const attend_plan* plan, const attend_exec* exec, attend_error* error) {
        ++runs;
        if (slow_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(slow_ms.load()));
        if (fails) return ATTEND_NUMERIC;
        return original->execute(plan, exec, error);
    }

    static void reset() {
        runs = 0;
        slow_ms = 0;
        fails = false;
    }

    // The record, under a name of its own or under that of another.
    static attend::MechanismRecord record(attend::AttentionService& service, const std::string& name) {
        attend::MechanismRecord made = *service.registry()->get("flash-attention-v2", "test").value();
        original = made.functions;
        static attend_mechanism table;
        table = *original;
        table.execute = execute;
        made.functions = &table;
        made.name = name;
        made.plugin_id = "org.example.counted";
        return made;
    }
};

inline std::unique_ptr<attend::AttentionService> open_service(const std::string& config, int threads = 2,
                                                              bool check_handles = false) {
    attend::ServiceSettings settings;
    auto loaded = attend::load_config(config, "test.json");
    for (const auto& problem : loaded.problems) FAIL(problem.message);
    settings.config = std::move(loaded.config);
    settings.config.service.threads = threads;
    settings.check_handles = check_handles;
    settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
    auto opened = attend::AttentionService::open(std::move(settings));
    if (!opened) FAIL(opened.error().message);
    return std::move(*opened);
}

// A service whose cache takes every call; `more` goes into the section "cache".
inline std::unique_ptr<attend::AttentionService> open_caching(const std::string& more = "",
                                                              bool check_handles = false) {
    return open_service(R"({"version": 1, "cache": {"mode": "on")" + (more.empty() ? "" : ", " + more) + "}}", 2,
                        check_handles);
}

}  // namespace support
