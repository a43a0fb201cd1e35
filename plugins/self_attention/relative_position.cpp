// SPDX-License-Identifier: Apache-2.0
// relative-position-attention: scores know how far a key is from the query, by learned tables of three kinds.
//
// Paper    shaw: Shaw et al. 2018, arXiv:1803.02155; t5: Raffel et al. 2020, arXiv:1910.10683; xl: Dai et al. 2019, arXiv:1901.02860
// Formula  shaw  s = scale q_i . (k_j + a_r), o_i = sum_j p_ij (v_j + b_r), r = clip(j - i', -k, k) + k
//          t5    s = scale q_i . k_j + bias[bucket(j - i'), h]
//          xl    s = scale ((q_i + u_h) . k_j + (q_i + v_h) . R_h(i' - j)), R_h(d) = W_h [sin(d w)] [cos(d w)]
// Cost     shaw: O(Nq (2k + 1) (D + Dv)) more; t5: a look-up; xl: one more product, and O((Nq + Nk) E D) per head for R
// Differs  scale is 1/sqrt(D) in all three; T5 checkpoints want scale 1

#include "attend/author/by_head.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/scores/shaw.hpp"
#include "attend/toolkit/tile/scores/transformer_xl.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"
#include "relative_tables.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t mode, use_value_embedding, per_head_tables;
    OptionalInt max_distance, rel_dim;
    int64_t num_buckets, clamp_len;
};
enum Mode : int32_t { shaw, t5, xl };

