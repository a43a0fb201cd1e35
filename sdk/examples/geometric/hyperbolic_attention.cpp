// SPDX-License-Identifier: Apache-2.0
// hyperbolic-attention: weights fall with the hyperbolic distance of query and key, results are weighted midpoints.
//
// Paper    Gulcehre et al. 2019, "Hyperbolic Attention Networks", arXiv:1805.09786
// Formula  x_ij = -beta d(q_i, k_j) - offset;  w = softmax(x) or sigmoid(x);
//          o_i = the Einstein midpoint of the v_j: sum w sinh(rho_j) u_j / sum w cosh(rho_j) in the Klein model
// Cost     3 n flops and one asinh for each pair, 2 (n + 1) in double precision for the midpoint; memory O(n)
// Differs  distances come from |u_i - u_j|^2 instead of arcosh of a product, and points are kept within max_radius, so
//          that nothing cancels; Euclidean features enter by the exponential map unless input_map says otherwise

#include <float.h>
#include <stdio.h>

#include "attend/toolkit/core/message.hpp"
#include "hyperbolic_tile.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    double curvature, beta, offset, max_radius;
    OptionalReal input_scale, value_scale;
    int32_t weighting, input_map, output_map;
};

constexpr const char* weightings[] = {"softmax", "sigmoid", nullptr};
constexpr const char* input_maps[] = {"exp0", "pseudoPolar", "poincare", "klein", "hyperboloid", nullptr};
constexpr const char* output_maps[] = {"tangent", "pseudoPolar", "poincare", "klein", "hyperboloid", nullptr};
constexpr OptionRow option_table[] = {
    option_real(ATTEND_FIELD(curvature), "-1", {-1e4, -1e-8}, "sectional curvature of the space; below 0"),
    option_real(ATTEND_FIELD(beta), "1", {DBL_MIN, DBL_MAX}, "how fast weights fall with distance; above 0"),
    option_real(ATTEND_FIELD(offset), "0", {-DBL_MAX, DBL_MAX}, "subtracted from every score"),
    option_enum(ATTEND_FIELD(weighting), "\"softmax\"", weightings, "what makes weights of scores"),
    option_enum(ATTEND_FIELD(input_map), "\"exp0\"", input_maps,
                "what rows of query, key and value are: tangent vectors at the origin (exp0), direction and radius "
                "(pseudoPolar), or coordinates of a model"),
    option_enum(ATTEND_FIELD(output_map), "\"tangent\"", output_maps, "what rows of the output are"),
    option_maybe_real(ATTEND_FIELD(input_scale), {DBL_MIN, DBL_MAX},
                      "factor of tangent vectors of query and key; 1/sqrt(D)", "input_map=exp0"),
    option_maybe_real(ATTEND_FIELD(value_scale), {DBL_MIN, DBL_MAX}, "factor of tangent vectors of value; 1/sqrt(Dv)",
                      "input_map=exp0"),
    option_real(ATTEND_FIELD(max_radius), "5", {DBL_MIN, 10},
                "points farther from the origin are drawn in; in units of the radius of curvature, above 0"),
    ATTEND_VISIBILITY_OPTIONS(""),
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

#define RADIAL(in) \
    "input_map=" in " & output_map=pseudoPolar: B,Hq,Nq,Dv | input_map=" in " & output_map=hyperboloid: B,Hq,Nq,Dv | "
constexpr attend_port port_table[] = {
    stored(input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "queries, as input_map says")),
    stored(common::key_port()),
    stored(common::value_port()),
    ATTEND_MASK_PORTS,
    weight_port("beta", "Hq", "constant(beta)", "in place of the option, one for each head", ATTEND_OPTIONAL),
    weight_port("offset", "Hq", "constant(offset)", "in place of the option, one for each head", ATTEND_OPTIONAL),
    stored(output_port(
        ATTEND_OUT, "output",
        RADIAL("pseudoPolar") RADIAL(
            "hyperboloid") "input_map=pseudoPolar: B,Hq,Nq,Dv-1 | input_map=hyperboloid: B,Hq,Nq,Dv-1 | "
                           "output_map=pseudoPolar: B,Hq,Nq,Dv+1 | output_map=hyperboloid: B,Hq,Nq,Dv+1 | B,Hq,Nq,Dv",
        "midpoints, as output_map says")),
    output_port(ATTEND_LSE, "lse", "weighting=softmax: B,Hq,Nq", "log of the sum of exponentials of each row",
                ATTEND_OPTIONAL),
    common::scores_port(),
};
#undef RADIAL

