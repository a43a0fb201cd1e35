// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "service/call_description.hpp"
#include "service/status.hpp"
#include "service/weights.hpp"

namespace attend {
void CallTensor::describe(const Shape& shape, const Shape& strides, DType dtype, void* data) {
    const DTypeBit* row = find_dtype(dtype);
    tensor.struct_size = sizeof tensor;
    tensor.flags = ATTEND_TENSOR_ZERO_STRIDE_OK;
    tensor.data = data;
    tensor.device_type = ATTEND_DEVICE_CPU;
    tensor.ndim = static_cast<std::int32_t>(shape.size());
    tensor.dtype_code = row->code;
    tensor.dtype_bits = row->bits;
    tensor.dtype_lanes = 1;
    tensor.shape = shape.data();
    tensor.strides = strides.data();
    tensor.align = static_cast<std::uint32_t>(dtype_size(dtype));
    std::int64_t elements = 1;
    for (std::size_t axis = 0; axis < shape.size(); ++axis)
        elements += (std::max<std::int64_t>(shape[axis], 1) - 1) * std::abs(strides[axis]);
    tensor.extent_bytes = static_cast<std::uint64_t>(elements) * dtype_size(dtype);
}

// Builds one CallPlan; lives for one build_call.
class CallBuilder : private CallDescription {
public:
    CallBuilder(const MechanismPtr& mechanism, const CallRequest& request, const CallForm& form)
        : CallDescription(mechanism, request, form) {}

    Result<std::shared_ptr<CallPlan>> build(const ForwardInputs& inputs, std::uint32_t max_workers) {
        if (auto done = lay_out(inputs); !done) return done.error();
        if (auto done = solve_inputs(inputs); !done) return done.error();
        if (auto done = bind_given_weights(inputs); !done) return done.error();
        if (auto done = check_broadcasts(); !done) return done.error();
        if (auto done = describe(max_workers); !done) return done.error();
        if (auto done = initialise_weights(); !done) return done.error();
        if (auto done = describe_outputs(inputs); !done) return done.error();
        if (auto done = make_plan(); !done) return done.error();
        return plan_;
    }

private:
    // Their extents may bind symbols of the others, and sizes of the call.
    Result<void> bind_given_weights(const ForwardInputs& inputs) {
        std::map<std::string, const Tensor*> given;
        for (const auto& [name, tensor] : inputs.weights) {
            const std::string folded = fold_name(name);
            const PortRecord* port = mechanism_->find_port(folded);
            if (port == nullptr || (port->flags & ATTEND_WEIGHT) == 0) {
                std::vector<std::string> known;
                for (const PortRecord& record : mechanism_->ports)
                    if (record.flags & ATTEND_WEIGHT) known.push_back(record.name);
                return fail(ErrorCode::weight, "unknown weight \"" + name + "\"" + did_you_mean(folded, known) +
                                                   "; accepted: " + join_names(known));
            }
            if (!given.emplace(folded, &tensor).second)
                return fail(ErrorCode::weight, "weight \"" + folded + "\" is given twice");
            if (chosen(*port) == nullptr)
                return fail(ErrorCode::weight, "weight \"" + folded +
                                                   "\" is switched off by the options in force; accepted: a call "
                                                   "without it, or options that read it");
            if (repeated_number(port->name, folded) > repetitions(*port))
                return fail(ErrorCode::weight, "weight \"" + folded + "\" is switched off by the options in force: " +
                                                   std::string(repeated_by(port->name)) + " is " +
                                                   std::to_string(repetitions(*port)) +
                                                   "; accepted: a call without it, or a larger value");
        }
        for (const PortRecord& port : mechanism_->ports)
            for (std::int64_t number = 1; number <= repetitions(port); ++number) {
                const std::string name = repeated_name(port.name, number);
                const auto at = given.find(name);
                if (at == given.end()) continue;
                if (auto done = match("weight \"" + name + "\"", at->second->shape,
                                      *chosen(port, at->second->shape.size()), ErrorCode::weight);
                    !done)
                    return done;
                plan_->weights.emplace_back(name, *at->second);
            }
        given_weights_ = plan_->weights.size();
        return {};
    }

    // How many weights a port stands for: one, or as many as the option in its name says.
    std::int64_t repetitions(const PortRecord& port) const {
        const std::string_view by = repeated_by(port.name);
        return by.empty() ? 1 : static_cast<std::int64_t>(option_number(by).value_or(0.0));
    }

    Result<void> initialise_weights() {
        std::set<std::string> given;
        for (const auto& [name, tensor] : plan_->weights) given.insert(name);
        for (const PortRecord& port : mechanism_->ports) {
            if ((port.flags & ATTEND_WEIGHT) == 0 || (port.flags & ATTEND_OPTIONAL)) continue;
            const ShapeAlternative* wanted = chosen(port);
            if (wanted == nullptr) continue;
            for (std::int64_t number = 1; number <= repetitions(port); ++number) {
                const std::string name = repeated_name(port.name, number);
                if (given.count(name) != 0) continue;
                if (auto done = initialise_weight(port, name, number, *wanted); !done) return done;
            }
        }
        return {};
    }

