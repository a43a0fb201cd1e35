// SPDX-License-Identifier: Apache-2.0
#include "service/core_shapes.hpp"

#include "attend/abi.h"
#include "service/port_grammar.hpp"

namespace attend {

std::int64_t value_heads(const MechanismRecord& mechanism, const NamedValues& given, std::int64_t heads,
                         std::int64_t kv_heads) {
    const Result<std::vector<OptionValue>> options = complete_options(mechanism.name, mechanism.options, given);
    if (!options) return kv_heads;
    PortScope scope;
    scope.symbols = {{"Hq", static_cast<double>(heads)}, {"Hkv", static_cast<double>(kv_heads)}};
    scope.specs = &mechanism.options;
    scope.values = &*options;
    for (const PortRecord& port : mechanism.ports) {
        if (port.role != ATTEND_V) continue;
        const Result<PortShape> shape = PortShape::parse(port.shape);
        if (!shape) break;
        const ShapeAlternative* chosen = shape->choose(scope, 4);
        if (chosen == nullptr || chosen->dims.size() != 4) break;
        const std::optional<double> count = chosen->dims[1].evaluate(scope);
        if (count && *count >= 1.0) return static_cast<std::int64_t>(*count);
    }
    return kv_heads;
}

}  // namespace attend
