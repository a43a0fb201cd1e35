// SPDX-License-Identifier: Apache-2.0
#include "plugin_conformance.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <functional>
#include <random>

#include "loading/descriptor_audit.hpp"
#include "service/call_plan.hpp"
#include "test_host.hpp"

namespace conformance {
namespace {

using attend::MechanismRecord;
using Bytes = std::vector<std::byte>;

constexpr std::size_t guard_bytes = 256;
constexpr std::byte guard{0xC3};

attend_hello hello_of(std::uint16_t major, std::uint16_t minor, std::uint32_t size = sizeof(attend_hello)) {
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
attend_entry_fn entry_of(const std::string& path, Findings& findings) {
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* symbol = library != nullptr ? ::dlsym(library, ATTEND_ENTRY) : nullptr;
    if (symbol == nullptr) findings.push_back(path + ": cannot be loaded, or has no entry");
    return reinterpret_cast<attend_entry_fn>(symbol);
}

const attend_plugin* table_of(const std::string& path, Findings& findings) {
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
    Call(Opened& plugin, std::uint32_t index, Findings& findings) : plugin_(plugin) {
        auto record = std::make_shared<MechanismRecord>();
        functions = plugin.table->mechanism_at(plugin.lib, index);
        if (const auto failure = attend::audit_mechanism(functions, *record)) {
            findings.push_back(failure->sentence);
            return;
        }
        record->plugin_id = plugin.table->id;
        record->lib = plugin.lib;
        std::string reasons;
        for (const auto& candidate : candidates()) {
            inputs_ = candidate;
            auto built = attend::build_call(record, inputs_, {}, TestHost::workers);
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
                tensors[at].data = source(plan_->inputs[at].source)->data;
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

    [[nodiscard]] std::vector<Bytes> input_bytes() const {
        std::vector<Bytes> copies;
        for (const attend::BoundInput& bound : plan_->inputs) {
            const attend::Tensor& tensor = *source(bound.source);
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
        for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{2, 2, 19, 8}, {2, 19, 16}}) {
            attend::ForwardInputs inputs;
            inputs.query = random(engine, shape);
            list.push_back(inputs);
            list.back().key = random(engine, shape);
            list.back().value = random(engine, shape);
            list.push_back(inputs);
        }
        return list;
    }
    [[nodiscard]] const attend::Tensor* source(attend::Source from) const {
        return from == attend::Source::key     ? &*inputs_.key
               : from == attend::Source::value ? &*inputs_.value
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

// Runs `what` for every mechanism of the plugin.
void for_each_call(
    const std::string& path, Findings& findings,
    const std::function<void(Opened&, const Call&, const std::function<void(const std::string&)>&)>& what,
    TestHost::Loop loop = TestHost::Loop::serial, TestHost::Table kind = TestHost::Table::current) {
    Opened plugin(path, findings, loop, kind);
    if (plugin.lib == nullptr) return;
    const std::uint32_t count = plugin.table->mechanism_count(plugin.lib);
    for (std::uint32_t index = 0; index < count; ++index) {
        const Call call(plugin, index, findings);
        if (call.good())
            what(plugin, call, [&](const std::string& text) { findings.push_back(call.name() + ": " + text); });
    }
}

std::string status_text(attend_status got, attend_status wanted) {
    return "status " + std::to_string(got) + "; accepted: " + std::to_string(wanted);
}

void entry_is_pure(const std::string& path, Findings& findings) {
    const attend_entry_fn entry = entry_of(path, findings);
    if (entry == nullptr) return;
    const attend_hello hello = hello_of(ATTEND_ABI_MAJOR, ATTEND_ABI_MINOR);
    const attend_plugin *first = entry(&hello), *second = entry(&hello);
    if (first == nullptr || first != second) findings.push_back("the entry gave different tables, or none");
    for (const attend_hello& other :
         {hello_of(ATTEND_ABI_MAJOR, 0), hello_of(ATTEND_ABI_MAJOR, 65535), hello_of(ATTEND_ABI_MAJOR, 0, 24)})
        if (entry(&other) == nullptr)
            findings.push_back("no table for minor " + std::to_string(other.abi_minor) + ", hello of " +
                               std::to_string(other.struct_size) + " bytes");
}

void wrong_major(const std::string& path, Findings& findings) {
    const attend_entry_fn entry = entry_of(path, findings);
    if (entry == nullptr) return;
    for (const std::uint16_t major : {std::uint16_t{0}, std::uint16_t{2}, std::uint16_t{65535}}) {
        const attend_hello hello = hello_of(major, 0);
        const attend_plugin* table = entry(&hello);
        if (table == nullptr) continue;  // a refusal is allowed
        if (table->magic != ATTEND_MAGIC || table->struct_size < 40 || table->id == nullptr ||
            table->version == nullptr || table->abi_major != ATTEND_ABI_MAJOR)
            findings.push_back("the frozen prefix is not right for a host of ABI " + std::to_string(major));
    }
}

void opens_twice(const std::string& path, Findings& findings) {
    Opened first(path, findings), second(path, findings);
    if (first.lib == nullptr || second.lib == nullptr) return;
    if (first.lib == second.lib) findings.push_back("both opens gave the same library");
    const std::uint32_t count = first.table->mechanism_count(first.lib);
    if (second.table->mechanism_count(second.lib) != count)
        findings.push_back("the opens list different numbers of mechanisms");
    if (first.table->mechanism_at(first.lib, count) != nullptr)
        findings.push_back("mechanism_at past the end is not NULL");
    for (std::uint32_t at = 0; at < count; ++at) {
        const attend_mechanism* mechanism = first.table->mechanism_at(first.lib, at);
        if (mechanism != first.table->mechanism_at(first.lib, at))
            findings.push_back("mechanism_at gives different descriptions");
        if (std::string(mechanism->name) != second.table->mechanism_at(second.lib, at)->name)
            findings.push_back("the opens list different mechanisms");
    }
    first.close();  // the second one goes on
    const Call call(second, 0, findings);
    if (call.good() && call.execute(call.plan()).status != ATTEND_OK)
        findings.push_back("the second library failed after the first was closed");
}

void open_without_memory(const std::string& path, Findings& findings) {
    const attend_plugin* table = table_of(path, findings);
    if (table == nullptr) return;
    for (std::int64_t successes = 0; successes < 64; ++successes) {
        TestHost host;
        host.fail_after(successes);
        attend_lib* lib = nullptr;
        ErrorText text;
        const attend_status status = table->open(host.table(), &lib, &text.error);
        if (status == ATTEND_OK) {
            host.fail_after(-1);
            table->close(lib);
            if (successes == 0 && host.allocations() > 0) findings.push_back("open succeeded without memory");
            return;
        }
        if (status != ATTEND_OUT_OF_MEMORY) findings.push_back("open: " + status_text(status, ATTEND_OUT_OF_MEMORY));
        if (host.blocks() != 0)
            findings.push_back("open left memory behind when allocation " + std::to_string(successes) + " failed");
    }
}

void plan_without_execute(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const std::size_t before = plugin.host.blocks();
        for (int round = 0; round < 3; ++round) {
            ErrorText text;
            attend_plan* plan = nullptr;
            if (const attend_status status = call.make(&plan, text); status != ATTEND_OK)
                return report("plan: " + status_text(status, ATTEND_OK) + ": " + text.text.data());
            call.functions->plan_destroy(plan);
        }
        if (plugin.host.blocks() != before) report("plan and plan_destroy leave memory behind");
        if (!plugin.host.misuse().empty()) report(plugin.host.misuse());
    });
}

void plan_without_memory(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const std::size_t before = plugin.host.blocks();
        for (std::int64_t successes = 0; successes < 256; ++successes) {
            ErrorText text;
            attend_plan* plan = nullptr;
            plugin.host.fail_after(successes);
            const attend_status status = call.make(&plan, text);
            plugin.host.fail_after(-1);
            if (status == ATTEND_OK) return call.functions->plan_destroy(plan);
            if (status != ATTEND_OUT_OF_MEMORY)
                report("allocation " + std::to_string(successes) +
                       " failed: " + status_text(status, ATTEND_OUT_OF_MEMORY));
            if (plan != nullptr) report("a plan was handed out with an error");
            if (plugin.host.blocks() != before)
                report("memory left behind when allocation " + std::to_string(successes) + " failed");
        }
        report("plan never succeeded");
    });
}

void plan_info_size(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        for (const std::uint32_t size : {std::uint32_t{8}, std::uint32_t{24}, std::uint32_t{sizeof(attend_plan_info)},
                                         std::uint32_t{sizeof(attend_plan_info) + 40}}) {
            alignas(8) std::array<std::byte, 256> memory;
            memory.fill(guard);
            auto* info = reinterpret_cast<attend_plan_info*>(memory.data());
            info->struct_size = size;
            const attend_status status = call.functions->plan_info(call.plan(), info);
            if (size >= sizeof(attend_plan_info) && status != ATTEND_OK)
                report("plan_info of " + std::to_string(size) + " bytes: " + status_text(status, ATTEND_OK));
            if (std::any_of(memory.begin() + size, memory.end(), [](std::byte b) { return b != guard; }))
                report("plan_info wrote past a struct of " + std::to_string(size) + " bytes");
            if (status == ATTEND_OK && info->struct_size != size)
                report("plan_info changed struct_size, which the host sets");
        }
    });
}

