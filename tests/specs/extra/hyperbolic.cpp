// SPDX-License-Identifier: Apache-2.0
// hyperbolic-attention: x_ij = -beta d(q_i, k_j) - offset, softmax or sigmoid, Einstein midpoints.
#include "specs/extra/space.hpp"

namespace {

using attend::NamedValues;
using specs::Call;
using specs::Expected;
using specs::ForwardInputs;
using specs::Numbers;
using specs::Tensor;
using specs::space::Point;
using specs::space::Row;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

Row row_of(const Tensor& from, std::int64_t b, std::int64_t h, std::int64_t n) {
    Row row;
    for (std::int64_t d = 0; d < from.shape[3]; ++d) row.push_back(oracle::View{&from}(b, h, n, d));
    return row;
}

Expected oracle(const Call& call) {
    const ForwardInputs& in = *call.inputs;
    const Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const std::int64_t batch = query.shape[0], heads = query.shape[1], nq = query.shape[2], nk = key.shape[2];
    const std::string map = call.word("input_map"), out_map = call.word("output_map");
    const double c = -call.number("curvature", -1), most = call.number("max_radius", 5);
    const double tq = call.number("input_scale", 1 / std::sqrt(static_cast<double>(query.shape[3]))),
                 tv = call.number("value_scale", 1 / std::sqrt(static_cast<double>(value.shape[3])));
    const bool sigmoid = call.word("weighting") == "sigmoid";
    const double minus = -std::numeric_limits<double>::infinity();
    const std::size_t width = size(value.shape[3]) - (map == "hyperboloid" || map == "pseudoPolar" ? 1 : 0);
    const auto of_head = [&](const char* name, std::int64_t h, double otherwise) {
        for (const auto& [given, tensor] : in.weights)
            if (given == name) return static_cast<double>(tensor.as<const float>()[h * tensor.strides[0]]);
        return call.number(name, otherwise);
    };
    Expected out;
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
            const std::int64_t kv = h * key.shape[1] / heads;
            const std::int64_t keys = specs::length_of(in.key_lengths, b, nk),
                               rows = specs::length_of(in.query_lengths, b, nq);
            std::vector<Point> k, v;
            for (std::int64_t j = 0; j < keys; ++j) {
                k.push_back(specs::space::point(map, row_of(key, b, kv, j), c, tq, most));
                v.push_back(specs::space::point(map, row_of(value, b, kv, j), c, tv, most));
            }
            const double beta = of_head("beta", h, 1), offset = of_head("offset", h, 0);
            for (std::int64_t i = 0; i < nq; ++i) {
                Row x(size(nk), minus), p(size(nk), 0.0), weights(size(keys), 0.0);
                double largest = minus, total = 0;
                for (std::int64_t j = 0; j < keys && i < rows; ++j) {
                    const specs::Place place{b, h, i, j, i + specs::offset_of(call, b)};
                    if (!specs::common_visible(call, place, true, true)) continue;
                    const Point q = specs::space::point(map, row_of(query, b, h, i), c, tq, most);
                    x[size(j)] =
                        -beta * specs::space::distance(q, k[size(j)], c) - offset + specs::bias_at(call, place);
                    largest = std::max(largest, x[size(j)]);
                }
                for (std::int64_t j = 0; j < keys && largest != minus; ++j) {
                    p[size(j)] = x[size(j)] == minus ? 0
                                 : sigmoid           ? 1 / (1 + std::exp(-x[size(j)]))
                                                     : std::exp(x[size(j)] - largest);
                    total += p[size(j)];
                    weights[size(j)] = specs::dropout_at(call, b * heads + h, i, j) > 0 ? p[size(j)] : 0.0;
                }
                for (const double w : p) out.p.push_back(sigmoid || total == 0 ? w : w / total);
                out.lse.push_back(largest == minus ? minus : largest + std::log(total));
                const Point middle = specs::space::midpoint(v, weights, width);
                for (const double y : specs::space::coordinates(out_map, middle, c, map == "exp0" ? tv : 1.0))
                    out.o.push_back(y);
            }
        }
    if (sigmoid) out.lse.clear();
    return out;
}