double root_of(const Options& options) { return ::sqrt(-options.curvature); }
double scale_of(const OptionalReal& given, int64_t width) {
    return given.given ? given.value : 1.0 / ::sqrt(static_cast<double>(width));
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (has_radial_axis(static_cast<PointMap>(options.input_map)))
        for (const bool value : {false, true})
            if (const int64_t width = value ? desc.value_dim : desc.head_dim; width < 2)
                return (Message() << "the width of " << (value ? "value" : "query and key") << " is " << width
                                  << ", but points of input_map " << input_maps[options.input_map]
                                  << " have a coordinate more than the space; accepted: 2 or more")
                    .fail(error, ATTEND_BAD_SHAPE, value ? "value" : "query");
    for (const char* name : {"beta", "offset"}) {
        const attend_tensor* weight = attend_find_name(&desc.bindings, name);
        if (!weight || !weight->data) continue;
        for (int64_t h = 0; h < weight->shape[0]; ++h) {
            const auto x = static_cast<double>(static_cast<const float*>(weight->data)[h * weight->strides[0]]);
            const bool finite = x - x == 0.0;
            if (finite && (name[0] == 'o' || x > 0.0)) continue;
            char text[120];
            ::snprintf(text, sizeof text, "weight \"%s\"[%lld] is %g; accepted: %s", name, static_cast<long long>(h), x,
                       name[0] == 'o' ? "finite numbers" : "finite numbers above 0");
            return attend_fail(error, finite ? ATTEND_BAD_OPTION : ATTEND_NUMERIC, text, name);
        }
    }
    return ATTEND_OK;
}

HyperbolicRun prepared(const Options& options, const attend_plan_desc& desc, Workspace& memory) {
    HyperbolicRun run{};
    run.batch = desc.batch, run.heads = desc.num_q_heads, run.kv_heads = desc.num_kv_heads;
    run.q_len = desc.q_len, run.kv_len = desc.kv_len;
    const auto input = static_cast<PointMap>(options.input_map);
    const double root_c = root_of(options);
    run.side = {input, root_c, scale_of(options.input_scale, desc.head_dim), options.max_radius, desc.head_dim};
    run.values = {input, root_c, scale_of(options.value_scale, desc.value_dim), options.max_radius, desc.value_dim};
    run.result = {static_cast<PointMap>(options.output_map), root_c, input == PointMap::exp0 ? run.values.scale : 1.0};
    run.sigmoid = options.weighting != 0;
    run.causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    run.offset_per_item = (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) != 0;
    run.offset = desc.causal_offset, run.window_left = desc.window_left, run.window_right = desc.window_right;
    run.dropout = desc.dropout;
    for (int64_t& bad : run.first_bad) bad = INT64_MAX;
    run.factor = memory.take<float>(run.heads);
    run.offsets = memory.take<float>(run.heads);
    const auto side = [&](int64_t rows) {
        return SidePoints{memory.take<float>(rows), memory.take<float>(rows), memory.take<float>(rows),
                          memory.take<double>(rows)};
    };
    const int64_t keys = run.batch * run.kv_heads * run.kv_len;
    run.queries = side(run.batch * run.heads * run.q_len);
    run.keys = side(keys);
    run.messages = {memory.take<double>(keys), memory.take<double>(keys)};
    Workspace count;
    const HyperbolicRoom room(run, count);
    run.room_bytes = static_cast<int64_t>(count.used());
    run.rooms = memory.take<char>(run.room_bytes * static_cast<int64_t>(desc.max_workers == 0 ? 1 : desc.max_workers));
    return run;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    Workspace count;
    prepared(options, *args.desc, count);
    return count.used();
}

