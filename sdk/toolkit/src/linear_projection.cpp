// SPDX-License-Identifier: Apache-2.0
// Random directions of feature maps, drawn from the runtime's counter-based generator.
#include <math.h>

#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/linear.h"

namespace attend::ATTEND_ISA {
namespace {

// Elements first .. first + count - 1 of a named tensor, in order.
template <class Use>
void each_normal(uint64_t seed, uint32_t name, uint32_t redraw, uint64_t first, uint64_t count, Use use) {
    for (uint64_t block = first / 4; block * 4 < first + count; ++block) {
        const RandomWords words = element_words(RandomDomain::feature, seed, name, redraw, block);
        const NormalPair pairs[2] = {normal_pair(words.word[0], words.word[1]),
                                     normal_pair(words.word[2], words.word[3])};
        for (uint64_t lane = 0; lane < 4; ++lane) {
            const uint64_t element = block * 4 + lane;
            if (element < first || element >= first + count) continue;
            use(element - first, lane % 2 == 0 ? pairs[lane / 2].even : pairs[lane / 2].odd);
        }
    }
}

// Eight sums at a time: one chain of additions would be bound by its latency.
double dot(const double* a, const double* b, uint64_t count) {
    double sums[8] = {};
    uint64_t at = 0;
    for (; at + 8 <= count; at += 8)
        for (uint64_t lane = 0; lane < 8; ++lane) sums[lane] += a[at + lane] * b[at + lane];
    for (; at < count; ++at) sums[0] += a[at] * b[at];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// Orthonormal columns by Gram-Schmidt, each column twice: G = Q R with a positive diagonal of R. columns is [c][r].
void orthonormalize(double* columns, uint64_t count, uint64_t rows) {
    for (uint64_t c = 0; c < count; ++c) {
        double* column = columns + c * rows;
        for (int pass = 0; pass < 2; ++pass)
            for (uint64_t before = 0; before < c; ++before) {
                const double* other = columns + before * rows;
                const double share = dot(column, other, rows);
                for (uint64_t r = 0; r < rows; ++r) column[r] -= share * other[r];
            }
        const double length = ::sqrt(dot(column, column, rows));
        for (uint64_t r = 0; r < rows; ++r) column[r] /= length;
    }
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_draw_scratch)(const attend_random_features* features) {
    return static_cast<uint64_t>(features->head_dim) * static_cast<uint64_t>(features->head_dim);
}

extern "C" void ATTEND_KERNEL(attend_draw_features)(const attend_random_features* features, double* scratch,
                                                    float* to) {
    const auto width = static_cast<uint64_t>(features->head_dim), rows = static_cast<uint64_t>(features->num_features);
    const uint64_t blocks = (rows + width - 1) / width;
    const uint32_t projection = name_hash(features->projection_name), norms = name_hash(features->norms_name);
    for (uint64_t slot = 0; slot < static_cast<uint64_t>(features->slots); ++slot)
        for (uint64_t block = 0; block < blocks; ++block) {
            const uint64_t first_row = block * width, used = rows - first_row < width ? rows - first_row : width;
            float* out = to + (slot * rows + first_row) * width;
            const uint64_t first = (slot * blocks + block) * width * width;
            if (!features->orthogonal) {
                each_normal(features->seed, projection, features->redraw_index, first, used * width,
                            [&](uint64_t at, double value) { out[at] = static_cast<float>(value); });
                continue;
            }
            each_normal(features->seed, projection, features->redraw_index, first, width * width,
                        [&](uint64_t at, double value) {
                            const uint64_t column = at % width;
                            if (column < used) scratch[column * width + at / width] = value;
                        });
            orthonormalize(scratch, used, width);
            for (uint64_t row = 0; row < used; ++row) {
                double length = static_cast<double>(width);
                if (!features->sqrt_norms) {
                    length = 0.0;
                    each_normal(features->seed, norms, features->redraw_index, (slot * rows + first_row + row) * width,
                                width, [&](uint64_t, double value) { length += value * value; });
                }
                length = ::sqrt(length);
                for (uint64_t c = 0; c < width; ++c)
                    out[row * width + c] = static_cast<float>(length * scratch[row * width + c]);
            }
        }
}