void required_block(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        const attend_ext required{sizeof(attend_ext), ATTEND_EXT_REQUIRED, "org.nobody.unknown/1", nullptr};
        const attend_ext optional{sizeof(attend_ext), 0, "org.nobody.unknown/1", nullptr},
            second{sizeof(attend_ext), 0, "org.nobody.other/1", &required};
        attend_plan* plan = nullptr;
        for (const attend_ext* block : {&required, &second}) {
            ErrorText text;
            const attend_status status = call.make(&plan, text, block);
            if (status != ATTEND_UNSUPPORTED)
                report("plan with an unknown REQUIRED block: " + status_text(status, ATTEND_UNSUPPORTED));
            if (status == ATTEND_OK) call.functions->plan_destroy(plan);
            if (call.check(block) != ATTEND_UNSUPPORTED)
                report("check with an unknown REQUIRED block does not say UNSUPPORTED");
        }
        ErrorText text;
        if (call.make(&plan, text, &optional) != ATTEND_OK) return report("plan refused an unknown optional block");
        call.functions->plan_destroy(plan);
    });
}

void unknown_extensions(const std::string& path, Findings& findings) {
    constexpr const char* ids[] = {
        "", "attend.cost", "attend.cost/", "attend.cost/1x", "attend.cost/10", "attend.tolerance/1 ", "org.nobody/1",
        "/"};
    for_each_call(path, findings, [&](Opened& plugin, const Call& call, const auto& report) {
        for (const char* id : ids) {
            if (call.functions->get_extension != nullptr && call.functions->get_extension(plugin.lib, id) != nullptr)
                report("knows the extension \"" + std::string(id) + "\"");
            if (plugin.table->get_extension != nullptr && plugin.table->get_extension(plugin.lib, id) != nullptr)
                report("the plugin knows the extension \"" + std::string(id) + "\"");
        }
    });
}

