// SPDX-License-Identifier: Apache-2.0
// Two dense softmax maps, subtracted and normed in double.
#include "specs/spec.hpp"

namespace {

const attend::Tensor* find(const std::vector<std::pair<std::string, attend::Tensor>>& list, const char* name) {
    for (const auto& [given, tensor] : list)
        if (given == name) return &tensor;
    return nullptr;
}

specs::Expected differential(const specs::Call& call) {
    const bool v1 = call.word("variant") != "v2", split = call.word("pairing") == "split";
    oracle::Dense whole = specs::problem_of(call, specs::everywhere, true, true);
    const std::int64_t heads = whole.q_heads / 2, all = whole.q_heads,
                       values = v1 ? whole.kv_heads / 2 : whole.kv_heads;
    specs::Expected map[2];
    for (std::int64_t n = 0; n < 2; ++n) {
        oracle::Dense x = whole;
        const auto u = [=](std::int64_t h) { return split ? h + n * heads : 2 * h + n; };
        x.q_heads = heads;
        x.kv_heads = values;
        x.q = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t d) { return whole.q(b, u(h), i, d); };
        if (v1)
            x.k = [=](std::int64_t b, std::int64_t g, std::int64_t j, std::int64_t d) {
                return whole.k(b, split ? g + n * values : 2 * g + n, j, d);
            };
        x.visible = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            return whole.visible(b, u(h), i, j);
        };
        if (whole.bias)
            x.bias = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
                return whole.bias(b, u(h), i, j);
            };
        x.dropout_heads = all;
        x.dropout_first = u(0);
        x.dropout_step = split ? 1 : 2;
        map[n] = specs::solved(x);
    }
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const double init = call.number("lambda_init", 0.8 - 0.6 * std::exp(-0.3 * call.number("depth", 0)));
    double fixed = init;
    if (v1 && call.word("lambda_mode") == "fixed") {
        fixed = call.number("lambda", 0);
    } else if (v1) {
        double sums[2] = {};
        for (int at = 0; at < 2; ++at) {
            const attend::Tensor *q = find(call.inputs->weights, at == 0 ? "lambda_q1" : "lambda_q2"),
                                 *k = find(call.inputs->weights, at == 0 ? "lambda_k1" : "lambda_k2");
            for (std::int64_t d = 0; d < whole.head_dim; ++d)
                sums[at] += static_cast<double>(q->as<const float>()[d]) * static_cast<double>(k->as<const float>()[d]);
        }
        fixed = std::exp(sums[0]) - std::exp(sums[1]) + init;
    }
    specs::Expected out;
    out.o.resize(map[0].o.size());
    out.lse.assign(size(whole.batch * all * whole.q_len), 0.0);
    for (std::int64_t b = 0; b < whole.batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t i = 0; i < whole.q_len; ++i) {
                const std::int64_t row = (b * heads + h) * whole.q_len + i;
                for (std::int64_t n = 0; n < 2; ++n)
                    out.lse[size((b * all + (split ? h + n * heads : 2 * h + n)) * whole.q_len + i)] =
                        map[n].lse[size(row)];
                double lambda = fixed, square = 0;
                if (!v1) {
                    double logit = 0;
                    if (const attend::Tensor* logits = find(call.inputs->extra, "lambda_logits")) {
                        logit = static_cast<double>(logits->as<const float>()[row]);
                    } else {
                        const attend::Tensor *x = find(call.inputs->extra, "x"),
                                             *p = find(call.inputs->weights, "lambda_proj");
                        const std::int64_t width = x->shape[2];
                        for (std::int64_t e = 0; e < width; ++e)
                            logit += static_cast<double>(x->as<const float>()[(b * whole.q_len + i) * width + e]) *
                                     static_cast<double>(p->as<const float>()[h * width + e]);
                    }
                    lambda = 1 / (1 + std::exp(-logit));
                }
                for (std::int64_t c = 0; c < whole.value_dim; ++c) {
                    double& o = out.o[size(row * whole.value_dim + c)];
                    o = map[0].o[size(row * whole.value_dim + c)] - lambda * map[1].o[size(row * whole.value_dim + c)];
                    square += o * o;
                }
                if (!v1 || !call.flag("norm")) continue;
                const double mean = square / static_cast<double>(whole.value_dim) + call.number("norm_eps", 1e-5);
                const attend::Tensor* weight = find(call.inputs->weights, "norm_weight");
                for (std::int64_t c = 0; c < whole.value_dim; ++c)
                    out.o[size(row * whole.value_dim + c)] *=
                        mean == 0 ? 0
                                  : (1 - init) / std::sqrt(mean) * static_cast<double>(weight->as<const float>()[c]);
            }
    return out;
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const auto is = [&](const char* name, const char* word) {
        for (const auto& [given, value] : options)
            if (given == name && value.is_string() && value.as_string() == word) return true;
        return false;
    };
    const auto given = [&](const char* name) {
        for (const auto& option : options)
            if (option.first == name) return true;
        return false;
    };
    const std::int64_t batch = inputs.query.shape[0], heads = inputs.query.shape[1] / 2, n = inputs.query.shape[2],
                       width = inputs.query.shape[3];
    if (is("variant", "v2")) {
        inputs.key = numbers.normal({batch, inputs.value->shape[1], inputs.key->shape[2], width});
        if (given("weight_seed")) {  // stands for: by x
            inputs.extra.emplace_back("x", numbers.normal({batch, n, 6}));
            inputs.weights.emplace_back("lambda_proj", numbers.normal({heads, 6}));
        } else {
            inputs.extra.emplace_back("lambda_logits", numbers.normal({batch, heads, n}));
        }
        return;
    }
    const auto small = [&](std::int64_t count) {
        attend::Tensor tensor = numbers.normal({count});
        for (std::int64_t at = 0; at < count; ++at) tensor.as<float>()[at] *= 0.2f;
        return tensor;
    };
    if (!is("lambda_mode", "fixed"))
        for (const char* name : {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"})
            inputs.weights.emplace_back(name, small(width));
    for (const auto& [name, value] : options)
        if (name == "norm" && !value.as_bool()) return;
    inputs.weights.emplace_back("norm_weight", numbers.normal({inputs.value->shape[3]}));
}

const specs::Registration spec({.mechanism = "differential-attention",
                                .oracle = differential,
                                .variants = {{{"pairing", "split"}},
                                             {{"norm", false}},
                                             {{"norm", false}, {"lambda_mode", "fixed"}, {"lambda", -0.7}},
                                             {{"depth", 3}, {"norm_eps", 0.1}},
                                             {{"lambda_init", 0.5}},
                                             {{"causal", false}, {"window_size", 4}},
                                             {{"variant", "v2"}},
                                             {{"variant", "v2"}, {"weight_seed", 1}},
                                             {{"pairing", "split"}, {"dropout", 0.3}, {"seed", 4}},
                                             {{"dropout", 0.2}, {"seed", 9}, {"rng_offset", 2}},
                                             {{"softcap", 1.0}, {"scale", 0.5}}},
                                .exempt = {{"ones", "maps are subtracted and normed"},
                                           {"gqa", "key heads come in pairs; the identities look at groups"},
                                           {"head masks", "masks know the heads of both maps"}},
                                .tolerance = 2e-5,
                                .more = more,
                                .maps = 2});

}  // namespace
