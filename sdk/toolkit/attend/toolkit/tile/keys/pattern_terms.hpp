// SPDX-License-Identifier: Apache-2.0
// The terms of a key pattern (pattern.h) for a tile of rows: which of the rows a term holds for, and the pieces of the
// key axis that they see by it, ascending, each whole for all rows of the tile or not.
#pragma once

#include <cstdint>

#include "attend/toolkit/pattern.h"

namespace attend::ATTEND_ISA {

// Positions are below this by far, and sums of a few of these stay in range.
constexpr int64_t pattern_far = int64_t{1} << 40;

inline int64_t pattern_near(int64_t x) { return x < -pattern_far ? -pattern_far : x > pattern_far ? pattern_far : x; }
inline int64_t pattern_floor(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline int64_t pattern_ceil(int64_t a, int64_t b) { return -pattern_floor(-a, b); }
// A product outside the key axis need not be exact.
inline int64_t pattern_times(int64_t a, int64_t b) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) return (a < 0) != (b < 0) ? -pattern_far : pattern_far;
    return pattern_near(product);
}

// Rows of a tile: positions first .. last, and the distinct heads.
struct PatternTile {
    int64_t first, last, batch;
    const int32_t* heads;
    int64_t num_heads;
};

struct PatternPiece {
    int64_t begin, end;
    bool full;
};

struct PatternItems {
    const int32_t* items;
    int64_t count;

    static PatternItems of(const attend_pattern_list& list, int64_t batch) {
        if (list.offsets == nullptr) return {list.items, list.count};
        return {list.items + list.offsets[batch], list.offsets[batch + 1] - list.offsets[batch]};
    }
    // Number of items below j.
    int64_t below(int64_t j) const {
        int64_t low = 0, high = count;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (items[middle] < j)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }
};

inline bool depends_on_head(const attend_pattern_term& term) {
    return term.heads != nullptr || term.by_head != nullptr ||
           (term.kind == ATTEND_PATTERN_BLOCK_MAP && term.head_stride != 0);
}

// The rows of a tile that a term holds for: between first and last, if any; all of the tile or not.
struct PatternSubset {
    int64_t first, last;
    bool any, all;
};

inline PatternSubset rows_of_term(const attend_pattern_term& term, const PatternTile& tile) {
    PatternSubset to{tile.first, tile.last, true, true};
    const int64_t p0 = tile.first, p1 = tile.last, begin = term.row_begin, end = term.row_end;
    if (term.rows == ATTEND_ROWS_RANGE) {
        to.first = p0 < begin ? begin : p0;
        to.last = p1 >= end ? end - 1 : p1;
        to.all = to.first == p0 && to.last == p1;
        to.any = to.first <= to.last;
    } else if (term.rows == ATTEND_ROWS_OUTSIDE && begin < end) {
        to.first = p0 < begin ? p0 : p0 < end ? end : p0;
        to.last = p1 >= end ? p1 : p1 >= begin ? begin - 1 : p1;
        to.all = p1 < begin || p0 >= end;
        to.any = to.first <= to.last;
    } else if (term.rows == ATTEND_ROWS_LISTED || term.rows == ATTEND_ROWS_NOT_LISTED) {
        const PatternItems list = PatternItems::of(term.row_list, tile.batch);
        const int64_t low = list.below(p0), high = list.below(p1 + 1), span = p1 - p0 + 1;
        if (term.rows == ATTEND_ROWS_LISTED) {
            to.any = high > low;
            to.all = high - low == span;
            if (to.any) {
                to.first = list.items[low];
                to.last = list.items[high - 1];
            }
        } else {
            to.any = high - low < span;
            to.all = high == low;
        }
    }
    if (term.heads != nullptr) {
        int64_t holding = 0;
        for (int64_t at = 0; at < tile.num_heads; ++at) holding += term.heads[tile.heads[at]] != 0 ? 1 : 0;
        to.any = to.any && holding > 0;
        to.all = to.all && holding == tile.num_heads;
    }
    if (term.kind == ATTEND_PATTERN_RING) {
        if (to.first < term.begin) to.first = term.begin, to.all = false;
        if (to.last >= term.end) to.last = term.end - 1, to.all = false;
        to.any = to.any && to.first <= to.last;
    }
    return to;
}

// Keys of one row by a term of the kinds band, blocks and range; may be empty.
inline PatternPiece interval_of_term(const attend_pattern& pattern, const attend_pattern_term& term, int64_t p) {
    if (term.kind == ATTEND_PATTERN_RANGE) return {term.begin, term.end, true};
    const int64_t left = pattern_near(term.left);
    const int64_t right =
        (pattern.flags & ATTEND_PATTERN_CAUSAL) != 0 && term.right >= 0 ? pattern_far : pattern_near(term.right);
    if (term.kind == ATTEND_PATTERN_BAND) return {p - left, p + right + 1, true};
    const int64_t own = pattern_floor(p, term.width);
    return {pattern_times(own - left, term.width), pattern_times(own + right + 1, term.width), true};
}

