// SPDX-License-Identifier: Apache-2.0
// Dense attention inside each segment, and a softmax over the segments, in double.
#include "specs/spec.hpp"

namespace {

using attend::Tensor;

const Tensor* find(const std::vector<std::pair<std::string, Tensor>>& list, const char* name) {
    for (const auto& [given, tensor] : list)
        if (given == name) return &tensor;
    return nullptr;
}

specs::Expected hierarchical(const specs::Call& call) {
    const oracle::Dense whole = specs::problem_of(call, specs::everywhere, false, false);
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const double minus = -std::numeric_limits<double>::infinity();
    const std::string score = call.word("segment_score");
    const Tensor *offsets = find(call.inputs->extra, "segment_offsets"),
                 *given = find(call.inputs->extra, "segment_query"), *wq = find(call.inputs->weights, "seg_wq"),
                 *wk = find(call.inputs->weights, "seg_wk"), *gamma = find(call.inputs->weights, "seg_norm.gamma"),
                 *beta = find(call.inputs->weights, "seg_norm.beta");
    const auto run = static_cast<std::int64_t>(call.number("segment_size", 64)),
               ds = static_cast<std::int64_t>(call.number("segment_dim", static_cast<double>(whole.head_dim)));
    const auto number = [](const Tensor& tensor, std::int64_t at) {
        return static_cast<double>(tensor.as<const float>()[at]);
    };
    const std::int64_t count = offsets != nullptr ? offsets->shape.back() - 1 : (whole.kv_len + run - 1) / run,
                       rows = whole.batch * whole.q_heads * whole.q_len, dv = whole.value_dim;
    const auto first = [&](std::int64_t b, std::int64_t s) {
        if (offsets == nullptr) return std::min(s * run, whole.kv_len);
        return static_cast<std::int64_t>(
            offsets->as<const std::int32_t>()[(offsets->rank() == 2 ? b * (count + 1) : 0) + s]);
    };
    const double factor = call.number("segment_scale", 1 / std::sqrt(static_cast<double>(ds)));
    std::vector<specs::Expected> parts;
    for (std::int64_t s = 0; s < count; ++s) {
        oracle::Dense x = whole;
        x.visible = [&, s](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            return j >= first(b, s) && j < first(b, s + 1) && whole.visible(b, h, i, j);
        };
        parts.push_back(specs::solved(x));
    }
    specs::Expected out;
    out.o.assign(size(rows * dv), 0.0);
    out.p.assign(size(rows * whole.kv_len), 0.0);
    if (score == "lse") out.lse.assign(size(rows), minus);
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t b = row / whole.q_len / whole.q_heads, h = row / whole.q_len % whole.q_heads,
                           i = row % whole.q_len, kv = h * whole.kv_heads / whole.q_heads;
        std::vector<double> e(size(count), minus);
        double most = minus, sum = 0;
        for (std::int64_t s = 0; s < count; ++s) {
            const specs::Expected& part = parts[size(s)];
            if (part.lse[size(row)] == minus) continue;
            double logit = score == "lse" ? part.lse[size(row)] : 0.0;
            if (score == "mean-key") {
                double total = 0, tokens = 0;
                for (std::int64_t j = first(b, s); j < first(b, s + 1); ++j) {
                    if (!whole.visible(b, h, i, j) || (whole.bias && whole.bias(b, h, i, j) == minus)) continue;
                    for (std::int64_t d = 0; d < whole.head_dim; ++d)
                        total += whole.scale * whole.q(b, h, i, d) * whole.k(b, kv, j, d);
                    ++tokens;
                }
                logit = total / tokens;
            } else if (score == "contextual") {
                std::vector<double> c(size(dv));
                double mean = 0, square = 0;
                for (std::int64_t d = 0; d < dv; ++d)
                    mean += (c[size(d)] = part.o[size(row * dv + d)]) / static_cast<double>(dv);
                for (std::int64_t d = 0; d < dv; ++d)
                    square += (c[size(d)] - mean) * (c[size(d)] - mean) / static_cast<double>(dv);
                if (call.flag("segment_norm"))
                    for (std::int64_t d = 0; d < dv; ++d)
                        c[size(d)] =
                            (c[size(d)] - mean) / std::sqrt(square + 1e-5) * number(*gamma, d) + number(*beta, d);
                for (std::int64_t a = 0; a < ds; ++a) {
                    double left = 0, right = 0;
                    if (given != nullptr) left = number(*given, row * ds + a);
                    for (std::int64_t d = 0; given == nullptr && d < whole.head_dim; ++d)
                        left += number(*wq, (h * ds + a) * whole.head_dim + d) * whole.q(b, h, i, d);
                    for (std::int64_t d = 0; d < dv; ++d) right += number(*wk, (h * ds + a) * dv + d) * c[size(d)];
                    logit += factor * left * right;
                }
            }
            e[size(s)] = logit;
            most = std::max(most, logit);
        }
        if (most == minus) continue;
        for (const double x : e) sum += std::exp(x - most);
        if (score == "lse") out.lse[size(row)] = most + std::log(sum);
        for (std::int64_t s = 0; s < count; ++s) {
            const double weight = std::exp(e[size(s)] - most) / sum;
            if (weight == 0) continue;
            for (std::int64_t d = 0; d < dv; ++d)
                out.o[size(row * dv + d)] += weight * parts[size(s)].o[size(row * dv + d)];
            for (std::int64_t j = 0; j < whole.kv_len; ++j)
                out.p[size(row * whole.kv_len + j)] += weight * parts[size(s)].p[size(row * whole.kv_len + j)];
        }
    }
    return out;
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    std::string score = "contextual";
    std::int64_t ds = inputs.query.shape[3];
    bool norm = true, offsets = false, query = false;
    for (const auto& [name, value] : options) {
        if (name == "segment_score") score = value.as_string();
        if (name == "segment_dim") ds = value.as_int64();
        if (name == "segment_norm") norm = value.as_bool();
        if (name == "weight_seed")
            offsets = value.as_int64() % 2 == 1, query = value.as_int64() > 1;  // stands for inputs
    }
    const std::int64_t batch = inputs.query.shape[0], heads = inputs.query.shape[1], dv = inputs.value->shape[3],
                       keys = inputs.key->shape[2];
    if (offsets) {
        Tensor list = Tensor::allocate(attend::DType::i32, {batch, 5}).value();
        for (std::int64_t b = 0; b < batch; ++b) {
            std::vector<std::int64_t> cuts;
            for (int at = 0; at < 5; ++at) cuts.push_back(numbers.below(keys + 1));
            std::sort(cuts.begin(), cuts.end());
            for (std::int64_t at = 0; at < 5; ++at)
                list.as<std::int32_t>()[b * 5 + at] = static_cast<std::int32_t>(cuts[static_cast<std::size_t>(at)]);
        }
        inputs.extra.emplace_back("segment_offsets", std::move(list));
    }
    if (score != "contextual") return;
    // Projections of unit gain: scores then have the size that the float32 bound of the suite is made for.
    const auto projection = [&](std::vector<std::int64_t> shape) {
        Tensor weight = numbers.normal(shape);
        const float factor = 1.0f / std::sqrt(static_cast<float>(shape.back()));
        for (std::int64_t at = 0; at < weight.size(); ++at) weight.as<float>()[at] *= factor;
        return weight;
    };
    if (query)
        inputs.extra.emplace_back("segment_query", numbers.normal({batch, heads, inputs.query.shape[2], ds}));
    else
        inputs.weights.emplace_back("seg_wq", projection({heads, ds, inputs.query.shape[3]}));
    inputs.weights.emplace_back("seg_wk", projection({heads, ds, dv}));
    if (!norm) return;
    inputs.weights.emplace_back("seg_norm.gamma", numbers.normal({dv}));
    inputs.weights.emplace_back("seg_norm.beta", numbers.normal({dv}));
}

const specs::Registration spec(
    {.mechanism = "hierarchical-cross-attention",
     .oracle = hierarchical,
     .variants = {{{"segment_size", 5}},
                  {{"segment_size", 1}, {"segment_norm", false}},
                  {{"segment_size", 7}, {"segment_dim", 3}, {"segment_scale", 0.4}},
                  {{"segment_size", 6}, {"weight_seed", 2}},
                  {{"weight_seed", 1}},
                  {{"weight_seed", 1}, {"segment_score", "mean-key"}, {"softcap", 1.0}},
                  {{"segment_score", "mean-key"}, {"segment_size", 4}},
                  {{"segment_score", "lse"}, {"segment_size", 9}},
                  {{"segment_score", "lse"}, {"weight_seed", 1}},
                  {{"segment_score", "uniform"}, {"segment_size", 8}},
                  {{"segment_score", "uniform"}, {"segment_size", 6}, {"dropout", 0.3}, {"seed", 2}}},
     .causal = false,
     .exempt = {},
     .tolerance = 2e-5,
     .more = more,
     .has_lse = [](const attend::NamedValues& options) {
         for (const auto& [name, value] : options)
             if (name == "segment_score") return value.as_string() == "lse";
         return false;
     }});

}  // namespace
