// SPDX-License-Identifier: Apache-2.0
// The suite `targets`: the table of bench/targets.json, each row at each of its sizes and thread counts, and the targets
// of the configuration. A row that cannot be measured here says why; it never counts as met.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "attend/config/names.hpp"
#include "benchmark/bench.hpp"
#include "benchmark/materialised.hpp"
#include "benchmark/oracle.hpp"

namespace attend::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double, std::micro>(end - begin).count();
}

// One row of the table, at one size.
struct Target {
    CallSpec spec;
    std::string name, metric;
    double must{}, aim{};
    bool aim_of_plain{false};
};

struct Metric {
    const char *name, *unit;
    bool lower_is_better;
};
constexpr Metric metrics[] = {
    {"share_of_fma", "share of the multiply-add peak", false},
    {"share_of_bf16", "share of the bf16 dot peak", false},
    {"share_of_memory", "share of the memory read rate", false},
    {"kv_gbps", "KV GB/s", false},
    {"time_us", "us", true},
    {"scaling", "times one thread", false},
    {"overhead_us", "us over the plugin call", true},
    {"workspace_mb_per_thread", "MB per thread", true},
    {"speedup", "times", false},
    {"memory_saving", "share of the other's memory", false},
    {"relative_error", "relative error", true},
};
const Metric* find_metric(const std::string& name) {
    for (const Metric& metric : metrics)
        if (name == metric.name) return &metric;
    return nullptr;
}

Error bad_table(std::size_t row, const std::string& what) {
    return {ErrorCode::internal,
            "targets.json: rows[" + std::to_string(row) + "]: " + what + "; accepted: bench/targets.json as documented",
            ""};
}

std::vector<std::int64_t> integers(const Json& row, const char* key, std::vector<std::int64_t> otherwise) {
    const Json* list = row.find(key);
    if (list == nullptr || !list->is_array()) return otherwise;
    std::vector<std::int64_t> values;
    for (const Json& entry : list->as_array()) values.push_back(entry.to_int64().value_or(0));
    return values;
}
std::int64_t integer(const Json& row, const char* key, std::int64_t otherwise) {
    const Json* value = row.find(key);
    return value == nullptr ? otherwise : value->to_int64().value_or(otherwise);
}
std::string text(const Json& row, const char* key) {
    const Json* value = row.find(key);
    return value != nullptr && value->is_string() ? value->as_string() : "";
}
bool flag(const Json& row, const char* key) {
    const Json* value = row.find(key);
    return value != nullptr && value->is_bool() && value->as_bool();
}

// Every combination of dim, sequence_length and threads of one row.
Result<void> expand(const Json& row, std::size_t index, std::vector<Target>& targets) {
    const Json *must = row.find("must"), *aim = row.find("aim");
    if (must == nullptr || aim == nullptr || !must->is_number() || !aim->is_number())
        return bad_table(index, "must and aim are not both numbers");
    Target target;
    target.metric = text(row, "metric");
    if (find_metric(target.metric) == nullptr) return bad_table(index, "unknown metric \"" + target.metric + "\"");
    target.must = must->as_double();
    target.aim = aim->as_double();
    target.aim_of_plain = text(row, "aim_is") == "share_of_plain";
    CallSpec& spec = target.spec;
    spec.mechanism = text(row, "mechanism");
    spec.backend = text(row, "backend");
    spec.dtype = text(row, "precision") == "bf16" ? DType::bf16 : DType::f32;
    spec.batch = integer(row, "batch", 1);
    spec.heads = integer(row, "heads", 8);
    spec.kv_heads = integer(row, "kv_heads", spec.heads);
    spec.causal = flag(row, "causal");
    spec.bias = flag(row, "bias");
    spec.mask = flag(row, "mask");
    spec.alibi = flag(row, "alibi");
    spec.projection = flag(row, "projection");
    if (const Json* options = row.find("options"); options != nullptr && options->is_object())
        spec.options = options->as_object();
    for (const std::int64_t dim : integers(row, "dim", {64}))
        for (const std::int64_t length : integers(row, "sequence_length", {1024}))
            for (const std::int64_t threads : integers(row, "threads", {1, 2})) {
                spec.dim = dim;
                spec.kv_len = length;
                spec.q_len = integer(row, "q_len", length);
                spec.threads = static_cast<std::uint32_t>(threads);
                target.name = text(row, "name") + ", " + (spec.q_len == spec.kv_len ? "N=" : "kv=") +
                              std::to_string(length) + " D=" + std::to_string(dim) + " T" + std::to_string(threads);
                targets.push_back(target);
            }
    return {};
}

