// SPDX-License-Identifier: Apache-2.0
// A few keys behind the main ones that every query sees: learned ones, and zero keys with zero values.
#pragma once

#include "attend/author/tile.hpp"

namespace attend::ATTEND_ISA {

// Tensors [B,Hkv,extra,*] that all items share, as a segment of the engine.
struct ExtraKeys {
    OwnTensor key, value;

    static uint64_t bytes(const attend_plan_desc& desc, int64_t extra) {
        return Carve::floats(desc.num_kv_heads * extra * desc.head_dim) +
               Carve::floats(desc.num_kv_heads * extra * desc.value_dim);
    }

    // The first key is the learned one, [Hkv*D] and [Hkv*Dv], if there is one; the others are zero.
    void fill(const attend_plan_desc& desc, int64_t extra, const attend_tensor* learned_key,
              const attend_tensor* learned_value, Carve& carve) {
        fill_one(key, desc, extra, desc.head_dim, learned_key, carve);
        fill_one(value, desc, extra, desc.value_dim, learned_value, carve);
    }

private:
    static void fill_one(OwnTensor& own, const attend_plan_desc& desc, int64_t extra, int64_t width,
                         const attend_tensor* learned, Carve& carve) {
        float* to = carve.take(desc.num_kv_heads * extra * width);
        describe(own, to, desc.batch, desc.num_kv_heads, extra, width);
        own.strides[0] = 0;
        for (int64_t head = 0; head < desc.num_kv_heads; ++head)
            for (int64_t row = 0; row < extra; ++row)
                for (int64_t d = 0; d < width; ++d)
                    *to++ = learned && row == 0
                                ? static_cast<const float*>(learned->data)[(head * width + d) * learned->strides[0]]
                                : 0.0f;
    }
};

}  // namespace attend::ATTEND_ISA
