// SPDX-License-Identifier: Apache-2.0
#include "service/documents.hpp"

#include <array>
#include <cctype>
#include <cmath>
#include <string_view>

#include "attend/config/names.hpp"
#include "attend/rerank.hpp"
#include "loading/plugin_loader.hpp"
#include "service/call_plan.hpp"

namespace attend {
namespace {

bool is_index(const std::string& rule) {
    return !rule.empty() && rule.find_first_not_of("0123456789") == std::string::npos;
}

Json candidate_json(const Candidate& candidate, bool rejected) {
    Json json = Json::object();
    Json options = Json::object();
    for (const auto& [name, value] : candidate.options) options.set(name, value);
    json.set("mechanism", candidate.mechanism).set("options", std::move(options));
    json.set("rule", is_index(candidate.rule) ? Json(static_cast<std::int64_t>(std::stoll(candidate.rule)))
                                              : Json(candidate.rule));
    if (!candidate.rule_text.empty()) json.set("rule_text", candidate.rule_text);
    json.set("exactness", candidate.exactness);
    json.set("error_bound", candidate.error_bound ? Json(*candidate.error_bound) : Json("unbounded"));
    if (candidate.est_flops) json.set("est_flops", *candidate.est_flops);
    if (candidate.est_bytes) json.set("est_bytes", *candidate.est_bytes);
    if (candidate.est_time_ms) json.set("est_time_ms", *candidate.est_time_ms);
    json.set("supported", candidate.supported).set("reasons", json_list(candidate.reasons));
    if (!rejected) return json;
    if (candidate.est_workspace) json.set("est_workspace", *candidate.est_workspace);
    Json admit = Json::array();
    for (const Change& change : candidate.admit)
        admit.push(Json::object().set("variable", change.variable).set("value", change.value));
    json.set("check", candidate.check).set("admit", std::move(admit));
    return json;
}

Json shape_json(const Tensor& tensor) {
    Json shape = Json::array();
    for (const std::int64_t extent : tensor.shape) shape.push(extent);
    return shape;
}

}  // namespace

std::string change_text(const Change& change) {
    const Json& value = change.value;
    const std::string& name = change.variable;
    if (name == "memoryBudget") return "a memory budget of at least " + shown_value(value) + " bytes";
    if (name == "maxError") return "a maximum error of at least " + shown_value(value);
    if (name == "graph") return "with a graph";
    if (name == "windowSize") return "without a window";
    if (value.is_bool() && !value.as_bool()) {
        if (name == "hasMask") return "without a mask";
        if (name == "hasBias") return "without a bias";
        if (name == "hasDropout") return "without dropout";
        if (name == "needLse") return "without LSE";
        if (name == "needScores") return "without scores";
        return "not " + name;
    }
    if (value.is_bool()) return name;
    return name + " = " + shown_value(value);
}

Json json_list(const std::vector<std::string>& words) {
    Json list = Json::array();
    for (const std::string& word : words) list.push(word);
    return list;
}

std::vector<std::string> dtype_names(std::uint64_t mask) {
    struct Name {
        std::uint64_t bit;
        const char* name;
    };
    constexpr std::array table{Name{ATTEND_F32, "F32"},         Name{ATTEND_F64, "F64"},
                               Name{ATTEND_F16, "F16"},         Name{ATTEND_BF16, "BF16"},
                               Name{ATTEND_F8_E4M3, "F8_E4M3"}, Name{ATTEND_F8_E5M2, "F8_E5M2"},
                               Name{ATTEND_I8, "I8"},           Name{ATTEND_U8, "U8"},
                               Name{ATTEND_I32, "I32"},         Name{ATTEND_I64, "I64"}};
    std::vector<std::string> names;
    for (const Name& entry : table)
        if ((mask & entry.bit) != 0) names.emplace_back(entry.name);
    return names;
}

std::string initialiser_text(const std::string& init) {
    const auto of_name = [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
               std::string_view("_.{}").find(c) != std::string::npos;
    };
    std::string text;
    for (std::size_t at = 0; at < init.size();) {
        std::size_t end = at;
        if (init.compare(at, 4, " as ") == 0) {
            end = at + 4;
            while (end < init.size() && of_name(init[end])) ++end;
        }
        if (end > at + 4)
            at = end;
        else
            text += init[at++];
    }
    return text;
}

std::string listed_name(const MechanismRecord& mechanism) {
    return mechanism.shadowed_by.empty() ? mechanism.name : mechanism.qualified_name();
}

Json list_json(const MechanismRecord& mechanism) {
    return Json::object()
        .set("name", listed_name(mechanism))
        .set("category", mechanism.category)
        .set("complexity", mechanism.time_complexity)
        .set("capabilities", json_list(capability_names(mechanism.caps)))
        .set("dtypes", json_list(dtype_names(mechanism.dtypes)))
        .set("plugin", mechanism.plugin_id)
        .set("backend", mechanism.backend);
}

Json describe_json(const MechanismRecord& mechanism) {
    Json options = Json::array(), weights = Json::array(), inputs = Json::array();
    for (const OptionSpec& option : mechanism.options)
        options.push(Json::object()
                         .set("name", option.name)
                         .set("type", option_type_name(option.type))
                         .set("default", option.default_value.value_or(Json()))
                         .set("range", accepted_values(option))
                         .set("help", option.help));
    for (const PortRecord& port : mechanism.ports) {
        if ((port.flags & ATTEND_WEIGHT) != 0)
            weights.push(Json::object()
                             .set("name", port.name)
                             .set("shape", port.shape)
                             .set("init", initialiser_text(port.init)));
        else if ((port.flags & ATTEND_INPUT) != 0)
            inputs.push(Json::object()
                            .set("name", port.name)
                            .set("shape", port.shape)
                            .set("dtypes", json_list(dtype_names(port.dtypes)))
                            .set("help", port.help));
    }
    return Json::object()
        .set("name", listed_name(mechanism))
        .set("category", mechanism.category)
        .set("summary", mechanism.summary)
        .set("source", mechanism.reference)
        .set("complexity", mechanism.time_complexity)
        .set("options", std::move(options))
        .set("weights", std::move(weights))
        .set("inputs", std::move(inputs))
        .set("capabilities", json_list(capability_names(mechanism.caps)))
        .set("numerics", exactness_name(mechanism.numerics))
        .set("guide", Json::object()
                          .set("formula", mechanism.formula)
                          .set("cost", mechanism.cost)
                          .set("use", mechanism.use)
                          .set("example", mechanism.example));
}

Json recommendation_json(const Recommendation& result) {
    Json recommendations = Json::array(), rejected = Json::array(), trace = Json::array();
    for (const Candidate& candidate : result.recommendations) recommendations.push(candidate_json(candidate, false));
    for (const Candidate& candidate : result.rejected) rejected.push(candidate_json(candidate, true));
    for (const TraceStep& step : result.trace) {
        Json json = Json::object().set("index", step.index).set("text", step.text);
        if (!step.error.empty())
            json.set("error", step.error);
        else if (step.value)
            json.set("value", *step.value);
        if (!step.skipped_because.empty()) json.set("skipped_because", step.skipped_because);
        trace.push(std::move(json));
    }
    return Json::object()
        .set("selected", result.selected ? Json(*result.selected) : Json())
        .set("recommendations", std::move(recommendations))
        .set("rejected", std::move(rejected))
        .set("trace", std::move(trace));
}

Json reranking_json(const Reranking& ranking, bool ids) {
    Json results = Json::array();
    for (const RankedCandidate& candidate : ranking.results) {
        Json json = Json::object().set("index", candidate.index);
        if (ids) json.set("id", candidate.id);
        json.set("score", candidate.score)
            .set("logit", std::isfinite(candidate.logit) ? Json(candidate.logit) : Json())
            .set("rank", candidate.rank);
        results.push(std::move(json));
    }
    Json json = Json::object().set("mechanism", ranking.mechanism).set("results", std::move(results));
    if (!ranking.warnings.empty()) json.set("warnings", json_list(ranking.warnings));
    return json;
}

Json plugin_json(const PluginReport& report) {
    Json json = Json::object().set("path", report.path).set("origin", report.origin).set("loaded", report.loaded);
    json.set("id", report.id)
        .set("version", report.version)
        .set("summary", report.summary)
        .set("license", report.license)
        .set("vendor", report.vendor);
    json.set("backend", report.backend)
        .set("mechanisms", json_list(report.mechanisms))
        .set("steps", json_list(report.steps));
    if (!report.loaded)
        json.set("refused", Json::object()
                                .set("stage", report.failure.stage)
                                .set("code", report.failure.code)
                                .set("sentence", report.failure.sentence)
                                .set("hint", report.failure.hint));
    return json;
}

NamedTensors result_tensors(const ForwardResult& result) {
    NamedTensors tensors{{"output", result.output}};
    if (result.lse) tensors.emplace_back("lse", *result.lse);
    if (result.scores) tensors.emplace_back("scores", *result.scores);
    tensors.insert(tensors.end(), result.extra.begin(), result.extra.end());
    return tensors;
}

Json record_json(const ForwardResult& result) {
    Json shapes = Json::object();
    for (const auto& [name, tensor] : result_tensors(result)) shapes.set(name, shape_json(tensor));
    return Json::object()
        .set("mechanism", result.mechanism)
        .set("reason", result.reason)
        .set("plugin", result.plugin)
        .set("plugin_version", result.plugin_version)
        .set("backend", result.backend)
        .set("precision", result.precision)
        .set("exactness", result.exactness)
        .set("options", result.options())
        .set("shapes", std::move(shapes))
        .set("warnings", json_list(result.warnings))
        .set("plan_reused", result.plan_reused)
        .set("cached", result.cached)
        .set("time_ms", result.time_ms)
        .set("flops", result.flops)
        .set("workspace_bytes", result.workspace_bytes);
}

}  // namespace attend