    Result<void> initialise_weight(const PortRecord& port, const std::string& name, std::int64_t number,
                                   const ShapeAlternative& wanted) {
        const Result<PortInit> init = PortInit::parse(port.init);
        if (!init) return init.error();
        const Result<Initialiser> chosen_init = init->choose(scope_);
        if (!chosen_init) return chosen_init.error();
        plan_->default_weights = true;
        if (!chosen_init->same_as.empty()) {
            const auto found = std::find_if(plan_->weights.begin(), plan_->weights.end(),
                                            [&](const auto& weight) { return weight.first == chosen_init->same_as; });
            if (found == plan_->weights.end())
                return fail(ErrorCode::weight, "weight \"" + name + "\" is tied to \"" + chosen_init->same_as +
                                                   "\", which does not exist here");
            plan_->weights.emplace_back(name, found->second);
            return {};
        }
        Shape shape;
        for (const Expression& dim : wanted.dims) {
            const auto extent = dim.evaluate(scope_);
            if (!extent)
                return fail(ErrorCode::weight,
                            "weight \"" + name + "\": the extent " + dim.text() + " has no value here");
            shape.push_back(static_cast<std::int64_t>(*extent));
        }
        // Layout: the port tells by its help whether rows are inputs ([in, out]) or outputs.
        const bool out_first = port.help.find("[in, out]") == std::string::npos;
        const std::string seeded =
            mechanism_->name + "/" +
            (chosen_init->table_name.empty() ? name : repeated_name(chosen_init->table_name, number));
        Result<Tensor> made = initialise(*chosen_init, shape, weight_seed_, seeded, out_first);
        if (!made) return made.error();
        plan_->weights.emplace_back(name, std::move(*made));
        return {};
    }

    Result<void> describe_outputs(const ForwardInputs& inputs) {
        for (const PortRecord& port : mechanism_->ports) {
            if ((port.flags & ATTEND_OUTPUT) == 0) continue;
            const ShapeAlternative* wanted = chosen(port);
            const bool asked = port.role == ATTEND_LSE      ? want_lse_
                               : port.role == ATTEND_SCORES ? request_.scores
                                                            : (port.flags & ATTEND_OPTIONAL) == 0 || want_lse_;
            if (!asked || wanted == nullptr) continue;
            BoundOutput bound;
            bound.port = &port;
            bound.dynamic_rows = wanted->dynamic_rows;
            bound.dynamic_axis = wanted->dynamic_axis;
            bound.dtype = (port.dtypes & ATTEND_F32)   ? DType::f32
                          : (port.dtypes & ATTEND_I32) ? DType::i32
                          : (port.dtypes & ATTEND_I64) ? DType::i64
                                                       : DType::u8;
            for (const Expression& dim : wanted->dims) {
                const auto extent = dim.evaluate(scope_);
                if (!extent)
                    return fail(ErrorCode::internal,
                                "output \"" + port.name + "\": the extent " + dim.text() + " has no value here");
                bound.shape.push_back(static_cast<std::int64_t>(*extent));
            }
            bound.strides = compact_strides(bound.shape);
            bound.result_shape = bound.shape;
            if (port.role == ATTEND_OUT) {
                if (packed_ && bound.shape.size() == 4) {
                    const std::int64_t heads = bound.shape[1], rows = bound.shape[2], width = bound.shape[3];
                    bound.result_shape = {bound.shape[0], rows, heads * width};
                    bound.strides = {rows * heads * width, width, heads * width, 1};
                } else if (query_rank_ < bound.shape.size()) {
                    bound.result_shape.erase(bound.result_shape.begin(),
                                             bound.result_shape.end() - static_cast<std::ptrdiff_t>(query_rank_));
                    if (query_rank_ == 2 && bound.shape.size() == 3)
                        bound.result_shape = {bound.shape[0] * bound.shape[1], bound.shape[2]};
                }
                bound.dtype = (port.dtypes & find_dtype(request_.types.query)->bit) ? request_.types.query : DType::f32;
            }
            plan_->outputs.push_back(std::move(bound));
        }
        const auto has = [&](std::uint32_t role) {
            return std::any_of(plan_->outputs.begin(), plan_->outputs.end(),
                               [role](const BoundOutput& bound) { return bound.port->role == role; });
        };
        if (want_lse_ && !has(ATTEND_LSE))
            return fail(ErrorCode::unsupported, "lse is not defined here; accepted: a call without it");
        if (request_.scores && !has(ATTEND_SCORES))
            return fail(ErrorCode::unsupported,
                        "no score matrix: scores are not defined here; accepted: a call without them");
        (void)inputs;
        return {};
    }

