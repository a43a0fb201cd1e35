// SPDX-License-Identifier: Apache-2.0
// KvCache: keys and values that a decoder keeps from step to step, held by a mechanism that offers attend.kv-cache/1
// (flash-decoding does, and any plugin may). A cache has sequences 0 to sequences - 1, all empty at first.
//
//   auto cache = attend::KvCache::open(*service, {.heads = 32, .kv_heads = 8, .head_dim = 128, .storage = "bf16",
//                                                 .sequences = 4, .capacity = 4096, .page_size = 64, .pages = 128});
//   cache->append({0}, key, value);             // [1, 8, n, 128], the prompt or one token
//   auto step = cache->step({0}, query);        // [1, 32, 1, 128] -> output of the same shape
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"

namespace attend {

struct KvCacheSettings {
    std::string mechanism{"flash-decoding"};
    NamedValues options{};                                           // of every step
    std::int64_t heads{1}, kv_heads{1}, head_dim{64}, value_dim{0};  // value_dim 0: head_dim
    std::string storage{"fp32"};             // fp32, fp16, bf16, or int8 with one scale for each key and head
    std::string precision{"fp32"};           // of queries and outputs: fp32, fp16, bf16
    std::int64_t sequences{1}, capacity{0};  // keys that each sequence may hold
    std::int64_t page_size{0}, pages{0};     // keys of a page, pages that all share; 0: contiguous
};

struct KvCacheFacts {
    std::uint64_t bytes{}, used_bytes{};
    std::int64_t pages{}, free_pages{};
};

struct KvStep {
    Tensor output;              // [n, heads, rows, value_dim]
    std::optional<Tensor> lse;  // [n, heads, rows]
};

// The service must outlive the cache. One thread at a time changes a cache (append, truncate, fork), and no step runs
// meanwhile; steps and questions may run together. What fails changes nothing.
class KvCache {
public:
    // Errors: an unknown mechanism or one without caches (unsupported), options, sizes.
    static Result<KvCache> open(const AttentionService& service, const KvCacheSettings& settings);
    KvCache(KvCache&&) noexcept;
    KvCache& operator=(KvCache&&) noexcept;
    ~KvCache();

    // key [n, kv_heads, m, head_dim] and value [n, kv_heads, m, value_dim], float32 or as stored: m more keys for each of n
    // different sequences. Errors: no room in a sequence or among the pages (limit); NaN or infinity with int8 (nonfinite).
    Result<void> append(const std::vector<std::int64_t>& sequences, const Tensor& key, const Tensor& value);
    // Forgets the keys of a sequence from `length` on.
    Result<void> truncate(std::int64_t sequence, std::int64_t length);
    // `to`, which must be empty, gets the keys of `from`. Pages are shared until one of the two changes.
    Result<void> fork(std::int64_t from, std::int64_t to);
    // Keys of a sequence.
    [[nodiscard]] Result<std::int64_t> length(std::int64_t sequence) const;
    [[nodiscard]] KvCacheFacts facts() const;

    // query [n, heads, rows, head_dim]: the last `rows` positions of sequences[0] to sequences[n - 1], which may repeat. Their
    // keys have been appended before.
    Result<KvStep> step(const std::vector<std::int64_t>& sequences, const Tensor& query, bool lse = false) const;

private:
    struct State;
    explicit KvCache(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace attend
