// SPDX-License-Identifier: Apache-2.0
// Blocks of positions and the keys that summarise them: position p sees its own block of `width` keys, and of every block
// the columns [first, first + count). The summary keys of all blocks are copied into one panel per key head; rows of a run of
// blocks are then dense on the panel up to the run, on the run itself, and on the panel behind it.
#pragma once

#include "stages.hpp"

namespace attend::ATTEND_ISA {

struct SummaryKeys {
    int64_t width, count;
    int64_t kv_len;

    static constexpr int64_t most_bytes = int64_t{16} << 20;

    // Summary keys below x, for columns from `first` on.
    int64_t below(int64_t x, int64_t first) const {
        const int64_t rest = x % width - first;
        return x / width * count + (rest < 0 ? 0 : rest > count ? count : rest);
    }
    int64_t at(int64_t n, int64_t first) const { return n / count * width + first + n % count; }
    int64_t most() const { return ceil_div(kv_len, width) * count; }
    bool fits(const attend_plan_desc& desc) const {
        return most() * (desc.head_dim + desc.value_dim) * 4 <= most_bytes;
    }
    // Blocks that go together, so that tiles are filled.
    int64_t run() const { return (width >= 64 ? 1 : ceil_div(128, width)) * width; }

    struct Room {
        int32_t* index;
        char *key, *value;
    };
    Room take(Carve& carve, const attend_plan_desc& desc) const {
        return {reinterpret_cast<int32_t*>(carve.take(most())),
                reinterpret_cast<char*>(carve.take(most() * desc.head_dim)),
                reinterpret_cast<char*>(carve.take(most() * desc.value_dim))};
    }
    uint64_t bytes(const attend_plan_desc& desc) const {
        return Carve::floats(most()) + Carve::floats(most() * desc.head_dim) + Carve::floats(most() * desc.value_dim);
    }
    PartLimits limits(const attend_plan_desc& desc) const {
        const int64_t group = desc.num_kv_heads > 0 ? desc.num_q_heads / desc.num_kv_heads : 1;
        return {band_rows, run(), group, false, most()};
    }

    // Keys of a part: [0, begin) and [end, all) are panels, between them the keys of a run of blocks.
    struct RunPattern {
        int64_t begin, end;  // rows of the list that are keys of the run
        int64_t width, first, count;
        bool columns;  // summary keys inside the run count, too
        bool blocks;

        static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range,
                          void* visitor) {
            const RunPattern& self = *static_cast<const RunPattern*>(user);
            RangeWriter out(tile->kv_len, visit_range, visitor);
            out.add(0, self.begin, 0);
            out.add(self.begin, self.end, ATTEND_KEYS_PARTIAL);
            out.add(self.end, tile->kv_len, 0);
        }
        static void keep(const void* user, const attend_score_tile* tile) {
            const RunPattern& self = *static_cast<const RunPattern*>(user);
            const attend_query_tile& queries = *tile->queries;
            const int64_t lanes = queries.lane_stride;
            int32_t block[most_lanes];
            for (int64_t lane = 0; lane < lanes; ++lane)
                block[lane] = static_cast<int32_t>(floor_div(queries.lane_position[lane], self.width));
            for (int64_t row = 0; row < tile->num_keys; ++row) {
                const int64_t j = tile->key_index[row], column = j % self.width - self.first;
                if (self.columns && column >= 0 && column < self.count) continue;
                const auto of_key = static_cast<int32_t>(j / self.width);
                float* const scores = tile->scores + row * lanes;
                for (int64_t lane = 0; lane < lanes; ++lane)
                    scores[lane] = block[lane] == of_key ? scores[lane] : -__builtin_inff();
            }
        }
    };

    // The rows of the heads in `heads`, one key head at most: own block, summary columns from `first` on, or both.
    attend_status run_heads(const Parts& parts, const StageUnit& unit, const PartSpec& heads, const Room& room,
                            const attend_plan_desc& desc, bool own, bool summaries, int64_t first) const {
        const int64_t bytes = parts.segment().key->dtype_bits / 8,
                      kv_head = heads.head * desc.num_kv_heads / desc.num_q_heads;
        KeyPanel panel{room.key, room.value, {0, 1, 0, room.index}, desc.head_dim * bytes, desc.value_dim * bytes};
        if (summaries) {
            panel.index.count = below(kv_len, first);
            for (int64_t n = 0; n < panel.index.count; ++n) room.index[n] = static_cast<int32_t>(at(n, first));
            const attend_status status = parts.fill(panel, heads.batch, kv_head);
            if (status != ATTEND_OK) return status;
        }
        const int64_t offset = parts.offset_of(heads.batch), step = run(), chunks = ceil_div(step, band_rows);
        const int64_t first_run = floor_div(offset, step),
                      runs = floor_div(offset + desc.q_len - 1, step) - first_run + 1;
        return parts.each(runs * chunks, [&](int64_t n, uint32_t slot) {
            const int64_t begin = (first_run + n / chunks) * step, end = begin + step;
            const int64_t chunk = begin + n % chunks * band_rows, chunk_end = Steps::least(chunk + band_rows, end);
            PartSpec part = heads;
            const int64_t row = chunk - offset < 0 ? 0 : chunk - offset;
            part.rows = Steps{row, 1, Steps::least(chunk_end - offset, desc.q_len) - row};
            if (part.rows.count <= 0) return attend_status{ATTEND_OK};
            const int64_t low = begin < 0 ? 0 : Steps::least(begin, kv_len),
                          high = Steps::least(end < 0 ? 0 : end, kv_len);
            RunPattern pattern{0, 0, width, first, count, summaries, own};
            if (!own) {
                // The columns alone: the engine cuts them at the diagonal.
                part.before = panel;
                part.keys = {0, 1, 0};
                return parts.run(part, unit.target, slot);
            }
            part.keys = {low, 1, high - low};
            if (summaries) {
                part.before = panel.part(0, below(low, first));
                if ((desc.flags & ATTEND_PLAN_CAUSAL) == 0)
                    part.after = panel.part(below(high, first), panel.index.count);
            }
            if (step > width) {
                pattern.begin = part.before.index.count;
                const Steps seen = parts.seen(part);
                pattern.end = pattern.begin + seen.count;
                part.visit = RunPattern::visit, part.keep = RunPattern::keep, part.user = &pattern;
            }
            return parts.run(part, unit.target, slot);
        });
    }
};

}  // namespace attend::ATTEND_ISA
