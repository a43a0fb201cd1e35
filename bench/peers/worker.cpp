// SPDX-License-Identifier: Apache-2.0
// bench_peer_worker: our side of bench/peers/peers.py. A request is one line of JSON on standard input, the answer one
// line on standard output:
//   {"input": "qkv.safetensors", "output": "out.safetensors", "causal": false, "threads": 1, "seconds": 0.2, "least": 3}
//   {"samples_ms": [...], "backend": "avx512", "computed_in": "BF16"}      or {"error": "..."}
// `output` may be left out. A request for the same input, causal and threads as the one before reuses its plan.
#include <chrono>
#include <iostream>
#include <string>

#include "attend/attention_service.hpp"
#include "benchmark/call.hpp"
#include "benchmark/peaks.hpp"
#include "io/tensor_file.hpp"

namespace {

using namespace attend;
using Clock = std::chrono::steady_clock;

struct Worker {
    std::unique_ptr<AttentionService> service;
    std::unique_ptr<benchmark::PreparedCall> call;
    std::string key;
    std::vector<int> cpus{benchmark::permitted_cpus()};

    Result<Json> answer(const Json& request) {
        const Json *input = request.find("input"), *output = request.find("output"), *causal = request.find("causal"),
                   *threads = request.find("threads"), *seconds = request.find("seconds"),
                   *least = request.find("least");
        if (input == nullptr || threads == nullptr || !input->is_string())
            return Error{ErrorCode::input, "request: has no input or no threads; accepted: both", ""};
        const bool is_causal = causal != nullptr && causal->is_bool() && causal->as_bool();
        const auto count = static_cast<std::uint32_t>(threads->to_int64().value_or(1));
        const std::string wanted = input->as_string() + (is_causal ? "|causal|" : "|full|") + std::to_string(count);
        if (wanted != key)
            if (auto done = prepare(input->as_string(), is_causal, count); !done) return done.error();
        key = wanted;
        benchmark::pin_threads(cpus, count);
        const double limit = seconds != nullptr ? seconds->as_double() : 0.2;
        const std::int64_t fewest = least != nullptr ? least->to_int64().value_or(3) : 3;
        if (!call->run()) return Error{ErrorCode::internal, "the plugin failed", ""};
        Json samples = Json::array();
        const auto begin = Clock::now();
        const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
        while (static_cast<std::int64_t>(samples.size()) < fewest || (elapsed() < limit && samples.size() < 2000)) {
            const auto start = Clock::now();
            if (!call->run()) return Error{ErrorCode::internal, "the plugin failed", ""};
            samples.push(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
        }
        if (output != nullptr && output->is_string()) {
            io::TensorFile file;
            file.tensors.emplace_back("output", call->output());
            if (auto done = io::write_tensor_file(output->as_string(), file); !done) return done.error();
        }
        return Json::object()
            .set("samples_ms", std::move(samples))
            .set("backend", call->plan().variant)
            .set("computed_in", dtype_name(call->input_dtype()));
    }

    Result<void> prepare(const std::string& path, bool causal, std::uint32_t threads) {
        key.clear();
        call.reset();
        benchmark::unpin_threads(cpus);
        if (!service || service->threads() != threads) {
            ServiceSettings settings;
            settings.config = load_default_config().config;
            settings.config.rules.clear();
            settings.config.rule_sources.clear();
            settings.config.service.threads = threads;
            settings.built_in_dir = ATTEND_PLUGIN_DIR;
            auto opened = AttentionService::open(std::move(settings));
            if (!opened) return opened.error();
            service = std::move(*opened);
        }
        Result<io::TensorFile> file = io::read_tensor_file(path);
        if (!file) return file.error();
        ForwardInputs inputs;
        for (auto& [name, tensor] : file->tensors) {
            // In memory of our own: a mapped file has other pages.
            Result<Tensor> copy = Tensor::allocate(tensor.dtype, tensor.shape, Tensor::Fill::none);
            if (!copy) return copy.error();
            std::copy_n(static_cast<const char*>(tensor.data), tensor.byte_size(), static_cast<char*>(copy->data));
            (name == "query" ? inputs.query
             : name == "key" ? inputs.key.emplace()
                             : inputs.value.emplace()) = std::move(*copy);
        }
        ForwardOptions options;
        options.mechanism = "flash-attention-v2";
        if (causal) options.options.emplace_back("causal", true);
        Result<std::unique_ptr<benchmark::PreparedCall>> made =
            benchmark::PreparedCall::make(*service, inputs, options);
        if (!made) return made.error();
        call = std::move(*made);
        return {};
    }
};

}  // namespace

int main() {
    Worker worker;
    for (std::string line; std::getline(std::cin, line);) {
        const Result<Json> request = parse_json(line, "request");
        const Result<Json> answer = request ? worker.answer(*request) : Result<Json>(request.error());
        std::cout << write_json(answer ? *answer : Json::object().set("error", answer.error().message)) << std::endl;
    }
    return 0;
}