bool wanted(const Target& target, const BenchmarkSettings& settings) {
    const auto among = [](const auto& list, const auto& value) {
        return list.empty() || std::find(list.begin(), list.end(), value) != list.end();
    };
    const CallSpec& spec = target.spec;
    const std::int64_t threads = settings.service.config.service.threads;
    return among(settings.mechanisms, spec.mechanism) && among(settings.lengths, spec.kv_len) &&
           among(settings.dims, spec.dim) && (!settings.causal || spec.causal) &&
           (settings.precision.empty() || (settings.precision == "bf16") == (spec.dtype == DType::bf16)) &&
           (threads == 0 || threads == static_cast<std::int64_t>(spec.threads)) &&
           (settings.rows.empty() || fold_name(target.name).find(fold_name(settings.rows)) != std::string::npos);
}

constexpr std::size_t turns = 3;

class Measurer {
public:
    Measurer(Bench& bench, std::string entry) : bench_(bench), entry_(std::move(entry)) {}

    BenchmarkRow measure(const Target& target) {
        const std::string reason = inapplicable(target.spec);
        BenchmarkRow row = reason.empty() ? run(target) : bench_.describe(target.spec);
        row.name = target.name;
        if (!row.target) row.target.emplace();
        const Metric& metric = *find_metric(target.metric);
        TargetOutcome& outcome = *row.target;
        outcome.metric = metric.name;
        outcome.unit = metric.unit;
        outcome.lower_is_better = metric.lower_is_better;
        outcome.must = target.must;
        outcome.aim = aim_of(target);
        if (!reason.empty()) {
            row.status = "not_run";
            row.note = reason;
            outcome.result = "not_applicable";
        } else if (row.status != "measured" || !outcome.measured) {
            outcome.measured.reset();
            outcome.result = row.status == "wrong" ? "wrong" : row.status == "failed" ? "failed" : "not_measured";
        } else {
            const double value = *outcome.measured;
            const auto reaches = [&](double limit) { return metric.lower_is_better ? value <= limit : value >= limit; };
            outcome.result = !reaches(outcome.must) ? "missed" : reaches(outcome.aim) ? "aim" : "must";
        }
        return row;
    }

private:
    // Why a row says nothing on this machine.
    std::string inapplicable(const CallSpec& spec) {
        if (bench_.cpus().size() < spec.threads)
            return "needs " + std::to_string(spec.threads) + " processors; this process may use " +
                   std::to_string(bench_.cpus().size());
        Result<AttentionService*> opened = bench_.service(spec.backend, spec.threads);
        if (!opened) return opened.error().message;
        const std::uint64_t isa = (*opened)->isa();
        const std::string in_force = entry_name(isa);
        if (spec.backend.empty() && in_force != entry_)
            return "is set for back end " + entry_ + "; in force is " + in_force;
        if (spec.dtype == DType::bf16 && (isa & ATTEND_ISA_AVX512_BF16) == 0)
            return "needs bf16 dots, which this machine lacks";
        const MechanismPtr mechanism = (*opened)->registry()->find(spec.mechanism);
        if (mechanism == nullptr && spec.projection)
            return "mechanism " + spec.mechanism +
                   " is not loaded: it is in libattend_bench_engines.so, which is built "
                   "into bench/engines of the build folder; --plugin FILE names another place";
        return "";
    }

    double aim_of(const Target& target) {
        if (!target.aim_of_plain || !plain_.count(target.spec.threads)) return target.aim;
        return target.aim * plain_[target.spec.threads];
    }

