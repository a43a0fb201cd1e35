// SPDX-License-Identifier: Apache-2.0
// soft-moe-attention: experts attend among slots, each a convex combination of all tokens; tokens read back a convex
// combination of what the slots became.
//
// Paper    Puigcerver et al. 2023, "From Sparse to Soft Mixtures of Experts", arXiv:2308.00951 (its experts are
//          feed-forward; these attend)
// Formula  z_i(e,s) = scale norm(x_i) . norm(phi_es);  u_es = sum_i softmax over tokens(z)_i x_i
//          r_e = attention of expert e among its slots;  y_i = sum_es softmax over slots(z_i)_es r_es
// Cost     2 n E s M for dispatch and for combine, E s^2 for the experts
// Differs  keys have slots of their own; epsilon is added to the sum of squares; padding takes no part in any softmax

#include "expert_call.hpp"
#include "soft_slots.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    ExpertOptions experts;
    int64_t slots_per_expert;
    double capacity_factor;
    int32_t normalize_router;
};

constexpr const char* no_rope[] = {"none", nullptr};
constexpr OptionRow option_table[] = {
    ATTEND_EXPERT_SIZES,
    // What experts with a hard router have; here only their defaults make sense.
    option_enum(offsetof(Options, experts.gate), "gate", "\"softmax\"", softmax_gate, "weights of the slots"),
    option_enum(offsetof(Options, experts.rope), "rope", "\"none\"", no_rope, "slots have no positions"),
    option_row(ATTEND_TYPE_FLOAT, 0, "rope_base", "10000", {10000, 10000}, nullptr, "slots have no positions",
               Field::none, 0, nullptr),
    option_row(ATTEND_TYPE_INT, 0, "rope_dim", "0", {0, 0}, nullptr, "slots have no positions", Field::none, 0,
               nullptr),
    option_bool(offsetof(Options, experts.router_bias), "router_bias", false, "not offered"),
    option_row(ATTEND_TYPE_FLOAT, 0, "router_noise", "0", {0, 0}, nullptr, "not offered", Field::none, 0, nullptr),
    option_bool(offsetof(Options, experts.residual), "residual", false, "add the token itself to its result"),
    option_int(offsetof(Options, slots_per_expert), "slots_per_expert", "0", {0, 1048576},
               "slots s of each expert, E s at most 2^20; 0: as many as phi has, else by capacity_factor"),
    option_real(offsetof(Options, capacity_factor), "capacity_factor", "1", {smallest_factor, no_limit},
                "slots of all experts over the number of tokens, above 0", "!slots_per_expert"),
    option_bool(offsetof(Options, normalize_router), "normalize_router", true,
                "tokens and directions of the router have unit length"),
    option_bool(offsetof(Options, experts.return_routing), "return_routing", false,
                "return the mean weight of each expert and the entropy of the combine weights"),
    common::scale("factor before softmax; left out or 0: 1/sqrt(expert_dim)"),
    common::softcap(),
    common::dropout(),
    common::seed("seed of dropout", "dropout"),
    common::rng_offset(),
    common::weight_seed(nullptr),
};

#define AUTO_SLOTS(n) "max(1,round(capacity_factor*" n "/num_experts))"
constexpr attend_port port_table[] = {
    input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "queries; the heads of a token are merged"),
    common::key_port(),
    common::value_port(),
    common::query_lengths_port(),
    common::key_lengths_port(),
    weight_port("phi",
                "slots_per_expert: Hq*D,num_experts,slots_per_expert | Hq*D,num_experts,given(SQ," AUTO_SLOTS("Nq") ")",
                "normal(0,1/sqrt(Hq*D)) as Phi", "directions of the router, one per slot [in, out]"),
    weight_port(
        "phi_k",
        "slots_per_expert: Hkv*D,num_experts,slots_per_expert | "
        "Hkv*D,num_experts,given(SK,given(SQ," AUTO_SLOTS("Nk") "))",
        "slots_per_expert & Hkv*D=Hq*D: same(phi) | "
        "Hkv*D=Hq*D & given(SQ," AUTO_SLOTS("Nk") ")=given(SQ," AUTO_SLOTS("Nq") "): same(phi) | "
                                                                                 "normal(0,1/sqrt(Hkv*D)) as PhiK",
        "the same for keys [in, out]"),
    weight_port("router_scale", "1", "ones as routerScale", "factor of the router's logits"),
    ATTEND_EXPERT_MATRICES("", ""),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    output_port(0, "routing.query.importance", "return_routing: B,num_experts",
                "mean over tokens of the combine weights of each expert"),
    output_port(0, "routing.query.entropy", "return_routing: B", "mean entropy of the combine weights"),
};

