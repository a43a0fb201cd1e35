// SPDX-License-Identifier: Apache-2.0
// Square transposes in registers: batch_lanes vectors of batch_lanes floats. Queries enter a tile and outputs leave it
// through these; scalar loops in their place cost 5 % of a long prefill and up to 35 % of a short one.
#pragma once

#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

#if defined(ATTEND_ISA_avx512)
using Register = __m512;
ATTEND_ALWAYS_INLINE Register zip_low(Register a, Register b) { return _mm512_maskz_unpacklo_ps(every_lane, a, b); }
ATTEND_ALWAYS_INLINE Register zip_high(Register a, Register b) { return _mm512_maskz_unpackhi_ps(every_lane, a, b); }
ATTEND_ALWAYS_INLINE Register zip_low_pairs(Register a, Register b) {
    return _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xFF, _mm512_castps_pd(a), _mm512_castps_pd(b)));
}
ATTEND_ALWAYS_INLINE Register zip_high_pairs(Register a, Register b) {
    return _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xFF, _mm512_castps_pd(a), _mm512_castps_pd(b)));
}
template <int order>
ATTEND_ALWAYS_INLINE Register shuffle_parts(Register a, Register b) {
    return _mm512_maskz_shuffle_f32x4(every_lane, a, b, order);
}
#elif defined(ATTEND_ISA_avx2)
using Register = __m256;
ATTEND_ALWAYS_INLINE Register zip_low(Register a, Register b) { return _mm256_unpacklo_ps(a, b); }
ATTEND_ALWAYS_INLINE Register zip_high(Register a, Register b) { return _mm256_unpackhi_ps(a, b); }
ATTEND_ALWAYS_INLINE Register zip_low_pairs(Register a, Register b) {
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
ATTEND_ALWAYS_INLINE Register zip_high_pairs(Register a, Register b) {
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
#elif defined(ATTEND_ISA_baseline)
using Register = __m128;
ATTEND_ALWAYS_INLINE Register zip_low(Register a, Register b) { return _mm_unpacklo_ps(a, b); }
ATTEND_ALWAYS_INLINE Register zip_high(Register a, Register b) { return _mm_unpackhi_ps(a, b); }
ATTEND_ALWAYS_INLINE Register zip_low_pairs(Register a, Register b) { return _mm_movelh_ps(a, b); }
ATTEND_ALWAYS_INLINE Register zip_high_pairs(Register a, Register b) { return _mm_movehl_ps(b, a); }
#elif defined(ATTEND_ISA_neon)
using Register = float32x4_t;
ATTEND_ALWAYS_INLINE Register zip_low(Register a, Register b) { return vzip1q_f32(a, b); }
ATTEND_ALWAYS_INLINE Register zip_high(Register a, Register b) { return vzip2q_f32(a, b); }
ATTEND_ALWAYS_INLINE Register zip_low_pairs(Register a, Register b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
ATTEND_ALWAYS_INLINE Register zip_high_pairs(Register a, Register b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
#endif

// rows[r] lane c becomes rows[c] lane r.
ATTEND_ALWAYS_INLINE void transpose(Batch (&rows)[batch_lanes]) {
    Register quads[batch_lanes];
    // Within each 128-bit part: 4 x 4 blocks.
    ATTEND_UNROLL
    for (int row = 0; row < batch_lanes; row += 4) {
        const Register a = zip_low(rows[row].data, rows[row + 1].data);
        const Register b = zip_high(rows[row].data, rows[row + 1].data);
        const Register c = zip_low(rows[row + 2].data, rows[row + 3].data);
        const Register d = zip_high(rows[row + 2].data, rows[row + 3].data);
        quads[row] = zip_low_pairs(a, c);
        quads[row + 1] = zip_high_pairs(a, c);
        quads[row + 2] = zip_low_pairs(b, d);
        quads[row + 3] = zip_high_pairs(b, d);
    }
    // Then the 128-bit parts among each other.
    ATTEND_UNROLL
    for (int k = 0; k < 4; ++k) {
#if defined(ATTEND_ISA_avx512)
        const Register even_low = shuffle_parts<0x88>(quads[k], quads[4 + k]);
        const Register odd_low = shuffle_parts<0xdd>(quads[k], quads[4 + k]);
        const Register even_high = shuffle_parts<0x88>(quads[8 + k], quads[12 + k]);
        const Register odd_high = shuffle_parts<0xdd>(quads[8 + k], quads[12 + k]);
        rows[k] = Batch(shuffle_parts<0x88>(even_low, even_high));
        rows[4 + k] = Batch(shuffle_parts<0x88>(odd_low, odd_high));
        rows[8 + k] = Batch(shuffle_parts<0xdd>(even_low, even_high));
        rows[12 + k] = Batch(shuffle_parts<0xdd>(odd_low, odd_high));
#elif defined(ATTEND_ISA_avx2)
        rows[k] = Batch(_mm256_permute2f128_ps(quads[k], quads[4 + k], 0x20));
        rows[4 + k] = Batch(_mm256_permute2f128_ps(quads[k], quads[4 + k], 0x31));
#else
        rows[k] = Batch(quads[k]);
#endif
    }
}

}  // namespace attend::ATTEND_ISA
