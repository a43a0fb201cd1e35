// SPDX-License-Identifier: Apache-2.0
// Initialisers for weights that the caller leaves out. Element e of a weight depends only on (seed, name, e).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attend/error.hpp"
#include "attend/random.hpp"
#include "attend/tensor.hpp"
#include "service/port_grammar.hpp"

namespace attend {

// Standard normal numbers, element e from words (e div 4) of the counter: Philox4x32-10, Box-Muller in double, rounded
// to float. Fills out[0..count).
void fill_normal(float* out, std::int64_t count, std::uint64_t seed, RandomDomain domain, std::string_view name);

// A float32 tensor as the initialiser says. `name` is `mechanism/Weight` in the spelling of the weights table.
// Initialisers: zeros, ones, constant(v), identity, uniform(a[,b]), normal([mu,]sd), xavierUniform([gain]), xavierNormal([gain]),
// kaimingUniform, lecunNormal, truncNormal(sd), orthogonal([gain]). out_first: matrices are [out, in], else [in, out].
[[nodiscard]] Result<Tensor> initialise(const Initialiser& init, const std::vector<std::int64_t>& shape,
                                        std::uint64_t seed, const std::string& name, bool out_first);

}  // namespace attend
