// SPDX-License-Identifier: Apache-2.0
// What kernels/pair_probe.cpp offers, for every instruction set, and each with portable and hardware dots where both run.
#pragma once

#include "unit/toolkit/support.hpp"

#define ATTEND_TEST_DECLARE_PAIRS(entry)                                                                    \
    extern "C" void attend_probe_widen_##entry(int, int, const uint16_t*, float*, int64_t);                 \
    extern "C" void attend_probe_narrow_##entry(int, int, const float*, uint16_t*, int64_t);                \
    extern "C" void attend_probe_dot_##entry(int, const uint32_t*, const uint32_t*, float*, int64_t);       \
    extern "C" void attend_probe_pair_product_##entry(int, int, const void*, int64_t, int64_t, int64_t,     \
                                                      const uint32_t*, int64_t, float*, int, const float*); \
    extern "C" void attend_probe_lane_pairs_##entry(const uint16_t* const*, int64_t, int64_t, uint32_t*);   \
    extern "C" void attend_probe_round_rows_##entry(int, const float*, int64_t, uint32_t*);                 \
    extern "C" void attend_probe_interleave_##entry(const uint16_t*, const uint16_t*, int64_t, int64_t, uint32_t*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_PAIRS)

namespace attend::test {

struct PairEntry {
    const char* name;
    bool runs_here;
    int (*lanes)();
    void (*widen)(int, int, const uint16_t*, float*, int64_t);
    void (*narrow)(int, int, const float*, uint16_t*, int64_t);
    void (*dot)(int, const uint32_t*, const uint32_t*, float*, int64_t);
    void (*pair_product)(int, int, const void*, int64_t, int64_t, int64_t, const uint32_t*, int64_t, float*, int,
                         const float*);
    void (*lane_pairs)(const uint16_t* const*, int64_t, int64_t, uint32_t*);
    void (*round_rows)(int, const float*, int64_t, uint32_t*);
    void (*interleave)(const uint16_t*, const uint16_t*, int64_t, int64_t, uint32_t*);
};

#define ATTEND_TEST_PAIR_ENTRY(entry)            \
    PairEntry{#entry,                            \
              cpu_runs_##entry(),                \
              attend_probe_lanes_##entry,        \
              attend_probe_widen_##entry,        \
              attend_probe_narrow_##entry,       \
              attend_probe_dot_##entry,          \
              attend_probe_pair_product_##entry, \
              attend_probe_lane_pairs_##entry,   \
              attend_probe_round_rows_##entry,   \
              attend_probe_interleave_##entry},
inline const PairEntry pair_entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_PAIR_ENTRY)};

inline bool has_dot_instruction(const PairEntry& entry) {
#if defined(__x86_64__)
    return std::strcmp(entry.name, "avx512") == 0 && entry.runs_here && __builtin_cpu_supports("avx512bf16");
#else
    return entry.name == nullptr;
#endif
}

// body(entry, hardware) for every entry that runs here, with 1 too where the processor has the instruction.
template <class Body>
void for_each_dots(Body body) {
    for (const PairEntry& entry : pair_entries) {
        if (!entry.runs_here) {
            WARN("instruction set " << entry.name << " is not available on this processor: not tested");
            continue;
        }
        for (int hardware = 0; hardware <= (has_dot_instruction(entry) ? 1 : 0); ++hardware) {
            INFO("instruction set " << entry.name << ", dots of " << (hardware != 0 ? "hardware" : "software"));
            body(entry, hardware);
        }
    }
}

template <class To, class From>
To same_bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Value of a bf16 code.
inline double bf16_value(uint16_t code) { return static_cast<double>(same_bits_as<float>(uint32_t{code} << 16)); }

// A code of an ordinary number, neither subnormal nor infinite.
inline uint16_t random_bf16(Random& random) {
    return static_cast<uint16_t>(same_bits_as<uint32_t>(random.normal() + 0x1p-20f) >> 16);
}

}  // namespace attend::test
