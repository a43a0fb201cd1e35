// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <set>

#include "service/call_layout.hpp"
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
class CallBuilder : private CallLayout {
public:
    CallBuilder(const MechanismPtr& mechanism, const CallRequest& request)
        : CallLayout(mechanism, request, std::shared_ptr<CallPlan>(new CallPlan())) {}

    Result<std::shared_ptr<CallPlan>> build(const ForwardInputs& inputs, std::uint32_t max_workers) {
        if (auto done = complete(&inputs); !done) return done.error();
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

    Result<void> describe_sizes(const SizeRequest& sizes, std::uint32_t max_workers) {
        if (auto done = complete(nullptr); !done) return done.error();
        for (const auto& [name, value] :
             std::initializer_list<std::pair<const char*, std::int64_t>>{{"B", sizes.batch},
                                                                         {"Hq", sizes.heads},
                                                                         {"Hkv", sizes.kv_heads},
                                                                         {"Nq", sizes.q_len},
                                                                         {"Nk", sizes.kv_len},
                                                                         {"D", sizes.head_dim},
                                                                         {"Dv", sizes.value_dim}})
            scope_.symbols[name] = static_cast<double>(value);
        return describe(max_workers);
    }

    Result<void> visit_pattern(const SizeRequest& sizes, const PatternRows& rows, const PatternVisitor& visit) {
        if (auto done = describe_sizes(sizes, 1); !done) return done.error();
        const attend_mechanism& functions = *mechanism_->functions;
        const auto* pattern = functions.get_extension == nullptr
                                  ? nullptr
                                  : static_cast<const attend_pattern_extension*>(
                                        functions.get_extension(mechanism_->lib, ATTEND_EXT_PATTERN));
        if (pattern == nullptr || pattern->struct_size < sizeof *pattern || pattern->visit == nullptr)
            return Error{ErrorCode::unsupported,
                         mechanism_->name +
                             ": has no key pattern to show; accepted: a mechanism that chooses its keys by position",
                         "those of category sparse do"};
        std::array<char, 512> text{};
        attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
        std::vector<attend_value> values = abi_values();
        plan_->desc.options = {values.data(), static_cast<std::uint32_t>(values.size()), sizeof(attend_value)};
        // What a plugin says is used to address memory: ranges outside the call go no further.
        struct Bounds {
            const PatternRows& asked;
            std::int64_t keys;
            const PatternVisitor& next;
            bool strayed;
        } bounds{rows, sizes.kv_len, visit, false};
        const attend_status status = pattern->visit(
            mechanism_->lib, &plan_->desc, rows.head, rows.first, rows.count, rows.at_once,
            [](void* visitor, int64_t first, int64_t count, const attend_pattern_keys* keys) noexcept {
                Bounds& self = *static_cast<Bounds*>(visitor);
                const std::int64_t end = self.asked.first + self.asked.count;
                if (first < self.asked.first || first >= end || count < 1 || count > end - first || keys == nullptr ||
                    keys->step < 1 || keys->begin < 0 || keys->end > self.keys) {
                    self.strayed = true;
                    return;
                }
                self.next(
                    {first, count, keys->begin, keys->end, keys->step, (keys->flags & ATTEND_PATTERN_PARTIAL) != 0});
            },
            &bounds, &error);
        if (status != ATTEND_OK) return plugin_error(*mechanism_, status, text.data());
        if (bounds.strayed)
            return Error{ErrorCode::plugin,
                         mechanism_->name +
                             ": its key pattern names rows or keys outside the call; accepted: rows that were "
                             "asked for, keys up to " +
                             std::to_string(sizes.kv_len),
                         ""};
        return {};
    }

    Result<Estimate> estimate(const SizeRequest& sizes, std::uint32_t max_workers) {
        if (auto done = describe_sizes(sizes, max_workers); !done) return done.error();
        if (sizes.lse) plan_->desc.flags |= ATTEND_PLAN_NEED_LSE;
        if (sizes.scores) plan_->desc.flags |= ATTEND_PLAN_NEED_SCORES;
        // A request says that it has a mask, not of which kind, so the general one is assumed: per pair, for all heads alike.
        const Shape pairs{sizes.batch, 1, sizes.q_len, sizes.kv_len}, pair_strides = compact_strides(pairs);
        std::array<CallTensor, 2> given;
        std::vector<attend_binding> bindings;
        given[0].describe(pairs, pair_strides, DType::u8, nullptr);
        given[1].describe(pairs, pair_strides, DType::f32, nullptr);
        if (sizes.mask) bindings.push_back({sizeof(attend_binding), ATTEND_MASK, "mask", &given[0].tensor});
        if (sizes.bias) bindings.push_back({sizeof(attend_binding), ATTEND_BIAS, "bias", &given[1].tensor});
        plan_->desc.bindings = {bindings.data(), static_cast<std::uint32_t>(bindings.size()), sizeof(attend_binding)};
        Estimate result;
        const attend_mechanism& functions = *mechanism_->functions;
        std::array<char, 512> text{};
        attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
        std::vector<attend_value> values = abi_values();
        plan_->desc.options = {values.data(), static_cast<std::uint32_t>(values.size()), sizeof(attend_value)};
        if (functions.check != nullptr)
            if (const attend_status status = functions.check(mechanism_->lib, &plan_->desc, &error);
                status != ATTEND_OK)
                return plugin_error(*mechanism_, status, text.data());
        if (functions.get_extension != nullptr) {
            if (const auto* cost = static_cast<const attend_cost_extension*>(
                    functions.get_extension(mechanism_->lib, ATTEND_EXT_COST))) {
                attend_cost predicted{};
                predicted.struct_size = sizeof predicted;
                if (cost->predict(mechanism_->lib, &plan_->desc, &predicted) == ATTEND_OK) {
                    result.flops = predicted.flops;
                    result.bytes = predicted.bytes;
                    result.workspace = predicted.workspace_bytes;
                }
            }
        }
        result.error_bound = mechanism_->numerics == ATTEND_EXACT ? 0.0 : std::numeric_limits<double>::infinity();
        if (functions.get_extension != nullptr)
            if (const auto* tolerance = static_cast<const attend_tolerance_extension*>(
                    functions.get_extension(mechanism_->lib, ATTEND_EXT_TOLERANCE)))
                result.error_bound = tolerance->error_bound(mechanism_->lib, &plan_->desc);
        return result;
    }

private:
    std::int64_t size_of(const char* symbol, std::int64_t otherwise) const {
        const auto at = scope_.symbols.find(symbol);
        return at == scope_.symbols.end() ? otherwise : static_cast<std::int64_t>(at->second);
    }

    // The plan description: sizes, and the options that the host resolves.
    Result<void> describe(std::uint32_t max_workers) {
        attend_plan_desc& desc = plan_->desc;
        desc.struct_size = sizeof desc;
        desc.batch = size_of("B", 1);
        desc.num_q_heads = size_of("Hq", size_of("Hkv", 1));
        desc.num_kv_heads = size_of("Hkv", desc.num_q_heads);
        desc.q_len = size_of("Nq", 0);
        desc.kv_len = size_of("Nk", desc.q_len);
        desc.head_dim = size_of("D", 1);
        desc.value_dim = size_of("Dv", desc.head_dim);
        if (desc.num_q_heads < 1 || desc.num_kv_heads < 1)
            return fail(ErrorCode::shape, "a tensor has no heads; accepted: at least one");
        if (desc.head_dim < 1 || desc.value_dim < 1)
            return fail(ErrorCode::shape, "the head width is " +
                                              std::to_string(std::min(desc.head_dim, desc.value_dim)) +
                                              "; accepted: at least 1");
        if (desc.num_q_heads % desc.num_kv_heads != 0)
            return fail(ErrorCode::shape,
                        "num_q_heads " + std::to_string(desc.num_q_heads) + " is not a multiple of num_kv_heads " +
                            std::to_string(desc.num_kv_heads) + "; accepted: key heads that divide the query heads");
        plan_->types = request_.types;
        desc.io_dtype = static_cast<std::uint32_t>(find_dtype(request_.types.query)->bit);
        desc.acc_dtype = static_cast<std::uint32_t>(ATTEND_F32);
        desc.max_workers = max_workers;
        desc.flags = ATTEND_PLAN_DETERMINISTIC;
        const bool causal = option_true("causal");
        if (causal) desc.flags |= ATTEND_PLAN_CAUSAL;
        const bool top_left = [&] {
            const OptionValue* alignment = scope_.option("causal_alignment");
            return alignment != nullptr && std::holds_alternative<std::int64_t>(alignment->value) &&
                   std::get<std::int64_t>(alignment->value) == 1;
        }();
        const std::optional<double> offset = option_number("causal_offset");
        desc.causal_offset = offset ? static_cast<std::int64_t>(*offset) : top_left ? 0 : desc.kv_len - desc.q_len;
        const auto is_bound = [&](std::uint32_t role) {
            return std::any_of(plan_->inputs.begin(), plan_->inputs.end(),
                               [role](const BoundInput& bound) { return bound.port->role == role; });
        };
        if (!offset && !top_left && is_bound(ATTEND_Q_LENGTHS) && is_bound(ATTEND_K_LENGTHS))
            desc.flags |= ATTEND_PLAN_OFFSET_PER_ITEM;
        desc.window_left = static_cast<std::int64_t>(option_number("window_left").value_or(-1));
        desc.window_right = static_cast<std::int64_t>(option_number("window_right").value_or(-1));
        const auto window = static_cast<std::int64_t>(option_number("window_size").value_or(0));
        if (desc.window_left < 0 && desc.window_right < 0 && window > 0) {
            desc.window_left = window;
            desc.window_right = causal ? 0 : window;
        }
        desc.scale = option_number("scale").value_or(0.0);
        desc.softcap = option_number("softcap").value_or(0.0);
        desc.dropout = option_number("dropout").value_or(0.0);
        const auto bits = [&](const char* name) {
            const OptionValue* value = scope_.option(name);
            return value != nullptr && std::holds_alternative<std::int64_t>(value->value)
                       ? static_cast<std::uint64_t>(std::get<std::int64_t>(value->value))
                       : 0u;
        };
        plan_->seed = bits("seed");
        plan_->rng_offset = bits("rng_offset");
        weight_seed_ = bits("weight_seed");
        want_lse_ = request_.lse || option_true("return_lse");
        if (want_lse_) desc.flags |= ATTEND_PLAN_NEED_LSE;
        if (request_.scores) desc.flags |= ATTEND_PLAN_NEED_SCORES;
        return {};
    }

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

    std::vector<attend_value> abi_values() const {
        static constexpr std::uint32_t types[] = {0,
                                                  ATTEND_TYPE_BOOL,
                                                  ATTEND_TYPE_INT,
                                                  ATTEND_TYPE_FLOAT,
                                                  ATTEND_TYPE_STRING,
                                                  ATTEND_TYPE_ENUM,
                                                  ATTEND_TYPE_INT_LIST,
                                                  ATTEND_TYPE_FLOAT_LIST};
        std::vector<attend_value> values;
        for (std::size_t at = 0; at < mechanism_->own_options; ++at) {  // the host's own come behind, and stay here
            const OptionValue& from = plan_->values[at];
            attend_value to{};
            to.struct_size = sizeof to;
            to.type = types[static_cast<std::size_t>(from.type)];
            to.name = mechanism_->options[at].name.c_str();
            to.flags = (from.given ? ATTEND_VALUE_GIVEN : 0) | (from.scalar ? ATTEND_VALUE_SCALAR : 0);
            if (const bool* flag = std::get_if<bool>(&from.value))
                to.u.i = *flag ? 1 : 0;
            else if (const auto* integer = std::get_if<std::int64_t>(&from.value))
                to.u.i = *integer;
            else if (const double* real = std::get_if<double>(&from.value))
                to.u.f = *real;
            else if (const auto* text = std::get_if<std::string>(&from.value))
                to.u.s = text->c_str(), to.count = static_cast<std::uint32_t>(text->size());
            else if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&from.value))
                to.u.is = integers->data(), to.count = static_cast<std::uint32_t>(integers->size());
            else if (const auto* reals = std::get_if<std::vector<double>>(&from.value))
                to.u.fs = reals->data(), to.count = static_cast<std::uint32_t>(reals->size());
            values.push_back(to);
        }
        return values;
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

