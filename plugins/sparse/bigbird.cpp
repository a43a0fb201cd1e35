// SPDX-License-Identifier: Apache-2.0
// bigbird-attention: blocks around the query's own, global blocks, random blocks; exact over those.
//
// Paper    Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences, arXiv:2007.14062, section 2
// Formula  blocks of block_size keys; I = block of p_i; W = I - omega .. I + omega, omega = (num_window_blocks - 1) / 2
//          G = the first global_left and last global_right blocks; R = num_random_blocks of the others (causal: of
//          those before W), drawn by row block and head; S(i) = keys of W + G + R, all keys where I is in G
//          etc: and G extra tokens, which every query sees and which see everything
// Cost     O(Nq * (window + random + global blocks) * block_size * D) + O(global rows * Nk * D)
// Differs  a block that window and draw both name counts once; draws are uniform over all eligible blocks

#include "attend/author/by_head.hpp"
#include "attend/author/pattern.hpp"
#include "attend/toolkit/gather/subset.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum Mode : int32_t { itc, etc };

struct Options {
    int64_t block_size, num_window_blocks, num_random_blocks;
    OptionalInt global_left, global_right, window_size, num_global_tokens;
    int32_t mode, head_shared;
};

constexpr double longest = 2147483647.0;
constexpr const char* modes[] = {"itc", "etc", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(block_size), "64", {1, longest}, "keys of a block"),
    option_int(ATTEND_FIELD(num_window_blocks), "3", {1, longest},
               "blocks around the query's own, itself included: odd"),
    option_maybe_int(ATTEND_FIELD(global_left), {0, longest},
                     "leading blocks that all see and that see all; default: 1, mode etc: 0"),
    option_maybe_int(ATTEND_FIELD(global_right), {0, longest}, "last blocks likewise; default: 1, mode etc: 0"),
    option_int(ATTEND_FIELD(num_random_blocks), "3", {0, longest}, "blocks drawn for each row block"),
    option_enum(ATTEND_FIELD(mode), "\"itc\"", modes,
                "itc: global tokens are blocks of the sequence; etc: extra tokens with tensors of their own"),
    option_bool(ATTEND_FIELD(head_shared), false, "all heads use the draws of head 0"),
    option_maybe_int(
        ATTEND_FIELD(window_size), {0, longest},
        "tokens of the window instead of num_window_blocks: 2 ceil(window_size / (2 block_size)) + 1 blocks"),
    option_maybe_int(
        ATTEND_FIELD(num_global_tokens), {0, longest},
        "tokens instead of global_left and global_right: ceil(num_global_tokens / block_size) and 0 blocks"),
    ATTEND_CAUSAL_OPTIONS,
    common::window_left(),
    common::window_right(),
    ATTEND_SCORE_OPTIONS,
    common::dropout(),
    common::seed("seed of the drawn blocks, and of the dropout bits", nullptr),
    common::rng_offset(),
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    input_port(0, "global_query", "mode=etc: B,Hq,G,D", "queries of the extra tokens"),
    input_port(0, "global_key", "mode=etc: B,Hkv,G,D", "their keys"),
    input_port(0, "global_value", "mode=etc: B,Hkv,G,Dv", "their values"),
    ATTEND_MASK_PORTS,
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port("mode=etc: B,Hq,Nq,Nk+G | B,Hq,Nq,Nk"),
    output_port(0, "global_output", "mode=etc: B,Hq,G,Dv", "result of the extra tokens"),
    output_port(0, "global_lse", "mode=etc: B,Hq,G", "their log of the sum of exponentials", ATTEND_OPTIONAL),
};

int64_t value_or(const attend_array& values, const char* name, int64_t otherwise) {
    const attend_value* value = attend_find_option(&values, name);
    return value != nullptr && value->type != 0 ? value->u.i : otherwise;
}
int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The call's blocks. Numbers of blocks are cut at what there is.
struct Layout {
    int64_t width, blocks, reach;      // reach: omega
    int64_t middle_begin, middle_end;  // blocks that are not global
    int64_t random;                    // most draws of a row block; as many as there are: everything is seen
    bool causal, all;

