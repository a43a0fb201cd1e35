// SPDX-License-Identifier: Apache-2.0
// A transformer block with norms in front:
//   a = Wo attention(LN(z) Wq^T + bq, LN(x) Wk^T + bk, LN(x) Wv^T + bv) + bo,  z1 = [z +] a,
//   to = z1 + W2 gelu(W1 LN(z1) + b1) + b2
// Long sequences are taken in portions, parts over the keys merged by their log-sum-exp, so that memory stays bounded.
#pragma once

#include "attend/author/block.hpp"
#include "attend/toolkit/block/merge.hpp"

namespace attend::ATTEND_ISA {

struct BlockWeights {
    const attend_tensor *q_gamma, *q_beta, *kv_gamma, *kv_beta, *mlp_gamma, *mlp_beta;
    const attend_tensor *wq, *bq, *wk, *bk, *wv, *bv, *wo, *bo, *w1, *b1, *w2, *b2;
};

struct ResidualBlock {
    int64_t batch, q_len, kv_len, q_width, kv_width, qk, v, heads, hidden;
    // Of a portion: items, rows of z, rows of x.
    int64_t items{}, q_rows{}, kv_rows{};
    static constexpr int64_t row_portion = 1024;

    ResidualBlock(int64_t b, int64_t nq, int64_t nk, int64_t zw, int64_t xw, int64_t qk_width, int64_t v_width,
                  int64_t head_count, int64_t widening)
        : batch(b),
          q_len(nq),
          kv_len(nk),
          q_width(zw),
          kv_width(xw),
          qk(qk_width),
          v(v_width),
          heads(head_count),
          hidden(widening * zw),
          items(larger(b, 1)),
          q_rows(larger(nq, 1)),
          kv_rows(larger(nk, 1)) {
        const auto fits = [&] { return items * (kv_rows * (qk + v) + q_rows * (qk + 2 * v)) <= block_budget / 4; };
        while (items > 1 && !fits()) items = (items + 1) / 2;
        while (kv_rows > 2048 && !fits()) kv_rows = (kv_rows + 1) / 2;
        while (q_rows > 512 && !fits()) q_rows = (q_rows + 1) / 2;
        while (kv_rows > 128 && !fits()) kv_rows = (kv_rows + 1) / 2;
        while (q_rows > 1 && !fits()) q_rows = (q_rows + 1) / 2;
    }
    int64_t parts() const { return kv_len == 0 ? 1 : (kv_len + kv_rows - 1) / kv_rows; }

    struct Pieces {
        float *q, *k, *v, *o, *lse, *part, *part_lse, *rows;
        int64_t* lengths;
    };
    Pieces take(Scratch& scratch) const {
        Pieces p;
        p.q = scratch.take(items * q_rows * qk);
        p.k = scratch.take(items * kv_rows * qk);
        p.v = scratch.take(items * kv_rows * v);
        p.o = scratch.take(items * q_rows * v);
        p.lse = scratch.take(items * q_rows * heads);
        p.part = scratch.take(parts() > 1 ? items * q_rows * v : 0);
        p.part_lse = scratch.take(parts() > 1 ? items * q_rows * heads : 0);
        const int64_t of_q = Portions(items, q_rows, row_portion).size() * q_width;
        p.rows = scratch.take(larger(of_q, Portions(items, kv_rows, row_portion).size() * kv_width));
        p.lengths = scratch.space.take<int64_t>(items);
        return p;
    }
    uint64_t workspace(uint32_t workers) const {
        Scratch scratch(nullptr);
        take(scratch);
        attend_plan_desc desc{};
        desc.batch = items, desc.num_q_heads = desc.num_kv_heads = heads;
        desc.q_len = q_rows, desc.kv_len = kv_rows, desc.head_dim = qk / heads, desc.value_dim = v / heads;
        desc.max_workers = workers;
        uint64_t most = tile_workspace(desc);
        const auto layers = [&](int64_t rows, int64_t in, int64_t out) {
            const Portions part(items, rows, row_portion);
            most = larger_bytes(most, layer_workspace(part.items, part.rows, in, out, workers));
        };
        layers(q_rows, q_width, qk), layers(kv_rows, kv_width, qk), layers(kv_rows, kv_width, v);
        layers(q_rows, v, q_width);
        return larger_bytes(scratch.space.used() + most,
                            feed_forward_workspace(batch, q_len, q_width, hidden, workers));
    }
    double flops() const {
        const auto n = [](int64_t x) { return static_cast<double>(x); };
        const double projections = n(q_len) * n(q_width) * n(qk + v) + n(kv_len) * n(kv_width) * n(qk + v);
        return 2.0 * n(batch) *
               (projections + n(q_len) * n(kv_len) * n(qk + v) + 2.0 * n(q_len) * n(q_width) * n(hidden));
    }

