// SPDX-License-Identifier: Apache-2.0
// What stands between the two layers of a feed-forward block: gelu in both forms, and the squared relu.
#pragma once

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

enum class Activation : int32_t { gelu_tanh, gelu_erf, squared_relu, relu };

// x P(X <= x) for a standard normal X. The tail P(X > a) is exp(-a^2/2) t P(t), t = 1/(1 + 0.3 a): our own minimax fit
// for 0 <= a <= 14, off by at most 3.5e-9 of the tail; beyond, exp(-a^2/2) is zero.
ATTEND_ALWAYS_INLINE Batch gelu_erf(const Batch& x) {
    const Batch a = xsimd::abs(x);
    const Batch t = Batch(1.0f) / fma(Batch(0.3f), a, Batch(1.0f));
    Batch p = fma(Batch(-0.020611996f), t, Batch(0.11237161f));
    p = fma(p, t, Batch(-0.22805847f));
    p = fma(p, t, Batch(0.19157054f));
    p = fma(p, t, Batch(-0.07923871f));
    p = fma(p, t, Batch(0.09605349f));
    p = fma(p, t, Batch(0.078427f));
    p = fma(p, t, Batch(0.11022703f));
    p = fma(p, t, Batch(0.11957288f));
    p = fma(p, t, Batch(0.11968663f));
    // Cut before squaring, so that an infinite x is an ordinary large one; max(a, b) keeps a NaN that stands in b.
    const Batch bounded = max(Batch(-20.0f), Batch(0.0f) - a);
    const Batch tail = exp_nonpositive(bounded * bounded * Batch(-0.5f)) * (t * p);
    const Batch below = choose(a > Batch(20.0f), Batch(-0.0f), x * tail);
    return choose(x > Batch(0.0f), x - choose(a > Batch(20.0f), Batch(0.0f), a * tail), below);
}

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as a logistic function: 1 + tanh(u) = 2 / (1 + exp(-2u)), which keeps
// small results where x is negative.
ATTEND_ALWAYS_INLINE Batch gelu_tanh(const Batch& x) {
    const Batch u = x * fma(x * x, Batch(0.0713548162726f), Batch(1.59576912160573f));
    const Batch result = x / (Batch(1.0f) + exp(Batch(0.0f) - u));
    return choose(x < Batch(-20.0f), Batch(-0.0f), choose(x > Batch(20.0f), x, result));
}

ATTEND_ALWAYS_INLINE Batch squared_relu(const Batch& x) {
    const Batch positive = max(Batch(0.0f), x);
    return positive * positive;
}

template <Activation activation>
ATTEND_ALWAYS_INLINE Batch activate(const Batch& x) {
    if constexpr (activation == Activation::gelu_tanh) return gelu_tanh(x);
    if constexpr (activation == Activation::gelu_erf) return gelu_erf(x);
    if constexpr (activation == Activation::relu) return max(Batch(0.0f), x);
    return squared_relu(x);
}

template <Activation activation>
__attribute__((noinline)) inline void activate_run(float* data, int64_t count) {
    int64_t at = 0;
    for (; at + batch_lanes <= count; at += batch_lanes) store(data + at, activate<activation>(load(data + at)));
    if (at < count) store_tail(data + at, activate<activation>(load_tail(data + at, count - at)), count - at);
}

struct ActivationRun {
    float* data;
    int64_t count;
    Activation activation;
    static constexpr int64_t block = 4096;

    static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const ActivationRun& self = *static_cast<const ActivationRun*>(user);
        const int64_t first = static_cast<int64_t>(begin) * block;
        const int64_t last =
            static_cast<int64_t>(end) * block < self.count ? static_cast<int64_t>(end) * block : self.count;
        float* data = self.data + first;
        if (self.activation == Activation::gelu_tanh)
            activate_run<Activation::gelu_tanh>(data, last - first);
        else if (self.activation == Activation::gelu_erf)
            activate_run<Activation::gelu_erf>(data, last - first);
        else if (self.activation == Activation::squared_relu)
            activate_run<Activation::squared_relu>(data, last - first);
        else
            activate_run<Activation::relu>(data, last - first);
        return ATTEND_OK;
    }
};

// In place, on numbers that lie one behind the other.
inline attend_status activate_all(const attend_context* context, Activation activation, float* data, int64_t count) {
    ActivationRun run{data, count, activation};
    const auto blocks = static_cast<uint64_t>((count + ActivationRun::block - 1) / ActivationRun::block);
    return parallel_items(context, blocks, ActivationRun::run, &run);
}

}  // namespace attend::ATTEND_ISA
