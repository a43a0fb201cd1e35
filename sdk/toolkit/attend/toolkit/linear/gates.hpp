// SPDX-License-Identifier: Apache-2.0
// Gates of recurrent linear attention, s_t = g_t s_{t-1} + (1 - g_t) phi_k v, as logarithms.
#pragma once

#include <math.h>

namespace attend::ATTEND_ISA {

struct LogGate {
    double kept, taken;  // ln g, cut so that sums stay finite, and ln(1 - g)
};

inline LogGate log_gate(float gate, bool is_logit) {
    constexpr double lowest = -87.0;
    const double x = static_cast<double>(gate);
    const double kept = is_logit ? -::log1p(::exp(-x)) : ::log(x);
    return {kept < lowest ? lowest : kept, is_logit ? -::log1p(::exp(x)) : ::log1p(-x)};
}

}  // namespace attend::ATTEND_ISA