    bool want_lse_{false};
    std::uint64_t weight_seed_{};
    std::size_t given_weights_{};
};

CallPlan::~CallPlan() {
    if (plan == nullptr) return;
    try {
        mechanism->functions->plan_destroy(plan);
    } catch (...) {  // nothing to be done about a plan that cannot be destroyed
    }
}

Result<CallTypes> choose_types(const MechanismRecord& mechanism, const ForwardInputs& inputs,
                               const CallRequest& request) {
    // A type counts where the mechanism and each of its ports for query, key, value and output have it.
    const auto takes = [&](DType dtype) {
        const DTypeBit* row = find_dtype(dtype);
        return row != nullptr && (mechanism.dtypes & row->bit) != 0 &&
               std::all_of(mechanism.ports.begin(), mechanism.ports.end(), [row](const PortRecord& port) {
                   const bool stored = port.role == ATTEND_Q || port.role == ATTEND_K || port.role == ATTEND_V ||
                                       port.role == ATTEND_OUT;
                   return !stored || (port.dtypes & row->bit) != 0;
               });
    };
    const bool narrow_query = inputs.query.dtype == DType::f16 || inputs.query.dtype == DType::bf16;
    bool projected = false;
    for (const auto& [name, value] : request.options)
        projected = projected || (fold_name(name) == "block" && value.is_bool() && value.as_bool());
    if (const OptionSpec* form = mechanism.find_option("form")) {
        projected = has_projected_weight(mechanism, inputs) || form->default_value == Json("projected");
        for (const auto& [name, value] : request.options)
            if (fold_name(name) == "form" && value.is_string() && value.as_string() != "auto")
                projected = value.as_string() == "projected";
    }
    if (request.precision == "fp32") {
        CallTypes types;
        if (request.precision_given || projected || (narrow_query && !takes(inputs.query.dtype))) return types;
        if (narrow_query) types.query = inputs.query.dtype;
        // A narrower cache stays as it is where the queries are not rounded to another type.
        const DType key = inputs.key ? inputs.key->dtype : inputs.query.dtype;
        types.key_value = key != DType::f64 && takes(key) ? key : types.query;
        return types;
    }
    const DType wanted = request.precision == "bf16"   ? DType::bf16
                         : request.precision == "fp16" ? DType::f16
                         : request.precision == "int8" ? DType::i8
                                                       : DType::f8_e4m3;
    if (wanted == DType::i8 || wanted == DType::f8_e4m3 || !takes(wanted))
        return Error{ErrorCode::unsupported,
                     mechanism.name + ": precision " + request.precision + " is not offered; accepted: fp32" +
                         (takes(DType::bf16) ? ", bf16" : "") + (takes(DType::f16) ? ", fp16" : ""),
                     ""};
    if (projected)
        return Error{ErrorCode::unsupported,
                     mechanism.name + ": precision " + request.precision +
                         " is not offered in the projected form; accepted: fp32, or the core form",
                     ""};
    return CallTypes{wanted, wanted};
}

