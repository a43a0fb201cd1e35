// SPDX-License-Identifier: Apache-2.0
// Ends of blocks: to = base + gate * add, row by row. A gate of zero passes the base through bit for bit, whatever stands
// in `add`.
#pragma once

#include <math.h>

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/gemm/operand.hpp"

namespace attend::ATTEND_ISA {

// The number for head h and channel c is values[h * head_step + c * channel_step].
struct Gate {
    const float* values{nullptr};  // NULL: one
    int64_t head_step{0}, channel_step{0};
};

// tanh of a gate weight, in double and rounded once; as many numbers as the weight has.
inline void gate_values(const attend_tensor* weight, float* to) {
    const auto* from = static_cast<const float*>(weight->data);
    for (int64_t at = 0; at < weight->shape[0]; ++at)
        to[at] = static_cast<float>(::tanh(static_cast<double>(from[at * weight->strides[0]])));
}

struct GatedSum {
    const attend_tensor *base, *add, *to;  // rank 4; base NULL: zero
    Element base_type, to_type;
    Gate gate;

    template <Element element>
    static float read(const attend_tensor& tensor, int64_t offset) {
        return Stored<element>::read_one(static_cast<const typename Stored<element>::Type*>(tensor.data)[offset]);
    }
    template <Element from, Element into>
    __attribute__((noinline)) void row(int64_t b, int64_t h, int64_t i) const {
        const auto start = [&](const attend_tensor& t) {
            return b * t.strides[0] + h * t.strides[1] + i * t.strides[2];
        };
        const float* a = static_cast<const float*>(add->data) + start(*add);
        auto* out = static_cast<typename Stored<into>::Type*>(to->data) + start(*to);
        const int64_t count = to->shape[3], a_step = add->strides[3], out_step = to->strides[3];
        const float* gates = gate.values == nullptr ? nullptr : gate.values + h * gate.head_step;
        const int64_t base_start = base != nullptr ? start(*base) : 0,
                      base_step = base != nullptr ? base->strides[3] : 0;
        int64_t c = 0;
        const bool plain = a_step == 1 && out_step == 1 && (base == nullptr || base_step == 1);
        if (plain) {
            const auto* x =
                base == nullptr ? nullptr : static_cast<const typename Stored<from>::Type*>(base->data) + base_start;
            for (; c + batch_lanes <= count; c += batch_lanes) {
                const Batch g = gates == nullptr         ? Batch(1.0f)
                                : gate.channel_step == 0 ? Batch(gates[0])
                                                         : load(gates + c);
                const Batch product = g * load(a + c);
                const Batch sum = x == nullptr ? product : fma(g, load(a + c), Stored<from>::read(x + c));
                const Batch old = x == nullptr ? Batch(0.0f) : Stored<from>::read(x + c);
                Stored<into>::write(out + c, choose(g == Batch(0.0f), old, sum));
            }
        }
        for (; c < count; ++c) {
            const float g = gates == nullptr ? 1.0f : gates[c * gate.channel_step];
            const float old = base == nullptr ? 0.0f : read<from>(*base, base_start + c * base_step);
            const float sum = base == nullptr ? g * a[c * a_step] : old + g * a[c * a_step];
            out[c * out_step] = Stored<into>::write_one(g == 0.0f ? old : sum);
        }
    }
    template <Element from>
    void row_from(int64_t b, int64_t h, int64_t i) const {
        if (to_type == Element::f32) return row<from, Element::f32>(b, h, i);
        if (to_type == Element::bf16) return row<from, Element::bf16>(b, h, i);
        row<from, Element::f16>(b, h, i);
    }
    static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const GatedSum& self = *static_cast<const GatedSum*>(user);
        const int64_t heads = self.to->shape[1], rows = self.to->shape[2];
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
            const int64_t i = at % rows, h = at / rows % heads, b = at / rows / heads;
            if (self.base_type == Element::f32)
                self.row_from<Element::f32>(b, h, i);
            else if (self.base_type == Element::bf16)
                self.row_from<Element::bf16>(b, h, i);
            else
                self.row_from<Element::f16>(b, h, i);
        }
        return ATTEND_OK;
    }
};

// Tensors [B, H, N, C]: base and to float32, bf16 or f16 (rounded once), add float32. `to` may be `base` or `add`.
inline attend_status gated_sum(const attend_context* context, const attend_tensor* base, const attend_tensor* add,
                               Gate gate, const attend_tensor* to) {
    GatedSum run{base, add, to, Element::f32, Element::f32, gate};
    if (base != nullptr) element_of(base, run.base_type);
    element_of(to, run.to_type);
    return parallel_items(context, static_cast<uint64_t>(to->shape[0] * to->shape[1] * to->shape[2]), GatedSum::run,
                          &run);
}

}  // namespace attend::ATTEND_ISA
