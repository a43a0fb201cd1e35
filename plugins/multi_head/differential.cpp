// SPDX-License-Identifier: Apache-2.0
// differential-attention: the difference of two softmax maps over the same values, in which common noise cancels.
//
// Paper    Ye et al. 2024, Differential Transformer, arXiv:2410.05258; v2: the authors' second version with a factor per token
// Formula  v1: U = (A_0 - lambda A_1) V, O = (1 - lambda_init) RMSNorm(U); lambda = exp(lq1.lk1) - exp(lq2.lk2) + lambda_init
//          v2: O = (A_2h - sigmoid(lambda_logits) A_2h+1) V, both maps on one key head, no norm
// Cost     two maps of width D, two value products, in one sweep with two softmax states
// Differs  pairs per key head as in the fused reference, so both maps keep their own keys under grouped heads

#include <math.h>

#include "attend/author/projected.hpp"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t variant, lambda_mode, norm, pairing;
    int64_t depth;
    double norm_eps;
    OptionalReal lambda_init, lambda;
};

constexpr const char* variants[] = {"v1", "v2", nullptr};
constexpr const char* modes[] = {"reparam", "fixed", nullptr};
constexpr const char* pairings[] = {"interleaved", "split", nullptr};
constexpr double largest = 1.7976931348623157e308;
constexpr OptionRow option_table[] = {
    option_enum(offsetof(Options, variant), "variant", "\"v1\"", variants,
                "v1: one lambda, key heads in pairs, norm; v2: a lambda of each token and head"),
    option_int(offsetof(Options, depth), "depth", "0", {0, 1048576}, "index of the layer from 0, for lambda_init",
               "variant=v1 & !lambda_init & norm | variant=v1 & !lambda_init & lambda_mode=reparam"),
    option_maybe_real(offsetof(Options, lambda_init), "lambda_init", {0, 0.99999999999999988},
                      "default: 0.8 - 0.6 exp(-0.3 depth)", "variant=v1 & norm | variant=v1 & lambda_mode=reparam"),
    option_enum(offsetof(Options, lambda_mode), "lambda_mode", "\"reparam\"", modes,
                "reparam: lambda from the four lambda weights; fixed: option lambda", "variant=v1"),
    option_maybe_real(offsetof(Options, lambda), "lambda", {-largest, largest}, "lambda of lambda_mode fixed",
                      "variant=v1 & lambda_mode=fixed"),
    option_bool(offsetof(Options, norm), "norm", true, "RMSNorm of each head and the factor 1 - lambda_init",
                "variant=v1"),
    option_real(offsetof(Options, norm_eps), "norm_eps", "1e-5", {0, largest}, "added to the mean square",
                "variant=v1 & norm"),
    option_enum(offsetof(Options, pairing), "pairing", "\"interleaved\"", pairings,
                "heads of the two maps: interleaved (2h, 2h + 1) or split (h, h + H)"),
    common::causal("true"),
    common::causal_alignment(),
    common::causal_offset(),
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed("variant=v1 | x"),
};

constexpr attend_port port_table[] = {
    stored(common::query_port("queries of both maps, 2 H heads")),
    stored(common::key_port("B,Hkv,Nk,D", "keys; v1: those of both maps; absent: query")),
    stored(common::value_port("variant=v1: B,given(Hv,Hkv/2),Nk,Dv | B,Hkv,Nk,Dv")),
    input_port(0, "lambda_logits", "variant=v2: B,given(Hl,Hq/2),Nq", "logit of each token's lambda", ATTEND_OPTIONAL),
    input_port(0, "x", "variant=v2: B,Nq,E", "tokens that lambda_proj turns into logits", ATTEND_OPTIONAL),
    ATTEND_MASK_PORTS,
    weight_port("lambda_q1", "variant=v1 & lambda_mode=reparam: D", "normal(0,0.1) as lambdaQ1", "first exponent"),
    weight_port("lambda_k1", "variant=v1 & lambda_mode=reparam: D", "normal(0,0.1) as lambdaK1", "first exponent"),
    weight_port("lambda_q2", "variant=v1 & lambda_mode=reparam: D", "normal(0,0.1) as lambdaQ2", "second exponent"),
    weight_port("lambda_k2", "variant=v1 & lambda_mode=reparam: D", "normal(0,0.1) as lambdaK2", "second exponent"),
    weight_port("norm_weight", "variant=v1 & norm: Dv", "ones", "scale of the norm, shared by heads"),
    weight_port("lambda_proj", "variant=v2 & x: Hq/2,E", "kaimingUniform as lambdaProj", "x to logits"),
    stored(output_port(ATTEND_OUT, "output", "B,Hq/2,Nq,Dv", "result")),
    common::lse_port(),
};