    BenchmarkRow run(const Target& target) {
        if (target.metric == "scaling") return scaling(target.spec);
        if (target.metric == "overhead_us") return overhead(target.spec);
        const PeakKind kind = target.metric == "share_of_bf16"     ? PeakKind::bf16
                              : target.metric == "share_of_memory" ? PeakKind::memory
                              : target.spec.dtype == DType::bf16   ? PeakKind::bf16
                                                                   : PeakKind::fma;
        if (target.aim_of_plain) {
            CallSpec plain = target.spec;
            plain.bias = plain.mask = plain.alibi = false;
            plain.options.clear();
            plain_[plain.threads] = bench_.measure(plain, kind, turns).share;
        }
        BenchmarkRow row = bench_.measure(target.spec, kind, turns);
        row.target.emplace();
        if (row.status != "measured") return row;
        const CallSpec& spec = target.spec;
        const double kv_bytes = 2.0 * static_cast<double>(spec.batch * spec.kv_heads * spec.kv_len * spec.dim) *
                                static_cast<double>(dtype_size(spec.dtype));
        const double kv_rate = kv_bytes / (row.median_ms * 1e6);
        if (kind == PeakKind::memory) row.share = row.peak > 0 ? kv_rate / row.peak : 0;
        row.target->measured = target.metric == "kv_gbps"   ? kv_rate
                               : target.metric == "time_us" ? row.median_ms * 1e3
                               : target.metric == "workspace_mb_per_thread"
                                   ? static_cast<double>(row.workspace_bytes) / spec.threads / 1e6
                                   : row.share;
        return row;
    }

    // One thread and several in turns, so that both see the same clock.
    BenchmarkRow scaling(const CallSpec& spec) {
        BenchmarkRow row = bench_.describe(spec);
        bench_.progress("scaling of " + spec.mechanism + " " + row.shape);
        CallSpec single = spec;
        single.threads = 1;
        const std::unique_ptr<PreparedCall> one = bench_.prepare(single, row);
        if (!one) return row;
        const std::unique_ptr<PreparedCall> many = bench_.prepare(spec, row);
        if (!many) return row;
        std::vector<double> alone, together;
        const auto begin = Clock::now();
        const std::size_t least = bench_.settings().repeat;
        while (alone.size() < least || (microseconds(begin, Clock::now()) < 4e5 && alone.size() < 2000)) {
            const auto a = Clock::now();
            if (!one->run()) break;
            const auto b = Clock::now();
            // Workers that slept while one thread ran wake up here, outside the timing.
            if (!many->run()) break;
            const auto c = Clock::now();
            if (!many->run()) break;
            const auto d = Clock::now();
            alone.push_back(microseconds(a, b) * 1e-3);
            together.push_back(microseconds(c, d) * 1e-3);
        }
        if (together.size() < least) {
            row.status = "failed";
            row.note = spec.mechanism + ": the plugin failed while it was timed";
            return row;
        }
        const double single_ms = summarise(alone, alone.size()).median_ms;
        bench_.fill(row, spec, *many, summarise(together, together.size()));
        row.target.emplace().measured = single_ms / row.median_ms;
        return row;
    }

    // Through the service and the bare plugin call in turns; what lies between is the service's.
    BenchmarkRow overhead(const CallSpec& spec) {
        BenchmarkRow row = bench_.describe(spec);
        bench_.progress("call overhead of " + spec.mechanism);
        const std::unique_ptr<PreparedCall> call = bench_.prepare(spec, row);
        if (!call) return row;
        AttentionService& service = **bench_.service(spec.backend, spec.threads);
        const Result<ForwardInputs> inputs =
            make_inputs(spec, *service.registry()->find(spec.mechanism), bench_.settings().seed);
        if (!inputs) return row;
        const ForwardOptions options = forward_options(spec);
        std::vector<double> bare, through;
        for (int run = 0; run < 12000; ++run) {
            const auto a = Clock::now();
            const bool done = call->run();
            const auto b = Clock::now();
            if (!done || !service.forward(*inputs, options)) break;
            const auto c = Clock::now();
            if (run < 2000) continue;
            bare.push_back(microseconds(a, b) * 1e-3);
            through.push_back(microseconds(b, c) * 1e-3);
        }
        const Timing service_time = summarise(through, through.size());
        bench_.fill(row, spec, *call, service_time);
        row.target.emplace().measured = (service_time.median_ms - summarise(bare, bare.size()).median_ms) * 1e3;
        return row;
    }

    Bench& bench_;
    std::string entry_;
    std::map<std::uint32_t, double> plain_;
};

