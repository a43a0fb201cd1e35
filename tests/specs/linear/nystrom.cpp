// SPDX-License-Identifier: Apache-2.0
// nystrom-attention: O = softmax(Q K~^T) Z softmax(Q~ K^T) V with means of segments and Z by iteration; exact where there
// are no more rows than landmarks.
#include "specs/linear/compressed.hpp"

namespace {

using namespace specs::linear;

Rows product(const Rows& a, const Rows& b) {
    Rows out(a.size(), Row(b.empty() ? 0 : b[0].size(), 0.0));
    for (std::size_t i = 0; i < a.size(); ++i)
        for (std::size_t t = 0; t < b.size(); ++t)
            for (std::size_t j = 0; j < out[i].size(); ++j) out[i][j] += a[i][t] * b[t][j];
    return out;
}
// diagonal I - a.
Rows from_diagonal(double diagonal, Rows a) {
    for (std::size_t i = 0; i < a.size(); ++i)
        for (std::size_t j = 0; j < a.size(); ++j) a[i][j] = (i == j ? diagonal : 0.0) - a[i][j];
    return a;
}
double largest_column_sum(const Rows& a) {
    double most = 0;
    for (std::size_t j = 0; j < a.size(); ++j) {
        double sum = 0;
        for (const Row& row : a) sum += row[j];
        most = std::max(most, sum);
    }
    return most;
}

struct Landmarks {
    Rows q, k, weights;  // weights: softmax(q k^T)
};

specs::Expected oracle(const specs::Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const attend::Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const std::int64_t batch = query.shape[0], heads = query.shape[1], nq = query.shape[2], nk = key.shape[2],
                       dv = value.shape[3];
    const double given = call.number("scale", 0);
    const double scale = given != 0 ? given : 1 / std::sqrt(static_cast<double>(query.shape[3]));
    const auto m = size(static_cast<std::int64_t>(call.number("num_landmarks", 64)));
    const auto taps = static_cast<std::int64_t>(call.number("residual_kernel", 0));
    const std::vector<double> filter =
        specs::weight_of(call, "conv_weight", "nystrom-attention/convWeight", size(heads * taps),
                         taps > 0 ? 1 / std::sqrt(static_cast<double>(taps)) : 0);
    specs::Expected expected;
    expected.o.assign(size(batch * heads * nq * dv), 0.0);

    const auto landmarks_of = [&](const Site& site, Landmarks& to) {
        const std::int64_t rows = in.query_lengths ? site.rows : nq == nk ? site.keys : nq;
        const Rows keys = visible_rows(site, key);
        if (m >= std::min(keys.size(), size(rows))) return false;
        Rows queries;
        for (std::int64_t i = 0; i < rows; ++i) queries.push_back(row_of(query, site.b, site.h, i));
        to.q = pooled(queries, m);
        to.k = pooled(keys, m);
        for (const Row& q : to.q) to.weights.push_back(weights_of(q, to.k, scale));
        return true;
    };
    double shared = 0;
    for (std::int64_t b = 0; b < batch && call.word("pinv_init") == "batch"; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
            Landmarks landmarks;
            if (landmarks_of(specs::linear::site_of(call, b, h), landmarks))
                shared = std::max(shared, largest_column_sum(landmarks.weights));
        }
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h) {
            const Site site = specs::linear::site_of(call, b, h);
            const Rows keys = visible_rows(site, key), values = visible_rows(site, value);
            Landmarks landmarks;
            Rows few;  // Z softmax(Q~ K^T) V
            if (landmarks_of(site, landmarks)) {
                const double norm = shared > 0 ? shared : largest_column_sum(landmarks.weights);
                Rows z(m, Row(m));
                for (std::size_t i = 0; i < m; ++i)
                    for (std::size_t j = 0; j < m; ++j) z[i][j] = landmarks.weights[j][i] / norm;
                for (int round = 0; round < static_cast<int>(call.number("pinv_iterations", 6)); ++round) {
                    const Rows x = product(landmarks.weights, z);
                    Rows step = from_diagonal(13, product(x, from_diagonal(15, product(x, from_diagonal(7, x)))));
                    z = product(z, step);
                    for (Row& row : z)
                        for (double& entry : row) entry /= 4;
                }
                Rows sums;
                for (const Row& q : landmarks.q) sums.push_back(mixed(weights_of(q, keys, scale), values, size(dv)));
                few = product(z, sums);
            }
            for (std::int64_t i = 0; i < site.rows; ++i) {
                Row out(size(dv), 0.0);
                const Row q = row_of(query, b, h, i);
                if (!few.empty())
                    out = mixed(weights_of(q, landmarks.k, scale), few, size(dv));
                else if (!keys.empty())
                    out = mixed(weights_of(q, keys, scale), values, size(dv));
                for (std::int64_t t = 0; t < taps; ++t) {
                    const std::int64_t j = i + t - (taps - 1) / 2;
                    if (j < 0 || j >= nk || !site.visible[size(j)]) continue;
                    const Row v = row_of(value, b, site.kv, j);
                    for (std::size_t c = 0; c < out.size(); ++c) out[c] += filter[size(h * taps + t)] * v[c];
                }
                std::copy(out.begin(), out.end(),
                          expected.o.begin() + static_cast<std::ptrdiff_t>(((b * heads + h) * nq + i) * dv));
            }
        }
    return expected;
}

const specs::Registration spec({.mechanism = "nystrom-attention",
                                .oracle = oracle,
                                .variants = {{{"num_landmarks", 4}},
                                             {{"num_landmarks", 5}, {"pinv_iterations", 3}},
                                             {{"num_landmarks", 3}, {"pinv_init", "batch"}},
                                             {{"num_landmarks", 7}, {"scale", 0.7}, {"pinv_iterations", 0}},
                                             {{"num_landmarks", 1}},
                                             {{"num_landmarks", 8}, {"residual_kernel", 3}},
                                             {{"num_landmarks", 4}, {"residual_kernel", 9}, {"pinv_init", "batch"}},
                                             {{"num_landmarks", 1000}}},
                                .masks = false,
                                .biases = false,
                                .causal = false,
                                .tolerance = 1e-5,
                                .fits = [](const attend::NamedValues& options, std::int64_t nq, std::int64_t nk) {
                                    return nq == nk ||
                                           std::none_of(options.begin(), options.end(), [](const auto& option) {
                                               return option.first == "residual_kernel";
                                           });
                                }});

}  // namespace
