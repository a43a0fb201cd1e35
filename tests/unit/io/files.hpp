// SPDX-License-Identifier: Apache-2.0
// A scratch folder and byte-level files for the tests of the tensor formats.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "attend/tensor.hpp"
#include "io/tensor_file.hpp"
#include "support/catch.hpp"

namespace io_test {

// Removed with everything in it when the test ends.
class Folder {
public:
    Folder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "attend-io-XXXXXX").string();
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        path_ = pattern;
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }
    [[nodiscard]] std::size_t entries() const {
        return static_cast<std::size_t>(
            std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
    }

private:
    std::filesystem::path path_;
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(out.good());
}

inline std::string read_bytes(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline std::string little_endian(std::uint64_t value, std::size_t bytes) {
    std::string text;
    for (std::size_t byte = 0; byte < bytes; ++byte)
        text += byte < 8 ? static_cast<char>(value >> (8 * byte) & 0xFFU) : '\0';
    return text;
}

inline attend::Tensor counting(attend::DType dtype, std::vector<std::int64_t> shape) {
    auto tensor = attend::Tensor::allocate(dtype, std::move(shape));
    REQUIRE(tensor);
    auto* bytes = static_cast<unsigned char*>(tensor->data);
    for (std::size_t byte = 0; byte < tensor->byte_size(); ++byte) {
        bytes[byte] = static_cast<unsigned char>(dtype == attend::DType::boolean ? byte % 2 : byte * 37 + 11);
    }
    return *tensor;
}

inline bool same(const attend::Tensor& a, const attend::Tensor& b) {
    return a.dtype == b.dtype && a.shape == b.shape &&
           (a.byte_size() == 0 || std::memcmp(a.data, b.data, a.byte_size()) == 0);
}

// The file is refused with code input, its path in front, and this piece in the sentence.
inline void refuses(const std::string& path, const std::string& piece) {
    const auto result = attend::io::read_tensor_file(path);
    INFO("expected: " << piece);
    REQUIRE_FALSE(result);
    INFO("message: " << result.error().message);
    CHECK(result.error().code == attend::ErrorCode::input);
    CHECK(result.error().message.starts_with(path + ": "));
    CHECK(result.error().message.find("; ") != std::string::npos);
    CHECK(result.error().message.find('\n') == std::string::npos);
    CHECK(result.error().message.find(piece) != std::string::npos);
}

// Touches every byte of every tensor, so that a sanitizer sees what points outside the file.
inline std::uint64_t sum_of(const attend::io::TensorFile& file) {
    std::uint64_t sum = 0;
    for (const auto& [name, tensor] : file.tensors) {
        const auto* bytes = static_cast<const unsigned char*>(tensor.data);
        for (std::size_t byte = 0; byte < tensor.byte_size(); ++byte) sum += bytes[byte];
        sum += name.size();
    }
    return sum;
}

}  // namespace io_test
