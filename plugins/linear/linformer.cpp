// SPDX-License-Identifier: Apache-2.0
// linformer-attention: softmax attention to k rows that keys and values are projected to along the sequence.
//
// Paper    Wang et al. 2020, "Linformer", arXiv:2006.04768
// Formula  K' = E K, V' = F V over the visible keys (or pooled, or convolved with stride s);  O = softmax(scale Q K'^T) V'
// Cost     O(Nk k (D + Dv) + Nq k (D + Dv)); K' and V' are the only intermediates
// Differs  ready-made keys are projected, where published layers may project their input; hidden keys are left out of the
//          projection, which published code forgets; projected rows have no bias

#include "attend/toolkit/linear/landmarks.hpp"
#include "compressed.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    OptionalInt proj_dim, max_len;
    int32_t sharing, projection, length_policy;
};

enum Sharing : int32_t { none, headwise, kv };
enum Projection : int32_t { linear, mean_pool, max_pool, conv };
constexpr double longest = 2147483647.0;
constexpr const char* sharings[] = {"none", "headwise", "kv", nullptr};
constexpr const char* projections[] = {"linear", "mean-pool", "max-pool", "conv", nullptr};
constexpr const char* policies[] = {"slice", "strict", nullptr};
constexpr OptionRow option_table[] = {
    option_maybe_int(ATTEND_FIELD(proj_dim), {1, longest},
                     "k, projected rows; default: rows of e, else 256 or as many as max_len"),
    option_maybe_int(ATTEND_FIELD(max_len), {1, longest},
                     "n, columns of the projections, at least Nk; default: those of e, else Nk", "projection=linear"),
    option_enum(ATTEND_FIELD(sharing), "\"headwise\"", sharings,
                "none: projections for each key head; headwise: e and f for all; kv: e for keys and values",
                "projection=linear"),
    option_enum(ATTEND_FIELD(projection), "\"linear\"", projections,
                "linear: matrices e and f; mean-pool and max-pool: over segments; conv: with stride"),
    option_enum(ATTEND_FIELD(length_policy), "\"slice\"", policies,
                "slice: fewer keys than max_len read the first columns; strict: as many keys as columns",
                "projection=linear"),
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::causal(),
    ATTEND_REFUSED_WINDOWS,
    common::weight_seed(nullptr),
};

#define COLUMNS "or(max_len,given(En,max(1,Nk)))"
#define ROWS "or(proj_dim,given(Ek,min(256," COLUMNS ")))"
#define TAPS "max(1,ceil(Nk/or(proj_dim,min(256,max(1,Nk)))))"
#define HEAD_ROWS "Hkv," ROWS "," COLUMNS
constexpr attend_port port_table[] = {
    common::query_port(),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    weight_port("e", "projection=linear & sharing=none: " HEAD_ROWS " | projection=linear: " ROWS "," COLUMNS,
                "normal(0,1/sqrt(" ROWS ")) as E", "projection of the keys along the sequence"),
    weight_port("f",
                "projection=linear & sharing=none: " HEAD_ROWS " | projection=linear & sharing=headwise: " ROWS
                "," COLUMNS,
                "normal(0,1/sqrt(" ROWS ")) as F", "projection of the values along the sequence"),
    weight_port("conv_k", "projection=conv: D,D," TAPS, "uniform(1/sqrt(D*" TAPS ")) as convK",
                "convolution of the keys, [out, in, tap]"),
    weight_port("conv_v", "projection=conv: Dv,Dv," TAPS, "uniform(1/sqrt(Dv*" TAPS ")) as convV",
                "convolution of the values, [out, in, tap]"),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
};

