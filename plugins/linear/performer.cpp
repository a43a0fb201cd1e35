// SPDX-License-Identifier: Apache-2.0
// performer-attention: softmax attention estimated through positive random features (FAVOR+).
//
// Paper    Choromanski et al. 2020, "Rethinking Attention with Performers", arXiv:2009.14794
// Formula  o_i = sum_j phi(q_i) phi(k_j) v_j / guard(sum_j phi(q_i) phi(k_j)),  x' = sqrt(scale) x,  u = Omega x'
//          softmax: phi = M^-1/2 e^{u - |x'|^2 / 2}, and three more kernels; stabilisers as in favor.hpp
// Cost     O((Nq + Nk)(M D + F Dv)) with F = M or 2 M; state F (Dv + 1); Omega is drawn once per plan
// Differs  directions are those of a QR factorisation with a positive diagonal, so they are uniform; a matrix changes only
//          with redraw_index; the stabiliser that looks at all keys is not the default of causal calls; padded keys have no
//          part in it

#include "favor.hpp"

namespace attend::ATTEND_ISA {
namespace {

using Options = FavorOptions;

constexpr OptionRow option_table[] = {
    ATTEND_FAVOR_OPTIONS(0),
    option_maybe_real(offsetof(Options, scale), "scale", {-no_limit, no_limit},
                      "factor of queries times keys, above 0; left out or 0: 1/sqrt(D), relu: 1"),
    option_int(offsetof(Options, seed), "seed", "0", {0, uint64_limit}, "seed of the directions",
               "use_projection & !projection"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_REFUSED_OPTIONS,
};

constexpr attend_port port_table[] = {
    common::query_port(),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    weight_port("projection", "use_projection: M,D | use_projection: Hkv,M,D", nullptr,
                "directions, [M,D] or one matrix per key head; left out: drawn from the seed", ATTEND_OPTIONAL),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    output_port(ATTEND_LSE, "lse", "B,Hq,Nq", "logarithm of the estimated sum of exponentials", ATTEND_OPTIONAL),
};

double features_of(const Options& options, const PlanArgs& args) {
    if (!options.use_projection) return static_cast<double>(args.desc->head_dim);
    const auto rows = static_cast<double>(
        favor::num_features(options, attend_find_name(&args.desc->bindings, "projection"), args.desc->head_dim));
    return options.kernel == favor::hyperbolic || options.kernel == favor::trig ? 2.0 * rows : rows;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    if (const attend_status status = refuse_pairwise(args, error)) return status;
    if (const attend_status status = refuse_large_state(features_of(options, args), "num_features", args, error))
        return status;
    return favor::check(options, args, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    LinearCall call(args);
    favor::apply(options, *args.desc, attend_find_name(&args.desc->bindings, "projection"), nullptr, call);
    return call.workspace(args.desc->max_workers);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    LinearCall call(args);
    favor::apply(options, *args.desc, attend_find_name(args.weights, "projection"), args.prepared, call);
    return call.run(context);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    linear_cost(*args.desc, features_of(options, args), favor::token_flops(options, args), cost);
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    performer,
    described<check, workspace, favor::prepared_bytes, favor::prepare, forward, cost, error_bound>(
        {.name = "performer-attention",
         .category = "linear",
         .title = "Performer attention",
         .summary = "An estimate of softmax attention in linear time, unbiased, from positive random features.",
         .reference = "Choromanski et al. 2020, Rethinking Attention with Performers, arXiv:2009.14794",
         .time = "O(n M (d + dv))",
         .space = "O(M d)",
         .caps = linear_caps,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_APPROXIMATE,
         .formula =
             "x' = sqrt(scale) x, u = Omega x' with num_features rows, d = |x'|^2 / 2\n"
             "softmax: phi = exp(u - d) / sqrt(M); hyperbolic: [exp(u - d), exp(-u - d)] / sqrt(2 M)\n"
             "trig: exp(d) [cos u, sin u] / sqrt(M); relu: relu(Omega x) / sqrt(M) + kernel_eps\n"
             "output_i = sum_j phi(q_i).phi(k_j) v_j / guard(sum_j phi(q_i).phi(k_j))\n"
             "stabilizer official: features e^{-max u} phi + feature_eps, guard adds 2 denom_eps below denom_eps",
         .cost = "Time and memory grow with the length, not with its square: M (D + Dv) multiplications per token. The "
                 "error falls as 1/sqrt(num_features).",
         .use = "When a trained softmax model must run on sequences too long for it and an estimate will do. For short "
                "sequences exact attention (standard-mha) is faster and exact; for a model trained with features of "
                "its own, linear-attention is cheaper.",
         .example = "attend compute performer-attention --sequence-length 4096 --heads 8 --set num_features=128"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
