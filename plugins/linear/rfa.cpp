// SPDX-License-Identifier: Apache-2.0
// rfa-attention: random features of a Gaussian kernel on rows of length 1, with gates that forget where causal.
//
// Paper    Peng et al. 2021, "Random Feature Attention", arXiv:2103.02143
// Formula  x^ = x / |x|, u = W x^ with W = projection diag(sigma) / tau;  sincos: phi = M^-1/2 [sin u, cos u], so that
//          <phi(q), phi(k)> estimates exp(-|q^ - k^|^2 / (2 tau^2));  arccos: M^-1/2 relu(u);
//          s_t = g_t s_{t-1} + (1 - g_t) phi(k_t) v_t;  o_i = sum_j A_ij v_j / guard(sum_j A_ij)
// Cost     O((Nq + Nk)(M D + F Dv)) with F = 2 M (sincos) or M; state F (Dv + 1) + 1
// Differs  directions are normal with variance 1 / tau^2 (the paper's text has tau^2); the denominator is bounded from below
//          by what the kernel cannot fall under, where the authors' code takes 1 (compat = official); gates from the key,
//          where the paper takes the layer's input

#include <math.h>

#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "linear_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    OptionalInt num_features;
    int64_t seed, redraw_index;
    double tau;
    int32_t features, orthogonal, norms, per_head_features, compat, gating;
};

enum Gating : int32_t { ungated, gate_tensor, gate_weights };
constexpr double most_features = 2147483647.0;
constexpr const char* kinds[] = {"sincos", "arccos", nullptr};
constexpr const char* lengths[] = {"chi", "sqrtD", nullptr};
constexpr const char* compats[] = {"paper", "official", nullptr};
constexpr const char* gatings[] = {"none", "tensor", "weights", nullptr};
constexpr OptionRow option_table[] = {
    option_maybe_int(ATTEND_FIELD(num_features), {1, most_features},
                     "rows M of the projection; default: its own, else D"),
    option_enum(ATTEND_FIELD(features), "\"sincos\"", kinds,
                "sincos: a Gaussian kernel; arccos: relu of the directions"),
    option_real(ATTEND_FIELD(tau), "1.0", {4.9406564584124654e-324, 1.7976931348623157e308},
                "temperature of the kernel, above 0"),
    option_bool(ATTEND_FIELD(orthogonal), false, "orthogonal directions in blocks of D; false: independent ones",
                "!projection"),
    option_enum(ATTEND_FIELD(norms), "\"chi\"", lengths,
                "lengths of orthogonal directions: those of normal vectors, or sqrt(D)", "orthogonal & !projection"),
    option_int(ATTEND_FIELD(seed), "0", {0, uint64_limit}, "seed of the directions", "!projection"),
    option_int(ATTEND_FIELD(redraw_index), "0", {0, 16777215}, "number of the matrix in the stream of the seed",
               "!projection"),
    option_bool(ATTEND_FIELD(per_head_features), true, "a matrix of its own for each key head", "!projection"),
    option_enum(ATTEND_FIELD(compat), "\"paper\"", compats,
                "official: factor 0.1, rows x / (|x| + 1e-3), denominators of at least 1"),
    option_enum(ATTEND_FIELD(gating), "\"none\"", gatings,
                "forgetting, causal only: gates from input gates, or from the key by gate_weight and gate_bias"),
    refused::scale(),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_REFUSED_OPTIONS,
};

constexpr attend_port port_table[] = {
    common::query_port(),
    common::key_port(),
    common::value_port(),
    ATTEND_MASK_PORTS,
    input_port(0, "gates", "B,Hkv,Nk", "share of the past that stays when a key comes in, 0 to 1; with gating = tensor",
               ATTEND_OPTIONAL),
    weight_port("projection", "M,D | Hkv,M,D", nullptr,
                "directions, [M,D] or one matrix per key head; left out: drawn from the seed", ATTEND_OPTIONAL),
    weight_port("sigma", "Hkv,D", "ones", "factor of each component of the directions"),
    weight_port("gate_weight", "gating=weights: Hkv,D", "zeros as gateWeight", "gate from the key"),
    weight_port("gate_bias", "gating=weights: Hkv", "constant(4) as gateBias", "gate without a key"),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    output_port(ATTEND_LSE, "lse", "B,Hq,Nq", "logarithm of the denominator (arccos)", ATTEND_OPTIONAL),
};

