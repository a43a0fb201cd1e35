// SPDX-License-Identifier: Apache-2.0
// Two softmax results over disjoint keys as one: L = log(e^La + e^Lb), O = e^(La - L) Oa + e^(Lb - L) Ob. A part without
// keys has no share and is not read.
#pragma once

#include <math.h>

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

struct MergeRun {
    TensorView<float, 4> values, part;   // [B, H, N, C]
    TensorView<float, 3> lse, part_lse;  // [B, H, N]

    void row(int64_t b, int64_t h, int64_t i) const {
        float &a = *lse.at(b, h, i), other = *part_lse.at(b, h, i);
        if (other == -infinity) return;
        double of_a = 0.0, of_other = 1.0, total = static_cast<double>(other);
        if (a != -infinity) {
            const auto x = static_cast<double>(a), y = static_cast<double>(other);
            const double most = x > y ? x : y;
            total = most + ::log(::exp(x - most) + ::exp(y - most));
            of_a = ::exp(x - total), of_other = ::exp(y - total);
        }
        a = static_cast<float>(total);
        float* to = values.at(b, h, i);
        const float* from = part.at(b, h, i);
        const auto first = static_cast<float>(of_a), second = static_cast<float>(of_other);
        for (int64_t c = 0; c < values.shape[3]; ++c) {
            float& x = to[c * values.strides[3]];
            const float y = from[c * part.strides[3]];
            x = first == 0.0f ? second * y : second == 0.0f ? first * x : first * x + second * y;
        }
    }
    static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const MergeRun& self = *static_cast<const MergeRun*>(user);
        const int64_t heads = self.values.shape[1], rows = self.values.shape[2];
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at)
            self.row(at / rows / heads, at / rows % heads, at % rows);
        return ATTEND_OK;
    }
};

// values and lse become those of both parts.
inline attend_status merge_parts(const attend_context* context, const attend_tensor* values, const attend_tensor* lse,
                                 const attend_tensor* part, const attend_tensor* part_lse) {
    MergeRun run{view_of<float, 4>(values), view_of<float, 4>(part), view_of<float, 3>(lse),
                 view_of<float, 3>(part_lse)};
    return parallel_items(context, static_cast<uint64_t>(values->shape[0] * values->shape[1] * values->shape[2]),
                          MergeRun::run, &run);
}

}  // namespace attend::ATTEND_ISA