bool first_version(const Options& options) { return options.variant == 0; }

// The plan as the engine sees it: one head for each pair.
attend_plan_desc paired(const Options& options, const attend_plan_desc& desc) {
    attend_plan_desc pair = desc;
    pair.num_q_heads = desc.num_q_heads / 2;
    if (first_version(options)) pair.num_kv_heads = desc.num_kv_heads / 2;
    return pair;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const auto refuse = [&](attend_status code, const char* where, Message& text) {
        return text.fail(error, code, where);
    };
    Message text;
    text << "differential-attention: ";
    if (desc.num_q_heads % 2 != 0)
        return refuse(
            ATTEND_BAD_SHAPE, "query",
            text << "query has " << desc.num_q_heads << " heads; accepted: an even number, two for each output head");
    if (first_version(options) && desc.num_kv_heads % 2 != 0)
        return refuse(
            ATTEND_BAD_SHAPE, "key",
            text << "key has " << desc.num_kv_heads << " heads; accepted: an even number, two for each value head");
    const attend_plan_desc pair = paired(options, desc);
    // Extents that are half of others: the ports leave them open, so that odd numbers are named above.
    const struct {
        const char* name;
        int64_t heads;
    } halves[] = {{"value", pair.num_kv_heads}, {"lambda_logits", pair.num_q_heads}};
    for (const auto& half : halves) {
        const attend_tensor* given = attend_find_name(&desc.bindings, half.name);
        if (given && given->ndim > 1 && given->shape[1] != half.heads)
            return refuse(ATTEND_BAD_SHAPE, half.name,
                          text << half.name << " has " << given->shape[1] << " heads; accepted: " << half.heads
                               << " for " << desc.num_q_heads << " query and " << desc.num_kv_heads << " key heads");
    }
    if (pair.num_q_heads % pair.num_kv_heads != 0)
        return refuse(
            ATTEND_BAD_SHAPE, "key",
            text << "query has " << desc.num_q_heads << " heads for " << desc.num_kv_heads
                 << " key heads; accepted: output heads (half of the query's) in whole groups for each value head");
    const bool logits = attend_find_name(&desc.bindings, "lambda_logits"), x = attend_find_name(&desc.bindings, "x");
    if (!first_version(options) && !logits && !x)
        return refuse(ATTEND_BAD_SHAPE, "lambda_logits",
                      text << "variant v2 has neither input \"lambda_logits\" nor input \"x\"; accepted: one of them");
    if (logits && x)
        return refuse(ATTEND_BAD_SHAPE, "x",
                      text << "inputs \"lambda_logits\" and \"x\" are both given; accepted: one of them");
    if (!first_version(options) && options.pairing == 1)
        return refuse(ATTEND_BAD_OPTION, "pairing",
                      text << "option \"pairing\" is split with variant v2; accepted: interleaved");
    if (first_version(options) && options.lambda_mode == 1 && !options.lambda.given)
        return refuse(ATTEND_BAD_OPTION, "lambda",
                      text << "option \"lambda\" is missing with lambda_mode fixed; accepted: a finite number");
    return ATTEND_OK;
}

