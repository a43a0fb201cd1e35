// SPDX-License-Identifier: Apache-2.0
#include "benchmark/call.hpp"

#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <random>

#include "plugin_services/parallel.hpp"
#include "service/core_shapes.hpp"
#include "service/weights.hpp"

namespace attend::benchmark {
namespace {

using Clock = std::chrono::steady_clock;
using Shape = std::vector<std::int64_t>;

double milliseconds(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double, std::milli>(end - begin).count();
}

Result<Tensor> normal(std::vector<std::int64_t> shape, DType dtype, std::uint64_t seed, const std::string& name) {
    constexpr std::int64_t drawn = std::int64_t{1} << 21;
    Result<Tensor> made = Tensor::allocate(DType::f32, std::move(shape), Tensor::Fill::none);
    if (!made) return made;
    float* data = made->as<float>();
    const std::int64_t count = made->size();
    fill_normal(data, std::min(count, drawn), seed, RandomDomain::data, name);
    for (std::int64_t at = drawn; at < count; at += drawn)
        std::memcpy(data + at, data, static_cast<std::size_t>(std::min(drawn, count - at)) * sizeof(float));
    return dtype == DType::f32 ? std::move(made) : convert(*made, dtype);
}

// Three of four pairs may attend, every query at least key 0.
Result<Tensor> boolean_mask(std::int64_t q_len, std::int64_t kv_len) {
    Result<Tensor> made = Tensor::allocate(DType::u8, {1, 1, q_len, kv_len}, Tensor::Fill::none);
    if (!made) return made;
    std::uint64_t state = 0x9E3779B97F4A7C15u;
    auto* data = made->as<std::uint8_t>();
    for (std::int64_t at = 0; at < made->size(); ++at) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        data[at] = at % kv_len == 0 || (state >> 62) != 0 ? 1 : 0;
    }
    return made;
}

// Sizes as the port grammar names them.
Result<PortScope> scope_of(const CallSpec& spec, const MechanismRecord& mechanism,
                           const std::vector<OptionValue>& values) {
    PortScope scope;
    const auto number = [](std::int64_t value) { return static_cast<double>(value); };
    scope.symbols = {{"B", number(spec.batch)},  {"Hq", number(spec.heads)},  {"Hkv", number(spec.kv_heads)},
                     {"Nq", number(spec.q_len)}, {"Nk", number(spec.kv_len)}, {"D", number(spec.dim)},
                     {"Dv", number(spec.dim)}};
    scope.specs = &mechanism.options;
    scope.values = &values;
    return scope;
}

}  // namespace

// Inputs that the mechanism asks for by name: small normal numbers, or zeros where they are of integers.
Result<void> add_required(const CallSpec& spec, const MechanismRecord& mechanism, std::uint64_t seed,
                          ForwardInputs& inputs) {
    Result<std::vector<OptionValue>> values = complete_options(mechanism.name, mechanism.options, spec.all_options());
    if (!values) return values.error();
    const Result<PortScope> scope = scope_of(spec, mechanism, *values);
    for (const PortRecord& port : mechanism.ports) {
        if ((port.flags & ATTEND_INPUT) == 0 || (port.flags & ATTEND_OPTIONAL) != 0 || port.role != 0) continue;
        if (!port.init.empty()) continue;  // absent means another input
        const Result<PortShape> shape = PortShape::parse(port.shape);
        if (!shape) return shape.error();
        const ShapeAlternative* chosen = shape->choose(*scope);
        if (chosen == nullptr) continue;
        std::vector<std::int64_t> extents;
        for (const Expression& dim : chosen->dims) {
            const std::optional<double> extent = dim.evaluate(*scope);
            extents.push_back(extent ? static_cast<std::int64_t>(*extent) : 16);
        }
        const bool real = (port.dtypes & (ATTEND_F32 | ATTEND_F16 | ATTEND_BF16)) != 0;
        Result<Tensor> made = real ? normal(extents, DType::f32, seed, "data/input/" + port.name)
                                   : Tensor::allocate((port.dtypes & ATTEND_I32) != 0   ? DType::i32
                                                      : (port.dtypes & ATTEND_I64) != 0 ? DType::i64
                                                                                        : DType::u8,
                                                      extents);
        if (!made) return made.error();
        inputs.extra.emplace_back(port.name, std::move(*made));
    }
    return {};
}

