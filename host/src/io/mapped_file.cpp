// SPDX-License-Identifier: Apache-2.0
// POSIX files: mapping for reading, write-beside-then-rename for writing.

#include "io/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

namespace attend::io {
namespace {

std::string reason(int number) { return std::generic_category().message(number); }

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "is a directory";
    if (S_ISFIFO(mode)) return "is a FIFO";
    if (S_ISSOCK(mode)) return "is a socket";
    return "is a device";
}

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    [[nodiscard]] int get() const noexcept { return number_; }

private:
    int number_;
};

}  // namespace

Result<MappedFile> map_file(const std::string& path) {
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.get() < 0) {
        const int number = errno;
        return Error{
            ErrorCode::input, path + ": cannot be opened: " + reason(number) + "; a readable file is needed", {}};
    }
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) {
        const int number = errno;
        return Error{
            ErrorCode::io, path + ": cannot be examined: " + reason(number) + "; a readable file is needed", {}};
    }
    if (!S_ISREG(status.st_mode)) {
        return Error{ErrorCode::input, path + ": " + kind_of(status.st_mode) + "; a regular file is needed", {}};
    }
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return MappedFile{};
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address == MAP_FAILED) {
        const int number = errno;
        return Error{ErrorCode::io,
                     path + ": " + std::to_string(size) + " bytes cannot be mapped: " + reason(number) +
                         "; a file that fits the address space is needed",
                     {}};
    }
    std::shared_ptr<const void> storage(address,
                                        [size](const void* mapped) { ::munmap(const_cast<void*>(mapped), size); });
    return MappedFile{{static_cast<const std::byte*>(address), size}, std::move(storage)};
}

OutputFile::OutputFile(std::string path, std::string target, std::string temporary, int descriptor)
    : path_(std::move(path)), target_(std::move(target)), temporary_(std::move(temporary)), descriptor_(descriptor) {}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

OutputFile::~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Error OutputFile::system_error(const char* what, int number) const {
    return Error{ErrorCode::io,
                 path_ + ": " + what + ": " + reason(number) + "; a writable place with enough room is needed",
                 {}};
}

Result<OutputFile> OutputFile::create(const std::string& path) {
    namespace fs = std::filesystem;
    static std::atomic<unsigned> counter{0};
    // A link stays a link: the file behind it is replaced.
    std::error_code failed;
    const fs::path resolved = fs::canonical(path, failed);
    const fs::path target = failed ? fs::path(path) : resolved;
    struct stat status {};
    const bool exists = ::stat(target.c_str(), &status) == 0;
    if (exists && !S_ISREG(status.st_mode)) {
        return Error{ErrorCode::input, path + ": " + kind_of(status.st_mode) + "; a regular file is written", {}};
    }
    for (;;) {
        std::string name = ".";
        name += target.filename().string().substr(0, 200);
        name += '.';
        name += std::to_string(::getpid());
        name += '-';
        name += std::to_string(counter.fetch_add(1));
        name += ".tmp";
        const fs::path temporary = target.parent_path() / name;
        const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor >= 0) {
            // A file that is replaced keeps its permissions; if that fails the new one has the usual ones.
            if (exists) static_cast<void>(::fchmod(descriptor, status.st_mode & 0777U) == 0);
            return OutputFile(path, target.string(), temporary.string(), descriptor);
        }
        const int number = errno;
        if (number == EEXIST) continue;
        return Error{ErrorCode::io,
                     path + ": cannot be written: " + reason(number) + "; an existing, writable folder is needed",
                     {}};
    }
}

Result<void> OutputFile::write(const void* data, std::size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
        // Linux moves at most 2 GiB in one call.
        const ssize_t written = ::write(descriptor_, from, std::min<std::size_t>(bytes, std::size_t{1} << 30));
        if (written < 0) {
            if (errno == EINTR) continue;
            return system_error("cannot be written", errno);
        }
        from += written;
        bytes -= static_cast<std::size_t>(written);
    }
    return {};
}

Result<void> OutputFile::commit(bool sync) {
    if (sync && ::fsync(descriptor_) != 0) return system_error("cannot be written to the disk", errno);
    if (::close(std::exchange(descriptor_, -1)) != 0) return system_error("cannot be closed", errno);
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) return system_error("cannot be put in place", errno);
    temporary_.clear();
    return {};
}

}  // namespace attend::io
