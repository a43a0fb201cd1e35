// SPDX-License-Identifier: Apache-2.0
// Random features of the softmax kernel (FAVOR+) as options: performer-attention, and linear-attention with
// feature_map = favor+, which is the same in every respect.
#pragma once

#include "linear_call.hpp"

namespace attend::ATTEND_ISA {

struct FavorOptions {
    OptionalInt num_features, num_random_features;
    OptionalReal scale;
    int64_t seed, redraw_index;
    double feature_eps, kernel_eps, denom_eps;
    int32_t kernel, orthogonal, norms, per_head_features, stabilizer, use_projection, redraw;
};

namespace favor {

enum Kernel : int32_t { softmax, hyperbolic, trig, relu };
enum Stabilizer : int32_t { automatic, official, exact };
inline constexpr const char* kernels[] = {"softmax", "hyperbolic", "trig", "relu", nullptr};
inline constexpr const char* stabilizers[] = {"auto", "official", "exact", nullptr};
inline constexpr const char* norms[] = {"chi", "sqrtD", nullptr};
inline constexpr double most_features = 2147483647.0;

// Rows of the option table; `at` is the offset of the FavorOptions in the mechanism's Options. Scale and seed have rows of
// the mechanism's own.
#define ATTEND_FAVOR_OPTIONS(at)                                                                                       \
    option_maybe_int((at) + offsetof(FavorOptions, num_features), "num_features", {1, favor::most_features},           \
                     "rows M of the projection; default: its own, else D ln D rounded down", "use_projection"),        \
        option_maybe_int((at) + offsetof(FavorOptions, num_random_features), "num_random_features",                    \
                         {1, favor::most_features}, "another name of num_features", "use_projection"),                 \
        option_enum((at) + offsetof(FavorOptions, kernel), "kernel", "\"softmax\"", favor::kernels,                    \
                    "softmax: e^u; hyperbolic: e^u and e^-u; trig: cos u and sin u; relu: no estimate of softmax"),    \
        option_bool((at) + offsetof(FavorOptions, orthogonal), "orthogonal", true,                                     \
                    "orthogonal directions in blocks of D; false: independent ones", "use_projection & !projection"),  \
        option_row(ATTEND_TYPE_BOOL, 0, "orthogonal_features", nullptr, {0, 1}, nullptr, "another name of orthogonal", \
                   Field::none, 0, "use_projection & !projection"),                                                    \
        option_enum((at) + offsetof(FavorOptions, norms), "norms", "\"chi\"", favor::norms,                            \
                    "lengths of orthogonal directions: those of normal vectors, or sqrt(D)",                           \
                    "use_projection & orthogonal & !projection"),                                                      \
        option_int((at) + offsetof(FavorOptions, redraw_index), "redraw_index", "0", {0, 16777215},                    \
                   "number of the matrix in the stream of the seed", "use_projection & !projection"),                  \
        option_bool((at) + offsetof(FavorOptions, redraw), "redraw", false, "not offered: step redraw_index"),         \
        option_bool((at) + offsetof(FavorOptions, per_head_features), "per_head_features", false,                      \
                    "a matrix of its own for each key head", "use_projection & !projection"),                          \
        option_enum((at) + offsetof(FavorOptions, stabilizer), "stabilizer", "\"auto\"", favor::stabilizers,           \
                    "official: e^-max u of row and keys, with epsilons; exact: running references, none; auto: exact " \
                    "if causal",                                                                                       \
                    "kernel!=relu"),                                                                                   \
        option_real((at) + offsetof(FavorOptions, feature_eps), "feature_eps", "1e-6", {0, no_limit},                  \
                    "added to each exponential by the official stabilizer", "kernel!=relu & kernel!=trig"),            \
        option_real((at) + offsetof(FavorOptions, kernel_eps), "kernel_eps", "1e-3", {0, no_limit},                    \
                    "added to each relu feature", "kernel=relu"),                                                      \
        option_bool((at) + offsetof(FavorOptions, use_projection), "use_projection", true,                             \
                    "false: relu of the input itself"),                                                                \
        option_real((at) + offsetof(FavorOptions, denom_eps), "denom_eps", "1e-6", {0, no_limit},                      \
                    "denominators not above this in size get twice this added (official, relu)",                       \
                    "kernel=relu | stabilizer=official | stabilizer=auto & !causal")

inline const char* const own_options[] = {
    "num_features", "num_random_features", "kernel",         "orthogonal",        "orthogonal_features",
    "norms",        "redraw_index",        "redraw",         "per_head_features", "stabilizer",
    "feature_eps",  "kernel_eps",          "use_projection", "denom_eps"};

inline bool is_causal(const attend_plan_desc& desc) { return (desc.flags & ATTEND_PLAN_CAUSAL) != 0; }
inline bool is_exact(const FavorOptions& options, const attend_plan_desc& desc) {
    return options.stabilizer == exact || (options.stabilizer == automatic && is_causal(desc));
}
inline bool is_orthogonal(const FavorOptions& options, const attend_array& values) {
    const attend_value* alias = attend_find_option(&values, "orthogonal_features");
    return alias != nullptr && alias->type != 0 ? alias->u.i != 0 : options.orthogonal != 0;
}

// M: of the caller's matrix, as asked for, or D ln D.
inline int64_t num_features(const FavorOptions& options, const attend_tensor* given, int64_t head_dim) {
    if (given != nullptr) return given->shape[given->ndim == 3 ? 1 : 0];
    if (options.num_features.given) return options.num_features.value;
    if (options.num_random_features.given) return options.num_random_features.value;
    const double width = static_cast<double>(head_dim);
    const auto rows = static_cast<int64_t>(__builtin_floor(width * __builtin_log(width)));
    return rows < 1 ? 1 : rows;
}

inline attend_status check(const FavorOptions& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* given = attend_find_name(&desc.bindings, "projection");
    if (options.redraw)
        return bad_option(error,
                          "option \"redraw\" is true, but matrices that change between calls are not reproducible; "
                          "accepted: false, and the next redraw_index",
                          "redraw");
    if (options.num_features.given && options.num_random_features.given)
        return bad_option(
            error,
            "options \"num_features\" and \"num_random_features\" are the same one, given twice; accepted: one of them",
            "num_random_features");
    if (was_given(*args.values, "orthogonal") && was_given(*args.values, "orthogonal_features"))
        return bad_option(
            error,
            "options \"orthogonal\" and \"orthogonal_features\" are the same one, given twice; accepted: one of them",
            "orthogonal_features");
    if (options.scale.given && options.scale.value < 0.0)
        return refuse_value(error, ATTEND_BAD_OPTION, "scale", options.scale.value,
                            "its root multiplies queries and keys; accepted: above 0, or 0 for 1/sqrt(D)");
    if (!options.use_projection && options.kernel != relu)
        return bad_option(error,
                          "option \"use_projection\" is false, but only the relu kernel does without directions; "
                          "accepted: true, or kernel = relu",
                          "use_projection");
    if (is_exact(options, desc) && options.feature_eps > 0.0 && was_given(*args.values, "feature_eps"))
        return refuse_value(error, ATTEND_BAD_OPTION, "feature_eps", options.feature_eps,
                            "the stabilizer in force is exact and adds nothing; accepted: 0, or stabilizer = official");
    if (options.kernel == trig && (desc.flags & ATTEND_PLAN_NEED_LSE))
        return refuse(error,
                      "LSE is not defined for kernel = trig: its weights have both signs; accepted: a call without "
                      "LSE, or another kernel",
                      "lse");
    if (!options.use_projection && given != nullptr)
        return attend_fail(error, ATTEND_NOT_FOUND,
                           "weight \"projection\" is given, but use_projection is false; accepted: no projection",
                           "projection");
    const int64_t rows = num_features(options, given, desc.head_dim);
    const OptionalInt& asked = options.num_features.given ? options.num_features : options.num_random_features;
    if (given != nullptr && (rows < 1 || (asked.given && asked.value != rows))) {
        Message text;
        text << "weight \"projection\" has " << rows << " rows; accepted: ";
        if (asked.given)
            text << asked.value << ", as option \"num_features\" says";
        else
            text << "at least 1";
        return text.fail(error, ATTEND_NOT_FOUND, "projection");
    }
    if (static_cast<double>(rows) * static_cast<double>(desc.head_dim) * static_cast<double>(desc.num_kv_heads) >
        0x1p40) {
        Message text;
        text << "num_features is " << rows
             << ": the matrix of M x D numbers is too large; accepted: M D Hkv up to 2^40";
        return text.fail(error, ATTEND_LIMIT, "num_features");
    }
    return ATTEND_OK;
}

// ---- the matrix, drawn once per plan when the caller brings none ----

inline int64_t slots(const FavorOptions& options, const attend_plan_desc& desc) {
    return options.per_head_features ? desc.num_kv_heads : 1;
}
inline bool draws(const FavorOptions& options, const PlanArgs& args) {
    return options.use_projection && attend_find_name(&args.desc->bindings, "projection") == nullptr;
}
inline uint64_t prepared_bytes(const FavorOptions& options, const PlanArgs& args) {
    if (!draws(options, args)) return 0;
    const attend_plan_desc& desc = *args.desc;
    return static_cast<uint64_t>(slots(options, desc) * num_features(options, nullptr, desc.head_dim) * desc.head_dim) *
           sizeof(float);
}
inline attend_status prepare(const FavorOptions& options, const PlanArgs& args, void* memory, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    attend_random_features spec{};
    spec.projection_name = "performer-attention/projection";
    spec.norms_name = "performer-attention/norms";
    spec.seed = static_cast<uint64_t>(options.seed);
    spec.redraw_index = static_cast<uint32_t>(options.redraw_index);
    spec.orthogonal = is_orthogonal(options, *args.values);
    spec.sqrt_norms = options.norms == 1;
    spec.slots = slots(options, desc);
    spec.num_features = num_features(options, nullptr, desc.head_dim);
    spec.head_dim = desc.head_dim;
    const uint64_t bytes = ATTEND_KERNEL(attend_draw_scratch)(&spec) * sizeof(double);
    void* scratch = context.host->alloc(context.host, bytes, 64);
    if (scratch == nullptr)
        return attend_fail(context.error, ATTEND_OUT_OF_MEMORY, "no memory to draw the projection", "projection");
    ATTEND_KERNEL(attend_draw_features)(&spec, static_cast<double*>(scratch), static_cast<float*>(memory));
    context.host->release(context.host, scratch, bytes, 64);
    return ATTEND_OK;
}

// Features and guard of a call. `given` is the caller's matrix or NULL, `drawn` what prepare made.
inline void apply(const FavorOptions& options, const attend_plan_desc& desc, const attend_tensor* given,
                  const void* drawn, LinearCall& call) {
    constexpr uint32_t kinds[] = {ATTEND_FEATURES_SOFTMAX, ATTEND_FEATURES_HYPERBOLIC, ATTEND_FEATURES_TRIG,
                                  ATTEND_FEATURES_PROJECTED_RELU};
    attend_linear_problem& problem = call.problem;
    attend_feature_map& map = problem.features;
    const bool is_relu = options.kernel == relu, is_official = !is_exact(options, desc);
    map.kind = kinds[options.kernel];
    map.official = !is_relu && is_official;
    map.feature_eps = is_official ? options.feature_eps : 0.0;
    map.kernel_eps = options.kernel_eps;
    const bool scaled = options.scale.given && options.scale.value != 0.0;
    const double scale = scaled    ? options.scale.value
                         : is_relu ? 1.0
                                   : 1.0 / __builtin_sqrt(static_cast<double>(desc.head_dim));
    map.query_scale = map.key_scale = __builtin_sqrt(scale);
    problem.guard = is_relu || is_official ? ATTEND_GUARD_SHIFT : ATTEND_GUARD_NONE;
    problem.guard_eps = options.denom_eps;
    if (!options.use_projection) return;
    if (given != nullptr)
        call.use_projection(*given);
    else
        call.use_projection(drawn, slots(options, desc), num_features(options, nullptr, desc.head_dim), desc.head_dim);
}

// Multiplications and additions of u and of the norms, per token.
inline double token_flops(const FavorOptions& options, const PlanArgs& args) {
    if (!options.use_projection) return 0.0;
    const attend_plan_desc& desc = *args.desc;
    const auto rows =
        static_cast<double>(num_features(options, attend_find_name(&desc.bindings, "projection"), desc.head_dim));
    return 2.0 * (rows + 1.0) * static_cast<double>(desc.head_dim);
}

}  // namespace favor

}  // namespace attend::ATTEND_ISA
