// SPDX-License-Identifier: Apache-2.0
// Tensors that callers registered, so that a call need not read them to know them: a number for each, and a generation
// that grows whenever the caller says that the elements have changed.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "attend/attention_service.hpp"
#include "service/content_hash.hpp"

namespace attend {

struct HandleUse {
    std::string role;
    TensorHandle handle{};
    std::uint64_t generation{};
    std::uint64_t bytes{};  // of its elements
};

class TensorHandles {
public:
    // checked: every use compares the elements with those at registration or at the last touch.
    explicit TensorHandles(bool checked = false) : checked_(checked) {}
    void set_checked(bool checked) { checked_ = checked; }

    Result<TensorHandle> add(const Tensor& tensor);
    Result<void> touch(TensorHandle handle);
    Result<void> release(TensorHandle handle);

    // The inputs with the tensors of their handles in place; which generation of what was used goes to `uses`.
    Result<ForwardInputs> resolve(const ForwardInputs& inputs, std::vector<HandleUse>& uses) const;

    // 0: released.
    [[nodiscard]] std::uint64_t generation(TensorHandle handle) const;
    // Grows with every touch and release.
    [[nodiscard]] std::uint64_t changes() const noexcept { return changes_.load(); }

private:
    struct Entry {
        Tensor tensor;
        std::uint64_t generation{1};
        ContentHash content;
    };
    mutable std::mutex mutex_;
    std::unordered_map<TensorHandle, Entry> entries_;
    TensorHandle last_{0};
    std::atomic<std::uint64_t> changes_{0};
    bool checked_;
};

}  // namespace attend
