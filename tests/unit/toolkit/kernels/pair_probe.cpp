// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set: lets the unit tests reach the half-width conversions and the products of pairs.
#include "attend/toolkit.h"
#include "attend/toolkit/gemm/pair_kernel.hpp"
#include "attend/toolkit/simd/dot.hpp"

namespace attend::ATTEND_ISA {
namespace {

template <Dots dots>
ATTEND_ALWAYS_INLINE void dot_all(const uint32_t* a, const uint32_t* b, float* acc, int64_t count) {
    for (int64_t at = 0; at + batch_lanes <= count; at += batch_lanes)
        store(acc + at, dot<dots>(load(acc + at), load_pairs(a + at), load_pairs(b + at)));
}
ATTEND_DOT_TARGET __attribute__((noinline)) void dot_hardware(const uint32_t* a, const uint32_t* b, float* acc,
                                                              int64_t count) {
    dot_all<Dots::hardware>(a, b, acc, count);
}

template <Dots dots>
void pair_products(int vectors, const void* a, int64_t row_stride, int64_t inner_stride, int64_t rows,
                   const uint32_t* x, int64_t elements, float* out, Into into, const float* rescale) {
    if (vectors == 1) pair_product<1, dots>(a, row_stride, inner_stride, rows, x, elements, out, into, rescale);
    if (vectors == 2) pair_product<2, dots>(a, row_stride, inner_stride, rows, x, elements, out, into, rescale);
    if (vectors == 3) pair_product<3, dots>(a, row_stride, inner_stride, rows, x, elements, out, into, rescale);
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

// 0 bf16 to float, 1 f16 to float; vectors and a tail, as the engines read rows. With `scalar` one element at a time.
extern "C" void ATTEND_KERNEL(attend_probe_widen)(int format, int scalar, const uint16_t* from, float* to,
                                                  int64_t count) {
    int64_t at = 0;
    if (scalar != 0)
        for (; at < count; ++at) to[at] = format == 0 ? bf16_to_float(from[at]) : f16_to_float(from[at]);
    for (; at + batch_lanes <= count; at += batch_lanes)
        store(to + at, format == 0 ? load_bf16(from + at) : load_f16(from + at));
    if (at == count) return;
    float whole[batch_lanes];
    store(whole, format == 0 ? load_bf16_tail(from + at, count - at) : load_f16_tail(from + at, count - at));
    for (int64_t lane = 0; at < count; ++at, ++lane) to[at] = whole[lane];
}

extern "C" void ATTEND_KERNEL(attend_probe_narrow)(int format, int scalar, const float* from, uint16_t* to,
                                                   int64_t count) {
    int64_t at = 0;
    if (scalar != 0)
        for (; at < count; ++at) to[at] = format == 0 ? float_to_bf16(from[at]) : float_to_f16(from[at]);
    for (; at + batch_lanes <= count; at += batch_lanes) {
        if (format == 0)
            store_bf16(to + at, load(from + at));
        else
            store_f16(to + at, load(from + at));
    }
    if (at == count) return;
    float whole[batch_lanes] = {};
    for (int64_t lane = 0; lane < count - at; ++lane) whole[lane] = from[at + lane];
    if (format == 0)
        store_bf16_tail(to + at, load(whole), count - at);
    else
        store_f16_tail(to + at, load(whole), count - at);
}

// acc[i] = dot(acc[i], a[i], b[i]) over whole vectors.
extern "C" void ATTEND_KERNEL(attend_probe_dot)(int hardware, const uint32_t* a, const uint32_t* b, float* acc,
                                                int64_t count) {
    if (hardware != 0)
        dot_hardware(a, b, acc, count);
    else
        dot_all<Dots::portable>(a, b, acc, count);
}

extern "C" void ATTEND_KERNEL(attend_probe_pair_product)(int hardware, int vectors, const void* a, int64_t row_stride,
                                                         int64_t inner_stride, int64_t rows, const uint32_t* x,
                                                         int64_t elements, float* out, int into, const float* rescale) {
    if (hardware != 0)
        pair_products<Dots::hardware>(vectors, a, row_stride, inner_stride, rows, x, elements, out,
                                      static_cast<Into>(into), rescale);
    else
        pair_products<Dots::portable>(vectors, a, row_stride, inner_stride, rows, x, elements, out,
                                      static_cast<Into>(into), rescale);
}

extern "C" void ATTEND_KERNEL(attend_probe_lane_pairs)(const uint16_t* const* rows, int64_t stride, int64_t count,
                                                       uint32_t* to) {
    load_lane_pairs<2>(rows, stride, count, to);
}

extern "C" void ATTEND_KERNEL(attend_probe_round_rows)(int hardware, const float* from, int64_t rows, uint32_t* to) {
    if (hardware != 0)
        round_rows<2, Dots::hardware>(from, rows, to);
    else
        round_rows<2, Dots::portable>(from, rows, to);
}

extern "C" void ATTEND_KERNEL(attend_probe_interleave)(const uint16_t* even, const uint16_t* odd, int64_t stride,
                                                       int64_t columns, uint32_t* to) {
    interleave_rows(even, odd, stride, columns, to);
}
