// SPDX-License-Identifier: Apache-2.0
// What the identities of attention experts share: weights, routing reports taken apart, and the sum of experts built from
// plain attention calls.
#pragma once

#include <set>

#include "identities/identities.hpp"

namespace identities {

struct ExpertSizes {
    std::int64_t experts{4}, heads{1}, dim{8}, value_dim{8};
};

inline ForwardResult call(const ForwardInputs& inputs, const std::string& mechanism, NamedValues options = {}) {
    return run(service(), inputs, mechanism, std::move(options));
}
inline NamedValues with(NamedValues options, NamedValues more) {
    options.insert(options.end(), more.begin(), more.end());
    return options;
}
inline NamedValues options_of(const ExpertSizes& sizes, NamedValues more = {}) {
    return with({{"num_experts", sizes.experts},
                 {"expert_heads", sizes.heads},
                 {"expert_dim", sizes.dim},
                 {"expert_value_dim", sizes.value_dim},
                 {"return_routing", true}},
                std::move(more));
}

// Self-attention on random tokens, with random weights of moderate size.
inline ForwardInputs self_inputs(Random& random, const Shape& shape) {
    ForwardInputs inputs;
    inputs.query = normal(random, {shape.batch, shape.heads, shape.q_len, shape.head_dim});
    inputs.key = inputs.query;
    inputs.value = inputs.query;
    return inputs;
}
inline Tensor scaled(const Tensor& from, double factor) {
    return mapped(from, [factor](float x) { return static_cast<float>(factor) * x; });
}
inline void add_weights(ForwardInputs& inputs, Random& random, const ExpertSizes& s, bool shared_kv = false) {
    const auto width = [](const Tensor& x) { return x.shape[1] * x.shape[3]; };
    const std::int64_t mq = width(inputs.query), mk = width(*inputs.key), mv = width(*inputs.value),
                       mo = inputs.query.shape[1] * inputs.value->shape[3], kv = shared_kv ? 1 : s.experts;
    const auto weight = [&](std::vector<std::int64_t> shape, std::int64_t in) {
        return scaled(normal(random, std::move(shape)), 1.0 / std::sqrt(static_cast<double>(in)));
    };
    inputs.weights = {{"wr", weight({mq, s.experts}, 1)},
                      {"wq", weight({s.experts, s.heads, mq, s.dim}, mq)},
                      {"wk", weight({kv, s.heads, mk, s.dim}, mk)},
                      {"wv", weight({kv, s.heads, mv, s.value_dim}, mv)},
                      {"wo", weight({s.experts, s.heads, s.value_dim, mo}, s.heads * s.value_dim)}};
}
inline Tensor& weight_of(ForwardInputs& inputs, const std::string& name) {
    for (auto& [given, tensor] : inputs.weights)
        if (given == name) return tensor;
    FAIL("no weight " << name);
    return inputs.weights.front().second;
}

inline const Tensor& extra(const ForwardResult& result, const std::string& name) {
    for (const auto& [given, tensor] : result.extra)
        if (given == name) return tensor;
    FAIL("no output " << name);
    return result.output;
}
inline std::vector<std::int32_t> integers(const Tensor& tensor) {
    const Tensor flat = attend::contiguous_copy(tensor).value();
    return {flat.as<const std::int32_t>(), flat.as<const std::int32_t>() + flat.size()};
}

// What an expert holds of one item, in the order of the report.
struct Members {
    std::vector<std::int64_t> tokens;
    std::vector<double> gates;
};
using Routing = std::map<std::pair<std::int64_t, std::int64_t>, Members>;  // by item and expert
inline Routing routing_of(const ForwardResult& result, const std::string& side = "query") {
    Routing routing;
    const std::vector<std::int32_t> triples = integers(extra(result, "routing." + side + ".assignments"));
    const std::vector<float> gates = values(extra(result, "routing." + side + ".gates"));
    REQUIRE(triples.size() == 3 * gates.size());
    for (std::size_t at = 0; at < gates.size(); ++at) {
        if (at > 0)
            CHECK(std::lexicographical_compare(triples.begin() + static_cast<std::ptrdiff_t>(3 * at - 3),
                                               triples.begin() + static_cast<std::ptrdiff_t>(3 * at),
                                               triples.begin() + static_cast<std::ptrdiff_t>(3 * at),
                                               triples.begin() + static_cast<std::ptrdiff_t>(3 * at + 3)));
        Members& members = routing[{triples[3 * at], triples[3 * at + 1]}];
        members.tokens.push_back(triples[3 * at + 2]);
        members.gates.push_back(static_cast<double>(gates[at]));
    }
    return routing;
}

// Rows [item, members] of [B,H,N,D] tokens times W[e, a] ([E, heads, in, out]): [1, heads, rows, out].
inline Tensor projected_rows(const Tensor& tokens, std::int64_t item, const std::vector<std::int64_t>& members,
                             const Tensor& w, std::int64_t e) {
    const Tensor packed = packed_heads(tokens);
    const std::int64_t heads = w.shape[1], in = w.shape[2], out = w.shape[3];
    Tensor to = filled({1, heads, static_cast<std::int64_t>(members.size()), out}, 0.0f);
    for (std::int64_t a = 0; a < heads; ++a)
        for (std::size_t row = 0; row < members.size(); ++row)
            for (std::int64_t c = 0; c < out; ++c) {
                double sum = 0;
                for (std::int64_t m = 0; m < in; ++m)
                    sum += static_cast<double>(at(packed, item, members[row], m)) *
                           static_cast<double>(at(w, w.shape[0] == 1 ? 0 : e, a, m, c));
                at(to, 0, a, static_cast<std::int64_t>(row), c) = static_cast<float>(sum);
            }
    return to;
}

// y_i = [x_i +] sum over experts of gate F_e(i), each expert a plain attention call among the tokens it holds. keys NULL: all
// keys. Positions do not enter (no causal, no window).
inline Tensor sum_of_experts(ForwardInputs inputs, const Routing& queries, const Routing* keys, std::int64_t experts,
                             bool residual) {
    const std::int64_t hq = inputs.query.shape[1], dv = inputs.value->shape[3];
    Tensor to = filled({inputs.query.shape[0], hq, inputs.query.shape[2], dv}, 0.0f);
    if (residual) to = take(inputs.query, 0, range(0, inputs.query.shape[0]));
    const Tensor &wq = weight_of(inputs, "wq"), &wk = weight_of(inputs, "wk"), &wv = weight_of(inputs, "wv"),
                 &wo = weight_of(inputs, "wo");
    for (std::int64_t item = 0; item < to.shape[0]; ++item)
        for (std::int64_t e = 0; e < experts; ++e) {
            const auto held = queries.find({item, e});
            if (held == queries.end()) continue;
            std::vector<std::int64_t> seen = range(0, inputs.key->shape[2]);
            if (keys != nullptr) {
                const auto among = keys->find({item, e});
                if (among == keys->end()) continue;
                seen = among->second.tokens;
            }
            ForwardInputs plain;
            plain.query = projected_rows(inputs.query, item, held->second.tokens, wq, e);
            plain.key = projected_rows(*inputs.key, item, seen, wk, e);
            plain.value = projected_rows(*inputs.value, item, seen, wv, e);
            const Tensor attended = call(plain, "flash-attention-v2").output;
            for (std::size_t row = 0; row < held->second.tokens.size(); ++row)
                for (std::int64_t m = 0; m < hq * dv; ++m) {
                    double sum = 0;
                    for (std::int64_t a = 0; a < wo.shape[1]; ++a)
                        for (std::int64_t c = 0; c < wo.shape[2]; ++c)
                            sum += static_cast<double>(at(attended, 0, a, static_cast<std::int64_t>(row), c)) *
                                   static_cast<double>(at(wo, e, a, c, m));
                    at(to, item, m / dv, held->second.tokens[row], m % dv) +=
                        static_cast<float>(held->second.gates[row] * sum);
                }
        }
    return to;
}

inline const Limits expert_shapes{.batch = 2, .heads = 3, .length = 40, .width = 10};
inline ExpertSizes some_sizes(Random& random) {
    return {2 + random.below(4), 1 + random.below(2), 3 + random.below(8), 2 + random.below(8)};
}

}  // namespace identities
