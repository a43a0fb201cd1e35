// SPDX-License-Identifier: Apache-2.0
#include "service/named_inputs.hpp"

#include <algorithm>

#include "attend/config/names.hpp"

namespace attend {
namespace {

Error wrong(std::string message) { return {ErrorCode::input, std::move(message), ""}; }

}  // namespace

Result<ForwardInputs> sort_inputs(const std::string& place, NamedTensors tensors, const MechanismRecord* mechanism) {
    std::vector<std::string> known{"query", "key", "value", "mask", "bias", "key_lengths", "query_lengths"};
    const std::size_t fixed = known.size();
    if (mechanism != nullptr)
        for (const PortRecord& port : mechanism->ports) {
            if ((port.flags & ATTEND_WEIGHT) != 0)
                known.push_back("weight." + port.name);
            else if ((port.flags & ATTEND_INPUT) != 0 && port.role == 0)
                known.push_back("input." + port.name);
        }
    ForwardInputs inputs;
    std::vector<std::string> seen;
    for (auto& [name, tensor] : tensors) {
        const std::string folded = fold_name(name);
        const std::string subject = place + ": tensor \"" + name + "\"";
        if (std::find(seen.begin(), seen.end(), folded) != seen.end())
            return wrong(subject + " is there twice; accepted: every tensor once");
        seen.push_back(folded);
        if (folded.starts_with("weight.") && folded.size() > 7) {
            inputs.weights.emplace_back(name.substr(7), std::move(tensor));
        } else if (folded.starts_with("input.") && folded.size() > 6) {
            inputs.extra.emplace_back(name.substr(6), std::move(tensor));
        } else if (folded == "query") {
            inputs.query = std::move(tensor);
        } else if (folded == "key") {
            inputs.key = std::move(tensor);
        } else if (folded == "value") {
            inputs.value = std::move(tensor);
        } else if (folded == "mask") {
            if (tensor.dtype != DType::boolean && tensor.dtype != DType::u8)
                return Error{ErrorCode::dtype,
                             subject + " has data type " + dtype_name(tensor.dtype) + "; accepted: BOOL, U8", ""};
            inputs.mask = std::move(tensor);
        } else if (folded == "bias") {
            inputs.bias = std::move(tensor);
        } else if (folded == "key_lengths" || folded == "query_lengths") {
            if (tensor.dtype != DType::i32 && tensor.dtype != DType::i64)
                return Error{ErrorCode::dtype,
                             subject + " has data type " + dtype_name(tensor.dtype) + "; accepted: I32, I64", ""};
            (folded == "key_lengths" ? inputs.key_lengths : inputs.query_lengths) = std::move(tensor);
        } else {
            std::vector<std::string> listed(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(fixed));
            listed.insert(listed.end(), {"weight.<name>", "input.<name>"});
            return wrong(place + ": unknown tensor \"" + name + "\"" + did_you_mean(name, known) +
                         "; known: " + join_names(listed));
        }
    }
    const bool query_may_lack =
        mechanism != nullptr &&
        std::any_of(mechanism->ports.begin(), mechanism->ports.end(), [](const PortRecord& port) {
            return port.role == ATTEND_Q && (port.flags & ATTEND_OPTIONAL) != 0;
        });
    if (!query_may_lack && std::find(seen.begin(), seen.end(), "query") == seen.end())
        return wrong(place + ": tensor \"query\" is missing; accepted: a tensor of that name");
    return inputs;
}

}  // namespace attend
