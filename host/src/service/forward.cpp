// SPDX-License-Identifier: Apache-2.0
// A call from its inputs to its result: chosen, planned or recognised, then served by the result cache or computed.
#include <chrono>

#include "service/service_state.hpp"

namespace attend {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point begin) {
    return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Float32 throughout: the caller's tensors are what the plan reads.
bool read_as_given(const ForwardInputs& inputs, const CallTypes& types) {
    if ((inputs.bias && inputs.bias->dtype != DType::f32) || !inputs.extra.empty() || !inputs.weights.empty())
        return false;
    return inputs.query.dtype == types.query && types.query == DType::f32 &&
           (!inputs.key || inputs.key->dtype == types.key_value) &&
           (!inputs.value || inputs.value->dtype == types.key_value);
}

// What a call costs where nobody has measured it, by a rate that every processor in question reaches; and the rate of the
// slowest mechanisms, which a first run, made in cold caches, is not to fall below.
constexpr double usual_flops_per_ms = 20e6, slowest_flops_per_ms = 1e6;

// Whether the result has more than output and LSE: scores, routing and other reports.
bool has_pattern(const CallPlan& plan) {
    return std::any_of(plan.outputs.begin(), plan.outputs.end(), [](const BoundOutput& output) {
        return output.port->role != ATTEND_OUT && output.port->role != ATTEND_LSE;
    });
}

// What the name of a call has to read: all but registered tensors.
std::uint64_t hashed_bytes(const ForwardCall& call) {
    const ForwardInputs& inputs = call.inputs();
    std::uint64_t bytes = inputs.query.byte_size();
    for (const auto* tensor :
         {&inputs.key, &inputs.value, &inputs.mask, &inputs.bias, &inputs.query_lengths, &inputs.key_lengths})
        if (*tensor) bytes += (*tensor)->byte_size();
    for (const auto* list : {&inputs.extra, &inputs.weights})
        for (const auto& [name, tensor] : *list) bytes += tensor.byte_size();
    for (const HandleUse& use : call.handles) bytes -= std::min(bytes, use.bytes);
    return bytes;
}

// The bytes of outputs and workspace.
std::uint64_t bytes_of(const CallPlan& plan) {
    std::uint64_t bytes = plan.workspace_bytes;
    for (const BoundOutput& output : plan.outputs) {
        const auto size = checked_byte_size(output.result_shape, dtype_size(output.dtype));
        bytes += size ? static_cast<std::uint64_t>(*size) : 0;
    }
    return bytes;
}

}  // namespace

void AttentionService::State::write_key(KeyWriter& key, std::uint64_t epoch, const ForwardInputs& inputs,
                                        const ForwardOptions& options) {
    key.clear();
    key.number(static_cast<std::int64_t>(epoch));
    key.text(options.mechanism);
    key.number(options.heads);
    key.number(options.kv_heads);
    key.number((options.lse ? 1 : 0) + (options.scores ? 2 : 0));
    key.text(options.precision);
    key.number(static_cast<std::int64_t>(options.options.size()));
    for (const auto& [name, value] : options.options) {
        key.text(name);
        key.json(value);
    }
    for (const auto& [name, value] : options.facts) {
        key.text(name);
        if (const double* number = std::get_if<double>(&value))
            key.text(std::string_view(reinterpret_cast<const char*>(number), sizeof *number));
        else if (const bool* flag = std::get_if<bool>(&value))
            key.number(*flag ? 1 : 0);
        else
            key.text(std::get<std::string>(value));
    }
    key.tensor(inputs.query);
    for (const auto* tensor :
         {&inputs.key, &inputs.value, &inputs.mask, &inputs.bias, &inputs.query_lengths, &inputs.key_lengths})
        key.tensor(*tensor);
    for (const auto& [name, tensor] : inputs.extra) {
        key.text(name);
        key.tensor(tensor);
    }
    // Whether the keys are the queries is a variable of rules.
    key.number(inputs.key && inputs.key->data == inputs.query.data ? 1 : 0);
}

