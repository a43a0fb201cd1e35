// SPDX-License-Identifier: Apache-2.0
// A plugin opened with a host of its own, and one complete call of one of its mechanisms: what the checks work with.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <random>

#include "loading/descriptor_audit.hpp"
#include "service/call_plan.hpp"
#include "test_host.hpp"

#include "plugin_conformance.hpp"

namespace conformance {

using attend::MechanismRecord;
using Bytes = std::vector<std::byte>;

constexpr std::size_t guard_bytes = 256;
constexpr std::byte guard{0xC3};

inline attend_hello hello_of(std::uint16_t major, std::uint16_t minor, std::uint32_t size = sizeof(attend_hello)) {
    attend_hello hello{};
    hello.struct_size = size;
    hello.abi_major = major;
    hello.abi_minor = minor;
    hello.layout_tag = ATTEND_LAYOUT_TAG;
    hello.host_name = "conformance";
    hello.host_version = "1.0.0";
    return hello;
}

// The loaded file; stays mapped, as in a host.
inline attend_entry_fn entry_of(const std::string& path, Findings& findings) {
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* symbol = library != nullptr ? ::dlsym(library, ATTEND_ENTRY) : nullptr;
    if (symbol == nullptr) findings.push_back(path + ": cannot be loaded, or has no entry");
    return reinterpret_cast<attend_entry_fn>(symbol);
}

inline const attend_plugin* table_of(const std::string& path, Findings& findings) {
    const attend_entry_fn entry = entry_of(path, findings);
    const attend_hello hello = hello_of(ATTEND_ABI_MAJOR, ATTEND_ABI_MINOR);
    const attend_plugin* table = entry != nullptr ? entry(&hello) : nullptr;
    if (entry != nullptr && table == nullptr) findings.push_back("the entry returned no table");
    return table;
}

struct ErrorText {
    std::array<char, 512> text{};
    attend_error error{sizeof(attend_error), 512, ATTEND_OK, 0, text.data(), nullptr};
};

// An open plugin with a host of its own.
class Opened {
public:
    Opened(const std::string& path, Findings& findings, TestHost::Loop loop = TestHost::Loop::serial,
           TestHost::Table kind = TestHost::Table::current)
        : host(loop, kind), findings_(findings) {
        table = table_of(path, findings);
        if (table == nullptr) return;
        ErrorText text;
        const attend_status status = table->open(host.table(), &lib, &text.error);
        if (status != ATTEND_OK || lib == nullptr) {
            findings.push_back("open returned status " + std::to_string(status) + ": " + text.text.data());
            lib = nullptr;
        }
    }
    ~Opened() { close(); }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;

    void close() {
        if (lib == nullptr) return;
        table->close(lib);
        lib = nullptr;
        if (host.blocks() != 0)
            findings_.push_back("close left " + std::to_string(host.blocks()) + " blocks of memory behind");
        if (!host.misuse().empty()) findings_.push_back(host.misuse());
    }

    TestHost host;
    const attend_plugin* table{};
    attend_lib* lib{};

private:
    Findings& findings_;
};

// A complete description of one call of one mechanism, and its inputs.
class Call {
public:
    // With scores: also the weights, where the mechanism has them.
    Call(Opened& plugin, std::uint32_t index, Findings& findings, bool scores = false) : plugin_(plugin) {
        auto record = std::make_shared<MechanismRecord>();
        functions = plugin.table->mechanism_at(plugin.lib, index);
        if (const auto failure = attend::audit_mechanism(functions, plugin.lib, *record)) {
            findings.push_back(failure->sentence);
            return;
        }
        record->plugin_id = plugin.table->id;
        record->lib = plugin.lib;
        std::string reasons;
        attend::CallRequest request;
        request.scores = scores && record->has(ATTEND_CAP_SCORES_OUT);
        for (const auto& candidate : candidates()) {
            inputs_ = candidate;
            if (record->has(ATTEND_CAP_GRAPH_INPUT)) inputs_.extra.emplace_back("edges", ring(inputs_.query));
            const auto form = attend::choose_form(*record, &inputs_, request);
            if (!form) {
                reasons += "; " + form.error().message;
                continue;
            }
            auto built = attend::build_call(record, inputs_, request, *form, TestHost::workers);
            if (built) {
                plan_ = std::move(*built);
                break;
            }
            reasons += "; " + built.error().message;
        }
        if (plan_ == nullptr) {
            findings.push_back(record->name + ": no call could be described" + reasons);
            return;
        }
        describe();
    }

