// SPDX-License-Identifier: Apache-2.0
#include "compute_report.hpp"

#include <fstream>

#include "command.hpp"
#include "errors.hpp"
#include "service/documents.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

// The largest resident size of this process so far.
std::uint64_t peak_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
    return 0;
}

// Every tensor of the call by name, in the order of reports.
template <class Visit>
void for_each_tensor(const ComputeReport& report, Visit visit) {
    const ForwardInputs& in = report.inputs;
    if (in.query.data != nullptr || !in.query.shape.empty()) visit("query", in.query);
    for (const auto& [name, tensor] :
         {std::pair("key", &in.key), std::pair("value", &in.value), std::pair("mask", &in.mask),
          std::pair("bias", &in.bias), std::pair("query_lengths", &in.query_lengths),
          std::pair("key_lengths", &in.key_lengths)})
        if (*tensor) visit(name, **tensor);
    for (const auto& [name, tensor] : in.extra) visit("input." + name, tensor);
    for (const auto& [name, tensor] : in.weights) visit("weight." + name, tensor);
    for (const auto& [name, tensor] : output_file(report.result).tensors) visit(name, tensor);
}

double gflops(const ForwardResult& result) { return result.time_ms > 0 ? result.flops / (result.time_ms * 1e6) : 0.0; }

}  // namespace

Result<void> check_output(const std::string& path, bool several) {
    const Result<io::FileFormat> format = io::tensor_file_format(path);
    if (!format) return format.error();
    if (*format == io::FileFormat::npy && several)
        return wrong_use(
            path +
            ": .npy holds one tensor, and lse or scores are asked for; accepted for several: .safetensors, .npz");
    return {};
}

io::TensorFile output_file(const ForwardResult& result) {
    io::TensorFile file;
    file.tensors = result_tensors(result);
    file.metadata = {{"mechanism", result.mechanism},           {"plugin", result.plugin},
                     {"plugin_version", result.plugin_version}, {"backend", result.backend},
                     {"options", write_json(result.options())}, {"commit", build_commit()}};
    return file;
}

std::string checksum(const Tensor& tensor) {
    const Result<Tensor> rows = contiguous_copy(tensor);
    if (!rows) return "";
    std::uint64_t hash = 14695981039346656037u;
    const auto* bytes = static_cast<const unsigned char*>(rows->data);
    for (std::size_t at = 0; at < rows->byte_size(); ++at) hash = (hash ^ bytes[at]) * 1099511628211u;
    std::string text(16, '0');
    for (std::size_t digit = 16; digit-- > 0; hash >>= 4) text[digit] = "0123456789abcdef"[hash & 15];
    return text;
}

std::string report_json(const ComputeReport& report) {
    const ForwardResult& result = report.result;
    Json shapes = Json::object();
    for_each_tensor(report, [&](const std::string& name, const Tensor& tensor) {
        Json shape = Json::array();
        for (const std::int64_t extent : tensor.shape) shape.push(extent);
        shapes.set(name, std::move(shape));
    });
    Json json = Json::object();
    json.set("mechanism", result.mechanism)
        .set("reason", result.reason)
        .set("backend", result.backend)
        .set("threads", report.threads);
    json.set("shapes", std::move(shapes))
        .set("time_ms", result.time_ms)
        .set("gflops", gflops(result))
        .set("workspace_bytes", result.workspace_bytes);
    json.set("peak_bytes", peak_bytes())
        .set("checksum", checksum(result.output))
        .set("warnings", json_list(result.warnings));
    json.set("options", result.options()).set("plugin", result.plugin).set("plugin_version", result.plugin_version);
    json.set("exactness", result.exactness).set("precision", result.precision).set("repeat", report.repeat);
    if (report.output) json.set("output_file", *report.output);
    return json_text(json);
}

std::string report_text(const ComputeReport& report) {
    const ForwardResult& result = report.result;
    std::vector<std::pair<std::string, std::string>> lines{
        {"mechanism", result.mechanism + " (" + result.exactness + "), " + result.plugin + " " + result.plugin_version},
        {"reason", result.reason},
        {"options", write_json(result.options())},
        {"back end", result.backend + ", " + std::to_string(report.threads) + " threads, " + result.precision}};
    for_each_tensor(report, [&](const std::string& name, const Tensor& tensor) {
        lines.emplace_back(name, shape_text(tensor.shape) + " " + dtype_name(tensor.dtype));
    });
    lines.emplace_back("time", number_text(result.time_ms) + " ms" +
                                   (report.repeat > 1 ? " (median of " + std::to_string(report.repeat) + ")" : ""));
    if (result.flops > 0) lines.emplace_back("speed", number_text(gflops(result)) + " GFLOP/s");
    lines.emplace_back("workspace", bytes_text(static_cast<double>(result.workspace_bytes)));
    lines.emplace_back("peak memory", bytes_text(static_cast<double>(peak_bytes())));
    lines.emplace_back("checksum", checksum(result.output));
    if (report.output) lines.emplace_back("written", *report.output);
    return aligned(lines);
}

}  // namespace attend::cli
