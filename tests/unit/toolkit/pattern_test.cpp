// SPDX-License-Identifier: Apache-2.0
// Key patterns: random unions of terms against the rule in words, pair by pair, on every instruction set.
#include <algorithm>
#include <set>

#include "unit/toolkit/support.hpp"

#include "attend/toolkit/pattern.h"

#define ATTEND_TEST_DECLARE_PATTERN(entry)                                                                          \
    extern "C" void attend_pattern_keys_##entry(const void*, const attend_query_tile*, attend_key_visit_fn, void*); \
    extern "C" void attend_pattern_keep_##entry(const void*, const attend_score_tile*);                             \
    extern "C" int64_t attend_pattern_query_tile_##entry(int64_t, int64_t);                                         \
    extern "C" void attend_pattern_visit_##entry(const attend_pattern*, const attend_pattern_rows*,                 \
                                                 attend_pattern_visit_fn, void*);                                   \
    extern "C" double attend_pattern_pairs_##entry(const attend_pattern*, const attend_pattern_rows*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_PATTERN)

namespace attend::test {
namespace {

struct PatternEntry {
    const char* name;
    bool runs_here;
    void (*keys)(const void*, const attend_query_tile*, attend_key_visit_fn, void*);
    void (*keep)(const void*, const attend_score_tile*);
    int64_t (*query_tile)(int64_t, int64_t);
    void (*visit)(const attend_pattern*, const attend_pattern_rows*, attend_pattern_visit_fn, void*);
    double (*pairs)(const attend_pattern*, const attend_pattern_rows*);
};
#define ATTEND_TEST_PATTERN_ENTRY(entry)            \
    PatternEntry{#entry,                            \
                 cpu_runs_##entry(),                \
                 attend_pattern_keys_##entry,       \
                 attend_pattern_keep_##entry,       \
                 attend_pattern_query_tile_##entry, \
                 attend_pattern_visit_##entry,      \
                 attend_pattern_pairs_##entry},
const PatternEntry pattern_entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_PATTERN_ENTRY)};

int64_t floor_div(int64_t a, int64_t b) {
    return static_cast<int64_t>(std::floor(static_cast<double>(a) / static_cast<double>(b)));
}
int64_t modulo(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }

// A pattern with memory of its own, and the rule of each term in words.
struct Case {
    std::vector<attend_pattern_term> terms;
    attend_pattern pattern{};
    int64_t heads = 1, batch = 1;
    std::vector<std::vector<int32_t>> numbers;
    std::vector<std::vector<int64_t>> offsets;
    std::vector<std::vector<uint8_t>> flags;
    bool tight = true;  // nothing is visited in vain

    bool in_list(const attend_pattern_list& list, int64_t b, int64_t j) const {
        const int32_t* from = list.items + (list.offsets == nullptr ? 0 : list.offsets[b]);
        const int64_t count = list.offsets == nullptr ? list.count : list.offsets[b + 1] - list.offsets[b];
        return std::find(from, from + count, static_cast<int32_t>(j)) != from + count;
    }
    static bool between(int64_t x, int64_t low, int64_t high) { return low <= x && x <= high; }
    static int64_t plus(int64_t p, int64_t width) { return width == ATTEND_UNLIMITED ? width : p + width; }
    static int64_t minus(int64_t p, int64_t width) { return width == ATTEND_UNLIMITED ? INT64_MIN : p - width; }

