// SPDX-License-Identifier: Apache-2.0
#include "service/row_products.hpp"

#include <cstring>

#include "attend/abi.h"

namespace attend {
namespace {

constexpr std::int64_t lanes = 16;

// The tail goes to the lanes of its elements; then halves are added to halves.
template <class T>
RowProducts finished(double (&product)[lanes], double (&squares)[lanes], const T* row, const double* query,
                     std::int64_t length) {
    for (std::int64_t at = 0; at < length; ++at) {
        const double value = static_cast<double>(row[at]);
        product[at] += value * query[at];
        squares[at] += value * value;
    }
    for (std::int64_t half = lanes / 2; half > 0; half /= 2)
        for (std::int64_t at = 0; at < half; ++at) {
            product[at] += product[at + half];
            squares[at] += squares[at + half];
        }
    return {product[0], squares[0]};
}

// One loop over batches of WIDTH doubles for each instruction set. A macro, because inlined functions are taken apart
// into vectors of their own instruction set first.
#define ATTEND_ROW_PRODUCTS(NAME, TARGET, T, WIDTH)                                            \
    TARGET RowProducts NAME(const T* row, const double* query, std::int64_t length) {          \
        typedef T Loaded __attribute__((vector_size(WIDTH * sizeof(T)), aligned(alignof(T)))); \
        typedef double Wide __attribute__((vector_size(WIDTH * sizeof(double))));              \
        constexpr int parts = static_cast<int>(lanes) / WIDTH;                                 \
        Wide product[parts] = {}, squares[parts] = {};                                         \
        std::int64_t at = 0;                                                                   \
        for (; at + lanes <= length; at += lanes) {                                            \
            _Pragma("GCC unroll 8") for (int part = 0; part < parts; ++part) {                 \
                Loaded loaded;                                                                 \
                Wide factor;                                                                   \
                std::memcpy(&loaded, row + at + part * WIDTH, sizeof loaded);                  \
                std::memcpy(&factor, query + at + part * WIDTH, sizeof factor);                \
                const Wide value = __builtin_convertvector(loaded, Wide);                      \
                product[part] += value * factor;                                               \
                squares[part] += value * value;                                                \
            }                                                                                  \
        }                                                                                      \
        double product_lanes[lanes], squares_lanes[lanes];                                     \
        std::memcpy(product_lanes, product, sizeof product_lanes);                             \
        std::memcpy(squares_lanes, squares, sizeof squares_lanes);                             \
        return finished(product_lanes, squares_lanes, row + at, query + at, length - at);      \
    }

ATTEND_ROW_PRODUCTS(float_base, , float, 2)
ATTEND_ROW_PRODUCTS(double_base, , double, 2)
#if defined(__x86_64__)
ATTEND_ROW_PRODUCTS(float_avx2, __attribute__((target("avx2,fma"))), float, 4)
ATTEND_ROW_PRODUCTS(double_avx2, __attribute__((target("avx2,fma"))), double, 4)
ATTEND_ROW_PRODUCTS(float_avx512, __attribute__((target("avx512f,avx512vl,avx512dq,fma"))), float, 8)
ATTEND_ROW_PRODUCTS(double_avx512, __attribute__((target("avx512f,avx512vl,avx512dq,fma"))), double, 8)
#endif

}  // namespace

FloatRowProducts float_row_products([[maybe_unused]] std::uint64_t isa) noexcept {
#if defined(__x86_64__)
    if ((isa & ATTEND_ISA_X86_V4) != 0) return float_avx512;
    if ((isa & ATTEND_ISA_X86_V3) != 0) return float_avx2;
#endif
    return float_base;
}

DoubleRowProducts double_row_products([[maybe_unused]] std::uint64_t isa) noexcept {
#if defined(__x86_64__)
    if ((isa & ATTEND_ISA_X86_V4) != 0) return double_avx512;
    if ((isa & ATTEND_ISA_X86_V3) != 0) return double_avx2;
#endif
    return double_base;
}

}  // namespace attend
