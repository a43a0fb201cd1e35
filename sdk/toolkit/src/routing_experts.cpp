// SPDX-License-Identifier: Apache-2.0
// Experts: gather the rows that an expert holds, project them, attend among them at their original positions, project
// back, and add the gated result to the rows of the output. Experts follow each other; the engines inside run parallel.
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/position/rotary.hpp"
#include "attend/toolkit/routing.h"

namespace attend::ATTEND_ISA {
namespace {

int64_t merged_width(const attend_tensor& tensor) { return tensor.shape[1] * tensor.shape[3]; }

struct View {
    attend_tensor tensor{};
    int64_t shape[4], strides[4];
    View(const float* data, int32_t rank, const int64_t (&extents)[4], const int64_t (&steps)[4],
         uint8_t code = ATTEND_CODE_FLOAT, uint8_t bits = 32) {
        for (int axis = 0; axis < 4; ++axis) shape[axis] = extents[axis], strides[axis] = steps[axis];
        tensor.struct_size = sizeof tensor;
        tensor.data = const_cast<float*>(data);
        tensor.device_type = ATTEND_DEVICE_CPU;
        tensor.ndim = rank;
        tensor.dtype_code = code;
        tensor.dtype_bits = bits;
        tensor.dtype_lanes = 1;
        tensor.align = 4;
        tensor.shape = shape;
        tensor.strides = strides;
    }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
};

// Buffers of one expert, for the longest list that it can hold.
struct Buffers {
    float *rows, *q, *k, *v, *attended, *result, *cosines, *sines;
    int32_t* all_keys;
    unsigned char* engines;
    uint64_t bytes;

    Buffers(const attend_experts& x, void* memory) {
        Workspace space(memory);
        const attend_plan_desc& desc = *x.desc;
        const int64_t longest = desc.q_len > desc.kv_len ? desc.q_len : desc.kv_len;
        int64_t widest = merged_width(*x.query);
        const attend_tensor* const sides[] = {x.key, x.value};
        for (const attend_tensor* tensor : sides) widest = merged_width(*tensor) > widest ? merged_width(*tensor) : widest;
        rows = space.take<float>(longest * widest);
        q = space.take<float>(desc.q_len * x.heads * x.key_dim);
        k = space.take<float>(desc.kv_len * x.heads * x.key_dim);
        v = space.take<float>(desc.kv_len * x.heads * x.value_dim);
        attended = space.take<float>(desc.q_len * x.heads * x.value_dim);
        result = space.take<float>(desc.q_len * merged_width(*x.output));
        cosines = space.take<float>(x.rope_dim);
        sines = space.take<float>(x.rope_dim);
        all_keys = space.take<int32_t>(desc.kv_len);
        engines = space.take<unsigned char>(0);
        bytes = space.used();
    }
};

class Experts {
public:
    Experts(const attend_experts& experts, int64_t item, int64_t offset, const attend_context& context)
        : x_(experts), buffers_(experts, context.workspace), item_(item), offset_(offset), context_(context) {
        context_.workspace = static_cast<unsigned char*>(context.workspace) + buffers_.bytes;
        context_.workspace_bytes = context.workspace_bytes - buffers_.bytes;
        for (int64_t j = 0; j < experts.desc->kv_len; ++j) buffers_.all_keys[j] = static_cast<int32_t>(j);
    }

