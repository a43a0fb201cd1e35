// SPDX-License-Identifier: Apache-2.0
// nystrom-attention: full softmax attention through m landmarks and an inverse by iteration.
//
// Paper    Xiong et al. 2021, "Nystromformer", arXiv:2102.03902
// Formula  O = softmax(Q K~^T) Z (softmax(Q~ K^T) V), Z about the inverse of softmax(Q~ K~^T); Q~, K~ are means of m segments
// Cost     O((Nq + Nk) m (D + Dv) + 4 iterations m^3) per head; memory of m rows, never Nq x m
// Differs  lengths and masks move the segments, and padded keys have no part in means and softmaxes; lengths need not be
//          multiples of m; the initial norm is that of each head's own matrix unless pinv_init = batch

#include "attend/toolkit/linear/landmarks.hpp"
#include "compressed.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int64_t num_landmarks, pinv_iterations, residual_kernel;
    int32_t pinv_init;
};

constexpr const char* inits[] = {"matrix", "batch", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(num_landmarks), "64", {1, 2147483647.0}, "m, segments of queries and of keys"),
    option_int(ATTEND_FIELD(pinv_iterations), "6", {0, 64}, "steps of the iteration towards the inverse"),
    option_enum(ATTEND_FIELD(pinv_init), "\"matrix\"", inits,
                "norm that the iteration starts from: of each head's matrix, or the largest of the batch"),
    option_int(ATTEND_FIELD(residual_kernel), "0", {0, 65535}, "width of the convolution of the values, odd; 0: none"),
    common::scale(),
    common::causal(),
    ATTEND_REFUSED_OPTIONS,
    common::weight_seed("residual_kernel"),
};

constexpr attend_port port_table[] = {
    common::query_port(),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    weight_port("conv_weight", "residual_kernel: Hq,residual_kernel", "uniform(1/sqrt(residual_kernel)) as convWeight",
                "convolution of the values, for each head"),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (const attend_status status =
            refuse_uncompressible(args, "each landmark is a mean over keys of the future, too", error))
        return status;
    if (const attend_status status = refuse_pairwise(args, error)) return status;
    if (options.residual_kernel > 0 && options.residual_kernel % 2 == 0)
        return refuse_value(error, ATTEND_BAD_OPTION, "residual_kernel", static_cast<double>(options.residual_kernel),
                            "it is centred on a row; accepted: 0, or an odd number");
    if (options.residual_kernel > 0 && desc.q_len != desc.kv_len) {
        Message text;
        text << "option \"residual_kernel\" is " << options.residual_kernel << ", but there are " << desc.q_len
             << " queries and " << desc.kv_len << " keys; accepted: 0, or as many keys as queries";
        return text.fail(error, ATTEND_BAD_OPTION, "residual_kernel");
    }
    return ATTEND_OK;
}

// Whether all heads of a call are exact attention, whatever lengths and masks say.
bool always_exact(const Options& options, const attend_plan_desc& desc) {
    const int64_t shorter = desc.q_len < desc.kv_len ? desc.q_len : desc.kv_len;
    return options.num_landmarks >= shorter;
}

struct Run {
    const attend_plan_desc* desc;
    VisibleKeys keys;
    TensorView<const float, 4> query, key, value;
    TensorView<float, 4> output;
    const attend_tensor* query_lengths;
    int64_t m, iterations, values_stride;
    double scale, norm;  // norm > 0: of the whole batch
    bool batch_norm;
    float *queries, *landmarks, *sums, *mixed;  // [B, Hq, m, D] twice, [B, Hq, m, values_stride] twice
    double* norms;                              // [B, Hq]
    uint8_t* exact;                             // [B, Hq]
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
    TensorView<const float, 2> filter;

