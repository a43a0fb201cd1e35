// SPDX-License-Identifier: Apache-2.0
#include "compute_flags.hpp"

#include <algorithm>

#include "errors.hpp"

namespace attend::cli {

void declare_flags(const Command& command, ComputeFlags& flags) {
    command.add_option("MECHANISM", flags.mechanism, "Name, PLUGIN_ID/NAME, or auto: the selector decides")
        .type_name("");
    command.add_option("--input", flags.input, "Tensors: .safetensors, .npz or .npy (one tensor: query)")
        .type_name("FILE");
    command.add_option("--output", flags.output, "Where to write the output tensors").type_name("FILE");
    command.add_flag("--lse", flags.lse, "Also the log of the sum of exponentials of each row");
    command.add_flag("--scores", flags.scores, "Also the weights after softmax");
    command.add_option("--sequence-length", flags.length, "Queries of generated tensors").type_name("N");
    command.add_option("--sequence-length-k", flags.length_k, "Keys of generated tensors; default: as many")
        .type_name("M");
    command.add_option("--batch", flags.batch, "Items of generated tensors; default 1").type_name("B");
    command.add_option("--heads", flags.heads, "Heads of generated tensors (default 1) or of packed ones")
        .type_name("H");
    command.add_option("--kv-heads", flags.kv_heads, "Key heads; default: as many as query heads").type_name("H");
    command.add_option("--dim", flags.dim, "Head width of generated tensors; default 64").type_name("D");
    command.add_option("--set", flags.options.sets, "One option of the mechanism, repeatable; value in JSON or bare")
        .type_name("NAME=VALUE")
        .allow_extra_args(false);
    command.add_option("--options", flags.options.file, "Options from a JSON object; --set goes before it")
        .type_name("FILE");
    command.add_flag("--causal", flags.options.causal, "Option causal = true");
    command.add_option("--scale", flags.options.scale, "Option scale").type_name("X");
    command.add_option("--softcap", flags.options.softcap, "Option softcap").type_name("X");
    command.add_option("--window-size", flags.options.window_size, "Option window_size").type_name("W");
    command.add_option("--dropout", flags.options.dropout, "Option dropout").type_name("P");
    command.add_option("--seed", flags.options.seed, "Seed of generated tensors, and option seed").type_name("S");
    command.add_option("--weight-seed", flags.options.weight_seed, "Option weight_seed: seed of weights left out")
        .type_name("S");
    command.add_option("--precision", flags.options.precision, "fp32, bf16, fp16, int8 or fp8").type_name("P");
    command.add_option("--repeat", flags.repeat, "Runs; the time is their median").type_name("R");
}

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
    for (const Count& count :
         {Count{"--heads", &flags.heads, 1, &sizes.heads, false},
          Count{"--kv-heads", &flags.kv_heads, 1, &sizes.kv_heads, false},
          Count{"--repeat", &flags.repeat, 1, &sizes.repeat, false},
          Count{"--sequence-length", &flags.length, 0, &shape.q_len, true},
          Count{"--sequence-length-k", &flags.length_k, 0, &shape.kv_len, true},
          Count{"--batch", &flags.batch, 1, &shape.batch, true}, Count{"--dim", &flags.dim, 1, &shape.width, true}}) {
        if (!*count.text) continue;
        if (count.generated_only && flags.input)
            return wrong_use(std::string(count.name) + ": is " + **count.text +
                             " beside --input, whose tensors have sizes of their own; accepted: one of the two");
        const Result<std::int64_t> value = parse_count(count.name, **count.text, count.least);
        if (!value) return value.error();
        *count.to = *value;
    }
    if (!flags.input && !flags.length)
        return wrong_use(
            "compute: there is no input; accepted: --input FILE, or --sequence-length N for generated tensors");
    shape.heads = std::max<std::int64_t>(sizes.heads, 1);
    shape.kv_heads = sizes.kv_heads > 0 ? sizes.kv_heads : shape.heads;
    if (shape.kv_len < 0) shape.kv_len = shape.q_len;
    return sizes;
}

Result<void> check_heads(const Sizes& sizes, const ForwardInputs& inputs) {
    const auto check = [](const char* flag, std::int64_t heads, const char* name,
                          const Tensor& tensor) -> Result<void> {
        if (heads > 0 && tensor.rank() == 4 && tensor.shape[1] != heads)
            return Error{ErrorCode::shape,
                         std::string(flag) + ": is " + std::to_string(heads) + ", and " + name + " " +
                             shape_text(tensor.shape) + " has " + std::to_string(tensor.shape[1]) +
                             " heads; accepted: " + std::to_string(tensor.shape[1]) + ", or a packed tensor [B,N,H*D]",
                         ""};
        return {};
    };
    if (auto done = check("--heads", sizes.heads, "query", inputs.query); !done) return done;
    return inputs.key ? check("--kv-heads", sizes.kv_heads, "key", *inputs.key) : Result<void>();
}

}  // namespace attend::cli
