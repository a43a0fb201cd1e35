// SPDX-License-Identifier: Apache-2.0
#include "attend/tuning.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <map>
#include <random>

#include "attend/registry/mechanism_registry.hpp"
#include "benchmark/bench.hpp"
#include "service/core_shapes.hpp"

namespace attend {
namespace {

using benchmark::CallSpec;
using benchmark::PreparedCall;
using Clock = std::chrono::steady_clock;

constexpr std::array<std::int64_t, 2> head_counts{1, 8};
// Between multiples of tiles, as lengths usually lie.
constexpr std::array<std::int64_t, 6> lengths{16, 40, 112, 400, 1024, 4096};
constexpr std::array<std::int64_t, 3> widths{32, 64, 128};
constexpr std::int64_t causal_heads = 8, causal_width = 64;  // one sample of every length
constexpr std::size_t least_runs = 3, most_runs = 200;
// Everything is measured so often, with everything else between; the fastest counts.
constexpr int sweeps = 2;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// The fastest run: what the machine does when nothing else disturbs it. Nothing: the plugin failed.
std::optional<double> fastest_ms(PreparedCall& call, double seconds) {
    double best = std::numeric_limits<double>::infinity();
    const auto begin = Clock::now();
    for (std::size_t run = 0; run < least_runs || (run < most_runs && seconds_since(begin) < seconds); ++run) {
        const auto start = Clock::now();
        if (!call.run()) return std::nullopt;
        best = std::min(best, seconds_since(start) * 1e3);
    }
    return best;
}

// Query, key and value of one shape, shared by all mechanisms: random numbers that cost little.
class SharedInputs {
public:
    [[nodiscard]] Result<ForwardInputs> of(const CallSpec& spec, const MechanismRecord& mechanism) {
        ForwardInputs inputs;
        const auto has_role = [&](std::uint32_t role) {
            return std::any_of(mechanism.ports.begin(), mechanism.ports.end(),
                               [role](const PortRecord& port) { return port.role == role; });
        };
        Result<Tensor> query = tensor({spec.batch, spec.heads, spec.q_len, spec.dim}, 0);
        if (!query) return query.error();
        inputs.query = std::move(*query);
        if (has_role(ATTEND_K)) {
            Result<Tensor> key = tensor({spec.batch, spec.kv_heads, spec.kv_len, spec.dim}, 1);
            if (!key) return key.error();
            inputs.key = std::move(*key);
        }
        if (has_role(ATTEND_V)) {
            const std::int64_t heads = value_heads(mechanism, spec.all_options(), spec.heads, spec.kv_heads);
            Result<Tensor> value = tensor({spec.batch, heads, spec.kv_len, spec.dim}, 2);
            if (!value) return value.error();
            inputs.value = std::move(*value);
        }
        if (auto done = benchmark::add_required(spec, mechanism, 0, inputs); !done) return done.error();
        return inputs;
    }

private:
    Result<Tensor> tensor(const std::vector<std::int64_t>& shape, std::uint64_t seed) {
        const std::int64_t count = shape[0] * shape[1] * shape[2] * shape[3];
        Tensor& pool = pools_[seed];
        if (pool.size() < count || pool.data == nullptr) {
            Result<Tensor> made = Tensor::allocate(DType::f32, {count}, Tensor::Fill::none);
            if (!made) return made;
            std::uint64_t state = seed + 1;
            for (std::int64_t at = 0; at < count; ++at) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                made->as<float>()[at] = static_cast<float>(static_cast<std::int32_t>(state >> 32)) * 0x1p-30f;
            }
            pool = std::move(*made);
        }
        return pool.view(shape, compact_strides(shape));
    }

    std::map<std::uint64_t, Tensor> pools_;
};

SizeRequest sizes_of(const CallSpec& spec) {
    SizeRequest sizes;
    sizes.batch = spec.batch;
    sizes.heads = spec.heads;
    sizes.kv_heads = spec.kv_heads;
    sizes.q_len = spec.q_len;
    sizes.kv_len = spec.kv_len;
    sizes.head_dim = sizes.value_dim = spec.dim;
    return sizes;
}

// Operations and bytes as `recommend` gets them; nothing where the mechanism does not take the call or says nothing.
std::optional<CostSample> counted(const MechanismPtr& mechanism, const CallSpec& spec) {
    const Result<Estimate> estimate = estimate_call(mechanism, sizes_of(spec), spec.all_options(), spec.threads);
    if (!estimate || !estimate->flops || !(*estimate->flops > 0)) return std::nullopt;
    const auto size = [](std::int64_t value) { return static_cast<double>(value); };
    return CostSample{
        {size(spec.batch) * size(spec.heads), std::sqrt(size(spec.q_len) * size(spec.kv_len)), size(spec.dim)},
        *estimate->flops,
        std::max(estimate->bytes.value_or(0), 1.0),
        0};
}

// Not causal, unless the mechanism is nothing else.
void set_causal(CallSpec& spec, const MechanismRecord& mechanism, bool causal) {
    const OptionSpec* option = mechanism.find_option("causal");
    spec.causal = causal && option != nullptr && mechanism.has(ATTEND_CAP_CAUSAL);
    if (!spec.causal && option != nullptr && option->default_value == Json(true)) spec.options = {{"causal", false}};
}

struct Services {
    std::vector<std::unique_ptr<AttentionService>> list;  // with one thread, and with all

