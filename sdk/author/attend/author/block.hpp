// SPDX-License-Identifier: Apache-2.0
// Pieces of the module forms: attention between normalised sequences inside a residual block. Memory beside inputs and
// outputs stays bounded: heads, items and rows are taken in portions.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/block/feed_forward.hpp"

namespace attend::ATTEND_ISA {

// Bytes that a block may use for what it keeps between its steps.
constexpr int64_t block_budget = int64_t{44} << 20;

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline uint64_t larger_bytes(uint64_t a, uint64_t b) { return a > b ? a : b; }

// Aligned pieces of a workspace, first counted, then taken by the same calls.
struct Scratch {
    Workspace space;
    explicit Scratch(void* memory) : space(memory) {}
    float* take(int64_t count) { return space.take<float>(count); }
    Context rest(const Context& context) const {
        Context part = context;
        part.workspace = static_cast<char*>(context.workspace) + space.used();
        part.workspace_bytes = context.workspace_bytes > space.used() ? context.workspace_bytes - space.used() : 0;
        return part;
    }
};

// Attention of LN(x) Wq^T on context rows (Wkv: keys, then values), joined heads [B, Nq, H*D] not kept for all items at
// once: so many items and heads at a time as the budget allows.
struct GroupedHeads {
    int64_t batch, q_len, kv_len, heads, head_dim, width, context_width, items, group;

    GroupedHeads(const attend_plan_desc& desc, int64_t e, int64_t c)
        : batch(desc.batch),
          q_len(desc.q_len),
          kv_len(desc.kv_len),
          heads(desc.num_q_heads),
          head_dim(desc.head_dim),
          width(e),
          context_width(c),
          items(desc.batch),
          group(desc.num_q_heads) {
        const auto fits = [&] {
            const int64_t numbers = q_len * heads * head_dim + group * head_dim * (q_len + 2 * kv_len);
            return items * numbers <= block_budget / 4;
        };
        while (items > 1 && !fits()) items = (items + 1) / 2;
        while (group > 1 && !fits()) group = (group + 1) / 2;
    }
    int64_t inner() const { return heads * head_dim; }
    Portions portions() const { return {items, q_len, 1024}; }

    struct Pieces {
        float *joined, *q, *k, *v, *rows;
    };
    Pieces take(Scratch& scratch) const {
        const int64_t size = group * head_dim;
        Pieces pieces;
        pieces.joined = scratch.take(items * q_len * inner());
        pieces.q = scratch.take(items * q_len * size);
        pieces.k = scratch.take(items * kv_len * size);
        pieces.v = scratch.take(items * kv_len * size);
        pieces.rows = scratch.take(portions().size() * width);
        return pieces;
    }
    uint64_t workspace(const attend_plan_desc& desc) const {
        Scratch scratch(nullptr);
        take(scratch);
        const int64_t size = group * head_dim;
        const Portions part = portions();
        attend_plan_desc sub = desc;
        sub.batch = items, sub.num_q_heads = sub.num_kv_heads = group;
        uint64_t most = tile_workspace(sub);
        most = larger_bytes(most, layer_workspace(items, kv_len, context_width, size, desc.max_workers));
        most = larger_bytes(most, layer_workspace(part.items, part.rows, width, size, desc.max_workers));
        most = larger_bytes(most, layer_workspace(part.items, part.rows, inner(), width, desc.max_workers));
        return scratch.space.used() + most;
    }
};

// Cuts everything of a call that has items and heads down to those of a group.
struct GroupCall {
    TileCall call;
    Part lse, scores, query_lengths, key_lengths;

