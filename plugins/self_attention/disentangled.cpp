// SPDX-License-Identifier: Apache-2.0
// disentangled-attention: content and relative position have vectors of their own, and meet in three products.
//
// Paper    He et al. 2021, DeBERTa, arXiv:2006.03654; log buckets and shared projections: He et al. 2023, DeBERTaV3, arXiv:2111.09543
// Formula  s = scale (q_i . k_j + q_i . Kr[c(d)] + k_j . Qr[c'(d)]), d = i' - j, c = bucket(d) + S cut to [0, 2S), scale 1/sqrt(D n)
//          projected: Kr, Qr = relative embeddings (normed) through the content projections or their own
// Cost     O(Nq Nk D), and the products with the 2S relative vectors that tiles reach
// Differs  p2c is indexed by i' - j as in the released code; p2c_index=paper follows the paper

#include "attend/toolkit/tile/scores/disentangled.hpp"
#include "attend/author/by_head.hpp"
#include "attend/author/projected.hpp"
#include "attend/toolkit/block/layer_norm.hpp"
#include "relative_tables.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, c2p, p2c, p2c_index, share_att_key, norm_rel_emb;
    OptionalInt heads;
    int64_t position_buckets, max_relative_positions;
};

constexpr const char* indices[] = {"code", "paper", nullptr};
constexpr OptionRow option_table[] = {
    common::form_option(offsetof(Options, form)),
    option_maybe_int(offsetof(Options, heads), "heads", {1, 65536},
                     "heads, required in the projected form; divides the width of the tokens", "form=projected"),
    option_bool(offsetof(Options, c2p), "c2p", true, "content of the query meets the position of the key"),
    option_bool(offsetof(Options, p2c), "p2c", true, "content of the key meets the position of the query"),
    option_int(offsetof(Options, position_buckets), "position_buckets", "256", {0, 1048576},
               "logarithmic buckets S, even, on each side; 0: none, S is max_relative_positions"),
    option_int(offsetof(Options, max_relative_positions), "max_relative_positions", "512", {2, 1048576},
               "distances beyond this share the last row"),
    option_enum(offsetof(Options, p2c_index), "p2c_index", "\"code\"", indices,
                "rows of the position-to-content term: by i' - j (code) or by j - i' (paper)", "p2c"),
    option_bool(offsetof(Options, share_att_key), "share_att_key", true,
                "relative embeddings go through wk and wq; false: through pos_wk and pos_wq", "form=projected"),
    option_bool(offsetof(Options, norm_rel_emb), "norm_rel_emb", true, "layer norm of the relative embeddings",
                "form=projected"),
    ATTEND_CAUSAL_OPTIONS,
    common::scale("factor before softmax; left out or 0: 1/sqrt(n * head width), n = 1 + c2p + p2c"),
    common::softcap(),
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(nullptr),
};