constexpr const char* modes[] = {"shaw", "t5", "xl", nullptr};
constexpr OptionRow option_table[] = {
    option_enum(
        offsetof(Options, mode), "mode", "\"shaw\"", modes,
        "shaw: vectors joined to keys and values; t5: a bias of each bucket; xl: sinusoids through a projection"),
    option_maybe_int(
        offsetof(Options, max_distance), "max_distance", {0, 1048576},
        "shaw: k, positions told apart on each side, default 16; t5: distances that share the last bucket, "
        "default 128",
        "mode=shaw|mode=t5"),
    option_bool(offsetof(Options, use_value_embedding), "use_value_embedding", true, "vectors join the values, too",
                "mode=shaw"),
    option_bool(offsetof(Options, per_head_tables), "per_head_tables", false, "a table of each query head",
                "mode=shaw"),
    option_int(offsetof(Options, num_buckets), "num_buckets", "32", {2, 1048576}, "rows of rel_bias", "mode=t5"),
    option_row(ATTEND_TYPE_BOOL, 0, "bidirectional", nullptr, {0, 1}, nullptr,
               "buckets of their own for later keys; default: not causal", Field::none, 0, "mode=t5"),
    option_maybe_int(offsetof(Options, rel_dim), "rel_dim", {2, 1048576},
                     "width of the sinusoids, even; default: heads times head width", "mode=xl"),
    option_int(offsetof(Options, clamp_len), "clamp_len", "-1", {-1, 1073741824},
               "distances are cut to this on both sides; -1: not cut", "mode=xl"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(nullptr),
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    input_port(0, "segment_ids_q", "mode=xl: B,Nq", "segment of each query; only equality counts", ATTEND_OPTIONAL,
               length_types),
    input_port(0, "segment_ids_k", "mode=xl: B,Nk", "segment of each key", ATTEND_OPTIONAL, length_types),
    ATTEND_MASK_PORTS,
    weight_port("rel_k",
                "mode=shaw & per_head_tables: Hq,2*or(max_distance,16)+1,D | mode=shaw: 1,2*or(max_distance,16)+1,D",
                "xavierUniform as relK", "vectors joined to the keys, from far left to far right"),
    weight_port("rel_v",
                "mode=shaw & use_value_embedding & per_head_tables: Hq,2*or(max_distance,16)+1,Dv | "
                "mode=shaw & use_value_embedding: 1,2*or(max_distance,16)+1,Dv",
                "xavierUniform as relV", "vectors joined to the values"),
    weight_port("rel_bias", "mode=t5: num_buckets,Hq", "normal(0,1/sqrt(Hq*D)) as relBias", "bias of each bucket"),
    weight_port("rel_proj", "mode=xl: Hq,D,or(rel_dim,Hq*D)", "normal(0,0.02) as relProj", "sinusoids to head width"),
    weight_port("u", "mode=xl: Hq,D", "normal(0,0.02)", "joins the query towards keys"),
    weight_port("v", "mode=xl: Hq,D", "normal(0,0.02)", "joins the query towards distances"),
    weight_port("seg_u", "mode=xl & segment_ids_q: Hq,D", "normal(0,0.02) as segU", "joins the query towards segments"),
    weight_port("seg_emb", "mode=xl & segment_ids_q: 2,Hq,D", "normal(0,0.02) as segEmb",
                "same segment, other segment"),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

int64_t distance_of(const Options& options) {
    return options.max_distance.given ? options.max_distance.value : options.mode == t5 ? 128 : 16;
}
bool bidirectional(const attend_array& values, const attend_plan_desc& desc) {
    const attend_value* value = attend_find_option(&values, "bidirectional");
    return value && value->type != 0 ? value->u.i != 0 : (desc.flags & ATTEND_PLAN_CAUSAL) == 0;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    Message text;
    text << "relative-position-attention: ";
    if (options.mode == t5) {
        const bool both = bidirectional(*args.values, desc);
        if (both && (options.num_buckets % 2 != 0 || options.num_buckets < 4))
            return (text << "option \"num_buckets\" is " << options.num_buckets
                         << " with bidirectional true; accepted: an even number from 4")
                .fail(error, ATTEND_BAD_OPTION, "num_buckets");
        const int64_t exact = (both ? options.num_buckets / 2 : options.num_buckets) / 2;
        if (distance_of(options) <= exact)
            return (text << "option \"max_distance\" is " << distance_of(options) << " with num_buckets "
                         << options.num_buckets << "; accepted: more than " << exact
                         << ", the distances with a bucket each")
                .fail(error, ATTEND_BAD_OPTION, "max_distance");
    }
    if (options.mode == xl && options.rel_dim.given && options.rel_dim.value % 2 != 0)
        return (text << "option \"rel_dim\" is " << options.rel_dim.value << "; accepted: an even number")
            .fail(error, ATTEND_BAD_OPTION, "rel_dim");
    if (options.mode == xl && !options.rel_dim.given && desc.num_q_heads * desc.head_dim % 2 != 0)
        return (text << "heads times head width is " << desc.num_q_heads * desc.head_dim
                     << " and option \"rel_dim\" is left out; accepted: an even rel_dim")
            .fail(error, ATTEND_BAD_OPTION, "rel_dim");
    if (options.mode == xl && options.clamp_len == 0)
        return (text << "option \"clamp_len\" is 0; accepted: -1 or a number from 1")
            .fail(error, ATTEND_BAD_OPTION, "clamp_len");
    const bool queries = attend_find_name(&desc.bindings, "segment_ids_q"),
               keys = attend_find_name(&desc.bindings, "segment_ids_k");
    if (queries != keys)
        return (text << "inputs \"segment_ids_q\" and \"segment_ids_k\" belong together; accepted: both or none")
            .fail(error, ATTEND_BAD_SHAPE, "segment_ids_q");
    return ATTEND_OK;
}

// Tables of a query head, with several heads of a tile or R made head by head: then the engine runs for one at a time.
bool by_head(const Options& options, const attend_plan_desc& desc) {
    const bool grouped = desc.num_q_heads != desc.num_kv_heads;
    return options.mode == xl || (grouped && (options.mode == t5 || options.per_head_tables));
}
DistanceRange range_of(const Options& options, const attend_plan_desc& desc) {
    DistanceRange range(desc);
    if (options.mode != xl || options.clamp_len < 0) return range;
    const int64_t most = options.clamp_len, last = range.least + range.count - 1;
    const auto cut = [&](int64_t x) { return x < -most ? -most : x > most ? most : x; };
    range.count = range.count > 0 ? cut(last) - cut(range.least) + 1 : 0;
    range.least = cut(range.least);
    return range;
}

attend_tile_hooks hooks_of(const Options& options, const attend_plan_desc& desc) {
    attend_tile_hooks hooks{};
    if (options.mode == shaw) {
        hooks.queries = ShawHooks::prepare;
        hooks.content = ShawHooks::add_content;
        hooks.tile_floats = (2 * distance_of(options) + 1) * max_lanes;
        if (options.use_value_embedding) {
            hooks.weights = ShawHooks::add_weights;
            hooks.finish = ShawHooks::finish;
            hooks.num_sums = 2 * distance_of(options) + 1;
        }
    } else if (options.mode == xl) {
        hooks.queries = TransformerXlHooks::prepare;
        hooks.content = TransformerXlHooks::add_content;
        hooks.tile_floats = TransformerXlHooks::memory_floats(desc.head_dim);
        hooks.scratch_floats = TransformerXlHooks::scratch_floats(default_key_tile);
    }
    return hooks;
}

// T5: the bias of every head and distance, with room behind for lanes that only repeat.
int64_t t5_row(const attend_plan_desc& desc) { return DistanceRange(desc).count + max_lanes; }

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tile_hooks hooks = hooks_of(options, desc);
    const attend_plan_desc run = by_head(options, desc) ? one_head(desc) : desc;
    const uint64_t bytes = tile_workspace(run, 0, 0, 0, options.mode == t5 ? nullptr : &hooks);
    if (options.mode == t5) return bytes + Carve::floats(desc.num_q_heads * t5_row(desc));
    if (options.mode == shaw) return bytes;
    const int64_t width = options.rel_dim.given ? options.rel_dim.value : desc.num_q_heads * desc.head_dim;
    const uint64_t layer = projection_workspace(1, rho_rows, width, desc.head_dim, desc.max_workers);
    return (bytes > layer ? bytes : layer) + Carve::floats(range_of(options, desc).count * desc.head_dim) +
           Carve::floats(rho_rows * width) + Carve::floats(RhoState::floats(width));
}

// Hooks' data of one head, or of all.
struct Relative {
    ShawHooks shaw;
    TransformerXlHooks xl;
    const float* bias;  // t5: of the first head, at distance 0
    int64_t bias_row;

    static void add_bias(const void* user, const attend_score_tile* tile) {
        const Relative& self = *static_cast<const Relative*>(user);
        add_distance_terms(*tile, self.bias + tile->queries->lane_head[0] * self.bias_row);
    }
};

RelativeTable table_of(const attend_tensor* tensor) {
    if (!tensor) return {};
    return {static_cast<const float*>(tensor->data), tensor->shape[0] == 1 ? 0 : tensor->strides[0], tensor->strides[1],
            tensor->strides[2]};
}

void fill_bias(const Options& options, const ForwardArgs& args, float* to) {
    const attend_plan_desc& desc = *args.desc;
    const DistanceRange range(desc);
    const attend_tensor& bias = *attend_find_name(args.weights, "rel_bias");
    const bool both = bidirectional(*args.values, desc);
    for (int64_t at = 0; at < t5_row(desc); ++at) {
        const int64_t bucket = t5_bucket(-(range.least + at), options.num_buckets, distance_of(options), both);
        for (int64_t head = 0; head < desc.num_q_heads; ++head)
            to[head * t5_row(desc) + at] =
                static_cast<const float*>(bias.data)[bucket * bias.strides[0] + head * bias.strides[1]];
    }
}

void take_xl(const ForwardArgs& args, int64_t head, float scale, TransformerXlHooks& hooks) {
    const auto row = [&](const char* name, int64_t first, const float*& to, int64_t& stride) {
        const attend_tensor* tensor = attend_find_name(args.weights, name);
        if (!tensor) return;
        const int heads = tensor->ndim - 2;  // the axis of heads
        to = static_cast<const float*>(tensor->data) + head * tensor->strides[heads] +
             (heads > 0 ? first * tensor->strides[0] : 0);
        stride = tensor->strides[heads + 1];
    };
    hooks.scale = scale;
    row("u", 0, hooks.u, hooks.u_stride);
    row("v", 0, hooks.v, hooks.v_stride);
    hooks.query_segments = attend_find_name(args.bindings, "segment_ids_q");
    hooks.key_segments = attend_find_name(args.bindings, "segment_ids_k");
    if (!hooks.query_segments) return;
    row("seg_u", 0, hooks.seg_u, hooks.seg_u_stride);
    row("seg_emb", 0, hooks.seg_emb[0], hooks.seg_emb_stride);
    row("seg_emb", 1, hooks.seg_emb[1], hooks.seg_emb_stride);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    Relative relative{};
    const DistanceRange range = range_of(options, desc);
    attend_tile_hooks hooks = hooks_of(options, desc);
    hooks.user = options.mode == shaw ? static_cast<const void*>(&relative.shaw) : &relative.xl;
    TileCall call(args);
    if (options.mode == shaw) {
        relative.shaw = {distance_of(options),
                         desc.head_dim,
                         desc.value_dim,
                         0,
                         table_of(attend_find_name(args.weights, "rel_k")),
                         table_of(attend_find_name(args.weights, "rel_v"))};
    } else if (options.mode == t5) {
        float* bias = carve.take(desc.num_q_heads * t5_row(desc));
        fill_bias(options, args, bias);
        relative.bias = bias - range.least;
        relative.bias_row = t5_row(desc);
        call.problem.score = Relative::add_bias;
        call.problem.score_user = &relative;
    }
    if (options.mode != t5) call.problem.hooks = &hooks;
    if (!by_head(options, desc)) return run_tiles(call, carve.rest(context));

    float *table = nullptr, *rho = nullptr, *state_memory = nullptr;
    const attend_tensor* proj = attend_find_name(args.weights, "rel_proj");
    if (options.mode == xl) {
        table = carve.take(range.count * desc.head_dim);
        rho = carve.take(rho_rows * proj->shape[2]);
        state_memory = carve.take(RhoState::floats(proj->shape[2]));
    }
    for (int64_t head = 0; head < desc.num_q_heads; ++head) {
        HeadCall one(call, args, head);
        relative.shaw.first_head = head;
        if (options.mode == t5 && head > 0) relative.bias += relative.bias_row;
        if (options.mode == xl) {
            RhoState state(state_memory, proj->shape[2]);
            const attend_status made = fill_r(*proj, head, range, state, rho, table, carve.rest(context));
            if (made != ATTEND_OK) return made;
            relative.xl.head_dim = desc.head_dim;
            relative.xl.least = range.least;
            relative.xl.count = range.count;
            relative.xl.clips = options.clamp_len > 0;
            relative.xl.table = table;
            take_xl(args, head, static_cast<float>(resolved_scale(desc)), relative.xl);
        }
        const Context rest = carve.rest(context);
        const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&one.problem, &rest);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const double pairs = visible_pairs(desc);
    softmax_cost(desc, pairs, cost);
    const auto real = [](int64_t x) { return static_cast<double>(x); };
    if (options.mode == shaw)
        cost.flops += 2.0 * real(desc.batch * desc.num_q_heads * desc.q_len) * real(2 * distance_of(options) + 1) *
                      real(desc.head_dim + (options.use_value_embedding ? desc.value_dim : 0));
    if (options.mode == xl) {
        const int64_t width = options.rel_dim.given ? options.rel_dim.value : desc.num_q_heads * desc.head_dim;
        cost.flops += 2.0 * real(desc.batch * desc.num_q_heads) * pairs * real(desc.head_dim) +
                      2.0 * real(desc.num_q_heads) * real(range_of(options, desc).count) * real(width * desc.head_dim);
    }
}

}  // namespace