    [[nodiscard]] bool good() const { return plan_ != nullptr; }
    [[nodiscard]] const std::string& name() const { return plan_->mechanism->name; }
    // The plan of the call builder, made by the plugin with this host.
    [[nodiscard]] const attend_plan* plan() const { return plan_->plan; }
    [[nodiscard]] std::uint64_t workspace_bytes() const { return plan_->workspace_bytes; }

    attend_status make(attend_plan** out, ErrorText& text, const attend_ext* next = nullptr) const {
        attend_plan_desc desc = desc_;
        desc.next = next;
        *out = nullptr;
        return functions->plan(plugin_.lib, &desc, out, &text.error);
    }
    attend_status check(const attend_ext* next) const {
        attend_plan_desc desc = desc_;
        desc.next = next;
        ErrorText text;
        return functions->check != nullptr ? functions->check(plugin_.lib, &desc, &text.error) : ATTEND_UNSUPPORTED;
    }

    struct Result {
        attend_status status{};
        std::vector<Bytes> outputs;
        bool guards_intact{true};
        std::string text;
    };
    // One execution with buffers of its own: `missing` bytes of workspace withheld, the rest filled with `fill`.
    Result execute(const attend_plan* plan, std::byte fill = std::byte{0}, std::uint64_t missing = 0) const {
        Result result;
        const std::uint64_t bytes = workspace_bytes() - std::min(missing, workspace_bytes());
        const std::uint64_t align = plan_->workspace_align;
        const std::uint64_t room = (bytes + align - 1) / align * align + align + 2 * guard_bytes;
        Bytes space(room, guard);
        const auto address = reinterpret_cast<std::uintptr_t>(space.data()) + guard_bytes;
        const std::size_t offset = guard_bytes + (align - address % align) % align;
        std::fill_n(space.begin() + static_cast<std::ptrdiff_t>(offset), bytes, fill);

        const std::size_t inputs = plan_->inputs.size(), count = inputs + plan_->outputs.size();
        std::vector<attend_tensor> tensors(count);
        std::vector<attend_binding> bindings(count);
        std::vector<Bytes> buffers(plan_->outputs.size());
        std::vector<attend_dynamic_row> dynamic;
        std::vector<std::int64_t> rows(plan_->outputs.size(), -1);
        for (std::size_t at = 0; at < count; ++at) {
            tensors[at] = plan_->tensors[at].tensor;
            const bool is_input = at < inputs;
            const attend::PortRecord& port = is_input ? *plan_->inputs[at].port : *plan_->outputs[at - inputs].port;
            bindings[at] = {sizeof(attend_binding), port.role, port.name.c_str(), &tensors[at]};
            if (is_input) {
                tensors[at].data = source(plan_->inputs[at])->data;
                continue;
            }
            Bytes& buffer = buffers[at - inputs];
            buffer.assign(tensors[at].extent_bytes + 2 * guard_bytes, guard);
            tensors[at].data = buffer.data() + guard_bytes;
            std::fill_n(buffer.begin() + guard_bytes, tensors[at].extent_bytes, std::byte{0xFF});
            if (plan_->outputs[at - inputs].dynamic_rows)
                dynamic.push_back({sizeof(attend_dynamic_row), 0, port.name.c_str(), &rows[at - inputs]});
        }
        attend_dynamic_rows block{
            sizeof block,
            0,
            ATTEND_EXT_DYNAMIC_ROWS,
            nullptr,
            {dynamic.data(), static_cast<std::uint32_t>(dynamic.size()), sizeof(attend_dynamic_row)}};
        attend_call call;
        call.max_workers = TestHost::workers;
        attend_exec exec{};
        exec.struct_size = sizeof exec;
        exec.bindings = {bindings.data(), static_cast<std::uint32_t>(count), sizeof(attend_binding)};
        exec.workspace = bytes > 0 ? space.data() + offset : nullptr;
        exec.workspace_bytes = bytes;
        exec.seed = plan_->seed;
        exec.rng_offset = plan_->rng_offset;
        exec.call = &call;
        exec.next = dynamic.empty() ? nullptr : reinterpret_cast<const attend_ext*>(&block);
        ErrorText text;
        result.status = functions->execute(plan, &exec, &text.error);
        result.text = text.text.data();
        const auto intact = [](const std::byte* begin, const std::byte* end) {
            return std::all_of(begin, end, [](std::byte b) { return b == guard; });
        };
        result.guards_intact = intact(space.data(), space.data() + offset) &&
                               intact(space.data() + offset + bytes, space.data() + space.size());
        for (Bytes& buffer : buffers) {
            result.guards_intact = result.guards_intact && intact(buffer.data(), buffer.data() + guard_bytes) &&
                                   intact(buffer.data() + buffer.size() - guard_bytes, buffer.data() + buffer.size());
            result.outputs.emplace_back(buffer.begin() + guard_bytes, buffer.end() - guard_bytes);
        }
        return result;
    }

