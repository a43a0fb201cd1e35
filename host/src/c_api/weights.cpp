// SPDX-License-Identifier: Apache-2.0
// Attention weights and learned tensors through the C API.
#include "attend/attention_weights.hpp"
#include "c_api/requests.hpp"
#include "c_api/tensors.hpp"
#include "service/named_inputs.hpp"

namespace attend::c_api {
namespace {

// A call in the service's own terms.
struct OwnCall {
    Wanted wanted;
    ForwardInputs inputs;
};

Result<OwnCall> call_of(AttentionService& service, const attend_forward_request* request) {
    const Result<attend_forward_request> read = read_struct(request, "request");
    if (!read) return read.error();
    // What is given over is taken, whatever fails.
    GivenTensors given;
    Result<NamedTensors> tensors = read_tensors(read->tensors, read->num_tensors, given);
    if (!tensors) return tensors.error();
    Result<Wanted> wanted = wanted_of(service, *read);
    if (!wanted) return wanted.error();
    Result<ForwardInputs> inputs = sort_inputs("tensors", std::move(*tensors), wanted->mechanism.get());
    if (!inputs) return inputs.error();
    return OwnCall{std::move(*wanted), std::move(*inputs)};
}

Result<std::unique_ptr<attend_result>> weights_of(AttentionService& service, const attend_forward_request* request,
                                                  const attend_weight_request& asked) {
    constexpr std::uint32_t known = ATTEND_WEIGHTS_COLUMN_MASS | ATTEND_WEIGHTS_ROW_ENTROPY | ATTEND_WEIGHTS_FULL;
    if ((asked.flags & ~known) != 0)
        return Error{ErrorCode::unsupported,
                     "weights: flags are " + std::to_string(asked.flags) +
                         "; accepted: ATTEND_WEIGHTS_COLUMN_MASS, ATTEND_WEIGHTS_ROW_ENTROPY, ATTEND_WEIGHTS_FULL",
                     ""};
    if (asked.rows == nullptr && asked.num_rows != 0)
        return wrong_argument("weights: rows is NULL; accepted: an array of " + std::to_string(asked.num_rows));
    const Result<OwnCall> call = call_of(service, request);
    if (!call) return call.error();
    WeightRequest wanted;
    wanted.top_k = asked.top_k;
    wanted.column_mass = (asked.flags & ATTEND_WEIGHTS_COLUMN_MASS) != 0;
    wanted.row_entropy = (asked.flags & ATTEND_WEIGHTS_ROW_ENTROPY) != 0;
    wanted.full = (asked.flags & ATTEND_WEIGHTS_FULL) != 0;
    if (asked.num_rows != 0) wanted.rows.assign(asked.rows, asked.rows + asked.num_rows);
    if (asked.max_full_bytes != 0) wanted.max_full_bytes = asked.max_full_bytes;
    Result<WeightSummary> found = service.attention_weights(call->inputs, call->wanted.options, wanted);
    if (!found) return found.error();
    auto own = std::make_unique<attend_result>();
    const auto add = [&](const char* name, std::optional<Tensor>& tensor) {
        if (tensor) own->tensors.emplace_back(name, std::move(*tensor));
    };
    add("top_values", found->top_values);
    add("top_keys", found->top_keys);
    add("column_mass", found->column_mass);
    add("row_entropy", found->row_entropy);
    add("row_weights", found->row_weights);
    add("full", found->full);
    own->record = write_json(Json::object()
                                 .set("mechanism", call->wanted.options.mechanism)
                                 .set("batch", found->batch)
                                 .set("heads", found->heads)
                                 .set("q_len", found->q_len)
                                 .set("kv_len", found->kv_len)) +
                  "\n";
    return own;
}

Result<void> give(Result<std::unique_ptr<attend_result>> made, attend_result** result) {
    if (!made) return made.error();
    *result = made->release();
    return {};
}

}  // namespace
}  // namespace attend::c_api

using namespace attend;

extern "C" attend_code attend_weights(attend_service* service, const attend_forward_request* request,
                                      const attend_weight_request* weights, attend_result** result,
                                      attend_error_text* error) {
    if (result != nullptr) *result = nullptr;
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<attend_weight_request> asked = c_api::read_struct(weights, "weights");
        if (!asked) return asked.error();
        if (result == nullptr) return c_api::wrong_argument("result: is NULL; accepted: a place for the result");
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        return c_api::give(c_api::weights_of(**own, request, *asked), result);
    });
}

extern "C" attend_code attend_set_projections(attend_service* service, const attend_forward_request* like,
                                              attend_error_text* error) {
    return c_api::guarded(error, [&]() -> Result<void> {
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        const Result<c_api::OwnCall> call = c_api::call_of(**own, like);
        if (!call) return call.error();
        return (*own)->set_projections(call->inputs, call->wanted.options);
    });
}

extern "C" attend_code attend_get_projections(attend_service* service, const attend_forward_request* like,
                                              attend_result** result, attend_error_text* error) {
    if (result != nullptr) *result = nullptr;
    return c_api::guarded(error, [&]() -> Result<void> {
        if (result == nullptr) return c_api::wrong_argument("result: is NULL; accepted: a place for the result");
        const Result<AttentionService*> own = c_api::service_of(service);
        if (!own) return own.error();
        const Result<c_api::OwnCall> call = c_api::call_of(**own, like);
        if (!call) return call.error();
        Result<NamedTensors> kept = (*own)->get_projections(call->inputs, call->wanted.options);
        if (!kept) return kept.error();
        std::int64_t count = 0;
        for (const auto& [name, tensor] : *kept) count += tensor.size();
        auto made = std::make_unique<attend_result>();
        made->tensors = std::move(*kept);
        made->record =
            write_json(Json::object().set("mechanism", call->wanted.options.mechanism).set("param_count", count)) +
            "\n";
        *result = made.release();
        return {};
    });
}
