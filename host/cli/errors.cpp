// SPDX-License-Identifier: Apache-2.0
#include "errors.hpp"

#include <charconv>
#include <cstdio>

#include "attend/config/names.hpp"
#include "command.hpp"

namespace attend::cli {

int exit_status_of(const Error& error) {
    switch (error.code) {
        case ErrorCode::io:
        case ErrorCode::memory:
        case ErrorCode::internal: return exit_machine;
        case ErrorCode::plugin: return exit_plugin;
        case ErrorCode::cancelled: return exit_interrupted;
        default: return exit_wrong_use;
    }
}

std::string one_line(std::string_view text) {
    constexpr char digits[] = "0123456789abcdef";
    std::string line;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (c == '\n') {
            line += "\\n";
        } else if (byte < 0x20 || byte == 0x7f) {
            line += "\\x";
            line += digits[byte >> 4];
            line += digits[byte & 15];
        } else {
            line += c;
        }
    }
    return line;
}

std::string error_text(const Error& error) {
    std::string text = "attend: " + one_line(error.message) + "\n";
    if (error.hint.empty()) return text;
    // The hint of a rule is its condition and the caret line below it.
    if (error.code == ErrorCode::rule && error.hint.find('\n') != std::string::npos)
        return text + error.hint + (error.hint.back() == '\n' ? "" : "\n");
    return text + "hint: " + one_line(error.hint) + "\n";
}

void warn(bool quiet, const std::string& text) {
    if (!quiet) std::fputs(("attend: warning: " + one_line(text) + "\n").c_str(), stderr);
}

Error wrong_use(std::string message, std::string hint) {
    return {ErrorCode::input, std::move(message), std::move(hint)};
}

Error as_input_error(Error error) {
    if (error.code == ErrorCode::io) error.code = ErrorCode::input;
    return error;
}

Error unknown_name(const std::string& place, const std::string& what, std::string_view name,
                   std::span<const std::string> known) {
    const std::string nearest = did_you_mean(name, known);
    return wrong_use(place + ": unknown " + what + " \"" + std::string(name) + "\"" +
                     (nearest.empty() ? "; accepted: " + join_names(known) : nearest));
}

Result<std::int64_t> parse_count(const std::string& flag, std::string_view text, std::int64_t least) {
    std::int64_t value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status != std::errc{} || end != text.data() + text.size() || value < least)
        return wrong_use(flag + ": is \"" + std::string(text) + "\"; accepted: integer of at least " +
                         std::to_string(least));
    return value;
}

Result<std::uint64_t> parse_seed(const std::string& flag, std::string_view text) {
    std::uint64_t value = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (status != std::errc{} || end != text.data() + text.size())
        return wrong_use(flag + ": is \"" + std::string(text) + "\"; accepted: integer from 0 to 18446744073709551615");
    return value;
}

}  // namespace attend::cli
