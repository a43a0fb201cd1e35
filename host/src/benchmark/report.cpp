// SPDX-License-Identifier: Apache-2.0
// Reports as JSON and CSV, and the file they are written to.

#include <filesystem>

#include "attend/benchmark.hpp"
#include "io/mapped_file.hpp"

namespace attend {
namespace {

Json optional_number(const std::optional<double>& value) { return value ? Json(*value) : Json(); }
Json positive(double value) { return value > 0 ? Json(value) : Json(); }

Json row_json(const BenchmarkRow& row) {
    Json json = Json::object().set("name", row.name).set("mechanism", row.mechanism).set("category", row.category);
    json.set("backend", row.backend)
        .set("precision", row.precision)
        .set("threads", row.threads)
        .set("shape", row.shape);
    json.set("batch", row.batch).set("heads", row.heads).set("kv_heads", row.kv_heads).set("q_len", row.q_len);
    json.set("kv_len", row.kv_len).set("dim", row.dim).set("causal", row.causal);
    json.set("status", row.status).set("note", row.note).set("runs", row.runs);
    const bool timed = row.median_ms > 0;
    const auto time = [&](double value) { return timed ? Json(value) : Json(); };
    json.set("median_ms", time(row.median_ms)).set("lower_quartile_ms", time(row.lower_ms));
    json.set("upper_quartile_ms", time(row.upper_ms)).set("fastest_ms", time(row.fastest_ms));
    json.set("flops", positive(row.flops)).set("gflops", time(row.gflops)).set("peak", positive(row.peak));
    json.set("peak_kind", row.peak_kind).set("share_of_peak", row.peak > 0 ? Json(row.share) : Json());
    json.set("bytes_moved", positive(row.bytes_moved)).set("gbps", time(row.gbps));
    json.set("workspace_bytes", row.workspace_bytes).set("peak_resident_bytes", row.peak_resident_bytes);
    json.set("growth", row.growth ? Json(*row.growth) : Json());
    json.set("extra_bytes", row.extra_bytes).set("checked_against", row.checked_against);
    json.set("check_error", optional_number(row.check_error)).set("error_against_exact", optional_number(row.error));
    if (row.target) {
        const TargetOutcome& target = *row.target;
        json.set("target", Json::object()
                               .set("metric", target.metric)
                               .set("unit", target.unit)
                               .set("lower_is_better", target.lower_is_better)
                               .set("must", target.must)
                               .set("aim", target.aim)
                               .set("measured", optional_number(target.measured))
                               .set("result", target.result));
    }
    return json;
}

// A cell of a CSV file, RFC 4180.
std::string cell(const Json& value) {
    if (value.is_null()) return "";
    if (!value.is_string()) return write_json(value);
    const std::string& text = value.as_string();
    if (text.find_first_of(",\"\n") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + "\"";
}

}  // namespace

Json BenchmarkReport::json() const {
    Json all_peaks = Json::array(), all_rows = Json::array(), all_notes = Json::array();
    for (const Json& peak : peaks) all_peaks.push(peak);
    for (const BenchmarkRow& row : rows) all_rows.push(row_json(row));
    for (const std::string& note : notes) all_notes.push(note);
    Json json = Json::object().set("suite", suite).set("passed", passed).set("elapsed_s", elapsed_s);
    json.set("environment", environment).set("peaks", std::move(all_peaks));
    return json.set("rows", std::move(all_rows)).set("notes", std::move(all_notes));
}

std::string BenchmarkReport::csv() const {
    std::string text;
    for (const BenchmarkRow& row : rows) {
        Json flat = row_json(row);
        Json target = Json::object();
        for (const char* key : {"metric", "must", "aim", "measured", "result"}) {
            const Json* given = flat.find("target") != nullptr ? flat.find("target")->find(key) : nullptr;
            target.set(std::string("target_") + key, given != nullptr ? *given : Json());
        }
        std::string header, line;
        for (const Json& part : {flat, target})
            for (const auto& [name, value] : part.as_object()) {
                if (name == "target") continue;
                header += (header.empty() ? "" : ",") + name;
                line += (line.empty() ? "" : ",") + cell(value);
            }
        if (text.empty()) text = header + "\n";
        text += line + "\n";
    }
    return text;
}

Result<void> check_benchmark_output(const std::string& path) {
    const std::string extension = std::filesystem::path(path).extension().string();
    if (extension == ".json" || extension == ".html" || extension == ".csv") return {};
    return Error{ErrorCode::input, "--output: is \"" + path + "\"; accepted: a name that ends in .json, .html or .csv",
                 ""};
}

Result<void> write_benchmark(const BenchmarkReport& report, const std::string& path) {
    if (auto done = check_benchmark_output(path); !done) return done;
    const std::string extension = std::filesystem::path(path).extension().string();
    const std::string text = extension == ".json"   ? write_json(report.json(), true) + "\n"
                             : extension == ".html" ? report.html()
                                                    : report.csv();
    Result<io::OutputFile> file = io::OutputFile::create(path);
    if (!file) return file.error();
    if (auto done = file->write(text.data(), text.size()); !done) return done;
    return file->commit();
}

}  // namespace attend