    attend_status run(const attend_assignment& queries, const attend_assignment* keys, int64_t num_keys) {
        start_output(queries.num_tokens);
        const bool shared = x_.wk->shape[0] == 1 && keys == nullptr;
        for (int64_t e = 0; e < x_.experts; ++e) {
            const int32_t* members = queries.members + queries.first[e];
            const int64_t count = queries.first[e + 1] - queries.first[e];
            const int32_t* key_members = keys ? keys->members + keys->first[e] : buffers_.all_keys;
            const int64_t key_count = keys ? keys->first[e + 1] - keys->first[e] : num_keys;
            if (count == 0 || key_count == 0) continue;  // no keys: F is zero, the remaining gates stay as they are
            if (!shared || !have_shared_) {
                if (attend_status status = project_rows(*x_.key, key_members, key_count, *x_.wk, e, x_.key_dim, buffers_.k)) return status;
                if (attend_status status = project_rows(*x_.value, key_members, key_count, *x_.wv, e, x_.value_dim, buffers_.v)) return status;
                rotate_rows(buffers_.k, key_members, key_count, 0);
                have_shared_ = shared;
            }
            if (attend_status status = project_rows(*x_.query, members, count, *x_.wq, e, x_.key_dim, buffers_.q)) return status;
            rotate_rows(buffers_.q, members, count, offset_);
            if (attend_status status = attend(e, members, count, key_members, key_count)) return status;
            if (attend_status status = project_back(e, count)) return status;
            add_to_output(members, queries.gates + queries.first[e], count);
        }
        return ATTEND_OK;
    }

private:
    float* output_row(int64_t token) const {
        return static_cast<float*>(x_.output->data) + item_ * x_.output->strides[0] + token * x_.output->strides[2];
    }

    // Zero, or the query's own row where the experts' sum is added to it; zero for padded rows in any case.
    void start_output(int64_t num_tokens) const {
        const attend_tensor &to = *x_.output, &from = *x_.query;
        for (int64_t token = 0; token < to.shape[2]; ++token) {
            float* out = output_row(token);
            const float* in = static_cast<const float*>(from.data) + item_ * from.strides[0] + token * from.strides[2];
            for (int64_t head = 0; head < to.shape[1]; ++head)
                for (int64_t c = 0; c < to.shape[3]; ++c)
                    out[head * to.strides[1] + c * to.strides[3]] = x_.residual && token < num_tokens ? in[head * from.strides[1] + c * from.strides[3]] : 0.0f;
        }
    }

    // Rows of the given tokens times W[e, a] of every head: to[row][a * width + column]. Rows are gathered first.
    attend_status project_rows(const attend_tensor& tokens, const int32_t* members, int64_t count, const attend_tensor& w, int64_t e,
                               int64_t width, float* to) const {
        const int64_t in = merged_width(tokens);
        for (int64_t row = 0; row < count; ++row) {
            const float* from = static_cast<const float*>(tokens.data) + item_ * tokens.strides[0] + members[row] * tokens.strides[2];
            float* gathered = buffers_.rows + row * in;
            for (int64_t head = 0; head < tokens.shape[1]; ++head)
                for (int64_t d = 0; d < tokens.shape[3]; ++d) *gathered++ = from[head * tokens.strides[1] + d * tokens.strides[3]];
        }
        const View input(buffers_.rows, 3, {1, count, in, 1}, {count * in, in, 1, 1});
        const float* weights = static_cast<const float*>(w.data) + (w.shape[0] == 1 ? 0 : e * w.strides[0]);
        for (int64_t head = 0; head < x_.heads; ++head) {
            // [in, out] in memory, [out, in] for the engine: the same numbers with the strides swapped.
            const View weight(weights + head * w.strides[1], 2, {width, in, 1, 1}, {w.strides[3], w.strides[2], 1, 1});
            const View output(to + head * width, 3, {1, count, width, 1}, {count * x_.heads * width, x_.heads * width, 1, 1});
            const attend_projection projection{&input.tensor, &weight.tensor, nullptr, &output.tensor};
            if (attend_status status = ATTEND_KERNEL(attend_projection_forward)(&projection, &context_)) return status;
        }
        return ATTEND_OK;
    }

