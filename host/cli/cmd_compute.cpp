// SPDX-License-Identifier: Apache-2.0
// attend compute: one forward pass, on tensors from a file or on generated ones.
#include <algorithm>

#include "command.hpp"
#include "compute_inputs.hpp"
#include "compute_options.hpp"
#include "compute_report.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "io/tensor_file.hpp"
#include "session.hpp"

namespace attend::cli {
namespace {

struct ComputeFlags {
    std::optional<std::string> mechanism, input, output, repeat, heads, kv_heads, dim, batch, length, length_k;
    bool lse{false}, scores{false};
    OptionFlags options;
};

// Sizes given by flags; what describes generated tensors has no meaning beside a file.
struct Sizes {
    GeneratedShape generated;
    std::int64_t heads{0}, kv_heads{0}, repeat{1};
};

Result<Sizes> sizes_of(const ComputeFlags& flags) {
    Sizes sizes;
    struct Count {
        const char* name;
        const std::optional<std::string>* text;
        std::int64_t least;
        std::int64_t* to;
        bool generated_only;
    };
    GeneratedShape& shape = sizes.generated;
    shape.heads = shape.kv_heads = 0;
    shape.kv_len = -1;
    for (const Count& count : {Count{"--heads", &flags.heads, 1, &sizes.heads, false}, Count{"--kv-heads", &flags.kv_heads, 1, &sizes.kv_heads, false},
                               Count{"--repeat", &flags.repeat, 1, &sizes.repeat, false}, Count{"--sequence-length", &flags.length, 0, &shape.q_len, true},
                               Count{"--sequence-length-k", &flags.length_k, 0, &shape.kv_len, true}, Count{"--batch", &flags.batch, 1, &shape.batch, true},
                               Count{"--dim", &flags.dim, 1, &shape.width, true}}) {
        if (!*count.text) continue;
        if (count.generated_only && flags.input)
            return wrong_use(std::string(count.name) + ": is " + **count.text + " beside --input, whose tensors have sizes of their own; accepted: one of the two");
        const Result<std::int64_t> value = parse_count(count.name, **count.text, count.least);
        if (!value) return value.error();
        *count.to = *value;
    }
    if (!flags.input && !flags.length) return wrong_use("compute: there is no input; accepted: --input FILE, or --sequence-length N for generated tensors");
    shape.heads = std::max<std::int64_t>(sizes.heads, 1);
    shape.kv_heads = sizes.kv_heads > 0 ? sizes.kv_heads : shape.heads;
    if (shape.kv_len < 0) shape.kv_len = shape.q_len;
    return sizes;
}

// Heads of [B,H,N,D] tensors are in their shape; a flag that says otherwise would be ignored.
Result<void> check_heads(const Sizes& sizes, const ForwardInputs& inputs) {
    const auto check = [](const char* flag, std::int64_t heads, const char* name, const Tensor& tensor) -> Result<void> {
        if (heads > 0 && tensor.rank() == 4 && tensor.shape[1] != heads)
            return Error{ErrorCode::shape, std::string(flag) + ": is " + std::to_string(heads) + ", and " + name + " " + shape_text(tensor.shape) + " has " + std::to_string(tensor.shape[1]) +
                                               " heads; accepted: " + std::to_string(tensor.shape[1]) + ", or a packed tensor [B,N,H*D]", ""};
        return {};
    };
    if (auto done = check("--heads", sizes.heads, "query", inputs.query); !done) return done;
    return inputs.key ? check("--kv-heads", sizes.kv_heads, "key", *inputs.key) : Result<void>();
}

// ATTEND_BLOCK_SIZE stands in for the default of option block_size.
Result<void> add_block_size(const Settings& settings, const MechanismRecord* mechanism, CallOptions& call) {
    if (!settings.block_size) return {};
    if (mechanism != nullptr)
        if (const OptionSpec* spec = mechanism->find_option("block_size"))
            if (const Result<OptionValue> value = convert_option(settings.block_size_origin + ":", *spec, Json(*settings.block_size)); !value) return value.error();
    call.if_taken.emplace_back("block_size", Json(*settings.block_size));
    return {};
}

// Forward, `repeat` times; time_ms is the median.
Result<ForwardResult> run_repeatedly(AttentionService& service, const ForwardInputs& inputs, const ForwardOptions& options, std::int64_t repeat) {
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

Result<ForwardResult> compute(Session& session, const ForwardInputs& inputs, ForwardOptions options, const CallOptions& call, const MechanismRecord* mechanism, std::int64_t repeat) {
    if (mechanism != nullptr) add_taken(call, *mechanism, options.options);
    else if (!call.if_taken.empty()) {
        // What only some mechanisms take can be added once it is known which one is chosen.
        Result<ForwardResult> first = session.service->forward(inputs, options);
        if (!first) return first;
        const MechanismPtr chosen = session.service->registry()->find(first->plugin + "/" + first->mechanism);
        if (!add_taken(call, *chosen, options.options) && repeat == 1) return first;
    }
    return run_repeatedly(*session.service, inputs, options, repeat);
}

Result<Outcome> run(const ComputeFlags& flags, const GlobalFlags& global) {
    if (!flags.mechanism) return wrong_use("compute: no mechanism is named; accepted: attend compute MECHANISM, or attend compute auto", "`attend list` shows all");
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
    Result<ForwardInputs> inputs = flags.input ? read_inputs(*flags.input, mechanism.get()) : generate_inputs(sizes->generated, call->data_seed, mechanism.get());
    if (!inputs) return inputs.error();
    ForwardOptions options{*flags.mechanism, call->options, 0, 0, flags.lse, flags.scores, call->precision, {}};
    if (flags.input) {
        if (auto done = check_heads(*sizes, *inputs); !done) return done.error();
        options.heads = sizes->heads;
        options.kv_heads = sizes->kv_heads;
    }
    Result<ForwardResult> result = compute(*session, *inputs, options, *call, mechanism.get(), sizes->repeat);
    if (!result) return result.error();
    if (flags.options.seed && flags.input && call->data_seed != 0 && session->service->registry()->find(result->plugin + "/" + result->mechanism)->find_option("seed") == nullptr)
        result->warnings.push_back(result->mechanism + ": --seed has no effect: the tensors come from a file and the mechanism draws no random numbers");
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
    CLI::App& command = commands.add("compute", "Runs one forward pass of a mechanism, on tensors from a file or on generated ones.",
                                     "  attend compute linear-attention --sequence-length 8192 --dim 64\n"
                                     "      on generated tensors (standard normal, from --seed)\n"
                                     "  attend compute flash-attention-v2 --input qkv.safetensors --causal --lse --output out.safetensors\n"
                                     "      on tensors query, key, value, mask, bias, key_lengths, query_lengths, weight.<name>, input.<name>\n\n"
                                     "The checksum is FNV-1a, 64 bits, over the bytes of the output in row-major order.");
    auto flags = std::make_shared<ComputeFlags>();
    command.add_option("MECHANISM", flags->mechanism, "Name, PLUGIN_ID/NAME, or auto: the selector decides")->type_name("");
    command.add_option("--input", flags->input, "Tensors: .safetensors, .npz or .npy (one tensor: query)")->type_name("FILE");
    command.add_option("--output", flags->output, "Where to write the output tensors")->type_name("FILE");
    command.add_flag("--lse", flags->lse, "Also the log of the sum of exponentials of each row");
    command.add_flag("--scores", flags->scores, "Also the weights after softmax");
    command.add_option("--sequence-length", flags->length, "Queries of generated tensors")->type_name("N");
    command.add_option("--sequence-length-k", flags->length_k, "Keys of generated tensors; default: as many")->type_name("M");
    command.add_option("--batch", flags->batch, "Items of generated tensors; default 1")->type_name("B");
    command.add_option("--heads", flags->heads, "Heads of generated tensors (default 1) or of packed ones")->type_name("H");
    command.add_option("--kv-heads", flags->kv_heads, "Key heads; default: as many as query heads")->type_name("H");
    command.add_option("--dim", flags->dim, "Head width of generated tensors; default 64")->type_name("D");
    command.add_option("--set", flags->options.sets, "One option of the mechanism, repeatable; value in JSON or bare")->type_name("NAME=VALUE")->allow_extra_args(false);
    command.add_option("--options", flags->options.file, "Options from a JSON object; --set goes before it")->type_name("FILE");
    command.add_flag("--causal", flags->options.causal, "Option causal = true");
    command.add_option("--scale", flags->options.scale, "Option scale")->type_name("X");
    command.add_option("--softcap", flags->options.softcap, "Option softcap")->type_name("X");
    command.add_option("--window-size", flags->options.window_size, "Option window_size")->type_name("W");
    command.add_option("--dropout", flags->options.dropout, "Option dropout")->type_name("P");
    command.add_option("--seed", flags->options.seed, "Seed of generated tensors, and option seed")->type_name("S");
    command.add_option("--weight-seed", flags->options.weight_seed, "Option weight_seed: seed of weights left out")->type_name("S");
    command.add_option("--precision", flags->options.precision, "fp32, bf16, fp16, int8 or fp8")->type_name("P");
    command.add_option("--repeat", flags->repeat, "Runs; the time is their median")->type_name("R");
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
