// SPDX-License-Identifier: Apache-2.0
#include "c_api/boundary.hpp"

namespace attend::c_api {
namespace {

// Text, cut between characters, into a field at `offset` of a struct of which `size` bytes exist.
void write_text(attend_error_text* to, std::size_t size, std::size_t offset, std::size_t capacity,
                std::string_view text) noexcept {
    if (size <= offset) return;
    capacity = std::min(capacity, size - offset);
    std::size_t length = std::min(text.size(), capacity - 1);
    if (length < text.size())
        while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0u) == 0x80u) --length;
    char* field = reinterpret_cast<char*>(to) + offset;
    if (length > 0) std::memcpy(field, text.data(), length);
    std::memset(field + length, 0, capacity - length);
}

}  // namespace

attend_code report(attend_error_text* to, attend_code code, std::string_view message, std::string_view hint) noexcept {
    if (to == nullptr || to->struct_size < offsetof(attend_error_text, name)) return code;
    const std::size_t size = to->struct_size;
    to->code = code;
    write_text(to, size, offsetof(attend_error_text, name), sizeof to->name,
               code == ATTEND_E_NONE ? "" : attend_code_name(code));
    write_text(to, size, offsetof(attend_error_text, message), sizeof to->message, message);
    write_text(to, size, offsetof(attend_error_text, hint), sizeof to->hint, hint);
    return code;
}

Result<void> check_size(std::uint32_t given, std::size_t own, const std::string& place) {
    if (given >= 8 && given % 8 == 0 && given <= largest_struct) return {};
    return wrong_argument(place + ": struct_size is " + std::to_string(given) + "; accepted: the struct's size, " +
                          std::to_string(own) + " here");
}

}  // namespace attend::c_api

using attend::ErrorCode;

extern "C" const char* attend_code_name(attend_code code) {
    if (code == ATTEND_E_NONE) return "E_NONE";
    return attend::error_name(code > 0 && code <= ATTEND_E_STALE_HANDLE ? static_cast<ErrorCode>(code - 1)
                                                                        : ErrorCode::internal);
}

extern "C" const char* attend_version(void) { return ATTEND_VERSION; }
