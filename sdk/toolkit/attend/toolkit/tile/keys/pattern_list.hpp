// SPDX-License-Identifier: Apache-2.0
// Several key patterns over distances, for maps that share scores: the keys of their union are visited once, and each
// map keeps those that its own pattern shows. d = i' - j; divisions and remainders are Euclidean.
#pragma once

#include <cstdint>

#include "attend/toolkit.h"
#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

constexpr int64_t most_patterns = 16;
constexpr int64_t most_span = int64_t{1} << 30;  // of an argument

struct KeyPattern {
    enum Kind : int64_t { global, local, remote, dilated, sink, strided, block };
    int64_t kind, a, b;

    bool shows(int64_t position, int64_t j) const {
        const int64_t distance = position - j, size = distance < 0 ? -distance : distance;
        switch (kind) {
            case local: return size < a;
            case remote: return size >= a;
            case dilated: return size < a * b && distance % b == 0;
            case sink: return j < a || size < b;
            case strided: return distance % a == 0;
            case block: return floor_of(position, a) == floor_of(j, a);
            default: return true;
        }
    }
    // Residue or block of a position.
    int32_t class_of(int64_t x) const {
        const int64_t by = kind == dilated ? b : a, block_of = floor_of(x, by);
        return static_cast<int32_t>(kind == block ? block_of : x - block_of * by);
    }
    static int64_t floor_of(int64_t x, int64_t by) { return x >= 0 ? x / by : -((-x + by - 1) / by); }

    // Keys [begin, end) beyond which a row sees nothing, leading keys of a sink excepted.
    void reach(int64_t position, int64_t& begin, int64_t& end) const {
        const int64_t width = kind == local ? a : kind == dilated ? a * b : kind == sink ? b : 0;
        begin = INT64_MIN / 2;
        end = INT64_MAX / 2;
        if (kind == local || kind == dilated || kind == sink) {
            begin = position - width + 1;
            end = position + width;
        } else if (kind == block) {
            begin = floor_of(position, a) * a;
            end = begin + a;
        }
    }
};

struct PatternList {
    const int64_t* entries;  // kind and two arguments of each
    int64_t count;

    KeyPattern at(int64_t pattern) const {
        return {entries[3 * pattern], entries[3 * pattern + 1], entries[3 * pattern + 2]};
    }

    // What a tile's rows see of the keys [begin, end): none, all, or some of the pairs.
    uint32_t seen(const KeyPattern& pattern, const attend_query_tile& tile, int64_t begin, int64_t end) const {
        if (pattern.kind == KeyPattern::global) return ATTEND_KEYS_ALL;
        const int64_t first = tile.first_position, last = tile.last_position;
        if (pattern.kind == KeyPattern::remote) {
            if (first - end + 1 >= pattern.a || begin - last >= pattern.a) return ATTEND_KEYS_ALL;
            return last - begin < pattern.a && end - 1 - first < pattern.a ? ATTEND_KEYS_NONE : ATTEND_KEYS_SOME;
        }
        int64_t low, high, low_last, high_last;
        pattern.reach(first, low, high);
        pattern.reach(last, low_last, high_last);
        const bool leading = pattern.kind == KeyPattern::sink && begin < pattern.a;
        if (!leading && (end <= low || begin >= high_last)) return ATTEND_KEYS_NONE;
        const bool whole = pattern.kind == KeyPattern::local || pattern.kind == KeyPattern::block ||
                           pattern.kind == KeyPattern::sink ||
                           (pattern.kind == KeyPattern::strided && pattern.a == 1) ||
                           (pattern.kind == KeyPattern::dilated && pattern.b == 1);
        if (whole && begin >= low_last && end <= high) return ATTEND_KEYS_ALL;
        if (leading && end <= pattern.a) return ATTEND_KEYS_ALL;
        return ATTEND_KEYS_SOME;
    }

