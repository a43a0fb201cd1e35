// SPDX-License-Identifier: Apache-2.0
// Key patterns: hooks of the tile engine, the answer of attend.pattern/1, pairs.
#include "attend/toolkit/tile/keys/pattern.hpp"

#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {
namespace {

static_assert(max_lanes <= most_pattern_lanes);

constexpr int64_t default_tile_rows = 48;

int64_t lesser_of(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t greater_of(int64_t a, int64_t b) { return a > b ? a : b; }

int64_t common_divisor(int64_t a, int64_t b) {
    while (b != 0) {
        const int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// Rows cut by diagonal and window: emit(begin, end, full) of the pattern's union in that band.
template <class Emit>
void unite_visible(const attend_pattern& pattern, const attend_pattern_rows& rows, int64_t first_row, int64_t num_rows,
                   Emit emit) {
    const int32_t head = static_cast<int32_t>(rows.head);
    const int64_t first = pattern_near(first_row + rows.offset), last = pattern_near(first + num_rows - 1);
    const PatternTile tile{first, last, 0, &head, 1};
    int64_t right = rows.window_right < 0 ? pattern_far : pattern_near(rows.window_right);
    if ((pattern.flags & ATTEND_PATTERN_CAUSAL) != 0) right = 0;
    const int64_t left = rows.window_left < 0 ? pattern_far : pattern_near(rows.window_left);
    // Every row sees [whole_begin, whole_end) of the band, some row [begin, end).
    const int64_t begin = greater_of(first - left, 0), whole_begin = greater_of(last - left, 0);
    const int64_t end = lesser_of(last + right + 1, pattern.num_keys);
    const int64_t whole_end = lesser_of(first + right + 1, pattern.num_keys);
    PatternPiece open{0, 0, false};
    const auto part = [&](int64_t from, int64_t to, bool full) {
        if (from >= to) return;
        if (from == open.end && full == open.full && open.begin < open.end) {
            open.end = to;
            return;
        }
        if (open.begin < open.end) emit(open.begin, open.end, open.full);
        open = {from, to, full};
    };
    unite_terms(pattern, tile, begin, end, [&](int64_t from, int64_t to, bool full) {
        if (!full || whole_begin >= whole_end) return part(from, to, false);
        part(from, lesser_of(to, whole_begin), false);
        part(greater_of(from, whole_begin), lesser_of(to, whole_end), true);
        part(greater_of(from, greater_of(whole_end, whole_begin)), to, false);
    });
    if (open.begin < open.end) emit(open.begin, open.end, open.full);
}

// Ranges for the visitor: single keys at equal distances become one range with a step.
struct Steps {
    attend_pattern_visit_fn visit;
    void* visitor;
    int64_t first_row, num_rows;
    int64_t begin, last, step, count;
    uint32_t flags;

    void flush() {
        if (count == 0) return;
        const attend_pattern_keys keys{begin, last + 1, step, flags, 0};
        visit(visitor, first_row, num_rows, &keys);
        count = 0;
    }
    void add(int64_t from, int64_t to, uint32_t own) {
        if (to - from > 1) {
            flush();
            const attend_pattern_keys keys{from, to, 1, own, 0};
            visit(visitor, first_row, num_rows, &keys);
            return;
        }
        if (count > 0 && (own != flags || (count > 1 && from != last + step))) flush();
        if (count == 0) {
            begin = from;
            step = 1;
        } else if (count == 1) {
            step = from - begin;
        }
        last = from;
        flags = own;
        ++count;
    }
};

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" void ATTEND_KERNEL(attend_pattern_keys)(const void* user, const attend_query_tile* tile,
                                                   attend_key_visit_fn visit, void* visitor) {
    const attend_pattern& pattern = *static_cast<const attend_pattern*>(user);
    const LanesOfTile lanes(pattern, *tile);
    const KeyRows keys(pattern);
    int64_t limit = lesser_of(pattern.num_keys, keys.position(tile->kv_len - 1) + 1);
    if ((pattern.flags & ATTEND_PATTERN_CAUSAL) != 0) limit = lesser_of(limit, tile->last_position + 1);
    // Steps of the key rows may leave nothing of a range, and neighbours may meet.
    int64_t open_begin = 0, open_end = 0;
    bool open_full = false;
    const auto hand_out = [&] {
        if (open_begin < open_end) visit(visitor, open_begin, open_end, open_full ? 0 : ATTEND_KEYS_PARTIAL);
    };
    unite_terms(pattern, lanes.tile, keys.first, limit, [&](int64_t begin, int64_t end, bool full) {
        const int64_t low = greater_of(keys.row(begin), 0), high = keys.row(end);
        if (low >= high) return;
        if (low != open_end || full != open_full || open_begin == open_end) {
            hand_out();
            open_begin = low;
            open_full = full;
        }
        open_end = high;
    });
    hand_out();
}

extern "C" void ATTEND_KERNEL(attend_pattern_keep)(const void* user, const attend_score_tile* tile) {
    PatternKeep keep(*static_cast<const attend_pattern*>(user), *tile->queries);
    keep.apply(tile->scores, tile->first_key, tile->num_keys);
}

extern "C" int64_t ATTEND_KERNEL(attend_pattern_query_tile)(int64_t width, int64_t heads_per_key_head) {
    if (width < 1 || heads_per_key_head < 1) return 0;
    const int64_t rows = pattern_times(width, heads_per_key_head);
    int64_t best = 0;
    for (int64_t lanes = 1; lanes <= max_lanes; ++lanes)
        if (common_divisor(rows, lanes) == lanes) best = lanes;
    return best * 2 < batch_lanes ? 0 : best;
}

extern "C" void ATTEND_KERNEL(attend_pattern_visit)(const attend_pattern* pattern, const attend_pattern_rows* rows,
                                                    attend_pattern_visit_fn visit, void* visitor) {
    const int64_t at_once = rows->rows_at_once > 0 ? rows->rows_at_once
                            : rows->tile_rows > 0  ? rows->tile_rows
                                                   : default_tile_rows;
    const int64_t end = rows->first_row + rows->num_rows;
    for (int64_t row = rows->first_row; row < end; row += lesser_of(at_once, end - row)) {
        Steps steps{visit, visitor, row, lesser_of(at_once, end - row), 0, 0, 1, 0, 0};
        unite_visible(*pattern, *rows, row, steps.num_rows, [&](int64_t begin, int64_t stop, bool full) {
            steps.add(begin, stop, full ? 0 : ATTEND_PATTERN_PARTIAL);
        });
        steps.flush();
    }
}

extern "C" double ATTEND_KERNEL(attend_pattern_pairs)(const attend_pattern* pattern, const attend_pattern_rows* rows) {
    constexpr int64_t together = 64;  // rows, which share their keys where the pattern is one of blocks
    const int64_t end = rows->first_row + rows->num_rows;
    double pairs = 0.0;
    for (int64_t row = rows->first_row; row < end;) {
        const int64_t position = row + rows->offset;
        const int64_t count =
            lesser_of(together - (position - pattern_floor(position, together) * together), end - row);
        int64_t keys = 0;
        bool whole = true;
        unite_visible(*pattern, *rows, row, count, [&](int64_t begin, int64_t stop, bool full) {
            keys += stop - begin;
            whole = whole && full;
        });
        if (whole) {
            pairs += static_cast<double>(keys) * static_cast<double>(count);
        } else {
            for (int64_t one = row; one < row + count; ++one)
                unite_visible(*pattern, *rows, one, 1,
                              [&](int64_t begin, int64_t stop, bool) { pairs += static_cast<double>(stop - begin); });
        }
        row += count;
    }
    return pairs;
}
