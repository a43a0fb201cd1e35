// SPDX-License-Identifier: Apache-2.0
// From settings to a report: which mechanisms, which suite, and the machine it all ran on.
#include <algorithm>
#include <chrono>
#include <ctime>

#include "attend/config/names.hpp"
#include "benchmark/bench.hpp"

#if __has_include(<sys/utsname.h>)
#include <sys/utsname.h>
#endif

namespace attend {
namespace benchmark {

std::int64_t usual_key_heads(const MechanismRecord& mechanism, std::int64_t heads) {
    return mechanism.has(ATTEND_CAP_MQA) && !mechanism.has(ATTEND_CAP_GQA) ? 1 : heads;
}

CallSpec spec_of(const Bench& bench, const MechanismRecord& mechanism) {
    const BenchmarkSettings& settings = bench.settings();
    CallSpec spec;
    spec.mechanism = mechanism.shadowed_by.empty() ? mechanism.name : mechanism.qualified_name();
    spec.batch = settings.batch.value_or(1);
    spec.heads = settings.heads.value_or(8);
    spec.kv_heads = settings.kv_heads.value_or(usual_key_heads(mechanism, spec.heads));
    spec.dim = settings.dims.empty() ? 64 : settings.dims.front();
    spec.q_len = spec.kv_len = settings.lengths.empty() ? 512 : settings.lengths.front();
    spec.causal = settings.causal;
    (void)apply_precision(spec, settings.precision);
    return spec;
}

Result<void> apply_precision(CallSpec& spec, const std::string& precision) {
    if (precision.empty() || precision == "fp32") {
        spec.dtype = DType::f32;
    } else if (precision == "bf16") {
        spec.dtype = DType::bf16;
    } else if (precision == "fp16") {
        spec.dtype = DType::f16;
    } else if (precision == "int8" || precision == "fp8") {
        spec.precision = precision;
    } else {
        const std::vector<std::string> known{"fp32", "bf16", "fp16", "int8", "fp8"};
        const std::string nearest = did_you_mean(precision, known);
        return Error{
            ErrorCode::input,
            "--precision: is \"" + precision + "\"" + (nearest.empty() ? "; accepted: " + join_names(known) : nearest),
            ""};
    }
    return {};
}

namespace {

std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    ::gmtime_r(&now, &parts);
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

Json environment_of(const BenchmarkSettings& settings, const AttentionService& service, const std::vector<int>& cpus) {
    const CpuFacts& cpu = service.cpu();
    Json json = Json::object().set("version", settings.version).set("commit", settings.commit);
#if defined(__clang__)
    json.set("compiler", std::string("clang ") + __clang_version__);
#else
    json.set("compiler", std::string("gcc ") + __VERSION__);
#endif
#if defined(__OPTIMIZE__)
    json.set("optimised", true);
#else
    json.set("optimised", false);
#endif
    json.set("command", settings.command).set("time", utc_now()).set("seed", settings.seed);
    json.set("cpu", Json::object()
                        .set("vendor", cpu.vendor)
                        .set("model", cpu.model)
                        .set("cores", cpu.cores)
                        .set("threads", cpu.threads)
                        .set("l1d_bytes", cpu.l1d_bytes)
                        .set("l2_bytes", cpu.l2_bytes)
                        .set("l3_bytes", cpu.l3_bytes)
                        .set("instruction_sets", isa_names(cpu.isa_machine)));
#if __has_include(<sys/utsname.h>)
    if (utsname system{}; ::uname(&system) == 0)
        json.set("system", std::string(system.sysname) + " " + system.release + " " + system.machine);
#endif
    Json used = Json::array();
    for (const int number : cpus) used.push(number);
    json.set("processors", std::move(used));
    return json.set("backend", entry_name(service.isa()))
        .set("threads", service.threads())
        .set("repeat", settings.repeat);
}

Error unknown(const std::string& place, const std::string& what, const std::string& name,
              std::span<const std::string> known) {
    const std::string nearest = did_you_mean(name, known);
    return {ErrorCode::input,
            place + ": unknown " + what + " \"" + name + "\"" +
                (nearest.empty() ? "; accepted: " + join_names(known) : nearest),
            ""};
}

Result<std::vector<MechanismPtr>> chosen_mechanisms(const BenchmarkSettings& settings,
                                                    const RegistrySnapshot& registry) {
    const auto known = categories();
    if (!settings.category.empty() && std::find(known.begin(), known.end(), settings.category) == known.end())
        return unknown("--category", "category", settings.category, known);
    std::vector<MechanismPtr> chosen;
    for (const std::string& name : settings.mechanisms) {
        Result<MechanismPtr> found = registry.get(name, "benchmark");
        if (!found) return found.error();
        chosen.push_back(std::move(*found));
    }
    if (settings.mechanisms.empty())
        for (const MechanismPtr& mechanism : registry.list())
            if (mechanism->name != "bench-projection") chosen.push_back(mechanism);
    if (!settings.category.empty())
        std::erase_if(chosen, [&](const MechanismPtr& one) { return one->category != settings.category; });
    if (chosen.empty() && settings.suite != "targets")
        return Error{ErrorCode::not_found,
                     "benchmark: no mechanism is left to measure; accepted: attend list shows all", ""};
    return chosen;
}

struct Suite {
    const char* name;
    Result<void> (*run)(Bench&, const std::vector<MechanismPtr>&, BenchmarkReport&);
};
constexpr Suite suites[] = {{"quick", run_quick},     {"comprehensive", run_comprehensive},
                            {"memory", run_memory},   {"precision", run_precision},
                            {"scaling", run_scaling}, {"decode", run_decode},
                            {"experts", run_experts}, {"stress", run_stress},
                            {"targets", run_targets}};

bool good(const BenchmarkRow& row) {
    return row.status != "wrong" && row.status != "failed" &&
           !(row.target &&
             (row.target->result == "missed" || row.target->result == "wrong" || row.target->result == "failed"));
}

}  // namespace
}  // namespace benchmark

const std::vector<std::string>& benchmark_suites() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> list;
        for (const benchmark::Suite& suite : benchmark::suites) list.emplace_back(suite.name);
        return list;
    }();
    return names;
}

