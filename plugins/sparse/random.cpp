// SPDX-License-Identifier: Apache-2.0
// random-attention: every query sees num_keys keys drawn uniformly without replacement, exact over those.
//
// Paper    the random part of Zaheer et al. 2020, arXiv:2007.14062, section 2, with a fixed number of keys per query
// Formula  m = min(length, causal ? p_I + 1 : Nk) candidates, I the first row of i's group of query_block rows
//          S(i) = Subset(seed; row I, head; m, min(num_keys, m)); include_self: p_i and min(num_keys, m) - 1 of the others
// Cost     O(Nq * num_keys * (D + Dv)); memory num_keys integers per row in flight
// Differs  published code masks at random, which gives rows of any size; here every row has exactly min(num_keys, m) keys

#include "attend/author/gather.hpp"
#include "attend/toolkit/gather/subset.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int64_t num_keys, query_block;
    int32_t include_self, per_head;
};

constexpr double longest = 2147483647.0;
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(num_keys), "64", {1, longest}, "keys drawn for each query"),
    option_bool(ATTEND_FIELD(include_self), false, "the key at the query's own position is always one of them"),
    option_bool(ATTEND_FIELD(per_head), true, "every head draws its own keys; false: all use those of head 0"),
    option_int(ATTEND_FIELD(query_block), "1", {1, longest}, "neighbouring queries that share one set of keys"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    common::dropout(),
    common::seed("seed of the drawn keys, and of the dropout bits", nullptr),
    common::rng_offset(),
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

// What the draw of a row depends on.
struct Draw {
    uint64_t seed;
    int64_t num_keys;
    bool include_self, causal;

    int64_t keys(int64_t head, int64_t row, int64_t position, int64_t kv_len, int32_t* list, int32_t* memory) const {
        const int64_t m = causal && position + 1 < kv_len ? position + 1 : kv_len;
        if (m <= 0) return 0;
        const int64_t k = num_keys < m ? num_keys : m;
        const auto r = static_cast<uint32_t>(row), h = static_cast<uint32_t>(head);
        if (!include_self || position < 0 || position >= m) return draw_subset(seed, 0, r, h, m, k, list, memory);
        const int64_t others = draw_subset(seed, 0, r, h, m - 1, k - 1, list, memory);
        int64_t at = others;
        for (; at > 0 && list[at - 1] >= position; --at) list[at] = list[at - 1] + 1;
        list[at] = static_cast<int32_t>(position);
        return others + 1;
    }
    static int64_t of_row(const void* user, int64_t, int64_t head, int64_t row, int64_t position, int64_t kv_len,
                          int32_t* list, int32_t* memory) {
        return static_cast<const Draw*>(user)->keys(head, row, position, kv_len, list, memory);
    }
};

Draw draw_of(const Options& options, const attend_plan_desc& desc, uint64_t seed) {
    return {seed, options.num_keys, options.include_self != 0, (desc.flags & ATTEND_PLAN_CAUSAL) != 0};
}

attend_gather_problem lists_of(const Options& options, const attend_plan_desc& desc) {
    attend_gather_problem lists{};
    lists.flags = options.per_head ? 0u : ATTEND_GATHER_HEADS_SHARE;
    lists.most_keys = options.num_keys < desc.kv_len ? options.num_keys : desc.kv_len;
    lists.list_ints = options.num_keys < desc.kv_len ? subset_ints(lists.most_keys) : 0;
    lists.group_rows = options.query_block;
    return lists;
}

// Nothing is left out: then the rows are those of full attention, computed as such.
bool sees_all(const Options& options, const attend_plan_desc& desc) {
    return options.num_keys >= desc.kv_len && (options.query_block == 1 || (desc.flags & ATTEND_PLAN_CAUSAL) == 0);
}

attend_status check(const Options& options, const PlanArgs&, attend_error* error) {
    if (options.include_self && options.query_block > 1)
        return attend_fail(
            error, ATTEND_BAD_OPTION,
            "options \"include_self\" is true and \"query_block\" is above 1, but the queries of a block "
            "have different positions; accepted: query_block 1, or include_self false",
            "query_block");
    return ATTEND_OK;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_gather_problem lists = lists_of(options, desc);
    const uint64_t listed = Carve::floats(lists.most_keys) + Carve::floats(lists.list_ints);  // of pattern
    const uint64_t engine = sees_all(options, desc) ? tile_workspace(desc) : gather_workspace(desc, lists);
    return engine > listed ? engine : listed;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const TileCall call(args);
    if (sees_all(options, desc)) return run_tiles(call, context);
    const Draw draw = draw_of(options, desc, args.exec != nullptr ? args.exec->seed : 0);
    attend_gather_problem problem = lists_of(options, desc);
    problem.call = &call.problem;
    problem.keys = Draw::of_row;
    problem.keys_user = &draw;
    return ATTEND_KERNEL(attend_gather_forward)(&problem, &context);
}

// What the window leaves of a list.
int64_t inside(const attend_plan_desc& desc, int64_t position, int32_t* list, int64_t count) {
    int64_t kept = 0;
    for (int64_t at = 0; at < count; ++at)
        if ((desc.window_left < 0 || list[at] >= position - desc.window_left) &&
            (desc.window_right < 0 || list[at] <= position + desc.window_right))
            list[kept++] = list[at];
    return kept;
}

// Runs of neighbouring keys; several rows with sets of their own are told by the span of what they see.
attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const attend_value* given = attend_find_option(args.values, "seed");
    const Draw draw = draw_of(options, desc, given != nullptr ? static_cast<uint64_t>(given->u.i) : 0);
    const attend_gather_problem lists = lists_of(options, desc);
    Carve carve(context);
    auto* list = reinterpret_cast<int32_t*>(carve.take(lists.most_keys));
    auto* memory = reinterpret_cast<int32_t*>(carve.take(lists.list_ints));
    const int64_t g = options.query_block, end = asked.first_row + asked.num_rows;
    const int64_t step = asked.rows_at_once > 0 ? asked.rows_at_once : g;
    const bool windowed = desc.window_left >= 0 || desc.window_right >= 0;
    for (int64_t row = asked.first_row; row < end; row += step) {
        const int64_t rows = row + step < end ? step : end - row, last = row + rows - 1;
        attend_pattern_keys span{desc.kv_len, 0, 1, ATTEND_PATTERN_PARTIAL, 0};
        for (int64_t group = row / g * g; group <= last; group += g) {
            int64_t count = draw.keys(options.per_head ? asked.head : 0, group, group + desc.causal_offset, desc.kv_len,
                                      list, memory);
            if (windowed && rows == 1) count = inside(desc, row + desc.causal_offset, list, count);
            for (int64_t from = 0, at = 1; at <= count; ++at) {
                if (at < count && list[at] == list[at - 1] + 1) continue;
                const attend_pattern_keys keys{list[from], int64_t{list[at - 1]} + 1, 1,
                                               windowed && rows > 1 ? ATTEND_PATTERN_PARTIAL : 0u, 0};
                from = at;
                span.begin = keys.begin < span.begin ? keys.begin : span.begin;
                span.end = keys.end > span.end ? keys.end : span.end;
                if (row / g == last / g) asked.visit(asked.visitor, row, rows, &keys);
            }
        }
        if (row / g != last / g && span.begin < span.end) asked.visit(asked.visitor, row, rows, &span);
    }
    return ATTEND_OK;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    double pairs = 0.0;
    for (int64_t i = 0; i < desc.q_len; ++i) {
        const int64_t position = i / options.query_block * options.query_block + desc.causal_offset;
        const int64_t m = causal && position + 1 < desc.kv_len ? position + 1 : desc.kv_len;
        if (m > 0) pairs += static_cast<double>(options.num_keys < m ? options.num_keys : m);
    }
    softmax_cost(desc, pairs, cost);
}

