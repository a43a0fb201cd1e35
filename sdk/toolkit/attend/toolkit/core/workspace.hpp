// SPDX-License-Identifier: Apache-2.0
// Bump allocator over memory that the host lends. Run over a null pointer it only counts, so that one function
// describes a layout both for the size and for the addresses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace attend::ATTEND_ISA {

class Workspace {
public:
    static constexpr uint64_t alignment = 64;  // a cache line, and the widest vector

    Workspace() = default;
    explicit Workspace(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

    // Memory for `count` elements, not initialised; a null pointer when only counting.
    template <class T>
    T* take(int64_t count) {
        T* here = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
        used_ += rounded(static_cast<uint64_t>(count < 0 ? 0 : count) * sizeof(T));
        return here;
    }

    uint64_t used() const { return used_; }
    static uint64_t rounded(uint64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

private:
    unsigned char* memory_{nullptr};
    uint64_t used_{0};
};

}  // namespace attend::ATTEND_ISA
