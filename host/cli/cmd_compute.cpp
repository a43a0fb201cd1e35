// SPDX-License-Identifier: Apache-2.0
// attend compute: one forward pass, on tensors from a file or on generated ones.
#include <algorithm>

#include "command.hpp"
#include "compute_flags.hpp"
#include "compute_inputs.hpp"
#include "compute_options.hpp"
#include "compute_report.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "io/tensor_file.hpp"
#include "session.hpp"

namespace attend::cli {
namespace {

// ATTEND_BLOCK_SIZE stands in for the default of option block_size.
Result<void> add_block_size(const Settings& settings, const MechanismRecord* mechanism, CallOptions& call) {
    if (!settings.block_size) return {};
    if (mechanism != nullptr)
        if (const OptionSpec* spec = mechanism->find_option("block_size"))
            if (const Result<OptionValue> value =
                    convert_option(settings.block_size_origin + ":", *spec, Json(*settings.block_size));
                !value)
                return value.error();
    call.if_taken.emplace_back("block_size", Json(*settings.block_size));
    return {};
}

// Forward, `repeat` times, each of them computed; time_ms is the median.
Result<ForwardResult> run_repeatedly(AttentionService& service, const ForwardInputs& inputs, ForwardOptions options,
                                     std::int64_t repeat) {
    options.use_cache = false;
    std::vector<double> times;
    for (;;) {
        Result<ForwardResult> result = service.forward(inputs, options);
        if (!result) return result;
        times.push_back(result->time_ms);
        if (static_cast<std::int64_t>(times.size()) < repeat) continue;
        std::sort(times.begin(), times.end());
        const std::size_t middle = times.size() / 2;
        result->time_ms = times.size() % 2 == 1 ? times[middle] : 0.5 * (times[middle - 1] + times[middle]);
        return result;
    }
}

Result<ForwardResult> compute(Session& session, const ForwardInputs& inputs, ForwardOptions options,
                              const CallOptions& call, const MechanismRecord* mechanism, std::int64_t repeat) {
    if (mechanism != nullptr)
        add_taken(call, *mechanism, options.options);
    else if (!call.if_taken.empty()) {
        // What only some mechanisms take can be added once it is known which one is chosen.
        options.use_cache = false;
        Result<ForwardResult> first = session.service->forward(inputs, options);
        if (!first) return first;
        const MechanismPtr chosen = session.service->registry()->find(first->plugin + "/" + first->mechanism);
        if (!add_taken(call, *chosen, options.options) && repeat == 1) return first;
    }
    return run_repeatedly(*session.service, inputs, options, repeat);
}

Result<Outcome> run(const ComputeFlags& flags, const GlobalFlags& global) {
    if (!flags.mechanism)
        return wrong_use("compute: no mechanism is named; accepted: attend compute MECHANISM, or attend compute auto",
                         "`attend list` shows all");
    if (flags.output)
        if (auto done = check_output(*flags.output, flags.lse || flags.scores); !done) return done.error();
    const Result<Sizes> sizes = sizes_of(flags);
    if (!sizes) return sizes.error();
    const bool automatic = *flags.mechanism == "auto";
    Result<Session> session = open_session(global, Refusals::stop, automatic ? Rules::used : Rules::unused);
    if (!session) return session.error();
    MechanismPtr mechanism;
    if (!automatic) {
        Result<MechanismPtr> found = find_mechanism(*session->service, *flags.mechanism, "compute");
        if (!found) return found.error();
        mechanism = std::move(*found);
    }
    Result<CallOptions> call = collect_options(flags.options, mechanism.get());
    if (!call) return call.error();
    if (auto done = add_block_size(session->settings, mechanism.get(), *call); !done) return done.error();
    Result<ForwardInputs> inputs =
        flags.input ? read_inputs(*flags.input, mechanism.get())
                    : generate_inputs(sizes->generated, call->data_seed, mechanism.get(), call->options);
    if (!inputs) return inputs.error();
    ForwardOptions options{*flags.mechanism, call->options, 0, 0, flags.lse, flags.scores, call->precision, {}};
    if (flags.input) {
        if (auto done = check_heads(*sizes, *inputs); !done) return done.error();
        options.heads = sizes->heads;
        options.kv_heads = sizes->kv_heads;
    }
    Result<ForwardResult> result = compute(*session, *inputs, options, *call, mechanism.get(), sizes->repeat);
    if (!result) return result.error();
    if (flags.options.seed && flags.input && call->data_seed != 0 &&
        session->service->registry()->find(result->plugin + "/" + result->mechanism)->find_option("seed") == nullptr)
        result->warnings.push_back(
            result->mechanism +
            ": --seed has no effect: the tensors come from a file and the mechanism draws no random numbers");
    // A seed that made the tensors was read, whatever the mechanism does with it.
    if (!flags.input)
        std::erase_if(result->warnings, [](const std::string& warning) {
            return warning.find("option \"seed\" is not read") != std::string::npos;
        });
    for (const std::string& warning : result->warnings) warn(global.quiet, warning);
    if (flags.output) {
        const UninterruptedSection writing;
        if (auto done = io::write_tensor_file(*flags.output, output_file(*result)); !done) return done.error();
    }
    const ComputeReport report{*result, *inputs, session->service->threads(), sizes->repeat, flags.output};
    return Outcome{exit_done, global.json ? report_json(report) : report_text(report)};
}

}  // namespace

void add_compute(Commands& commands) {
    Command command = commands.add(
        "compute", "Runs one forward pass of a mechanism, on tensors from a file or on generated ones.",
        "  attend compute linear-attention --sequence-length 8192 --dim 64\n"
        "      on generated tensors (standard normal, from --seed)\n"
        "  attend compute flash-attention-v2 --input qkv.safetensors --causal --lse --output out.safetensors\n"
        "      on tensors query, key, value, mask, bias, key_lengths, query_lengths, weight.<name>, input.<name>\n\n"
        "The checksum is FNV-1a, 64 bits, over the bytes of the output in row-major order.");
    auto flags = std::make_shared<ComputeFlags>();
    declare_flags(command, *flags);
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
