// SPDX-License-Identifier: Apache-2.0
// rfa-attention: a_ij = w_ij <phi(q^_i), phi(k^_j)> with random features of rows of length 1 and, gated, weights
// w_ij = (1 - g_j) g_{j+1} ... g_i.
#include "specs/linear/quadratic.hpp"

namespace {

using namespace specs::linear;
using attend::Tensor;

std::string word_of(const attend::NamedValues& options, const char* name) {
    for (const auto& [known, value] : options)
        if (known == name && value.is_string()) return value.as_string();
    return "";
}

specs::Expected oracle(const specs::Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const std::int64_t width = in.query.shape[3];
    const bool causal = call.flag("causal"), sincos = call.word("features") == "sincos",
               official = call.word("compat") == "official", gated = call.word("gating") != "none";
    const double tau = call.number("tau", 1);
    const Tensor *weight = weight_named(call, "projection"), *sigma = weight_named(call, "sigma"),
                 *gates = input_named(call, "gates"), *gate_weight = weight_named(call, "gate_weight"),
                 *gate_bias = weight_named(call, "gate_bias");
    Directions of{"rfa-attention",
                  size(static_cast<std::int64_t>(call.number("num_features", static_cast<double>(width)))),
                  size(width)};
    of.seed = static_cast<std::uint64_t>(call.number("seed", 0));
    of.redraw = static_cast<std::uint32_t>(call.number("redraw_index", 0));
    of.orthogonal = call.flag("orthogonal");
    of.sqrt_norms = call.word("norms") == "sqrtD";
    return quadratic(call, [&](const Site& site) {
        std::vector<Row> directions = weight != nullptr ? given_rows(*weight, site.kv)
                                                        : omega(of, call.flag("per_head_features") ? size(site.kv) : 0);
        double most = 0;
        for (std::int64_t d = 0; d < width; ++d) {
            const double s =
                sigma != nullptr ? static_cast<double>(sigma->as<const float>()[site.kv * width + d]) : 1.0;
            most = std::max(most, s * s);
            for (Row& row : directions) row[size(d)] *= s / tau;
        }
        const double factor = official ? 0.1 : 1 / std::sqrt(static_cast<double>(directions.size()));
        const auto features = [&](Row x) {
            const double length = std::sqrt(dot(x, x)), divisor = official ? length + 1e-3 : std::max(length, 1e-6);
            for (double& value : x) value /= divisor;
            Row phi;
            for (const Row& w : directions) {
                const double u = dot(w, x);
                phi.push_back(factor * (sincos ? std::sin(u) : std::max(u, 0.0)));
                if (sincos) phi.push_back(factor * std::cos(u));
            }
            return phi;
        };
        const std::int64_t nk = site.key->shape[2];
        std::vector<Row> keys, queries;
        Row kept, taken;  // gate of each key and its complement; hidden keys leave everything as it is
        for (std::int64_t j = 0; j < nk; ++j) {
            const bool visible = site.visible[size(j)] != 0;
            keys.push_back(visible ? features(row_of(*site.key, site.b, site.kv, j)) : Row{});
            double g = 1, rest = visible ? 1 : 0;
            if (gated && visible) {
                if (gates != nullptr) {
                    g = static_cast<double>(gates->as<const float>()[(site.b * site.key->shape[1] + site.kv) * nk + j]);
                } else {
                    double x = gate_bias != nullptr ? static_cast<double>(gate_bias->as<const float>()[site.kv]) : 4;
                    const Row key = row_of(*site.key, site.b, site.kv, j);
                    for (std::int64_t d = 0; d < width && gate_weight != nullptr; ++d)
                        x += static_cast<double>(gate_weight->as<const float>()[site.kv * width + d]) * key[size(d)];
                    g = 1 / (1 + std::exp(-x));
                }
                rest = 1 - g;
            }
            kept.push_back(g);
            taken.push_back(rest);
        }
        for (std::int64_t i = 0; i < site.rows; ++i)
            queries.push_back(features(row_of(*site.query, site.b, site.h, i)));
        const auto omega_of = [=, offset = site.offset](std::int64_t i, std::int64_t j) {
            double product = gated ? taken[size(j)] : 1;
            for (std::int64_t l = j + 1; gated && l <= std::min(i + offset, nk - 1); ++l) product *= kept[size(l)];
            return product;
        };
        return Head{
            [=](std::int64_t i, std::int64_t j) { return omega_of(i, j) * dot(queries[size(i)], keys[size(j)]); },
            [=](std::int64_t i, double den) {
                if (official) return causal ? std::max(den, 1.0) : std::max(std::abs(den), 1.0);
                if (!sincos) return std::max(den, 1e-6);
                double n = 0;
                for (std::int64_t j = 0; j < nk; ++j)
                    if (site.visible[size(j)] && !(causal && j > i + site.offset))
                        n += omega_of(i, j) * std::exp(site.beta[size(j)]);
                return std::max(den, n * std::exp(-2 * most / (tau * tau)));
            }};
    });
}

// Gates where the call wants them, and with tau = 1.7 a matrix and sigma of the caller.
void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const std::int64_t heads = inputs.key->shape[1], width = inputs.query.shape[3];
    const auto given = [&](const char* name) {
        return std::any_of(options.begin(), options.end(), [&](const auto& option) { return option.first == name; });
    };
    if (word_of(options, "gating") == "tensor") {
        Tensor gates = numbers.normal({inputs.key->shape[0], heads, inputs.key->shape[2]});
        for (std::int64_t at = 0; at < gates.size(); ++at) {
            float& x = gates.as<float>()[at];
            x = numbers.below(20) == 0 ? static_cast<float>(numbers.below(2)) : 1.0f / (1.0f + std::exp(-2.0f - x));
        }
        inputs.extra.emplace_back("gates", gates);
    }
    if (word_of(options, "gating") == "weights" && numbers.below(2) == 0) {
        Tensor weight = numbers.normal({heads, width});
        for (std::int64_t at = 0; at < weight.size(); ++at) weight.as<float>()[at] *= 0.2f;
        inputs.weights.emplace_back("gate_weight", weight);
        inputs.weights.emplace_back("gate_bias", numbers.normal({heads}));
    }
    if (!given("tau")) return;
    inputs.weights.emplace_back(
        "projection", numbers.below(2) == 0 ? numbers.normal({64, width}) : numbers.normal({heads, 64, width}));
    Tensor sigma = numbers.normal({heads, width});
    for (std::int64_t at = 0; at < sigma.size(); ++at) sigma.as<float>()[at] = 1.0f + 0.2f * sigma.as<float>()[at];
    inputs.weights.emplace_back("sigma", sigma);
}

