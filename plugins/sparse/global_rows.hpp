// SPDX-License-Identifier: Apache-2.0
// Rows of global tokens: dense attention of gathered queries, with projections of their own or none, whose results take the
// place of what the rows hold. Projected keys exist a piece at a time; pieces are merged (S0.3).
#pragma once

#include "attend/author/projected.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/tile/storage.hpp"
#include "parts.hpp"

namespace attend::ATTEND_ISA {

// Global positions of each item, ascending: items[offsets[b]] .. items[offsets[b + 1]], without offsets all items.
struct GlobalLists {
    const int32_t* items;
    int64_t all;
    const int64_t* offsets;
    int64_t count(int64_t b) const { return offsets == nullptr ? all : offsets[b + 1] - offsets[b]; }
    const int32_t* of(int64_t b) const { return offsets == nullptr ? items : items + offsets[b]; }
};

class GlobalRows {
public:
    static constexpr int64_t rows_at_once = 512, keys_at_once = 1024;

    const attend_tensor *query, *key, *value;                      // [B, H, N, *] of the rows
    const attend_tensor *wq{nullptr}, *wk{nullptr}, *wv{nullptr};  // [H, in, out], NULL: none

    bool projects() const { return wq != nullptr || wk != nullptr || wv != nullptr; }

    static uint64_t workspace(const attend_plan_desc& desc, int64_t most_rows, bool projects) {
        Scratch scratch(nullptr, desc, most_rows, projects);
        attend_plan_desc rows = desc;
        rows.batch = 1;
        rows.q_len = 6144;  // as many as fill the widest tiles
        uint64_t tiles = tile_workspace(wide(rows, projects));
        if (projects)
            for (const int64_t width : {desc.head_dim, desc.value_dim}) {
                const uint64_t bytes = projection_workspace(1, keys_at_once, width, width, desc.max_workers);
                tiles = bytes > tiles ? bytes : tiles;
            }
        return scratch.space.used() + tiles;
    }

    attend_status run(const TileCall& call, const ForwardArgs& args, const GlobalLists& lists,
                      const Context& context) const {
        const attend_plan_desc& desc = *args.desc;
        int64_t most = 0;
        for (int64_t b = 0; b < desc.batch; ++b) most = lists.count(b) > most ? lists.count(b) : most;
        if (most == 0 || desc.kv_len == 0) return ATTEND_OK;
        // Weights are shown row by row: a row's weights lie where the call wants them.
        const bool shows = args.scores != nullptr;
        Scratch scratch(context.workspace, desc, most, projects());
        Context rest = context;
        rest.workspace = static_cast<char*>(context.workspace) + scratch.space.used();
        rest.workspace_bytes = context.workspace_bytes - scratch.space.used();
        for (int64_t b = 0; b < desc.batch; ++b) {
            const bool per_item = (call.problem.flags & ATTEND_TILE_OFFSET_PER_ITEM) != 0;
            const int64_t valid = args.query_lengths != nullptr ? integer_at(args.query_lengths, b) : desc.q_len;
            const int64_t offset = per_item ? integer_at(args.key_lengths, b) - valid : call.problem.causal_offset;
            int64_t count = 0;
            for (int64_t n = 0; n <= lists.count(b); ++n) {
                if (n < lists.count(b)) {
                    const int64_t i = lists.of(b)[n] - offset;
                    const bool asked =
                        args.rows.count == 0 || (i >= args.rows.first && i < args.rows.first + args.rows.count);
                    if (i >= 0 && i < valid && asked) scratch.index[count++] = static_cast<int32_t>(i);
                }
                if (count == 0 || (n < lists.count(b) && count < (shows ? 1 : scratch.rows))) continue;
                const attend_status status = some_rows(call, args, scratch, b, count, rest);
                if (status != ATTEND_OK) return status;
                count = 0;
            }
        }
        return ATTEND_OK;
    }

private:
    struct Scratch {
        Workspace space;
        int64_t rows, keys;
        int32_t *index, *key_index;
        float *queries, *plain, *out, *lse, *part, *part_lse, *key, *value, *piece_lse;

