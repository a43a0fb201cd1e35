// SPDX-License-Identifier: Apache-2.0
// Landmarks of Nystrom attention: means of segments of rows, and the iterative inverse of a small matrix. Matrices are
// row-major with rows of `stride` floats, a multiple of the vector; what lies behind the last column is zero.
#pragma once

#include <math.h>

#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/gemm/micro_kernel.hpp"

namespace attend::ATTEND_ISA {

inline int64_t padded_columns(int64_t columns) { return (columns + batch_lanes - 1) / batch_lanes * batch_lanes; }

// Mean of rows that are added one by one: floats over few rows, doubles over those.
class RowMean {
public:
    RowMean(int64_t width, float* part, double* sums) : width_(width), part_(part), sums_(sums) { clear(); }

    void add(const float* row, int64_t stride) {
        int64_t d = 0;
        if (stride == 1)
            for (; d + batch_lanes <= width_; d += batch_lanes) store(part_ + d, load(part_ + d) + load(row + d));
        for (; d < width_; ++d) part_[d] += row[d * stride];
        ++rows_;
        if (++waiting_ == rows_at_once) flush();
    }
    // Writes the mean and starts anew.
    void take(float* to) {
        flush();
        for (int64_t d = 0; d < width_; ++d) to[d] = static_cast<float>(sums_[d] / static_cast<double>(rows_));
        clear();
    }

private:
    static constexpr int64_t rows_at_once = 16;
    void flush() {
        for (int64_t d = 0; d < width_; ++d) {
            sums_[d] += static_cast<double>(part_[d]);
            part_[d] = 0.0f;
        }
        waiting_ = 0;
    }
    void clear() {
        for (int64_t d = 0; d < width_; ++d) {
            part_[d] = 0.0f;
            sums_[d] = 0.0;
        }
        rows_ = waiting_ = 0;
    }
    int64_t width_, rows_{0}, waiting_{0};
    float* part_;
    double* sums_;
};

// out (=, +=) a x with `count` columns of a and rows of x; out and x have rows of `stride` floats.
inline void small_product(const float* a, int64_t a_stride, int64_t rows, const float* x, int64_t count, float* out,
                          int64_t stride, Into into = Into::overwrite, int64_t a_step = 1) {
    for (int64_t column = 0; column < stride;) {
        const int64_t left = (stride - column) / batch_lanes;
        // Four vectors are two and two, not three and one.
        const int64_t vectors = left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3;
        const float* from = x + column;
        float* to = out + column;
        if (vectors == 1)
            product<1>(a, a_stride, a_step, rows, from, count, to, into, to, stride);
        else if (vectors == 2)
            product<2>(a, a_stride, a_step, rows, from, count, to, into, to, stride);
        else
            product<3>(a, a_stride, a_step, rows, from, count, to, into, to, stride);
        column += vectors * batch_lanes;
    }
}

// Scratch for one matrix of m landmarks over rows of width D.
struct LandmarkScratch {
    float *weights, *inverse, *next, *error, *step, *power;  // [m][stride]
    float *transposed, *part;
    double *row, *sums;

    static LandmarkScratch take(Workspace& space, int64_t m, int64_t width) {
        const int64_t square = m * padded_columns(m);
        LandmarkScratch scratch;
        for (float** matrix :
             {&scratch.weights, &scratch.inverse, &scratch.next, &scratch.error, &scratch.step, &scratch.power})
            *matrix = space.take<float>(square);
        scratch.transposed = space.take<float>(width * padded_columns(m));
        scratch.part = space.take<float>(width);
        scratch.row = space.take<double>(m);
        scratch.sums = space.take<double>(m > width ? m : width);
        return scratch;
    }
};

// weights = softmax of scale q k^T over rows of m landmarks each; returns the largest sum of a column.
inline double landmark_weights(const float* q, const float* k, int64_t m, int64_t width, double scale,
                               const LandmarkScratch& scratch) {
    const int64_t stride = padded_columns(m);
    for (int64_t d = 0; d < width; ++d)
        for (int64_t j = 0; j < stride; ++j) scratch.transposed[d * stride + j] = j < m ? k[j * width + d] : 0.0f;
    small_product(q, width, m, scratch.transposed, width, scratch.weights, stride);
    for (int64_t j = 0; j < m; ++j) scratch.sums[j] = 0.0;
    for (int64_t i = 0; i < m; ++i) {
        float* row = scratch.weights + i * stride;
        double most = -__builtin_huge_val(), sum = 0.0;
        for (int64_t j = 0; j < m; ++j) {
            scratch.row[j] = scale * static_cast<double>(row[j]);
            if (scratch.row[j] > most) most = scratch.row[j];
        }
        for (int64_t j = 0; j < m; ++j) sum += scratch.row[j] = ::exp(scratch.row[j] - most);
        for (int64_t j = 0; j < m; ++j) {
            const double weight = scratch.row[j] / sum;
            scratch.sums[j] += weight;
            row[j] = static_cast<float>(weight);
        }
    }
    double most = 0.0;
    for (int64_t j = 0; j < m; ++j) most = scratch.sums[j] > most ? scratch.sums[j] : most;
    return most;
}

// to = diagonal I - from.
inline void subtract_from_diagonal(const float* from, float diagonal, int64_t m, float* to) {
    const int64_t stride = padded_columns(m);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < stride; j += batch_lanes)
            store(to + i * stride + j, Batch(0.0f) - load(from + i * stride + j));
        to[i * stride + i] = diagonal - from[i * stride + i];
    }
}

// The inverse of `weights` by iteration from weights^T / norm: Z <- Z (13 I - X (15 I - X (7 I - X))) / 4 with X = weights Z.
// Returns the matrix among the scratch's that holds it.
inline const float* landmark_inverse(int64_t m, double norm, int64_t iterations, const LandmarkScratch& scratch) {
    const int64_t stride = padded_columns(m);
    float *inverse = scratch.inverse, *next = scratch.next;
    for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < stride; ++j)
            inverse[i * stride + j] =
                j < m ? static_cast<float>(static_cast<double>(scratch.weights[j * stride + i]) / norm) : 0.0f;
    for (int64_t round = 0; round < iterations; ++round) {
        small_product(scratch.weights, stride, m, inverse, m, scratch.error, stride);
        subtract_from_diagonal(scratch.error, 7.0f, m, scratch.step);
        small_product(scratch.error, stride, m, scratch.step, m, scratch.power, stride);
        subtract_from_diagonal(scratch.power, 15.0f, m, scratch.step);
        small_product(scratch.error, stride, m, scratch.step, m, scratch.power, stride);
        subtract_from_diagonal(scratch.power, 13.0f, m, scratch.step);
        for (int64_t at = 0; at < m * stride; at += batch_lanes)
            store(scratch.step + at, load(scratch.step + at) * Batch(0.25f));
        small_product(inverse, stride, m, scratch.step, m, next, stride);
        float* const old = inverse;
        inverse = next;
        next = old;
    }
    return inverse;
}

}  // namespace attend::ATTEND_ISA