    // Positions are those of the sequence, not of the expert's list.
    void rotate_rows(float* rows, const int32_t* members, int64_t count, int64_t offset) const {
        if (x_.rope == ATTEND_ROPE_NONE) return;
        const RotaryLayout layout = x_.rope == ATTEND_ROPE_HALF ? RotaryLayout::half : RotaryLayout::interleaved;
        for (int64_t row = 0; row < count; ++row) {
            rotary_angles(static_cast<double>(members[row] + offset), x_.rope_dim, x_.rope_base, buffers_.cosines, buffers_.sines);
            for (int64_t head = 0; head < x_.heads; ++head)
                rotate(rows + (row * x_.heads + head) * x_.key_dim, x_.rope_dim, layout, buffers_.cosines, buffers_.sines);
        }
    }

    attend_status attend(int64_t e, const int32_t* members, int64_t count, const int32_t* key_members, int64_t key_count) const {
        const attend_plan_desc& desc = *x_.desc;
        const int64_t heads = x_.heads, d = x_.key_dim, dv = x_.value_dim;
        const View q(buffers_.q, 4, {1, heads, count, d}, {count * heads * d, d, heads * d, 1});
        const View k(buffers_.k, 4, {1, heads, key_count, d}, {key_count * heads * d, d, heads * d, 1});
        const View v(buffers_.v, 4, {1, heads, key_count, dv}, {key_count * heads * dv, dv, heads * dv, 1});
        const View o(buffers_.attended, 4, {1, heads, count, dv}, {count * heads * dv, dv, heads * dv, 1});
        const attend_key_segment segment{&k.tensor, &v.tensor, 0, 0, nullptr};
        attend_tile_problem problem{};
        problem.query = &q.tensor;
        problem.segments = &segment;
        problem.num_segments = 1;
        problem.output = &o.tensor;
        problem.flags = (desc.flags & ATTEND_PLAN_CAUSAL) ? ATTEND_TILE_CAUSAL : 0u;
        problem.causal_offset = offset_;
        problem.window_left = desc.window_left;
        problem.window_right = desc.window_right;
        problem.scale = desc.scale == 0.0 ? 1.0 / __builtin_sqrt(static_cast<double>(d)) : desc.scale;
        problem.softcap = desc.softcap;
        problem.dropout = desc.dropout;
        problem.seed = x_.seed;
        problem.rng_offset = x_.rng_offset;
        problem.dropout_heads = x_.experts * heads;
        problem.dropout_head = item_ * x_.experts * heads + e * heads;
        problem.query_index = members;
        problem.key_index = key_members;
        const View mask = item_of(x_.mask, heads), bias = item_of(x_.bias, heads);
        if (x_.mask) problem.mask = &mask.tensor;
        if (x_.bias) problem.bias = &bias.tensor;
        return ATTEND_KERNEL(attend_tile_forward)(&problem, &context_);
    }

    // Item's [Nq, Nk] part of a mask or bias, the same for every head.
    View item_of(const attend_tensor* tensor, int64_t heads) const {
        if (!tensor) return View(nullptr, 4, {0, 0, 0, 0}, {0, 0, 0, 0});
        const auto step = [&](int axis) { return tensor->shape[axis] == 1 ? int64_t{0} : tensor->strides[axis]; };
        const int64_t bytes = tensor->dtype_bits / 8;
        const auto* data = static_cast<const char*>(tensor->data) + item_ * step(0) * bytes;
        return View(reinterpret_cast<const float*>(data), 4, {1, heads, x_.desc->q_len, x_.desc->kv_len}, {0, 0, step(2), step(3)},
                    tensor->dtype_code, tensor->dtype_bits);
    }

    attend_status project_back(int64_t e, int64_t count) const {
        const attend_tensor& w = *x_.wo;  // [E, heads, value_dim, out]
        const int64_t inner = x_.heads * x_.value_dim, out = merged_width(*x_.output);
        const View input(buffers_.attended, 3, {1, count, inner, 1}, {count * inner, inner, 1, 1});
        const View weight(static_cast<const float*>(w.data) + e * w.strides[0], 2, {out, inner, 1, 1}, {w.strides[3], w.strides[2], 1, 1});
        const View output(buffers_.result, 3, {1, count, out, 1}, {count * out, out, 1, 1});
        const attend_projection projection{&input.tensor, &weight.tensor, nullptr, &output.tensor};
        return ATTEND_KERNEL(attend_projection_forward)(&projection, &context_);
    }

