// SPDX-License-Identifier: Apache-2.0
// Calls of the C API and their results.
#include <algorithm>

#include "attend/config/names.hpp"
#include "attend/rerank.hpp"
#include "c_api/requests.hpp"
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

}  // namespace

Result<Wanted> wanted_of(AttentionService& service, const attend_forward_request& request) {
    if ((request.flags & ~(ATTEND_FORWARD_LSE | ATTEND_FORWARD_SCORES | ATTEND_FORWARD_COMPUTE)) != 0)
        return Error{ErrorCode::unsupported,
                     "request: flags are " + std::to_string(request.flags) +
                         "; accepted: ATTEND_FORWARD_LSE, ATTEND_FORWARD_SCORES, ATTEND_FORWARD_COMPUTE",
                     ""};
    for (const auto& [name, heads] : {std::pair("heads", request.heads), std::pair("kv_heads", request.kv_heads)})
        if (heads < 0)
            return Error{
                ErrorCode::shape,
                std::string("request: ") + name + " is " + std::to_string(heads) + "; accepted: 0 (not given) or more",
                ""};
    Wanted wanted;
    ForwardOptions& options = wanted.options;
    if (request.mechanism != nullptr) options.mechanism = request.mechanism;
    if (options.mechanism != "auto") {
        Result<MechanismPtr> found = service.registry()->get(options.mechanism, "forward");
        if (!found) return found.error();
        wanted.mechanism = std::move(*found);
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
    options.use_cache = (request.flags & ATTEND_FORWARD_COMPUTE) == 0;
    if (request.precision != nullptr) options.precision = request.precision;
    if (request.cancel != nullptr) options.cancel = request.cancel->token;
    return wanted;
}

namespace {

std::unique_ptr<attend_result> handle_of(const ForwardResult& result) {
    auto own = std::make_unique<attend_result>();
    own->tensors = result_tensors(result);
    own->record = write_json(record_json(result), true) + "\n";
    return own;
}

Result<std::unique_ptr<attend_result>> forward(AttentionService& service, const attend_forward_request& request,
                                               NamedTensors tensors) {
    const Result<Wanted> wanted = wanted_of(service, request);
    if (!wanted) return wanted.error();
    const Result<ForwardInputs> inputs = sort_inputs("tensors", std::move(tensors), wanted->mechanism.get());
    if (!inputs) return inputs.error();
    const Result<ForwardResult> result = service.forward(*inputs, wanted->options);
    if (!result) return result.error();
    return handle_of(*result);
}

// An array of structs of one size, perhaps an older or newer one.
Result<attend_batch_item> item_at(const attend_batch_item* items, std::uint64_t index) {
    std::uint32_t size = 0;
    std::memcpy(&size, items, sizeof size);
    const auto* at = reinterpret_cast<const unsigned char*>(items) + index * size;
    return read_struct(reinterpret_cast<const attend_batch_item*>(at), "items[" + std::to_string(index) + "]");
}

Result<void> forward_batch(AttentionService& service, const attend_forward_request& request,
                           const attend_batch_item* items, std::uint64_t count, attend_result** results) {
    // What is given over is taken first, from all items, whatever fails.
    std::vector<std::unique_ptr<GivenTensors>> given;
    std::vector<NamedTensors> tensors;
    std::optional<Error> problem;
    for (std::uint64_t at = 0; at < count; ++at) {
        const Result<attend_batch_item> item = item_at(items, at);
        if (!item) return item.error();
        const std::string place = "item " + std::to_string(at) + ": ";
        given.push_back(std::make_unique<GivenTensors>());
        Result<NamedTensors> read = read_tensors(item->tensors, item->num_tensors, *given.back());
        if (!problem && !read) problem = Error{read.error().code, place + read.error().message, read.error().hint};
        if (!problem && item->flags != 0)
            problem =
                Error{ErrorCode::unsupported, place + "flags are " + std::to_string(item->flags) + "; accepted: 0", ""};
        if (read) tensors.push_back(std::move(*read));
    }
    if (request.num_tensors != 0)
        return wrong_argument("request: has " + std::to_string(request.num_tensors) +
                              " tensors; accepted: none, the items have them");
    const Result<Wanted> wanted = wanted_of(service, request);
    if (!wanted) return wanted.error();
    if (problem) return *problem;
    std::vector<ForwardInputs> inputs;
    for (std::uint64_t at = 0; at < count; ++at) {
        Result<ForwardInputs> sorted = sort_inputs("tensors", std::move(tensors[at]), wanted->mechanism.get());
        if (!sorted)
            return Error{sorted.error().code, "item " + std::to_string(at) + ": " + sorted.error().message,
                         sorted.error().hint};
        inputs.push_back(std::move(*sorted));
    }
    const Result<std::vector<ForwardResult>> done = service.forward_batch(inputs, wanted->options);
    if (!done) return done.error();
    std::vector<std::unique_ptr<attend_result>> handles;
    for (const ForwardResult& result : *done) handles.push_back(handle_of(result));
    for (std::uint64_t at = 0; at < count; ++at) results[at] = handles[at].release();
    return {};
}

Result<Reranking> rerank(AttentionService& service, const attend_rerank_request& request, NamedTensors tensors) {
    constexpr std::uint32_t both = ATTEND_RERANK_NORMALIZE | ATTEND_RERANK_NO_NORMALIZE;
    if ((request.flags & ~both) != 0 || request.flags == both)
        return Error{ErrorCode::unsupported,
                     "request: flags are " + std::to_string(request.flags) +
                         "; accepted: ATTEND_RERANK_NORMALIZE or ATTEND_RERANK_NO_NORMALIZE",
                     ""};
    RerankOptions options;
    if (request.mechanism != nullptr) options.mechanism = request.mechanism;
    if (request.heads != 0) options.heads = request.heads;
    options.top_k = static_cast<std::int64_t>(std::min<std::uint64_t>(request.top_k, INT64_MAX));
    if (request.scale != 0) options.scale = request.scale;
    if (request.flags != 0)
        options.normalize =
            request.flags == ATTEND_RERANK_NORMALIZE ? RerankOptions::Normalize::on : RerankOptions::Normalize::off;
    Result<NamedValues> values = options_of(request.options_json);
    if (!values) return values.error();
    options.options = std::move(*values);
    std::optional<Tensor> query, candidates;
    for (auto& [name, tensor] : tensors) {
        const std::string_view text = name;
        if (text.starts_with("weight.") && text.size() > 7) {
            options.weights.emplace_back(text.substr(7), std::move(tensor));
            continue;
        }
        std::optional<Tensor>* to = text == "query" ? &query : text == "candidates" ? &candidates : nullptr;
        if (to == nullptr || *to)
            return wrong_argument(
                "tensors: " + std::string(to == nullptr ? "unknown tensor \"" : "a second tensor \"") + name +
                "\"; accepted: query, candidates, weight.<name>");
        *to = std::move(tensor);
    }
    if (!query || !candidates)
        return wrong_argument(std::string("tensors: \"") + (query ? "candidates" : "query") +
                              "\" is missing; accepted: query, candidates, weight.<name>");
    return service.rerank(*query, *candidates, options);
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

extern "C" attend_code attend_forward_batch(attend_service* service, const attend_forward_request* request,
                                            const attend_batch_item* items, uint64_t num_items, attend_result** results,
                                            attend_error_text* error) {
    if (results != nullptr) std::fill_n(results, num_items, nullptr);
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<attend_forward_request> read = c_api::read_struct(request, "request");
        if (!read) return read.error();
        if (num_items > 0 && (items == nullptr || results == nullptr))
            return c_api::wrong_argument(std::string(items == nullptr ? "items" : "results") +
                                         ": is NULL; accepted: an array of " + std::to_string(num_items));
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        return c_api::forward_batch(**own, *read, items, num_items, results);
    });
}

extern "C" attend_cancel* attend_cancel_new(void) {
    try {
        return new attend_cancel;
    } catch (...) {
        return nullptr;
    }
}

extern "C" void attend_cancel_set(attend_cancel* cancel) {
    if (cancel != nullptr) cancel->token->store(true);
}

extern "C" void attend_cancel_clear(attend_cancel* cancel) {
    if (cancel != nullptr) cancel->token->store(false);
}

extern "C" void attend_cancel_free(attend_cancel* cancel) { delete cancel; }

extern "C" attend_code attend_rerank(attend_service* service, const attend_rerank_request* request,
                                     attend_ranked* ranked, uint64_t capacity, uint64_t* count,
                                     attend_error_text* error) {
    if (count != nullptr) *count = 0;
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<attend_rerank_request> read = c_api::read_struct(request, "request");
        if (!read) return read.error();
        c_api::GivenTensors given;
        Result<NamedTensors> tensors = c_api::read_tensors(read->tensors, read->num_tensors, given);
        if (!tensors) return tensors.error();
        if (ranked == nullptr && capacity != 0)
            return c_api::wrong_argument("ranked: is NULL; accepted: room for " + std::to_string(capacity) +
                                         " candidates");
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        const Result<Reranking> done = c_api::rerank(**own, *read, std::move(*tensors));
        if (!done) return done.error();
        const std::uint64_t fit = std::min<std::uint64_t>(capacity, done->results.size());
        for (std::uint64_t at = 0; at < fit; ++at)
            ranked[at] = {done->results[at].index, done->results[at].score, done->results[at].logit};
        if (count != nullptr) *count = done->results.size();
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