Result<ForwardInputs> convert_inputs(const MechanismRecord& mechanism, const ForwardInputs& inputs,
                                     const CallTypes& types) {
    ForwardInputs converted = inputs;
    const DType wanted = inputs.query.dtype;
    const auto fail = [&](const std::string& what) {
        return Error{ErrorCode::dtype, mechanism.name + ": " + what, ""};
    };
    for (const auto& [name, tensor] :
         {std::pair("query", &inputs.query), std::pair("key", inputs.key ? &*inputs.key : nullptr),
          std::pair("value", inputs.value ? &*inputs.value : nullptr)}) {
        if (tensor == nullptr || (tensor == &inputs.query && tensor->data == nullptr && tensor->shape.empty()))
            continue;
        if (!is_model_float(tensor->dtype))
            return fail(std::string(name) + " has data type " + dtype_name(tensor->dtype) +
                        "; accepted: F32, F16, BF16, F64");
        if (tensor->dtype != wanted && dtype_size(tensor->dtype) >= dtype_size(wanted))
            return fail(std::string(name) + " has data type " + dtype_name(tensor->dtype) + ", query has " +
                        dtype_name(wanted) + "; accepted: the same, or a narrower one for key and value");
    }
    if (inputs.key && inputs.value && inputs.key->dtype != inputs.value->dtype)
        return fail(std::string("key has data type ") + dtype_name(inputs.key->dtype) + ", value has " +
                    dtype_name(inputs.value->dtype) + "; accepted: the same");
    Error problem;
    const auto to = [&](Tensor& tensor, DType dtype) {
        if (tensor.dtype == dtype) return true;
        Result<Tensor> done = convert(tensor, dtype);
        if (!done)
            problem = done.error();
        else
            tensor = std::move(*done);
        return done.ok();
    };
    const bool has_query = inputs.query.data != nullptr || !inputs.query.shape.empty();
    bool good = (!has_query || to(converted.query, types.query)) &&
                (!converted.key || to(*converted.key, types.key_value)) &&
                (!converted.value || to(*converted.value, types.key_value));
    if (good && converted.bias) {
        if (!is_model_float(converted.bias->dtype))
            return fail(std::string("bias has data type ") + dtype_name(converted.bias->dtype) +
                        "; accepted: F32, F16, BF16, F64");
        good = to(*converted.bias, DType::f32);
    }
    for (auto* list : {&converted.extra, &converted.weights})
        for (auto& [name, tensor] : *list)
            if (good && is_model_float(tensor.dtype)) good = to(tensor, DType::f32);
    for (const auto& [name, tensor] : converted.weights)
        if (tensor.dtype != DType::f32)
            return Error{ErrorCode::dtype,
                         mechanism.name + ": weight \"" + name + "\" has data type " + dtype_name(tensor.dtype) +
                             "; accepted: F32, F16, BF16, F64",
                         ""};
    if (!good) return problem;
    return converted;
}

Result<std::shared_ptr<CallPlan>> build_call(const MechanismPtr& mechanism, const ForwardInputs& inputs,
                                             const CallRequest& request, std::uint32_t max_workers) {
    return CallBuilder(mechanism, request).build(inputs, max_workers);
}

Result<Estimate> estimate_call(const MechanismPtr& mechanism, const SizeRequest& sizes, const NamedValues& options,
                               std::uint32_t max_workers) {
    CallRequest request;
    request.options = options;
    return CallBuilder(mechanism, request).estimate(sizes, max_workers);
}

Result<void> visit_pattern(const MechanismPtr& mechanism, const SizeRequest& sizes, const NamedValues& options,
                           const PatternRows& rows, const PatternVisitor& visit) {
    CallRequest request;
    request.options = options;
    return CallBuilder(mechanism, request).visit_pattern(sizes, rows, visit);
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
