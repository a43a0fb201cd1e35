// SPDX-License-Identifier: Apache-2.0
// Quoting and UTF-8 validation for messages about files.

#include "io/text.hpp"

#include <cstddef>

namespace attend::io {
namespace {

// Length of the well-formed sequence at the start of text (which is not empty), 0 if there is none.
std::size_t sequence_length(std::string_view text) noexcept {
    const auto byte = [text](std::size_t index) { return static_cast<unsigned char>(text[index]); };
    const auto continues = [text, byte](std::size_t index, unsigned low = 0x80, unsigned high = 0xBF) {
        return index < text.size() && byte(index) >= low && byte(index) <= high;
    };
    const unsigned lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead < 0xC2) return 0;
    if (lead < 0xE0) return continues(1) ? 2 : 0;
    if (lead < 0xF0) {
        // Overlong forms and surrogates are not text.
        const unsigned low = lead == 0xE0 ? 0xA0 : 0x80;
        const unsigned high = lead == 0xED ? 0x9F : 0xBF;
        return continues(1, low, high) && continues(2) ? 3 : 0;
    }
    if (lead > 0xF4) return 0;
    const unsigned low = lead == 0xF0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xF4 ? 0x8F : 0xBF;
    return continues(1, low, high) && continues(2) && continues(3) ? 4 : 0;
}

}  // namespace

bool valid_utf8(std::string_view text) noexcept {
    while (!text.empty()) {
        const std::size_t length = sequence_length(text);
        if (length == 0) return false;
        text.remove_prefix(length);
    }
    return true;
}

std::string in_quotes(std::string_view text) {
    constexpr std::size_t limit = 64;
    constexpr char digits[] = "0123456789abcdef";
    std::string result = "\"";
    const std::size_t total = text.size();
    while (!text.empty()) {
        const std::size_t length = sequence_length(text);
        if (total - text.size() + length > limit) {
            result += "...";
            break;
        }
        const auto lead = static_cast<unsigned char>(text[0]);
        if (length == 0 || (length == 1 && (lead < 0x20 || lead == 0x7F))) {
            result += "\\x";
            result += digits[lead >> 4];
            result += digits[lead & 15];
            text.remove_prefix(1);
        } else {
            result += text.substr(0, length);
            text.remove_prefix(length);
        }
    }
    return result + "\"";
}

}  // namespace attend::io
