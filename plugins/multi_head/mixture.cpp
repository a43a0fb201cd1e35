// SPDX-License-Identifier: Apache-2.0
// mixture-attention: each head blends several attention patterns over the same keys, each with a softmax of its own.
//
// Paper    Xiao et al. 2024, DuoAttention, arXiv:2410.10819 (gated full and streaming attention), for P patterns and convex gates;
//          gates of each token as in Yuan et al. 2025, arXiv:2502.11089
// Formula  o_i = sum_p g_p(i) softmax over the keys that pattern p shows of (scale q_i . k_j) v_j
// Cost     one product with the keys of the union, one value product of each pattern on its own keys
// Differs  outputs are mixed, not logits; a pattern without keys adds nothing and the gates stay as they are

#include <math.h>
#include <stdio.h>

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/simd/isa.hpp"
#include "attend/toolkit/tile/keys/pattern_list.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    IntList patterns;
    int32_t gate_mode;
};
enum GateMode : int32_t { fixed, clamp_gate, hard, query_softmax, query_sigmoid, given };

constexpr const char* pattern_names[] = {"global",    "local(w)",   "remote(w)", "dilated(w,r)",
                                         "sink(s,w)", "strided(c)", "block(b)",  nullptr};
constexpr const char* gate_modes[] = {"static", "clamp", "hard", "query-softmax", "query-sigmoid", "explicit", nullptr};
constexpr OptionRow option_table[] = {
    option_word_list(offsetof(Options, patterns), "patterns", "[\"global\",\"local(256)\",\"dilated(256,2)\"]",
                     pattern_names, 6,
                     "what is mixed, 1 to 16 patterns: local |i'-j| < w, remote the rest, dilated every "
                     "r-th of w r, sink the first s and local, strided every c-th, block of b"),
    option_enum(offsetof(Options, gate_mode), "gate_mode", "\"static\"", gate_modes,
                "where gates come from: weights (static, clamp, hard), weights and the query (query-), or input gates"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed("gate_mode!=explicit"),
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    input_port(0, "gates", "gate_mode=explicit: B,Hq,Nq,count(patterns)", "share of each pattern", ATTEND_OPTIONAL),
    ATTEND_MASK_PORTS,
    weight_port("gate_logits", "gate_mode=static: Hq,count(patterns) | gate_mode=hard: Hq,count(patterns)",
                "zeros as gateLogits", "logits of the gates: softmax, or the largest alone (hard)"),
    weight_port("gate_alpha", "gate_mode=clamp: given(gate_heads,Hkv)", "ones as gateAlpha",
                "share of the first of two patterns, cut to [0, 1]; [Hkv] or [Hq]"),
    weight_port("gate_proj",
                "gate_mode=query-softmax: Hq,count(patterns),D | gate_mode=query-sigmoid: "
                "Hq,count(patterns),D",
                "zeros as gateProj", "query to gate logits"),
    weight_port("gate_bias",
                "gate_mode=query-softmax: Hq,count(patterns) | gate_mode=query-sigmoid: Hq,count(patterns)",
                "zeros as gateBias", "added to the gate logits"),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    output_port(ATTEND_LSE, "lse", "B,Hq,Nq,count(patterns)", "logarithm of the sum of exponentials of each pattern",
                ATTEND_OPTIONAL),
    common::scores_port(),
};

int64_t count_of(const Options& options) { return options.patterns.count / 3; }

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t count = count_of(options);
    if (count < 1 || count > 16)
        return (Message() << "mixture-attention: option \"patterns\" has " << count << " entries; accepted: 1 to 16")
            .fail(error, ATTEND_BAD_OPTION, "patterns");
    for (int64_t at = 0; at < count; ++at) {
        const int64_t* entry = options.patterns.items + 3 * at;
        const int64_t least_first = entry[0] == KeyPattern::sink || entry[0] == KeyPattern::global ? 0 : 1;
        const int64_t least_second = entry[0] == KeyPattern::dilated || entry[0] == KeyPattern::sink ? 1 : 0;
        for (int part = 1; part <= 2; ++part)
            if (entry[part] < (part == 1 ? least_first : least_second) || entry[part] > most_span)
                return (Message() << "mixture-attention: option \"patterns\" has " << entry[part] << " in "
                                  << pattern_names[entry[0]]
                                  << "; accepted: w, r, c and b from 1, s from 0, up to 2^30")
                    .fail(error, ATTEND_BAD_OPTION, "patterns");
    }
    if (options.gate_mode == clamp_gate && count != 2)
        return (Message() << "mixture-attention: option \"gate_mode\" is clamp with " << count
                          << " patterns; accepted: two patterns")
            .fail(error, ATTEND_BAD_OPTION, "gate_mode");
    if (options.gate_mode == given && !attend_find_name(&desc.bindings, "gates"))
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "mixture-attention: gate_mode explicit without input \"gates\"; accepted: [B,Hq,Nq,P]",
                           "gates");
    const attend_tensor* alpha = attend_find_name(&desc.bindings, "gate_alpha");
    if (alpha && alpha->shape[0] != desc.num_kv_heads && alpha->shape[0] != desc.num_q_heads)
        return (Message() << "mixture-attention: weight \"gate_alpha\" [" << alpha->shape[0] << "]; accepted: ["
                          << desc.num_kv_heads << "] (Hkv) or [" << desc.num_q_heads << "] (Hq)")
            .fail(error, ATTEND_BAD_SHAPE, "gate_alpha");
    return ATTEND_OK;
}

