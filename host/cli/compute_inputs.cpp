// SPDX-License-Identifier: Apache-2.0
#include "compute_inputs.hpp"

#include <unistd.h>

#include <algorithm>

#include "errors.hpp"
#include "io/tensor_file.hpp"
#include "service/core_shapes.hpp"
#include "service/named_inputs.hpp"
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
    return sort_inputs(path, std::move(file->tensors), mechanism);
}

}  // namespace attend::cli
