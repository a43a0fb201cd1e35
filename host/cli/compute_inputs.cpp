// SPDX-License-Identifier: Apache-2.0
#include "compute_inputs.hpp"

#include <unistd.h>

#include <algorithm>

#include "attend/config/names.hpp"
#include "errors.hpp"
#include "io/tensor_file.hpp"
#include "service/core_shapes.hpp"
#include "service/weights.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

bool has_role(const MechanismRecord* mechanism, std::uint32_t role) {
    return mechanism == nullptr || std::any_of(mechanism->ports.begin(), mechanism->ports.end(),
                                               [role](const PortRecord& port) { return port.role == role; });
}

// What the system would grant and then kill us for is refused beforehand.
bool fits_memory(double bytes) {
    const long pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
    return pages <= 0 || page <= 0 || bytes <= static_cast<double>(pages) * static_cast<double>(page);
}

}  // namespace

Result<ForwardInputs> generate_inputs(const GeneratedShape& shape, std::uint64_t seed, const MechanismRecord* mechanism,
                                      const NamedValues& options) {
    struct Role {
        const char *name, *place;
        std::int64_t heads, length;
        bool wanted;
    };
    const Role roles[] = {
        {"data/query", "query", shape.heads, shape.q_len, true},
        {"data/key", "key", shape.kv_heads, shape.kv_len, has_role(mechanism, ATTEND_K)},
        {"data/value", "value",
         mechanism != nullptr ? value_heads(*mechanism, options, shape.heads, shape.kv_heads) : shape.kv_heads,
         shape.kv_len, has_role(mechanism, ATTEND_V)}};
    double bytes = 0;
    for (const Role& role : roles)
        if (role.wanted)
            bytes += 4.0 * static_cast<double>(shape.batch) * static_cast<double>(role.heads) *
                     static_cast<double>(role.length) * static_cast<double>(shape.width);
    if (!fits_memory(bytes))
        return Error{ErrorCode::memory,
                     "compute: generated inputs need " + bytes_text(bytes) +
                         ", more than this machine has; accepted: smaller sizes",
                     ""};
    ForwardInputs inputs;
    for (const Role& role : roles) {
        if (!role.wanted) continue;
        Result<Tensor> tensor =
            Tensor::allocate(DType::f32, {shape.batch, role.heads, role.length, shape.width}, Tensor::Fill::none);
        if (!tensor)
            return Error{tensor.error().code, std::string(role.place) + ": " + tensor.error().message,
                         tensor.error().hint};
        fill_normal(tensor->as<float>(), tensor->size(), seed, RandomDomain::data, role.name);
        (role.wanted && role.place == std::string_view("query") ? inputs.query
         : role.place == std::string_view("key")                ? inputs.key.emplace()
                                                                : inputs.value.emplace()) = std::move(*tensor);
    }
    return inputs;
}

Result<ForwardInputs> read_inputs(const std::string& path, const MechanismRecord* mechanism) {
    Result<io::TensorFile> file = io::read_tensor_file(path);
    if (!file) return as_input_error(file.error());
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
    for (auto& [name, tensor] : file->tensors) {
        const std::string folded = fold_name(name);
        const std::string place = path + ": tensor \"" + name + "\"";
        if (std::find(seen.begin(), seen.end(), folded) != seen.end())
            return wrong_use(place + " is there twice, in two spellings; accepted: every tensor once");
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
                             place + " has data type " + dtype_name(tensor.dtype) + "; accepted: BOOL, U8", ""};
            inputs.mask = std::move(tensor);
        } else if (folded == "bias") {
            inputs.bias = std::move(tensor);
        } else if (folded == "key_lengths" || folded == "query_lengths") {
            if (tensor.dtype != DType::i32 && tensor.dtype != DType::i64)
                return Error{ErrorCode::dtype,
                             place + " has data type " + dtype_name(tensor.dtype) + "; accepted: I32, I64", ""};
            (folded == "key_lengths" ? inputs.key_lengths : inputs.query_lengths) = std::move(tensor);
        } else {
            std::vector<std::string> listed(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(fixed));
            listed.insert(listed.end(), {"weight.<name>", "input.<name>"});
            return wrong_use(path + ": unknown tensor \"" + name + "\"" + did_you_mean(name, known) +
                             "; known: " + join_names(listed));
        }
    }
    const bool query_may_lack =
        mechanism != nullptr &&
        std::any_of(mechanism->ports.begin(), mechanism->ports.end(), [](const PortRecord& port) {
            return port.role == ATTEND_Q && (port.flags & ATTEND_OPTIONAL) != 0;
        });
    if (!query_may_lack && std::find(seen.begin(), seen.end(), "query") == seen.end())
        return wrong_use(path + ": tensor \"query\" is missing; accepted: a file that holds it");
    return inputs;
}

}  // namespace attend::cli