double error_bound(const Options& options, const PlanArgs& args) {
    return sees_all(options, *args.desc) ? 0.0 : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    random,
    described<check, workspace, forward, cost, error_bound, pattern>(
        {.name = "random-attention",
         .category = "sparse",
         .title = "Random attention",
         .summary =
             "Every query sees a fixed number of keys drawn at random without replacement: the baseline of sparse "
             "patterns.",
         .reference = "Zaheer et al. 2020, Big Bird, arXiv:2007.14062, section 2",
         .time = "O(n k d)",
         .space = "O(n d)",
         .caps = softmax_caps | ATTEND_CAP_CAUSAL | ATTEND_CAP_WINDOW,
         .numerics = ATTEND_APPROXIMATE,
         .formula = "m = min(key length, causal ? p + 1 : Nk) candidates for a query at position p\n"
                    "S = min(num_keys, m) of the keys 0 .. m - 1, drawn without replacement by (seed, query, head)\n"
                    "include_self: p and min(num_keys, m) - 1 of the other keys\n"
                    "output = softmax over S of scale * q . k, times V",
         .cost = "num_keys products per query and as many random numbers; no mask and no shuffled copy of the keys. "
                 "query_block of 8 or more turns gathered rows into small matrix products.",
         .use = "As a baseline for other sparse patterns, or mixed with a local one. For real documents take "
                "bigbird-attention, which adds a window and global blocks; for exact results take flash-attention-v2.",
         .example = "attend compute random-attention --sequence-length 256 --heads 4 --set num_keys=16"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