bool is_causal(const attend_plan_desc& desc) { return (desc.flags & ATTEND_PLAN_CAUSAL) != 0; }
bool is_official(const Options& options) { return options.compat == 1; }
bool is_sincos(const Options& options) { return options.features == 0; }

int64_t rows_of(const Options& options, const attend_tensor* given, int64_t head_dim) {
    if (given != nullptr) return given->shape[given->ndim == 3 ? 1 : 0];
    return options.num_features.given ? options.num_features.value : head_dim;
}
int64_t rows_of(const Options& options, const PlanArgs& args) {
    return rows_of(options, attend_find_name(&args.desc->bindings, "projection"), args.desc->head_dim);
}
double features_of(const Options& options, const PlanArgs& args) {
    return (is_sincos(options) ? 2.0 : 1.0) * static_cast<double>(rows_of(options, args));
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* given = attend_find_name(&desc.bindings, "projection");
    const bool gates = attend_find_name(&desc.bindings, "gates") != nullptr;
    if (const attend_status status = refuse_pairwise(args, error)) return status;
    if (const attend_status status = refuse_scale(args, "rows have length 1, and tau is the temperature", error))
        return status;
    if (options.gating != ungated && !is_causal(desc)) {
        Message text;
        text << "option \"gating\" is " << gatings[options.gating]
             << ", but only causal rows have a past to forget; accepted: none, or causal = true";
        return text.fail(error, ATTEND_BAD_OPTION, "gating");
    }
    if (gates != (options.gating == gate_tensor)) {
        Message text;
        text << "input \"gates\" is " << (gates ? "given" : "missing") << ", but option \"gating\" is "
             << gatings[options.gating] << "; accepted: gating = tensor together with gates";
        return text.fail(error, ATTEND_NOT_FOUND, "gates");
    }
    if (is_sincos(options) && (desc.flags & ATTEND_PLAN_NEED_LSE))
        return refuse(error,
                      "LSE is not defined for features = sincos: its weights have both signs; accepted: a call without "
                      "LSE, or features = arccos",
                      "lse");
    const int64_t rows = rows_of(options, args);
    if (given != nullptr && (rows < 1 || (options.num_features.given && options.num_features.value != rows))) {
        Message text;
        text << "weight \"projection\" has " << rows << " rows; accepted: ";
        if (options.num_features.given)
            text << options.num_features.value << ", as option \"num_features\" says";
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
    return refuse_large_state(features_of(options, args), "num_features", args, error);
}

// ---- what a plan prepares: a lower bound of weights for each key head, and W = projection diag(sigma) / tau ----

uint64_t bound_bytes(const attend_plan_desc& desc) {
    return (static_cast<uint64_t>(desc.num_kv_heads) * sizeof(double) + 63) & ~uint64_t{63};
}
uint64_t prepared_bytes(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    return bound_bytes(desc) +
           static_cast<uint64_t>(desc.num_kv_heads * rows_of(options, args) * desc.head_dim) * sizeof(float);
}

attend_status draw(const Options& options, const PlanArgs& args, float* to, const Context& context) {
    attend_random_features spec{};
    spec.projection_name = "rfa-attention/projection";
    spec.norms_name = "rfa-attention/norms";
    spec.seed = static_cast<uint64_t>(options.seed);
    spec.redraw_index = static_cast<uint32_t>(options.redraw_index);
    spec.orthogonal = options.orthogonal != 0;
    spec.sqrt_norms = options.norms == 1;
    spec.slots = options.per_head_features ? args.desc->num_kv_heads : 1;
    spec.num_features = rows_of(options, args);
    spec.head_dim = args.desc->head_dim;
    const uint64_t bytes = ATTEND_KERNEL(attend_draw_scratch)(&spec) * sizeof(double);
    void* scratch = context.host->alloc(context.host, bytes, 64);
    if (scratch == nullptr)
        return attend_fail(context.error, ATTEND_OUT_OF_MEMORY, "no memory to draw the projection", "projection");
    ATTEND_KERNEL(attend_draw_features)(&spec, static_cast<double*>(scratch), to);
    context.host->release(context.host, scratch, bytes, 64);
    return ATTEND_OK;
}

attend_status prepare(const Options& options, const PlanArgs& args, void* memory, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* given = attend_find_name(&desc.bindings, "projection");
    const auto sigma = view_of<const float, 2>(attend_find_name(&desc.bindings, "sigma"));
    auto* bounds = static_cast<double*>(memory);
    auto* w = reinterpret_cast<float*>(static_cast<char*>(memory) + bound_bytes(desc));
    const int64_t rows = rows_of(options, args), width = desc.head_dim, heads = desc.num_kv_heads;
    if (given == nullptr && heads > 0)
        if (const attend_status status = draw(options, args, w, context)) return status;
    const int64_t lead = given != nullptr && given->ndim == 3 ? 1 : 0;
    // From the last head on: one drawn matrix for all heads lies where that of the first goes.
    for (int64_t head = heads - 1; head >= 0; --head) {
        double most = 0.0;
        for (int64_t d = 0; d < width; ++d) {
            const double s = sigma.present ? static_cast<double>(*sigma.at(head, d)) : 1.0;
            if (s * s > most) most = s * s;
        }
        bounds[head] = ::exp(-2.0 * most / options.tau / options.tau);
        for (int64_t m = 0; m < rows; ++m)
            for (int64_t d = 0; d < width; ++d) {
                float from = w[((options.per_head_features ? head : 0) * rows + m) * width + d];
                if (given != nullptr)
                    from =
                        static_cast<const float*>(given->data)[(lead ? head * given->strides[0] : 0) +
                                                               m * given->strides[lead] + d * given->strides[lead + 1]];
                const double s = sigma.present ? static_cast<double>(*sigma.at(head, d)) : 1.0;
                w[(head * rows + m) * width + d] = static_cast<float>(static_cast<double>(from) * s / options.tau);
            }
    }
    return ATTEND_OK;
}

void apply(const Options& options, const attend_plan_desc& desc, int64_t rows, const void* prepared, LinearCall& call) {
    attend_linear_problem& problem = call.problem;
    attend_feature_map& map = problem.features;
    const bool official = is_official(options);
    map.kind = is_sincos(options) ? ATTEND_FEATURES_SINCOS : ATTEND_FEATURES_ARCCOS;
    map.variant = official;
    map.feature_factor = official ? 0.1 : 1.0 / __builtin_sqrt(static_cast<double>(rows));
    const char* w = static_cast<const char*>(prepared);
    call.use_projection(w == nullptr ? w : w + bound_bytes(desc), desc.num_kv_heads, rows, desc.head_dim);
    problem.guard_heads = static_cast<const double*>(prepared);
    problem.guard_eps = official ? 1.0 : 1e-6;
    problem.guard = official             ? (is_causal(desc) ? ATTEND_GUARD_MAX : ATTEND_GUARD_MAX_SIZE)
                    : is_sincos(options) ? ATTEND_GUARD_WEIGHT
                                         : ATTEND_GUARD_MAX;
}

// ---- gates ----

struct GateRun {
    TensorView<const float, 4> key;
    TensorView<const float, 2> weight;
    TensorView<const float, 1> bias;
    float* to;  // [B, Hkv, Nk]
};
constexpr int64_t gates_at_once = 256;

attend_status fill_gates(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
    const GateRun& run = *static_cast<const GateRun*>(user);
    const int64_t keys = run.key.shape[2], width = run.key.shape[3];
    const int64_t blocks = (keys + gates_at_once - 1) / gates_at_once;
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        const int64_t unit = item / blocks, head = unit % run.key.shape[1], first = item % blocks * gates_at_once;
        const float* weight = run.weight.at(head);
        for (int64_t j = first; j < first + gates_at_once && j < keys; ++j) {
            const float* row = run.key.at(unit / run.key.shape[1], head, j);
            double sums[4] = {};
            for (int64_t d = 0; d < width; ++d)
                sums[d % 4] += static_cast<double>(weight[d * run.weight.strides[1]]) *
                               static_cast<double>(row[d * run.key.strides[3]]);
            run.to[unit * keys + j] =
                static_cast<float>((sums[0] + sums[1]) + (sums[2] + sums[3]) + static_cast<double>(*run.bias.at(head)));
        }
    }
    return ATTEND_OK;
}

