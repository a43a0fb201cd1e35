// SPDX-License-Identifier: Apache-2.0
// sparse-transformer-attention: a local factor and a far one that reach every earlier position in two steps.
//
// Paper    Child et al. 2019, arXiv:1904.10509, section 4.2 and 4.3
// Formula  l = stride, c = summary
//          strided: A1 = { j : |p_i - j| < l }, A2 = { j : p_i - j divisible by l }
//          fixed: A1 = { j : floor(j / l) = floor(p_i / l) }, A2 = { j : l - (v + 1) c <= j mod l < l - v c },
//          v = head mod num_verts, with factor heads floor(head / 2) mod num_verts
//          S = A1 + A2 (merged), A1 (first), A2 (second), A1 in even and A2 in odd heads (heads); causal cuts at j <= p_i
// Cost     strided O(Nq (l + Nk / l) D), fixed O(Nq (l + c Nk / l) D); summary keys are copied once per key head
// Differs  A1 of strided has l keys as the published code has, not the l + 1 of the paper

#include "attend/author/pattern.hpp"
#include "attend/toolkit/core/message.hpp"
#include "rows_inside.hpp"
#include "strided_keys.hpp"
#include "summary_keys.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum Form : int32_t { strided, fixed };
enum Factor : int32_t { merged, heads, first, second };

struct Options {
    int64_t stride, summary, num_verts;
    int32_t pattern, factor;
};