// A target of the configuration: a ratio against another mechanism or against scores that are all stored.
BenchmarkRow configured(Bench& bench, const TargetConfig& target) {
    CallSpec spec;
    spec.mechanism = target.mechanism;
    spec.heads = spec.kv_heads = target.heads;
    spec.q_len = spec.kv_len = target.sequence_length;
    spec.dim = target.head_dim;
    spec.threads = (*bench.service("", 0))->threads();
    BenchmarkRow row;
    std::optional<double> measured;
    if (target.metric == "relative_error") {
        row = bench.describe(spec);
        const Check check = bench.check(spec);
        row.status = check.wrong ? "wrong" : check.problem.empty() ? "measured" : "failed";
        row.note = check.problem;
        row.checked_against = check.against;
        row.check_error = check.error;
        measured = bench.distance_from_exact(spec);
        if (!measured) measured = check.error;
    } else {
        row = bench.measure(spec);
        const bool memory = target.metric == "memory_saving";
        CallSpec other_spec = spec;
        other_spec.mechanism = target.against;
        const BenchmarkRow other =
            target.against == "materialised" ? measure_materialised(bench, spec) : bench.measure(other_spec);
        if (row.status == "measured" && other.status == "measured") {
            if (memory && other.extra_bytes > 0)
                measured = 1.0 - static_cast<double>(row.extra_bytes) / static_cast<double>(other.extra_bytes);
            else if (!memory && row.median_ms > 0)
                measured = other.median_ms / row.median_ms;
        } else if (row.status == "measured") {
            row.status = other.status;
            row.note = other.note;
        }
    }
    row.name = target.name;
    TargetOutcome& outcome = row.target.emplace();
    const Metric& metric = *find_metric(target.metric);
    outcome.metric = metric.name;
    outcome.unit = metric.unit;
    outcome.lower_is_better = target.at_most.has_value();
    outcome.must = outcome.aim = target.at_most ? *target.at_most : target.at_least.value_or(0);
    if (row.status != "measured" || !measured) {
        outcome.result = row.status == "wrong" ? "wrong" : row.status == "failed" ? "failed" : "not_measured";
        return row;
    }
    outcome.measured = measured;
    const bool met = outcome.lower_is_better ? *measured <= outcome.must : *measured >= outcome.must;
    outcome.result = met ? "aim" : "missed";
    return row;
}

}  // namespace

Result<void> run_targets(Bench& bench, const std::vector<MechanismPtr>&, BenchmarkReport& report) {
    const Result<Json> table = parse_json(targets_text(), "targets.json");
    if (!table) return table.error();
    const Json* rows = table->find("rows");
    if (rows == nullptr || !rows->is_array())
        return Error{ErrorCode::internal, "targets.json: has no rows; accepted: a list of rows", ""};
    std::vector<Target> targets;
    for (std::size_t index = 0; index < rows->size(); ++index)
        if (auto done = expand(rows->as_array()[index], index, targets); !done) return done;
    Measurer measurer(bench, text(*table, "entry"));
    std::vector<Target> chosen;
    for (const Target& target : targets)
        if (wanted(target, bench.settings())) chosen.push_back(target);
    if (chosen.empty())
        return Error{ErrorCode::not_found,
                     "benchmark: the flags leave no row of the table of targets; accepted: names, sizes and 1 or 2 "
                     "threads as in bench/targets.json",
                     ""};
    if (chosen.size() < targets.size())
        report.notes.push_back(std::to_string(targets.size() - chosen.size()) + " of " +
                               std::to_string(targets.size()) + " rows were left out by flags");
    for (const Target& target : chosen) report.rows.push_back(measurer.measure(target));
    const BenchmarkSettings& settings = bench.settings();
    if (settings.rows.empty() && settings.mechanisms.empty() && settings.lengths.empty() && settings.dims.empty() &&
        settings.precision.empty() && !settings.causal)
        for (const TargetConfig& target : bench.settings().service.config.targets)
            report.rows.push_back(configured(bench, target));
    if (settings.record_to != nullptr)
        for (const BenchmarkRow& row : report.rows)
            if (row.runs > 0 && row.target && row.target->metric == "speedup" && row.target->measured)
                settings.record_to->record_speedup(*row.target->measured);
    std::size_t unmeasured = 0;
    for (const BenchmarkRow& row : report.rows)
        if (row.target && (row.target->result == "not_applicable" || row.target->result == "not_measured"))
            ++unmeasured;
    if (unmeasured > 0)
        report.notes.push_back(std::to_string(unmeasured) +
                               " rows were not measured here; they count neither as met nor as missed");
    return {};
}

}  // namespace attend::benchmark
