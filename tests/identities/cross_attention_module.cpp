// SPDX-License-Identifier: Apache-2.0
#include "identities/cross_attention/module.hpp"

namespace identities {

Matrix matrix(const Tensor& tensor, std::int64_t b) {
    const std::vector<float> all = values(tensor);
    const std::int64_t cols = tensor.shape.back(), items = tensor.shape.size() > 2 ? tensor.shape[0] : 1;
    Matrix m(static_cast<std::int64_t>(all.size()) / std::max<std::int64_t>(1, items * cols), cols);
    for (std::size_t at = 0; at < m.data.size(); ++at)
        m.data[at] = static_cast<double>(all[static_cast<std::size_t>(b) * m.data.size() + at]);
    return m;
}

Matrix linear(const Matrix& x, const Matrix& w, const std::vector<double>& bias) {
    Matrix y(x.rows, w.rows);
    for (std::int64_t r = 0; r < x.rows; ++r)
        for (std::int64_t o = 0; o < w.rows; ++o) {
            y(r, o) = bias.empty() ? 0.0 : bias[static_cast<std::size_t>(o)];
            for (std::int64_t c = 0; c < x.cols; ++c) y(r, o) += x(r, c) * w(o, c);
        }
    return y;
}

Matrix layer_norm(const Matrix& x, const std::vector<double>& gamma, const std::vector<double>& beta) {
    Matrix y = x;
    for (std::int64_t r = 0; r < x.rows; ++r) {
        double mean = 0, variance = 0;
        for (std::int64_t c = 0; c < x.cols; ++c) mean += x(r, c) / static_cast<double>(x.cols);
        for (std::int64_t c = 0; c < x.cols; ++c)
            variance += (x(r, c) - mean) * (x(r, c) - mean) / static_cast<double>(x.cols);
        for (std::int64_t c = 0; c < x.cols; ++c)
            y(r, c) = (x(r, c) - mean) / std::sqrt(variance + 1e-5) * gamma[static_cast<std::size_t>(c)] +
                      beta[static_cast<std::size_t>(c)];
    }
    return y;
}

Matrix each(Matrix x, const std::function<double(double)>& f) {
    for (double& value : x.data) value = f(value);
    return x;
}

Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, std::int64_t heads,
                 const std::function<bool(std::int64_t, std::int64_t)>& visible) {
    Matrix out(q.rows, v.cols);
    const std::int64_t d = q.cols / heads, dv = v.cols / heads;
    for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < q.rows; ++i) {
            std::vector<double> s(static_cast<std::size_t>(k.rows), -std::numeric_limits<double>::infinity());
            double most = s.empty() ? 0.0 : s[0], sum = 0;
            for (std::int64_t j = 0; j < k.rows; ++j) {
                if (!visible(i, j)) continue;
                double dot = 0;
                for (std::int64_t c = 0; c < d; ++c) dot += q(i, h * d + c) * k(j, h * d + c);
                s[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<double>(d));
                most = std::max(most, s[static_cast<std::size_t>(j)]);
            }
            for (const double x : s) sum += x > -1e300 ? std::exp(x - most) : 0.0;
            for (std::int64_t j = 0; j < k.rows; ++j) {
                const double x = s[static_cast<std::size_t>(j)];
                for (std::int64_t c = 0; c < dv && x > -1e300; ++c)
                    out(i, h * dv + c) += std::exp(x - most) / sum * v(j, h * dv + c);
            }
        }
    return out;
}

bool agree(const Tensor& got, std::int64_t b, const Matrix& expected, double tolerance) {
    const Matrix m = matrix(got, b);
    std::vector<float> a(m.data.begin(), m.data.end()), e(expected.data.begin(), expected.data.end());
    return m.rows == expected.rows && m.cols == expected.cols && agree(a, e, tolerance);
}

}  // namespace identities
