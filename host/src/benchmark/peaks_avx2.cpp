// SPDX-License-Identifier: Apache-2.0
// Peak loops for x86-64-v3: fused multiply-add of 256 bits.
#define ATTEND_PEAK_NAMESPACE peak_avx2
#define ATTEND_PEAK_BYTES 32
#include "peak_kernels.inc"
#include "materialised_kernels.inc"
