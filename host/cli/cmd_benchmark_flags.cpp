// SPDX-License-Identifier: Apache-2.0
#include "cmd_benchmark_flags.hpp"

#include <algorithm>

#include "attend/config/names.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "errors.hpp"

namespace attend::cli {
namespace {

// "128,512" as numbers.
Result<std::vector<std::int64_t>> parse_list(const std::string& flag, const std::optional<std::string>& text) {
    std::vector<std::int64_t> values;
    if (!text) return values;
    for (std::size_t begin = 0; begin <= text->size();) {
        const std::size_t end = std::min(text->find(',', begin), text->size());
        const Result<std::int64_t> value = parse_count(flag, std::string_view(*text).substr(begin, end - begin), 1);
        if (!value)
            return wrong_use(flag + ": is \"" + *text + "\"; accepted: integers of at least 1, separated by commas");
        values.push_back(*value);
        begin = end + 1;
    }
    return values;
}

Result<void> known_name(const std::string& flag, const char* what, const std::optional<std::string>& name,
                        std::span<const std::string> known) {
    if (name && std::find(known.begin(), known.end(), *name) == known.end())
        return unknown_name(flag, what, *name, known);
    return {};
}

}  // namespace

void declare_flags(const Command& command, BenchmarkFlags& flags) {
    command.add_option("--mechanism", flags.mechanisms, "Measure this one, repeatable")
        .type_name("M")
        .allow_extra_args(false);
    command.add_option("--category", flags.category, "Only this category: " + join_names(categories())).type_name("C");
    command.add_flag("--all", flags.all, "Every mechanism, as without --mechanism and --category");
    command.add_option("--suite", flags.suite, join_names(benchmark_suites()) + "; default quick").type_name("NAME");
    command.add_option("--sequence-length", flags.lengths, "Lengths, separated by commas").type_name("L,...");
    command.add_option("--dim", flags.dims, "Widths of a head, separated by commas").type_name("D,...");
    command.add_option("--heads", flags.heads, "Query heads, default 8").type_name("H");
    command.add_option("--kv-heads", flags.kv_heads, "Key heads, default as many as query heads").type_name("H");
    command.add_option("--batch", flags.batch, "Items, default 1").type_name("B");
    command.add_option("--precision", flags.precision, "fp32, bf16, fp16, int8 or fp8; default fp32").type_name("P");
    command.add_flag("--causal", flags.causal, "Hide keys that come after the query; targets: only causal rows");
    command.add_option("--repeat", flags.repeat, "Least number of timed runs, at least 10").type_name("R");
    command.add_option("--seconds", flags.seconds, "Length of the stress suite, default 30").type_name("S");
    command.add_option("--seed", flags.seed, "Seed of the tensors, and of the choices of stress").type_name("S");
    command.add_option("--rows", flags.rows, "targets: only rows whose name holds this text").type_name("TEXT");
    command.add_option("--output", flags.output, "Write the report: .json, .html or .csv").type_name("FILE");
}

Result<BenchmarkSettings> settings_of(const BenchmarkFlags& flags) {
    BenchmarkSettings settings;
    if (flags.output)
        if (auto done = check_benchmark_output(*flags.output); !done) return done.error();
    if (auto done = known_name("--suite", "suite", flags.suite, benchmark_suites()); !done) return done.error();
    if (auto done = known_name("--category", "category", flags.category, categories()); !done) return done.error();
    if (flags.all && (!flags.mechanisms.empty() || flags.category))
        return wrong_use("benchmark: --all stands beside --mechanism or --category; accepted: one of them");
    settings.suite = flags.suite.value_or("quick");
    settings.mechanisms = flags.mechanisms;
    settings.category = flags.category.value_or("");
    settings.causal = flags.causal;
    settings.rows = flags.rows.value_or("");
    settings.precision = flags.precision.value_or("");
    if (settings.precision == "f32") settings.precision = "fp32";
    if (settings.precision == "f16") settings.precision = "fp16";
    static const std::vector<std::string> precisions{"fp32", "bf16", "fp16", "int8", "fp8"};
    if (!settings.precision.empty())
        if (auto done = known_name("--precision", "precision", settings.precision, precisions); !done)
            return done.error();
    if (flags.rows && settings.suite != "targets")
        return wrong_use("--rows: chooses rows of the table of targets; accepted: with --suite targets");
    if (flags.seconds && settings.suite != "stress")
        return wrong_use("--seconds: is the length of the stress suite; accepted: with --suite stress");
    Result<std::vector<std::int64_t>> lengths = parse_list("--sequence-length", flags.lengths);
    if (!lengths) return lengths.error();
    settings.lengths = std::move(*lengths);
    Result<std::vector<std::int64_t>> dims = parse_list("--dim", flags.dims);
    if (!dims) return dims.error();
    settings.dims = std::move(*dims);
    const struct {
        const char* flag;
        const std::optional<std::string>& text;
        std::optional<std::int64_t>& value;
    } counts[] = {{"--heads", flags.heads, settings.heads},
                  {"--kv-heads", flags.kv_heads, settings.kv_heads},
                  {"--batch", flags.batch, settings.batch}};
    for (const auto& count : counts)
        if (count.text) {
            const Result<std::int64_t> value = parse_count(count.flag, *count.text, 1);
            if (!value) return value.error();
            count.value = *value;
        }
    const std::int64_t heads = settings.heads.value_or(8);
    if (settings.kv_heads && heads % *settings.kv_heads != 0)
        return wrong_use("--kv-heads: is " + std::to_string(*settings.kv_heads) + "; accepted: a divisor of --heads, " +
                         std::to_string(heads));
    if (flags.repeat) {
        const Result<std::int64_t> value = parse_count("--repeat", *flags.repeat, 10);
        if (!value) return value.error();
        settings.repeat = static_cast<std::uint64_t>(*value);
    }
    if (flags.seconds) {
        const Result<std::int64_t> value = parse_count("--seconds", *flags.seconds, 1);
        if (!value) return value.error();
        settings.seconds = static_cast<double>(*value);
    }
    if (flags.seed) {
        const Result<std::uint64_t> value = parse_seed("--seed", *flags.seed);
        if (!value) return value.error();
        settings.seed = *value;
    }
    return settings;
}

}  // namespace attend::cli