std::string word(const NamedValues& options, const std::string& name, const std::string& otherwise) {
    for (const auto& [given, value] : options)
        if (given == name) return value.as_string();
    return otherwise;
}

// Rows become coordinates of the model that the call names.
void onto(Tensor& tensor, const std::string& map, double c) {
    const std::int64_t width = tensor.shape[3];
    for (std::int64_t row = 0; width > 0 && row < tensor.size() / width; ++row) {
        float* x = tensor.as<float>() + row * width;
        double squares = 0;
        for (std::int64_t d = map == "hyperboloid" ? 1 : 0; d < width; ++d)
            squares += static_cast<double>(x[d]) * static_cast<double>(x[d]);
        if (map == "hyperboloid") x[0] = static_cast<float>(std::sqrt(1 / c + squares));
        if (map == "poincare" || map == "klein")
            for (std::int64_t d = 0; d < width; ++d)
                x[d] = static_cast<float>(static_cast<double>(x[d]) * 0.9 / std::sqrt(c * (squares + 1)));
    }
}

void more(ForwardInputs& inputs, const NamedValues& options, Numbers& numbers) {
    double c = 1;
    for (const auto& [given, value] : options)
        if (given == "curvature") c = -value.as_double();
    for (Tensor* tensor : {&inputs.query, &*inputs.key, &*inputs.value})
        onto(*tensor, word(options, "input_map", "exp0"), c);
    if (numbers.below(3) != 0) return;
    const std::int64_t heads = inputs.query.shape[1];
    Tensor beta = numbers.normal({heads});
    for (std::int64_t h = 0; h < heads; ++h) beta.as<float>()[h] = 0.3f + std::abs(beta.as<float>()[h]);
    inputs.weights = {{"beta", beta}, {"offset", numbers.normal({heads})}};
}

const specs::Registration spec(
    {.mechanism = "hyperbolic-attention",
     .oracle = oracle,
     .variants = {{{"beta", 2.5}, {"offset", 0.7}},
                  {{"curvature", -0.3}},
                  {{"curvature", -4.0}, {"weighting", "sigmoid"}},
                  {{"weighting", "sigmoid"}, {"offset", -1.0}},
                  {{"input_map", "pseudoPolar"}, {"output_map", "pseudoPolar"}},
                  {{"input_map", "poincare"}, {"output_map", "poincare"}},
                  {{"input_map", "klein"}, {"output_map", "klein"}, {"curvature", -2.0}},
                  {{"input_map", "hyperboloid"}, {"output_map", "hyperboloid"}},
                  {{"input_map", "hyperboloid"}, {"output_map", "tangent"}},
                  {{"input_map", "poincare"}, {"output_map", "pseudoPolar"}},
                  {{"output_map", "klein"}},
                  {{"input_scale", 1.5}, {"value_scale", 0.8}},
                  {{"input_scale", 2.0}, {"max_radius", 1.2}},
                  {{"causal", true}},
                  {{"causal", true}, {"causal_offset", 2}},
                  {{"window_size", 5}, {"input_map", "klein"}},
                  {{"dropout", 0.3}, {"seed", 9}},
                  {{"weighting", "sigmoid"}, {"dropout", 0.5}, {"rng_offset", 2}}},
     .odd_width = false,
     .exempt = {{"hidden keys", "rows that are not finite are refused, unless lengths hide them"},
                {"causal future", "as hidden keys"},
                {"scores", "the output is no sum of values"}},
     .tolerance = 1e-5,
     .more = more,
     .has_lse = [](const NamedValues& options) { return word(options, "weighting", "softmax") == "softmax"; }});

}  // namespace
