// SPDX-License-Identifier: Apache-2.0
// Projected forms: linear layers y = x W^T + b on [B, N, E], weights [out, in], around attention on heads. Most mechanisms
// need ProjectedForm (what is projected), projected_workspace, projected_cost and ProjectedHeads (projections and views).
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {

inline attend_status project(const attend_tensor* input, const attend_tensor* weight, const attend_tensor* bias,
                             const attend_tensor* output, const Context& context) {
    const attend_projection projection{input, weight, bias, output};
    return ATTEND_KERNEL(attend_projection_forward)(&projection, &context);
}

// Scratch for a projection of `rows` rows per item from `in` to `out` features.
inline uint64_t projection_workspace(int64_t batch, int64_t rows, int64_t in, int64_t out, uint32_t workers) {
    OwnTensor input, weight, output;
    describe(input, nullptr, 1, batch, rows, in);
    describe(weight, nullptr, 1, 1, out, in);
    describe(output, nullptr, 1, batch, rows, out);
    attend_tensor x = input.tensor, w = weight.tensor, y = output.tensor;
    x.ndim = 3, x.shape = input.shape + 1, x.strides = input.strides + 1;
    w.ndim = 2, w.shape = weight.shape + 2, w.strides = weight.strides + 2;
    y.ndim = 3, y.shape = output.shape + 1, y.strides = output.strides + 1;
    const attend_projection projection{&x, &w, nullptr, &y};
    return ATTEND_KERNEL(attend_projection_workspace)(&projection, workers);
}

// A [B, N, C] tensor in scratch memory.
struct Rows {
    OwnTensor own;
    attend_tensor tensor;
    Rows(float* data, int64_t batch, int64_t rows, int64_t width) {
        describe(own, data, 1, batch, rows, width);
        tensor = own.tensor;
        tensor.ndim = 3;
        tensor.shape = own.shape + 1;
        tensor.strides = own.strides + 1;
    }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;
};

// Rows [first, first + count) of a matrix, or of a vector.
struct RowRange {
    attend_tensor tensor;
    int64_t shape[2];
    RowRange(const attend_tensor& matrix, int64_t first, int64_t count)
        : tensor(matrix), shape{count, matrix.ndim > 1 ? matrix.shape[1] : 0} {
        tensor.data = static_cast<float*>(matrix.data) + first * matrix.strides[0];
        tensor.shape = shape;
    }
    RowRange(const RowRange&) = delete;
    RowRange& operator=(const RowRange&) = delete;
};

// [N, B, E] seen as [B, N, E].
inline attend_tensor batch_leading(const attend_tensor& tensor, int64_t (&shape)[3], int64_t (&strides)[3]) {
    attend_tensor view = tensor;
    const int order[3] = {1, 0, 2};
    for (int axis = 0; axis < 3; ++axis)
        shape[axis] = tensor.shape[order[axis]], strides[axis] = tensor.strides[order[axis]];
    view.shape = shape;
    view.strides = strides;
    return view;
}

inline bool is_projected(int32_t form) { return form == 2; }
inline constexpr const char* in_projected = "form=projected";  // of options that the core form does not read

// What a projected form projects, beside the sizes of the plan description. Weights are wq, wk, wv with biases bq, bk, bv,
// or one weight with the rows of queries, then keys, then values; then wo with bo. Biases that do not exist are zero.
struct ProjectedForm {
    int64_t keys;       // tokens that become keys; a cache stands in front of them
    int64_t value_dim;  // width of a value head
    const char *packed = nullptr, *packed_bias = nullptr;
    bool joins = true;  // the joined heads go through wo
};
// One sequence: its tokens are queries and keys, behind `past_key` and `past_value` if there are any.
inline ProjectedForm self_projection(const attend_plan_desc& desc) { return {desc.q_len, desc.value_dim}; }
// Keys and values come from other inputs.
inline ProjectedForm cross_projection(const attend_plan_desc& desc) { return {desc.kv_len, desc.value_dim}; }

// Widths of what goes in and comes out. Estimates have no tensors: then all are as wide as the joined heads.
struct ProjectedWidths {
    int64_t query, key, value, output;
    ProjectedWidths(const attend_plan_desc& desc) {
        const auto of = [&](uint32_t role, int64_t otherwise) {
            const attend_tensor* tensor = attend_find(&desc.bindings, role);
            return tensor && tensor->ndim == 3 ? tensor->shape[2] : otherwise;
        };
        query = of(ATTEND_Q, desc.num_q_heads * desc.head_dim);
        key = of(ATTEND_K, query);
        value = of(ATTEND_V, key);
        output = of(ATTEND_OUT, query);
    }
};

// Scratch of the projections and of the heads that they make; the tile engine's comes on top.
inline uint64_t projected_workspace(const ProjectedForm& form, const attend_plan_desc& desc) {
    const ProjectedWidths widths(desc);
    const int64_t queries = desc.num_q_heads * desc.head_dim, keys = desc.num_kv_heads * desc.head_dim,
                  values = desc.num_kv_heads * form.value_dim, joined = desc.num_q_heads * form.value_dim;
    const int64_t tokens = desc.batch * desc.q_len, key_tokens = desc.batch * form.keys;
    const auto layer = [&](int64_t rows, int64_t in, int64_t out) {
        return projection_workspace(desc.batch, rows, in, out, desc.max_workers);
    };
    const uint64_t layers[] = {form.packed ? layer(desc.q_len, widths.query, queries + keys + values)
                                           : layer(desc.q_len, widths.query, queries),
                               layer(form.keys, widths.key, keys), layer(form.keys, widths.value, values),
                               form.joins ? layer(desc.q_len, joined, widths.output) : 0};
    uint64_t most = 0;
    for (const uint64_t bytes : layers) most = bytes > most ? bytes : most;
    return most + Carve::floats(tokens * joined) +
           (form.packed ? Carve::floats(tokens * (queries + keys + values))
                        : Carve::floats(tokens * queries) + Carve::floats(key_tokens * keys) +
                              Carve::floats(key_tokens * values));
}

// Flops of the projections, and their weights once.
inline void projected_cost(const ProjectedForm& form, const attend_plan_desc& desc, attend_cost& cost) {
    const ProjectedWidths widths(desc);
    const auto real = [](int64_t number) { return static_cast<double>(number); };
    const double from_queries = real(desc.num_q_heads * desc.head_dim) * real(widths.query) +
                                (form.joins ? real(desc.num_q_heads * form.value_dim) * real(widths.output) : 0.0);
    const double from_keys =
        real(desc.num_kv_heads) * (real(desc.head_dim) * real(widths.key) + real(form.value_dim) * real(widths.value));
    cost.flops += 2.0 * real(desc.batch) * (real(desc.q_len) * from_queries + real(form.keys) * from_keys);
    cost.bytes += 4.0 * (from_queries + from_keys);
}

// The heads of a projected call: q [B,Hq,Nq,D], k [B,Hkv,N,D], v [B,Hkv,N,Dv] are views of what the projections wrote, o
// [B,Hq,Nq,Dv] of what the engine shall write.
struct ProjectedHeads {
    OwnTensor q, k, v, o;

    // Takes its memory from `carve`. Inputs that the call lacks are the ones before.
    attend_status project_inputs(const ProjectedForm& form, const ForwardArgs& args, Carve& carve,
                                 const Context& context) {
        const attend_plan_desc& desc = *args.desc;
        const attend_tensor *query = args.query, *key = args.key ? args.key : query,
                            *value = args.value ? args.value : key;
        struct Layer {
            OwnTensor* view;
            const attend_tensor* input;
            const char *weight, *bias;
            int64_t rows, heads, width;
        };
        const Layer layers[3] = {{&q, query, "wq", "bq", desc.q_len, desc.num_q_heads, desc.head_dim},
                                 {&k, key, "wk", "bk", form.keys, desc.num_kv_heads, desc.head_dim},
                                 {&v, value, "wv", "bv", form.keys, desc.num_kv_heads, form.value_dim}};
        int64_t packed_width = 0, first = 0;
        for (const Layer& layer : layers) packed_width += layer.heads * layer.width;
        float* packed = form.packed ? carve.take(desc.batch * desc.q_len * packed_width) : nullptr;
        float* pieces[3] = {};
        for (int at = 0; at < 3; ++at) {
            const Layer& layer = layers[at];
            const int64_t own = layer.heads * layer.width, row = packed ? packed_width : own;
            pieces[at] = packed ? packed + first : carve.take(desc.batch * layer.rows * own);
            describe(*layer.view, pieces[at], desc.batch, layer.heads, layer.rows, layer.width);
            const int64_t strides[4] = {layer.rows * row, layer.width, row, 1};
            for (int axis = 0; axis < 4; ++axis) layer.view->strides[axis] = strides[axis];
            first += own;
        }
        float* together =
            form.joins ? carve.take(desc.batch * desc.q_len * desc.num_q_heads * form.value_dim) : nullptr;
        Rows joined(together, desc.batch, desc.q_len, desc.num_q_heads * form.value_dim);
        if (form.joins || args.output) split_heads(o, form.joins ? joined.tensor : *args.output, desc.num_q_heads);
        const auto run = [&](const Layer& layer, const char* weight, const char* bias, float* to, int64_t width) {
            Rows rows(to, desc.batch, layer.rows, width);
            return project(layer.input, attend_find_name(args.weights, weight), attend_find_name(args.weights, bias),
                           &rows.tensor, carve.rest(context));
        };
        if (packed) return run(layers[0], form.packed, form.packed_bias, packed, packed_width);
        for (int at = 0; at < 3; ++at) {
            const attend_status status =
                run(layers[at], layers[at].weight, layers[at].bias, pieces[at], layers[at].heads * layers[at].width);
            if (status != ATTEND_OK) return status;
        }
        return ATTEND_OK;
    }

    // The segments of the engine's keys: a cache, if the call brings one, then the projected ones.
    void add_keys(TileCall& call, const ForwardArgs& args) const {
        if (const attend_tensor* past = attend_find_name(args.bindings, "past_key"))
            call.add_segment(past, attend_find_name(args.bindings, "past_value"), 0);
        call.add_segment(&k.tensor, &v.tensor, 0);
    }

    attend_status project_output(const ForwardArgs& args, const Carve& carve, const Context& context) const {
        const attend_plan_desc& desc = *args.desc;
        const Rows joined(static_cast<float*>(o.tensor.data), desc.batch, desc.q_len, o.shape[1] * o.shape[3]);
        return project(&joined.tensor, attend_find_name(args.weights, "wo"), attend_find_name(args.weights, "bo"),
                       args.output, carve.rest(context));
    }
};

// Projections, attention, output projection. `attend` gets the engine's problem, to add its hooks and run it:
// attend_status attend(TileCall& call, const Context& context).
template <class Attend>
attend_status run_projected(const ProjectedForm& form, const ForwardArgs& args, const Context& context, Attend attend) {
    Carve carve(context);
    ProjectedHeads heads;
    attend_status status = heads.project_inputs(form, args, carve, context);
    if (status != ATTEND_OK) return status;
    // Rows of scores want no output.
    TileCall call(args, &heads.q.tensor, nullptr, nullptr, args.rows.count > 0 ? nullptr : &heads.o.tensor);
    heads.add_keys(call, args);
    status = attend(call, carve.rest(context));
    if (status != ATTEND_OK || !form.joins || args.rows.count > 0) return status;
    return heads.project_output(args, carve, context);
}

// Both forms: `attend` gets the engine's problem on ready-made heads or on projected ones.
template <class Attend>
attend_status run_form(int32_t form, const ProjectedForm& projected, const ForwardArgs& args, const Context& context,
                       Attend attend) {
    if (is_projected(form)) return run_projected(projected, args, context, attend);
    TileCall call(args);
    return attend(call, context);
}
inline uint64_t form_workspace(int32_t form, const ProjectedForm& projected, const attend_plan_desc& desc) {
    return tile_workspace(desc) + (is_projected(form) ? projected_workspace(projected, desc) : 0);
}
// Softmax attention over so many pairs, and the projections.
inline void form_cost(int32_t form, const ProjectedForm& projected, const attend_plan_desc& desc, double pairs,
                      attend_cost& cost) {
    softmax_cost(desc, pairs, cost);
    if (is_projected(form)) projected_cost(projected, desc, cost);
}

// Sizes that a caller may give beside the tensors must be theirs.
inline attend_status check_size(const char* mechanism, const char* name, const OptionalInt& given, int64_t size,
                                attend_error* error) {
    if (!given.given || given.value == size) return ATTEND_OK;
    return (Message() << mechanism << ": option \"" << name << "\" is " << given.value << "; accepted: " << size
                      << " (that of the tensors)")
        .fail(error, ATTEND_BAD_OPTION, name);
}

inline attend_status check_past(const attend_plan_desc& desc, attend_error* error) {
    const attend_tensor* key = attend_find_name(&desc.bindings, "past_key");
    const attend_tensor* value = attend_find_name(&desc.bindings, "past_value");
    if (!key == !value) return ATTEND_OK;
    return attend_fail(error, ATTEND_BAD_SHAPE,
                       "inputs \"past_key\" and \"past_value\" belong together; accepted: both or none", "past_key");
}

namespace common {

constexpr OptionRow form_option(uint64_t offset) {
    return option_enum(offset, "form", "\"auto\"", forms,
                       "core: ready-made heads; projected: with projections; auto: projected if a weight is given");
}
// Tokens X in the projected form, ready-made heads in the core form.
constexpr attend_port query_or_tokens_port() {
    return stored(input_port(ATTEND_Q, "query", "form=projected: B,Nq,E | B,Hq,Nq,D",
                             "queries; in the projected form the tokens X"));
}
constexpr attend_port past_key_port() {
    return input_port(0, "past_key", "form=projected: B,Hkv,Np,D", "cached keys in front of the projected ones",
                      ATTEND_OPTIONAL);
}
constexpr attend_port past_value_port(const char* shape = "form=projected: B,Hkv,Np,D") {
    return input_port(0, "past_value", shape, "cached values", ATTEND_OPTIONAL);
}
constexpr attend_port output_or_tokens_port() {
    return stored(output_port(ATTEND_OUT, "output", "form=projected: B,Nq,E | B,Hq,Nq,Dv", "result"));
}

}  // namespace common

}  // namespace attend::ATTEND_ISA