    bool sees(const attend_pattern_term& term, int64_t b, int64_t h, int64_t p, int64_t j) const {
        if (term.heads != nullptr && term.heads[h] == 0) return false;
        if (term.rows == ATTEND_ROWS_RANGE && !(term.row_begin <= p && p < term.row_end)) return false;
        if (term.rows == ATTEND_ROWS_OUTSIDE && term.row_begin <= p && p < term.row_end) return false;
        if (term.rows == ATTEND_ROWS_LISTED && !in_list(term.row_list, b, p)) return false;
        if (term.rows == ATTEND_ROWS_NOT_LISTED && in_list(term.row_list, b, p)) return false;
        switch (term.kind) {
            case ATTEND_PATTERN_BAND: return between(j, minus(p, term.left), plus(p, term.right));
            case ATTEND_PATTERN_BLOCKS: {
                const int64_t c = floor_div(p, term.width);
                return between(floor_div(j, term.width), minus(c, term.left), plus(c, term.right));
            }
            case ATTEND_PATTERN_DILATED: {
                const int64_t step = term.by_head != nullptr ? term.by_head[h] : term.width;
                if (modulo(j - p, step) != 0) return false;
                return between(floor_div(j - p, step), minus(0, term.left), plus(0, term.right));
            }
            case ATTEND_PATTERN_RING: {
                const int64_t n = term.end - term.begin, u = p - term.begin, v = j - term.begin;
                if (!between(u, 0, n - 1) || !between(v, 0, n - 1)) return false;
                return std::min(modulo(u - v, n), modulo(v - u, n)) <= term.left;
            }
            case ATTEND_PATTERN_RANGE: return term.begin <= j && j < term.end;
            case ATTEND_PATTERN_COLUMNS: {
                const int64_t begin = term.by_head != nullptr ? term.by_head[h] : term.begin;
                const int64_t rest = modulo(j, term.width);
                return begin <= rest && rest < begin + term.end - term.begin;
            }
            case ATTEND_PATTERN_LISTED: return in_list(term.list, b, j);
            default: {
                const auto block = [&](int64_t x) {
                    if (term.width > 0) return floor_div(x, term.width);
                    int64_t t = 0;
                    while ((t + 1) * pattern.num_keys / term.even_blocks <= x && t < term.even_blocks) ++t;
                    return x < 0 || x >= pattern.num_keys ? int64_t{-1} : t;
                };
                const int64_t row = block(p);
                if (!between(row, 0, term.num_row_blocks - 1)) return false;
                const int32_t* list = term.blocks + h * term.head_stride + row * term.row_stride;
                for (int64_t at = 0; at < term.most_blocks && list[at] >= 0; ++at)
                    if (list[at] == block(j)) return true;
                return false;
            }
        }
    }
    bool sees(int64_t b, int64_t h, int64_t p, int64_t j) const {
        return std::any_of(terms.begin(), terms.end(),
                           [&](const attend_pattern_term& term) { return sees(term, b, h, p, j); });
    }

    attend_pattern_list random_list(Random& random) {
        std::vector<int32_t> items;
        std::vector<int64_t> starts{0};
        const bool by_item = random.chance(0.3);
        const double density = random.pick({0.02, 0.1, 0.7});
        for (int64_t b = 0; b < (by_item ? batch : 1); ++b) {
            for (int64_t j = 0; j < pattern.num_keys; ++j)
                if (random.chance(density)) items.push_back(static_cast<int32_t>(j));
            starts.push_back(static_cast<int64_t>(items.size()));
        }
        items.push_back(0);  // never empty
        numbers.push_back(items);
        offsets.push_back(starts);
        return {numbers.back().data(), by_item ? 0 : starts[1], by_item ? offsets.back().data() : nullptr};
    }
    int64_t reach(Random& random) {
        return random.chance(0.1) ? ATTEND_UNLIMITED : random.whole(random.chance(0.2) ? -20 : 0, 40);
    }

