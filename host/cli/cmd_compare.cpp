// SPDX-License-Identifier: Apache-2.0
// attend compare: the same tensors through several mechanisms, and how far each is from exact attention.
#include <algorithm>
#include <array>
#include <cmath>

#include "attend/config/names.hpp"
#include "command.hpp"
#include "compute_flags.hpp"
#include "compute_inputs.hpp"
#include "compute_options.hpp"
#include "errors.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

struct Flags {
    ComputeFlags call;
    std::vector<std::string> mechanisms;
    std::optional<std::string> reference, html;
};

// Weights are compared where both sides have them and they are this small.
constexpr double most_weights = 16.0 * 1024 * 1024;

struct Row {
    std::string mechanism, exactness;
    double max_abs{}, relative_l2{}, cosine{};
    std::optional<double> kl;
    double time_ms{};
    std::uint64_t workspace{};
};

Result<std::vector<double>> numbers(const Tensor& tensor) {
    Result<Tensor> wide = convert(tensor, DType::f64);
    if (wide) wide = contiguous_copy(*wide);
    if (!wide) return wide.error();
    const double* values = wide->as<const double>();
    return std::vector<double>(values, values + wide->size());
}

// What an output is missing from the reference's; both have the same shape.
Result<void> measure(const ForwardResult& result, const ForwardResult& reference, Row& row) {
    if (result.output.shape != reference.output.shape)
        return Error{ErrorCode::shape,
                     row.mechanism + ": its output is " + shape_text(result.output.shape) + ", the reference's " +
                         shape_text(reference.output.shape) + "; accepted: mechanisms whose outputs have one shape",
                     ""};
    const auto got = numbers(result.output), want = numbers(reference.output);
    if (!got) return got.error();
    if (!want) return want.error();
    double error = 0, size = 0, got_size = 0, product = 0;
    for (std::size_t at = 0; at < got->size(); ++at) {
        const double a = (*got)[at], b = (*want)[at];
        row.max_abs = std::max(row.max_abs, std::abs(a - b));
        error += (a - b) * (a - b);
        size += b * b;
        got_size += a * a;
        product += a * b;
    }
    row.relative_l2 = size > 0 ? std::sqrt(error / size) : std::sqrt(error);
    row.cosine = size > 0 && got_size > 0 ? product / std::sqrt(size * got_size) : 1.0;
    if (!result.scores || !reference.scores || result.scores->shape != reference.scores->shape) return {};
    // Of each row's weights p against the reference's r: sum of p ln(p / r), then the mean over rows with keys.
    const auto p = numbers(*result.scores), r = numbers(*reference.scores);
    if (!p) return p.error();
    if (!r) return r.error();
    const auto keys = static_cast<std::size_t>(result.scores->shape.back());
    double sum = 0;
    std::size_t rows = 0;
    for (std::size_t row_at = 0; keys > 0 && row_at + keys <= p->size(); row_at += keys) {
        bool any = false;
        for (std::size_t at = row_at; at < row_at + keys; ++at) {
            if ((*p)[at] <= 0) continue;
            any = true;
            sum += (*p)[at] * std::log((*p)[at] / std::max((*r)[at], 1e-45));
        }
        rows += any ? 1 : 0;
    }
    row.kl = rows > 0 ? sum / static_cast<double>(rows) : 0.0;
    return {};
}

// MECHANISM:NAME=VALUE is for one mechanism alone: what is left of it for this one, "" for another. Anything else is
// for all that have the option.
std::string part_for(const MechanismRecord& mechanism, const std::string& set) {
    const std::size_t colon = set.find(':');
    if (colon == std::string::npos || colon > set.find('=')) return set;
    const std::string owner = set.substr(0, colon);
    return owner == mechanism.name || owner == mechanism.qualified_name() ? set.substr(colon + 1) : "";
}

class Comparison {
public:
    Comparison(Session& session, const Flags& flags, const Sizes& sizes)
        : session_(session), flags_(flags), sizes_(sizes) {}