Result<BenchmarkReport> BenchmarkRunner::run() {
    using namespace benchmark;
    const auto begin = std::chrono::steady_clock::now();
    BenchmarkReport report;
    report.suite = settings_.suite.empty() ? "quick" : settings_.suite;
    const auto chosen = std::find_if(std::begin(suites), std::end(suites),
                                     [&](const Suite& suite) { return report.suite == suite.name; });
    if (chosen == std::end(suites)) return unknown("--suite", "suite", report.suite, benchmark_suites());
    settings_.repeat = std::max<std::uint64_t>(settings_.repeat, 10);
    CallSpec probe;
    if (auto done = apply_precision(probe, settings_.precision); !done) return done.error();
    Bench bench(settings_);
    Result<AttentionService*> service = bench.service("", 0);
    if (!service) return service.error();
    Result<std::vector<MechanismPtr>> mechanisms = chosen_mechanisms(settings_, *(*service)->registry());
    if (!mechanisms) return mechanisms.error();
    report.environment = environment_of(settings_, **service, bench.cpus());
    bench.progress("peaks of this machine");
    const auto threads = std::min<std::uint32_t>(
        (*service)->threads(), static_cast<std::uint32_t>(std::max<std::size_t>(bench.cpus().size(), 1)));
    report.peaks.push_back(measure_peaks((*service)->isa(), 1, bench.cpus()).json());
    if (threads > 1) report.peaks.push_back(measure_peaks((*service)->isa(), threads, bench.cpus()).json());
    Result<void> done = chosen->run(bench, *mechanisms, report);
    bench.progress("");
    unpin_threads(bench.cpus());
    if (!done) return done.error();
    const auto idle = std::count_if(report.rows.begin(), report.rows.end(),
                                    [](const BenchmarkRow& row) { return row.status == "not_run" && !row.target; });
    if (idle > 0) report.notes.push_back(std::to_string(idle) + " rows were not run; each says why");
    report.passed = report.passed && std::all_of(report.rows.begin(), report.rows.end(), good);
    report.elapsed_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return report;
}

}  // namespace attend
