// SPDX-License-Identifier: Apache-2.0
// What the service makes of calls: batches of small ones on one and two threads, hits of the result cache on inputs of one
// megabyte, background calls, and the rate of hashing. Medians.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "attend/attention_service.hpp"
#include "service/content_hash.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double median(std::vector<double> samples) {
    std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2), samples.end());
    return samples[samples.size() / 2];
}

attend::Tensor filled(std::vector<std::int64_t> shape, int seed) {
    attend::Tensor tensor = attend::Tensor::allocate(attend::DType::f32, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at)
        tensor.as<float>()[at] = 0.01f * static_cast<float>((at * 37 + seed) % 101 - 50);
    return tensor;
}

std::unique_ptr<attend::AttentionService> open(int threads, const char* mode) {
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    settings.config.service.threads = threads;
    settings.config.cache.mode = mode;
    auto opened = attend::AttentionService::open(std::move(settings));
    if (!opened) {
        std::fprintf(stderr, "%s\n", opened.error().message.c_str());
        std::exit(1);
    }
    return std::move(*opened);
}

// Milliseconds of one call of `body`, the median of `runs`.
template <class Body>
double time_ms(int runs, Body body) {
    std::vector<double> samples;
    for (int run = 0; run < runs; ++run) {
        const auto begin = Clock::now();
        if (!body()) std::exit(1);
        samples.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
    }
    return median(std::move(samples));
}

}  // namespace

int main() {
    attend::ForwardOptions options;
    options.mechanism = "flash-attention-v2";
    std::vector<attend::ForwardInputs> items;
    for (int at = 0; at < 256; ++at) {
        attend::ForwardInputs inputs;
        inputs.query = filled({1, 4, 64, 64}, at);
        inputs.key = filled({1, 4, 64, 64}, at + 1);
        inputs.value = filled({1, 4, 64, 64}, at + 2);
        items.push_back(std::move(inputs));
    }
    const auto one = open(1, "off"), two = open(2, "off");
    std::vector<double> alone, together, singly;
    for (int turn = 0; turn < 15; ++turn) {  // in turns, so that all see the same clock
        alone.push_back(time_ms(5, [&] { return one->forward_batch(items, options).ok(); }));
        together.push_back(time_ms(5, [&] { return two->forward_batch(items, options).ok(); }));
        singly.push_back(time_ms(5, [&] {
            bool fine = true;
            for (const auto& each : items) fine = fine && one->forward(each, options).ok();
            return fine;
        }));
    }
    std::printf(
        "batch of 256, N=64 D=64 H=4: one thread %.3f ms, two threads %.3f ms, %.2f times; call by call %.3f ms\n",
        median(alone), median(together), median(alone) / median(together), median(singly));

    const attend::Tensor megabyte = filled({1 << 18}, 0);
    const double hash = time_ms(400, [&] { return attend::hash_of(megabyte).low != 0; });
    const auto caching = open(1, "on");
    attend::ForwardInputs inputs;  // three tensors of 341 KiB
    inputs.query = filled({1, 4, 341, 64}, 1);
    inputs.key = filled({1, 4, 341, 64}, 2);
    inputs.value = filled({1, 4, 341, 64}, 3);
    const double computed = time_ms(100, [&] { return one->forward(inputs, options).ok(); });
    const double hit = time_ms(400, [&] { return caching->forward(inputs, options).ok(); });
    attend::ForwardInputs registered = inputs;
    for (const auto& [role, tensor] :
         {std::pair("query", inputs.query), std::pair("key", *inputs.key), std::pair("value", *inputs.value)})
        registered.handles.emplace_back(role, *caching->register_tensor(tensor));
    const double by_handle = time_ms(400, [&] { return caching->forward(registered, options).ok(); });
    std::printf("hashing 1 MiB, 128 and 64 bits: %.3f ms, %.1f GB/s\n", hash, 1.048576 / hash);
    std::printf("inputs of 1 MiB: computed %.3f ms, hit %.3f ms, hit with registered tensors %.3f ms\n", computed, hit,
                by_handle);

    attend::ForwardInputs tiny;
    tiny.query = filled({1, 1, 1, 64}, 1);
    tiny.key = filled({1, 1, 128, 64}, 1);
    const double background = time_ms(4000, [&] { return one->forward_async(tiny, options).get().ok(); });
    const double direct = time_ms(4000, [&] { return one->forward(tiny, options).ok(); });
    std::printf("one small call: %.2f us, in the background and waited for %.2f us\n", direct * 1e3, background * 1e3);
    return 0;
}
