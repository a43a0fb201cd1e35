// SPDX-License-Identifier: Apache-2.0
#include "loading/probe.hpp"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstring>

namespace attend {
namespace {

constexpr int wall_limit_ms = 10000;
constexpr std::size_t longest_verdict = 8192;

struct Pipe {
    int ends[2]{-1, -1};
    ~Pipe() {
        for (const int end : ends)
            if (end >= 0) ::close(end);
    }
};

LoadFailure failed(std::string code, std::string sentence) {
    return {"probe", std::move(code), std::move(sentence), "the file was tried in a child process; this one goes on without it"};
}

}  // namespace

ProbeVerdict run_probe(const std::filesystem::path& program, const std::filesystem::path& file) {
    Pipe pipe;
    if (::pipe2(pipe.ends, O_CLOEXEC) != 0) return {false, failed("LOAD_CRASHED", "no pipe for the probe: " + std::string(std::strerror(errno)))};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, pipe.ends[1], probe_descriptor);
    std::string program_text = program.string(), file_text = file.string();
    char* arguments[] = {program_text.data(), file_text.data(), nullptr};
    char* environment[] = {nullptr};
    pid_t child = -1;
    const int status = ::posix_spawn(&child, program_text.c_str(), &actions, nullptr, arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    if (status != 0) return {false, failed("LOAD_CRASHED", "the probe program " + program_text + " cannot be started: " + std::strerror(status))};
    ::close(pipe.ends[1]);
    pipe.ends[1] = -1;

    std::string verdict;
    bool timed_out = false;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(wall_limit_ms);
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
        pollfd wait{pipe.ends[0], POLLIN, 0};
        const int ready = left > 0 ? ::poll(&wait, 1, static_cast<int>(left)) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) {
            timed_out = true;
            ::kill(child, SIGKILL);
            break;
        }
        std::array<char, 1024> buffer{};
        const ssize_t got = ::read(pipe.ends[0], buffer.data(), buffer.size());
        if (got <= 0) break;
        verdict.append(buffer.data(), static_cast<std::size_t>(got));
        if (verdict.size() > longest_verdict) break;
    }
    int code = 0;
    while (::waitpid(child, &code, 0) < 0 && errno == EINTR) {}
    if (timed_out) return {false, failed("LOAD_TIMEOUT", "loading took more than " + std::to_string(wall_limit_ms / 1000) + " s")};
    if (WIFSIGNALED(code)) return {false, failed("LOAD_CRASHED", std::string("loading died of signal ") + std::to_string(WTERMSIG(code)) + " (" + strsignal(WTERMSIG(code)) + ")")};
    if (verdict == "ok\n" && WEXITSTATUS(code) == 0) return {true, {}};
    std::array<std::string, 4> fields;
    std::size_t begin = 0, field = 0;
    for (; field < fields.size() && begin < verdict.size(); ++field) {
        const std::size_t end = std::min(verdict.find('\n', begin), verdict.size());
        fields[field] = verdict.substr(begin, end - begin);
        begin = end + 1;
    }
    if (field < 3 || fields[1].empty())
        return {false, failed("LOAD_EXITED", "loading ended the process with status " + std::to_string(WEXITSTATUS(code)))};
    return {false, {fields[0], fields[1], fields[2], fields[3]}};
}

}  // namespace attend
