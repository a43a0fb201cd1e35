// SPDX-License-Identifier: Apache-2.0
// Pieces of error sentences about files. What comes from a file is shown quoted, on one line and cut to a length
// that a terminal can bear.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "attend/error.hpp"

namespace attend::io {

// The text in double quotes; control characters and bytes outside UTF-8 text as \xNN, at most 64 bytes of it.
[[nodiscard]] std::string in_quotes(std::string_view text);

[[nodiscard]] bool valid_utf8(std::string_view text) noexcept;

[[nodiscard]] inline Error bad_input(const std::string& place, const std::string& wrong, const std::string& accepted) {
    return Error{ErrorCode::input, place + ": " + wrong + "; " + accepted, {}};
}

}  // namespace attend::io
