// SPDX-License-Identifier: Apache-2.0
#include "benchmark/bench.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "benchmark/oracle.hpp"

namespace attend::benchmark {
namespace {

std::string scientific(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2e", value);
    return text;
}

}  // namespace

Bench::Bench(const BenchmarkSettings& settings) : settings_(settings), cpus_(permitted_cpus()) {
    // Mechanisms are always named here, so rules are of no use; the caller has checked them.
    settings_.service.config.rules.clear();
    settings_.service.config.rule_sources.clear();
}

Result<AttentionService*> Bench::service(const std::string& backend, std::uint32_t threads) {
    const std::string key = backend + "|" + std::to_string(threads);
    const auto found = services_.find(key);
    if (found != services_.end()) return found->second.get();
    ServiceSettings settings = settings_.service;
    if (!backend.empty()) settings.config.service.backend = backend;
    if (threads != 0) settings.config.service.threads = threads;
    // New threads inherit the mask of the one that makes them.
    unpin_threads(cpus_);
    Result<std::unique_ptr<AttentionService>> opened = AttentionService::open(std::move(settings));
    if (!opened) return opened.error();
    return services_.emplace(key, std::move(*opened)).first->second.get();
}

BenchmarkRow Bench::describe(const CallSpec& spec) const {
    BenchmarkRow row;
    row.name = row.mechanism = spec.mechanism;
    row.precision = spec.dtype == DType::f32    ? (spec.precision.empty() ? "fp32" : spec.precision)
                    : spec.dtype == DType::bf16 ? "bf16"
                    : spec.dtype == DType::f16  ? "fp16"
                                                : dtype_name(spec.dtype);
    if (spec.codes) row.precision = "int8";
    row.shape = spec.shape_text();
    row.batch = spec.batch;
    row.heads = spec.heads;
    row.kv_heads = spec.kv_heads;
    row.q_len = spec.q_len;
    row.kv_len = spec.kv_len;
    row.dim = spec.dim;
    row.causal = spec.causal;
    row.threads = spec.threads;
    row.backend = spec.backend;
    return row;
}

Check Bench::check(const CallSpec& spec) {
    const CallSpec small = spec.small();
    const std::string key = small.key();
    const auto found = checks_.find(key);
    if (found != checks_.end()) return found->second;
    return checks_.emplace(key, check_now(small)).first->second;
}

Check Bench::check_now(const CallSpec& small) {
    Check check;
    const auto failed = [&](const Error& error) {
        check.problem = error.message;
        check.refused = error.code != ErrorCode::internal && error.code != ErrorCode::plugin;
        return check;
    };
    Result<AttentionService*> opened = service(small.backend, small.threads);
    if (!opened) return failed(opened.error());
    const Result<MechanismPtr> mechanism = (*opened)->registry()->get(small.mechanism, "benchmark");
    if (!mechanism) return failed(mechanism.error());
    const Result<ForwardInputs> inputs = make_inputs(small, **mechanism, settings_.seed + 1);
    if (!inputs) return failed(inputs.error());
    const Result<ForwardInputs> cache = in_cache(small, *inputs, settings_.seed);
    if (!cache) return failed(cache.error());
    Result<std::unique_ptr<PreparedCall>> call = PreparedCall::make(**opened, *cache, forward_options(small));
    if (!call) return failed(call.error());
    double allowed = tolerance(small, (*call)->input_dtype());
    std::vector<double> expected;
    std::optional<Expected> oracle = oracle_of(small, *inputs, (*call)->plan());
    if (!oracle) oracle = pattern_oracle(**opened, *inputs, (*call)->plan(), small.all_options());
    if (oracle) {
        check.against = oracle->name;
        expected = std::move(oracle->values);
    } else {
        // No formula here: the narrowest back end, or the same once more where that is the one in force.
        Result<AttentionService*> other = service(small.backend, small.threads);
        check.against = "repetition";
#if defined(__x86_64__)
        if ((*call)->plan().mechanism->backend != "baseline") {
            other = service("baseline", 1);
            check.against = "baseline back end";
        }
#endif
        if (!other) return failed(other.error());
        const Result<ForwardResult> reference = (*other)->forward(*inputs, forward_options(small));
        if (!reference) return failed(reference.error());
        expected = elements(reference->output);
        allowed *= 10;
    }
    // What the service hands out and what the timed call wrote.
    const double through = relative_error((*call)->first().output, expected),
                 bound = relative_error((*call)->output(), expected);
    check.error = std::max(through, bound);
    if (!(*check.error <= allowed)) {
        check.wrong = true;
        check.problem = "wrong answer: relative error " + scientific(*check.error) + " against " + check.against +
                        "; accepted: at most " + scientific(allowed);
    }
    return check;
}

// By the products that the call makes: those of its tensors' type, unless an option of the mechanism says which.
static PeakKind usual_peak(const PreparedCall& call) {
    const Json options = options_in_force(*call.plan().mechanism, call.plan().values);
    const Json* const precision = options.find("precision");
    if (precision != nullptr && precision->is_string() && precision->as_string() != "fp32")
        return precision->as_string() == "int8" ? PeakKind::int8_mix : PeakKind::bf16;
    return call.input_dtype() == DType::bf16 ? PeakKind::bf16 : PeakKind::fma;
}

std::unique_ptr<PreparedCall> Bench::prepare(const CallSpec& spec, BenchmarkRow& row) {
    const auto fail = [&](const char* status, const std::string& note) {
        row.status = status;
        row.note = note;
        return nullptr;
    };
    Result<AttentionService*> opened = service(spec.backend, spec.threads);
    if (!opened) return fail("not_run", opened.error().message);
    const Result<MechanismPtr> mechanism = (*opened)->registry()->get(spec.mechanism, "benchmark");
    if (!mechanism) return fail("not_run", mechanism.error().message);
    row.category = (*mechanism)->category;
    row.backend = (*mechanism)->backend;
    if (const std::string reason = unfit(spec, **mechanism); !reason.empty())
        return fail("not_run", spec.mechanism + ": " + reason);
    const Check checked = check(spec);
    row.checked_against = checked.against;
    row.check_error = checked.error;
    if (!checked.problem.empty())
        return fail(checked.wrong ? "wrong" : checked.refused ? "not_run" : "failed", checked.problem);
    Result<ForwardInputs> inputs = make_inputs(spec, **mechanism, settings_.seed);
    if (inputs) inputs = in_cache(spec, *inputs, settings_.seed);
    if (!inputs) return fail("failed", inputs.error().message);
    Result<std::unique_ptr<PreparedCall>> call = PreparedCall::make(**opened, *inputs, forward_options(spec));
    if (!call) return fail("failed", call.error().message);
    pin_threads(cpus_, spec.threads);
    return std::move(*call);
}

void Bench::fill(BenchmarkRow& row, const CallSpec& spec, const PreparedCall& call, const Timing& timing) const {
    row.runs = timing.runs;
    row.median_ms = timing.median_ms;
    row.lower_ms = timing.lower_ms;
    row.upper_ms = timing.upper_ms;
    row.fastest_ms = timing.fastest_ms;
    row.flops = call.plan().flops;
    row.bytes_moved = call.bytes_moved();
    row.workspace_bytes = call.plan().workspace_bytes;
    row.backend = call.plan().variant;
    if (timing.median_ms > 0) {
        row.gflops = row.flops / (timing.median_ms * 1e6);
        row.gbps = row.bytes_moved / (timing.median_ms * 1e6);
    }
    if (spec.dtype != call.input_dtype())
        row.note =
            std::string(dtype_name(spec.dtype)) + " tensors reach the plugin as " + dtype_name(call.input_dtype());
}

BenchmarkRow Bench::measure(const CallSpec& spec, std::optional<PeakKind> peak, std::size_t turns,
                            std::uint64_t least_runs) {
    BenchmarkRow row = describe(spec);
    progress(spec.mechanism + " " + row.shape + (spec.causal ? " causal " : " ") + row.precision + " T" +
             std::to_string(spec.threads));
    const std::unique_ptr<PreparedCall> call = prepare(spec, row);
    if (!call) return row;
    const Result<AttentionService*> opened = service(spec.backend, spec.threads);
    const std::uint64_t isa = (*opened)->isa();
    const PeakKind kind = peak.value_or(usual_peak(*call));
    struct Turn {
        Timing timing;
        double peak;
        [[nodiscard]] double share() const { return timing.median_ms > 0 ? 1.0 / (timing.median_ms * peak) : 0; }
    };
    std::vector<Turn> taken;
    const std::int64_t preempted = preemptions();
    double seconds = 0;
    double before = measure_peak(kind, isa, spec.threads, cpus_);
    while (taken.size() < std::max<std::size_t>(turns, 1)) {
        const auto begin = std::chrono::steady_clock::now();
        const Timing timing = time_call(*call, least_runs > 0 ? least_runs : settings_.repeat, 0.15);
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        if (timing.runs == 0) {
            row.status = "failed";
            row.note = spec.mechanism + ": the plugin failed while it was timed";
            return row;
        }
        const double after = measure_peak(kind, isa, spec.threads, cpus_);
        taken.push_back({timing, 0.5 * (before + after)});
        before = after;
    }
    const auto disturbances = static_cast<double>(preemptions() - preempted);
    std::sort(taken.begin(), taken.end(), [](const Turn& a, const Turn& b) { return a.share() < b.share(); });
    const Turn& middle = taken[taken.size() / 2];
    fill(row, spec, *call, middle.timing);
    // A quiet machine takes a processor away a few times a second.
    if (disturbances > 10 && disturbances > 40 * seconds)
        row.note += (row.note.empty() ? "" : "; ") + ("disturbed: other work took a processor " +
                                                      std::to_string(static_cast<int>(disturbances)) + " times");
    row.peak = middle.peak;
    row.peak_kind = peak_name(kind);
    const double rate = kind == PeakKind::memory ? row.gbps : row.gflops;
    row.share = row.peak > 0 ? rate / row.peak : 0.0;
    row.peak_resident_bytes = peak_resident_bytes();
    row.extra_bytes = call->growth();
    return row;
}

std::optional<double> Bench::distance_from_exact(const CallSpec& spec) {
    Result<AttentionService*> opened = service(spec.backend, spec.threads);
    if (!opened) return std::nullopt;
    const MechanismPtr mechanism = (*opened)->registry()->find(spec.mechanism);
    if (!mechanism || mechanism->numerics != ATTEND_APPROXIMATE) return std::nullopt;
    CallSpec shape = spec;
    shape.batch = 1;
    shape.heads = std::min<std::int64_t>(spec.heads, 2);
    shape.kv_heads = usual_key_heads(*mechanism, shape.heads);
    shape.q_len = std::min<std::int64_t>(spec.q_len, 512);
    shape.kv_len = std::min<std::int64_t>(spec.kv_len, 512);
    const Result<ForwardInputs> inputs = make_inputs(shape, *mechanism, settings_.seed + 2);
    if (!inputs || !inputs->key || !inputs->value) return std::nullopt;
    const Result<ForwardResult> result = (*opened)->forward(*inputs, forward_options(shape));
    if (!result || result->output.rank() != 4) return std::nullopt;
    attend_plan_desc desc = result->plan->desc;
    desc.window_left = desc.window_right = -1;
    const std::vector<double> exact = dense_attention(*inputs, desc), got = elements(result->output);
    if (exact.size() != got.size()) return std::nullopt;
    double difference = 0, length = 0;
    for (std::size_t at = 0; at < exact.size(); ++at) {
        difference += (got[at] - exact[at]) * (got[at] - exact[at]);
        length += exact[at] * exact[at];
    }
    return length > 0 ? std::sqrt(difference / length) : std::sqrt(difference);
}

void Bench::progress(const std::string& text) const {
    if (settings_.progress) settings_.progress(text);
}

}  // namespace attend::benchmark