// The patterns and the gates of a call; user data of the hooks.
struct Mixture {
    PatternList patterns;
    int64_t num_q_heads, num_kv_heads, head_dim, value_dim;
    int32_t mode;
    float scale;  // of the loaded queries
    TensorView<const float, 4> gates;
    TensorView<const float, 3> proj;
    TensorView<const float, 2> logits;
    TensorView<const float, 1> alpha;

    // Gates [P][lane_stride] into the tile's memory, once for map 0.
    static void prepare(const void* user, const attend_query_tile* tile) {
        if (tile->map == 0) static_cast<const Mixture*>(user)->fill(*tile);
    }
    static void finish(const void* user, const attend_finished_tile* tile) {
        const Mixture& self = *static_cast<const Mixture*>(user);
        const int64_t lanes = tile->queries->lane_stride;
        const float* gate = tile->queries->memory;
        for (int64_t c = 0; c < self.value_dim; ++c)
            for (int64_t lane = 0; lane < lanes; lane += batch_lanes) {
                Batch sum(0.0f);
                for (int64_t map = 0; map < self.patterns.count; ++map) {
                    // A gate of 0 switches its pattern off, whatever that has become.
                    const Batch share = load(gate + map * lanes + lane);
                    const Batch part = load(tile->map_values[map] + c * lanes + lane);
                    sum = choose(share == Batch(0.0f), sum, fma(share, part, sum));
                }
                store(tile->values + c * lanes + lane, sum);
            }
    }
    static uint32_t map_keys(const void* user, const attend_query_tile* tile, int64_t begin, int64_t end) {
        const Mixture& self = *static_cast<const Mixture*>(user);
        return self.patterns.seen(self.patterns.at(tile->map), *tile, begin, end);
    }
    static void share(const void* user, const attend_query_tile* tile, float* share) {
        const Mixture& self = *static_cast<const Mixture*>(user);
        float gates[most_patterns * max_lanes];
        attend_query_tile again = *tile;
        again.memory = gates;
        self.fill(again);
        for (int64_t lane = 0; lane < tile->lane_stride; ++lane)
            share[lane] = gates[tile->map * tile->lane_stride + lane];
    }

private:
    void fill(const attend_query_tile& tile) const {
        const int64_t lanes = tile.lane_stride, count = patterns.count;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            double gate[most_patterns];
            const int64_t head = tile.lane_head[lane];
            switch (mode) {
                case given:
                    for (int64_t p = 0; p < count; ++p)
                        gate[p] = static_cast<double>(*gates.at(tile.batch, head, tile.lane_row[lane], p));
                    break;
                case clamp_gate: {
                    const int64_t at = alpha.shape[0] == num_q_heads ? head : head * num_kv_heads / num_q_heads;
                    const double a = static_cast<double>(*alpha.at(at));
                    gate[0] = a < 0.0 ? 0.0 : a > 1.0 ? 1.0 : a;
                    gate[1] = 1.0 - gate[0];
                    break;
                }
                default: from_logits(tile, lane, head, gate);
            }
            for (int64_t p = 0; p < count; ++p) tile.memory[p * lanes + lane] = static_cast<float>(gate[p]);
        }
    }

    void from_logits(const attend_query_tile& tile, int64_t lane, int64_t head, double* gate) const {
        const int64_t count = patterns.count, lanes = tile.lane_stride;
        for (int64_t p = 0; p < count; ++p) {
            gate[p] = static_cast<double>(*logits.at(head, p));
            if (!proj.present) continue;
            double sum = 0.0;
            for (int64_t d = 0; d < head_dim; ++d)
                sum += static_cast<double>(*proj.at(head, p, d)) * static_cast<double>(tile.queries[d * lanes + lane]);
            gate[p] += sum / static_cast<double>(scale);
        }
        if (mode == query_sigmoid) {
            for (int64_t p = 0; p < count; ++p) gate[p] = 1.0 / (1.0 + ::exp(-gate[p]));
            return;
        }
        int64_t best = 0;
        for (int64_t p = 1; p < count; ++p) best = gate[p] > gate[best] ? p : best;
        double sum = 0.0;
        const double largest = gate[best];
        for (int64_t p = 0; p < count; ++p) {
            gate[p] = mode == hard ? (p == best ? 1.0 : 0.0) : ::exp(gate[p] - largest);
            sum += gate[p];
        }
        for (int64_t p = 0; p < count; ++p) gate[p] /= sum;
    }
};

