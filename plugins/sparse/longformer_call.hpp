// SPDX-License-Identifier: Apache-2.0
// A call of longformer-attention: the window with the global columns, straight or by residue classes, then the global rows.
#pragma once

#include "attend/author/pattern.hpp"
#include "attend/toolkit/core/message.hpp"
#include "global_rows.hpp"
#include "stages.hpp"

namespace attend::ATTEND_ISA {

enum GlobalProjection : int32_t { automatic, shared, from_tensors, from_weights };

struct LongformerOptions {
    int64_t window_size;
    IntList dilation, global_tokens;
    int32_t global_projection;

    int64_t step(int64_t head) const { return dilation.items[dilation.count > 1 ? head : 0]; }
    bool dilated() const {
        for (uint32_t at = 0; at < dilation.count; ++at)
            if (dilation.items[at] > 1) return true;
        return false;
    }
    // Farthest key of the window; the axis is shorter than 2^42.
    int64_t reach(int64_t head) const {
        constexpr int64_t far_off = int64_t{1} << 42;
        return window_size < far_off / step(head) ? window_size * step(head) : far_off;
    }
};

class LongformerCall {
public:
    static constexpr int64_t most_panel = 4096;  // global keys copied at a time

    LongformerCall(const LongformerOptions& options, const ForwardArgs& args)
        : options_(options), args_(args), desc_(*args.desc), call_(args) {
        call_.problem.window_left = of_option(*args.values, "window_left");
        call_.problem.window_right = of_option(*args.values, "window_right");
    }

    static uint64_t workspace(const LongformerOptions& options, const PlanArgs& args) {
        const attend_plan_desc& desc = *args.desc;
        const int64_t most = most_globals(options, args);
        const uint64_t lists = list_bytes(options, args, most) + Carve::floats(desc.num_q_heads) + Carve::floats(most);
        const uint64_t straight = tile_workspace(desc);
        uint64_t stages = 0;
        if (options.dilated()) {
            const PartLimits limits = limits_of(options, desc, most);
            stages = Stages::workspace(desc, Stages::merged(limits.merges)) + Parts::workspace(desc, limits) + panel_bytes(desc, most);
        }
        const uint64_t rows = most > 0 ? GlobalRows::workspace(desc, most, may_project(options, args)) : 0;
        const uint64_t local = stages > straight ? stages : straight;
        return lists + (local > rows ? local : rows);
    }

    attend_status run(const Context& context) {
        Carve carve(context);
        const attend_tensor* mask = attend_find_name(args_.bindings, "global_mask");
        const int64_t most = mask != nullptr ? desc_.kv_len : options_.global_tokens.count;
        const GlobalLists lists = make_lists(options_, desc_, mask, carve);
        Pattern pattern(desc_);
        auto* steps = reinterpret_cast<int32_t*>(carve.take(desc_.num_q_heads));
        const Context rest = carve.rest(context);
        attend_status status;
        if (options_.dilated() && args_.scores == nullptr) {
            status = run_dilated(lists, most, rest);
        } else {
            if (most == 0 && !options_.dilated()) {
                // A band alone is what the engine's own window is.
                call_.problem.window_left = Parts::narrower(call_.problem.window_left, options_.window_size);
                call_.problem.window_right = Parts::narrower(call_.problem.window_right, options_.window_size);
            } else {
                fill(pattern, options_, desc_, {lists.items, lists.all, lists.offsets}, steps);
                use_pattern(call_.problem, pattern);
            }
            status = run_tiles(call_, rest);
        }
        if (status != ATTEND_OK || most == 0) return status;
        GlobalRows rows;
        const attend_tensor* query = attend_find_name(args_.bindings, "global_query");
        rows.query = query != nullptr ? query : args_.query;
        rows.key = query != nullptr ? attend_find_name(args_.bindings, "global_key") : args_.key;
        rows.value = query != nullptr ? attend_find_name(args_.bindings, "global_value") : args_.value;
        if (query == nullptr && options_.global_projection != shared) {
            rows.wq = attend_find_name(args_.weights, "wqg");
            rows.wk = attend_find_name(args_.weights, "wkg");
            rows.wv = attend_find_name(args_.weights, "wvg");
        }
        return rows.run(call_, args_, lists, rest);
    }

