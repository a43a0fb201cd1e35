// SPDX-License-Identifier: Apache-2.0
// What every function of the C API does at its edge: structs of any age are copied in and out, errors become codes and
// texts, and no exception leaves.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "attend/attend.h"
#include "attend/error.hpp"

namespace attend::c_api {

inline constexpr std::uint32_t largest_struct = 4096;

[[nodiscard]] inline attend_code code_of(ErrorCode code) noexcept { return static_cast<attend_code>(code) + 1; }

// Writes as much of the text as the caller's struct has room for. Does not throw.
attend_code report(attend_error_text* to, attend_code code, std::string_view message, std::string_view hint) noexcept;

[[nodiscard]] inline Error wrong_argument(std::string message) { return {ErrorCode::input, std::move(message), ""}; }

// A size that a struct of this API can have.
[[nodiscard]] Result<void> check_size(std::uint32_t given, std::size_t own, const std::string& place);

// A struct of the caller, older or newer than ours. `place` begins the message of an error.
template <class T>
[[nodiscard]] Result<T> read_struct(const T* given, const std::string& place) {
    if (given == nullptr) return wrong_argument(place + ": is NULL; accepted: a struct that begins with its size");
    std::uint32_t size = 0;
    std::memcpy(&size, given, sizeof size);
    if (auto done = check_size(size, sizeof(T), place); !done) return done.error();
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    if (size > sizeof(T) && std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char byte) { return byte != 0; }))
        return Error{ErrorCode::unsupported,
                     place + ": struct_size is " + std::to_string(size) + " and bytes from " +
                         std::to_string(sizeof(T)) + " on are not zero; accepted: the fields that this library knows",
                     ""};
    T own{};
    std::memcpy(&own, given, std::min<std::size_t>(size, sizeof(T)));
    own.struct_size = sizeof(T);
    return own;
}

// Ours into the caller's struct, whose size field stays as it is; what only a newer caller has becomes zero.
template <class T>
[[nodiscard]] Result<void> write_struct(const T& own, T* to, const std::string& place) {
    if (to == nullptr) return wrong_argument(place + ": is NULL; accepted: a struct that begins with its size");
    std::uint32_t size = 0;
    std::memcpy(&size, to, sizeof size);
    if (auto done = check_size(size, sizeof(T), place); !done) return done.error();
    auto* bytes = reinterpret_cast<unsigned char*>(to);
    std::memcpy(bytes + sizeof size, reinterpret_cast<const unsigned char*>(&own) + sizeof size,
                std::min<std::size_t>(size, sizeof(T)) - sizeof size);
    if (size > sizeof(T)) std::memset(bytes + sizeof(T), 0, size - sizeof(T));
    return {};
}

// Runs the body, a Result<void>(), and turns what comes of it into a code and a text.
template <class Body>
attend_code guarded(attend_error_text* error, Body body) noexcept {
    try {
        const Result<void> done = body();
        if (done) return report(error, ATTEND_E_NONE, "", "");
        return report(error, code_of(done.error().code), done.error().message, done.error().hint);
    } catch (const std::bad_alloc&) {
        return report(error, ATTEND_E_MEMORY, "the call: no memory; accepted: smaller sizes", "");
    } catch (const std::exception& caught) {
        return report(error, ATTEND_E_INTERNAL, caught.what(), "");
    } catch (...) {
        return report(error, ATTEND_E_INTERNAL, "the call: an unknown exception", "");
    }
}

}  // namespace attend::c_api
