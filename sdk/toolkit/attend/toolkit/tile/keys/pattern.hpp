// SPDX-License-Identifier: Apache-2.0
// Key patterns compiled for tiles: the union of the terms' pieces as ascending ranges, and the pairs of a partial range
// by the runs of each lane.
#pragma once

#include "attend/toolkit/tile/keys/pattern_terms.hpp"

namespace attend::ATTEND_ISA {

// Calls emit(begin, end, full) for the union of the terms below `limit`, in positions, ascending, neighbours of one kind
// as one range.
template <class Emit>
inline void unite_terms(const attend_pattern& pattern, const PatternTile& tile, int64_t from, int64_t limit,
                        Emit emit) {
    PatternCursor cursors[ATTEND_PATTERN_MOST_TERMS];
    int active = 0;
    for (uint32_t at = 0; at < pattern.num_terms; ++at) {
        cursors[active].start(pattern, pattern.terms[at], tile, from, limit);
        if (cursors[active].now.begin < limit) ++active;
    }
    PatternPiece open{0, 0, false};
    const auto hand_out = [&](int64_t begin, int64_t end, bool full) {
        if (begin == open.end && full == open.full && open.begin < open.end) {
            open.end = end;
            return;
        }
        if (open.begin < open.end) emit(open.begin, open.end, open.full);
        open = {begin, end, full};
    };
    for (int64_t x = from > 0 ? from : 0; x < limit;) {
        // What covers x: full pieces as far as they go, partial ones to where anything may change.
        int64_t full_end = x, change = limit, covered = 0;
        for (int at = 0; at < active; ++at) {
            PatternCursor& cursor = cursors[at];
            while (cursor.now.end <= x && cursor.now.begin < limit) cursor.advance();
            const PatternPiece& now = cursor.now;
            if (now.begin > x) {
                change = now.begin < change ? now.begin : change;
                continue;
            }
            if (now.begin >= limit) continue;
            covered = 1;
            if (now.full)
                full_end = now.end > full_end ? now.end : full_end;
            else
                change = now.end < change ? now.end : change;
        }
        if (full_end > x) change = full_end;
        if (covered != 0) hand_out(x, change, full_end > x);
        x = change;
    }
    if (open.begin < open.end) emit(open.begin, open.end, open.full);
}

// Positions and heads of a tile of lanes; heads only where a term asks for them.
constexpr int64_t most_pattern_lanes = 64;
struct LanesOfTile {
    int32_t heads[most_pattern_lanes];
    PatternTile tile;

    LanesOfTile(const attend_pattern& pattern, const attend_query_tile& lanes) {
        tile = {lanes.first_position, lanes.last_position, lanes.batch, heads, 1};
        heads[0] = lanes.lane_head[0];
        bool by_head = false;
        for (uint32_t at = 0; at < pattern.num_terms; ++at) by_head = by_head || depends_on_head(pattern.terms[at]);
        if (!by_head) return;
        // Lanes go through the heads of a key head in turn.
        for (int64_t lane = 1; lane < lanes.num_lanes; ++lane) {
            int64_t known = 0;
            while (known < tile.num_heads && heads[known] != lanes.lane_head[lane]) ++known;
            if (known == tile.num_heads) heads[tile.num_heads++] = lanes.lane_head[lane];
        }
    }
};

// Rows of keys that positions [begin, end) are.
struct KeyRows {
    int64_t first, step;
    explicit KeyRows(const attend_pattern& pattern)
        : first(pattern.key_first), step(pattern.key_step > 0 ? pattern.key_step : 1) {}
    int64_t row(int64_t position) const { return step == 1 ? position - first : pattern_ceil(position - first, step); }
    int64_t position(int64_t row) const { return first + row * step; }
};

// Pairs of a score tile.
class PatternKeep {
public:
    PatternKeep(const attend_pattern& pattern, const attend_query_tile& lanes)
        : pattern_(pattern), lanes_(lanes), keys_(pattern) {}

    void apply(float* scores, int64_t first_row, int64_t num_rows) {
        if (set_runs())
            keep_runs(scores, first_row, num_rows);
        else
            for (int64_t done = 0; done < num_rows; done += most_rows_at_once) {
                const int64_t rest = num_rows - done;
                keep_by_toggles(scores + done * lanes_.lane_stride, first_row + done,
                                rest < most_rows_at_once ? rest : most_rows_at_once);
            }
    }

private:
    static constexpr int64_t most_runs = 4, most_rows_at_once = 128;

