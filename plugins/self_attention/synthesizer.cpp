// SPDX-License-Identifier: Apache-2.0
// synthesizer-attention: weights made from each query alone, or from tables alone, without comparing queries with keys.
//
// Paper    Tay et al.: Synthesizer, arXiv:2005.00743; local variant: Xu et al.: LDSA, section 2
// Formula  s_ij = sum_n alpha_n logit_n, alpha = softmax(mix_logits), z = relu(q_i):  dense_w[j] . z + dense_b[j];
//          random_r[i',j];  fact_r1[i'] . fact_r2[j];  A[j mod a] B[j div a] with A = fact_a z + fact_ab, B likewise;  scale q_i . k_j
// Cost     O(Nq Nk D) dense and dot, O(Nq Nk rank) factorised random, O(Nq Nk) the others, O(Nq c D) with local_context;
//          the value product as always
// Differs  factorised random follows the paper (R1 R2^T); local context hides what lies outside instead of padding with zeros

#include "synthesizer_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

using namespace synthesizer;

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    if (only(options, dot_product)) return tile_workspace(desc);
    const attend_tensor *query = attend_find(&desc.bindings, ATTEND_Q), *key = attend_find(&desc.bindings, ATTEND_K),
                        *value = attend_find(&desc.bindings, ATTEND_V),
                        *output = attend_find(&desc.bindings, ATTEND_OUT);
    const SynthesizerTables tables = sizes_of(options, desc, is_narrow(query, value));
    attend_plan_desc part = part_of(options, desc, tables.base != BaseScores::none);
    const attend_tile_hooks hooks = hooks_of(tables, part);
    // What stands for keys: the keys, a table, or zeros of the values' type.
    const attend_tensor* read = tables.base == BaseScores::dot    ? key
                                : tables.base == BaseScores::none ? value
                                                                  : nullptr;
    attend_binding bound[4];
    uint32_t count = 0;
    const struct {
        uint32_t role;
        const attend_tensor* tensor;
    } roles[] = {{ATTEND_Q, query}, {ATTEND_K, read}, {ATTEND_V, value}, {ATTEND_OUT, output}};
    for (const auto& entry : roles)
        if (entry.tensor != nullptr) bound[count++] = {sizeof(attend_binding), entry.role, nullptr, entry.tensor};
    part.bindings = {bound, count, sizeof(attend_binding)};
    return tile_workspace(part, 0, 0, 0, &hooks);
}

// With lengths of queries and keys each item has positions of its own.
attend_status check_rows(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (!has_rows(options) || !(desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM)) return ATTEND_OK;
    for (int64_t item = 0; item < desc.batch; ++item) {
        const int64_t queries = integer_at(args.query_lengths, item), keys = integer_at(args.key_lengths, item);
        if (queries > keys)
            return (Message() << "synthesizer-attention: query_lengths[" << item << "] is " << queries
                              << "; accepted: 0 to " << keys << " (its keys: random tables have no row before key 0)")
                .fail(context.error, ATTEND_BAD_SHAPE, "query_lengths");
    }
    return ATTEND_OK;
}

constexpr float no_score = 0.0f;

