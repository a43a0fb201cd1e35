// SPDX-License-Identifier: Apache-2.0
// Result<T>: a value or an Error, for everything that outside input can cause. The lowest layer of the
// runtime: config, registry and host include it, it includes the standard library only.
#pragma once

#include <cassert>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace attend {

enum class ErrorCode : std::int32_t {
    option,       // an option: unknown, of the wrong type, outside its range, contradictory (E_OPTION)
    shape,        // a tensor extent or rank (E_SHAPE)
    dtype,        // a data type (E_DTYPE)
    mask,         // mask or bias not broadcastable (E_MASK)
    weight,       // a learned tensor: unknown, mis-shaped, switched off (E_WEIGHT)
    nonfinite,    // NaN or Inf where it cannot be accepted (E_NONFINITE)
    limit,        // above a configured or structural cap (E_LIMIT)
    unsupported,  // available elsewhere, not in this mechanism, mode or back end (E_UNSUPPORTED)
    rule,         // a selector rule (E_RULE)
    not_found,    // a name that nothing has
    input,        // a malformed file or argument
    io,           // the operating system refused
    plugin,       // a plugin could not be used
    memory,       // out of memory
    cancelled,
    internal,      // our own mistake, or a plugin's
    stale_handle,  // a registered tensor whose elements changed without a word (E_STALE_HANDLE)
};

// "E_OPTION" for ErrorCode::option, and so on; static storage.
[[nodiscard]] constexpr const char* error_name(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::option: return "E_OPTION";
        case ErrorCode::shape: return "E_SHAPE";
        case ErrorCode::dtype: return "E_DTYPE";
        case ErrorCode::mask: return "E_MASK";
        case ErrorCode::weight: return "E_WEIGHT";
        case ErrorCode::nonfinite: return "E_NONFINITE";
        case ErrorCode::limit: return "E_LIMIT";
        case ErrorCode::unsupported: return "E_UNSUPPORTED";
        case ErrorCode::rule: return "E_RULE";
        case ErrorCode::not_found: return "E_NOT_FOUND";
        case ErrorCode::input: return "E_INPUT";
        case ErrorCode::io: return "E_IO";
        case ErrorCode::plugin: return "E_PLUGIN";
        case ErrorCode::memory: return "E_MEMORY";
        case ErrorCode::cancelled: return "E_CANCELLED";
        case ErrorCode::internal: return "E_INTERNAL";
        case ErrorCode::stale_handle: return "E_STALE_HANDLE";
    }
    return "E_INTERNAL";
}

// One clear sentence, "<place>: <what was wrong, with its value>; <what is accepted>", and perhaps a hint
// (may hold a second line: the caret line of a rule).
struct Error {
    ErrorCode code{ErrorCode::internal};
    std::string message;
    std::string hint;
};

template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

    [[nodiscard]] bool ok() const noexcept { return state_.index() == 0; }
    explicit operator bool() const noexcept { return ok(); }

    [[nodiscard]] T& value() & {
        assert(ok() && "value() of an error");
        return *std::get_if<0>(&state_);
    }
    [[nodiscard]] const T& value() const& {
        assert(ok() && "value() of an error");
        return *std::get_if<0>(&state_);
    }
    [[nodiscard]] T&& value() && {
        assert(ok() && "value() of an error");
        return std::move(*std::get_if<0>(&state_));
    }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

    [[nodiscard]] const Error& error() const& {
        assert(!ok() && "error() of a value");
        return *std::get_if<1>(&state_);
    }
    [[nodiscard]] Error&& error() && {
        assert(!ok() && "error() of a value");
        return std::move(*std::get_if<1>(&state_));
    }

private:
    std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}
    [[nodiscard]] bool ok() const noexcept { return !error_.has_value(); }
    explicit operator bool() const noexcept { return ok(); }
    [[nodiscard]] const Error& error() const& {
        assert(!ok() && "error() of a value");
        return *error_;
    }

private:
    std::optional<Error> error_;
};

}  // namespace attend
