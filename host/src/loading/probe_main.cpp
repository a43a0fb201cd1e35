// SPDX-License-Identifier: Apache-2.0
// The probe program: loads one plugin, opens it, audits it, closes it, and says what came of it on descriptor 3.
// It is started by the host with a bare environment; a crash here costs one line in a report.
#include <sys/resource.h>
#include <unistd.h>

#include <string>

#include "loading/plugin_loader.hpp"
#include "loading/probe.hpp"

namespace {

void limit(int what, rlim_t to) {
    const rlimit both{to, to};
    setrlimit(static_cast<__rlimit_resource>(what), &both);
}

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
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_CPU, 10);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    limit(RLIMIT_AS, rlim_t{4} << 30);  // sanitizers reserve far more address space than they use
#endif
    auto machine = std::make_shared<attend::Machine>();
    machine->facts = attend::detect_cpu();
    machine->isa = machine->facts.isa_machine;
    machine->pool = std::make_shared<attend::WorkerPool>(1);
    attend::PluginReport report;
    bool ok = false;
    {
        attend::PluginLoader loader(machine, {});
        const auto records = loader.load_file({arguments[1], "probe", false, true}, report);
        ok = !records.empty();
    }
    const attend::LoadFailure& failure = report.failure;
    say(ok ? "ok\n" : one_line(failure.stage) + "\n" + one_line(failure.code) + "\n" + one_line(failure.sentence) + "\n" + one_line(failure.hint) + "\n");
    return ok ? 0 : 1;
}