ATTEND_MECHANISM(
    relative_position,
    (described<check, workspace, forward, cost>(
        {.name = "relative-position-attention",
         .category = "self-attention",
         .title = "Relative-position attention",
         .summary = "Learned terms for the distance between query and key: Shaw's vectors, T5's buckets or "
                    "Transformer-XL's sinusoids.",
         .reference = "Shaw et al. 2018, arXiv:1803.02155; Raffel et al. 2020, arXiv:1910.10683; Dai et al. "
                      "2019, arXiv:1901.02860",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "shaw: s_ij = scale q_i.(k_j + rel_k[d]), values likewise;  t5: s_ij = scale q_i.k_j + "
                    "table[bucket(d)]\n"
                    "xl:   s_ij = scale ((q_i + u).k_j + (q_i + v).r_d), r_d from sinusoids;  d = j - p_i, clipped",
         .cost = "As dense attention plus the position term: t5 looks up a number, shaw adds a product with the "
                 "table's few rows, xl a second product as large as the first. No table of pairs is built.",
         .use = "For models trained with one of the three schemes (T5, Transformer-XL, Music Transformer). For new "
                "models rotary-mha and alibi-mha are cheaper.",
         .example = "attend compute relative-position-attention --sequence-length 256 --heads 8 --set mode=t5 --set "
                    "max_distance=64 --causal"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