    explicit Case(Random& random) {
        numbers.reserve(64);
        offsets.reserve(64);
        flags.reserve(64);
        heads = random.whole(1, 6);
        batch = random.whole(1, 3);
        pattern.num_keys = random.whole(1, 150);
        pattern.flags = random.chance(0.4) ? ATTEND_PATTERN_CAUSAL : 0u;
        const int64_t n = pattern.num_keys, count = random.whole(0, random.chance(0.3) ? 8 : 3);
        for (int64_t at = 0; at < count; ++at) {
            attend_pattern_term term{};
            term.kind = static_cast<uint32_t>(random.whole(1, 8));
            term.width = random.whole(1, random.chance(0.5) ? 5 : 60);
            term.left = reach(random);
            term.right = reach(random);
            if (term.kind == ATTEND_PATTERN_RANGE) {
                term.begin = random.whole(-5, n);
                term.end = random.chance(0.3) ? ATTEND_UNLIMITED : random.whole(-5, n + 5);
            } else if (term.kind == ATTEND_PATTERN_RING) {
                term.begin = random.whole(0, n - 1);
                term.end = random.whole(term.begin + 1, n);
                term.left = term.right = random.whole(0, 12);
            } else if (term.kind == ATTEND_PATTERN_COLUMNS) {
                term.begin = random.whole(0, term.width - 1);
                term.end = random.whole(term.begin, term.width);
                if (random.chance(0.3)) {
                    std::vector<int32_t> own;
                    for (int64_t h = 0; h < heads; ++h)
                        own.push_back(static_cast<int32_t>(random.whole(0, term.width - (term.end - term.begin))));
                    numbers.push_back(own);
                    term.by_head = numbers.back().data();
                    tight = false;
                }
            } else if (term.kind == ATTEND_PATTERN_DILATED) {
                if (random.chance(0.3)) {
                    std::vector<int32_t> own;
                    for (int64_t h = 0; h < heads; ++h) own.push_back(static_cast<int32_t>(random.whole(1, 9)));
                    numbers.push_back(own);
                    term.by_head = numbers.back().data();
                }
                tight = false;
            } else if (term.kind == ATTEND_PATTERN_LISTED) {
                term.list = random_list(random);
            } else if (term.kind == ATTEND_PATTERN_BLOCK_MAP) {
                int64_t blocks = (n + term.width - 1) / term.width;
                if (random.chance(0.4)) {
                    term.width = 0;
                    term.even_blocks = blocks = random.whole(1, n);
                }
                term.num_row_blocks = random.whole(0, blocks + 1);
                term.most_blocks = random.whole(1, 5);
                term.row_stride = term.most_blocks;
                const bool by_head = random.chance(0.5);
                tight = tight && !by_head;
                term.head_stride = by_head ? term.num_row_blocks * term.most_blocks : 0;
                std::vector<int32_t> map;
                for (int64_t list = 0; list < term.num_row_blocks * (by_head ? heads : 1); ++list) {
                    std::set<int32_t> own;
                    for (int64_t entry = random.whole(0, term.most_blocks); entry > 0; --entry)
                        own.insert(static_cast<int32_t>(random.whole(0, blocks - 1)));
                    map.insert(map.end(), own.begin(), own.end());
                    map.resize(map.size() + static_cast<size_t>(term.most_blocks) - own.size(), -1);
                }
                map.push_back(0);
                numbers.push_back(map);
                term.blocks = numbers.back().data();
            }
            if (random.chance(0.4)) {
                term.rows = static_cast<uint32_t>(random.whole(1, 4));
                term.row_begin = random.whole(-10, n);
                term.row_end = random.chance(0.3) ? ATTEND_UNLIMITED : random.whole(-10, n + 10);
                if (term.rows >= ATTEND_ROWS_LISTED) term.row_list = random_list(random);
                tight = tight && term.rows == ATTEND_ROWS_RANGE;
            }
            if (random.chance(0.2)) {
                flags.emplace_back();
                for (int64_t h = 0; h < heads; ++h) flags.back().push_back(random.chance(0.5) ? 1 : 0);
                term.heads = flags.back().data();
                tight = false;
            }
            terms.push_back(term);
        }
        pattern.terms = terms.data();
        pattern.num_terms = static_cast<uint32_t>(terms.size());
    }
};

struct Range {
    int64_t begin, end;
    uint32_t flags;
};

// A tile of `lanes` lanes, `pack` heads to a row, positions from `first` on, `step` apart.
struct Tile {
    std::vector<int32_t> query, head, position;
    attend_query_tile tile{};
    Tile(int64_t lanes, int64_t stride, int64_t first_head, int64_t pack, int64_t member, int64_t first, int64_t step,
         int64_t kv_len, int64_t batch) {
        for (int64_t lane = 0; lane < stride; ++lane) {
            const int64_t at = std::min(lane, lanes - 1) + member;
            query.push_back(static_cast<int32_t>(at / pack));
            head.push_back(static_cast<int32_t>(first_head + at % pack));
            position.push_back(static_cast<int32_t>(first + at / pack * step));
        }
        tile.batch = batch;
        tile.num_lanes = lanes;
        tile.lane_stride = stride;
        tile.first_position = position.front();
        tile.last_position = position.back();
        tile.kv_len = kv_len;
        tile.lane_query = query.data();
        tile.lane_head = head.data();
        tile.lane_position = position.data();
    }
};

// Numbers instead of thousands of assertions.
struct Faults {
    int64_t order = 0, hidden_by_full = 0, missed = 0, in_vain = 0, keep = 0;
    bool none() const { return order + hidden_by_full + missed + in_vain + keep == 0; }
};

void check_hooks(const PatternEntry& entry, Random& random, const Case& c, Faults& faults) {
    attend_pattern pattern = c.pattern;
    const bool views = random.chance(0.2);  // every key_step-th key
    if (views) {
        pattern.key_step = random.whole(1, 7);
        pattern.key_first = random.whole(0, pattern.key_step - 1);
    }
    const int64_t step = std::max<int64_t>(pattern.key_step, 1);
    const int64_t rows = std::max<int64_t>(0, (pattern.num_keys - pattern.key_first + step - 1) / step);
    const int64_t kv_len = random.chance(0.3) ? random.whole(0, rows) : rows;
    const int64_t pack = random.whole(1, c.heads), first_head = random.whole(0, c.heads - pack);
    const int64_t lanes = random.whole(1, 48), q_step = random.chance(0.2) ? random.whole(2, 5) : 1;
    const int64_t b = random.whole(0, c.batch - 1);
    Tile t(lanes, (lanes + 15) / 16 * 16, first_head, pack, random.whole(0, pack - 1),
           random.whole(-30, pattern.num_keys), q_step, kv_len, b);
    std::vector<Range> ranges;
    entry.keys(
        &pattern, &t.tile,
        [](void* to, int64_t begin, int64_t end, uint32_t flags) {
            static_cast<std::vector<Range>*>(to)->push_back({begin, end, flags});
        },
        &ranges);
    std::vector<int> visited(static_cast<size_t>(rows), 0);
    for (size_t at = 0; at < ranges.size(); ++at) {
        const Range& range = ranges[at];
        if (range.begin >= range.end || range.begin < 0 || range.end > kv_len) {
            ++faults.order;
            return;
        }
        if (at > 0 && (range.begin < ranges[at - 1].end ||
                       (range.begin == ranges[at - 1].end && range.flags == ranges[at - 1].flags)))
            ++faults.order;
        for (int64_t row = range.begin; row < range.end; ++row)
            visited[static_cast<size_t>(row)] = (range.flags & ATTEND_KEYS_PARTIAL) != 0 ? 1 : 2;
    }
    const bool causal = (pattern.flags & ATTEND_PATTERN_CAUSAL) != 0;
    const bool tight = c.tight && q_step == 1;
    for (int64_t row = 0; row < kv_len; ++row) {
        const int64_t j = pattern.key_first + row * step;
        int64_t seeing = 0, cut = 0;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t p = t.position[static_cast<size_t>(lane)];
            const bool sees = c.sees(b, t.head[static_cast<size_t>(lane)], p, j);
            if (causal && j > p)
                ++cut;
            else
                seeing += sees ? 1 : 0;
        }
        const int kind = visited[static_cast<size_t>(row)];
        if (kind == 0 && seeing > 0) ++faults.missed;
        if (kind == 2 && seeing + cut < lanes) ++faults.hidden_by_full;
        if (kind != 0 && tight && seeing == 0 && cut == 0) ++faults.in_vain;
    }
    // Any keys may be asked for.
    if (kv_len == 0) return;
    const int64_t first = random.whole(0, kv_len - 1), count = random.whole(1, kv_len - first);
    const int64_t stride = t.tile.lane_stride;
    std::vector<float> scores(static_cast<size_t>(count * stride), 1.0f);
    attend_score_tile scored{};
    scored.queries = &t.tile;
    scored.scores = scores.data();
    scored.first_key = first;
    scored.num_keys = count;
    entry.keep(&pattern, &scored);
    for (int64_t row = 0; row < count; ++row)
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t j = pattern.key_first + (first + row) * step, p = t.position[static_cast<size_t>(lane)];
            if (causal && j > p) continue;
            const bool sees = c.sees(b, t.head[static_cast<size_t>(lane)], p, j);
            const float score = scores[static_cast<size_t>(row * stride + lane)];
            if (sees ? score != 1.0f : !(std::isinf(score) && score < 0)) ++faults.keep;
        }
}