void short_workspace(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        if (call.workspace_bytes() == 0) return;
        for (const std::uint64_t missing : {std::uint64_t{1}, call.workspace_bytes()})
            if (const auto result = call.execute(call.plan(), std::byte{0}, missing);
                result.status != ATTEND_WORKSPACE_TOO_SMALL || !result.guards_intact)
                report(std::to_string(missing) +
                       " bytes missing: " + status_text(result.status, ATTEND_WORKSPACE_TOO_SMALL));
    });
}

void poisoned_workspace(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        const auto zeros = call.execute(call.plan()),
                   nans = call.execute(call.plan(), std::byte{0xFF});  // all ones: NaN in every float type
        if (zeros.status != ATTEND_OK || nans.status != ATTEND_OK)
            return report(status_text(zeros.status, ATTEND_OK) + ": " + zeros.text);
        if (zeros.outputs != nans.outputs) report("the result depends on what the workspace held before");
    });
}

void execute_allocates_nothing(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const std::uint64_t before = plugin.host.allocations();
        if (const auto result = call.execute(call.plan()); result.status != ATTEND_OK)
            report(status_text(result.status, ATTEND_OK) + ": " + result.text);
        if (plugin.host.allocations() != before)
            report("execute took " + std::to_string(plugin.host.allocations() - before) + " blocks from the host");
    });
}

void guards_stay_intact(const std::string& path, Findings& findings) {
    for (const TestHost::Loop loop : {TestHost::Loop::serial, TestHost::Loop::threads})
        for_each_call(
            path, findings,
            [](Opened&, const Call& call, const auto& report) {
                const auto before = call.input_bytes();
                if (!call.execute(call.plan()).guards_intact) report("wrote outside its outputs or workspace");
                if (call.input_bytes() != before) report("wrote to an input");
            },
            loop);
}

