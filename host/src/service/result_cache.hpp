// SPDX-License-Identifier: Apache-2.0
// Results kept between calls, by the content of everything that they depend on (sdk/docs/cache.md). Least recently used
// ones go first, over all shards; identical calls that come at the same time are computed once.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "attend/attention_service.hpp"
#include "service/content_hash.hpp"
#include "service/tensor_handles.hpp"

namespace attend {

// Private copies of a result's tensors, and what confirms that they answer a call.
struct StoredResult {
    Tensor output;
    std::optional<Tensor> lse, scores;
    NamedTensors extra;
    bool has_output{false}, has_pattern{false};
    std::string mechanism;  // qualified
    std::string shapes;     // of all inputs, with their roles and types
    NamedTensors inputs;    // verify = full
    std::vector<HandleUse> handles;
    std::uint64_t check{};
    std::uint64_t bytes{};  // of all tensors here
    std::chrono::steady_clock::time_point expires;
};
using StoredPtr = std::shared_ptr<const StoredResult>;

// One call as the cache sees it.
struct CacheQuery {
    ContentHash key;
    std::string shapes, mechanism;
    std::vector<HandleUse> handles;
    const NamedTensors* inputs{};                     // by role; not null: verify = full
    bool needs_output{true}, needs_pattern{false};    // what the caller asks for
    bool stores_output{true}, stores_pattern{false};  // by the level
    std::int64_t ttl_ms{0};
    const std::atomic<bool>* cancelled{};  // may be null
};

class ResultCache {
public:
    using Compute = std::function<Result<ForwardResult>()>;

    explicit ResultCache(const TensorHandles& handles) : handles_(handles) {}

    void limit(const CacheConfig& config);

    // The result's tensors, kept or computed; `cached` and time_ms are set where they were kept or another call's.
    Result<ForwardResult> serve(const CacheQuery& query, const Compute& compute);
    void count_bypass() { bypass_.fetch_add(1, std::memory_order_relaxed); }

    void invalidate();
    void invalidate(const std::string& mechanism);
    void invalidate(TensorHandle handle);

    [[nodiscard]] AttentionService::ResultCacheFacts facts() const;
    void reset_counters();

private:
    struct Entry {
        ContentHash key;
        StoredPtr stored;
        std::uint64_t used{};
    };
    struct Flight {
        std::string shapes;
        std::uint64_t check{};
        NamedTensors inputs;  // verify = full
        bool needs_pattern{false};
        std::size_t waiters{0};  // guarded by the shard
        std::mutex mutex;
        std::condition_variable ready;
        bool done{false};
        StoredPtr stored;
        std::optional<Error> error;
    };
    struct Hash {
        std::size_t operator()(const ContentHash& key) const noexcept { return static_cast<std::size_t>(key.low); }
    };
    struct SameName {  // the second hash confirms; it does not name
        bool operator()(const ContentHash& a, const ContentHash& b) const noexcept {
            return a.low == b.low && a.high == b.high;
        }
    };
    using Order = std::list<Entry>;  // most recently used first
    struct Shard {
        std::mutex mutex;
        Order order;
        std::unordered_map<ContentHash, Order::iterator, Hash, SameName> index;
        std::unordered_map<ContentHash, std::shared_ptr<Flight>, Hash, SameName> flights;
    };
    static constexpr std::size_t shard_count = 8;

    Shard& shard_of(const ContentHash& key) { return shards_[key.high % shard_count]; }
    StoredPtr find(Shard& shard, const CacheQuery& query);
    void admit(const CacheQuery& query, StoredPtr stored, std::uint64_t epoch);
    void make_room(std::uint64_t bytes);
    void erase(Shard& shard, Order::iterator at);
    template <class Condition>
    void erase_if(Condition condition, bool counts);
    [[nodiscard]] bool dead(const StoredResult& stored) const;
    // Nothing: the flight was cancelled, so this call takes its own way.
    static std::optional<Result<ForwardResult>> wait(Flight& flight, const CacheQuery& query);

    const TensorHandles& handles_;
    std::array<Shard, shard_count> shards_;
    std::mutex room_;  // one thread at a time makes room and adds, so the limits hold at every moment
    std::atomic<std::int64_t> capacity_bytes_{0}, max_entries_{0};
    std::atomic<double> max_fraction_{1.0};
    std::atomic<std::uint64_t> bytes_{0}, entries_{0}, clock_{0}, epoch_{0};
    std::uint64_t seen_changes_{0};  // of the handles, by the last scan; guarded by room_
    std::atomic<std::uint64_t> hits_{0}, misses_{0}, bypass_{0}, evictions_{0};
};

}  // namespace attend
