// SPDX-License-Identifier: Apache-2.0
// Nothing but the header that kernels have in common, precompiled with their options.
#include "attend/toolkit/simd/isa.hpp"