    static Result<Services> open(const TuningSettings& settings) {
        Services services;
        for (const std::int64_t threads : {std::int64_t{1}, settings.service.config.service.threads}) {
            ServiceSettings own = settings.service;
            own.config.service.threads = threads;
            Result<std::unique_ptr<AttentionService>> opened = AttentionService::open(std::move(own));
            if (!opened) return opened.error();
            if (services.list.empty() || (*opened)->threads() != 1) services.list.push_back(std::move(*opened));
        }
        return services;
    }
};

Result<std::vector<MechanismPtr>> mechanisms_of(const AttentionService& service, const TuningSettings& settings) {
    std::vector<MechanismPtr> list;
    for (const MechanismPtr& mechanism : service.registry()->list())
        if (settings.mechanisms.empty() && mechanism->shadowed_by.empty()) list.push_back(mechanism);
    for (const std::string& name : settings.mechanisms) {
        Result<MechanismPtr> found = service.registry()->get(name, "tune");
        if (!found) return found.error();
        if (std::find(list.begin(), list.end(), *found) == list.end()) list.push_back(std::move(*found));
    }
    return list;
}

}  // namespace

Result<CostTable> measure_costs(const TuningSettings& settings) {
    const Result<Services> services = Services::open(settings);
    if (!services) return services.error();
    const AttentionService& first = *services->list.front();
    const Result<std::vector<MechanismPtr>> mechanisms = mechanisms_of(first, settings);
    if (!mechanisms) return mechanisms.error();
    const std::size_t all =
        mechanisms->size() * services->list.size() * lengths.size() * (head_counts.size() * widths.size() + 1) * sweeps;
    // Short calls take less than their share of the time, long ones may take more.
    const double share = settings.seconds / static_cast<double>(std::max<std::size_t>(all, 1)), longest = 4 * share;
    std::vector<MechanismCosts> costs(mechanisms->size() * services->list.size());
    SharedInputs shared;
    std::size_t done = 0;
    const auto measure = [&](std::size_t at, std::int64_t heads, std::int64_t length, std::int64_t width,
                             bool causal) -> std::optional<CostSample> {
        AttentionService& service = *services->list[at % services->list.size()];
        const MechanismRecord& listed = *(*mechanisms)[at / services->list.size()];
        const MechanismPtr mechanism = service.registry()->find(listed.qualified_name());
        costs[at].mechanism = listed.name;
        costs[at].threads = service.threads();
        if (mechanism == nullptr) return std::nullopt;
        CallSpec spec;
        spec.mechanism = mechanism->qualified_name();
        spec.threads = service.threads();
        spec.heads = heads;
        spec.kv_heads = benchmark::usual_key_heads(*mechanism, heads);
        spec.q_len = spec.kv_len = length;
        spec.dim = width;
        set_causal(spec, *mechanism, causal);
        if (spec.causal != causal) return std::nullopt;
        std::optional<CostSample> sample = counted(mechanism, spec);
        if (!sample) return std::nullopt;
        // From what is known so far: would it take too long?
        const CostTable known({}, {costs[at]});
        const std::optional<double> expected =
            known.predict(listed.name, service.threads(), sample->point, sample->flops, 0);
        if (expected && *expected * static_cast<double>(least_runs + 2) > longest * 1e3) return std::nullopt;
        const Result<ForwardInputs> inputs = shared.of(spec, *mechanism);
        if (!inputs) return std::nullopt;
        const auto call = PreparedCall::make(service, *inputs, benchmark::forward_options(spec));
        if (!call) return std::nullopt;
        const std::optional<double> ms = fastest_ms(**call, share / 4);
        if (!ms) return std::nullopt;
        sample->ms = std::max(*ms, 1e-6);
        return sample;
    };
    const auto measure_all = [&](std::int64_t heads, std::int64_t length, std::int64_t width, bool causal) {
        for (std::size_t at = 0; at < costs.size(); ++at) {
            if (settings.progress) settings.progress(static_cast<double>(done++) / static_cast<double>(all));
            const std::optional<CostSample> sample = measure(at, heads, length, width, causal);
            if (!sample) continue;
            std::vector<CostSample>& known = costs[at].samples;
            const auto before = std::find_if(known.begin(), known.end(),
                                             [&](const CostSample& other) { return other.point == sample->point; });
            if (before == known.end())
                known.push_back(*sample);
            else
                before->ms = std::min(before->ms, sample->ms);
        }
    };
    // Shapes outside, so that every mechanism is measured at every length however the machine's speed drifts.
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (const std::int64_t length : lengths) {
            for (const std::int64_t heads : head_counts)
                for (const std::int64_t width : widths) measure_all(heads, length, width, false);
            measure_all(causal_heads, length, causal_width, true);
        }
    std::erase_if(costs, [](const MechanismCosts& entry) { return entry.samples.empty(); });
    return CostTable(cost_keys(first, settings.version, settings.commit), std::move(costs));
}

