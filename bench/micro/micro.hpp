// SPDX-License-Identifier: Apache-2.0
// What the kernels of every instruction set offer to the program that times them. Plain data: kernels share no code with
// it.
#pragma once

#include <stdint.h>

struct MicroData {
    float *left, *right, *out;  // 64-byte aligned, micro_floats each
    float *maximum, *base, *sum, *rescale;
    int64_t stride;  // 1, which the compiler is not to know
};
constexpr int64_t micro_floats = 1 << 18;

struct MicroCase {
    const char* name;
    double operations, elements;  // of one call; operations 0: not counted
    void (*run)(const MicroData&);
};
struct MicroTable {
    const MicroCase* cases;
    int count;
};
