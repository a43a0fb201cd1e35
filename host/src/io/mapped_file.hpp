// SPDX-License-Identifier: Apache-2.0
// A regular file mapped read-only, and a file that appears under its name only once it is complete.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "attend/error.hpp"

namespace attend::io {

struct MappedFile {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> storage;  // the mapping lives as long as this does
};

// Error: cannot be opened or is no regular file (input), cannot be mapped (io). A FIFO does not block.
[[nodiscard]] Result<MappedFile> map_file(const std::string& path);

// Written beside the target and renamed onto it by commit(); without a commit nothing remains.
class OutputFile {
public:
    [[nodiscard]] static Result<OutputFile> create(const std::string& path);
    OutputFile(OutputFile&& other) noexcept;
    OutputFile(const OutputFile&) = delete;
    OutputFile& operator=(const OutputFile&) = delete;
    OutputFile& operator=(OutputFile&&) = delete;
    ~OutputFile();

    [[nodiscard]] Result<void> write(const void* data, std::size_t bytes);
    // With sync, the content is on the disk before the name is.
    [[nodiscard]] Result<void> commit(bool sync = false);

private:
    OutputFile(std::string path, std::string target, std::string temporary, int descriptor);
    [[nodiscard]] Error system_error(const char* what, int number) const;

    std::string path_;       // as the caller spelled it, for messages
    std::string target_;     // behind symbolic links
    std::string temporary_;  // empty: nothing to remove
    int descriptor_;
};

}  // namespace attend::io