    // A call of one mechanism with the options that it has; the reference takes those alone that say what is to be
    // approximated.
    Result<ForwardResult> run(const MechanismRecord& mechanism, bool is_reference) {
        OptionFlags options = flags_.call.options;
        const auto takes = [&](const std::string& name) {
            const std::string folded = fold_name(name);
            if (is_reference && folded != "causal" && folded != "scale" && folded != "softcap") return false;
            return mechanism.find_option(folded) != nullptr;
        };
        for (std::string& set : options.sets) set = part_for(mechanism, set);
        std::erase_if(options.sets, [&](const std::string& set) { return !takes(set.substr(0, set.find('='))); });
        if (!takes("window_size")) options.window_size.reset();
        if (!takes("dropout")) options.dropout.reset();
        if (!takes("weight_seed")) options.weight_seed.reset();
        Result<CallOptions> call = collect_options(options, &mechanism);
        if (!call) return call.error();
        Result<ForwardInputs> inputs =
            flags_.call.input ? read_inputs(*flags_.call.input, nullptr)
                              : generate_inputs(sizes_.generated, call->data_seed, &mechanism, call->options);
        if (!inputs) return inputs.error();
        const auto foreign = [&](const auto& tensor) { return mechanism.find_port(tensor.first) == nullptr; };
        std::erase_if(inputs->extra, foreign);
        std::erase_if(inputs->weights, foreign);
        if (auto done = flags_.call.input ? check_heads(sizes_, *inputs) : Result<void>{}; !done) return done.error();
        ForwardOptions forward{mechanism.qualified_name(), call->options, 0, 0, false, false, call->precision, {}};
        forward.use_cache = false;
        if (flags_.call.input) {
            forward.heads = sizes_.heads;
            forward.kv_heads = sizes_.kv_heads;
        }
        if (!is_reference) add_taken(*call, mechanism, forward.options);
        forward.scores = mechanism.has(ATTEND_CAP_SCORES_OUT) && weights_fit(*inputs);
        // Weights come from a call of their own: a call that writes them is slower.
        std::optional<Tensor> scores;
        if (forward.scores) {
            Result<ForwardResult> with = session_.service->forward(*inputs, forward);
            if (with) scores = std::move(with->scores);
            forward.scores = false;
        }
        std::vector<double> times;
        for (;;) {
            Result<ForwardResult> result = session_.service->forward(*inputs, forward);
            if (!result) return result;
            times.push_back(result->time_ms);
            if (static_cast<std::int64_t>(times.size()) < sizes_.repeat) continue;
            std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
            result->time_ms = times[times.size() / 2];
            result->scores = std::move(scores);
            return result;
        }
    }

private:
    static bool weights_fit(const ForwardInputs& inputs) {
        const auto& shape = inputs.query.shape;
        if (shape.size() != 4) return false;
        const std::int64_t keys = inputs.key ? inputs.key->shape[2] : shape[2];
        return static_cast<double>(shape[0] * shape[1]) * static_cast<double>(shape[2]) * static_cast<double>(keys) <=
               most_weights;
    }

    Session& session_;
    const Flags& flags_;
    const Sizes& sizes_;
};

std::string bar(double share, const char* kind) {
    return "<td class=\"room\"><div class=\"bar " + std::string(kind) +
           "\" style=\"width:" + number_text(100 * std::clamp(share, 0.0, 1.0), 3) + "%\"></div></td>";
}