template <void (*body)(HyperbolicRun&, HyperbolicWorker&, int64_t)>
attend_status in_parallel(HyperbolicRun& run, const Context& context, int64_t count) {
    struct Loop {
        static attend_status call(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
            HyperbolicRun& shared = *static_cast<HyperbolicRun*>(user);
            HyperbolicWorker worker(shared, slot);
            for (uint64_t at = begin; at < end; ++at) body(shared, worker, static_cast<int64_t>(at));
            return ATTEND_OK;
        }
    };
    return parallel_items(&context, static_cast<uint64_t>(count), Loop::call, &run);
}
void points_of_queries(HyperbolicRun& run, HyperbolicWorker& worker, int64_t at) {
    const int64_t b = at / run.heads;
    worker.read_side(run.query, b, at % run.heads, run.queries_of(b), at * run.q_len, run.queries, 0);
}
void points_of_keys(HyperbolicRun& run, HyperbolicWorker& worker, int64_t at) {
    const int64_t b = at / run.kv_heads, h = at % run.kv_heads;
    worker.read_side(run.key, b, h, run.keys_of(b), at * run.kv_len, run.keys, 1);
    worker.read_values(b, h, run.keys_of(b), at * run.kv_len);
}
void block_of_queries(HyperbolicRun& run, HyperbolicWorker& worker, int64_t at) {
    const int64_t blocks = (run.q_len + queries_of_a_task - 1) / queries_of_a_task, head = at / blocks;
    worker.block(head / run.heads, head % run.heads, at % blocks * queries_of_a_task);
}

// The sentence about the first row that is no point.
attend_status refuse(const HyperbolicRun& run, const Options& options, int which, attend_error* error) {
    const char* const names[] = {"query", "key", "value"};
    const StoredView* const views[] = {&run.query, &run.key, &run.value};
    const int64_t heads = which == 0 ? run.heads : run.kv_heads, rows = which == 0 ? run.q_len : run.kv_len;
    const int64_t at = run.first_bad[which], b = at / rows / heads, h = at / rows % heads, n = at % rows;
    const PointReader& reader = which == 2 ? run.values : run.side;
    const StoredView& view = *views[which];
    double squares = 0.0, time = 0.0;
    int64_t bad = -1;
    float x = 0.0f, odd = 0.0f;
    for (int64_t d = 0; d < reader.width; ++d) {
        widen_row(view.storage, view.at(b, h, n) + d * view.strides[3], 1, 1, &x);
        if (x - x != 0.0f && bad < 0) bad = d, odd = x;
        if (d < reader.first())
            time = static_cast<double>(x);
        else
            squares += static_cast<double>(x) * static_cast<double>(x);
    }
    const auto place = [](int64_t index) { return static_cast<long long>(index); };
    char text[256];
    if (bad >= 0)
        ::snprintf(text, sizeof text, "%s[%lld][%lld][%lld][%lld] is %g; accepted: finite numbers", names[which],
                   place(b), place(h), place(n), place(bad), static_cast<double>(odd));
    else if (reader.map == PointMap::hyperboloid)
        ::snprintf(
            text, sizeof text,
            "%s[%lld][%lld][%lld] is no point of the hyperboloid: time is %g, the square of the rest %g; accepted: "
            "time above 0 and time^2 - rest = %g within a thousandth of time^2",
            names[which], place(b), place(h), place(n), time, squares, -1.0 / options.curvature);
    else
        ::snprintf(text, sizeof text, "%s[%lld][%lld][%lld] has length %g; accepted: below %g (1/sqrt(-curvature))",
                   names[which], place(b), place(h), place(n), ::sqrt(squares), 1.0 / reader.root_c);
    return attend_fail(error, ATTEND_NUMERIC, text, names[which]);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    Workspace memory(context.workspace);
    HyperbolicRun run = prepared(options, *args.desc, memory);
    const attend_tensor *key = args.key ? args.key : args.query, *value = args.value ? args.value : key;
    run.query = stored_view(args.query), run.key = stored_view(key), run.value = stored_view(value);
    run.output = stored_view(args.output);
    run.lse = view_of<float, 3>(args.lse);
    run.scores = view_of<float, 4>(args.scores);
    run.row_begin = args.rows.first;
    run.logits = args.rows.logits;
    run.row_end = args.rows.count > 0 ? args.rows.first + args.rows.count : run.q_len;
    run.mask = broadcast_view_of<const uint8_t, 4>(args.mask);
    run.bias = broadcast_view_of<const float, 4>(args.bias);
    run.query_lengths = args.query_lengths, run.key_lengths = args.key_lengths;
    run.seed = args.exec->seed, run.rng_offset = args.exec->rng_offset;
    const attend_tensor *beta = attend_find_name(args.weights, "beta"),
                        *offset = attend_find_name(args.weights, "offset");
    const auto of_head = [](const attend_tensor* weight, int64_t h, double otherwise) {
        return weight ? static_cast<double>(static_cast<const float*>(weight->data)[h * weight->strides[0]])
                      : otherwise;
    };
    for (int64_t h = 0; h < run.heads; ++h) {
        run.factor[h] = static_cast<float>(2.0 / root_of(options) * of_head(beta, h, options.beta));
        run.offsets[h] = static_cast<float>(of_head(offset, h, options.offset));
    }
    attend_status status = in_parallel<points_of_queries>(run, context, run.batch * run.heads);
    if (status == ATTEND_OK) status = in_parallel<points_of_keys>(run, context, run.batch * run.kv_heads);
    for (int which = 0; which < 3 && status == ATTEND_OK; ++which)
        if (run.first_bad[which] != INT64_MAX) status = refuse(run, options, which, context.error);
    if (status != ATTEND_OK) return status;
    const int64_t blocks = (run.q_len + queries_of_a_task - 1) / queries_of_a_task;
    return in_parallel<block_of_queries>(run, context, run.batch * run.heads * blocks);
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const double pairs = visible_pairs(desc);
    softmax_cost(desc, pairs, cost);
    cost.flops = static_cast<double>(desc.batch) * static_cast<double>(desc.num_q_heads) * pairs *
                 (3.0 * static_cast<double>(desc.head_dim) + 2.0 * static_cast<double>(desc.value_dim + 1) + 30.0);
}

}  // namespace

