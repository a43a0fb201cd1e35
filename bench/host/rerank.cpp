// SPDX-License-Identifier: Apache-2.0
// One query against candidates of 384 numbers, end to end: AttentionService::rerank with its defaults.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "attend/rerank.hpp"

int main() {
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    auto opened = attend::AttentionService::open(std::move(settings));
    if (!opened) return std::fprintf(stderr, "%s\n", opened.error().message.c_str()), 1;
    attend::AttentionService& service = **opened;
    constexpr std::int64_t width = 384;
    for (const char* mechanism : {"memory-attention", "standard-mha"})
        for (const std::int64_t count : {10, 50, 200, 1024}) {
            attend::Tensor query = attend::Tensor::allocate(attend::DType::f32, {width}).value(),
                           candidates = attend::Tensor::allocate(attend::DType::f32, {count, width}).value();
            std::uint32_t state = 1;
            for (attend::Tensor* tensor : {&query, &candidates})
                for (std::int64_t at = 0; at < tensor->size(); ++at) {
                    state = state * 1664525u + 1013904223u;
                    tensor->as<float>()[at] = static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
                }
            attend::RerankOptions options;
            options.mechanism = mechanism;
            std::vector<double> samples;
            for (int at = 0; at < 3000; ++at) {
                const auto begin = std::chrono::steady_clock::now();
                const auto done = service.rerank(query, candidates, options);
                const auto end = std::chrono::steady_clock::now();
                if (!done) return std::fprintf(stderr, "%s\n", done.error().message.c_str()), 1;
                samples.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
            }
            std::sort(samples.begin(), samples.end());
            std::printf("%-18s %5ld candidates of %ld: median %.1f us, 90%% below %.1f us\n", mechanism,
                        static_cast<long>(count), static_cast<long>(width), samples[samples.size() / 2],
                        samples[samples.size() * 9 / 10]);
        }
    return 0;
}
