// SPDX-License-Identifier: Apache-2.0
// Every stride-th key, counted from the query or from a fixed key, with a band around the query: what strided-attention and
// the strided form of sparse-transformer-attention see. The band is a stage of its own; the strided keys outside it are
// dense problems class by class, merged with it.
#pragma once

#include "key_ranges.hpp"
#include "residue_classes.hpp"

namespace attend::ATTEND_ISA {

inline int64_t default_stride(int64_t keys) {
    int64_t root = static_cast<int64_t>(__builtin_sqrt(static_cast<double>(keys)));
    while (root > 0 && (root - 1) * (root - 1) >= keys) --root;
    while (root * root < keys) ++root;
    return root > 1 ? root : 1;
}

struct StridedKeys {
    int64_t stride;
    int64_t offset;  // of the keys; -1: counted from the query
    int64_t taps;    // on each side; 0: all
    int64_t local;   // keys on each side; 0: none beside the strided ones
    int64_t kv_len;
    bool far{true};  // false: the band alone

    // Distance of the farthest tap; the axis and the positions on it are shorter than 2^42.
    int64_t reach() const {
        constexpr int64_t far_off = int64_t{1} << 42;
        return taps < far_off / stride ? taps * stride : far_off;
    }
    bool fixed() const { return offset >= 0; }
    bool banded() const { return local > 0 || !far; }
    // Strided keys that position p sees: first, first + stride, ... below end.
    void strided(int64_t p, int64_t& first, int64_t& end) const {
        const Steps every = class_of(fixed() ? offset : floor_mod(p, stride), stride, kv_len);
        int64_t low = 0, high = every.count;
        if (taps > 0 && fixed()) {
            const int64_t below = every.below(p + 1);
            low = below > taps ? below - taps : 0;
            high = Steps::least(below + taps, every.count);
        } else if (taps > 0) {  // up to taps steps from p itself, which may lie outside the keys
            low = every.below(p - reach());
            high = every.below(p + reach() + 1);
        }
        first = low < high ? every.at(low) : 0;
        end = low < high ? every.at(high - 1) + 1 : 0;
    }
    void ranges(int64_t p, KeyRanges& to) const {
        int64_t first = 0, end = 0;
        if (far) strided(p, first, end);
        if (!banded()) {
            to.add(first, end, stride);
            return;
        }
        const int64_t begin = p - local, after = p + local + 1;
        to.add(first, end < begin ? end : begin, stride);
        to.add(begin, after, 1);
        if (first < after) first += (after - first + stride - 1) / stride * stride;
        to.add(first, end, stride);
    }

    // Hooks of the engine over all keys, where weights are asked for.
    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const StridedKeys& self = *static_cast<const StridedKeys*>(user);
        int64_t begin = self.kv_len, end = 0;
        for (int64_t lane = 0; lane < tile->num_lanes; ++lane) {
            KeyRanges of_lane(0, self.kv_len);
            self.ranges(tile->lane_position[lane], of_lane);
            of_lane.span(begin, end);
        }
        RangeWriter(tile->kv_len, visit_range, visitor).add(begin, end, ATTEND_KEYS_PARTIAL);
    }
    static void keep(const void* user, const attend_score_tile* tile) {
        const StridedKeys& self = *static_cast<const StridedKeys*>(user);
        const int64_t lanes = tile->queries->lane_stride;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            KeyRanges of_lane(0, self.kv_len);
            self.ranges(tile->queries->lane_position[lane], of_lane);
            for (int64_t row = 0; row < tile->num_keys; ++row)
                if (!of_lane.holds(tile->first_key + row)) tile->scores[row * lanes + lane] = -__builtin_inff();
        }
    }
};

// With weights: one run over all keys.
inline attend_status run_shown(const TileCall& call, const StridedKeys& keys, const Context& context) {
    attend_tile_problem problem = call.problem;
    use_keys(problem, keys);
    return ATTEND_KERNEL(attend_tile_forward)(&problem, &context);
}

// Of parts on keys that are counted from a fixed one.
inline PartLimits strided_limits(const StridedKeys& keys, const attend_plan_desc& desc) {
    const int64_t group = desc.num_kv_heads > 0 ? desc.num_q_heads / desc.num_kv_heads : 1;
    const int64_t of_stride = ceil_div(desc.kv_len, keys.stride);
    const int64_t of_band = keys.banded() ? Steps::least(desc.kv_len, band_rows + 2 * keys.local + 1) : 0;
    return {band_rows, of_stride > of_band ? of_stride : of_band, group, keys.banded()};
}

// Which of its class a position sees beyond the band.
inline ClassKeys class_keys(const StridedKeys& keys) {
    return {keys.stride, keys.taps > 0 ? keys.taps : -1, keys.banded() ? keys.local / keys.stride : -1};
}
inline Between strided_between(const StridedKeys& keys) {
    if (!keys.banded() || !keys.far) return Between::nothing;
    return keys.fixed() ? Between::results : Between::state;
}
inline uint64_t strided_workspace(const StridedKeys& keys, const attend_plan_desc& desc) {
    const uint64_t shown = tile_workspace(desc);
    uint64_t stages = 0;
    if (keys.fixed())
        stages = Parts::workspace(desc, strided_limits(keys, desc));
    else if (keys.far)
        stages = ResidueClasses::workspace(desc, class_keys(keys));
    if (stages < shown) stages = shown;
    return stages + Stages::workspace(desc, strided_between(keys));
}

// Keys counted from a fixed one: the stages of the heads in `heads`.
inline attend_status fixed_stages(const Parts& parts, const StridedKeys& keys, const StageUnit& unit,
                                  const HeadRuns& heads, const attend_plan_desc& desc) {
    if (keys.banded()) {
        const Stage band{&unit, heads, keys.local, keys.local, nullptr, false};
        const attend_status status = run_rows(parts, band, desc, {0, 1, desc.kv_len});
        if (status != ATTEND_OK || !keys.far) return status;
    }
    PartKeys pattern;
    pattern.hole = keys.banded() ? keys.local : -1;
    Stage stage{&unit, heads, -1, -1, keys.banded() ? &pattern : nullptr, keys.banded()};
    pattern.every = class_of(keys.offset, keys.stride, desc.kv_len);
    pattern.taps = keys.taps;
    if (keys.taps > 0) stage.pattern = &pattern;
    return run_rows(parts, stage, desc, pattern.every);
}
// Keys counted from the query: the band leaves its state to the classes.
inline attend_status relative_stages(const TileCall& call, const StridedKeys& keys, const StageUnit& unit,
                                     const HeadRuns& heads, const attend_plan_desc& desc, const Context& context) {
    if (keys.banded()) {
        const bool widens = keys.far && ResidueClasses::widens(desc, keys.stride);
        const attend_status status = run_band(call.problem, keys.local, widens, unit, heads, desc, context);
        if (status != ATTEND_OK || !keys.far) return status;
    }
    return ResidueClasses(call, desc, class_keys(keys), unit, heads, context).run();
}

inline attend_status run_strided(const TileCall& call, const StridedKeys& keys, const ForwardArgs& args,
                                 const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    return Stages::run(args, context, carve, strided_between(keys), [&](const StageUnit& unit) {
        const Context rest = carve.rest(context);
        const HeadRuns heads = all_heads(unit, desc);
        if (!keys.fixed()) return relative_stages(call, keys, unit, heads, desc, rest);
        const Parts parts(call, desc, strided_limits(keys, desc), rest);
        return fixed_stages(parts, keys, unit, heads, desc);
    });
}

}  // namespace attend::ATTEND_ISA
