// SPDX-License-Identifier: Apache-2.0
// linear-attention: a_ij = phi(scale q_i) . phi(k_j) with fixed features, guard den + eps.
#include "specs/linear/quadratic.hpp"

namespace {

using namespace specs::linear;
using specs::Call;
using specs::Expected;

Row features(const Row& x, const std::string& map, std::size_t nu, bool sum_normalize) {
    Row out;
    if (map == "elu")
        for (const double value : x) out.push_back(value > 0 ? value + 1 : std::exp(value));
    else if (map == "relu")
        for (const double value : x) out.push_back(std::max(value, 0.0));
    else {
        Row r;
        for (const double value : x) r.push_back(std::max(value, 0.0));
        for (const double value : x) r.push_back(std::max(-value, 0.0));
        for (std::size_t shift = 1; shift <= nu; ++shift)
            for (std::size_t t = 0; t < r.size(); ++t) out.push_back(r[t] * r[(t + r.size() - shift) % r.size()]);
    }
    double sum = 0;
    for (const double f : out) sum += f;
    if (sum_normalize)
        for (double& f : out) f = sum == 0 ? 0 : f / sum;
    return out;
}

Expected oracle(const Call& call) {
    const std::string alias = call.word("kernel_type"), map = alias == "unset" ? call.word("feature_map") : alias;
    if (map == "favor+" || map == "softmax") return performer(call);
    const auto nu = size(static_cast<std::int64_t>(call.number("nu", 1)));
    const double scale = call.number("scale", 1), eps = call.number("eps", 1e-6);
    const bool normalize = call.flag("normalize"), sums = call.flag("sum_normalize");
    return quadratic(call, [&](const Site& site) {
        std::vector<Row> keys, queries;
        for (std::int64_t j = 0; j < site.key->shape[2]; ++j)
            keys.push_back(site.visible[size(j)] ? features(row_of(*site.key, site.b, site.kv, j), map, nu, sums)
                                                 : Row{});
        for (std::int64_t i = 0; i < site.rows; ++i)
            queries.push_back(features(row_of(*site.query, site.b, site.h, i, scale == 0 ? 1 : scale), map, nu, sums));
        return Head{[keys, queries](std::int64_t i, std::int64_t j) { return dot(queries[size(i)], keys[size(j)]); },
                    [=](std::int64_t, double den) { return normalize ? den + eps : 1.0; }};
    });
}

const specs::Registration spec({.mechanism = "linear-attention",
                                .oracle = oracle,
                                .variants = {{{"causal", true}},
                                             {{"feature_map", "relu"}},
                                             {{"feature_map", "dpfp"}, {"nu", 2}},
                                             {{"feature_map", "dpfp"}, {"causal", true}},
                                             {{"sum_normalize", true}},
                                             {{"scale", 0.3}},
                                             {{"eps", 0.01}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}},
                                             {{"causal", true}, {"causal_offset", 2}},
                                             {{"feature_map", "favor+"}},
                                             {{"feature_map", "favor+"}, {"num_features", 11}, {"seed", 5}},
                                             {{"feature_map", "favor+"}, {"causal", true}},
                                             {{"kernel_type", "relu"}},
                                             {{"kernel_type", "softmax"}, {"stabilizer", "exact"}}},
                                .masks = false,
                                .tolerance = 1e-5});

}  // namespace