namespace {

const Tensor* source_of(const ForwardInputs& inputs, const BoundInput& bound) {
    const auto given = [](const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; };
    switch (bound.source) {
        case Source::query: return &inputs.query;
        case Source::key: return given(inputs.key);
        case Source::value: return given(inputs.value);
        case Source::mask: return given(inputs.mask);
        case Source::bias: return given(inputs.bias);
        case Source::query_lengths: return given(inputs.query_lengths);
        case Source::key_lengths: return given(inputs.key_lengths);
        case Source::extra: return &inputs.extra[bound.extra_index].second;
    }
    return nullptr;
}

std::uint64_t status_bytes(const char* name) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with(name)) return std::stoull(line.substr(std::strlen(name))) * 1024;
    return 0;
}

}  // namespace

// A power of two: codes times it are exact.
constexpr float code_step = 1.0f / 32.0f;

CallSpec CallSpec::small() const {
    CallSpec spec = *this;
    const bool one_query = q_len == 1;
    const bool square = q_len == kv_len;
    spec.batch = std::min<std::int64_t>(batch, 2);
    spec.q_len = std::min<std::int64_t>(q_len, 150);
    spec.kv_len = square ? spec.q_len : std::min<std::int64_t>(kv_len, one_query ? 700 : 190);
    return spec;
}

NamedValues CallSpec::all_options() const {
    NamedValues all = options;
    if (causal) all.emplace_back("causal", true);
    return all;
}

std::string CallSpec::key() const {
    std::string text = mechanism + "|" + dtype_name(dtype) + "|" + precision + "|" + backend;
    for (const auto& [name, value] : options) text += "|" + name + "=" + write_json(value);
    for (const std::int64_t number : {static_cast<std::int64_t>(threads), batch, heads, kv_heads, q_len, kv_len, dim})
        text += "|" + std::to_string(number);
    for (const bool flag : {causal, bias, mask, alibi, projection, codes}) text += flag ? "|1" : "|0";
    return text + "|" + std::to_string(page);
}

std::string CallSpec::shape_text() const {
    if (projection) return "[" + std::to_string(q_len) + "," + std::to_string(dim) + "] x W^T";
    std::string text = "B" + std::to_string(batch) + " H" + std::to_string(heads);
    if (kv_heads != heads) text += "/" + std::to_string(kv_heads);
    text += " N" + std::to_string(q_len);
    if (kv_len != q_len) text += "/" + std::to_string(kv_len);
    text += " D" + std::to_string(dim);
    if (page > 0) text += " pages of " + std::to_string(page);
    return text;
}

Result<ForwardInputs> make_inputs(const CallSpec& spec, const MechanismRecord& mechanism, std::uint64_t seed) {
    ForwardInputs inputs;
    const auto has_role = [&](std::uint32_t role) {
        return std::any_of(mechanism.ports.begin(), mechanism.ports.end(),
                           [role](const PortRecord& port) { return port.role == role; });
    };
    if (spec.projection) {
        Result<Tensor> input = normal({1, 1, spec.q_len, spec.dim}, spec.dtype, seed, "data/query");
        Result<Tensor> weight = normal({1, 1, spec.dim, spec.dim}, spec.dtype, seed, "data/key");
        if (!input) return input.error();
        if (!weight) return weight.error();
        inputs.query = std::move(*input);
        inputs.key = std::move(*weight);
        return inputs;
    }
    Result<Tensor> query = normal({spec.batch, spec.heads, spec.q_len, spec.dim}, spec.dtype, seed, "data/query");
    if (!query) return query.error();
    inputs.query = std::move(*query);
    const std::vector<std::int64_t> kv{spec.batch, spec.kv_heads, spec.kv_len, spec.dim};
    if (has_role(ATTEND_K)) {
        Result<Tensor> key = normal(kv, spec.dtype, seed, "data/key");
        if (!key) return key.error();
        inputs.key = std::move(*key);
    }
    if (has_role(ATTEND_V)) {
        const std::int64_t heads = value_heads(mechanism, spec.all_options(), spec.heads, spec.kv_heads);
        Result<Tensor> value = normal({spec.batch, heads, spec.kv_len, spec.dim}, spec.dtype, seed, "data/value");
        if (!value) return value.error();
        inputs.value = std::move(*value);
    }
    // Numbers that codes can stand for.
    if (spec.codes)
        for (Tensor* side : {&*inputs.key, &*inputs.value})
            for (std::int64_t at = 0; at < side->size(); ++at) {
                float& x = side->as<float>()[at];
                x = code_step * std::clamp(std::nearbyint(x / code_step), -127.0f, 127.0f);
            }
    if (spec.bias) {
        Result<Tensor> bias = normal({1, spec.heads, spec.q_len, spec.kv_len}, DType::f32, seed, "data/bias");
        if (!bias) return bias.error();
        inputs.bias = std::move(*bias);
    }
    if (spec.mask) {
        Result<Tensor> mask = boolean_mask(spec.q_len, spec.kv_len);
        if (!mask) return mask.error();
        inputs.mask = std::move(*mask);
    }
    if (spec.alibi) {
        Result<Tensor> slopes = Tensor::allocate(DType::f32, {spec.heads});
        if (!slopes) return slopes.error();
        for (std::int64_t head = 0; head < spec.heads; ++head)
            slopes->as<float>()[head] =
                static_cast<float>(std::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(spec.heads)));
        inputs.extra.emplace_back("alibi_slopes", std::move(*slopes));
    }
    if (auto done = add_required(spec, mechanism, seed, inputs); !done) return done.error();
    return inputs;
}