    bool holds(const attend_pattern_term& term, int64_t lane) const {
        if (term.heads != nullptr && term.heads[lanes_.lane_head[lane]] == 0) return false;
        if (term.rows == ATTEND_ROWS_ALL && term.kind != ATTEND_PATTERN_RING) return true;
        const int64_t p = lanes_.lane_position[lane];
        const PatternTile one{p, p, lanes_.batch, nullptr, 0};
        attend_pattern_term rows = term;
        rows.heads = nullptr;
        return rows_of_term(rows, one).any;
    }
    static int32_t narrow(int64_t j) {
        return static_cast<int32_t>(j < INT32_MIN ? INT32_MIN : j > INT32_MAX ? INT32_MAX : j);
    }

    // One run of keys per lane and term, where all terms are of that kind and few.
    bool set_runs() {
        num_runs_ = pattern_.num_terms;
        if (num_runs_ > most_runs) return false;
        for (uint32_t at = 0; at < pattern_.num_terms; ++at)
            if (pattern_.terms[at].kind != ATTEND_PATTERN_BAND && pattern_.terms[at].kind != ATTEND_PATTERN_BLOCKS &&
                pattern_.terms[at].kind != ATTEND_PATTERN_RANGE)
                return false;
        for (uint32_t at = 0; at < pattern_.num_terms; ++at) {
            const attend_pattern_term& term = pattern_.terms[at];
            int64_t known = INT64_MIN, known_end = INT64_MIN;  // positions with the run at hand
            PatternPiece run{0, 0, true};
            const bool always = term.rows == ATTEND_ROWS_ALL && term.heads == nullptr;
            for (int64_t lane = 0; lane < lanes_.lane_stride; ++lane) {
                const int64_t p = lanes_.lane_position[lane];
                if (p < known || p >= known_end) {
                    run = interval_of_term(pattern_, term, p);
                    known = p;
                    known_end = p + 1;
                    if (term.kind == ATTEND_PATTERN_BLOCKS)
                        known_end = pattern_times(pattern_floor(p, term.width) + 1, term.width);
                }
                const bool held = always || holds(term, lane);
                begin_[at][lane] = narrow(held ? run.begin : 0);
                end_[at][lane] = narrow(held ? run.end : 0);
            }
        }
        return true;
    }

    void keep_runs(float* scores, int64_t first_row, int64_t num_rows) const {
        const int64_t lanes = lanes_.lane_stride;
        const float hidden = -__builtin_inff();
        int32_t all_begin = INT32_MIN, all_end = INT32_MAX;  // keys that every lane sees by the first term
        for (int64_t lane = 0; lane < lanes && num_runs_ > 0; ++lane) {
            all_begin = begin_[0][lane] > all_begin ? begin_[0][lane] : all_begin;
            all_end = end_[0][lane] < all_end ? end_[0][lane] : all_end;
        }
        for (int64_t row = 0; row < num_rows; ++row, scores += lanes) {
            const int32_t j = narrow(keys_.position(first_row + row));
            if (num_runs_ > 0 && j >= all_begin && j < all_end) continue;
            if (num_runs_ == 1) {
                for (int64_t lane = 0; lane < lanes; ++lane)
                    scores[lane] = (j >= begin_[0][lane]) & (j < end_[0][lane]) ? scores[lane] : hidden;
                continue;
            }
            int32_t seen[most_pattern_lanes];
            for (int64_t lane = 0; lane < lanes; ++lane) seen[lane] = 0;
            for (int64_t run = 0; run < num_runs_; ++run)
                for (int64_t lane = 0; lane < lanes; ++lane)
                    seen[lane] |= (j >= begin_[run][lane]) & (j < end_[run][lane]);
            for (int64_t lane = 0; lane < lanes; ++lane) scores[lane] = seen[lane] != 0 ? scores[lane] : hidden;
        }
    }

    // What tells two lanes with the same runs of a term.
    int64_t class_of(const attend_pattern_term& term, int64_t lane) const {
        if (term.kind == ATTEND_PATTERN_LISTED || term.kind == ATTEND_PATTERN_COLUMNS ||
            term.kind == ATTEND_PATTERN_RANGE)
            return 0;
        const int64_t p = lanes_.lane_position[lane];
        if (term.kind == ATTEND_PATTERN_BLOCK_MAP) return PatternBlocks{&term, pattern_.num_keys}.of(p);
        return term.kind == ATTEND_PATTERN_BLOCKS ? pattern_floor(p, term.width) : p;
    }

