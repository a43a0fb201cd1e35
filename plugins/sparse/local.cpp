// SPDX-License-Identifier: Apache-2.0
// local-attention: every query sees the keys near it, and a few global tokens; exact over those.
//
// Paper    sliding windows as in Beltagy et al. 2020, arXiv:2004.05150, section 3.1; blocked form: windows of whole blocks
// Formula  sliding: S(i) = { j : p_i - left <= j <= p_i + right } + globals
//          block:   S(i) = { j : c - look_backward <= floor(j / w) <= c + look_forward } + globals, c = floor(p_i / w)
//          a global query (p_i among the globals) sees all keys if global_rows; causal cuts each set at j <= p_i
// Cost     O(Nq * (left + right + 1 + globals) * D); nothing of size N x window is stored
// Differs  `window_size` counts one side; the three window options are this mechanism's own, so 0 means 0 keys

#include "attend/author/pattern.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum Mode : int32_t { sliding, block };

struct Options {
    int64_t window_size, look_backward;
    OptionalInt window_left, window_right, look_forward;
    IntList global_tokens;
    int32_t global_rows, mode;
};

constexpr double longest = 2147483647.0;
constexpr const char* modes[] = {"sliding", "block", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(window_size), "128", {0, longest},
               "keys seen in each direction, itself excluded; the block width in mode block"),
    option_maybe_int(ATTEND_FIELD(window_left), {-1, longest},
                     "keys seen to the left; -1: unlimited; default: window_size"),
    option_maybe_int(ATTEND_FIELD(window_right), {-1, longest},
                     "keys seen to the right; -1: unlimited; default: window_size"),
    option_int_list(ATTEND_FIELD(global_tokens), "0", {0, longest},
                    "leading keys that every query sees (a number), or their positions (a list)"),
    option_bool(ATTEND_FIELD(global_rows), true, "queries at global positions see all keys"),
    option_enum(ATTEND_FIELD(mode), "\"sliding\"", modes,
                "sliding: around each query; block: whole blocks of window_size keys"),
    option_int(ATTEND_FIELD(look_backward), "1", {0, longest}, "blocks seen before a query's own"),
    option_maybe_int(ATTEND_FIELD(look_forward), {0, longest},
                     "blocks seen after a query's own; default: 1, causal: 0"),
    ATTEND_CAUSAL_OPTIONS,
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

bool is_causal(const attend_plan_desc& desc) { return (desc.flags & ATTEND_PLAN_CAUSAL) != 0; }
int64_t left_of(const Options& options) {
    return options.window_left.given ? options.window_left.value : options.window_size;
}
int64_t right_of(const Options& options) {
    return options.window_right.given ? options.window_right.value : options.window_size;
}
int64_t forward_blocks(const Options& options, const attend_plan_desc& desc) {
    return options.look_forward.given ? options.look_forward.value : is_causal(desc) ? 0 : 1;
}

int64_t reach(int64_t width) { return width < 0 ? ATTEND_UNLIMITED : width; }

attend_status refuse(attend_error* error, const char* text, const char* where) {
    return attend_fail(error, ATTEND_BAD_OPTION, text, where);
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (options.mode == block) {
        if (options.window_size == 0)
            return refuse(error, "option \"window_size\" is 0 in mode block; accepted: 1 or more", "window_size");
        if (options.window_left.given || options.window_right.given)
            return refuse(error, "mode block reads window_size alone; accepted: no window_left, no window_right",
                          "window_left");
        if (is_causal(desc) && options.look_forward.given && options.look_forward.value > 0)
            return refuse(error, "option \"look_forward\" is above 0 with causal; accepted: 0", "look_forward");
    } else if (options.look_forward.given || was_given(*args.values, "look_backward")) {
        return refuse(error, "look_backward and look_forward belong to mode block; accepted: neither in mode sliding",
                      "look_backward");
    }
    const IntList& globals = options.global_tokens;
    if (globals.is_scalar || !was_given(*args.values, "global_tokens")) return ATTEND_OK;
    for (uint32_t at = 0; at < globals.count; ++at) {
        if (globals.items[at] >= desc.kv_len)
            return (Message() << "local-attention: option \"global_tokens\" lists the position " << globals.items[at]
                              << "; accepted: 0 to " << desc.kv_len - 1)
                .fail(error, ATTEND_BAD_OPTION, "global_tokens");
        for (uint32_t other = 0; other < at; ++other)
            if (globals.items[other] == globals.items[at])
                return refuse(error, "option \"global_tokens\" lists a position twice; accepted: distinct positions",
                              "global_tokens");
    }
    return ATTEND_OK;
}

// Positions of a list of globals, ascending, in memory for as many.
bool counts(const Options& options, const PlanArgs& args) {
    return options.global_tokens.is_scalar || !was_given(*args.values, "global_tokens");
}
void sort_globals(const IntList& given, int32_t* sorted) {
    for (uint32_t at = 0; at < given.count; ++at) {
        uint32_t place = at;
        for (; place > 0 && sorted[place - 1] > given.items[at]; --place) sorted[place] = sorted[place - 1];
        sorted[place] = static_cast<int32_t>(given.items[at]);
    }
}

