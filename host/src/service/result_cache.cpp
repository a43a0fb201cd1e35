// SPDX-License-Identifier: Apache-2.0
#include "service/result_cache.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace attend {
namespace {

using Clock = std::chrono::steady_clock;

Result<Tensor> copy_of(const Tensor& tensor) {
    Result<Tensor> copy = Tensor::allocate(tensor.dtype, tensor.shape, Tensor::Fill::none);
    if (!copy) return copy;
    const Result<Tensor> flat = contiguous_copy(tensor);
    if (!flat) return flat;
    if (flat->byte_size() > 0) std::memcpy(copy->data, flat->data, flat->byte_size());
    return copy;
}

// All ones in the exponent and something in the fraction, for the formats that have such numbers.
template <class Word>
bool any_nan(const void* data, std::int64_t count, Word magnitude, Word infinity) {
    const auto* words = static_cast<const Word*>(data);
    constexpr std::int64_t step = 4096;
    for (std::int64_t begin = 0; begin < count; begin += step) {
        const std::int64_t end = std::min(count, begin + step);
        unsigned found = 0;
        for (std::int64_t at = begin; at < end; ++at)
            found |= static_cast<Word>(words[at] & magnitude) > infinity ? 1u : 0u;
        if (found != 0) return true;
    }
    return false;
}

bool has_nan(const Tensor& tensor) {
    const Result<Tensor> flat = contiguous_copy(tensor);
    if (!flat) return true;
    const std::int64_t count = flat->size();
    switch (tensor.dtype) {
        case DType::f32: return any_nan<std::uint32_t>(flat->data, count, 0x7fffffffu, 0x7f800000u);
        case DType::f64: return any_nan<std::uint64_t>(flat->data, count, 0x7fffffffffffffffull, 0x7ff0000000000000ull);
        case DType::f16: return any_nan<std::uint16_t>(flat->data, count, 0x7fff, 0x7c00);
        case DType::bf16: return any_nan<std::uint16_t>(flat->data, count, 0x7fff, 0x7f80);
        case DType::f8_e4m3: return any_nan<std::uint8_t>(flat->data, count, 0x7f, 0x7e);
        case DType::f8_e5m2: return any_nan<std::uint8_t>(flat->data, count, 0x7f, 0x7c);
        default: return false;
    }
}

// Every tensor of a result.
template <class ResultType, class Visit>
void for_each_tensor(ResultType& result, Visit visit) {
    visit(result.output);
    if (result.lse) visit(*result.lse);
    if (result.scores) visit(*result.scores);
    for (auto& [name, tensor] : result.extra) visit(tensor);
}

bool has_nan(const ForwardResult& result) {
    bool found = false;
    for_each_tensor(result, [&](const Tensor& tensor) { found = found || has_nan(tensor); });
    return found;
}

// Copies of the parts that are wanted.
Result<std::shared_ptr<StoredResult>> store(const ForwardResult& result, bool output, bool pattern) {
    auto stored = std::make_shared<StoredResult>();
    stored->has_output = output;
    stored->has_pattern = pattern;
    if (output) {
        stored->output = result.output;
        stored->lse = result.lse;
    }
    if (pattern) {
        stored->scores = result.scores;
        stored->extra = result.extra;
    }
    std::optional<Error> error;
    for_each_tensor(*stored, [&](Tensor& tensor) {
        if (error || tensor.data == nullptr) return;
        Result<Tensor> copy = copy_of(tensor);
        if (!copy)
            error = copy.error();
        else
            tensor = std::move(*copy);
        stored->bytes += tensor.byte_size();
    });
    if (error) return *error;
    return stored;
}

Result<ForwardResult> give(const StoredResult& stored, const CacheQuery& query) {
    const auto begin = Clock::now();
    ForwardResult result;
    if (stored.has_output) {
        result.output = stored.output;
        result.lse = stored.lse;
    }
    if (query.needs_pattern) {
        result.scores = stored.scores;
        result.extra = stored.extra;
    }
    std::optional<Error> error;
    for_each_tensor(result, [&](Tensor& tensor) {
        if (error || tensor.data == nullptr) return;
        Result<Tensor> copy = copy_of(tensor);
        if (!copy)
            error = copy.error();
        else
            tensor = std::move(*copy);
    });
    if (error) return *error;
    result.cached = true;
    result.time_ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    return result;
}

bool same_inputs(const NamedTensors& a, const NamedTensors& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
        return x.first == y.first && same_content(x.second, y.second);
    });
}

Result<NamedTensors> copies_of(const NamedTensors& tensors) {
    NamedTensors copies;
    for (const auto& [name, tensor] : tensors) {
        Result<Tensor> copy = copy_of(tensor);
        if (!copy) return copy.error();
        copies.emplace_back(name, std::move(*copy));
    }
    return copies;
}

}  // namespace

void ResultCache::limit(const CacheConfig& config) {
    const std::scoped_lock lock(room_);
    capacity_bytes_ = config.capacity_bytes;
    max_entries_ = config.max_entries;
    max_fraction_ = config.max_entry_fraction;
    make_room(0);
}