Result<ForwardInputs> in_cache(const CallSpec& spec, const ForwardInputs& inputs, std::uint64_t seed) {
    if (!spec.codes && spec.page == 0) return inputs;
    ForwardInputs cache = inputs;
    std::vector<std::pair<const char*, std::optional<Tensor>*>> sides{{"key", &cache.key}, {"value", &cache.value}};
    const std::int64_t entries = spec.page > 0 ? (spec.kv_len + spec.page - 1) / spec.page : 0;
    std::vector<std::int32_t> order(static_cast<std::size_t>(spec.batch * entries));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    for (auto& [name, side] : sides) {
        const Tensor dense = **side;
        const std::int64_t width = dense.shape[3];
        const DType dtype = spec.codes ? DType::i8 : dense.dtype;
        const std::size_t bytes = dtype_size(dtype);
        const std::vector<std::int64_t> shape =
            spec.page > 0 ? Shape{spec.batch * entries, spec.kv_heads, spec.page, width} : dense.shape;
        Result<Tensor> made = Tensor::allocate(dtype, shape);
        if (!made) return made.error();
        for (std::int64_t item = 0; item < spec.batch; ++item)
            for (std::int64_t head = 0; head < spec.kv_heads; ++head)
                for (std::int64_t key = 0; key < spec.kv_len; ++key) {
                    const std::int64_t from = ((item * spec.kv_heads + head) * spec.kv_len + key) * width;
                    std::int64_t to = from;
                    if (spec.page > 0)
                        to = ((order[static_cast<std::size_t>(item * entries + key / spec.page)] * spec.kv_heads +
                               head) *
                                  spec.page +
                              key % spec.page) *
                             width;
                    if (spec.codes)
                        for (std::int64_t at = 0; at < width; ++at)
                            made->as<std::int8_t>()[to + at] =
                                static_cast<std::int8_t>(dense.as<float>()[from + at] / code_step);
                    else
                        std::memcpy(static_cast<char*>(made->data) + static_cast<std::size_t>(to) * bytes,
                                    static_cast<const char*>(dense.data) + static_cast<std::size_t>(from) * bytes,
                                    static_cast<std::size_t>(width) * bytes);
                }
        if (spec.page > 0) {
            side->reset();
            cache.extra.emplace_back(std::string(name) + "_pages", std::move(*made));
        } else {
            *side = std::move(*made);
        }
        if (!spec.codes) continue;
        constexpr std::int64_t block = 128;  // the default of flash-decoding
        Result<Tensor> scale = Tensor::allocate(
            DType::f32, spec.page > 0 ? Shape{spec.batch * entries, spec.kv_heads, 1}
                                      : Shape{spec.batch, spec.kv_heads, (spec.kv_len + block - 1) / block});
        if (!scale) return scale.error();
        std::fill_n(scale->as<float>(), scale->size(), code_step);
        cache.extra.emplace_back(std::string(name) + "_scale", std::move(*scale));
    }
    if (spec.page == 0) return cache;
    Result<Tensor> table = Tensor::allocate(DType::i32, {spec.batch, entries});
    Result<Tensor> lengths = Tensor::allocate(DType::i32, {spec.batch});
    if (!table) return table.error();
    if (!lengths) return lengths.error();
    std::copy(order.begin(), order.end(), table->as<std::int32_t>());
    std::fill_n(lengths->as<std::int32_t>(), spec.batch, static_cast<std::int32_t>(spec.kv_len));
    cache.extra.emplace_back("block_table", std::move(*table));
    cache.key_lengths = std::move(*lengths);
    return cache;
}