    GroupCall(const ForwardArgs& args, const attend_tensor* q, const attend_tensor* k, const attend_tensor* v,
              const attend_tensor* o, int64_t item, int64_t items, int64_t head, int64_t heads)
        : call(args, q, k, v, o) {
        attend_tile_problem& problem = call.problem;
        const auto narrow = [&](Part& part, const attend_tensor*& tensor, bool has_heads) {
            if (tensor == nullptr) return;
            part.view(*tensor);
            part.cut(0, item, items);
            if (has_heads) part.cut(1, head, heads);
            tensor = &part.tensor;
        };
        narrow(lse, problem.lse, true);
        narrow(scores, problem.scores, true);
        narrow(query_lengths, problem.query_lengths, false);
        narrow(key_lengths, problem.key_lengths, false);
        for (OwnTensor* pairs : {&call.mask, &call.bias}) {
            if (pairs == &call.mask ? problem.mask == nullptr : problem.bias == nullptr) continue;
            pairs->tensor.data = static_cast<char*>(pairs->tensor.data) +
                                 (item * pairs->strides[0] + head * pairs->strides[1]) * element_bytes(pairs->tensor);
            pairs->shape[0] = items, pairs->shape[1] = heads;
        }
        problem.dropout_heads = args.desc->num_q_heads;
        problem.dropout_head = item * args.desc->num_q_heads + head;
    }
};

// Weights of a gated cross-attention: norm, projections, output projection.
struct CrossWeights {
    const attend_tensor *gamma, *beta, *wq, *wkv, *wo;
};

// to = x + gate * Wo attention(LN(x) Wq^T, context Wk^T, context Wv^T). context is [B, Nk, C] or [B, T, n, C]; hook(problem,
// first item) adds what the mechanism sees.
template <class Hook>
inline attend_status grouped_cross(const ForwardArgs& args, const Context& context, const GroupedHeads& sizes,
                                   const CrossWeights& w, Gate gate, Hook hook) {
    Scratch scratch(context.workspace);
    const GroupedHeads::Pieces pieces = sizes.take(scratch);
    const Context rest = scratch.rest(context);
    const attend_tensor& media = *args.key;
    const int64_t d = sizes.head_dim;
    attend_status status = ATTEND_OK;
    for (int64_t item = 0; item < sizes.batch; item += sizes.items) {
        const int64_t items = sizes.batch - item < sizes.items ? sizes.batch - item : sizes.items;
        Part joined(pieces.joined, items, sizes.q_len, sizes.inner());
        for (int64_t head = 0; head < sizes.heads; head += sizes.group) {
            const int64_t group = sizes.heads - head < sizes.group ? sizes.heads - head : sizes.group;
            Part q(pieces.q, items, sizes.q_len, group * d), k(pieces.k, items, sizes.kv_len, group * d),
                v(pieces.v, items, sizes.kv_len, group * d);
            Part wq(*w.wq), wk(*w.wkv), wv(*w.wkv);
            wq.cut(0, head * d, group * d);
            wk.cut(0, head * d, group * d);
            wv.cut(0, sizes.inner() + head * d, group * d);
            // Media with strides of their own between media and tokens are projected an item at a time.
            const bool flat =
                media.ndim == 3 || media.shape[1] == 1 || media.strides[1] == media.shape[2] * media.strides[2];
            for (int64_t at = 0; at < items; at += flat ? items : 1) {
                Part from(media), keys, values;
                keys.view(k.tensor), values.view(v.tensor);
                from.cut(0, item + at, flat ? items : 1);
                if (media.ndim == 4) {
                    for (int axis = flat ? 1 : 0; axis < 3; ++axis) {
                        from.shape[axis] = from.shape[axis + 1];
                        from.strides[axis] = from.strides[axis + 1];
                    }
                    from.tensor.ndim = 3;
                    if (flat) from.shape[1] = sizes.kv_len;
                    if (!flat) {
                        const int64_t offset = at * sizes.kv_len * group * d;
                        keys.scratch(pieces.k + offset, from.shape[0], from.shape[1], group * d);
                        values.scratch(pieces.v + offset, from.shape[0], from.shape[1], group * d);
                    }
                }
                status = layer(&rest, &from.tensor, &wk.tensor, nullptr, &keys.tensor);
                if (status == ATTEND_OK) status = layer(&rest, &from.tensor, &wv.tensor, nullptr, &values.tensor);
                if (status != ATTEND_OK) return status;
            }
            const Portions portions(items, sizes.q_len, 1024);
            for (int64_t first = 0; first < items; first += portions.items)
                for (int64_t row = 0; row < sizes.q_len; row += portions.rows) {
                    const int64_t count = items - first < portions.items ? items - first : portions.items;
                    const int64_t rows = sizes.q_len - row < portions.rows ? sizes.q_len - row : portions.rows;
                    Part x(*args.query), to(q.tensor), normal(pieces.rows, count, rows, sizes.width);
                    x.cut(0, item + first, count).cut(1, row, rows);
                    to.cut(0, first, count).cut(1, row, rows);
                    status = layer_norm(&rest, &x.tensor, w.gamma, w.beta, &normal.tensor);
                    if (status == ATTEND_OK) status = layer(&rest, &normal.tensor, &wq.tensor, nullptr, &to.tensor);
                    if (status != ATTEND_OK) return status;
                }
            Part o(joined.tensor);
            o.cut(2, head * d, group * d);
            GroupCall call(args, &q.split_heads(group).tensor, &k.split_heads(group).tensor,
                           &v.split_heads(group).tensor, &o.split_heads(group).tensor, item, items, head, group);
            hook(call.call.problem, item);
            if (args.rows.count > 0) call.call.problem.output = nullptr;
            status = run_tiles(call.call, rest);
            if (status != ATTEND_OK) return status;
        }
        if (args.rows.count > 0) continue;
        const Portions portions(items, sizes.q_len, 1024);
        for (int64_t first = 0; first < items; first += portions.items)
            for (int64_t row = 0; row < sizes.q_len; row += portions.rows) {
                const int64_t count = items - first < portions.items ? items - first : portions.items;
                const int64_t rows = sizes.q_len - row < portions.rows ? sizes.q_len - row : portions.rows;
                Part x(*args.query), to(*args.output), from(joined.tensor), a(pieces.rows, count, rows, sizes.width);
                x.cut(0, item + first, count).cut(1, row, rows);
                to.cut(0, item + first, count).cut(1, row, rows);
                from.cut(0, first, count).cut(1, row, rows);
                status = layer(&rest, &from.tensor, w.wo, nullptr, &a.tensor);
                if (status == ATTEND_OK)
                    status = gated_sum(&rest, &x.one_head().tensor, &a.one_head().tensor, gate, &to.one_head().tensor);
                if (status != ATTEND_OK) return status;
            }
    }
    return status;
}

}  // namespace attend::ATTEND_ISA