void fill(Pattern& pattern, const Options& options, const PlanArgs& args, int32_t* sorted) {
    const attend_plan_desc& desc = *args.desc;
    pattern.add(options.mode == block
                    ? attend_pattern_blocks(options.window_size, options.look_backward, forward_blocks(options, desc))
                    : attend_pattern_band(reach(left_of(options)), reach(right_of(options))));
    const IntList& given = options.global_tokens;
    if (given.count == 0) return;
    if (counts(options, args)) {
        if (given.items[0] == 0) return;
        pattern.add(attend_pattern_range(0, given.items[0]));
        if (options.global_rows) pattern.add(attend_pattern_for_rows(attend_pattern_all(), 0, given.items[0]));
        return;
    }
    sort_globals(given, sorted);
    pattern.add(attend_pattern_listed(sorted, given.count));
    if (!options.global_rows) return;
    attend_pattern_term& rows = pattern.add(attend_pattern_all());
    rows.rows = ATTEND_ROWS_LISTED;
    rows.row_list.items = sorted;
    rows.row_list.count = given.count;
}

// Lanes of a query tile: those of mode block do not reach over the edge of a block.
int64_t tile_lanes(const Options& options, const attend_plan_desc& desc) {
    if (options.mode != block || desc.num_kv_heads < 1) return 0;
    return ATTEND_KERNEL(attend_pattern_query_tile)(options.window_size, desc.num_q_heads / desc.num_kv_heads);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return Carve::floats(int64_t{options.global_tokens.count}) +
           tile_workspace(*args.desc, 0, tile_lanes(options, *args.desc));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    auto* sorted = reinterpret_cast<int32_t*>(carve.take(int64_t{options.global_tokens.count}));
    Pattern pattern(desc);
    fill(pattern, options, {&desc, args.values}, sorted);
    TileCall call(args);
    call.problem.max_query_tile = tile_lanes(options, desc);
    call.problem.window_left = call.problem.window_right = -1;
    if (options.mode == sliding && pattern.pattern.num_terms == 1) {
        // A band alone is what the engine's own window is.
        call.problem.window_left = left_of(options);
        call.problem.window_right = right_of(options);
    } else {
        use_pattern(call.problem, pattern);
    }
    return run_tiles(call, carve.rest(context));
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    Pattern keys(desc);
    fill(keys, options, args, reinterpret_cast<int32_t*>(carve.take(int64_t{options.global_tokens.count})));
    const int64_t group = desc.num_kv_heads < 1 ? 1 : desc.num_q_heads / desc.num_kv_heads;
    return answer_pattern(keys, desc, asked, true, tile_lanes(options, desc) / group);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    constexpr uint32_t most = 1024;  // a longer list counts as columns and rows beside the band
    int32_t sorted[most];
    const IntList& given = options.global_tokens;
    Options counted = options;
    if (given.count > most) counted.global_tokens.count = 0;
    Pattern keys(*args.desc);
    fill(keys, counted, args, sorted);
    double pairs = pattern_pairs(keys, *args.desc, 0, true);
    if (given.count > most) {
        const auto nq = static_cast<double>(args.desc->q_len), nk = static_cast<double>(args.desc->kv_len);
        pairs += static_cast<double>(given.count) * (options.global_rows ? nq + nk : nq);
        pairs = pairs < nq * nk ? pairs : nq * nk;
    }
    softmax_cost(*args.desc, pairs, cost);
}

// Exact against full attention only where the pattern hides nothing.
double error_bound(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t longest_side = desc.q_len > desc.kv_len ? desc.q_len : desc.kv_len;
    const auto covers = [&](int64_t width) { return width < 0 || width >= longest_side - 1; };
    const bool all =
        options.mode == sliding && covers(left_of(options)) && (is_causal(desc) || covers(right_of(options)));
    return all ? 0.0 : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    local,
    described<check, workspace, forward, pattern, cost, error_bound>(
        {.name = "local-attention",
         .category = "sparse",
         .title = "Local (sliding-window) attention",
         .summary = "Every query sees the keys near it and a few global tokens: the cheapest exact "
                    "attention to the neighbourhood.",
         .reference = "Beltagy et al. 2020, Longformer, arXiv:2004.05150, section 3.1",
         .time = "O(n w d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula = "p = position of the query on the key axis\n"
                    "sliding: S = { j : p - window_left <= j <= p + window_right } + globals\n"
                    "block: S = { j : c - look_backward <= floor(j / window_size) <= c + look_forward } + globals,\n"
                    "       c = floor(p / window_size)\n"
                    "a query at a global position sees all keys (global_rows); causal keeps j <= p\n"
                    "output = softmax over S of scale * q.k, times the values",
         .cost = "Proportional to queries times the window (both sides, and the globals), not to queries times keys. "
                 "Memory beside the tensors is a few tiles, whatever the length.",
         .use = "Take it when what matters is near: long text read token by token, audio, time series, decoding with a "
                "bounded cache. Its layers see farther only by being stacked. For far-away context at linear cost take "
                "bigbird-attention or longformer-attention; for exact attention to everything flash-attention-v2.",
         .example = "attend compute local-attention --sequence-length 1024 --heads 4 --dim 32 --window-size 64"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