// Sizes of a call. Slots are what phi has, or what it will be made with.
struct Sizes {
    int64_t experts, heads, key_dim, value_dim, q_slots, k_slots, mq, mk, mv, mo, nq, nk;
    // Estimates have no tensors: what the weights would be made with.
    static int64_t slots_of(const Options& options, const attend_tensor* phi, int64_t tokens) {
        if (phi) return phi->shape[2];
        if (options.slots_per_expert > 0) return options.slots_per_expert;
        const double even =
            options.capacity_factor * static_cast<double>(tokens) / static_cast<double>(options.experts.num_experts);
        const double rounded = __builtin_nearbyint(even < 1048577.0 ? even : 1048577.0);
        return rounded < 1.0 ? 1 : static_cast<int64_t>(rounded);
    }
    Sizes(const Options& options, const attend_plan_desc& desc, const attend_array& weights) {
        const attend_experts x = experts_of(options.experts, desc);
        experts = x.experts, heads = x.heads, key_dim = x.key_dim, value_dim = x.value_dim;
        q_slots = slots_of(options, attend_find_name(&weights, "phi"), desc.q_len);
        k_slots = slots_of(options, attend_find_name(&weights, "phi_k"), desc.kv_len);
        mq = desc.num_q_heads * desc.head_dim, mk = desc.num_kv_heads * desc.head_dim;
        mv = desc.num_kv_heads * desc.value_dim, mo = desc.num_q_heads * desc.value_dim;
        nq = desc.q_len, nk = desc.kv_len;
    }
};

int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// One sequence after the other in the same buffers.
class SoftCall {
public:
    SoftCall(const Options& options, const attend_plan_desc& desc, const attend_array& weights, const Context& context)
        : options_(options), desc_(desc), weights_(weights), sizes_(options, desc, weights), carve_(context) {
        const Sizes& z = sizes_;
        const int64_t q_slots = z.experts * z.q_slots, k_slots = z.experts * z.k_slots;
        tokens_ = carve_.take(most(z.nq * z.mq, z.nk * z.mk));
        values_ = carve_.take(most(z.nk * z.mv, z.nq * z.mo));
        factor_ = carve_.take(most(z.nq, z.nk));
        phi_ = carve_.take(q_slots * z.mq);
        phi_k_ = carve_.take(k_slots * z.mk);
        q_mixed_ = carve_.take(q_slots * z.mq);
        k_mixed_ = carve_.take(k_slots * z.mk);
        v_mixed_ = carve_.take(k_slots * z.mv);
        q_ = carve_.take(q_slots * z.heads * z.key_dim);
        k_ = carve_.take(k_slots * z.heads * z.key_dim);
        v_ = carve_.take(k_slots * z.heads * z.value_dim);
        attended_ = carve_.take(q_slots * z.heads * z.value_dim);
        result_ = carve_.take(q_slots * z.mo);
        if (options.experts.return_routing) {
            shares_ = carve_.take(q_slots * (z.mq + z.experts));
            read_ = carve_.take(z.nq * (z.mq + z.experts));
            lse_ = carve_.take(z.nq);
        }
        context_ = carve_.rest(context);
    }

    uint64_t workspace() const {
        const Sizes& z = sizes_;
        const uint32_t workers = desc_.max_workers;
        uint64_t engines = 0;
        const auto count = [&](uint64_t bytes) { engines = bytes > engines ? bytes : engines; };
        const SlotRows q_slots{phi_, z.experts * z.q_slots}, k_slots{phi_k_, z.experts * z.k_slots};
        const TokenRows queries{tokens_, z.nq, z.mq, factor_, z.nq}, keys{tokens_, z.nk, z.mk, factor_, z.nk};
        count(dispatch(q_slots, queries, tokens_, z.mq, q_mixed_).workspace(workers));
        count(dispatch(k_slots, keys, tokens_, z.mk, k_mixed_).workspace(workers));
        count(dispatch(k_slots, keys, values_, z.mv, v_mixed_).workspace(workers));
        count(combine(q_slots, queries, result_, z.mo, values_).workspace(workers));
        count(combine(q_slots, queries, shares_, z.mq + z.experts, read_).workspace(workers));
        count(ExpertAttention(*this, 0).workspace(workers));
        const int64_t pairs[][3] = {{z.q_slots, z.mq, z.key_dim},
                                    {z.k_slots, z.mk, z.key_dim},
                                    {z.k_slots, z.mv, z.value_dim},
                                    {z.q_slots, z.heads * z.value_dim, z.mo}};
        for (const auto& [rows, in, out] : pairs)
            count(RowProduct(nullptr, rows, in, nullptr, out, 1, out, nullptr, out).workspace(workers));
        return static_cast<uint64_t>(0 - carve_.left) + engines;
    }