// Query heads [first, ...) of `part`, with their head of keys and values where there are groups.
attend_status attend_part(const Options& options, const ForwardArgs& args, const attend_plan_desc& part, int64_t first,
                          SynthesizerTables& tables, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const bool split = splits(options, desc);
    OwnTensor query, key, value, output, lse, scores, mask, bias, feature;
    ForwardArgs some = args;
    some.desc = &part;
    const struct {
        const attend_tensor** tensor;
        OwnTensor* own;
    } slices[] = {{&some.query, &query},   {&some.output, &output}, {&some.lse, &lse},
                  {&some.scores, &scores}, {&some.mask, &mask},     {&some.bias, &bias}};
    if (split)
        for (const auto& slice : slices)
            if (*slice.tensor != nullptr) {
                slice_heads(*slice.own, **slice.tensor, first, part.num_q_heads);
                *slice.tensor = &slice.own->tensor;
            }
    // One head of values for all heads of the part: a stride of zero.
    const auto group = [&](OwnTensor& own, const attend_tensor& from) {
        describe(own, from, {from.shape[0], part.num_kv_heads, from.shape[2], from.shape[3]},
                 {from.strides[0], split ? 0 : from.strides[1], from.strides[2], from.strides[3]});
        if (split)
            own.tensor.data =
                static_cast<char*>(from.data) + first / part.num_q_heads * from.strides[1] * (from.dtype_bits / 8);
    };
    group(value, *args.value);
    tables.query = stored_view(some.query);
    tables.first_head = first;
    if (tables.base == BaseScores::dot) {
        group(key, *args.key);
    } else if (tables.base == BaseScores::dense) {
        const TensorView<const float, 3>& w = tables.dense_w;
        const bool shared = w.shape[0] == 1;
        describe(key, *args.query, {1, part.num_kv_heads, desc.kv_len, desc.head_dim},
                 {0, shared ? 0 : w.strides[0], w.strides[1], w.strides[2]});
        key.tensor.data = const_cast<float*>(w.data) + (shared ? 0 : first * w.strides[0]);
    } else {
        // The product of one feature with zeros, which the tables then replace.
        const attend_tensor& q = *some.query;
        describe(feature, q, {q.shape[0], q.shape[1], q.shape[2], 1}, {q.strides[0], q.strides[1], q.strides[2], 1});
        some.query = &feature.tensor;
        describe(key, *args.value, {1, part.num_kv_heads, desc.kv_len, 1}, {0, 0, 0, 0});
        key.tensor.data = const_cast<float*>(&no_score);
    }
    TileCall call(some, some.query, &key.tensor, &value.tensor, some.output);
    attend_tile_problem& problem = call.problem;
    const attend_tile_hooks hooks = hooks_of(tables, part);
    problem.hooks = &hooks;
    problem.scale = 1.0;
    problem.dropout_heads = desc.num_q_heads;
    problem.dropout_head = first;
    if (options.local_context > 0) {
        const int64_t side = (options.local_context - 1) / 2;
        if (problem.window_left < 0 || problem.window_left > side) problem.window_left = side;
        if (problem.window_right < 0 || problem.window_right > side) problem.window_right = side;
    }
    return run_tiles(call, context);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (only(options, dot_product)) {
        const TileCall call(args);
        return run_tiles(call, context);
    }
    if (attend_status status = check_rows(options, args, context)) return status;
    SynthesizerTables tables = sizes_of(options, desc, is_narrow(args.query, args.value));
    bind_tables(options, args, tables);
    const attend_plan_desc part = part_of(options, desc, tables.base != BaseScores::none);
    attend_status status = ATTEND_OK;
    for (int64_t first = 0; first < desc.num_q_heads && status == ATTEND_OK; first += part.num_q_heads)
        status = attend_part(options, args, part, first, tables, context);
    return status;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    attend_plan_desc desc = *args.desc;
    const auto number = [](int64_t n) { return static_cast<double>(n); };
    if (options.local_context > 0) {
        const int64_t side = (options.local_context - 1) / 2;
        if (desc.window_left < 0 || desc.window_left > side) desc.window_left = side;
        if (desc.window_right < 0 || desc.window_right > side) desc.window_right = side;
    }
    const double pairs = visible_pairs(desc), d = number(desc.head_dim);
    softmax_cost(desc, pairs, cost);
    const SynthesizerTables tables = sizes_of(options, desc, false);
    double per_pair = number(desc.value_dim), per_query = 0.0;
    if (has(options, dense) || options.local_context > 0) per_pair += d;
    if (has(options, dot_product)) per_pair += d;
    if (has(options, factorized_random)) per_pair += number(options.rank);
    if (has(options, factorized_dense)) per_pair += 1.0, per_query += number(tables.a + tables.b) * d;
    cost.flops = 2.0 * number(desc.batch * desc.num_q_heads) * (pairs * per_pair + number(desc.q_len) * per_query);
}

}  // namespace

ATTEND_MECHANISM(
    synthesizer,
    (described<check, workspace, forward, cost>(
        {.name = "synthesizer-attention",
         .category = "self-attention",
         .title = "Synthesizer attention",
         .summary = "Weights made from each query alone, or learned as tables, without comparing queries and keys.",
         .reference = "Tay et al. 2021, Synthesizer, arXiv:2005.00743",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .caps = softmax_caps | position_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "s_ij = sum over components: dense (a small network of q_i gives a score per position), random (a "
                    "learned table),\n"
                    "       factorised forms of both, dot (scale q_i.k_j)\n"
                    "o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "As dense attention for the values; scores cost a product with learned vectors or one look-up "
                 "instead of query times key.",
         .use = "To study whether comparing tokens is needed at all, and for models trained this way on fixed "
                "lengths: tables end at max_length. For everything else take standard-mha.",
         .example = "attend compute synthesizer-attention --sequence-length 512 --heads 8 --dim 64 --set "
                    "components=dense,dot --causal"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
