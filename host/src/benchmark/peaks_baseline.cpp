// SPDX-License-Identifier: Apache-2.0
// Peak loops for x86-64-v2, SSE 4.2: a multiply and an add of 128 bits.
#define ATTEND_PEAK_NAMESPACE peak_baseline
#define ATTEND_PEAK_BYTES 16
#include "peak_kernels.inc"
#include "materialised_kernels.inc"