    int64_t heads() const { return desc->num_q_heads; }
    int64_t kv_head(int64_t head) const { return head * desc->num_kv_heads / desc->num_q_heads; }
    // The first head with the same visible keys and key head.
    int64_t leader(int64_t head) const {
        const int64_t group = keys.by_head ? 1 : desc->num_q_heads / desc->num_kv_heads;
        return head / group * group;
    }
    int64_t rows(int64_t b) const {
        if (query_lengths != nullptr) return integer_at(query_lengths, b);
        return desc->q_len == desc->kv_len ? keys.length(b) : desc->q_len;
    }
    float* landmark(float* of, int64_t b, int64_t head) const { return of + (b * heads() + head) * m * desc->head_dim; }
    float* summary(float* of, int64_t b, int64_t head) const { return of + (b * heads() + head) * m * values_stride; }
    LandmarkScratch scratch(uint32_t slot) const {
        Workspace space(memory + slot * slot_bytes);
        return LandmarkScratch::take(space, m, desc->head_dim);
    }
};

// ---- phases, each over items and heads ----

attend_status find_landmarks(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    const LandmarkScratch scratch = run.scratch(slot);
    const int64_t width = run.desc->head_dim;
    RowMean mean(width, scratch.part, scratch.sums);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t b = item / run.heads(), head = item % run.heads(), rows = run.rows(b);
        if (run.exact[item]) continue;
        for (int64_t t = 0; t < run.m; ++t) {
            for (int64_t i = t * rows / run.m; i < (t + 1) * rows / run.m; ++i)
                mean.add(run.query.at(b, head, i), run.query.strides[3]);
            mean.take(run.landmark(run.queries, b, head) + t * width);
        }
        if (run.leader(head) != head) continue;
        const int64_t seen = run.keys.count(b, head), keys = run.keys.length(b);
        int64_t t = 0, at = 0;
        for (int64_t j = 0; j < keys; ++j) {
            if (!run.keys.see(b, head, j)) continue;
            mean.add(run.key.at(b, run.kv_head(head), j), run.key.strides[3]);
            if (++at < (t + 1) * seen / run.m) continue;
            mean.take(run.landmark(run.landmarks, b, head) + t * width);
            ++t;
        }
    }
    return ATTEND_OK;
}

// Landmarks of the keys for every head, and for the norm of the batch the largest column sums.
attend_status share_landmarks(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    const LandmarkScratch scratch = run.scratch(slot);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t b = item / run.heads(), head = item % run.heads(), leader = run.leader(head);
        run.norms[item] = 0.0;
        if (run.exact[item]) continue;
        float* own = run.landmark(run.landmarks, b, head);
        if (leader != head)
            __builtin_memcpy(own, run.landmark(run.landmarks, b, leader),
                             static_cast<size_t>(run.m * run.desc->head_dim) * sizeof(float));
        if (run.batch_norm)
            run.norms[item] = landmark_weights(run.landmark(run.queries, b, head), own, run.m, run.desc->head_dim,
                                               run.scale, scratch);
    }
    return ATTEND_OK;
}

// mixed = Z sums.
attend_status invert(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    if (slot >= run.slots) return ATTEND_INTERNAL;
    const LandmarkScratch scratch = run.scratch(slot);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t b = item / run.heads(), head = item % run.heads();
        if (run.exact[item]) continue;
        const double norm = landmark_weights(run.landmark(run.queries, b, head), run.landmark(run.landmarks, b, head),
                                             run.m, run.desc->head_dim, run.scale, scratch);
        const float* inverse = landmark_inverse(run.m, run.batch_norm ? run.norm : norm, run.iterations, scratch);
        small_product(inverse, padded_columns(run.m), run.m, run.summary(run.sums, b, head), run.m,
                      run.summary(run.mixed, b, head), run.values_stride);
    }
    return ATTEND_OK;
}