std::string page(const std::string& title, const std::vector<Row>& rows) {
    double longest = 0;
    for (const Row& row : rows) longest = std::max(longest, row.time_ms);
    std::string out =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"color-scheme\" content=\"light "
        "dark\"><title>attend compare</title>\n"
        "<style>:root{--page:#fff;--text:#1a1a1a;--rule:#ddd;--error:#c0392b;--time:#1f77b4}"
        "@media(prefers-color-scheme:dark){:root{--page:#16181c;--text:#e6e6e6;--rule:#3a3f46;--error:#ff7b72;--time:#"
        "6db3f2}}"
        "body{font:14px system-ui,sans-serif;margin:2em;background:var(--page);color:var(--text)}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
        "td,th{padding:.3em .8em;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}"
        "td:first-child,th:first-child{text-align:left}.room{width:9em;padding-left:0}.bar{height:.8em}"
        ".error{background:var(--error)}.time{background:var(--time)}</style></head><body>\n<h1>" +
        title +
        "</h1>\n<table><tr><th>mechanism</th><th>max abs</th><th>relative L2</th><th>1e-8 to 10, "
        "log</th><th>cosine</th>"
        "<th>KL of weights</th><th>time</th><th>0 to " +
        number_text(longest) + " ms</th><th>workspace</th></tr>\n";
    for (const Row& row : rows)
        out += "<tr><td>" + row.mechanism + "</td><td>" + number_text(row.max_abs) + "</td><td>" +
               number_text(row.relative_l2) + "</td>" +
               bar(row.relative_l2 > 0 ? (std::log10(row.relative_l2) + 8.0) / 9.0 : 0.0, "error") + "<td>" +
               number_text(row.cosine, 6) + "</td><td>" + (row.kl ? number_text(*row.kl) : "-") + "</td><td>" +
               number_text(row.time_ms) + " ms</td>" + bar(longest > 0 ? row.time_ms / longest : 0.0, "time") + "<td>" +
               bytes_text(static_cast<double>(row.workspace)) + "</td></tr>\n";
    return out + "</table>\n<p>Errors are against " + rows.front().mechanism +
           ", on the same tensors. Times are those of one call.</p></body></html>\n";
}

// Every option given by --set must belong to somebody.
Result<void> check_sets(const OptionFlags& options, const std::vector<MechanismPtr>& mechanisms) {
    for (const std::string& set : options.sets) {
        if (set.find('=') == std::string::npos || set.find('=') == 0)
            return wrong_use("--set: is \"" + set + "\"; accepted: name=value, or mechanism:name=value");
        std::vector<std::string> known;
        std::string name;
        for (const MechanismPtr& mechanism : mechanisms) {
            const std::string part = part_for(*mechanism, set);
            if (part.empty()) continue;
            name = fold_name(part.substr(0, part.find('=')));
            for (const OptionSpec& option : mechanism->options) known.push_back(option.name);
        }
        if (known.empty())
            return wrong_use("--set: \"" + set +
                             "\" names a mechanism that is not compared; accepted: one of those named");
        if (std::find(known.begin(), known.end(), name) == known.end()) {
            std::sort(known.begin(), known.end());
            known.erase(std::unique(known.begin(), known.end()), known.end());
            return unknown_name("compare", "option", name, known);
        }
    }
    return {};
}