    // Rows of LN(from) through one or two layers, a portion at a time.
    struct Layer {
        const attend_tensor *weight, *bias, *to;
    };
    template <int count>
    static attend_status normalized_layers(const Context& context, const attend_tensor& from,
                                           const attend_tensor* gamma, const attend_tensor* beta,
                                           const Layer (&layers)[size_t{count}], float* rows) {
        const Portions part(from.shape[0], from.shape[1], row_portion);
        for (int64_t item = 0; item < from.shape[0]; item += part.items)
            for (int64_t row = 0; row < from.shape[1]; row += part.rows) {
                const int64_t some = from.shape[0] - item < part.items ? from.shape[0] - item : part.items;
                const int64_t length = from.shape[1] - row < part.rows ? from.shape[1] - row : part.rows;
                Part x(from), normal(rows, some, length, from.shape[2]);
                x.cut(0, item, some).cut(1, row, length);
                attend_status status = layer_norm(&context, &x.tensor, gamma, beta, &normal.tensor);
                for (const Layer& one : layers) {
                    Part to(*one.to);
                    to.cut(0, item, some).cut(1, row, length);
                    if (status == ATTEND_OK) status = layer(&context, &normal.tensor, one.weight, one.bias, &to.tensor);
                }
                if (status != ATTEND_OK) return status;
            }
        return ATTEND_OK;
    }