std::size_t CostCheck::within(double factor) const {
    return static_cast<std::size_t>(std::count_if(calls.begin(), calls.end(), [factor](const PredictedCall& call) {
        return std::abs(std::log(call.predicted_ms / call.measured_ms)) <= std::log(factor);
    }));
}

Result<CostCheck> check_costs(const CostTable& table, const TuningSettings& settings, std::size_t calls) {
    constexpr double longest_ms = 60;
    const Result<Services> services = Services::open(settings);
    if (!services) return services.error();
    std::vector<std::string> names;
    for (const MechanismCosts& costs : table.mechanisms())
        if (std::find(names.begin(), names.end(), costs.mechanism) == names.end() &&
            (settings.mechanisms.empty() || std::find(settings.mechanisms.begin(), settings.mechanisms.end(),
                                                      costs.mechanism) != settings.mechanisms.end()))
            names.push_back(costs.mechanism);
    if (names.empty())
        return Error{ErrorCode::input,
                     "tune: the table has none of the mechanisms; accepted: those that it was made for", ""};
    std::mt19937_64 engine(1);
    const auto below = [&](std::uint64_t n) { return engine() % n; };
    constexpr std::array<std::int64_t, 5> dims{32, 48, 64, 96, 128};
    struct Planned {
        CallSpec spec;
        AttentionService* service;
        MechanismPtr mechanism;
    };
    std::vector<Planned> planned;
    CostCheck check;
    for (std::size_t attempt = 0; planned.size() < calls && attempt < 20 * calls; ++attempt) {
        AttentionService& service = *services->list[below(services->list.size())];
        const MechanismPtr mechanism = service.registry()->find(names[planned.size() % names.size()]);
        if (!mechanism) continue;
        CallSpec spec;
        spec.mechanism = mechanism->qualified_name();
        spec.threads = service.threads();
        spec.batch = 1 + static_cast<std::int64_t>(below(2));
        spec.heads = std::int64_t{1} << below(4);
        spec.kv_heads = benchmark::usual_key_heads(*mechanism, spec.heads);
        // Between 32 and 2048, every octave as often.
        spec.q_len = spec.kv_len =
            static_cast<std::int64_t>(std::exp2(5.0 + 6.0 * static_cast<double>(below(1000)) / 1000.0));
        spec.dim = dims[below(dims.size())];
        set_causal(spec, *mechanism, below(2) == 0);
        const std::optional<CostSample> sample = counted(mechanism, spec);
        if (!sample) continue;
        const std::optional<double> predicted =
            table.predict(mechanism->name, service.threads(), sample->point, sample->flops, sample->bytes);
        if (!predicted || *predicted > longest_ms) continue;
        check.calls.push_back({mechanism->name, spec.shape_text() + (spec.causal ? " causal" : ""), spec.threads,
                               *predicted, std::numeric_limits<double>::infinity()});
        planned.push_back({std::move(spec), &service, mechanism});
    }
    SharedInputs shared;
    for (int sweep = 0; sweep < sweeps; ++sweep)
        for (std::size_t at = 0; at < planned.size(); ++at) {
            if (settings.progress)
                settings.progress((static_cast<double>(at) / static_cast<double>(planned.size()) + sweep) / sweeps);
            const auto& [spec, service, mechanism] = planned[at];
            const Result<ForwardInputs> inputs = shared.of(spec, *mechanism);
            if (!inputs) continue;
            const auto call = PreparedCall::make(*service, *inputs, benchmark::forward_options(spec));
            if (!call) continue;
            if (const std::optional<double> measured = fastest_ms(**call, 0.02))
                check.calls[at].measured_ms = std::min(check.calls[at].measured_ms, std::max(*measured, 1e-6));
        }
    // What the mechanism did not take after all, as an odd number of heads.
    std::erase_if(check.calls, [](const PredictedCall& call) { return std::isinf(call.measured_ms); });
    std::sort(check.calls.begin(), check.calls.end(), [](const PredictedCall& a, const PredictedCall& b) {
        const auto off = [](const PredictedCall& call) {
            return std::abs(std::log(call.predicted_ms / call.measured_ms));
        };
        return off(a) > off(b);
    });
    return check;
}

}  // namespace attend