// What the finish hook knows.
struct Difference {
    int64_t value_dim;
    double lambda, factor, eps;   // v1
    const attend_tensor* weight;  // NULL: no norm
    const attend_tensor* logits;  // v2: [B, H, Nq]

    static void finish(const void* user, const attend_finished_tile* tile) {
        const Difference& self = *static_cast<const Difference*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        float share[max_lanes], scale[max_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) share[lane] = self.lambda_of(queries, lane);
        float *values = tile->values, *other = tile->map_values[1];
        for (int64_t c = 0; c < self.value_dim; ++c)
            for (int64_t lane = 0; lane < lanes; ++lane)
                values[c * lanes + lane] -= share[lane] * other[c * lanes + lane];
        if (self.weight == nullptr) return;
        // In double: without norm_eps the size of the values drops out, however large or small it is.
        double squares[max_lanes] = {};
        for (int64_t c = 0; c < self.value_dim; ++c)
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const double value = static_cast<double>(values[c * lanes + lane]);
                squares[lane] += value * value;
            }
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const double mean = squares[lane] / static_cast<double>(self.value_dim) + self.eps;
            scale[lane] = mean == 0.0 ? 0.0f : static_cast<float>(self.factor / ::sqrt(mean));
        }
        for (int64_t c = 0; c < self.value_dim; ++c) {
            const float weight = static_cast<const float*>(self.weight->data)[c * self.weight->strides[0]];
            for (int64_t lane = 0; lane < lanes; ++lane) values[c * lanes + lane] *= scale[lane] * weight;
        }
    }

    float lambda_of(const attend_query_tile& queries, int64_t lane) const {
        if (logits == nullptr) return static_cast<float>(lambda);
        const int64_t at = queries.batch * logits->strides[0] + queries.lane_head[lane] / 2 * logits->strides[1] +
                           queries.lane_row[lane] * logits->strides[2];
        return static_cast<float>(1.0 /
                                  (1.0 + ::exp(-static_cast<double>(static_cast<const float*>(logits->data)[at]))));
    }
};

// Every second head of a tensor, or its first or second half.
attend_tensor heads_of(const attend_tensor& tensor, int64_t map, bool split, OwnTensor& own) {
    own.tensor = tensor;
    const int64_t heads = tensor.shape[1] / 2, step = split ? 1 : 2, first = split ? map * heads : map;
    for (int axis = 0; axis < tensor.ndim; ++axis) {
        own.shape[axis] = axis == 1 ? heads : tensor.shape[axis];
        own.strides[axis] = axis == 1 ? tensor.strides[1] * step : tensor.strides[axis];
    }
    own.tensor.shape = own.shape;
    own.tensor.strides = own.strides;
    own.tensor.data = static_cast<char*>(tensor.data) + first * tensor.strides[1] * (tensor.dtype_bits / 8);
    return own.tensor;
}

attend_tile_hooks hooks_of() {
    attend_tile_hooks hooks{};
    hooks.num_maps = 2;
    hooks.finish = Difference::finish;
    return hooks;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tile_hooks hooks = hooks_of();
    const attend_tensor* x = attend_find_name(&desc.bindings, "x");
    uint64_t bytes = tile_workspace(paired(options, desc), 0, 0, 0, &hooks);
    if (x)
        bytes += Carve::floats(desc.batch * desc.q_len * desc.num_q_heads / 2) +
                 projection_workspace(desc.batch, desc.q_len, x->shape[2], desc.num_q_heads / 2, desc.max_workers);
    return bytes;
}