bool ResultCache::dead(const StoredResult& stored) const {
    if (stored.expires <= Clock::now()) return true;
    return std::any_of(stored.handles.begin(), stored.handles.end(),
                       [&](const HandleUse& use) { return handles_.generation(use.handle) != use.generation; });
}

void ResultCache::erase(Shard& shard, Order::iterator at) {
    bytes_ -= at->stored->bytes;
    --entries_;
    shard.index.erase(at->key);
    shard.order.erase(at);
}

template <class Condition>
void ResultCache::erase_if(Condition condition, bool counts) {
    for (Shard& shard : shards_) {
        const std::scoped_lock lock(shard.mutex);
        for (auto at = shard.order.begin(); at != shard.order.end();) {
            const auto next = std::next(at);
            if (condition(*at->stored)) {
                erase(shard, at);
                if (counts) ++evictions_;
            }
            at = next;
        }
    }
}

// The caller holds room_. What nobody can reach any more goes first, then what was used longest ago.
void ResultCache::make_room(std::uint64_t bytes) {
    const auto too_much = [&](std::uint64_t more) {
        return bytes_ + bytes > static_cast<std::uint64_t>(std::max<std::int64_t>(capacity_bytes_, 0)) ||
               entries_ + more > static_cast<std::uint64_t>(std::max<std::int64_t>(max_entries_, 0));
    };
    const std::uint64_t more = bytes > 0 ? 1 : 0;
    const std::uint64_t changes = handles_.changes();
    if (too_much(more) || changes != seen_changes_) {
        seen_changes_ = changes;
        erase_if([this](const StoredResult& stored) { return dead(stored); }, true);
    }
    while (too_much(more) && entries_ > 0) {
        Shard* oldest = nullptr;
        std::uint64_t used = std::numeric_limits<std::uint64_t>::max();
        for (Shard& shard : shards_) {
            const std::scoped_lock lock(shard.mutex);
            if (!shard.order.empty() && shard.order.back().used < used) {
                used = shard.order.back().used;
                oldest = &shard;
            }
        }
        if (oldest == nullptr) return;
        const std::scoped_lock lock(oldest->mutex);
        if (oldest->order.empty() || oldest->order.back().used != used) continue;  // used meanwhile
        erase(*oldest, std::prev(oldest->order.end()));
        ++evictions_;
    }
}

// The caller holds the shard.
StoredPtr ResultCache::find(Shard& shard, const CacheQuery& query) {
    const auto at = shard.index.find(query.key);
    if (at == shard.index.end()) return nullptr;
    const StoredPtr stored = at->second->stored;
    if (stored->expires <= Clock::now()) {
        erase(shard, at->second);
        ++evictions_;
        return nullptr;
    }
    if (stored->check != query.key.check || stored->shapes != query.shapes ||
        (query.needs_output && !stored->has_output) || (query.needs_pattern && !stored->has_pattern))
        return nullptr;
    at->second->used = ++clock_;
    shard.order.splice(shard.order.begin(), shard.order, at->second);
    return stored;
}

void ResultCache::admit(const CacheQuery& query, StoredPtr stored, std::uint64_t epoch) {
    const std::scoped_lock room(room_);
    if (epoch != epoch_) return;  // what was invalidated while the call ran must not come in after it
    make_room(std::max<std::uint64_t>(stored->bytes, 1));
    if (entries_ >= static_cast<std::uint64_t>(std::max<std::int64_t>(max_entries_, 0)) ||
        bytes_ + stored->bytes > static_cast<std::uint64_t>(std::max<std::int64_t>(capacity_bytes_, 0)))
        return;
    Shard& shard = shard_of(query.key);
    const std::scoped_lock lock(shard.mutex);
    if (const auto at = shard.index.find(query.key); at != shard.index.end()) erase(shard, at->second);
    bytes_ += stored->bytes;
    ++entries_;
    shard.order.push_front({query.key, std::move(stored), ++clock_});
    shard.index.emplace(query.key, shard.order.begin());
}

std::optional<Result<ForwardResult>> ResultCache::wait(Flight& flight, const CacheQuery& query) {
    std::unique_lock lock(flight.mutex);
    while (!flight.done) {
        if (query.cancelled != nullptr && query.cancelled->load())
            return Result<ForwardResult>(Error{ErrorCode::cancelled, "forward: was cancelled", ""});
        if (query.cancelled == nullptr)
            flight.ready.wait(lock);
        else  // nobody rings when a token is set
            flight.ready.wait_for(lock, std::chrono::milliseconds(5));
    }
    if (flight.error) {
        if (flight.error->code == ErrorCode::cancelled) return std::nullopt;
        return Result<ForwardResult>(*flight.error);
    }
    return give(*flight.stored, query);
}

