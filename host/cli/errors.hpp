// SPDX-License-Identifier: Apache-2.0
// Errors as people see them: one line on standard error, perhaps a hint, and the exit status that goes with them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "attend/error.hpp"

namespace attend::cli {

[[nodiscard]] int exit_status_of(const Error& error);

// `attend: <message>` and, where there is one, `hint: ...`; an error in a rule is followed by the condition and a caret
// line.
[[nodiscard]] std::string error_text(const Error& error);

// On standard error, unless --quiet.
void warn(bool quiet, const std::string& text);

// Text in one line: control characters as escapes.
[[nodiscard]] std::string one_line(std::string_view text);

// The error of a wrong use: exit status 2.
[[nodiscard]] Error wrong_use(std::string message, std::string hint = "");
// The same error, as one of a file that was to be read: whatever stopped it, exit status 2.
[[nodiscard]] Error as_input_error(Error error);

// `<place>: unknown <what> "<name>"; did you mean ...?` or, if nothing is near, `; accepted: <names>`.
[[nodiscard]] Error unknown_name(const std::string& place, const std::string& what, std::string_view name,
                                 std::span<const std::string> known);

// A number given to a flag; `flag` begins the message of an error.
[[nodiscard]] Result<std::int64_t> parse_count(const std::string& flag, std::string_view text, std::int64_t least);
[[nodiscard]] Result<std::uint64_t> parse_seed(const std::string& flag, std::string_view text);

}  // namespace attend::cli
