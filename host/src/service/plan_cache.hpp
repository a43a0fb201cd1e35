// SPDX-License-Identifier: Apache-2.0
// Plans kept between calls: the key that tells requests apart, and the cache itself.
#pragma once

#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "attend/attention_service.hpp"
#include "service/call_plan.hpp"

namespace attend {

inline constexpr std::size_t most_plans = 256;

// A byte string that tells requests apart: everything a plan depends on, and nothing that may change under it.
class KeyWriter {
public:
    void number(std::int64_t value) { key_.append(reinterpret_cast<const char*>(&value), sizeof value); }
    void text(std::string_view value) {
        number(static_cast<std::int64_t>(value.size()));
        key_.append(value);
    }
    void tensor(const Tensor& tensor) {
        number(static_cast<std::int64_t>(tensor.dtype));
        number(tensor.rank());
        for (const std::int64_t extent : tensor.shape) number(extent);
        for (const std::int64_t stride : tensor.strides) number(stride);
    }
    void tensor(const std::optional<Tensor>& value) {
        number(value ? 1 : 0);
        if (value) tensor(*value);
    }
    void json(const Json& value) {
        if (value.is_bool())
            number(value.as_bool() ? 2 : 1);
        else if (value.is_int64())
            number(3), number(value.as_int64());
        else if (value.is_string())
            number(4), text(value.as_string());
        else
            number(5), text(write_json(value));
    }
    void clear() { key_.clear(); }
    [[nodiscard]] const std::string& key() const { return key_; }

private:
    std::string key_;
};

// Least recently used plans go first. A plan's weights are the initialiser's, never the caller's memory.
class PlanCache {
public:
    std::shared_ptr<const CallPlan> find(const std::string& key) {
        const std::scoped_lock lock(mutex_);
        const auto at = index_.find(key);
        if (at == index_.end()) {
            ++misses_;
            return nullptr;
        }
        ++hits_;
        order_.splice(order_.begin(), order_, at->second);
        return at->second->second;
    }
    void add(std::string key, std::shared_ptr<const CallPlan> plan) {
        const std::scoped_lock lock(mutex_);
        if (index_.count(key) != 0) return;
        order_.emplace_front(key, std::move(plan));
        index_.emplace(std::move(key), order_.begin());
        if (order_.size() > most_plans) {
            index_.erase(order_.back().first);
            order_.pop_back();
        }
    }
    void clear() {
        const std::scoped_lock lock(mutex_);
        index_.clear();
        order_.clear();
    }
    AttentionService::PlanCacheFacts facts() const {
        const std::scoped_lock lock(mutex_);
        return {order_.size(), hits_, misses_};
    }

private:
    using Entry = std::pair<std::string, std::shared_ptr<const CallPlan>>;
    mutable std::mutex mutex_;
    std::list<Entry> order_;
    std::unordered_map<std::string, std::list<Entry>::iterator> index_;
    std::uint64_t hits_{0}, misses_{0};
};

}  // namespace attend