// Rows k that the projection has, and columns n.
struct Extents {
    int64_t rows, columns;
};
Extents extents_of(const Options& options, const attend_plan_desc& desc, const attend_tensor* e) {
    int64_t columns = desc.kv_len > 0 ? desc.kv_len : 1;
    if (options.projection == linear && e != nullptr)
        columns = e->shape[e->ndim - 1];
    else if (options.projection == linear && options.max_len.given)
        columns = options.max_len.value;
    int64_t rows = columns < 256 ? columns : 256;
    if (options.projection == linear && e != nullptr)
        rows = e->shape[e->ndim - 2];
    else if (options.proj_dim.given)
        rows = options.proj_dim.value;
    return {rows, columns};
}
int64_t taps_of(const attend_plan_desc& desc, int64_t rows) {
    const int64_t taps = (desc.kv_len + rows - 1) / rows;
    return taps < 1 ? 1 : taps;
}
// Compressed rows that a call holds at most.
int64_t compressed_rows(const Options& options, const attend_plan_desc& desc, const attend_tensor* e) {
    const int64_t rows = extents_of(options, desc, e).rows;
    if (options.projection == linear) return rows;
    if (options.projection != conv) return rows < desc.kv_len ? rows : desc.kv_len;
    const int64_t taps = taps_of(desc, rows);
    return (desc.kv_len + taps - 1) / taps;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (const attend_status status =
            refuse_uncompressible(args, "each projected row holds keys of the future, too", error))
        return status;
    if (const attend_status status = refuse_pairwise(args, error, true)) return status;
    const Extents size = extents_of(options, desc, attend_find_name(&desc.bindings, "e"));
    const bool is_linear = options.projection == linear;
    if (is_linear && desc.kv_len > size.columns) {
        Message text;
        text << "there are " << desc.kv_len << " keys, but max_len is " << size.columns
             << "; accepted: at most as many keys, weights e and f with more columns, or projection = mean-pool";
        return text.fail(error, ATTEND_BAD_SHAPE, "max_len");
    }
    if (is_linear && options.length_policy == 1 && desc.kv_len != size.columns) {
        Message text;
        text << "option \"length_policy\" is strict, but there are " << desc.kv_len << " keys and max_len is "
             << size.columns << "; accepted: as many keys, or length_policy = slice";
        return text.fail(error, ATTEND_BAD_SHAPE, "length_policy");
    }
    if (size.rows > size.columns || size.rows < 1) {
        Message text;
        text << "option \"proj_dim\" is " << size.rows << ", but " << (is_linear ? "max_len" : "the number of keys")
             << " is " << size.columns << "; accepted: 1 to " << size.columns;
        return text.fail(error, ATTEND_BAD_OPTION, "proj_dim");
    }
    return ATTEND_OK;
}

// What becomes compressed: keys or values.
struct Side {
    TensorView<const float, 4> from;
    const float* projection;  // e or f
    int64_t head_step, row_step, column_step;
    const float* filter;  // [tap][in][stride], of conv_k or conv_v
    float* to;            // [B, heads, rows, stride]
    int64_t width, stride;
};

struct Run {
    const attend_plan_desc* desc;
    VisibleKeys keys;
    int64_t heads, rows, taps;
    int32_t projection;
    Side sides[2];
    const attend_tensor* convs[2];
    float* filters[2];
    uint8_t* visible;  // [B, Hq, rows]
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;

    int64_t head_of(int64_t group) const { return group * (desc->num_q_heads / heads); }
    int64_t kv_head(int64_t group) const { return head_of(group) * desc->num_kv_heads / desc->num_q_heads; }
};

constexpr int64_t keys_at_once = 128, rows_at_once = 64;

// Scratch of one worker: packed rows, and what means are made in.
struct Scratch {
    float *packed, *part;
    double* sums;
    static Scratch take(Workspace& space, int64_t width) {
        return {space.take<float>(keys_at_once * padded_columns(width)), space.take<float>(width),
                space.take<double>(width)};
    }
};
int64_t wider(const attend_plan_desc& desc) { return desc.head_dim > desc.value_dim ? desc.head_dim : desc.value_dim; }

// One row of keys or values without gaps, zeros where it is hidden.
void pack_row(const Run& run, const Side& side, int64_t b, int64_t group, int64_t j, float* to) {
    int64_t c = 0;
    if (j < run.keys.length(b) && run.keys.see(b, run.head_of(group), j)) {
        const float* from = side.from.at(b, run.kv_head(group), j);
        const int64_t step = side.from.strides[3];
        if (step == 1) {
            __builtin_memcpy(to, from, static_cast<size_t>(side.width) * sizeof(float));
            c = side.width;
        }
        for (; c < side.width; ++c) to[c] = from[c * step];
    }
    for (; c < side.stride; ++c) to[c] = 0.0f;
}