    // Of the scores among the outputs; -1: none.
    [[nodiscard]] std::ptrdiff_t scores_at() const {
        const auto at = std::find_if(plan_->outputs.begin(), plan_->outputs.end(),
                                     [](const auto& bound) { return bound.port->role == ATTEND_SCORES; });
        return at == plan_->outputs.end() ? -1 : at - plan_->outputs.begin();
    }
    [[nodiscard]] const std::vector<std::int64_t>& scores_shape() const {
        return plan_->outputs[static_cast<std::size_t>(scores_at())].shape;
    }
    // Rows of the scores through a function of attend.scores/1, in a buffer of their own; only inputs are bound beside.
    Result rows(decltype(attend_scores_extension::rows) function, std::int64_t first, std::int64_t count) const {
        Result result;
        std::vector<std::byte> room(workspace_bytes() + plan_->workspace_align);
        const auto address = reinterpret_cast<std::uintptr_t>(room.data());
        const std::size_t inputs = plan_->inputs.size();
        std::vector<attend_tensor> tensors(inputs + 1);
        std::vector<attend_binding> bindings(inputs + 1);
        for (std::size_t at = 0; at < inputs; ++at) {
            tensors[at] = plan_->tensors[at].tensor;
            tensors[at].data = source(plan_->inputs[at])->data;
            bindings[at] = {sizeof(attend_binding), plan_->inputs[at].port->role, plan_->inputs[at].port->name.c_str(),
                            &tensors[at]};
        }
        std::vector<std::int64_t> shape = scores_shape();
        shape[shape.size() - 2] = count;
        const std::vector<std::int64_t> strides = attend::compact_strides(shape);
        attend::CallTensor scores;
        scores.describe(shape, strides, attend::DType::f32, nullptr);
        Bytes buffer(scores.tensor.extent_bytes + 2 * guard_bytes, guard);
        tensors[inputs] = scores.tensor;
        tensors[inputs].data = buffer.data() + guard_bytes;
        bindings[inputs] = {sizeof(attend_binding), ATTEND_SCORES, "scores", &tensors[inputs]};
        attend_call call;
        call.max_workers = TestHost::workers;
        attend_exec exec{};
        exec.struct_size = sizeof exec;
        exec.bindings = {bindings.data(), static_cast<std::uint32_t>(bindings.size()), sizeof(attend_binding)};
        exec.workspace =
            workspace_bytes() > 0
                ? room.data() + (plan_->workspace_align - address % plan_->workspace_align) % plan_->workspace_align
                : nullptr;
        exec.workspace_bytes = workspace_bytes();
        exec.seed = plan_->seed;
        exec.rng_offset = plan_->rng_offset;
        exec.call = &call;
        ErrorText text;
        result.status = function(plan(), &exec, first, count, &text.error);
        result.text = text.text.data();
        for (const std::byte* edge : {buffer.data(), buffer.data() + buffer.size() - guard_bytes})
            result.guards_intact =
                result.guards_intact && std::all_of(edge, edge + guard_bytes, [](std::byte b) { return b == guard; });
        result.outputs.emplace_back(buffer.begin() + guard_bytes, buffer.end() - guard_bytes);
        return result;
    }

    [[nodiscard]] std::vector<Bytes> input_bytes() const {
        std::vector<Bytes> copies;
        for (const attend::BoundInput& bound : plan_->inputs) {
            const attend::Tensor& tensor = *source(bound);
            const auto* data = static_cast<const std::byte*>(tensor.data);
            copies.emplace_back(data, data + tensor.byte_size());
        }
        return copies;
    }

