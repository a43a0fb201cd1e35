// SPDX-License-Identifier: Apache-2.0
// Calls of the C API and their results.
#include <algorithm>

#include "attend/config/names.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "c_api/handles.hpp"
#include "c_api/tensors.hpp"
#include "service/documents.hpp"
#include "service/named_inputs.hpp"

namespace attend::c_api {
namespace {

Result<NamedValues> options_of(const char* json) {
    NamedValues values;
    if (json == nullptr) return values;
    Result<Json> parsed = parse_json(json, "options");
    if (!parsed) return parsed.error();
    if (!parsed->is_object())
        return wrong_argument(std::string("options: are ") + parsed->kind() +
                              "; accepted: an object of options by name");
    for (auto& [name, value] : parsed->as_object()) values.emplace_back(name, std::move(value));
    return values;
}

// The facts, checked also where a named mechanism makes them idle: unknown names are errors.
Result<RequestFacts> checked_facts(const char* json) {
    Result<RequestFacts> facts = facts_of(json);
    if (!facts || facts->empty()) return facts;
    RequestFacts complete = *facts;
    const RuleVariableInfo* length = find_rule_variable("seqLen");
    if (std::none_of(complete.begin(), complete.end(),
                     [&](const auto& fact) { return find_rule_variable(fact.first) == length; }))
        complete.emplace("seqLen", 1.0);
    if (const auto checked = RuleVariables::make(complete, {}, "facts"); !checked) return checked.error();
    return facts;
}

Result<std::unique_ptr<attend_result>> forward(AttentionService& service, const attend_forward_request& request,
                                               NamedTensors tensors) {
    if ((request.flags & ~(ATTEND_FORWARD_LSE | ATTEND_FORWARD_SCORES)) != 0)
        return Error{ErrorCode::unsupported,
                     "request: flags are " + std::to_string(request.flags) +
                         "; accepted: ATTEND_FORWARD_LSE, ATTEND_FORWARD_SCORES",
                     ""};
    for (const auto& [name, heads] : {std::pair("heads", request.heads), std::pair("kv_heads", request.kv_heads)})
        if (heads < 0)
            return Error{
                ErrorCode::shape,
                std::string("request: ") + name + " is " + std::to_string(heads) + "; accepted: 0 (not given) or more",
                ""};
    ForwardOptions options;
    if (request.mechanism != nullptr) options.mechanism = request.mechanism;
    MechanismPtr mechanism;
    if (options.mechanism != "auto") {
        Result<MechanismPtr> found = service.registry()->get(options.mechanism, "forward");
        if (!found) return found.error();
        mechanism = std::move(*found);
    }
    Result<NamedValues> values = options_of(request.options_json);
    if (!values) return values.error();
    options.options = std::move(*values);
    Result<RequestFacts> facts = checked_facts(request.facts_json);
    if (!facts) return facts.error();
    options.facts = std::move(*facts);
    options.heads = request.heads;
    options.kv_heads = request.kv_heads;
    options.lse = (request.flags & ATTEND_FORWARD_LSE) != 0;
    options.scores = (request.flags & ATTEND_FORWARD_SCORES) != 0;
    if (request.precision != nullptr) options.precision = request.precision;
    const Result<ForwardInputs> inputs = sort_inputs("tensors", std::move(tensors), mechanism.get());
    if (!inputs) return inputs.error();
    const Result<ForwardResult> result = service.forward(*inputs, options);
    if (!result) return result.error();
    auto own = std::make_unique<attend_result>();
    own->tensors = result_tensors(*result);
    own->record = write_json(record_json(*result), true) + "\n";
    return own;
}

Result<const Tensor*> find(const attend_result* result, const char* name) {
    if (result == nullptr) return wrong_argument("result: is NULL; accepted: what attend_forward gave");
    if (name == nullptr) return wrong_argument("name: is NULL; accepted: the name of a tensor");
    std::vector<std::string> names;
    for (const auto& [known, tensor] : result->tensors) {
        if (known == name) return &tensor;
        names.push_back(known);
    }
    return Error{ErrorCode::not_found,
                 "result: unknown tensor \"" + std::string(name) + "\"" + did_you_mean(name, names) +
                     "; it has: " + join_names(names),
                 ""};
}

}  // namespace
}  // namespace attend::c_api

using namespace attend;

extern "C" attend_code attend_forward(attend_service* service, const attend_forward_request* request,
                                      attend_result** result, attend_error_text* error) {
    if (result != nullptr) *result = nullptr;
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<attend_forward_request> read = c_api::read_struct(request, "request");
        if (!read) return read.error();
        c_api::GivenTensors given;
        Result<NamedTensors> tensors = c_api::read_tensors(read->tensors, read->num_tensors, given);
        if (!tensors) return tensors.error();
        if (result == nullptr)
            return c_api::wrong_argument("result: is NULL; accepted: where the result's address goes");
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        Result<std::unique_ptr<attend_result>> done = c_api::forward(**own, *read, std::move(*tensors));
        if (!done) return done.error();
        *result = done->release();
        return {};
    });
}

extern "C" uint64_t attend_result_count(const attend_result* result) {
    return result == nullptr ? 0 : result->tensors.size();
}

extern "C" const char* attend_result_name(const attend_result* result, uint64_t index) {
    return index < attend_result_count(result) ? result->tensors[index].first.c_str() : nullptr;
}

extern "C" attend_code attend_result_view(const attend_result* result, const char* name, attend_view* view,
                                          attend_error_text* error) {
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<const Tensor*> tensor = c_api::find(result, name);
        if (!tensor) return tensor.error();
        return c_api::write_struct(c_api::view_of(**tensor), view, "view");
    });
}

extern "C" attend_code attend_result_dlpack(const attend_result* result, const char* name,
                                            struct DLManagedTensorVersioned** tensor, attend_error_text* error) {
    if (tensor != nullptr) *tensor = nullptr;
    return c_api::guarded(error, [&]() -> Result<void> {
        if (tensor == nullptr)
            return c_api::wrong_argument("tensor: is NULL; accepted: where the tensor's address goes");
        const Result<const Tensor*> found = c_api::find(result, name);
        if (!found) return found.error();
        *tensor = c_api::dlpack_of(**found);
        return {};
    });
}

extern "C" const char* attend_result_record(const attend_result* result) {
    return result == nullptr ? nullptr : result->record.c_str();
}

extern "C" void attend_result_free(attend_result* result) { delete result; }
