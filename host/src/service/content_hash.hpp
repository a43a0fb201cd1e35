// SPDX-License-Identifier: Apache-2.0
// Two independent xxHash values over one byte string: 128 bits that name it, and 64 bits of another seed that confirm it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "attend/tensor.hpp"

namespace attend {

struct ContentHash {
    std::uint64_t low{}, high{}, check{};
    bool operator==(const ContentHash&) const = default;
};

class ContentHasher {
public:
    ContentHasher();
    ~ContentHasher();
    ContentHasher(const ContentHasher&) = delete;
    ContentHasher& operator=(const ContentHasher&) = delete;

    void bytes(const void* data, std::size_t size);
    void number(std::int64_t value) { bytes(&value, sizeof value); }
    void text(std::string_view value) {
        number(static_cast<std::int64_t>(value.size()));
        bytes(value.data(), value.size());
    }
    // The elements in row-major logical order: a strided view gives what its contiguous copy gives.
    void elements(const Tensor& tensor);
    [[nodiscard]] ContentHash finish() const;

private:
    struct States;
    std::unique_ptr<States> states_;
};

// Data type, shape and elements of one tensor.
[[nodiscard]] ContentHash hash_of(const Tensor& tensor);

// The same data type, shape and elements, byte by byte.
[[nodiscard]] bool same_content(const Tensor& a, const Tensor& b);

}  // namespace attend
