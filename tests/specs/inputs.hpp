// SPDX-License-Identifier: Apache-2.0
// Calls of any mechanism: inputs as its spec says that it takes them.
#pragma once

#include "specs/spec.hpp"
#include "support/calls.hpp"

namespace specs {

inline const Spec& spec_of(const std::string& mechanism) {
    for (const Spec& spec : all())
        if (spec.mechanism == mechanism) return spec;
    FAIL("mechanism " << mechanism << " has no spec in tests/specs");
    std::abort();
}

// Inputs as the mechanism takes them.
inline ForwardInputs make_inputs(const Spec& spec, support::Random& random, support::Shape shape) {
    if (spec.kv_heads > 0) shape.kv_heads = spec.kv_heads;
    ForwardInputs inputs = support::make_inputs(random, shape);
    if (spec.maps > 1) {
        inputs.query = support::normal(random, {shape.batch, spec.maps * shape.heads, shape.q_len, shape.head_dim});
        inputs.key = support::normal(random, {shape.batch, spec.maps * shape.kv_heads, shape.kv_len, shape.head_dim});
    }
    if (spec.needs) spec.needs(inputs);
    return inputs;
}

// The call with what the mechanism alone knows.
inline ForwardInputs completed(const Spec& spec, ForwardInputs inputs, const NamedValues& options) {
    Numbers numbers(static_cast<std::uint64_t>(inputs.query.size() + 1));
    if (spec.more) spec.more(inputs, options, numbers);
    return inputs;
}

}  // namespace specs