    Layout(const Options& options, const attend_plan_desc& desc) {
        width = options.block_size;
        blocks = up(desc.kv_len, width);
        const int64_t window =
            options.window_size.given ? 2 * up(options.window_size.value, 2 * width) + 1 : options.num_window_blocks;
        reach = (window - 1) / 2;
        const int64_t usual = options.mode == etc ? 0 : 1;
        int64_t left = options.global_left.given ? options.global_left.value : usual;
        int64_t right = options.global_right.given ? options.global_right.value : usual;
        if (options.num_global_tokens.given) {
            left = up(options.num_global_tokens.value, width);
            right = 0;
        }
        middle_begin = left < blocks ? left : blocks;
        middle_end = blocks - right > middle_begin ? blocks - right : middle_begin;
        causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
        const int64_t middle = middle_end - middle_begin;
        all = options.num_random_blocks >= middle;
        random = all ? 0 : options.num_random_blocks;
    }
    // Blocks that may be drawn for row block I: [first_begin, first_end) and then [second_begin, second_end).
    struct Eligible {
        int64_t first_begin, first_end, second_begin, second_end;
        int64_t count() const { return first_end - first_begin + second_end - second_begin; }
        int32_t at(int64_t t) const {
            const int64_t first = first_end - first_begin;
            return static_cast<int32_t>(t < first ? first_begin + t : second_begin + t - first);
        }
    };
    Eligible eligible(int64_t row_block) const {
        const auto cut = [&](int64_t x) { return x < middle_begin ? middle_begin : x > middle_end ? middle_end : x; };
        const int64_t after = causal ? middle_end : cut(row_block + reach + 1);
        return {middle_begin, cut(row_block - reach), after, middle_end};
    }
    int64_t table_ints() const { return blocks * random; }
    // The blocks of every row block for a head: `random` entries each, the rest negative.
    void draw(uint64_t seed, int64_t head, int32_t* table, int32_t* memory) const {
        for (int64_t row = 0; row < blocks; ++row) {
            int32_t* list = table + row * random;
            const bool global = row < middle_begin || row >= middle_end;
            const Eligible from = eligible(row);
            const int64_t count = global ? 0
                                         : draw_subset(seed, 1, static_cast<uint32_t>(row), static_cast<uint32_t>(head),
                                                       from.count(), random, list, memory);
            for (int64_t at = 0; at < count; ++at) list[at] = from.at(list[at]);
            for (int64_t at = count; at < random; ++at) list[at] = -1;
        }
    }
    // Everything but the draws, which `table` has, one head after the other.
    void fill(Pattern& pattern, const int32_t* table, bool by_head) const {
        if (blocks == 0) return;
        if (all) {
            pattern.add(attend_pattern_all());
            return;
        }
        const int64_t left = middle_begin * width, right = middle_end * width;
        pattern.add(attend_pattern_blocks(width, reach, reach));
        if (left > 0) pattern.add(attend_pattern_range(0, left));
        if (middle_end < blocks) pattern.add(attend_pattern_range(right, ATTEND_UNLIMITED));
        if (left > 0 || middle_end < blocks)
            pattern.add(attend_pattern_for_other_rows(attend_pattern_all(), left, right));
        if (random == 0 || table == nullptr) return;
        attend_pattern_term& map = pattern.add(attend_pattern_term_of(ATTEND_PATTERN_BLOCK_MAP, 0, 0, width, 0, 0));
        map.blocks = table;
        map.row_stride = map.most_blocks = random;
        map.num_row_blocks = blocks;
        map.head_stride = by_head ? table_ints() : 0;
    }
};

int64_t extra_tokens(const attend_plan_desc& desc) {
    const attend_tensor* query = attend_find_name(&desc.bindings, "global_query");
    return query != nullptr && query->ndim == 4 ? query->shape[2] : 0;
}

attend_status refuse(attend_error* error, const char* text, const char* where) {
    return attend_fail(error, ATTEND_BAD_OPTION, text, where);
}

constexpr const char* name = "bigbird-attention";

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (options.num_window_blocks % 2 == 0)
        return (Message() << "bigbird-attention: option \"num_window_blocks\" is " << options.num_window_blocks
                          << "; accepted: an odd number")
            .fail(error, ATTEND_BAD_OPTION, "num_window_blocks");
    if (options.window_size.given && was_given(*args.values, "num_window_blocks"))
        return (Message() << "bigbird-attention: options \"window_size\" (" << options.window_size.value
                          << ") and \"num_window_blocks\" (" << options.num_window_blocks
                          << ") are two names of one thing; accepted: one of them")
            .fail(error, ATTEND_BAD_OPTION, "window_size");
    const OptionalInt& side = options.global_left.given ? options.global_left : options.global_right;
    if (options.num_global_tokens.given && side.given)
        return (Message() << "bigbird-attention: options \"num_global_tokens\" (" << options.num_global_tokens.value
                          << ") and " << (options.global_left.given ? "\"global_left\" (" : "\"global_right\" (")
                          << side.value << ") are two names of one thing; accepted: one of them")
            .fail(error, ATTEND_BAD_OPTION, "num_global_tokens");
    if (options.mode == etc && (desc.flags & ATTEND_PLAN_CAUSAL) != 0)
        return refuse(error,
                      "options \"causal\" is true and \"mode\" is etc, but the extra tokens see the future; accepted: "
                      "mode itc, or causal false",
                      "causal");
    return check_plan_positions(name, desc, error);
}