        Scratch(void* memory, const attend_plan_desc& desc, int64_t most_rows, bool projects) : space(memory) {
            rows = most_rows < rows_at_once ? (most_rows > 0 ? most_rows : 1) : rows_at_once;
            keys = keys_at_once;
            index = space.take<int32_t>(rows);
            key_index = space.take<int32_t>(keys);
            queries = space.take<float>(desc.num_q_heads * rows * desc.head_dim);
            out = space.take<float>(desc.num_q_heads * rows * desc.value_dim);
            lse = space.take<float>(desc.num_q_heads * rows);
            plain = part = part_lse = key = value = piece_lse = nullptr;
            if (!projects) return;
            plain = space.take<float>(rows * desc.head_dim);
            part = space.take<float>(desc.num_q_heads * rows * desc.value_dim);
            part_lse = space.take<float>(desc.num_q_heads * rows);
            key = space.take<float>(desc.num_kv_heads * keys * desc.head_dim);
            value = space.take<float>(desc.num_kv_heads * keys * desc.value_dim);
            piece_lse = space.take<float>(desc.num_q_heads * ((desc.kv_len + keys - 1) / keys));
        }
    };

    // Projected rows are float32 whatever the tensors are.
    static attend_plan_desc wide(const attend_plan_desc& desc, bool projects) {
        attend_plan_desc own = desc;
        if (projects) own.bindings = attend_array{};
        return own;
    }

    // rows [first, first + count) of a head through its matrix, as float32 rows behind each other.
    static attend_status project_rows(const attend_tensor& from, int64_t b, int64_t head, int64_t first, int64_t count,
                                      const attend_tensor* weight, float* to, const Context& context) {
        const int64_t width = from.shape[3], bytes = from.dtype_bits / 8;
        const int64_t at =
            (from.shape[0] == 1 ? 0 : b) * from.strides[0] + head * from.strides[1] + first * from.strides[2];
        if (weight == nullptr) {
            const char* row = static_cast<const char*>(from.data) + at * bytes;
            for (int64_t n = 0; n < count; ++n)
                widen_row(storage_of(&from), row + n * from.strides[2] * bytes, from.strides[3], width, to + n * width);
            return ATTEND_OK;
        }
        OwnTensor input, matrix, output;
        describe(input, from, {1, count, width, 1}, {0, from.strides[2], from.strides[3], 0});
        input.tensor.ndim = 3;
        input.tensor.data = static_cast<char*>(from.data) + at * bytes;
        describe(matrix, *weight, {width, width, 1, 1}, {weight->strides[2], weight->strides[1], 0, 0});
        matrix.tensor.ndim = 2;
        matrix.tensor.data = static_cast<char*>(weight->data) + head * weight->strides[0] * (weight->dtype_bits / 8);
        describe(output, to, 1, count, width, 1);
        output.tensor.ndim = 3;
        return project(&input.tensor, &matrix.tensor, nullptr, &output.tensor, context);
    }