    static attend_status pattern(const LongformerOptions& options, const PlanArgs& args, const PatternArgs& asked,
                                 const Context& context) {
        attend_plan_desc desc = *args.desc;
        desc.window_left = of_option(*args.values, "window_left");
        desc.window_right = of_option(*args.values, "window_right");
        Carve carve(context);
        const GlobalLists lists = make_lists(options, desc, nullptr, carve);
        auto* steps = reinterpret_cast<int32_t*>(carve.take(desc.num_q_heads));
        Pattern pattern(desc);
        const attend_pattern_list listed{lists.items, lists.all, nullptr};
        fill(pattern, options, desc, listed, steps);
        if (listed.count > 0) {
            attend_pattern_term& rows = pattern.add(attend_pattern_all());
            rows.rows = ATTEND_ROWS_LISTED;
            rows.row_list = listed;
        }
        PatternArgs rows = asked;
        // Dilated windows go class by class, whose rows do not stand side by side; each computes what it sees.
        if (options.dilated() && rows.rows_at_once == 0) rows.rows_at_once = 1;
        return answer_pattern(pattern, desc, rows, false);
    }

private:
    static int64_t of_option(const attend_array& values, const char* name) {
        const attend_value* value = attend_find_option(&values, name);
        return value != nullptr && value->type != 0 ? value->u.i : -1;
    }
    static int64_t most_globals(const LongformerOptions& options, const PlanArgs& args) {
        const bool masked = attend_find_name(&args.desc->bindings, "global_mask") != nullptr;
        return masked ? args.desc->kv_len : options.global_tokens.count;
    }
    static bool may_project(const LongformerOptions& options, const PlanArgs& args) {
        if (options.global_projection == shared || options.global_projection == from_tensors) return false;
        for (const char* weight : {"wqg", "wkg", "wvg"})
            if (attend_find_name(&args.desc->bindings, weight) != nullptr) return true;
        return false;
    }
    static uint64_t list_bytes(const LongformerOptions&, const PlanArgs& args, int64_t most) {
        const bool masked = attend_find_name(&args.desc->bindings, "global_mask") != nullptr;
        return Carve::floats(masked ? most * args.desc->batch : most) + Carve::floats(2 * (args.desc->batch + 1));
    }

    // Ascending lists: of the options, the same for all items, or of the mask.
    static GlobalLists make_lists(const LongformerOptions& options, const attend_plan_desc& desc,
                                  const attend_tensor* mask, Carve& carve) {
        const int64_t count = options.global_tokens.count;
        auto* items = reinterpret_cast<int32_t*>(carve.take(mask != nullptr ? desc.kv_len * desc.batch : count));
        auto* offsets = reinterpret_cast<int64_t*>(carve.take(2 * (desc.batch + 1)));
        offsets[0] = 0;
        int64_t filled = 0;
        for (int64_t b = 0; b < desc.batch && mask != nullptr; ++b) {
            const auto* row = static_cast<const uint8_t*>(mask->data) + b * mask->strides[0];
            for (int64_t j = 0; j < desc.kv_len; ++j)
                if (row[j * mask->strides[1]] != 0) items[filled++] = static_cast<int32_t>(j);
            offsets[b + 1] = filled;
        }
        if (mask != nullptr) return {items, filled, offsets};
        for (int64_t at = 0; at < count; ++at) {
            int64_t place = at;
            for (; place > 0 && items[place - 1] > options.global_tokens.items[at]; --place)
                items[place] = items[place - 1];
            items[place] = static_cast<int32_t>(options.global_tokens.items[at]);
        }
        return {items, count, nullptr};
    }

    // The window and the global columns.
    static void fill(Pattern& pattern, const LongformerOptions& options, const attend_plan_desc& desc,
                     const attend_pattern_list& listed, int32_t* steps) {
        if (options.dilated()) {
            attend_pattern_term& term =
                pattern.add(attend_pattern_dilated(options.step(0), options.window_size, options.window_size));
            for (int64_t h = 0; h < desc.num_q_heads; ++h) steps[h] = static_cast<int32_t>(options.step(h));
            if (options.dilation.count > 1) term.by_head = steps;
        } else {
            pattern.add(attend_pattern_band(options.window_size, options.window_size));
        }
        if (listed.count > 0) {
            attend_pattern_term& columns = pattern.add(attend_pattern_listed(listed.items, listed.count));
            columns.list = listed;
        }
    }