attend_status check_gates(const ForwardArgs& args, const attend_tensor* gates, attend_error* error) {
    const auto view = view_of<const float, 3>(gates);
    for (int64_t b = 0; b < view.shape[0]; ++b) {
        const int64_t keys = args.key_lengths ? integer_at(args.key_lengths, b) : view.shape[2];
        for (int64_t h = 0; h < view.shape[1]; ++h)
            for (int64_t j = 0; j < keys; ++j) {
                const float gate = *view.at(b, h, j);
                if (gate >= 0.0f && gate <= 1.0f) continue;
                char text[200];
                ::snprintf(text, sizeof text,
                           "rfa-attention: input \"gates\" is %g at item %lld, head %lld, key %lld; accepted: 0 to 1",
                           static_cast<double>(gate), static_cast<long long>(b), static_cast<long long>(h),
                           static_cast<long long>(j));
                return attend_fail(error, ATTEND_BAD_OPTION, text, "gates");
            }
    }
    return ATTEND_OK;
}

int64_t gate_floats(const Options& options, const attend_plan_desc& desc) {
    return options.gating == gate_weights ? desc.batch * desc.num_kv_heads * desc.kv_len : 0;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    LinearCall call(args);
    apply(options, *args.desc, rows_of(options, args), nullptr, call);
    OwnTensor gates;
    if (options.gating != ungated) call.problem.gates = &gates.tensor;
    return Carve::floats(gate_floats(options, *args.desc)) + call.workspace(args.desc->max_workers);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    LinearCall call(args);
    apply(options, desc, rows_of(options, attend_find_name(args.weights, "projection"), desc.head_dim), args.prepared,
          call);
    Carve carve(context);
    OwnTensor logits;
    if (options.gating == gate_tensor) {
        call.problem.gates = attend_find_name(args.bindings, "gates");
        if (const attend_status status = check_gates(args, call.problem.gates, context.error)) return status;
    } else if (options.gating == gate_weights) {
        GateRun run{view_of<const float, 4>(args.key),
                    view_of<const float, 2>(attend_find_name(args.weights, "gate_weight")),
                    view_of<const float, 1>(attend_find_name(args.weights, "gate_bias")),
                    carve.take(gate_floats(options, desc))};
        const int64_t blocks = (desc.kv_len + gates_at_once - 1) / gates_at_once;
        const attend_status status =
            parallel_items(&context, static_cast<uint64_t>(desc.batch * desc.num_kv_heads * blocks), fill_gates, &run);
        if (status != ATTEND_OK) return status;
        describe(logits, run.to, 1, desc.batch, desc.num_kv_heads, desc.kv_len);
        logits.tensor.ndim = 3;
        logits.tensor.shape = logits.shape + 1;
        logits.tensor.strides = logits.strides + 1;
        call.problem.gates = &logits.tensor;
        call.problem.flags |= ATTEND_LINEAR_GATE_LOGITS;
    }
    const Context rest = carve.rest(context);
    return call.run(rest);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    linear_cost(*args.desc, features_of(options, args),
                2.0 * static_cast<double>(rows_of(options, args)) * static_cast<double>(args.desc->head_dim), cost);
}