Result<Outcome> run(const Flags& flags, const GlobalFlags& global) {
    if (flags.mechanisms.empty())
        return wrong_use("compare: no mechanism is named; accepted: attend compare MECHANISM...",
                         "`attend list` shows all");
    if (flags.html && !flags.html->ends_with(".html"))
        return wrong_use("compare: --html is \"" + *flags.html + "\"; accepted: a name ending in .html");
    const Result<Sizes> sizes = sizes_of(flags.call);
    if (!sizes) return sizes.error();
    Result<Session> session = open_session(global);
    if (!session) return session.error();
    std::vector<MechanismPtr> mechanisms;
    for (const std::string& name : flags.mechanisms) {
        Result<MechanismPtr> found = find_mechanism(*session->service, name, "compare");
        if (!found) return found.error();
        mechanisms.push_back(std::move(*found));
    }
    Result<MechanismPtr> reference =
        find_mechanism(*session->service, flags.reference.value_or("flash-attention-v2"), "compare: --reference");
    if (!reference) return reference.error();
    if ((*reference)->numerics != ATTEND_EXACT)
        return wrong_use("compare: --reference is \"" + (*reference)->name +
                         "\", which is not exact attention; accepted: a mechanism of numerics exact, such as "
                         "flash-attention-v2");
    if (auto done = check_sets(flags.call.options, mechanisms); !done) return done.error();
    Comparison comparison(*session, flags, *sizes);
    const Result<ForwardResult> exact = comparison.run(**reference, true);
    if (!exact) return exact.error();
    std::vector<Row> rows;
    Row first;
    first.mechanism = (*reference)->name + " (reference)";
    first.exactness = exact->exactness;
    first.cosine = 1.0;
    first.time_ms = exact->time_ms;
    first.workspace = exact->workspace_bytes;
    if (exact->scores) first.kl = 0.0;
    rows.push_back(first);
    for (const MechanismPtr& mechanism : mechanisms) {
        const Result<ForwardResult> result = comparison.run(*mechanism, false);
        if (!result) return result.error();
        Row row;
        row.mechanism = mechanism->name;
        row.exactness = result->exactness;
        if (auto done = measure(*result, *exact, row); !done) return done.error();
        row.time_ms = result->time_ms;
        row.workspace = result->workspace_bytes;
        for (const std::string& warning : result->warnings)
            if (warning.find("option \"seed\" is not read") == std::string::npos) warn(global.quiet, warning);
        rows.push_back(std::move(row));
    }
    const std::string title = "Error against exact attention";
    if (flags.html)
        if (auto done = write_whole(*flags.html, page(title, rows)); !done) return done.error();
    if (global.json) {
        Json list = Json::array();
        for (const Row& row : rows) {
            Json json = Json::object()
                            .set("mechanism", row.mechanism)
                            .set("numerics", row.exactness)
                            .set("max_abs", row.max_abs)
                            .set("relative_l2", row.relative_l2)
                            .set("cosine", row.cosine);
            json.set("kl", row.kl ? Json(*row.kl) : Json());
            json.set("time_ms", row.time_ms).set("workspace_bytes", row.workspace);
            list.push(std::move(json));
        }
        return Outcome{exit_done,
                       json_text(Json::object().set("reference", (*reference)->name).set("rows", std::move(list)))};
    }
    Table table({"mechanism", "max abs", "relative L2", "cosine", "KL of weights", "time", "workspace"});
    for (const Row& row : rows)
        table.add({row.mechanism, number_text(row.max_abs), number_text(row.relative_l2), number_text(row.cosine, 6),
                   row.kl ? number_text(*row.kl) : "-", number_text(row.time_ms) + " ms",
                   bytes_text(static_cast<double>(row.workspace))});
    return Outcome{exit_done, table.text() + (flags.html ? "written to " + *flags.html + "\n" : "")};
}

}  // namespace

void add_compare(Commands& commands) {
    Command command = commands.add(
        "compare", "Runs the same tensors through several mechanisms and shows how far each is from exact attention.",
        "  attend compare performer-attention nystrom-attention --sequence-length 2048 --heads 8\n"
        "      on generated tensors\n"
        "  attend compare local-attention --input qkv.safetensors --causal --set window_size=256 --html report.html\n"
        "      on tensors of a file, with a page that draws the errors\n\n"
        "Each mechanism gets the options that it has, --set MECHANISM:NAME=VALUE is for one alone; the reference gets "
        "causal,\n"
        "scale and softcap.");
    auto flags = std::make_shared<Flags>();
    declare_flags(command, flags->call);
    command.remove_option("MECHANISM");
    for (const char* name : {"--output", "--lse", "--scores"}) command.remove_option(name);
    command.add_option("MECHANISM", flags->mechanisms, "Names, or PLUGIN_ID/NAME").type_name("");
    command.add_option("--reference", flags->reference, "What is exact; default flash-attention-v2")
        .type_name("MECHANISM");
    command.add_option("--html", flags->html, "Write a page that draws the errors").type_name("FILE");
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