    attend_status gather(const ForwardArgs& args, const Scratch& scratch, int64_t b, int64_t count, OwnTensor& rows,
                         const Context& context) const {
        const attend_plan_desc& desc = *args.desc;
        const int64_t width = desc.head_dim, bytes = query->dtype_bits / 8;
        describe(rows, scratch.queries, 1, desc.num_q_heads, count, width);
        if (!projects()) {
            rows.tensor.dtype_code = query->dtype_code;
            rows.tensor.dtype_bits = query->dtype_bits;
        }
        const Steps all{0, 1, count, scratch.index};
        for (int64_t h = 0; h < desc.num_q_heads; ++h) {
            if (!projects()) {
                Parts::copy_rows(*query, b, h, all, 0, count,
                                 reinterpret_cast<char*>(scratch.queries) + h * count * width * bytes);
                continue;
            }
            float* to = scratch.queries + h * count * width;
            float* wide_rows = wq != nullptr ? scratch.plain : to;
            for (int64_t n = 0; n < count; ++n)
                project_rows(*query, b, h, scratch.index[n], 1, nullptr, wide_rows + n * width, context);
            if (wq == nullptr) continue;
            OwnTensor plain;
            describe(plain, scratch.plain, 1, 1, count, width);
            plain.strides[1] = 0;  // the matrix is that of head h, the rows are those of the only head
            const attend_status status = project_rows(plain.tensor, 0, h, 0, count, wq, to, context);
            if (status != ATTEND_OK) return status;
        }
        return ATTEND_OK;
    }

    attend_status some_rows(const TileCall& call, const ForwardArgs& args, const Scratch& scratch, int64_t b,
                            int64_t count, const Context& context) const {
        const attend_plan_desc& desc = *args.desc;
        OwnTensor queries, out, lse, part, part_lse, keys, values, mask, bias, scores, query_lengths, key_lengths;
        attend_status status = gather(args, scratch, b, count, queries, context);
        if (status != ATTEND_OK) return status;
        describe(out, scratch.out, 1, desc.num_q_heads, count, desc.value_dim);
        describe(lse, scratch.lse, 1, desc.num_q_heads, count, 1);
        describe(part, scratch.part, 1, desc.num_q_heads, count, desc.value_dim);
        describe(part_lse, scratch.part_lse, 1, desc.num_q_heads, count, 1);
        lse.tensor.ndim = part_lse.tensor.ndim = 3;
        attend_tile_problem problem = call.problem;
        problem.query = &queries.tensor;
        problem.query_index = scratch.index;
        problem.first_row = problem.num_rows = 0;
        problem.keys = nullptr;
        problem.keep = nullptr;
        problem.mask = of_item(mask, problem.mask, b);
        problem.bias = of_item(bias, problem.bias, b);
        problem.query_lengths = of_item(query_lengths, problem.query_lengths, b);
        problem.key_lengths = of_item(key_lengths, problem.key_lengths, b);
        problem.dropout_heads = desc.num_q_heads;
        problem.dropout_head = b * desc.num_q_heads;
        attend_key_segment segment{&keys.tensor, &values.tensor, 0, 0, nullptr};
        problem.segments = &segment;
        problem.num_segments = 1;
        const int64_t step = projects() ? scratch.keys : desc.kv_len;
        for (int64_t first = 0; first < desc.kv_len; first += step) {
            const int64_t n = first + step < desc.kv_len ? step : desc.kv_len - first;
            problem.key_index = nullptr;
            if (projects()) {
                problem.flags |= ATTEND_TILE_WIDEN;
                problem.key_index = scratch.key_index;
                for (int64_t at = 0; at < n; ++at) scratch.key_index[at] = static_cast<int32_t>(first + at);
                describe(keys, scratch.key, 1, desc.num_kv_heads, n, desc.head_dim);
                describe(values, scratch.value, 1, desc.num_kv_heads, n, desc.value_dim);
                for (int64_t h = 0; h < desc.num_kv_heads && status == ATTEND_OK; ++h) {
                    status = project_rows(*key, b, h, first, n, wk, scratch.key + h * n * desc.head_dim, context);
                    if (status == ATTEND_OK)
                        status =
                            project_rows(*value, b, h, first, n, wv, scratch.value + h * n * desc.value_dim, context);
                }
                if (status != ATTEND_OK) return status;
            } else {
                Parts::rows_of(keys, *key, key->shape[0] == 1 ? 0 : b, 0, desc.num_kv_heads, {0, 1, n});
                Parts::rows_of(values, *value, value->shape[0] == 1 ? 0 : b, 0, desc.num_kv_heads, {0, 1, n});
            }
            problem.output = first == 0 ? &out.tensor : &part.tensor;
            problem.lse = first == 0 ? &lse.tensor : &part_lse.tensor;
            if (args.scores != nullptr) {
                Parts::rows_of(scores, *args.scores, b, 0, desc.num_q_heads, {scratch.index[0], 1, 1});
                scores.tensor.data = static_cast<float*>(scores.tensor.data) + first * scores.strides[3];
                scores.shape[3] = n;
                problem.scores = &scores.tensor;
            }
            if (args.rows.logits) {
                problem.output = problem.lse = nullptr;
                problem.num_rows = count;
                status = ATTEND_KERNEL(attend_tile_forward)(&problem, &context);
                if (status != ATTEND_OK) return status;
                continue;
            }
            status = ATTEND_KERNEL(attend_tile_forward)(&problem, &context);
            if (status != ATTEND_OK) return status;
            if (scratch.piece_lse != nullptr && args.scores != nullptr)
                for (int64_t h = 0; h < desc.num_q_heads; ++h)
                    scratch.piece_lse[first / step * desc.num_q_heads + h] =
                        (first == 0 ? scratch.lse : scratch.part_lse)[h];
            for (int64_t row = 0; row < desc.num_q_heads * count && first > 0; ++row)
                Parts::merge_row(scratch.out + row * desc.value_dim, 1, scratch.part + row * desc.value_dim,
                                 desc.value_dim, scratch.lse[row], scratch.part_lse[row]);
        }
        if (args.rows.logits) return ATTEND_OK;
        if (scratch.piece_lse != nullptr && args.scores != nullptr) share_scores(args, scratch, b, step);
        store(args, scratch, b, count);
        return ATTEND_OK;
    }

