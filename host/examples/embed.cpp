// SPDX-License-Identifier: Apache-2.0
// Attention in a C++ program: open a service, call it, see which mechanism ran and why.
#include <cstdio>

#include "attend/attention_service.hpp"

int main() {
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    auto service = attend::AttentionService::open(std::move(settings));
    if (!service) {
        std::fprintf(stderr, "%s\n", service.error().message.c_str());
        return 1;
    }
    attend::ForwardInputs inputs;
    inputs.query = attend::Tensor::allocate(attend::DType::f32, {1, 2, 16, 32}).value();  // [B, H, N, D]
    for (std::int64_t at = 0; at < inputs.query.size(); ++at)
        inputs.query.as<float>()[at] = static_cast<float>(at % 7) * 0.1f;

    attend::ForwardOptions options;
    options.options = {{"causal", true}};
    auto result = (*service)->forward(inputs, options);  // key and value are the query: self-attention
    if (!result) {
        std::fprintf(stderr, "%s\n", result.error().message.c_str());
        return 1;
    }
    std::printf("%s on %s, because: %s\n", result->mechanism.c_str(), result->backend.c_str(), result->reason.c_str());
    std::printf("first output value: %g\n", static_cast<double>(result->output.as<const float>()[0]));
    return 0;
}