    // Whether any lane sees any of the keys by a term. Block maps are asked lane by lane anyway.
    bool reaches(const attend_pattern_term& term, const PatternTile& tile, int64_t from, int64_t limit) const {
        if (term.kind == ATTEND_PATTERN_BLOCK_MAP) return true;
        PatternCursor cursor;
        cursor.start(pattern_, term, tile, from, limit);
        while (cursor.now.end <= from && cursor.now.begin < limit) cursor.advance();
        return cursor.now.begin < limit;
    }

    // Any terms: where the runs of each lane begin and end, then counted along the rows.
    void keep_by_toggles(float* scores, int64_t first_row, int64_t num_rows) const {
        const int64_t lanes = lanes_.lane_stride;
        int16_t toggles[(most_rows_at_once + 1) * most_pattern_lanes];
        for (int64_t at = 0; at < (num_rows + 1) * lanes; ++at) toggles[at] = 0;
        const int64_t from = keys_.position(first_row), limit = keys_.position(first_row + num_rows - 1) + 1;
        const LanesOfTile whole(pattern_, lanes_);
        for (uint32_t index = 0; index < pattern_.num_terms; ++index) {
            if (!reaches(pattern_.terms[index], whole.tile, from, limit)) continue;
            attend_pattern_term term = pattern_.terms[index];
            const bool by_head = depends_on_head(term), always = term.rows == ATTEND_ROWS_ALL && term.heads == nullptr;
            term.rows = ATTEND_ROWS_ALL;
            term.heads = nullptr;
            const PatternBlocks blocks{&term, pattern_.num_keys};
            const bool mapped = term.kind == ATTEND_PATTERN_BLOCK_MAP;
            const int64_t first_block = mapped ? blocks.of(from) : 0, last_block = mapped ? blocks.of(limit - 1) : 0;
            int32_t begins[most_rows_at_once], ends[most_rows_at_once];
            int64_t runs = -1, known = 0;
            int32_t known_head = 0;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                if (!(always && term.kind != ATTEND_PATTERN_RING) && !holds(pattern_.terms[index], lane)) continue;
                const int64_t own = class_of(term, lane);
                const int32_t head = lanes_.lane_head[lane];
                if (runs < 0 || own != known || (by_head && head != known_head)) {
                    runs = 0;
                    known = own;
                    known_head = head;
                    const auto add = [&](int64_t begin, int64_t end) {
                        const int64_t low = keys_.row(begin < from ? from : begin) - first_row;
                        const int64_t high = keys_.row(end > limit ? limit : end) - first_row;
                        if (low >= high) return;
                        begins[runs] = static_cast<int32_t>(low);
                        ends[runs++] = static_cast<int32_t>(high);
                    };
                    const int64_t p = lanes_.lane_position[lane];
                    const PatternTile one{p, p, lanes_.batch, &head, 1};
                    if (term.kind == ATTEND_PATTERN_BLOCK_MAP) {
                        const int64_t list_head = term.head_stride == 0 ? 0 : head;
                        for (int64_t block = blocks.next(own, list_head, first_block);
                             block >= 0 && block <= last_block; block = blocks.next(own, list_head, block + 1))
                            add(blocks.begin(block), blocks.begin(block + 1));
                    } else {
                        PatternCursor cursor;
                        for (cursor.start(pattern_, term, one, from, limit); cursor.now.begin < limit; cursor.advance())
                            if (cursor.now.end > from) add(cursor.now.begin, cursor.now.end);
                    }
                }
                for (int64_t run = 0; run < runs; ++run) {
                    ++toggles[begins[run] * lanes + lane];
                    --toggles[ends[run] * lanes + lane];
                }
            }
        }
        int32_t count[most_pattern_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) count[lane] = 0;
        const float hidden = -__builtin_inff();
        for (int64_t row = 0; row < num_rows; ++row, scores += lanes)
            for (int64_t lane = 0; lane < lanes; ++lane) {
                count[lane] += toggles[row * lanes + lane];
                scores[lane] = count[lane] != 0 ? scores[lane] : hidden;
            }
    }

    const attend_pattern& pattern_;
    const attend_query_tile& lanes_;
    KeyRows keys_;
    int64_t num_runs_{0};
    int32_t begin_[most_runs][most_pattern_lanes], end_[most_runs][most_pattern_lanes];
};

}  // namespace attend::ATTEND_ISA
