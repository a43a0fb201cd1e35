// SPDX-License-Identifier: Apache-2.0
// hierarchical-cross-attention: a query reads a long document, first inside each segment, then across the segments.
//
// Paper    Miculicich et al. 2018, Document-Level Neural Machine Translation with Hierarchical Attention Networks,
//          arXiv:1809.01576; Yang et al. 2016 (HAN) is the case of a constant query
// Formula  c_s = attention over the tokens of segment s; e_s = segment_scale <Wq_h q, Wk_h LN(c_s)>, or q . mean key, LSE_s, 0;
//          o = sum_s softmax_s(e) c_s; block: see hierarchical_block.hpp
// Cost     O(Nq Nk D), and O(Nq S Dv) for the segments; summaries of one segment stand in memory at a time
// Differs  segments without a visible token are left out; layer norm divides by sqrt(variance + 1e-5)

#include "attend/author/by_head.hpp"
#include "attend/toolkit/tile/segment_softmax.hpp"
#include "hierarchical_block.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr const char* segment_scores[] = {"contextual", "mean-key", "lse", "uniform", nullptr};
constexpr OptionRow option_table[] = {
    option_int(offsetof(HierarchicalOptions, segment_size), "segment_size", "64", {1, 1073741824},
               "tokens of a segment where input segment_offsets is not given", "!segment_offsets"),
    option_enum(offsetof(HierarchicalOptions, segment_score), "segment_score", "\"contextual\"", segment_scores,
                "logit of a segment: of its summary, of its mean key, its LSE, or none", "!block"),
    option_maybe_int(offsetof(HierarchicalOptions, segment_dim), "segment_dim", {1, 1048576},
                     "width Ds in which queries and summaries meet; default: the head width",
                     "segment_score=contextual & !block"),
    option_maybe_real(offsetof(HierarchicalOptions, segment_scale), "segment_scale",
                      {-1.7976931348623157e308, 1.7976931348623157e308}, "factor of the logits; default 1/sqrt(Ds)",
                      "segment_score=contextual & !block"),
    option_bool(offsetof(HierarchicalOptions, segment_norm), "segment_norm", true,
                "layer norm of summaries before scoring", "segment_score=contextual & !block"),
    option_bool(offsetof(HierarchicalOptions, block), "block", false,
                "the whole block on tokens: norms, word and sentence attention, feed-forward layer and gate"),
    option_int(offsetof(HierarchicalOptions, heads), "heads", "8", {1, 65536}, "heads, a divisor of the width",
               "block"),
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(nullptr),
};

constexpr attend_port port_table[] = {
    input_port(ATTEND_Q, "query", "block: B,Nq,E | B,Hq,Nq,D", "queries; block: the tokens x"),
    input_port(ATTEND_K, "key", "block: B,Nk,E | B,Hkv,Nk,D", "keys; block: the tokens of the document"),
    common::value_port("!block: B,Hkv,Nk,Dv"),
    input_port(0, "segment_offsets", "num_offsets | B,num_offsets",
               "first token of each segment, and the end of the last", ATTEND_OPTIONAL, ATTEND_I32 | ATTEND_I64),
    input_port(0, "segment_query", "!block & segment_score=contextual: B,Hq,Nq,or(segment_dim,D)",
               "queries of the segments, in place of seg_wq times query", ATTEND_OPTIONAL),
    ATTEND_MASK_PORTS,
    weight_port("seg_wq", "!block & segment_score=contextual & !segment_query: Hq,or(segment_dim,D),D",
                "or(segment_dim,D)=D: identity as segWq | xavierUniform as segWq", "query towards segments"),
    weight_port("seg_wk", "!block & segment_score=contextual: Hq,or(segment_dim,D),Dv",
                "or(segment_dim,D)=Dv: identity as segWk | xavierUniform as segWk", "summary towards queries"),
    weight_port("seg_norm.gamma", "!block & segment_score=contextual & segment_norm: Dv", "ones", "norm of summaries"),
    weight_port("seg_norm.beta", "!block & segment_score=contextual & segment_norm: Dv", "zeros", "norm of summaries"),
    ATTEND_HIERARCHICAL_BLOCK_PORTS,
    output_port(ATTEND_OUT, "output", "block: B,Nq,E | B,Hq,Nq,Dv", "result"),
    output_port(ATTEND_LSE, "lse", "!block & segment_score=lse: B,Hq,Nq", "log of the sum of exponentials of each row",
                ATTEND_OPTIONAL),
    output_port(ATTEND_SCORES, "scores", "!block: B,Hq,Nq,Nk", "weights of the tokens, before dropout",
                ATTEND_OPTIONAL),
    output_port(0, "segment_weights",
                "!block & segment_offsets: B,Hq,Nq,num_offsets-1 | !block: "
                "B,Hq,Nq,ceil(Nk/segment_size)",
                "weight of each segment"),
    output_port(0, "segment_lse",
                "!block & segment_offsets: B,Hq,Nq,num_offsets-1 | !block: B,Hq,Nq,ceil(Nk/segment_size)",
                "log of the sum of exponentials inside each segment"),
};

