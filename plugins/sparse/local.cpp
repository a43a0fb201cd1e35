// SPDX-License-Identifier: Apache-2.0
// local-attention: every query sees the keys near it, and a few global tokens; exact over those.
//
// Paper    sliding windows as in Beltagy et al. 2020, arXiv:2004.05150, section 3.1; blocked form: windows of whole blocks
// Formula  sliding: S(i) = { j : p_i - left <= j <= p_i + right } + globals
//          block:   S(i) = { j : c - look_backward <= floor(j / w) <= c + look_forward } + globals, c = floor(p_i / w)
//          a global query (p_i among the globals) sees all keys if global_rows; causal cuts each set at j <= p_i
// Cost     O(Nq * (left + right + 1 + globals) * D); nothing of size N x window is stored
// Differs  `window_size` counts one side; the three window options are this mechanism's own, so 0 means 0 keys

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/keys/band.hpp"
#include "attend/toolkit/tile/keys/block.hpp"

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

// Positions ascending, behind the engine's scratch.
uint64_t workspace(const Options& options, const PlanArgs& args) {
    return Carve::floats(int64_t{options.global_tokens.count}) + tile_workspace(*args.desc);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const IntList& given = options.global_tokens;
    const bool counted = given.is_scalar || !was_given(*args.values, "global_tokens");
    Carve carve(context);
    auto* sorted = reinterpret_cast<int32_t*>(carve.take(int64_t{given.count}));
    for (uint32_t at = 0; at < given.count && !counted; ++at) {
        uint32_t place = at;
        for (; place > 0 && sorted[place - 1] > given.items[at]; --place) sorted[place] = sorted[place - 1];
        sorted[place] = static_cast<int32_t>(given.items[at]);
    }
    const int64_t count =
        counted && given.count > 0 ? (given.items[0] < desc.kv_len ? given.items[0] : desc.kv_len) : 0;
    TileCall call(args);
    call.problem.window_left = call.problem.window_right = -1;
    GlobalKeys globals{};
    globals.num_leading = &count;
    globals.listed = counted ? nullptr : sorted;
    globals.num_listed = counted ? 0 : given.count;
    globals.rows_see_all = options.global_rows;
    BandKeys band{};
    BlockKeys blocks{};
    if (options.mode == block) {
        blocks.width = options.window_size;
        blocks.back = options.look_backward;
        blocks.forward = forward_blocks(options, desc);
        blocks.globals = globals;
        use_keys(call.problem, blocks);
    } else {
        band.left = left_of(options);
        band.right = right_of(options);
        band.globals = globals;
        use_keys(call.problem, band);
    }
    return run_tiles(call, carve.rest(context));
}

// The pattern's pairs: the band or the blocks, cut at the diagonal, and the global columns and rows.
double pairs(const Options& options, const attend_plan_desc& desc) {
    attend_plan_desc band = desc;
    const int64_t w = options.window_size;
    band.window_left = options.mode == block ? options.look_backward * w + w / 2 : left_of(options);
    band.window_right = options.mode == block ? forward_blocks(options, desc) * w + (w - 1) / 2 : right_of(options);
    const IntList& globals = options.global_tokens;
    const double columns = globals.count == 0                        ? 0.0
                           : globals.is_scalar || globals.count == 1 ? static_cast<double>(globals.items[0])
                                                                     : globals.count;
    const double all = static_cast<double>(desc.q_len) * static_cast<double>(desc.kv_len);
    const double sum =
        visible_pairs(band) + columns * static_cast<double>(desc.q_len + (options.global_rows ? desc.kv_len : 0));
    return sum < all ? sum : all;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    softmax_cost(*args.desc, pairs(options, *args.desc), cost);
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

ATTEND_MECHANISM(local, described<check, workspace, forward, cost, error_bound>(
                            {.name = "local-attention",
                             .category = "sparse",
                             .title = "Local (sliding-window) attention",
                             .summary = "Every query sees the keys near it and a few global tokens: the cheapest exact "
                                        "attention to the neighbourhood.",
                             .reference = "Beltagy et al. 2020, Longformer, arXiv:2004.05150, section 3.1",
                             .time = "O(n w d)",
                             .space = "O(n d)",
                             .numerics = ATTEND_APPROXIMATE},
                            option_table, port_table))

}  // namespace attend::ATTEND_ISA
