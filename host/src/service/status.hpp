// SPDX-License-Identifier: Apache-2.0
// Status words of the plugin ABI as errors of the service.
#pragma once

#include <string>

#include "attend/abi.h"
#include "attend/error.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

[[nodiscard]] inline ErrorCode error_code_of(attend_status status) {
    switch (status) {
        case ATTEND_UNSUPPORTED: return ErrorCode::unsupported;
        case ATTEND_OUT_OF_MEMORY: return ErrorCode::memory;
        case ATTEND_CANCELLED: return ErrorCode::cancelled;
        case ATTEND_NOT_FOUND: return ErrorCode::weight;
        case ATTEND_BAD_OPTION: return ErrorCode::option;
        case ATTEND_BAD_SHAPE: return ErrorCode::shape;
        case ATTEND_BAD_DTYPE: return ErrorCode::dtype;
        case ATTEND_NUMERIC: return ErrorCode::nonfinite;
        case ATTEND_LIMIT: return ErrorCode::limit;
        case ATTEND_IO: return ErrorCode::io;
        case ATTEND_INVALID_ARGUMENT: return ErrorCode::input;
        default: return ErrorCode::internal;
    }
}

// The plugin's own sentence, headed by the mechanism's name if it is not already.
[[nodiscard]] inline Error plugin_error(const MechanismRecord& mechanism, attend_status status, const char* text) {
    std::string sentence = text != nullptr && *text != '\0' ? text : "failed with status " + std::to_string(status);
    if (!sentence.starts_with(mechanism.name)) sentence = mechanism.name + ": " + sentence;
    return {error_code_of(status), std::move(sentence), ""};
}

}  // namespace attend
