// SPDX-License-Identifier: Apache-2.0
#include "interrupt.hpp"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "command.hpp"

namespace attend::cli {
namespace {

std::atomic<bool> protected_section{false};
std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "used in a signal handler");

extern "C" void on_interrupt(int) {
    if (!protected_section) ::_exit(exit_interrupted);
    interrupted = true;
}

}  // namespace

void install_interrupt_handler() {
    struct sigaction action {};
    action.sa_handler = on_interrupt;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(SIGINT, &action, nullptr);
}

UninterruptedSection::UninterruptedSection() { protected_section = true; }

UninterruptedSection::~UninterruptedSection() {
    protected_section = false;
    if (interrupted) ::_exit(exit_interrupted);
}

}  // namespace attend::cli
