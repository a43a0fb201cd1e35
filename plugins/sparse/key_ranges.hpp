// SPDX-License-Identifier: Apache-2.0
// The keys of one row as a few ranges in steps, ascending and disjoint: the answer of attend.pattern/1 and the pairs that
// cost() counts.
#pragma once

#include "attend/author/tile.hpp"

namespace attend::ATTEND_ISA {

class KeyRanges {
public:
    static constexpr int most = 8;
    struct Range {
        int64_t begin, end, step;
        int64_t count() const { return (end - begin + step - 1) / step; }
    };

    // Keys are cut to [low, high).
    KeyRanges(int64_t low, int64_t high) : low_(low), high_(high) {}

    void add(int64_t begin, int64_t end, int64_t step) {
        if (begin < low_) begin += (low_ - begin + step - 1) / step * step;
        if (end > high_) end = high_;
        if (begin >= end || count_ == most) return;
        // One key alone, or one that continues the range before.
        Range* last = count_ > 0 ? ranges_ + count_ - 1 : nullptr;
        if (step > end - begin) end = begin + 1;
        if (last != nullptr && last->end == begin && last->step == 1 && (step == 1 || end == begin + 1)) {
            last->end = end;
            return;
        }
        ranges_[count_++] = {begin, end, end == begin + 1 ? 1 : step};
    }
    int count() const { return count_; }
    const Range& operator[](int at) const { return ranges_[at]; }

    bool holds(int64_t j) const {
        for (int at = 0; at < count_; ++at)
            if (j >= ranges_[at].begin && j < ranges_[at].end && (j - ranges_[at].begin) % ranges_[at].step == 0)
                return true;
        return false;
    }
    void span(int64_t& begin, int64_t& end) const {
        if (count_ == 0) return;
        begin = ranges_[0].begin < begin ? ranges_[0].begin : begin;
        end = ranges_[count_ - 1].end > end ? ranges_[count_ - 1].end : end;
    }
    double pairs() const {
        double sum = 0.0;
        for (int at = 0; at < count_; ++at) sum += static_cast<double>(ranges_[at].count());
        return sum;
    }

private:
    int64_t low_, high_;
    int count_{0};
    Range ranges_[most]{};
};

// The axis as causal and the call's windows leave it to position p.
inline KeyRanges ranges_of(const attend_plan_desc& desc, int64_t p) {
    int64_t low = 0, high = desc.kv_len;
    if ((desc.flags & ATTEND_PLAN_CAUSAL) != 0 && p + 1 < high) high = p + 1;
    if (desc.window_left >= 0 && p - desc.window_left > low) low = p - desc.window_left;
    if (desc.window_right >= 0 && p + desc.window_right + 1 < high) high = p + desc.window_right + 1;
    return {low, high};
}

// of_row(head, p, ranges) adds what position p sees. One row at a time: exactly that; several rows: their span.
template <class OfRow>
attend_status answer_ranges(const attend_plan_desc& desc, const PatternArgs& asked, const OfRow& of_row) {
    const int64_t end = asked.first_row + asked.num_rows;
    // Rows of a class do not stand side by side; each computes what it sees.
    const int64_t step = asked.rows_at_once > 0 ? asked.rows_at_once : 1;
    for (int64_t row = asked.first_row; row < end; row += step) {
        const int64_t rows = row + step < end ? step : end - row;
        attend_pattern_keys span{desc.kv_len, 0, 1, ATTEND_PATTERN_PARTIAL, 0};
        for (int64_t i = row; i < row + rows; ++i) {
            KeyRanges ranges = ranges_of(desc, i + desc.causal_offset);
            of_row(asked.head, i + desc.causal_offset, ranges);
            ranges.span(span.begin, span.end);
            for (int at = 0; at < ranges.count() && rows == 1; ++at) {
                const attend_pattern_keys keys{ranges[at].begin, ranges[at].end, ranges[at].step, 0, 0};
                asked.visit(asked.visitor, i, 1, &keys);
            }
        }
        if (rows > 1 && span.begin < span.end) asked.visit(asked.visitor, row, rows, &span);
    }
    return ATTEND_OK;
}

// Pairs of one head.
template <class OfRow>
double ranges_pairs(const attend_plan_desc& desc, const OfRow& of_row) {
    double sum = 0.0;
    for (int64_t i = 0; i < desc.q_len; ++i) {
        KeyRanges ranges = ranges_of(desc, i + desc.causal_offset);
        of_row(i + desc.causal_offset, ranges);
        sum += ranges.pairs();
    }
    return sum;
}

}  // namespace attend::ATTEND_ISA
