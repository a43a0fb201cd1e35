// SPDX-License-Identifier: Apache-2.0
// Rows of memory that will be wanted soon, asked for a few lines at a time while products run. A burst of as many
// prefetches waits for the fill buffers, and the products behind it; some before each register tile disappear.
#pragma once

#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {

class Ahead {
public:
    static constexpr int64_t line = 64;

    // `count` rows of `bytes` bytes each, at most twice; to_write: they will be written, not read.
    void add(const char* const* rows, int64_t count, int64_t bytes, bool to_write) {
        parts_[parts_count_++] = {rows, count, bytes, to_write};
        lines_ += count * ((bytes + line - 1) / line);
    }
    // How many steps are to come.
    void share(int64_t steps) { each_ = steps > 0 ? (lines_ + steps - 1) / steps : lines_; }

    // Before a register tile; inlined there, since most of the time nothing is left to do.
    ATTEND_ALWAYS_INLINE void step() {
        if (lines_ > 0) fetch();
    }

private:
    struct Part {
        const char* const* rows;
        int64_t count, bytes;
        bool to_write;
    };

    __attribute__((noinline)) void fetch() {
        for (int64_t left = each_ < lines_ ? each_ : lines_; left > 0; --left, --lines_) {
            const Part& part = parts_[part_];
            const char* at = part.rows[row_] + byte_;
            if (part.to_write)
                __builtin_prefetch(at, 1);
            else
                __builtin_prefetch(at);
            byte_ += line;
            if (byte_ < part.bytes) continue;
            byte_ = 0;
            if (++row_ < part.count) continue;
            row_ = 0;
            ++part_;
        }
    }

    Part parts_[2];
    int64_t parts_count_{0}, lines_{0}, each_{0}, part_{0}, row_{0}, byte_{0};
};

}  // namespace attend::ATTEND_ISA