    // Directions of the router; the same for all sequences.
    void prepare() {
        const double scale = static_cast<double>(*static_cast<const float*>(weight("router_scale").data));
        slot_directions(weight("phi"), options_.normalize_router != 0, scale, phi_);
        slot_directions(weight("phi_k"), options_.normalize_router != 0, scale, phi_k_);
    }

    attend_status run(const ForwardArgs& args, int64_t item, int64_t queries, int64_t keys) {
        const Sizes& z = sizes_;
        const SlotRows q_slots{phi_, z.experts * z.q_slots}, k_slots{phi_k_, z.experts * z.k_slots};
        const TokenRows key_rows = rows_of(*args.key, item, keys);
        gather_rows(*args.value, item, keys, values_);
        attend_status status = dispatch(k_slots, key_rows, tokens_, z.mk, k_mixed_).run(context_);
        if (status == ATTEND_OK) status = dispatch(k_slots, key_rows, values_, z.mv, v_mixed_).run(context_);
        if (status != ATTEND_OK) return status;
        const TokenRows query_rows = rows_of(*args.query, item, queries);
        status = dispatch(q_slots, query_rows, tokens_, z.mq, q_mixed_).run(context_);
        if (status == ATTEND_OK) status = run_experts(args, item, keys);
        if (status == ATTEND_OK) status = combine(q_slots, query_rows, result_, z.mo, values_).run(context_);
        if (status != ATTEND_OK) return status;
        write_output(*args.output, item, queries);
        return options_.experts.return_routing ? report(args, item, q_slots, query_rows) : ATTEND_OK;
    }

private:
    // The experts' attention: an expert is an item of a batch, its slots are the positions.
    struct ExpertAttention {
        OwnTensor q, k, v, o;
        attend_key_segment segment;
        attend_tile_problem problem;
        ExpertAttention(const SoftCall& call, int64_t item) {
            const Sizes& z = call.sizes_;
            const auto rows = [&](OwnTensor& own, float* data, int64_t slots, int64_t width) {
                describe(own, data, z.experts, z.heads, slots, width);
                own.strides[1] = width;
                own.strides[2] = z.heads * width;
            };
            rows(q, call.q_, z.q_slots, z.key_dim);
            rows(k, call.k_, z.k_slots, z.key_dim);
            rows(v, call.v_, z.k_slots, z.value_dim);
            rows(o, call.attended_, z.q_slots, z.value_dim);
            segment = attend_key_segment{&k.tensor, &v.tensor, 0, 0, nullptr};
            problem = attend_tile_problem{};
            problem.query = &q.tensor;
            problem.segments = &segment;
            problem.num_segments = 1;
            problem.output = &o.tensor;
            problem.window_left = problem.window_right = -1;
            problem.scale =
                call.desc_.scale == 0.0 ? 1.0 / __builtin_sqrt(static_cast<double>(z.key_dim)) : call.desc_.scale;
            problem.softcap = call.desc_.softcap;
            problem.dropout = call.desc_.dropout;
            problem.dropout_heads = z.heads;
            problem.dropout_head = item * z.experts * z.heads;
        }
        ExpertAttention(const ExpertAttention&) = delete;
        ExpertAttention& operator=(const ExpertAttention&) = delete;
        uint64_t workspace(uint32_t workers) const { return ATTEND_KERNEL(attend_tile_workspace)(&problem, workers); }
    };

    const attend_tensor& weight(const char* name) const { return *attend_find_name(&weights_, name); }

    TokenRows rows_of(const attend_tensor& tokens, int64_t item, int64_t count) const {
        gather_rows(tokens, item, count, tokens_);
        length_factors(tokens_, count, row_width(tokens), options_.normalize_router != 0, factor_);
        return {tokens_, tokens.shape[2], row_width(tokens), factor_, count};
    }

