// SPDX-License-Identifier: Apache-2.0
// linformer-attention: softmax over rows that the visible keys and values are projected, pooled or convolved to.
#include "specs/linear/compressed.hpp"

namespace {

using namespace specs::linear;
using attend::Tensor;

// Element (head, row, column) of a projection, given or seeded.
struct Projection {
    const Tensor* given;
    std::vector<double> seeded;
    std::int64_t rows, columns;
    bool per_head;
    double at(std::int64_t head, std::int64_t row, std::int64_t column) const {
        if (given == nullptr) return seeded[size(((per_head ? head : 0) * rows + row) * columns + column)];
        const std::size_t lead = given->shape.size() - 2;
        return static_cast<double>(
            given->as<const float>()[(lead == 1 ? head * given->strides[0] : 0) + row * given->strides[lead] +
                                     column * given->strides[lead + 1]]);
    }
};

specs::Expected oracle(const specs::Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const std::int64_t batch = query.shape[0], heads = query.shape[1], nq = query.shape[2], nk = key.shape[2],
                       d = query.shape[3], dv = value.shape[3];
    const double given = call.number("scale", 0);
    const double scale = given != 0 ? given : 1 / std::sqrt(static_cast<double>(d));
    const std::string kind = call.word("projection"), sharing = call.word("sharing");
    const auto seed = static_cast<std::uint64_t>(call.number("weight_seed", 0));
    const Tensor *e = weight_named(call, "e"), *f = weight_named(call, "f");
    std::int64_t n = nk;
    if (kind == "linear")
        n = e != nullptr ? e->shape.back() : static_cast<std::int64_t>(call.number("max_len", static_cast<double>(nk)));
    std::int64_t k =
        static_cast<std::int64_t>(call.number("proj_dim", static_cast<double>(std::min<std::int64_t>(256, n))));
    if (kind == "linear" && e != nullptr) k = e->shape[e->shape.size() - 2];
    Projection keys{e, {}, k, n, sharing == "none"}, values{sharing == "kv" ? e : f, {}, k, n, sharing == "none"};
    const std::size_t count = size((sharing == "none" ? key.shape[1] : 1) * k * n);
    const double deviation = 1 / std::sqrt(static_cast<double>(k));
    if (kind == "linear" && e == nullptr) keys.seeded = normal_weight("linformer-attention/E", seed, count, deviation);
    if (kind == "linear" && values.given == nullptr)
        values.seeded = sharing == "kv" ? keys.seeded : normal_weight("linformer-attention/F", seed, count, deviation);
    const std::int64_t taps = k > 0 ? std::max<std::int64_t>(1, (nk + k - 1) / k) : 1;
    std::vector<double> conv_k, conv_v;
    if (kind == "conv") {
        conv_k = specs::weight_of(call, "conv_k", "linformer-attention/convK", size(d * d * taps),
                                  1 / std::sqrt(static_cast<double>(d * taps)));
        conv_v = specs::weight_of(call, "conv_v", "linformer-attention/convV", size(dv * dv * taps),
                                  1 / std::sqrt(static_cast<double>(dv * taps)));
    }
    specs::Expected expected;
    expected.o.assign(size(batch * heads * nq * dv), 0.0);
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
            const Site site = specs::linear::site_of(call, b, h);
            const auto row = [&](const Tensor& tensor, std::int64_t j) {
                return j < nk && site.visible[size(j)] ? row_of(tensor, b, site.kv, j)
                                                       : Row(size(tensor.shape[3]), 0.0);
            };
            const Rows seen = visible_rows(site, key), seen_values = visible_rows(site, value);
            if (seen.empty()) continue;
            Rows few, few_values;
            const auto compress = [&](const Tensor& tensor, const Projection& projection,
                                      const std::vector<double>& filter) {
                Rows out;
                const std::int64_t width = tensor.shape[3];
                for (std::int64_t t = 0; t < (kind == "conv" ? (nk + taps - 1) / taps : k); ++t) {
                    Row sum(size(width), 0.0);
                    for (std::int64_t j = 0; j < nk && kind == "linear"; ++j) {
                        const Row from = row(tensor, j);
                        for (std::int64_t c = 0; c < width; ++c)
                            sum[size(c)] += projection.at(site.kv, t, j) * from[size(c)];
                    }
                    for (std::int64_t u = 0; u < taps && kind == "conv"; ++u) {
                        const Row from = row(tensor, t * taps + u);
                        for (std::int64_t o = 0; o < width; ++o)
                            for (std::int64_t i = 0; i < width; ++i)
                                sum[size(o)] += filter[size((o * width + i) * taps + u)] * from[size(i)];
                    }
                    out.push_back(sum);
                }
                return out;
            };
            if (kind == "linear" || kind == "conv") {
                few = compress(key, keys, conv_k);
                few_values = compress(value, values, conv_v);
            } else {
                few = pooled(seen, std::min(size(k), seen.size()), kind == "max-pool");
                few_values = pooled(seen_values, std::min(size(k), seen.size()), kind == "max-pool");
            }
            for (std::int64_t i = 0; i < site.rows; ++i) {
                Row weights = weights_of(row_of(query, b, h, i), few, scale, call.number("softcap", 0));
                for (std::size_t t = 0; t < weights.size(); ++t)
                    weights[t] *= specs::dropout_at(call, b * heads + h, i, static_cast<std::int64_t>(t));
                const Row out = mixed(weights, few_values, size(dv));
                std::copy(out.begin(), out.end(),
                          expected.o.begin() + static_cast<std::ptrdiff_t>(((b * heads + h) * nq + i) * dv));
            }
        }
    return expected;
}

