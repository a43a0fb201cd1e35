// SPDX-License-Identifier: Apache-2.0
// The hot path: tensors of known shapes into a plan that exists. Nothing is parsed, checked or looked up by name here.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>

#include "service/call_plan.hpp"
#include "service/status.hpp"

namespace attend {
namespace {

struct Free {
    void operator()(void* p) const noexcept { std::free(p); }
};

// Descriptions of a call's tensors: on the stack, for few.
template <class T>
class Few {
public:
    explicit Few(std::size_t count) {
        if (count > own_.size()) more_ = std::make_unique<T[]>(count);
    }
    T* data() { return more_ ? more_.get() : own_.data(); }

private:
    std::array<T, 8> own_;
    std::unique_ptr<T[]> more_;
};

void fill(attend_tensor& to, const CallTensor& from, void* data) {
    to = from.tensor;
    to.data = data;
}

}  // namespace

const Tensor* bound_tensor(const ForwardInputs& inputs, const BoundInput& bound) {
    switch (bound.source) {
        case Source::query: return &inputs.query;
        case Source::key: return &*inputs.key;
        case Source::value: return &*inputs.value;
        case Source::mask: return &*inputs.mask;
        case Source::bias: return &*inputs.bias;
        case Source::query_lengths: return &*inputs.query_lengths;
        case Source::key_lengths: return &*inputs.key_lengths;
        case Source::extra: return &inputs.extra[bound.extra_index].second;
    }
    return nullptr;
}

void* thread_workspace(std::uint64_t bytes, std::uint64_t align) {
    thread_local std::unique_ptr<void, Free> buffer;
    thread_local std::uint64_t size = 0, alignment = 0;
    if (bytes == 0) return nullptr;
    if (size < bytes || alignment < align) {
        buffer.reset();
        const std::uint64_t rounded = (bytes + align - 1) / align * align;
        buffer.reset(std::aligned_alloc(align, rounded));
        size = buffer ? rounded : 0;
        alignment = buffer ? align : 0;
    }
    return buffer.get();
}

Result<ForwardResult> run_call(const CallPlan& plan, const ForwardInputs& inputs, std::uint32_t max_workers,
                               const std::atomic<bool>* cancel) {
    const MechanismRecord& mechanism = *plan.mechanism;
    const auto cancelled = [&] { return cancel != nullptr && cancel->load(std::memory_order_relaxed); };
    if (cancelled()) return Error{ErrorCode::cancelled, mechanism.name + ": was cancelled", ""};
    const std::size_t input_count = plan.inputs.size(), count = input_count + plan.outputs.size();
    Few<attend_tensor> tensor_memory(count);
    Few<attend_binding> binding_memory(count);
    attend_tensor* const tensors = tensor_memory.data();
    attend_binding* const bindings = binding_memory.data();
    ForwardResult result;
    std::vector<attend_dynamic_row> dynamic;
    std::vector<std::int64_t> rows;
    if (std::any_of(plan.outputs.begin(), plan.outputs.end(), [](const BoundOutput& out) { return out.dynamic_rows; }))
        rows.assign(plan.outputs.size(), -1);
    const auto bind = [&](std::size_t at, const PortRecord& port) {
        bindings[at] = {sizeof(attend_binding), port.role, port.name.c_str(), &tensors[at]};
    };
    for (std::size_t at = 0; at < input_count; ++at) {
        fill(tensors[at], plan.tensors[at], bound_tensor(inputs, plan.inputs[at])->data);
        bind(at, *plan.inputs[at].port);
    }
    std::vector<Tensor> outputs;
    outputs.reserve(plan.outputs.size());
    for (std::size_t at = 0; at < plan.outputs.size(); ++at) {
        const BoundOutput& bound = plan.outputs[at];
        Result<Tensor> made = Tensor::allocate(bound.dtype, bound.result_shape, Tensor::Fill::none);
        if (!made) return made.error();
        fill(tensors[input_count + at], plan.tensors[input_count + at], made->data);
        bind(input_count + at, *bound.port);
        if (bound.dynamic_rows) dynamic.push_back({sizeof(attend_dynamic_row), 0, bound.port->name.c_str(), &rows[at]});
        outputs.push_back(std::move(*made));
    }

    attend_call call;
    call.max_workers = max_workers;
    call.token = cancel;
    attend_dynamic_rows block{sizeof block,
                              0,
                              ATTEND_EXT_DYNAMIC_ROWS,
                              nullptr,
                              {dynamic.data(), static_cast<std::uint32_t>(dynamic.size()), sizeof(attend_dynamic_row)}};
    attend_exec exec{};
    exec.struct_size = sizeof exec;
    exec.bindings = {bindings, static_cast<std::uint32_t>(count), sizeof(attend_binding)};
    exec.workspace = thread_workspace(plan.workspace_bytes, plan.workspace_align);
    exec.workspace_bytes = plan.workspace_bytes;
    exec.seed = plan.seed;
    exec.rng_offset = plan.rng_offset;
    exec.call = &call;
    exec.next = dynamic.empty() ? nullptr : reinterpret_cast<const attend_ext*>(&block);
    if (plan.workspace_bytes != 0 && exec.workspace == nullptr)
        return Error{
            ErrorCode::memory,
            mechanism.name + ": no memory for a workspace of " + std::to_string(plan.workspace_bytes) + " bytes", ""};

    std::array<char, 512> text{};
    attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
    attend_status status = ATTEND_INTERNAL;
    const auto begin = std::chrono::steady_clock::now();
    try {
        status = mechanism.functions->execute(plan.plan, &exec, &error);
    } catch (...) {
        return Error{ErrorCode::internal, mechanism.name + ": the plugin threw while executing", ""};
    }
    result.time_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    // Whatever the plugin has made of it: what is cancelled has no result.
    if (cancelled()) return Error{ErrorCode::cancelled, mechanism.name + ": was cancelled", ""};
    if (status != ATTEND_OK) return plugin_error(mechanism, status, text.data());
    const double before = plan.fastest_ms.load(std::memory_order_relaxed);
    if (before == 0 || result.time_ms < before) plan.fastest_ms.store(result.time_ms, std::memory_order_relaxed);

    for (std::size_t at = 0; at < plan.outputs.size(); ++at) {
        const BoundOutput& bound = plan.outputs[at];
        Tensor& tensor = outputs[at];
        if (bound.dynamic_rows && rows[at] >= 0 && rows[at] < tensor.shape[bound.dynamic_axis]) {
            std::vector<std::int64_t> shape = tensor.shape;
            shape[bound.dynamic_axis] = rows[at];
            Result<Tensor> filled = contiguous_copy(tensor.view(shape, tensor.strides));
            if (!filled) return filled.error();
            tensor = std::move(*filled);
        }
        if (bound.port->role == ATTEND_OUT)
            result.output = std::move(tensor);
        else if (bound.port->role == ATTEND_LSE)
            result.lse = std::move(tensor);
        else if (bound.port->role == ATTEND_SCORES)
            result.scores = std::move(tensor);
        else
            result.extra.emplace_back(bound.port->name, std::move(tensor));
    }
    return result;
}

}  // namespace attend
