// SPDX-License-Identifier: Apache-2.0
// Outputs whose extent depends on the data (attend_dynamic_rows): the host allocates the bound that upto(...) gives, and
// the mechanism says how much of it was filled.
#pragma once

#include "attend/author/mechanism.hpp"

namespace attend::ATTEND_ISA {

inline void set_rows(const ForwardArgs& args, const char* name, int64_t rows) {
    for (const attend_ext* block = args.exec->next; block; block = block->next) {
        if (!attend_text_equal(block->id, ATTEND_EXT_DYNAMIC_ROWS)) continue;
        const auto& outputs = reinterpret_cast<const attend_dynamic_rows*>(block)->outputs;
        for (uint32_t at = 0; at < outputs.count; ++at) {
            const auto* entry = reinterpret_cast<const attend_dynamic_row*>(static_cast<const char*>(outputs.items) +
                                                                            uint64_t{at} * outputs.stride);
            if (attend_text_equal(entry->name, name)) *entry->rows = rows;
        }
    }
}

}  // namespace attend::ATTEND_ISA