    const attend_mechanism* functions{};

private:
    static attend::Tensor random(std::mt19937& engine, std::vector<std::int64_t> shape) {
        attend::Tensor tensor = attend::Tensor::allocate(attend::DType::f32, std::move(shape)).value();
        std::normal_distribution<float> normal;
        for (std::int64_t at = 0; at < tensor.size(); ++at) tensor.as<float>()[at] = normal(engine);
        return tensor;
    }
    // From the shapes that most mechanisms take to those of tokens without heads.
    static std::vector<attend::ForwardInputs> candidates() {
        std::mt19937 engine(7);
        std::vector<attend::ForwardInputs> list;
        using Sizes = std::vector<std::int64_t>;
        for (const Sizes& shape : {Sizes{2, 2, 19, 8}, {2, 19, 16}}) {
            attend::ForwardInputs inputs;
            inputs.query = random(engine, shape);
            list.push_back(inputs);
            list.back().key = random(engine, shape);
            list.back().value = random(engine, shape);
            list.push_back(inputs);
        }
        // One key head for all query heads; values shared by two maps.
        for (const std::int64_t key_heads : {1, 2}) {
            attend::ForwardInputs inputs;
            inputs.query = random(engine, {2, 2, 19, 8});
            inputs.key = random(engine, {2, key_heads, 19, 8});
            inputs.value = random(engine, {2, 1, 19, 8});
            list.push_back(inputs);
        }
        return list;
    }
    // Each node sees the next one.
    static attend::Tensor ring(const attend::Tensor& query) {
        const std::int64_t nodes = query.shape[query.shape.size() - 2];
        attend::Tensor edges = attend::Tensor::allocate(attend::DType::i32, {2, nodes}).value();
        for (std::int64_t i = 0; i < nodes; ++i) {
            edges.as<std::int32_t>()[i] = static_cast<std::int32_t>((i + 1) % nodes);
            edges.as<std::int32_t>()[nodes + i] = static_cast<std::int32_t>(i);
        }
        return edges;
    }
    [[nodiscard]] const attend::Tensor* source(const attend::BoundInput& bound) const {
        return bound.source == attend::Source::key     ? &*inputs_.key
               : bound.source == attend::Source::value ? &*inputs_.value
               : bound.source == attend::Source::extra ? &inputs_.extra[bound.extra_index].second
                                                       : &inputs_.query;
    }

    void describe() {
        static constexpr std::uint32_t types[] = {0,
                                                  ATTEND_TYPE_BOOL,
                                                  ATTEND_TYPE_INT,
                                                  ATTEND_TYPE_FLOAT,
                                                  ATTEND_TYPE_STRING,
                                                  ATTEND_TYPE_ENUM,
                                                  ATTEND_TYPE_INT_LIST,
                                                  ATTEND_TYPE_FLOAT_LIST};
        const MechanismRecord& record = *plan_->mechanism;
        for (std::size_t at = 0; at < record.own_options; ++at) {
            const attend::OptionValue& from = plan_->values[at];
            attend_value to{};
            to.struct_size = sizeof to;
            to.type = types[static_cast<std::size_t>(from.type)];
            to.name = record.options[at].name.c_str();
            to.flags = (from.given ? ATTEND_VALUE_GIVEN : 0) | (from.scalar ? ATTEND_VALUE_SCALAR : 0);
            if (const bool* flag = std::get_if<bool>(&from.value)) to.u.i = *flag ? 1 : 0;
            if (const auto* integer = std::get_if<std::int64_t>(&from.value)) to.u.i = *integer;
            if (const double* real = std::get_if<double>(&from.value)) to.u.f = *real;
            if (const auto* text = std::get_if<std::string>(&from.value))
                to.u.s = text->c_str(), to.count = static_cast<std::uint32_t>(text->size());
            if (const auto* list = std::get_if<std::vector<std::int64_t>>(&from.value))
                to.u.is = list->data(), to.count = static_cast<std::uint32_t>(list->size());
            if (const auto* list = std::get_if<std::vector<double>>(&from.value))
                to.u.fs = list->data(), to.count = static_cast<std::uint32_t>(list->size());
            values_.push_back(to);
        }
        weights_.resize(plan_->weights.size());
        const auto bind = [&](const attend::PortRecord& port, const attend_tensor& tensor) {
            bindings_.push_back({sizeof(attend_binding), port.role, port.name.c_str(), &tensor});
        };
        for (std::size_t at = 0; at < plan_->inputs.size(); ++at)
            bind(*plan_->inputs[at].port, plan_->tensors[at].tensor);
        for (std::size_t at = 0; at < plan_->outputs.size(); ++at)
            bind(*plan_->outputs[at].port, plan_->tensors[plan_->inputs.size() + at].tensor);
        for (std::size_t at = 0; at < weights_.size(); ++at) {
            const auto& [weight, tensor] = plan_->weights[at];
            weights_[at].describe(tensor.shape, tensor.strides, tensor.dtype, tensor.data);
            bind(*record.find_port(weight), weights_[at].tensor);
        }
        desc_ = plan_->desc;
        desc_.options = {values_.data(), static_cast<std::uint32_t>(values_.size()), sizeof(attend_value)};
        desc_.bindings = {bindings_.data(), static_cast<std::uint32_t>(bindings_.size()), sizeof(attend_binding)};
    }

    Opened& plugin_;
    attend::ForwardInputs inputs_;
    std::shared_ptr<attend::CallPlan> plan_;
    std::vector<attend_value> values_;
    std::vector<attend::CallTensor> weights_;
    std::vector<attend_binding> bindings_;
    attend_plan_desc desc_{};
};

}  // namespace conformance
