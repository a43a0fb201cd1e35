// SPDX-License-Identifier: Apache-2.0
// The suite `stress`: for a given time, calls of random mechanisms, shapes, types and thread counts. Answers are held
// against oracles, calls on several threads at once against the same call alone, and a fixed call of each mechanism,
// repeated now and then, must give the same bits as at the beginning. Memory must not grow.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <random>
#include <thread>

#include "benchmark/bench.hpp"
#include "benchmark/oracle.hpp"

namespace attend::benchmark {
namespace {

using Clock = std::chrono::steady_clock;

std::uint64_t bits_of(const Tensor& tensor) {
    const Result<Tensor> rows = contiguous_copy(tensor);
    if (!rows) return 0;
    std::uint64_t hash = 14695981039346656037u;
    const auto* bytes = static_cast<const unsigned char*>(rows->data);
    for (std::size_t at = 0; at < rows->byte_size(); ++at) hash = (hash ^ bytes[at]) * 1099511628211u;
    return hash;
}

class Stress {
public:
    Stress(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report)
        : bench_(bench), mechanisms_(mechanisms), report_(report), random_(bench.settings().seed) {
        for (const MechanismPtr& mechanism : mechanisms) {
            BenchmarkRow row = bench.describe(spec_of(bench, *mechanism));
            row.category = mechanism->category;
            row.backend = mechanism->backend;
            row.shape = "random";
            row.threads = most_threads();
            rows_.push_back(std::move(row));
        }
        drift_.assign(mechanisms.size(), 0);
        worst_.assign(mechanisms.size(), 0.0);
        times_.resize(mechanisms.size());
    }

    void run() {
        const auto begin = Clock::now();
        const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
        const double limit = bench_.settings().seconds;
        for (std::size_t at = 0; at < mechanisms_.size(); ++at) fixed_call(at);
        std::uint64_t calls = 0, early = 0, early_kept = 0;
        while (elapsed() < limit) {
            const std::size_t at = pick(0, mechanisms_.size() - 1);
            random_call(at);
            if (++calls % 64 == 0) fixed_call(at);
            // By a third of the time every buffer has had its largest size about once.
            if (early == 0 && elapsed() > limit / 3) early = resident_bytes(), early_kept = kept_bytes_;
            if (calls % 16 == 0)
                bench_.progress("stress: " + std::to_string(calls) + " calls, " +
                                std::to_string(static_cast<int>(limit - elapsed())) + " s left");
        }
        for (std::size_t at = 0; at < mechanisms_.size(); ++at) fixed_call(at);
        // Plans that the services keep, and with them their weights, come to hundreds: that is no leak.
        finish(calls, early > 0 ? early + kept_bytes_ - std::min(kept_bytes_, early_kept) : 0);
    }

private:
    std::size_t pick(std::size_t low, std::size_t high) {
        return std::uniform_int_distribution<std::size_t>(low, high)(random_);
    }
    std::int64_t any_of(std::initializer_list<std::int64_t> values) {
        return values.begin()[pick(0, values.size() - 1)];
    }
    std::uint32_t most_threads() const { return (*bench_.service("", 0))->threads(); }

    void fail(std::size_t at, const char* status, const std::string& note) {
        if (rows_[at].status == "wrong" || rows_[at].status == "failed") return;
        rows_[at].status = status;
        rows_[at].note = note;
    }

    void random_call(std::size_t at) {
        const MechanismRecord& mechanism = *mechanisms_[at];
        CallSpec spec = spec_of(bench_, mechanism);
        spec.threads = static_cast<std::uint32_t>(pick(1, std::max(2u, most_threads())));
        spec.batch = any_of({1, 1, 1, 2, 3});
        spec.heads = any_of({1, 2, 4, 8});
        spec.kv_heads = usual_key_heads(mechanism, spec.heads);
        if (mechanism.has(ATTEND_CAP_GQA) && pick(0, 3) == 0) spec.kv_heads = std::max<std::int64_t>(1, spec.heads / 2);
        spec.q_len = static_cast<std::int64_t>(pick(1, 300));
        spec.kv_len =
            mechanism.has(ATTEND_CAP_CROSS) && pick(0, 2) == 0 ? static_cast<std::int64_t>(pick(1, 300)) : spec.q_len;
        spec.dim = any_of({8, 16, 24, 32, 64, 72, 80, 128});
        spec.causal = mechanism.find_option("causal") != nullptr && pick(0, 2) == 0;
        spec.dtype = pick(0, 3) == 0 ? DType::bf16 : DType::f32;
        Result<AttentionService*> service = bench_.service("", spec.threads);
        const Result<ForwardInputs> inputs = make_inputs(spec, mechanism, random_());
        if (!service || !inputs) return fail(at, "failed", !service ? service.error().message : inputs.error().message);
        const Result<ForwardResult> result = (*service)->forward(*inputs, forward_options(spec));
        ++rows_[at].runs;
        if (!result) {
            // A refusal of a shape is an answer; anything else is not.
            if (result.error().code == ErrorCode::internal || result.error().code == ErrorCode::plugin)
                fail(at, "failed", result.error().message + " (" + spec.key() + ")");
            return;
        }
        if (!result->plan_reused) count_plan(*result->plan);
        times_[at].push_back(result->time_ms);
        // A third of the calls against an oracle: that costs more than the call.
        if (pick(0, 2) == 0) judge(at, spec, *inputs, *result);
        if (pick(0, 7) == 0) at_once(at, spec, **service, *inputs, *result);
    }

