// SPDX-License-Identifier: Apache-2.0
// What the mechanisms on the linear engine share: refusing what acts on single scores, and the way from a call to the
// engine's problem.
#pragma once

#include <stdio.h>

#include "attend/author/mechanism.hpp"
#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/linear.h"

namespace attend::ATTEND_ISA {

inline attend_status refuse(attend_error* error, const char* text, const char* where) {
    return attend_fail(error, ATTEND_UNSUPPORTED, text, where);
}
inline attend_status bad_option(attend_error* error, const char* text, const char* where) {
    return attend_fail(error, ATTEND_BAD_OPTION, text, where);
}

// What every mechanism on the linear engine can do.
inline constexpr uint64_t linear_caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_MASK | ATTEND_CAP_BIAS | ATTEND_CAP_GQA |
                                        ATTEND_CAP_MQA | ATTEND_CAP_CROSS | ATTEND_CAP_LSE_OUT | ATTEND_CAP_DECODE |
                                        ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS;

// Options of softmax attention that are listed only to be refused with a reason.
namespace refused {
constexpr Range any{-1, 9007199254740992.0};
constexpr OptionRow softcap() {
    return common::resolved(ATTEND_TYPE_FLOAT, "softcap", "0", {0, no_limit}, "not offered: it bends single scores");
}
constexpr OptionRow dropout() {
    return common::resolved(ATTEND_TYPE_FLOAT, "dropout", "0", {0, 0.99999999999999988},
                            "not offered: there is no matrix of weights");
}
constexpr OptionRow window_size() {
    return common::resolved(ATTEND_TYPE_INT, "window_size", "0", {0, any.max},
                            "not offered: a window does not factorise");
}
constexpr OptionRow scale() {
    return common::resolved(ATTEND_TYPE_FLOAT, "scale", nullptr, {-no_limit, no_limit},
                            "not offered: no factor comes before features");
}
constexpr OptionRow window_left() {
    return common::resolved(ATTEND_TYPE_INT, "window_left", "-1", any, "not offered, as window_size");
}
constexpr OptionRow window_right() {
    return common::resolved(ATTEND_TYPE_INT, "window_right", "-1", any, "not offered, as window_size");
}
}  // namespace refused
#define ATTEND_REFUSED_WINDOWS refused::window_size(), refused::window_left(), refused::window_right()
#define ATTEND_REFUSED_OPTIONS refused::softcap(), ATTEND_REFUSED_WINDOWS, refused::dropout()

// `option "name" is value, but why; accepted: what`
inline attend_status refuse_value(attend_error* error, attend_status status, const char* name, double value,
                                  const char* rest) {
    char text[400];
    ::snprintf(text, sizeof text, "option \"%s\" is %g, but %s", name, value, rest);
    return attend_fail(error, status, text, name);
}

// Nothing that depends on a query and a key together factorises over features. Softmax over compressed keys has scores
// and weights of its own, so that softcap and dropout are welcome.
inline attend_status refuse_pairwise(const PlanArgs& args, attend_error* error, bool has_scores = false) {
    const attend_plan_desc& desc = *args.desc;
    if (desc.softcap > 0.0 && !has_scores)
        return refuse_value(error, ATTEND_UNSUPPORTED, "softcap", desc.softcap,
                            "it bends single scores, which are never formed here; accepted: 0, or a softmax mechanism "
                            "such as flash-attention-v2");
    for (const char* name : {"window_size", "window_left", "window_right"}) {
        const attend_value* value = attend_find_option(args.values, name);
        if (value == nullptr || value->type == 0 || value->u.i == (value->name[7] == 's' ? 0 : -1)) continue;
        return refuse_value(
            error, ATTEND_UNSUPPORTED, name, static_cast<double>(value->u.i),
            "a window depends on query and key together, which does not factorise; accepted: none, or local-attention");
    }
    if (desc.dropout > 0.0 && !has_scores)
        return refuse_value(error, ATTEND_UNSUPPORTED, "dropout", desc.dropout,
                            "there is no matrix of weights to drop from; accepted: 0, or a softmax mechanism such as "
                            "flash-attention-v2");
    for (const uint32_t role : {ATTEND_MASK, ATTEND_BIAS}) {
        const attend_tensor* tensor = attend_find(&desc.bindings, role);
        if (tensor == nullptr || tensor->ndim != 4 || tensor->shape[2] == 1) continue;
        const char* name = role == ATTEND_MASK ? "mask" : "bias";
        Message text;
        text << name << " has " << tensor->shape[2]
             << " rows of queries, but only what belongs to keys alone factorises; accepted: 1 row ([Nk] or "
             << "[B,1,1,Nk]), or a mechanism that takes it, such as flash-attention-v2";
        return text.fail(error, ATTEND_UNSUPPORTED, name);
    }
    return ATTEND_OK;
}

// For mechanisms without a factor before their features; 0 says the same as leaving it out.
inline attend_status refuse_scale(const PlanArgs& args, const char* why, attend_error* error) {
    const attend_value* value = attend_find_option(args.values, "scale");
    if (value == nullptr || value->type == 0 || value->u.f == 0.0) return ATTEND_OK;
    char text[200];
    ::snprintf(text, sizeof text, "there is no such factor here: %s; accepted: none", why);
    return refuse_value(error, ATTEND_UNSUPPORTED, "scale", value->u.f, text);
}

// A state of F x Dv numbers must be addressable. `where` is the option that decides F.
inline attend_status refuse_large_state(double features, const char* where, const PlanArgs& args, attend_error* error) {
    if (features * static_cast<double>(args.desc->value_dim) <= 0x1p40) return ATTEND_OK;
    Message text;
    text << "a state of F x Dv numbers with Dv = " << args.desc->value_dim
         << " is too large; accepted: F Dv up to 2^40";
    return text.fail(error, ATTEND_LIMIT, where);
}

// A problem and the tensors that it points to. Must not move once filled.
struct LinearCall {
    attend_linear_problem problem{};

