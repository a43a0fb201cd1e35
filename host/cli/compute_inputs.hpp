// SPDX-License-Identifier: Apache-2.0
// The tensors of a call: read from a file, or generated.
#pragma once

#include <cstdint>
#include <string>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend::cli {

struct GeneratedShape {
    std::int64_t batch{1}, heads{1}, kv_heads{1}, q_len{0}, kv_len{0}, width{64};
};

// Standard normal query, key and value, the same on every machine. Key and value are left out where the mechanism
// (null: not known yet) has no port for them.
[[nodiscard]] Result<ForwardInputs> generate_inputs(const GeneratedShape& shape, std::uint64_t seed,
                                                    const MechanismRecord* mechanism, const NamedValues& options = {});

// The tensors of a file by their names: query, key, value, mask, bias, key_lengths, query_lengths, weight.<name>,
// input.<name>; any other name is an error.
[[nodiscard]] Result<ForwardInputs> read_inputs(const std::string& path, const MechanismRecord* mechanism);

}  // namespace attend::cli
