// SPDX-License-Identifier: Apache-2.0
// The engines of every instruction set in one program: their C functions carry the entry in the name.
#pragma once

#ifndef ATTEND_ISA
#define ATTEND_ISA baseline  // for the structs of toolkit.h; its own declarations are those of this entry
#endif
#include "attend/toolkit.h"

#include "unit/instruction_sets.hpp"

#define ATTEND_TEST_DECLARE(entry)                                                                                  \
    extern "C" uint64_t attend_tile_workspace_##entry(const attend_tile_problem*, uint32_t);                        \
    extern "C" attend_status attend_tile_forward_##entry(const attend_tile_problem*, const attend_context*);        \
    extern "C" uint64_t attend_projection_workspace_##entry(const attend_projection*, uint32_t);                    \
    extern "C" attend_status attend_projection_forward_##entry(const attend_projection*, const attend_context*);    \
    extern "C" int attend_probe_lanes_##entry();                                                                    \
    extern "C" int attend_probe_isa_##entry();                                                                      \
    extern "C" bool attend_probe_contract_##entry(int function, float* low, float* high, double* max_ulp);          \
    extern "C" void attend_probe_map_##entry(int function, const float* from, float* to, int64_t count);            \
    extern "C" int attend_probe_registers_##entry();                                                                \
    extern "C" void attend_probe_product_##entry(int vectors, const float* a, int64_t row_stride,                   \
                                                 int64_t inner_stride, int64_t rows, const float* x, int64_t count, \
                                                 float* out, int into, const float* rescale);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE)

namespace attend::test {

struct Entry {
    const char* name;
    bool runs_here;
    uint64_t (*tile_workspace)(const attend_tile_problem*, uint32_t);
    attend_status (*tile_forward)(const attend_tile_problem*, const attend_context*);
    uint64_t (*projection_workspace)(const attend_projection*, uint32_t);
    attend_status (*projection_forward)(const attend_projection*, const attend_context*);
    int (*lanes)();
    int (*isa)();
    bool (*contract)(int, float*, float*, double*);
    void (*map)(int, const float*, float*, int64_t);
    int (*registers)();
    void (*product)(int, const float*, int64_t, int64_t, int64_t, const float*, int64_t, float*, int, const float*);
};

#define ATTEND_TEST_ENTRY(entry)               \
    Entry{#entry,                              \
          cpu_runs_##entry(),                  \
          attend_tile_workspace_##entry,       \
          attend_tile_forward_##entry,         \
          attend_projection_workspace_##entry, \
          attend_projection_forward_##entry,   \
          attend_probe_lanes_##entry,          \
          attend_probe_isa_##entry,            \
          attend_probe_contract_##entry,       \
          attend_probe_map_##entry,            \
          attend_probe_registers_##entry,      \
          attend_probe_product_##entry},
inline const Entry entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_ENTRY)};

template <class Body>
void for_each_entry(Body body) {
    for_each_entry(entries, body);
}

}  // namespace attend::test
