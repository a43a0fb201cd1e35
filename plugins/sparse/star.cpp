// SPDX-License-Identifier: Apache-2.0
// star-attention: spokes on a ring that exchange through hubs (mode hub), or context blocks with a shared anchor block and
// queries behind them that see everything, host by host (mode anchor).
//
// Paper    Guo et al. 2019, Star-Transformer, arXiv:1902.09113 (hub); Acharya et al. 2024, Star Attention, arXiv:2411.17116
// Formula  hub: spoke u of n: ring { |u - u'| <= ring_radius, cyclic: min(|u - u'|, n - |u - u'|) } + hubs + private key;
//          hub query: all hubs and all spokes
//          anchor: p_i < C: own block of block_size and keys below anchor_size; p_i >= C: all; causal cuts at j <= p_i
// Cost     hub O(Nq (2 rho + 1 + h) D + h Nk D); anchor O(C (a + b) D + (Nk - C) Nk D)
// Differs  the ring is cyclic or cut, never padded with zero keys; anchors are the same keys for all blocks, not copies

#include "attend/author/pattern.hpp"
#include "attend/toolkit/core/message.hpp"
#include "rows_inside.hpp"
#include "stages.hpp"
#include "star_hub.hpp"
#include "star_rows.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum Mode : int32_t { hub, anchor };
enum Source : int32_t { automatic, tokens, mean, external };

struct Options {
    int64_t ring_radius, block_size, anchor_size, num_hosts;
    OptionalInt num_hubs, context_length;
    int32_t mode, hub_source;
};

