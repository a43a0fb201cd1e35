// SPDX-License-Identifier: Apache-2.0
// What the opaque handles of the C API are.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "attend/attend.h"
#include "attend/attention_service.hpp"
#include "c_api/boundary.hpp"

struct attend_service {
    std::unique_ptr<attend::AttentionService> service;
};

// Never changes once it is made.
struct attend_result {
    attend::NamedTensors tensors;
    std::string record;
};

struct attend_cancel {
    std::shared_ptr<std::atomic<bool>> token = std::make_shared<std::atomic<bool>>(false);
};

namespace attend::c_api {

[[nodiscard]] inline Result<AttentionService*> service_of(attend_service* handle) {
    if (handle == nullptr) return wrong_argument("service: is NULL; accepted: what attend_service_open gave");
    return handle->service.get();
}

// Facts of a request, as the C API writes them: an object of rule variables.
[[nodiscard]] Result<RequestFacts> facts_of(const char* json);

}  // namespace attend::c_api