// Blocks of a block map.
struct PatternBlocks {
    const attend_pattern_term* term;
    int64_t num_keys;

    int64_t of(int64_t p) const {
        if (term->width > 0) return pattern_floor(p, term->width);
        return num_keys <= 0 ? 0 : pattern_floor((p + 1) * term->even_blocks - 1, num_keys);
    }
    int64_t begin(int64_t block) const {
        return term->width > 0 ? pattern_times(block, term->width) : block * num_keys / term->even_blocks;
    }
    // Entry of the list of a row block that is `block` or the next above it; -1: none.
    int64_t next(int64_t row_block, int64_t head, int64_t block) const {
        if (row_block < 0 || row_block >= term->num_row_blocks) return -1;
        if (term->width <= 0 && row_block >= term->even_blocks) return -1;
        const int32_t* list = term->blocks + head * term->head_stride + row_block * term->row_stride;
        // Short lists and lists that end early: forward; the end of long ones is found first.
        int64_t low = 0, high = term->most_blocks;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (list[middle] >= 0 && list[middle] < block)
                low = middle + 1;
            else
                high = middle;
        }
        return low < term->most_blocks && list[low] >= 0 ? list[low] : -1;
    }
};

// The pieces of one term for a tile, one after the other.
class PatternCursor {
public:
    PatternPiece now;  // begin at or behind `limit`: there is none left

    // Pieces that end at or before `from` may be left out.
    void start(const attend_pattern& pattern, const attend_pattern_term& term, const PatternTile& tile, int64_t from,
               int64_t limit) {
        term_ = &term;
        tile_ = &tile;
        limit_ = limit;
        at_ = count_ = 0;
        generates_ = false;
        now = {limit, limit, false};
        rows_ = rows_of_term(term, tile);
        if (!rows_.any) return;
        switch (term.kind) {
            case ATTEND_PATTERN_BAND:
            case ATTEND_PATTERN_BLOCKS:
            case ATTEND_PATTERN_RANGE:
                add_band(interval_of_term(pattern, term, rows_.first), interval_of_term(pattern, term, rows_.last));
                break;
            case ATTEND_PATTERN_RING: start_ring(); break;
            case ATTEND_PATTERN_DILATED: start_dilated(pattern, from); break;
            case ATTEND_PATTERN_COLUMNS: start_columns(from); break;
            case ATTEND_PATTERN_LISTED:
                items_ = PatternItems::of(term.list, tile.batch);
                next_ = items_.below(from);
                generates_ = true;
                break;
            default: start_map(pattern, from);
        }
        advance();
    }