// Adds the convolution of the visible values to the rows below a given query length.
constexpr int64_t rows_at_once = 64;
attend_status add_residual(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const Run& run = *static_cast<const Run*>(user);
    const int64_t blocks = (run.desc->q_len + rows_at_once - 1) / rows_at_once, width = run.desc->value_dim;
    const int64_t taps = run.filter.shape[1];
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t unit = item / blocks, b = unit / run.heads(), head = unit % run.heads();
        const int64_t keys = run.keys.length(b), first = item % blocks * rows_at_once;
        int64_t last = run.query_lengths != nullptr ? integer_at(run.query_lengths, b) : run.desc->q_len;
        if (first + rows_at_once < last) last = first + rows_at_once;
        const int64_t step = run.value.strides[3], out_step = run.output.strides[3];
        for (int64_t i = first; i < last; ++i) {
            float* to = run.output.at(b, head, i);
            for (int64_t t = 0; t < taps; ++t) {
                const int64_t j = i + t - (taps - 1) / 2;
                if (j < 0 || j >= keys || !run.keys.see(b, head, j)) continue;
                const float* from = run.value.at(b, run.kv_head(head), j);
                const float factor = *run.filter.at(head, t);
                if (step == 1 && out_step == 1)
                    for (int64_t c = 0; c < width; ++c) to[c] += factor * from[c];
                else
                    for (int64_t c = 0; c < width; ++c) to[c * out_step] += factor * from[c * step];
            }
        }
    }
    return ATTEND_OK;
}

attend_plan_desc with_rows(const attend_plan_desc& desc, int64_t q_len, int64_t kv_len, int64_t kv_heads) {
    attend_plan_desc other = desc;
    other.q_len = q_len;
    other.kv_len = kv_len;
    other.num_kv_heads = kv_heads;
    return other;
}

// Layout of the workspace, and the bytes before the engine's part.
uint64_t lay_out(const Options& options, const attend_plan_desc& desc, void* memory, uint32_t slots, Run* run) {
    Workspace space(memory);
    const int64_t units = desc.batch * desc.num_q_heads, m = options.num_landmarks;
    const int64_t stride = padded_columns(desc.value_dim);
    float* queries = space.take<float>(units * m * desc.head_dim);
    float* landmarks = space.take<float>(units * m * desc.head_dim);
    float* sums = space.take<float>(units * m * stride);
    float* mixed = space.take<float>(units * m * stride);
    double* norms = space.take<double>(units);
    auto* exact = space.take<uint8_t>(units);
    Workspace one;
    LandmarkScratch::take(one, m, desc.head_dim);
    auto* scratch = space.take<unsigned char>(static_cast<int64_t>(one.used() * slots));
    if (run != nullptr) {
        run->queries = queries;
        run->landmarks = landmarks;
        run->sums = sums;
        run->mixed = mixed;
        run->norms = norms;
        run->exact = exact;
        run->memory = scratch;
        run->slot_bytes = one.used();
        run->slots = slots;
    }
    return space.used();
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    if (always_exact(options, desc)) return tile_workspace(desc);
    const int64_t m = options.num_landmarks;
    uint64_t engine = tile_workspace(with_rows(desc, m, desc.kv_len, desc.num_kv_heads));
    engine = larger(engine, tile_workspace(with_rows(desc, desc.q_len, m, desc.num_q_heads)));
    engine = larger(engine, tile_workspace(desc));
    return lay_out(options, desc, nullptr, desc.max_workers, nullptr) + engine;
}

attend_status run_exact(const ForwardArgs& args, const attend_tensor* query, const attend_tensor* key,
                        const attend_tensor* value, const attend_tensor* output, const Context& context) {
    TileCall call(args, query, key, value, output);
    call.problem.flags = ATTEND_TILE_WIDEN;
    return run_tiles(call, context);
}

