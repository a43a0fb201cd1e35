// SPDX-License-Identifier: Apache-2.0
// Tensors across the C API: checked descriptions of the caller's memory, and ours as DLPack tensors.
#pragma once

#include <string>
#include <vector>

#include "attend/attend.h"
#include "attend/attention_service.hpp"
#include "attend/dlpack.h"
#include "attend/tensor.hpp"

namespace attend::c_api {

// The DLPack tensors that a call took over; their deleters run once, when this goes.
class GivenTensors {
public:
    GivenTensors() = default;
    ~GivenTensors();
    GivenTensors(const GivenTensors&) = delete;
    GivenTensors& operator=(const GivenTensors&) = delete;
    void take(DLManagedTensorVersioned* tensor);
    void take(DLManagedTensor* tensor);

private:
    std::vector<DLManagedTensorVersioned*> versioned_;
    std::vector<DLManagedTensor*> unversioned_;
};

// The array of a request as tensors over the caller's memory. What is given over goes to `given` first, whatever fails.
[[nodiscard]] Result<NamedTensors> read_tensors(const attend_named_tensor* tensors, std::uint64_t count,
                                                GivenTensors& given);

[[nodiscard]] Result<Tensor> tensor_of(const attend_view* view, const std::string& place);
[[nodiscard]] Result<Tensor> tensor_of(const DLTensor* tensor, const std::string& place);

[[nodiscard]] attend_view view_of(const Tensor& tensor);
// With its own share of the memory.
[[nodiscard]] DLManagedTensorVersioned* dlpack_of(const Tensor& tensor);

}  // namespace attend::c_api