attend_tile_hooks hooks_of(const Options& options) {
    attend_tile_hooks hooks{};
    hooks.flags = ATTEND_HOOKS_SHARED_SCORES;
    hooks.num_maps = static_cast<uint32_t>(count_of(options));
    hooks.queries = Mixture::prepare;
    hooks.finish = Mixture::finish;
    hooks.map_keys = Mixture::map_keys;
    hooks.map_share = Mixture::share;
    hooks.tile_floats = count_of(options) * max_lanes;
    return hooks;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_tile_hooks hooks = hooks_of(options);
    return tile_workspace(*args.desc, 0, 0, 0, &hooks);
}

attend_status check_gates(const TensorView<const float, 4>& gates, attend_error* error) {
    const int64_t* n = gates.shape;
    for (int64_t at = 0; at < n[0] * n[1] * n[2] * n[3]; ++at) {
        const int64_t index[] = {at / n[3] / n[2] / n[1], at / n[3] / n[2] % n[1], at / n[3] % n[2], at % n[3]};
        const float gate = *gates.at(index[0], index[1], index[2], index[3]);
        if (gate >= 0.0f && gate - gate == 0.0f) continue;
        char value[32];
        ::snprintf(value, sizeof value, gate == gate ? "%g" : "nan", static_cast<double>(gate));
        return (Message() << "mixture-attention: input \"gates\" is " << value << " at [" << index[0] << "," << index[1]
                          << "," << index[2] << "," << index[3] << "]; accepted: finite numbers from 0")
            .fail(error, ATTEND_NUMERIC, "gates");
    }
    return ATTEND_OK;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t count = count_of(options);
    Mixture mixture{};
    mixture.patterns = {options.patterns.items, count};
    mixture.num_q_heads = desc.num_q_heads;
    mixture.num_kv_heads = desc.num_kv_heads;
    mixture.head_dim = desc.head_dim;
    mixture.value_dim = desc.value_dim;
    mixture.mode = options.gate_mode;
    mixture.scale = static_cast<float>(resolved_scale(desc));
    mixture.gates = view_of<const float, 4>(attend_find_name(args.bindings, "gates"));
    mixture.alpha = view_of<const float, 1>(attend_find_name(args.weights, "gate_alpha"));
    mixture.proj = view_of<const float, 3>(attend_find_name(args.weights, "gate_proj"));
    const attend_tensor* logits = attend_find_name(args.weights, "gate_logits");
    mixture.logits = view_of<const float, 2>(logits ? logits : attend_find_name(args.weights, "gate_bias"));
    if (mixture.gates.present)
        if (const attend_status status = check_gates(mixture.gates, context.error)) return status;

    // All patterns have the queries of the call; the LSE of pattern p is column p.
    attend_softmax_map maps[most_patterns];
    OwnTensor logs[most_patterns];
    for (int64_t p = 0; p < count; ++p) {
        maps[p] = {args.query, nullptr, 0, 1};
        if (!args.lse) continue;
        describe(logs[p], *args.lse, {desc.batch, desc.num_q_heads, desc.q_len, 1},
                 {args.lse->strides[0], args.lse->strides[1], args.lse->strides[2], 0});
        logs[p].tensor.ndim = 3;
        logs[p].tensor.data = static_cast<float*>(args.lse->data) + p * args.lse->strides[3];
        maps[p].lse = &logs[p].tensor;
    }
    attend_tile_hooks hooks = hooks_of(options);
    hooks.user = &mixture;
    hooks.maps = maps;
    TileCall call(args);
    call.problem.lse = nullptr;
    call.problem.hooks = &hooks;
    call.problem.keys = PatternList::visit;
    call.problem.keys_user = &mixture.patterns;
    call.problem.keep = PatternList::keep;
    call.problem.keep_user = &mixture.patterns;
    return run_tiles(call, context);
}

