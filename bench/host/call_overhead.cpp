// SPDX-License-Identifier: Apache-2.0
// What the service costs over the bare plugin call: one query against 128 keys, D = 64. Both in turns in one run; the
// service's share is everything between its caller and the plugin, outputs allocated and described included.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "attend/attention_service.hpp"
#include "service/call_plan.hpp"

namespace {

double median(std::vector<double> samples) {
    std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2), samples.end());
    return samples[samples.size() / 2];
}

attend::Tensor filled(std::vector<std::int64_t> shape) {
    attend::Tensor tensor = attend::Tensor::allocate(attend::DType::f32, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at)
        tensor.as<float>()[at] = 0.01f * static_cast<float>((at * 37) % 101 - 50);
    return tensor;
}

}  // namespace

int main() {
    constexpr int calls = 20000;
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    auto opened = attend::AttentionService::open(std::move(settings));
    if (!opened) return std::fprintf(stderr, "%s\n", opened.error().message.c_str()), 1;
    attend::AttentionService& service = **opened;
    attend::ForwardInputs inputs;
    inputs.query = filled({1, 1, 1, 64});
    inputs.key = filled({1, 1, 128, 64});
    inputs.value = filled({1, 1, 128, 64});
    for (const char* mechanism : {"flash-attention-v2", "auto"}) {
        attend::ForwardOptions options;
        options.mechanism = mechanism;
        auto first = service.forward(inputs, options);
        if (!first) return std::fprintf(stderr, "%s\n", first.error().message.c_str()), 1;
        const attend::CallPlan& plan = *first->plan;
        // The bare call: tensors described and output allocated beforehand.
        attend::Tensor output = attend::Tensor::allocate(attend::DType::f32, {1, 1, 1, 64}).value();
        std::vector<attend_tensor> tensors;
        std::vector<attend_binding> bindings;
        const void* data[] = {inputs.query.data, inputs.key->data, inputs.value->data, output.data};
        for (std::size_t at = 0; at < 4; ++at) {
            tensors.push_back(plan.tensors[at].tensor);
            tensors.back().data = const_cast<void*>(data[at]);
        }
        for (std::size_t at = 0; at < 4; ++at) {
            const attend::PortRecord& port = at < 3 ? *plan.inputs[at].port : *plan.outputs[0].port;
            bindings.push_back({sizeof(attend_binding), port.role, port.name.c_str(), &tensors[at]});
        }
        attend::Tensor workspace =
            attend::Tensor::allocate(attend::DType::u8, {static_cast<std::int64_t>(plan.workspace_bytes)}).value();
        attend_call call;
        attend_exec exec{};
        exec.struct_size = sizeof exec;
        exec.bindings = {bindings.data(), 4, sizeof(attend_binding)};
        exec.workspace = workspace.data;
        exec.workspace_bytes = plan.workspace_bytes;
        exec.call = &call;
        std::vector<double> bare, through;
        for (int at = 0; at < calls; ++at) {
            using clock = std::chrono::steady_clock;
            const auto a = clock::now();
            if (plan.mechanism->functions->execute(plan.plan, &exec, nullptr) != ATTEND_OK) return 1;
            const auto b = clock::now();
            if (!service.forward(inputs, options)) return 1;
            const auto c = clock::now();
            bare.push_back(std::chrono::duration<double, std::micro>(b - a).count());
            through.push_back(std::chrono::duration<double, std::micro>(c - b).count());
        }
        std::printf("%-20s bare plugin call %.2f us, through the service %.2f us, difference %.2f us (medians of %d)\n",
                    mechanism, median(bare), median(through), median(through) - median(bare), calls);
    }
    return 0;
}
