// SPDX-License-Identifier: Apache-2.0
// The probe program: loads one plugin, opens it, audits it, closes it, and says what came of it on descriptor 3.
// It is started by the host with a bare environment; a crash here costs one line in a report.
#include <fenv.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <clocale>
#include <filesystem>
#include <string>

#include "loading/plugin_loader.hpp"
#include "loading/probe.hpp"

namespace {

void limit(int what, rlim_t to, rlim_t at_most) {
    const rlimit both{to, at_most};
    setrlimit(static_cast<__rlimit_resource>(what), &both);
}

std::size_t entries(const char* folder) {
    std::error_code status;
    std::size_t count = 0;
    for (std::filesystem::directory_iterator at(folder, status), end; !status && at != end; at.increment(status))
        ++count;
    return count;
}

// What belongs to the process and not to a plugin.
struct ProcessState {
    int rounding{};
    unsigned float_control{};
    std::string locale, folder;
    mode_t mask{};
    std::size_t variables{}, threads{}, descriptors{};
    std::array<void*, NSIG> handlers{};

    static ProcessState now() {
        ProcessState state;
        state.rounding = fegetround();
#if defined(__x86_64__)
        state.float_control = __builtin_ia32_stmxcsr() & ~0x3Fu;  // without the flags that any computation sets
#endif
        const char* locale = std::setlocale(LC_ALL, nullptr);
        state.locale = locale != nullptr ? locale : "";
        std::error_code status;
        state.folder = std::filesystem::current_path(status).string();
        state.mask = ::umask(0);
        ::umask(state.mask);
        for (char** at = environ; at != nullptr && *at != nullptr; ++at) ++state.variables;
        state.threads = entries("/proc/self/task");
        state.descriptors = entries("/proc/self/fd");
        for (int number = 1; number < NSIG; ++number) {
            struct sigaction action {};
            if (::sigaction(number, nullptr, &action) == 0)
                state.handlers[static_cast<std::size_t>(number)] = reinterpret_cast<void*>(action.sa_handler);
        }
        return state;
    }

    // What differs in `after`, in words; empty if nothing does.
    [[nodiscard]] std::string changed(const ProcessState& after) const {
        std::string list;
        const auto note = [&](bool differs, const char* what) {
            if (differs) list += (list.empty() ? "" : ", ") + std::string(what);
        };
        note(after.rounding != rounding || after.float_control != float_control, "the floating-point mode");
        note(after.locale != locale, "the locale");
        note(after.folder != folder, "the working folder");
        note(after.mask != mask, "the file mask");
        note(after.variables != variables, "the environment");
        note(after.handlers != handlers, "a signal handler");
        note(after.threads > threads, "a thread left behind");
        note(after.descriptors > descriptors, "a file left open");
        return list;
    }
};

void say(const std::string& text) {
    std::size_t sent = 0;
    while (sent < text.size()) {
        const ssize_t now = ::write(attend::probe_descriptor, text.data() + sent, text.size() - sent);
        if (now <= 0) return;
        sent += static_cast<std::size_t>(now);
    }
}

std::string one_line(std::string text) {
    for (char& c : text)
        if (c == '\n') c = ' ';
    return text;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2) return 2;
    limit(RLIMIT_CORE, 0, 0);
    limit(RLIMIT_CPU, 10, 12);
    limit(RLIMIT_FSIZE, 1 << 20, 1 << 20);  // also bounds what is printed
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    limit(RLIMIT_AS, rlim_t{4} << 30, rlim_t{4} << 30);  // sanitizers reserve far more address space than they use
#endif
    auto machine = std::make_shared<attend::Machine>();
    machine->facts = attend::detect_cpu();
    machine->isa = machine->facts.isa_machine;
    machine->pool = std::make_shared<attend::WorkerPool>(1);
    attend::PluginReport report;
    bool ok = false;
    const ProcessState before = ProcessState::now();
    {
        attend::PluginLoader loader(machine, {});
        const auto records = loader.load_file({arguments[1], "probe", false, true}, report);
        ok = !records.empty();
    }
    if (ok) {
        if (const std::string changed = before.changed(ProcessState::now()); !changed.empty()) {
            ok = false;
            report.failure = {"probe", "CHANGED_PROCESS_STATE",
                              "opening and closing changed what belongs to the process: " + changed +
                                  "; a plugin leaves it as it was",
                              ""};
        }
    }
    const attend::LoadFailure& failure = report.failure;
    say(ok ? "ok\n"
           : one_line(failure.stage) + "\n" + one_line(failure.code) + "\n" + one_line(failure.sentence) + "\n" +
                 one_line(failure.hint) + "\n");
    return ok ? 0 : 1;
}
