// SPDX-License-Identifier: Apache-2.0
// How much a test tries. Under sanitizers every access is watched, which is slow, and fewer calls show as much.
#pragma once

#include <cstdint>

namespace support {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool watched = true;
#else
inline constexpr bool watched = false;
#endif

// Of `usual` rounds, those that are run.
constexpr std::uint64_t rounds(std::uint64_t usual) { return watched ? (usual + 3) / 4 : usual; }

}  // namespace support
