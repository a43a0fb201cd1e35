// SPDX-License-Identifier: Apache-2.0
// Shapes of generated inputs: what a mechanism's ports say about tensors nobody has given.
#pragma once

#include <cstdint>

#include "attend/config/options.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

// Heads of the values that go with so many query and key heads; the key heads where the table does not say, or the options
// are refused.
[[nodiscard]] std::int64_t value_heads(const MechanismRecord& mechanism, const NamedValues& options, std::int64_t heads,
                                       std::int64_t kv_heads);

}  // namespace attend
