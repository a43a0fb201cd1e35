// SPDX-License-Identifier: Apache-2.0
// linear-attention: a fixed product of features in the place of exp(q k), so that keys collapse into one state.
//
// Paper    Katharopoulos et al. 2020, "Transformers are RNNs", arXiv:2006.16236; dpfp: Schlag et al. 2021, arXiv:2102.11174;
//          favor+: Choromanski et al. 2020, arXiv:2009.14794
// Formula  o_i = sum_j A_ij v_j / (sum_j A_ij + eps),  A_ij = e^{beta_j} <phi(scale q_i), phi(k_j)>, over visible keys j
//          elu: x + 1 above 0, e^x elsewhere;  relu: max(x, 0);
//          dpfp: products of r = [relu(x), relu(-x)] with itself rolled by 1 to nu;  favor+: performer-attention
// Cost     O((Nq + Nk) F Dv) with F = D (elu, relu), 2 D nu (dpfp), M or 2 M (favor+); state F (Dv + 1)
// Differs  the causal diagonal is bottom-right aligned; no 1/sqrt(D) unless scale says so; dpfp takes the paper's
//          [relu(x), relu(-x)]; features are normalised by their sum only on request, and no delta rule follows

#include "favor.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t feature_map, kernel_type, sum_normalize, normalize;
    int64_t nu;
    double eps;
    FavorOptions favor;
};

enum Map : int32_t { elu, relu, dpfp, favor_plus };
enum KernelType : int32_t { type_unset, type_elu, type_relu, type_softmax, type_exp };
constexpr const char* maps[] = {"elu", "relu", "dpfp", "favor+", nullptr};
constexpr const char* kernel_types[] = {"unset", "elu", "relu", "softmax", "exp", nullptr};

#define ATTEND_NOT_FAVOR "feature_map!=favor+ & kernel_type!=softmax"
constexpr OptionRow option_table[] = {
    option_enum(offsetof(Options, feature_map), "feature_map", "\"elu\"", maps, "features of queries and keys"),
    option_enum(offsetof(Options, kernel_type), "kernel_type", "\"unset\"", kernel_types,
                "another way to name the map: elu, relu, softmax (favor+)"),
    option_real(offsetof(Options, eps), "eps", "1e-6", {0, no_limit}, "added to the denominator",
                "normalize & " ATTEND_NOT_FAVOR),
    option_int(offsetof(Options, nu), "nu", "1", {1, 2147483647}, "products per component of dpfp, 1 to 2D-1"),
    option_bool(offsetof(Options, sum_normalize), "sum_normalize", false,
                "divide features by their sum (elu, relu, dpfp)"),
    option_bool(offsetof(Options, normalize), "normalize", true, "false: numerators, without a denominator"),
    option_maybe_real(
        offsetof(Options, favor) + offsetof(FavorOptions, scale), "scale", {-no_limit, no_limit},
        "factor of queries before the map, 1 if left out or 0; favor+: of queries times keys, then 1/sqrt(D)"),
    option_int(offsetof(Options, favor) + offsetof(FavorOptions, seed), "seed", "0", {0, uint64_limit},
               "seed of the directions of favor+",
               "feature_map=favor+ & !projection | kernel_type=softmax & !projection"),
    ATTEND_FAVOR_OPTIONS(offsetof(Options, favor)),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_REFUSED_OPTIONS,
};

#define ATTEND_BOTH_RANKS(guard) guard " & use_projection: M,D | " guard " & use_projection: Hkv,M,D"
constexpr attend_port port_table[] = {
    common::query_port(),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    weight_port("projection", ATTEND_BOTH_RANKS("feature_map=favor+") " | " ATTEND_BOTH_RANKS("kernel_type=softmax"),
                nullptr, "directions of favor+, [M,D] or one matrix per key head; left out: drawn from the seed",
                ATTEND_OPTIONAL),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    output_port(ATTEND_LSE, "lse", "B,Hq,Nq", "logarithm of the denominator, without eps", ATTEND_OPTIONAL),
};

Map map_of(const Options& options) {
    constexpr Map named[] = {elu, elu, relu, favor_plus, elu};
    return options.kernel_type == type_unset ? static_cast<Map>(options.feature_map) : named[options.kernel_type];
}

double features_of(const Options& options, const PlanArgs& args) {
    const Map map = map_of(options);
    const auto width = static_cast<double>(args.desc->head_dim);
    if (map == dpfp) return 2.0 * width * static_cast<double>(options.nu);
    if (map != favor_plus || !options.favor.use_projection) return width;
    const auto rows = static_cast<double>(
        favor::num_features(options.favor, attend_find_name(&args.desc->bindings, "projection"), args.desc->head_dim));
    return options.favor.kernel == favor::hyperbolic || options.favor.kernel == favor::trig ? 2.0 * rows : rows;
}