    // z [B, Nq, .], x [B, Nk, .], to [B, Nq, .]; `to` is neither of the others. lengths: int [B] or NULL.
    attend_status run(const Context& context, const BlockWeights& w, const attend_tensor* z, const attend_tensor* x,
                      const attend_tensor* lengths, bool residual, Activation activation,
                      const attend_tensor* to) const {
        Scratch scratch(context.workspace);
        const Pieces pieces = take(scratch);
        const Context rest = scratch.rest(context);
        for (int64_t item = 0; item < batch; item += items)
            for (int64_t row = 0; row < q_len; row += q_rows) {
                const int64_t some = batch - item < items ? batch - item : items;
                const int64_t length = q_len - row < q_rows ? q_len - row : q_rows;
                Part from(*z), result(*to);
                from.cut(0, item, some).cut(1, row, length);
                result.cut(0, item, some).cut(1, row, length);
                attend_status status = attend_rows(rest, pieces, w, from.tensor, x, lengths, item, row == 0);
                if (status == ATTEND_OK)
                    status = close_rows(rest, pieces, w, residual ? &from.tensor : nullptr, result.tensor);
                if (status != ATTEND_OK) return status;
            }
        const FeedForward mlp{w.mlp_gamma, w.mlp_beta, w.w1, w.b1, w.w2, w.b2, activation, Gate{}};
        return feed_forward(&context, mlp, to, to);
    }

private:
    // Attention of some rows of z to all of x; fresh: keys and values of these items have not been computed yet.
    attend_status attend_rows(const Context& rest, const Pieces& pieces, const BlockWeights& w,
                              const attend_tensor& from, const attend_tensor* x, const attend_tensor* lengths,
                              int64_t item, bool fresh) const {
        const int64_t some = from.shape[0], length = from.shape[1];
        Part q(pieces.q, some, length, qk), o(pieces.o, some, length, v), part(pieces.part, some, length, v);
        Part lse(pieces.lse, some, heads, length), part_lse(pieces.part_lse, some, heads, length);
        attend_status status =
            normalized_layers<1>(rest, from, w.q_gamma, w.q_beta, {{w.wq, w.bq, &q.tensor}}, pieces.rows);
        q.split_heads(heads), o.split_heads(heads), part.split_heads(heads);
        for (int64_t index = 0; index < parts() && status == ATTEND_OK; ++index) {
            const int64_t first = index * kv_rows, count = kv_len - first < kv_rows ? kv_len - first : kv_rows;
            Part k(pieces.k, some, count, qk), values(pieces.v, some, count, v), keys(*x);
            keys.cut(0, item, some).cut(1, first, count);
            if (fresh || parts() > 1)
                status = normalized_layers<2>(rest, keys.tensor, w.kv_gamma, w.kv_beta,
                                              {{w.wk, w.bk, &k.tensor}, {w.wv, w.bv, &values.tensor}}, pieces.rows);
            if (status != ATTEND_OK) return status;
            Part here(nullptr, 1, 1, some);
            for (int64_t at = 0; at < some; ++at) {
                const int64_t left = (lengths != nullptr ? integer_at(lengths, item + at) : kv_len) - first;
                pieces.lengths[at] = left < 0 ? 0 : left < count ? left : count;
            }
            here.tensor.data = pieces.lengths;
            here.tensor.dtype_code = ATTEND_CODE_INT, here.tensor.dtype_bits = 64;
            here.tensor.ndim = 1, here.tensor.shape = here.shape + 2, here.tensor.strides = here.strides + 2;
            k.split_heads(heads), values.split_heads(heads);
            attend_key_segment segment{};
            segment.key = &k.tensor, segment.value = &values.tensor;
            attend_tile_problem problem{};
            problem.query = &q.tensor;
            problem.segments = &segment;
            problem.num_segments = 1;
            problem.output = index == 0 ? &o.tensor : &part.tensor;
            problem.lse = index == 0 ? &lse.tensor : &part_lse.tensor;
            problem.key_lengths = &here.tensor;
            problem.window_left = problem.window_right = -1;
            problem.scale = 1.0 / __builtin_sqrt(static_cast<double>(qk / heads));
            status = ATTEND_KERNEL(attend_tile_forward)(&problem, &rest);
            if (status == ATTEND_OK && index > 0)
                status = merge_parts(&rest, &o.tensor, &lse.tensor, &part.tensor, &part_lse.tensor);
        }
        return status;
    }

    attend_status close_rows(const Context& rest, const Pieces& pieces, const BlockWeights& w,
                             const attend_tensor* base, const attend_tensor& to) const {
        const int64_t some = to.shape[0], length = to.shape[1];
        const Portions portions(some, length, row_portion);
        const Part o(pieces.o, some, length, v);
        for (int64_t item = 0; item < some; item += portions.items)
            for (int64_t row = 0; row < length; row += portions.rows) {
                const int64_t count = some - item < portions.items ? some - item : portions.items;
                const int64_t rows = length - row < portions.rows ? length - row : portions.rows;
                Part from(o.tensor), result(to), a(pieces.rows, count, rows, q_width), old;
                from.cut(0, item, count).cut(1, row, rows);
                result.cut(0, item, count).cut(1, row, rows);
                if (base != nullptr) {
                    old.view(*base);
                    old.cut(0, item, count).cut(1, row, rows).one_head();
                }
                attend_status status = layer(&rest, &from.tensor, w.wo, w.bo, &a.tensor);
                if (status == ATTEND_OK)
                    status = gated_sum(&rest, base != nullptr ? &old.tensor : nullptr, &a.one_head().tensor, Gate{},
                                       &result.one_head().tensor);
                if (status != ATTEND_OK) return status;
            }
        return ATTEND_OK;
    }
};

}  // namespace attend::ATTEND_ISA