void project_linear(const Run& run, const Side& side, int64_t b, int64_t group, int64_t first, int64_t count, float* to,
                    const Scratch& scratch) {
    const float* matrix = side.projection + run.kv_head(group) * side.head_step + first * side.row_step;
    const int64_t keys = run.keys.length(b);
    for (int64_t j = 0; j < keys; j += keys_at_once) {
        const int64_t block = keys - j < keys_at_once ? keys - j : keys_at_once;
        for (int64_t at = 0; at < block; ++at) pack_row(run, side, b, group, j + at, scratch.packed + at * side.stride);
        small_product(matrix + j * side.column_step, side.row_step, count, scratch.packed, block, to, side.stride,
                      Into::add, side.column_step);
    }
}

void project_conv(const Run& run, const Side& side, int64_t b, int64_t group, int64_t first, int64_t count, float* to,
                  const Scratch& scratch) {
    for (int64_t tap = 0; tap < run.taps; ++tap) {
        for (int64_t row = 0; row < count; ++row)
            pack_row(run, side, b, group, (first + row) * run.taps + tap, scratch.packed + row * side.stride);
        small_product(scratch.packed, side.stride, count, side.filter + tap * side.width * side.stride, side.width, to,
                      side.stride, Into::add);
    }
}

// Means or maxima of segments of the visible rows.
void project_pool(const Run& run, const Side& side, int64_t b, int64_t group, float* to, const Scratch& scratch) {
    const int64_t head = run.head_of(group), seen = run.keys.count(b, head), keys = run.keys.length(b);
    const int64_t rows = run.rows < seen ? run.rows : seen;
    RowMean mean(side.width, scratch.part, scratch.sums);
    int64_t t = 0, at = 0;
    bool fresh = true;
    for (int64_t j = 0; j < keys; ++j) {
        if (!run.keys.see(b, head, j)) continue;
        const float* from = side.from.at(b, run.kv_head(group), j);
        float* row = to + t * side.stride;
        if (run.projection == mean_pool)
            mean.add(from, side.from.strides[3]);
        else
            for (int64_t c = 0; c < side.width; ++c) {
                const float value = from[c * side.from.strides[3]];
                // NaN stays, whether it comes first or later.
                if (fresh || !(value <= row[c])) row[c] = !fresh && row[c] != row[c] ? row[c] : value;
            }
        fresh = ++at >= (t + 1) * seen / rows;
        if (!fresh) continue;
        if (run.projection == mean_pool) mean.take(row);
        ++t;
    }
}

int64_t row_blocks(const Run& run) {
    if (run.projection == mean_pool || run.projection == max_pool) return 1;
    return (run.rows + rows_at_once - 1) / rows_at_once;
}

attend_status compress(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const Scratch scratch = Scratch::take(space, wider(*run.desc));
    const int64_t blocks = row_blocks(run);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const Side& side = run.sides[item % 2];
        const int64_t unit = item / 2 / blocks, b = unit / run.heads, group = unit % run.heads;
        const int64_t first = item / 2 % blocks * rows_at_once;
        const int64_t count = blocks > 1 && run.rows - first > rows_at_once ? rows_at_once : run.rows - first;
        float* to = side.to + (unit * run.rows + first) * side.stride;
        __builtin_memset(to, 0, static_cast<size_t>(count * side.stride) * sizeof(float));
        if (run.projection == linear)
            project_linear(run, side, b, group, first, count, to, scratch);
        else if (run.projection == conv)
            project_conv(run, side, b, group, first, count, to, scratch);
        else
            project_pool(run, side, b, group, to, scratch);
    }
    return ATTEND_OK;
}

// Filters [out, in, tap] as [tap][in][out].
attend_status transpose_filters(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const Side& side = run.sides[item % 2];
        const auto filter = view_of<const float, 3>(run.convs[item % 2]);
        const int64_t tap = item / 2;
        float* to = run.filters[item % 2] + tap * side.width * side.stride;
        for (int64_t in = 0; in < side.width; ++in)
            for (int64_t out = 0; out < side.stride; ++out)
                to[in * side.stride + out] = out < side.width ? *filter.at(out, in, tap) : 0.0f;
    }
    return ATTEND_OK;
}

