// SPDX-License-Identifier: Apache-2.0
// performer-attention: a_ij = phi(q_i) . phi(k_j) with random features of four kernels.
#include "specs/linear/quadratic.hpp"

namespace specs::linear {

Expected performer(const Call& call) {
    const Tensor& query = call.inputs->query;
    const std::int64_t d = query.shape[3];
    const std::string kernel = call.word("kernel");
    const bool causal = call.flag("causal"), relu = kernel == "relu", trig = kernel == "trig",
               exact = call.word("stabilizer") == "exact" || (call.word("stabilizer") == "auto" && causal);
    const bool both = kernel == "hyperbolic" || trig, project = call.flag("use_projection");
    const double given = call.number("scale", 0), eps = exact ? 0 : call.number("feature_eps", 1e-6);
    const double scale = given != 0 ? given : relu ? 1 : 1 / std::sqrt(static_cast<double>(d));
    const double factor = std::sqrt(scale), nu = call.number("denom_eps", 1e-6);
    const Tensor* weight = weight_named(call, "projection");
    const double asked = call.number("num_features", call.number("num_random_features", 0));
    Directions of{"performer-attention", 1, size(d)};
    of.m = asked > 0 ? size(static_cast<std::int64_t>(asked))
                     : std::max<std::size_t>(1, size(static_cast<std::int64_t>(std::floor(
                                                    static_cast<double>(d) * std::log(static_cast<double>(d))))));
    of.seed = static_cast<std::uint64_t>(call.number("seed", 0));
    of.redraw = static_cast<std::uint32_t>(call.number("redraw_index", 0));
    of.orthogonal = call.flag("orthogonal");
    of.sqrt_norms = call.word("norms") == "sqrtD";
    return quadratic(call, [&](const Site& site) {
        std::vector<Row> directions;
        if (project && weight != nullptr)
            directions = given_rows(*weight, site.kv);
        else if (project)
            directions = omega(of, call.flag("per_head_features") ? size(site.kv) : 0);
        const double m = static_cast<double>(directions.size());
        // u of a token, or the input itself; half = |x|^2 / 2.
        const auto exponents = [&](const Row& x, double& half) {
            half = dot(x, x) / 2;
            if (!project) return x;
            Row u;
            for (const Row& w : directions) u.push_back(dot(w, x));
            return u;
        };
        const auto most = [&](const Row& u) {
            double best = minus_infinity;
            for (const double x : u) best = std::max(best, both ? std::abs(x) : x);
            return best;
        };
        const auto features = [&](const Row& u, double half, double shift) {
            Row phi;
            for (const double x : u) {
                if (relu)
                    phi.push_back(std::max(x, 0.0) / (project ? std::sqrt(m) : 1.0) + call.number("kernel_eps", 1e-3));
                else if (trig)
                    phi.push_back(std::exp(half - shift) * std::cos(x) / std::sqrt(m));
                else
                    phi.push_back((std::exp(x - half - shift) + eps) / std::sqrt(both ? 2 * m : m));
            }
            for (std::size_t at = 0; both && at < u.size(); ++at)
                phi.push_back(trig ? std::exp(half - shift) * std::sin(u[at]) / std::sqrt(m)
                                   : (std::exp(-u[at] - half - shift) + eps) / std::sqrt(2 * m));
            return phi;
        };
        double top = minus_infinity;  // official: over all visible keys
        for (std::int64_t j = 0; j < site.key->shape[2]; ++j) {
            if (!site.visible[size(j)]) continue;
            double half = 0;
            const Row u = exponents(row_of(*site.key, site.b, site.kv, j, factor), half);
            top = std::max(top, trig ? half : most(u));
        }
        if (exact || relu) top = 0;
        std::vector<Row> keys, queries;
        Row removed;
        for (std::int64_t j = 0; j < site.key->shape[2]; ++j) {
            double half = 0;
            keys.push_back({});
            if (!site.visible[size(j)]) continue;
            const Row u = exponents(row_of(*site.key, site.b, site.kv, j, factor), half);
            keys.back() = features(u, half, top);
        }
        for (std::int64_t i = 0; i < site.rows; ++i) {
            double half = 0;
            const Row u = exponents(row_of(*site.query, site.b, site.h, i, factor), half);
            const double shift = relu ? 0 : trig ? half : exact ? most(u) - half : most(u);
            queries.push_back(features(u, half, shift));
            removed.push_back(relu || trig ? 0 : shift + top);
        }
        return Head{
            [keys, queries](std::int64_t i, std::int64_t j) { return dot(queries[size(i)], keys[size(j)]); },
            [=](std::int64_t, double den) { return relu || !exact ? (std::abs(den) <= nu ? den + 2 * nu : den) : den; },
            [removed](std::int64_t i) { return removed[size(i)]; }};
    });
}

}  // namespace specs::linear

namespace {

bool given(const attend::NamedValues& options, const char* name) {
    return std::any_of(options.begin(), options.end(), [&](const auto& option) { return option.first == name; });
}
bool is_trig(const attend::NamedValues& options) {
    return std::any_of(options.begin(), options.end(), [](const auto& option) {
        return option.first == "kernel" && option.second.is_string() && option.second.as_string() == "trig";
    });
}

// Variants with scale 0.21 bring a matrix, for each key head or for all.
void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    if (!given(options, "scale") || given(options, "num_features") || given(options, "use_projection") ||
        inputs.query.shape.empty())
        return;
    const std::int64_t heads = inputs.key->shape[1], width = inputs.query.shape[3];
    inputs.weights.emplace_back("projection",
                                numbers.below(2) == 0 ? numbers.normal({9, width}) : numbers.normal({heads, 9, width}));
}

const specs::Registration spec({.mechanism = "performer-attention",
                                .oracle = specs::linear::performer,
                                .variants = {{{"causal", true}},
                                             {{"kernel", "hyperbolic"}},
                                             {{"kernel", "hyperbolic"}, {"causal", true}, {"num_features", 7}},
                                             {{"kernel", "trig"}, {"num_features", 64}, {"scale", 0.01}},
                                             {{"kernel", "relu"}, {"num_features", 20}},
                                             {{"kernel", "relu"}, {"use_projection", false}, {"kernel_eps", 0.1}},
                                             {{"kernel", "relu"}, {"use_projection", false}, {"scale", 0.5}},
                                             {{"orthogonal", false}, {"redraw_index", 3}},
                                             {{"norms", "sqrtD"}, {"seed", 12345}, {"num_features", 30}},
                                             {{"per_head_features", true}, {"num_random_features", 16}},
                                             {{"stabilizer", "exact"}},
                                             {{"stabilizer", "official"}, {"causal", true}, {"feature_eps", 1e-4}},
                                             {{"scale", 0.21}, {"denom_eps", 1e-4}},
                                             {{"scale", 0.21}, {"causal", true}, {"kernel", "hyperbolic"}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}}},
                                .masks = false,
                                .tolerance = 1e-5,
                                .more = more,
                                .has_lse = [](const attend::NamedValues& options) { return !is_trig(options); }});

}  // namespace
