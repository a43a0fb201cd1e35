// SPDX-License-Identifier: Apache-2.0
// attend rerank: candidates of a file in the order of the attention that the query of the file pays them.
#include <cmath>
#include <fstream>

#include "attend/rerank.hpp"
#include "command.hpp"
#include "compute_options.hpp"
#include "errors.hpp"
#include "io/tensor_file.hpp"
#include "service/documents.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

struct Flags {
    std::optional<std::string> input, mechanism, heads, scale, normalize, top_k, ids;
    OptionFlags set;
};

// One line each; the end of the last one may lack.
Result<std::vector<std::string>> read_ids(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return wrong_use("--ids: cannot read \"" + path + "\"; accepted: a text file with one id per line");
    std::vector<std::string> ids;
    for (std::string line; std::getline(file, line);) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        ids.push_back(line);
    }
    if (file.bad()) return wrong_use("--ids: cannot read \"" + path + "\"; accepted: a text file with one id per line");
    return ids;
}

Result<RerankOptions> options_of(const Flags& flags) {
    RerankOptions options;
    if (flags.mechanism) options.mechanism = *flags.mechanism;
    if (flags.heads) {
        const Result<std::int64_t> heads = parse_count("--heads", *flags.heads, 1);
        if (!heads) return heads.error();
        options.heads = *heads;
    }
    if (flags.top_k) {
        const Result<std::int64_t> top_k = parse_count("--top-k", *flags.top_k, 0);
        if (!top_k) return top_k.error();
        options.top_k = *top_k;
    }
    if (flags.scale) {
        const RuleValue value = rule_value_from_text("headDim", *flags.scale);
        const double* scale = std::get_if<double>(&value);
        if (scale == nullptr || !std::isfinite(*scale))
            return wrong_use("--scale: is \"" + *flags.scale + "\"; accepted: a finite number");
        options.scale = *scale;
    }
    if (flags.normalize) {
        using enum RerankOptions::Normalize;
        if (*flags.normalize != "auto" && *flags.normalize != "true" && *flags.normalize != "false")
            return wrong_use("--normalize: is \"" + *flags.normalize + "\"; accepted: auto, true, false");
        options.normalize = *flags.normalize == "auto" ? automatic : *flags.normalize == "true" ? on : off;
    }
    if (flags.ids) {
        Result<std::vector<std::string>> ids = read_ids(*flags.ids);
        if (!ids) return ids.error();
        options.ids = std::move(*ids);
    }
    return options;
}

std::string ranking_text(const Reranking& ranking, bool ids) {
    Table table(ids ? std::vector<std::string>{"rank", "index", "id", "score", "logit"}
                    : std::vector<std::string>{"rank", "index", "score", "logit"});
    for (const RankedCandidate& candidate : ranking.results) {
        std::vector<std::string> row{std::to_string(candidate.rank), std::to_string(candidate.index)};
        if (ids) row.push_back(one_line(candidate.id));
        row.push_back(number_text(candidate.score, 6));
        row.push_back(std::isinf(candidate.logit) ? "dropped" : number_text(candidate.logit, 6));
        table.add(std::move(row));
    }
    return bold(ranking.mechanism) + "\n" + (ranking.results.empty() ? "no candidates\n" : table.text("  "));
}

Result<Outcome> run(const Flags& flags, const GlobalFlags& global) {
    if (!flags.input)
        return wrong_use(
            "rerank: --input is missing; accepted: --input FILE with tensors \"query\" and \"candidates\"");
    Result<RerankOptions> options = options_of(flags);
    if (!options) return options.error();
    const Result<Session> session = open_session(global);
    if (!session) return session.error();
    const Result<MechanismPtr> mechanism = find_mechanism(*session->service, options->mechanism, "rerank");
    if (!mechanism) return mechanism.error();
    Result<CallOptions> call = collect_options(flags.set, mechanism->get());
    if (!call) return call.error();
    options->options = std::move(call->options);
    Result<io::TensorFile> file = io::read_tensor_file(*flags.input);
    if (!file) return as_input_error(file.error());
    std::optional<Tensor> query, candidates;
    for (auto& [name, tensor] : file->tensors) {
        if (name == "query")
            query = std::move(tensor);
        else if (name == "candidates")
            candidates = std::move(tensor);
        else if (name.starts_with("weight.") && name.size() > 7)
            options->weights.emplace_back(name.substr(7), std::move(tensor));
        else
            return wrong_use(*flags.input + ": unknown tensor \"" + name +
                             "\"; known: query, candidates, weight.<name>");
    }
    for (const auto& [name, there] :
         {std::pair("query", query.has_value()), std::pair("candidates", candidates.has_value())})
        if (!there)
            return wrong_use(*flags.input + ": tensor \"" + name +
                             "\" is missing; accepted: tensors query and candidates");
    if (flags.ids && options->ids.empty() && candidates->rank() > 0 && candidates->shape[0] > 0)
        return wrong_use("--ids: \"" + *flags.ids + "\" is empty; accepted: " + std::to_string(candidates->shape[0]) +
                         " lines, one id for each candidate");
    const Result<Reranking> ranking = session->service->rerank(*query, *candidates, *options);
    if (!ranking) return ranking.error();
    for (const std::string& warning : ranking->warnings) warn(global.quiet, warning);
    return Outcome{exit_done, global.json ? json_text(reranking_json(*ranking, flags.ids.has_value()))
                                          : ranking_text(*ranking, flags.ids.has_value())};
}

}  // namespace

void add_rerank(Commands& commands) {
    Command command = commands.add(
        "rerank", "Orders candidates by the attention that a query pays them.",
        "  attend rerank --input found.safetensors --top-k 10                      by memory-attention, cosine "
        "sharpened\n"
        "  attend rerank --input found.safetensors --mechanism standard-mha --heads 4 --ids names.txt --json");
    auto flags = std::make_shared<Flags>();
    command.add_option("--input", flags->input, "Tensors query [D] or [Nq,D] and candidates [n,D]; weight.<name>")
        .type_name("FILE");
    command.add_option("--mechanism", flags->mechanism, "Which attention; default memory-attention").type_name("M");
    command.add_option("--heads", flags->heads, "Heads, which share the width equally; default 1").type_name("H");
    command
        .add_option("--scale", flags->scale, "Factor of the scores; default 1/sqrt(D/H), 1 where normalised by default")
        .type_name("S");
    command.add_option("--normalize", flags->normalize, "Rows of length 1 in each head: auto, true or false")
        .type_name("WHEN");
    command.add_option("--top-k", flags->top_k, "How many to print; 0: all (default)").type_name("K");
    command.add_option("--ids", flags->ids, "Names of the candidates, one per line").type_name("FILE");
    command.add_option("--set", flags->set.sets, "An option of the mechanism, repeatable")
        .type_name("NAME=VALUE")
        .allow_extra_args(false);
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
