// SPDX-License-Identifier: Apache-2.0
#include "service/tensor_handles.hpp"

#include <algorithm>

#include "attend/config/names.hpp"

namespace attend {
namespace {

Error unknown(TensorHandle handle) {
    return {ErrorCode::not_found,
            "handle " + std::to_string(handle) +
                ": is not registered; accepted: what register_tensor gave and release did not take back",
            ""};
}

// Where the tensor of a role is, or goes. Null: there is no such role.
Tensor* place_of(ForwardInputs& inputs, const std::string& role) {
    const auto optional = [](std::optional<Tensor>& tensor) { return tensor ? &*tensor : &tensor.emplace(); };
    const auto listed = [](NamedTensors& list, std::string_view name) {
        const auto at = std::find_if(list.begin(), list.end(),
                                     [&](const auto& entry) { return fold_name(entry.first) == fold_name(name); });
        return at != list.end() ? &at->second : &list.emplace_back(std::string(name), Tensor{}).second;
    };
    if (role == "query") return &inputs.query;
    if (role == "key") return optional(inputs.key);
    if (role == "value") return optional(inputs.value);
    if (role == "mask") return optional(inputs.mask);
    if (role == "bias") return optional(inputs.bias);
    if (role == "query_lengths") return optional(inputs.query_lengths);
    if (role == "key_lengths") return optional(inputs.key_lengths);
    if (role.starts_with("input.")) return listed(inputs.extra, std::string_view(role).substr(6));
    if (role.starts_with("weight.")) return listed(inputs.weights, std::string_view(role).substr(7));
    return nullptr;
}

}  // namespace

Result<TensorHandle> TensorHandles::add(const Tensor& tensor) {
    if (tensor.data == nullptr && tensor.size() != 0)
        return Error{ErrorCode::input, "register_tensor: the tensor has no memory; accepted: a tensor with elements",
                     ""};
    Entry entry{tensor, 1, {}};
    if (checked_) entry.content = hash_of(tensor);
    const std::scoped_lock lock(mutex_);
    entries_.emplace(++last_, std::move(entry));
    return last_;
}

Result<void> TensorHandles::touch(TensorHandle handle) {
    Tensor tensor;
    {
        const std::scoped_lock lock(mutex_);
        const auto at = entries_.find(handle);
        if (at == entries_.end()) return unknown(handle);
        tensor = at->second.tensor;
        ++at->second.generation;
        ++changes_;
    }
    if (!checked_) return {};
    const ContentHash content = hash_of(tensor);
    const std::scoped_lock lock(mutex_);
    if (const auto at = entries_.find(handle); at != entries_.end()) at->second.content = content;
    return {};
}

Result<void> TensorHandles::release(TensorHandle handle) {
    const std::scoped_lock lock(mutex_);
    if (entries_.erase(handle) == 0) return unknown(handle);
    ++changes_;
    return {};
}

std::uint64_t TensorHandles::generation(TensorHandle handle) const {
    const std::scoped_lock lock(mutex_);
    const auto at = entries_.find(handle);
    return at == entries_.end() ? 0 : at->second.generation;
}

Result<ForwardInputs> TensorHandles::resolve(const ForwardInputs& given, std::vector<HandleUse>& uses) const {
    ForwardInputs inputs = given;
    for (const auto& [role, handle] : given.handles) {
        Entry entry;
        {
            const std::scoped_lock lock(mutex_);
            const auto at = entries_.find(handle);
            if (at == entries_.end()) return unknown(handle);
            entry = at->second;
        }
        Tensor* place = place_of(inputs, role);
        if (place == nullptr)
            return Error{ErrorCode::input,
                         "handles: unknown role \"" + role +
                             "\"; accepted: query, key, value, mask, bias, query_lengths, key_lengths, input.<name>, "
                             "weight.<name>",
                         ""};
        const bool absent = place->data == nullptr && place->shape.empty();
        if (!absent && (place->data != entry.tensor.data || place->dtype != entry.tensor.dtype ||
                        place->shape != entry.tensor.shape || place->strides != entry.tensor.strides))
            return Error{ErrorCode::input,
                         "handles: " + role + " is given and is not the tensor of handle " + std::to_string(handle) +
                             "; accepted: the same tensor, or the handle alone",
                         ""};
        if (checked_ && hash_of(entry.tensor) != entry.content)
            return Error{ErrorCode::stale_handle,
                         "handle " + std::to_string(handle) + ": the elements of " + role +
                             " have changed since it was registered or last touched; accepted: touch(" +
                             std::to_string(handle) + ") after every change",
                         ""};
        *place = entry.tensor;
        uses.push_back({role, handle, entry.generation, entry.tensor.byte_size()});
    }
    inputs.handles.clear();
    return inputs;
}

}  // namespace attend