// Marks the compressed rows that a head has; false if all heads have all of them.
bool mark_rows(Run& run) {
    bool some_lack = false;
    const bool pools = run.projection == mean_pool || run.projection == max_pool;
    for (int64_t b = 0; b < run.desc->batch; ++b)
        for (int64_t head = 0; head < run.desc->num_q_heads; ++head) {
            const int64_t seen = run.keys.count(b, head);
            const int64_t rows = seen == 0 ? 0 : pools && seen < run.rows ? seen : run.rows;
            uint8_t* to = run.visible + (b * run.desc->num_q_heads + head) * run.rows;
            for (int64_t t = 0; t < run.rows; ++t) to[t] = t < rows ? 1 : 0;
            some_lack = some_lack || rows < run.rows;
        }
    return some_lack;
}

uint64_t lay_out(const attend_plan_desc& desc, bool convolves, void* memory, uint32_t slots, Run& run) {
    Workspace space(memory);
    const int64_t units = desc.batch * run.heads;
    const int64_t widths[2] = {desc.head_dim, desc.value_dim};
    for (int at = 0; at < 2; ++at) {
        Side& side = run.sides[at];
        side.width = widths[at];
        side.stride = padded_columns(widths[at]);
        side.to = space.take<float>(units * run.rows * side.stride);
        run.filters[at] = space.take<float>(convolves ? run.taps * side.width * side.stride : 0);
        side.filter = run.filters[at];
    }
    run.visible = space.take<uint8_t>(desc.batch * desc.num_q_heads * run.rows);
    Workspace one;
    Scratch::take(one, wider(desc));
    run.slot_bytes = one.used();
    run.slots = slots;
    run.memory = space.take<unsigned char>(static_cast<int64_t>(one.used() * slots));
    return space.used();
}