TEST_CASE("pattern: random unions equal the rule, pair by pair", "[toolkit]") {
    uint64_t checked = 0;  // cases, over all instruction sets
    for (const PatternEntry& entry : pattern_entries) {
        if (!entry.runs_here) continue;
        INFO("instruction set " << entry.name);
        for (uint64_t seed = 1; seed <= 6000; ++seed) {
            Random random(seed);
            const Case c(random);
            Faults faults;
            check_hooks(entry, random, c, faults);
            INFO("seed " << seed << ": order " << faults.order << ", full that hides " << faults.hidden_by_full
                         << ", missed " << faults.missed << ", in vain " << faults.in_vain << ", keep " << faults.keep);
            if (!faults.none()) REQUIRE(faults.none());
            ++checked;
        }
    }
    REQUIRE(checked >= 6000);  // the narrowest set runs everywhere
}

struct Answer {
    std::vector<int64_t> row, rows;
    std::vector<attend_pattern_keys> keys;
};

TEST_CASE("pattern: the answer of attend.pattern/1", "[toolkit]") {
    uint64_t checked = 0;  // cases, over all instruction sets
    for (const PatternEntry& entry : pattern_entries) {
        if (!entry.runs_here) continue;
        INFO("instruction set " << entry.name);
        for (uint64_t seed = 1; seed <= 1500; ++seed) {
            INFO("seed " << seed);
            Random random(seed);
            const Case c(random);
            attend_pattern_rows rows{};
            rows.head = random.whole(0, c.heads - 1);
            rows.first_row = random.whole(0, 20);
            rows.num_rows = random.whole(0, 90);
            rows.rows_at_once = random.chance(0.4) ? 1 : random.whole(0, 100);
            rows.tile_rows = random.whole(0, 20);
            rows.offset = random.whole(-20, 40);
            rows.window_left = random.chance(0.7) ? -1 : random.whole(0, 20);
            rows.window_right = random.chance(0.7) ? -1 : random.whole(0, 20);
            const int64_t n = c.pattern.num_keys;
            const auto sees = [&](int64_t row, int64_t j) {
                const int64_t p = row + rows.offset;
                if ((c.pattern.flags & ATTEND_PATTERN_CAUSAL) != 0 && j > p) return false;
                if (rows.window_left >= 0 && j < p - rows.window_left) return false;
                if (rows.window_right >= 0 && j > p + rows.window_right) return false;
                return c.sees(0, rows.head, p, j);
            };
            Answer answer;
            entry.visit(
                &c.pattern, &rows,
                [](void* to, int64_t first, int64_t count, const attend_pattern_keys* keys) noexcept {
                    auto& self = *static_cast<Answer*>(to);
                    self.row.push_back(first);
                    self.rows.push_back(count);
                    self.keys.push_back(*keys);
                },
                &answer);
            const int64_t at_once = rows.rows_at_once > 0 ? rows.rows_at_once
                                    : rows.tile_rows > 0  ? rows.tile_rows
                                                          : 48;
            std::vector<std::vector<int>> shown(static_cast<size_t>(rows.num_rows),
                                                std::vector<int>(static_cast<size_t>(n), 0));
            int64_t faults = 0;
            for (size_t at = 0; at < answer.keys.size(); ++at) {
                const attend_pattern_keys& keys = answer.keys[at];
                const int64_t first = answer.row[at] - rows.first_row;
                faults += first % at_once != 0 || answer.rows[at] != std::min(at_once, rows.num_rows - first) ? 1 : 0;
                faults += keys.begin < 0 || keys.end > n || keys.begin >= keys.end || keys.step < 1 ? 1 : 0;
                if (at > 0 && answer.row[at - 1] == answer.row[at] && answer.keys[at - 1].begin >= keys.begin) ++faults;
                if (at > 0 && answer.row[at - 1] > answer.row[at]) ++faults;
                const bool partial = (keys.flags & ATTEND_PATTERN_PARTIAL) != 0;
                if (partial && at_once == 1) ++faults;
                REQUIRE(faults == 0);
                for (int64_t row = first; row < first + answer.rows[at]; ++row)
                    for (int64_t j = keys.begin; j < keys.end; j += keys.step) {
                        int& seen = shown[static_cast<size_t>(row)][static_cast<size_t>(j)];
                        if (seen != 0) ++faults;  // ranges of the same rows are disjoint
                        seen = partial ? 1 : 2;
                    }
            }
            double pairs = 0.0;
            for (int64_t row = 0; row < rows.num_rows; ++row)
                for (int64_t j = 0; j < n; ++j) {
                    const bool truth = sees(rows.first_row + row, j);
                    const int seen = shown[static_cast<size_t>(row)][static_cast<size_t>(j)];
                    pairs += truth ? 1.0 : 0.0;
                    if (truth ? seen == 0 : seen == 2) ++faults;
                }
            REQUIRE(faults == 0);
            if (entry.pairs(&c.pattern, &rows) != pairs) REQUIRE(entry.pairs(&c.pattern, &rows) == pairs);
            ++checked;
        }
    }
    REQUIRE(checked >= 1500);
}