constexpr const char* name = "sparse-transformer-attention";
constexpr double longest = 2147483647.0;
constexpr const char* forms[] = {"strided", "fixed", nullptr};
constexpr const char* factors[] = {"merged", "heads", "first", "second", nullptr};
constexpr OptionRow option_table[] = {
    option_enum(ATTEND_FIELD(pattern), "\"strided\"", forms,
                "strided: near keys and each stride-th one; fixed: the own block and summary keys of every block"),
    option_int(ATTEND_FIELD(stride), "0", {0, longest},
               "reach of the local factor and step of the far one; 0: square root of Nk, rounded up"),
    option_int(ATTEND_FIELD(summary), "0", {0, longest},
               "summary keys of a block, at most stride; 0: stride / 16, at least 1", "pattern=fixed"),
    option_enum(
        ATTEND_FIELD(factor), "\"merged\"", factors,
        "merged: both factors in every head; heads: local in even heads, far in odd ones; first: local; second: far"),
    option_int(ATTEND_FIELD(num_verts), "1", {1, longest},
               "heads take turns with so many groups of summary keys, num_verts * summary at most stride",
               "pattern=fixed"),
    common::causal("true"),
    common::causal_alignment(),
    common::causal_offset(),
    ATTEND_WINDOW_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    ATTEND_MASK_PORTS,
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

// The options with defaults filled in, and what a head sees.
struct Layout {
    int64_t stride, summary, num_verts, kv_len;
    int32_t form, factor;

    Layout(const Options& options, const attend_plan_desc& desc)
        : stride(options.stride > 0 ? options.stride : default_stride(desc.kv_len)),
          summary(options.summary > 0 ? options.summary
                  : stride / 16 > 1   ? stride / 16
                                      : 1),
          num_verts(options.num_verts),
          kv_len(desc.kv_len),
          form(options.pattern),
          factor(options.factor) {}

    bool near(int64_t head) const { return factor == merged || factor == first || (factor == heads && head % 2 == 0); }
    bool far(int64_t head) const { return factor == merged || factor == second || (factor == heads && head % 2 == 1); }
    int64_t column(int64_t head) const {
        const int64_t v = (factor == heads ? head / 2 : head) % num_verts;
        return stride - (v + 1) * summary;
    }
    // All heads of a group of heads see the same keys.
    bool uniform() const { return factor != heads && (form == strided || num_verts == 1 || factor == first); }
    StridedKeys strided_keys(int64_t head) const {
        return {stride, -1, 0, near(head) ? stride - 1 : 0, kv_len, far(head)};
    }
    SummaryKeys summary_keys() const { return {stride, summary, kv_len}; }
    bool merges() const { return form == strided && factor == merged && stride > 1; }
    // Summary keys that are too many for a panel go in ranges, in one run.
    bool staged(const attend_plan_desc& desc) const {
        return form == strided || factor == first || summary_keys().fits(desc);
    }

    // Arrays of Hq entries.
    struct OfHeads {
        uint8_t *near, *far;
        int32_t* column;
    };
    static OfHeads take(Carve& carve, const attend_plan_desc& desc) {
        const int64_t bytes = (desc.num_q_heads + 3) / 4;
        return {reinterpret_cast<uint8_t*>(carve.take(bytes)), reinterpret_cast<uint8_t*>(carve.take(bytes)),
                reinterpret_cast<int32_t*>(carve.take(desc.num_q_heads))};
    }
    static uint64_t bytes(const attend_plan_desc& desc) {
        return 2 * Carve::floats((desc.num_q_heads + 3) / 4) + Carve::floats(desc.num_q_heads);
    }
    void fill(Pattern& pattern, const attend_plan_desc& desc, const OfHeads& of) const {
        for (int64_t h = 0; h < desc.num_q_heads; ++h) {
            of.near[h] = near(h) ? 1 : 0;
            of.far[h] = far(h) ? 1 : 0;
            of.column[h] = static_cast<int32_t>(column(h));
        }
        if (factor != second) {
            attend_pattern_term& term = pattern.add(form == strided ? attend_pattern_band(stride - 1, stride - 1)
                                                                    : attend_pattern_blocks(stride, 0, 0));
            if (factor == heads) term.heads = of.near;
        }
        if (factor == first) return;
        attend_pattern_term& term =
            pattern.add(form == strided ? attend_pattern_dilated(stride, ATTEND_UNLIMITED, ATTEND_UNLIMITED)
                                        : attend_pattern_columns(stride, column(0), column(0) + summary));
        if (factor == heads) term.heads = of.far;
        if (form == fixed && num_verts > 1) term.by_head = of.column;
    }
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const Layout layout(options, desc);
    if (layout.form == fixed && layout.summary > layout.stride)
        return (Message() << name << ": option \"summary\" is " << layout.summary << " and the stride is "
                          << layout.stride << "; accepted: 1 to " << layout.stride)
            .fail(error, ATTEND_BAD_OPTION, "summary");
    if (layout.form == fixed && layout.num_verts > layout.stride / layout.summary)
        return (Message() << name << ": options \"num_verts\" (" << layout.num_verts << ") times \"summary\" ("
                          << layout.summary << ") are more than the stride, " << layout.stride
                          << "; accepted: num_verts of 1 to " << layout.stride / layout.summary)
            .fail(error, ATTEND_BAD_OPTION, "num_verts");
    return refuse_outside(name, desc, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const Layout layout(options, desc);
    const uint64_t shown = Layout::bytes(desc) + tile_workspace(desc);
    uint64_t stages = 0;
    if (layout.form == strided) {
        for (int64_t head = 0; head < 2; ++head) {
            const uint64_t bytes = strided_workspace(layout.strided_keys(head), desc);
            stages = bytes > stages ? bytes : stages;
        }
    } else if (layout.staged(desc)) {
        stages = layout.summary_keys().bytes(desc) + Parts::workspace(desc, layout.summary_keys().limits(desc));
    }
    return stages > shown ? stages : shown;
}

attend_status run_fixed(const Layout& layout, const TileCall& call, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const SummaryKeys keys = layout.summary_keys();
    if (desc.q_len == 0) return ATTEND_OK;
    Carve carve(context);
    const SummaryKeys::Room room = keys.take(carve, desc);
    const Context rest = carve.rest(context);
    const Parts parts(call, desc, keys.limits(desc), rest);
    return Stages::run(args, context, carve, Between::nothing, [&](const StageUnit& unit) {
        const HeadRuns runs = layout.uniform() ? all_heads(unit, desc) : one_by_one(unit);
        const Stage stage{&unit, runs, -1, -1, nullptr, false};
        for (int64_t n = 0; n < stage.groups(); ++n) {
            const PartSpec spec = stage.spec(n);
            const attend_status status = keys.run_heads(parts, unit, spec, room, desc, layout.near(spec.head),
                                                        layout.far(spec.head), layout.column(spec.head));
            if (status != ATTEND_OK) return status;
        }
        return attend_status{ATTEND_OK};
    });
}

attend_status run_strided_form(const Layout& layout, const TileCall& call, const ForwardArgs& args,
                               const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (layout.uniform()) return run_strided(call, layout.strided_keys(0), args, context);
    Carve carve(context);
    return Stages::run(args, context, carve, Between::nothing, [&](const StageUnit& unit) {
        for (int64_t odd = 0; odd < 2; ++odd) {
            const HeadRuns every_other{odd, 2, (desc.num_q_heads + 1 - odd) / 2, 1};
            if (every_other.count == 0) continue;
            const attend_status status =
                relative_stages(call, layout.strided_keys(odd), unit, every_other, desc, carve.rest(context));
            if (status != ATTEND_OK) return status;
        }
        return attend_status{ATTEND_OK};
    });
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (const attend_status status = refuse_outside(name, args, context.error)) return status;
    const Layout layout(options, desc);
    TileCall call(args);
    if (args.scores == nullptr && layout.staged(desc))
        return layout.form == strided ? run_strided_form(layout, call, args, context)
                                      : run_fixed(layout, call, args, context);
    Carve carve(context);
    Pattern pattern(desc);
    layout.fill(pattern, desc, Layout::take(carve, desc));
    use_pattern(call.problem, pattern);
    return run_tiles(call, carve.rest(context));
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context& context) {
    Carve carve(context);
    Pattern pattern(*args.desc);
    const Layout layout(options, *args.desc);
    layout.fill(pattern, *args.desc, Layout::take(carve, *args.desc));
    PatternArgs rows = asked;
    // Far keys go class by class, whose rows do not stand side by side; each computes what it sees.
    if (layout.form == strided && rows.rows_at_once == 0) rows.rows_at_once = 1;
    return answer_pattern(pattern, *args.desc, rows, false);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const Layout layout(options, desc);
    double pairs[2];
    for (int64_t head = 0; head < 2; ++head)
        pairs[head] = ranges_pairs(desc, [&](int64_t p, KeyRanges& to) {
            if (layout.form == strided) return layout.strided_keys(head).ranges(p, to);
            // Columns are counted on the whole, to a block's accuracy.
            if (layout.near(head))
                to.add(floor_div(p, layout.stride) * layout.stride, (floor_div(p, layout.stride) + 1) * layout.stride,
                       1);
        });
    if (layout.form == fixed)
        for (int64_t head = 0; head < 2; ++head)
            if (layout.far(head))
                pairs[head] +=
                    visible_pairs(desc) * static_cast<double>(layout.summary) / static_cast<double>(layout.stride);
    softmax_cost(desc, 0.5 * (pairs[0] + pairs[1]), cost);
}

double error_bound(const Options& options, const PlanArgs& args) {
    const Layout layout(options, *args.desc);
    return layout.stride >= layout.kv_len && layout.factor == merged ? 0.0 : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    sparse_transformer,
    described<check, workspace, forward, cost, error_bound, pattern>(
        {.name = name,
         .category = "sparse",
         .title = "Sparse Transformer attention",
         .summary = "A local and a far factor that reach every earlier position in two steps, in O(n sqrt(n)).",
         .reference = "Child et al. 2019, Generating Long Sequences with Sparse Transformers, arXiv:1904.10509",
         .time = "O(n sqrt(n) d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula =
             "l = stride, c = summary, p the query's position; causal: only keys j <= p\n"
             "strided: A1 = keys with |p - j| < l, A2 = keys with p - j divisible by l\n"
             "fixed: A1 = keys of p's block of l, A2 = in each block the c columns from l - (v + 1) c on, v = head mod "
             "num_verts\n"
             "S = A1 and A2 (merged), A1 (first), A2 (second), or A1 in even and A2 in odd heads (heads)\n"
             "output = softmax over S of scale * q . k, times V",
         .cost = "stride near keys and Nk / stride far ones per query (times summary in the fixed form): O(n sqrt(n)) "
                 "with the "
                 "default stride.",
         .use = "For autoregressive models of very long sequences: strided for data with a period such as images, "
                "fixed for "
                "text. When a window is enough take local-attention; when documents have marked tokens "
                "longformer-attention.",
         .example = "attend compute sparse-transformer-attention --sequence-length 1024 --heads 8 --set pattern=fixed"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