    // Slots [experts * slots, in] times W[e, a], heads side by side.
    attend_status project(const float* rows, int64_t slots, const attend_tensor& w, int64_t width, float* to) const {
        const int64_t in = w.shape[2];
        for (int64_t e = 0; e < sizes_.experts; ++e)
            for (int64_t a = 0; a < sizes_.heads; ++a) {
                const RowProduct product(rows + e * slots * in, slots, in,
                                         static_cast<const float*>(w.data) + e * w.strides[0] + a * w.strides[1],
                                         w.strides[2], w.strides[3], width, to + (e * slots * sizes_.heads + a) * width,
                                         sizes_.heads * width);
                if (const attend_status status = product.run(context_)) return status;
            }
        return ATTEND_OK;
    }

    attend_status run_experts(const ForwardArgs& args, int64_t item, int64_t keys) const {
        const Sizes& z = sizes_;
        if (keys == 0) {
            for (int64_t at = 0; at < z.experts * z.q_slots * z.mo; ++at) result_[at] = 0.0f;
            return ATTEND_OK;
        }
        attend_status status = project(q_mixed_, z.q_slots, weight("wq"), z.key_dim, q_);
        if (status == ATTEND_OK) status = project(k_mixed_, z.k_slots, weight("wk"), z.key_dim, k_);
        if (status == ATTEND_OK) status = project(v_mixed_, z.k_slots, weight("wv"), z.value_dim, v_);
        if (status != ATTEND_OK) return status;
        ExpertAttention attention(*this, item);
        attention.problem.seed = args.exec->seed;
        attention.problem.rng_offset = args.exec->rng_offset;
        status = ATTEND_KERNEL(attend_tile_forward)(&attention.problem, &context_);
        const attend_tensor& wo = weight("wo");  // [E, heads, value_dim, out]
        for (int64_t e = 0; e < z.experts && status == ATTEND_OK; ++e) {
            const int64_t in = z.heads * z.value_dim;
            status = RowProduct(attended_ + e * z.q_slots * in, z.q_slots, in,
                                static_cast<const float*>(wo.data) + e * wo.strides[0], wo.strides[2], wo.strides[3],
                                z.mo, result_ + e * z.q_slots * z.mo, z.mo)
                         .run(context_);
        }
        return status;
    }

    // Padded rows are zero. The tokens still lie in their buffer.
    void write_output(const attend_tensor& output, int64_t item, int64_t queries) const {
        for (int64_t row = 0; row < output.shape[2]; ++row) {
            float* to = static_cast<float*>(output.data) + item * output.strides[0] + row * output.strides[2];
            for (int64_t m = 0; m < sizes_.mo; ++m) {
                const int64_t head = m / output.shape[3], c = m % output.shape[3];
                float value = row < queries ? values_[row * sizes_.mo + m] : 0.0f;
                if (options_.experts.residual && row < queries) value += tokens_[row * sizes_.mq + m];
                to[head * output.strides[1] + c * output.strides[3]] = value;
            }
        }
    }

    // Combine weights c of each token: their sum by expert from values that name the expert, and the entropy
    // -sum c ln c = LSE - sum c z from values that are the directions, since z = x . direction.
    attend_status report(const ForwardArgs& args, int64_t item, const SlotRows& slots, const TokenRows& tokens) const {
        const Sizes& z = sizes_;
        const int64_t width = z.mq + z.experts;
        for (int64_t slot = 0; slot < slots.count; ++slot) {
            float* row = shares_ + slot * width;
            for (int64_t m = 0; m < z.mq; ++m) row[m] = phi_[slot * z.mq + m];
            for (int64_t e = 0; e < z.experts; ++e) row[z.mq + e] = e == slot / z.q_slots ? 1.0f : 0.0f;
        }
        const auto find = [&](const char* name) {
            for (uint32_t at = 0; at < args.bindings->count; ++at)
                if (const attend_binding* binding = attend_binding_at(args.bindings, at);
                    binding->role == 0 && attend_text_equal(binding->name, name))
                    return static_cast<float*>(binding->tensor->data);
            return static_cast<float*>(nullptr);
        };
        float* importance = find("routing.query.importance") + item * z.experts;
        float* entropy = find("routing.query.entropy") + item;
        RowAttention read(tokens.data, tokens.count, slots.data, slots.count, tokens.width, shares_, width, read_,
                          TokenFactor{tokens.factor, false}, tokens.valid);
        read.with_lse(lse_);
        if (const attend_status status = read.run(context_)) return status;
        double bits = 0.0;
        for (int64_t row = 0; row < tokens.valid; ++row) {
            double score = 0.0;
            for (int64_t m = 0; m < z.mq; ++m)
                score += static_cast<double>(tokens.data[row * z.mq + m]) * static_cast<double>(read_[row * width + m]);
            bits += static_cast<double>(lse_[row]) - static_cast<double>(tokens.factor[row]) * score;
        }
        const double count = tokens.valid > 0 ? static_cast<double>(tokens.valid) : 1.0;
        *entropy = static_cast<float>(bits / count);
        for (int64_t e = 0; e < z.experts; ++e) {
            double sum = 0.0;
            for (int64_t row = 0; row < tokens.valid; ++row) sum += static_cast<double>(read_[row * width + z.mq + e]);
            importance[e] = static_cast<float>(sum / count);
        }
        return ATTEND_OK;
    }