Result<void> AttentionService::State::prepare(ForwardCall& call, const ForwardInputs& given,
                                              const ForwardOptions& options) {
    if (!call.config) {
        Now now = this->now();
        call.config = std::move(now.config);
        call.epoch = now.epoch;
        call.passed = std::move(now.passed);
    }
    call.given = &given;
    call.options = &options;
    if (!given.handles.empty()) {
        Result<ForwardInputs> resolved = handles.resolve(given, call.handles);
        if (!resolved) return resolved.error();
        call.complete = std::move(*resolved);
    }
    Result<std::optional<ForwardInputs>> with_weights = with_projections(call.inputs(), options);
    if (!with_weights) return with_weights.error();
    if (*with_weights) call.complete = std::move(**with_weights);
    const ForwardInputs& inputs = call.inputs();
    // Plans bound to the caller's weights are not kept: their memory may change under a plan that repacked it.
    const bool keeps_plan = inputs.weights.empty();
    thread_local KeyWriter key;
    if (keeps_plan) {
        write_key(key, call.epoch, inputs, options);
        call.plan = plans.find(key.key());
    }
    if (call.plan) {
        call.plan_reused = true;
        if (!read_as_given(inputs, call.plan->types)) {
            Result<ForwardInputs> done = convert_inputs(*call.plan->mechanism, inputs, call.plan->types);
            if (!done) return done.error();
            call.converted = std::move(*done);
        }
        return {};
    }
    const bool automatic = options.mechanism == "auto";
    const Clock::time_point begin = automatic ? Clock::now() : Clock::time_point{};
    Result<Selection> selection = choose(*call.config, *call.passed, inputs, options);
    if (!selection) return selection.error();
    if (automatic) metrics.record_selection(ms_since(begin) * 1e3, selection->refusals.size());
    CallRequest request{selection->options,
                        options.heads,
                        options.kv_heads,
                        options.lse,
                        options.scores,
                        options.precision.empty() ? call.config->service.precision : options.precision,
                        !options.precision.empty()};
    const Result<CallForm> form = choose_form(*selection->mechanism, &inputs, request);
    if (!form) return form.error();
    Result<CallTypes> types = choose_types(*selection->mechanism, inputs, request, *form);
    if (!types) return types.error();
    request.types = *types;
    if (!read_as_given(inputs, *types)) {
        Result<ForwardInputs> done = convert_inputs(*selection->mechanism, inputs, *types);
        if (!done) return done.error();
        call.converted = std::move(*done);
    }
    Result<std::shared_ptr<CallPlan>> built =
        build_call(selection->mechanism, call.read_inputs(), request, *form, machine->pool->workers());
    if (!built) return built.error();
    (*built)->reason = selection->reason + ((*built)->default_weights ? "; default weights" : "");
    (*built)->metrics = metrics.of(selection->mechanism->name);
    if (automatic) (*built)->rule_hits = metrics.rule(selection->rule);
    (*built)->call_bytes = bytes_of(**built);
    call.plan = std::move(*built);
    if (keeps_plan) plans.add(key.key(), call.plan);
    return {};
}

Result<ForwardResult> AttentionService::State::compute(const ForwardCall& call, std::uint32_t workers) {
    Result<ForwardResult> result = run_call(*call.plan, call.read_inputs(), workers, call.options->cancel.get());
    if (!result) return result;
    // One rounding at the end: the output has the query's data type.
    if (call.inputs().query.dtype != result->output.dtype) {
        Result<Tensor> rounded = convert(result->output, call.inputs().query.dtype);
        if (!rounded) return rounded.error();
        result->output = std::move(*rounded);
    }
    return result;
}

bool AttentionService::State::worth_caching(const ForwardCall& call, std::uint32_t workers) const {
    const CallPlan& plan = *call.plan;
    const CacheConfig& config = call.config->cache;
    const bool pattern = has_pattern(plan);
    // A level that could neither serve nor keep anything of this call.
    if (config.level == "output" && (pattern || !call.options->output)) return false;
    if (config.level == "pattern" && !pattern) return false;
    if (config.mode == "on") return true;
    double ms = plan.fastest_ms.load(std::memory_order_relaxed);
    if (ms == 0) {
        if (plan.flops <= 0) return true;  // no formula and never run
        ms = plan.flops / (usual_flops_per_ms * workers);
    } else if (plan.flops > 0) {
        ms = std::min(ms, plan.flops / slowest_flops_per_ms);
    }
    return ms >= 4 * hash_rate.ms(hashed_bytes(call));
}