double lambda_of(const Options& options, const attend_array& weights, double init) {
    if (options.lambda_mode == 1) return options.lambda.value;
    const auto exponent = [&](const char* a, const char* b) {
        const attend_tensor *x = attend_find_name(&weights, a), *y = attend_find_name(&weights, b);
        double sum = 0.0;
        for (int64_t d = 0; d < x->shape[0]; ++d)
            sum += static_cast<double>(static_cast<const float*>(x->data)[d * x->strides[0]]) *
                   static_cast<double>(static_cast<const float*>(y->data)[d * y->strides[0]]);
        return ::exp(sum);
    };
    return exponent("lambda_q1", "lambda_k1") - exponent("lambda_q2", "lambda_k2") + init;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const bool first = first_version(options), split = options.pairing == 1;
    Carve carve(context);
    Difference difference{desc.value_dim, 0.0, 0.0, options.norm_eps, nullptr, nullptr};
    OwnTensor logits;
    if (first) {
        const double init = options.lambda_init.given ? options.lambda_init.value
                                                      : 0.8 - 0.6 * ::exp(-0.3 * static_cast<double>(options.depth));
        difference.lambda = lambda_of(options, *args.weights, init);
        difference.factor = 1.0 - init;
        if (options.norm) difference.weight = attend_find_name(args.weights, "norm_weight");
    } else {
        difference.logits = attend_find_name(args.bindings, "lambda_logits");
        if (const attend_tensor* x = attend_find_name(args.bindings, "x")) {
            const int64_t heads = desc.num_q_heads / 2;
            Rows rows(carve.take(desc.batch * desc.q_len * heads), desc.batch, desc.q_len, heads);
            const attend_status status =
                project(x, attend_find_name(args.weights, "lambda_proj"), nullptr, &rows.tensor, carve.rest(context));
            if (status != ATTEND_OK) return status;
            describe(logits, rows.tensor, {desc.batch, heads, desc.q_len, 1}, {desc.q_len * heads, 1, heads, 1});
            difference.logits = &logits.tensor;
        }
    }

    OwnTensor queries[2], keys[2], logs[2];
    const attend_tensor* map_key[2] = {&keys[0].tensor, &keys[1].tensor};
    attend_softmax_map maps[2];
    for (int64_t map = 0; map < 2; ++map) {
        heads_of(*args.query, map, split, queries[map]);
        if (first) heads_of(*args.key, map, split, keys[map]);
        if (args.lse) heads_of(*args.lse, map, split, logs[map]);
        maps[map] = {&queries[map].tensor, args.lse ? &logs[map].tensor : nullptr,
                     split ? map * desc.num_q_heads / 2 : map, split ? 1 : 2};
    }
    attend_tile_hooks hooks = hooks_of();
    hooks.user = &difference;
    hooks.maps = maps;
    hooks.mask_heads = desc.num_q_heads;
    TileCall call(args, &queries[0].tensor, first ? &keys[0].tensor : args.key, args.value, args.output);
    if (first) call.segments[0].map_key = map_key;
    call.problem.lse = nullptr;
    call.problem.dropout_heads = desc.num_q_heads;
    call.problem.hooks = &hooks;
    return run_tiles(call, carve.rest(context));
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    softmax_cost(*args.desc, visible_pairs(*args.desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    differential,
    (described<check, workspace, forward, cost>(
        {.name = "differential-attention",
         .category = "multi-head",
         .title = "Differential attention",
         .summary = "Two softmax maps share the values and are subtracted: noise that both have cancels.",
         .reference = "Ye et al. 2024, Differential Transformer, arXiv:2410.05258",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .caps = (softmax_caps & ~uint64_t{ATTEND_CAP_SCORES_OUT}) | position_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "p1 = softmax(scale q1.k1), p2 = softmax(scale q2.k2), both over the same visible keys\n"
                    "o_i = (p1 - lambda p2) V;  variant v1: normalised per head, times 1 - lambda_init",
         .cost = "Two score products and one value product for both maps: about one and a half times dense attention, "
                 "in one sweep; memory grows with the lengths.",
         .use = "For models trained as differential transformers, whose answers depend on few relevant tokens among "
                "many. It needs weights trained for it; on an ordinary model's heads take standard-mha.",
         .example = "attend compute differential-attention --sequence-length 256 --heads 8 --set depth=3"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