ForwardOptions forward_options(const CallSpec& spec) {
    ForwardOptions options;
    options.mechanism = spec.mechanism;
    options.options = spec.all_options();
    options.precision = spec.precision;
    options.use_cache = false;  // every call that is timed or counted is computed
    return options;
}

std::string unfit(const CallSpec& spec, const MechanismRecord& mechanism) {
    const OptionSpec* causal = mechanism.find_option("causal");
    if (spec.causal && causal == nullptr) return "it has no option causal";
    if (spec.kv_heads != spec.heads && !mechanism.has(ATTEND_CAP_GQA) && !mechanism.has(ATTEND_CAP_MQA))
        return "it takes as many key heads as query heads";
    if (spec.bias && !mechanism.has(ATTEND_CAP_BIAS)) return "it takes no bias";
    if (spec.mask && !mechanism.has(ATTEND_CAP_MASK)) return "it takes no mask";
    if (spec.alibi && mechanism.find_port("alibi_slopes") == nullptr) return "it has no input alibi_slopes";
    if (spec.page > 0 && mechanism.find_port("key_pages") == nullptr) return "it has no input key_pages";
    if (spec.codes && mechanism.find_port("key_scale") == nullptr) return "it has no input key_scale";
    return "";
}

Result<std::unique_ptr<PreparedCall>> PreparedCall::make(AttentionService& service, const ForwardInputs& inputs,
                                                         const ForwardOptions& options) {
    ::malloc_trim(0);  // memory of earlier calls, taken again, would hide what this one needs
    reset_peak_resident();
    const std::uint64_t before = resident_bytes();
    Result<ForwardResult> first = service.forward(inputs, options);
    if (!first) return first.error();
    std::unique_ptr<PreparedCall> call(new PreparedCall);
    const std::uint64_t after = peak_resident_bytes();
    call->growth_ = after > before ? after - before : 0;
    call->first_ = std::move(*first);
    call->plan_ = call->first_.plan;
    const CallPlan& plan = *call->plan_;
    const std::size_t input_count = plan.inputs.size(), count = input_count + plan.outputs.size();
    call->tensors_.resize(count);
    call->bindings_.resize(count);
    const auto bind = [&](std::size_t at, const PortRecord& port, void* data) {
        call->tensors_[at] = plan.tensors[at].tensor;
        call->tensors_[at].data = data;
        call->bindings_[at] = {sizeof(attend_binding), port.role, port.name.c_str(), &call->tensors_[at]};
    };
    for (std::size_t at = 0; at < input_count; ++at) {
        const Tensor* source = source_of(inputs, plan.inputs[at]);
        if (source == nullptr) source = &inputs.query;
        const bool of_floats = is_float(source->dtype) && is_float(plan.inputs[at].dtype);
        Result<Tensor> tensor = of_floats ? convert(*source, plan.inputs[at].dtype) : Result<Tensor>(*source);
        if (!tensor) return tensor.error();
        bind(at, *plan.inputs[at].port, tensor->data);
        call->kept_.push_back(std::move(*tensor));
    }
    call->rows_.assign(plan.outputs.size(), -1);
    for (std::size_t at = 0; at < plan.outputs.size(); ++at) {
        const BoundOutput& bound = plan.outputs[at];
        Result<Tensor> made = Tensor::allocate(bound.dtype, bound.result_shape);
        if (!made) return made.error();
        bind(input_count + at, *bound.port, made->data);
        if (bound.dynamic_rows)
            call->dynamic_.push_back({sizeof(attend_dynamic_row), 0, bound.port->name.c_str(), &call->rows_[at]});
        if (bound.port->role == ATTEND_OUT) call->main_output_ = at;
        call->outputs_.push_back(std::move(*made));
    }
    // Aligned by hand: the plan may want more than the 64 bytes that a tensor has.
    const std::uint64_t align = std::max<std::uint64_t>(plan.workspace_align, 64);
    Result<Tensor> workspace = Tensor::allocate(DType::u8, {static_cast<std::int64_t>(plan.workspace_bytes + align)});
    if (!workspace) return workspace.error();
    call->workspace_ = std::move(*workspace);
    const auto address = reinterpret_cast<std::uintptr_t>(call->workspace_.data);
    call->call_.max_workers = service.threads();
    call->block_ = {
        sizeof(attend_dynamic_rows),
        0,
        ATTEND_EXT_DYNAMIC_ROWS,
        nullptr,
        {call->dynamic_.data(), static_cast<std::uint32_t>(call->dynamic_.size()), sizeof(attend_dynamic_row)}};
    attend_exec& exec = call->exec_;
    exec.struct_size = sizeof exec;
    exec.bindings = {call->bindings_.data(), static_cast<std::uint32_t>(count), sizeof(attend_binding)};
    exec.workspace = reinterpret_cast<void*>((address + align - 1) / align * align);
    exec.workspace_bytes = plan.workspace_bytes;
    exec.seed = plan.seed;
    exec.rng_offset = plan.rng_offset;
    exec.call = &call->call_;
    exec.next = call->dynamic_.empty() ? nullptr : reinterpret_cast<const attend_ext*>(&call->block_);
    if (!call->run())
        return Error{ErrorCode::internal, options.mechanism + ": the plugin failed on tensors that it had taken before",
                     ""};
    return call;
}

