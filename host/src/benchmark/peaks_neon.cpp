// SPDX-License-Identifier: Apache-2.0
// Peak loops for AArch64: fused multiply-add of 128 bits.
#define ATTEND_PEAK_NAMESPACE peak_neon
#define ATTEND_PEAK_BYTES 16
#include "peak_kernels.inc"
#include "materialised_kernels.inc"
