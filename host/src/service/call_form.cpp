// SPDX-License-Identifier: Apache-2.0
#include "service/call_form.hpp"

#include "attend/config/names.hpp"

namespace attend {
namespace {

// Whether a weight is given that only the projected form has: form=auto is then that form.
bool has_projected_weight(const MechanismRecord& mechanism, const ForwardInputs& inputs) {
    return std::any_of(inputs.weights.begin(), inputs.weights.end(), [&](const auto& weight) {
        const PortRecord* port = mechanism.find_port(fold_name(weight.first));
        if (port == nullptr || (port->flags & ATTEND_WEIGHT) == 0) return false;
        const Result<PortShape> shape = PortShape::parse(port->shape);
        return shape && std::all_of(shape->alternatives().begin(), shape->alternatives().end(),
                                    [](const ShapeAlternative& alternative) {
                                        return alternative.guard.mentions("form", "projected");
                                    });
    });
}

Result<PortShape> output_of(const MechanismRecord& mechanism) {
    for (const PortRecord& port : mechanism.ports)
        if (port.role == ATTEND_OUT) return PortShape::parse(port.shape);
    return PortShape();
}

// Tokens [B,N,E] in one form, heads [B,H,N,D] in another.
bool forms_in(const PortShape& output) {
    const auto any = [&](std::size_t rank) {
        return std::any_of(output.alternatives().begin(), output.alternatives().end(),
                           [rank](const ShapeAlternative& alternative) { return alternative.dims.size() == rank; });
    };
    return any(3) && any(4);
}

// Options completed; form=auto is projected iff a weight is given that only that form has.
Result<CallForm> completed(const MechanismRecord& mechanism, const NamedValues& given, const ForwardInputs* inputs) {
    Result<std::vector<OptionValue>> values = complete_options(mechanism.name, mechanism.options, given);
    if (!values) return values.error();
    CallForm form{std::move(*values), false};
    if (const OptionSpec* spec = mechanism.find_option("form");
        spec != nullptr && spec->type == OptionType::enumeration) {
        OptionValue& value = *std::find_if(form.values.begin(), form.values.end(),
                                           [](const OptionValue& option) { return option.name == "form"; });
        const auto index_of = [&](const char* choice) {
            return static_cast<std::int64_t>(std::find(spec->choices.begin(), spec->choices.end(), choice) -
                                             spec->choices.begin());
        };
        if (std::get<std::int64_t>(value.value) == index_of("auto"))
            value.value =
                index_of(inputs != nullptr && has_projected_weight(mechanism, *inputs) ? "projected" : "core");
    }
    const Result<PortShape> output = output_of(mechanism);
    if (!output) return output.error();
    PortScope scope;
    scope.specs = &mechanism.options;
    scope.values = &form.values;
    const ShapeAlternative* chosen = forms_in(*output) ? output->choose(scope) : nullptr;
    form.projected = chosen != nullptr && chosen->dims.size() == 3;
    return form;
}

}  // namespace

bool has_forms(const MechanismRecord& mechanism) {
    const Result<PortShape> output = output_of(mechanism);
    return output.ok() && forms_in(*output);
}

Result<CallForm> choose_form(const MechanismRecord& mechanism, const ForwardInputs* inputs,
                             const CallRequest& request) {
    NamedValues given = request.options;
    Result<CallForm> form = completed(mechanism, given, inputs);
    if (!form || (request.heads <= 0 && request.kv_heads <= 0)) return form;
    // Heads of the request speak of packed tensors; where heads are an option of the mechanism in this form, they set that too.
    if (!form->projected && has_forms(mechanism)) return form;
    for (const auto& [name, value] : {std::pair("heads", request.heads), std::pair("kv_heads", request.kv_heads)}) {
        const bool present = std::any_of(
            given.begin(), given.end(), [&, name = name](const auto& entry) { return fold_name(entry.first) == name; });
        if (value > 0 && !present && mechanism.find_option(name) != nullptr) given.emplace_back(name, Json(value));
    }
    form = completed(mechanism, given, inputs);
    if (!form || !form->projected || request.kv_heads <= 0 || mechanism.find_option("kv_heads") != nullptr) return form;
    PortScope scope;
    scope.values = &form->values;
    const double heads = scope.number("heads").value_or(static_cast<double>(request.kv_heads));
    if (static_cast<double>(request.kv_heads) != heads)
        return Error{ErrorCode::option,
                     mechanism.name + ": kv_heads is " + std::to_string(request.kv_heads) +
                         " in a form that has one key head for each query head; accepted: " +
                         std::to_string(static_cast<std::int64_t>(heads)) + ", as heads",
                     ""};
    return form;
}

Result<CallTypes> choose_types(const MechanismRecord& mechanism, const ForwardInputs& inputs,
                               const CallRequest& request, const CallForm& form) {
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
    if (request.precision == "fp32") {
        CallTypes types;
        if (request.precision_given || form.projected || (narrow_query && !takes(inputs.query.dtype))) return types;
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
    if (form.projected)
        return Error{ErrorCode::unsupported,
                     mechanism.name + ": precision " + request.precision +
                         " is not offered in the projected form; accepted: fp32, or the core form",
                     ""};
    return CallTypes{wanted, wanted};
}

namespace {

// Whether an input may be codes of this type, which the mechanism widens by itself.
bool takes_codes(const MechanismRecord& mechanism, std::string_view name, DType dtype) {
    const PortRecord* port = mechanism.find_port(name);
    const DTypeBit* row = find_dtype(dtype);
    return port != nullptr && (port->flags & ATTEND_INPUT) != 0 && (port->dtypes & ATTEND_I8) != 0 && row != nullptr &&
           (port->dtypes & row->bit) != 0;
}

}  // namespace

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
        if (!is_model_float(tensor->dtype) && !(tensor != &inputs.query && takes_codes(mechanism, name, tensor->dtype)))
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
    const auto to_stored = [&](Tensor& tensor) { return !is_model_float(tensor.dtype) || to(tensor, types.key_value); };
    bool good = (!has_query || to(converted.query, types.query)) && (!converted.key || to_stored(*converted.key)) &&
                (!converted.value || to_stored(*converted.value));
    if (good && converted.bias) {
        if (!is_model_float(converted.bias->dtype))
            return fail(std::string("bias has data type ") + dtype_name(converted.bias->dtype) +
                        "; accepted: F32, F16, BF16, F64");
        good = to(*converted.bias, DType::f32);
    }
    for (auto* list : {&converted.extra, &converted.weights})
        for (auto& [name, tensor] : *list) {
            if (!good || !is_model_float(tensor.dtype)) continue;
            // Caches keep the narrow type that they have, and get that of the queries where these are rounded.
            const bool cache = list == &converted.extra && takes_codes(mechanism, fold_name(name), DType::i8);
            const bool rounded = types.query != wanted && dtype_size(tensor.dtype) > dtype_size(types.query);
            if (!cache || tensor.dtype == DType::f64) good = to(tensor, DType::f32);
            if (good && cache && rounded) good = to(tensor, types.query);
        }
    for (const auto& [name, tensor] : converted.weights)
        if (tensor.dtype != DType::f32)
            return Error{ErrorCode::dtype,
                         mechanism.name + ": weight \"" + name + "\" has data type " + dtype_name(tensor.dtype) +
                             "; accepted: F32, F16, BF16, F64",
                         ""};
    if (!good) return problem;
    return converted;
}

}  // namespace attend