ATTEND_MECHANISM(
    hyperbolic,
    described<check, workspace, forward, cost>(
        {.name = "hyperbolic-attention",
         .category = "extra",
         .title = "Hyperbolic attention",
         .summary = "Weights fall with hyperbolic distance; results are Einstein midpoints. For data that form a tree.",
         .reference = "Gulcehre et al. 2019, arXiv:1805.09786",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .caps = ATTEND_CAP_MASK | ATTEND_CAP_BIAS | ATTEND_CAP_GQA | ATTEND_CAP_MQA | ATTEND_CAP_CROSS |
                 ATTEND_CAP_LSE_OUT | ATTEND_CAP_SCORES_OUT | ATTEND_CAP_DROPOUT | ATTEND_CAP_DETERMINISTIC |
                 ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS | position_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "rows are points (rho, u): rho = sqrt(-curvature) * distance from the origin, u a direction\n"
                    "d_ij = 2 / sqrt(-curvature) * asinh(sqrt(sinh((rho_i - rho_j) / 2)^2\n"
                    "                                       + sinh(rho_i) sinh(rho_j) |u_i - u_j|^2 / 4))\n"
                    "x_ij = -beta d_ij - offset;  w_i = softmax(x_i) or sigmoid(x_i)\n"
                    "S = sum_j w_ij sinh(rho_j) u_j,  T = sum_j w_ij cosh(rho_j);  output = the point S / T of the "
                    "Klein model",
         .cost = "As softmax attention grows, three operations for each pair and coordinate instead of two, and a "
                 "midpoint in double precision, which takes most of the time.",
         .use = "For hierarchies: taxonomies, file trees, graphs with hubs, where distances grow from the root as the "
                "number of leaves does. Plain features do not gain by it; use softmax attention for them.",
         .example = "attend compute hyperbolic-attention --sequence-length 256 --heads 4 --dim 32 --set beta=2"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