    void add_to_output(const int32_t* members, const float* gates, int64_t count) const {
        const attend_tensor& to = *x_.output;
        for (int64_t row = 0; row < count; ++row) {
            float* out = output_row(members[row]);
            const float* from = buffers_.result + row * merged_width(to);
            for (int64_t head = 0; head < to.shape[1]; ++head)
                for (int64_t c = 0; c < to.shape[3]; ++c) out[head * to.strides[1] + c * to.strides[3]] += gates[row] * *from++;
        }
    }

    const attend_experts& x_;
    Buffers buffers_;
    int64_t item_, offset_;
    attend_context context_;
    bool have_shared_{false};
};

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_experts_workspace)(const attend_experts* x, uint32_t max_workers) {
    const attend_plan_desc& desc = *x->desc;
    const Buffers buffers(*x, nullptr);
    const int64_t longest = desc.q_len > desc.kv_len ? desc.q_len : desc.kv_len;
    // An expert may hold any number of rows, and what the tile engine needs does not only grow with it.
    uint64_t tiles = 0;
    for (int64_t rows = 0; rows <= desc.q_len; rows = rows < 256 || rows == desc.q_len ? rows + 1 : desc.q_len) {
        const View q(nullptr, 4, {1, x->heads, rows, x->key_dim}, {1, 1, 1, 1});
        const View k(nullptr, 4, {1, x->heads, desc.kv_len, x->key_dim}, {1, 1, 1, 1});
        const View v(nullptr, 4, {1, x->heads, desc.kv_len, x->value_dim}, {1, 1, 1, 1});
        const View o(nullptr, 4, {1, x->heads, rows, x->value_dim}, {1, 1, 1, 1});
        const attend_key_segment segment{&k.tensor, &v.tensor, 0, 0, nullptr};
        attend_tile_problem problem{};
        problem.query = &q.tensor;
        problem.segments = &segment;
        problem.num_segments = 1;
        problem.output = &o.tensor;
        problem.dropout = desc.dropout;
        const uint64_t bytes = ATTEND_KERNEL(attend_tile_workspace)(&problem, max_workers);
        tiles = bytes > tiles ? bytes : tiles;
    }
    uint64_t products = 0;
    const int64_t inner = x->heads * x->value_dim, out = merged_width(*x->output);
    const int64_t pairs[][2] = {{merged_width(*x->query), x->key_dim}, {merged_width(*x->key), x->key_dim}, {merged_width(*x->value), x->value_dim}, {inner, out}};
    for (const auto& [in, width] : pairs) {
        const View input(nullptr, 3, {1, longest, in, 1}, {longest * in, in, 1, 1});
        const View weight(nullptr, 2, {width, in, 1, 1}, {in, 1, 1, 1});
        const View output(nullptr, 3, {1, longest, width, 1}, {longest * width, width, 1, 1});
        const attend_projection projection{&input.tensor, &weight.tensor, nullptr, &output.tensor};
        const uint64_t bytes = ATTEND_KERNEL(attend_projection_workspace)(&projection, max_workers);
        products = bytes > products ? bytes : products;
    }
    return buffers.bytes + (tiles > products ? tiles : products);
}

extern "C" attend_status ATTEND_KERNEL(attend_run_experts)(const attend_experts* experts, int64_t item, int64_t offset,
                                                           const attend_assignment* query_side, const attend_assignment* key_side,
                                                           int64_t num_keys, const attend_context* context) {
    return Experts(*experts, item, offset, *context).run(*query_side, key_side, num_keys);
}