const specs::Registration spec(
    {.mechanism = "rfa-attention",
     .oracle = oracle,
     .variants = {{{"causal", true}},
                  {{"num_features", 128}},
                  {{"features", "arccos"}, {"num_features", 64}},
                  {{"features", "arccos"}, {"num_features", 64}, {"causal", true}, {"gating", "weights"}},
                  {{"tau", 1.7}},
                  {{"tau", 1.7}, {"causal", true}, {"gating", "tensor"}},
                  {{"compat", "official"}, {"num_features", 100}},
                  {{"compat", "official"}, {"causal", true}, {"gating", "tensor"}},
                  {{"orthogonal", true}, {"num_features", 40}, {"seed", 9}, {"redraw_index", 2}},
                  {{"orthogonal", true}, {"norms", "sqrtD"}, {"per_head_features", false}},
                  {{"causal", true}, {"gating", "weights"}},
                  {{"causal", true}, {"gating", "tensor"}, {"num_features", 64}},
                  {{"causal", true}, {"causal_alignment", "top-left"}, {"gating", "weights"}}},
     .masks = false,
     .exempt = {{"ones", "denominators are bounded from below, and few features leave some under it"},
                {"gqa", "each key head has directions of its own"}},
     .tolerance = 1e-5,
     .more = more,
     .has_lse = [](const attend::NamedValues& options) { return word_of(options, "features") == "arccos"; }});

}  // namespace