// Head by head where the heads of a key head have draws of their own, which would have to be united tile by tile, and
// where the draws of all heads at once take much memory.
bool goes_by_head(const Options& options, const Layout& layout, const attend_plan_desc& desc) {
    constexpr int64_t most_ints = int64_t{1} << 21;
    if (options.head_shared || layout.random == 0) return false;
    return desc.num_q_heads > desc.num_kv_heads || layout.table_ints() * desc.num_q_heads > most_ints;
}
int64_t tables(const Options& options, const Layout& layout, const attend_plan_desc& desc) {
    return options.head_shared || goes_by_head(options, layout, desc) ? 1 : desc.num_q_heads;
}
int64_t tile_lanes(const Options& options, const Layout& layout, const attend_plan_desc& desc) {
    const bool together = !goes_by_head(options, layout, desc) && desc.num_kv_heads > 0;
    return ATTEND_KERNEL(attend_pattern_query_tile)(layout.width, together ? desc.num_q_heads / desc.num_kv_heads : 1);
}
attend_plan_desc of_extra(const attend_plan_desc& desc, int64_t extra) {
    attend_plan_desc own = desc;
    own.q_len = extra;
    return own;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const Layout layout(options, desc);
    const bool by_head = goes_by_head(options, layout, desc);
    const int64_t extra = extra_tokens(desc);
    const uint64_t tiles = tile_workspace(by_head ? one_head(desc) : desc, extra, tile_lanes(options, layout, desc));
    const uint64_t extra_tiles = options.mode == etc ? tile_workspace(of_extra(desc, extra), extra) : 0;
    return Carve::floats(tables(options, layout, desc) * layout.table_ints()) +
           Carve::floats(subset_ints(layout.random)) + (tiles > extra_tiles ? tiles : extra_tiles);
}