KeySegments segments_of(const HierarchicalOptions& options, const attend_plan_desc& desc,
                        const attend_tensor* offsets) {
    const int64_t count = offsets ? offsets->shape[offsets->ndim - 1] - 1
                                  : (desc.kv_len + options.segment_size - 1) / options.segment_size;
    return {offsets, options.segment_size, count, desc.kv_len};
}
int64_t width_of(const HierarchicalOptions& options, const attend_plan_desc& desc) {
    return options.segment_dim.given ? options.segment_dim.value : desc.head_dim;
}
SegmentScore score_of(const HierarchicalOptions& options) { return static_cast<SegmentScore>(options.segment_score); }
bool by_head(const HierarchicalOptions& options, const attend_plan_desc& desc) {
    return score_of(options) == SegmentScore::contextual && desc.num_q_heads != desc.num_kv_heads;
}

attend_status check(const HierarchicalOptions& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* offsets = attend_find_name(&desc.bindings, "segment_offsets");
    if (offsets && offsets->shape[offsets->ndim - 1] < 2)
        return (Message() << "hierarchical-cross-attention: input \"segment_offsets\" lists "
                          << offsets->shape[offsets->ndim - 1] << " numbers; accepted: at least 2, for one segment")
            .fail(error, ATTEND_BAD_SHAPE, "segment_offsets");
    if (options.block) return check_hierarchical_block(options, desc, error);
    if (score_of(options) == SegmentScore::lse && desc.dropout > 0.0)
        return refuse_real("segment_score", "is lse with dropout", desc.dropout, "dropout 0, or another segment_score",
                           error);
    return ATTEND_OK;
}

attend_tile_hooks hooks_of(const HierarchicalOptions& options, const attend_plan_desc& desc) {
    attend_tile_hooks hooks{};
    hooks.flags = ATTEND_HOOKS_LSE;
    hooks.queries = SegmentSoftmax::prepare;
    hooks.close = SegmentSoftmax::close;
    hooks.finish = SegmentSoftmax::finish;
    if (score_of(options) == SegmentScore::mean_key) hooks.content = SegmentSoftmax::keep_raw;
    hooks.tile_floats = SegmentSoftmax::memory_floats(desc.value_dim, width_of(options, desc));
    hooks.scratch_floats = SegmentSoftmax::scratch_floats(score_of(options));
    return hooks;
}

// Scores come from a second run, which needs the weights and logarithms of all segments.
bool wants_scores(const attend_plan_desc& desc) { return attend_find(&desc.bindings, ATTEND_SCORES) != nullptr; }

uint64_t workspace(const HierarchicalOptions& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    if (options.block) return hierarchical_block_workspace(options, desc);
    const attend_tile_hooks hooks = hooks_of(options, desc);
    const KeySegments segments = segments_of(options, desc, attend_find_name(&desc.bindings, "segment_offsets"));
    const attend_plan_desc run = by_head(options, desc) ? one_head(desc) : desc;
    const uint64_t first = tile_workspace(run, 0, 0, 0, &hooks), second = tile_workspace(desc);
    if (!wants_scores(desc)) return first;
    return (first > second ? first : second) +
           2 * Carve::floats(desc.batch * desc.num_q_heads * desc.q_len * segments.count);
}

