// SPDX-License-Identifier: Apache-2.0
// Tensors by name, as files and the C API bring them, to the inputs of a call.
#pragma once

#include <string>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

// query, key, value, mask, bias, query_lengths, key_lengths, input.<name>, weight.<name>, in either spelling. Errors, headed
// by `place`: a name that is none of these, one twice, a mask or lengths of a wrong data type, no query where the
// mechanism (may be null: not known yet) needs one.
[[nodiscard]] Result<ForwardInputs> sort_inputs(const std::string& place, NamedTensors tensors,
                                                const MechanismRecord* mechanism);

}  // namespace attend
