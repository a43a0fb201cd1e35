// SPDX-License-Identifier: Apache-2.0
// Common part of the key iterators whose rows see one band of keys and, with it, keys that every row sees: leading
// keys and listed positions. The iterators differ in how the band follows from a row's position.
//
//   visible(p, j) = band_begin(p) <= j < band_end(p)  or  j < leading  or  j listed
//   rows that stand on such a position themselves may see every key (global rows)
//
// Both ends of the band must not decrease with p. Plain C++ without vector types: compilers vectorise the loops.
#pragma once

#include <cstdint>

#include "attend/toolkit.h"

namespace attend::ATTEND_ISA {

// Keys that every row sees.
struct GlobalKeys {
    const int64_t* num_leading;  // keys j < num_leading of the item; NULL = none
    int64_t leading_stride;      // 0: one number for all items, 1: one per item
    const int32_t* listed;       // further positions, ascending, none below 0
    int64_t num_listed;
    int64_t rows_see_all;  // not 0: a row whose position is one of these keys sees every key

    int64_t leading(int64_t batch) const { return num_leading == nullptr ? 0 : num_leading[batch * leading_stride]; }
    // Number of listed positions below j.
    int64_t listed_below(int64_t j) const {
        int64_t low = 0, high = num_listed;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (listed[middle] < j)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }
    bool holds(int64_t batch, int64_t j) const {
        if (j < 0) return false;
        if (j < leading(batch)) return true;
        const int64_t at = listed_below(j);
        return at < num_listed && listed[at] == j;
    }
};

// Hands out ranges in ascending order: what lies before the last end is dropped, neighbours of one kind are joined.
class RangeWriter {
public:
    RangeWriter(int64_t end, attend_key_visit_fn visit, void* visitor) : last_(end), visit_(visit), visitor_(visitor) {}
    ~RangeWriter() { flush(); }
    RangeWriter(const RangeWriter&) = delete;
    RangeWriter& operator=(const RangeWriter&) = delete;

    void add(int64_t begin, int64_t end, uint32_t flags) {
        begin = begin < end_ ? end_ : begin;
        end = end > last_ ? last_ : end;
        if (begin >= end) return;
        if (begin != end_ || flags != flags_ || begin_ == end_) {
            flush();
            begin_ = begin;
            flags_ = flags;
        }
        end_ = end;
    }

private:
    void flush() {
        if (begin_ < end_) visit_(visitor_, begin_, end_, flags_);
        begin_ = end_;
    }

    int64_t last_;
    attend_key_visit_fn visit_;
    void* visitor_;
    int64_t begin_{0}, end_{0};
    uint32_t flags_{0};
};

// Keys [begin, end) of a band; either may lie outside the axis.
struct Band {
    int64_t begin, end;
};

// One band for the smallest and one for the largest position of the tile.
inline void visit_band_union(const GlobalKeys& globals, const attend_query_tile& tile, Band first, Band last,
                             attend_key_visit_fn visit, void* visitor) {
    RangeWriter out(tile.kv_len, visit, visitor);
    if (globals.rows_see_all != 0) {
        int64_t seeing = 0;
        for (int64_t lane = 0; lane < tile.num_lanes; ++lane)
            seeing += globals.holds(tile.batch, tile.lane_position[lane]) ? 1 : 0;
        if (seeing > 0) {
            out.add(0, tile.kv_len, seeing == tile.num_lanes ? 0 : ATTEND_KEYS_PARTIAL);
            return;
        }
    }
    out.add(0, globals.leading(tile.batch), 0);
    int64_t at = 0;
    const auto listed_until = [&](int64_t end) {
        for (; at < globals.num_listed && globals.listed[at] < end; ++at)
            out.add(globals.listed[at], int64_t{globals.listed[at]} + 1, 0);
    };
    listed_until(first.begin);
    if (last.begin < first.end) {
        out.add(first.begin, last.begin, ATTEND_KEYS_PARTIAL);
        out.add(last.begin, first.end, 0);
        out.add(first.end, last.end, ATTEND_KEYS_PARTIAL);
    } else if (last.end > first.begin) {
        out.add(first.begin, last.end, ATTEND_KEYS_PARTIAL);
    }
    at = globals.listed_below(last.end > first.begin ? last.end : first.begin);
    listed_until(INT64_MAX);
}

// Minus infinity for what a lane does not see; bands has the lanes' bands.
constexpr int64_t most_lanes = 64;  // lanes of a tile on any instruction set
struct LaneBands {
    int32_t begin[most_lanes], end[most_lanes];

    void set(int64_t lane, Band band) {
        begin[lane] = narrow(band.begin);
        end[lane] = narrow(band.end);
    }
    static int32_t narrow(int64_t j) {
        return static_cast<int32_t>(j < INT32_MIN ? INT32_MIN : j > INT32_MAX ? INT32_MAX : j);
    }
};

inline void keep_band_union(const GlobalKeys& globals, const attend_score_tile& tile, LaneBands& bands) {
    const attend_query_tile& queries = *tile.queries;
    const int64_t lanes = queries.lane_stride;
    if (globals.rows_see_all != 0)
        for (int64_t lane = 0; lane < lanes; ++lane)
            if (globals.holds(queries.batch, queries.lane_position[lane])) bands.set(lane, {INT32_MIN, INT32_MAX});
    const int32_t* const begin = bands.begin;
    const int32_t* const end = bands.end;
    for (int64_t row = 0; row < tile.num_keys; ++row) {
        const int64_t j = tile.key_index != nullptr ? tile.key_index[row] : tile.first_key + row;
        if (globals.holds(queries.batch, j)) continue;
        const int32_t key = static_cast<int32_t>(j);
        float* const scores = tile.scores + row * lanes;
        for (int64_t lane = 0; lane < lanes; ++lane)
            scores[lane] = (key >= begin[lane]) & (key < end[lane]) ? scores[lane] : -__builtin_inff();
    }
}

}  // namespace attend::ATTEND_ISA