TEST_CASE("pattern: ranges as long as they get, steps where keys are equally far apart", "[toolkit]") {
    attend_pattern_term terms[2] = {attend_pattern_dilated(7, ATTEND_UNLIMITED, ATTEND_UNLIMITED),
                                    attend_pattern_band(1, 1)};
    attend_pattern pattern{};
    pattern.num_keys = 50;
    pattern.num_terms = 2;
    pattern.terms = terms;
    attend_pattern_rows rows{};
    rows.first_row = 22;
    rows.num_rows = 1;
    rows.window_left = rows.window_right = -1;
    for (const PatternEntry& entry : pattern_entries) {
        if (!entry.runs_here) continue;
        Answer answer;
        entry.visit(
            &pattern, &rows,
            [](void* to, int64_t, int64_t, const attend_pattern_keys* keys) noexcept {
                static_cast<Answer*>(to)->keys.push_back(*keys);
            },
            &answer);
        REQUIRE(answer.keys.size() == 3);
        CHECK((answer.keys[0].begin == 1 && answer.keys[0].end == 16 && answer.keys[0].step == 7));
        CHECK((answer.keys[1].begin == 21 && answer.keys[1].end == 24 && answer.keys[1].step == 1));
        CHECK((answer.keys[2].begin == 29 && answer.keys[2].end == 44 && answer.keys[2].step == 7));
    }
}

TEST_CASE("pattern: tiles that fit blocks", "[toolkit]") {
    for (const PatternEntry& entry : pattern_entries) {
        const int64_t most = entry.query_tile(int64_t{1} << 20, 3);  // 3 * 2^20 has the divisors 48, 24 and 12
        CHECK((most == 48 || most == 24 || most == 12));
        for (const int64_t width : {1, 7, 16, 48, 61, 64, 96, 100})
            for (const int64_t heads : {1, 2, 8}) {
                const int64_t tile = entry.query_tile(width, heads);
                CHECK((tile == 0 || (width * heads % tile == 0 && tile <= most)));
            }
        CHECK(entry.query_tile(61, 1) == 0);
    }
}

}  // namespace
}  // namespace attend::test