double PreparedCall::bytes_moved() const {
    double bytes = 0;
    for (const Tensor& tensor : kept_) bytes += static_cast<double>(tensor.byte_size());
    for (const Tensor& tensor : outputs_) bytes += static_cast<double>(tensor.byte_size());
    return bytes;
}

DType PreparedCall::input_dtype() const { return plan_->inputs.empty() ? DType::f32 : plan_->inputs.front().dtype; }

Timing summarise(std::vector<double> samples, std::uint64_t runs) {
    if (samples.empty()) return {};
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double share) {
        const double place = share * static_cast<double>(samples.size() - 1);
        const auto low = static_cast<std::size_t>(place);
        const std::size_t high = std::min(low + 1, samples.size() - 1);
        return samples[low] + (place - static_cast<double>(low)) * (samples[high] - samples[low]);
    };
    return {runs, at(0.5), at(0.25), at(0.75), samples.front()};
}

Timing time_call(PreparedCall& call, std::uint64_t least, double seconds) {
    // The warm-up also tells how many calls make a sample of at least 20 us.
    double once = 0;
    const auto warm = Clock::now();
    for (int run = 0; run < 3 || (milliseconds(warm, Clock::now()) < 10.0 && run < 1000); ++run) {
        const auto begin = Clock::now();
        if (!call.run()) return {};
        once = milliseconds(begin, Clock::now());
        if (once > 300.0) break;
    }
    const std::uint64_t batch = once >= 0.02 ? 1 : static_cast<std::uint64_t>(0.02 / std::max(once, 1e-5)) + 1;
    std::vector<double> samples;
    const auto begin = Clock::now();
    while (samples.size() < least || (milliseconds(begin, Clock::now()) < seconds * 1e3 && samples.size() < 5000)) {
        const auto start = Clock::now();
        for (std::uint64_t run = 0; run < batch; ++run)
            if (!call.run()) return {};
        samples.push_back(milliseconds(start, Clock::now()) / static_cast<double>(batch));
    }
    const std::uint64_t runs = samples.size() * batch;
    return summarise(std::move(samples), runs);
}

std::int64_t preemptions() {
    rusage usage{};
    return ::getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<std::int64_t>(usage.ru_nivcsw) : 0;
}

std::uint64_t resident_bytes() { return status_bytes("VmRSS:"); }
std::uint64_t peak_resident_bytes() { return status_bytes("VmHWM:"); }
void reset_peak_resident() {
    std::ofstream clear("/proc/self/clear_refs");
    clear << "5";
}

}  // namespace attend::benchmark
