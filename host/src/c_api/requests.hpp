// SPDX-License-Identifier: Apache-2.0
// Requests of the C API as the service wants them.
#pragma once

#include "attend/registry/mechanism_registry.hpp"
#include "c_api/handles.hpp"

namespace attend::c_api {

// A request without its tensors.
struct Wanted {
    ForwardOptions options;
    MechanismPtr mechanism;  // null: "auto"
};
[[nodiscard]] Result<Wanted> wanted_of(AttentionService& service, const attend_forward_request& request);

}  // namespace attend::c_api