    // Weights of the plans that the services of one and of all threads may have kept, 256 each.
    void count_plan(const CallPlan& plan) {
        std::uint64_t bytes = 0;
        for (const auto& [name, tensor] : plan.weights)
            bytes += static_cast<std::uint64_t>(tensor.size()) * dtype_size(tensor.dtype);
        kept_.push_back(bytes);
        kept_bytes_ += bytes;
        if (kept_.size() <= 512) return;
        kept_bytes_ -= kept_.front();
        kept_.pop_front();
    }

    void judge(std::size_t at, const CallSpec& spec, const ForwardInputs& inputs, const ForwardResult& result) {
        const std::optional<Expected> expected = oracle_of(spec, inputs, *result.plan);
        if (!expected) {
            for (const double value : elements(result.output))
                if (!std::isfinite(value)) return fail(at, "wrong", "a result is not finite (" + spec.key() + ")");
            return;
        }
        rows_[at].checked_against = expected->name;
        const double error = relative_error(result.output, expected->values);
        worst_[at] = std::max(worst_[at], error);
        if (!(error <= tolerance(spec, spec.dtype)))
            fail(at, "wrong", "relative error " + std::to_string(error) + " (" + spec.key() + ")");
    }

    // The same call from three threads at the same time: the same bits.
    void at_once(std::size_t at, const CallSpec& spec, AttentionService& service, const ForwardInputs& inputs,
                 const ForwardResult& alone) {
        const std::uint64_t expected = bits_of(alone.output);
        std::vector<std::uint64_t> seen(3, expected);
        std::vector<std::thread> callers;
        for (std::uint64_t& bits : seen)
            callers.emplace_back([&] {
                const Result<ForwardResult> result = service.forward(inputs, forward_options(spec));
                bits = result ? bits_of(result->output) : 0;
            });
        for (std::thread& caller : callers) caller.join();
        if (std::any_of(seen.begin(), seen.end(), [&](std::uint64_t bits) { return bits != expected; }))
            fail(at, "wrong", "calls at the same time gave other bits than one alone (" + spec.key() + ")");
    }

    void fixed_call(std::size_t at) {
        CallSpec spec = spec_of(bench_, *mechanisms_[at]);
        spec.heads = 2;
        spec.kv_heads = usual_key_heads(*mechanisms_[at], spec.heads);
        spec.q_len = spec.kv_len = 96;
        spec.dim = 64;
        spec.threads = most_threads();
        Result<AttentionService*> service = bench_.service("", spec.threads);
        const Result<ForwardInputs> inputs = make_inputs(spec, *mechanisms_[at], 5);
        if (!service || !inputs) return;
        const Result<ForwardResult> result = (*service)->forward(*inputs, forward_options(spec));
        if (!result) return;
        const std::uint64_t bits = bits_of(result->output);
        if (drift_[at] == 0) drift_[at] = bits;
        if (drift_[at] != bits) fail(at, "wrong", "the same call gave other bits than at the beginning");
    }

    void finish(std::uint64_t calls, std::uint64_t early) {
        for (std::size_t at = 0; at < rows_.size(); ++at) {
            BenchmarkRow& row = rows_[at];
            if (!row.checked_against.empty()) row.check_error = worst_[at];
            const std::uint64_t runs = row.runs;
            if (row.status == "measured" && times_[at].size() >= 10) {
                const Timing timing = summarise(times_[at], runs);
                row.median_ms = timing.median_ms;
                row.lower_ms = timing.lower_ms;
                row.upper_ms = timing.upper_ms;
                row.fastest_ms = timing.fastest_ms;
            }
            row.peak_resident_bytes = peak_resident_bytes();
            report_.rows.push_back(row);
        }
        const std::uint64_t late = resident_bytes();
        const double growth = late > early && early > 0 ? static_cast<double>(late - early) : 0.0;
        report_.notes.push_back(std::to_string(calls) + " calls; resident memory grew by " +
                                std::to_string(static_cast<long long>(growth / 1048576.0)) +
                                " MiB after the first third, plans that are kept aside");
        if (growth > 64.0 * 1048576.0 && growth > 0.25 * static_cast<double>(early)) {
            report_.passed = false;
            report_.notes.emplace_back("memory leaks: more than 64 MiB and a quarter of what was resident");
        }
    }

    Bench& bench_;
    const std::vector<MechanismPtr>& mechanisms_;
    BenchmarkReport& report_;
    std::mt19937_64 random_;
    std::vector<BenchmarkRow> rows_;
    std::vector<std::uint64_t> drift_;
    std::vector<double> worst_;
    std::vector<std::vector<double>> times_;
    std::deque<std::uint64_t> kept_;  // bytes of each
    std::uint64_t kept_bytes_{0};
};

}  // namespace

Result<void> run_stress(Bench& bench, const std::vector<MechanismPtr>& mechanisms, BenchmarkReport& report) {
    unpin_threads(bench.cpus());
    Stress(bench, mechanisms, report).run();
    return {};
}

}  // namespace attend::benchmark
