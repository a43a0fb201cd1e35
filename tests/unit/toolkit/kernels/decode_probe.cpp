// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, like a kernel: tells the unit tests which problems the decode engine takes.
#include "attend/toolkit/decode/decode.hpp"

extern "C" bool ATTEND_KERNEL(attend_probe_decode_applies)(const attend_tile_problem* problem) {
    return attend::ATTEND_ISA::decode_applies(*problem);
}
