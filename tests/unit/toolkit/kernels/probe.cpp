// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, like a kernel: lets the unit tests reach what is inline in the toolkit.
#include "attend/toolkit.h"
#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/simd/transpose.hpp"

namespace attend::ATTEND_ISA {
namespace {

template <class Function>
void map(const float* from, float* to, int64_t count, Function function) {
    int64_t at = 0;
    for (; at + batch_lanes <= count; at += batch_lanes) store(to + at, function(load(from + at)));
    if (at < count) store_tail(to + at, function(load_tail(from + at, count - at)), count - at);
}

// Number of the first failing check, 0 when all hold.
int check_registers() {
    float a[batch_lanes], b[batch_lanes], c[batch_lanes], out[batch_lanes + 2];
    for (int lane = 0; lane < batch_lanes; ++lane) {
        a[lane] = static_cast<float>(lane) - 2.5f;
        b[lane] = 3.0f - static_cast<float>(lane * lane) * 0.25f;
        c[lane] = static_cast<float>(lane % 3) + 0.5f;
    }
    const Batch x = load(a), y = load(b), z = load(c);
    const auto differs = [&](const Batch& value, auto expected) {
        store(out, value);
        for (int lane = 0; lane < batch_lanes; ++lane)
            if (out[lane] != expected(lane)) return true;
        return false;
    };
    // Small dyadic numbers: exact with one rounding or two.
    if (differs(fma(x, y, z), [&](int l) { return a[l] * b[l] + c[l]; })) return 1;
    if (differs(fms(x, y, z), [&](int l) { return a[l] * b[l] - c[l]; })) return 2;
    if (differs(fnma(x, y, z), [&](int l) { return c[l] - a[l] * b[l]; })) return 3;
    if (differs(max(x, y), [&](int l) { return a[l] > b[l] ? a[l] : b[l]; })) return 4;
    if (differs(min(x, y), [&](int l) { return a[l] < b[l] ? a[l] : b[l]; })) return 5;
    if (differs(round_even(x), [&](int l) { return __builtin_nearbyintf(a[l]); })) return 6;
    if (differs(choose(x > Batch(0.0f), y, z), [&](int l) { return a[l] > 0.0f ? b[l] : c[l]; })) return 7;
    if (differs(scale_by_power(z, round_even(x)),
                [&](int l) { return __builtin_ldexpf(c[l], static_cast<int>(__builtin_nearbyintf(a[l]))); }))
        return 8;

    float sum = a[0], highest = a[0], lowest = a[0];
    for (int lane = 1; lane < batch_lanes; ++lane) {
        sum += a[lane];
        highest = a[lane] > highest ? a[lane] : highest;
        lowest = a[lane] < lowest ? a[lane] : lowest;
    }
    if (reduce_add(x) != sum || reduce_max(x) != highest || reduce_min(x) != lowest) return 9;

    const float nan = __builtin_nanf("");
    store(out, max(Batch(0.0f), Batch(nan)));
    if (out[0] == out[0]) return 10;

    for (uint32_t bits = 0; bits <= all_lane_bits && bits < 4096; ++bits) {
        const Mask mask = mask_from_bits(bits);
        if (mask_bits(mask) != bits || any_lane(mask) != (bits != 0) || all_lanes(mask) != (bits == all_lane_bits))
            return 11;
        uint8_t bytes[16] = {};
        for (int lane = 0; lane < batch_lanes; ++lane)
            bytes[lane] = (bits >> lane & 1u) != 0 ? static_cast<uint8_t>(128 + lane) : uint8_t{0};
        if (mask_bits(mask_from_bytes(bytes)) != bits) return 12;
    }
    for (int count = 0; count < batch_lanes; ++count) {
        if (differs(load_tail(a, count), [&](int l) { return l < count ? a[l] : 0.0f; })) return 13;
        for (float& value : out) value = 7.0f;
        store_tail(out, y, count);
        for (int lane = 0; lane < batch_lanes + 2; ++lane)
            if (out[lane] != (lane < count ? b[lane] : 7.0f)) return 14;
    }

    Batch rows[batch_lanes];
    for (int row = 0; row < batch_lanes; ++row) {
        for (int lane = 0; lane < batch_lanes; ++lane) out[lane] = static_cast<float>(100 * row + lane);
        rows[row] = load(out);
    }
    transpose(rows);
    for (int row = 0; row < batch_lanes; ++row)
        if (differs(rows[row], [&](int l) { return static_cast<float>(100 * l + row); })) return 15;
    return 0;
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" int ATTEND_KERNEL(attend_probe_lanes)() { return batch_lanes; }

// 1 SSE4.2, 2 AVX2, 3 AVX-512, 4 NEON: what the compiler was told for this file.
extern "C" int ATTEND_KERNEL(attend_probe_isa)() {
#if defined(__AVX512BW__)
    return 3;
#elif defined(__AVX2__)
    return 2;
#elif defined(__SSE4_2__)
    return 1;
#else
    return 4;
#endif
}

extern "C" int ATTEND_KERNEL(attend_probe_registers)() { return check_registers(); }

// Functions by number: exp_nonpositive, exp2, exp, tanh, exp2_nonpositive, exp2_nonpositive_short, log. False where the
// entry lacks it.
extern "C" bool ATTEND_KERNEL(attend_probe_contract)(int function, float* low, float* high, double* max_ulp) {
    Contract contract{};
    if (function == 0) contract = exp_nonpositive_contract;
    if (function == 1) contract = exp2_contract;
    if (function == 2) contract = exp_contract;
    if (function == 3) contract = tanh_contract;
#if !defined(ATTEND_ISA_baseline)
    if (function == 4) contract = exp2_nonpositive_contract;
    if (function == 5) contract = exp2_nonpositive_short_contract;
#endif
    if (function == 6) contract = log_contract;
    *low = contract.low;
    *high = contract.high;
    *max_ulp = contract.max_ulp;
    return contract.max_ulp > 0.0;
}

extern "C" void ATTEND_KERNEL(attend_probe_map)(int function, const float* from, float* to, int64_t count) {
    if (function == 0) map(from, to, count, [](const Batch& x) { return exp_nonpositive(x); });
    if (function == 1) map(from, to, count, [](const Batch& x) { return exp2(x); });
    if (function == 2) map(from, to, count, [](const Batch& x) { return exp(x); });
    if (function == 3) map(from, to, count, [](const Batch& x) { return tanh(x); });
#if !defined(ATTEND_ISA_baseline)
    if (function == 4) map(from, to, count, [](const Batch& x) { return exp2_nonpositive(x); });
    if (function == 5) map(from, to, count, [](const Batch& x) { return exp2_nonpositive_short(x); });
#endif
    if (function == 6) map(from, to, count, [](const Batch& x) { return log(x); });
}

extern "C" void ATTEND_KERNEL(attend_probe_product)(int vectors, const float* a, int64_t row_stride,
                                                    int64_t inner_stride, int64_t rows, const float* x, int64_t count,
                                                    float* out, int into, const float* rescale) {
    const Into how = static_cast<Into>(into);
    if (vectors == 1) product<1>(a, row_stride, inner_stride, rows, x, count, out, how, rescale);
    if (vectors == 2) product<2>(a, row_stride, inner_stride, rows, x, count, out, how, rescale);
    if (vectors == 3) product<3>(a, row_stride, inner_stride, rows, x, count, out, how, rescale);
}