constexpr attend_port port_table[] = {
    common::query_or_tokens_port(),
    stored(common::key_port("form=core: B,Hkv,Nk,D")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv")),
    common::past_key_port(),
    common::past_value_port(),
    ATTEND_MASK_PORTS,
    weight_port("rel_key",
                "form=core & c2p & position_buckets: Hq,2*position_buckets,D | form=core & c2p: "
                "Hq,2*max_relative_positions,D",
                "normal(0,0.02) as relKey", "Kr: relative positions as keys, far future first"),
    weight_port("rel_query",
                "form=core & p2c & position_buckets: Hq,2*position_buckets,D | form=core & p2c: "
                "Hq,2*max_relative_positions,D",
                "normal(0,0.02) as relQuery", "Qr: relative positions as queries"),
    weight_port(
        "rel_emb",
        "form=projected & c2p & position_buckets: 2*position_buckets,E | form=projected & p2c & position_buckets: "
        "2*position_buckets,E | form=projected & c2p: 2*max_relative_positions,E | form=projected & p2c: "
        "2*max_relative_positions,E",
        "normal(0,0.02) as relEmb", "relative embeddings"),
    weight_port("rel_norm_w", "form=projected & norm_rel_emb & c2p: E | form=projected & norm_rel_emb & p2c: E", "ones",
                "scale of their layer norm"),
    weight_port("rel_norm_b", "form=projected & norm_rel_emb & c2p: E | form=projected & norm_rel_emb & p2c: E",
                "zeros", "shift of their layer norm"),
    weight_port("wq", "form=projected: Hq*D,E", "normal(0,0.02) as Wq", "query projection"),
    weight_port("wk", "form=projected: Hq*D,E", "normal(0,0.02) as Wk", "key projection"),
    weight_port("wv", "form=projected: Hq*D,E", "normal(0,0.02) as Wv", "value projection"),
    weight_port("bq", "form=projected: Hq*D", "zeros", "query bias"),
    weight_port("bk", "form=projected: Hq*D", "zeros", "key bias"),
    weight_port("bv", "form=projected: Hq*D", "zeros", "value bias"),
    weight_port("pos_wk", "form=projected & !share_att_key & c2p: Hq*D,E", "normal(0,0.02) as posWk",
                "relative embeddings to keys"),
    weight_port("pos_wq", "form=projected & !share_att_key & p2c: Hq*D,E", "normal(0,0.02) as posWq",
                "relative embeddings to queries"),
    weight_port("pos_bk", "form=projected & !share_att_key & c2p: Hq*D", "zeros", "bias of pos_wk"),
    weight_port("pos_bq", "form=projected & !share_att_key & p2c: Hq*D", "zeros", "bias of pos_wq"),
    stored(output_port(ATTEND_OUT, "output", "form=projected: B,Nq,Hq*D | B,Hq,Nq,Dv",
                       "result; projected: the joined heads, without an output projection")),
    common::lse_port(),
    common::scores_port(),
};

int64_t side_of(const Options& options) {
    return options.position_buckets > 0 ? options.position_buckets : options.max_relative_positions;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const int64_t buckets = options.position_buckets, most = options.max_relative_positions;
    if (buckets != 0 && (buckets % 2 != 0 || buckets < 4))
        return (Message() << "disentangled-attention: option \"position_buckets\" is " << buckets
                          << "; accepted: 0, or an even number from 4")
            .fail(error, ATTEND_BAD_OPTION, "position_buckets");
    if (buckets != 0 && most - 1 <= buckets / 2)
        return (Message() << "disentangled-attention: option \"max_relative_positions\" is " << most
                          << " with position_buckets " << buckets << "; accepted: more than " << buckets / 2 + 1)
            .fail(error, ATTEND_BAD_OPTION, "max_relative_positions");
    if (!is_projected(options.form)) return ATTEND_OK;
    if (desc.num_kv_heads != desc.num_q_heads)
        return attend_fail(error, ATTEND_BAD_SHAPE, "the projected form has as many key heads as query heads", "heads");
    const auto given = [&](const char* name) {
        const attend_tensor* weight = attend_find_name(&desc.bindings, name);
        return weight && (weight->flags & ATTEND_TENSOR_INITIALISED) == 0;
    };
    bool any = false;
    for (const char* name : {"rel_emb", "rel_norm_w", "rel_norm_b", "wq", "wk", "wv", "bq", "bk", "bv", "pos_wk",
                             "pos_wq", "pos_bk", "pos_bq"})
        any = any || given(name);
    const struct {
        const char* name;
        bool wanted;
    } own[] = {{"pos_wk", options.c2p != 0}, {"pos_wq", options.p2c != 0}};
    for (const auto& weight : own)
        if (any && !options.share_att_key && weight.wanted && !given(weight.name))
            return (Message()
                    << "disentangled-attention: weight \"" << weight.name
                    << "\" is missing while other projections are given and option \"share_att_key\" is false; "
                       "accepted: all projections, or none")
                .fail(error, ATTEND_NOT_FOUND, weight.name);
    return check_past(desc, error);
}

ProjectedForm projection(const attend_plan_desc& desc) {
    ProjectedForm form = self_projection(desc);
    form.joins = false;
    return form;
}

int64_t bucket_of(const Options& options, int64_t distance) {
    if (options.position_buckets == 0) return distance;
    const int64_t most = options.max_relative_positions - 1, middle = options.position_buckets / 2;
    const int64_t d = distance < -most ? -most : distance > most ? most : distance, size = d < 0 ? -d : d;
    if (size <= middle) return d;
    const double share = ::log(static_cast<double>(size) / static_cast<double>(middle)) /
                         ::log(static_cast<double>(most) / static_cast<double>(middle));
    const int64_t bucket = middle + static_cast<int64_t>(::ceil(share * static_cast<double>(middle - 1) - 1e-9));
    return d < 0 ? -bucket : bucket;
}

// What a call keeps beside the engine's scratch.
struct Sizes {
    int64_t rows, inner, panel_floats, range;
    Sizes(const Options& options, const attend_plan_desc& desc)
        : rows(2 * side_of(options)),
          inner(desc.num_q_heads * desc.head_dim),
          panel_floats(DisentangledHooks::panels(2 * side_of(options)) * desc.head_dim *
                       DisentangledHooks::panel_lanes),
          range(DistanceRange(desc).count) {}
};

attend_tile_hooks hooks_of(const Options& options) {
    attend_tile_hooks hooks{};
    if (options.c2p || options.p2c) hooks.content = DisentangledHooks::add_content;
    hooks.scratch_floats = DisentangledHooks::scratch_floats();
    if (!options.p2c) return hooks;
    hooks.keys = DisentangledHooks::prepare_keys;
    hooks.block_floats = DisentangledHooks::block_floats();
    hooks.max_group = DisentangledHooks::most_tiles;
    return hooks;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const Sizes sizes(options, desc);
    const attend_tile_hooks hooks = hooks_of(options);
    uint64_t bytes = tile_workspace(desc.num_q_heads == desc.num_kv_heads ? desc : one_head(desc), 0, 0, 0, &hooks) +
                     Carve::floats(desc.num_q_heads * sizes.panel_floats) + 2 * Carve::floats(sizes.range);
    if (!is_projected(options.form)) return bytes;
    const int64_t width = ProjectedWidths(desc).query;
    return bytes + projected_workspace(projection(desc), desc) + Carve::floats(sizes.rows * width) +
           2 * Carve::floats(sizes.rows * sizes.inner) +
           projection_workspace(1, sizes.rows, width, sizes.inner, desc.max_workers);
}

// Relative tables by head, from weights or from projections.
struct Tables {
    OwnTensor key, query;  // [1, H, 2S, D]
};

attend_status project_tables(const Options& options, const ForwardArgs& args, Tables& tables, Carve& carve,
                             const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const Sizes sizes(options, desc);
    const attend_array& weights = *args.weights;
    const attend_tensor* embedding = attend_find_name(&weights, "rel_emb");
    if (!embedding) return ATTEND_OK;
    const int64_t width = embedding->shape[1];
    OwnTensor source;
    describe(source, *embedding, {1, 1, sizes.rows, width}, {0, 0, embedding->strides[0], embedding->strides[1]});
    source.tensor.ndim = 3;
    source.tensor.shape = source.shape + 1;
    source.tensor.strides = source.strides + 1;
    Rows normed(carve.take(sizes.rows * width), 1, sizes.rows, width);
    if (options.norm_rel_emb) {
        const attend_status status = layer_norm(&context, &source.tensor, attend_find_name(&weights, "rel_norm_w"),
                                                attend_find_name(&weights, "rel_norm_b"), &normed.tensor, 1e-7);
        if (status != ATTEND_OK) return status;
    }
    const bool shared = options.share_att_key != 0;
    const struct {
        bool wanted;
        const char *weight, *bias;
        OwnTensor* to;
    } layers[] = {{options.c2p != 0, shared ? "wk" : "pos_wk", shared ? "bk" : "pos_bk", &tables.key},
                  {options.p2c != 0, shared ? "wq" : "pos_wq", shared ? "bq" : "pos_bq", &tables.query}};
    for (const auto& layer : layers) {
        Rows rows(carve.take(sizes.rows * sizes.inner), 1, sizes.rows, sizes.inner);
        if (!layer.wanted) continue;
        const attend_status status =
            project(options.norm_rel_emb ? &normed.tensor : &source.tensor, attend_find_name(&weights, layer.weight),
                    attend_find_name(&weights, layer.bias), &rows.tensor, carve.rest(context));
        if (status != ATTEND_OK) return status;
        split_heads(*layer.to, rows.tensor, desc.num_q_heads);
    }
    return ATTEND_OK;
}

void take_tables(const ForwardArgs& args, Tables& tables) {
    const auto take = [&](const char* name, OwnTensor& to) {
        const attend_tensor* weight = attend_find_name(args.weights, name);
        if (weight)
            describe(to, *weight, {1, weight->shape[0], weight->shape[1], weight->shape[2]},
                     {0, weight->strides[0], weight->strides[1], weight->strides[2]});
    };
    take("rel_key", tables.key);
    take("rel_query", tables.query);
}

// Columns of Qr, times scale, in panels [D][panel_lanes] of every head.
void fill_panels(const attend_tensor& query, float scale, int64_t panel_floats, float* to) {
    constexpr int64_t lanes = DisentangledHooks::panel_lanes;
    const int64_t heads = query.shape[1], rows = query.shape[2], dim = query.shape[3];
    for (int64_t head = 0; head < heads; ++head)
        for (int64_t row = 0; row < panel_floats / dim; ++row)
            for (int64_t d = 0; d < dim; ++d) {
                const float* from = static_cast<const float*>(query.data) + head * query.strides[1] +
                                    row * query.strides[2] + d * query.strides[3];
                to[head * panel_floats + (row / lanes * dim + d) * lanes + row % lanes] =
                    row < rows ? scale * *from : 0.0f;
            }
}

attend_status attend_with(const Options& options, const ForwardArgs& args, const Tables& tables, TileCall& call,
                          Carve carve, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const Sizes sizes(options, desc);
    const DistanceRange range(desc);
    const double parts = 1.0 + options.c2p + options.p2c;
    const double scale = desc.scale == 0.0 ? 1.0 / ::sqrt(static_cast<double>(desc.head_dim) * parts) : desc.scale;
    call.problem.scale = scale;
    DisentangledHooks hooks{};
    hooks.head_dim = desc.head_dim;
    float* panels = carve.take(desc.num_q_heads * sizes.panel_floats);
    int32_t* key_rows = reinterpret_cast<int32_t*>(carve.take(sizes.range));
    int32_t* places = reinterpret_cast<int32_t*>(carve.take(sizes.range));
    if (options.c2p) {
        hooks.key_table = static_cast<const float*>(tables.key.tensor.data);
        hooks.key_head_stride = tables.key.strides[1];
        hooks.key_row_stride = tables.key.strides[2];
        hooks.key_inner_stride = tables.key.strides[3];
    }
    if (options.p2c) {
        fill_panels(tables.query.tensor, static_cast<float>(scale), sizes.panel_floats, panels);
        hooks.query_panels = panels;
        hooks.query_head_stride = sizes.panel_floats;
    }
    const auto row_of = [&](int64_t distance) {
        const int64_t row = bucket_of(options, distance) + sizes.rows / 2;
        return row < 0 ? 0 : row >= sizes.rows ? sizes.rows - 1 : row;
    };
    for (int64_t at = 0; at < sizes.range; ++at) {
        const int64_t distance = range.least + at;
        key_rows[at] = static_cast<int32_t>(row_of(distance));
        places[at] = DisentangledHooks::place_of(row_of(options.p2c_index == 1 ? -distance : distance));
    }
    hooks.key_row_of = key_rows - range.least;
    hooks.query_place_of = places - range.least;
    attend_tile_hooks engine = hooks_of(options);
    engine.user = &hooks;
    call.problem.hooks = &engine;
    if (desc.num_q_heads == desc.num_kv_heads) {
        const attend_status status = run_tiles(call, carve.rest(context));
        call.problem.hooks = nullptr;  // they end here, the call does not
        return status;
    }
    // Grouped heads have tables of their own, and keys in common.
    for (int64_t head = 0; head < desc.num_q_heads; ++head) {
        HeadCall one(call, args, head);
        hooks.first_head = head;
        const Context rest = carve.rest(context);
        const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&one.problem, &rest);
        if (status != ATTEND_OK) return status;
    }
    call.problem.hooks = nullptr;
    return ATTEND_OK;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    Tables tables{};
    if (!is_projected(options.form)) {
        take_tables(args, tables);
        TileCall call(args);
        return attend_with(options, args, tables, call, Carve(context), context);
    }
    return run_projected(projection(*args.desc), args, context, [&](TileCall& call, const Context& rest) {
        Carve carve(rest);
        const attend_status status = project_tables(options, args, tables, carve, rest);
        return status == ATTEND_OK ? attend_with(options, args, tables, call, carve, rest) : status;
    });
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    softmax_cost(desc, visible_pairs(desc), cost);
    const auto real = [](int64_t x) { return static_cast<double>(x); };
    cost.flops += 2.0 * real(desc.batch * desc.num_q_heads) * real(2 * side_of(options) * desc.head_dim) *
                  real(options.c2p * desc.q_len + options.p2c * desc.kv_len);
    if (is_projected(options.form)) projected_cost(projection(desc), desc, cost);
}

}  // namespace

ATTEND_MECHANISM(
    disentangled,
    (described<check, workspace, forward, cost>(
        {.name = "disentangled-attention",
         .category = "self-attention",
         .title = "Disentangled attention",
         .summary = "Content and relative position have separate vectors that meet crosswise (DeBERTa).",
         .reference = "He et al. 2021, DeBERTa, arXiv:2006.03654",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "s_ij = scale (q_i.k_j + q_i.kr[bucket(i - j)] + k_j.qr[bucket(j - i)]), scale = 1/sqrt(3 D) with "
                    "all three terms\n"
                    "o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "Up to three score products instead of one; the position terms are products with the table's rows "
                 "that a tile reaches, never a matrix of pairs.",
         .use = "For DeBERTa models. It is about twice as slow as bidirectional-self-attention, so take it only with "
                "weights that were trained for it.",
         .example = "attend compute disentangled-attention --sequence-length 256 --heads 8 --set position_buckets=32 "
                    "--set max_relative_positions=128"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
