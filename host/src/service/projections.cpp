// SPDX-License-Identifier: Apache-2.0
#include "service/projections.hpp"

#include <array>
#include <cstring>

#include "attend/config/names.hpp"

namespace attend {

Result<std::optional<NamedTensors>> unpack_projections(const MechanismRecord& mechanism, const NamedTensors& weights) {
    struct Packed {
        const char* name;
        std::array<const char*, 3> parts;
        std::int64_t rank;
        const char* shape;
    };
    constexpr Packed packed[] = {{"in_proj_weight", {"wq", "wk", "wv"}, 2, "[3*E,E]"},
                                 {"in_proj_bias", {"bq", "bk", "bv"}, 1, "[3*E]"}};
    NamedTensors unpacked;
    bool any = false;
    for (const auto& [name, tensor] : weights) {
        const Packed* found = nullptr;
        for (const Packed& entry : packed)
            if (fold_name(name) == entry.name && mechanism.find_port(entry.name) == nullptr &&
                mechanism.find_port(entry.parts[0]) != nullptr && mechanism.find_port(entry.parts[2]) != nullptr)
                found = &entry;
        if (found == nullptr) {
            unpacked.emplace_back(name, tensor);
            continue;
        }
        any = true;
        if (tensor.rank() != found->rank || tensor.shape[0] % 3 != 0 || tensor.shape[0] == 0)
            return Error{ErrorCode::weight,
                         mechanism.name + ": weight " + found->name + " " + shape_text(tensor.shape) +
                             "; accepted: " + found->shape + ", rows of queries, then keys, then values",
                         ""};
        std::vector<std::int64_t> shape = tensor.shape;
        shape[0] /= 3;
        for (std::int64_t part = 0; part < 3; ++part)
            unpacked.emplace_back(found->parts[static_cast<std::size_t>(part)],
                                  tensor.view(shape, tensor.strides, part * shape[0] * tensor.strides[0]));
    }
    if (!any) return std::optional<NamedTensors>();
    return std::optional<NamedTensors>(std::move(unpacked));
}

Result<NamedTensors> copied(const NamedTensors& tensors) {
    NamedTensors copies;
    for (const auto& [name, tensor] : tensors) {
        const Result<Tensor> flat = contiguous_copy(tensor);
        if (!flat) return flat.error();
        Result<Tensor> copy = Tensor::allocate(tensor.dtype, tensor.shape, Tensor::Fill::none);
        if (!copy) return copy.error();
        if (flat->byte_size() > 0) std::memcpy(copy->data, flat->data, flat->byte_size());
        copies.emplace_back(name, std::move(*copy));
    }
    return copies;
}

}  // namespace attend
