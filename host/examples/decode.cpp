// SPDX-License-Identifier: Apache-2.0
// Decoding with a cache in a C++ program: two prompts, a branch that shares the pages of one of them, and steps of one token.
// The tensors stand in for a model's projections.
#include <cmath>
#include <cstdio>

#include "attend/kv_cache.hpp"

namespace {

constexpr std::int64_t heads = 8, kv_heads = 2, width = 64;

attend::Tensor numbers(std::int64_t n, std::int64_t of_heads, std::int64_t rows, int seed) {
    attend::Tensor tensor = attend::Tensor::allocate(attend::DType::f32, {n, of_heads, rows, width}).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at)
        tensor.as<float>()[at] = std::sin(static_cast<float>(at % 9973 * (seed + 3)));
    return tensor;
}

int fail(const attend::Error& error) {
    std::fprintf(stderr, "%s\n", error.message.c_str());
    return 1;
}

}  // namespace

int main() {
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    auto service = attend::AttentionService::open(std::move(settings));
    if (!service) return fail(service.error());

    // Up to 4 sequences of 4096 keys each, in pages of 64 keys, of which there are 64 for all: bf16 halves what a step reads.
    auto cache = attend::KvCache::open(**service, {.heads = heads,
                                                   .kv_heads = kv_heads,
                                                   .head_dim = width,
                                                   .storage = "bf16",
                                                   .sequences = 4,
                                                   .capacity = 4096,
                                                   .page_size = 64,
                                                   .pages = 64});
    if (!cache) return fail(cache.error());
    if (auto done = cache->append({0}, numbers(1, kv_heads, 1000, 1), numbers(1, kv_heads, 1000, 2)); !done)
        return fail(done.error());
    if (auto done = cache->append({1}, numbers(1, kv_heads, 300, 3), numbers(1, kv_heads, 300, 4)); !done)
        return fail(done.error());
    if (auto done = cache->fork(0, 2); !done) return fail(done.error());  // a second answer to the first prompt

    for (int token = 0; token < 3; ++token) {
        const std::vector<std::int64_t> sequences{0, 1, 2};
        if (auto done =
                cache->append(sequences, numbers(3, kv_heads, 1, 10 + token), numbers(3, kv_heads, 1, 20 + token));
            !done)
            return fail(done.error());
        auto step = cache->step(sequences, numbers(3, heads, 1, 30 + token));
        if (!step) return fail(step.error());
        std::printf("token %d: lengths %lld %lld %lld, first output %.4f\n", token,
                    static_cast<long long>(cache->length(0).value()), static_cast<long long>(cache->length(1).value()),
                    static_cast<long long>(cache->length(2).value()),
                    static_cast<double>(step->output.as<const float>()[0]));
    }
    if (auto done = cache->truncate(2, 1000); !done) return fail(done.error());  // the second answer is taken back
    const attend::KvCacheFacts facts = cache->facts();
    std::printf("%lld of %lld pages are free; %.1f KiB hold keys and values\n",
                static_cast<long long>(facts.free_pages), static_cast<long long>(facts.pages),
                static_cast<double>(facts.used_bytes) / 1024);
    return 0;
}