    // Weights of a piece add up to 1: times the piece's share of the row they are those of the row.
    static void share_scores(const ForwardArgs& args, const Scratch& scratch, int64_t b, int64_t step) {
        const auto scores = view_of<float, 4>(args.scores);
        for (int64_t h = 0; h < scores.shape[1]; ++h)
            for (int64_t j = 0; j < scores.shape[3]; ++j) {
                const float of_piece = scratch.piece_lse[j / step * scores.shape[1] + h], all = scratch.lse[h];
                const double share = of_piece == -__builtin_inff()
                                         ? 0.0
                                         : ::exp(static_cast<double>(of_piece) - static_cast<double>(all));
                *scores.at(b, h, scratch.index[0], j) *= static_cast<float>(share);
            }
    }

    static void store(const ForwardArgs& args, const Scratch& scratch, int64_t b, int64_t count) {
        const attend_plan_desc& desc = *args.desc;
        const StoredView output = stored_view(args.output);
        const auto lse = view_of<float, 3>(args.lse);
        for (int64_t h = 0; h < desc.num_q_heads; ++h)
            for (int64_t n = 0; n < count; ++n) {
                const int64_t i = scratch.index[n];
                if (output.present)
                    narrow_row(output.storage, scratch.out + (h * count + n) * desc.value_dim, desc.value_dim,
                               output.at(b, h, i), output.step());
                if (lse.present) *lse.at(b, h, i) = scratch.lse[h * count + n];
            }
    }

    // Item b of a tensor whose first dimension is the batch.
    static const attend_tensor* of_item(OwnTensor& own, const attend_tensor* whole, int64_t b) {
        if (whole == nullptr) return nullptr;
        own.tensor = *whole;
        for (int axis = 0; axis < whole->ndim; ++axis) {
            own.shape[axis] = axis == 0 ? 1 : whole->shape[axis];
            own.strides[axis] = whole->strides[axis];
        }
        own.tensor.shape = own.shape;
        own.tensor.strides = own.strides;
        own.tensor.data = static_cast<char*>(whole->data) + b * whole->strides[0] * (whole->dtype_bits / 8);
        return &own.tensor;
    }
};

}  // namespace attend::ATTEND_ISA
