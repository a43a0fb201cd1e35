// SPDX-License-Identifier: Apache-2.0
#include "loading/probe.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>
#include <utility>

namespace attend {
namespace {

constexpr int wall_limit_ms = 10000;
constexpr std::size_t longest_verdict = 8192;

using Clock = std::chrono::steady_clock;

class Descriptor {
public:
    explicit Descriptor(int number = -1) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Descriptor() { close(); }
    void close() {
        if (number_ >= 0) ::close(number_);
        number_ = -1;
    }
    // Away from 0 to 3, which the child gets new: a host may run with its standard streams closed.
    void lift() {
        const int higher = ::fcntl(number_, F_DUPFD_CLOEXEC, 16);
        if (higher >= 0) ::close(std::exchange(number_, higher));
    }
    [[nodiscard]] int number() const { return number_; }

private:
    int number_;
};

LoadFailure failed(std::string code, std::string sentence) {
    return {"probe", std::move(code), std::move(sentence),
            "the file was tried in a child process; this one goes on without it"};
}

// Waits for the child until the deadline, then kills it; false if it had to be killed.
bool wait_for(pid_t child, Clock::time_point deadline, int& code) {
    auto pause = std::chrono::microseconds(50);
    for (;;) {
        const pid_t ended = ::waitpid(child, &code, WNOHANG);
        if (ended == child || (ended < 0 && errno != EINTR)) return true;
        if (Clock::now() >= deadline) break;
        std::this_thread::sleep_for(pause);
        pause = std::min(pause * 2, std::chrono::microseconds(5000));
    }
    ::kill(child, SIGKILL);
    while (::waitpid(child, &code, 0) < 0 && errno == EINTR) {
    }
    return false;
}

// The first line of what was printed, short and without control characters.
std::string printed_text(int descriptor, std::uint64_t& bytes) {
    struct stat facts {};
    bytes = ::fstat(descriptor, &facts) == 0 ? static_cast<std::uint64_t>(facts.st_size) : 0;
    std::array<char, 60> text{};
    const ssize_t got = bytes > 0 ? ::pread(descriptor, text.data(), text.size(), 0) : 0;
    std::string line;
    for (ssize_t at = 0; at < got && text[static_cast<std::size_t>(at)] != '\n'; ++at) {
        const char c = text[static_cast<std::size_t>(at)];
        line += c >= ' ' && c < '\x7f' && c != '"' ? c : '?';
    }
    return line;
}

}  // namespace

ProbeVerdict run_probe(const std::filesystem::path& program, const std::filesystem::path& file) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0)
        return {false, failed("LOAD_CRASHED", "no pipe for the probe: " + std::string(std::strerror(errno)))};
    Descriptor from(ends[0]), to(ends[1]), printed(::memfd_create("attend-probe", MFD_CLOEXEC));
    from.lift();
    to.lift();
    if (printed.number() >= 0) printed.lift();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (printed.number() >= 0)
        posix_spawn_file_actions_adddup2(&actions, printed.number(), 1);
    else
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, to.number(), probe_descriptor);
    std::string program_text = program.string(), file_text = file.string();
    char* arguments[] = {program_text.data(), file_text.data(), nullptr};
    char* environment[] = {nullptr};
    pid_t child = -1;
    const int status = ::posix_spawn(&child, program_text.c_str(), &actions, nullptr, arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    if (status != 0)
        return {false, failed("LOAD_CRASHED",
                              "the probe program " + program_text + " cannot be started: " + std::strerror(status))};
    to.close();

    std::string verdict;
    const auto deadline = Clock::now() + std::chrono::milliseconds(wall_limit_ms);
    while (verdict.size() <= longest_verdict) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        pollfd wait{from.number(), POLLIN, 0};
        const int ready = left > 0 ? ::poll(&wait, 1, static_cast<int>(left)) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) break;
        std::array<char, 1024> buffer{};
        const ssize_t got = ::read(from.number(), buffer.data(), buffer.size());
        if (got <= 0) break;
        verdict.append(buffer.data(), static_cast<std::size_t>(got));
    }
    // No reader any more: a child that goes on writing ends by a signal. One that closed the pipe may still hang.
    from.close();
    int code = 0;
    const bool in_time = wait_for(child, deadline, code);
    if (!in_time || (WIFSIGNALED(code) && WTERMSIG(code) == SIGXCPU))
        return {false, failed("LOAD_TIMEOUT", "loading took more than " + std::to_string(wall_limit_ms / 1000) + " s")};
    if (WIFSIGNALED(code))
        return {false, failed("LOAD_CRASHED", std::string("loading died of signal ") + std::to_string(WTERMSIG(code)) +
                                                  " (" + strsignal(WTERMSIG(code)) + ")")};
    if (verdict == "ok\n" && WEXITSTATUS(code) == 0 && printed.number() >= 0) {
        std::uint64_t bytes = 0;
        const std::string line = printed_text(printed.number(), bytes);
        if (bytes > 0)
            return {false, failed("CHANGED_PROCESS_STATE", "printed " + std::to_string(bytes) +
                                                               " bytes to standard output, beginning with \"" + line +
                                                               "\"; a plugin writes through the host's log")};
    }
    if (verdict == "ok\n" && WEXITSTATUS(code) == 0) return {true, {}};
    std::array<std::string, 4> fields;
    std::size_t begin = 0, field = 0;
    for (; field < fields.size() && begin < verdict.size(); ++field) {
        const std::size_t end = std::min(verdict.find('\n', begin), verdict.size());
        fields[field] = verdict.substr(begin, end - begin);
        begin = end + 1;
    }
    if (field < 3 || fields[1].empty())
        return {false,
                failed("LOAD_EXITED", "loading ended the process with status " + std::to_string(WEXITSTATUS(code)))};
    return {false, {fields[0], fields[1], fields[2], fields[3]}};
}

}  // namespace attend
