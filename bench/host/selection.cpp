// SPDX-License-Identifier: Apache-2.0
// Choosing by 64 rules of which the last holds: the name alone, and with the trace.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "service/selector.hpp"

int main() {
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    auto opened = attend::AttentionService::open(std::move(settings));
    if (!opened) return std::fprintf(stderr, "%s\n", opened.error().message.c_str()), 1;
    std::vector<attend::RuleSource> sources;
    for (int rule = 0; rule < 63; ++rule)
        sources.push_back(
            {"seqLen > " + std::to_string(100000 + rule) + " and not causal or heads % 7 == 6 and hasMask",
             "linear-attention",
             {}});
    sources.push_back({"default", "flash-attention-v2", {{"block_size", 128}}});
    attend::CompiledRules compiled = attend::compile_rules("bench", sources);
    if (!compiled.problems.empty()) return std::fprintf(stderr, "%s\n", compiled.problems.front().message.c_str()), 1;
    attend::Config config;
    config.rules = std::move(compiled.rules);
    const auto variables = attend::RuleVariables::make({{"seqLen", 4096.0}, {"heads", 8.0}}, {}).value();
    attend::PassedChecks passed;
    const attend::MechanismSelector selector((*opened)->registry(), config, 1, &passed);
    const auto measure = [](const char* what, auto once) {
        std::vector<double> samples;
        for (int sample = 0; sample < 2000; ++sample) {
            constexpr int batch = 20;
            const auto begin = std::chrono::steady_clock::now();
            for (int at = 0; at < batch; ++at)
                if (!once()) std::abort();
            const auto end = std::chrono::steady_clock::now();
            samples.push_back(std::chrono::duration<double, std::micro>(end - begin).count() / batch);
        }
        std::sort(samples.begin(), samples.end());
        std::printf("%-28s median %.2f us, 90%% below %.2f us\n", what, samples[samples.size() / 2],
                    samples[samples.size() * 9 / 10]);
    };
    measure("64 rules, the name", [&] { return selector.pick(variables).ok(); });
    measure("64 rules, with trace", [&] { return selector.select(variables, {}).ok(); });
    return 0;
}