attend_status run_core(const HierarchicalOptions& options, const ForwardArgs& args, const KeySegments& segments,
                       const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    const attend_tensor *weights = attend_find_name(args.bindings, "segment_weights"),
                        *logs = attend_find_name(args.bindings, "segment_lse");
    OwnTensor own_weights, own_logs;
    if (args.rows.count > 0) weights = logs = nullptr;
    if (args.scores) {
        const int64_t count = desc.batch * desc.num_q_heads * desc.q_len * segments.count;
        if (!weights) {
            describe(own_weights, carve.take(count), desc.batch, desc.num_q_heads, desc.q_len, segments.count);
            weights = &own_weights.tensor;
        }
        if (!logs) {
            describe(own_logs, carve.take(count), desc.batch, desc.num_q_heads, desc.q_len, segments.count);
            logs = &own_logs.tensor;
        }
    }
    for (const attend_tensor* tensor : {weights, logs})
        if (tensor) fill_segments(*tensor, tensor == weights ? 0.0f : -infinity);  // rows beyond a length stay so
    SegmentSoftmax softmax{};
    softmax.segments = segments;
    softmax.score = score_of(options);
    softmax.norm = options.segment_norm != 0;
    softmax.head_dim = desc.head_dim;
    softmax.value_dim = desc.value_dim;
    softmax.width = width_of(options, desc);
    softmax.scale = static_cast<float>(resolved_scale(desc));
    softmax.segment_scale = static_cast<float>(
        options.segment_scale.given ? options.segment_scale.value : 1.0 / ::sqrt(static_cast<double>(softmax.width)));
    softmax.wq = view_of<const float, 3>(attend_find_name(args.weights, "seg_wq"));
    softmax.wk = view_of<const float, 3>(attend_find_name(args.weights, "seg_wk"));
    softmax.query = view_of<const float, 4>(attend_find_name(args.bindings, "segment_query"));
    softmax.gamma = view_of<const float, 1>(attend_find_name(args.weights, "seg_norm.gamma"));
    softmax.beta = view_of<const float, 1>(attend_find_name(args.weights, "seg_norm.beta"));
    softmax.weights = view_of<float, 4>(weights);
    softmax.logs = view_of<float, 4>(logs);

    attend_tile_hooks hooks = hooks_of(options, desc);
    hooks.user = &softmax;
    TileCall call(args);
    call.problem.scores = nullptr;
    call.problem.hooks = &hooks;
    call.problem.keys = SegmentSoftmax::visit;
    call.problem.keys_user = &softmax;
    call.problem.keep = softmax.score == SegmentScore::mean_key ? SegmentSoftmax::add_visible : nullptr;
    attend_status status = ATTEND_OK;
    if (!by_head(options, desc)) {
        status = run_tiles(call, carve.rest(context));
    } else {
        for (int64_t head = 0; head < desc.num_q_heads && status == ATTEND_OK; ++head) {
            HeadCall one(call, args, head);
            softmax.first_head = head;
            const Context rest = carve.rest(context);
            status = ATTEND_KERNEL(attend_tile_forward)(&one.problem, &rest);
        }
    }
    if (status != ATTEND_OK || !args.scores) return status;
    SegmentTokens tokens{segments, 0, view_of<const float, 4>(weights), view_of<const float, 4>(logs)};
    TileCall second(args);
    second.problem.output = second.problem.lse = nullptr;
    second.problem.flags |= ATTEND_TILE_SCORE_HIDES | ATTEND_TILE_WIDEN;
    second.problem.score = SegmentTokens::apply;
    second.problem.score_user = &tokens;
    return run_tiles(second, carve.rest(context));
}

attend_status forward(const HierarchicalOptions& options, const ForwardArgs& args, const Context& context) {
    const KeySegments segments = segments_of(options, *args.desc, attend_find_name(args.bindings, "segment_offsets"));
    if (const attend_status status = check_segments(segments, args.desc->batch, context.error)) return status;
    return options.block ? run_hierarchical_block(options, args, segments, context)
                         : run_core(options, args, segments, context);
}

void cost(const HierarchicalOptions& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const auto real = [](int64_t x) { return static_cast<double>(x); };
    const KeySegments segments = segments_of(options, desc, attend_find_name(&desc.bindings, "segment_offsets"));
    softmax_cost(desc, real(desc.q_len) * real(desc.kv_len), cost);
    if (options.block) return hierarchical_block_cost(desc, segments.count, cost);
    const double rows = real(desc.batch * desc.num_q_heads * desc.q_len);
    cost.flops += rows * real(segments.count) * 4.0 * real(desc.value_dim);
    if (score_of(options) == SegmentScore::contextual)
        cost.flops += 2.0 * rows * real(width_of(options, desc)) * real(desc.head_dim + desc.value_dim);
}

}  // namespace

ATTEND_MECHANISM(
    hierarchical_cross,
    (described<check, workspace, forward, cost>(
        {.name = "hierarchical-cross-attention",
         .category = "cross-attention",
         .title = "Hierarchical cross-attention",
         .summary = "A query reads a long document segment by segment, then weighs the segments.",
         .reference = "Miculicich et al. 2018, arXiv:1809.01576",
         .time = "O(n m d)",
         .space = "O((n + m) d)",
         .caps = softmax_caps,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "a_s = attention of q_i to the keys of segment s alone, one softmax each\n"
                    "o_i = sum_s softmax_s(score of q_i and a_s) a_s",
         .cost = "As cross-attention to all keys plus one small product per segment; memory grows with the lengths.",
         .use = "Documents made of passages, where it matters which passage answers and not only which word. For a "
                "flat context take cross-attention.",
         .example =
             "attend compute hierarchical-cross-attention --sequence-length 64 --sequence-length-k 4096 --heads 8 "
             "--set segment_size=128",
         .score_rows = author::ScoreStages::weights},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
