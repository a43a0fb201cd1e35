// SPDX-License-Identifier: Apache-2.0
// Key iterators and score modifiers: the engine with the hook equals the oracle with the rule in words, and the ranges
// are ascending, disjoint, tight, and full only where every lane sees every key.
#include "unit/toolkit/attention_case.hpp"

#include "attend/toolkit/tile/keys/band.hpp"
#include "attend/toolkit/tile/keys/block_pattern.hpp"
#include "attend/toolkit/tile/scores/alibi.hpp"

namespace attend::test {
namespace {

using namespace attend::ATTEND_ISA;

struct Ranges {
    std::vector<int64_t> begin, end;
    std::vector<uint32_t> flags;
    static void visit(void* visitor, int64_t begin, int64_t end, uint32_t flags) {
        auto& self = *static_cast<Ranges*>(visitor);
        self.begin.push_back(begin);
        self.end.push_back(end);
        self.flags.push_back(flags);
    }
};

// Checks the ranges of tiles of some positions against c.sees.
void check_ranges(const AttentionCase& c, int64_t positions_from, int64_t lanes) {
    std::vector<int32_t> query, head, position;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        query.push_back(static_cast<int32_t>(lane));
        head.push_back(static_cast<int32_t>(lane % c.q_heads));
        position.push_back(static_cast<int32_t>(positions_from + lane));
    }
    attend_query_tile tile{};
    tile.num_lanes = tile.lane_stride = lanes;
    tile.first_position = position.front();
    tile.last_position = position.back();
    tile.kv_len = c.kv_len;
    tile.lane_query = query.data();
    tile.lane_head = head.data();
    tile.lane_position = position.data();
    Ranges ranges;
    c.keys(c.keys_user, &tile, Ranges::visit, &ranges);
    std::vector<int> visited(static_cast<size_t>(c.kv_len), 0);
    int64_t last = 0;
    for (size_t at = 0; at < ranges.begin.size(); ++at) {
        CHECK(ranges.begin[at] >= last);
        CHECK(ranges.begin[at] < ranges.end[at]);
        CHECK(ranges.end[at] <= c.kv_len);
        last = ranges.end[at];
        for (int64_t j = ranges.begin[at]; j < ranges.end[at]; ++j)
            visited[static_cast<size_t>(j)] = (ranges.flags[at] & ATTEND_KEYS_PARTIAL) != 0 ? 1 : 2;
    }
    for (int64_t j = 0; j < c.kv_len; ++j) {
        int64_t seeing = 0;
        for (int64_t lane = 0; lane < lanes; ++lane)
            seeing += c.sees(0, head[static_cast<size_t>(lane)], lane, position[static_cast<size_t>(lane)], j) ? 1 : 0;
        INFO("key " << j << " of lanes from position " << positions_from);
        if (visited[static_cast<size_t>(j)] == 0) CHECK(seeing == 0);
        if (visited[static_cast<size_t>(j)] == 2) CHECK(seeing == lanes);
        // Nothing is visited in vain, but for keys between two bands that do not meet.
        if (visited[static_cast<size_t>(j)] != 0) CHECK(seeing > 0);
    }
}

void check_hook(AttentionCase c, uint64_t seed, double limit = 8e-6) {
    Random random(seed);
    c.fill(random);
    const AttentionResult expected = oracle(c);
    for_each_entry([&](const Entry& entry) { check_case(entry, c, expected, limit); });
}

bool listed(const std::vector<int32_t>& list, int64_t j) {
    return std::find(list.begin(), list.end(), static_cast<int32_t>(j)) != list.end();
}

TEST_CASE("keys: band with global keys", "[toolkit]") {
    uint64_t seed = 1;
    for (const int64_t left : {-1, 0, 3, 20, 1000})
        for (const int64_t right : {-1, 0, 5, 70})
            for (int globals = 0; globals < 4; ++globals) {
                AttentionCase c;
                c.batch = 2;
                c.q_heads = 4;
                c.kv_heads = 2;
                c.q_len = 60;
                c.kv_len = 150;
                c.offset = static_cast<int64_t>(seed % 3) * 45;
                c.causal = seed % 4 == 0;
                c.wild = seed % 2 == 0 ? 0.05 : 0.0;
                const int64_t leading[2] = {4, 11};
                const std::vector<int32_t> list{2, 30, 31, 32, 77, 149};
                BandKeys keys{};
                keys.left = left;
                keys.right = right;
                if (globals & 1) keys.globals.num_leading = leading, keys.globals.leading_stride = 1;
                if (globals & 2)
                    keys.globals.listed = list.data(), keys.globals.num_listed = static_cast<int64_t>(list.size());
                keys.globals.rows_see_all = globals & 2;
                c.keys = BandKeys::visit;
                c.keep = BandKeys::keep;
                c.keys_user = &keys;
                c.sees = [&](int64_t b, int64_t, int64_t, int64_t p, int64_t j) {
                    const auto global = [&](int64_t x) {
                        return ((globals & 1) && x >= 0 && x < leading[b]) || ((globals & 2) && listed(list, x));
                    };
                    if (global(j) || ((globals & 2) && global(p))) return true;
                    return (left < 0 || j >= p - left) && (right < 0 || j <= p + right);
                };
                c.scores = static_cast<int>(seed % 3);
                INFO("left " << left << " right " << right << " globals " << globals);
                check_hook(c, seed++);
                for (const int64_t from : {-30, 0, 25, 77, 140, 160})
                    for (const int64_t lanes : {1, 7, 48}) check_ranges(c, from, lanes);
            }
}

TEST_CASE("keys: block pattern", "[toolkit]") {
    for (uint64_t seed = 200; seed < 216; ++seed) {
        Random random(seed);
        AttentionCase c;
        c.batch = 2;
        c.q_heads = 4;
        c.kv_heads = 2;
        c.q_len = 70;
        c.kv_len = 133;
        c.causal = seed % 3 == 0;
        c.offset = 63;
        c.wild = seed % 2 == 0 ? 0.05 : 0.0;
        const int64_t block_q = random.pick<int64_t>({1, 16, 20, 100}), block_k = random.pick<int64_t>({1, 8, 48, 200});
        const int64_t rows = (c.q_len + block_q - 1) / block_q, columns = (c.kv_len + block_k - 1) / block_k;
        const bool one_item = random.chance(0.5), one_head = random.chance(0.5);
        const int64_t items = one_item ? 1 : 2, heads = one_head ? 1 : 4;
        std::vector<uint8_t> dense(static_cast<size_t>(items * heads * rows * columns));
        for (uint8_t& cell : dense) cell = random.chance(0.4) ? 1 : 0;
        Strided<uint8_t> stored({items, heads, rows, columns}, Strides::spread, dense);
        const attend_tensor tensor = stored.tensor();
        const BlockPattern pattern = BlockPattern::of(tensor, block_q, block_k);
        c.keys = BlockPattern::visit;
        c.keep = BlockPattern::keep;
        c.keys_user = &pattern;
        c.sees = [&](int64_t b, int64_t h, int64_t i, int64_t, int64_t j) {
            const int64_t row = ((one_item ? 0 : b) * heads + (one_head ? 0 : h)) * rows + i / block_q;
            return dense[static_cast<size_t>(row * columns + j / block_k)] != 0;
        };
        c.scores = static_cast<int>(seed % 3);
        INFO("blocks " << block_q << " x " << block_k);
        check_hook(c, seed);
        check_ranges(c, 0, 48);
        check_ranges(c, 0, 1);
    }
}

TEST_CASE("scores: linear distance penalty", "[toolkit]") {
    const std::vector<float> slopes{0.5f, 0.25f, -0.125f, 0.0f, 1.0f, 0.3f, 0.01f, 2.0f};
    std::vector<int64_t> q_positions, k_positions;
    for (int64_t n = 0; n < 40; ++n) q_positions.push_back(n * n % 37 - 5);
    for (int64_t n = 0; n < 2 * 90; ++n) k_positions.push_back(n * 7 % 91);
    for (int kind = 0; kind < 6; ++kind) {
        AttentionCase c;
        c.batch = 2;
        c.q_heads = 4;
        c.kv_heads = 2;
        c.q_len = 40;
        c.kv_len = 90;
        c.offset = 50;
        c.causal = kind % 2 == 0;
        c.extra = kind == 5 ? 3 : 0;
        AlibiSlopes alibi{};
        alibi.slopes = slopes.data();
        alibi.head_stride = 1;
        alibi.batch_stride = kind >= 1 ? 4 : 0;
        alibi.signed_distance = kind == 2 || kind == 4;
        if (kind >= 3 && kind < 5) {
            alibi.query_positions = q_positions.data();
            alibi.key_positions = k_positions.data();
            alibi.key_batch_stride = 90;
        }
        alibi.num_keys = 90;
        c.score = AlibiSlopes::apply;
        c.score_user = &alibi;
        c.changes = [&](int64_t b, int64_t h, int64_t p, int64_t j, double s) {
            if (j >= 90) return s;
            const int64_t from = alibi.query_positions != nullptr ? q_positions[static_cast<size_t>(p - 50)] : p;
            const int64_t to = alibi.key_positions != nullptr ? k_positions[static_cast<size_t>(b * 90 + j)] : j;
            const double distance =
                alibi.signed_distance ? static_cast<double>(from - to) : std::fabs(static_cast<double>(from - to));
            return s - static_cast<double>(slopes[static_cast<size_t>(b * alibi.batch_stride + h)]) * distance;
        };
        INFO("kind " << kind);
        check_hook(c, 300 + static_cast<uint64_t>(kind), 5e-5);  // scores of some hundreds
    }
}

}  // namespace
}  // namespace attend::test