double error_bound(const Options&, const PlanArgs&) { return no_limit; }

}  // namespace

ATTEND_MECHANISM(
    rfa,
    described<check, workspace, prepared_bytes, prepare, forward, cost, error_bound>(
        {.name = "rfa-attention",
         .category = "linear",
         .title = "Random feature attention",
         .summary =
             "Random features of a Gaussian kernel on directions, in linear time, with gates that forget the past.",
         .reference = "Peng et al. 2021, Random Feature Attention, arXiv:2103.02143",
         .time = "O(n M (d + dv))",
         .space = "O(M d)",
         .caps = linear_caps,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_APPROXIMATE,
         .formula = "x^ = x / max(|x|, 1e-6), u = projection diag(sigma) x^ / tau, num_features rows\n"
                    "sincos: phi = [sin u, cos u] / sqrt(M); arccos: phi = relu(u) / sqrt(M)\n"
                    "A_ij = w_ij phi(q_i).phi(k_j), w_ij = (1 - g_j) g_(j+1) ... g_i with gates, else 1\n"
                    "output_i = sum_j A_ij v_j / max(sum_j A_ij, L_i), L_i = sum_j w_ij exp(-2 max sigma^2 / tau^2)",
         .cost = "As performer-attention: M (D + 2 Dv) multiplications per token and a sine and a cosine per feature. "
                 "Gates "
                 "cost next to nothing.",
         .use = "For models trained with it, and where old keys shall fade: gates make the state forget at a rate that "
                "the "
                "data decide. As an estimate of softmax attention on rows of length 1 at temperature tau^2; "
                "performer-attention estimates it for rows of any length.",
         .example = "attend compute rfa-attention --sequence-length 4096 --heads 8 --causal --set gating=weights"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