    // Of a plan: shapes alone, for the workspace.
    explicit LinearCall(const PlanArgs& args) {
        const attend_plan_desc& desc = *args.desc;
        describe(query_, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.head_dim);
        describe(key_, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.head_dim);
        describe(value_, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.value_dim);
        problem.query = &query_.tensor;
        problem.key = &key_.tensor;
        problem.value = &value_.tensor;
        problem.mask = attend_find(&desc.bindings, ATTEND_MASK);
        problem.bias = attend_find(&desc.bindings, ATTEND_BIAS);
        set(desc);
    }
    explicit LinearCall(const ForwardArgs& args) {
        problem.query = args.query;
        problem.key = args.key;
        problem.value = args.value;
        problem.output = args.output;
        problem.lse = args.lse;
        problem.mask = args.mask;
        problem.bias = args.bias;
        problem.query_lengths = args.query_lengths;
        problem.key_lengths = args.key_lengths;
        set(*args.desc);
    }
    LinearCall(const LinearCall&) = delete;
    LinearCall& operator=(const LinearCall&) = delete;

    // A matrix of directions: [M, D] or [slots, M, D] of the caller, or one that prepare drew.
    void use_projection(const attend_tensor& given) {
        const int lead = given.ndim == 3 ? 1 : 0;
        set_projection(given.data, {lead ? given.shape[0] : 1, given.shape[lead], given.shape[lead + 1]},
                       {lead ? given.strides[0] : 0, given.strides[lead], given.strides[lead + 1]});
    }
    void use_projection(const void* drawn, int64_t slots, int64_t rows, int64_t width) {
        set_projection(const_cast<void*>(drawn), {slots, rows, width}, {rows * width, width, 1});
    }

    uint64_t workspace(uint32_t max_workers) const {
        return ATTEND_KERNEL(attend_linear_workspace)(&problem, max_workers);
    }
    attend_status run(const Context& context) const { return ATTEND_KERNEL(attend_linear_forward)(&problem, &context); }

private:
    void set(const attend_plan_desc& desc) {
        problem.flags = ((desc.flags & ATTEND_PLAN_CAUSAL) ? ATTEND_LINEAR_CAUSAL : 0u) |
                        ((desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) ? ATTEND_LINEAR_OFFSET_PER_ITEM : 0u);
        problem.causal_offset = desc.causal_offset;
        problem.features.query_scale = problem.features.key_scale = 1.0;
        problem.guard = ATTEND_GUARD_NONE;
    }
    void set_projection(void* data, const int64_t (&shape)[3], const int64_t (&strides)[3]) {
        describe(projection_, static_cast<float*>(data), shape[0], shape[1], shape[2], 1);
        for (int axis = 0; axis < 3; ++axis) projection_.strides[axis] = strides[axis];
        projection_.tensor.ndim = 3;
        problem.features.projection = &projection_.tensor;
    }
    OwnTensor query_, key_, value_, projection_;
};

// Features, sums over keys and reads by queries: each token meets F (Dv + 1) numbers of the state once.
inline void linear_cost(const attend_plan_desc& desc, double features, double token_flops, attend_cost& cost) {
    const auto b = static_cast<double>(desc.batch), d = static_cast<double>(desc.head_dim),
               dv = static_cast<double>(desc.value_dim);
    const double queries = b * static_cast<double>(desc.num_q_heads) * static_cast<double>(desc.q_len);
    const double keys = b * static_cast<double>(desc.num_kv_heads) * static_cast<double>(desc.kv_len);
    cost.flops = (queries + keys) * (token_flops + 2.0 * features * (dv + 1.0));
    cost.bytes = 4.0 * (queries + keys) * (d + dv);
}

}  // namespace attend::ATTEND_ISA