// Variants with scale 0.4 bring projections of 6 rows and some columns more than needed.
void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const auto word = [&](const char* name) {
        for (const auto& [known, value] : options)
            if (known == name && value.is_string()) return value.as_string();
        return std::string();
    };
    if (std::none_of(options.begin(), options.end(), [](const auto& option) { return option.first == "scale"; }))
        return;
    const std::int64_t heads = inputs.key->shape[1], keys = inputs.key->shape[2], width = inputs.key->shape[3],
                       value_width = inputs.value->shape[3];
    const auto layer = [&](std::vector<std::int64_t> shape, std::int64_t sums) {
        Tensor tensor = numbers.normal(std::move(shape));
        for (std::int64_t at = 0; at < tensor.size(); ++at)
            tensor.as<float>()[at] /= std::sqrt(static_cast<float>(sums));
        return tensor;
    };
    if (word("projection") == "conv") {
        const std::int64_t taps = std::max<std::int64_t>(1, (keys + 5) / 6);
        inputs.weights.emplace_back("conv_k", layer({width, width, taps}, width * taps));
        inputs.weights.emplace_back("conv_v", layer({value_width, value_width, taps}, value_width * taps));
        return;
    }
    const std::int64_t columns = std::max<std::int64_t>(keys, 6) + 3;
    const bool per_head = word("sharing") == "none";
    const std::vector<std::int64_t> shape =
        per_head ? std::vector<std::int64_t>{heads, 6, columns} : std::vector<std::int64_t>{6, columns};
    inputs.weights.emplace_back("e", layer(shape, keys + 1));
    if (word("sharing") != "kv") inputs.weights.emplace_back("f", layer(shape, keys + 1));
}

std::int64_t asked_rows(const attend::NamedValues& options) {
    for (const auto& [name, value] : options)
        if (name == "proj_dim") return value.as_int64();
    return 0;
}

const specs::Registration spec({.mechanism = "linformer-attention",
                                .oracle = oracle,
                                .variants = {{{"proj_dim", 4}},
                                             {{"proj_dim", 5}, {"sharing", "none"}, {"weight_seed", 7}},
                                             {{"proj_dim", 4}, {"sharing", "kv"}, {"softcap", 2.0}},
                                             {{"max_len", 300}, {"proj_dim", 6}},
                                             {{"scale", 0.4}},
                                             {{"scale", 0.4}, {"sharing", "none"}},
                                             {{"scale", 0.4}, {"sharing", "kv"}, {"dropout", 0.3}, {"seed", 3}},
                                             {{"length_policy", "strict"}, {"proj_dim", 3}},
                                             {{"projection", "mean-pool"}, {"proj_dim", 6}},
                                             {{"projection", "mean-pool"}},
                                             {{"projection", "max-pool"}, {"proj_dim", 5}, {"softcap", 1.5}},
                                             {{"projection", "conv"}, {"proj_dim", 4}},
                                             {{"projection", "conv"}, {"proj_dim", 6}, {"scale", 0.4}}},
                                .masks = false,
                                .biases = false,
                                .causal = false,
                                .exempt = {{"ones", "rows of the projection of the values do not add up to one"}},
                                .tolerance = 2e-5,
                                .more = more,
                                .fits = [](const attend::NamedValues& options, std::int64_t, std::int64_t nk) {
                                    return nk >= asked_rows(options);
                                }});

}  // namespace