Run run_of(const Options& options, const attend_plan_desc& desc, const VisibleKeys& keys, const attend_tensor* mask,
           const attend_tensor* e) {
    Run run{.desc = &desc,
            .keys = keys,
            .heads = compressed_heads(desc, mask),
            .rows = compressed_rows(options, desc, e),
            .taps = taps_of(desc, extents_of(options, desc, e).rows),
            .projection = options.projection,
            .sides = {},
            .convs = {},
            .filters = {},
            .visible = nullptr,
            .memory = nullptr,
            .slot_bytes = 0,
            .slots = 0};
    return run;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* mask = attend_find(&desc.bindings, ATTEND_MASK);
    ForwardArgs none{};
    none.desc = &desc;
    Run run = run_of(options, desc, VisibleKeys(none), mask, attend_find_name(&desc.bindings, "e"));
    attend_plan_desc few = desc;
    few.kv_len = run.rows;
    few.num_kv_heads = run.heads;
    return lay_out(desc, options.projection == conv, nullptr, desc.max_workers, run) + tile_workspace(few);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* e = attend_find_name(args.weights, "e");
    const attend_tensor* f = options.sharing == kv ? e : attend_find_name(args.weights, "f");
    Run run = run_of(options, desc, VisibleKeys(args), args.mask, e);
    const uint64_t used = lay_out(desc, options.projection == conv, context.workspace, worker_count(&context), run);
    Context rest = context;
    rest.workspace = static_cast<char*>(context.workspace) + used;
    rest.workspace_bytes -= used;
    const attend_tensor* matrices[2] = {e, f};
    run.sides[0].from = view_of<const float, 4>(args.key);
    run.sides[1].from = view_of<const float, 4>(args.value);
    run.convs[0] = attend_find_name(args.weights, "conv_k");
    run.convs[1] = attend_find_name(args.weights, "conv_v");
    for (int at = 0; at < 2 && options.projection == linear; ++at) {
        const attend_tensor& matrix = *matrices[at];
        run.sides[at].projection = static_cast<const float*>(matrix.data);
        run.sides[at].head_step = matrix.ndim == 3 ? matrix.strides[0] : 0;
        run.sides[at].row_step = matrix.strides[matrix.ndim - 2];
        run.sides[at].column_step = matrix.strides[matrix.ndim - 1];
    }
    attend_status status = ATTEND_OK;
    if (options.projection == conv)
        status = parallel_items(&context, static_cast<uint64_t>(2 * run.taps), transpose_filters, &run);
    const int64_t items = 2 * desc.batch * run.heads * row_blocks(run);
    if (status == ATTEND_OK) status = parallel_items(&context, static_cast<uint64_t>(items), compress, &run);
    if (status != ATTEND_OK) return status;

    OwnTensor key, value, mask;
    describe(key, run.sides[0].to, desc.batch, run.heads, run.rows, run.sides[0].stride);
    describe(value, run.sides[1].to, desc.batch, run.heads, run.rows, run.sides[1].stride);
    key.shape[3] = desc.head_dim;
    value.shape[3] = desc.value_dim;
    CompressedCall compressed(args, args.query, &key.tensor, &value.tensor, args.output);
    if (mark_rows(run)) {
        describe(mask, nullptr, desc.batch, desc.num_q_heads, desc.q_len, run.rows);
        mask.strides[0] = desc.num_q_heads * run.rows;
        mask.strides[1] = run.rows;
        mask.strides[2] = 0;
        mask.tensor.data = run.visible;
        mask.tensor.dtype_code = ATTEND_CODE_UINT;
        mask.tensor.dtype_bits = 8;
        compressed.call.problem.mask = &mask.tensor;
    }
    return run_tiles(compressed.call, rest);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* e = attend_find_name(&desc.bindings, "e");
    const auto heads =
                   static_cast<double>(desc.batch * compressed_heads(desc, attend_find(&desc.bindings, ATTEND_MASK))),
               rows = static_cast<double>(compressed_rows(options, desc, e)), nk = static_cast<double>(desc.kv_len),
               nq = static_cast<double>(desc.q_len), d = static_cast<double>(desc.head_dim),
               dv = static_cast<double>(desc.value_dim);
    softmax_cost(desc, nq * rows, cost);
    cost.flops += options.projection == linear ? 2.0 * heads * nk * rows * (d + dv)
                  : options.projection == conv ? 2.0 * heads * nk * (d * d + dv * dv)
                                               : heads * nk * (d + dv);
    cost.bytes = 4.0 * (static_cast<double>(desc.batch * desc.num_q_heads) * nq * (d + dv) + heads * nk * (d + dv) +
                        (options.projection == linear ? 2.0 * nk * rows : 0.0));
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    linformer,
    described<check, workspace, forward, cost, error_bound>(
        {.name = "linformer-attention",
         .category = "linear",
         .title = "Linformer attention",
         .summary = "Keys and values are projected along the sequence to a few rows; queries attend to those.",
         .reference = "Wang et al. 2020, Linformer, arXiv:2006.04768",
         .time = "O(n k d)",
         .space = "O(k d)",
         .caps = ATTEND_CAP_MASK | ATTEND_CAP_GQA | ATTEND_CAP_MQA | ATTEND_CAP_CROSS | ATTEND_CAP_SOFTCAP |
                 ATTEND_CAP_DROPOUT | ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_APPROXIMATE,
         .formula =
             "linear: K' = sum_j e[:, j] k_j, V' = sum_j f[:, j] v_j over the visible keys; sharing = kv: f = e\n"
             "mean-pool, max-pool: mean or largest of each of proj_dim segments of the visible keys\n"
             "conv: K'_t = sum_u conv_k[:, :, u] k_(t s + u), s = Nk / proj_dim rounded up\n"
             "output = softmax(softcap(scale Q K'^T)) V' over the projected rows",
         .cost = "Keys meet proj_dim rows while they are projected, queries the same number afterwards: time grows "
                 "with the "
                 "length. Keys and values of proj_dim rows are all that is kept.",
         .use =
             "For encoders of bounded length whose projections have been trained; without trained e and f it is no "
             "estimate of attention (nystrom-attention and performer-attention are), though mean-pool needs none. Not "
             "for causal models.",
         .example = "attend compute linformer-attention --sequence-length 4096 --heads 8 --set proj_dim=128"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
