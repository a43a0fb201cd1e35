// SPDX-License-Identifier: Apache-2.0
// What this CPU offers and the operating system has enabled. Own CPUID and XGETBV code: plugins dispatch on this word
// and nothing else, so it must not claim registers that the system does not save.
#pragma once

#include <cstdint>
#include <string>

#include "attend/abi.h"
#include "attend/error.hpp"

namespace attend {

struct CpuFacts {
    std::string vendor, model;
    std::uint32_t arch{};
    std::uint64_t isa_machine{};
    std::uint64_t l1d_bytes{}, l2_bytes{}, l3_bytes{};
    std::uint32_t cache_line{64}, cores{1}, threads{1};
};

[[nodiscard]] CpuFacts detect_cpu();

// The levels that a back end name permits: "auto" all, "avx2" up to avx2, and so on. An entry that this machine lacks
// is an error, never a silent step down.
[[nodiscard]] Result<std::uint64_t> limit_isa(const CpuFacts& cpu, const std::string& backend);

// Names of the levels in a mask, narrowest first, for reports.
[[nodiscard]] std::string isa_names(std::uint64_t isa);

// The widest entry ("avx512", "avx2", "baseline", "neon") of a mask.
[[nodiscard]] std::string entry_name(std::uint64_t isa);

}  // namespace attend