// Heads of a call whose lengths leave them fewer rows than landmarks, one by one.
attend_status run_exact_heads(const Run& run, const ForwardArgs& args, const Context& context) {
    for (int64_t item = 0; item < run.desc->batch * run.heads(); ++item) {
        if (!run.exact[item]) continue;
        const int64_t b = item / run.heads(), head = item % run.heads();
        OwnTensor query, key, value, output, mask, head_mask;
        one_head_of(query, *args.query, b, head);
        one_head_of(key, *args.key, b, run.kv_head(head));
        one_head_of(value, *args.value, b, run.kv_head(head));
        one_head_of(output, *args.output, b, head);
        ForwardArgs part = args;
        attend_plan_desc desc = *args.desc;
        desc.batch = desc.num_q_heads = desc.num_kv_heads = 1;
        part.desc = &desc;
        if (args.mask != nullptr) {
            describe_key_mask(mask, *args.mask, *args.desc, args.desc->q_len);
            one_head_of(head_mask, mask.tensor, b, head);
            part.mask = &head_mask.tensor;
        }
        int64_t numbers[2] = {run.keys.length(b), args.query_lengths ? integer_at(args.query_lengths, b) : 0};
        OwnTensor own[2];
        for (int at = 0; at < 2; ++at) {
            describe(own[at], nullptr, 1, 1, 1, 1);
            own[at].tensor.ndim = 1;
            own[at].tensor.dtype_code = ATTEND_CODE_INT;
            own[at].tensor.dtype_bits = 64;
            own[at].tensor.data = numbers + at;
        }
        part.key_lengths = &own[0].tensor;
        part.query_lengths = args.query_lengths != nullptr ? &own[1].tensor : nullptr;
        const attend_status status =
            run_exact(part, &query.tensor, &key.tensor, &value.tensor, &output.tensor, context);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

attend_status run_landmarks(Run& run, const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const uint64_t used = lay_out(options, desc, context.workspace, worker_count(&context), &run);
    Context rest = context;
    rest.workspace = static_cast<char*>(context.workspace) + used;
    rest.workspace_bytes -= used;
    const int64_t units = desc.batch * desc.num_q_heads;
    __builtin_memset(context.workspace, 0,
                     static_cast<size_t>(reinterpret_cast<char*>(run.exact) - static_cast<char*>(context.workspace)));
    int64_t exact = 0;
    for (int64_t item = 0; item < units; ++item) {
        const int64_t b = item / run.heads(), head = item % run.heads(), leader = run.leader(head);
        const int64_t rows = run.rows(b);
        if (leader != head)
            run.exact[item] = run.exact[b * run.heads() + leader];
        else
            run.exact[item] = run.m >= rows || run.m >= run.keys.count(b, head) ? 1 : 0;
        exact += run.exact[item];
    }
    if (exact == units) return run_exact(args, args.query, args.key, args.value, args.output, rest);

    attend_status status = parallel_items(&context, static_cast<uint64_t>(units), find_landmarks, &run);
    if (status == ATTEND_OK) status = parallel_items(&context, static_cast<uint64_t>(units), share_landmarks, &run);
    if (status != ATTEND_OK) return status;
    for (int64_t item = 0; item < units; ++item)
        if (run.norms[item] > run.norm) run.norm = run.norms[item];

    OwnTensor queries, landmarks, sums, mixed, mask;
    describe(queries, run.queries, desc.batch, desc.num_q_heads, run.m, desc.head_dim);
    describe(landmarks, run.landmarks, desc.batch, desc.num_q_heads, run.m, desc.head_dim);
    for (OwnTensor* own : {&sums, &mixed}) {
        describe(*own, own == &sums ? run.sums : run.mixed, desc.batch, desc.num_q_heads, run.m, run.values_stride);
        own->shape[3] = desc.value_dim;
    }
    CompressedCall gather(args, &queries.tensor, args.key, args.value, &sums.tensor);
    gather.call.problem.query_lengths = nullptr;
    gather.call.problem.key_lengths = args.key_lengths;
    if (args.mask != nullptr) {
        describe_key_mask(mask, *args.mask, desc, run.m);
        gather.call.problem.mask = &mask.tensor;
    }
    status = run_tiles(gather.call, rest);
    if (status == ATTEND_OK) status = parallel_items(&context, static_cast<uint64_t>(units), invert, &run);
    if (status != ATTEND_OK) return status;
    CompressedCall spread(args, args.query, &landmarks.tensor, &mixed.tensor, args.output);
    status = run_tiles(spread.call, rest);
    return status != ATTEND_OK || exact == 0 ? status : run_exact_heads(run, args, rest);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Run run{.desc = &desc,
            .keys = VisibleKeys(args),
            .query = view_of<const float, 4>(args.query),
            .key = view_of<const float, 4>(args.key),
            .value = view_of<const float, 4>(args.value),
            .output = view_of<float, 4>(args.output),
            .query_lengths = args.query_lengths,
            .m = options.num_landmarks,
            .iterations = options.pinv_iterations,
            .values_stride = padded_columns(desc.value_dim),
            .scale = resolved_scale(desc),
            .norm = 0.0,
            .batch_norm = options.pinv_init == 1,
            .queries = nullptr,
            .landmarks = nullptr,
            .sums = nullptr,
            .mixed = nullptr,
            .norms = nullptr,
            .exact = nullptr,
            .memory = nullptr,
            .slot_bytes = 0,
            .slots = 0,
            .filter = view_of<const float, 2>(attend_find_name(args.weights, "conv_weight"))};
    const attend_status status = always_exact(options, desc)
                                     ? run_exact(args, args.query, args.key, args.value, args.output, context)
                                     : run_landmarks(run, options, args, context);
    if (status != ATTEND_OK || !run.filter.present) return status;
    const int64_t blocks = (desc.q_len + rows_at_once - 1) / rows_at_once;
    return parallel_items(&context, static_cast<uint64_t>(desc.batch * desc.num_q_heads * blocks), add_residual, &run);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const auto nq = static_cast<double>(desc.q_len), nk = static_cast<double>(desc.kv_len),
               heads = static_cast<double>(desc.batch * desc.num_q_heads),
               m = static_cast<double>(options.num_landmarks),
               width = static_cast<double>(desc.head_dim + desc.value_dim);
    softmax_cost(desc, nq * nk, cost);
    if (always_exact(options, desc)) return;
    cost.flops =
        2.0 * heads *
        ((nq + nk) * m * width + m * m * width + 4.0 * static_cast<double>(options.pinv_iterations) * m * m * m +
         static_cast<double>(options.residual_kernel) * nq * static_cast<double>(desc.value_dim));
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    nystrom,
    described<check, workspace, forward, cost, error_bound>(
        {.name = "nystrom-attention",
         .category = "linear",
         .title = "Nystrom attention",
         .summary =
             "Softmax attention through a few landmarks: means of segments of queries and keys, and a small inverse.",
         .reference = "Xiong et al. 2021, Nystromformer, arXiv:2102.03902",
         .time = "O(n m d)",
         .space = "O(m d + m^2)",
         .caps = ATTEND_CAP_MASK | ATTEND_CAP_GQA | ATTEND_CAP_MQA | ATTEND_CAP_CROSS | ATTEND_CAP_DETERMINISTIC |
                 ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_APPROXIMATE,
         .formula = "Q~_t, K~_t = means of num_landmarks segments of the queries and of the visible keys\n"
                    "K2 = softmax(scale Q~ K~^T), Z = its inverse by pinv_iterations steps from K2^T / norm\n"
                    "output = softmax(scale Q K~^T) (Z (softmax(scale Q~ K^T) V))\n"
                    "residual_kernel: output_i += sum_t conv_weight_t v_(i + t - (residual_kernel - 1) / 2)\n"
                    "num_landmarks >= the number of queries or of visible keys: exact softmax attention",
         .cost = "Each query and each key meets num_landmarks others, so time grows with the length; the inverse adds "
                 "4 pinv_iterations num_landmarks^3 per head.",
         .use = "For encoders trained with softmax on inputs that vary smoothly along the sequence. It needs no random "
                "numbers, but six steps need not converge: compare with exact attention first. Not for causal models "
                "(linear-attention, flash-attention-v2); performer-attention suits inputs without neighbours alike.",
         .example = "attend compute nystrom-attention --sequence-length 4096 --heads 8 --set num_landmarks=64"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
