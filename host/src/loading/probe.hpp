// SPDX-License-Identifier: Apache-2.0
// Tries a plugin in a child process: a library that crashes, hangs, exits or prints when it is loaded does so there.
#pragma once

#include <filesystem>

#include "loading/descriptor_audit.hpp"

namespace attend {

struct ProbeVerdict {
    bool ok{false};
    LoadFailure failure;
};

// Runs `program file` with limits (CPU and wall time, memory, no core file), a bare environment and standard streams of
// its own; the verdict comes back over a separate descriptor as "ok" or "stage\ncode\nsentence\nhint". A plugin that
// prints to standard output is refused: in the host's process that would end up among the host's results.
[[nodiscard]] ProbeVerdict run_probe(const std::filesystem::path& program, const std::filesystem::path& file);

inline constexpr int probe_descriptor = 3;

}  // namespace attend
