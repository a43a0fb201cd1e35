// SPDX-License-Identifier: Apache-2.0
// An interrupt ends the program with status 130, but never in the middle of writing a file.
#pragma once

namespace attend::cli {

void install_interrupt_handler();

// An interrupt that arrives during its life takes effect at its end.
class UninterruptedSection {
public:
    UninterruptedSection();
    ~UninterruptedSection();
    UninterruptedSection(const UninterruptedSection&) = delete;
    UninterruptedSection& operator=(const UninterruptedSection&) = delete;
};

}  // namespace attend::cli