// One product over the union, value products on each pattern's own keys; counted on a sample of pairs.
void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const PatternList patterns{options.patterns.items, count_of(options)};
    const PatternList::Shares shares = patterns.shares(desc);
    softmax_cost(desc, 0.0, cost);
    const auto pairs =
        static_cast<double>(desc.batch * desc.num_q_heads * desc.q_len) * static_cast<double>(desc.kv_len);
    cost.flops =
        2.0 * pairs *
        (shares.of_union * static_cast<double>(desc.head_dim) + shares.sum * static_cast<double>(desc.value_dim));
}

}  // namespace

ATTEND_MECHANISM(
    mixture,
    (described<check, workspace, forward, cost>(
        {.name = "mixture-attention",
         .category = "multi-head",
         .title = "Mixture of attention patterns",
         .summary = "Global, local and other views of the same keys, each with its own softmax, blended by gates.",
         .reference = "Xiao et al. 2024, DuoAttention, arXiv:2410.10819",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .numerics = ATTEND_OWN_DEFINITION,
         .formula =
             "o_i = sum_m g_m softmax over the keys that pattern m allows (s_ij) V\n"
             "patterns: global, local(w), sink(a,w), strided(s) ...; the gates g_m are weights, or made from the query",
         .cost = "One product per pair that any pattern allows, and one value product per pattern that allows it; "
                 "patterns without a global part skip what nobody sees.",
         .use = "To blend views of one text, such as a sliding window and a few sinks, with gates per head: "
                "streaming heads beside retrieval heads. For one fixed pattern take local-attention or "
                "longformer-attention, which skip more.",
         .example = "attend compute mixture-attention --sequence-length 256 --heads 8 --set "
                    "'patterns=[\"global\",\"local(32)\",\"sink(4,16)\"]'",
         .score_rows = author::ScoreStages::weights},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
