// SPDX-License-Identifier: Apache-2.0
// What mechanisms that route tokens to experts share: the ports of the routing report, the lists of a call, and the
// report itself.
#pragma once

#include "attend/author/dynamic_rows.hpp"
#include "attend/author/tile.hpp"
#include "attend/toolkit/routing.h"

// Ports routing.<side>.<field>; `guard` says when they exist, `rows` bounds the number of assignments.
#define ATTEND_ROUTING_PORTS(side, name, guard, rows, n)                                                              \
    output_port(0, "routing." side ".assignments", guard ": upto(" rows "),3", "(item, expert, token) of the " name,  \
                0, ATTEND_I32),                                                                                       \
        output_port(0, "routing." side ".gates", guard ": upto(" rows ")", "gate of each assignment"),                \
        output_port(0, "routing." side ".counts", guard ": B,num_experts", name " of each expert", 0, ATTEND_I32),    \
        output_port(0, "routing." side ".load", guard ": B,num_experts", "share of the assignments"),                 \
        output_port(0, "routing." side ".importance", guard ": B,num_experts", "mean router probability"),            \
        output_port(0, "routing." side ".balance_loss", guard ": B", "E sum_e load importance; 1 when balanced"),     \
        output_port(0, "routing." side ".cv2", guard ": B", "squared coefficient of variation of the gate sums"),     \
        output_port(0, "routing." side ".z_loss", guard ": B", "mean squared logsumexp of the logits"),               \
        output_port(0, "routing." side ".entropy", guard ": B", "mean entropy of the router"),                        \
        output_port(0, "routing." side ".max_load", guard ": B", "largest count over the mean count"),                \
        output_port(0, "routing." side ".dropped_fraction", guard ": B", "dropped over chosen"),                      \
        output_port(0, "routing." side ".capacity", guard ": B", "most members of an expert; 0: any", 0, ATTEND_I32), \
        output_port(0, "routing." side ".dropped", guard ": B", "assignments dropped", 0, ATTEND_I32),                \
        output_port(0, "routing." side ".unassigned", guard ": B", name " that no expert chose", 0, ATTEND_I32),      \
        output_port(0, "routing." side ".empty_experts", guard ": B", "experts without " name, 0, ATTEND_I32)

namespace attend::ATTEND_ISA {

// Assignments of both sides in the workspace.
struct RoutingLists {
    attend_assignment query, key;
    // `each`: most experts of a token.
    RoutingLists(const attend_plan_desc& desc, int64_t experts, int64_t each, Carve& carve) {
        take(query, desc.q_len, experts, each, carve);
        take(key, desc.kv_len, experts, each, carve);
    }
    static void take(attend_assignment& to, int64_t tokens, int64_t experts, int64_t each, Carve& carve) {
        to.logits = carve.take(tokens * experts);
        to.gates = carve.take(tokens * each);
        to.members = reinterpret_cast<int32_t*>(carve.take(tokens * each));
        to.first = reinterpret_cast<int32_t*>(carve.take(experts + 1));
        to.counts = reinterpret_cast<int32_t*>(carve.take(experts));
        to.gate_sums = reinterpret_cast<double*>(carve.take(2 * experts));
        to.scratch = reinterpret_cast<uint32_t*>(carve.take(tokens));
        to.num_tokens = 0;
    }
};

// Workspace of the experts, from sizes alone.
inline uint64_t experts_workspace(attend_experts experts) {
    const attend_plan_desc& desc = *experts.desc;
    OwnTensor query, key, value, output;
    describe(query, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.head_dim);
    describe(key, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.head_dim);
    describe(value, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.value_dim);
    describe(output, nullptr, desc.batch, desc.num_q_heads, desc.q_len, desc.value_dim);
    experts.query = &query.tensor;
    experts.key = &key.tensor;
    experts.value = &value.tensor;
    experts.output = &output.tensor;
    return ATTEND_KERNEL(attend_experts_workspace)(&experts, desc.max_workers);
}

// Tensors, weights and seeds of a call.
inline void bind_experts(attend_experts& experts, const ForwardArgs& args) {
    experts.query = args.query;
    experts.key = args.key;
    experts.value = args.value;
    experts.output = args.output;
    experts.mask = args.mask;
    experts.bias = args.bias;
    experts.wq = attend_find_name(args.weights, "wq");
    experts.wk = attend_find_name(args.weights, "wk");
    experts.wv = attend_find_name(args.weights, "wv");
    experts.wo = attend_find_name(args.weights, "wo");
    experts.seed = args.exec->seed;
    experts.rng_offset = args.exec->rng_offset;
}

inline int64_t length_of(const attend_tensor* lengths, int64_t item, int64_t extent) {
    if (!lengths) return extent;
    const int64_t at = item * lengths->strides[0];
    return lengths->dtype_bits == 32 ? static_cast<const int32_t*>(lengths->data)[at]
                                     : static_cast<const int64_t*>(lengths->data)[at];
}

// Writes the outputs `routing.<side>.*` of one item, if they were asked for; rows counts the assignments written.
inline void report_routing(const ForwardArgs& args, const attend_router& router, const attend_assignment& assignment,
                           const char* side, int64_t item, int64_t& rows) {
    const auto output = [&](const char* field) -> const attend_tensor* {
        for (uint32_t at = 0; at < args.bindings->count; ++at) {
            const attend_binding* binding = attend_binding_at(args.bindings, at);
            const char* name = binding->name;
            if (binding->role != 0 || name[0] != 'r' || name[7] != '.' || name[8] != side[0]) continue;
            if (attend_text_equal(name + 9 + attend_text_length(side), field)) return binding->tensor;
        }
        return nullptr;
    };
    const attend_tensor* assignments = output("assignments");
    if (!assignments) return;
    const int64_t experts = router.experts;
    const auto floats = [&](const char* field) { return static_cast<float*>(output(field)->data); };
    const auto ints = [&](const char* field) { return static_cast<int32_t*>(output(field)->data); };
    attend_routing_report r{};
    r.counts = ints("counts") + item * experts;
    r.load = floats("load") + item * experts;
    r.importance = floats("importance") + item * experts;
    ATTEND_KERNEL(attend_report_routing)(&router, &assignment, &r);
    floats("balance_loss")[item] = r.balance_loss;
    floats("cv2")[item] = r.cv2;
    floats("z_loss")[item] = r.z_loss;
    floats("entropy")[item] = r.entropy;
    floats("max_load")[item] = r.max_load;
    floats("dropped_fraction")[item] = r.dropped_fraction;
    ints("capacity")[item] = r.capacity;
    ints("dropped")[item] = r.dropped;
    ints("unassigned")[item] = r.unassigned;
    ints("empty_experts")[item] = r.empty_experts;
    auto* triples = static_cast<int32_t*>(assignments->data);
    for (int64_t e = 0; e < experts; ++e)
        for (int32_t at = assignment.first[e]; at < assignment.first[e + 1]; ++at, ++rows) {
            triples[3 * rows] = static_cast<int32_t>(item);
            triples[3 * rows + 1] = static_cast<int32_t>(e);
            triples[3 * rows + 2] = assignment.members[at];
            floats("gates")[rows] = assignment.gates[at];
        }
}

}  // namespace attend::ATTEND_ISA
