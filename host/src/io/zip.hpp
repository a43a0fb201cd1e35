// SPDX-License-Identifier: Apache-2.0
// The part of the zip format that .npz needs: members stored without compression, below 4 GiB, CRC checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attend/error.hpp"
#include "io/mapped_file.hpp"

namespace attend::io {

// The usual CRC-32 (reflected, polynomial 0xEDB88320); pass the result on to continue over another piece.
[[nodiscard]] std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t previous = 0) noexcept;

struct ZipMember {
    std::string name;
    std::span<const std::byte> data;
};

// Members in the order of the central directory. Every offset is checked, members may not overlap.
[[nodiscard]] Result<std::vector<ZipMember>> read_zip(std::span<const std::byte> bytes, const std::string& place);

// Writes members one after the other, then the directory. Dates are fixed, so equal content gives equal files.
class ZipWriter {
public:
    ZipWriter(OutputFile& out, std::string place) : out_(out), place_(std::move(place)) {}
    // The content is the concatenation of the pieces.
    [[nodiscard]] Result<void> add(const std::string& name, std::span<const std::span<const std::byte>> pieces);
    [[nodiscard]] Result<void> finish();

private:
    OutputFile& out_;
    std::string place_;
    std::string directory_;
    std::uint64_t offset_{0};
    std::uint32_t members_{0};
};

}  // namespace attend::io