    const Options& options_;
    const attend_plan_desc& desc_;
    const attend_array& weights_;
    Sizes sizes_;
    Carve carve_;
    Context context_{};
    float *tokens_, *values_, *factor_, *phi_, *phi_k_, *q_mixed_, *k_mixed_, *v_mixed_, *q_, *k_, *v_, *attended_,
        *result_, *shares_{nullptr}, *read_{nullptr}, *lse_{nullptr};
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    if (options.experts.router_bias)
        return attend_fail(error, ATTEND_BAD_OPTION, "option \"router_bias\" is true; accepted: false", "router_bias");
    const Sizes sizes(options, *args.desc, args.desc->bindings);
    const int64_t slots = most(sizes.q_slots, sizes.k_slots);
    if (slots < 1 || slots > 1048576 / sizes.experts)
        return (Message() << "soft-moe-attention: " << sizes.experts << " experts of " << slots
                          << " slots; accepted: at least 1 slot, and experts times slots at most 1048576")
            .fail(error, ATTEND_BAD_OPTION, "slots_per_expert");
    return check_experts(options.experts, args, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return SoftCall(options, *args.desc, args.desc->bindings, Context{}).workspace();
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    SoftCall call(options, desc, *args.weights, context);
    call.prepare();
    for (int64_t item = 0; item < desc.batch; ++item)
        if (const attend_status status = call.run(args, item, length_of(args.query_lengths, item, desc.q_len),
                                                  length_of(args.key_lengths, item, desc.kv_len)))
            return status;
    return ATTEND_OK;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const Sizes z(options, *args.desc, args.desc->bindings);
    const auto f = [](int64_t x) { return static_cast<double>(x); };
    cost_of_experts(options.experts, args, f(z.q_slots), f(z.k_slots), false, cost);
    const double b = f(args.desc->batch), e = f(z.experts);
    cost.flops +=
        2.0 * b * e *
        (f(z.nq) * f(z.q_slots) * (3.0 * f(z.mq) + f(z.mo)) + f(z.nk) * f(z.k_slots) * (3.0 * f(z.mk) + f(z.mv)));
    cost.flops -= 2.0 * b * f(z.nq) * f(z.mq) * e;  // no router beside the slots
}

}  // namespace

ATTEND_MECHANISM(
    soft_moe,
    (described<check, workspace, forward, cost>(
        {.name = "soft-moe-attention",
         .category = "moe",
         .title = "Soft mixture-of-experts attention",
         .summary =
             "Experts attend among a few slots that each mix all tokens; every token reads back a mixture of the "
             "slots. Nothing is dropped and everything is differentiable.",
         .reference = "Puigcerver et al. 2023, From Sparse to Soft Mixtures of Experts, arXiv:2308.00951",
         .time = "O(n E s M + E s^2 d)",
         .space = "O((n + E s) M)",
         .caps = ATTEND_CAP_GQA | ATTEND_CAP_MQA | ATTEND_CAP_CROSS | ATTEND_CAP_SOFTCAP | ATTEND_CAP_DROPOUT |
                 ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_NEEDS_WEIGHTS,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "z_t,es = norm(x_t) . norm(phi_es);  u_es = sum over tokens of softmax_t(z) x_t\n"
                    "r_e = attention of expert e among its slots u_e\n"
                    "y_t = sum over slots of softmax_es(z_t) r_es",
         .cost = "Mixing and reading grow with tokens times slots; the experts' attention with slots squared over the "
                 "number of experts. With slots for all tokens mixing is as dear as dense attention; fewer slots make "
                 "everything cheaper.",
         .use = "For encoders whose experts should be trained without routing decisions. Every slot sees the whole "
                "sequence, so it is not for generating text; there take moe-attention.",
         .example = "attend compute soft-moe-attention --sequence-length 256 --heads 8 --dim 32"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
