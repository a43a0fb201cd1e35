// SPDX-License-Identifier: Apache-2.0
// Module forms step by step in double precision: matrices, linear layers, norms, attention of several heads.
#pragma once

#include "identities/identities.hpp"

namespace identities {

struct Matrix {
    std::int64_t rows{}, cols{};
    std::vector<double> data;
    Matrix() = default;
    Matrix(std::int64_t r, std::int64_t c) : rows(r), cols(c), data(static_cast<std::size_t>(r * c), 0.0) {}
    double& operator()(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * cols + c)]; }
    double operator()(std::int64_t r, std::int64_t c) const { return data[static_cast<std::size_t>(r * cols + c)]; }
};

// Item b of [B, N, C] (rank 4: the middle axes as one), or a matrix.
Matrix matrix(const Tensor& tensor, std::int64_t b = 0);

struct Weights {
    std::vector<std::pair<std::string, Tensor>> list;
    const Tensor* find(const std::string& name) const {
        for (const auto& [known, tensor] : list)
            if (known == name) return &tensor;
        return nullptr;
    }
    std::vector<double> vector(const std::string& name) const {
        const std::vector<float> v = values(*find(name));
        return {v.begin(), v.end()};
    }
    void random(Random& random, const std::string& name, std::vector<std::int64_t> shape, float factor = 0.3f) {
        list.emplace_back(name, mapped(normal(random, std::move(shape)), [factor](float x) { return factor * x; }));
    }
    void norm(Random& random, const std::string& name, std::int64_t width) {
        list.emplace_back(name + ".gamma", mapped(normal(random, {width}), [](float x) { return 1.0f + 0.3f * x; }));
        this->random(random, name + ".beta", {width});
    }
};

Matrix linear(const Matrix& x, const Matrix& w, const std::vector<double>& bias = {});

Matrix layer_norm(const Matrix& x, const std::vector<double>& gamma, const std::vector<double>& beta);

Matrix each(Matrix x, const std::function<double(double)>& f);
inline double gelu_erf(double t) { return 0.5 * t * (1.0 + std::erf(t / std::sqrt(2.0))); }
inline double gelu_tanh(double t) {
    return 0.5 * t * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (t + 0.044715 * t * t * t)));
}

// Heads are runs of the columns; scale 1/sqrt of the width of a query head.
Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, std::int64_t heads,
                 const std::function<bool(std::int64_t, std::int64_t)>& visible);

// A result item against the formula.
bool agree(const Tensor& got, std::int64_t b, const Matrix& expected, double tolerance = 1e-5);

}  // namespace identities
