// SPDX-License-Identifier: Apache-2.0
// Peak loops for x86-64-v4: fused multiply-add of 512 bits, and the dots of AVX512-BF16 and AVX512-VNNI, which are
// called only where the processor has them.
#define ATTEND_PEAK_NAMESPACE peak_avx512
#define ATTEND_PEAK_BYTES 64
#include "peak_kernels.inc"
#include "materialised_kernels.inc"

#include <immintrin.h>

namespace attend::peak_avx512 {

#define ATTEND_SIXTEEN(X) ATTEND_TWELVE(X) X(12) X(13) X(14) X(15)

__attribute__((target("avx512bf16"))) double dot_bf16(uint64_t rounds, float* sink) {
    const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int>(rounds & 1)), right = left;
#define ATTEND_DECLARE(n) __m512 chain##n = _mm512_set1_ps(static_cast<float>(n));
#define ATTEND_STEP(n) chain##n = _mm512_dpbf16_ps(chain##n, left, right);
    ATTEND_SIXTEEN(ATTEND_DECLARE)
    for (uint64_t round = 0; round < rounds; ++round) {
        ATTEND_SIXTEEN(ATTEND_STEP)
        ATTEND_SIXTEEN(ATTEND_STEP)
    }
    __m512 sum = _mm512_setzero_ps();
#define ATTEND_SUM(n) sum = _mm512_add_ps(sum, chain##n);
    ATTEND_SIXTEEN(ATTEND_SUM)
    for (int lane = 0; lane < 16; ++lane) sink[2] += sum[lane];
#undef ATTEND_DECLARE
#undef ATTEND_STEP
#undef ATTEND_SUM
    return static_cast<double>(rounds) * 32.0 * 64.0;
}

__attribute__((target("avx512vnni"))) double dot_int8(uint64_t rounds, float* sink) {
    const __m512i left = _mm512_set1_epi32(static_cast<int>(rounds & 1)), right = left;
#define ATTEND_DECLARE(n) __m512i chain##n = _mm512_set1_epi32(n);
#define ATTEND_STEP(n) chain##n = _mm512_dpbusd_epi32(chain##n, left, right);
    ATTEND_SIXTEEN(ATTEND_DECLARE)
    for (uint64_t round = 0; round < rounds; ++round) {
        ATTEND_SIXTEEN(ATTEND_STEP)
        ATTEND_SIXTEEN(ATTEND_STEP)
    }
    __m512i sum = _mm512_setzero_si512();
#define ATTEND_SUM(n) sum = _mm512_add_epi32(sum, chain##n);
    ATTEND_SIXTEEN(ATTEND_SUM)
    for (int lane = 0; lane < 8; ++lane) sink[2] += static_cast<float>(sum[lane]);
#undef ATTEND_DECLARE
#undef ATTEND_STEP
#undef ATTEND_SUM
    return static_cast<double>(rounds) * 32.0 * 128.0;
}

}  // namespace attend::peak_avx512