attend_status unread(attend_error* error, const char* name, const char* reader) {
    Message text;
    text << "option \"" << name
         << "\" is given, but the feature map does not read it; accepted: with feature_map = " << reader;
    return text.fail(error, ATTEND_BAD_OPTION, name);
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_array& values = *args.values;
    const Map map = map_of(options);
    if (const attend_status status = refuse_pairwise(args, error)) return status;
    if (options.kernel_type != type_unset && was_given(values, "feature_map"))
        return bad_option(error, "options \"kernel_type\" and \"feature_map\" both name the map; accepted: one of them",
                          "kernel_type");
    if (options.kernel_type == type_exp)
        return bad_option(error,
                          "option \"kernel_type\" is exp, which has no published definition as a feature map; "
                          "accepted: elu, relu, softmax",
                          "kernel_type");
    if (map != dpfp && was_given(values, "nu")) return unread(error, "nu", "dpfp");
    if (map == dpfp && options.nu > 2 * desc.head_dim - 1) {
        Message text;
        text << "option \"nu\" is " << options.nu << "; accepted: 1 to " << 2 * desc.head_dim - 1 << " (2D-1)";
        return text.fail(error, ATTEND_BAD_OPTION, "nu");
    }
    if (const attend_status status =
            refuse_large_state(features_of(options, args), map == dpfp ? "nu" : "num_features", args, error))
        return status;
    if (!options.normalize && map == favor_plus)
        return bad_option(
            error,
            "option \"normalize\" is false, but favor+ estimates a normalised softmax; accepted: true, or another map",
            "normalize");
    if (!options.normalize && (desc.flags & ATTEND_PLAN_NEED_LSE))
        return refuse(
            error,
            "LSE is the logarithm of a denominator, which normalize = false does without; accepted: a call without LSE",
            "lse");
    if (map == favor_plus)
        return was_given(values, "sum_normalize") ? unread(error, "sum_normalize", "elu, relu or dpfp")
                                                  : favor::check(options.favor, args, error);
    for (const char* name : favor::own_options)
        if (was_given(values, name)) return unread(error, name, "favor+");
    if (attend_find_name(&desc.bindings, "projection") != nullptr)
        return attend_fail(error, ATTEND_NOT_FOUND,
                           "weight \"projection\" is given, but only favor+ has directions; accepted: no projection",
                           "projection");
    return ATTEND_OK;
}

void apply(const Options& options, const attend_plan_desc& desc, const attend_tensor* projection, const void* drawn,
           LinearCall& call) {
    const Map map = map_of(options);
    if (map == favor_plus) return favor::apply(options.favor, desc, projection, drawn, call);
    constexpr uint32_t kinds[] = {ATTEND_FEATURES_ELU, ATTEND_FEATURES_RELU, ATTEND_FEATURES_DPFP};
    attend_feature_map& features = call.problem.features;
    features.kind = kinds[map];
    features.nu = options.nu;
    features.sum_normalize = options.sum_normalize != 0;
    if (options.favor.scale.given && options.favor.scale.value != 0.0) features.query_scale = options.favor.scale.value;
    call.problem.guard = options.normalize ? ATTEND_GUARD_ADD : ATTEND_GUARD_NUMERATOR;
    call.problem.guard_eps = options.eps;
}

bool draws(const Options& options, const PlanArgs& args) {
    return map_of(options) == favor_plus && favor::draws(options.favor, args);
}
uint64_t prepared_bytes(const Options& options, const PlanArgs& args) {
    return draws(options, args) ? favor::prepared_bytes(options.favor, args) : 0;
}
attend_status prepare(const Options& options, const PlanArgs& args, void* memory, const Context& context) {
    return favor::prepare(options.favor, args, memory, context);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    LinearCall call(args);
    apply(options, *args.desc, attend_find_name(&args.desc->bindings, "projection"), nullptr, call);
    return call.workspace(args.desc->max_workers);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    LinearCall call(args);
    apply(options, *args.desc, attend_find_name(args.weights, "projection"), args.prepared, call);
    return call.run(context);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    linear_cost(*args.desc, features_of(options, args),
                map_of(options) == favor_plus ? favor::token_flops(options.favor, args) : 0.0, cost);
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    linear,
    described<check, workspace, prepared_bytes, prepare, forward, cost, error_bound>(
        {.name = "linear-attention",
         .category = "linear",
         .title = "Linear attention",
         .summary = "Features instead of exponentials: keys collapse into a state of fixed size, read by every query.",
         .reference = "Katharopoulos et al. 2020, Transformers are RNNs, arXiv:2006.16236",
         .time = "O(n F d)",
         .space = "O(F d)",
         .caps = linear_caps,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_APPROXIMATE,
         .formula = "A_ij = exp(bias_j) phi(scale q_i).phi(k_j) over the visible keys j\n"
                    "output_i = sum_j A_ij v_j / (sum_j A_ij + eps); normalize = false: sum_j A_ij v_j\n"
                    "elu: phi(x) = x + 1 above 0, exp(x) elsewhere; relu: max(x, 0)\n"
                    "dpfp: r_t r_(t-n), n = 1 .. nu, with r = [relu(x), relu(-x)]; favor+: as performer-attention\n"
                    "sum_normalize: phi divided by the sum of its components",
         .cost = "Time grows with the length, not with its square: F (Dv + 1) multiplications per token for F features "
                 "(D, or 2 D nu with dpfp). The state of F (Dv + 1) numbers is all that decoding keeps.",
         .use =
             "For models trained with linear attention: long encoders, and generation in constant memory per token. A "
             "model trained with softmax needs an estimate of it (performer-attention, nystrom-attention) or exact "
             "attention.",
         .example = "attend compute linear-attention --sequence-length 8192 --heads 8 --causal"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
