// SPDX-License-Identifier: Apache-2.0
#include "attend/merge.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace attend {
namespace {

constexpr std::size_t most_in_order = 16;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

struct Part {
    const float* output;
    const float* lse;
};

// One row of parts [begin, end) into `output` and `lse`.
void merge_row(const Part* parts, std::size_t count, std::int64_t row, std::int64_t width, float* output, float* lse) {
    float most = minus_infinity;
    for (std::size_t s = 0; s < count; ++s) most = std::max(most, parts[s].lse[row]);
    std::fill_n(output + row * width, width, 0.0f);
    lse[row] = minus_infinity;
    if (most == minus_infinity) return;
    float sum = 0.0f;
    for (std::size_t s = 0; s < count; ++s) sum += std::exp(parts[s].lse[row] - most);
    for (std::size_t s = 0; s < count; ++s) {
        const float weight = std::exp(parts[s].lse[row] - most);
        if (weight == 0.0f) continue;  // what such a part holds may be anything
        const float share = weight / sum;
        for (std::int64_t d = 0; d < width; ++d) output[row * width + d] += share * parts[s].output[row * width + d];
    }
    lse[row] = most + std::log(sum);
}

}  // namespace

Result<PartialResult> merge(const std::vector<PartialResult>& parts) {
    const auto fail = [](ErrorCode code, const std::string& text) { return Error{code, "merge: " + text, ""}; };
    if (parts.empty()) return fail(ErrorCode::shape, "there are no parts; accepted: at least one");
    std::vector<Tensor> kept;  // row-major
    std::vector<Part> level;
    for (std::size_t s = 0; s < parts.size(); ++s) {
        const PartialResult& part = parts[s];
        if (part.output.dtype != DType::f32 || part.lse.dtype != DType::f32)
            return fail(ErrorCode::dtype, "part " + std::to_string(s) + " is not F32");
        std::vector<std::int64_t> rows = part.output.shape;
        if (!rows.empty()) rows.pop_back();
        if (part.output.rank() < 1 || part.lse.shape != rows || part.output.shape != parts[0].output.shape)
            return fail(ErrorCode::shape, "part " + std::to_string(s) + " has output " + shape_text(part.output.shape) +
                                              " and lse " + shape_text(part.lse.shape) + "; accepted: output " +
                                              shape_text(parts[0].output.shape) + " and lse without its last axis");
        Result<Tensor> output = contiguous_copy(part.output), lse = contiguous_copy(part.lse);
        if (!output) return output.error();
        if (!lse) return lse.error();
        for (std::int64_t row = 0; row < lse->size(); ++row) {
            const float value = lse->as<const float>()[row];
            if (std::isnan(value) || value == std::numeric_limits<float>::infinity())
                return fail(ErrorCode::nonfinite, "lse of part " + std::to_string(s) + " holds " +
                                                      (std::isnan(value) ? "NaN" : "+inf") +
                                                      "; accepted: finite numbers and -inf");
        }
        level.push_back({output->as<const float>(), lse->as<const float>()});
        kept.push_back(std::move(*output));
        kept.push_back(std::move(*lse));
    }
    const std::int64_t width = parts[0].output.shape.back(), rows = parts[0].lse.size();
    const auto merged = [&](const Part* some, std::size_t count) -> Result<PartialResult> {
        Result<Tensor> output = Tensor::allocate(DType::f32, parts[0].output.shape, Tensor::Fill::none);
        Result<Tensor> lse = Tensor::allocate(DType::f32, parts[0].lse.shape, Tensor::Fill::none);
        if (!output) return output.error();
        if (!lse) return lse.error();
        for (std::int64_t row = 0; row < rows; ++row)
            merge_row(some, count, row, width, output->as<float>(), lse->as<float>());
        return PartialResult{std::move(*output), std::move(*lse)};
    };
    const bool by_tree = level.size() > most_in_order;
    while (by_tree && level.size() > 2) {
        std::vector<Part> next;
        for (std::size_t at = 0; at < level.size(); at += 2) {
            if (at + 1 == level.size()) {
                next.push_back(level[at]);
                break;
            }
            Result<PartialResult> pair = merged(level.data() + at, 2);
            if (!pair) return pair;
            next.push_back({pair->output.as<const float>(), pair->lse.as<const float>()});
            kept.push_back(std::move(pair->output));
            kept.push_back(std::move(pair->lse));
        }
        level = std::move(next);
    }
    return merged(level.data(), level.size());
}

}  // namespace attend