constexpr const char* name = "star-attention";
constexpr double longest = 2147483647.0;
constexpr const char* modes[] = {"hub", "anchor", nullptr};
constexpr const char* sources[] = {"auto", "tokens", "mean", "external", nullptr};
constexpr OptionRow option_table[] = {
    option_enum(
        ATTEND_FIELD(mode), "\"hub\"", modes,
        "hub: a ring of spokes around hubs; anchor: context blocks with a shared first block, then queries on all"),
    option_enum(
        ATTEND_FIELD(hub_source), "\"auto\"", sources,
        "tokens: the first tokens; mean: the mean of the sequence; external: hub_query, hub_key, hub_value; auto: "
        "external if given, else tokens",
        "mode=hub"),
    option_maybe_int(ATTEND_FIELD(num_hubs), {0, longest}, "hubs; default: 1, external: as many as hub_key has",
                     "mode=hub"),
    option_int(ATTEND_FIELD(ring_radius), "1", {0, longest}, "neighbours seen on each side of the ring", "mode=hub"),
    common::resolved(ATTEND_TYPE_BOOL, "cyclic", nullptr, {0, 1}, "the ring wraps around; default: true, causal: false",
                     nullptr, "mode=hub"),
    option_int(ATTEND_FIELD(block_size), "0", {0, longest}, "keys of a context block; 0: a quarter of the context",
               "mode=anchor"),
    option_int(ATTEND_FIELD(anchor_size), "0", {-1, longest},
               "leading keys that every block sees, at most block_size; 0: block_size; -1: none", "mode=anchor"),
    option_maybe_int(ATTEND_FIELD(context_length), {0, longest}, "keys of the context; default: all", "mode=anchor"),
    option_int(ATTEND_FIELD(num_hosts), "1", {1, longest},
               "parts that the keys of queries behind the context are split into, merged in order", "mode=anchor"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    input_port(0, "hub_query", "B,Hq,Nh,D", "queries of external hubs", ATTEND_OPTIONAL),
    input_port(0, "hub_key", "B,Hkv,Nh,D", "their keys", ATTEND_OPTIONAL),
    input_port(0, "hub_value", "B,Hkv,Nh,Dv", "their values", ATTEND_OPTIONAL),
    input_port(0, "private_key", "B,Hkv,Nq,D", "one more key of each query, seen by it alone", ATTEND_OPTIONAL),
    input_port(0, "private_value", "B,Hkv,Nq,Dv", "its value", ATTEND_OPTIONAL),
    ATTEND_MASK_PORTS,
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port("hub_source=mean & mode=hub: B,Hq,Nq,Nk+1 | hub_query: B,Hq,Nq,Nk+Nh | B,Hq,Nq,Nk"),
    output_port(0, "hub_output", "hub_source=mean & mode=hub: B,Hq,1,Dv | hub_query: B,Hq,Nh,Dv", "result of the hubs"),
    output_port(0, "hub_lse", "hub_source=mean & mode=hub: B,Hq,1 | hub_query: B,Hq,Nh",
                "their log of the sum of exponentials", ATTEND_OPTIONAL),
};

// The call in numbers.
struct Layout {
    int64_t hubs, radius, context, block, anchored, hosts, kv_len;
    int32_t mode, source;
    bool cyclic;

    Layout(const Options& options, const attend_plan_desc& desc, const attend_array& values) {
        kv_len = desc.kv_len;
        mode = options.mode;
        const attend_tensor* given = attend_find_name(&desc.bindings, "hub_key");
        source = mode == anchor ? tokens : options.hub_source;
        if (source == automatic) source = given != nullptr ? external : tokens;
        hubs = source == mean ? 1 : options.num_hubs.given ? options.num_hubs.value : 1;
        if (source == external && given != nullptr) hubs = given->shape[2];
        if (source == tokens && hubs > kv_len) hubs = kv_len;
        radius = options.ring_radius;
        const attend_value* wraps = attend_find_option(&values, "cyclic");
        cyclic = wraps != nullptr && wraps->type != 0 ? wraps->u.i != 0 : (desc.flags & ATTEND_PLAN_CAUSAL) == 0;
        context = options.context_length.given ? options.context_length.value : kv_len;
        block = options.block_size > 0 ? options.block_size : (context + 3) / 4 > 1 ? (context + 3) / 4 : 1;
        anchored = options.anchor_size == 0 ? block : options.anchor_size < 0 ? 0 : options.anchor_size;
        hosts = mode == anchor ? options.num_hosts : 1;
    }
    SpokeKeys spokes() const { return {leading(), radius, kv_len, cyclic}; }
    // Few enough keys per spoke to take them row by row.
    bool listed(const attend_plan_desc& desc, bool has_private) const {
        return mode == hub && source == tokens && !has_private && spokes().count() <= SpokeKeys::most &&
               (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) == 0;
    }
    int64_t extra() const { return mode == hub && source != tokens ? hubs : 0; }
    int64_t leading() const { return source == tokens ? hubs : 0; }

    // Keys [begin, end) of a host.
    void host(int64_t x, int64_t& begin, int64_t& end) const {
        const int64_t blocks = ceil_div(context, block), own = ceil_div(blocks, hosts);
        const auto edge = [&](int64_t of) {
            return of >= ceil_div(blocks, own > 0 ? own : 1) ? context : of * own * block;
        };
        begin = edge(x) < context ? edge(x) : context;
        end = x + 1 >= hosts ? kv_len : edge(x + 1) < context ? edge(x + 1) : context;
    }
    // Only the first host's keys for the rows behind the context, where others follow.
    void fill(Pattern& pattern, bool first_host) const {
        if (mode == anchor) {
            pattern.add(attend_pattern_for_rows(attend_pattern_blocks(block, 0, 0), 0, context));
            if (anchored > 0) pattern.add(attend_pattern_for_rows(attend_pattern_range(0, anchored), 0, context));
            int64_t begin = 0, end = kv_len;
            if (first_host) host(0, begin, end);
            pattern.add(attend_pattern_for_rows(attend_pattern_range(begin, end), context, ATTEND_UNLIMITED));
            return;
        }
        const int64_t h = leading();
        pattern.add(attend_pattern_for_other_rows(
            cyclic ? attend_pattern_ring(h, kv_len, radius) : attend_pattern_band(radius, radius), 0, h));
        if (h > 0) pattern.add(attend_pattern_range(0, h));
        if (h > 0) pattern.add(attend_pattern_for_rows(attend_pattern_all(), 0, h));
    }
    PartLimits limits(const attend_plan_desc& desc) const {
        const int64_t group = desc.num_kv_heads > 0 ? desc.num_q_heads / desc.num_kv_heads : 1;
        return {band_rows, kv_len, group, true};
    }
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const Layout layout(options, desc, *args.values);
    const auto given = [&](const char* input) { return attend_find_name(&desc.bindings, input) != nullptr; };
    const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    const int64_t tensors = (given("hub_query") ? 1 : 0) + (given("hub_key") ? 1 : 0) + (given("hub_value") ? 1 : 0);
    Message text;
    text << name << ": ";
    const auto refuse = [&](Message& what, const char* where) { return what.fail(error, ATTEND_BAD_OPTION, where); };
    if (given("private_key") != given("private_value"))
        return refuse(text << (given("private_key") ? "private_key is given without private_value"
                                                    : "private_value is given without private_key")
                           << "; accepted: both or neither",
                      "private_key");
    if (options.mode == anchor) {
        if (tensors > 0 || given("private_key"))
            return refuse(text << "option \"mode\" is anchor and "
                               << (tensors > 0 ? "hub tensors are" : "private_key is")
                               << " given; accepted: mode hub, or neither hub tensors nor private keys",
                          "mode");
        if (!causal)
            return refuse(text << "option \"mode\" is anchor and \"causal\" is false; accepted: causal true", "causal");
        if (layout.anchored > layout.block)
            return refuse(text << "option \"anchor_size\" is " << layout.anchored << " and blocks have " << layout.block
                               << " keys; accepted: -1 to " << layout.block,
                          "anchor_size");
        if (layout.context > desc.kv_len)
            return refuse(text << "option \"context_length\" is " << layout.context << " and there are " << desc.kv_len
                               << " keys; accepted: 0 to " << desc.kv_len,
                          "context_length");
        return refuse_outside(name, desc, error);
    }
    if (layout.source == mean && options.num_hubs.given && options.num_hubs.value != 1)
        return refuse(text << "option \"num_hubs\" is " << options.num_hubs.value
                           << " with hub_source mean, which makes one hub; accepted: 1",
                      "num_hubs");
    if (tensors != 0 && (layout.source == mean || options.hub_source == tokens))
        return refuse(text << "option \"hub_source\" is " << sources[layout.source]
                           << " and hub tensors are given; accepted: external, or no hub tensors",
                      "hub_source");
    if (layout.source == external ? tensors != 3 : tensors != 0)
        return refuse(
            text << tensors
                 << " of hub_query, hub_key and hub_value are given; accepted: all three with hub_source external, "
                    "else none",
            "hub_query");
    if (layout.source == external && options.num_hubs.given && options.num_hubs.value != layout.hubs)
        return refuse(text << "option \"num_hubs\" is " << options.num_hubs.value << " and hub_key has " << layout.hubs
                           << " rows; accepted: " << layout.hubs,
                      "num_hubs");
    if (causal && layout.source != tokens)
        return refuse(text << "option \"causal\" is true with hub_source " << sources[layout.source]
                           << ", whose hubs see the future; accepted: hub_source tokens, or causal false",
                      "causal");
    return refuse_outside(name, desc, error);
}

// Finished rows want their log-sum-exp.
attend_tile_hooks private_hooks(const PrivateKeys* keys) {
    attend_tile_hooks hooks{};
    hooks.flags = ATTEND_HOOKS_LSE;
    hooks.user = keys;
    hooks.finish = PrivateKeys::finish;
    return hooks;
}

struct Means {
    OwnTensor query, key, value;
    static uint64_t bytes(const attend_plan_desc& desc) {
        return Carve::floats(desc.batch * desc.num_q_heads * desc.head_dim) +
               Carve::floats(desc.batch * desc.num_kv_heads * desc.head_dim) +
               Carve::floats(desc.batch * desc.num_kv_heads * desc.value_dim);
    }
    void fill(const ForwardArgs& args, Carve& carve) {
        const attend_plan_desc& desc = *args.desc;
        const auto one = [&](OwnTensor& own, const attend_tensor& rows, int64_t heads, const attend_tensor* lengths) {
            float* to = carve.take(desc.batch * heads * rows.shape[3]);
            describe(own, to, desc.batch, heads, 1, rows.shape[3]);
            for (int64_t b = 0; b < desc.batch; ++b)
                for (int64_t h = 0; h < heads; ++h, to += rows.shape[3])
                    mean_rows(rows, b, h, lengths != nullptr ? integer_at(lengths, b) : rows.shape[2], to);
        };
        one(query, *args.query, desc.num_q_heads, args.query_lengths);
        one(key, *args.key, desc.num_kv_heads, args.key_lengths);
        one(value, *args.value, desc.num_kv_heads, args.key_lengths);
    }
};

uint64_t workspace(const Options& options, const PlanArgs& args) {
    attend_plan_desc desc = *args.desc;
    const Layout layout(options, desc, *args.values);
    const bool has_private = attend_find_name(&desc.bindings, "private_key") != nullptr;
    const attend_tile_hooks hooks = private_hooks(nullptr);
    uint64_t bytes = tile_workspace(desc, layout.extra(), 0, 0, has_private ? &hooks : nullptr);
    if (layout.hosts > 1) {
        const uint64_t parts = Parts::workspace(desc, layout.limits(desc));
        bytes = (bytes > parts ? bytes : parts) + Stages::workspace(desc, Between::results);
    }
    if (layout.listed(desc, has_private)) {
        const uint64_t listed = spoke_workspace(layout.spokes(), desc);
        bytes = bytes > listed ? bytes : listed;
    }
    const uint64_t shares = has_private ? Carve::floats(desc.batch * desc.num_q_heads * desc.q_len) : 0;
    desc.q_len = layout.extra();
    if (desc.q_len > 0) {
        desc.bindings = attend_array{};
        const uint64_t of_hubs = tile_workspace(desc, layout.extra());
        bytes = bytes > of_hubs ? bytes : of_hubs;
    }
    return bytes + shares + (layout.source == mean ? Means::bytes(desc) : 0);
}

// Rows behind the context on the keys of the second host and those after it.
attend_status other_hosts(const Layout& layout, const TileCall& call, const ForwardArgs& args, const StageUnit& unit,
                          const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const Parts parts(call, desc, layout.limits(desc), context);
    for (int64_t b = unit.batch; b < unit.batch + unit.batches; ++b) {
        StageUnit item = unit;
        item.batch = b, item.batches = 1;
        const Stage stage{&item, all_heads(item, desc), -1, -1, nullptr, true};
        const int64_t behind = layout.context - parts.offset_of(b), first = behind < 0 ? 0 : behind;
        if (first >= desc.q_len) continue;
        const int64_t blocks = ceil_div(layout.context, layout.block);
        for (int64_t x = 1; x < layout.hosts; ++x) {
            // Hosts beyond the blocks have nothing, but for the last.
            if (x > blocks && x + 1 < layout.hosts) x = layout.hosts - 1;
            int64_t begin, end;
            layout.host(x, begin, end);
            if (begin >= end) continue;
            const attend_status status = run_rows(parts, stage, desc, {begin, 1, end - begin}, first, desc.q_len);
            if (status != ATTEND_OK) return status;
        }
    }
    return ATTEND_OK;
}

attend_status run_hosts(const Layout& layout, TileCall& call, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Pattern pattern(desc);
    layout.fill(pattern, true);
    use_pattern(call.problem, pattern);
    Carve carve(context);
    return Stages::run(args, context, carve, Between::results, [&](const StageUnit& unit) {
        // The first host, and the context: a run of the engine into the unit's target.
        const Context rest = carve.rest(context);
        attend_tile_problem problem = call.problem;
        OwnTensor query, key, value, mask, bias, query_lengths, key_lengths;
        attend_key_segment segment = call.segments[0];
        if (unit.heads != desc.num_q_heads || unit.batches != desc.batch) {
            const auto cut = [&](OwnTensor& own, const attend_tensor* whole, int64_t head) -> const attend_tensor* {
                if (whole == nullptr) return nullptr;
                Parts::rows_of(own, *whole, whole->ndim > 1 && whole->shape[0] == 1 ? 0 : unit.batch, head, 1,
                               {0, 1, whole->ndim > 2 ? whole->shape[2] : 1});
                return &own.tensor;
            };
            const int64_t kv_head = unit.head * desc.num_kv_heads / desc.num_q_heads;
            problem.query = cut(query, problem.query, unit.head);
            segment.key = cut(key, segment.key, kv_head);
            segment.value = cut(value, segment.value, kv_head);
            problem.segments = &segment;
            problem.mask = cut(mask, problem.mask, unit.head);
            problem.bias = cut(bias, problem.bias, unit.head);
            problem.query_lengths = Parts::length_of(query_lengths, problem.query_lengths, unit.batch);
            problem.key_lengths = Parts::length_of(key_lengths, problem.key_lengths, unit.batch);
            problem.dropout_heads = desc.num_q_heads;
            problem.dropout_head = unit.batch * desc.num_q_heads + unit.head;
        }
        problem.output = unit.target.output;
        problem.lse = unit.target.lse;
        attend_status status = ATTEND_KERNEL(attend_tile_forward)(&problem, &rest);
        if (status == ATTEND_OK) status = other_hosts(layout, call, args, unit, rest);
        return status;
    });
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    attend_plan_desc desc = *args.desc;
    if (const attend_status status = refuse_outside(name, args, context.error)) return status;
    desc.bindings = *args.bindings;
    const Layout layout(options, desc, *args.values);
    TileCall call(args);
    if (layout.hosts > 1 && args.scores == nullptr) return run_hosts(layout, call, args, context);
    if (args.scores == nullptr && layout.listed(desc, attend_find_name(args.bindings, "private_key") != nullptr))
        return run_spokes(call, layout.spokes(), desc, context);
    Carve carve(context);
    Means means;
    HideHubs hides{args.key_lengths, desc.kv_len};
    const attend_tensor* hub_query = attend_find_name(args.bindings, "hub_query");
    if (layout.extra() > 0 && layout.source == mean) {
        means.fill(args, carve);
        hub_query = &means.query.tensor;
        call.add_segment(&means.key.tensor, &means.value.tensor,
                         ATTEND_SEGMENT_ALWAYS_VISIBLE | ATTEND_SEGMENT_NO_DROPOUT);
        if (args.key_lengths != nullptr || desc.kv_len == 0) {
            use_scores(call.problem, hides);
            call.problem.flags |= ATTEND_TILE_SCORE_HIDES;
        }
    } else if (layout.extra() > 0) {
        call.add_segment(attend_find_name(args.bindings, "hub_key"), attend_find_name(args.bindings, "hub_value"),
                         ATTEND_SEGMENT_ALWAYS_VISIBLE | ATTEND_SEGMENT_NO_DROPOUT);
    }
    attend_tile_problem of_hubs = call.problem;
    Pattern pattern(desc);
    layout.fill(pattern, false);
    use_pattern(call.problem, pattern);
    PrivateKeys privates{};
    attend_tile_hooks hooks{};
    const attend_tensor* private_key = attend_find_name(args.bindings, "private_key");
    if (private_key != nullptr) {
        privates = {view_of<const float, 4>(private_key),
                    view_of<const float, 4>(attend_find_name(args.bindings, "private_value")),
                    stored_view(args.query),
                    desc.head_dim,
                    desc.value_dim,
                    desc.num_q_heads,
                    desc.q_len,
                    layout.leading(),
                    call.problem.scale,
                    call.problem.softcap,
                    carve.take(desc.batch * desc.num_q_heads * desc.q_len)};
        hooks = private_hooks(&privates);
        call.problem.hooks = &hooks;
        for (int64_t at = 0; at < desc.batch * desc.num_q_heads * desc.q_len; ++at) privates.shares[at] = 1.0f;
    }
    const Context rest = carve.rest(context);
    attend_status status = run_tiles(call, rest);
    if (status != ATTEND_OK) return status;
    if (private_key != nullptr && args.scores != nullptr && !args.rows.logits) {
        const auto scores = view_of<float, 4>(args.scores);
        const int64_t begin = args.rows.first, end = args.rows.count > 0 ? begin + args.rows.count : desc.q_len;
        for (int64_t head = 0; head < desc.batch * desc.num_q_heads; ++head)
            for (int64_t i = begin; i < end; ++i)
                for (int64_t j = 0; j < scores.shape[3]; ++j)
                    *scores.at(head / desc.num_q_heads, head % desc.num_q_heads, i, j) *=
                        privates.shares[head * desc.q_len + i];
    }
    if (layout.extra() == 0 || args.rows.count > 0) return ATTEND_OK;
    // Hubs see each other and every key within the length, and nothing else applies to them.
    of_hubs.flags &= ~(ATTEND_TILE_CAUSAL | ATTEND_TILE_OFFSET_PER_ITEM);
    of_hubs.query = hub_query;
    of_hubs.output = attend_find_name(args.bindings, "hub_output");
    of_hubs.lse = attend_find_name(args.bindings, "hub_lse");
    of_hubs.scores = of_hubs.mask = of_hubs.bias = of_hubs.query_lengths = nullptr;
    of_hubs.window_left = of_hubs.window_right = -1;
    of_hubs.dropout = 0.0;
    return ATTEND_KERNEL(attend_tile_forward)(&of_hubs, &rest);
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context&) {
    Pattern pattern(*args.desc);
    Layout(options, *args.desc, *args.values).fill(pattern, false);
    return answer_pattern(pattern, *args.desc, asked, false);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const Layout layout(options, desc, *args.values);
    Pattern pattern(desc);
    layout.fill(pattern, false);
    const auto extra = static_cast<double>(layout.extra());
    softmax_cost(desc, pattern_pairs(pattern, desc, 0, false) + extra * static_cast<double>(desc.q_len + desc.kv_len),
                 cost);
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    star,
    described<check, workspace, forward, cost, error_bound, pattern>(
        {.name = name,
         .category = "sparse",
         .title = "Star attention",
         .summary =
             "Spokes on a ring that exchange through a few hubs; or context blocks with a shared anchor block, and "
             "queries behind them on everything.",
         .reference = "Guo et al. 2019, Star-Transformer, arXiv:1902.09113; Acharya et al. 2024, Star Attention, "
                      "arXiv:2411.17116",
         .time = "O(n (r + h) d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula =
             "hub: spokes see the ring_radius next spokes on each side (around the end if cyclic), all hubs, and "
             "their private key\n"
             "     hubs see all hubs and all keys; hubs are the first tokens, the mean of the sequence, or tensors\n"
             "anchor: queries before context_length see their block of block_size and the first anchor_size keys, "
             "those behind it all keys\n"
             "output = softmax over these of scale * q . k, times V; causal: only keys j <= p",
         .cost =
             "hub: 2 ring_radius + 1 + num_hubs keys per spoke and all keys per hub. anchor: block_size + anchor_size "
             "keys per query of the context, all keys per query behind it; num_hosts changes the order of sums alone.",
         .use = "hub: for many workers that share little, at the least cost per query. anchor: to encode a very long "
                "context "
                "block by block and then ask about all of it. For general long documents take longformer-attention.",
         .example =
             "attend compute star-attention --sequence-length 256 --heads 4 --set ring_radius=2 --set num_hubs=2"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