// The extra tokens' own rows: they see each other and every key within the length.
attend_status forward_extra(const ForwardArgs& args, const TileCall& whole, const Context& context) {
    attend_tile_problem problem = whole.problem;
    problem.flags &= ~(ATTEND_TILE_CAUSAL | ATTEND_TILE_OFFSET_PER_ITEM);
    problem.query = attend_find_name(args.bindings, "global_query");
    problem.output = attend_find_name(args.bindings, "global_output");
    problem.lse = attend_find_name(args.bindings, "global_lse");
    problem.scores = problem.mask = problem.bias = problem.query_lengths = nullptr;
    problem.window_left = problem.window_right = -1;
    problem.dropout = 0.0;
    problem.max_query_tile = 0;
    problem.keys = nullptr;
    problem.keep = nullptr;
    return ATTEND_KERNEL(attend_tile_forward)(&problem, &context);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (const attend_status status = check_call_positions(name, args, context.error)) return status;
    const Layout layout(options, desc);
    const bool by_head = goes_by_head(options, layout, desc);
    const int64_t heads = tables(options, layout, desc);
    Carve carve(context);
    auto* table = reinterpret_cast<int32_t*>(carve.take(heads * layout.table_ints()));
    auto* memory = reinterpret_cast<int32_t*>(carve.take(subset_ints(layout.random)));
    const Context rest = carve.rest(context);
    const uint64_t seed = args.exec != nullptr ? args.exec->seed : 0;
    if (layout.random > 0 && !by_head)
        for (int64_t head = 0; head < heads; ++head)
            layout.draw(seed, head, table + head * layout.table_ints(), memory);

    TileCall call(args);
    if (options.mode == etc)
        call.add_segment(attend_find_name(args.bindings, "global_key"), attend_find_name(args.bindings, "global_value"),
                         ATTEND_SEGMENT_ALWAYS_VISIBLE | ATTEND_SEGMENT_NO_DROPOUT);
    call.problem.window_left = value_or(*args.values, "window_left", -1);
    call.problem.window_right = value_or(*args.values, "window_right", -1);
    call.problem.max_query_tile = tile_lanes(options, layout, desc);
    Pattern pattern(desc);
    layout.fill(pattern, table, heads > 1);
    if (!layout.all) use_pattern(call.problem, pattern);
    attend_status status = ATTEND_OK;
    if (by_head)
        for (int64_t head = 0; head < desc.num_q_heads && status == ATTEND_OK; ++head) {
            layout.draw(seed, head, table, memory);
            const HeadCall one(call, args, head);
            status = ATTEND_KERNEL(attend_tile_forward)(&one.problem, &rest);
        }
    else
        status = run_tiles(call, rest);
    if (status != ATTEND_OK || options.mode != etc || args.rows.count > 0) return status;
    return forward_extra(args, call, rest);
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context& context) {
    attend_plan_desc desc = *args.desc;
    desc.window_left = value_or(*args.values, "window_left", -1);
    desc.window_right = value_or(*args.values, "window_right", -1);
    const Layout layout(options, desc);
    Carve carve(context);
    auto* table = reinterpret_cast<int32_t*>(carve.take(layout.table_ints()));
    auto* memory = reinterpret_cast<int32_t*>(carve.take(subset_ints(layout.random)));
    const auto seed = static_cast<uint64_t>(value_or(*args.values, "seed", 0));
    if (layout.random > 0) layout.draw(seed, options.head_shared ? 0 : asked.head, table, memory);
    Pattern keys(desc);
    layout.fill(keys, table, false);
    return answer_pattern(keys, desc, asked, false, ATTEND_KERNEL(attend_pattern_query_tile)(layout.width, 1));
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    attend_plan_desc desc = *args.desc;
    desc.window_left = value_or(*args.values, "window_left", -1);
    desc.window_right = value_or(*args.values, "window_right", -1);
    const Layout layout(options, desc);
    Pattern fixed(desc);
    layout.fill(fixed, nullptr, false);
    double pairs = pattern_pairs(fixed, desc, 0, false);
    const double windowless = desc.window_left < 0 && desc.window_right < 0 ? 1.0 : 0.0;
    for (int64_t row = layout.middle_begin; row < layout.middle_end && layout.random > 0; ++row) {
        const int64_t begin = row * layout.width - desc.causal_offset, end = begin + layout.width;
        const int64_t rows = (end < desc.q_len ? end : desc.q_len) - (begin > 0 ? begin : 0);
        const int64_t eligible = layout.eligible(row).count();
        const int64_t drawn = eligible < layout.random ? eligible : layout.random;
        if (rows > 0) pairs += windowless * static_cast<double>(rows) * static_cast<double>(drawn * layout.width);
    }
    const auto nq = static_cast<double>(desc.q_len), nk = static_cast<double>(desc.kv_len);
    const auto extra = static_cast<double>(extra_tokens(desc));
    if (pairs > nq * nk) pairs = nq * nk;
    softmax_cost(desc, pairs + extra * (nq + extra + nk), cost);
}

// Exact against full attention only where every block is seen.
double error_bound(const Options& options, const PlanArgs& args) {
    const Layout layout(options, *args.desc);
    return layout.all || layout.reach >= layout.blocks - 1 ? 0.0 : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    bigbird,
    described<check, workspace, forward, pattern, cost, error_bound>(
        {.name = "bigbird-attention",
         .category = "sparse",
         .title = "BigBird attention",
         .summary =
             "Long documents at linear cost: every token sees the blocks around it, a few global blocks and a few "
             "random ones.",
         .reference = "Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences, arXiv:2007.14062, section 2",
         .time = "O(n (w + r + g) b d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula = "keys in blocks of block_size; I = block of the query\n"
                    "W = blocks within (num_window_blocks - 1) / 2 of I\n"
                    "G = the first global_left and the last global_right blocks\n"
                    "R = num_random_blocks blocks outside W and G, drawn from seed, I and head (causal: before W)\n"
                    "S = keys of W + G + R; all keys if I is in G; etc: and all extra tokens\n"
                    "output = softmax over S of scale * q.k, times the values",
         .cost =
             "Proportional to queries times (window + global + random blocks) times block_size, and the rows of global "
             "blocks times all keys. Memory beside the tensors is a few tiles and one number per drawn block.",
         .use =
             "Take it for documents of thousands of tokens where every part may matter: the window keeps the order of "
             "words, global blocks carry a summary, random blocks shorten the way between far places. With chosen "
             "global tokens longformer-attention fits better; where only the neighbourhood matters local-attention is "
             "cheaper.",
         .example = "attend compute bigbird-attention --sequence-length 2048 --heads 4 --dim 32 --set block_size=32"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