Result<ForwardResult> ResultCache::serve(const CacheQuery& query, const Compute& compute) {
    Shard& shard = shard_of(query.key);
    std::shared_ptr<Flight> flight;
    StoredPtr stored;
    bool leads = false;
    const std::uint64_t epoch = epoch_.load();
    {
        const std::scoped_lock lock(shard.mutex);
        stored = find(shard, query);
        if (!stored) {
            auto& slot = shard.flights[query.key];
            if (!slot) {
                slot = std::make_shared<Flight>();
                slot->shapes = query.shapes;
                slot->check = query.key.check;
                slot->needs_pattern = query.needs_pattern;
                leads = true;
            } else {
                ++slot->waiters;
            }
            flight = slot;
        }
    }
    const auto compares = [&](const NamedTensors& kept) {
        return query.inputs == nullptr || same_inputs(*query.inputs, kept);
    };
    if (stored && compares(stored->inputs)) {
        ++hits_;
        return give(*stored, query);
    }
    if (stored) {  // the same hashes and other bytes
        ++misses_;
        return compute();
    }
    if (!leads) {
        if (flight->shapes != query.shapes || flight->check != query.key.check ||
            flight->needs_pattern != query.needs_pattern) {
            ++misses_;
            return compute();
        }
        std::optional<Result<ForwardResult>> waited = wait(*flight, query);
        if (waited && waited->ok() && !(flight->stored && compares(flight->stored->inputs))) waited.reset();
        if (waited) {
            if (waited->ok()) ++hits_;
            return std::move(*waited);
        }
        ++misses_;
        return compute();
    }

    ++misses_;
    // Whatever happens below, whoever waits is answered.
    struct Landing {
        Shard& shard;
        const CacheQuery& query;
        std::shared_ptr<Flight> flight;
        StoredPtr stored;
        std::optional<Error> error{Error{ErrorCode::internal, "forward: the call that was waited for ended early", ""}};
        bool left{false};
        std::size_t leave() {
            const std::scoped_lock lock(shard.mutex);
            if (!left) shard.flights.erase(query.key);
            left = true;
            return flight->waiters;
        }
        ~Landing() {
            leave();
            const std::scoped_lock lock(flight->mutex);
            flight->stored = std::move(stored);
            if (!flight->stored) flight->error = std::move(error);
            flight->done = true;
            flight->ready.notify_all();
        }
    } landing{shard, query, flight, nullptr};

    NamedTensors kept_inputs;
    if (query.inputs != nullptr) {
        Result<NamedTensors> copies = copies_of(*query.inputs);
        if (!copies) return *(landing.error = copies.error());
        kept_inputs = std::move(*copies);
    }
    Result<ForwardResult> result = compute();
    if (!result) {
        landing.error = result.error();
        return result;
    }
    const auto dress = [&](StoredResult& to) {
        to.mechanism = query.mechanism;
        to.shapes = query.shapes;
        to.handles = query.handles;
        to.check = query.key.check;
        to.inputs = kept_inputs;
        for (const auto& [role, tensor] : to.inputs) to.bytes += tensor.byte_size();
        to.expires =
            query.ttl_ms > 0 ? Clock::now() + std::chrono::milliseconds(query.ttl_ms) : Clock::time_point::max();
    };
    std::uint64_t wanted = 0;
    if (query.stores_output) wanted += result->output.byte_size() + (result->lse ? result->lse->byte_size() : 0);
    if (query.stores_pattern) {
        if (result->scores) wanted += result->scores->byte_size();
        for (const auto& [name, tensor] : result->extra) wanted += tensor.byte_size();
    }
    for (const auto& [role, tensor] : kept_inputs) wanted += tensor.byte_size();
    const auto capacity = static_cast<double>(capacity_bytes_.load());
    const bool fits = max_entries_ > 0 && capacity > 0 && static_cast<double>(wanted) <= max_fraction_ * capacity;
    if (fits && !has_nan(*result)) {
        Result<std::shared_ptr<StoredResult>> copy = store(*result, query.stores_output, query.stores_pattern);
        if (copy) {  // without memory for a copy the result is simply not kept
            dress(**copy);
            admit(query, *copy, epoch);
            if ((query.stores_output || !query.needs_output) && (query.stores_pattern || !query.needs_pattern))
                landing.stored = *copy;
        }
    }
    if (landing.leave() > 0 && !landing.stored) {
        Result<std::shared_ptr<StoredResult>> copy = store(*result, true, true);
        if (!copy) {
            landing.error = copy.error();
            return result;
        }
        dress(**copy);
        landing.stored = *copy;
    }
    return result;
}

void ResultCache::invalidate() {
    const std::scoped_lock room(room_);
    ++epoch_;
    erase_if([](const StoredResult&) { return true; }, false);
}

void ResultCache::invalidate(const std::string& mechanism) {
    const std::scoped_lock room(room_);
    ++epoch_;
    erase_if([&](const StoredResult& stored) { return stored.mechanism == mechanism; }, false);
}

void ResultCache::invalidate(TensorHandle handle) {
    const std::scoped_lock room(room_);
    ++epoch_;
    erase_if(
        [&](const StoredResult& stored) {
            return std::any_of(stored.handles.begin(), stored.handles.end(),
                               [&](const HandleUse& use) { return use.handle == handle; });
        },
        false);
}

AttentionService::ResultCacheFacts ResultCache::facts() const {
    return {hits_, misses_, bypass_, evictions_, bytes_, entries_};
}

void ResultCache::reset_counters() { hits_ = misses_ = bypass_ = evictions_ = 0; }

}  // namespace attend