    void advance() {
        do {
            if (at_ < count_)
                now = pieces_[at_++];
            else if (!generates_ || !generate())
                now = {limit_, limit_, false};
        } while (now.begin >= now.end && now.begin < limit_);
        if (now.begin < 0) now.begin = 0;
        if (now.end > limit_) now.end = limit_;
        if (!rows_.all) now.full = false;
    }

private:
    void add(int64_t begin, int64_t end, bool full) {
        if (begin < end && end > 0 && begin < limit_) pieces_[count_++] = {begin, end, full};
    }
    // Keys of the first and of the last row; those of the rows between lie between.
    void add_band(const PatternPiece& first, const PatternPiece& last) {
        if (first.begin >= first.end) return;
        if (last.begin < first.end) {
            add(first.begin, last.begin, false);
            add(last.begin, first.end, true);
            add(first.end, last.end, false);
        } else {
            add(first.begin, last.end, false);
        }
    }
    void start_ring() {
        const int64_t n = term_->end - term_->begin, radius = term_->left;
        if (radius < 0) return;
        if (radius >= n || 2 * radius + 1 >= n) return add(term_->begin, term_->end, true);
        const int64_t first = rows_.first - term_->begin, last = rows_.last - term_->begin;
        if (last - first + 2 * radius + 1 >= n) return add(term_->begin, term_->end, first == last);
        const int64_t edges[4] = {first - radius, last - radius, first + radius + 1, last + radius + 1};
        const bool meets = edges[1] < edges[2];
        // Turns of the ring: what lies behind its end comes first, what lies before its start last.
        for (int turn = -1; turn <= 1; ++turn) {
            const auto part = [&](int64_t begin, int64_t end, bool full) {
                begin += turn * n;
                end += turn * n;
                begin = begin < 0 ? 0 : begin;
                end = end > n ? n : end;
                if (begin < end) add(term_->begin + begin, term_->begin + end, full);
            };
            part(edges[0], meets ? edges[1] : edges[3], false);
            if (!meets) continue;
            part(edges[1], edges[2], true);
            part(edges[2], edges[3], false);
        }
    }
    // One number for all heads of the tile, or the smallest and largest.
    void numbers_of_heads(int64_t own, int64_t& low, int64_t& high) const {
        low = high = own;
        if (term_->by_head == nullptr) return;
        low = INT64_MAX;
        high = INT64_MIN;
        for (int64_t at = 0; at < tile_->num_heads; ++at) {
            const int64_t head = tile_->heads[at], number = term_->by_head[head];
            if (term_->heads != nullptr && term_->heads[head] == 0) continue;
            low = number < low ? number : low;
            high = number > high ? number : high;
        }
    }
    void start_dilated(const attend_pattern& pattern, int64_t from) {
        int64_t low, high;
        numbers_of_heads(term_->width, low, high);
        const int64_t left = pattern_near(term_->left);
        const int64_t right = (pattern.flags & ATTEND_PATTERN_CAUSAL) != 0 && term_->right >= 0
                                  ? pattern_far
                                  : pattern_near(term_->right);
        if (left + right < 0) return;
        const int64_t p0 = rows_.first, p1 = rows_.last;
        if (low == high && low == 1)
            return add_band({p0 - left, p0 + right + 1, true}, {p1 - left, p1 + right + 1, true});
        if (low != high || p1 - p0 + 1 >= low) {
            // Of several steps one side may reach farther by the smaller.
            const int64_t begin = pattern_times(left, left >= 0 ? high : low);
            const int64_t end = pattern_times(right, right >= 0 ? high : low);
            return add(p0 - begin, p1 + end + 1, false);
        }
        // Step t: keys [p0 + t step, p1 + t step].
        const int64_t first = pattern_ceil((from > 0 ? from : 0) - p1, low);
        next_ = first > -left ? first : -left;
        last_ = right;
        step_ = low;
        shape_ = {p0, p1 + 1, p0 == p1};
        generates_ = true;
    }
    void start_columns(int64_t from) {
        int64_t low, high;
        numbers_of_heads(term_->begin, low, high);
        const int64_t width = term_->end - term_->begin;
        shape_ = {low < 0 ? 0 : low, high + width < term_->width ? high + width : term_->width, low == high};
        if (shape_.begin >= shape_.end) return;
        if (shape_.end - shape_.begin >= term_->width) return add(0, limit_, shape_.full);
        step_ = term_->width;
        next_ = from > 0 ? from / step_ : 0;
        last_ = pattern_far;
        generates_ = true;
    }
    void start_map(const attend_pattern& pattern, int64_t from) {
        blocks_ = {term_, pattern.num_keys};
        first_block_ = blocks_.of(rows_.first);
        last_block_ = blocks_.of(rows_.last);
        next_ = from > 0 ? blocks_.of(from) : 0;
        generates_ = true;
    }

    bool generate() {
        if (term_->kind == ATTEND_PATTERN_LISTED) {
            if (next_ >= items_.count) return false;
            const int64_t begin = items_.items[next_++];
            int64_t end = begin + 1;
            for (; next_ < items_.count && items_.items[next_] == end; ++next_) ++end;
            now = {begin, end, true};
        } else if (term_->kind == ATTEND_PATTERN_BLOCK_MAP) {
            int64_t block = INT64_MAX, lists = 0, seeing = 0;
            const int64_t heads = term_->head_stride == 0 ? 1 : tile_->num_heads;
            for (int64_t row = first_block_; row <= last_block_; ++row)
                for (int64_t at = 0; at < heads; ++at, ++lists) {
                    const int64_t head = term_->head_stride == 0 ? 0 : tile_->heads[at];
                    const int64_t entry = blocks_.next(row, head, next_);
                    if (entry < 0) continue;
                    seeing = entry < block ? 1 : entry == block ? seeing + 1 : seeing;
                    block = entry < block ? entry : block;
                }
            if (seeing == 0) return false;
            next_ = block + 1;
            now = {blocks_.begin(block), blocks_.begin(block + 1), seeing == lists};
        } else {
            if (next_ > last_) return false;
            const int64_t shift = pattern_times(next_++, step_);
            now = {shape_.begin + shift, shape_.end + shift, shape_.full};
        }
        return now.begin < limit_;
    }

    const attend_pattern_term* term_;
    const PatternTile* tile_;
    PatternSubset rows_;
    int64_t limit_;
    bool generates_;
    int at_, count_;
    PatternPiece pieces_[9];  // band kinds: 3, ring: three turns of them
    // Generators: steps, list entries or blocks.
    int64_t next_, last_, step_, first_block_, last_block_;
    PatternPiece shape_;
    PatternItems items_;
    PatternBlocks blocks_;
};

}  // namespace attend::ATTEND_ISA