void loops_agree(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const auto serial = call.execute(call.plan());
        plugin.host.set_loop(TestHost::Loop::threads);
        for (int round = 0; round < 3; ++round)
            if (call.execute(call.plan()).outputs != serial.outputs)
                report("the result depends on the number of workers");
        plugin.host.set_loop(TestHost::Loop::serial);
    });
}

void threads_share_a_plan(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        const auto alone = call.execute(call.plan());
        std::array<Call::Result, 4> results;
        std::vector<std::thread> threads;
        for (Call::Result& result : results)
            threads.emplace_back([&call, &result] {
                for (int round = 0; round < 8; ++round) result = call.execute(call.plan(), std::byte{0xFF});
            });
        for (std::thread& thread : threads) thread.join();
        for (const Call::Result& result : results)
            if (result.status != ATTEND_OK || result.outputs != alone.outputs || !result.guards_intact)
                report("one plan on four threads: results differ");
    });
}

void loop_status_is_returned(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        plugin.host.set_loop(TestHost::Loop::refused);
        const std::uint64_t before = plugin.host.loops();
        const auto result = call.execute(call.plan());
        if (plugin.host.loops() != before && result.status != ATTEND_CANCELLED)
            report("a cancelled loop: " + status_text(result.status, ATTEND_CANCELLED));
        plugin.host.set_loop(TestHost::Loop::serial);
    });
}

void other_host(const std::string& path, Findings& findings, TestHost::Table kind) {
    std::vector<std::vector<Bytes>> expected;
    for_each_call(path, findings, [&](Opened&, const Call& call, const auto&) {
        expected.push_back(call.execute(call.plan()).outputs);
    });
    std::size_t at = 0;
    for_each_call(
        path, findings,
        [&](Opened&, const Call& call, const auto& report) {
            const auto result = call.execute(call.plan());
            if (result.status != ATTEND_OK || at >= expected.size() || result.outputs != expected[at])
                report("another result with another host table");
            ++at;
        },
        TestHost::Loop::serial, kind);
}
void old_host(const std::string& path, Findings& findings) { other_host(path, findings, TestHost::Table::old); }
void future_host(const std::string& path, Findings& findings) { other_host(path, findings, TestHost::Table::future); }

constexpr Check all_checks[] = {
    {"entry-is-pure", "the entry may be called twice, with any minor and a shorter hello", entry_is_pure},
    {"wrong-major", "the frozen prefix is right for a host of any major", wrong_major},
    {"opens-twice", "two libraries live side by side", opens_twice},
    {"open-without-memory", "open reports OUT_OF_MEMORY and leaves nothing behind", open_without_memory},
    {"plan-without-execute", "plan and plan_destroy leave nothing behind", plan_without_execute},
    {"plan-without-memory", "plan reports OUT_OF_MEMORY at every allocation and leaves nothing behind",
     plan_without_memory},
    {"plan-info-size", "plan_info writes no more than struct_size", plan_info_size},
    {"required-block", "an unknown REQUIRED block is UNSUPPORTED, an optional one is ignored", required_block},
    {"unknown-extensions", "unknown extension ids give NULL", unknown_extensions},
    {"short-workspace", "a workspace that is too small is refused", short_workspace},
    {"poisoned-workspace", "the workspace is uninitialised on entry", poisoned_workspace},
    {"execute-allocates-nothing", "execute takes no memory from the host", execute_allocates_nothing},
    {"guards-stay-intact", "nothing is written outside outputs and workspace", guards_stay_intact},
    {"loops-agree", "same bits for any number of workers", loops_agree},
    {"threads-share-a-plan", "a plan runs on several threads at once", threads_share_a_plan},
    {"loop-status-is-returned", "the status of a loop is the status of the call", loop_status_is_returned},
    {"old-host", "a table cut to ABI 1.0 is enough", old_host},
    {"future-host", "a longer table with a higher minor changes nothing", future_host},
};

}  // namespace

std::span<const Check> checks() { return all_checks; }

Findings run_check(const std::string& path, const std::string& id) {
    Findings findings;
    const auto found =
        std::find_if(std::begin(all_checks), std::end(all_checks), [&](const Check& check) { return id == check.id; });
    if (found == std::end(all_checks)) return {"no check is called \"" + id + "\""};
    found->run(path, findings);
    return findings;
}

}  // namespace conformance