Result<ForwardResult> AttentionService::State::carry_out(const ForwardCall& call, std::uint32_t workers) {
    const Config& config = *call.config;
    const bool cached = call.options->use_cache && config.service.enable_cache && config.cache.mode != "off";
    const BytesInUse held(metrics, call.plan->call_bytes);
    Result<ForwardResult> result = [&]() -> Result<ForwardResult> {
        if (!cached) return compute(call, workers);
        if (!worth_caching(call, workers)) {
            results.count_bypass();
            return compute(call, workers);
        }
        const auto begin = Clock::now();
        const NamedTensors roles = inputs_by_role(call.inputs());
        CacheQuery query = cache_query(call, roles, *machine);
        const double hash_ms = ms_since(begin);
        hash_rate.record(hashed_bytes(call), hash_ms * 1e-3);
        query.needs_output = call.options->output;
        query.needs_pattern = has_pattern(*call.plan);
        query.stores_output = config.cache.level != "pattern";
        query.stores_pattern = config.cache.level != "output";
        query.ttl_ms = config.cache.ttl_ms;
        query.cancelled = call.options->cancel.get();
        if (config.cache.verify == "full") query.inputs = &roles;
        Result<ForwardResult> served = results.serve(query, [&] { return compute(call, workers); });
        if (served && served->cached) served->time_ms += hash_ms;
        return served;
    }();
    if (!result) {
        metrics.count_error(result.error().code);
        return result;
    }
    const CallPlan& plan = *call.plan;
    plan.metrics->record(result->time_ms, static_cast<std::uint64_t>(plan.desc.batch * plan.desc.q_len), plan.flops);
    if (plan.rule_hits) plan.rule_hits->fetch_add(1, std::memory_order_relaxed);
    const MechanismRecord& mechanism = *plan.mechanism;
    result->mechanism = mechanism.name;
    result->plugin = mechanism.plugin_id;
    result->plugin_version = mechanism.plugin_version;
    result->backend = plan.variant;
    result->precision = plan.types.query == DType::bf16 ? "bf16" : plan.types.query == DType::f16 ? "fp16" : "fp32";
    result->exactness = exactness_name(mechanism.numerics);
    result->reason = plan.reason;
    result->warnings = plan.warnings;
    result->plan = call.plan;
    result->plan_reused = call.plan_reused;
    result->flops = plan.flops;
    result->workspace_bytes = plan.workspace_bytes;
    return result;
}

Result<ForwardResult> AttentionService::State::forward(const ForwardInputs& inputs, const ForwardOptions& options) {
    ForwardCall call;
    if (auto done = prepare(call, inputs, options); !done) {
        metrics.count_error(done.error().code);
        return done.error();
    }
    return carry_out(call, machine->pool->workers());
}

Result<ForwardResult> AttentionService::forward(const ForwardInputs& inputs, const ForwardOptions& options) {
    return state_->forward(inputs, options);
}

void AttentionService::invalidate() { state_->results.invalidate(); }

void AttentionService::invalidate(const std::string& mechanism) {
    const MechanismPtr found = state_->registry.snapshot()->find(mechanism);
    state_->results.invalidate(found ? found->qualified_name() : mechanism);
}

void AttentionService::invalidate_handle(TensorHandle handle) { state_->results.invalidate(handle); }
Result<TensorHandle> AttentionService::register_tensor(const Tensor& tensor) { return state_->handles.add(tensor); }
Result<void> AttentionService::touch(TensorHandle handle) { return state_->handles.touch(handle); }
Result<void> AttentionService::release(TensorHandle handle) { return state_->handles.release(handle); }

}  // namespace attend
