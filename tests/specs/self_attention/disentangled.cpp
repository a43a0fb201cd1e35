// SPDX-License-Identifier: Apache-2.0
// Dense attention with the two position terms of every pair, in double.
#include "specs/spec.hpp"

namespace {

std::int64_t bucket(std::int64_t d, std::int64_t buckets, std::int64_t most) {
    if (buckets == 0) return d;
    d = std::clamp(d, -(most - 1), most - 1);
    const std::int64_t middle = buckets / 2, size = std::abs(d);
    if (size <= middle) return d;
    const double m = static_cast<double>(middle),
                 share = std::log(static_cast<double>(size) / m) / std::log(static_cast<double>(most - 1) / m);
    const std::int64_t b = middle + static_cast<std::int64_t>(std::ceil(share * (m - 1) - 1e-9));
    return d < 0 ? -b : b;
}

specs::Expected disentangled(const specs::Call& call) {
    oracle::Dense x = specs::problem_of(call, specs::everywhere, true, true);
    const bool c2p = call.flag("c2p"), p2c = call.flag("p2c"), paper = call.word("p2c_index") == "paper";
    const auto buckets = static_cast<std::int64_t>(call.number("position_buckets", 256)),
               most = static_cast<std::int64_t>(call.number("max_relative_positions", 512)),
               side = buckets > 0 ? buckets : most;
    if (call.number("scale", 0.0) == 0.0)
        x.scale = 1 / std::sqrt(static_cast<double>(x.head_dim) * (1.0 + (c2p ? 1 : 0) + (p2c ? 1 : 0)));
    const attend::Tensor *kr = nullptr, *qr = nullptr;
    for (const auto& [name, tensor] : call.inputs->weights) {
        if (name == "rel_key") kr = &tensor;
        if (name == "rel_query") qr = &tensor;
    }
    const auto row = [=](std::int64_t d) {
        return std::clamp(bucket(d, buckets, most) + side, std::int64_t{0}, 2 * side - 1);
    };
    x.content = [=, &call](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        const std::int64_t d = i + specs::offset_of(call, b) - j, kv = h * x.kv_heads / x.q_heads;
        double sum = 0;
        for (std::int64_t c = 0; c < x.head_dim; ++c) {
            const auto at = [&](const attend::Tensor& table, std::int64_t r) {
                return static_cast<double>(table.as<const float>()[(h * 2 * side + r) * x.head_dim + c]);
            };
            if (c2p) sum += x.q(b, h, i, c) * at(*kr, row(d));
            if (p2c) sum += x.k(b, kv, j, c) * at(*qr, row(paper ? -d : d));
        }
        return sum;
    };
    return specs::solved(x);
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    std::int64_t buckets = 256, most = 512;
    bool c2p = true, p2c = true;
    for (const auto& [name, value] : options) {
        if (name == "position_buckets") buckets = value.as_int64();
        if (name == "max_relative_positions") most = value.as_int64();
        if (name == "c2p") c2p = value.as_bool();
        if (name == "p2c") p2c = value.as_bool();
    }
    const std::int64_t side = buckets > 0 ? buckets : most;
    const std::vector<std::int64_t> shape{inputs.query.shape[1], 2 * side, inputs.query.shape[3]};
    if (c2p) inputs.weights.emplace_back("rel_key", numbers.normal(shape));
    if (p2c) inputs.weights.emplace_back("rel_query", numbers.normal(shape));
}

const specs::Registration spec(
    {.mechanism = "disentangled-attention",
     .oracle = disentangled,
     .variants = {{{"c2p", false}, {"p2c", false}},
                  {{"c2p", false}},
                  {{"p2c", false}, {"causal", true}},
                  {{"position_buckets", 0}, {"max_relative_positions", 7}},
                  {{"position_buckets", 8}, {"max_relative_positions", 20}},
                  {{"position_buckets", 6}, {"max_relative_positions", 9}, {"p2c_index", "paper"}},
                  {{"position_buckets", 4}, {"max_relative_positions", 60}, {"causal", true}},
                  {{"position_buckets", 0}, {"max_relative_positions", 100}, {"p2c_index", "paper"}},
                  {{"scale", 0.2}, {"softcap", 1.5}, {"position_buckets", 16}},
                  {{"window_size", 9}, {"position_buckets", 10}, {"max_relative_positions", 30}},
                  {{"position_buckets", 8}, {"dropout", 0.2}, {"seed", 3}},
                  {{"causal_alignment", "top-left"}, {"position_buckets", 12}}},
     .exempt = {},
     .tolerance = 2e-5,
     .more = more});

}  // namespace