    static PartLimits limits_of(const LongformerOptions& options, const attend_plan_desc& desc, int64_t most) {
        int64_t least = options.step(0);
        for (uint32_t at = 0; at < options.dilation.count; ++at)
            least = Steps::least(least, options.dilation.items[at]);
        const int64_t group = desc.num_kv_heads > 0 ? desc.num_q_heads / desc.num_kv_heads : 1;
        const int64_t window = options.window_size < desc.kv_len ? 2 * options.window_size + 1 : desc.kv_len;
        const int64_t keys = Steps::least(ceil_div(desc.kv_len, least), class_rows + window + 1);
        return {class_rows, keys, options.dilation.count > 1 ? 1 : group, most > 0, Steps::least(most, most_panel)};
    }
    static uint64_t panel_bytes(const attend_plan_desc& desc, int64_t most) {
        const int64_t count = Steps::least(most, most_panel);
        return Carve::floats(count * desc.head_dim) + Carve::floats(count * desc.value_dim);
    }

    attend_status run_dilated(const GlobalLists& lists, int64_t most, const Context& context) {
        const PartLimits limits = limits_of(options_, desc_, most);
        const int64_t count = Steps::least(most, most_panel), bytes = args_.key->dtype_bits / 8;
        Carve carve(context);
        char* key = reinterpret_cast<char*>(carve.take(count * desc_.head_dim));
        char* value = reinterpret_cast<char*>(carve.take(count * desc_.value_dim));
        return Stages::run(args_, context, carve, Stages::merged(limits.merges), [&](const StageUnit& unit) {
            const Context rest = carve.rest(context);
            const Parts parts(call_, desc_, limits, rest);
            const bool alike = options_.dilation.count <= 1;
            const HeadRuns runs = alike ? all_heads(unit, desc_) : one_by_one(unit);
            for (int64_t n = 0; n < (alike ? 1 : runs.count); ++n) {
                const HeadRuns own = alike ? runs : HeadRuns{runs.first + n, 1, 1, 1};
                const int64_t reach = options_.reach(own.first), step = options_.step(own.first);
                const Stage window{&unit, own, reach, reach, nullptr, false};
                attend_status status = run_classes(parts, window, desc_, step);
                if (status != ATTEND_OK) return status;
                PartKeys pattern;
                pattern.hole = reach;
                pattern.hole_step = step;
                const Stage columns{&unit, own, -1, -1, &pattern, true};
                for (int64_t group = 0; group < columns.groups() && most > 0; ++group) {
                    const PartSpec spec = columns.spec(group);
                    const int64_t listed = lists.count(spec.batch);
                    const int32_t* positions = lists.of(spec.batch);
                    for (int64_t first = 0; first < listed; first += most_panel) {
                        const KeyPanel panel{key,
                                             value,
                                             {0, 1, Steps::least(most_panel, listed - first), positions + first},
                                             desc_.head_dim * bytes,
                                             desc_.value_dim * bytes};
                        status = parts.fill(panel, spec.batch, spec.head * desc_.num_kv_heads / desc_.num_q_heads);
                        if (status == ATTEND_OK) status = run_columns(parts, unit, spec, panel);
                        if (status != ATTEND_OK) return status;
                    }
                }
            }
            return attend_status{ATTEND_OK};
        });
    }

    // All rows of some heads on a panel, merged.
    attend_status run_columns(const Parts& parts, const StageUnit& unit, const PartSpec& spec,
                              const KeyPanel& panel) const {
        return parts.each(ceil_div(desc_.q_len, band_rows), [&](int64_t n, uint32_t slot) {
            PartSpec part = spec;
            part.rows = Steps{n * band_rows, 1, Steps::least(band_rows, desc_.q_len - n * band_rows)};
            part.keys = {0, 1, 0};
            part.before = panel;
            return parts.run(part, unit.target, slot);
        });
    }

    const LongformerOptions& options_;
    const ForwardArgs& args_;
    const attend_plan_desc& desc_;
    TileCall call_;
};

}  // namespace attend::ATTEND_ISA