    // The keys that any pattern may show to the tile.
    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const PatternList& list = *static_cast<const PatternList*>(user);
        int64_t begins[2 * most_patterns], ends[2 * most_patterns], ranges = 0;
        for (int64_t p = 0; p < list.count; ++p) {
            const KeyPattern pattern = list.at(p);
            int64_t low, high, unused, high_last;
            pattern.reach(tile->first_position, low, high);
            pattern.reach(tile->last_position, unused, high_last);
            if (pattern.kind == KeyPattern::sink && pattern.a > 0) {
                begins[ranges] = 0;
                ends[ranges++] = pattern.a;
            }
            begins[ranges] = low < 0 ? 0 : low;
            ends[ranges++] = high_last > tile->kv_len ? tile->kv_len : high_last;
        }
        RangeWriter out(tile->kv_len, visit_range, visitor);
        // Ascending by begin; there are at most 32.
        for (int64_t done = 0; done < ranges; ++done) {
            int64_t next = done;
            for (int64_t other = done + 1; other < ranges; ++other) next = begins[other] < begins[next] ? other : next;
            const int64_t begin = begins[next], end = ends[next];
            begins[next] = begins[done], ends[next] = ends[done];
            out.add(begin, end, 0);
        }
    }

    static void keep(const void* user, const attend_score_tile* tile) {
        const PatternList& list = *static_cast<const PatternList*>(user);
        const attend_query_tile& queries = *tile->queries;
        const KeyPattern pattern = list.at(queries.map);
        const int64_t lanes = queries.lane_stride;
        const float hidden = -__builtin_inff();
        // Differences of positions fit: the engine keeps them below 2^31. Pairs must be near (or far) and, for patterns of
        // residues and blocks, of one class.
        const bool classes = pattern.kind == KeyPattern::dilated || pattern.kind == KeyPattern::strided ||
                             pattern.kind == KeyPattern::block;
        const int64_t span = pattern.kind == KeyPattern::sink      ? pattern.b
                             : pattern.kind == KeyPattern::dilated ? pattern.a * pattern.b
                             : classes                             ? INT32_MAX
                                                                   : pattern.a;
        const auto width = static_cast<int32_t>(span < INT32_MAX ? span : INT32_MAX);
        const int32_t near = pattern.kind == KeyPattern::remote ? 0 : 1;
        int32_t lane_class[most_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane)
            lane_class[lane] = classes ? pattern.class_of(queries.lane_position[lane]) : 0;
        for (int64_t row = 0; row < tile->num_keys; ++row) {
            const auto j = static_cast<int32_t>(tile->first_key + row);
            if (pattern.kind == KeyPattern::sink && j < pattern.a) continue;
            const int32_t row_class = classes ? pattern.class_of(j) : 0;
            float* const scores = tile->scores + row * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int32_t distance = queries.lane_position[lane] - j;
                const int32_t inside = (distance < 0 ? -distance : distance) < width ? 1 : 0;
                const int32_t shown = (inside == near ? 1 : 0) & (lane_class[lane] == row_class ? 1 : 0);
                scores[lane] = shown != 0 ? scores[lane] : hidden;
            }
        }
    }

    // Share of all pairs that the patterns show, for estimates: the union's, and the sum over patterns.
    struct Shares {
        double of_union, sum;
    };
    Shares shares(const attend_plan_desc& desc) const {
        constexpr uint64_t samples = 16384;
        if (desc.q_len == 0 || desc.kv_len == 0) return {0.0, 0.0};
        const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
        int64_t in_union = 0, in_sum = 0;
        for (uint64_t sample = 0; sample < samples; ++sample) {
            // Two sequences of low discrepancy, so that no stride of a pattern is met more often than another.
            const auto place = [&](uint64_t factor, int64_t extent) {
                return static_cast<int64_t>(((sample * factor & 0xFFFFFFFFu) * static_cast<uint64_t>(extent)) >> 32);
            };
            const int64_t position = place(3242174889u, desc.q_len) + desc.causal_offset,
                          j = place(2447445414u, desc.kv_len);
            if ((causal && j > position) || (desc.window_left >= 0 && j < position - desc.window_left) ||
                (desc.window_right >= 0 && j > position + desc.window_right))
                continue;
            bool any = false;
            for (int64_t p = 0; p < count; ++p) {
                const bool shown = at(p).shows(position, j);
                in_sum += shown ? 1 : 0;
                any = any || shown;
            }
            in_union += any ? 1 : 0;
        }
        return {static_cast<double>(in_union) / samples, static_cast<double>(in_sum) / samples};
    }
};

}  // namespace attend::ATTEND_ISA
