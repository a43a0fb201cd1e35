// SPDX-License-Identifier: Apache-2.0
// Scores and weights mixed across heads, by loops in double precision; hidden after the first mixing.
#include "specs/spec.hpp"

namespace {

specs::Expected talking_heads(const specs::Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const attend::Tensor& key = in.key ? *in.key : in.query;
    const attend::Tensor& value = in.value ? *in.value : key;
    const oracle::View q{&in.query}, k{&key}, v{&value};
    const std::int64_t batch = in.query.shape[0], hk = in.query.shape[1], nq = in.query.shape[2],
                       width = in.query.shape[3], nk = key.shape[2], hv = value.shape[1], value_width = value.shape[3],
                       hs = static_cast<std::int64_t>(call.number("softmax_heads", static_cast<double>(hk)));
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const auto xavier = [](std::int64_t a, std::int64_t b) { return std::sqrt(6.0 / static_cast<double>(a + b)); };
    const bool pre = call.flag("pre_mixing"), post = call.flag("post_mixing"), biased = call.flag("mix_bias");
    const std::string place = "talking-heads-attention/";
    const auto pre_mix = specs::weight_of(call, "pre_mix", place + "preMix", size(hk * hs), xavier(hk, hs)),
               post_mix = specs::weight_of(call, "post_mix", place + "postMix", size(hs * hv), xavier(hs, hv)),
               pre_bias = specs::weight_of(call, "pre_bias", "", size(hs), 0.0),
               post_bias = specs::weight_of(call, "post_bias", "", size(hv), 0.0);
    const double given = call.number("scale", 0.0), cap = call.number("softcap", 0.0),
                 scale = given == 0.0 ? 1.0 / std::sqrt(static_cast<double>(width)) : given,
                 minus = -std::numeric_limits<double>::infinity();
    specs::Expected out;
    out.o.assign(size(batch * hv * nq * value_width), 0.0);
    out.lse.assign(size(batch * hs * nq), minus);
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t i = 0; i < nq; ++i) {
            std::vector<double> j_scores(size(hk * nk)), weights(size(hs * nk), 0.0);
            std::vector<bool> seen(size(nk), false);
            for (std::int64_t h = 0; h < hk; ++h)
                for (std::int64_t j = 0; j < nk; ++j)
                    for (std::int64_t d = 0; d < width; ++d)
                        j_scores[size(h * nk + j)] += scale * q(b, h, i, d) * k(b, h, j, d);
            for (std::int64_t s = 0; s < hs; ++s) {
                std::vector<double> row(size(nk), minus);
                double largest = minus, sum = 0.0;
                for (std::int64_t j = 0; j < nk; ++j) {
                    const specs::Place at{b, s, i, j, i + specs::offset_of(call, b)};
                    const double bias = specs::bias_at(call, at);
                    if (!specs::common_visible(call, at, true, true) || bias == minus) continue;
                    double x = pre && biased ? pre_bias[size(s)] : 0.0;
                    for (std::int64_t h = 0; h < hk; ++h)
                        x += j_scores[size(h * nk + j)] * (pre ? pre_mix[size(h * hs + s)] : h == s ? 1.0 : 0.0);
                    if (cap > 0.0) x = cap * std::tanh(x / cap);
                    row[size(j)] = x + bias;
                    seen[size(j)] = true;
                    largest = std::max(largest, row[size(j)]);
                }
                if (largest == minus) continue;
                for (const double x : row) sum += std::exp(x - largest);
                for (std::int64_t j = 0; j < nk; ++j)
                    weights[size(s * nk + j)] = std::exp(row[size(j)] - largest) / sum;
                out.lse[size((b * hs + s) * nq + i)] = largest + std::log(sum);
            }
            for (std::int64_t h = 0; h < hv; ++h)
                for (std::int64_t j = 0; j < nk; ++j) {
                    if (!seen[size(j)]) continue;
                    double u = post && biased ? post_bias[size(h)] : 0.0;
                    for (std::int64_t s = 0; s < hs; ++s)
                        u += weights[size(s * nk + j)] * (post ? post_mix[size(s * hv + h)] : h == s ? 1.0 : 0.0);
                    u *= specs::dropout_at(call, b * hv + h, i, j);
                    if (u == 0.0) continue;
                    for (std::int64_t d = 0; d < value_width; ++d)
                        out.o[size(((b * hv + h) * nq + i) * value_width + d)] += u * v(b, h, j, d);
                }
        }
    return out;
}

const specs::Registration spec({.mechanism = "talking-heads-attention",
                                .oracle = talking_heads,
                                .variants = {{{"softmax_heads", 3}},
                                             {{"pre_mixing", false}},
                                             {{"post_mixing", false}},
                                             {{"pre_mixing", false}, {"post_mixing", false}},
                                             {{"mix_bias", true}},
                                             {{"weight_seed", 5}},
                                             {{"causal", true}},
                                             {{"causal", true}, {"post_mixing", false}},
                                             {{"window_size", 4}},
                                             {{"window_left", 3}, {"window_right", 0}, {"mix_bias", true}},
                                             {{"causal_offset", 2}, {"causal", true}},
                                             {{"dropout", 0.25}, {"seed", 3}, {"rng_offset", 2}},
                                             {{"softcap", 0.8}},
                                             {{"scale", 0.4}}},
                                .gqa = false,
                                .exempt = {{"ones", "rows of mixed weights do not sum to 1"}}});

}  // namespace