    Result<void> make_plan() {
        std::vector<attend_value> values = abi_values();
        // Shapes and strides stay where they are from here on: the vectors that hold them are complete.
        std::vector<CallTensor>& tensors = plan_->tensors;
        tensors.resize(plan_->inputs.size() + plan_->outputs.size());
        std::vector<CallTensor> weights(plan_->weights.size());
        std::vector<attend_binding> bindings;
        const auto bind = [&](CallTensor& to, std::uint32_t role, const std::string& name, const Shape& shape,
                              const Shape& strides, DType dtype, void* data) {
            to.describe(shape, strides, dtype, data);
            bindings.push_back({sizeof(attend_binding), role, name.c_str(), &to.tensor});
        };
        std::size_t next = 0;
        for (const BoundInput& bound : plan_->inputs)
            bind(tensors[next++], bound.port->role, bound.port->name, bound.shape, bound.strides, bound.dtype, nullptr);
        for (const BoundOutput& bound : plan_->outputs)
            bind(tensors[next++], bound.port->role, bound.port->name, bound.shape, bound.strides, bound.dtype, nullptr);
        next = 0;
        for (const auto& [name, tensor] : plan_->weights) {
            bind(weights[next], 0, name, tensor.shape, tensor.strides, tensor.dtype, tensor.data);
            if (next >= given_weights_) weights[next].tensor.flags |= ATTEND_TENSOR_INITIALISED;
            ++next;
        }
        attend_plan_desc& desc = plan_->desc;
        desc.options = {values.data(), static_cast<std::uint32_t>(values.size()), sizeof(attend_value)};
        desc.bindings = {bindings.data(), static_cast<std::uint32_t>(bindings.size()), sizeof(attend_binding)};
        std::array<char, 1024> text{};
        attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
        const attend_mechanism& functions = *mechanism_->functions;
        attend_status status = ATTEND_INTERNAL;
        try {
            status = functions.plan(mechanism_->lib, &desc, &plan_->plan, &error);
            if (status == ATTEND_OK && plan_->plan == nullptr) status = ATTEND_INTERNAL;
            if (status != ATTEND_OK) return plugin_error(*mechanism_, status, text.data());
            attend_plan_info info{};
            info.struct_size = sizeof info;
            status = functions.plan_info(plan_->plan, &info);
            if (status != ATTEND_OK) return plugin_error(*mechanism_, status, "plan_info failed");
            plan_->workspace_bytes = info.workspace_bytes;
            plan_->workspace_align = std::max<std::uint64_t>(64, info.workspace_align);
            if (option_given("window_size") && option_number("window_size").value_or(0) > 0 &&
                mechanism_->has(ATTEND_CAP_WINDOW) &&
                mechanism_->find_option("window_size")->default_value == Json(0) &&
                (desc.window_left >= 0 || desc.window_right >= 0) &&
                (option_number("window_left").value_or(-1) >= 0 || option_number("window_right").value_or(-1) >= 0))
                plan_->warnings.push_back(
                    mechanism_->name + ": option \"window_size\" is not read here; window_left and window_right are");
            plan_->variant = info.variant != nullptr ? info.variant : mechanism_->backend;
            for (const char* at = info.warnings; at != nullptr && *at != '\0';) {
                const std::string line(at, std::char_traits<char>::length(at));
                const std::size_t end = std::min(line.find('\n'), line.size());
                plan_->warnings.push_back(mechanism_->name + ": " + line.substr(0, end));
                at += end + (at[end] == '\n' ? 1 : 0);
            }
            if (functions.get_extension != nullptr)
                if (const auto* cost = static_cast<const attend_cost_extension*>(
                        functions.get_extension(mechanism_->lib, ATTEND_EXT_COST))) {
                    attend_cost predicted{};
                    predicted.struct_size = sizeof predicted;
                    if (cost->predict(mechanism_->lib, &desc, &predicted) == ATTEND_OK) plan_->flops = predicted.flops;
                }
        } catch (...) {
            return fail(ErrorCode::internal, "the plugin threw while planning");
        }
        desc.options = {};
        desc.bindings = {};
        return {};
    }

    std::size_t given_weights_{};
};

CallPlan::~CallPlan() {
    if (plan == nullptr) return;
    try {
        mechanism->functions->plan_destroy(plan);
    } catch (...) {  // nothing to be done about a plan that cannot be destroyed
    }
}

Result<std::shared_ptr<CallPlan>> build_call(const MechanismPtr& mechanism, const ForwardInputs& inputs,
                                             const CallRequest& request, const CallForm& form,
                                             std::uint32_t max_workers) {
    return CallBuilder(mechanism, request, form).build(inputs, max_workers);
}

Json options_in_force(const MechanismRecord& mechanism, const std::vector<OptionValue>& values) {
    Json object = Json::object();
    for (std::size_t at = 0; at < values.size(); ++at)
        if (values[at].type != OptionType::none)
            object.set(values[at].name, option_to_json(mechanism.options[at], values[at]));
    return object;
}

const char* exactness_name(std::uint32_t numerics) {
    return numerics == ATTEND_EXACT ? "exact" : numerics == ATTEND_APPROXIMATE ? "approximate" : "different-function";
}

}  // namespace attend
